import builtins
import json
import math

import pytest
import torch

from stratcore.training import MetricWriter, Runtime
from stratcore.training.metrics import MetricWindow

RUNTIME = Runtime.create("cpu")
CPU = torch.device("cpu")
NO, YES = torch.tensor(False), torch.tensor(True)


def test_window_means_are_weighted_and_skipped_steps_count_nothing():
    window = MetricWindow(CPU)
    window.add(("a",), torch.tensor([1.0, 2.0, 10.0]), NO)
    window.add(("a",), torch.tensor([3.0, 4.0, 20.0]), NO)
    window.add(("a",), torch.tensor([9.0, math.nan, math.nan]), YES)
    window.add(("a", "b"), torch.tensor([4.0, 2.0, 30.0, 5.0]), NO)
    restored = MetricWindow(CPU)
    restored.load_state_dict(window.state_dict())
    for copy in (window, restored):
        assert copy.read(RUNTIME) == pytest.approx({"loss": 1.0, "a": (10 + 60 + 120) / 8, "b": 5.0})
        assert copy.read(RUNTIME) == {}


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_and_rewinding(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    first, second = (MetricWriter(path, stage, RUNTIME) for stage in ("warm", "tune"))
    first.write(9, "train", {"loss": 0.5})
    assert first.has_records() and not second.has_records()
    for step in (1, 2, 3):
        second.write(step, "train", {"loss": 1 / step, "bad": math.nan, "count": step})
    assert records(path)[1] == {
        "step": 1,
        "stage": "tune",
        "split": "train",
        "time": records(path)[1]["time"],
        "values": {"loss": 1.0, "bad": None, "count": 1},
    }
    whole = path.read_text()
    second.rewind(3)
    assert path.read_text() == whole
    with open(path, "a") as stream:
        stream.write('{"step": 4, "sta')
    second.rewind(3)
    assert path.read_text() == whole
    second.rewind(2)
    assert [(r["stage"], r["step"]) for r in records(path)] == [("warm", 9), ("tune", 1), ("tune", 2)]
    first.rewind(4)
    assert path.read_text() == ""


def test_tensorboard_gets_the_finite_values(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = MetricWriter(tmp_path / "metrics.jsonl", "tune", RUNTIME, tensorboard=True)
    writer.write(2, "train", {"loss": 0.25, "bad": math.inf})
    writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "tune"))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(2, 0.25)]


def test_absent_tensorboard_is_one_line(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        MetricWriter(tmp_path / "metrics.jsonl", "tune", RUNTIME, tensorboard=True)
