"""Legend: B batch, N tokens, E head size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import StaticCache

from python_tests.huggingface.hosts import host, logits, tokens
from stratcore.layers import ToroidalBranchOptions
from stratcore.models import ToroidalLM, ToroidalLMOptions
from stratcore.models._attention_hosts import attention_layers
from stratcore.models.toroidal_lm_attention import rotary_channel_order, toroidal_branch_forward

pytestmark = pytest.mark.usefixtures("single_thread")
N = 12
FAR = torch.finfo(torch.float32).min
CAUSAL = torch.ones(N, N).tril().bool()


def bent(name: str, *, changes: dict[str, Any] | None = None, **torus: Any) -> ToroidalLM:
    form = {"lambda_distance": 0.3, "gate": "open", **torus}
    return ToroidalLM(
        host(name, **(changes or {})), ToroidalLMOptions(layers="all", torus=ToroidalBranchOptions(**form))
    )


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("llama", [0, 4, 1, 5, 2, 6, 3, 7]),
        ("phi", [0, 2, 1, 3, 4, 5, 6, 7]),  # half of the channels turn
        ("gpt_neox", [0, 1, 2, 3, 4, 5, 6, 7]),  # a quarter
    ],
)
def test_rotary_pairs_come_to_stand_together(name: str, order: list[int]) -> None:
    model = host(name)
    found = rotary_channel_order(attention_layers(model)[0], model, 8)
    assert found is not None and found.tolist() == order


def test_a_host_without_rotary_has_no_pairs() -> None:
    model = host("gpt2")
    assert rotary_channel_order(attention_layers(model)[0], model, 8) is None
    assert logits(bent("gpt2", depth=8), tokens()).isfinite().all()


def moved(model: ToroidalLM) -> float:
    """How much logits change where all positions are 40 later, of the largest."""
    ids, places = tokens(), torch.arange(N)[None]
    here, there = logits(model, ids, position_ids=places), logits(model, ids, position_ids=places + 40)
    return float((here - there).abs().max() / here.abs().max())


@pytest.mark.parametrize("name", ["llama", "phi", "gpt_neox", "phi3"])
def test_only_differences_of_positions_count_in_slices_too(name: str) -> None:
    assert moved(bent(name, depth=2, fusion=None)) <= 1e-5


def test_positions_leak_from_pairs_torn_apart_and_between_coupled_slices() -> None:
    model = bent("llama", depth=2, fusion=None)
    for branch in model.branches.values():
        branch.channel_order = None
    assert moved(model) >= 0.1
    assert moved(bent("llama", depth=2, fusion=None, depth_attention="coupled")) >= 0.1


# ---- masks

RIGHT = torch.tensor([[1] * 9 + [0] * 3, [1] * N])
MASKS: dict[str, Tensor | None] = {
    "none": None,
    "ones": torch.ones(2, N).long(),
    "padded": RIGHT,
    "bool": CAUSAL.expand(2, 1, N, N),
    "added": torch.zeros(2, 1, N, N).masked_fill(~CAUSAL, FAR),
}


@pytest.mark.parametrize("form", MASKS)
@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_no_token_sees_a_later_one(form: str, depth: int, strength: float) -> None:
    model = bent("llama", depth=depth, lambda_distance=strength, depth_attention="coupled")
    ids, mask = tokens(), MASKS[form]
    other = ids.clone()
    other[:, 7:] = tokens(seed=2)[:, 7:]
    inputs = {} if mask is None else {"attention_mask": mask}
    before, after = logits(model, ids, **inputs), logits(model, other, **inputs)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:9], after[:, 7:9])


@pytest.mark.parametrize(
    ("form", "implementation"),
    [("ones", "sdpa"), ("bool", "sdpa"), ("added", "sdpa"), ("ones", "eager"), ("added", "eager")],
)
def test_every_form_of_a_causal_mask_is_the_same(form: str, implementation: str) -> None:
    model = bent("llama", changes={"attn_implementation": implementation}, depth=2, gate="zero")
    for branch in model.branches.values():
        branch.gate.data.fill_(0.5)  # type: ignore[union-attr, operator]
    expected = logits(model, tokens())
    torch.testing.assert_close(
        logits(model, tokens(), attention_mask=MASKS[form]), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str, depth: int) -> None:
    model, ids = bent("llama", depth=depth, depth_attention="coupled"), tokens()
    alone = logits(model, ids[:1, :9])
    pads = torch.zeros(1, 3, dtype=torch.long)
    ones = torch.ones(1, 9, dtype=torch.long)
    order = (pads, ones) if side == "left" else (ones, pads)
    real = torch.cat(order, 1)
    padded = torch.zeros(1, N, dtype=torch.long).masked_scatter(real.bool(), ids[:1, :9])
    places = (real.cumsum(-1) - 1).clamp_min(0)
    found = logits(model, padded, attention_mask=real, position_ids=places)
    torch.testing.assert_close(found[real.bool()], alone[0], rtol=1e-4, atol=1e-5)


# ---- refusals


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.ones(2, 3, N), "expected a mask of 2 or 4 dimensions, got 3 dimensions"),
        (
            torch.ones(2, 1, N, N - 1),
            r"or 4 dimensions that broadcast to \[2, 4, 12, 12\], got \[2, 1, 12, 11\]",
        ),
        (torch.ones(2, 1, N, N).long(), "expected a mask of bool or floating point, got torch.int64"),
        ("causal", "expected a mask of 2 or 4 dimensions, got str"),
    ],
)
def test_masks_that_cannot_be_honoured_are_refused(mask: Any, words: str) -> None:
    model = bent("llama")
    attention = model.attentions()[0]
    q, k = torch.randn(2, 4, N, 8), torch.randn(2, 2, N, 8)
    with pytest.raises((ValueError, TypeError), match=words):
        toroidal_branch_forward(attention, q, k, k, mask)


def test_requests_that_cannot_be_honoured_are_refused() -> None:
    model, ids = bent("llama"), tokens()
    with pytest.raises(ValueError, match="cannot have weights as an output"):
        model(ids, output_attentions=True)
    with pytest.raises(ValueError, match="expected a dynamic cache, got StaticCache"):
        model(ids, past_key_values=StaticCache(config=model.config, max_cache_len=32))
    with pytest.raises(ValueError, match="expected a dynamic cache, got StaticCache"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static", do_sample=False)
    with pytest.raises(ValueError, match="expected at most 8 tokens, the period of the torus, got 12"):
        bent("llama", period=8)(ids)
    eager = bent("llama", changes={"attn_implementation": "eager"})
    with pytest.raises(ValueError, match="expected a mask to be added, as eager attention adds it, got bool"):
        eager(ids, attention_mask=MASKS["bool"])
    dropping = bent("gpt2").train()
    with pytest.raises(ValueError, match=r"cannot drop weights, got dropout 0.1 in training"):
        dropping(ids)


def test_hosts_that_cannot_be_bent_are_refused() -> None:
    for name, words in (
        ("gemma2", "caps its scores"),
        ("bert", "expected a causal language model with its head"),
        ("bart", "cannot have toroidal attention in an encoder and a decoder"),
    ):
        with pytest.raises(ValueError, match=words):
            bent(name, changes={"attn_implementation": "eager"} if name == "gemma2" else None)
    taken = bent("llama")
    with pytest.raises(ValueError, match="layers.0.self_attn: has a toroidal branch already"):
        ToroidalLM(taken.host, ToroidalLMOptions())
    with pytest.raises(TypeError, match="expected a PreTrainedModel"):
        ToroidalLM(torch.nn.Linear(2, 2), ToroidalLMOptions())  # type: ignore[arg-type]
