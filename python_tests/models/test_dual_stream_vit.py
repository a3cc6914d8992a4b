from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from python_tests.models.dual_stream_cases import FUSED, small
from stratcore.models import ARCHITECTURES, DualStreamViT

COUNTS = {
    "v1": (1_281_340, 1_261_248, 3_159_552, 84_480, 6_296_582),
    "v3": (1_281_340, 1_261_248, 3_159_552, 84_480, 6_321_542),
    "v5": (1_281_340, 1_261_248, 3_159_552, 84_480, 6_321_542),
    "v5_bidir": (3_655_228, 3_635_136, 0, 84_480, 7_869_328),
    "v6": (5_445_690, 5_415_552, 0, 600_064, 16_876_622),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_those_of_the_source_documents_to_the_unit(name: str) -> None:
    with torch.device("meta"):
        found = DualStreamViT(ARCHITECTURES[name]).num_parameters()
    parts = ("geometric", "standard", "fused", "constellation", "total")
    assert tuple(found[part] for part in parts) == COUNTS[name]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"geometric_classifier": True, "pooling": "attention", "tokenizer": "convolution"},
        FUSED,
        {**FUSED, "qk_norm": True},
        {**FUSED, "geometric_output": False},
        {"channel": "perceptron", "readout": "perceptron"},
        {"channel": "none"},
    ],
)
def test_output_and_gradients(changes: dict) -> None:
    options = small(**changes)
    model = DualStreamViT(options)
    images = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8)
    out = model(images)
    assert out.logits.shape == (6, 4) and out.logits.dtype == torch.float32
    for embedding in out.embeddings():
        torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(6))
    assert len(out.embeddings()) == (1 + options.has_geometric_embedding + options.bidirectional)
    assert len(out.simplices) == (options.channel == "simplex")
    assert (out.geometric_logits is None) != options.geometric_classifier
    if options.bidirectional:
        joined = normalize(out.geometric_embedding + out.standard_embedding, dim=-1)
        torch.testing.assert_close(out.embedding, joined)
    if options.readout == "constellation":
        expected = 1 - out.embedding @ normalize(model.anchors, dim=-1).mT
        torch.testing.assert_close(out.distance, expected)
        assert torch.equal(out.nearest, expected.argmin(-1))
    else:
        assert out.distance is None and model.anchors is None
    loss = out.logits.square().sum() + sum((e * torch.randn_like(e)).sum() for e in out.embeddings())
    if out.geometric_logits is not None:
        loss = loss + out.geometric_logits.square().sum()
    loss.backward()
    starved = [name for name, p in model.named_parameters() if p.grad is None]
    assert starved == []


def test_controls_have_as_many_parameters() -> None:
    for name in ("v5_bidir", "v6"):
        base = ARCHITECTURES[name]
        with torch.device("meta"):
            wanted = DualStreamViT(base).num_parameters()["total"]
            for changes in ({"channel": "perceptron"}, {"readout": "perceptron", "separation": 0.0}):
                found = DualStreamViT(replace(base, **changes)).num_parameters()["total"]
                assert abs(found - wanted) < 0.02 * wanted, changes


def test_separation_moves_an_embedding_away_from_its_anchor_and_the_published_sign_does_not() -> None:
    """A descent step along the surrogate gradient of a loss that knows nothing of anchors."""
    moved = {}
    for sign in ("repel", "reference"):
        torch.manual_seed(0)
        model = DualStreamViT(small(separation=0.5, separation_sign=sign))
        x = torch.randn(64, 8, requires_grad=True)
        y = model.on_sphere(x)
        anchors = normalize(model.anchors.detach(), dim=-1)
        nearest = (y @ anchors.mT).argmax(-1)
        (y * 0.01 * torch.randn_like(y)).sum().backward()
        after = normalize(x.detach() - 0.01 * x.grad, dim=-1)
        cosine = cosine_similarity(anchors[nearest], after) - cosine_similarity(anchors[nearest], y)
        moved[sign] = float((cosine < 0).float().mean())
        assert model.anchors.grad is None
    assert moved["repel"] > 0.95 and moved["reference"] < 0.6


def test_a_decoupled_geometric_stream_sees_only_its_own_losses() -> None:
    model = DualStreamViT(small(decouple=True))
    out = model(torch.rand(4, 1, 8, 8))
    (gradient,) = torch.autograd.grad(
        out.logits.square().sum(), [model.geometric_output[0].weight], allow_unused=True, retain_graph=True
    )
    assert gradient is None
    out.geometric_embedding[:, 0].sum().backward()
    assert all(p.grad is None for p in model.pairs[0].standard.parameters())
    assert model.pairs[0].geometric.attention.inputs.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("changes", [{"tokenizer": "convolution", "pooling": "attention"}, FUSED])
def test_it_is_one_graph(changes: dict) -> None:
    model = DualStreamViT(small(separation=0.1, anchor_dropout=0.1, drop_path=0.1, **changes)).eval()
    images = torch.rand(4, 1, 8, 8)
    found = torch.compile(model, backend="eager", fullgraph=True)(images)
    torch.testing.assert_close(found.logits, model(images).logits)


def test_embeddings_are_spread_from_the_start_and_those_of_the_source_documents_are_not() -> None:
    """Mean cosine of two images' embeddings, before any training."""
    images = torch.rand(64, 1, 8, 8)
    found = {}
    for norm in ("batch", "layer"):
        torch.manual_seed(0)
        with torch.no_grad():
            x = DualStreamViT(small(embedding_norm=norm))(images).geometric_embedding
        found[norm] = float((x.sum(0).square().sum() - 64) / (64 * 63))
    assert abs(found["batch"]) < 0.1 and found["layer"] > 0.8


def test_bf16_keeps_the_sphere_in_float32() -> None:
    model = DualStreamViT(small()).eval()
    images = torch.rand(4, 1, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(images)
    assert out.embedding.dtype == torch.float32 and out.logits.dtype == torch.float32
    torch.testing.assert_close(out.embedding, model(images).embedding, atol=0.05, rtol=0)
