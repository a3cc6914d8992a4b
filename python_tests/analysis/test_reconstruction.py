import numpy as np
import pytest

from stratcore.analysis import (
    Resampling,
    fit_pca,
    fvu,
    fvu_difference,
    group_scores,
    pca_reconstruction,
    score_reconstruction,
)

RNG = np.random.default_rng(0)
TRAIN = RNG.standard_normal((400, 12)) * np.linspace(2, 0.2, 12) + 3
TEST = RNG.standard_normal((300, 12)) * np.linspace(2, 0.2, 12) + 3
CENTER = TRAIN.mean(axis=0)


def test_perfect_prediction_scores_zero_and_the_train_mean_scores_one():
    assert fvu(TEST, TEST, CENTER) == 0
    assert fvu(TEST, np.broadcast_to(CENTER, TEST.shape), CENTER) == 1
    assert score_reconstruction(TEST, TEST, CENTER).r2 == 1


def test_halved_residual_scores_a_quarter():
    halfway = CENTER + (TEST - CENTER) / 2
    score = score_reconstruction(TEST, halfway, CENTER)
    # Every row's ratio is 1/4, so every resample's is too.
    assert (score.fvu, score.fvu_low, score.fvu_high, score.r2) == pytest.approx((0.25, 0.25, 0.25, 0.75))


def test_interval_covers_the_value_and_narrows_with_rows():
    noisy = TEST + 0.3 * np.random.default_rng(1).standard_normal(TEST.shape)
    few = score_reconstruction(TEST[:30], noisy[:30], CENTER)
    many = score_reconstruction(TEST, noisy, CENTER)
    assert many.fvu_low < many.fvu < many.fvu_high
    assert many.fvu_high - many.fvu_low < 0.6 * (few.fvu_high - few.fvu_low)


def test_interval_covers_the_truth_at_its_level():
    hits = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((80, 4))
        xhat = x + 0.5 * rng.standard_normal((80, 4))  # true FVU: 0.25 about the true mean 0
        score = score_reconstruction(x, xhat, np.zeros(4), Resampling(num_resamples=200, seed=seed))
        hits += score.fvu_low <= 0.25 <= score.fvu_high
    assert 87 <= hits <= 100


def test_groups_share_the_center_and_add_up():
    noisy = TEST + 0.3 * np.random.default_rng(1).standard_normal(TEST.shape)
    groups = np.where(TEST[:, 0] > 3, "right", "left")
    scores = group_scores(TEST, noisy, CENTER, groups)
    assert list(scores) == ["left", "right"]
    left = groups == "left"
    assert scores["left"].fvu == pytest.approx(fvu(TEST[left], noisy[left], CENTER))
    assert scores["left"].num_rows + scores["right"].num_rows == 300


def test_paired_difference_sees_what_separate_intervals_hide():
    noise = np.random.default_rng(1).standard_normal(TEST.shape)
    better, worse = TEST + 0.50 * noise, TEST + 0.51 * noise
    gap = fvu_difference(TEST, better, worse, CENTER)
    assert gap.value == pytest.approx(fvu(TEST, worse, CENTER) - fvu(TEST, better, CENTER))
    assert 0 < gap.low < gap.value < gap.high
    a, b = score_reconstruction(TEST, better, CENTER), score_reconstruction(TEST, worse, CENTER)
    assert a.fvu_high > b.fvu_low


def test_pca_baseline_is_the_tail_of_the_spectrum_on_train_rows():
    eigenvalues = np.linalg.eigvalsh(np.cov(TRAIN.T))[::-1]
    found = fvu(TRAIN, pca_reconstruction(TRAIN, TRAIN, 5), CENTER)
    assert found == pytest.approx(eigenvalues[5:].sum() / eigenvalues.sum(), abs=1e-12)


def test_pca_baseline_in_pca_space_maps_back_to_that_of_the_original_space():
    pca = fit_pca(TRAIN, 8)
    inside = pca_reconstruction(pca.transform(TRAIN), pca.transform(TEST), 5)
    np.testing.assert_allclose(pca.inverse_transform(inside), pca_reconstruction(TRAIN, TEST, 5), atol=1e-10)


def test_draws_repeat_with_their_seed():
    noisy = TEST + 0.3 * np.random.default_rng(1).standard_normal(TEST.shape)
    options = [Resampling(seed=seed) for seed in (4, 4, 5)]
    first, again, other = (score_reconstruction(TEST, noisy, CENTER, option) for option in options)
    assert first == again
    assert first.fvu_low != other.fvu_low


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fvu(TEST, TEST[:5], CENTER), r"expected shapes \(300, 12\)"),
        (lambda: fvu(TEST, TEST, CENTER[:3]), r"got \(300, 12\) and \(3,\)"),
        (lambda: fvu(np.ones((3, 2)), np.ones((3, 2)), np.ones(2)), "no variance to explain"),
        (lambda: Resampling(level=1.0), "level"),
    ],
)
def test_rejects(call, words):
    with pytest.raises(ValueError, match=words):
        call()
