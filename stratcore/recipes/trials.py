"""Runs of many trials over paired seeds: rows as they come, means with intervals, tables."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

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


def carry_out_trials(
    log: TrialLog, trials: Sequence[Any], job: Callable[[Any], Mapping[str, Any]], workers: int
) -> None:
    """Runs the trials that the log lacks, and adds each with its result, in their order.

    Args:
        log: of the run.
        trials: dataclasses, whose fields tell one from another.
        job: from a trial to its result, a function of the trial alone; with several workers it is pickled.
        workers: processes at a time; 1: this one.
    """
    todo = [trial for trial in trials if log.find(**asdict(trial)) is None]
    if workers == 1 or not todo:
        for trial in todo:
            log.add(asdict(trial) | dict(job(trial)))
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(
        min(workers, len(todo)), get_context("spawn"), initializer=_limit_threads, initargs=(threads,)
    ) as pool:
        for trial, result in zip(todo, pool.map(job, todo), strict=True):
            log.add(asdict(trial) | dict(result))


def _limit_threads(threads: int) -> None:
    """The workers share the cores."""
    import torch

    torch.set_num_threads(threads)


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


class CaptionedFigure(NamedTuple):
    """A matplotlib figure, its title, and what is shown, in which unit, and how to read it."""

    figure: Any
    title: str
    text: str


def write_trials(
    folder: Path,
    results: Mapping[str, Any],
    tables: Sequence[Table],
    answer: Sequence[str],
    caveats: Sequence[tuple[str, str]],
    figures: Mapping[str, CaptionedFigure] | None = None,
) -> None:
    """Writes results.json, table.md and report.html, and prints the tables.

    Args:
        folder: the run folder.
        results: `recipe`, `about` (a sentence), `command`, `environment`, `configuration`, `seeds`, `trials`, and
            what was made of them.
        tables: for the page.
        answer: what they say, in sentences.
        caveats: what they do not say, a word and a sentence each.
        figures: of the page, by name; written to plots/ too.
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
    figures = figures or {}
    drawn = (
        save_figures(folder / "plots", {name: each.figure for name, each in figures.items()})
        if figures
        else {}
    )
    captions = {name: (each.title, each.text) for name, each in figures.items()}
    write_page(folder / "report.html", "trials", page, drawn, captions)
    print(text)
