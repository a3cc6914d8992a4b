"""Dictionaries learned from rows: K-SVD and online dictionary learning, with codes by matching pursuit.

Legend: N rows, D features, M atoms, B rows of a batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from stratcore.analysis._checks import as_matrix, estimator_matrix
from stratcore.analysis.sparse_coding._tensors import check_sparsity
from stratcore.analysis.sparse_coding.pursuit import pursue

COHERENT = 0.99  # |cos| above which two atoms count as one


class _DictionaryEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Rows about their mean as k atoms each: what the two ways to learn the atoms share."""

    n_components: int
    k: int
    max_iter: int
    dtype: str
    device: str
    random_state: int
    mean_: np.ndarray
    components_: np.ndarray
    error_: list[float]

    def transform(self, X: Any, k: int | None = None) -> np.ndarray:
        """Codes [N, M] of rows [N, D] by orthogonal matching pursuit; `k` in the place of the estimator's."""
        check_is_fitted(self)
        x_ND = estimator_matrix(self, X, reset=False)
        sparsity = self.k if k is None else k
        check_sparsity(sparsity, len(self.components_))
        codes_NM = pursue(self._tensor(x_ND - self.mean_), self._tensor(self.components_), sparsity)
        return codes_NM.double().cpu().numpy()

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Rows [N, D] of codes [N, M]: mean + codes times atoms."""
        check_is_fitted(self)
        codes_NM = as_matrix("X", X)
        if codes_NM.shape[1] != len(self.components_):
            raise ValueError(f"X: expected codes of {len(self.components_)} atoms, got {codes_NM.shape[1]}")
        return self.mean_ + codes_NM @ self.components_

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def _tensor(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).to(self.device, getattr(torch, self.dtype))

    def _start(self, X: Any) -> tuple[Tensor, Tensor, np.random.Generator]:
        """Checked rows about their mean, and M of them at length 1 as the first atoms."""
        if self.n_components < 1 or self.max_iter < 1:
            raise ValueError(
                f"n_components and max_iter: expected >= 1, got {self.n_components} and {self.max_iter}"
            )
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype: expected 'float32' or 'float64', got {self.dtype!r}")
        check_sparsity(self.k, self.n_components)
        x_ND = estimator_matrix(self, X, min_rows=2)
        if len(x_ND) < self.n_components:
            raise ValueError(
                f"X: expected at least as many rows as atoms (n_components = {self.n_components}), "
                f"got n_samples = {len(x_ND)}"
            )
        self.mean_ = x_ND.mean(0)
        rows_ND = self._tensor(x_ND - self.mean_)
        rng = np.random.default_rng(self.random_state)
        norm_N = rows_ND.norm(dim=1)
        if not bool((norm_N > 0).any()):
            raise ValueError("X: all rows are equal, expected variance")
        order = rng.permutation(np.flatnonzero(norm_N.cpu().numpy() > 0))[: self.n_components]
        atoms_MD = rows_ND[torch.from_numpy(order).to(rows_ND.device)]
        missing = self.n_components - len(order)
        if missing:
            random = self._tensor(rng.standard_normal((missing, x_ND.shape[1])))
            atoms_MD = torch.cat([atoms_MD, random])
        return rows_ND, atoms_MD / atoms_MD.norm(dim=1, keepdim=True), rng

    def _finish(self, rows_ND: Tensor, atoms_MD: Tensor) -> None:
        self.components_ = atoms_MD.double().cpu().numpy()


class KSVD(_DictionaryEstimator):
    """K-SVD: codes of k atoms by matching pursuit, then each atom fitted anew to the rows that use it.

        min_{D, Z} ||X - mean - Z D||_F^2  subject to  |z_n|_0 <= k,  |d_m| = 1
        atom m:  E = residual + z_m d_m on the rows that use it,  (z_m, d_m) <- leading singular pair of E

    Args:
        n_components: M, at most the number of rows.
        k: atoms a row.
        max_iter: rounds over all atoms.
        power_steps: power iterations a singular pair, from the present one; 1 is the approximate K-SVD.
        tolerance: ends when a round lowers the squared error by a smaller share; 0: never.
        dtype: 'float32' or 'float64', of the computation.
        device: where to compute.
        random_state: seed of the first atoms, which are rows.

    Attributes:
        components_: atoms of length 1, [M, D].
        mean_: of the training rows, [D].
        error_: mean squared residual after the codes of each round.
        replaced_: atoms replaced over all rounds.
        n_iter_: rounds.

    An atom that no row uses, or that lies within |cos| > .99 of an earlier one, is replaced by the row that is
    reconstructed worst (and by another such row each), but in the last round.
    `fit`, `transform(X, k=None)` and `inverse_transform` take NumPy arrays and torch tensors and answer in NumPy.

    Determinism: a function of rows and parameters on one machine.
    Cost: a round takes one matching pursuit and M small products, one after the other.
    Source: Aharon, Elad and Bruckstein 2006; Rubinstein, Zibulevsky and Elad 2008 for `power_steps` = 1.
    """

    def __init__(
        self,
        n_components: int = 8,
        k: int = 1,
        *,
        max_iter: int = 30,
        power_steps: int = 2,
        tolerance: float = 1e-4,
        dtype: str = "float64",
        device: str = "cpu",
        random_state: int = 0,
    ) -> None:
        self.n_components = n_components
        self.k = k
        self.max_iter = max_iter
        self.power_steps = power_steps
        self.tolerance = tolerance
        self.dtype = dtype
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: object = None) -> KSVD:
        """Learn from rows [N, D], N >= max(2, M); `y` is ignored."""
        if self.power_steps < 1 or self.tolerance < 0:
            raise ValueError(
                f"power_steps and tolerance: expected >= 1 and >= 0, got {self.power_steps}, {self.tolerance}"
            )
        rows_ND, atoms_MD, _ = self._start(X)
        self.error_, self.replaced_ = [], 0
        for round_ in range(1, self.max_iter + 1):
            codes_NM = pursue(rows_ND, atoms_MD, self.k)
            residual_ND = rows_ND - codes_NM @ atoms_MD
            self.error_.append(float(residual_ND.square().sum(1).mean()))
            before, *_, now = (self.error_[-2], self.error_[-1]) if round_ > 1 else (np.inf, self.error_[-1])
            last = round_ == self.max_iter or before - now < self.tolerance * before or now == 0
            self._update_atoms(codes_NM, atoms_MD, residual_ND)
            if last:
                break
            self.replaced_ += replace_atoms(atoms_MD, (codes_NM != 0).any(0), residual_ND)
        self.n_iter_ = round_
        self._finish(rows_ND, atoms_MD)
        return self

    def _update_atoms(self, codes_NM: Tensor, atoms_MD: Tensor, residual_ND: Tensor) -> None:
        """Each atom and its codes in turn, with the residual kept up to date; changes all three."""
        atom_S, row_S = codes_NM.mT.nonzero(as_tuple=True)
        counts = torch.bincount(atom_S, minlength=len(atoms_MD)).tolist()
        for atom, rows in enumerate(row_S.split(counts)):
            if len(rows) == 0:
                continue
            code_S, old_D = codes_NM[rows, atom], atoms_MD[atom]
            own_SD = torch.addr(residual_ND[rows], code_S, old_D)
            new_D = old_D
            for _ in range(self.power_steps):
                image_D = code_S @ own_SD
                length = image_D.norm()
                new_D = torch.where(length > 0, image_D / length.clamp_min(1e-30), new_D)
                code_S = own_SD @ new_D
            atoms_MD[atom] = new_D
            codes_NM[rows, atom] = code_S
            residual_ND[rows] = torch.addr(own_SD, code_S, new_D, alpha=-1)


class OnlineDictionaryLearning(_DictionaryEstimator):
    """Online dictionary learning with codes of k atoms: sums over batches, then one pass over the atoms.

        A <- rho A + Z^T Z,  B <- rho B + Z^T X,    d_m <- d_m + (b_m - a_m D) / A_mm, at length 1

    Args:
        n_components: M, at most the number of rows.
        k: atoms a row.
        max_iter: passes over the rows.
        batch_size: B.
        forgetting: share of the sums that a whole pass forgets, in [0, 1].
        dtype: 'float32' or 'float64', of the computation.
        device: where to compute.
        random_state: seed of the first atoms, which are rows, and of the order of rows.

    Attributes:
        components_: atoms of length 1, [M, D].
        mean_: of the training rows, [D].
        error_: mean squared residual of the batches of each pass, before they were learned from.
        replaced_: atoms replaced over all passes.
        n_iter_: passes.

    Atoms are replaced after each pass but the last as `KSVD` does; the sums of a new atom start at 0.
    scikit-learn's MiniBatchDictionaryLearning solves a lasso a row: two batches of 256 rows of 64 features take
    2.3 s with 470 atoms and 11 to 17 s with 2,090 on one core, and its codes do not have k atoms.

    Determinism: a function of rows and parameters on one machine.
    Source: Mairal, Bach, Ponce and Sapiro 2009, with matching pursuit in the place of the lasso.
    """

    def __init__(
        self,
        n_components: int = 8,
        k: int = 1,
        *,
        max_iter: int = 10,
        batch_size: int = 256,
        forgetting: float = 0.5,
        dtype: str = "float64",
        device: str = "cpu",
        random_state: int = 0,
    ) -> None:
        self.n_components = n_components
        self.k = k
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.forgetting = forgetting
        self.dtype = dtype
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: object = None) -> OnlineDictionaryLearning:
        """Learn from rows [N, D], N >= max(2, M); `y` is ignored."""
        if self.batch_size < 1 or not 0 <= self.forgetting <= 1:
            raise ValueError(
                f"batch_size and forgetting: expected >= 1 and in [0, 1], got {self.batch_size}, {self.forgetting}"
            )
        rows_ND, atoms_MD, rng = self._start(X)
        num_batches = -(-len(rows_ND) // self.batch_size)
        keep = (1 - self.forgetting) ** (1 / num_batches)
        a_MM = atoms_MD.new_zeros(len(atoms_MD), len(atoms_MD))
        b_MD = torch.zeros_like(atoms_MD)
        self.error_, self.replaced_ = [], 0
        for epoch in range(1, self.max_iter + 1):
            residual_ND, used_M = torch.empty_like(rows_ND), torch.zeros_like(a_MM[0], dtype=torch.bool)
            order = torch.from_numpy(rng.permutation(len(rows_ND))).to(rows_ND.device)
            for index_B in order.split(self.batch_size):
                batch_BD = rows_ND[index_B]
                codes_BM = pursue(batch_BD, atoms_MD, self.k)
                residual_ND[index_B] = batch_BD - codes_BM @ atoms_MD
                used_M |= (codes_BM != 0).any(0)
                a_MM.mul_(keep).addmm_(codes_BM.mT, codes_BM)
                b_MD.mul_(keep).addmm_(codes_BM.mT, batch_BD)
                _descend(atoms_MD, a_MM, b_MD)
            self.error_.append(float(residual_ND.square().sum(1).mean()))
            if epoch < self.max_iter:
                before_MD = atoms_MD.clone()
                self.replaced_ += replace_atoms(atoms_MD, used_M, residual_ND)
                new_M = (before_MD != atoms_MD).any(1)
                a_MM[new_M], a_MM[:, new_M], b_MD[new_M] = 0, 0, 0
        self.n_iter_ = self.max_iter
        self._finish(rows_ND, atoms_MD)
        return self


def _descend(atoms_MD: Tensor, a_MM: Tensor, b_MD: Tensor) -> None:
    """One pass of block coordinate descent over the atoms that the sums know; changes them."""
    weight_M = a_MM.diagonal()
    known = (weight_M > 1e-6 * weight_M.max()).nonzero()[:, 0].tolist()
    for atom in known:
        new_D = atoms_MD[atom] + (b_MD[atom] - a_MM[atom] @ atoms_MD) / weight_M[atom]
        length = new_D.norm()
        atoms_MD[atom] = torch.where(length > 0, new_D / length.clamp_min(1e-30), atoms_MD[atom])


def replace_atoms(atoms_MD: Tensor, used_M: Tensor, residual_ND: Tensor) -> int:
    """Points atoms that are unused, or coherent with an earlier one, at the worst rows; returns how many.

    A new atom is the residual of its row: what the dictionary lacks. Rows without a residual replace nothing.
    """
    cosine_MM = (atoms_MD @ atoms_MD.mT).abs().tril_(-1)
    stale = (~used_M | (cosine_MM > COHERENT).any(1)).nonzero()[:, 0]
    error_N = residual_ND.square().sum(1)
    worst = error_N.argsort(descending=True, stable=True)[: len(stale)]
    worst = worst[error_N[worst] > torch.finfo(error_N.dtype).eps]
    stale = stale[: len(worst)]
    atoms_MD[stale] = residual_ND[worst] / error_N[worst, None].sqrt()
    return len(stale)
