"""Do labels follow domains? Agreement with intervals and floors, the length control, clustering baselines.

ARI and NMI depend on the rows only through the contingency table, so the bootstrap draws tables
(multinomial), and
the permutation floor draws tables of the same margins: both exact, both fast.

Legend: N rows, G domains, E labels (experts or clusters), T tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr
from scipy.stats import random_table
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.metrics import silhouette_score
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import normalize

from stratcore.analysis._checks import as_labels, as_matrix
from stratcore.analysis.resampling import Resampling

ClusterMethod = Literal["kmeans", "spherical_kmeans", "gaussian_mixture"]
METHOD_NAMES: dict[ClusterMethod, str] = {
    "kmeans": "KMeans",
    "spherical_kmeans": "spherical KMeans",
    "gaussian_mixture": "Gaussian mixture",
}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A statistic, its bootstrap interval, and what shuffled labels score.

    `floor` is the mean over shuffles, `floor_high` their upper quantile at the same level, `p_value` the
    share of shuffles at or above the value, counting the value itself (so it is never zero).
    """

    value: float
    low: float
    high: float
    floor: float
    floor_high: float
    p_value: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Adjusted Rand index and normalized mutual information (arithmetic mean) of labels and domains."""

    ari: Estimate
    nmi: Estimate
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Agreement inside one bin (low, high] of a confounder; NaN where the bin holds a single domain."""

    low: float
    high: float
    num_rows: int
    ari: float
    nmi: float


@dataclass(frozen=True, kw_only=True)
class BinnedAgreement:
    """Row-weighted mean of the agreement within bins, with interval and floor, and the bins themselves."""

    ari: Estimate
    nmi: Estimate
    num_rows: int
    bins: list[Bin]


@dataclass(frozen=True, kw_only=True)
class ClusterBaseline:
    """Agreement of a clustering with the domains: mean, lowest and highest over seeds."""

    name: str
    num_clusters: int
    num_seeds: int
    ari: float
    ari_low: float
    ari_high: float
    nmi: float
    nmi_low: float
    nmi_high: float


