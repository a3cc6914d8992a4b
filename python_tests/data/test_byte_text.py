from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stratcore.data import DataError
from stratcore.data.byte_text import ByteText, read_bytes
from stratcore.data.sequences import seeded_generator

TEXT = bytes(index % 251 for index in range(4000))


def test_windows_are_those_of_their_part_and_targets_the_next_bytes() -> None:
    source = ByteText(TEXT, 16)
    for part, low, high in (("train", 0, 3600), ("validation", 3600, 3800), ("test", 3800, 4000)):
        found = source.draw(3000, seeded_generator("cpu", 1), part)
        assert torch.equal(found.inputs[:, 1:], found.targets[:, :-1])
        rows = torch.cat([found.inputs, found.targets[:, -1:]], 1)
        known = torch.tensor([list(TEXT[i : i + 17]) for i in range(low, high - 16)])
        assert set(map(tuple, rows.tolist())) <= set(map(tuple, known.tolist()))
        assert len(set(map(tuple, rows.tolist()))) == min(251, high - low - 16)  # every window there is
    assert source.shape.causal and source.shape.lattice == (16,) and source.floor is None


def test_what_is_read(tmp_path: Path) -> None:
    for name, text in (("b.txt", b"two"), ("a.txt", b"one"), ("sub/c.txt", b"three")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text)
    assert read_bytes(tmp_path / "a.txt") == b"one"
    whole = read_bytes(tmp_path)
    assert len(whole) == 11 and all(word in whole for word in (b"one", b"two", b"three"))
    assert read_bytes(tmp_path) == whole and read_bytes(tmp_path, 5) == whole[:5]
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(DataError, match="empty: expected text, got 0 bytes"):
        read_bytes(tmp_path / "empty")
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        read_bytes("nowhere")


def test_the_library_of_python_is_there() -> None:
    text = read_bytes("python", 300_000)
    assert len(text) == 300_000 and b"import " in text


def test_too_little_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"text: expected more than 200 bytes .* got 200 of 4000 in one"):
        ByteText(TEXT, 200)
