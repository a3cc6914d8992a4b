"""The NumPy face of toroidal attention against the torch op. Legend: toroidal_problem.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from python_tests.ops.toroidal_problem import CASES, METRICS, masks, problem
from stratcore import array, ops


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_torch_op(name, metric, dtype):
    sizes, options = CASES[name]
    tensors = problem(sizes, dtype, axes=len(options["lattice"]) if metric == "l1" else 1)
    wanted = ops.toroidal_attention_lse(*tensors, metric=metric, eps=0.01, **options)
    results = array.toroidal_attention_lse(*(t.numpy() for t in tensors), metric=metric, eps=0.01, **options)
    for result, tensor in zip(results, wanted, strict=True):
        assert type(result) is np.ndarray and result.dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(result, tensor)
    # plain tensors, through DLPack, and other layouts of memory
    alone = array.toroidal_attention(*tensors, metric=metric, eps=0.01, **options)
    np.testing.assert_array_equal(alone, wanted.out)
    turned = [np.asfortranarray(t.numpy()) for t in tensors]
    np.testing.assert_array_equal(
        array.toroidal_attention(*turned, metric=metric, eps=0.01, **options), wanted.out
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masks_equal_the_torch_op(dtype):
    sizes = (2, 4, 2, 9, 12, 4)
    tensors = problem(sizes, dtype)
    for mask in masks(sizes).values():
        wanted = ops.toroidal_attention_lse(*tensors, lattice=12, mask=mask)
        for given in (mask, mask.numpy()):
            results = array.toroidal_attention_lse(*tensors, lattice=12, mask=given)
            for result, tensor in zip(results, wanted, strict=True):
                np.testing.assert_array_equal(result, tensor)


@pytest.mark.parametrize("sizes", [(0, 2, 1, 3, 4, 2), (1, 2, 1, 0, 4, 2), (1, 2, 1, 3, 0, 2)])
def test_empty_inputs(sizes):
    out, lse, skipped, visible = array.toroidal_attention_lse(*problem(sizes, torch.float32), lattice=4)
    assert out.shape == (sizes[0], 2, sizes[3], 2) and not out.any() and (lse == -np.inf).all()
    assert not skipped.any() and not visible.any()


REJECTED: dict[str, dict[str, Any]] = {
    "q dimensions": {"q": np.ones((4, 5, 6))},
    "k shape": {"k": np.ones((2, 3, 7, 6))},
    "k dtype": {"k": np.ones((2, 2, 7, 6), np.float32)},
    "v shape": {"v": np.ones((2, 2, 8, 6))},
    "slopes": {"slopes": np.ones((4, 3))},
    "lattice": {"lattice": [4, 0]},
    "block": {"block": [3, 6]},
    "metric": {"metric": "l3"},
    "scale": {"scale": np.inf},
    "eps": {"eps": 1.0},
    "group": {"causal_group": 0},
    "offset": {"query_offset": -1},
    "mask": {"mask": np.ones((3, 7))},
}


@pytest.mark.parametrize("name", REJECTED)
def test_rejects_in_the_words_of_the_torch_op(name):
    arrays = {
        "q": np.ones((2, 4, 5, 6)),
        "k": np.ones((2, 2, 7, 6)),
        "v": np.ones((2, 2, 7, 6)),
        "slopes": np.ones(4),
    }
    options: dict[str, Any] = {"lattice": [4, 6]}
    for key, value in REJECTED[name].items():
        (arrays if key in arrays else options)[key] = value
    with pytest.raises((ValueError, TypeError), match="^toroidal_attention: expected ") as ours:
        array.toroidal_attention(*arrays.values(), **options)
    tensors = [torch.from_numpy(a) for a in arrays.values()]
    if "mask" in options:
        options["mask"] = torch.from_numpy(options["mask"])
    with pytest.raises(ours.type) as theirs:
        ops.toroidal_attention(*tensors, **options)
    assert str(ours.value).startswith(str(theirs.value))


def test_refuses_what_would_lose_a_gradient():
    tensors = problem((1, 1, 1, 3, 3, 2))
    tensors[1].requires_grad_()
    with pytest.raises(ValueError, match="toroidal_attention: expected k without a gradient"):
        array.toroidal_attention(*tensors, lattice=3)
