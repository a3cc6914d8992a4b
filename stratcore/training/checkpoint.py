"""One checkpoint: a folder of safetensors and JSON that is either whole or absent.

Everything is written into a staged folder, synchronized to the disk (files, then the folder) and renamed:
a crash at any moment leaves either the complete checkpoint or only a staged folder. `manifest.json` holds the
SHA-256 of every file and of itself. No file can hold code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stratcore.training.state_tree import flatten_state, unflatten_state

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_FILE_NAME = re.compile(r"[A-Za-z0-9_-]+\.(json|safetensors)")
_CHUNK = 1 << 20


class CheckpointError(OSError):
    """A checkpoint cannot be written or is not whole."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint.

    Args:
        path: Its folder.
        step: Optimizer steps done when it was written.
        info: What `write_manifest` was given besides.
    """

    path: Path
    step: int
    info: dict[str, Any]

    def read(self, part: str, device: torch.device) -> Any:
        """Return the state that was written under the name `part`.

        Raises:
            CheckpointError: The part is absent.
        """
        tree_file = self.path / f"{part}.json"
        if not tree_file.is_file():
            raise CheckpointError(f"{self.path}: expected a part '{part}', found no {tree_file.name}")
        tensor_file = self.path / f"{part}.safetensors"
        tensors = load_file(tensor_file) if tensor_file.is_file() else {}
        return unflatten_state(json.loads(tree_file.read_text()), tensors, device)


def write_part(folder: Path, part: str, state: Any) -> None:
    """Write one named state into a staged folder: `<part>.json` and, if it has tensors, `<part>.safetensors`.

    Raises:
        OSError: The disk refuses.
        SafetensorError: The disk refuses a tensor file.
        TypeError: The state holds something that is neither a tensor nor JSON.
    """
    tree, tensors = flatten_state(state)
    if tensors:
        _save_tensors(tensors, folder / f"{part}.safetensors")
    _write_text(folder / f"{part}.json", json.dumps(tree, allow_nan=False))


def write_manifest(folder: Path, step: int, info: Mapping[str, Any]) -> None:
    """Seal a staged folder: hash every file in it and write `manifest.json`.

    Args:
        folder: Holds the parts of all ranks.
        step: Optimizer steps done.
        info: JSON scalars worth reading without loading anything.

    Raises:
        OSError: The disk refuses.
    """
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        for file in sorted(folder.iterdir())
    }
    content = {"schema_version": SCHEMA_VERSION, "step": step, "info": dict(info), "files": files}
    _write_text(folder / MANIFEST, _sealed(content))
    sync_folder(folder)


def open_checkpoint(path: Path) -> Checkpoint:
    """Verify every byte of a checkpoint.

    Args:
        path: Its folder.

    Returns:
        The checkpoint, whole.

    Raises:
        CheckpointError: It is not whole; the message names the first file that is missing or differs.
    """
    manifest = path / MANIFEST
    try:
        raw = manifest.read_bytes()
        content = json.loads(raw)
        content.pop("sha256")
        sealed = _sealed(content).encode() == raw
        version, step, files = content["schema_version"], content["step"], content["files"]
        expected = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except OSError as error:
        raise CheckpointError(
            f"{path}: not a checkpoint, {MANIFEST} cannot be read ({error.strerror})"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{manifest}: damaged, it does not match its own hash") from error
    if not sealed:
        raise CheckpointError(f"{manifest}: damaged, it does not match its own hash")
    if version != SCHEMA_VERSION:
        raise CheckpointError(f"{manifest}: expected schema version {SCHEMA_VERSION}, got {version}")
    for name, (size, digest) in expected.items():
        file = path / name
        if not _FILE_NAME.fullmatch(name) or not file.is_file():
            raise CheckpointError(f"{file}: missing, though {MANIFEST} lists it")
        if file.stat().st_size != size:
            raise CheckpointError(f"{file}: expected {size} bytes, got {file.stat().st_size}")
        if _sha256(file) != digest:
            raise CheckpointError(f"{file}: damaged, its SHA-256 differs from {MANIFEST}")
    return Checkpoint(path=path, step=step, info=content["info"])


def replace_text(path: Path, text: str) -> None:
    """Replace a small file at once: readers see the old or the new content, after a crash too.

    Raises:
        OSError: The disk refuses.
    """
    staged = path.with_name(f".tmp-{path.name}")
    _write_text(staged, text)
    os.replace(staged, path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Bring a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sealed(content: dict[str, Any]) -> str:
    body = json.dumps(content, sort_keys=True)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, sort_keys=True, indent=1) + "\n"


def _save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    save_file(tensors, file)
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())


def _write_text(file: Path, text: str) -> None:
    with open(file, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
