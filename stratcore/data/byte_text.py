"""Text as bytes, cut at random places. Legend: B sequences, N tokens."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
import torch

from stratcore.data.errors import DataError
from stratcore.data.sequences import PlacedTensors, Sequences, SequenceShape

BYTES = 256
PYTHON = "python"
_TRAIN_SHARE, _VALIDATION_SHARE = 0.9, 0.05


def read_bytes(source: str | Path, limit: int | None = None) -> bytes:
    """The bytes of a file, of all files below a folder, or of Python's own library.

    Args:
        source: file or folder; 'python': the sources of this Python's standard library, some 10 MB of code and prose
            that are there on every machine.
        limit: most bytes; None: all.

    Raises:
        DataError: nothing there, or an empty file.

    Determinism: files of a folder come in an order shuffled by their names alone, so that parts are alike in kind.
    """
    path = Path(sysconfig.get_path("stdlib") if str(source) == PYTHON else source)
    if not path.exists():
        raise DataError(f"{source}: no such file or folder")
    files = [path]
    if path.is_dir():
        left_out = {"site-packages", "dist-packages", "__pycache__", "test", "tests"}
        pattern = "*.py" if str(source) == PYTHON else "*"
        found = (file for file in path.rglob(pattern) if not left_out & {*file.relative_to(path).parts})
        files = sorted(file for file in found if file.is_file())
        files = [files[index] for index in np.random.default_rng(0).permutation(len(files))]
    content = bytearray()
    for file in files:
        content += file.read_bytes()
        if limit is not None and len(content) >= limit:
            break
    content = content[:limit]
    if not content:
        raise DataError(f"{source}: expected text, got 0 bytes")
    return bytes(content)


class ByteText:
    """Windows of a text, byte by byte; the target of each is the byte after it.

    The first 90 % of the text are for training, the next 5 % for validation, the rest for the test. Tokens lie on a
    ring of the window's length. The floor of the loss is not known.

    Args:
        content: the text.
        length: N, bytes of a window.

    Raises:
        DataError: less text than a window in one of the parts.
    """

    floor: float | None = None
    parts: tuple[str, ...] = ("test",)

    def __init__(self, content: bytes, length: int) -> None:
        ends = [0, *(int(share * len(content)) for share in (_TRAIN_SHARE, _TRAIN_SHARE + _VALIDATION_SHARE))]
        cuts = np.split(np.frombuffer(content, np.uint8), ends[1:])
        least = min(map(len, cuts))
        if least <= length:
            raise DataError(
                f"text: expected more than {length} bytes (the length of a window) in each part, got {least} of "
                f"{len(content)} in one"
            )
        self.shape = SequenceShape(
            lattice=(length,), length=length, vocabulary=BYTES, outputs=BYTES, labels=True, causal=True
        )
        self._text = dict(
            zip(
                ("train", "validation", "test"),
                (PlacedTensors(torch.tensor(cut)) for cut in cuts),
                strict=True,
            )
        )

    def draw(self, count: int, generator: torch.Generator, part: str = "train") -> Sequences:
        """Draw windows [count, N] and the bytes after each of theirs, [count, N]."""
        (text,) = self._text[part].on(generator.device)
        length = self.shape.length
        start_B = torch.randint(len(text) - length, (count, 1), generator=generator, device=generator.device)
        window = text[start_B + torch.arange(length + 1, device=generator.device)].long()
        return Sequences(window[:, :-1], window[:, 1:])
