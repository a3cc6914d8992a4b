import numpy as np
import pytest
import torch

from stratcore.analysis import (
    atom_matching_distance,
    chordal_distance,
    dead_atom_share,
    expert_basis,
    expert_distances,
    geodesic_distance,
    match_atoms,
    mutual_coherence,
    principal_angles,
    random_chordal_distance,
    random_distances,
    welch_bound,
)


def _rotated_plane(*angles):
    """Two subspaces of R^2m with the given principal angles."""
    size = len(angles)
    a, b = np.zeros((2, 2 * size, size))
    for i, angle in enumerate(angles):
        a[2 * i, i] = 1
        b[2 * i, i], b[2 * i + 1, i] = np.cos(angle), np.sin(angle)
    return a, b


def test_principal_angles_of_known_subspaces():
    angles = principal_angles(*_rotated_plane(0.1, 0.7, 1.2))
    np.testing.assert_allclose(angles, [1.2, 0.7, 0.1], atol=1e-12)
    assert geodesic_distance(angles) == pytest.approx(np.sqrt(0.1**2 + 0.7**2 + 1.2**2))
    expected = np.sqrt((np.sin([0.1, 0.7, 1.2]) ** 2).mean())
    assert chordal_distance(angles) == pytest.approx(expected)


def test_same_and_orthogonal_subspaces_are_the_ends_of_the_scale():
    eye = np.eye(6)
    mixed = eye[:, :3] @ np.random.default_rng(0).standard_normal((3, 3))
    assert chordal_distance(principal_angles(eye[:, :3], mixed)) == pytest.approx(0, abs=1e-7)
    assert chordal_distance(principal_angles(eye[:, :3], eye[:, 3:])) == pytest.approx(1)
    assert chordal_distance(principal_angles(eye[:, :1], eye[:, :3])) == pytest.approx(0, abs=1e-7)


def test_random_chordal_distance_is_the_mean_of_random_subspaces():
    rng = np.random.default_rng(0)
    squares = []
    for _ in range(200):
        a, b = (np.linalg.qr(rng.standard_normal((30, 6)))[0] for _ in range(2))
        squares.append(chordal_distance(principal_angles(a, b)) ** 2)
    assert np.sqrt(np.mean(squares)) == pytest.approx(random_chordal_distance(30, 6), abs=0.005)


def test_matching_of_a_permuted_sign_flipped_dictionary_is_zero():
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((16, 40))
    moved = atoms[:, rng.permutation(40)] * rng.choice([-3.0, 0.5], size=40)
    assert atom_matching_distance(atoms, moved) == pytest.approx(0, abs=1e-12)
    assert atom_matching_distance(atoms[:, :10], moved) == pytest.approx(0, abs=1e-12)
    assert atom_matching_distance(np.eye(4)[:, :2], np.eye(4)[:, 2:]) == 1


def test_matching_is_optimal_where_greedy_is_not():
    # Cosines [[.9, .8], [.436, .3]]: greedy takes .9 and .3, the rows' own best are .9 and .436.
    a = np.eye(3)[:, :2]
    b = np.array([[0.9, 0.8], [np.sqrt(0.19), 0.3], [0.0, np.sqrt(0.27)]])
    assert atom_matching_distance(a, b) == pytest.approx(1 - (0.8 + np.sqrt(0.19)) / 2, abs=1e-12)


def test_matched_pairs_are_named_with_their_signs():
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((16, 12))
    order, signs = rng.permutation(12)[:8], rng.choice([-1, 1], size=8)
    found = match_atoms(atoms, 3 * atoms[:, order] * signs)
    pairs = dict(zip(found.atoms_b, found.atoms_a, strict=True))
    assert [pairs[column] for column in range(8)] == order.tolist()
    assert [found.signs[found.atoms_b.index(column)] for column in range(8)] == signs.tolist()
    assert found.distance == pytest.approx(0, abs=1e-12) and found.mean_max_cosine_b == pytest.approx(1)
    assert found.recovered_share == pytest.approx(8 / 12) and found.mean_max_cosine_a < 1


def test_mean_largest_cosine_need_not_be_one_to_one():
    a, b = np.eye(3)[:, [0, 0, 1]] + 0.0, np.eye(3)
    found = match_atoms(a, b)
    assert found.mean_max_cosine_a == 1 and found.mean_max_cosine_b == pytest.approx(2 / 3)
    assert found.distance == pytest.approx(1 / 3)


def test_welch_bound_is_reached_by_the_three_lines_of_the_plane():
    angles = np.arange(3) * np.pi / 3
    assert mutual_coherence(np.stack([np.cos(angles), np.sin(angles)])) == pytest.approx(welch_bound(2, 3))
    assert welch_bound(8, 8) == 0


