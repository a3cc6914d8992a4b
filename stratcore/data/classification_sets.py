"""Where labelled texts come from: packages that carry them, the hub, and files of the user."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from stratcore.data.bundled import carriers
from stratcore.data.bundled.build import RATED_DOMAINS
from stratcore.data.classification import PARTS, ClassificationTable, join_classification
from stratcore.data.errors import DataError
from stratcore.data.registry import PAIR_SETS, SENTIMENT, TEXT_SETS
from stratcore.data.table_columns import name_column
from stratcore.data.text_files import SUFFIXES, text_columns
from stratcore.data.texts import hub_columns
from stratcore.data.token_strata import TokenStrataOptions, token_strata

COLUMNS = ("text", "text_pair", "label", "domain", "split")
CARRIED = ("sentiment", "sentences", "newsgroups")
MADE = ("token_strata",)


def load_classification(
    names: Sequence[str],
    *,
    rows: int | None = None,
    seed: int = 0,
    labels: Sequence[str] | None = None,
    archives: Path | None = None,
) -> ClassificationTable:
    """Labelled texts of one or more sets, each a domain or several.

    Args:
        names: `sentiment` (tweets, film, product and editorial sentences with rated sentiment), `sentences`
            (sentences of film, restaurant and product reviews) and `newsgroups` (20 topics), fetched with pip and
            npm; `token_strata` (made-up words, see the function of this name); a set of the hub (`imdb`,
            `rotten_tomatoes`, `amazon_polarity`, `sst2`, ..., and the pairs `qqp`); or a file `.csv`, `.jsonl` or
            `.parquet` with columns `text`, `label` and, as needed, `text_pair`, `domain`, `split` (train,
            validation or test).
        rows: drawn from each set of the hub, and made of each made-up set; None: all, and 8,000.
        seed: of that draw.
        labels: the only names of labels that a file may hold, in the order of their numbers; None: those found.
        archives: folder where fetched packages lie, or are put; None: one that is deleted again.

    Raises:
        DataError: unknown name, a set that is not to be had, a bad file (names the line, row or column).
    """
    if not names:
        raise DataError("expected at least one set of labelled texts, got none")
    return join_classification([_load(name, rows, seed, labels, archives) for name in names])


def _load(
    name: str, rows: int | None, seed: int, labels: Sequence[str] | None, archives: Path | None
) -> ClassificationTable:
    if name in CARRIED:
        with tempfile.TemporaryDirectory() as temporary:
            folder = archives or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            return _CARRIED[name](folder)
    if name in MADE:
        options = TokenStrataOptions()
        return token_strata(options if rows is None else replace(options, texts=rows))
    if name in TEXT_SETS or name in PAIR_SETS:
        return _of_hub(name, rows, seed)
    path = Path(name)
    if path.suffix.lower() not in SUFFIXES:
        known = ", ".join((*CARRIED, *MADE, *TEXT_SETS, *PAIR_SETS))
        raise DataError(f"{name}: expected one of {known}, or a file ending in {', '.join(SUFFIXES)}")
    return _of_file(path, labels)


def _sentiment(folder: Path) -> ClassificationTable:
    archive = carriers.fetch(carriers.VADER, folder)
    return _rated(
        "sentiment", {name: carriers.rated_sentences(archive, part) for name, part in RATED_DOMAINS}
    )


def _sentences(folder: Path) -> ClassificationTable:
    archive = carriers.fetch(carriers.REVIEWS, folder)
    names = {"film": "imdb", "restaurant": "yelp", "product": "amazon"}
    return _rated(
        "sentences", {name: carriers.review_sentences(archive, part) for name, part in names.items()}
    )


def _newsgroups(folder: Path) -> ClassificationTable:
    posts = list(carriers.newsgroup_posts(carriers.fetch(carriers.NEWSGROUPS, folder)))
    names = sorted({group for _, group in posts})
    return ClassificationTable(
        texts=tuple(text for text, _ in posts),
        label=np.array([names.index(group) for _, group in posts], np.int64),
        label_names=tuple(names),
        domain=np.zeros(len(posts), np.int64),
        domain_names=("newsgroups",),
        source="newsgroups",
    )


_CARRIED: dict[str, Callable[[Path], ClassificationTable]] = {
    "sentiment": _sentiment,
    "sentences": _sentences,
    "newsgroups": _newsgroups,
}


def _rated(source: str, pools: dict[str, Iterable[tuple[str, int]]]) -> ClassificationTable:
    rows = [(text, label, index) for index, pool in enumerate(pools.values()) for text, label in pool]
    return ClassificationTable(
        texts=tuple(text for text, _, _ in rows),
        label=np.array([label for _, label, _ in rows], np.int64),
        label_names=SENTIMENT,
        domain=np.array([domain for _, _, domain in rows], np.int64),
        domain_names=tuple(pools),
        source=source,
    )


def _of_hub(name: str, rows: int | None, seed: int) -> ClassificationTable:
    facts = TEXT_SETS.get(name) or PAIR_SETS[name]
    columns = hub_columns(name, facts, rows, seed)
    return ClassificationTable(
        texts=tuple(columns[facts.text_column]),
        second=None if facts.pair_column is None else tuple(columns[facts.pair_column]),
        label=np.asarray(columns[facts.label_column], np.int64),
        label_names=facts.label_names,
        domain=np.zeros(len(columns[facts.text_column]), np.int64),
        domain_names=(name,),
        source=f"text set {name!r}",
    )


def _of_file(path: Path, labels: Sequence[str] | None) -> ClassificationTable:
    columns = text_columns(path, COLUMNS)
    texts = columns["text"]
    if "label" not in columns:
        raise DataError(f"{path}: column 'label' is missing beside {list(columns)}")
    unknown = [row for row, value in enumerate(columns["label"]) if _is_unknown(value)]
    if unknown:
        raise DataError(f"{path}: row {unknown[0]}: label {columns['label'][unknown[0]]!r} says nothing")
    label, label_names = name_column(path, "label", columns["label"])
    if labels is not None:
        outside = [name for name in label_names if name not in labels]
        if outside:
            row = int(np.flatnonzero(label == label_names.index(outside[0]))[0])
            raise DataError(f"{path}: row {row}: label {outside[0]!r} is not one of {', '.join(labels)}")
        place = np.array([list(labels).index(name) for name in label_names], np.int64)
        label, label_names = place[label], tuple(labels)
    domains = columns.get("domain", [path.stem] * len(texts))
    domain, domain_names = name_column(path, "domain", domains)
    return ClassificationTable(
        texts=tuple(texts),
        second=tuple(columns["text_pair"]) if "text_pair" in columns else None,
        label=label,
        label_names=label_names,
        domain=domain,
        domain_names=domain_names,
        part=_part(path, columns["split"]) if "split" in columns else None,
        source=str(path),
    )


def _is_unknown(value: object) -> bool:
    return value is None or value != value or str(value).strip().lower() in ("", "nan", "-1")


def _part(path: Path, values: Sequence[object]) -> np.ndarray:
    for row, value in enumerate(values):
        if value not in PARTS:
            raise DataError(f"{path}: row {row}: split {value!r} is not one of {', '.join(PARTS)}")
    return np.array([PARTS.index(str(value)) for value in values], np.int64)
