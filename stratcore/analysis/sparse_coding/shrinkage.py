"""Codes by soft thresholding: the lasso by ISTA and FISTA, and ALISTA with its analytic weights.

Legend: N rows, D features, M atoms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stratcore.analysis.sparse_coding._tensors import as_dictionary, as_rows, like

CHECK_EVERY = 10  # steps between two looks at the duality gap


@dataclass(frozen=True, kw_only=True, eq=False)
class LassoResult:
    """Codes [N, M] of the lasso with what is known of them.

    objective, gap: [N], the objective and an upper bound of its distance to the optimum, by duality. num_steps:
    taken. converged: every gap is within the tolerance.
    """

    codes: Any
    objective: Any
    gap: Any
    num_steps: int
    converged: bool


def lipschitz_constant(dictionary: Any, *, num_steps: int = 1000, device: Any = None) -> float:
    """Largest eigenvalue of D D^T by power iteration, rounded up: an L with |grad(a) - grad(b)| <= L |a - b|.

    Args:
        dictionary: atoms, [M, D].
        num_steps: at most so many products.
        device: where to compute; None: where the dictionary is.

    Numerics: v with residual s = |A v - l v| has an eigenvalue within s of l; l + s is returned once s <= 1e-6 l.
    Where the leading eigenvalues lie closer than that, either serves. Should the products run out before, the
    exact spectral norm is computed instead.
    Determinism: a fixed start.
    """
    atoms_MD = as_rows("dictionary", dictionary, device)
    atoms_MD = as_dictionary(atoms_MD, atoms_MD).double()
    generator = torch.Generator().manual_seed(0)
    v_D = torch.randn(atoms_MD.shape[1], generator=generator, dtype=torch.float64).to(atoms_MD.device)
    v_D = v_D / v_D.norm()
    for _ in range(num_steps):
        image_D = (atoms_MD @ v_D) @ atoms_MD
        value = float(v_D @ image_D)
        slack = float((image_D - value * v_D).norm())
        if slack <= 1e-6 * value:
            return value + slack
        v_D = image_D / image_D.norm()
    return float(torch.linalg.matrix_norm(atoms_MD, 2).square())


def ista(
    X: Any,
    dictionary: Any,
    penalty: Any,
    *,
    num_steps: int = 1000,
    tolerance: float = 1e-6,
    device: Any = None,
) -> LassoResult:
    """Lasso codes by iterative soft thresholding, h_t(u) = sign(u) max(|u| - t, 0).

        min_z |x - z D|^2 / 2 + penalty |z|_1,    z <- h_{penalty/L}(z + D (x - z D) / L)

    Args:
        X: rows, [N, D].
        dictionary: atoms, [M, D]; any length but zero.
        penalty: > 0, one number or one a row [N].
        num_steps: at most so many.
        tolerance: the duality gap that counts as solved, as a share of |x|^2 / 2.
        device: where to compute; None: where X is.

    Returns:
        Codes with objective and duality gap of each row, in the kind of X.

    Raises:
        ValueError: an atom of zeros, shapes that do not fit, NaN or infinity, a penalty that is not above 0.

    Source: Daubechies, Defrise and De Mol 2004.
    """
    problem = _Lasso.of(X, dictionary, penalty, device)
    return problem.solve(num_steps, tolerance, X, accelerated=False)


def fista(
    X: Any,
    dictionary: Any,
    penalty: Any,
    *,
    num_steps: int = 1000,
    tolerance: float = 1e-6,
    device: Any = None,
) -> LassoResult:
    """Lasso codes as `ista`, with Nesterov's momentum; a row whose momentum points uphill starts it anew.

    Source: Beck and Teboulle 2009; O'Donoghue and Candes 2015 for the restart.
    """
    problem = _Lasso.of(X, dictionary, penalty, device)
    return problem.solve(num_steps, tolerance, X, accelerated=True)


@dataclass(frozen=True, eq=False)
class _Lasso:
    rows_ND: Tensor
    atoms_MD: Tensor
    penalty_N1: Tensor
    step: float

    @staticmethod
    def of(X: Any, dictionary: Any, penalty: Any, device: Any) -> _Lasso:
        rows_ND = as_rows("X", X, device)
        atoms_MD = as_dictionary(dictionary, rows_ND)
        penalty_N = torch.as_tensor(penalty).to(rows_ND)
        if penalty_N.ndim > 1 or (penalty_N.ndim == 1 and len(penalty_N) != len(rows_ND)):
            raise ValueError(f"penalty: expected one number or {len(rows_ND)}, got {tuple(penalty_N.shape)}")
        if not ((penalty_N > 0) & penalty_N.isfinite()).all():
            raise ValueError("penalty: expected numbers > 0")
        return _Lasso(
            rows_ND, atoms_MD, penalty_N.expand(len(rows_ND))[:, None], 1 / lipschitz_constant(atoms_MD)
        )

    def solve(self, num_steps: int, tolerance: float, X: Any, *, accelerated: bool) -> LassoResult:
        codes_NM = self.rows_ND.new_zeros(len(self.rows_ND), len(self.atoms_MD))
        point_NM, time_N1 = codes_NM, torch.ones_like(self.penalty_N1)
        enough_N = tolerance * self.rows_ND.square().sum(1) / 2
        step, solved = 0, False
        while step < num_steps and not solved:
            step += 1
            gradient_NM = (self.rows_ND - point_NM @ self.atoms_MD) @ self.atoms_MD.mT
            next_NM = soft_threshold(point_NM + self.step * gradient_NM, self.step * self.penalty_N1)
            if accelerated:
                moved_NM = next_NM - codes_NM
                uphill_N1 = ((point_NM - next_NM) * moved_NM).sum(1, keepdim=True) > 0
                time_N1 = torch.where(uphill_N1, 1.0, time_N1)
                later_N1 = (1 + (1 + 4 * time_N1.square()).sqrt()) / 2
                point_NM = next_NM + (time_N1 - 1) / later_N1 * moved_NM
                time_N1 = later_N1
            else:
                point_NM = next_NM
            codes_NM = next_NM
            if step % CHECK_EVERY == 0 or step == num_steps:
                solved = bool((self.gap(codes_NM)[1] <= enough_N).all())
        objective_N, gap_N = self.gap(codes_NM)
        return LassoResult(
            codes=like(codes_NM, X),
            objective=like(objective_N, X),
            gap=like(gap_N, X),
            num_steps=step,
            converged=bool((gap_N <= enough_N).all()),
        )

    def gap(self, codes_NM: Tensor) -> tuple[Tensor, Tensor]:
        """Objective [N] and duality gap [N], with the residual scaled into the dual's feasible set."""
        residual_ND = self.rows_ND - codes_NM @ self.atoms_MD
        square_N = residual_ND.square().sum(1)
        objective_N = square_N / 2 + self.penalty_N1[:, 0] * codes_NM.abs().sum(1)
        largest_N = (residual_ND @ self.atoms_MD.mT).abs().amax(1).clamp_min(1e-30)
        limit_N = self.penalty_N1[:, 0] / largest_N
        best_N = (residual_ND * self.rows_ND).sum(1) / square_N.clamp_min(1e-30)
        scale_N = torch.minimum(torch.maximum(best_N, -limit_N), limit_N)
        missing_N = (self.rows_ND - scale_N[:, None] * residual_ND).square().sum(1)
        dual_N = (self.rows_ND.square().sum(1) - missing_N) / 2
        return objective_N, (objective_N - dual_N).clamp_min(0)


