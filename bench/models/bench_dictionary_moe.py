"""Dictionary mixtures against the truth (synthetic strata) and against their controls (bundled embeddings).

    python -m bench.models.bench_dictionary_moe --cases strata,bundled --seeds 6 --device cuda --out FILE.jsonl

`strata`: five strata of dimensions 1, 2, 4, 8, 16 in 64, noise 1 %, 10,000 draws, with centers two radii apart and
with one common center; the stratum of a point is the expert of least penalized residual. Beside it: the gate's own
choice, an affine gate trained alike, KMeans, and the clusters that the experts started on. `bundled`: the default
recipe with both single TopK dictionaries. One row a seed; the last table gives means and intervals.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from bench.harness import surroundings
from stratcore import analysis
from stratcore.data import StrataOptions, union_of_strata
from stratcore.models import DictionaryMoEOptions
from stratcore.recipes import dictionary_moe
from stratcore.recipes.dictionary_moe_run import execute, train
from stratcore.training import Runtime
from stratcore.training.tasks import Rows

DIMS = (1, 2, 4, 8, 16)


def strata_rows(kind: str, center_distance: float, seed: int, runtime: Runtime) -> dict[str, Any]:
    """One synthetic union: agreement with the truth and dimensions on held-out points."""
    strata = union_of_strata(
        StrataOptions(kinds=(kind,) * 5, dims=DIMS, center_distance=center_distance, seed=seed)
    )
    scale = float(np.sqrt((strata.points**2).mean()))
    x, y = strata.points / scale, strata.stratum
    cut = [0, 7000, 8000, len(x)]
    parts = ("train", "validation", "test")
    rows = {
        part: Rows(torch.from_numpy(x[a:b]), torch.from_numpy(y[a:b]))
        for part, a, b in zip(parts, cut, cut[1:], strict=False)
    }
    base = dictionary_moe()
    options = replace(base.model, atoms=32, sparsities=strata.span_dims, rate=2.0)
    run = replace(base, seed=seed, stage=replace(base.stage, steps=600))
    held_out = y[cut[2] :]
    row: dict[str, Any] = {"case": "strata", "kind": kind, "center_distance": center_distance, "seed": seed}
    for name, gate in (("", options), ("affine_", replace(options, energy_rank=0))):
        assigned, chosen = assign(run, gate, rows, runtime)
        row[f"{name}ari_gate"] = adjusted_rand_score(chosen, held_out)
        if not name:
            row["ari"] = adjusted_rand_score(assigned, held_out)
            row["dimensions"] = dimensions(strata.points[cut[2] :], assigned, strata.options.noise)
    row["span_dimensions"] = list(strata.span_dims)
    clusters = KMeans(5, n_init=10, random_state=seed).fit(x[: cut[1]])
    row["ari_kmeans"] = adjusted_rand_score(clusters.predict(x[cut[2] :]), held_out)
    return row


def assign(run: Any, options: DictionaryMoEOptions, rows: dict[str, Rows], runtime: Runtime) -> tuple:
    """Expert of least penalized residual, and the gate's own choice, of the held-out rows."""
    objective = replace(run.objective, noise=0.0, balance=0.0, step_lr_scale=1.0)
    with tempfile.TemporaryDirectory() as folder:
        trained = train(run, options, objective, rows, runtime, Path(folder), None)
    with torch.no_grad():
        output = trained.model(rows["test"].x.to(runtime.device))
    return output.cost.argmin(-1).cpu().numpy(), output.logits.argmax(-1).cpu().numpy()


def dimensions(points: np.ndarray, assigned: np.ndarray, noise: float) -> list[int]:
    """Eigenvalues above the noise floor of every expert's points, by expert (experts are in order of k)."""
    found = analysis.stratum_dimensions(points, assigned, noise_variance=noise**2, margin=0.5)
    by_expert = {int(each.stratum): each for each in found}
    return [(by_expert[e].noise_floor_dimension or 0) if e in by_expert else 0 for e in range(5)]


