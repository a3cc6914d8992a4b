from __future__ import annotations

import pytest
import torch

from python_tests.models.dual_stream_cases import FUSED, small
from stratcore.models import ArbitrationViT


def test_output_and_who_learns_from_what() -> None:
    model = ArbitrationViT(small())
    out = model(torch.rand(6, 1, 8, 8))
    assert out.logits.shape == (6, 4) and len(out.expert_logits) == 2 and len(out.simplices) == 2
    for embedding in (out.embedding, out.standard_embedding):
        torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(6))
    (out.logits.square().sum() + out.embedding[:, 0].sum()).backward()
    assert all(p.grad is None for p in model.experts.parameters())  # the geometric tower only reads them
    gates = [block.gate for block in model.blocks]
    assert [float(gate.detach()) for gate in gates] == [0.25, 0.25]
    assert all(gate.grad is not None and bool(gate.grad != 0) for gate in gates)
    model.zero_grad()
    sum(logits.square().sum() for logits in model(torch.rand(6, 1, 8, 8)).expert_logits).backward()
    assert all(p.grad is not None for p in model.experts.parameters())
    assert all(p.grad is None for p in model.blocks.parameters())


def test_the_geometric_tower_hears_the_experts() -> None:
    """With closed gates it depends on the images alone; else on the experts' tokens too."""
    model = ArbitrationViT(small()).eval()
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        before = model(images).embedding
        for parameter in model.experts.parameters():
            parameter.mul_(1.5)
        assert float((model(images).embedding - before).abs().max()) > 1e-4
        for block in model.blocks:
            block.gate.zero_()
        closed = model(images).embedding
        for parameter in model.experts.parameters():
            parameter.mul_(1.5)
        assert torch.equal(model(images).embedding, closed)


def test_parameters_and_start() -> None:
    model = ArbitrationViT(small())
    model.start_at_base_rate()
    prior = -torch.log(torch.tensor(3.0))
    assert torch.allclose(model.classifier[-1].bias, prior)
    assert torch.allclose(model.experts[0].classifier.bias, prior)
    assert not torch.allclose(model.experts[1].classifier.bias, prior)
    assert 0 < model.num_parameters()["experts"] < model.num_parameters()["total"]
    with pytest.raises(ValueError, match="arbitration: expected num_fused_blocks=0, channel 'simplex'"):
        ArbitrationViT(small(**FUSED))
