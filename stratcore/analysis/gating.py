"""What a gate does: entropies, load, sparsity by stratum, and which domain went to which expert.

Legend: N rows, E experts, G groups (domains or strata). Entropies are in nats unless said to be normalized,
which means divided by log E.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr

from stratcore.analysis._checks import as_labels, as_probabilities


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
    sparsity_E = np.asarray(sparsities, dtype=np.float64)
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
    groups_N = np.asarray(groups)
    assign_N = as_labels("assign", assign, len(groups_N))
    if not np.issubdtype(assign_N.dtype, np.integer):
        raise ValueError(f"assign: expected integer expert numbers, got dtype {assign_N.dtype}")
    if len(assign_N) and not (0 <= assign_N.min() and assign_N.max() < num_experts):
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
