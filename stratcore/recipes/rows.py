"""Which rows a run works on: a file, the bundled embeddings, or texts through an encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from stratcore.data import EmbeddingTable, EmbedOptions, load_table


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """Where rows come from.

    Args:
        source: 'bundled', or a file of embeddings (.npy, .safetensors, .parquet, .csv). Not read with `encoder`.
        texts: text sets by name or file (.txt, .csv, .jsonl, .parquet), embedded with `encoder`.
        encoder: local folder, .gguf file or hub name of a Hugging Face model.
        rows: texts drawn from each set; None: all.
        embed: pooling, lengths and arithmetic of the embedding.
        cache: folder for embeddings in progress; None: inside the run folder.
    """

    source: str = "bundled"
    texts: tuple[str, ...] = ()
    encoder: str | None = None
    rows: int | None = None
    embed: EmbedOptions = field(default_factory=EmbedOptions)
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.texts and self.encoder is None:
            raise ValueError("data.encoder: expected the model that embeds data.texts, got nothing")
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"data.rows: expected a number >= 1 or None, got {self.rows}")


def load_rows(options: RowOptions, folder: Path) -> EmbeddingTable:
    """Loads or makes the embeddings that the options name; `folder` is the run's."""
    if not options.texts or options.encoder is None:
        return load_table(options.source)
    from stratcore.data import embed_table, join_texts, load_texts

    texts = join_texts([load_texts(name, rows=options.rows) for name in options.texts])
    cache = options.cache or folder / "embeddings"
    return embed_table(texts, options.encoder, options=options.embed, cache_dir=cache)
