"""The command line of analysis: what a target means, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from stratcore.cli import analyze
from stratcore.cli.analysis import target_settings
from stratcore.recipes import ANALYSES


def printed(capfd: pytest.CaptureFixture[str], *words: str) -> dict:
    assert analyze([*words, "--print_config"]) == 0
    stdout, stderr = capfd.readouterr()
    assert stderr == ""
    return yaml.safe_load(stdout)


def refusal(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    assert analyze(words) == 2
    stdout, stderr = capfd.readouterr()
    assert stdout == "" and stderr.count("\n") == 1
    return stderr


def test_nothing_means_the_bundled_rows_and_every_test(capfd):
    config = printed(capfd)
    assert config["recipe"] == "stratification"
    assert config["data"]["source"] == "bundled" and config["data"]["encoder"] is None
    assert config["tests"]["procedures"] == ["spacings", "reference", "source"]


@pytest.mark.parametrize("workflow", ANALYSES)
def test_a_printed_config_stands_alone(workflow, tmp_path, capfd):
    config = printed(capfd, workflow)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert printed(capfd, "--config", str(tmp_path / "config.yaml")) == config


def test_workflows_of_the_source_documents(capfd):
    assert printed(capfd, "advanced")["mixture"] == "dictionary_moe"
    assert printed(capfd, "notebook")["data"]["reduce"] == 64
    assert printed(capfd, "multi_domain")["data"]["reduce"] is None
    assert {printed(capfd, name)["strata"]["number"] for name in ANALYSES} == {5, None}


def test_targets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/config.yaml").touch()
    Path("model").mkdir()
    assert target_settings("run", []) == ['data.run="run"']
    assert target_settings("rows.npy", []) == ['data.source="rows.npy"']
    assert target_settings("bundled", []) == ['data.source="bundled"']
    assert target_settings("model", []) == ['data.encoder="model"']
    assert target_settings("hub/name", ["a.txt", "imdb"]) == [
        'data.encoder="hub/name"',
        'data.texts=["a.txt", "imdb"]',
    ]


def test_a_target_and_settings_together(capfd):
    config = printed(capfd, "notebook", "rows.npy", "tests.window=[5,60]", "seed=4")
    assert config["recipe"] == "notebook" and config["data"]["source"] == "rows.npy"
    assert config["tests"]["window"] == [5, 60] and config["seed"] == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.npy", "b.npy"], "expected one workflow and one target, got a.npy b.npy"),
        (["notebook", "advanced"], "expected one workflow and one target"),
        (["--texts", "a.txt"], "--texts: expected a model too"),
        (["rows.npy", "--texts", "a.txt"], "--texts: expected a model before it, got rows.npy"),
        (["tests.window=[9,3]"], "tests.window: expected two ranks 1 <= first < last, got (9, 3)"),
        (["tests.level=2"], "tests.level: expected a share in (0, 1), got 2"),
        (["tests.procedures=[best]"], "tests.procedures: expected"),
        (["strata.number=0"], "strata.number: expected a number >= 1 or null, got 0"),
        (["strata.candidates=[]"], "strata.candidates: expected numbers >= 1"),
        (["data.reduce=0"], "data.reduce: expected a number >= 1 or null, got 0"),
        (["perplexity=gpt2"], "perplexity: expected a .npy file, or data.texts"),
        (["variance=0"], "variance: expected a share in (0, 1], got 0"),
        (["resamples=0"], "resamples: expected a number >= 1, got 0"),
        (["seed=-1"], "seed: expected a number >= 0, got -1"),
        (["test.level=.1"], "unknown key 'test', did you mean 'tests'?"),
    ],
)
def test_mistakes_are_one_line(words, message, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refusal(capfd, *words)
    assert not list(tmp_path.iterdir())
