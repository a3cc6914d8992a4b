"""Whole runs of `python -m stratcore.train` on a small table: processes, ranks, kills, and what they leave."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from python_tests.recipes.small_run import (
    SETTINGS,
    SMALL,
    files_of,
    last_checkpoint,
    refusal,
    save_small_table,
    timeless_results,
)
from python_tests.training.toy import timeless_records
from stratcore import analysis
from stratcore.cli import train
from stratcore.recipes import RECIPES
from stratcore.recipes.settings import load_run

pytestmark = pytest.mark.usefixtures("single_thread")
PROGRAM = (sys.executable, "-m", "stratcore.train")
# At these sizes a second thread costs more than it gives.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TERM": "xterm"}


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis, "run_figures", lambda *arguments: {})


def start(folder: Path, *words: str, **options: object) -> subprocess.Popen[str]:
    environment = {**os.environ, **ENVIRONMENT}
    return subprocess.Popen([*PROGRAM, *words], cwd=folder, env=environment, text=True, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A folder with the small table and a run on it with its baselines, and what it wrote into pipes."""
    folder = tmp_path_factory.mktemp("finished")
    save_small_table(folder)
    process = start(folder, *SMALL, "--output", "run", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return folder, stdout, stderr


@pytest.fixture
def run_copy(finished: tuple[Path, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run, beside its table, in the current folder."""
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def test_a_mistake_ends_the_process_with_code_2(here: Path) -> None:
    process = start(here, "stage.stepz=3", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (2, "")
    assert stderr == "stratcore: unknown key 'stage.stepz', did you mean 'stage.steps'?\n"


@pytest.mark.usefixtures("no_training")
def test_bad_rows_leave_an_earlier_run_as_it_was(run_copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (run_copy.parent / "rows.safetensors").write_bytes(b"")
    before = files_of(run_copy)
    line = refusal(capfd, [*SMALL, "--output", "run", "--resume"])
    assert line == "rows.safetensors: the file is empty (0 bytes)"
    assert files_of(run_copy) == before


@pytest.mark.usefixtures("no_training")
def test_an_earlier_run_is_not_touched(run_copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = files_of(run_copy)
    again = refusal(capfd, [*SMALL, "--output", "run"])
    assert again == "run holds an earlier run; --resume goes on with it, another --output starts anew"
    other = refusal(capfd, [*SMALL, "--output", "run", "--resume", "stage.steps=7"])
    assert other.startswith("--resume: the settings differ from those in run/config.yaml; give the same ones")
    assert files_of(run_copy) == before


def test_what_a_run_folder_holds(finished: tuple[Path, str, str]) -> None:
    run = finished[0] / "run"
    assert {path.name for path in run.iterdir()} == {
        *("config.yaml", "metrics.jsonl", "results.json", "plots", "report.html", "baselines"),
        *("checkpoint-6", "checkpoint-best", "checkpoint-last"),
    }
    analysis.validate_results(json.loads((run / "results.json").read_text()))
    assert load_run(RECIPES, None, run / "config.yaml", []) == load_run(RECIPES, None, None, SMALL)
    plots = {path.name: path.read_bytes() for path in (run / "plots").iterdir()}
    assert {"dimension_analysis.png", "results_summary.png", "embedding_2d.png", "embedding_3d.png"} <= set(
        plots
    )
    assert all(content.startswith(b"\x89PNG\r\n\x1a\n") for content in plots.values())
    report = (run / "report.html").read_text()
    assert report.count("data:image/png;base64,") == len(plots)
    without_images = re.sub(r"data:image/png;base64,[\w+/=]+", "", report)
    assert not re.search(r"https?:|url\(|@import|<script|<link|src=\"[^\"]", without_images)
    assert "nan" not in re.sub(r"<[^>]*>", " ", without_images).lower().split()
    assert {path.name for path in (run / "baselines").iterdir()} == {
        "topk_equal_flops",
        "topk_equal_parameters",
    }


def test_what_a_pipe_gets(finished: tuple[Path, str, str]) -> None:
    _, stdout, stderr = finished
    assert stdout == "report: run/report.html\n"
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", stderr), "no control characters but the line's end"
    assert re.search(r"(?m)^train 6/6 validation  fvu \d", stderr)
    assert len(stderr.splitlines()) == 6  # train and validation of the mixture and two baselines


@pytest.mark.usefixtures("no_figures")
def test_config_of_a_run_gives_the_same_run_bitwise(run_copy: Path) -> None:
    assert train(["--config", "run/config.yaml", "--output", "again"]) == 0
    again = run_copy.parent / "again"
    assert (again / "config.yaml").read_bytes() == (run_copy / "config.yaml").read_bytes()
    for part in ("", "baselines/topk_equal_flops", "baselines/topk_equal_parameters"):
        first, second = last_checkpoint(run_copy / part), last_checkpoint(again / part)
        assert {"model.safetensors", "optimizer.safetensors"} <= set(first) and first == second
        assert timeless_records(run_copy / part) == timeless_records(again / part)
    assert timeless_results(run_copy) == timeless_results(again)


@pytest.mark.usefixtures("no_figures")
def test_resuming_a_finished_run_changes_no_result(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*arguments: object) -> None:
        raise AssertionError("a step was made")

    before, results = files_of(run_copy), timeless_results(run_copy)
    with monkeypatch.context() as patch:
        patch.setattr("stratcore.training.optimization.Optimization.run", step)
        assert train([*SMALL, "--output", "run", "--resume"]) == 0
    assert timeless_results(run_copy) == results
    after = files_of(run_copy)
    written = {name for name in before if after[name] != before[name]}
    assert written <= {"results.json", "report.html"} and set(after) == set(before)


@pytest.mark.usefixtures("no_figures")
def test_a_run_that_stopped_between_its_models_goes_on(run_copy: Path) -> None:
    results, peer = timeless_results(run_copy), "baselines/topk_equal_parameters"
    expected = last_checkpoint(run_copy / peer)
    for name in ("results.json", "report.html"):
        (run_copy / name).unlink()
    shutil.rmtree(run_copy / peer)
    assert train(["--config", "run/config.yaml", "--output", "run", "--resume"]) == 0
    assert last_checkpoint(run_copy / peer) == expected
    assert timeless_results(run_copy) == results


# ---- killed, several ranks, texts

LONG = (
    "stage.steps=150",
    "stage.intervals={eval_every: 30, log_every: 7, save_every: 10}",
    "baselines=false",
)


def run_on_a_terminal_and_kill(folder: Path, words: Sequence[str], checkpoint: int) -> bytes:
    """Kills a run once it wrote a checkpoint; returns what it drew on its terminal."""
    ours, theirs = pty.openpty()
    process = start(folder, *words, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    drawn: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(ours, 4096):
                drawn.append(chunk)
        except OSError:  # how a terminal ends on Linux
            return

    reader = threading.Thread(target=read)
    reader.start()
    deadline = time.monotonic() + 120
    while not (folder / f"run/checkpoint-{checkpoint}").is_dir() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    reader.join()
    os.close(ours)
    return b"".join(drawn)


@pytest.mark.usefixtures("no_figures")
def test_a_killed_run_resumes_to_the_same_end_bitwise(here: Path) -> None:
    words = [*SMALL, *LONG]
    drawn = run_on_a_terminal_and_kill(here, [*words, "--output", "run"], 30)
    assert b"\x1b[" in drawn and b"/150" in drawn, "a progress bar on a terminal"
    stopped = {path.name for path in (here / "run").glob("checkpoint-*0")}
    assert "checkpoint-30" in stopped and "checkpoint-150" not in stopped
    assert not (here / "run/results.json").exists()
    assert train([*words, "--output", "run", "--resume"]) == 0
    assert train([*words, "--output", "through"]) == 0
    assert last_checkpoint(here / "run") == last_checkpoint(here / "through")
    assert timeless_records(here / "run") == timeless_records(here / "through")
    assert timeless_results(here / "run") == timeless_results(here / "through")


def test_two_ranks_write_one_report(here: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "stratcore.train", *SMALL, "baselines=false"],
        cwd=here,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "report: runs/dictionary_moe/report.html\n"
    assert os.listdir(here / "runs") == ["dictionary_moe"]
    run = here / "runs/dictionary_moe"
    assert {"rank-0.safetensors", "rank-1.safetensors"} <= set(last_checkpoint(run))
    analysis.validate_results(json.loads((run / "results.json").read_text()))
    assert (run / "report.html").stat().st_size > 100_000
    assert len(timeless_records(run)) == 2


def save_tiny_bert(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = {"[UNK]": 0, "[PAD]": 1} | {f"w{i}": i + 2 for i in range(20)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        folder
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=22, max_position_embeddings=16, pad_token_id=1, **sizes)).save_pretrained(
        folder
    )


@pytest.mark.usefixtures("no_figures")
def test_texts_with_an_encoder(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_tiny_bert(here / "encoder")
    rng = np.random.default_rng(0)
    for name, low in (("a", 0), ("b", 8)):
        lines = [
            " ".join(f"w{i}" for i in rng.integers(low, low + 12, rng.integers(3, 12))) for _ in range(90)
        ]
        (here / f"{name}.txt").write_text("\n".join(lines) + "\n")
    words = [*SETTINGS, "data.texts=[a.txt,b.txt]", "data.encoder=encoder", "baselines=false"]
    capfd.readouterr()
    assert train([*words, "--output", "run"]) == 0
    assert "\r" not in capfd.readouterr().err
    results = json.loads((here / "run/results.json").read_text())
    assert results["data"]["num_features"] == 16 and results["data"]["name"] == "encoder"
    assert [domain["name"] for domain in results["data"]["domains"]] == ["a", "b"]
    assert all(3 <= domain["mean_tokens"] <= 11 for domain in results["data"]["domains"])
    assert sum(domain["num_test"] for domain in results["data"]["domains"]) == results["data"]["num_test"]
    assert list((here / "run/embeddings").glob("*/shard-00000.safetensors"))

    no_model = refusal(capfd, [*words, "data.encoder=./none", "--output", "other"])
    assert no_model == "none: no such model folder"
    assert "c.txt: no such file" in refusal(capfd, [*words, "data.texts=[a.txt,c.txt]", "--output", "other"])
    assert not (here / "other").exists()