def contingency(domain: ArrayLike, assign: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count rows by domain and label.

    Returns:
        counts [G, E], sorted domain names [G], sorted label names [E].
    """
    domain_N = np.asarray(domain)
    assign_N = as_labels("assign", assign, len(domain_N))
    domains, row_N = np.unique(domain_N, return_inverse=True)
    labels, column_N = np.unique(assign_N, return_inverse=True)
    table_GE = np.zeros((len(domains), len(labels)), dtype=np.int64)
    np.add.at(table_GE, (row_N, column_N), 1)
    return table_GE, domains, labels


def purity(table_GE: ArrayLike) -> np.ndarray:
    """Share of the largest domain in each label, [E]; NaN for a label without rows."""
    return _largest_share(np.asarray(table_GE, dtype=np.float64).T)


def concentration(table_GE: ArrayLike) -> np.ndarray:
    """Share of the largest label in each domain, [G]; NaN for a domain without rows."""
    return _largest_share(np.asarray(table_GE, dtype=np.float64))


def adjusted_rand_index(table_TGE: ArrayLike) -> np.ndarray:
    """ARI of contingency tables [..., G, E], as scikit-learn's `adjusted_rand_score`; [...]."""
    table = np.asarray(table_TGE, dtype=np.float64)
    pairs = _pairs(table).sum(axis=(-2, -1))
    rows = _pairs(table.sum(axis=-1)).sum(axis=-1)
    columns = _pairs(table.sum(axis=-2)).sum(axis=-1)
    expected = rows * columns / np.maximum(_pairs(table.sum(axis=(-2, -1))), 1)
    span = (rows + columns) / 2 - expected
    return np.where(span == 0, 1.0, (pairs - expected) / np.where(span == 0, 1.0, span))


def normalized_mutual_information(table_TGE: ArrayLike) -> np.ndarray:
    """NMI (arithmetic mean) of contingency tables [..., G, E], as scikit-learn's; [...]."""
    table = np.asarray(table_TGE, dtype=np.float64)
    p = table / table.sum(axis=(-2, -1), keepdims=True)
    row_entropy = entr(p.sum(axis=-1)).sum(axis=-1)
    column_entropy = entr(p.sum(axis=-2)).sum(axis=-1)
    mutual = np.clip(row_entropy + column_entropy - entr(p).sum(axis=(-2, -1)), 0, None)
    mean = (row_entropy + column_entropy) / 2
    return np.where(mean == 0, 1.0, mutual / np.where(mean == 0, 1.0, mean))


def agreement(assign: ArrayLike, domain: ArrayLike, resampling: Resampling | None = None) -> Agreement:
    """ARI and NMI of labels and domains, each with a bootstrap interval and a permutation floor.

    Args:
        assign: label (expert or cluster) of each row, [N].
        domain: domain of each row, [N].
        resampling: how many draws, at which level, from which seed.

    Numerics: NMI of unrelated labels is above zero in a finite sample; read it against its floor. The
    interval of NMI inherits that upward bias; ARI is corrected for chance. Intervals cover the choice of
    rows, not of seeds.
    """
    table_GE, _, _ = contingency(domain, assign)
    resampling = resampling or Resampling()
    ari, nmi = _estimates([table_GE], np.ones(1), resampling)
    return Agreement(ari=ari, nmi=nmi, num_rows=int(table_GE.sum()))


def quantile_bins(values: ArrayLike, num_bins: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Sort rows into bins of nearly equal count.

    Returns:
        bin of each row, [N], and edges [B + 1]; bin b holds edges[b] < value <= edges[b + 1], the first one
        its lower edge too. Ties are never split, so B may be less than `num_bins`.
    """
    values_N = np.asarray(values, dtype=np.float64)
    if values_N.ndim != 1 or len(values_N) == 0 or not np.isfinite(values_N).all() or num_bins < 1:
        raise ValueError("values: expected one finite number a row and num_bins >= 1")
    last = -(-len(values_N) * np.arange(1, num_bins + 1) // num_bins) - 1  # rank that ends each bin
    upper = np.unique(np.sort(values_N)[last])
    return np.searchsorted(upper, values_N, side="left"), np.r_[values_N.min(), upper]


def within_bins(
    assign: ArrayLike,
    domain: ArrayLike,
    values: ArrayLike,
    num_bins: int = 5,
    resampling: Resampling | None = None,
) -> BinnedAgreement:
    """Agreement within quantile bins of a confounder, such as the token count.

    If labels follow domains only because both follow the confounder, the agreement within bins falls to its
    floor. The mean weighs bins by rows; a bin with a single domain can show nothing and is left out of it.

    Args:
        assign: label of each row, [N].
        domain: domain of each row, [N].
        values: the confounder, [N].
        num_bins: bins of nearly equal count; 5 makes quintiles.
        resampling: draws are made within bins, so the floor keeps each bin's own margins.
    """
    assign_N, domain_N = np.asarray(assign), np.asarray(domain)
    bin_N, edges = quantile_bins(values, num_bins)
    as_labels("values", bin_N, len(domain_N))
    bins: list[Bin] = []
    tables: list[np.ndarray] = []
    for index, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        table_GE, domains, _ = contingency(domain_N[bin_N == index], assign_N[bin_N == index])
        informative = len(domains) > 1
        ari = float(adjusted_rand_index(table_GE)) if informative else np.nan
        nmi = float(normalized_mutual_information(table_GE)) if informative else np.nan
        bins.append(Bin(low=float(low), high=float(high), num_rows=int(table_GE.sum()), ari=ari, nmi=nmi))
        if informative:
            tables.append(table_GE)
    if not tables:
        raise ValueError("domain: every bin holds a single domain, so nothing can be said within bins")
    weights = np.array([table.sum() for table in tables], dtype=np.float64)
    ari_mean, nmi_mean = _estimates(tables, weights / weights.sum(), resampling or Resampling())
    return BinnedAgreement(ari=ari_mean, nmi=nmi_mean, num_rows=int(weights.sum()), bins=bins)


def cluster_labels(
    method: ClusterMethod, train: ArrayLike, test: ArrayLike, num_clusters: int, seed: int
) -> np.ndarray:
    """Cluster training rows and label held-out rows, [N_test].

    Args:
        method: `kmeans`; `spherical_kmeans` (rows and centers on the unit sphere, nearest by cosine);
            `gaussian_mixture` (full covariances).
        train: rows to fit on, [N, D].
        test: rows to label, [N_test, D].
        num_clusters: clusters, at most N.
        seed: of the starts; ten starts for KMeans, one for the others.
    """
    train_ND, test_ND = as_matrix("train", train), as_matrix("test", test)
    if not 1 <= num_clusters <= len(train_ND):
        raise ValueError(f"num_clusters: expected 1 to {len(train_ND)} (the rows), got {num_clusters}")
    if method == "kmeans":
        return KMeans(num_clusters, n_init=10, random_state=seed).fit(train_ND).predict(test_ND)
    if method == "spherical_kmeans":
        centers_ED = _spherical_centers(normalize(train_ND), num_clusters, seed)
        return (normalize(test_ND) @ centers_ED.T).argmax(axis=1)
    if method == "gaussian_mixture":
        ridge = 1e-3 * float(train_ND.var(axis=0).mean())
        mixture = GaussianMixture(num_clusters, reg_covar=ridge, max_iter=300, random_state=seed)
        return mixture.fit(train_ND).predict(test_ND)
    raise ValueError(f"method: expected one of {', '.join(METHOD_NAMES)}, got {method!r}")


def cluster_baselines(
    train: ArrayLike, test: ArrayLike, domain: ArrayLike, num_clusters: int, seeds: Sequence[int] = (0, 1, 2)
) -> list[ClusterBaseline]:
    """Agreement with the domains of held-out rows for each clustering method, over seeds."""
    found = []
    for method, name in METHOD_NAMES.items():
        tables = [
            contingency(domain, cluster_labels(method, train, test, num_clusters, seed))[0] for seed in seeds
        ]
        ari = [float(adjusted_rand_index(table)) for table in tables]
        nmi = [float(normalized_mutual_information(table)) for table in tables]
        found.append(
            ClusterBaseline(
                name=name,
                num_clusters=num_clusters,
                num_seeds=len(seeds),
                ari=float(np.mean(ari)),
                ari_low=min(ari),
                ari_high=max(ari),
                nmi=float(np.mean(nmi)),
                nmi_low=min(nmi),
                nmi_high=max(nmi),
            )
        )
    return found


def silhouette(X: ArrayLike, labels: ArrayLike, *, max_rows: int = 2000, seed: int = 0) -> float:
    """Mean silhouette (Euclidean) of at most `max_rows` rows; NaN where a silhouette has no meaning."""
    x_ND = as_matrix("X", X)
    labels_N = as_labels("labels", labels, len(x_ND))
    if len(x_ND) > max_rows:
        chosen = np.random.default_rng(seed).choice(len(x_ND), max_rows, replace=False)
        x_ND, labels_N = x_ND[chosen], labels_N[chosen]
    if not 2 <= len(np.unique(labels_N)) <= len(x_ND) - 1:
        return float("nan")
    return float(silhouette_score(x_ND, labels_N))


def _estimates(
    tables: list[np.ndarray], weights: np.ndarray, resampling: Resampling
) -> tuple[Estimate, Estimate]:
    """Weighted means over tables of ARI and NMI, with intervals and floors."""
    rng = resampling.generator()
    count = resampling.num_resamples
    drawn, shuffled = [], []
    for table_GE in tables:
        num_rows, flat = int(table_GE.sum()), table_GE.ravel()
        draws = rng.multinomial(num_rows, flat / num_rows, size=count)
        drawn.append(draws.reshape(count, *table_GE.shape))
        shuffled.append(_shuffled_tables(table_GE, count, rng))
    estimates = []
    for statistic in (adjusted_rand_index, normalized_mutual_information):
        value, bootstrap, floor = (
            sum(weight * statistic(table) for weight, table in zip(weights, group, strict=True))
            for group in (tables, drawn, shuffled)
        )
        low, high = resampling.interval(bootstrap)
        estimates.append(
            Estimate(
                value=float(value),
                low=low,
                high=high,
                floor=float(np.mean(floor)),
                floor_high=float(np.quantile(floor, resampling.level)),
                p_value=float((1 + (floor >= value - 1e-12).sum()) / (1 + count)),
            )
        )
    return estimates[0], estimates[1]


def _shuffled_tables(table_GE: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Tables of the same margins as shuffling the labels draws them, [count, G, E]."""
    if 1 in table_GE.shape:  # the margins fix the table, and SciPy's sampler answers with negative counts
        return np.broadcast_to(table_GE, (count, *table_GE.shape))
    margins = random_table(table_GE.sum(axis=1), table_GE.sum(axis=0), seed=rng)
    return margins.rvs(size=count, method="patefield")


def _spherical_centers(unit_ND: np.ndarray, num_clusters: int, seed: int, max_steps: int = 100) -> np.ndarray:
    """Centers [E, D] of spherical KMeans by Lloyd's steps; an empty cluster keeps its center."""
    centers_ED, _ = kmeans_plusplus(unit_ND, num_clusters, random_state=seed)
    assign_N = np.full(len(unit_ND), -1)
    for _ in range(max_steps):
        nearest_N = (unit_ND @ centers_ED.T).argmax(axis=1)
        if (nearest_N == assign_N).all():
            break
        assign_N = nearest_N
        sums_ED = np.zeros_like(centers_ED)
        np.add.at(sums_ED, assign_N, unit_ND)
        occupied = np.linalg.norm(sums_ED, axis=1) > 0
        centers_ED[occupied] = normalize(sums_ED[occupied])
    return centers_ED


def _largest_share(table: np.ndarray) -> np.ndarray:
    totals = table.sum(axis=1)
    return np.where(totals > 0, table.max(axis=1) / np.where(totals > 0, totals, 1), np.nan)


def _pairs(count: np.ndarray) -> np.ndarray:
    return count * (count - 1) / 2
