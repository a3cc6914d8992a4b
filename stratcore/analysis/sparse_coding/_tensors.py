"""Rows and dictionaries as tensors, their checks, and the way back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_rows(name: str, value: Any, device: torch.device | str | None = None) -> Tensor:
    """A finite, non-empty matrix, NumPy or torch, as a tensor: float32 stays, all else becomes float64.

    Raises:
        ValueError: another shape, or a row holds NaN or infinity (the first such row is named).
    """
    rows = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value, order="C"))
    if rows.ndim != 2 or rows.numel() == 0:
        raise ValueError(f"{name}: expected a non-empty array [rows, columns], got shape {tuple(rows.shape)}")
    if rows.is_complex():
        raise ValueError(f"{name}: expected real numbers, got complex ones")
    rows = rows.to(rows.device if device is None else device)
    rows = rows if rows.dtype == torch.float32 else rows.double()
    bad = ~rows.isfinite().all(1)
    if bad.any():
        row = int(bad.int().argmax())
        raise ValueError(f"{name}: row {row} holds NaN or infinity, expected finite numbers")
    return rows


def as_dictionary(value: Any, rows_ND: Tensor) -> Tensor:
    """The dictionary [M, D] in the type and on the device of the rows; every atom has a length.

    Raises:
        ValueError: not finite, another row length, or an atom of zeros (the first one is named).
    """
    atoms_MD = as_rows("dictionary", value, rows_ND.device).to(rows_ND.dtype)
    if atoms_MD.shape[1] != rows_ND.shape[1]:
        raise ValueError(
            f"dictionary: expected atoms of {rows_ND.shape[1]} features as the rows, got {atoms_MD.shape[1]}"
        )
    zero = atoms_MD.norm(dim=1) == 0
    if zero.any():
        raise ValueError(f"dictionary: atom {int(zero.int().argmax())} is zero, expected a direction")
    return atoms_MD


def check_sparsity(k: int, num_atoms: int) -> None:
    """Raises ValueError unless 1 <= k <= M."""
    if not 1 <= k <= num_atoms:
        raise ValueError(f"k: expected a number in [1, {num_atoms}], the number of atoms, got {k}")


def like(result: Tensor, value: Any) -> Any:
    """A result in the kind and on the device of an argument."""
    return result.to(value.device) if isinstance(value, Tensor) else result.cpu().numpy()
