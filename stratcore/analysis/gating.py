"""What a gate does: entropies, load, sparsity by stratum, and which domain went to which expert.

Legend: N rows, E experts, G groups (domains or strata). Entropies are in nats unless said to be normalized,
which means divided by log E.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr
from scipy.stats import rankdata

from stratcore.analysis._checks import as_array, as_labels, as_probabilities, precision
from stratcore.analysis.resampling import Interval, Resampling, mean_interval


@dataclass(frozen=True, kw_only=True)
class GateStatistics:
    """Statistics of gate probabilities.

    entropy_per_sample: mean of H(p_n) / log E. Near 0 each row chooses one expert; near 1 the gate says
    nothing.
    entropy_of_mean: H(mean_n p_n) / log E. Near 1 all experts are used alike.
    mutual_information_nats: the difference of the two, times log E: what the gate tells of its input.
    mutual_information_fraction: the difference itself, in [0, 1].
    load: mean probability of each expert, [E].
    load_cv: standard deviation of the load over its mean; 0 is perfectly even.
    effective_experts: exp(H(mean_n p_n)), in [1, E].
    """

    num_experts: int
    entropy_per_sample: float
    entropy_of_mean: float
    mutual_information_nats: float
    mutual_information_fraction: float
    load: list[float]
    load_cv: float
    effective_experts: float


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Rows of each group by expert: counts and shares [G][E], the shares of a group sum to one."""

    groups: list[str]
    counts: list[list[int]]
    shares: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class StratumSparsity:
    """Mean weighted sparsity of the rows of one stratum. Unit: active atoms."""

    stratum: str
    num_rows: int
    weighted_sparsity: float


@dataclass(frozen=True, kw_only=True)
class SparsityDifference:
    """Weighted sparsity of one stratum against the untrained value. Unit: active atoms.

    low, high: t interval of the stratum's mean over its rows, Bonferroni over strata; NaN for a single row.
    difference: from the untrained value.
    differs: the interval leaves out the untrained value.
    exchanged_low, exchanged_high: central range of what the same gate shows where the levels are dealt out to its
        experts in another order: how far a gate as sharp as this one lies from the untrained value by chance.
    """

    stratum: str
    num_rows: int
    weighted_sparsity: float
    low: float
    high: float
    difference: float
    differs: bool
    exchanged_low: float
    exchanged_high: float


@dataclass(frozen=True, kw_only=True)
class SparsityComparison:
    """All strata against `untrained`, the mean of the levels, which a gate that learned nothing has everywhere.

    dimension_correlation: Spearman's, of weighted sparsity and dimension over the strata; None without dimensions,
        or where either is the same in all strata.
    dimension_p_value: share of the orders of the levels that reach this correlation. To a gate that was never
        trained all orders are alike, so the test is exact for it, however sharp the gate.
    num_dimensions: strata of known dimension, the ones behind both.
    """

    untrained: float
    level: float
    strata: list[SparsityDifference]
    num_different: int
    dimension_correlation: float | None
    dimension_p_value: float | None
    num_dimensions: int
    answer: str


def sample_entropy(p: ArrayLike) -> np.ndarray:
    """Normalized entropy H(p_n) / log E of each row of gate probabilities [N, E]; [N], zero where E = 1."""
    p_NE = as_probabilities("p", p)
    return entr(p_NE).sum(axis=1) / _log_experts(p_NE.shape[1])


def gate_statistics(p: ArrayLike) -> GateStatistics:
    """Entropies, mutual information and load of gate probabilities.

        I(input; expert) = H(mean_n p_n) - mean_n H(p_n)

    Args:
        p: gate probabilities, [N, E], rows sum to one.
    """
    p_NE = as_probabilities("p", p)
    load_E = p_NE.mean(axis=0)
    of_mean = float(entr(load_E).sum())
    per_sample = float(entr(p_NE).sum(axis=1).mean())
    mutual = max(of_mean - per_sample, 0.0)
    scale = _log_experts(len(load_E))
    return GateStatistics(
        num_experts=len(load_E),
        entropy_per_sample=per_sample / scale,
        entropy_of_mean=of_mean / scale,
        mutual_information_nats=mutual,
        mutual_information_fraction=mutual / scale,
        load=load_E.tolist(),
        load_cv=float(load_E.std() / load_E.mean()),
        effective_experts=float(np.exp(of_mean)),
    )


