"""Every way of finding strata against the truth on synthetic unions, and how often their number is found.

    python -m bench.analysis.bench_strata --parts fits,choices --seeds 6 --out bench/results/cpu/strata.jsonl

`subspaces`: five subspaces of dimensions 4, 8, 12, 16, 24 in 64 with one center, 20 dB. `planes`: dimensions 1, 2, 4,
8, 16 with one center, noise 1 %. `spheres`: five spheres of these dimensions, centers three radii apart. `cloud`: one
Gaussian (for the number of strata). A row is one method on one case and seed; the tables at the end give means with
95 % t intervals over seeds. KMeans fails on the first two by construction: the strata have one center.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from bench.compare import format_table
from bench.harness import surroundings
from stratcore import analysis
from stratcore.analysis.strata.fit import StrataMethod
from stratcore.analysis.strata.flats import principal_axes, signal_dimension
from stratcore.data import Strata, StrataOptions, union_of_strata

NUM_STRATA, ROWS = 5, 2500
METHODS = tuple(method for method in get_args(StrataMethod) if method != "given")
CASES: dict[str, dict[str, Any]] = {
    # Mean power of a plane of dimension d is d / (d + 2) radii^2: .827 over the five, a hundred times the noise's.
    "subspaces": {
        "kinds": ("plane",) * 5,
        "dims": (4, 8, 12, 16, 24),
        "center_distance": 0.0,
        "noise": (0.827 / 100 / 64) ** 0.5,
    },
    "planes": {"kinds": ("plane",) * 5, "dims": (1, 2, 4, 8, 16), "center_distance": 0.0, "noise": 0.01},
    "spheres": {"kinds": ("sphere",) * 5, "dims": (1, 2, 4, 8, 16), "center_distance": 3.0, "noise": 0.01},
}
# Method, criterion, rows: a choice by stability makes 100 fits a candidate.
CHOICES: tuple[tuple[StrataMethod, str, int], ...] = (
    ("mixture_of_ppca", "heldout", 1500),
    ("gaussian_mixture", "heldout", 1500),
    ("kmeans", "stability", 600),
    ("k_subspaces", "stability", 400),
)
CANDIDATES = tuple(range(1, 8))


def draw(case: str, rows: int, seed: int) -> Strata:
    return union_of_strata(StrataOptions(points=rows, seed=seed, **CASES[case]))


def cloud(rows: int, seed: int) -> np.ndarray:
    """One Gaussian in 64 dimensions with a decaying spectrum."""
    return np.random.default_rng(seed).standard_normal((rows, 64)) / np.sqrt(np.arange(1, 65))


def matched_dimensions(x_ND: np.ndarray, found: np.ndarray, truth: np.ndarray) -> list[int]:
    """Dimension of the stratum matched to each true one (most common rows, Hungarian); 0 where none is left."""
    table, _, names = analysis.contingency(truth, found)
    keep = np.array([name != -1 for name in names])
    table, names = table[:, keep], names[keep]
    dims = [0] * len(table)
    for row, column in zip(*linear_sum_assignment(table, maximize=True), strict=True):
        own = x_ND[found == names[column]]
        dims[row] = signal_dimension(principal_axes(own)[1], x_ND.shape[1], len(own))
    return dims


def fit_rows(case: str, seed: int, methods: Sequence[str] = METHODS) -> list[dict[str, Any]]:
    strata = draw(case, ROWS, seed)
    x_ND, truth, rows = strata.points.astype(np.float64), strata.stratum, []
    for method in [method for method in METHODS if method in methods]:
        begin = time.perf_counter()
        found = analysis.fit_strata(x_ND, method, None if method == "dbscan" else NUM_STRATA, seed=seed)
        seconds = time.perf_counter() - begin
        dims = matched_dimensions(x_ND, found.labels, truth)
        errors = np.abs(np.array(dims) - strata.span_dims)
        rows.append({
            "part": "fits",
            "case": case,
            "method": method,
            "seed": seed,
            "rows": ROWS,
            "ari": float(adjusted_rand_score(truth, found.labels)),
            "nmi": float(normalized_mutual_info_score(truth, found.labels)),
            "num_strata": found.num_strata,
            "num_noise": found.num_noise,
            "dimensions": dims,
            "true_dimensions": list(strata.span_dims),
            "largest_dimension_error": int(errors.max()),
            "mean_dimension_error": float(errors.mean()),
            "converged": found.converged,
            "fit_seconds": seconds,
        })  # fmt: skip
    return rows


def choice_rows(case: str, seed: int, methods: Sequence[str] = METHODS) -> list[dict[str, Any]]:
    rows = []
    for method, criterion, count in [choice for choice in CHOICES if choice[0] in methods]:
        x_ND = cloud(count, seed) if case == "cloud" else draw(case, count, seed).points.astype(np.float64)
        begin = time.perf_counter()
        choice = analysis.choose_num_strata(x_ND, method, CANDIDATES, criterion=criterion, seed=seed)
        rows.append({
            "part": "choices",
            "case": case,
            "method": method,
            "criterion": criterion,
            "seed": seed,
            "rows": count,
            "truth": 1 if case == "cloud" else NUM_STRATA,
            "chosen": choice.chosen,
            "best": choice.best,
            "scores": {each.num_strata: each.score.value for each in choice.candidates},
            "fit_seconds": time.perf_counter() - begin,
        })  # fmt: skip
    return rows


def interval(values: Sequence[float]) -> str:
    found = analysis.mean_interval(np.array(values, dtype=float))
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def summary(rows: list[dict[str, Any]]) -> str:
    """Two tables: fits by case and method, hits of the number of strata by case and rule."""
    fits, hits = [], []
    for case in (*CASES, "cloud"):
        for method in METHODS:
            own = [r for r in rows if (r["part"], r["case"], r["method"]) == ("fits", case, method)]
            if own:
                names = ("ari", "nmi", "mean_dimension_error", "fit_seconds")
                worst = max(r["largest_dimension_error"] for r in own)
                cells = [interval([r[name] for r in own]) for name in names]
                fits.append([case, method, str(len(own)), *cells[:3], str(worst), cells[3], ""])
        for method, criterion, _ in CHOICES:
            key = ("choices", case, method, criterion)
            own = [r for r in rows if (r["part"], r["case"], r["method"], r.get("criterion")) == key]
            if own:
                hit = sum(r["chosen"] == r["truth"] for r in own)
                chosen = ",".join(str(r["chosen"]) for r in own)
                hits.append([case, method, criterion, f"{hit}/{len(own)}", chosen])
    header = ["case", "method", "seeds", "ARI", "NMI", "mean dim. error", "largest", "seconds", ""]
    tables = [format_table(header, fits)] if fits else []
    if hits:
        tables.append(format_table(["case", "method", "criterion", "hits", "chosen"], hits))
    return "\n\n".join(tables)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", default="fits,choices")
    parser.add_argument("--cases", default=",".join((*CASES, "cloud")))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--append", action="store_true", help="keep the rows that the file has")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    command = shlex.join(["python", "-m", "bench.analysis.bench_strata", *sys.argv[1:]])
    about = surroundings(torch.device("cpu"), command) | analysis_versions()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    cases, parts = options.cases.split(","), options.parts.split(",")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    jobs = [(fit_rows, case, s) for case in cases for s in seeds if case in CASES and "fits" in parts]
    jobs += [(choice_rows, case, s) for case in cases for s in seeds if "choices" in parts]
    rows = []
    with options.out.open("a" if options.append else "w") as file:
        for job, case, seed in jobs:
            for row in job(case, seed, options.methods.split(",")):
                rows.append(row)
                file.write(json.dumps(row | about) + "\n")
                file.flush()
                print(json.dumps(row), flush=True)
    print(summary(rows))
    return 0


def analysis_versions() -> dict[str, str]:
    import scipy
    import sklearn

    return {"numpy": np.__version__, "scipy": scipy.__version__, "scikit_learn": sklearn.__version__}


if __name__ == "__main__":
    sys.exit(main())
