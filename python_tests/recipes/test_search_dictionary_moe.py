from __future__ import annotations

from pathlib import Path

import pytest

from python_tests.recipes.small_run import refusal, save_small_table
from python_tests.recipes.small_trials import BASE, small_trials
from stratcore.recipes import search_dictionary_moe
from stratcore.recipes.search_dictionary_moe import GRID, SearchDictionaryMoERun, summarize

pytestmark = pytest.mark.usefixtures("single_thread")
POINTS = ("experts=[1,2]", "atoms=[16]", "sparsities=[2]", "input_dims=[4,8]")


def test_a_grid_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = small_trials(tmp_path, "search_dictionary_moe", "seeds=[0]", *POINTS)
    points = [tuple(t[name] for name in GRID) for t in results["trials"]]
    assert points == [(1, 16, 2, 4), (1, 16, 2, 8), (2, 16, 2, 4), (2, 16, 2, 8)]
    values = [row["fvu_validation"]["value"] for row in results["summary"]]
    assert values == sorted(values) and 0 < values[0] < values[-1] < 1
    for t in results["trials"]:
        row = next(r for r in results["summary"] if tuple(r[n] for n in GRID) == tuple(t[n] for n in GRID))
        assert row["fvu_test"]["value"] == t["fvu_test"] and row["parameters"] == t["parameters"]
        assert t["active_atoms"] == 2
    assert results["summary"][0]["front"]
    best = results["summary"][0]
    assert results["answer"][0].startswith(
        f"k = 2: {best['experts']} experts of 16 atoms on {best['input_dim']}"
    )


def test_the_front_holds_what_nothing_beats() -> None:
    run = SearchDictionaryMoERun(
        base=search_dictionary_moe().base, seeds=(0,), experts=(1, 2, 3), sparsities=(8,), input_dims=(32,)
    )
    scores = {1: (0.3, 100), 2: (0.2, 200), 3: (0.25, 300)}
    trials = [
        {"seed": 0, "experts": e, "atoms": 64, "k": 8, "input_dim": 32, "fvu_validation": fvu, "fvu_test": fvu,
         "parameters": size, "active_atoms": 8, "fit_seconds": 1.0}
        for e, (fvu, size) in scores.items()
    ]  # fmt: skip
    assert [(row["experts"], row["front"]) for row in summarize(run, trials)] == [
        (2, True),
        (3, False),
        (1, True),
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"experts": (0, 2)}, "experts: expected different numbers >= 1"),
        ({"input_dims": ()}, "input_dims: expected different"),
        ({"sparsities": (8, 65)}, r"sparsities: expected at most 64 \(atoms\)"),
        ({"seeds": (0, 0)}, "seeds: expected different"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SearchDictionaryMoERun(**{"base": search_dictionary_moe().base, **settings})


def test_a_point_that_the_rows_cannot_bear_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_small_table(tmp_path)
    words = ["search_dictionary_moe", *BASE, *POINTS, "input_dims=[8,17]", "--output", "run"]
    assert "model.input_dim: expected at most 16" in refusal(capfd, words)
    assert not (tmp_path / "run").exists()
