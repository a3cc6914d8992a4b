"""How many strata? By the likelihood of held-out rows, or by stability beyond that of rows without strata.

Legend: N rows, D features, K candidates, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student_t

from stratcore.analysis._checks import as_matrix, cluster_count
from stratcore.analysis.resampling import Interval, mean_interval
from stratcore.analysis.strata.fit import DENSITY_METHODS, StrataMethod, fit_strata
from stratcore.analysis.strata.stability import subsample_agreement

_REFERENCES = 20
_LEAST = 0.01  # disagreement that counts as none
_EQUAL = 1e-3  # difference of corrected agreements that is none


@dataclass(frozen=True, kw_only=True)
class CandidateScore:
    """One number of strata.

    score: `heldout`: mean log likelihood of a held-out row, in nats. `stability`: agreement of pairs of parts of
        the rows, corrected so that 0 is what a cloud without strata shows and 1 is perfect; 0 for one stratum.
    deficit: `heldout`: how much a row gains under the best candidate. `stability`: difference of the scores.
    deficit_error: `heldout`: standard error of that gain, over rows. `stability`: that of the score, over pairs.
    within_one_error: whether the deficit is at most its error.
    agreement, reference: the two parts of a stability; NaN for `heldout`.
    """

    num_strata: int
    score: Interval
    deficit: float
    deficit_error: float
    within_one_error: bool
    agreement: float
    reference: float


@dataclass(frozen=True, kw_only=True)
class StrataChoice:
    """The table of candidates, the number that was chosen, and the answer in words."""

    method: str
    criterion: str
    candidates: list[CandidateScore]
    best: int
    chosen: int
    one_stratum: bool
    answer: str


def choose_num_strata(
    X: ArrayLike,
    method: StrataMethod = "mixture_of_ppca",
    candidates: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 8),
    *,
    criterion: Literal["heldout", "stability"] = "heldout",
    seed: int = 0,
    repeats: int | None = None,
    level: float = 0.95,
    options: dict[str, Any] | None = None,
) -> StrataChoice:
    """Choose the number of strata.

    `heldout`: cross-validated log likelihood of each row; the choice is the smallest number that the best one beats
    by no more than one standard error of the difference, paired by row. Components of a density follow its shape:
    one stratum with heavy tails, or a curved one, is likelier as several.

    `stability`: the adjusted Rand index a between the strata of two random parts of the rows (80 %), corrected as
    (a - r) / (1 - r) by its mean r over twenty clouds of one Gaussian with the same mean and covariance: few strata
    are stable without any cause. The interval is that for one more such cloud (Bonferroni over the candidates), so
    a number whose lower end is not above 0 is no more stable than chance. The choice is the most stable of the
    others, the larger of equals; one stratum where there are none.

    Args:
        X: rows, [N, D].
        method: see `fit_strata`. `heldout` needs a density: `gaussian_mixture` or `mixture_of_ppca`.
        candidates: numbers of strata, in [1, N]; with `stability` 1 is understood.
        criterion: see above.
        seed: of the folds, the parts, the reference and the starts.
        repeats: folds of `heldout` (5), pairs of `stability` (10), at least 2.
        level: of the intervals.
        options: further arguments of `fit_strata`.

    Raises:
        ValueError: a method without a density or without a number of strata, or candidates out of range.

    Cost: `heldout` 5 K fits, `stability` 100 K.
    """
    x_ND = as_matrix("X", X)
    _check_rule(method, criterion)
    repeats = repeats if repeats is not None else {"heldout": 5, "stability": 10}[criterion]
    if repeats < 2 or len(x_ND) < 2 * repeats:
        raise ValueError(f"repeats: expected 2 to {len(x_ND) // 2} (half the rows), got {repeats}")
    counts = sorted({cluster_count("candidates", count, len(x_ND)) for count in candidates})
    if not counts or counts[-1] > len(x_ND) // 2:
        raise ValueError(
            f"candidates: expected some from 1 to {len(x_ND) // 2} (half the rows), got {counts}"
        )
    score = _by_likelihood if criterion == "heldout" else _by_stability
    scores, best, chosen = score(x_ND, method, counts, repeats, seed, level, options or {})
    return StrataChoice(
        method=method,
        criterion=criterion,
        candidates=scores,
        best=best,
        chosen=chosen,
        one_stratum=chosen == 1,
        answer=_answer(criterion, scores, best, chosen),
    )


def _check_rule(method: str, criterion: str) -> None:
    if method in ("dbscan", "given"):
        raise ValueError(f"method: {method!r} has no number of strata to choose")
    if criterion not in ("heldout", "stability"):
        raise ValueError(f"criterion: expected 'heldout' or 'stability', got {criterion!r}")
    if criterion == "heldout" and method not in DENSITY_METHODS:
        raise ValueError(f"criterion: 'heldout' needs {' or '.join(DENSITY_METHODS)}, got {method!r}")


def reference_rows(X: ArrayLike, seed: int | Sequence[int] = 0) -> np.ndarray:
    """Rows of one Gaussian with the mean and covariance of the given ones, [N, D]: a cloud without strata."""
    x_ND = as_matrix("X", X)
    rng = np.random.default_rng(seed)
    mean_D = x_ND.mean(axis=0)
    _, singular_R, axes_RD = np.linalg.svd(x_ND - mean_D, full_matrices=False)
    normal_NR = rng.standard_normal((len(x_ND), len(singular_R)))
    return mean_D + normal_NR * (singular_R / np.sqrt(len(x_ND))) @ axes_RD


def _by_likelihood(
    x_ND: np.ndarray,
    method: StrataMethod,
    counts: list[int],
    folds: int,
    seed: int,
    level: float,
    options: dict[str, Any],
) -> tuple[list[CandidateScore], int, int]:
    order = np.random.default_rng(seed).permutation(len(x_ND))
    density_KN = np.empty((len(counts), len(x_ND)))
    for fold in range(folds):
        held = order[fold::folds]
        train_ND = np.delete(x_ND, held, axis=0)
        for k, count in enumerate(counts):
            fitted: Any = fit_strata(train_ND, method, count, seed=seed, **options).estimator
            density_KN[k, held] = fitted.score_samples(x_ND[held])
    best = int(density_KN.mean(axis=1).argmax())
    scores = []
    for count, density_N in zip(counts, density_KN, strict=True):
        gain_N = density_KN[best] - density_N
        error = float(gain_N.std(ddof=1) / np.sqrt(len(gain_N)))
        scores.append(_score(count, mean_interval(density_N, level), float(gain_N.mean()), error))
    return scores, counts[best], next(score.num_strata for score in scores if score.within_one_error)


def _by_stability(
    x_ND: np.ndarray,
    method: StrataMethod,
    counts: list[int],
    pairs: int,
    seed: int,
    level: float,
    options: dict[str, Any],
) -> tuple[list[CandidateScore], int, int]:
    larger = [count for count in counts if count > 1]
    nulls = [reference_rows(x_ND, seed=[seed, r]) for r in range(_REFERENCES)]
    scores = [_score(1, Interval(value=0.0, low=0.0, high=0.0), 0.0, 0.0, agreement=1.0, reference=1.0)]
    for count in larger:
        settings: dict[str, Any] = {"seed": seed, "options": options}
        agreement_P = subsample_agreement(x_ND, method, count, pairs=pairs, **settings)
        reference_R2 = np.stack(
            [subsample_agreement(null, method, count, pairs=2, **settings) for null in nulls]
        )
        quantile = student_t.ppf(1 - (1 - level) / 2 / len(larger), _REFERENCES - 1)
        chance_low, chance_high = _chance_range(agreement_P, reference_R2, quantile)
        agreement, reference = float(agreement_P.mean()), float(reference_R2.mean())
        room = max(1 - reference, 1e-9)
        interval = Interval(
            value=(agreement - reference) / room,
            low=(agreement - chance_high) / room,
            high=(agreement - chance_low) / room,
        )
        error = float(agreement_P.std(ddof=1) / np.sqrt(pairs)) / room
        scores.append(_score(count, interval, 0.0, error, agreement=agreement, reference=reference))
    top = max(score.score.value for score in scores)
    scores = [replace(score, deficit=top - score.score.value) for score in scores]
    scores = [replace(score, within_one_error=bool(score.deficit <= score.deficit_error)) for score in scores]
    best = max(score.num_strata for score in scores if score.deficit <= _EQUAL)
    real = [score for score in scores if score.num_strata == 1 or score.score.low > 0]
    least = min(score.deficit for score in real)
    return scores, best, max(score.num_strata for score in real if score.deficit <= least + _EQUAL)


def _chance_range(agreement_P: np.ndarray, reference_R2: np.ndarray, quantile: float) -> tuple[float, float]:
    """Range of the agreement of one more cloud without strata, widened by the error of the rows' own.

    Taken on the logarithm of the disagreement, where clouds vary alike whether they are stable or not.
    """
    disagreement_R = np.log(1 + _LEAST - reference_R2.mean(axis=1))
    own = 1 + _LEAST - float(agreement_P.mean())
    own_variance = float(agreement_P.var(ddof=1)) / len(agreement_P) / own**2
    variance = float(disagreement_R.var(ddof=1)) * (1 + 1 / len(disagreement_R)) + own_variance
    center, half = disagreement_R.mean(), quantile * np.sqrt(variance)
    return float(1 + _LEAST - np.exp(center + half)), float(1 + _LEAST - np.exp(center - half))


def _score(
    count: int,
    score: Interval,
    deficit: float,
    error: float,
    agreement: float = np.nan,
    reference: float = np.nan,
) -> CandidateScore:
    return CandidateScore(
        num_strata=count,
        score=score,
        deficit=deficit,
        deficit_error=error,
        within_one_error=bool(deficit <= error),
        agreement=agreement,
        reference=reference,
    )


def _answer(criterion: str, scores: list[CandidateScore], best: int, chosen: int) -> str:
    tried = f"{min(s.num_strata for s in scores)} to {max(s.num_strata for s in scores)} strata were tried"
    if chosen == 1:
        reason = {
            "heldout": "more strata do not raise the likelihood of held-out rows by more than its standard error",
            "stability": "no larger number is found again more reliably than in a cloud without strata",
        }[criterion]
        return f"One stratum: {reason} ({tried})."
    edge = " The choice is the largest number tried: try more." if chosen == scores[-1].num_strata else ""
    if criterion == "heldout":
        less = "" if chosen == best else f", within one standard error of {best} strata"
        return (
            f"{chosen} strata: the held-out rows are likeliest{less} ({tried}). Heavy tails and curvature ask for "
            f"further components too, so the number alone proves no separate strata.{edge}"
        )
    return f"{chosen} strata: found again most reliably, beyond a cloud without strata ({tried}).{edge}"
