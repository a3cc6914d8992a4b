"""Matching pursuit and dictionary learning against scikit-learn's; a trained LISTA encoder against pursuit.

    python -m bench.analysis.bench_sparse_coding --cases pursuit,learning,lista --out FILE.jsonl

`pursuit`: the same atoms and coefficients (to 1e-8) or no speed. scikit-learn's is `orthogonal_mp_gram`, with the
time of its Gram matrix; both of ours in float64 as well. `learning`: seconds of a fit, and the error that codes of k
atoms leave, at one number of rounds. `--device` is where ours of these two compute; scikit-learn's knows the CPU.
`lista`, on the CPU: one TopK dictionary is trained; its encoder's held-out FVU at k atoms stands beside that of
matching pursuit on the same dictionary, with the time of each. Goal: within 10 % of pursuit, at least 20 times faster
than scikit-learn's.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.linear_model import orthogonal_mp_gram

from bench.harness import Budget, measure, surroundings
from stratcore.analysis import fvu
from stratcore.analysis.sparse_coding import (
    KSVD,
    OnlineDictionaryLearning,
    batch_orthogonal_matching_pursuit,
    orthogonal_matching_pursuit,
)
from stratcore.data import StrataOptions, union_of_strata
from stratcore.recipes import dictionary_moe
from stratcore.recipes.dictionary_moe_data import prepare
from stratcore.recipes.dictionary_moe_run import train
from stratcore.training import Runtime
from stratcore.training.tasks import Rows

CPU = torch.device("cpu")
PURSUIT = ((1500, 20, 50, 3), (1000, 64, 256, 8), (1000, 64, 256, 32), (1000, 384, 1024, 16))
LEARNING = (20_000, 64, 256, 8, 10)  # rows, dimensions, atoms, k, rounds
BUDGET = Budget(warmup_s=0.1, measure_s=1.0, min_repeats=3)


def scikit_learn(x: np.ndarray, atoms: np.ndarray, k: int) -> np.ndarray:
    return orthogonal_mp_gram(atoms @ atoms.T, atoms @ x.T, n_nonzero_coefs=k).T


def from_gram(x: torch.Tensor, atoms: torch.Tensor, k: int) -> torch.Tensor:
    return batch_orthogonal_matching_pursuit(atoms @ atoms.T, x @ atoms.T, k)


def milliseconds(call: Callable[[], Any], device: torch.device = CPU) -> float:
    return measure(call, device, BUDGET).wall_ms


def pursuit_rows(device: torch.device) -> Iterator[dict[str, Any]]:
    """Time of each provider, and the largest difference from scikit-learn."""
    for rows, dim, num_atoms, k in PURSUIT:
        rng = np.random.default_rng(0)
        atoms = rng.standard_normal((num_atoms, dim))
        atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
        x = rng.standard_normal((rows, dim))
        exact = scikit_learn(x, atoms, k)
        baseline = milliseconds(lambda x=x, a=atoms, k=k: scikit_learn(x, a, k))
        shapes = {"rows": rows, "dim": dim, "atoms": num_atoms, "k": k}
        yield {"case": "pursuit", "provider": "scikit-learn", **shapes, "gate": True, "p50_ms": baseline}
        rows_ND, atoms_MD = (torch.from_numpy(value).to(device) for value in (x, atoms))
        for name, function in (("residual", orthogonal_matching_pursuit), ("gram", from_gram)):
            error = float(np.abs(function(rows_ND, atoms_MD, k).cpu().numpy() - exact).max())
            row = {"case": "pursuit", "provider": name, **shapes, "gate": error <= 1e-8, "max_error": error}
            if row["gate"]:
                row["p50_ms"] = milliseconds(
                    lambda f=function, x=rows_ND, a=atoms_MD, k=k: f(x, a, k), device
                )
                row["times_faster"] = baseline / row["p50_ms"]
            yield row


def learning_rows(device: torch.device) -> Iterator[dict[str, Any]]:
    """Seconds of a fit of each learner and the share of the rows' variance that its codes of k atoms leave."""
    rows, dim, num_atoms, k, rounds = LEARNING
    rng = np.random.default_rng(0)
    planted = rng.standard_normal((num_atoms, dim))
    codes = np.zeros((rows, num_atoms))
    np.put_along_axis(
        codes, rng.random(codes.shape).argsort(axis=1)[:, :k], rng.standard_normal((rows, k)), axis=1
    )
    x = codes @ planted + 0.1 * rng.standard_normal((rows, dim))
    theirs = MiniBatchDictionaryLearning(
        num_atoms,
        max_iter=rounds,
        batch_size=256,
        fit_algorithm="cd",
        transform_algorithm="omp",
        transform_n_nonzero_coefs=k,
        random_state=0,
    )
    learners = {
        "scikit-learn online": theirs,
        "online": OnlineDictionaryLearning(num_atoms, k, max_iter=rounds, batch_size=256, device=str(device)),
        "k-svd": KSVD(num_atoms, k, max_iter=rounds, tolerance=0, device=str(device)),
    }
    centered = x - x.mean(0)
    for name, learner in learners.items():
        if device.type == "cuda" and learner is not theirs:  # the first fit on a GPU loads kernels
            clone(learner).set_params(max_iter=1).fit(centered)
        begin = time.perf_counter()
        learner.fit(centered)
        seconds = time.perf_counter() - begin
        atoms = learner.components_ / np.linalg.norm(learner.components_, axis=1, keepdims=True)
        found = orthogonal_matching_pursuit(torch.from_numpy(centered), torch.from_numpy(atoms), k).numpy()
        yield {
            "case": "learning",
            "provider": name,
            **{"rows": rows, "dim": dim, "atoms": num_atoms, "k": k, "rounds": rounds},
            "seconds": seconds,
            "fvu": float(((centered - found @ atoms) ** 2).sum() / (centered**2).sum()),
        }


