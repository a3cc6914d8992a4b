"""Counts of rows by domain and label, and the statistics that depend on the rows only through them.

Legend: G domains, E labels (experts or clusters), T tables.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr
from scipy.stats import random_table

from stratcore.analysis._checks import as_array, as_labels


def contingency(domain: ArrayLike, assign: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count rows by domain and label.

    Returns:
        counts [G, E], sorted domain names [G], sorted label names [E].

    Raises:
        ValueError: no rows, not one domain and one label a row, or a row without one.
    """
    num_rows = as_array(domain).size
    if num_rows == 0:
        raise ValueError("domain: expected at least one row, got none")
    domain_N = as_labels("domain", domain, num_rows)
    assign_N = as_labels("assign", assign, num_rows)
    domains, row_N = np.unique(domain_N, return_inverse=True)
    labels, column_N = np.unique(assign_N, return_inverse=True)
    table_GE = np.zeros((len(domains), len(labels)), dtype=np.int64)
    np.add.at(table_GE, (row_N, column_N), 1)
    return table_GE, domains, labels


def purity(table_GE: ArrayLike) -> np.ndarray:
    """Share of the largest domain in each label, [E]; NaN for a label without rows."""
    return _largest_share(as_array(table_GE).astype(np.float64).T)


def concentration(table_GE: ArrayLike) -> np.ndarray:
    """Share of the largest label in each domain, [G]; NaN for a domain without rows."""
    return _largest_share(as_array(table_GE).astype(np.float64))


def adjusted_rand_index(table_TGE: ArrayLike) -> np.ndarray:
    """ARI of contingency tables [..., G, E], as scikit-learn's `adjusted_rand_score`; [...]."""
    table = _counts(table_TGE)
    pairs = _pairs(table).sum(axis=(-2, -1))
    rows = _pairs(table.sum(axis=-1)).sum(axis=-1)
    columns = _pairs(table.sum(axis=-2)).sum(axis=-1)
    expected = rows * columns / np.maximum(_pairs(table.sum(axis=(-2, -1))), 1)
    span = (rows + columns) / 2 - expected
    return np.where(span == 0, 1.0, (pairs - expected) / np.where(span == 0, 1.0, span))


def normalized_mutual_information(table_TGE: ArrayLike) -> np.ndarray:
    """NMI (arithmetic mean) of contingency tables [..., G, E], as scikit-learn's; [...]."""
    table = _counts(table_TGE)
    p = table / table.sum(axis=(-2, -1), keepdims=True)
    row_entropy = entr(p.sum(axis=-1)).sum(axis=-1)
    column_entropy = entr(p.sum(axis=-2)).sum(axis=-1)
    mutual = np.clip(row_entropy + column_entropy - entr(p).sum(axis=(-2, -1)), 0, None)
    mean = (row_entropy + column_entropy) / 2
    return np.where(mean == 0, 1.0, mutual / np.where(mean == 0, 1.0, mean))


def mutual_information(table_TGE: ArrayLike, *, miller_madow: bool = True) -> np.ndarray:
    """Mutual information of rows and columns of contingency tables [..., G, E]; [...]. Unit: bit.

        I = H(row) + H(column) - H(row, column),    H_MM = H + (cells in use - 1) / (2 N ln 2)

    Args:
        table_TGE: counts.
        miller_madow: correct each entropy for its first-order bias; the result may then be below zero.

    Numerics: without the correction independent labels have about (G - 1)(E - 1) / (2 N ln 2) bits.
    Source: Miller 1955.
    """
    table = _counts(table_TGE)
    total = table.sum(axis=(-2, -1))
    row, column = table.sum(axis=-1), table.sum(axis=-2)

    def entropy(count: np.ndarray, axes: int | tuple[int, int]) -> np.ndarray:
        share = count / np.expand_dims(total, axes)
        plain = entr(share).sum(axis=axes)
        return plain + ((count > 0).sum(axis=axes) - 1) / (2 * total) * miller_madow

    nats = entropy(row, -1) + entropy(column, -1) - entropy(table, (-2, -1))
    return nats / np.log(2)


def shuffled_tables(table_GE: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Tables of the same margins as shuffling the labels draws them, [count, G, E]."""
    if 1 in table_GE.shape:  # the margins fix the table, and SciPy's sampler answers with negative counts
        return np.broadcast_to(table_GE, (count, *table_GE.shape))
    margins = random_table(table_GE.sum(axis=1), table_GE.sum(axis=0), seed=rng)
    return margins.rvs(size=count, method="patefield")


def one_row_less(table_GE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every table that leaving out a row can make, and the share of the rows that make it.

    Returns:
        tables [K, G, E] of the K cells in use, each with one row less in that cell; shares [K].
    """
    cells = np.argwhere(table_GE > 0)
    tables_KGE = np.repeat(table_GE[None], len(cells), axis=0)
    tables_KGE[np.arange(len(cells)), cells[:, 0], cells[:, 1]] -= 1
    return tables_KGE, table_GE[table_GE > 0] / table_GE.sum()


def _counts(table_TGE: ArrayLike) -> np.ndarray:
    """Tables as float64, each with a row at least."""
    table = as_array(table_TGE).astype(np.float64)
    if table.ndim < 2 or not (table.sum(axis=(-2, -1)) > 0).all():
        raise ValueError(
            f"table: expected counts [..., domains, labels] of a row at least, got shape {table.shape}"
        )
    return table


def _largest_share(table: np.ndarray) -> np.ndarray:
    totals = table.sum(axis=1)
    return np.where(totals > 0, table.max(axis=1) / np.where(totals > 0, totals, 1), np.nan)


def _pairs(count: np.ndarray) -> np.ndarray:
    return count * (count - 1) / 2
