from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import orthogonal_mp_gram

from python_tests.analysis.sparse_coding.planted import planted
from stratcore.analysis.sparse_coding import (
    batch_orthogonal_matching_pursuit,
    iterative_hard_thresholding,
    least_squares_codes,
    orthogonal_matching_pursuit,
    pursuit,
)

pytestmark = pytest.mark.usefixtures("single_thread")


def generic(rows: int, atoms: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    dictionary = rng.standard_normal((atoms, dim))
    return rng.standard_normal((rows, dim)), dictionary / np.linalg.norm(dictionary, axis=1, keepdims=True)


def from_gram(x: np.ndarray, atoms: np.ndarray, k: int) -> np.ndarray:
    return batch_orthogonal_matching_pursuit(atoms @ atoms.T, x @ atoms.T, k)


PURSUITS = {"residual": orthogonal_matching_pursuit, "gram": from_gram}


@pytest.mark.parametrize("name", PURSUITS)
@pytest.mark.parametrize(
    ("atoms", "dim", "k"), [(50, 20, 1), (50, 20, 3), (256, 64, 16), (128, 64, 48), (12, 12, 12)]
)
def test_codes_are_those_of_scikit_learn(name: str, atoms: int, dim: int, k: int) -> None:
    x, dictionary = generic(120, atoms, dim)
    codes = PURSUITS[name](x, dictionary, k)
    expected = orthogonal_mp_gram(dictionary @ dictionary.T, dictionary @ x.T, n_nonzero_coefs=k).T
    np.testing.assert_allclose(codes, expected, atol=1e-8, rtol=0)
    assert ((codes != 0).sum(1) == k).all()


@pytest.mark.parametrize("name", PURSUITS)
def test_blocks_of_rows_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, dictionary = generic(101, 40, 16)
    whole = PURSUITS[name](x, dictionary, 5)
    monkeypatch.setattr(pursuit, "WORKSPACE", 40 * 20)
    np.testing.assert_allclose(PURSUITS[name](x, dictionary, 5), whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", PURSUITS)
def test_a_row_of_few_atoms_gets_no_more(name: str) -> None:
    _, dictionary = generic(5, 30, 12)
    x = np.stack([2 * dictionary[4], np.zeros(12), dictionary[1] - dictionary[2]])
    codes = PURSUITS[name](x, dictionary, 8)
    assert (codes[0] != 0).sum() == 1 and codes[0, 4] == pytest.approx(2)
    assert (codes[1] == 0).all()
    np.testing.assert_allclose(codes @ dictionary, x, atol=1e-12)


@pytest.mark.parametrize("name", PURSUITS)
def test_a_repeated_atom_is_taken_once(name: str) -> None:
    x, dictionary = generic(40, 6, 6)
    twice = np.concatenate([dictionary, dictionary])
    codes = PURSUITS[name](x, twice, 6)
    assert (((codes[:, :6] != 0) & (codes[:, 6:] != 0)) == 0).all()
    np.testing.assert_allclose(codes @ twice, x, atol=1e-9)


def test_float32_stays_and_is_close() -> None:
    x, dictionary = generic(100, 64, 32)
    codes = orthogonal_matching_pursuit(x.astype(np.float32), dictionary, 8)
    assert codes.dtype == np.float32
    exact = orthogonal_matching_pursuit(x, dictionary, 8)
    same = ((codes != 0) == (exact != 0)).all(1)
    assert same.mean() >= 0.98
    np.testing.assert_allclose(codes[same], exact[same], atol=2e-5)


def test_tensors_in_tensors_out() -> None:
    x, dictionary = generic(10, 20, 8)
    codes = orthogonal_matching_pursuit(torch.from_numpy(x), torch.from_numpy(dictionary), 3, device="cpu")
    assert isinstance(codes, torch.Tensor) and codes.dtype == torch.float64
    np.testing.assert_array_equal(codes.numpy(), orthogonal_matching_pursuit(x, dictionary, 3))


def test_the_lengths_of_atoms_choose_nothing() -> None:
    x, dictionary = generic(50, 30, 10)
    length = np.linspace(0.1, 7, 30)
    codes = orthogonal_matching_pursuit(x, dictionary * length[:, None], 4)
    np.testing.assert_allclose(codes * length, orthogonal_matching_pursuit(x, dictionary, 4), atol=1e-12)


def test_least_squares_on_a_support() -> None:
    x, dictionary = generic(30, 25, 10)
    support = np.zeros((30, 25))
    for row, own in zip(support, itertools.cycle([(1, 7, 20), (0, 3)]), strict=False):
        row[list(own)] = 1.0
    codes = least_squares_codes(x, dictionary, support)
    assert ((codes != 0) == (support != 0)).all()
    for row, code, own in zip(x, codes, support != 0, strict=True):
        np.testing.assert_allclose(
            code[own], np.linalg.lstsq(dictionary[own].T, row, rcond=None)[0], atol=1e-12
        )


# ---- hard thresholding


@pytest.mark.parametrize("normalized", [False, True])
def test_hard_thresholding_never_raises_the_residual(normalized: bool) -> None:
    x, dictionary = generic(60, 80, 30)
    errors = []
    for steps in range(1, 12):
        codes = iterative_hard_thresholding(x, dictionary, 6, normalized=normalized, num_steps=steps)
        assert ((codes != 0).sum(1) <= 6).all()
        errors.append(((x - codes @ dictionary) ** 2).sum(1))
    assert (np.diff(errors, axis=0) <= 1e-10).all()


def test_hard_thresholding_finds_planted_codes() -> None:
    x, codes, dictionary = planted(rows=200, atoms=60, dim=40, k=2, decibel=200)
    found = iterative_hard_thresholding(x, dictionary, 2, normalized=True, num_steps=500, tolerance=1e-10)
    exact = np.abs(found - codes).max(1) < 1e-6
    assert exact.mean() >= 0.9  # 0.975 here; the rest stop at another fixed point
    plain = iterative_hard_thresholding(x, dictionary, 2, num_steps=500, tolerance=1e-10)

    def fvu(z: np.ndarray) -> float:
        return float(((x - z @ dictionary) ** 2).sum() / (x**2).sum())

    assert fvu(found) < fvu(plain)


# ---- bad input

BAD = {
    "k above the atoms": (lambda x, d: (x, d, 21), r"k: expected a number in \[1, 20\].*got 21"),
    "k of 0": (lambda x, d: (x, d, 0), "got 0"),
    "zero atom": (lambda x, d: (x, np.where(np.arange(20)[:, None] == 3, 0, d), 2), "atom 3 is zero"),
    "NaN": (lambda x, d: (np.where(np.arange(10)[:, None] == 4, np.nan, x), d, 2), "X: row 4 holds NaN"),
    "infinite atom": (
        lambda x, d: (x, np.where(np.arange(20)[:, None] == 5, np.inf, d), 2),
        "row 5 holds NaN",
    ),
    "other features": (lambda x, d: (x, d[:, :7], 2), "atoms of 8 features as the rows, got 7"),
    "one row as a vector": (lambda x, d: (x[0], d, 2), r"expected a non-empty array .* got shape \(8,\)"),
}


@pytest.mark.parametrize("function", [orthogonal_matching_pursuit, iterative_hard_thresholding])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(function: object, case: str) -> None:
    change, words = BAD[case]
    with pytest.raises(ValueError, match=words):
        function(*change(*generic(10, 20, 8)))


def test_a_gram_matrix_that_does_not_fit_is_named() -> None:
    x, dictionary = generic(10, 20, 8)
    with pytest.raises(ValueError, match=r"gram: expected shape \(20, 20\)"):
        batch_orthogonal_matching_pursuit(np.eye(19), x @ dictionary.T, 2)
    with pytest.raises(ValueError, match="gram: atom 0 has squared length 4, expected 1"):
        batch_orthogonal_matching_pursuit(4 * dictionary @ dictionary.T, x @ dictionary.T, 2)
    with pytest.raises(ValueError, match="got 21"):
        from_gram(x, dictionary, 21)
