from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stratcore.cli import train
from stratcore.recipes import RECIPES, ComparePositionsRun, compare_positions
from stratcore.recipes.compare_positions import TASKS
from stratcore.recipes.compare_positions_run import (
    Trial,
    build,
    carry_out,
    floors,
    rollout,
    source_of,
    tuning_trials,
)
from stratcore.recipes.settings import load_run

pytestmark = pytest.mark.usefixtures("single_thread")
SIZES = [
    *("dim=8", "num_layers=1", "num_heads=1", "batch_size=2", "evaluation_sequences=4", "stage.steps=4"),
    *("stage.optimizer.warmup_steps=1", "stage.intervals.eval_every=2", "learning_rates=[1e-3,1e-2]"),
]
SETTINGS = [
    *(f"small.{size}" for size in SIZES),
    *(f"bytes.{size}" for size in SIZES),
    *("data.sites=6", "data.symbols=3", "data.reach=2", "data.advection.size=4", "data.window=8"),
    *("data.series.days=2", "data.series.hours=3", "data.series.weeks=1", "data.text_bytes=2000"),
    *("seeds=[0,1]", "tuning_seeds=1", "rope_bases=[10]", "slope_starts=[0.1]", "rollout=2", "device=cpu"),
]


def small(*settings: str) -> ComparePositionsRun:
    return load_run(RECIPES, "compare_positions", None, [*SETTINGS, *settings])


def trial(task: str, arm: str = "torus", seed: int = 0) -> Trial:
    return Trial(task=task, arm=arm, seed=seed, learning_rate=1e-2, rope_base=10.0, slope=0.1)


def test_whole_run_and_resume(tmp_path: Path) -> None:
    words = ["compare_positions", *SETTINGS, "tasks=[ring_copy_seam]", "arms=[torus,rope]"]
    output = ["--output", str(tmp_path / "run")]
    assert train([*words, *output]) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    # Two arms: two rates on one seed, then the better one on both.
    assert len(results["trials"]) == 2 * (2 + 1)
    assert [row["arm"] for row in results["summary"]] == ["rope", "torus"]
    assert set(results["summary"][0]["losses"]) == {"test", "unrotated"}
    assert [row["best_rival"] for row in results["claims"]] == ["rope"]
    for name in ("report.html", "table.md", "plots/ratios.png", "plots/curves_ring_copy_seam.png"):
        assert (tmp_path / "run" / name).stat().st_size > 100
    # A run that stopped after five trials goes on and ends the same.
    lines = (tmp_path / "run/trials.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run/trials.jsonl").write_text("".join(lines[:5]) + lines[5][:20])
    assert train([*words, *output, "--resume"]) == 0
    again = json.loads((tmp_path / "run/results.json").read_text())
    keys = ("task", "arm", "seed", "learning_rate", "losses", "curve")
    assert [[row[k] for k in keys] for row in again["trials"]] == [
        [row[k] for k in keys] for row in results["trials"]
    ]


def test_every_task_and_arm_trains() -> None:
    run = small(f"tasks=[{','.join(TASKS)}]")
    assert [name for name, floor in floors(run).items() if floor] == ["day_week"]
    trials = [each for each in tuning_trials(run) if each.learning_rate == 1e-2]
    assert len(trials) == 5 * 6 + 2 * 9
    for each in trials:
        row = carry_out(run, each)
        assert all(math.isfinite(loss) and loss > 0 for loss in row["losses"].values()), each
        assert [point["step"] for point in row["curve"]] == [2, 4]
        assert ("rollout" in row["losses"]) == (each.task == "advection_diffusion")
    assert carry_out(run, trials[0])["losses"] == carry_out(run, trials[0])["losses"]


@pytest.mark.cuda
def test_every_task_and_arm_trains_on_a_gpu() -> None:
    run = replace(small(f"tasks=[{','.join(TASKS)}]"), device="cuda")
    for each in tuning_trials(run):
        if each.learning_rate == 1e-2:
            losses = [carry_out(run, each)["losses"] for _ in range(2)]
            assert losses[0] == losses[1] and all(map(math.isfinite, losses[0].values())), each


def test_arms_of_a_seed_start_alike() -> None:
    run = small()
    torch.manual_seed(3)
    first = build(run, trial("ring_copy", "rope")).state_dict()
    torch.manual_seed(3)
    second = build(run, trial("ring_copy", "torus")).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_trial_has_its_base_of_rope_and_its_slopes() -> None:
    slopes = build(small(), trial("ring_copy")).blocks[0].attention.slopes()
    torch.testing.assert_close(slopes, torch.full_like(slopes, 0.1))
    angle = build(small(), trial("ring_copy", "rope")).blocks[0].attention.sine_NP[1]
    torch.testing.assert_close(angle, torch.sin(10.0 ** (-torch.arange(4) / 4)))


def test_a_rollout_of_the_exact_steps_has_no_error() -> None:
    run = small()
    source = source_of("advection_diffusion", run.data)

    def exact(inputs: torch.Tensor) -> torch.Tensor:
        field, velocity = inputs[..., 0].unflatten(1, (4, 4)), inputs[:, 0, 1:]
        return source.advance(field, source.options.speed * velocity).flatten(1)[..., None]

    assert rollout(exact, source, 5, torch.device("cpu"), 0) < 1e-9
    assert rollout(lambda inputs: 0 * exact(inputs), source, 5, torch.device("cpu"), 0) == pytest.approx(1)


def test_the_model_of_bytes_is_as_large_as_asked() -> None:
    run = compare_positions()
    data = replace(run.data, text_bytes=20_000)
    with torch.device("cpu"):
        source_of("bytes", data)
    with torch.device("meta"):
        model = build(replace(run, data=data), trial("bytes"))
    assert 10_000_000 <= model.num_parameters()["total"] <= 50_000_000


def test_bad_text_is_refused_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for setting, words in (
        ("data.text=nowhere", "nowhere: no such file"),
        ("data.text_bytes=100", "text: expected"),
    ):
        output = tmp_path / setting
        assert train(["compare_positions", *SETTINGS, "tasks=[bytes]", setting, "--output", str(output)]) == 2
        assert capsys.readouterr().err.startswith(f"stratcore: {words}")
        assert not output.exists()
