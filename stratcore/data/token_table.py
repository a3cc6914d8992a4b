"""Token-embedding tables of language models, read without the rest of the model.

Legend: V tokens, D hidden size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from stratcore.data.errors import DataError
from stratcore.data.hub import load_tokenizer, model_location, quiet_unless_terminal, unavailable
from stratcore.data.table import EmbeddingTable, check_embeddings

Which = Literal["input", "output"]
KINDS = ("special", "unused", "duplicate")
# Rows that training never meets, by the names that model makers give them.
_UNUSED_NAME = re.compile(r"[\[<|]*(unused|reserved|madeupword)[_a-z]*[_ ]?\d+[\]>|]*", re.IGNORECASE)
_SPECIAL_TYPES, _UNUSED_TYPE = (2, 3), 5  # llama.cpp: unknown, control; unused


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenTable:
    """One row per token of a language model, with what is known about each.

    Args:
        rows: [V, D] float32, finite.
        tokens: V token strings as the tokenizer writes them (word starts marked by `Ġ`, pieces by `##`, ...); a row
            beyond the tokenizer's vocabulary is called `<row 50260>`.
        ids: [V] int64, token ids, ascending.
        special: [V] bool, control tokens of the tokenizer, such as `[CLS]`.
        unused: [V] bool, rows that no text can reach: placeholders such as `[unused7]`, and rows without a token.
        duplicate: [V] bool, equal in every number to an earlier row.
        which: `input` or `output` embedding.
        tied: whether input and output embedding are one tensor; None where the model has no output embedding.
        dropped: how many rows of each kind were left out; a row of several kinds counts for the first.
        source: where the rows come from; error messages begin with it.
    """

    rows: np.ndarray
    tokens: tuple[str, ...]
    ids: np.ndarray
    special: np.ndarray
    unused: np.ndarray
    duplicate: np.ndarray
    which: Which
    tied: bool | None
    dropped: dict[str, int]
    source: str

    def counts(self) -> dict[str, int]:
        """How many of the rows here are special, unused, duplicate."""
        return {kind: int(getattr(self, kind).sum()) for kind in KINDS}

    def drop(self, kinds: Sequence[str]) -> TokenTable:
        """Return the table without the rows of some `KINDS`; `dropped` says how many went.

        Raises:
            ValueError: an unknown kind.
            DataError: no row is left.
        """
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise ValueError(f"drop: expected some of {KINDS}, got {unknown[0]!r}")
        kept, dropped = np.ones(len(self.rows), bool), dict(self.dropped)
        for kind in kinds:
            gone = kept & getattr(self, kind)
            dropped[kind] = dropped.get(kind, 0) + int(gone.sum())
            kept &= ~gone
        if not kept.any():
            raise DataError(f"{self.source}: no token is left without {', '.join(kinds)} rows")
        columns = {key: getattr(self, key)[kept] for key in ("rows", "ids", *KINDS)}
        tokens = tuple(token for token, keep in zip(self.tokens, kept, strict=True) if keep)
        return replace(self, tokens=tokens, dropped=dropped, **columns)

    def as_table(self) -> EmbeddingTable:
        """Return the rows as an embedding table of one domain."""
        return EmbeddingTable.from_arrays(self.rows, domain_names=("tokens",), source=self.source)

    def save(self, path: str | Path) -> None:
        """Write the rows to `path` (.npy) and everything else to a `.tokens.json` file of the same name."""
        path = Path(path)
        np.save(path.with_suffix(".npy"), self.rows, allow_pickle=False)
        facts: dict[str, Any] = {key: getattr(self, key) for key in ("source", "which", "tied", "dropped")}
        for kind in KINDS:
            facts[kind] = self.ids[getattr(self, kind)].tolist()
        facts |= {"ids": self.ids.tolist(), "tokens": self.tokens}
        text = json.dumps(facts, ensure_ascii=False)
        path.with_suffix(".tokens.json").write_text(text, encoding="utf-8")


class _Vocabulary(NamedTuple):
    """Token by id, and the ids of control tokens and of placeholders."""

    tokens: dict[int, str]
    special: set[int]
    unused: set[int]


class _Wanted(NamedTuple):
    """Names of one tensor in a model, its shape, and whether it is input and output embedding at once."""

    names: list[str]
    shape: tuple[int, ...]
    tied: bool | None


def token_embeddings(model: str | Path, *, which: Which = "input", drop: Sequence[str] = ()) -> TokenTable:
    """Read the token-embedding table of a model; no other weight is read.

    Args:
        model: local folder, .gguf file, name of `PAPER_MODELS`, or hub name. From the hub, only the file that holds
            the table is fetched.
        which: `input` embedding, or `output` embedding (the rows that score the next token).
        drop: kinds of rows to leave out: some of `special`, `unused`, `duplicate`. The result counts them.

    Returns:
        Rows, token strings, ids and flags.

    Raises:
        DataError: the model cannot be had, keeps its weights in another format than safetensors or GGUF, or has no
            such embedding; a row that is not finite.
        ImportError: the `gguf` package is missing.

    Numerics: 16-bit rows are widened, quantized rows of a .gguf file de-quantized, to float32.
    Cost: the size of the table. The model is laid out without memory to find the tensor's name.
    """
    if which not in ("input", "output"):
        raise ValueError(f"token_embeddings: which: expected 'input' or 'output', got {which!r}")
    name = str(model)
    reader = _from_gguf if name.lower().endswith(".gguf") else _from_safetensors
    rows, tied, vocabulary = reader(name, which)
    source = f"{name} ({which} embedding)"
    check_embeddings(rows, source)
    ids = np.arange(len(rows))
    tokens = tuple(vocabulary.tokens.get(i, f"<row {i}>") for i in range(len(rows)))
    unused = [
        i not in vocabulary.tokens or i in vocabulary.unused or bool(_UNUSED_NAME.fullmatch(token))
        for i, token in enumerate(tokens)
    ]
    table = TokenTable(
        rows=rows,
        tokens=tokens,
        ids=ids,
        special=np.isin(ids, list(vocabulary.special)),
        unused=np.array(unused),
        duplicate=_repeats(rows),
        which=which,
        tied=tied,
        dropped={},
        source=source,
    )
    return table.drop(drop)


def _repeats(rows: np.ndarray) -> np.ndarray:
    """Mask [V] of the rows that equal an earlier one."""
    first: dict[bytes, int] = {}
    exact = rows + 0.0  # the two zeros are equal and have different bytes
    return np.array([first.setdefault(row.tobytes(), i) != i for i, row in enumerate(exact)])


def _from_gguf(name: str, which: Which) -> tuple[np.ndarray, bool | None, _Vocabulary]:
    from stratcore.data.gguf import open_gguf, read_tensor

    reader = open_gguf(name)
    output = read_tensor(reader, "output.weight") if which == "output" else None
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    rows = read_tensor(reader, "token_embd.weight") if output is None else output
    if rows is None:
        raise DataError(f"{name}: tensor 'token_embd.weight' is missing")
    names, types = (reader.get_field(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    if names is None:
        raise DataError(f"{name}: key 'tokenizer.ggml.tokens' is missing")
    kinds = [] if types is None else types.contents()
    return (
        rows,
        tied,
        _Vocabulary(
            tokens=dict(enumerate(names.contents())),
            special={i for i, kind in enumerate(kinds) if kind in _SPECIAL_TYPES},
            unused={i for i, kind in enumerate(kinds) if kind == _UNUSED_TYPE},
        ),
    )


def _from_safetensors(name: str, which: Which) -> tuple[np.ndarray, bool | None, _Vocabulary]:
    where = model_location(name)
    wanted = _layout(name, where, which)
    rows = _read_rows(*_locate(where, name, wanted.names, which), wanted.shape)
    tokenizer = load_tokenizer(name)
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    tokens = {i: token for token, i in tokenizer.get_vocab().items()}
    return rows, wanted.tied, _Vocabulary(tokens, special, set())


def _layout(name: str, where: str, which: Which) -> _Wanted:
    """Names and shape of the embedding in the model, and whether input and output share it."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(where, trust_remote_code=False)
        architecture = next(iter(getattr(config, "architectures", None) or ()), "")
        family: Any = getattr(transformers, architecture, None)
        known = isinstance(family, type) and issubclass(family, transformers.PreTrainedModel)
        with torch.device("meta"):  # shapes and names, no memory
            module = family(config) if known else transformers.AutoModel.from_config(config)
        inputs, outputs = module.get_input_embeddings(), module.get_output_embeddings()
    except (OSError, ValueError, ImportError, LookupError, AttributeError, TypeError, RuntimeError) as error:
        raise unavailable("model", name, where, error) from error
    wanted = inputs if which == "input" else outputs
    if wanted is None:
        raise DataError(f"{name}: {type(module).__name__} has no {which} embedding")
    parameters = module.named_parameters(remove_duplicate=False)
    names = [key for key, parameter in parameters if parameter is wanted.weight]
    return _Wanted(
        names, tuple(wanted.weight.shape), None if outputs is None else outputs.weight is inputs.weight
    )


