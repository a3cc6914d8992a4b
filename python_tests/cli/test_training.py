"""The command line of training: its options, and the rows that it refuses."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from python_tests.recipes.small_run import SMALL, files_of, refusal, small_table
from stratcore.cli import train
from stratcore.data import save_table
from stratcore.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("single_thread")
FLAGS = ["--config", "--help", "--output", "--print_config", "--reproduce-artefact", "--resume"]
KEYS = [
    *("recipe", "seed", "device", "batch_size", "start", "baselines"),
    *("data", "model", "objective", "stage"),
]


def printed(capfd: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert train([*words, "--print_config"]) == 0
    stdout, stderr = capfd.readouterr()
    assert stderr == ""
    return yaml.safe_load(stdout)


def test_the_options_are_these(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        train(["--help"])
    text = capfd.readouterr().out
    assert stop.value.code == 0
    assert sorted(set(re.findall(r"(?m)^\s+(?:-h, )?(--[\w-]+)", text))) == FLAGS
    assert all(re.search(rf"(?m)^  {name} +\S", text) for name in RECIPES)
    assert list(printed(capfd)) == KEYS


def test_recipes_of_language_models_print_their_keys(capfd: pytest.CaptureFixture[str]) -> None:
    run = printed(
        capfd, "toroidal_lm", "host=folder", "data.train=[a.txt]", "model.layers=[0,8]", "model.torus.depth=4"
    )
    assert list(run)[:4] == ["recipe", "host", "host_dtype", "data"]
    assert run["host"] == "folder" and run["data"]["train"] == ["a.txt"]  # type: ignore[index]
    assert run["model"]["layers"] == [0, 8] and run["model"]["torus"]["depth"] == 4  # type: ignore[index]
    assert train(["toroidal_lm", "model.torus.fusion=fft"]) == 2
    assert "fusion: expected one of low_rank, attention, mean or None, got 'fft'" in capfd.readouterr().err


def test_keys_of_a_comparison_of_images(capfd: pytest.CaptureFixture[str]) -> None:
    run = printed(
        capfd, "compare_images", "base.data.source=emoji", "base.data.test_source=other", "seeds=[0]"
    )
    assert list(run)[:4] == ["recipe", "base", "arms", "seeds"]
    assert run["base"]["data"]["test_source"] == "other"  # type: ignore[index]
    assert train(["compare_images", "arms=[plain]"]) == 2
    assert "arms: expected 'whole', the control of 'plain', among them" in capfd.readouterr().err


# ---- bad rows


def npy(values: np.ndarray) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.save(folder / "bad.npy", values)
        return folder / "bad.npy"

    return write


def text(name: str, content: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return write


def tensors(domain: bool = True, **changes: np.ndarray) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        table = small_table()
        arrays = {"embeddings": table.embeddings} | ({"domain": table.domain} if domain else {}) | changes
        save_file(arrays, folder / "bad.safetensors")
        return folder / "bad.safetensors"

    return write


def with_nan() -> np.ndarray:
    values = small_table().embeddings
    values[17, 3] = np.nan
    return values


BAD_ROWS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "none.npy", "none.npy: no such file"),
    "folder": (lambda folder: folder, "unknown kind of file ''"),
    "empty": (text("bad.csv", ""), "bad.csv: the file is empty (0 bytes)"),
    "header alone": (text("bad.csv", "e0,e1,domain\n"), "bad.csv: no row below the header"),
    "ragged": (text("bad.csv", "e0,e1,domain\n1,2,a\n3,4,b\n5,c\n"), "bad.csv: line 4: expected 3 columns, got 2"),
    "word": (text("bad.csv", "e0,e1,domain\n1,two,a\n"), "bad.csv: line 2, column 'e1': expected a number"),
    "NaN": (tensors(embeddings=with_nan()), "bad.safetensors: row 17, column 3: nan is not a finite"),
    "NaN, .npy": (npy(with_nan()), "bad.npy: row 17, column 3"),
    "dtype": (npy(np.zeros((50, 4), np.int32)), "bad.npy: embeddings must be float16, float32 or float64, got int32"),
    "dtype, .safetensors": (
        tensors(embeddings=np.zeros((50, 4), np.int64)),
        "bad.safetensors: key 'embeddings' must be one of F16, BF16, F32, F64, got I64",
    ),
    "one axis": (npy(np.zeros(50, np.float32)), "bad.npy: embeddings must be 2-D"),
    "kind": (text("bad.txt", "1 2 3\n"), "bad.txt: unknown kind of file '.txt'"),
    "not what it says": (text("bad.npy", "1 2 3\n"), "bad.npy: not a readable .npy file"),
    "cut short": (text("bad.safetensors", "1 2 3\n"), "bad.safetensors: not a readable safetensors file"),
    "one domain": (tensors(domain=False), "bad.safetensors: at least 2 domains are needed, got 1"),
    "all alike": (
        tensors(embeddings=np.ones((300, 16), np.float32)),
        "bad.safetensors: 300 rows are too few: the validation part is empty",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("fault", BAD_ROWS)
def test_bad_rows_are_one_line(fault: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write, expected = BAD_ROWS[fault]
    source = write(here)
    before = files_of(here)
    assert expected in refusal(capfd, [*SMALL, f"data.source={source}"])
    assert files_of(here) == before


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("rows", "setting", "least"),
    [
        (50, "batch_size=8", 40),  # 20 rows for each of two experts
        (300, "batch_size=250", 250),
        (60, "model.input_dim=49", 50),
    ],
)
def test_rows_that_are_too_few(
    rows: int, setting: str, least: int, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_table(small_table(rows, features=64), here / "few.safetensors")
    line = refusal(capfd, [*SMALL, "data.source=few.safetensors", setting])
    assert line.startswith(f"few.safetensors: at least {least} training rows are needed for 2 experts")
    assert all(key in line for key in ("model.sparsities", "batch_size", "model.input_dim", f"{rows} rows"))
    assert "runs" not in os.listdir(here)


@pytest.mark.usefixtures("no_training")
def test_an_input_size_that_does_not_fit(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    larger = refusal(capfd, [*SMALL, "model.input_dim=17"])
    assert larger == "model.input_dim: expected at most 16, the size of rows.safetensors, got 17"
    smaller = refusal(capfd, [*SMALL, "data.reduce=false"])
    assert smaller.startswith(
        "model.input_dim: expected 16, the size of rows.safetensors (data.reduce is off)"
    )
    assert os.listdir(here) == ["rows.safetensors"]


def test_a_missing_package_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    (tmp_path / "texts.txt").write_text("".join(f"text {i}\n" for i in range(40)), encoding="utf-8")
    host, texts = f"host={tmp_path / 'small.gguf'}", f"data.train=[{tmp_path / 'texts.txt'}]"
    assert train(["toroidal_lm", host, texts, "--output", str(tmp_path / "run")]) == 2
    assert capfd.readouterr().err == (
        "stratcore: reading .gguf files needs the package gguf: pip install gguf\n"
    )


def test_training_that_diverges_is_one_line(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["stage.optimizer.lr=1e30", "stage.optimizer.clip_norm=null", "stage.steps=40", "baselines=false"]
    assert train([*SMALL, *words]) == 1
    stderr = capfd.readouterr().err
    assert stderr.startswith("stratcore: stage 'train' stopped at step") and stderr.count("\n") == 1
