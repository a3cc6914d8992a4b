from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from python_tests.analysis.sparse_coding.planted import planted
from stratcore.analysis.sparse_coding import KSVD, OnlineDictionaryLearning, orthogonal_matching_pursuit
from stratcore.analysis.sparse_coding.dictionary_learning import replace_atoms

pytestmark = pytest.mark.usefixtures("single_thread")
LEARNERS = (KSVD, OnlineDictionaryLearning)


def recovered(found: np.ndarray, planted_atoms: np.ndarray) -> int:
    return int((np.abs(planted_atoms @ found.T).max(1) > 0.99).sum())


@pytest.mark.parametrize("seed", range(3))
def test_k_svd_recovers_a_planted_dictionary(seed: int) -> None:
    x, _, dictionary = planted(seed)
    model = KSVD(50, 3, max_iter=60, tolerance=0, random_state=seed).fit(x)
    # 43, 46, 43 (and 47, 45, 46 for three further seeds) of 50.
    assert recovered(model.components_, dictionary) >= 40
    assert model.error_[-1] < 0.2 * model.error_[0]


def test_online_learning_recovers_a_planted_dictionary() -> None:
    x, _, dictionary = planted(1)
    model = OnlineDictionaryLearning(50, 3, max_iter=30, batch_size=250).fit(x)
    assert recovered(model.components_, dictionary) >= 40
    assert model.error_[-1] < 0.2 * model.error_[0]


def test_rank_one_updates_never_raise_the_error_of_fixed_codes() -> None:
    x, _, _ = planted(rows=200)
    model = KSVD(40, 3, max_iter=1)
    rows, atoms, _ = model._start(x)
    codes = orthogonal_matching_pursuit(rows, atoms, 3)
    residual = rows - codes @ atoms
    before, support = float(residual.square().sum()), codes != 0
    model._update_atoms(codes, atoms, residual)
    assert float(residual.square().sum()) < before
    torch.testing.assert_close(residual, rows - codes @ atoms)
    torch.testing.assert_close(atoms.norm(dim=1), torch.ones(40, dtype=torch.float64))
    assert ((codes != 0) <= support).all()


def test_many_power_steps_give_the_singular_pair() -> None:
    x, _, _ = planted(rows=60)
    model = KSVD(1, 1, max_iter=1, power_steps=500, tolerance=0).fit(x)
    direction = np.linalg.svd(x - x.mean(0))[2][0]
    assert abs(model.components_[0] @ direction) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("learner", LEARNERS)
def test_rows_become_codes_and_rows_again(learner: type) -> None:
    x, _, _ = planted(rows=300)
    model = learner(30, 4, max_iter=5).fit(x + 7)
    for k in (None, 2, 20):
        codes = model.transform(x + 7, k)
        assert ((codes != 0).sum(1) == (k or 4)).all()
    np.testing.assert_allclose(model.inverse_transform(codes), x + 7, atol=1e-9)  # 20 atoms span 20 features
    np.testing.assert_allclose(np.linalg.norm(model.components_, axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(model.mean_, x.mean(0) + 7)
    assert list(model.get_feature_names_out())[-1] == f"{learner.__name__.lower()}29"


@pytest.mark.parametrize("learner", LEARNERS)
def test_one_seed_one_answer(learner: type) -> None:
    x, _, _ = planted(rows=200)
    first, again, other = (learner(20, 2, max_iter=4, random_state=seed).fit(x) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.components_, again.components_)
    assert not np.allclose(first.components_, other.components_)
    single = learner(20, 2, max_iter=4, dtype="float32").fit(torch.from_numpy(x))
    assert single.error_[-1] == pytest.approx(first.error_[-1], rel=0.1)


def test_unused_and_coherent_atoms_become_the_worst_rows() -> None:
    atoms = torch.eye(4, 6, dtype=torch.float64)
    atoms[2] = atoms[0] * -1
    residual = torch.zeros(5, 6, dtype=torch.float64)
    residual[3, 4], residual[1, 5] = 2.0, -1.0
    used = torch.tensor([True, False, True, True])
    assert replace_atoms(atoms, used, residual) == 2
    expected = torch.eye(4, 6, dtype=torch.float64)
    expected[1], expected[2] = torch.eye(6, dtype=torch.float64)[4], -torch.eye(6, dtype=torch.float64)[5]
    torch.testing.assert_close(atoms, expected)
    # Nothing is left to explain: nothing is replaced.
    assert replace_atoms(atoms.clone(), ~used, residual * 0) == 0


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_components": 31}, "at least as many rows as atoms .n_components = 31.*n_samples = 30"),
        ({"n_components": 3, "k": 4}, r"k: expected a number in \[1, 3\]"),
        ({"max_iter": 0}, "expected >= 1"),
        ({"dtype": "float16"}, "dtype: expected 'float32' or 'float64'"),
    ],
)
def test_bad_settings_are_named(learner: type, settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        learner(**settings).fit(np.random.default_rng(0).standard_normal((30, 5)))


@pytest.mark.parametrize("learner", LEARNERS)
def test_bad_rows_are_named(learner: type) -> None:
    x = np.random.default_rng(0).standard_normal((30, 5))
    with pytest.raises(ValueError, match="X: all rows are equal"):
        learner(4).fit(np.ones((30, 5)))
    with pytest.raises(ValueError, match="X: row 6 holds NaN"):
        learner(4).fit(np.where(np.arange(30)[:, None] == 6, np.nan, x))
    with pytest.raises(NotFittedError):
        learner(4).transform(x)
    model = learner(4, max_iter=2).fit(x)
    with pytest.raises(ValueError, match="codes of 4 atoms, got 5"):
        model.inverse_transform(x)
    with pytest.raises(ValueError, match=r"k: expected a number in \[1, 4\].*got 5"):
        model.transform(x, 5)
