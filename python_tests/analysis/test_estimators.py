"""Every estimator of the room keeps scikit-learn's contract."""

from __future__ import annotations

import pytest
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.estimator_checks import check_estimator

from stratcore.analysis import KSVD, NoiseFloorDimension, OnlineDictionaryLearning, PCADimension

ESTIMATORS: list[BaseEstimator] = [
    KSVD(),
    NoiseFloorDimension(noise_variance=0.01),
    OnlineDictionaryLearning(),
    PCADimension(),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
def test_contract(estimator):
    check_estimator(
        estimator, on_skip=None
    )  # what scikit-learn skips by itself needs an environment variable


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_rows_are_rows(estimator, dtype):
    rows = torch.randn(60, 4, dtype=dtype)
    fitted = estimator.fit(rows).__dict__.copy()
    again = estimator.fit(rows.double().numpy()).__dict__
    for name, value in fitted.items():
        assert (value == again[name]).all() if hasattr(value, "all") else value == again[name], name
