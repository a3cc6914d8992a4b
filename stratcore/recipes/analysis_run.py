"""Carries out an analysis: rows, neighborhoods, strata, dimensions, geometry, experts, perplexity, report."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stratcore import analysis
from stratcore.analysis.plots import gate_heatmap, save_figures
from stratcore.analysis.plots import stratification as figures
from stratcore.analysis.stratification_report import write_analysis_report
from stratcore.analysis.stratification_results import (
    ANALYSIS_SCHEMA_VERSION,
    summary_of,
    write_analysis,
)
from stratcore.recipes.analysis import AnalysisRun
from stratcore.recipes.analysis_dimensions import stratum_dimensions_table
from stratcore.recipes.analysis_results import data_result, experts_result, perplexity_result
from stratcore.recipes.analysis_rows import AnalyzedRows, load_analyzed_rows
from stratcore.recipes.analysis_strata import FoundStrata, find_strata
from stratcore.recipes.analysis_tests import (
    Neighborhoods,
    RowTest,
    curves_of,
    find_neighborhoods,
    run_tests,
    singular_points,
)
from stratcore.recipes.environment import environment


class Clock:
    """Seconds of each named step; a terminal is told the names as they come."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step."""
        if sys.stderr.isatty():
            print(f"{name} ...", file=sys.stderr, flush=True)
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began


def execute(
    run: AnalysisRun,
    folder: Path,
    *,
    resume: bool = False,
    command: str,
    before_training: Callable[[], object] = lambda: None,
) -> Path:
    """Analyzes and reports; returns the folder.

    Args:
        run: what to do.
        folder: run folder.
        resume: not for an analysis.
        command: as typed, for the report.
        before_training: called once options are found good, before anything long or lasting; makes the folder.

    Raises:
        DataError: rows that cannot be used, in one line.
        ValueError: options that do not fit the rows.
    """
    clock = Clock()
    name = ("cuda" if torch.cuda.is_available() else "cpu") if run.device == "auto" else run.device
    device = torch.device(name)
    torch.manual_seed(run.seed)
    if run.mixture is not None and run.data.run is None:
        with clock.step("training the mixture"):
            run = _with_trained_mixture(run, folder, command, before_training)
    with clock.step("rows"):
        rows = load_analyzed_rows(run, folder, device)
    with clock.step("neighbors"):
        neighborhoods = find_neighborhoods(rows.x, run.tests, device)
    before_training()
    found = _analyze(run, rows, neighborhoods, clock)
    results = {
        "schema_version": ANALYSIS_SCHEMA_VERSION,
        "recipe": run.recipe,
        "command": command,
        "environment": environment(device),
        "configuration": asdict(run),
        "seeds": [run.seed],
        **found.results,
        "seconds": clock.seconds,
    }
    _write(run, folder, results, _figures(run, found, results))
    return folder


@dataclass(frozen=True, eq=False)
class Found:
    """What an analysis found, and its parts of results.json."""

    rows: AnalyzedRows
    neighborhoods: Neighborhoods
    strata: FoundStrata
    tests: list[RowTest]
    results: dict[str, Any]

    @property
    def manifold_test(self) -> RowTest | None:
        """Our test of any change, where it was asked for."""
        return next((test for test in self.tests if _is_ours(test, "manifold")), None)


def _analyze(run: AnalysisRun, rows: AnalyzedRows, neighborhoods: Neighborhoods, clock: Clock) -> Found:
    resampling = analysis.Resampling(num_resamples=run.resamples, seed=run.seed)
    with clock.step("strata"):
        strata = find_strata(rows, run.strata, run.seed, resampling)
    with clock.step("tests"):
        tests, notes = run_tests(neighborhoods, run.tests, strata.labels)
    with clock.step("dimensions"):
        dimensions = stratum_dimensions_table(
            rows.x,
            strata.labels,
            variance=run.variance,
            calibrated=run.calibrated,
            danco=run.danco,
            seed=run.seed,
        )
    with clock.step("geometry"):
        geometry = analysis.scan_geometry(rows.x, rows.domain, seed=run.seed)
    with clock.step("experts and perplexity"):
        experts = experts_result(rows, strata.labels, resampling)
        perplexity = perplexity_result(
            rows, run.perplexity, strata.labels, neighborhoods.local_dimension, resampling
        )
    data = data_result(rows)
    data["notes"] += [*strata.notes, *notes]
    found = Found(rows, neighborhoods, strata, tests, {})
    manifold = found.manifold_test
    points = []
    if manifold is not None:
        points = singular_points(manifold, neighborhoods, rows.names, strata.labels, run.tests.points)
    found.results.update(
        data=data,
        tests=[test.result for test in tests],
        singular_points=points,
        dimensions=dimensions,
        strata=strata.result,
        geometry={each.name: each for each in geometry.measurements},
        geometry_words=analysis.describe_scan(geometry),
        experts=experts,
        perplexity=perplexity,
    )
    return found


