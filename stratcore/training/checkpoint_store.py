"""The checkpoints of one run: `checkpoint-<step>` folders, and what is best and last among them.

`checkpoint-best` and `checkpoint-last` are small JSON files that name a folder: a file is replaced by one
atomic rename on every file system, while a folder cannot be replaced atomically and a link does not exist
everywhere (network drives, archives).
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from stratcore.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    open_checkpoint,
    replace_text,
    sync_folder,
    write_manifest,
    write_part,
)
from stratcore.training.distributed import Runtime
from stratcore.training.state_tree import state_bytes

logger = logging.getLogger("stratcore")

_FOLDER_NAME = re.compile(r"checkpoint-(\d+)")


class CheckpointStore:
    """Writes, finds and prunes the checkpoints in a folder. Only the main process deletes or renames.

    Args:
        folder: The run's folder; made on the first write.
        runtime: Several ranks write one checkpoint together (they share the file system).
    """

    def __init__(self, folder: Path, runtime: Runtime) -> None:
        self.folder = folder
        self._runtime = runtime

    def steps(self) -> list[int]:
        """Return the steps of all checkpoint folders, ascending, without verifying them."""
        if not self.folder.is_dir():
            return []
        matches = [_FOLDER_NAME.fullmatch(entry.name) for entry in self.folder.iterdir() if entry.is_dir()]
        return sorted(int(match.group(1)) for match in matches if match)

    def path(self, step: int) -> Path:
        """Return the folder of a step."""
        return self.folder / f"checkpoint-{step}"

    def remove_orphans(self) -> None:
        """Delete what interrupted writes and deletions left behind."""
        if self._runtime.is_main and self.folder.is_dir():
            for entry in self.folder.glob(".tmp-*"):
                if entry.is_dir():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
        self._runtime.barrier()

    def save(
        self, step: int, shared: Mapping[str, Any], own: Mapping[str, Any], info: Mapping[str, Any]
    ) -> Path:
        """Write `checkpoint-<step>` and point `checkpoint-last` to it.

        Args:
            step: Optimizer steps done.
            shared: States by name that are equal on all ranks; the main process writes them.
            own: This rank's state.
            info: Goes into the manifest.

        Returns:
            The folder.

        Raises:
            CheckpointError: Writing failed; nothing staged is left, earlier checkpoints are untouched.
        """
        staged, final = self.folder / f".tmp-checkpoint-{step}", self.path(step)
        needed = state_bytes(shared) + state_bytes(own)
        try:
            if self._runtime.is_main:
                self._make_staged(staged, needed)
            self._runtime.barrier()
            write_part(staged, f"rank-{self._runtime.rank}", own)
            if self._runtime.is_main:
                for name, state in shared.items():
                    write_part(staged, name, state)
            self._runtime.barrier()
            if self._runtime.is_main:
                write_manifest(staged, step, {**info, "world_size": self._runtime.world_size})
                os.rename(staged, final)
                sync_folder(self.folder)
                self.point("last", step)
            self._runtime.barrier()
        except (OSError, SafetensorError) as error:
            shutil.rmtree(staged, ignore_errors=True)
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(
                f"{final}: checkpoint not written ({reason}); it needs {needed} bytes; "
                "earlier checkpoints are untouched"
            ) from error
        return final

    def point(self, name: str, step: int) -> None:
        """Let `checkpoint-<name>` (best, last) stand for the checkpoint of a step."""
        if self._runtime.is_main:
            record = {"checkpoint": self.path(step).name, "step": step}
            replace_text(self.folder / f"checkpoint-{name}", json.dumps(record) + "\n")

    def prune(self, limit: int | None, best: int | None) -> None:
        """Delete all but the newest `limit` checkpoints and that of the step `best`."""
        if limit is None or not self._runtime.is_main:
            return
        for step in self.steps()[:-limit]:
            if step != best:
                doomed = self.folder / f".tmp-delete-{step}"
                # Renamed first: a half-deleted folder must never look like a damaged checkpoint.
                os.rename(self.path(step), doomed)
                shutil.rmtree(doomed)

    def set_aside_after(self, step: int) -> None:
        """Rename checkpoints newer than `step`, where training goes on, to `set-aside-checkpoint-<n>`."""
        if self._runtime.is_main:
            for newer in [s for s in self.steps() if s > step]:
                aside = self.folder / f"set-aside-checkpoint-{newer}"
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(self.path(newer), aside)
                logger.warning("%s set aside as %s", self.path(newer).name, aside.name)
        self._runtime.barrier()

    def newest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint, or None if there is none at all.

        Damaged ones are passed over with one warning line each.

        Raises:
            CheckpointError: There are checkpoints, but all are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return open_checkpoint(self.path(step))
            except CheckpointError as error:
                logger.warning("%s; falling back to the checkpoint before it", error)
        if steps:
            raise CheckpointError(f"{self.folder}: none of its {len(steps)} checkpoint(s) is whole")
        return None

    def _make_staged(self, staged: Path, needed: int) -> None:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        free = shutil.disk_usage(staged).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, {free} bytes are free")


def resolve_checkpoint(path: Path) -> Path:
    """Follow a pointer file (`checkpoint-best`, `checkpoint-last`) to the folder it names.

    Args:
        path: A checkpoint folder or a pointer file.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: The file is not a pointer.
    """
    if path.is_dir():
        return path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        name = json.loads(path.read_text())["checkpoint"]
        if not _FOLDER_NAME.fullmatch(name):
            raise ValueError(name)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path}: expected a pointer such as {{"checkpoint": "checkpoint-100"}}') from error
    return path.parent / name
