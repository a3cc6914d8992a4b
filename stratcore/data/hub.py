"""Models and tokenizers from a local folder or the Hugging Face hub, with one clear line when that fails."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratcore.data.errors import DataError
from stratcore.data.registry import PAPER_MODELS

if TYPE_CHECKING:
    from torch import nn

# Positions of these models start after the padding index.
_OFFSET_POSITIONS = (
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "longformer",
    "mpnet",
    "data2vec-text",
)


def load_model(name: str, dtype: str = "float32") -> nn.Module:
    """Load the base model (no head) of a local folder, a name of `PAPER_MODELS`, or a hub name.

    Raises:
        DataError: not found, no safetensors weights, code of the repository needed, or weights missing.
    """
    from transformers import AutoModel

    return _load(AutoModel, name, dtype)


def load_causal_model(name: str, dtype: str = "float32") -> nn.Module:
    """Load the language model, head included, of a local folder, a name of `PAPER_MODELS`, or a hub name.

    Raises:
        DataError: as `load_model`; a model without a language head has weights missing.
    """
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, name, dtype)


def _load(family: Any, name: str, dtype: str) -> nn.Module:
    import torch

    where = model_location(name)
    try:
        with quiet_unless_terminal():
            model, report = family.from_pretrained(
                where,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise unavailable("model", name, where, error) from error
    # A pooler is the one part that last hidden states do not pass through.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise DataError(
            f"model {name!r}: {len(missing)} tensors are not in its weights, such as {missing[0]!r}"
        )
    return model


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of a local folder, a name of `PAPER_MODELS`, or a hub name.

    Raises:
        DataError: not found.
    """
    from transformers import AutoTokenizer

    where = model_location(name)
    try:
        return AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise unavailable("tokenizer", name, where, error) from error


def position_limit(config: Any) -> int | None:
    """Return how many tokens the positions of a model reach, or None where it has no such limit."""
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if limit and getattr(config, "model_type", "") in _OFFSET_POSITIONS:
        limit -= config.pad_token_id + 1
    return limit


@contextlib.contextmanager
def quiet_unless_terminal() -> Iterator[None]:
    """Progress bars of transformers on a terminal only."""
    from transformers.utils import logging

    quiet = logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if quiet:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if quiet:
            logging.enable_progress_bar()


def model_location(name: str) -> str:
    """Return the folder, or the name on the hub, that a model's name stands for.

    Raises:
        DataError: a path without a model folder, or a model behind an API.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise DataError(f"{path}: the folder has no config.json, so it holds no model")
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise DataError(f"{path}: no such model folder")
    paper_model = PAPER_MODELS.get(name.lower())
    if paper_model is None:
        return name
    if paper_model.hub_name is None:
        raise DataError(
            f"model {name!r} is an API: save its embeddings as .npy and load that file as a table"
        )
    return paper_model.hub_name


def unavailable(what: str, name: str, where: str, error: Exception) -> DataError:
    """Return the error for something of a model that could not be loaded."""
    first_line = next(iter(str(error).splitlines()), type(error).__name__)
    if Path(where).is_dir():
        return DataError(f"{where}: the {what} in this folder cannot be loaded ({first_line})")
    return DataError(
        f"{what} {name!r}: neither a local folder nor to be had from the hub ({first_line}); go online once, "
        "log in if it is gated, or give a local folder with config.json, model.safetensors and the tokenizer"
    )