def weighted_sparsity(p: ArrayLike, sparsities: ArrayLike, strata: ArrayLike) -> list[StratumSparsity]:
    """Mean over each stratum of sum_k p_nk s_k.

    Args:
        p: gate probabilities, [N, E].
        sparsities: active atoms s_k of each expert, [E].
        strata: stratum of each row, [N].

    A gate that has learned nothing (p = 1/E) has the plain mean of the levels in every stratum: exactly 20.0
    for 8, 12, 16, 20, 24, 28, 32. Only a departure from that number says something.
    """
    p_NE = as_probabilities("p", p)
    sparsity_E = as_array(sparsities).astype(np.float64)
    if sparsity_E.shape != p_NE.shape[1:]:
        raise ValueError(
            f"sparsities: expected a level for each of {p_NE.shape[1]} experts, got shape {sparsity_E.shape}"
        )
    strata_N = as_labels("strata", strata, len(p_NE))
    expected_N = p_NE @ sparsity_E
    return [
        StratumSparsity(
            stratum=str(stratum),
            num_rows=int((strata_N == stratum).sum()),
            weighted_sparsity=float(expected_N[strata_N == stratum].mean()),
        )
        for stratum in np.unique(strata_N)
    ]


def sparsity_against_untrained(
    p: ArrayLike,
    sparsities: ArrayLike,
    strata: ArrayLike,
    dimensions: ArrayLike | None = None,
    resampling: Resampling | None = None,
) -> SparsityComparison:
    """Weighted sparsity of each stratum against the value of an untrained gate, the mean of the levels.

    A difference that the draw of the rows does not explain is no proof of training: the softmax of a random gate is
    not even, and the sharper it is, the farther it strays. So each difference stands beside the range that the same
    gate shows where its levels change places, and with the dimensions of the strata comes the question that a
    random gate cannot answer: do strata of larger dimension get more atoms?

    Args:
        p: gate probabilities, [N, E].
        sparsities: active atoms of each expert, [E].
        strata: stratum of each row, [N].
        dimensions: of each stratum, in the order of the sorted strata, [S]; NaN has no part in the correlation.
        resampling: level; seed and number of the orders where E > 7, else all E! are taken.
    """
    p_NE = as_probabilities("p", p)
    resampling = resampling or Resampling()
    found = weighted_sparsity(p_NE, sparsities, strata)
    strata_N, level_E = as_array(strata), as_array(sparsities).astype(np.float64)
    rounding = max(len(level_E) * np.abs(level_E).max() * precision(p), 1e-9)
    rows = [p_NE[strata_N == name] for name in np.unique(strata_N)]
    exchanged_TS = _orders(level_E, resampling) @ np.stack([each.mean(axis=0) for each in rows]).T
    untrained, differences = float(level_E.mean()), []
    tail = (1 - resampling.level) / 2
    for s, (own_nE, stratum) in enumerate(zip(rows, found, strict=True)):
        interval = mean_interval(own_nE @ level_E, 1 - 2 * tail / len(rows))
        difference = stratum.weighted_sparsity - untrained
        low, high = np.quantile(exchanged_TS[:, s], [tail, 1 - tail])
        differences.append(
            SparsityDifference(
                stratum=stratum.stratum,
                num_rows=stratum.num_rows,
                weighted_sparsity=stratum.weighted_sparsity,
                low=interval.low,
                high=interval.high,
                difference=difference,
                # What the dtype cannot tell from an even gate is no difference, and one row has no interval.
                differs=abs(difference) > rounding and _leaves_out(interval, untrained),
                exchanged_low=float(low),
                exchanged_high=float(high),
            )
        )
    sparsity_TS = np.vstack([[each.weighted_sparsity for each in found], exchanged_TS])
    correlation, p_value, num_known = _dimension_test((sparsity_TS - untrained) / rounding, dimensions)
    return SparsityComparison(
        untrained=untrained,
        level=resampling.level,
        strata=differences,
        num_different=sum(each.differs for each in differences),
        dimension_correlation=correlation,
        dimension_p_value=p_value,
        num_dimensions=num_known,
        answer=_sparsity_answer(untrained, differences),
    )


def _leaves_out(interval: Interval, value: float) -> bool:
    """Whether the value lies outside; never where there are no bounds."""
    return value < interval.low or value > interval.high


