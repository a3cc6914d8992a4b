from __future__ import annotations

import pytest

from stratcore.layers import ToroidalBranchOptions, legal_depths


@pytest.mark.parametrize(
    ("head_dim", "rotary", "depths"),
    [
        (80, True, [1, 2, 4, 5, 8, 10, 20, 40]),  # those of Phi-2
        (64, True, [1, 2, 4, 8, 16, 32]),
        (8, False, [1, 2, 4, 8]),
    ],
)
def test_legal_depths(head_dim: int, rotary: bool, depths: list[int]) -> None:
    assert legal_depths(head_dim, rotary=rotary) == depths


def test_lambdas_of_heads() -> None:
    one, each = ToroidalBranchOptions(lambda_distance=0.5), ToroidalBranchOptions(lambda_distance=(0.5, 2.0))
    assert one.starting_lambdas(3).tolist() == [0.5] * 3 and each.starting_lambdas(2).tolist() == [0.5, 2.0]
    with pytest.raises(ValueError, match="expected one number or one for each of 3 heads, got 2"):
        each.starting_lambdas(3)


def test_slices_are_coupled_only_where_there_are_several() -> None:
    assert not ToroidalBranchOptions(depth_attention="coupled").coupled
    assert ToroidalBranchOptions(depth=2, depth_attention="coupled").coupled
    assert not ToroidalBranchOptions(depth=2).coupled


def test_several_depths_to_choose_from() -> None:
    with pytest.raises(ValueError, match="adaptive_depths: expected at least two different depths"):
        ToroidalBranchOptions(adaptive_depths=(2, 2))
