from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from python_tests.models.dual_stream_cases import small
from stratcore.models import ARCHITECTURES, DualStreamViT, PlainViT, PlainViTOptions, plain_options


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("name", ["v1", "v5_bidir", "v6"])
def test_as_many_parameters_and_blocks(name: str, qk_norm: bool) -> None:
    frame = replace(ARCHITECTURES[name], qk_norm=qk_norm)
    options = plain_options(frame)
    with torch.device("meta"):
        wanted = DualStreamViT(frame).num_parameters()["total"]
        found = PlainViT(options).num_parameters()["total"]
    assert abs(found - wanted) < 0.02 * wanted
    scales = [part for part in PlainViT(options).modules() if isinstance(part, torch.nn.RMSNorm)]
    assert len(scales) == 2 * options.depth * qk_norm
    assert frame.num_dual_blocks + max(frame.num_cross_blocks, frame.num_fused_blocks) <= options.depth


def test_output() -> None:
    model = PlainViT(PlainViTOptions(frame=small(pooling="attention"), dim=16, depth=2, num_heads=2))
    out = model(torch.rand(3, 1, 8, 8))
    assert out.logits.shape == (3, 4) and model.anchors is None and out.distance is None
    torch.testing.assert_close(out.embedding.norm(dim=-1), torch.ones(3))
    out.logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="dim: expected a multiple of num_heads"):
        PlainViTOptions(frame=small(), dim=15, depth=2, num_heads=2)
    with pytest.raises(ValueError, match="no plain transformer has .* parameters within 2 %"):
        plain_options(small())
