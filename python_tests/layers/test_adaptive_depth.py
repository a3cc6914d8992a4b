"""Legend: B batch, H query heads, G key heads, N tokens, E head size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gumbel_softmax

from stratcore.layers import AdaptiveDepthBranch, ToroidalBranch, ToroidalBranchOptions

pytestmark = pytest.mark.usefixtures("single_thread")
B, H, G, N, E = 2, 4, 2, 7, 8
DEPTHS = (1, 2, 4)
SIZES: dict[str, Any] = {"num_heads": H, "num_key_heads": G, "head_dim": E}
ORDER = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])


def options(**changes: Any) -> ToroidalBranchOptions:
    return ToroidalBranchOptions(**{"period": 10, "adaptive_depths": DEPTHS, "fusion": "mean", **changes})


def branch(**changes: Any) -> AdaptiveDepthBranch:
    return AdaptiveDepthBranch(options(**changes), channel_order=ORDER, **SIZES).double()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(0)
    return tuple(torch.randn(B, n, N, E, generator=drawn).double() for n in (H, G, G))  # type: ignore[return-value]


def of_depth(depth: int) -> ToroidalBranch:
    form = replace(options(), adaptive_depths=(), depth=depth)
    return ToroidalBranch(form, channel_order=ORDER, **SIZES).double()


@pytest.mark.parametrize("index", range(3))
def test_evaluation_is_the_branch_of_the_chosen_depth(index: int) -> None:
    own = branch().eval()
    with torch.no_grad():
        own.choice[index] = 1.0
    assert own.chosen() == index
    assert torch.equal(own(*inputs()), of_depth(DEPTHS[index])(*inputs()))


def test_training_mixes_by_a_gumbel_softmax() -> None:
    own = branch(temperature=0.5).train()
    with torch.no_grad():
        own.choice.copy_(torch.tensor([0.0, 1.0, -1.0]))
    torch.manual_seed(3)
    found = own(*inputs())
    torch.manual_seed(3)
    weights = gumbel_softmax(torch.tensor([0.0, 1.0, -1.0]), 0.5)
    expected = sum(w * of_depth(d)(*inputs()) for w, d in zip(weights, DEPTHS, strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not torch.equal(own(*inputs()), found)  # noise anew
    found.sum().backward()
    assert own.choice.grad is not None and own.choice.grad.abs().min() > 0


def test_the_better_depth_is_learned() -> None:
    """What a branch of depth 4 gives is to be learned from branches with the same lambdas."""
    torch.manual_seed(0)
    own, (q, k, v) = branch(gate="open", learn_lambda=False), inputs()
    target = of_depth(4)(q, k, v).detach()
    optimizer = torch.optim.Adam(own.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        (own.train()(q, k, v) - target).square().mean().backward()
        optimizer.step()
    assert own.chosen() == 2 and torch.equal(own.eval()(q, k, v), target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_closed_gate_is_the_host(dtype: torch.dtype) -> None:
    own = branch().float()
    host = torch.randn(3, 5).to(dtype)
    assert torch.equal(own.blend(host, torch.randn(3, 5).to(dtype)), host)
    opened = branch(gate="open")
    assert opened.gate is None and torch.equal(opened.blend(host, host + 1), host + 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"adaptive_depths": (2,)},
            "adaptive_depths: expected at least two different depths, .* got 2 and 1",
        ),
        ({"adaptive_depths": (2, 2)}, "got 2, 2 and 1"),
        ({"depth": 2}, "and depth left at 1, got 1, 2, 4 and 2"),
        ({"temperature": 0.0}, "temperature: expected a number > 0, got 0.0"),
        ({"adaptive_depths": (1, 3)}, "depth: expected one of 1, 2, 4 for heads of 8 channels, got 3"),
        ({"adaptive_depths": ()}, "adaptive_depths: expected at least two depths, got none"),
    ],
)
def test_bad_options_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        branch(**changes)


def test_a_branch_of_one_depth_refuses_several() -> None:
    with pytest.raises(ValueError, match="adaptive_depths: expected none, these are for AdaptiveDepthBranch"):
        ToroidalBranch(options(), **SIZES)
