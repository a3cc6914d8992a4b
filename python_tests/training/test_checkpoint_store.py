import errno
import json
import logging
import os
import shutil

import pytest
import torch

from stratcore.training import CheckpointError, CheckpointStore, Runtime, open_checkpoint, resolve_checkpoint


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "run", Runtime.create("cpu"))


def save(store, step):
    return store.save(step, {"model": {"w": torch.full((300,), float(step))}}, {"task": {}}, {"stage": "s"})


def test_saving_points_last_and_pruning_keeps_newest_and_best(store):
    for step in (1, 2, 10, 11):
        save(store, step)
    store.prune(2, best=1)
    assert store.steps() == [1, 10, 11]
    assert resolve_checkpoint(store.folder / "checkpoint-last") == store.path(11)
    store.prune(None, best=None)
    assert store.steps() == [1, 10, 11]


def test_newest_falls_back_past_damage_with_one_line_each(store, caplog):
    for step in (1, 2, 3):
        save(store, step)
    os.truncate(store.path(3) / "model.safetensors", 10)
    (store.path(2) / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING, logger="stratcore"):
        assert store.newest().step == 1
    assert [record.getMessage().count("\n") for record in caplog.records] == [0, 0]
    assert "checkpoint-3" in caplog.text and "checkpoint-2" in caplog.text
    os.truncate(store.path(1) / "model.safetensors", 10)
    with pytest.raises(CheckpointError, match=r"none of its 3 checkpoint\(s\) is whole"):
        store.newest()


def test_no_checkpoint_is_no_error(store):
    assert store.newest() is None and store.steps() == []


def test_orphans_are_removed_and_nothing_else(store):
    save(store, 4)
    (store.folder / ".tmp-checkpoint-5").mkdir()
    (store.folder / ".tmp-checkpoint-5" / "model.json").write_text("{}")
    (store.folder / ".tmp-checkpoint-last").write_text("")
    (store.folder / "notes.txt").write_text("mine")
    store.remove_orphans()
    assert sorted(p.name for p in store.folder.iterdir()) == ["checkpoint-4", "checkpoint-last", "notes.txt"]


def test_newer_checkpoints_are_set_aside(store):
    for step in (1, 2, 3):
        save(store, step)
    store.set_aside_after(1)
    assert store.steps() == [1]
    assert open_checkpoint(store.folder / "set-aside-checkpoint-3").step == 3


@pytest.mark.parametrize("fault", ["full", "full while writing", "input/output", "read-only", "vanished"])
def test_a_failed_save_leaves_the_last_checkpoint_and_says_why(store, monkeypatch, fault):
    save(store, 1)

    def fail(number):
        def raise_error(*_arguments, **_options):
            raise OSError(number, os.strerror(number))

        return raise_error

    if fault == "full":
        usage = shutil.disk_usage(store.folder)
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=100))
    elif fault == "full while writing":
        monkeypatch.setattr("stratcore.training.checkpoint.save_file", fail(errno.ENOSPC))
    elif fault == "input/output":
        monkeypatch.setattr(os, "fsync", fail(errno.EIO))
    elif fault == "read-only":
        monkeypatch.setattr("pathlib.Path.mkdir", fail(errno.EROFS))
    else:
        store = CheckpointStore(store.folder / "file" / "run", Runtime.create("cpu"))
        (store.folder.parent).write_text("a file where a folder was")
    with pytest.raises(
        CheckpointError, match=r"checkpoint-2: checkpoint not written \(.*\); it needs 1200 bytes"
    ):
        save(store, 2)
    monkeypatch.undo()
    if fault != "vanished":
        assert store.newest().step == 1
        assert sorted(p.name for p in store.folder.iterdir()) == ["checkpoint-1", "checkpoint-last"]


def test_a_file_size_limit_is_survived(store):
    import resource
    import signal

    save(store, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="checkpoint-2: checkpoint not written .*1200 bytes"):
            save(store, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, former)
    assert store.newest().step == 1


def test_pointers_are_followed_and_checked(store):
    save(store, 3)
    store.point("best", 3)
    assert resolve_checkpoint(store.folder / "checkpoint-best") == store.path(3)
    assert resolve_checkpoint(store.path(3)) == store.path(3)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        resolve_checkpoint(store.folder / "checkpoint-9")
    for text in (
        "",
        "[]",
        "{}",
        json.dumps({"checkpoint": "../../elsewhere"}),
        json.dumps({"checkpoint": 3}),
    ):
        (store.folder / "checkpoint-best").write_text(text)
        with pytest.raises(ValueError, match="expected a pointer"):
            resolve_checkpoint(store.folder / "checkpoint-best")