def _is_ours(test: RowTest, null: str) -> bool:
    return test.result["procedure"] == "spacings" and test.result["null"] == null


def _with_trained_mixture(
    run: AnalysisRun, folder: Path, command: str, before_training: Callable[[], object]
) -> AnalysisRun:
    """Train the named mixture on the same rows, into a folder below, and analyze that run instead."""
    from stratcore.recipes import RECIPES, executor_of

    if run.mixture not in RECIPES:
        raise ValueError(f"mixture: expected one of {', '.join(RECIPES)}, got {run.mixture!r}")
    base = RECIPES[run.mixture]()
    own = {name: getattr(run.data, name) for name in ("source", "texts", "encoder", "rows", "embed", "cache")}
    trained = replace(base, seed=run.seed, device=run.device, data=replace(base.data, **own))
    below = folder / "mixture"

    def record() -> None:
        from stratcore.recipes.settings import dump

        before_training()
        below.mkdir(parents=True, exist_ok=True)
        (below / "config.yaml").write_text(dump(trained), encoding="utf-8")

    executor_of(trained)(trained, below, resume=False, command=command, before_training=record)
    return replace(run, data=replace(run.data, run=below))


def _figures(run: AnalysisRun, found: Found, results: Mapping[str, Any]) -> dict[str, Any]:
    rows, neighborhoods, strata = found.rows, found.neighborhoods, found.strata
    plain = analysis.to_plain(results)
    points_N3, shares = _view(rows.x)
    groups = {} if rows.domain is None else {"domain": rows.domain}
    groups["stratum"] = strata.labels
    if rows.experts is not None:
        groups["expert"] = rows.experts.chosen
    p_values = {
        test.result["name"]: test.found.p_value[neighborhoods.place]
        for test in found.tests
        if test.result["procedure"] == "spacings"
    }
    drawn = {
        "views_2d": figures.views_2d(points_N3, shares, groups),
        "views_3d": figures.views_3d(points_N3, groups),
        "dimension_forest": figures.dimension_forest(plain["dimensions"]),
    }
    if p_values:
        drawn["p_value_map"] = figures.p_value_map(points_N3, p_values, shares)
        drawn["p_value_ranks"] = figures.p_value_ranks(p_values, run.tests.level)
    manifold = found.manifold_test
    curves = [] if manifold is None else curves_of(manifold, neighborhoods, rows.names, run.seed)
    if curves:
        drawn["growth_curves"] = figures.growth_curves(curves)
    choice = plain["strata"]["choice"]
    if len(choice) > 1:
        drawn["strata_choice"] = figures.strata_choice(
            choice, plain["strata"]["num_strata"], plain["strata"]["criterion"]
        )
    experts, perplexity = plain["experts"], plain["perplexity"]
    if experts is not None:
        drawn["gate_heatmap"] = gate_heatmap(
            np.array(experts["gate_by_domain"]), experts["gate_domains"], experts["levels"]
        )
    if perplexity is not None:
        panels = {
            name: perplexity[f"by_{name}"]["groups"]
            for name in ("domain", "stratum", "expert")
            if perplexity[f"by_{name}"] is not None
        }
        if panels:
            drawn["perplexity"] = figures.value_by_group(panels, "perplexity of a text")
    return drawn


def _view(x_ND: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Rows in three principal components (zeros where there are fewer), and their shares of the variance."""
    count = min(3, x_ND.shape[1], len(x_ND) - 1)
    pca = analysis.fit_pca(x_ND, count)
    points_N3 = np.pad(pca.transform(x_ND), ((0, 0), (0, 3 - count)))
    return points_N3, np.pad(pca.explained_variance_ratio_, (0, 3 - count)).tolist()


def _write(run: AnalysisRun, folder: Path, results: Mapping[str, Any], drawn: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_analysis(folder / "results.json", results)
    if run.recipe != "stratification":
        write_analysis(folder / f"{run.recipe}_results.json", results)
        analysis.write_json(folder / f"{run.recipe}_summary.json", summary_of(results))
    paths = save_figures(folder / "plots", drawn)
    write_analysis_report(folder, results, paths)