def _read_rows(path: Path, key: str, shape: tuple[int, ...]) -> np.ndarray:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            rows = file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a readable safetensors file ({error})") from None
    if tuple(rows.shape) != shape or not rows.is_floating_point():
        raise DataError(
            f"{path}: tensor {key!r}: expected floats of shape {shape}, got {rows.dtype} of shape {tuple(rows.shape)}"
        )
    return rows.float().numpy()


def _locate(where: str, name: str, wanted: list[str], which: Which) -> tuple[Path, str]:
    """File and key of the tensor; heads and bare models store it under names of different length."""
    whole = _file(where, name, "model.safetensors")
    if whole is not None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(whole, framework="pt") as file:
                key = _match(list(file.keys()), wanted)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{whole}: not a readable safetensors file ({error})") from None
        path: Path | None = whole
    else:
        index = _file(where, name, "model.safetensors.index.json")
        if index is None:
            raise DataError(
                f"{name}: neither model.safetensors nor its index is there; other formats are not read"
            )
        key, path = _in_index(index, wanted, lambda shard: _file(where, name, shard))
    if key is None or path is None:
        raise DataError(f"{name}: the {which} embedding {wanted[0]!r} is not in its weights")
    return path, key


def _in_index(
    index: Path, wanted: list[str], fetch: Callable[[str], Path | None]
) -> tuple[str | None, Path | None]:
    try:
        pairs = json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{index}: not a readable index of shards ({error})") from None
    shards = {key: str(shard) for key, shard in pairs}
    key = _match(list(shards), wanted)
    shard = None if key is None else shards[key]
    if shard is not None and (Path(shard).name != shard or not shard.endswith(".safetensors")):
        raise DataError(f"{index}: {shard!r} is not the name of a safetensors file beside it")
    return key, None if shard is None else fetch(shard)


def _match(keys: list[str], wanted: list[str]) -> str | None:
    """The key that is a wanted name, or else the one that is a wanted name with more or fewer prefixes."""
    exact = [key for key in keys if key in wanted]
    if exact:
        return min(exact)  # names of one tensor
    related = [
        key for key in keys if any(key.endswith(f".{name}") or name.endswith(f".{key}") for name in wanted)
    ]
    return related[0] if len(related) == 1 else None


def _file(where: str, name: str, filename: str) -> Path | None:
    """A file of a local folder or of the hub; None where the model has no such file."""
    folder = Path(where)
    if folder.is_dir():
        return folder / filename if (folder / filename).is_file() else None
    from transformers.utils import cached_file

    try:
        with quiet_unless_terminal():
            found = cached_file(where, filename, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        raise unavailable("model", name, where, error) from error
    return None if found is None else Path(found)
