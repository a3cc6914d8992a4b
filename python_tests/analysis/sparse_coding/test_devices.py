"""Sparse coding on a GPU: the answers of the CPU, in the kind and on the device of the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from python_tests.analysis.sparse_coding.planted import planted
from stratcore.analysis.sparse_coding import (
    KSVD,
    OnlineDictionaryLearning,
    alista,
    batch_orthogonal_matching_pursuit,
    fista,
    ista,
    iterative_hard_thresholding,
    least_squares_codes,
    lipschitz_constant,
    orthogonal_matching_pursuit,
)

pytestmark = pytest.mark.cuda
CODERS: dict[str, Callable[..., Any]] = {
    "omp": lambda x, d: orthogonal_matching_pursuit(x, d, 3),
    "batch_omp": lambda x, d: batch_orthogonal_matching_pursuit(d @ d.T, x @ d.T, 3),
    "iht": lambda x, d: iterative_hard_thresholding(x, d, 3),
    "ista": lambda x, d: ista(x, d, 0.1, num_steps=50).codes,
    "fista": lambda x, d: fista(x, d, 0.1, num_steps=50).codes,
    "alista": lambda x, d: alista(x, d, num_steps=8),
    "least_squares": lambda x, d: least_squares_codes(x, d, orthogonal_matching_pursuit(x, d, 3)),
}


@pytest.mark.parametrize("name", CODERS)
def test_codes_of_the_gpu_are_those_of_the_cpu(name: str) -> None:
    x, _, dictionary = planted(rows=200)
    expected = CODERS[name](x, dictionary)
    codes = CODERS[name](torch.from_numpy(x).cuda(), torch.from_numpy(dictionary).cuda())
    assert codes.is_cuda and codes.dtype == torch.float64
    np.testing.assert_allclose(codes.cpu().numpy(), expected, atol=1e-9, rtol=0)


def test_numpy_rows_are_computed_where_it_is_asked_for() -> None:
    x, _, dictionary = planted(rows=100)
    codes = orthogonal_matching_pursuit(x, dictionary, 3, device="cuda")
    assert isinstance(codes, np.ndarray)
    np.testing.assert_allclose(codes, orthogonal_matching_pursuit(x, dictionary, 3), atol=1e-9, rtol=0)
    assert lipschitz_constant(dictionary, device="cuda") == pytest.approx(lipschitz_constant(dictionary))


@pytest.mark.parametrize("learner", [KSVD, OnlineDictionaryLearning])
def test_learners_find_the_same_dictionary(learner: type) -> None:
    x, _, _ = planted(rows=400)
    on_cpu = learner(30, 3, max_iter=3).fit(x)
    on_gpu = learner(30, 3, max_iter=3, device="cuda").fit(x)
    np.testing.assert_allclose(on_gpu.components_, on_cpu.components_, atol=1e-6)
    np.testing.assert_allclose(on_gpu.error_, on_cpu.error_, rtol=1e-6)
    np.testing.assert_allclose(on_gpu.transform(x), on_cpu.transform(x), atol=1e-5)
