"""An analysis from rows to report: its files, its numbers, its workflows, and a trained run as its target."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from python_tests.recipes.small_analysis import ROWS, run
from python_tests.recipes.small_run import save_small_table, small_run
from stratcore.analysis.schema import check_schema
from stratcore.analysis.stratification_results import AnalysisResults
from stratcore.cli import analyze
from stratcore.recipes import RECIPES
from stratcore.recipes.analysis import AnalysisRows
from stratcore.recipes.analysis_run import Clock, execute


def test_files_of_an_analysis(analysis_folder):
    names = {path.name for path in analysis_folder.iterdir()}
    assert names == {"plots", "report.html", "results.json"}
    figures = {path.stem for path in (analysis_folder / "plots").iterdir()}
    assert figures == {
        *("views_2d", "views_3d", "dimension_forest", "p_value_map", "p_value_ranks"),
        *("growth_curves", "perplexity"),
    }


def test_results_fit_their_schema_and_the_data(analysis_results):
    check_schema(analysis_results, AnalysisResults)
    assert analysis_results["data"]["num_rows"] == ROWS and analysis_results["data"]["num_duplicates"] == 2
    names = {domain["name"]: domain["num_rows"] for domain in analysis_results["data"]["domains"]}
    assert names == {"flat": 108, "cloud": 108, "both": 24}
    assert analysis_results["strata"]["num_strata"] == 2
    assert analysis_results["strata"]["stability"] == pytest.approx(1.0)
    assert sum(map(sum, analysis_results["strata"]["counts"])) == ROWS
    perplexity = analysis_results["perplexity"]
    assert perplexity["num_rows"] == ROWS - 1
    assert perplexity["by_stratum"]["explained"]["p_value"] < 0.05
    assert analysis_results["experts"] is None
    for estimator in ("TwoNN", "MLE, k = 20"):
        values = {
            row["stratum"]: row["value"]
            for row in analysis_results["dimensions"]
            if row["estimator"] == estimator
        }
        flat, cloud = sorted(values[stratum] for stratum in ("S0", "S1"))
        assert 1.5 < flat < 2.6 and 3.4 < cloud < 6


def test_same_seed_same_numbers(analysis_results, tmp_path):
    execute(run(tmp_path), tmp_path / "again", command="python -m stratcore.analyze rows.safetensors")
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    for key in ("tests", "dimensions", "strata", "geometry", "perplexity", "singular_points"):
        own, other = analysis_results[key], again[key]
        if key == "tests":
            own, other = ([{**test, "seconds": 0} for test in tests] for tests in (own, other))
        if key == "perplexity":
            own, other = own | {"source": ""}, other | {"source": ""}
        assert own == other, key


def test_a_terminal_is_told_the_steps(monkeypatch, capsys):
    with Clock().step("rows"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    clock = Clock()
    with clock.step("neighbors"):
        pass
    assert capsys.readouterr().err == "neighbors ...\n" and set(clock.seconds) == {"neighbors"}


@pytest.mark.parametrize("name", ["notebook", "multi_domain"])
def test_workflows_write_their_own_files(name, tmp_path):
    execute(replace(run(tmp_path), recipe=name), tmp_path / "run", command="x")
    own = json.loads((tmp_path / "run" / f"{name}_results.json").read_text())
    assert own["recipe"] == name
    summary = json.loads((tmp_path / "run" / f"{name}_summary.json").read_text())
    assert summary["rows"] == ROWS and summary["strata"] == 2
    assert set(summary["rejection_rates"]) == {test["name"] for test in own["tests"]}
    assert len(summary["stratum_dimensions"]) == 2
    assert "TwoNN" in summary["intrinsic_dimension"]


def test_a_trained_run_shows_its_experts(trained_folder, tmp_path):
    options = run(tmp_path, perplexity=None, data=AnalysisRows(run=trained_folder))
    execute(options, tmp_path / "run", command="x")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    experts = results["experts"]
    assert experts["levels"] == [2, 4] and experts["uniform_gate"] == 3.0
    assert experts["num_held_out"] == 90 and results["data"]["num_rows"] == 300
    assert len(experts["gate_by_domain"]) == 3
    assert np.allclose(np.sum(experts["gate_by_domain"], axis=1), 1)
    assert (tmp_path / "run" / "plots" / "gate_heatmap.png").is_file()
    assert "Experts and domains" in (tmp_path / "run" / "report.html").read_text()


def test_advanced_trains_a_mixture_first(tmp_path, monkeypatch):
    save_small_table(tmp_path)
    small = small_run("baselines=false")
    monkeypatch.setitem(RECIPES, "dictionary_moe", lambda: small)
    source = str(tmp_path / "rows.safetensors")
    options = run(tmp_path, perplexity=None, recipe="advanced", mixture="dictionary_moe")
    save_small_table(tmp_path)
    execute(replace(options, data=AnalysisRows(source=source)), tmp_path / "run", command="x")
    assert (tmp_path / "run" / "mixture" / "checkpoint-last").is_file()
    summary = json.loads((tmp_path / "run" / "advanced_summary.json").read_text())
    assert summary["experts"] == 2 and summary["analyzed_features"] == 8


def test_the_command_line_from_file_to_report(tmp_path, monkeypatch, capfd):
    run(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = [
        "rows.safetensors",
        "notebook",
        "data.reduce=4",
        "calibrated=false",
        "resamples=20",
        "tests.window=[4,50]",
    ]
    assert analyze([*words, "--output", "out"]) == 0
    assert capfd.readouterr().out == "report: out/report.html\n"
    assert "data:\n  source: rows.safetensors\n" in (tmp_path / "out" / "config.yaml").read_text()
    assert analyze([*words, "--output", "out"]) == 2
    assert "out holds an earlier run" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.zeros((50, 3), np.float32), "different rows"),
        (np.full((50, 3), np.nan, np.float32), "row 0, column 0: nan is not a finite float32"),
        (np.ones((1, 3), np.float32), "different rows"),
    ],
)
def test_rows_that_cannot_be_analyzed_are_one_line(content, words, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", content)
    assert analyze(["rows.npy", "--output", "out"]) == 2
    err = capfd.readouterr().err
    assert words in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
