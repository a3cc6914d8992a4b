"""Codes of exactly k atoms: orthogonal matching pursuit, hard thresholding.

Legend: N rows, D features, M atoms, K = k atoms of a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stratcore.analysis.sparse_coding._tensors import as_dictionary, as_rows, check_sparsity, like

WORKSPACE = 1 << 23  # numbers that a block of rows may need at a time


def orthogonal_matching_pursuit(X: Any, dictionary: Any, k: int, *, device: Any = None) -> Any:
    """Codes [N, M] of at most k atoms by orthogonal matching pursuit.

        repeat k times:  S <- S + argmax_m |<d_m, r>| / ||d_m||,    r <- x - projection of x on span(S)

    Args:
        X: rows, [N, D].
        dictionary: atoms, [M, D]; any length but zero.
        k: atoms a row, in [1, M].
        device: where to compute; None: where X is.

    Returns:
        Exactly k non-zeros a row, fewer where the row is reached (to rounding) by fewer atoms.

    Raises:
        ValueError: k > M, an atom of zeros, shapes that do not fit, NaN or infinity.

    Numerics: the chosen atoms are orthonormalized twice a step (no Gram matrix, so the condition of the
    support is not squared). Correlations that are equal to the last bit go to the lower index.
    Cost: k matrix products [N, D] x [D, M]; blocks of rows bound the memory.
    Source: Pati, Rezaiifar and Krishnaprasad 1993.
    """
    rows_ND = as_rows("X", X, device)
    atoms_MD = as_dictionary(dictionary, rows_ND)
    check_sparsity(k, len(atoms_MD))
    return like(pursue(rows_ND, atoms_MD, k), X)


def least_squares_codes(X: Any, dictionary: Any, codes: Any, *, device: Any = None) -> Any:
    """Codes [N, M] on the support of the given ones, with the coefficients of least squares.

    Of atoms that depend on each other, those that pursuit takes first are kept.
    """
    rows_ND = as_rows("X", X, device)
    atoms_MD = as_dictionary(dictionary, rows_ND)
    codes_NM = as_rows("codes", codes, rows_ND.device)
    if codes_NM.shape != (len(rows_ND), len(atoms_MD)):
        raise ValueError(
            f"codes: expected shape {(len(rows_ND), len(atoms_MD))}, got {tuple(codes_NM.shape)}"
        )
    allowed_NM = codes_NM != 0
    return like(pursue(rows_ND, atoms_MD, int(allowed_NM.sum(1).max()), allowed_NM), X)


def pursue(rows_ND: Tensor, atoms_MD: Tensor, k: int, allowed_NM: Tensor | None = None) -> Tensor:
    """Orthogonal matching pursuit on checked tensors; `allowed_NM` restricts the atoms of each row."""
    norm_M = atoms_MD.norm(dim=1)
    unit_MD = atoms_MD / norm_M[:, None]
    block = max(1, WORKSPACE // (len(atoms_MD) + k * (rows_ND.shape[1] + k)))
    codes = []
    for start in range(0, len(rows_ND), block):
        part = slice(start, start + block)
        codes.append(
            _pursue_block(rows_ND[part], unit_MD, k, None if allowed_NM is None else allowed_NM[part])
        )
    return torch.cat(codes) / norm_M


def _pursue_block(rows_ND: Tensor, unit_MD: Tensor, k: int, allowed_NM: Tensor | None) -> Tensor:
    """Gram-Schmidt: q_j orthonormal, R upper triangular with d_S = Q R, so the codes solve R c = Q^T x."""
    num_rows, dim = rows_ND.shape
    tiny = 32 * torch.finfo(rows_ND.dtype).eps
    size_N = rows_ND.norm(dim=1)
    taken_NM = torch.zeros(num_rows, len(unit_MD), dtype=torch.bool, device=rows_ND.device)
    if allowed_NM is not None:
        taken_NM |= ~allowed_NM
    q_NKD = rows_ND.new_zeros(num_rows, k, dim)
    r_NKK = torch.eye(k, dtype=rows_ND.dtype, device=rows_ND.device).repeat(num_rows, 1, 1)
    inner_NK = rows_ND.new_zeros(num_rows, k)
    index_NK = torch.zeros(num_rows, k, dtype=torch.long, device=rows_ND.device)
    residual_ND, open_N = rows_ND, size_N > 0
    for step in range(k):
        correlation_NM = (residual_ND @ unit_MD.mT).abs().masked_fill_(taken_NM, -1)
        best_N, pick_N = correlation_NM.max(1)
        open_N = open_N & (best_N > tiny * size_N)
        if not open_N.any():
            break
        direction_ND, earlier_NKD = unit_MD[pick_N], q_NKD[:, :step]
        for _ in range(2):
            part_NK = torch.einsum("nkd,nd->nk", earlier_NKD, direction_ND)
            direction_ND = direction_ND - torch.einsum("nk,nkd->nd", part_NK, earlier_NKD)
            r_NKK[:, :step, step] += part_NK * open_N[:, None]
        length_N = direction_ND.norm(dim=1)
        open_N = open_N & (length_N > tiny)
        r_NKK[:, :step, step] *= open_N[:, None]
        r_NKK[:, step, step] = torch.where(open_N, length_N, 1)
        q_ND = torch.where(open_N[:, None], direction_ND / length_N.clamp_min(tiny)[:, None], 0)
        q_NKD[:, step] = q_ND
        inner_NK[:, step] = (q_ND * residual_ND).sum(1)
        residual_ND = residual_ND - inner_NK[:, step, None] * q_ND
        index_NK[:, step] = pick_N
        taken_NM.scatter_(1, pick_N[:, None], True)
    coefficient_NK = torch.linalg.solve_triangular(r_NKK, inner_NK[..., None], upper=True)[..., 0]
    # A closed step has coefficient 0; adding, it cannot wipe out the atom that its index names.
    return rows_ND.new_zeros(taken_NM.shape).scatter_add_(1, index_NK, coefficient_NK)


def batch_orthogonal_matching_pursuit(gram: Any, correlations: Any, k: int, *, device: Any = None) -> Any:
    """Codes [N, M] of at most k atoms from the Gram matrix and the first correlations alone (Batch-OMP).

    Args:
        gram: G = D D^T of atoms of length 1, [M, M].
        correlations: X D^T, [N, M].
        k: atoms a row, in [1, M].
        device: where to compute; None: where `correlations` is.

    Returns:
        As `orthogonal_matching_pursuit`, which is the more precise one (here the condition of the support is
        squared) and the faster one where D is small beside M.

    Raises:
        ValueError: k > M, shapes that do not fit, an atom of another length than 1, NaN or infinity.

    Numerics: the Cholesky factor L of the support's Gram matrix grows by a row a step; L^-1 G is kept for the
    chosen atoms, so that a step needs no triangular solve.
    Cost: N M k^2 / 2 multiplications; N M k numbers of memory, in blocks of rows.
    Source: Rubinstein, Zibulevsky and Elad 2008.
    """
    alpha_NM = as_rows("correlations", correlations, device)
    gram_MM = as_rows("gram", gram, alpha_NM.device).to(alpha_NM.dtype)
    if gram_MM.shape != (alpha_NM.shape[1],) * 2:
        raise ValueError(
            f"gram: expected shape {(alpha_NM.shape[1],) * 2} for these correlations, got {tuple(gram_MM.shape)}"
        )
    off_M = (gram_MM.diagonal() - 1).abs() > 1e-4
    if off_M.any():
        atom = int(off_M.int().argmax())
        raise ValueError(f"gram: atom {atom} has squared length {float(gram_MM[atom, atom]):.6g}, expected 1")
    check_sparsity(k, len(gram_MM))
    block = max(1, WORKSPACE // (len(gram_MM) * (k + 2)))
    codes = [_batch_block(gram_MM, alpha_NM[i : i + block], k) for i in range(0, len(alpha_NM), block)]
    return like(torch.cat(codes), correlations)


def _batch_block(gram_MM: Tensor, alpha_NM: Tensor, k: int) -> Tensor:
    """P = L^-1 G_S and p = L^-1 alpha_S grow by a row a step; the codes solve L^T c = p."""
    num_rows, num_atoms = alpha_NM.shape
    tiny = 32 * torch.finfo(alpha_NM.dtype).eps
    size_N = alpha_NM.abs().amax(1)
    row_N = torch.arange(num_rows, device=alpha_NM.device)
    p_NKM = alpha_NM.new_zeros(num_rows, k, num_atoms)
    factor_NKK = torch.eye(k, dtype=alpha_NM.dtype, device=alpha_NM.device).repeat(num_rows, 1, 1)
    inner_NK = alpha_NM.new_zeros(num_rows, k)
    index_NK = torch.zeros(num_rows, k, dtype=torch.long, device=alpha_NM.device)
    taken_NM = torch.zeros_like(alpha_NM, dtype=torch.bool)
    rest_NM, open_N = alpha_NM, size_N > 0
    for step in range(k):
        best_N, pick_N = rest_NM.abs().masked_fill_(taken_NM, -1).max(1)
        open_N = open_N & (best_N > tiny * size_N)
        w_NK = p_NKM[row_N, :step, pick_N] * open_N[:, None]
        square_N = 1 - w_NK.square().sum(1)
        open_N = open_N & (square_N > tiny)
        if not open_N.any():
            break
        length_N = torch.where(open_N, square_N, 1).sqrt()
        factor_NKK[:, step, :step] = w_NK * open_N[:, None]
        factor_NKK[:, step, step] = length_N
        p_NM = gram_MM[pick_N] - torch.bmm(w_NK[:, None], p_NKM[:, :step])[:, 0]
        p_NKM[:, step] = torch.where(open_N[:, None], p_NM / length_N[:, None], 0)
        inner_NK[:, step] = torch.where(open_N, rest_NM[row_N, pick_N] / length_N, 0)
        rest_NM = rest_NM - inner_NK[:, step, None] * p_NKM[:, step]
        index_NK[:, step] = pick_N
        taken_NM[row_N, pick_N] = True
    coefficient_NK = torch.linalg.solve_triangular(factor_NKK.mT, inner_NK[..., None], upper=True)[..., 0]
    return torch.zeros_like(alpha_NM).scatter_add_(1, index_NK, coefficient_NK)


def keep_largest(codes_NM: Tensor, k: int) -> Tensor:
    """The k entries of largest magnitude of each row, zeros elsewhere."""
    index_NK = codes_NM.abs().topk(k, dim=1).indices
    return torch.zeros_like(codes_NM).scatter_(1, index_NK, codes_NM.gather(1, index_NK))


def iterative_hard_thresholding(
    X: Any,
    dictionary: Any,
    k: int,
    *,
    normalized: bool = False,
    num_steps: int = 200,
    tolerance: float = 1e-4,
    device: Any = None,
) -> Any:
    """Codes [N, M] of k atoms by iterative hard thresholding, H_k the k largest by magnitude.

        z <- H_k(z + mu D (x - z D)),    z = 0 at the start

    Args:
        X: rows, [N, D].
        dictionary: atoms, [M, D]; any length but zero.
        k: atoms a row, in [1, M].
        normalized: mu is each row's exact line search on the current support, shortened until a change of
            support cannot raise the residual; otherwise mu = 1 / ||D||^2.
        num_steps: at most so many.
        tolerance: a row is done when its code moves by at most this share of its length.
        device: where to compute; None: where X is.

    Raises:
        ValueError: k > M, an atom of zeros, shapes that do not fit, NaN or infinity.

    The residual never rises, in both variants. The coefficients are those of the last step, not of least squares
    on the support: see `least_squares_codes`.
    Source: Blumensath and Davies 2009, 2010.
    """
    rows_ND = as_rows("X", X, device)
    atoms_MD = as_dictionary(dictionary, rows_ND)
    check_sparsity(k, len(atoms_MD))
    safe = 1 / torch.linalg.matrix_norm(atoms_MD, 2).square()
    codes_NM = rows_ND.new_zeros(len(rows_ND), len(atoms_MD))
    open_N = torch.arange(len(rows_ND), device=rows_ND.device)
    for _ in range(num_steps):
        own_NM = codes_NM[open_N]
        gradient_NM = (rows_ND[open_N] - own_NM @ atoms_MD) @ atoms_MD.mT
        if normalized:
            next_NM = _normalized_step(own_NM, gradient_NM, atoms_MD, k, safe)
        else:
            next_NM = keep_largest(own_NM + safe * gradient_NM, k)
        codes_NM[open_N] = next_NM
        open_N = open_N[(next_NM - own_NM).norm(dim=1) > tolerance * next_NM.norm(dim=1)]
        if len(open_N) == 0:
            break
    return like(codes_NM, X)


def _normalized_step(codes_NM: Tensor, gradient_NM: Tensor, atoms_MD: Tensor, k: int, safe: Tensor) -> Tensor:
    """One step of normalized hard thresholding; where the support changes, mu <= .99 |dz|^2 / |dz D|^2."""
    start = (codes_NM != 0).any(1, keepdim=True)
    support_NM = torch.where(start, codes_NM != 0, keep_largest(gradient_NM, k) != 0)
    own_NM = gradient_NM * support_NM
    mu_N1 = own_NM.square().sum(1, keepdim=True) / (own_NM @ atoms_MD).square().sum(1, keepdim=True)
    mu_N1 = torch.where(mu_N1.isfinite(), mu_N1, safe).clamp_min(safe)
    next_NM = keep_largest(codes_NM + mu_N1 * gradient_NM, k)
    for _ in range(60):
        step_NM = next_NM - codes_NM
        bound_N1 = step_NM.square().sum(1, keepdim=True) / (step_NM @ atoms_MD).square().sum(1, keepdim=True)
        same_N1 = ((next_NM != 0) == support_NM).all(1, keepdim=True)
        long_N1 = ~same_N1 & (mu_N1 > 0.99 * bound_N1) & (mu_N1 > safe)
        if not long_N1.any():
            break
        mu_N1 = torch.where(long_N1, (mu_N1 / 2).clamp_min(safe), mu_N1)
        next_NM = keep_largest(codes_NM + mu_N1 * gradient_NM, k)
    return next_NM
