"""Estimators of the dimension, raw and calibrated, on manifolds whose dimension is known.

    python -m bench.analysis.bench_intrinsic_dim --seeds 3 --out FILE.jsonl

`closed`: manifolds without boundary. Where a family takes part in the calibration it is left out of it for its own
rows, so no calibrated number here was calibrated on what it is asked about. `bounded`: cubes, balls, rolls and noise,
where the word of warning is expected. One row a manifold, seed and estimator; the table at the end gives the mean
estimate, the share of intervals that hold the truth, and the share of rows with a warning.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from bench.harness import surroundings
from stratcore.analysis import CalibratedDimension, LevinaBickel, LocalPCA, SimplexCVDimension, TwoNN
from stratcore.analysis.manifolds import (
    Sampler,
    calibration_manifolds,
    ellipsoid,
    projective,
    sphere,
    spheres,
)

ESTIMATORS = {
    "two_nn": TwoNN,
    "levina_bickel": LevinaBickel,
    "local_pca": LocalPCA,
    "simplex_cv": SimplexCVDimension,
}


def bent_sphere(rng: np.random.Generator, num_rows: int, dimension: int) -> np.ndarray:
    """A sphere with 3 d wavy columns beside it."""
    x_ND = sphere(rng, num_rows, dimension)
    waves = np.random.default_rng(1).standard_normal((dimension + 1, 3 * dimension))
    return np.concatenate([x_ND, 0.5 * np.sin(x_ND @ waves) / np.sqrt(dimension)], axis=1)


def roll(rng: np.random.Generator, num_rows: int) -> np.ndarray:
    """The Swiss roll."""
    turn = 1.5 * np.pi * (1 + 2 * rng.random(num_rows))
    return np.stack([turn * np.cos(turn), 21 * rng.random(num_rows), turn * np.sin(turn)], axis=1)


def noisy(rng: np.random.Generator, num_rows: int, dimension: int) -> np.ndarray:
    """A normal cloud in d of 30 dimensions with noise of a tenth in all."""
    x_ND = np.pad(rng.standard_normal((num_rows, dimension)), ((0, 0), (0, 30 - dimension)))
    return x_ND + 0.1 * rng.standard_normal(x_ND.shape)


def closed() -> Iterator[tuple[str, int, Sampler, tuple[str, ...]]]:
    """(name, dimension, sampler, families to leave out)."""
    for d in (2, 5, 10, 20, 30, 40):
        if d > 2:
            yield "two spheres", d, lambda g, n, d=d: spheres(g, n, [d // 2, d - d // 2]), ()
        yield "bent sphere", d, lambda g, n, d=d: bent_sphere(g, n, d), ()
        yield "ellipsoid 3:2", d, lambda g, n, d=d: ellipsoid(g, n, d, 1.5), ("ellipsoid",)
    for m in (1, 2, 5, 10):
        yield "spheres S^4", 4 * m, lambda g, n, m=m: spheres(g, n, [4] * m), ()
        yield "complex projective", 2 * m, lambda g, n, m=m: projective(g, n, m), ()
    for family, members in calibration_manifolds().items():
        for dimension, sample in members:
            if 2 <= dimension <= 40:
                yield family, dimension, sample, (family,)


def bounded() -> Iterator[tuple[str, int, Sampler, tuple[str, ...]]]:
    """The same for clouds with boundary or noise."""
    for d in (2, 5, 10, 20):
        yield "cube", d, lambda g, n, d=d: g.random((n, d)), ()
        yield "ball", d, lambda g, n, d=d: sphere(g, n, d - 1) * g.random((n, 1)) ** (1 / d), ()
        yield "normal cloud", d, lambda g, n, d=d: g.standard_normal((n, d)), ()
        yield "noisy normal cloud", d, lambda g, n, d=d: noisy(g, n, d), ()
    yield "Swiss roll", 2, roll, ()


def measure(x_ND: np.ndarray, estimator: str, leave_out: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The raw and the calibrated estimate."""
    for mode in ("raw", "calibrated"):
        start = time.perf_counter()
        found: Any = ESTIMATORS[estimator]()
        if mode == "calibrated":
            found = CalibratedDimension(found, leave_out=leave_out)
        found.fit(x_ND)
        low, high = found.interval_
        yield {
            "estimator": estimator,
            "mode": mode,
            "estimate": found.dimension_,
            "low": low,
            "high": high,
            "warning": getattr(found, "warning_", ""),
            "displaced_share": getattr(found, "displaced_share_", None),
            "seconds": time.perf_counter() - start,
        }


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """One line for each manifold, estimator and mode."""
    keys = list(dict.fromkeys((r["case"], r["manifold"], r["dimension"], r["estimator"]) for r in rows))
    for case, manifold, dimension, estimator in keys:
        own = [
            r
            for r in rows
            if (r["case"], r["manifold"], r["dimension"], r["estimator"])
            == (case, manifold, dimension, estimator)
        ]
        text = f"{case} {manifold} {dimension} {estimator}:"
        for mode in ("raw", "calibrated"):
            mine = [r for r in own if r["mode"] == mode]
            mean = np.mean([r["estimate"] for r in mine])
            covered = np.mean([r["low"] <= dimension <= r["high"] for r in mine])
            warned = np.mean([bool(r["warning"]) for r in mine])
            text += f"  {mode} {mean:.2f} ({100 * (mean / dimension - 1):+.0f} %), covered {covered:.2f}"
            text += f", warned {warned:.2f}" if mode == "calibrated" else ""
        yield text


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", default="closed,bounded")
    parser.add_argument("--estimators", default=",".join(ESTIMATORS))
    parser.add_argument("--rows", type=int, default=2500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    command = shlex.join(["python", "-m", "bench.analysis.bench_intrinsic_dim", *sys.argv[1:]])
    about = surroundings(torch.device("cpu"), command)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with options.out.open("w") as file, threadpool_limits(1):
        for estimator in options.estimators.split(","):
            for case, manifolds in (("closed", closed), ("bounded", bounded)):
                for number, (name, dimension, sample, leave_out) in enumerate(manifolds()):
                    if case not in options.cases.split(","):
                        continue
                    for seed in range(options.seeds):
                        x_ND = sample(np.random.default_rng([1000 + seed, number]), options.rows)
                        what = {"case": case, "manifold": name, "dimension": dimension, "seed": seed}
                        for row in measure(x_ND, estimator, leave_out):
                            rows.append(what | {"num_rows": options.rows} | row)
                            file.write(json.dumps(rows[-1] | about) + "\n")
                    file.flush()
    print("\n".join(summary(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
