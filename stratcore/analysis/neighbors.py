"""Exact nearest neighbors in blocks, on the CPU or a GPU; the N x N matrix is never in memory.

Legend: N rows, D features, Q queries, B queries of a block, K neighbors, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from stratcore.analysis._checks import as_matrix

_CPU_BLOCK_BYTES = 256 << 20
_EXACT_BYTES = {"cpu": 32 << 20, "cuda": 1 << 30}  # on a CPU what its cache holds
_UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbors:
    """Nearest other rows of each query.

    Args:
        distances: ascending, [Q, K] float64. Unit: that of the rows.
        indices: rows of the data, [Q, K] int64; of equal distances the lower index comes first.
    """

    distances: np.ndarray
    indices: np.ndarray


def nearest_neighbors(
    X: Any,
    k: int,
    *,
    queries: ArrayLike | None = None,
    period: ArrayLike | float | None = None,
    device: str | torch.device | None = None,
    block_rows: int | None = None,
) -> Neighbors:
    """The k nearest other rows of each query, exactly.

        d(i, j) = |x_i - x_j|,    on a flat torus each |x_id - x_jd| replaced by min(|.|, p_d - |.|)

    A row is never its own neighbor, but another row equal to it is, at distance 0.

    Args:
        X: rows, [N, D], NumPy or torch; with a period coordinates may be any representative.
        k: neighbors, 1 to N - 1.
        queries: indices of rows, [Q]; None: every row.
        period: of the torus, > 0, one number or [D]; None: Euclidean space.
        device: where to search; None: where X lies; 'auto': a GPU if there is one.
        block_rows: queries at a time; None: as many as fit in a share of the memory.

    Raises:
        ValueError: too few rows, a row that is not finite, an index or a period out of range.

    Numerics: that of a full search in float64. Candidates come from float32 products, some more than k; their
    distances are recomputed from differences, and a bound on the rounding certifies that no other row can belong
    to them. Rows without certificate are searched by float64 products, then by differences over all rows.
    Determinism: yes, and independent of `block_rows`.
    Cost: 2 Q N D float32 operations and Q (k + k / 8 + 16) D float64 ones; a torus: 4 Q N D float64 ones.
    """
    x_ND = as_matrix("X", X)
    num_rows, num_features = x_ND.shape
    if not 1 <= k < num_rows:
        raise ValueError(f"k: expected 1 to {num_rows - 1} neighbors of {num_rows} rows, got {k}")
    query_Q = _query_rows(queries, num_rows)
    where = _device(X, device)
    block = block_rows or _block_rows(num_rows, where)
    rows = torch.from_numpy(x_ND).to(where)
    index_Q = torch.from_numpy(query_Q.astype(np.int64)).to(where)
    distance_QK = torch.empty(len(query_Q), k, dtype=torch.float64, device=where)
    neighbor_QK = torch.empty(len(query_Q), k, dtype=torch.int64, device=where)
    if period is not None:
        period_D = _period(period, num_features, where)
        search: list[Callable[..., tuple[Tensor, Tensor, Tensor]]] = [
            _Differences(rows, period_D, whole=whole) for whole in (False, True)
        ]
    else:
        products = [_Products(rows, dtype) for dtype in (torch.float32, torch.float64)]
        search = [*products, _Differences(rows, None, whole=True)]
    open_Q = torch.arange(len(query_Q), device=where)
    for method in search:
        missed = []
        for part in open_Q.split(block):
            distance_bK, neighbor_bK, certain_b = method(index_Q[part], k)
            distance_QK[part], neighbor_QK[part] = distance_bK, neighbor_bK
            missed.append(part[~certain_b])
        open_Q = torch.cat(missed) if missed else open_Q
    return Neighbors(distances=distance_QK.cpu().numpy(), indices=neighbor_QK.cpu().numpy())


class _Products:
    """Candidates by products in one precision, with a certificate for each query."""

    def __init__(self, rows_ND: Tensor, dtype: torch.dtype) -> None:
        self.rows_ND = rows_ND
        centered_ND = rows_ND - rows_ND.mean(dim=0)
        largest = float(centered_ND.square().sum(dim=1).max().sqrt())
        self.scale = largest if 0 < largest < torch.inf else 1.0  # products neither overflow nor vanish
        self.low_ND = (centered_ND / self.scale).to(dtype)
        self.square_N = self.low_ND.double().square().sum(dim=1)
        # Rounding of the entries, of a product of D terms in any order, of the squares and of the sum.
        self.unit = _UNIT[dtype] * (2 * rows_ND.shape[1] + 16)

    def __call__(self, query_B: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        num_rows = self.rows_ND.shape[0]
        count = min(num_rows - 1, k + k // 8 + 16)
        with _full_precision():
            score_BN = torch.addmm(
                self.square_N.to(self.low_ND.dtype), self.low_ND[query_B], self.low_ND.T, alpha=-2
            )
        score_BN[torch.arange(len(query_B), device=query_B.device), query_B] = torch.inf
        score_BC, index_BC = score_BN.topk(count, dim=1, largest=False, sorted=False)
        index_BC = index_BC.sort(dim=1).values
        square_BC = self._exact(query_B, index_BC)
        square_BC, order_BC = square_BC.sort(dim=1, stable=True)
        own_B = self.square_N[query_B]
        lowest_outside_B = score_BC.max(dim=1).values.double() + own_B - self.unit * (own_B.sqrt() + 1)
        certain_B = (lowest_outside_B > square_BC[:, k - 1] / self.scale**2) | (count == num_rows - 1)
        return square_BC[:, :k].sqrt(), index_BC.gather(1, order_BC[:, :k]), certain_B

    def _exact(self, query_B: Tensor, index_BC: Tensor) -> Tensor:
        """Squared distances from differences, [B, C]."""
        width = 8 * index_BC.shape[1] * self.rows_ND.shape[1]
        step = max(1, _EXACT_BYTES[query_B.device.type] // width)
        square_BC = self.rows_ND.new_empty(index_BC.shape)
        for begin in range(0, len(query_B), step):
            part = slice(begin, begin + step)
            gap_bCD = self.rows_ND[index_BC[part]]
            gap_bCD -= self.rows_ND[query_B[part], None]
            torch.sum(gap_bCD.square_(), dim=2, out=square_BC[part])
        return square_BC


class _Differences:
    """All distances from differences, on a torus where a period is given; certain unless the last place is a tie."""

    def __init__(self, rows_ND: Tensor, period_D: Tensor | None, *, whole: bool) -> None:
        self.rows_ND, self.period_D, self.whole = rows_ND, period_D, whole

    def __call__(self, query_B: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        num_rows = self.rows_ND.shape[0]
        square_BN = self.rows_ND.new_zeros(len(query_B), num_rows)
        for feature, column_N in enumerate(self.rows_ND.T):
            gap_BN = (column_N - column_N[query_B, None]).abs_()
            if self.period_D is not None:
                period = self.period_D[feature]
                gap_BN = torch.minimum(gap_BN.remainder_(period), period - gap_BN)
            square_BN += gap_BN.square_()
        square_BN[torch.arange(len(query_B), device=query_B.device), query_B] = torch.inf
        count = num_rows if self.whole else min(num_rows, k + 1)
        index_BC = square_BN.topk(count, dim=1, largest=False, sorted=False).indices.sort(dim=1).values
        square_BC, order_BC = square_BN.gather(1, index_BC).sort(dim=1, stable=True)
        certain_B = square_BC[:, -1] > square_BC[:, k - 1]
        return square_BC[:, :k].sqrt(), index_BC.gather(1, order_BC[:, :k]), certain_B


@contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32 and no bfloat16 inside float32 products, whatever the process is set to."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _query_rows(queries: ArrayLike | None, num_rows: int) -> np.ndarray:
    query_Q = np.arange(num_rows) if queries is None else np.asarray(queries)
    if query_Q.ndim != 1 or query_Q.dtype.kind not in "iu":
        raise ValueError(f"queries: expected row indices, got {query_Q.dtype} of shape {query_Q.shape}")
    if query_Q.size and not 0 <= query_Q.min() <= query_Q.max() < num_rows:
        raise ValueError(
            f"queries: expected indices from 0 to {num_rows - 1}, got {query_Q.min()} to {query_Q.max()}"
        )
    return query_Q


def _device(X: Any, device: str | torch.device | None) -> torch.device:
    if device is None:
        return X.device if isinstance(X, Tensor) else torch.device("cpu")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def _block_rows(num_rows: int, device: torch.device) -> int:
    """Queries a block: scores, their candidates and the sort take about 24 bytes a pair."""
    room = _CPU_BLOCK_BYTES
    if device.type == "cuda":
        room = torch.cuda.mem_get_info(device)[0] // 4
    if room < 24 * num_rows:
        raise ValueError(
            f"X: distances of one query to {num_rows:,} rows need {24 * num_rows:,} bytes of {room:,} on {device}"
        )
    return int(min(4096, room // (24 * num_rows)))


def _period(period: ArrayLike | float, num_features: int, device: torch.device) -> Tensor:
    period_D = np.broadcast_to(np.asarray(period, dtype=np.float64), (num_features,))
    if not (np.isfinite(period_D) & (period_D > 0)).all():
        raise ValueError(f"period: expected finite numbers > 0, got {period!r}")
    return torch.from_numpy(period_D.copy()).to(device)
