"""Finished embeddings and perplexities on disk, in shards that survive an interruption."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

# Names and versions say nothing about what a model computes, and a copy of it has others.
_IDENTITY_FREE = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype")


def cache_key(texts: Sequence[str], tokens: Sequence[Sequence[int]], module: nn.Module, layout: str) -> str:
    """SHA-256 of everything the result depends on: texts, token ids, weights, configuration, options."""
    digest = hashlib.sha256(f"stratcore embeddings 1\n{layout}\n".encode())
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    for row in tokens:
        digest.update(len(row).to_bytes(8, "little") + np.asarray(row, np.int64).tobytes())
    digest.update(model_hash(module).encode())
    return digest.hexdigest()


def model_hash(module: nn.Module) -> str:
    """SHA-256 of class, configuration and all weights of a model, wherever it was loaded from."""
    digest = hashlib.sha256(type(module).__qualname__.encode())
    config = getattr(module, "config", None)
    if config is not None:
        values = {key: value for key, value in config.to_dict().items() if key not in _IDENTITY_FREE}
        digest.update(json.dumps(values, sort_keys=True, default=str).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        values_1d = tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
        digest.update(values_1d.data)
    return digest.hexdigest()


class ShardCache:
    """Shards of one job as safetensors files; each is written whole or not at all.

    Args:
        folder: made if missing.
        dtype: of the values.
    """

    def __init__(self, folder: Path, dtype: type[np.floating] = np.float32) -> None:
        self.folder, self.dtype = folder, dtype
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, number: int, num_rows: int) -> np.ndarray | None:
        """Return shard `number` [num_rows, d], or None where it is missing or damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            part = load_file(self._path(number)).get("embeddings")
        except (FileNotFoundError, SafetensorError):
            return None
        good = part is not None and part.dtype == self.dtype and part.ndim == 2 and len(part) == num_rows
        return part if good else None

    def save(self, number: int, part: np.ndarray) -> None:
        """Write shard `number`; a reader never sees half a file."""
        from safetensors.numpy import save

        path = self._path(number)
        staged = path.with_suffix(f".{os.getpid()}.part")
        staged.write_bytes(save({"embeddings": np.ascontiguousarray(part)}))
        os.replace(staged, path)

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.safetensors"
