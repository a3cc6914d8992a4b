"""Do strata come back when the seed or the rows change? Legend: N rows, D features, S seeds, P pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student_t

from stratcore.analysis._checks import as_matrix
from stratcore.analysis.contingency_tables import adjusted_rand_index, contingency
from stratcore.analysis.resampling import Interval, mean_interval
from stratcore.analysis.strata.fit import StrataMethod, fit_strata


@dataclass(frozen=True, kw_only=True)
class Stability:
    """Adjusted Rand index between strata that were found twice.

    seeds: mean over all pairs of seeds, on the same rows; 1 by construction where a method draws nothing. Its
        interval is the jackknife over seeds.
    subsamples: mean over pairs of random parts of the rows, compared on the rows they share. Its interval is over
        pairs; the rows that there are stay the same.
    """

    method: str
    num_strata: int | None
    num_seeds: int
    num_pairs: int
    seeds: Interval
    subsamples: Interval


def stability(
    X: ArrayLike,
    method: StrataMethod = "kmeans",
    num_strata: int | None = None,
    *,
    seeds: int = 10,
    pairs: int = 10,
    share: float = 0.8,
    level: float = 0.95,
    options: dict[str, Any] | None = None,
) -> Stability:
    """Mean pairwise adjusted Rand index over seeds and over random parts of the rows.

    Args:
        X: rows, [N, D].
        method: see `fit_strata`; not `given`.
        num_strata: see `fit_strata`.
        seeds: S >= 2; the seeds are 0 to S - 1.
        pairs: P >= 2 pairs of parts; both are found with the same seed.
        share: of the rows in each part, in (.5, 1), so that two parts share rows.
        level: of the intervals.
        options: further arguments of `fit_strata`: `dims`, `dbscan`.

    Numerics: one stratum agrees with itself, so its stability is 1 and says nothing.
    Cost: S + 2 P fits.
    """
    x_ND = as_matrix("X", X)
    if method == "given":
        raise ValueError("method: labels that are given cannot be found again, expected another method")
    if seeds < 2 or pairs < 2 or not 0.5 < share < 1:
        raise ValueError(
            f"seeds, pairs, share: expected >= 2, >= 2 and in (.5, 1), got {seeds}, {pairs} and {share}"
        )
    further = options or {}
    found = [fit_strata(x_ND, method, num_strata, seed=seed, **further).labels for seed in range(seeds)]
    scores_SS = np.array([[_agreement(a, b) for a in found] for b in found])
    parts = subsample_agreement(x_ND, method, num_strata, pairs=pairs, share=share, seed=0, options=further)
    return Stability(
        method=method,
        num_strata=num_strata,
        num_seeds=seeds,
        num_pairs=pairs,
        seeds=_pairwise_interval(scores_SS, level),
        subsamples=mean_interval(parts, level),
    )


def subsample_agreement(
    X: ArrayLike,
    method: StrataMethod,
    num_strata: int | None,
    *,
    pairs: int = 10,
    share: float = 0.8,
    seed: int = 0,
    options: dict[str, Any] | None = None,
) -> np.ndarray:
    """Adjusted Rand index of each pair of random parts of the rows, on the rows they share, [P].

    Args:
        X: rows, [N, D].
        method: see `fit_strata`.
        num_strata: see `fit_strata`.
        pairs: P.
        share: of the rows in each part; at least as many rows as strata.
        seed: of the parts and of the fits.
        options: further arguments of `fit_strata`.
    """
    x_ND = as_matrix("X", X)
    size = max(int(round(share * len(x_ND))), num_strata or 1, 1)
    agreements = []
    for pair in range(pairs):
        rng = np.random.default_rng([seed, pair])
        first, second = (np.sort(rng.choice(len(x_ND), size, replace=False)) for _ in range(2))
        _, in_first, in_second = np.intersect1d(first, second, return_indices=True)
        a, b = (
            fit_strata(x_ND[rows], method, num_strata, seed=seed + pair, **(options or {})).labels
            for rows in (first, second)
        )
        agreements.append(_agreement(a[in_first], b[in_second]))
    return np.array(agreements)


def _agreement(a_N: np.ndarray, b_N: np.ndarray) -> float:
    return float(adjusted_rand_index(contingency(a_N, b_N)[0]))


def _pairwise_interval(scores_SS: np.ndarray, level: float) -> Interval:
    """Mean over pairs with the jackknife interval over seeds: the pairs of one seed are not independent."""
    count = len(scores_SS)
    sums_S = scores_SS.sum(axis=1) - np.diag(scores_SS)
    value = sums_S.sum() / (count * (count - 1))
    if count < 3:
        return Interval(value=float(value), low=float("nan"), high=float("nan"))
    without_S = (sums_S.sum() - 2 * sums_S) / ((count - 1) * (count - 2))
    error = np.sqrt((count - 1) / count * ((without_S - without_S.mean()) ** 2).sum())
    half = student_t.ppf((1 + level) / 2, count - 1) * error
    # An agreement is at most 1, which the t interval of few seeds does not know.
    return Interval(value=float(value), low=float(value - half), high=float(min(value + half, 1.0)))
