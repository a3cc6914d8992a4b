"""Numbers that the source documents print, each with its place; what is wrong with them stands in the page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PublishedRun:
    """A run of the summary of the first source document, "MoE Experiments Summary".

    Args:
        place: its heading there.
        model, rows: what was embedded.
        variance_kept: of 64 principal components; None: not told.
        rejected: share of points at which the fiber-bundle hypothesis was rejected.
        dimension: intrinsic dimension; None: not told.
        silhouette: of five clusters.
        stratum_dimensions: None: not told.
    """

    place: str
    model: str
    rows: int
    variance_kept: float | None
    rejected: float
    dimension: int | None
    silhouette: float
    stratum_dimensions: tuple[int, ...] | None


RUNS = {
    "advanced": PublishedRun(
        place="1. Advanced LLaMA Analysis with MoE Training",
        model="LLaMA-3.2-1B",
        rows=1200,
        variance_kept=0.687,
        rejected=0.096,
        dimension=None,
        silhouette=0.149,
        stratum_dimensions=None,
    ),
    "notebook": PublishedRun(
        place="2. Notebook Workflow Analysis",
        model="RoBERTa-base",
        rows=1800,
        variance_kept=0.858,
        rejected=0.697,
        dimension=7,
        silhouette=0.207,
        stratum_dimensions=(8, 9, 12, 14, 4),
    ),
    "multi_domain": PublishedRun(
        place="3. Multi-Domain Analysis",
        model="RoBERTa-base",
        rows=2400,
        variance_kept=None,
        rejected=0.905,
        dimension=22,
        silhouette=0.128,
        stratum_dimensions=(41, 47, 9, 51, 20),
    ),
}
PAPER = "the paper (arXiv 2502.13577v1)"
# Table 1: principal components that hold 75 % of a stratum's variance. Table 2: weighted sparsity of a stratum.
DIMENSIONS = {
    "RoBERTa": (15, 11, 10, 13, 5),
    "LLaMA-3.2-1B": (2, 16, 4, 16, 13),
    "DeepSeek-R1-Distill-Qwen-1.5B": (4, 9, 3, 12, 8),
}
SPARSITIES = {
    "RoBERTa": (20.6789, 20.1984, 19.7239, 20.5041, 19.5071),
    "LLaMA-3.2-1B": (18.4351, 18.5504, 11.7021, 19.1496, 17.1080),
    "DeepSeek-R1-Distill-Qwen-1.5B": (20.9596, 16.9576, 21.2822, 20.3541, 22.8659),
}
UNIFORM_GATE = 20.0  # mean of the seven sparsities 8, 12, ..., 32: what a gate that knows nothing gives
