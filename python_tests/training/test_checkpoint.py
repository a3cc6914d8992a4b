import json
import os
import random

import pytest
import torch

from stratcore.training.checkpoint import CheckpointError, open_checkpoint, write_manifest, write_part

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "checkpoint-12"
    path.mkdir()
    write_part(path, "model", {"weight": torch.arange(6.0).view(2, 3)})
    write_part(path, "trainer", {"best": 0.25})
    write_manifest(path, 12, {"stage": "train"})
    return path


def test_parts_come_back(folder):
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.step, checkpoint.info) == (12, {"stage": "train"})
    assert torch.equal(checkpoint.read("model", CPU)["weight"], torch.arange(6.0).view(2, 3))
    assert checkpoint.read("trainer", CPU) == {"best": 0.25}
    assert not (folder / "trainer.safetensors").exists()
    with pytest.raises(CheckpointError, match="expected a part 'average'"):
        checkpoint.read("average", CPU)


def test_every_bit_flip_is_detected(folder):
    chance = random.Random(0)
    files = sorted(folder.iterdir())
    for _ in range(400):
        file = chance.choice(files)
        original = file.read_bytes()
        damaged = bytearray(original)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=str(folder)):
            open_checkpoint(folder)
        file.write_bytes(original)
    open_checkpoint(folder)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", ["manifest.json", "model.json", "model.safetensors"])
def test_truncation_is_detected(folder, name, fraction):
    os.truncate(folder / name, int((folder / name).stat().st_size * fraction))
    with pytest.raises(CheckpointError, match=name):
        open_checkpoint(folder)


def test_missing_files_are_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing"):
        open_checkpoint(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"not a checkpoint.*No such file"):
        open_checkpoint(folder)


@pytest.mark.parametrize("text", ["[]", "{}", "[" * 100_000, '{"sha256": 1, "files": []}', "null", "\xff"])
def test_hostile_manifests_are_one_clear_error(folder, text):
    (folder / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match="damaged"):
        open_checkpoint(folder)


def test_files_outside_the_folder_are_not_read(folder):
    outside = folder.parent / "model.json"
    outside.write_text("{}")
    for file in folder.iterdir():
        file.unlink()
    (folder / "x.json").write_text("{}")
    write_manifest(folder, 1, {})
    from stratcore.training import checkpoint

    content = json.loads((folder / "manifest.json").read_text())
    content.pop("sha256")
    content["files"]["../model.json"] = content["files"].pop("x.json")
    (folder / "manifest.json").write_text(checkpoint._sealed(content))
    with pytest.raises(CheckpointError, match="missing"):
        open_checkpoint(folder)
