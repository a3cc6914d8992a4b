from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from python_tests.data.image_cases import write_pictures
from python_tests.recipes.small_run import files_of, refusal
from stratcore.cli import train
from stratcore.data import DataError
from stratcore.models import DualStreamViT, PlainViT
from stratcore.recipes import RECIPES
from stratcore.recipes.dual_stream_vit_run import build, prepare, take_over

pytestmark = pytest.mark.usefixtures("single_thread")
DIGITS = ["dual_stream_vit_digits", "device=cpu", "scan_every=0"]
SHORT = ["stage.steps=100", "stage.optimizer.warmup_steps=10", "stage.average.decay=0.97"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke recipe in a shorter form."""
    place = tmp_path_factory.mktemp("digits") / "run"
    assert train([*DIGITS, *SHORT, "--output", str(place)]) == 0
    return place


def test_the_smoke_recipe_learns_the_digits(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    (row,) = results["trials"]
    assert row["test"]["accuracy"] >= 0.93 and row["test"]["geometric_accuracy"] >= 0.9
    assert results["data"]["rows"] == {"train": 1295, "validation": 73, "control": 70, "test": 359}
    assert (
        row["parameters"]["total"]
        == DualStreamViT(replace(RECIPES["dual_stream_vit_digits"]().model, num_classes=10)).num_parameters()[
            "total"
        ]
    )
    assert {"calibration_error", "health/effective_dim", "health/anchor_entropy"} <= set(row["test"])
    assert results["configuration"]["model"]["num_classes"] == 10
    assert {"config.yaml", "metrics.jsonl", "report.html", "table.md"} <= set(os.listdir(folder))


def test_warm_start_takes_over_what_fits(folder: Path) -> None:
    run = RECIPES["dual_stream_vit_digits"]()
    model = DualStreamViT(run.model)
    everything = take_over(model, folder)
    assert everything["at_start"] == 0 and everything["taken"] == len(model.state_dict())
    other = DualStreamViT(replace(run.model, num_classes=7))
    start = other.classifier[-1].weight.clone()
    assert take_over(other, folder)["at_start"] == 4  # weights and biases of both classifiers
    assert torch.equal(other.classifier[-1].weight, start)
    assert torch.equal(other.geometric_entry.weight, model.geometric_entry.weight)
    with pytest.raises(ValueError, match="warm_start: .*: no weight has a name and shape of this model"):
        take_over(torch.nn.Linear(2, 2), folder)
    with pytest.raises(FileNotFoundError, match="warm_start: nowhere: no such checkpoint or run folder"):
        take_over(other, Path("nowhere"))


def test_parts_are_disjoint_and_the_model_fits_the_images() -> None:
    run = RECIPES["dual_stream_vit_digits"]()
    found = prepare(replace(run, model=replace(run.model, channels=3, image_size=32, num_classes=2)))
    assert (found.run.model.channels, found.run.model.image_size, found.run.model.num_classes) == (1, 8, 10)
    images = np.concatenate([table.images.reshape(-1, 64) for table in found.parts.values()])
    assert len(images) == 1797 == len(np.unique(images, axis=0))
    plain = build(replace(found.run, architecture="plain"), found.parts["train"])
    own = build(found.run, found.parts["train"])
    assert isinstance(plain, PlainViT) and isinstance(own, DualStreamViT)
    assert plain.num_parameters()["total"] == pytest.approx(own.num_parameters()["total"], rel=0.02)
    assert float(own.pixels.mean) == pytest.approx(found.parts["train"].images.mean() / 255, rel=1e-5)


def test_sigmoids_start_at_the_base_rate_but_not_in_the_source_documents_runs() -> None:
    run = RECIPES["dual_stream_vit_digits"]()
    parts = prepare(run).parts
    bce = replace(run, objective=replace(run.objective, classification="bce"))
    for each, expected in (
        (bce, True),
        (run, False),
        (replace(bce, model=replace(bce.model, standardize=False)), False),
    ):
        bias = build(each, parts["train"]).classifier[-1].bias
        assert torch.allclose(bias, torch.full_like(bias, -np.log(9.0))) == expected


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["dual_stream_vit_run4", "data.source=digits"], "digits: expected RGB images (model.channels = 3), got"),
        (
            ["dual_stream_vit_run4", "data.source=digits", "model.channels=1"],
            "digits: expected images of 32 x 32 pixels (model.image_size), got 8 x 8",
        ),
        ([*DIGITS, "model.patch_size=3"], "image_size: expected a multiple of patch_size = 3, got 8"),
        ([*DIGITS, "batch_size=5000"], "batch_size: expected a number in [1, 1295] training images, got 5000"),
        ([*DIGITS, "data.source=pictures"], "pictures: expected at least 2 classes, got only 'a'"),
        ([*DIGITS, "data.source=nowhere"], "nowhere: no such file or folder, and none of the sets digits,"),
        ([*DIGITS, "warm_start=nowhere"], "warm_start: nowhere: no such checkpoint or run folder"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_before_training(
    words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    write_pictures(tmp_path / "pictures", {f"a/{i}.png": image for i, image in enumerate(pixels)})
    before = files_of(tmp_path)
    assert line in refusal(capfd, words)
    assert files_of(tmp_path) == before


def test_too_few_images_for_all_parts(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8), np.uint8)
    write_pictures(tmp_path, {f"{name}/{i}.png": pixels for name in "ab" for i in range(3)})
    run = RECIPES["dual_stream_vit_digits"]()
    with pytest.raises(DataError, match="part 1 with a share of 0.05 of .* images is empty"):
        prepare(replace(run, data=replace(run.data, source=str(tmp_path))))
