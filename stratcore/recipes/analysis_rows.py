"""The rows of an analysis and what is known about each. Legend: N rows, D features, E experts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stratcore.analysis.pca import fit_pca
from stratcore.data import DataError, EmbeddingTable
from stratcore.recipes.analysis import AnalysisRows, AnalysisRun
from stratcore.recipes.rows import load_rows

LEAST_PERPLEXITIES = 4  # for a correlation


@dataclass(frozen=True, eq=False)
class ExpertRows:
    """What a trained mixture says of rows.

    Args:
        gate: probabilities, [N, E].
        chosen: expert of each row, [N].
        levels: active atoms of each expert, [E].
        held_out: rows that it was not trained on, [N] bool.
        atoms: dictionaries, [E, D', M].
        energy: root mean square of each atom's codes, [E, M].
        checkpoint: where the weights come from.
    """

    gate: np.ndarray
    chosen: np.ndarray
    levels: tuple[int, ...]
    held_out: np.ndarray
    atoms: np.ndarray
    energy: np.ndarray
    checkpoint: str

    def select(self, rows: np.ndarray) -> ExpertRows:
        """The same of some rows."""
        return replace(self, gate=self.gate[rows], chosen=self.chosen[rows], held_out=self.held_out[rows])


@dataclass(frozen=True, eq=False)
class AnalyzedRows:
    """Rows as they are analyzed; what is unknown is None.

    Args:
        name: what a reader would call the data.
        kind: 'text embeddings', 'token embeddings' or 'rows'.
        x: after the reduction, [N, D] float64.
        names: what a reader would call each row, N of them.
        domain: name of each row's domain, [N].
        tokens: tokens of each text, [N].
        perplexity: of each text, [N], NaN where nothing could be scored.
        variance_kept: share of the variance that the reduction kept; None where nothing was reduced.
        num_features: before the reduction.
        experts: of a trained mixture.
        notes: sentences on rows that were left out, and on features that say nothing.
    """

    name: str
    kind: str
    x: np.ndarray
    names: list[str]
    domain: np.ndarray | None
    tokens: np.ndarray | None
    perplexity: np.ndarray | None
    variance_kept: float | None
    num_features: int
    experts: ExpertRows | None
    notes: tuple[str, ...] = ()


def load_analyzed_rows(run: AnalysisRun, folder: Path, device: torch.device) -> AnalyzedRows:
    """Load or make the rows that a run names, draw from them, reduce them.

    Raises:
        DataError: rows or perplexities that cannot be read, in one line.
        ValueError: a reduction to more components than there are.
    """
    if run.data.run is not None:
        rows = _rows_of_run(run.data.run, device)
    elif run.data.encoder is not None and not run.data.texts:
        rows = _token_rows(run.data.encoder)
    else:
        rows = _rows_of_table(load_rows(run.data, folder))
    rows = replace(rows, perplexity=_perplexity(run, len(rows.x), folder, device))
    return _reduced(_noted(_drawn(rows, run.data, run.seed)), run.data)


def _noted(rows: AnalyzedRows) -> AnalyzedRows:
    """With a word on features that say nothing."""
    constant = int((np.ptp(rows.x, axis=0) == 0).sum())
    if not constant:
        return rows
    note = f"{constant} of {rows.x.shape[1]} features are the same in all rows, and move no distance."
    return replace(rows, notes=(*rows.notes, note))


def _rows_of_table(table: EmbeddingTable) -> AnalyzedRows:
    known = (table.token_count >= 0).all()
    several = len(np.unique(table.domain)) > 1
    domain = np.array(table.domain_names)[table.domain]
    names = [f"{domain[row]}, row {row}" if several else f"row {row}" for row in range(table.num_rows)]
    return AnalyzedRows(
        name=table.source,
        kind="text embeddings" if known else "rows",
        x=table.embeddings.astype(np.float64),
        names=names,
        domain=domain if several else None,
        tokens=table.token_count if known else None,
        perplexity=None,
        variance_kept=None,
        num_features=table.dim,
        experts=None,
    )


def _token_rows(model: str) -> AnalyzedRows:
    """The input embeddings of a model's tokens, without those that no text reaches and without copies."""
    from stratcore.data.token_table import token_embeddings

    table = token_embeddings(model).drop(("special", "unused", "duplicate"))
    left_out = ", ".join(f"{count:,} {kind}" for kind, count in table.dropped.items() if count)
    return AnalyzedRows(
        name=table.source,
        kind="token embeddings",
        x=table.rows.astype(np.float64),
        names=[repr(token) for token in table.tokens],
        domain=None,
        tokens=None,
        perplexity=None,
        variance_kept=None,
        num_features=table.rows.shape[1],
        experts=None,
        notes=(f"Left out: {left_out} rows.",) if left_out else (),
    )


def _rows_of_run(folder: Path, device: torch.device) -> AnalyzedRows:
    from stratcore.recipes.dictionary_moe_results import evaluate
    from stratcore.recipes.trained_run import load_trained_run
    from stratcore.training.tasks import Rows

    trained = load_trained_run(folder, device)
    split, parts = trained.data.split, ("train", "validation", "test")
    order = np.concatenate([getattr(split, part) for part in parts])
    rows = _rows_of_table(trained.data.table.select(np.sort(order)))
    back = np.argsort(order)  # from the order of the parts to that of the table
    x = torch.cat([trained.data.rows(part).x for part in parts])[back]
    found = evaluate(trained.model, Rows(x, torch.zeros(len(x), dtype=torch.long)), trained.data, device)
    held_out = np.repeat([False, True, True], [len(getattr(split, part)) for part in parts])[back]
    experts = ExpertRows(
        gate=found.gate,
        chosen=found.chosen,
        levels=tuple(trained.run.model.sparsities),
        held_out=held_out,
        atoms=trained.model.experts.atoms.detach().double().cpu().numpy(),
        energy=found.energy,
        checkpoint=str(trained.checkpoint),
    )
    reduced = np.concatenate([trained.data.reduced(part) for part in parts])[back]
    kept = None
    if trained.data.pca is not None:
        kept = float(reduced.var(axis=0).sum() / rows.x.var(axis=0).sum())
    return replace(rows, x=reduced, experts=experts, variance_kept=kept)


def _drawn(rows: AnalyzedRows, options: AnalysisRows, seed: int) -> AnalyzedRows:
    """At most `options.most` rows, drawn evenly, in their order."""
    count = len(rows.x)
    if options.most is None or options.most >= count:
        return rows
    kept = np.sort(np.random.default_rng(seed).choice(count, options.most, replace=False))

    def some(column: Any) -> Any:
        return None if column is None else column[kept]

    return replace(
        rows,
        x=rows.x[kept],
        names=[rows.names[row] for row in kept],
        domain=some(rows.domain),
        tokens=some(rows.tokens),
        perplexity=some(rows.perplexity),
        experts=None if rows.experts is None else rows.experts.select(kept),
        notes=(*rows.notes, f"{options.most:,} of {count:,} rows, drawn at random (data.most)."),
    )


def _reduced(rows: AnalyzedRows, options: AnalysisRows) -> AnalyzedRows:
    if options.reduce is None or rows.experts is not None:
        return rows
    count, features = rows.x.shape
    most = min(features, count - 1)
    if options.reduce > most:
        raise ValueError(
            f"data.reduce: expected at most {most} components of {count} rows with {features} features, "
            f"got {options.reduce}"
        )
    pca = fit_pca(rows.x, options.reduce)
    kept = float(pca.explained_variance_ratio_.sum())
    return replace(rows, x=pca.transform(rows.x), variance_kept=kept)


def _perplexity(run: AnalysisRun, count: int, folder: Path, device: torch.device) -> np.ndarray | None:
    if run.perplexity is None:
        return None
    if not run.perplexity.endswith(".npy"):
        return _perplexity_of_texts(run, folder, device)
    path = Path(run.perplexity)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npy file") from error
    if values.shape != (count,) or values.dtype.kind != "f":
        raise DataError(
            f"{path}: expected {count} floats, one a row, got {values.dtype} of shape {values.shape}"
        )
    bad = np.flatnonzero(~(values > 0) & ~np.isnan(values))
    if bad.size:
        raise DataError(f"{path}: row {bad[0]}: expected a perplexity > 0 or NaN, got {values[bad[0]]}")
    known = int(np.isfinite(values).sum())
    if known < LEAST_PERPLEXITIES:
        raise DataError(f"{path}: expected at least {LEAST_PERPLEXITIES} perplexities, got {known}, else NaN")
    return values.astype(np.float64)


def _perplexity_of_texts(run: AnalysisRun, folder: Path, device: torch.device) -> np.ndarray:
    """Perplexity of the texts that the rows embed, in their order."""
    from stratcore.data import join_texts, load_texts
    from stratcore.data.perplexity import PerplexityOptions, text_perplexity

    texts = join_texts([load_texts(name, rows=run.data.rows) for name in run.data.texts])
    options = PerplexityOptions(device=str(device))
    cache = (run.data.cache or folder) / "perplexity"
    return text_perplexity(run.perplexity or "", texts.texts, options=options, cache_dir=cache).perplexity
