import json
import logging
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from python_tests.training.toy import ToyTask, finished_files, timeless_records, toy_stage, toy_trainer
from stratcore.training import (
    CheckpointError,
    Intervals,
    Numerics,
    Retention,
    Runtime,
    TrainingInterrupted,
    open_checkpoint,
)


@pytest.fixture(scope="module")
def through(tmp_path_factory):
    folder = tmp_path_factory.mktemp("through")
    toy_trainer(folder).fit()
    return folder


def assert_same_end(folder, through):
    assert finished_files(folder) == finished_files(through)
    assert timeless_records(folder) == timeless_records(through)


def interrupted_task(step, signal_number=signal.SIGTERM):
    task = ToyTask(Runtime.create("cpu"))
    task.after_step = lambda now: os.kill(os.getpid(), signal_number) if now == step else None
    return task


def test_one_seed_gives_equal_bits_and_another_does_not(tmp_path, through):
    torch.randn(5)
    toy_trainer(tmp_path / "again").fit()
    assert_same_end(tmp_path / "again", through)
    toy_trainer(tmp_path / "other", seed=1).fit()
    assert (
        finished_files(tmp_path / "other")["model.safetensors"]
        != finished_files(through)["model.safetensors"]
    )


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_resumed_equals_uninterrupted(tmp_path, through, kills):
    done = subprocess.run(
        [sys.executable, "-m", "python_tests.training.kill_driver", str(tmp_path), str(kills), "0"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) >= kills // 2
    assert_same_end(tmp_path, through)
    assert not list(tmp_path.glob(".tmp-*")) and not list(tmp_path.glob("set-aside-*"))


@pytest.mark.parametrize("step", [1, 6, 7, 9, 23])
def test_a_stopped_run_saves_and_resumes_bitwise(tmp_path, through, step):
    with pytest.raises(TrainingInterrupted) as stopped:
        toy_trainer(tmp_path, interrupted_task(step)).fit()
    assert stopped.value.code == 128 + signal.SIGTERM
    assert stopped.value.checkpoint == tmp_path / f"checkpoint-{step}"
    toy_trainer(tmp_path).fit("auto")
    assert_same_end(tmp_path, through)


def test_ctrl_c_saves_too(tmp_path):
    with pytest.raises(TrainingInterrupted) as stopped:
        toy_trainer(tmp_path, interrupted_task(5, signal.SIGINT)).fit()
    assert stopped.value.code == 130 and open_checkpoint(tmp_path / "checkpoint-5").step == 5


def test_resuming_from_a_named_checkpoint_rewinds(tmp_path, through, caplog):
    result = toy_trainer(tmp_path, retention=Retention(save_total_limit=None, best_metric="error")).fit()
    with caplog.at_level(logging.WARNING, logger="stratcore"):
        toy_trainer(tmp_path).fit(tmp_path / "checkpoint-16")
    assert "stage.retention" in caplog.text and "set aside" in caplog.text
    assert_same_end(tmp_path, through)
    assert (tmp_path / "set-aside-checkpoint-40").is_dir() and result.step == 40


def test_damage_falls_back_to_the_checkpoint_before(tmp_path, through, caplog):
    with pytest.raises(TrainingInterrupted):
        toy_trainer(tmp_path, interrupted_task(11)).fit()
    weights = tmp_path / "checkpoint-11" / "optimizer.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors: expected \d+ bytes"):
        toy_trainer(tmp_path).fit(tmp_path / "checkpoint-last")
    with caplog.at_level(logging.WARNING, logger="stratcore"):
        toy_trainer(tmp_path).fit("auto")
    assert "falling back" in caplog.text
    assert_same_end(tmp_path, through)


def test_a_finished_stage_is_restored_at_once(tmp_path):
    first = toy_trainer(tmp_path).fit()
    task = ToyTask(Runtime.create("cpu"))
    assert toy_trainer(tmp_path, task).fit("auto") == first
    assert task.after_steps == []


def test_best_is_tracked_and_kept(tmp_path):
    values = iter([0.5, 0.2, float("nan"), 0.3, 0.2])
    task = ToyTask(Runtime.create("cpu"))
    task.evaluate = lambda model, split: {"error": next(values)}
    result = toy_trainer(
        tmp_path,
        task,
        steps=20,
        intervals=Intervals(eval_every=4, save_every=4),
        retention=Retention(save_total_limit=1, best_metric="error"),
    ).fit()
    assert (result.best_value, result.best_step) == (0.2, 8)
    assert json.loads((tmp_path / "checkpoint-best").read_text()) == {"checkpoint": "checkpoint-8", "step": 8}
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-20",
        "checkpoint-8",
        "checkpoint-best",
        "checkpoint-last",
    ]


def test_best_by_largest_value_and_unknown_metric(tmp_path):
    retention = Retention(best_metric="error", best_mode="max")
    result = toy_trainer(tmp_path / "max", retention=retention).fit()
    assert result.best_step == 7
    with pytest.raises(
        ValueError, match=r"best_metric: expected a metric of the evaluation \(error, noise\)"
    ):
        toy_trainer(tmp_path / "none", retention=Retention(best_metric="accuracy")).fit()