def bundled_rows(seed: int, device: str) -> dict[str, Any]:
    """The default recipe on the bundled embeddings."""
    run = replace(dictionary_moe(), seed=seed, device=device)
    with tempfile.TemporaryDirectory() as folder:
        execute(run, Path(folder), resume=False, command="bench")
        results = json.loads((Path(folder) / "results.json").read_text())
    reconstruction = results["reconstruction"]
    row: dict[str, Any] = {"case": "bundled", "seed": seed}
    for model in (reconstruction["overall"] | {"role": "mixture"}, *reconstruction["baselines"]):
        if model["role"] == "other":
            continue
        row[f"fvu_{model['role']}"] = model["pca_space"]["fvu"]
        row[f"flops_{model['role']}"] = model["active_flops"]
        row[f"parameters_{model['role']}"] = model["parameters"]
        row[f"active_{model['role']}"] = model["mean_active_atoms"]
    for name in ("dead_atoms", "dead_atoms_chosen"):
        row[name] = float(np.mean(results["experts"][name]))
    row["ari"], row["nmi"] = (results["agreement"]["overall"][name]["value"] for name in ("ari", "nmi"))
    row["fvu_gate_validation"] = results["training"]["final_losses"]["validation/fvu_gate"]
    row["training_seconds"] = results["training"]["seconds"]
    return row


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Mean and smallest value over seeds; for the bundled case the paired difference with a 95 % t interval."""
    lines = []
    for key in sorted({(r["kind"], r["center_distance"]) for r in rows if r["case"] == "strata"}):
        own = [r for r in rows if r["case"] == "strata" and (r["kind"], r["center_distance"]) == key]
        worst = max(
            abs(a - b) for r in own for a, b in zip(r["dimensions"], r["span_dimensions"], strict=True)
        )
        names = ("ari", "ari_gate", "affine_ari_gate", "ari_kmeans")
        values = "  ".join(
            f"{n} {np.mean([r[n] for r in own]):.3f} (min {min(r[n] for r in own):.3f})" for n in names
        )
        lines.append(f"strata {key[0]}, distance {key[1]}: {values}  largest dimension error {worst}")
    own = [r for r in rows if r["case"] == "bundled"]
    for peer in ("topk_equal_flops", "topk_equal_parameters", "pca_equal_dimension") if own else ():
        difference = np.array([r["fvu_mixture"] - r[f"fvu_{peer}"] for r in own])
        half = stats.t.ppf(0.975, len(own) - 1) * stats.sem(difference) if len(own) > 1 else float("nan")
        lines.append(
            f"bundled: mixture {np.mean([r['fvu_mixture'] for r in own]):.4f}, {peer} "
            f"{np.mean([r[f'fvu_{peer}'] for r in own]):.4f}, difference {difference.mean():.4f} +- {half:.4f}"
        )
    if own:
        dead, chosen = (max(r[name] for r in own) for name in ("dead_atoms", "dead_atoms_chosen"))
        lines.append(f"bundled: dead atoms at most {dead:.3f}; counting only chosen experts {chosen:.3f}")
    return lines


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", default="strata,bundled")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "bench.models.bench_dictionary_moe", *sys.argv[1:]])
    with options.out.open("w") as file, Runtime.create(options.device) as runtime:
        about = surroundings(runtime.device, command)
        jobs = []
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        if "strata" in options.cases.split(","):
            jobs += [(strata_rows, (kind, distance, seed, runtime)) for kind in ("plane", "sphere")
                     for distance in (2.0, 0.0) for seed in seeds]  # fmt: skip
        if "bundled" in options.cases.split(","):
            jobs += [(bundled_rows, (seed, runtime.device.type)) for seed in seeds]
        for job, arguments in jobs:
            begin = time.perf_counter()
            row = job(*arguments)
            row["seconds"] = time.perf_counter() - begin
            rows.append(row)
            file.write(json.dumps(row | about) + "\n")
            file.flush()
            print(json.dumps(row), flush=True)
    print("\n".join(summary(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
