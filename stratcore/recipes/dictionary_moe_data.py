"""Rows for a dictionary mixture: load, split, reduce, scale. Legend: N rows, D features, R reduced features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stratcore.analysis.pca import fit_pca
from stratcore.data import DataError, EmbeddingTable, Split, require_domains, split_rows
from stratcore.recipes.dictionary_moe import DictionaryMoERun
from stratcore.recipes.rows import load_rows
from stratcore.training.tasks import Rows


@dataclass(frozen=True, eq=False)
class PreparedData:
    """Rows of a run in the model's space.

    table: as loaded. split: row indices. pca: fitted on the training rows; None where nothing was reduced.
    center, scale: of the training rows, applied after the PCA; the model sees (z - center) / scale.
    """

    table: EmbeddingTable
    split: Split
    pca: Any
    center: np.ndarray
    scale: float

    def reduced(self, part: str) -> np.ndarray:
        """Rows of 'train', 'validation' or 'test' after the PCA, [N, R] float64."""
        rows = self.table.embeddings[getattr(self.split, part)].astype(np.float64)
        return rows if self.pca is None else self.pca.transform(rows)

    def rows(self, part: str) -> Rows:
        """Rows of a part as the model sees them."""
        x = (self.reduced(part) - self.center) / self.scale
        domain = self.table.domain[getattr(self.split, part)]
        return Rows(torch.from_numpy(x.astype(np.float32)), torch.from_numpy(domain.copy()))

    def unscale(self, x: torch.Tensor) -> np.ndarray:
        """From the model's space back to the reduced space, [N, R] float64."""
        return x.double().cpu().numpy() * self.scale + self.center

    def restore(self, reduced: np.ndarray) -> np.ndarray:
        """From the reduced space to the original one, [N, D]."""
        return reduced if self.pca is None else self.pca.inverse_transform(reduced)


def prepare(run: DictionaryMoERun, folder: Path) -> PreparedData:
    """Loads, checks, splits, reduces and scales the rows of a run.

    Raises:
        DataError: the rows cannot be read or are too few, in one line.
        ValueError: the model's input size does not fit.
    """
    table = load_rows(run.data, folder)
    require_domains(table)
    return prepare_split(run, table, split_rows(table, run.data.fractions, seed=run.seed))


def prepare_split(run: DictionaryMoERun, table: EmbeddingTable, split: Split) -> PreparedData:
    """Reduces and scales the rows of a table by the training part of a split; raises as `prepare`."""
    experts, wanted = len(run.model.sparsities), run.model.input_dim
    least = max(20 * experts, run.batch_size, wanted + 1 if run.data.reduce else 1)
    if len(split.train) < least:
        raise DataError(
            f"{table.source}: at least {least} training rows are needed for {experts} experts (model.sparsities), "
            f"batch_size {run.batch_size}, model.input_dim {wanted}; {table.num_rows} rows leave {len(split.train)}"
        )
    pca = None
    if run.data.reduce:
        if wanted > table.dim:
            raise ValueError(
                f"model.input_dim: expected at most {table.dim}, the size of {table.source}, got {wanted}"
            )
        pca = fit_pca(table.embeddings[split.train], wanted)
    elif wanted != table.dim:
        raise ValueError(
            f"model.input_dim: expected {table.dim}, the size of {table.source} (data.reduce is off), got {wanted}"
        )
    data = PreparedData(table, split, pca, np.zeros(1), 1.0)
    train = data.reduced("train")
    center = train.mean(0)
    return PreparedData(table, split, pca, center, float(np.sqrt(((train - center) ** 2).mean())))
