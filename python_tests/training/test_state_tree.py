import json
import math

import pytest
import torch
from safetensors.torch import load, save

from stratcore.training.state_tree import flatten_state, state_bytes, unflatten_state


def round_trip(state):
    tree, tensors = flatten_state(state)
    return unflatten_state(
        json.loads(json.dumps(tree, allow_nan=False)), load(save(tensors)), torch.device("cpu")
    )


def test_types_and_bits_come_back():
    state = {
        "none": None,
        "flags": [True, False],
        "floats": (0.1, math.inf, -math.inf, 1e-320),
        "integers": {0: 2**70, 3: -1},
        "__tensor__": "a name like our own marks",
        "empty": {},
        "tensors": [torch.arange(3), torch.zeros(0, 2), torch.tensor(1.5, dtype=torch.bfloat16)],
    }
    back = round_trip(state)
    assert {k: v for k, v in back.items() if k != "tensors"} == {
        k: v for k, v in state.items() if k != "tensors"
    }
    assert isinstance(back["floats"], tuple) and isinstance(back["flags"][0], bool)
    for own, other in zip(back["tensors"], state["tensors"], strict=True):
        assert own.dtype == other.dtype and torch.equal(own, other)
    assert math.isnan(round_trip(math.nan))


def test_tied_tensors_are_stored_once_and_overlapping_ones_apart():
    table = torch.randn(4, 3)
    state = {"a": table, "b": table, "row": table[1], "transposed": table.t()}
    _, tensors = flatten_state(state)
    assert sorted(tensors) == ["a", "row", "transposed"]
    back = round_trip(state)
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor)


def test_names_that_collide_stay_apart():
    back = round_trip({"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}})
    assert back["a.b"].item() == 0 and back["a"]["b"].item() == 1


def test_bytes_are_counted():
    assert state_bytes({"a": [torch.zeros(3), (torch.zeros(2, dtype=torch.int8),)], "b": 1}) == 14


@pytest.mark.parametrize("state", [{"a": [object()]}, {"a": [{1, 2}]}])
def test_an_unknown_leaf_names_its_path(state):
    with pytest.raises(TypeError, match=r"state 'a\.0': expected tensors.*got (object|set)"):
        flatten_state(state)
    with pytest.raises(TypeError, match="str or int keys"):
        flatten_state({(1, 2): 0})
