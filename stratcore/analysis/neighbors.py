"""Exact nearest neighbors of many rows, in blocks: never a matrix of N x N.

Legend: N rows, Q queries, B queries of a block, C candidates, D features, k neighbors.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

GIB = 1 << 30
# Bytes of one block of products and of one block of differences: large enough for the matrix product and the launch,
# small enough for the cache of a CPU.
PRODUCT_BYTES = {"cpu": GIB // 4, "cuda": 4 * GIB}
DIFFERENCE_BYTES = {"cpu": GIB // 64, "cuda": 2 * GIB}


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbors:
    """Nearest other rows of each query.

    Attributes:
        distances: [Q, k], float64, rising along a row. Unit: length.
        indices: [Q, k], int64, rows of X; equal distances stand in the order of their index.
    """

    distances: np.ndarray
    indices: np.ndarray


def distinct_rows(x_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows in the order of their first copies, [M, D], and the distinct row of each row, [N]."""
    _, first, row_N = np.unique(x_ND + 0.0, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return x_ND[first[order]], np.argsort(order)[row_N.reshape(-1)]


def nearest_neighbors(
    X: Any,
    k: int,
    *,
    queries: ArrayLike | None = None,
    period: ArrayLike | float | None = None,
    device: str | torch.device | None = None,
    block_rows: int | None = None,
) -> Neighbors:
    """Exact k nearest neighbors of rows among all other rows.

        d(i, j) = ||x_i - x_j||_2,    with `period` L:  ||w||_2, w_c = min over integers m of |x_ic - x_jc - m L_c|

    Args:
        X: rows, [N, D], NumPy or torch, any real dtype. Unit: length.
        k: number of neighbors, 1 <= k < N.
        queries: rows of X whose neighbors are wanted, [Q], int; None: all of them. A query is not its own
            neighbor; another row equal to it is one, at distance 0.
        period: length of a flat torus along each coordinate, a number or [D]; the distance is then the intrinsic
            one. For few coordinates: no matrix product helps. Unit: length.
        device: where to compute; None: where X lives (NumPy: the CPU); 'auto': the GPU where there is one.
        block_rows: queries in a block; None: from the free memory of the device.

    Returns:
        Neighbors, in NumPy arrays.

    Raises:
        ValueError: no matrix, empty, a row with NaN or infinity (the first is named), k or queries or period out
            of range, or so many rows that not even one query fits in the free memory.

    Numerics: the answer is that of a search over all pairs by differences in float64, whatever the offset of the
        rows. Candidates come from a product of the centered rows in float32 without TF32, their distances from
        differences in float64. The rounding of the product has a rigorous bound (that of an inner product of D
        terms summed in any order); a query whose k-th distance is not farther than this bound from the first
        distance left out is done again by a product in float64, and if that does not settle it, by differences
        to all rows. The smaller index goes first where distances tie.
    Determinism: yes, and independent of `block_rows`; another device may differ in the last bit of a distance.
    Cost: 2 Q N D operations in float32 and Q (k + k / 8 + 16) D in float64; a torus: 4 Q N D in float64. Memory: one
        block of [B, N], from what is free.
    """
    rows_ND = _as_rows(X, device)
    num_rows = len(rows_ND)
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k < num_rows:
        raise ValueError(f"k: expected 1 to {num_rows - 1} neighbors of {num_rows} rows, got {k!r}")
    queries_Q = _as_queries(queries, num_rows).to(rows_ND.device)
    if not len(queries_Q):
        return Neighbors(distances=np.empty((0, k)), indices=np.empty((0, k), dtype=np.int64))
    if block_rows is not None and block_rows < 1:
        raise ValueError(f"block_rows: expected at least 1, got {block_rows}")
    period_D = None if period is None else _as_period(period, rows_ND)
    with torch.no_grad(), torch.autocast(rows_ND.device.type, enabled=False):
        if period_D is None:
            found = _Search(rows_ND, int(k), block_rows).run(queries_Q)
        else:
            found = _Torus(rows_ND, int(k), block_rows, period_D).by_differences(queries_Q)
    return Neighbors(distances=found[0].cpu().numpy(), indices=found[1].cpu().numpy())


# ---- the search


class _Search:
    """Rows scaled by a power of two, so that no square over- or underflows, and their centered copy."""

    def __init__(self, rows_ND: Tensor, k: int, block_rows: int | None) -> None:
        centered_ND = rows_ND - rows_ND.mean(dim=0)
        largest = float(centered_ND.abs().max())
        self.scale = 2.0 ** -math.frexp(largest)[1] if largest > 0 else 1.0
        self.rows_ND, self.centered_ND = rows_ND * self.scale, centered_ND.mul_(self.scale)
        self.k, self.block_rows, self.free = k, block_rows, free_memory(rows_ND.device)
        self.slack = 16 + k // 8

    def run(self, queries_Q: Tensor) -> tuple[Tensor, Tensor]:
        """Distances and indices [Q, k]: by products of rising precision, then by differences where they fail."""
        distances_Qk, indices_Qk, sure_Q = self.by_products(queries_Q, torch.float32)
        for retry in (lambda q: self.by_products(q, torch.float64), self.by_differences):
            doubtful = (~sure_Q).nonzero().squeeze(1)
            if not len(doubtful):
                break
            distances, indices, *sure = retry(queries_Q[doubtful])
            distances_Qk[doubtful], indices_Qk[doubtful] = distances, indices
            sure_Q[doubtful] = sure[0] if sure else True
        return distances_Qk / self.scale, indices_Qk

    def by_products(self, queries_Q: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Distances, indices, and whether the bound proves a query's neighbors to be the nearest."""
        y_ND = self.centered_ND.to(dtype)
        squares_N = torch.linalg.vector_norm(
            self.centered_ND if dtype.itemsize == 8 else y_ND.double(), dim=1
        )
        squares_N = squares_N.square_()
        offset_N, others = squares_N.to(dtype), len(y_ND) - 1
        num_candidates = min(self.k + self.slack, others)
        parts = []
        with _full_precision():
            # Keys, and what a selection over them copies.
            for block_B in self.blocks(queries_Q, len(y_ND) * (dtype.itemsize + 12), PRODUCT_BYTES):
                key_BN = torch.addmm(offset_N, y_ND[block_B], y_ND.T, alpha=-2)
                key_BN.scatter_(1, block_B[:, None], math.inf)
                key_BC, candidates_BC = key_BN.topk(num_candidates, largest=False, sorted=False)
                distances_Bk, indices_Bk = self.refine(block_B, candidates_BC)
                sure_B = torch.ones_like(block_B, dtype=torch.bool)
                if num_candidates < others:
                    left_out_B = key_BC.amax(dim=1).double() + squares_N[block_B]
                    sure_B = self.certify(left_out_B, squares_N[block_B].sqrt(), distances_Bk[:, -1], dtype)
                parts.append((distances_Bk, indices_Bk, sure_B))
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))  # type: ignore[return-value]

    def certify(self, left_out_B: Tensor, norm_B: Tensor, kth_B: Tensor, dtype: torch.dtype) -> Tensor:
        """Whether every row that is no candidate lies farther than the k-th neighbor.

        With y the rounded rows, r their norms and u the unit roundoff: |fl(|y_j|^2 - 2 y_i.y_j) - exact| <=
        g (r_j^2 + 2 r_i r_j), g = (D + 6) u / (1 - (D + 6) u), for any order of summation. A row with
        r_j > r_i + 2 d_k is farther than d_k anyway, so r_j may be put at that radius. Left out means
        key >= `left_out`, hence |y_i - y_j|^2 >= left_out - error, and |x_i - x_j| is at least its root less what
        rounding moved the two rows. Underflow adds its smallest normal number an operation.
        """
        dim = self.rows_ND.shape[1]
        unit, tiny = torch.finfo(dtype).eps / 2, torch.finfo(dtype).tiny
        if (dim + 6) * unit >= 0.5:
            return torch.zeros_like(kth_B, dtype=torch.bool)
        growth = (dim + 6) * unit / (1 - (dim + 6) * unit)
        radius_B = (norm_B + 2 * kth_B) * (1 + 1e-6)
        error_B = growth * (radius_B**2 + 2 * norm_B * radius_B) + 4 * (dim + 2) * tiny
        error_B += (
            (dim + 4) * 2.0**-51 * (radius_B**2 + norm_B**2)
        )  # of the norms, which are taken in float64
        moved_B = 2 * unit * (norm_B + radius_B) + 2 * math.sqrt(dim) * tiny
        nearest_B = (left_out_B - error_B).clamp_min(0).sqrt() - moved_B
        return nearest_B > kth_B * (1 + (dim + 8) * 2.0**-52)

    def refine(self, block_B: Tensor, candidates_BC: Tensor) -> tuple[Tensor, Tensor]:
        """The k nearest of the candidates, by differences in float64."""
        candidates_BC = candidates_BC.sort(dim=1).values
        row_bytes = candidates_BC.shape[1] * self.rows_ND.shape[1] * 8
        distances = []
        for part_b in self.blocks(
            torch.arange(len(block_B), device=block_B.device), row_bytes, DIFFERENCE_BYTES
        ):
            among_bCD = self.rows_ND[candidates_BC[part_b]]
            query_b1D = self.rows_ND[block_B[part_b], None]
            distances.append(_cdist(query_b1D, among_bCD).squeeze(1))
        return _first_k(torch.cat(distances), candidates_BC, self.k)

    def by_differences(self, queries_Q: Tensor) -> tuple[Tensor, Tensor]:
        """Distances and indices [Q, k] from the distances of each query to all rows."""
        parts, num_rows = [], len(self.rows_ND)
        for block_B in self.blocks(queries_Q, num_rows * 48, PRODUCT_BYTES):
            distance_BN = self.distance(block_B)
            distance_BN.scatter_(1, block_B[:, None], math.inf)
            order_BN = distance_BN.argsort(dim=1, stable=True)[:, : self.k]
            parts.append((distance_BN.gather(1, order_BN), order_BN))
        return torch.cat([d for d, _ in parts]), torch.cat([i for _, i in parts])

    def distance(self, block_B: Tensor) -> Tensor:
        """Distances [B, N] in float64."""
        return _cdist(self.rows_ND[block_B], self.rows_ND)

    def blocks(self, items_Q: Tensor, item_bytes: int, target: dict[str, int]) -> Iterator[Tensor]:
        """Parts of `items_Q` whose work fits in memory; no more than `block_rows` where that is given."""
        if item_bytes > self.free:
            raise ValueError(
                f"X: one query among {len(self.rows_ND):,} rows needs {item_bytes:,} bytes, "
                f"{self.free:,} are free on {items_Q.device}"
            )
        allowed = min(target.get(items_Q.device.type, GIB // 4), self.free // 2)
        size = max(1, allowed // item_bytes)
        return iter(items_Q.split(min(size, self.block_rows or size)))


class _Torus(_Search):
    """Rows on a flat torus, with its intrinsic distance."""

    def __init__(self, rows_ND: Tensor, k: int, block_rows: int | None, period_D: Tensor) -> None:
        self.rows_ND, self.period_D = rows_ND, period_D
        self.k, self.block_rows, self.free = k, block_rows, free_memory(rows_ND.device)

    def distance(self, block_B: Tensor) -> Tensor:
        squared_BN = self.rows_ND.new_zeros(len(block_B), len(self.rows_ND))
        for axis, length in enumerate(self.period_D.tolist()):
            coordinate_N = self.rows_ND[:, axis]
            difference_BN = coordinate_N[block_B, None] - coordinate_N
            difference_BN -= length * (difference_BN / length).round_()
            squared_BN.addcmul_(difference_BN, difference_BN)
        return squared_BN.sqrt_()


def _cdist(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _first_k(distances_BC: Tensor, indices_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    order_BC = distances_BC.argsort(dim=1, stable=True)[:, :k]
    return distances_BC.gather(1, order_BC), indices_BC.gather(1, order_BC)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Matrix products in float32 that round as float32, whatever the process allows elsewhere."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# ---- memory and arguments


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device; what a container allows counts."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    free = [_meminfo_available()]
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free.append(int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(0, min(free))


def _meminfo_available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):  # no such system call
        return 4 * GIB


def _as_rows(X: Any, device: str | torch.device | None) -> Tensor:
    """X as float64 on the device asked for, checked."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(X, Tensor):
        rows_ND = X.detach()
        if rows_ND.is_complex():
            raise ValueError("X: expected real numbers, got complex ones")
    else:
        rows_ND = torch.from_numpy(np.array(X, dtype=np.float64, ndmin=0))
    rows_ND = rows_ND.to(device=rows_ND.device if device is None else device, dtype=torch.float64)
    if rows_ND.ndim != 2 or rows_ND.numel() == 0:
        raise ValueError(f"X: expected a non-empty array [rows, columns], got shape {tuple(rows_ND.shape)}")
    bad_N = ~rows_ND.isfinite().all(dim=1)
    if bad_N.any():
        row = int(bad_N.long().argmax())
        raise ValueError(f"X: row {row} holds NaN or infinity, expected finite numbers")
    return rows_ND


def _as_queries(queries: ArrayLike | None, num_rows: int) -> Tensor:
    if queries is None:
        return torch.arange(num_rows)
    query_Q = np.asarray(queries.cpu() if isinstance(queries, Tensor) else queries)
    if query_Q.ndim != 1 or query_Q.dtype.kind not in "iu":
        raise ValueError(f"queries: expected row indices, got {query_Q.dtype} of shape {query_Q.shape}")
    if query_Q.size and not 0 <= query_Q.min() <= query_Q.max() < num_rows:
        raise ValueError(
            f"queries: expected indices from 0 to {num_rows - 1}, got {query_Q.min()} to {query_Q.max()}"
        )
    return torch.from_numpy(query_Q.astype(np.int64))


def _as_period(period: ArrayLike, rows_ND: Tensor) -> Tensor:
    period_D = np.asarray(period, dtype=np.float64)
    dim = rows_ND.shape[1]
    if period_D.shape not in ((), (dim,)):
        raise ValueError(f"period: expected a number or one for each of {dim} columns, got {period_D.shape}")
    if not (np.isfinite(period_D) & (period_D > 0)).all():
        raise ValueError(f"period: expected finite numbers > 0, got {period_D.tolist()}")
    return torch.from_numpy(np.broadcast_to(period_D, (dim,)).copy())
