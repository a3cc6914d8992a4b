"""Is it stratified? The options of an analysis and its workflows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stratcore.recipes.rows import RowOptions

Clustering = Literal[  # those of `stratcore.analysis.fit_strata`, which it is too much to import for a --help
    "kmeans",
    "spherical_kmeans",
    "gaussian_mixture",
    "dbscan",
    "agglomerative",
    "k_subspaces",
    "mixture_of_ppca",
]


@dataclass(frozen=True, kw_only=True)
class AnalysisRows(RowOptions):
    """Which rows are analyzed. With an encoder and no texts they are its token embeddings.

    Args:
        run: folder of a trained run; its rows, experts and gate are analyzed. Nothing else is read then.
        reduce: principal components that the rows are reduced to first; None: the rows as they are.
        most: rows drawn at random where there are more; None: all.
    """

    run: Path | None = None
    reduce: int | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("reduce", "most"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.{name}: expected a number >= 1 or null, got {value}")


@dataclass(frozen=True, kw_only=True)
class TestOptions:
    """The tests of every point's neighborhood.

    Args:
        procedures: `spacings` (ours), `reference` (the published one), `source` (that of the source documents).
        window: first and last rank of the neighbors that `spacings` looks at; lowered where rows are few.
        published_window: the same of `reference`, which needs 41 ranks at least.
        level: of a rejection after correction.
        published_alpha: of each position of the published procedure's scan.
        points: rows listed by name, those of the smallest p-values.
    """

    __test__ = False  # not a test of pytest's

    procedures: tuple[Literal["spacings", "reference", "source"], ...] = ("spacings", "reference", "source")
    window: tuple[int, int] = (10, 128)
    published_window: tuple[int, int] = (10, 200)
    level: float = 0.05
    published_alpha: float = 1e-3 / 3
    points: int = 20

    def __post_init__(self) -> None:
        for name in ("window", "published_window"):
            first, last = getattr(self, name)
            if not 1 <= first < last:
                raise ValueError(f"tests.{name}: expected two ranks 1 <= first < last, got {(first, last)}")
        if self.points < 0:
            raise ValueError(f"tests.points: expected a number >= 0, got {self.points}")
        for name in ("level", "published_alpha"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"tests.{name}: expected a share in (0, 1), got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class StrataOptions:
    """How rows are divided into strata.

    Args:
        method: a clustering of `stratcore.analysis.fit_strata`.
        number: strata; None: chosen among the candidates.
        candidates: numbers that are tried.
        criterion: what chooses: `heldout` likelihood or `stability`.
        components: principal components that strata are looked for in.
        most: rows drawn for the choice and the fit; the others get the stratum that the fit predicts.
    """

    method: Clustering = "mixture_of_ppca"
    number: int | None = None
    candidates: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10)
    criterion: Literal["heldout", "stability"] = "heldout"
    components: int = 32
    most: int = 3000

    def __post_init__(self) -> None:
        if self.number is not None and self.number < 1:
            raise ValueError(f"strata.number: expected a number >= 1 or null, got {self.number}")
        if not self.candidates or min(self.candidates) < 1:
            raise ValueError(f"strata.candidates: expected numbers >= 1, got {self.candidates}")
        if self.components < 1 or self.most < 20:
            raise ValueError(
                f"strata.components and strata.most: expected >= 1 and >= 20, got {self.components}, {self.most}"
            )


@dataclass(frozen=True, kw_only=True)
class AnalysisRun:
    """A complete analysis.

    Args:
        recipe: name of the workflow that this run is derived from.
        seed: of everything random.
        device: 'auto', 'cpu' or 'cuda', for neighbors, embeddings and perplexities.
        data: rows.
        tests: fibre-bundle and manifold tests.
        strata: clustering.
        variance: share of the variance of the PCA dimension (the source documents': 0.75).
        calibrated: correct dimension estimates by simulated manifolds of as many points.
        danco: estimate dimensions by DANCo too; needs scikit-dimension.
        perplexity: of each text, set beside strata and dimensions: a causal language model that reads data.texts,
            or a .npy file with a number for each row.
        mixture: recipe of `stratcore.train` that is trained on the rows first; its experts are analyzed too.
        resamples: draws of each interval.
    """

    recipe: str = "stratification"
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: AnalysisRows = field(default_factory=AnalysisRows)
    tests: TestOptions = field(default_factory=TestOptions)
    strata: StrataOptions = field(default_factory=StrataOptions)
    variance: float = 0.75
    calibrated: bool = True
    danco: bool = False
    perplexity: str | None = None
    mixture: str | None = None
    resamples: int = 1000

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed: expected a number >= 0, got {self.seed}")
        if not 0 < self.variance <= 1:
            raise ValueError(f"variance: expected a share in (0, 1], got {self.variance}")
        if self.resamples < 1:
            raise ValueError(f"resamples: expected a number >= 1, got {self.resamples}")
        if self.perplexity is not None and not self.perplexity.endswith(".npy") and not self.data.texts:
            raise ValueError("perplexity: expected a .npy file, or data.texts for the language model to read")


def stratification() -> AnalysisRun:
    """Tests, dimensions, strata and geometry of the rows as they are."""
    return AnalysisRun(recipe="stratification")


def advanced() -> AnalysisRun:
    """The source documents' first workflow: 64 principal components, five strata, a mixture trained on the rows."""
    return AnalysisRun(
        recipe="advanced",
        data=AnalysisRows(reduce=64),
        strata=StrataOptions(method="kmeans", number=5),
        mixture="dictionary_moe",
    )


def notebook() -> AnalysisRun:
    """The source documents' second workflow: 64 principal components, five strata, tests within each."""
    return AnalysisRun(
        recipe="notebook", data=AnalysisRows(reduce=64), strata=StrataOptions(method="kmeans", number=5)
    )


def multi_domain() -> AnalysisRun:
    """The source documents' third workflow: five strata of the rows as they are, without a reduction."""
    return AnalysisRun(recipe="multi_domain", strata=StrataOptions(method="kmeans", number=5))
