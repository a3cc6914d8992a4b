"""Whose rows a stratum holds: shares of the domains, and what labels tell of domains, in bits.

Legend: N rows, G domains, E strata (or experts).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike
from statsmodels.stats.proportion import proportion_confint

from stratcore.analysis.contingency_tables import contingency, mutual_information, purity
from stratcore.analysis.domain_agreement import Estimate, binned_tables, table_estimates
from stratcore.analysis.resampling import Interval, Resampling
from stratcore.analysis.table_intervals import MUTUAL_INFORMATION


@dataclass(frozen=True, kw_only=True)
class StratumDomains:
    """The domains of the rows of one stratum.

    counts: rows of each domain, [G].
    shares: their share of the stratum, each with its Wilson interval, [G].
    purity: the largest share.
    purity_floor: the upper quantile of the largest share where labels are shuffled, at the level of the intervals:
        a purity below it says nothing.
    """

    stratum: str
    num_rows: int
    counts: list[int]
    shares: list[Interval]
    purity: float
    purity_floor: float


@dataclass(frozen=True, kw_only=True)
class DomainTable:
    """Domains, their share of all rows, and the strata; an interval covers the draw of the stratum's rows."""

    domains: list[str]
    overall: list[float]
    strata: list[StratumDomains]


@dataclass(frozen=True, kw_only=True)
class DomainInformation:
    """Mutual information of labels and domains. Unit: bit.

    bits: with the Miller-Madow correction, its interval, and the same for shuffled labels.
    uncorrected_bits: the plug-in estimate, which is too high.
    within_length: the mean over bins of equal length, of the rows in `num_rows_within`; None where no length was
        given, or every bin holds a single domain.
    domain_entropy, label_entropy: what the mutual information cannot exceed.
    """

    bits: Estimate
    uncorrected_bits: float
    within_length: Estimate | None
    num_rows: int
    num_rows_within: int
    domain_entropy: float
    label_entropy: float


def domain_table(labels: ArrayLike, domain: ArrayLike, resampling: Resampling | None = None) -> DomainTable:
    """Shares of the domains in each stratum, with intervals.

    Args:
        labels: stratum of each row, [N]; noise (-1) counts as a stratum of its own.
        domain: domain of each row, [N].
        resampling: level of the intervals; shuffles behind `purity_floor`.

    Numerics: Wilson's interval stays in [0, 1] and holds at few rows; it is per share, not for all at once.
    """
    table_GE, domains, strata = contingency(domain, labels)
    resampling = resampling or Resampling()
    counts_E = table_GE.sum(axis=0)
    floor_E = _purity_floor(table_GE, resampling)
    low_GE, high_GE = proportion_confint(table_GE, counts_E, alpha=1 - resampling.level, method="wilson")
    purity_E = purity(table_GE)
    return DomainTable(
        domains=[str(name) for name in domains],
        overall=(table_GE.sum(axis=1) / table_GE.sum()).tolist(),
        strata=[
            StratumDomains(
                stratum=str(name),
                num_rows=int(counts_E[e]),
                counts=table_GE[:, e].tolist(),
                shares=[
                    Interval(value=float(share), low=float(low), high=float(high))
                    for share, low, high in zip(
                        table_GE[:, e] / counts_E[e], low_GE[:, e], high_GE[:, e], strict=True
                    )
                ],
                purity=float(purity_E[e]),
                purity_floor=float(floor_E[e]),
            )
            for e, name in enumerate(strata)
        ],
    )


def domain_information(
    labels: ArrayLike,
    domain: ArrayLike,
    *,
    length: ArrayLike | None = None,
    num_bins: int = 5,
    resampling: Resampling | None = None,
) -> DomainInformation:
    """What a label tells of the domain, over all rows and among rows of like length.

        I(label; domain) and I(label; domain | bin of the length). Unit: bit.

    Args:
        labels: stratum or expert of each row, [N].
        domain: domain of each row, [N].
        length: token count of each row, [N], or another confounder.
        num_bins: bins of the length, of nearly equal count.
        resampling: draws, level and seed.

    Numerics: each entropy carries the Miller-Madow correction, so unrelated labels have about zero bits and may have
    less; compare with `floor_high`. The interval is of the population's bits, about `bits.corrected`.
    """
    table_GE, _, _ = contingency(domain, labels)
    resampling = resampling or Resampling()
    (bits,) = table_estimates([table_GE], [MUTUAL_INFORMATION], resampling)
    within, num_within = None, 0
    if length is not None:
        tables = [table for _, _, table in binned_tables(labels, domain, length, num_bins) if len(table) > 1]
        num_within = sum(int(table.sum()) for table in tables)
        if tables:
            (within,) = table_estimates(tables, [MUTUAL_INFORMATION], resampling)
    plain = partial(mutual_information, miller_madow=False)
    return DomainInformation(
        bits=bits,
        uncorrected_bits=float(plain(table_GE)),
        within_length=within,
        num_rows=int(table_GE.sum()),
        num_rows_within=num_within,
        domain_entropy=float(plain(np.diag(table_GE.sum(axis=1)))),
        label_entropy=float(plain(np.diag(table_GE.sum(axis=0)))),
    )


def _purity_floor(table_GE: np.ndarray, resampling: Resampling) -> np.ndarray:
    """Upper quantile of the largest domain share of each stratum, its rows drawn without regard to domain, [E]."""
    rng = resampling.generator()
    floors = []
    for count in table_GE.sum(axis=0):
        drawn = rng.multivariate_hypergeometric(
            table_GE.sum(axis=1), count, size=resampling.num_resamples, method="marginals"
        )
        floors.append(np.quantile(drawn.max(axis=1) / count, resampling.level))
    return np.array(floors)
