import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from python_tests.training.toy import ToyTask, finished_files, timeless_records, toy_trainer
from stratcore.training import Runtime


def test_one_process_is_the_trivial_case():
    with Runtime.create("cpu") as runtime:
        assert (runtime.rank, runtime.world_size, runtime.is_main) == (0, 1, True)
        value = torch.ones(2)
        assert runtime.reduce_sum(value) is value
        assert runtime.gather("x") == ["x"] and runtime.broadcast("x") == "x" and runtime.any(True)
        model = torch.nn.Linear(1, 1)
        assert runtime.wrap(model) is model


def test_wrong_devices_are_one_line(monkeypatch):
    with pytest.raises(ValueError, match="device: expected auto, cpu or cuda, got 'tpu'"):
        Runtime.create("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch finds none"):
        Runtime.create("cuda")
    assert Runtime.create("auto").device == torch.device("cpu")


def test_two_ranks_equal_one_process_and_resume_bitwise(tmp_path):
    ranks = tmp_path / "ranks"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "python_tests.training.rank_driver", str(ranks)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "stopped by SIGTERM at step 9" in done.stderr
    assert finished_files(ranks / "broken") == finished_files(ranks / "through")
    assert "rank-1.safetensors" in finished_files(ranks / "through")
    assert timeless_records(ranks / "broken") == timeless_records(ranks / "through")

    alone = tmp_path / "alone"
    toy_trainer(alone, ToyTask(Runtime.create("cpu"), batch_size=8, dropout=0.0)).fit()
    expected = load_file(alone / "checkpoint-40" / "model.safetensors")
    actual = load_file(ranks / "through" / "checkpoint-40" / "model.safetensors")
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-6, atol=1e-6)
    for own, other in zip(timeless_records(ranks / "through"), timeless_records(alone), strict=True):
        for name in own["values"].keys() & {"loss", "error", "gradient_norm"}:
            assert own["values"][name] == pytest.approx(other["values"][name], rel=1e-5)
