"""Runs of many trials over paired seeds: rows as they come, means with intervals, tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stratcore.analysis.schema import to_plain, write_atomic, write_json

SCHEMA_VERSION = 1
CALIBRATION_BINS = 15


@dataclass(frozen=True, eq=False)
class TrialLog:
    """trials.jsonl of a run folder: one line a trial, written as it ends, so that a resumed run goes on from it."""

    path: Path
    rows: list[dict[str, Any]]

    @classmethod
    def open(cls, folder: Path, resume: bool) -> TrialLog:
        """The log of a run; an unfinished last line is dropped."""
        path, rows = folder / "trials.jsonl", []
        if resume and path.exists():
            lines = path.read_text(encoding="utf-8").split("\n")
            rows = [json.loads(line) for line in lines[:-1]]
        write_atomic(path, b"".join(_line(row) for row in rows))
        return cls(path, rows)

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The trial with these values, if it has run."""
        return next((row for row in self.rows if all(row[name] == key[name] for name in key)), None)

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends a trial."""
        plain = to_plain(row)
        self.rows.append(plain)
        with self.path.open("ab") as file:
            file.write(_line(plain))


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()


@dataclass(frozen=True, kw_only=True)
class SeedMean:
    """Mean over seeds with its interval by Student's t at 95 %; no interval for a single seed."""

    value: float
    low: float | None
    high: float | None
    num_seeds: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.4f}"
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def seed_mean(values: Sequence[float]) -> SeedMean:
    """Mean of one number a seed. Paired differences are given as such."""
    from scipy import stats

    mean, half = float(np.mean(values)), None
    if len(values) > 1:
        half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return SeedMean(
        value=mean,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        num_seeds=len(values),
    )


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided p of a paired t test, 1 where fewer than two seeds or no spread allow none."""
    from scipy import stats

    if len(differences) < 2 or np.ptp(differences) == 0:
        return 1.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values."""
    from statsmodels.stats.multitest import multipletests

    return multipletests(p_values, method="holm")[1].tolist() if p_values else []


def calibration_error(probabilities_NC: np.ndarray, label_N: np.ndarray) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over 15 equal bins of confidence."""
    confidence_N, guess_N = probabilities_NC.max(-1), probabilities_NC.argmax(-1)
    bin_N = np.minimum((confidence_N * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gap = np.zeros(CALIBRATION_BINS)
    np.add.at(gap, bin_N, confidence_N - (guess_N == label_N))
    return float(np.abs(gap).sum() / len(label_N))


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the page: `own` leading rows are set off."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str
    own: int = 0

    def markdown(self) -> str:
        """As Markdown."""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "\n".join(
            [f"### {self.title}", "", *(f"| {' | '.join(line)} |" for line in lines), "", self.note]
        )


def write_trials(
    folder: Path,
    results: Mapping[str, Any],
    tables: Sequence[Table],
    answer: Sequence[str],
    caveats: Sequence[tuple[str, str]],
    figures: Mapping[str, Any] | None = None,
    captions: Mapping[str, tuple[str, str]] | None = None,
) -> None:
    """Writes results.json, table.md and report.html, and prints the tables.

    Args:
        folder: the run folder.
        results: `recipe`, `about` (a sentence), `command`, `environment`, `configuration`, `seeds`, `trials`, and
            what was made of them.
        tables: for the page.
        answer: what they say, in sentences.
        caveats: what they do not say, a word and a sentence each.
        figures: matplotlib figures of the page by name; written to plots/ too.
        captions: title and text of a figure by its name: what is shown, in which unit, how to read it.
    """
    from stratcore.analysis.plots import save_figures
    from stratcore.analysis.report import write_page

    plain = to_plain({"schema_version": SCHEMA_VERSION, "answer": list(answer), **results})
    write_json(folder / "results.json", plain)
    text = "\n\n".join([*answer, *(table.markdown() for table in tables)]) + "\n"
    write_atomic(folder / "table.md", text.encode())
    page = {
        "r": plain,
        "answer": answer,
        "tiles": [],
        "caveats": caveats,
        "tables": [asdict(t) for t in tables],
    }
    drawn = save_figures(folder / "plots", figures) if figures else {}
    write_page(folder / "report.html", "trials", page, drawn, captions or {})
    print(text)
