"""Text, images, embeddings, perplexities, token tables and synthetic strata, checked on the way in.

Importing this package is cheap: each name loads its module at its first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stratcore.data.bundled import load_bundled
    from stratcore.data.bundled.build import bundled_texts
    from stratcore.data.classification import (
        ClassificationTable,
        SplitOptions,
        require_no_confound,
        split_texts,
    )
    from stratcore.data.classification_sets import load_classification
    from stratcore.data.embeddings import Embedded, EmbedOptions, embed_table, embed_texts
    from stratcore.data.errors import DataError
    from stratcore.data.gguf import load_gguf
    from stratcore.data.image_sets import load_emoji, load_images
    from stratcore.data.images import ImageSet, ImageTable, require_images, split_images
    from stratcore.data.perplexity import PerplexityOptions, TextPerplexity, text_perplexity
    from stratcore.data.split import Split, audit, split_rows
    from stratcore.data.synthetic import Strata, StrataOptions, union_of_strata
    from stratcore.data.table import EmbeddingTable, load_table, require_domains, require_rows
    from stratcore.data.table_files import save_table
    from stratcore.data.texts import PAPER_MODELS, TEXT_SETS, TextTable, join_texts, load_texts
    from stratcore.data.token_table import TokenTable, token_embeddings

_MODULE_OF = {
    "ClassificationTable": "classification",
    "DataError": "errors",
    "EmbedOptions": "embeddings",
    "Embedded": "embeddings",
    "EmbeddingTable": "table",
    "ImageSet": "images",
    "ImageTable": "images",
    "PAPER_MODELS": "texts",
    "PerplexityOptions": "perplexity",
    "Split": "split",
    "SplitOptions": "classification",
    "Strata": "synthetic",
    "StrataOptions": "synthetic",
    "TEXT_SETS": "texts",
    "TextPerplexity": "perplexity",
    "TextTable": "texts",
    "TokenTable": "token_table",
    "audit": "split",
    "bundled_texts": "bundled.build",
    "embed_table": "embeddings",
    "embed_texts": "embeddings",
    "join_texts": "texts",
    "load_bundled": "bundled",
    "load_classification": "classification_sets",
    "load_emoji": "image_sets",
    "load_gguf": "gguf",
    "load_images": "image_sets",
    "load_table": "table",
    "load_texts": "texts",
    "require_domains": "table",
    "require_images": "images",
    "require_no_confound": "classification",
    "require_rows": "table",
    "save_table": "table_files",
    "split_images": "images",
    "split_rows": "split",
    "split_texts": "classification",
    "text_perplexity": "perplexity",
    "token_embeddings": "token_table",
    "union_of_strata": "synthetic",
}

__all__ = [
    "ClassificationTable",
    "DataError",
    "EmbedOptions",
    "Embedded",
    "EmbeddingTable",
    "ImageSet",
    "ImageTable",
    "PAPER_MODELS",
    "PerplexityOptions",
    "Split",
    "SplitOptions",
    "Strata",
    "StrataOptions",
    "TEXT_SETS",
    "TextPerplexity",
    "TextTable",
    "TokenTable",
    "audit",
    "bundled_texts",
    "embed_table",
    "embed_texts",
    "join_texts",
    "load_bundled",
    "load_classification",
    "load_emoji",
    "load_gguf",
    "load_images",
    "load_table",
    "load_texts",
    "require_domains",
    "require_images",
    "require_no_confound",
    "require_rows",
    "save_table",
    "split_images",
    "split_rows",
    "split_texts",
    "text_perplexity",
    "token_embeddings",
    "union_of_strata",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
