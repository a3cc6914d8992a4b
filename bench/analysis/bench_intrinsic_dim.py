"""Estimated against true dimension on manifolds, raw and calibrated side by side.

    python -m bench.analysis.bench_intrinsic_dim --seeds 3 --out bench/results/cpu/intrinsic_dim.jsonl

A row is one manifold and seed at 2,500 rows. `calibrated` uses every simulated family, `left_out` all but those the
manifold belongs to (where it belongs to none, the two are one). The table gives means over seeds and largest errors.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.compare import format_table
from bench.harness import surroundings
from stratcore import analysis
from stratcore.analysis import _manifolds as manifolds

ROWS = 2500
Draw = Callable[[np.random.Generator], np.ndarray]
TORI = ("torus", "uneven torus")
FRAMES = ("rotations", "frames")


def noisy_gaussian(rng: np.random.Generator, dim: int) -> np.ndarray:
    return np.pad(rng.standard_normal((ROWS, dim)), ((0, 0), (0, 20))) + 0.1 * rng.standard_normal(
        (ROWS, dim + 20)
    )


def cases() -> list[tuple[str, int, tuple[str, ...], str, Draw]]:
    """Name, dimension, families left out, kind, draw."""
    m = manifolds
    found: list[tuple[str, int, tuple[str, ...], str, Draw]] = []
    for d in (2, 5, 10, 20, 40):
        found.append((f"sphere {d}", d, ("sphere",), "closed", lambda g, d=d: m.sphere(g, ROWS, d)))
        found.append((f"torus {d}", d, TORI, "closed", lambda g, d=d: m.spheres(g, ROWS, [1] * d)))
        radii = np.linspace(0.6, 1.4, d)
        name = f"uneven torus {d}"
        found.append((name, d, TORI, "closed", lambda g, d=d, r=radii: m.spheres(g, ROWS, [1] * d, r)))
        found.append(
            (f"ellipsoid {d}", d, ("ellipsoid",), "closed", lambda g, d=d: m.ellipsoid(g, ROWS, d, 1.5))
        )
        found.append((f"cube {d}", d, (), "bounded", lambda g, d=d: g.random((ROWS, d))))
        found.append((f"gaussian with noise {d}", d, (), "noisy", lambda g, d=d: noisy_gaussian(g, d)))
    for dims in ((3, 4), (4, 6), (10, 10), (5, 7, 9, 9), (20, 20)):
        name = " x ".join(f"S^{d}" for d in dims)
        found.append((name, sum(dims), (), "closed", lambda g, dims=dims: m.spheres(g, ROWS, dims)))
    for size in (3, 4, 5, 7, 9):
        draw = lambda g, size=size: m.stiefel(g, ROWS, size, size - 1)  # noqa: E731
        found.append((f"SO({size})", size * (size - 1) // 2, FRAMES, "closed", draw))
    for size, vectors in ((4, 2), (6, 2), (8, 3), (14, 3)):
        dim = size * vectors - vectors * (vectors + 1) // 2
        draw = lambda g, size=size, vectors=vectors: m.stiefel(g, ROWS, size, vectors)  # noqa: E731
        found.append((f"Stiefel {vectors} in {size}", dim, FRAMES, "closed", draw))
    for size in (2, 5, 10, 20):
        out = ("complex projective",)
        found.append(
            (f"CP^{size}", 2 * size, out, "closed", lambda g, size=size: m.projective(g, ROWS, size))
        )
    for dim in (3, 10, 20):
        out = ("real projective",)
        found.append((f"RP^{dim}", dim, out, "closed", lambda g, dim=dim: m.veronese(g, ROWS, dim)))
    return found


def measure(x_ND: np.ndarray, dim: int, out: tuple[str, ...]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "two_nn": analysis.TwoNN().fit(x_ND).dimension_,
        "mle_20": analysis.LevinaBickel().fit(x_ND).dimension_,
        "local_pca_100": analysis.LocalPCA().fit(x_ND).dimension_,
    }
    for name, leave_out in (("calibrated", ()), ("left_out", out)):
        begin = time.perf_counter()
        found = analysis.CalibratedDimension(leave_out=leave_out).fit(x_ND)
        row |= {
            name: found.dimension_,
            f"{name}_low": found.low_,
            f"{name}_high": found.high_,
            f"{name}_covers": bool(found.low_ <= dim <= found.high_),
            f"{name}_warning": found.warning_,
            f"{name}_seconds": time.perf_counter() - begin,
        }
    return row


def summary(rows: list[dict[str, Any]]) -> str:
    """One line a manifold: means over seeds, largest relative errors, hits of the interval."""
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        own = [row for row in rows if row["case"] == case]
        dim = own[0]["dim"]
        cells = [case, str(dim)]
        for name in ("two_nn", "mle_20", "local_pca_100", "calibrated", "left_out"):
            cells.append(f"{np.mean([row[name] for row in own]):.2f}")
        for name in ("calibrated", "left_out"):
            worst = max((row[name] / dim - 1 for row in own), key=abs)
            covers = sum(row[f"{name}_covers"] for row in own)
            cells += [f"{100 * worst:+.1f}", f"{covers}/{len(own)}"]
        cells.append(f"{sum(row['calibrated_warning'] is not None for row in own)}/{len(own)}")
        lines.append(cells)
    header = ["manifold", "d", "TwoNN", "MLE", "lPCA", "calibrated", "family left out", "worst %", "covers"]
    return format_table([*header, "left out worst %", "covers", "warned"], lines)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    command = shlex.join(["python", "-m", "bench.analysis.bench_intrinsic_dim", *sys.argv[1:]])
    about = surroundings(torch.device("cpu"), command)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with options.out.open("w") as file:
        for seed in range(options.seeds):
            for index, (case, dim, out, kind, draw) in enumerate(cases()):
                x_ND = draw(np.random.default_rng([7, index, seed]))
                row = {"case": case, "dim": dim, "kind": kind, "families": out, "seed": seed, "rows": ROWS}
                rows.append(row | measure(x_ND, dim, out))
                file.write(json.dumps(rows[-1] | about) + "\n")
                file.flush()
    print(summary(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
