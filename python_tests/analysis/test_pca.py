import numpy as np
import pytest

from stratcore.analysis import fit_pca, pca_summary, variance_share


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    scale = 0.8 ** np.arange(20)
    return rng.standard_normal((300, 20)) * scale + 5, rng.standard_normal((200, 20)) * scale + 5


def test_all_components_reconstruct_and_share_is_one(rows):
    train, test = rows
    pca = fit_pca(train, 20)
    np.testing.assert_allclose(pca.inverse_transform(pca.transform(test)), test, atol=1e-10)
    assert variance_share(pca, test) == pytest.approx(1)


def test_share_on_train_is_scikit_learns_and_on_test_is_that_of_test_rows(rows):
    train, test = rows
    pca = fit_pca(train, 6)
    assert variance_share(pca, train) == pytest.approx(pca.explained_variance_ratio_.sum(), abs=1e-12)
    residual = test - pca.inverse_transform(pca.transform(test))
    expected = 1 - (residual**2).sum() / ((test - train.mean(axis=0)) ** 2).sum()
    assert variance_share(pca, test) == pytest.approx(expected, abs=1e-12)


def test_only_train_rows_are_seen(rows):
    train, test = rows
    np.testing.assert_allclose(fit_pca(train, 3).mean_, train.mean(axis=0))
    assert abs(fit_pca(train, 3).mean_ - test.mean(axis=0)).max() > 1e-3


def test_two_fits_are_bitwise_equal(rows):
    assert (fit_pca(rows[0], 5).components_ == fit_pca(rows[0].copy(), 5).components_).all()


def test_summary_runs_over_all_components(rows):
    train, test = rows
    summary = pca_summary(fit_pca(train, 6), train, test)
    assert len(summary.cumulative_variance) == 20
    assert summary.cumulative_variance[-1] == pytest.approx(1)
    assert summary.cumulative_variance[5] == pytest.approx(summary.variance_share_train, abs=1e-12)


@pytest.mark.parametrize("components", [0, 21])
def test_rejects_components_that_rows_cannot_span(rows, components):
    with pytest.raises(ValueError, match=f"expected 1 to 20 for 300 rows of 20 features, got {components}"):
        fit_pca(rows[0], components)
