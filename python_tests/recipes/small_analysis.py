"""A small analysis: two flat strata, one of them with copies, in three domains."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stratcore.data import EmbeddingTable, save_table
from stratcore.recipes.analysis import AnalysisRows, AnalysisRun, StrataOptions, TestOptions

ROWS = 240


def table(seed: int = 0) -> EmbeddingTable:
    """A plane and a five-dimensional cloud, far apart; two rows are copies of the first."""
    rng = np.random.default_rng(seed)
    flat = np.pad(rng.random((ROWS // 2, 2)), ((0, 0), (0, 6)))
    cloud = np.pad(rng.random((ROWS // 2, 5)), ((0, 0), (3, 0))) + 5
    rows = np.concatenate([flat, cloud]).astype(np.float32)
    rows[1:3] = rows[0]
    domain = np.repeat([0, 1], ROWS // 2)
    domain[::10] = 2
    return EmbeddingTable.from_arrays(
        rows,
        domain=domain,
        domain_names=("flat", "cloud", "both"),
        token_count=rng.integers(3, 30, ROWS),
        source="small",
    )


def run(folder: Path, **changes: object) -> AnalysisRun:
    """Options that leave nothing out but the calibration, which takes seconds."""
    save_table(table(), folder / "rows.safetensors")
    values = np.exp(np.random.default_rng(1).normal(size=ROWS)) * np.repeat([1.0, 3.0], ROWS // 2)
    values[5] = np.nan
    np.save(folder / "perplexity.npy", values)
    options: dict[str, object] = {
        "data": AnalysisRows(source=str(folder / "rows.safetensors")),
        "tests": TestOptions(window=(4, 60), published_window=(4, 80), points=5),
        "strata": StrataOptions(method="kmeans", number=2),
        "perplexity": str(folder / "perplexity.npy"),
        "calibrated": False,
        "resamples": 40,
        "device": "cpu",
    }
    return AnalysisRun(**(options | changes))
