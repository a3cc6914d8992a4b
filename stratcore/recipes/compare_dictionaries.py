"""One dictionary or a mixture of them: methods at equal parameters and equal sparsity, over paired seeds."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stratcore.recipes.dictionary_moe import DictionaryMoERun, dictionary_moe

METHODS = {
    "mixture": "dictionary mixture, the chosen expert",
    "mixture_omp": "dictionary mixture, OMP codes, the expert of least residual",
    "topk": "one TopK LISTA dictionary",
    "topk_omp": "one TopK LISTA dictionary, OMP codes",
    "ksvd_omp": "K-SVD, OMP codes",
    "ksvd_iht": "K-SVD, IHT codes",
    "ksvd_fista": "K-SVD, FISTA codes",
    "online_omp": "online dictionary learning, OMP codes",
    "kmeans_pca": "k-means, PCA of each cluster",
    "subspace_pca": "subspace clusters, PCA of each",
    "pca": "PCA",
}


@dataclass(frozen=True, kw_only=True)
class CompareDictionariesRun:
    """Fit every method on the same rows with the same numbers of parameters and active atoms; compare.

    Args:
        recipe: name of the recipe that this run is derived from.
        seeds: each splits the rows and starts every method; at least six make an interval worth its name.
        sparsities: active atoms k; the mixture's experts have k each.
        methods: a part of the known ones; the mixture, which the others are measured by, is always among them.
        rounds: of K-SVD and of online dictionary learning.
        base: rows, mixture and training. The number of its sparsities is that of its experts.
    """

    recipe: str = "compare_dictionaries"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    sparsities: tuple[int, ...] = (8, 16, 32)
    methods: tuple[str, ...] = tuple(METHODS)
    rounds: int = 10
    base: DictionaryMoERun

    def __post_init__(self) -> None:
        check_seeds(self.seeds, self.base)
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or "mixture" not in self.methods:
            raise ValueError(
                f"methods: expected 'mixture' and others of {', '.join(METHODS)}, got {', '.join(self.methods)}"
            )
        limit = min(self.base.model.atoms, self.base.model.input_dim)
        if not self.sparsities or not all(1 <= k <= limit for k in self.sparsities):
            raise ValueError(
                f"sparsities: expected numbers in [1, {limit}] (base.model.atoms, base.model.input_dim), "
                f"got {self.sparsities}"
            )
        if self.rounds < 1:
            raise ValueError(f"rounds: expected a number >= 1, got {self.rounds}")


def check_seeds(seeds: tuple[int, ...], base: DictionaryMoERun) -> None:
    """Raises ValueError unless the seeds are different and the base leaves them to the run of many trials."""
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds: expected different numbers >= 0, got {seeds}")
    if base.seed:
        raise ValueError(f"base.seed: expected 0, the key seeds is used; got {base.seed}")


def compact_mixture() -> DictionaryMoERun:
    """`dictionary_moe` with 4 experts of 64 atoms: small enough for many trials on two cores."""
    run = dictionary_moe()
    return replace(run, model=replace(run.model, atoms=64, sparsities=(8, 16, 24, 32)), baselines=False)


def compare_dictionaries() -> CompareDictionariesRun:
    """The mixture against single dictionaries, K-SVD, online learning and PCA of clusters, at equal cost."""
    return CompareDictionariesRun(base=compact_mixture())