def _dimension_test(
    sparsity_TS: np.ndarray, dimensions: ArrayLike | None
) -> tuple[float | None, float | None, int]:
    """Rank correlation of the first row with dimension, the share of the other rows that reach it, known strata.

    Args:
        sparsity_TS: weighted sparsity above the untrained value as it is, then with levels exchanged. Unit: its
            rounding error.
        dimensions: [S], NaN where unknown.
    """
    if dimensions is None:
        return None, None, 0
    dimension_S = as_array(dimensions).astype(np.float64)
    if dimension_S.shape != sparsity_TS.shape[1:]:
        raise ValueError(
            f"dimensions: expected one for each of {sparsity_TS.shape[1]} strata, got shape {dimension_S.shape}"
        )
    known_S = np.isfinite(dimension_S)
    num_known = int(known_S.sum())
    if num_known < 2:
        return None, None, num_known
    rank_TS = rankdata(sparsity_TS[:, known_S].round(), axis=1)
    rank_TS -= rank_TS.mean(axis=1, keepdims=True)
    target_S = rankdata(dimension_S[known_S]) - (num_known + 1) / 2
    norm_T = np.linalg.norm(rank_TS, axis=1) * np.linalg.norm(target_S)
    if norm_T[0] == 0:
        return None, None, num_known
    correlation_T = rank_TS @ target_S / np.where(norm_T > 0, norm_T, np.inf)
    share = float((correlation_T[1:] >= correlation_T[0] - 1e-9).mean())
    return float(correlation_T[0]), share, num_known


def _sparsity_answer(untrained: float, strata: list[SparsityDifference]) -> str:
    different = [each for each in strata if each.differs]
    value = f"{untrained:g}, the value of an untrained gate"
    if not different:
        return f"No stratum's weighted sparsity differs from {value}."
    beyond = sum(not e.exchanged_low <= e.weighted_sparsity <= e.exchanged_high for e in different)
    names = ", ".join(each.stratum for each in different)
    return (
        f"{len(different)} of {len(strata)} strata differ from {value} ({names}), {beyond} of them by more than "
        "the same gate shows by chance where its levels change places."
    )


def _orders(level_E: np.ndarray, resampling: Resampling) -> np.ndarray:
    """Levels in every order, or, where these are too many, as given and in random orders, [T, E]."""
    if len(level_E) <= 7:
        return np.array(list(permutations(level_E)))
    rng, tiled = resampling.generator(), np.tile(level_E, (resampling.num_resamples, 1))
    return np.concatenate([level_E[None], rng.permuted(tiled, axis=1)])


def mean_gate(p: ArrayLike, groups: ArrayLike) -> tuple[np.ndarray, list[str]]:
    """Mean gate probabilities of each group: [G, E] and the sorted group names."""
    p_NE = as_probabilities("p", p)
    groups_N = as_labels("groups", groups, len(p_NE))
    names = np.unique(groups_N)
    return np.stack([p_NE[groups_N == name].mean(axis=0) for name in names]), [str(name) for name in names]


def assignment_histogram(assign: ArrayLike, groups: ArrayLike, num_experts: int) -> Histogram:
    """Count the rows of each group (domain or stratum) by the expert that they were assigned to.

    Args:
        assign: expert of each row, [N], integers in [0, num_experts).
        groups: group of each row, [N].
        num_experts: E; experts without rows keep their column.
    """
    num_rows = as_array(groups).size
    if num_rows == 0:
        raise ValueError("groups: expected at least one row, got none")
    groups_N = as_labels("groups", groups, num_rows)
    assign_N = as_labels("assign", assign, num_rows)
    if not np.issubdtype(assign_N.dtype, np.integer):
        raise ValueError(f"assign: expected integer expert numbers, got dtype {assign_N.dtype}")
    if not (0 <= assign_N.min() and assign_N.max() < num_experts):
        raise ValueError(
            f"assign: expected experts 0 to {num_experts - 1}, got {assign_N.min()} to {assign_N.max()}"
        )
    names = np.unique(groups_N)
    counts_GE = np.stack([np.bincount(assign_N[groups_N == name], minlength=num_experts) for name in names])
    return Histogram(
        groups=[str(name) for name in names],
        counts=counts_GE.tolist(),
        shares=(counts_GE / counts_GE.sum(axis=1, keepdims=True)).tolist(),
    )


def _log_experts(num_experts: int) -> float:
    return float(np.log(num_experts)) if num_experts > 1 else 1.0