def soft_threshold(x_NM: Tensor, threshold: Tensor) -> Tensor:
    """h_t(x) = sign(x) max(|x| - t, 0)."""
    return x_NM.sign() * (x_NM.abs() - threshold).clamp_min(0)


def alista_weight(dictionary: Any, *, device: Any = None) -> Any:
    """Analytic weights W [M, D] of ALISTA, the least coherent ones with the dictionary.

        W = argmin ||W D^T||_F^2  subject to  <w_m, d_m> = 1
        w_m = A^-1 d_m / (d_m^T A^-1 d_m),    A = sum_m d_m d_m^T

    Args:
        dictionary: atoms d_m, [M, D].
        device: where to compute; None: where the dictionary is.

    Numerics: in float64, with the pseudo-inverse of A where the atoms do not span the features: what lies
    outside their span sees no atom.
    Source: Liu, Chen, Wang and Yin 2019.
    """
    atoms_MD = as_rows("dictionary", dictionary, device)
    exact_MD = as_dictionary(atoms_MD, atoms_MD).double()
    left_MD = exact_MD @ torch.linalg.pinv(exact_MD.mT @ exact_MD, hermitian=True)
    weight_MD = left_MD / (left_MD * exact_MD).sum(1, keepdim=True)
    return like(weight_MD.to(atoms_MD.dtype), dictionary)