def test_an_earlier_run_is_not_overwritten(tmp_path):
    toy_trainer(tmp_path).fit()
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(FileExistsError, match="holds an earlier run"):
        toy_trainer(tmp_path).fit()
    with pytest.raises(ValueError, match="expected stage 'other', got 'train'"):
        toy_trainer(tmp_path, name="other").fit("auto")
    with pytest.raises(ValueError, match="expected at most 12 steps, got 40"):
        toy_trainer(tmp_path, steps=12).fit("auto")
    with pytest.raises(FileNotFoundError, match="checkpoint-7: no such checkpoint"):
        toy_trainer(tmp_path).fit(tmp_path / "checkpoint-7")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_another_model_is_one_clear_line(tmp_path):
    toy_trainer(tmp_path).fit()
    task = ToyTask(Runtime.create("cpu"))
    task.model = torch.nn.Linear(6, 1)
    with pytest.raises(CheckpointError, match="does not fit this model") as error:
        toy_trainer(tmp_path, task).fit("auto")
    assert "\n" not in str(error.value)


def test_evaluating_more_often_changes_nothing(tmp_path):
    weights = []
    for every in (0, 1):
        task = ToyTask(Runtime.create("cpu"))
        toy_trainer(tmp_path / str(every), task, intervals=Intervals(eval_every=every)).fit()
        weights.append(torch.cat([p.flatten() for p in task.model.parameters()]))
    assert torch.equal(*weights)


def test_evaluation_sees_the_average_without_dropout(tmp_path):
    task = ToyTask(Runtime.create("cpu"))
    seen = []
    task.evaluate = lambda model, split: (
        seen.append((model.training, model[0].weight.clone())) or {"error": 1.0}
    )
    trainer = toy_trainer(tmp_path, task, intervals=Intervals(), steps=6)
    trainer.fit()
    training, weight = seen[-1]
    assert not training and task.model.training
    assert torch.equal(weight, trainer._optimization.average.state_dict()["weights"]["0.weight"])
    assert not torch.equal(weight, task.model[0].weight)


def test_resuming_late_costs_nothing(tmp_path):
    class Endless(ToyTask):
        def batches(self, epoch, start):
            index = start
            while True:
                rows = torch.randint(48, (4,), generator=torch.Generator().manual_seed(index))
                yield self.x_ND[rows], self.y_N[rows]
                index += 1

    stage = {"steps": 10**6, "intervals": Intervals(log_every=0), "accumulate": 1}
    trainer = toy_trainer(tmp_path, Endless(Runtime.create("cpu")), **stage)
    trainer._progress.step = 10**6 - 2
    trainer._stream.load_state_dict({"epoch": 0, "position": 10**6 - 2})
    trainer._save()
    trainer = toy_trainer(tmp_path, Endless(Runtime.create("cpu")), **stage)
    begun = time.perf_counter()
    assert trainer.fit("auto").step == 10**6
    assert time.perf_counter() - begun < 1.0


def test_an_op_without_deterministic_kernel_raises_unless_allowed(tmp_path):
    seen = []
    task = ToyTask(Runtime.create("cpu"))
    task.after_step = lambda step: seen.append(torch.are_deterministic_algorithms_enabled())
    toy_trainer(tmp_path / "on", task, steps=5).fit()
    toy_trainer(tmp_path / "off", task, steps=5, numerics=Numerics(deterministic=False)).fit()
    assert seen == [True] * 5 + [False] * 5


def test_two_stages_share_a_metrics_file(tmp_path):
    from stratcore.training import Trainer

    runtime, path = Runtime.create("cpu"), tmp_path / "metrics.jsonl"
    for _ in range(2):
        task = ToyTask(runtime)
        for name in ("transfer", "tune"):
            stage = toy_stage(name=name, steps=10)
            Trainer(task, stage, runtime, tmp_path / name, metrics_path=path).fit("auto")
    stages = [json.loads(line)["stage"] for line in path.read_text().splitlines()]
    assert stages == sorted(stages, key=["transfer", "tune"].index) and set(stages) == {"transfer", "tune"}


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_skips_faults_and_resumes_bitwise(tmp_path, precision):
    from python_tests.training.test_optimization import FaultyTask
    from stratcore.training import Trainer

    runtime = Runtime.create("cuda")
    stage = toy_stage(numerics=Numerics(precision=precision))

    def task(stop):
        faulty = FaultyTask({}, runtime)
        faulty.faults = {call: ("loss", float("nan")) for call in (11, 30)}
        faulty.after_step = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == stop else None
        return faulty

    result = Trainer(task(None), stage, runtime, tmp_path / "through").fit()
    assert result.skipped_steps >= 2
    with pytest.raises(TrainingInterrupted):
        Trainer(task(9), stage, runtime, tmp_path / "broken").fit()
    resumed = task(None)
    resumed.calls = 18
    Trainer(resumed, stage, runtime, tmp_path / "broken").fit("auto")
    assert_same_end(tmp_path / "broken", tmp_path / "through")
