import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import BaseEstimator, clone

from stratcore import analysis


def test_every_public_name_is_there_and_documented():
    for name in analysis.__all__:
        assert getattr(analysis, name).__doc__ or name.isupper(), name
    with pytest.raises(AttributeError, match="has no attribute 'fibre'"):
        analysis.fibre  # noqa: B018


def test_import_is_lazy_and_only_figures_need_matplotlib():
    code = (
        "import sys, stratcore.analysis as a\n"
        "heavy = {'numpy', 'sklearn', 'scipy', 'matplotlib', 'jinja2', 'torch'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "a.agreement, a.PCADimension, a.write_results, a.expert_distances\n"
        "print(sorted({'matplotlib', 'jinja2', 'torch'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"


ESTIMATORS = [
    found
    for found in (getattr(analysis, name) for name in analysis.__all__)
    if isinstance(found, type) and issubclass(found, BaseEstimator) and "Dimension" in found.__name__
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda found: found.__name__)
def test_contract_of_every_estimator(estimator):
    model = estimator(0.5)
    rows = np.random.default_rng(0).standard_normal((50, 6))
    before = rows.copy()
    assert model.fit(rows) is model
    assert (rows == before).all()
    assert model.n_features_in_ == 6
    assert isinstance(model.dimension_, int)
    fresh = clone(model)
    assert fresh.get_params() == model.get_params()
    assert not hasattr(fresh, "dimension_")
    assert fresh.fit(rows.tolist()).dimension_ == model.dimension_


def test_there_are_estimators():
    assert len(ESTIMATORS) == 2
