from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from stratcore.recipes.trials import (
    Table,
    TrialLog,
    carry_out_trials,
    holm,
    paired_p,
    seed_mean,
    write_trials,
)


def test_an_interval_over_seeds_is_that_of_student() -> None:
    values = [0.31, 0.28, 0.35, 0.30, 0.29, 0.33]
    mean = seed_mean(values)
    low, high = stats.t.interval(0.95, 5, np.mean(values), stats.sem(values))
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.31, low, high))
    assert mean.num_seeds == 6 and str(mean) == f"0.3100 [{low:.4f}, {high:.4f}]"
    assert seed_mean([0.5]).low is None and str(seed_mean([0.5])) == "0.5000"


def test_paired_p_and_holm() -> None:
    differences = [0.02, 0.03, 0.01, 0.025]
    assert paired_p(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert paired_p([0.1]) == 1.0 and paired_p([0.1, 0.1]) == 1.0
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_a_resumed_log_drops_an_unfinished_line(tmp_path: Path) -> None:
    log = TrialLog.open(tmp_path, resume=False)
    log.add({"seed": 0, "fvu": np.float64(0.5)})
    log.add({"seed": 1, "fvu": float("nan")})
    with log.path.open("a") as file:
        file.write('{"seed": 2, "fv')
    again = TrialLog.open(tmp_path, resume=True)
    assert again.rows == [{"seed": 0, "fvu": 0.5}, {"seed": 1, "fvu": None}]
    assert again.find(seed=0) == {"seed": 0, "fvu": 0.5} and again.find(seed=2) is None
    assert log.path.read_text().count("\n") == 2
    assert TrialLog.open(tmp_path, resume=False).rows == []


@dataclass(frozen=True)
class Draw:
    seed: int


def test_trials_that_the_log_holds_are_not_carried_out_again(tmp_path: Path) -> None:
    log, done = TrialLog.open(tmp_path, resume=False), []

    def job(draw: Draw) -> dict[str, int]:
        done.append(draw.seed)
        return {"square": draw.seed**2}

    carry_out_trials(log, [Draw(1), Draw(3)], job, workers=1)
    carry_out_trials(log, [Draw(3), Draw(2), Draw(1)], job, workers=1)
    assert done == [1, 3, 2]
    assert log.rows == [{"seed": seed, "square": seed**2} for seed in (1, 3, 2)]


def test_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title="Numbers", head=["a", "b"], rows=[["1", "2"]], note="A note.")
    results = {"recipe": "r", "about": "Rows.", "command": "c", "environment": {"torch": "2"},
               "configuration": {"seed": 0}, "seeds": [0], "trials": []}  # fmt: skip
    write_trials(tmp_path, results, [table], ["Yes."], [("Word", "Sentence.")])
    text = "Yes.\n\n### Numbers\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\nA note.\n"
    assert (tmp_path / "table.md").read_text() == text and capsys.readouterr().out.startswith(text)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["schema_version"] == 1 and written["answer"] == ["Yes."] and written["seeds"] == [0]
    page = (tmp_path / "report.html").read_text()
    assert "<h3>Numbers</h3>" in page and "Sentence." in page and "<h2>Figures</h2>" not in page
