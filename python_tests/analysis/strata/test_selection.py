from __future__ import annotations

import numpy as np
import pytest

from python_tests.analysis.strata.unions import subspaces
from stratcore.analysis import MixtureOfPPCA, choose_num_strata, reference_rows
from stratcore.analysis.strata.selection import _chance_range


def _cloud(seed=0):
    return np.random.default_rng(seed).standard_normal((300, 5)) * [3, 2, 1, 1, 0.5]


def _blobs():
    rng = np.random.default_rng(0)
    return np.repeat(np.eye(5)[:3] * 12, 60, axis=0) + rng.standard_normal((180, 5))


@pytest.mark.parametrize("method", ["mixture_of_ppca", "gaussian_mixture"])
def test_held_out_likelihood_finds_blobs_and_one_cloud(method):
    blobs = choose_num_strata(_blobs(), method, range(1, 5))
    assert (blobs.chosen, blobs.best, blobs.one_stratum) == (3, 3, False)
    assert blobs.answer.startswith("3 strata: the held-out rows are likeliest (1 to 4 strata were tried)")
    cloud = choose_num_strata(_cloud(), method, (1, 2))
    assert cloud.one_stratum and cloud.chosen == 1
    assert cloud.answer.startswith("One stratum: more strata do not raise the likelihood")


def test_heavy_tails_read_as_a_second_stratum_and_the_answer_says_so():
    tails = np.random.default_rng(0).standard_t(2.5, (400, 1))  # one cloud, its rows of unlike scale
    x = np.random.default_rng(1).standard_normal((400, 4)) * np.abs(tails)
    found = choose_num_strata(x, "mixture_of_ppca", (1, 2))
    assert found.chosen == 2 and "Heavy tails and curvature ask for further components too" in found.answer


def test_held_out_likelihood_finds_subspaces_of_one_center():
    found = choose_num_strata(subspaces()[0], "mixture_of_ppca", (1, 2, 3, 4), seed=1)
    assert found.chosen == 3
    assert [score.num_strata for score in found.candidates] == [1, 2, 3, 4]
    best = found.candidates[found.best - 1]
    assert best.deficit == best.deficit_error == 0 and best.within_one_error
    for score in found.candidates:
        assert score.deficit == pytest.approx(best.score.value - score.score.value, abs=1e-9)
        assert score.score.low < score.score.value < score.score.high


def test_every_row_is_scored_by_a_fit_without_it():
    x = _blobs()
    found = choose_num_strata(x, "mixture_of_ppca", (2,), seed=3, repeats=3)
    order, total = np.random.default_rng(3).permutation(len(x)), 0.0
    for fold in range(3):
        held = order[fold::3]
        fitted = MixtureOfPPCA(2, random_state=3).fit(np.delete(x, held, axis=0))
        total += fitted.score_samples(x[held]).sum()
    assert found.candidates[0].score.value == pytest.approx(total / len(x), abs=1e-9)


def test_the_smallest_number_within_one_error_is_chosen():
    found = choose_num_strata(_cloud(), "mixture_of_ppca", range(1, 4), options={"dims": 2})
    within = [score.num_strata for score in found.candidates if score.within_one_error]
    assert found.chosen == min(within) and found.best in within


def test_stability_finds_blobs():
    found = choose_num_strata(_blobs(), "agglomerative", (2, 3, 4), criterion="stability", repeats=6)
    assert found.chosen == 3 and [score.num_strata for score in found.candidates] == [1, 2, 3, 4]
    three = found.candidates[2]
    assert three.agreement == pytest.approx(1, abs=0.02) and three.score.low > 0
    corrected = (three.agreement - three.reference) / (1 - three.reference)
    assert three.score.value == pytest.approx(corrected, abs=1e-12)
    assert three.score.low < three.score.value < three.score.high


def test_stability_of_one_cloud_is_no_more_than_chance():
    found = choose_num_strata(_cloud(), "agglomerative", (2, 3), criterion="stability", repeats=6)
    assert found.one_stratum and found.answer.startswith("One stratum: no larger number is found again")
    assert all(score.score.low < 0 for score in found.candidates[1:])


def test_a_choice_at_the_end_of_the_range_says_so():
    found = choose_num_strata(_blobs(), "mixture_of_ppca", (1, 2))
    assert found.chosen == 2 and found.answer.endswith("The choice is the largest number tried: try more.")


@pytest.mark.parametrize("shape", [(200, 4), (6, 20)])
def test_reference_has_the_mean_and_covariance_of_the_rows(shape):
    x = np.random.default_rng(0).standard_normal(shape) * 3 + 5
    draws = np.concatenate([reference_rows(x, seed=[0, r]) for r in range(2000 // shape[0] * 10)])
    np.testing.assert_allclose(draws.mean(axis=0), x.mean(axis=0), atol=0.3)
    np.testing.assert_allclose(np.cov(draws.T, bias=True), np.cov(x.T, bias=True), atol=1.2)
    assert np.linalg.matrix_rank(draws - x.mean(axis=0)) == min(shape[0] - 1, shape[1])


def test_range_of_chance_holds_another_cloud():
    """Disagreements exp(u) with u normal: the interval is Student's for one more u."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        u = rng.normal(-2, 0.5, 21)
        agreement = 1.01 - np.exp(u)
        low, high = _chance_range(np.full(8, agreement[0]), np.repeat(agreement[1:, None], 2, axis=1), 2.093)
        hits += low <= agreement[0] <= high
    assert 0.92 <= hits / 400 <= 0.98
    perfect = _chance_range(np.ones(8), np.ones((20, 2)), 2.093)
    assert perfect == pytest.approx((1, 1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "dbscan"}, "method: 'dbscan' has no number of strata"),
        (
            {"method": "kmeans"},
            "criterion: 'heldout' needs gaussian_mixture or mixture_of_ppca, got 'kmeans'",
        ),
        ({"criterion": "gap"}, "criterion: expected 'heldout' or 'stability', got 'gap'"),
        ({"candidates": (1, 91)}, r"candidates: expected some from 1 to 90 \(half the rows\)"),
        ({"candidates": ()}, "candidates: expected some from 1"),
        ({"repeats": 1}, "repeats: expected 2 to 90"),
    ],
)
def test_rejects(options, words):
    with pytest.raises(ValueError, match=words):
        choose_num_strata(_blobs(), **options)
