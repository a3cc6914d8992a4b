"""Clusterings of training rows that label held-out rows: the baselines beside a mixture's own assignment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from stratcore.analysis._checks import as_matrix, cluster_count
from stratcore.analysis.contingency_tables import contingency
from stratcore.analysis.strata.fit import fit_strata
from stratcore.analysis.table_intervals import (
    ADJUSTED_RAND_INDEX,
    NORMALIZED_MUTUAL_INFORMATION,
    without_chance,
)

ClusterMethod = Literal["kmeans", "spherical_kmeans", "gaussian_mixture"]
METHOD_NAMES: dict[ClusterMethod, str] = {
    "kmeans": "KMeans",
    "spherical_kmeans": "spherical KMeans",
    "gaussian_mixture": "Gaussian mixture",
}


@dataclass(frozen=True, kw_only=True)
class ClusterBaseline:
    """Agreement of a clustering with the domains, free of chance: mean, lowest and highest over seeds."""

    name: str
    num_clusters: int
    num_seeds: int
    ari: float
    ari_low: float
    ari_high: float
    nmi: float
    nmi_low: float
    nmi_high: float


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
    cluster_count("num_clusters", num_clusters, len(train_ND))
    if method not in METHOD_NAMES:
        raise ValueError(f"method: expected one of {', '.join(METHOD_NAMES)}, got {method!r}")
    return fit_strata(train_ND, method, num_clusters, seed=seed).predict(test_ND)


def cluster_baselines(
    train: ArrayLike, test: ArrayLike, domain: ArrayLike, num_clusters: int, seeds: Sequence[int] = (0, 1, 2)
) -> list[ClusterBaseline]:
    """Agreement with the domains of held-out rows for each clustering method, over seeds."""
    found = []
    for method, name in METHOD_NAMES.items():
        tables = [
            contingency(domain, cluster_labels(method, train, test, num_clusters, seed))[0] for seed in seeds
        ]
        ari = [without_chance(table, ADJUSTED_RAND_INDEX) for table in tables]
        nmi = [without_chance(table, NORMALIZED_MUTUAL_INFORMATION) for table in tables]
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
