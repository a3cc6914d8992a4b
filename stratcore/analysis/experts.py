"""How far apart experts are: angles between their subspaces, matched atoms, coherence, dead atoms.

Legend: E experts, D features, M atoms, R dimensions of a subspace. Atoms are the columns of a dictionary, [D,
M].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import subspace_angles
from scipy.optimize import linear_sum_assignment

from stratcore.analysis._checks import as_array, as_matrix, precision
from stratcore.analysis.resampling import Interval


@dataclass(frozen=True, kw_only=True)
class ExpertDistances:
    """Distances between experts [E][E] and what unrelated experts would show.

    chordal: root mean squared sine of the principal angles, in [0, 1]; 0 the same subspace, 1 orthogonal.
    geodesic: root of the sum of the squared angles. Unit: radian.
    matching: 1 - mean |cosine| of optimally matched atoms, in [0, 1]; 0 the same atoms up to order and sign.
    random_chordal, random_matching: mean over the pairs of experts of what random subspaces and random unit atoms
        of the pair's own sizes show; NaN where no pair has a distance.
    """

    subspace_rank: int
    chordal: list[list[float]]
    geodesic: list[list[float]]
    matching: list[list[float]]
    random_chordal: float
    random_matching: float


@dataclass(frozen=True, kw_only=True)
class AtomMatching:
    """One-to-one matching of the atoms of dictionaries a and b, which covers the smaller of the two.

    atoms_a, atoms_b: the matched pairs, by index.
    cosines: |cosine| of each pair; signs: that of the cosine.
    distance: 1 - mean of `cosines`.
    mean_max_cosine_a: mean over the atoms of a of the largest |cosine| with any atom of b (MMCS of a in b), and
        mean_max_cosine_b the other way round: not one to one.
    recovered_share: atoms of a with a |cosine| above .99 in b.
    """

    atoms_a: list[int]
    atoms_b: list[int]
    cosines: list[float]
    signs: list[int]
    distance: float
    mean_max_cosine_a: float
    mean_max_cosine_b: float
    recovered_share: float


@dataclass(frozen=True, kw_only=True)
class RandomDistances:
    """What independent random subspaces and dictionaries of the same sizes show: means and central ranges."""

    chordal: Interval
    geodesic: Interval
    coherence: Interval
    matching: Interval
    welch_bound: float


def expert_basis(dictionary: ArrayLike, rank: int, weights: ArrayLike | None = None) -> np.ndarray:
    """Orthonormal basis of the leading subspace of a dictionary: its top left singular vectors.

    Args:
        dictionary: atoms, [D, M].
        rank: R. More atoms than features span the whole space, and between whole spaces all angles vanish:
            choose R well below D, for example the expert's active atoms.
        weights: non-negative weight of each atom, [M], such as its root mean squared code; an atom of weight
            zero is not used. Without weights all atoms count alike.

    Returns:
        [D, min(R, dimensions that the used atoms span)]; no columns where no atom is used. Singular values within
        rounding (of float32 where all atoms are float32 numbers) span nothing.

    Raises:
        ValueError: rank below 1, no matrix, an atom that is not finite, or weights that do not fit.
    """
    if rank < 1:
        raise ValueError(f"rank: expected at least 1, got {rank}")
    atoms_DM = as_matrix("dictionary", dictionary)
    rounding = max(atoms_DM.shape) * precision(atoms_DM)
    if weights is not None:
        weights_M = as_array(weights).astype(np.float64)
        if weights_M.shape != atoms_DM.shape[1:] or not (np.isfinite(weights_M) & (weights_M >= 0)).all():
            raise ValueError(f"weights: expected a finite number >= 0 for each of {atoms_DM.shape[1]} atoms")
        atoms_DM = atoms_DM * weights_M
    left, singular, _ = np.linalg.svd(atoms_DM, full_matrices=False)
    spanned = int((singular > singular.max(initial=0) * rounding).sum())
    return left[:, : min(rank, spanned)]


def principal_angles(basis_a: ArrayLike, basis_b: ArrayLike) -> np.ndarray:
    """Principal angles between the column spaces of [D, R_a] and [D, R_b], largest first. Unit: radian.

    Returns:
        [min(R_a, R_b)]; a subspace inside the other has angles zero.
    """
    return subspace_angles(as_array(basis_a).astype(np.float64), as_array(basis_b).astype(np.float64))


def chordal_distance(angles: ArrayLike) -> float:
    """Root mean squared sine of principal angles, in [0, 1]."""
    return float(np.sqrt(np.mean(np.sin(as_array(angles)) ** 2)))


def geodesic_distance(angles: ArrayLike) -> float:
    """Geodesic distance on the Grassmannian, sqrt(sum angles^2). Unit: radian."""
    return float(np.linalg.norm(as_array(angles)))


def random_chordal_distance(num_features: int, rank: int) -> float:
    """Chordal distance of independent random subspaces of R^D, the larger of R dimensions: sqrt(1 - R / D).

    Exact for the mean square: E sum_i cos^2 theta_i = R r / D over the r angles with a subspace of r <= R.
    """
    return float(np.sqrt(1 - rank / num_features))


def atom_matching_distance(dictionary_a: ArrayLike, dictionary_b: ArrayLike) -> float:
    """Distance of two dictionaries up to the order and sign of their atoms.

        1 - max over matchings of mean |<a_i, b_j>|,    columns scaled to unit norm

    The matching is optimal (Hungarian method) and covers the smaller of the two dictionaries.

    Returns:
        In [0, 1]; 0 where every atom of the smaller one is found in the other.
    """
    return match_atoms(dictionary_a, dictionary_b).distance


def match_atoms(dictionary_a: ArrayLike, dictionary_b: ArrayLike) -> AtomMatching:
    """Match the atoms of two dictionaries one to one, by the Hungarian method on |<a_i, b_j>|.

    Args:
        dictionary_a: atoms, [D, M_a].
        dictionary_b: atoms, [D, M_b].

    Cost: O(min(M_a, M_b)^2 max(M_a, M_b)).
    """
    unit_a, unit_b = _unit_columns(dictionary_a), _unit_columns(dictionary_b)
    if len(unit_a) != len(unit_b):
        raise ValueError(f"dictionary_b: expected atoms of {len(unit_a)} features, got {len(unit_b)}")
    cosine_AB = unit_a.T @ unit_b
    absolute_AB = np.minimum(np.abs(cosine_AB), 1.0)
    rows, columns = linear_sum_assignment(absolute_AB, maximize=True)
    cosines = absolute_AB[rows, columns]
    return AtomMatching(
        atoms_a=rows.tolist(),
        atoms_b=columns.tolist(),
        cosines=cosines.tolist(),
        signs=np.where(cosine_AB[rows, columns] < 0, -1, 1).tolist(),
        distance=float(1 - cosines.mean()),
        mean_max_cosine_a=float(absolute_AB.max(axis=1).mean()),
        mean_max_cosine_b=float(absolute_AB.max(axis=0).mean()),
        recovered_share=float((absolute_AB.max(axis=1) > 0.99).mean()),
    )


def mutual_coherence(dictionary: ArrayLike) -> float:
    """Largest |cosine| of two different atoms of a dictionary [D, M]; zero for one atom."""
    unit_DM = _unit_columns(dictionary)
    gram_MM = np.abs(unit_DM.T @ unit_DM)
    np.fill_diagonal(gram_MM, 0)
    return float(min(gram_MM.max(), 1.0))


def welch_bound(num_features: int, num_atoms: int) -> float:
    """Least mutual coherence that M unit atoms in D features can have, sqrt((M - D) / (D (M - 1))); 0 if M <= D.

    Source: Welch 1974.
    """
    if num_atoms <= num_features:
        return 0.0
    return float(np.sqrt((num_atoms - num_features) / (num_features * (num_atoms - 1))))


def random_distances(
    num_features: int,
    num_atoms: int,
    ranks: tuple[int, int],
    *,
    draws: int = 100,
    level: float = 0.95,
    seed: int = 0,
) -> RandomDistances:
    """Distances of unrelated experts, to hold `expert_distances` and `mutual_coherence` against.

    Args:
        num_features: D.
        num_atoms: M, unit atoms with independent directions.
        ranks: dimensions of the two subspaces, each in [1, D]; they may differ.
        draws: pairs of random subspaces and dictionaries.
        level: of the central range of the draws.
        seed: of the draws.
    """
    if not all(1 <= rank <= num_features for rank in ranks) or num_atoms < 1 or draws < 1:
        raise ValueError(
            f"ranks, num_atoms and draws: expected ranks in [1, {num_features}] and >= 1, "
            f"got {ranks}, {num_atoms} and {draws}"
        )
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {"chordal": [], "geodesic": [], "coherence": [], "matching": []}
    for _ in range(draws):
        bases = [np.linalg.qr(rng.standard_normal((num_features, rank)))[0] for rank in ranks]
        atoms_a, atoms_b = rng.standard_normal((2, num_features, num_atoms))
        angles = principal_angles(*bases)
        found["chordal"].append(chordal_distance(angles))
        found["geodesic"].append(geodesic_distance(angles))
        found["coherence"].append(mutual_coherence(atoms_a))
        found["matching"].append(atom_matching_distance(atoms_a, atoms_b))
    tail = (1 - level) / 2
    intervals = {}
    for name, values in found.items():
        low, high = np.quantile(values, [tail, 1 - tail])
        intervals[name] = Interval(value=float(np.mean(values)), low=float(low), high=float(high))
    return RandomDistances(**intervals, welch_bound=welch_bound(num_features, num_atoms))


def dead_atom_share(counts: ArrayLike) -> np.ndarray:
    """Share of the atoms of each expert that no row used, from usage counts [E, M]; [E]."""
    return (as_array(counts) == 0).mean(axis=1)


def expert_distances(
    dictionaries: ArrayLike, *, rank: int, weights: ArrayLike | None = None, seed: int = 0
) -> ExpertDistances:
    """All pairwise distances of experts; NaN for an expert without a used atom.

    Args:
        dictionaries: [E, D, M].
        rank: dimensions of the subspace compared, see `expert_basis`.
        weights: weight of each atom, [E, M], see `expert_basis`; atoms of weight zero are not matched either.
        seed: of the random dictionaries behind `random_matching`.

    Raises:
        ValueError: not E matrices of finite numbers.
    """
    dictionary_EDM = as_array(dictionaries).astype(np.float64)
    if dictionary_EDM.ndim != 3 or not np.isfinite(dictionary_EDM).all():
        raise ValueError(
            "dictionaries: expected finite numbers [experts, features, atoms], got "
            f"{'NaN or infinity' if dictionary_EDM.ndim == 3 else f'shape {dictionary_EDM.shape}'}"
        )
    num_experts, num_features, num_atoms = dictionary_EDM.shape
    weights_EM = (
        np.ones((num_experts, num_atoms)) if weights is None else as_array(weights).astype(np.float64)
    )
    bases = [expert_basis(d, rank, w) for d, w in zip(dictionary_EDM, weights_EM, strict=True)]
    used = [d[:, w > 0] for d, w in zip(dictionary_EDM, weights_EM, strict=True)]
    chordal, geodesic, matching = np.zeros((3, num_experts, num_experts))
    for a in range(num_experts):
        for b in range(a):
            if not (bases[a].size and bases[b].size):
                for distance in (chordal, geodesic, matching):
                    distance[a, b] = distance[b, a] = np.nan
                continue
            angles = principal_angles(bases[a], bases[b])
            chordal[a, b] = chordal[b, a] = chordal_distance(angles)
            geodesic[a, b] = geodesic[b, a] = geodesic_distance(angles)
            matching[a, b] = matching[b, a] = atom_matching_distance(used[a], used[b])
    pairs = [(a, b) for a in range(num_experts) for b in range(a) if bases[a].size and bases[b].size]
    ranks = [max(bases[a].shape[1], bases[b].shape[1]) for a, b in pairs]
    sizes = [tuple(sorted((used[a].shape[1], used[b].shape[1]))) for a, b in pairs]
    random = {pair: _random_matching(num_features, pair, seed) for pair in set(sizes)}
    return ExpertDistances(
        subspace_rank=rank,
        chordal=chordal.tolist(),
        geodesic=geodesic.tolist(),
        matching=matching.tolist(),
        random_chordal=_mean([random_chordal_distance(num_features, each) for each in ranks]),
        random_matching=_mean([random[pair] for pair in sizes]),
    )


def _random_matching(num_features: int, num_atoms: tuple[int, ...], seed: int) -> float:
    rng = np.random.default_rng(seed)
    return atom_matching_distance(*(rng.standard_normal((num_features, count)) for count in num_atoms))


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _unit_columns(dictionary: ArrayLike) -> np.ndarray:
    atoms_DM = as_array(dictionary).astype(np.float64)
    norm_M = np.linalg.norm(atoms_DM, axis=0)
    if atoms_DM.ndim != 2 or atoms_DM.size == 0 or not np.isfinite(norm_M).all() or not norm_M.all():
        raise ValueError("dictionary: expected atoms [D, M] that are finite and not zero")
    return atoms_DM / norm_M
