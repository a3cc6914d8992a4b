"""Size and power of the neighborhood tests: ours, the published procedure, the rule of the source documents.

    python -m bench.analysis.bench_fiber_bundle --out bench/results/cpu/fiber_bundle.jsonl

`size`: shares of p-values at or below a level over 2,400 independent centers of flat tori with their own metric.
`smooth`: twelve smooth manifolds of 1,200 points, on which nothing should be rejected. `singular`: spaces with known
singular points. Holm's correction is over the points of one space; the published procedure stands with its own rule
and with Holm over points of its smallest p-value times the number of positions. The rule of the source documents sees
standardized coordinates and all neighbors.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler

from bench.compare import format_table
from bench.harness import surroundings
from stratcore import analysis
from stratcore.data import singular
from stratcore.data.manifolds import SMOOTH_NULLS, SampledSpace

CENTERS, LEVELS = 2400, (0.05, 0.01, 0.001)
WINDOW, PUBLISHED = (10, 128), (10, 200)
SINGULAR = {
    "plane and line": lambda: singular.plane_union_line(1200),
    "disc in a 6-cube": lambda: singular.disc_in_cube(4000),
    "line in a hollow ball": lambda: singular.line_in_hollow_ball(1080),
    "sphere and line": lambda: singular.sphere_union_line(1200),
    "cusp": lambda: singular.cusp(1200),
    "thinning strip": lambda: singular.thinning_strip(2000),
    "lollipop": lambda: singular.lollipop(1200),
}


def size_rows(dim: int, neighbors: int = 64, points: int = 1500) -> dict[str, Any]:
    """Shares of rejections at each level on tori of their own around each center."""
    rng, radii = np.random.default_rng(dim), []
    for _ in range(CENTERS):
        gap = np.abs(rng.random((points, dim)) - 0.5)  # the wrap is never shorter from the middle
        radii.append(np.sort(np.sqrt((gap**2).sum(axis=1)))[:neighbors])
    row: dict[str, Any] = {"part": "size", "space": f"flat torus {dim}", "dimension": dim, "centers": CENTERS}
    for side in ("change", "rise"):
        p_P = analysis.spacings_test(np.array(radii), (1, neighbors), side).p_value
        row |= {f"{side}_{level:g}": float((p_P <= level).mean()) for level in LEVELS}
    return row


def space_row(part: str, name: str, space: SampledSpace) -> dict[str, Any]:
    """Rejections of every procedure on one space."""
    count = len(space.points)
    radii = analysis.nearest_neighbors(
        space.points, min(PUBLISHED[1], count - 1), period=space.period
    ).distances
    row: dict[str, Any] = {"part": part, "space": name, "rows": count, "dimensions": list(space.dims)}
    for side in ("rise", "change"):
        ours = analysis.spacings_test(radii, WINDOW, side)
        row[f"{side}_holm"] = int((analysis.corrected_p_values(ours.p_value) <= 0.05).sum())
        adjusted = analysis.corrected_p_values(ours.p_value, "benjamini_hochberg")
        row[f"{side}_bh"] = int((adjusted <= 0.05).sum())
        published = analysis.reference_test(radii, PUBLISHED, side)
        row[f"published_{side}"] = int(published.rejected.sum())
        positions = PUBLISHED[1] - PUBLISHED[0] - 40
        corrected = analysis.corrected_p_values(np.minimum(published.p_value * positions, 1))
        row[f"published_{side}_holm"] = int((corrected <= 0.05).sum())
    scaled = StandardScaler().fit_transform(space.points)
    row["source"] = int(
        analysis.source_rule(analysis.nearest_neighbors(scaled, count - 1).distances).rejected.sum()
    )
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts, print tables, write rows."""
    parser = argparse.ArgumentParser(prog="python -m bench.analysis.bench_fiber_bundle", allow_abbrev=False)
    parser.add_argument("--parts", default="size,smooth,singular", help="of size,smooth,singular")
    parser.add_argument("--out", type=Path, help="JSONL file to write")
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(words)
    parts, rows = options.parts.split(","), []
    if "size" in parts:
        rows += [size_rows(dim) for dim in (1, 2, 4, 6)]
    if "smooth" in parts:
        rows += [space_row("smooth", name, manifold.draw(1200, 0)) for name, manifold in SMOOTH_NULLS.items()]
    if "singular" in parts:
        rows += [space_row("singular", name, draw()) for name, draw in SINGULAR.items()]
    facts = surroundings(torch.device("cpu"), shlex.join([*parser.prog.split(), *words]))
    for part in parts:
        own = [row for row in rows if row["part"] == part]
        names = [name for name in own[0] if name not in ("part", "dimensions")]
        print(format_table(names, [[str(row[name]) for name in names] for row in own]))
    if options.out is not None:
        options.out.write_text("".join(json.dumps(row | facts) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
