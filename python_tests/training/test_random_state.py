import random

import numpy as np
import pytest
import torch

from stratcore.training.random_state import (
    capture_random_state,
    deterministic_algorithms,
    preserved_random_state,
    restore_random_state,
    seed_everything,
)
from stratcore.training.state_tree import flatten_state, unflatten_state


def draw() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.randn(()).item()]


def test_a_captured_state_draws_the_same_after_a_round_trip():
    seed_everything(5)
    draw()
    tree, tensors = flatten_state(capture_random_state())
    first = [draw() for _ in range(3)]
    restore_random_state(unflatten_state(tree, tensors, torch.device("cpu")))
    assert [draw() for _ in range(3)] == first


def test_seeds_repeat_and_ranks_differ():
    draws = []
    for seed, rank in [(1, 0), (1, 0), (1, 1), (2, 0)]:
        seed_everything(seed, rank)
        draws.append(tuple(draw()))
    assert draws[0] == draws[1] and len(set(draws)) == 3


def test_preserved_state_hides_draws():
    seed_everything(1)
    expected = draw()
    seed_everything(1)
    with preserved_random_state():
        draw()
    assert draw() == expected


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match="seed: expected"):
        seed_everything(seed)


def test_deterministic_algorithms_are_undone():
    before = torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.are_deterministic_algorithms_enabled() == before
    with deterministic_algorithms(False):
        assert torch.are_deterministic_algorithms_enabled() == before
