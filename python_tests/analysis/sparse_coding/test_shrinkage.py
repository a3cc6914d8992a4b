from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

from python_tests.analysis.sparse_coding.planted import planted
from stratcore.analysis.sparse_coding import (
    alista,
    alista_weight,
    fista,
    ista,
    lipschitz_constant,
)

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.mark.parametrize("seed", range(4))
def test_the_lipschitz_constant_is_the_largest_eigenvalue_from_above(seed: int) -> None:
    dictionary = np.random.default_rng(seed).standard_normal((30 + 40 * seed, 25))
    exact = np.linalg.norm(dictionary, 2) ** 2
    assert exact <= lipschitz_constant(dictionary) <= exact * (1 + 3e-6)
    assert exact * (1 - 1e-9) <= lipschitz_constant(dictionary, num_steps=2) <= exact * (1 + 1e-9)


def test_lasso_codes_are_those_of_scikit_learn() -> None:
    x, _, dictionary = planted(rows=20)
    result = fista(x, dictionary, 0.1, num_steps=5000, tolerance=1e-12)
    assert result.converged and result.num_steps < 5000
    for row, code in zip(x, result.codes, strict=True):
        model = Lasso(0.1 / len(row), fit_intercept=False, tol=1e-12, max_iter=100_000).fit(dictionary.T, row)
        np.testing.assert_allclose(code, model.coef_, atol=1e-5)


@pytest.mark.parametrize("steps", [10, 40, 160])
def test_the_gap_bounds_the_distance_to_the_optimum(steps: int) -> None:
    x, _, dictionary = planted(rows=50)
    penalty = np.linspace(0.02, 0.4, 50)
    optimum = fista(x, dictionary, penalty, num_steps=20_000, tolerance=1e-13)
    for solver in (ista, fista):
        result = solver(x, dictionary, penalty, num_steps=steps, tolerance=0)
        residual = x - result.codes @ dictionary
        objective = (residual**2).sum(1) / 2 + penalty * np.abs(result.codes).sum(1)
        np.testing.assert_allclose(result.objective, objective, rtol=1e-12)
        above = objective - optimum.objective
        assert (above >= -1e-10).all() and (above <= result.gap + 1e-10).all()
        assert not result.converged and result.num_steps == steps


def test_momentum_pays_and_the_plain_steps_fall() -> None:
    x, _, dictionary = planted(rows=50)
    slow, fast = (solver(x, dictionary, 0.05, num_steps=100, tolerance=0) for solver in (ista, fista))
    assert fast.gap.mean() < 0.05 * slow.gap.mean()
    objectives = [ista(x, dictionary, 0.05, num_steps=n, tolerance=0).objective for n in range(1, 20)]
    assert (np.diff(objectives, axis=0) <= 1e-12).all()


def test_a_large_penalty_makes_every_code_zero() -> None:
    x, _, dictionary = planted(rows=20)
    largest = np.abs(x @ dictionary.T).max(1)
    assert (fista(x, dictionary, 1.001 * largest).codes == 0).all()
    assert (fista(x, dictionary, 0.98 * largest).codes != 0).any(1).all()


# ---- ALISTA


def test_weights_of_alista_are_the_least_coherent_ones() -> None:
    rng = np.random.default_rng(1)
    _, _, dictionary = planted()
    weight = alista_weight(dictionary)
    np.testing.assert_allclose((weight * dictionary).sum(1), 1, atol=1e-12)
    energy = ((weight @ dictionary.T) ** 2).sum()
    # 127.4, and 176.5 with the dictionary itself as the weight.
    assert energy < ((dictionary @ dictionary.T) ** 2).sum() - 20
    for _ in range(20):
        step = rng.standard_normal(dictionary.shape)
        step -= (step * dictionary).sum(1, keepdims=True) * dictionary  # stays on the constraint
        assert (((weight + 1e-3 * step) @ dictionary.T) ** 2).sum() > energy


def test_weights_of_a_dictionary_that_does_not_span() -> None:
    _, _, dictionary = planted(atoms=8, dim=20)
    weight = alista_weight(dictionary)
    # Eight independent atoms have a biorthogonal system.
    np.testing.assert_allclose(weight @ dictionary.T, np.eye(8), atol=1e-10)


@pytest.mark.parametrize(("atoms", "dim", "k", "bar"), [(100, 50, 4, -50), (250, 100, 4, -70)])
def test_untrained_alista_finds_planted_codes(atoms: int, dim: int, k: int, bar: float) -> None:
    x, codes, dictionary = planted(rows=300, atoms=atoms, dim=dim, k=k, decibel=300)

    def decibel(found: np.ndarray) -> float:
        return float(10 * np.log10(((found - codes) ** 2).sum() / (codes**2).sum()))

    errors = [decibel(alista(x, dictionary, num_steps=steps)) for steps in (4, 16, 50)]
    assert errors[1] < bar and errors[0] > errors[1] > errors[2]
    # At as many steps it leaves the lasso's solver far behind.
    assert errors[1] < decibel(fista(x, dictionary, 0.02, num_steps=16).codes) - 30


def test_given_schedules_and_atoms_of_any_length() -> None:
    x, _, dictionary = planted(rows=30)
    given = alista(x, dictionary, num_steps=2, steps=(1.0, 0.5), thresholds=(0.3, 0.2))
    weight, z = alista_weight(dictionary), np.zeros((30, 50))
    for gamma, theta in ((1.0, 0.3), (0.5, 0.2)):
        u = z + gamma * (x - z @ dictionary) @ weight.T
        z = np.sign(u) * np.maximum(np.abs(u) - gamma * theta, 0)
    np.testing.assert_allclose(given, z, atol=1e-12)
    length = np.linspace(0.5, 2, 50)
    np.testing.assert_allclose(
        alista(x, dictionary * length[:, None]) * length, alista(x, dictionary), atol=1e-9
    )


def test_tensors_in_tensors_out() -> None:
    x, _, dictionary = planted(rows=20)
    result = fista(torch.from_numpy(x).float(), torch.from_numpy(dictionary), 0.1, device="cpu")
    assert all(isinstance(each, torch.Tensor) for each in (result.codes, result.objective, result.gap))
    assert result.codes.dtype == torch.float32
    np.testing.assert_allclose(result.codes.numpy(), fista(x, dictionary, 0.1).codes, atol=2e-3)
    assert alista(torch.from_numpy(x), dictionary).dtype == torch.float64


@pytest.mark.parametrize("solver", [ista, fista])
@pytest.mark.parametrize(
    ("penalty", "words"),
    [(0.0, "numbers > 0"), (np.nan, "numbers > 0"), (np.ones(3), "expected one number or 20, got"),
     (np.r_[np.ones(19), -1], "numbers > 0")],
)  # fmt: skip
def test_a_bad_penalty_is_refused(solver: object, penalty: object, words: str) -> None:
    x, _, dictionary = planted(rows=20)
    with pytest.raises(ValueError, match=words):
        solver(x, dictionary, penalty)


def test_bad_rows_atoms_and_schedules_are_named() -> None:
    x, _, dictionary = planted(rows=20)
    with pytest.raises(ValueError, match="atom 2 is zero"):
        alista_weight(np.where(np.arange(50)[:, None] == 2, 0, dictionary))
    with pytest.raises(ValueError, match="X: row 1 holds NaN"):
        fista(np.where(np.arange(20)[:, None] == 1, np.nan, x), dictionary, 0.1)
    with pytest.raises(ValueError, match=r"thresholds: expected 3 numbers \(num_steps\), got 2"):
        alista(x, dictionary, num_steps=3, thresholds=(0.1, 0.1))
