import sys

import numpy as np
import pytest
import torch

from stratcore.analysis import (
    DANCo,
    LevinaBickel,
    LocalPCA,
    SimplexCVDimension,
    TwoNN,
)
from stratcore.analysis._manifolds import sphere, spheres
from stratcore.analysis.local_dim import enough_distinct_rows


def clouds():
    rng = np.random.default_rng(20261122)
    ball = rng.standard_normal((300, 6))
    angle = rng.random((300, 20)) * 6.283185307179586
    return {
        "sphere": ball / np.linalg.norm(ball, axis=1, keepdims=True),
        "torus": np.concatenate([np.cos(angle), np.sin(angle)], axis=1),
        "plane": rng.standard_normal((300, 3)) @ rng.standard_normal((3, 8)),
    }


# scikit-dimension 0.5.0 on these clouds, after `pip install scikit-dimension==0.5.0` and
# `from skdim.id import MLE, TwoNN, lPCA`: TwoNN(method="mle", discard_fraction=0.0), the same with .1, TwoNN(),
# MLE().fit(x, k=20) with four rows, the mean of lPCA(ver="ratio", alphaRatio=.95).fit_pw(x, k=50).
GOLDEN = {
    "sphere": (
        5.083699091600421, 4.997389931067607, 5.1208664146016085, 4.710351862304895,
        [4.125295354764685, 4.284193348673637, 4.695246915335423, 5.560921954582668], 5.0,
    ),
    "torus": (
        23.976281075107693, 23.105903907240616, 23.45165106372093, 20.692443576607822,
        [19.599580005582094, 13.291255967701774, 17.68930909287149, 16.725272000514323], 27.05666666666667,
    ),
    "plane": (
        3.1316271162543403, 3.120145307123908, 3.1369189992787456, 2.9518777118004746,
        [1.9398854896585456, 3.7419371171806293, 6.278557838515511, 3.6833881688087127], 3.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_equal_to_scikit_dimension(name):
    rows = clouds()[name]
    likelihood, censored, fitted, mle, local, pca = GOLDEN[name]
    assert TwoNN().fit(rows).dimension_ == pytest.approx(likelihood, rel=1e-9)
    assert TwoNN(discard_fraction=0.1).fit(rows).dimension_ == pytest.approx(censored, rel=1e-9)
    assert TwoNN("linear").fit(rows).dimension_ == pytest.approx(fitted, rel=1e-9)
    found = LevinaBickel().fit(rows)
    assert found.dimension_ == pytest.approx(mle, rel=1e-9)
    np.testing.assert_allclose(found.pointwise_[:4], local, rtol=1e-9)
    assert LocalPCA(k=50).fit(rows).dimension_ == pytest.approx(pca, rel=1e-9)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_estimators_find_the_dimension_of_a_sphere(dimension):
    rows = sphere(np.random.default_rng(dimension), 1000, dimension)
    rotated = rows @ np.linalg.qr(np.random.default_rng(0).standard_normal((12, dimension + 1)))[0].T
    for estimator in (TwoNN(), TwoNN("linear"), LevinaBickel(), LocalPCA(k=30)):
        found = estimator.fit(rotated)
        assert found.dimension_ == pytest.approx(dimension, rel=0.12), type(estimator).__name__
        low, high = found.low_, found.high_
        assert low <= found.dimension_ <= high
    span = SimplexCVDimension().fit(rotated)
    assert span.dimension_ == pytest.approx(dimension + 1, rel=0.05)


@pytest.mark.parametrize("estimator", [TwoNN(), LevinaBickel(10)], ids=["two_nn", "levina_bickel"])
def test_intervals_cover_on_a_flat_torus(estimator):
    """On a flat 2-torus neither boundary nor curvature biases; 100 clouds, nominal level 95 %."""
    estimates = []
    for seed in range(100):
        rows = spheres(np.random.default_rng(seed), 300, [1, 1])
        found = estimator.fit(rows)
        estimates.append((found.dimension_, found.low_, found.high_))
    dimension, low, high = np.array(estimates).T
    center = dimension.mean()
    assert ((low <= center) & (center <= high)).mean() >= 0.85
    assert abs(np.log(high / low).mean() / (2 * 1.96) / np.log(dimension).std() - 1) < 0.25


def test_pointwise_separates_a_sphere_from_a_line():
    """S^2 and a line through its middle, without the rows within .15 of where they meet."""
    rng = np.random.default_rng(0)
    line = np.zeros((600, 3))
    line[:, 2] = rng.uniform(-3, 3, 600)
    rows = np.concatenate([sphere(rng, 1200, 2), line])
    truth = np.repeat([2, 1], [1200, 600])
    found = LevinaBickel(20).fit(rows).pointwise_
    assert ((found > 1.5) + 1 == truth).mean() >= 0.9


def test_copies_of_rows_change_nothing_and_are_counted():
    rng = np.random.default_rng(3)
    rows = sphere(rng, 400, 3)
    twice = np.concatenate([rows, rows[:250], rows[:250]])
    for estimator in (TwoNN(), TwoNN("linear"), LevinaBickel(), LocalPCA(k=30), SimplexCVDimension()):
        alone, copied = estimator.fit(rows).dimension_, estimator.fit(twice)
        assert copied.dimension_ == alone
        assert copied.num_duplicates_ == 500
    local = LevinaBickel().fit(twice).pointwise_
    np.testing.assert_array_equal(local[400:650], local[:250])


def test_distinct_rows_keep_the_order_of_first_copies():
    rows = np.array([[2.0, 1], [0, 0], [2, 1], [-0.0, 0], [1, 5]])
    distinct, index = enough_distinct_rows(rows, 2)
    np.testing.assert_array_equal(distinct, [[2, 1], [0, 0], [1, 5]])
    np.testing.assert_array_equal(index, [0, 1, 0, 1, 2])


def test_constant_columns_scale_and_shift_change_nothing():
    rng = np.random.default_rng(4)
    rows = sphere(rng, 500, 4)
    moved = np.concatenate([np.ones((500, 3)), 1e-3 * rows + 5], axis=1)
    for estimator in (TwoNN(), LevinaBickel(), LocalPCA(k=40), SimplexCVDimension()):
        assert estimator.fit(moved).dimension_ == pytest.approx(estimator.fit(rows).dimension_, rel=1e-6)


def test_a_single_column_has_dimension_one():
    rows = np.random.default_rng(5).random((500, 1))
    assert TwoNN().fit(rows).dimension_ == pytest.approx(1, rel=0.15)
    assert LevinaBickel().fit(rows).dimension_ == pytest.approx(1, rel=0.1)
    assert LocalPCA(k=20).fit(rows).dimension_ == 1


@pytest.mark.parametrize(("dim", "within"), [(2, 0.25), (5, 1.0), (10, 1.0)])
def test_danco_is_that_of_scikit_dimension(dim, within):
    import skdim  # slow to import

    rows = sphere(np.random.default_rng(0), 500, dim)
    fitted = DANCo(k=10, random_state=3).fit(np.concatenate([rows, rows[:50]]))
    assert fitted.num_duplicates_ == 50
    with np.errstate(divide="ignore"):
        assert fitted.dimension_ == skdim.id.DANCo(k=10, random_state=3).fit(rows).dimension_
    assert abs(fitted.dimension_ - dim) <= within


def test_danco_names_the_extra_where_scikit_dimension_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "skdim", None)
    monkeypatch.setitem(sys.modules, "skdim.id", None)
    with pytest.raises(ModuleNotFoundError, match=r"stratcore\[dimension\]"):
        DANCo().fit(np.random.default_rng(0).standard_normal((40, 3)))


def test_torch_rows():
    rows = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    assert LevinaBickel().fit(rows).dimension_ == LevinaBickel().fit(rows.double().numpy()).dimension_


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: TwoNN().fit([[1.0, np.nan], [0, 1], [2, 2]]), "row 0 holds NaN"),
        (lambda: TwoNN().fit(np.ones((10, 3))), "more than 2 distinct rows for 2 neighbors, got 1 among 10"),
        (lambda: LevinaBickel(20).fit(np.random.rand(15, 2)), "more than 20 distinct rows"),
        (lambda: LevinaBickel(2).fit(np.eye(5)), "k: expected at least 3"),
        (lambda: LevinaBickel(3).fit(np.eye(5)), "all its neighbors at one distance"),
        (lambda: TwoNN().fit(np.eye(5)), "two nearest neighbors at one distance"),
        (lambda: TwoNN("slope").fit(np.eye(5)), "method: expected"),
        (lambda: TwoNN("linear", discard_fraction=0.0).fit(np.eye(5)), "discard_fraction: expected"),
        (lambda: SimplexCVDimension().fit(np.ones((9, 1))), "n_features = 1"),
        (lambda: TwoNN(level=1.0).fit(np.eye(5)), "level: expected"),
        (lambda: LocalPCA(share=1.2).fit(np.eye(5)), "share: expected"),
        (lambda: SimplexCVDimension(order=4).fit(np.random.rand(50, 2)), "try a lower order"),
    ],
)
def test_rejects(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_rounding_is_no_local_dimension():
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((200, 3)) @ rng.standard_normal((3, 20)) + 100).astype(np.float32)
    assert LocalPCA(k=50, share=1.0).fit(rows).dimension_ == 3
