"""Tests of the manifold and fiber-bundle hypotheses: size, false rejections, power and time of three procedures.

    python -m bench.analysis.bench_fiber_bundle --out bench/results/cpu/fiber_bundle.jsonl

`size`: p-values at independent centers of flat tori with their own distance, each center in a cloud of its own, where
the null is exact. `nulls`: twelve smooth manifolds in chord distance; columns scaled to variance 1 for the rule of
the source documents. `power`: spaces whose singular points are known; lollipop and thinning strip among them. `time`:
a table of 50,257 x 768, neighbors and all tests. A row is one case and seed; tables at the end.

The published procedure rejects at alpha 1e-3 / 3 at any of its positions. To set it beside ours at equal error it is
corrected for positions, by all of them (`all`) or leniently by as many as do not overlap (`lenient`), then by Holm
over points, both at .05. Ours is Holm at .05, too.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import statsmodels
import torch
from statsmodels.stats.proportion import proportion_confint

from bench.compare import format_table
from bench.harness import surroundings
from stratcore.analysis.fiber_bundle import (
    NeighborhoodTest,
    Side,
    corrected_p_values,
    reference_test,
    source_rule,
    spacings_test,
)
from stratcore.analysis.neighbors import nearest_neighbors
from stratcore.data import singular
from stratcore.data.manifolds import SMOOTH_NULLS, SampledSpace

Row = dict[str, Any]
SIDES: tuple[Side, ...] = ("rise", "change")
LEVEL, WIDTH = 0.05, 10
TORI, CENTERS, CLOUD = (1, 2, 4, 6), 6000, 4000
SIZE_WINDOWS = ((1, 64), (10, 128))
WINDOW, WIDE = (10, 128), (10, 200)
NULL_ROWS = 1200
SPACES: dict[str, Callable[[int], SampledSpace]] = {
    "plane and line, 1,200": lambda seed: singular.plane_union_line(1200, seed),
    "disc in 6-cube, 4,000": lambda seed: singular.disc_in_cube(4000, seed),
    "line in hollow ball, 1,080": lambda seed: singular.line_in_hollow_ball(1080, seed),
    "sphere and line, 1,200": lambda seed: singular.sphere_union_line(1200, seed),
    "cusp, 1,200": lambda seed: singular.cusp(1200, seed),
    "lollipop, 1,200": lambda seed: singular.lollipop(1200, seed),
    "lollipop, 4,000": lambda seed: singular.lollipop(4000, seed),
    "thinning strip, 2,000": lambda seed: singular.thinning_strip(2000, seed),
}
TABLE = (50_257, 768)


def significant(p_values: np.ndarray, method: str = "holm") -> np.ndarray:
    """Rejected at LEVEL after the correction; a point that was not tested is not."""
    return np.nan_to_num(corrected_p_values(p_values, method), nan=1.0) <= LEVEL  # type: ignore[arg-type]


def corrected_reference(found: NeighborhoodTest, window: tuple[int, int], lenient: bool) -> np.ndarray:
    """The smallest p over positions, times their number (or as many as do not overlap), then Holm."""
    positions = window[1] - window[0] - 4 * WIDTH
    return significant(np.minimum(found.p_value * (positions / WIDTH if lenient else positions), 1.0))


# ---- parts


def size_rows(options: argparse.Namespace) -> Iterator[Row]:
    for dim in TORI:
        rng = np.random.default_rng([options.first_seed, dim])
        radii = np.stack([
            nearest_neighbors(rng.random((CLOUD, dim)), SIZE_WINDOWS[-1][1], queries=[0], period=1.0).distances[0]
            for _ in range(CENTERS)
        ])  # fmt: skip
        for window in SIZE_WINDOWS:
            assert radii[:, window[1] - 1].max() < 0.5, "a ball wraps around the torus"
            for side in SIDES:
                p_values = spacings_test(radii, window, side).p_value
                row: Row = {"part": "size", "case": f"flat torus {dim}", "window": window, "side": side}
                row |= {"centers": CENTERS, "cloud": CLOUD, "seed": options.first_seed}
                for level in (0.05, 0.01, 0.001):
                    hits = int((p_values <= level).sum())
                    interval = proportion_confint(hits, CENTERS, method="wilson")
                    row[f"rejected_{level}"] = [hits / CENTERS, *map(float, interval)]
                yield row


def null_rows(options: argparse.Namespace) -> Iterator[Row]:
    for seed in seeds_of(options):
        for name, manifold in SMOOTH_NULLS.items():
            points = manifold.draw(NULL_ROWS, seed).points
            scaled = (points - points.mean(axis=0)) / points.std(axis=0)
            radii = nearest_neighbors(points, WIDE[1]).distances
            row: Row = {"part": "nulls", "case": name, "seed": seed, "points": NULL_ROWS}
            row["source_share"] = share(
                source_rule(nearest_neighbors(scaled, NULL_ROWS - 1).distances).rejected
            )
            for side in SIDES:
                ours = spacings_test(radii, WINDOW, side).p_value
                published = reference_test(radii, WIDE, side)
                row |= {
                    f"spacings_{side}": int(significant(ours).sum()),
                    f"spacings_{side}_uncorrected": share(ours <= LEVEL),
                    f"spacings_{side}_wide": int(significant(spacings_test(radii, WIDE, side).p_value).sum()),
                    f"reference_{side}_share": share(published.rejected),
                    f"reference_{side}_all": int(corrected_reference(published, WIDE, False).sum()),
                    f"reference_{side}_lenient": int(corrected_reference(published, WIDE, True).sum()),
                }
            yield row


def power_rows(options: argparse.Namespace) -> Iterator[Row]:
    for seed in seeds_of(options):
        for name, draw in SPACES.items():
            space = draw(seed)
            radii = nearest_neighbors(space.points, WIDE[1]).distances
            for window in (WINDOW, WIDE):
                for side in SIDES:
                    row: Row = {"part": "power", "case": name, "seed": seed, "window": window, "side": side}
                    counts = {"points": np.ones(len(radii), dtype=bool)} | rejections(radii, window, side)
                    row |= {key: by_stratum(space, rejected) for key, rejected in counts.items()}
                    yield row | {"dims": list(space.dims)}


def rejections(radii: np.ndarray, window: tuple[int, int], side: Side) -> dict[str, np.ndarray]:
    ours, published = spacings_test(radii, window, side).p_value, reference_test(radii, window, side)
    return {
        "spacings_holm": significant(ours),
        "spacings_bh": significant(ours, "benjamini_hochberg"),
        "reference_own_rule": published.rejected,
        "reference_all": corrected_reference(published, window, lenient=False),
        "reference_lenient": corrected_reference(published, window, lenient=True),
    }


def time_rows(options: argparse.Namespace) -> Iterator[Row]:
    rows, dim = (4096, 64) if options.small else TABLE
    table = torch.randn(rows, dim, generator=torch.Generator().manual_seed(options.first_seed))
    table = table.to(options.device)
    row: Row = {
        "part": "time",
        "case": f"{rows:,} x {dim}",
        "neighbors": WIDE[1],
        "device_kind": options.device,
    }
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    for repeat in range(2 if options.device != "cpu" else 1):  # the first run on a GPU loads kernels
        begin = time.perf_counter(), time.process_time()
        radii = nearest_neighbors(table, WIDE[1]).distances
        searched = time.perf_counter()
        p_values = {side: spacings_test(radii, WIDE, side).p_value for side in SIDES}
        tested = time.perf_counter()
        published = reference_test(radii, WIDE, "change")
        row |= {
            "repeat": repeat,
            "neighbors_seconds": searched - begin[0],
            "spacings_seconds": tested - searched,
            "reference_seconds": time.perf_counter() - tested,
            "processor_seconds": time.process_time() - begin[1],
            "load_before": load,
        }
    row |= {f"spacings_{side}": int(significant(p_values[side]).sum()) for side in SIDES}
    yield row | {"reference_change_share": share(published.rejected)}


PARTS = {"size": size_rows, "nulls": null_rows, "power": power_rows, "time": time_rows}


def seeds_of(options: argparse.Namespace) -> range:
    return range(options.first_seed, options.first_seed + options.seeds)


def share(mask: np.ndarray) -> float:
    return float(mask.mean())


def by_stratum(space: SampledSpace, mask: np.ndarray) -> list[int]:
    return [int((mask & (space.stratum == stratum)).sum()) for stratum in range(len(space.dims))]


# ---- tables


def summary(rows: Sequence[Row]) -> str:
    tables = []
    size = [row for row in rows if row["part"] == "size"]
    if size:
        header = ["size", "window", "null", "at .05 [95 % interval]", "at .01", "at .001"]
        cells = [[row["case"], window_of(row), null_of(row), *map(interval, levels(row))] for row in size]
        tables.append(format_table(header, cells))
    tables += [table for part in (null_table, power_table, time_table) if (table := part(rows))]
    return "\n\n".join(tables)


def levels(row: Row) -> list[list[float]]:
    return [row[f"rejected_{level}"] for level in (0.05, 0.01, 0.001)]


def interval(values: Sequence[float]) -> str:
    return "{:.4f} [{:.4f}, {:.4f}]".format(*values)


def window_of(row: Row) -> str:
    return "{}-{}".format(*row["window"])


def null_of(row: Row) -> str:
    return {"rise": "fiber bundle", "change": "manifold"}[row["side"]]


def null_table(rows: Sequence[Row]) -> str:
    own = [row for row in rows if row["part"] == "nulls"]
    keys = ("spacings_rise", "spacings_change", "reference_rise_lenient", "reference_change_lenient")
    shares = ("spacings_rise_uncorrected", "reference_rise_share", "reference_change_share", "source_share")
    cells = []
    for name in dict.fromkeys(row["case"] for row in own):
        mine = [row for row in own if row["case"] == name]
        counts = [",".join(str(row[key]) for row in mine) for key in keys]
        cells.append([name, *counts, *(f"{np.mean([row[key] for row in mine]):.3f}" for key in shares)])
    if not own:
        return ""
    seeds = sorted({row["seed"] for row in own})
    affected = [
        ",".join(str(sum(row[key] > 0 for row in own if row["seed"] == seed)) for seed in seeds)
        for key in keys
    ]
    cells.append(["manifolds with any rejection", *affected, "", "", "", ""])
    header = ["smooth manifold", "bundle: ours", "manifold: ours", "bundle: published", "manifold: published"]
    return format_table([*header, "share p<=.05", "own rule, rise", "own rule", "source rule"], cells)


def power_table(rows: Sequence[Row]) -> str:
    own = [row for row in rows if row["part"] == "power"]
    kept = (
        "points",
        "spacings_holm",
        "spacings_bh",
        "reference_own_rule",
        "reference_all",
        "reference_lenient",
    )
    cells = []
    for key in dict.fromkeys((row["case"], tuple(row["window"]), row["side"]) for row in own):
        mine = [row for row in own if (row["case"], tuple(row["window"]), row["side"]) == key]
        means = {name: np.mean([row[name] for row in mine], axis=0) for name in kept}
        ratio = [means["spacings_holm"].sum() / max(means[name].sum(), 1e-12) for name in kept[-2:]]
        text = ["+".join(f"{value:.1f}" for value in means[name]) for name in kept]
        times = ["none" if not means[n].sum() else f"{r:.1f}" for n, r in zip(kept[-2:], ratio, strict=True)]
        cells.append([key[0], "{}-{}".format(*key[1]), null_of(mine[0]), *text, *times])
    header = ["space", "window", "null", "points", "ours, Holm", "ours, BH", "published, own rule"]
    header += ["published, all", "published, lenient", "times all", "times lenient"]
    return format_table(header, cells) if own else ""


def time_table(rows: Sequence[Row]) -> str:
    own = [row for row in rows if row["part"] == "time"]
    keys = ("neighbors_seconds", "spacings_seconds", "reference_seconds", "processor_seconds", "load_before")
    cells = [[row["case"], row["device_kind"], *(f"{row[key]:.1f}" for key in keys)] for row in own]
    header = [
        "time",
        "on",
        "neighbors, s",
        "two spacings tests, s",
        "published, s",
        "processor, s",
        "load before",
    ]
    return format_table(header, cells) if own else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--parts", default=",".join(PARTS), help="of size,nulls,power,time")
    parser.add_argument("--seeds", type=int, default=6, help="of `nulls` and `power`")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="of `time`")
    parser.add_argument("--small", action="store_true", help="`time` of a small table")
    parser.add_argument("--append", action="store_true", help="keep the rows that the file has")
    parser.add_argument("--out", type=Path, required=True)
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(given)
    command = shlex.join(["python", "-m", "bench.analysis.bench_fiber_bundle", *given])
    about = surroundings(torch.device(options.device), command)
    about |= {"numpy": np.__version__, "scipy": scipy.__version__, "statsmodels": statsmodels.__version__}
    if unknown := set(options.parts.split(",")) - set(PARTS):
        parser.error(f"expected parts of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with options.out.open("a" if options.append else "w") as file:
        for part in options.parts.split(","):
            for row in PARTS[part](options):
                rows.append(row)
                file.write(json.dumps(row | about) + "\n")
                file.flush()
                print(json.dumps(row), flush=True)
    print(summary(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
