from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from python_tests.data import image_cases as cases
from stratcore.data import DataError, ImageSet
from stratcore.recipes import RECIPES, CompareImagesRun, compare_images, dual_stream_vit_run
from stratcore.recipes.compare_images_run import Trial, carry_out, execute, strangers
from stratcore.recipes.dual_stream_vit_run import prepare

pytestmark = pytest.mark.usefixtures("single_thread")


def small(**settings) -> CompareImagesRun:
    base = RECIPES["dual_stream_vit_digits"]()
    intervals = replace(base.stage.intervals, log_every=2, eval_every=4)
    optimizer = replace(base.stage.optimizer, warmup_steps=1)
    stage = replace(base.stage, steps=8, intervals=intervals, optimizer=optimizer)
    base = replace(base, device="cpu", batch_size=32, scan_every=0, stage=stage)
    arguments = {"arms": ("whole", "plain", "radial_gradient"), "seeds": (0, 1), "references": 200} | settings
    return replace(compare_images(), base=base, strangers=("digits",), **arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return execute(small(), tmp_path_factory.mktemp("run"), resume=False, command="command")


def test_whole_run(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    assert len(results["trials"]) == 6 and [row["arm"] for row in results["summary"]] == [*small().arms]
    assert [(row["arm"], row["control"]) for row in results["comparisons"]] == small().pairs()
    row = results["trials"][0]
    assert {"accuracy", "nll", "calibration_error", "geometric_accuracy", "neighbor_accuracy"} <= set(row)
    assert set(row["auroc"]["digits"]) == {"softmax", "energy", "neighbor"}
    assert [point["step"] for point in row["curve"]] == [4, 8]
    assert results["summary"][1].get("geometric_accuracy") is None  # a plain one has no such stream
    assert row["neighbor_accuracy"] > 0.5 and row["images_per_second"] > 0
    for name in ("report.html", "table.md", "plots/curves.png", "plots/differences.png"):
        assert (folder / name).stat().st_size > 100


def test_a_tangential_gradient_changes_nothing_behind_a_normalization(folder: Path) -> None:
    trials = json.loads((folder / "results.json").read_text())["trials"]
    by_arm = [[row["nll"] for row in trials if row["arm"] == arm] for arm in ("whole", "radial_gradient")]
    assert by_arm[0] == pytest.approx(by_arm[1], rel=1e-3) and by_arm[0][0] != by_arm[0][1]


def test_a_stopped_run_goes_on_and_ends_the_same(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "trials.jsonl").write_text("".join(lines[:5]) + lines[5][:40])
    execute(small(), tmp_path, resume=True, command="command")
    again, first = (
        json.loads((each / "trials.jsonl").read_text().splitlines()[5]) for each in (tmp_path, folder)
    )
    for row in (again, first):
        del row["fit_seconds"], row["images_per_second"]
    assert again == first


def test_strangers_take_the_form_of_the_images() -> None:
    found = strangers("digits", 3, 28)
    assert found.shape == (3, 28, 28) and found.num_images == 1797
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        strangers("nowhere", 1, 8)


def test_bad_strangers_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        execute(replace(small(), strangers=("nowhere",)), tmp_path, resume=False, command="command")
    assert not (tmp_path / "trials.jsonl").exists()


def test_another_style_is_tested_on_things_never_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    item = np.arange(80) // 2  # two variants of a thing each
    google = replace(cases.table(80), label=item % 4, item=item, source="google")
    twitter = replace(google, images=255 - google.images, source="twitter")
    sets = {"google": google, "twitter": twitter, "digits": cases.table(80)}
    monkeypatch.setattr(dual_stream_vit_run, "load_images", lambda name: ImageSet(sets[name]))
    base = RECIPES["dual_stream_vit_digits"]()
    shares = replace(base.data, source="google", test_source="twitter", validation=0.2, control=0.2)
    parts = prepare(replace(base, data=replace(shares, fit_model=True))).parts
    seen = np.concatenate([parts[name].item for name in ("train", "validation", "control")])
    assert not np.intersect1d(seen, parts["test"].item).size
    assert np.array_equal(np.union1d(seen, parts["test"].item), np.arange(40))
    assert [parts[name].source for name in ("train", "test")] == ["google", "twitter"]
    assert parts["test"].num_images == 16
    with pytest.raises(
        DataError, match="data.test_source: images: expected the classes of google and images with item"
    ):
        prepare(replace(base, data=replace(shares, test_source="digits")))


def test_a_trial_is_a_function_of_run_and_trial() -> None:
    run = small(arms=("whole",))
    first, second = (carry_out(run, Trial(arm="whole", seed=3)) for _ in range(2))
    for row in (first, second):
        del row["fit_seconds"], row["images_per_second"]
    assert first == second
