"""Every estimator of the room keeps scikit-learn's contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.estimator_checks import check_estimator

from stratcore.analysis import (
    KSVD,
    DANCo,
    FiberBundleTest,
    KSubspaces,
    LevinaBickel,
    LocalPCA,
    ManifoldTest,
    MixtureOfPPCA,
    NoiseFloorDimension,
    OnlineDictionaryLearning,
    PCADimension,
    SimplexCVDimension,
    SphericalKMeans,
    TwoNN,
)

# Not CalibratedDimension: it needs 51 rows, scikit-learn checks with fewer.
ESTIMATORS: list[BaseEstimator] = [
    DANCo(k=3),
    FiberBundleTest(window=(3, 30)),
    KSVD(),
    KSubspaces(random_state=0),
    LevinaBickel(k=3),
    LocalPCA(k=3),
    ManifoldTest(window=(3, 30)),
    MixtureOfPPCA(random_state=0),
    NoiseFloorDimension(noise_variance=0.01),
    OnlineDictionaryLearning(),
    PCADimension(),
    SimplexCVDimension(order=1, num_simplices=100),
    SphericalKMeans(3, random_state=0),
    TwoNN(),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
def test_contract(estimator):
    # What scikit-learn skips by itself needs an environment variable.
    check_estimator(estimator, on_skip=None)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_rows_are_rows(estimator, dtype):
    rows = torch.randn(60, 4, dtype=dtype)
    fitted = estimator.fit(rows).__dict__.copy()
    again = estimator.fit(rows.double().numpy()).__dict__
    for name, value in fitted.items():
        np.testing.assert_equal(again[name], value, name)