def alista(
    X: Any,
    dictionary: Any,
    *,
    num_steps: int = 16,
    steps: Sequence[float] | None = None,
    thresholds: Sequence[float] | None = None,
    scale: float = 0.1,
    device: Any = None,
) -> Any:
    """Codes [N, M] by `num_steps` of ALISTA, z <- h_{theta_t}(z + gamma_t W (x - z D)), z = 0 at the start.

    Args:
        X: rows, [N, D].
        dictionary: atoms, [M, D], taken at length 1: the codes are rescaled for others.
        num_steps: T.
        steps: gamma_t, [T]; None: 1 each.
        thresholds: theta_t, [T], learned ones for instance; None: the analytic schedule.
        scale: c of the analytic schedule; .05 to .2 serve. Smaller ones may diverge, larger ones leave atoms out.
        device: where to compute; None: where X is.

    Raises:
        ValueError: an atom of zeros, shapes that do not fit, NaN or infinity, schedules of another length.

    The analytic schedule needs no training: theta_t = c mu |D^+ (x - z_t D)|_1 for each row, with mu the largest
    |<w_m, d_n>|, m != n, and D^+ the pseudo-inverse. It follows the theory, in which theta_t must exceed
    mu |z_t - z*|_1, with what is known of that error, and falls with it. It finds codes that are sparse
    beside 1 / mu; it is no solver of the lasso, which knows a penalty and always converges: see `fista`.
    Source: Liu, Chen, Wang and Yin 2019; Chen, Liu, Wang and Yin 2021 for the schedule.
    """
    rows_ND = as_rows("X", X, device)
    atoms_MD = as_dictionary(dictionary, rows_ND)
    for name, given in (("steps", steps), ("thresholds", thresholds)):
        if given is not None and len(given) != num_steps:
            raise ValueError(f"{name}: expected {num_steps} numbers (num_steps), got {len(given)}")
    norm_M = atoms_MD.norm(dim=1)
    unit_MD = atoms_MD / norm_M[:, None]
    weight_MD = alista_weight(unit_MD)
    mu = (weight_MD @ unit_MD.mT).fill_diagonal_(0).abs().max()
    inverse_DM = torch.linalg.pinv(unit_MD)
    codes_NM = rows_ND.new_zeros(len(rows_ND), len(unit_MD))
    for t in range(num_steps):
        residual_ND = rows_ND - codes_NM @ unit_MD
        if thresholds is None:
            theta = scale * mu * (residual_ND @ inverse_DM).abs().sum(1, keepdim=True)
        else:
            theta = rows_ND.new_tensor(thresholds[t])
        gamma = 1.0 if steps is None else steps[t]
        codes_NM = soft_threshold(codes_NM + gamma * (residual_ND @ weight_MD.mT), gamma * theta)
    return like(codes_NM / norm_M, X)