def plane_rows() -> dict[str, Rows]:
    """Five planes of 4 to 24 dimensions in 64, 20 dB."""
    strata = union_of_strata(
        StrataOptions(kinds=("plane",) * 5, dims=(4, 8, 12, 16, 24), center_distance=0.0, noise=0.01)
    )
    x = strata.points - strata.points.mean(0)
    x, y = x / np.sqrt((x**2).mean()), strata.stratum
    cut = dict(zip(("train", "validation", "test"), ((0, 7000), (7000, 8000), (8000, 9000)), strict=True))
    return {
        part: Rows(torch.from_numpy(x[a:b]).float(), torch.from_numpy(y[a:b])) for part, (a, b) in cut.items()
    }


def bundled_rows() -> dict[str, Rows]:
    """The bundled embeddings on 64 principal components."""
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(dictionary_moe(), Path(folder))
    return {part: data.rows(part) for part in ("train", "validation", "test")}


def lista_rows(steps: int) -> Iterator[dict[str, Any]]:
    """A trained encoder and pursuit on its dictionary."""
    base = dictionary_moe()
    for source, rows in (("planes", plane_rows()), ("bundled", bundled_rows())):
        for k in (8, 16):
            options = replace(base.model, sparsities=(k,), energy_rank=0, candidates=1)
            objective = replace(base.objective, balance=0.0)
            run = replace(base, stage=replace(base.stage, steps=steps), model=options)
            with tempfile.TemporaryDirectory() as folder, Runtime.create("cpu") as runtime:
                trained = train(run, options, objective, rows, runtime, Path(folder), None)
            yield {"case": "lista", "source": source, "k": k, "steps": steps} | compare(
                trained.model, rows["test"].x, rows["train"].x.mean(0), k
            )


@torch.no_grad()
def compare(model: Any, x: torch.Tensor, center: torch.Tensor, k: int) -> dict[str, Any]:
    """Held-out FVU and time of the encoder and of pursuit."""
    atoms, offset = model.experts.atoms[0].mT.contiguous(), model.experts.centers[0]
    atoms64, rows64 = atoms.double().numpy(), (x - offset).double().numpy()
    pursued = orthogonal_matching_pursuit(x - offset, atoms, k) @ atoms + offset
    row = {
        "fvu_lista": fvu(x, model.experts(x)[1][0], center),
        "fvu_pursuit": fvu(x, pursued, center),
        "lista_ms": milliseconds(lambda: model.experts.encode(x)),
        "pursuit_ms": milliseconds(lambda: orthogonal_matching_pursuit(x - offset, atoms, k)),
        "scikit_learn_ms": milliseconds(lambda: scikit_learn(rows64, atoms64, k)),
        "rows": len(x),
        "atoms": len(atoms),
    }
    return row | {
        "fvu_above_pursuit": row["fvu_lista"] / row["fvu_pursuit"] - 1,
        "times_faster_than_pursuit": row["pursuit_ms"] / row["lista_ms"],
        "times_faster_than_scikit_learn": row["scikit_learn_ms"] / row["lista_ms"],
    }


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", default="pursuit,learning,lista")
    parser.add_argument("--device", type=torch.device, default=CPU, help="of ours in pursuit and learning")
    parser.add_argument("--steps", type=int, default=400, help="of the encoder's training")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    command = shlex.join(["python", "-m", "bench.analysis.bench_sparse_coding", *sys.argv[1:]])
    about = surroundings(options.device, command) | {"budget": asdict(BUDGET)}
    cases = {
        "pursuit": lambda: pursuit_rows(options.device),
        "learning": lambda: learning_rows(options.device),
        "lista": lambda: lista_rows(options.steps),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w") as file:
        for case in options.cases.split(","):
            for row in cases[case]():
                file.write(json.dumps(row | about) + "\n")
                file.flush()
                print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