def test_random_distances_agree_with_the_formula_for_unlike_ranks():
    found = random_distances(30, 40, (4, 10), draws=150)
    assert found.chordal.value == pytest.approx(np.sqrt(1 - 10 / 30), abs=0.01)
    assert found.chordal.low < found.chordal.value < found.chordal.high
    assert found.geodesic.value > found.chordal.value and found.coherence.low > found.welch_bound
    same = random_distances(30, 40, (4, 4), draws=150)
    assert same.chordal.value == pytest.approx(random_chordal_distance(30, 4), abs=0.01)
    assert same == random_distances(30, 40, (4, 4), draws=150)


def test_coherence_is_the_largest_cosine():
    assert mutual_coherence(np.eye(4)) == 0
    assert mutual_coherence(np.array([[1, -np.cos(0.3)], [0, np.sin(0.3)]])) == pytest.approx(np.cos(0.3))
    assert mutual_coherence(np.ones((3, 1))) == 0


def test_dead_atoms_are_those_never_used():
    assert dead_atom_share([[0, 1, 5, 0], [1, 1, 1, 1]]).tolist() == [0.5, 0.0]


def test_weights_choose_the_subspace_and_leave_out_unused_atoms():
    eye = np.eye(5)
    np.testing.assert_allclose(abs(expert_basis(eye, 2, [0, 3, 0, 2, 1])), eye[:, [1, 3]], atol=1e-12)
    assert expert_basis(eye, 4, [0, 3, 0, 0, 1]).shape == (5, 2)
    assert expert_basis(eye, 4, np.zeros(5)).shape == (5, 0)


def test_expert_distances_are_symmetric_and_name_dead_experts():
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((4, 12, 20))
    atoms[1] = atoms[0][:, ::-1]
    weights = np.ones((4, 20))
    weights[3] = 0
    found = expert_distances(atoms, rank=4, weights=weights)
    for matrix in (np.array(found.chordal), np.array(found.geodesic), np.array(found.matching)):
        np.testing.assert_array_equal(matrix, matrix.T)
        assert np.isnan(matrix[3, :3]).all()
        assert matrix[0, 1] == pytest.approx(0, abs=1e-6)
        assert matrix[0, 2] > 0.1
    assert found.random_chordal == pytest.approx(np.sqrt(1 - 4 / 12))
    assert found.random_matching == pytest.approx(found.matching[0][2], abs=0.1)


def test_references_are_of_the_sizes_that_are_compared():
    """Atoms without weight are compared with none, and few atoms span less than the rank that was asked for."""
    rng = np.random.default_rng(0)
    atoms, weights = rng.standard_normal((2, 30, 40)), np.zeros((2, 40))
    weights[:, :3] = 1
    found = expert_distances(atoms, rank=6, weights=weights)
    assert found.random_chordal == random_chordal_distance(30, 3)
    assert found.random_matching == pytest.approx(expert_distances(atoms[:, :, :3], rank=3).random_matching)
    assert found.random_matching > expert_distances(atoms, rank=6).random_matching + 0.05
    alone = expert_distances(atoms, rank=6, weights=weights * [[1], [0]])
    assert np.isnan(alone.random_chordal) and np.isnan(alone.random_matching)


def test_a_larger_subspace_of_a_pair_sets_the_reference():
    rng = np.random.default_rng(0)
    squares = [
        chordal_distance(principal_angles(*(np.linalg.qr(rng.standard_normal((12, r)))[0] for r in (2, 5))))
        ** 2
        for _ in range(2000)
    ]
    assert np.sqrt(np.mean(squares)) == pytest.approx(random_chordal_distance(12, 5), abs=0.005)


def test_rounding_spans_nothing():
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((20, 3)) @ rng.standard_normal((3, 40))
    assert expert_basis(atoms, 10).shape == (20, 3)
    assert expert_basis(atoms.astype(np.float32), 10).shape == (20, 3)
    assert expert_basis(torch.from_numpy(atoms).float().requires_grad_(), 10).shape == (20, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: expert_basis(np.full((3, 3), np.nan), 1), "dictionary: row 0 holds NaN"),
        (lambda: expert_basis(np.eye(3), 1, [1, np.nan, 1]), "weights: expected a finite number >= 0"),
        (
            lambda: expert_distances(np.full((2, 3, 3), np.nan), rank=1),
            "dictionaries: expected finite numbers",
        ),
        (lambda: expert_distances(np.eye(3), rank=1), r"\[experts, features, atoms\], got shape \(3, 3\)"),
        (lambda: expert_basis(np.eye(3), 0), "rank: expected at least 1"),
        (lambda: mutual_coherence(np.zeros((3, 2))), "finite and not zero"),
        (lambda: match_atoms(np.eye(3), np.eye(4)), "dictionary_b: expected atoms of 3 features, got 4"),
        (lambda: random_distances(5, 8, (2, 6)), r"ranks in \[1, 5\] and >= 1, got \(2, 6\)"),
    ],
)
def test_rejects(call, words):
    with pytest.raises(ValueError, match=words):
        call()
