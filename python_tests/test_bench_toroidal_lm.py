from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.models import bench_toroidal_lm as bench

pytestmark = pytest.mark.usefixtures("single_thread", "quick_ceilings")
QUICK = ["--warm-up", "0", "--measure", "0.01"]


def test_every_provider_passes_its_gate_in_every_mode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    assert bench.main([*QUICK, "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["mode"], row["provider"]) for row in rows] == [
        (mode, kind) for mode in bench.MODES for kind in bench.KINDS
    ]
    assert all(row["gate"] and row["p50_ms"] > 0 and row["relative_error"] < 1e-5 for row in rows)
    assert capsys.readouterr().out.count("tokens a second") == len(rows)


def test_a_model_that_is_not_the_host_has_no_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = bench.Problem.logits
    monkeypatch.setattr(bench.Problem, "logits", lambda *given: 1.1 * right(*given))
    out = tmp_path / "rows.jsonl"
    bench.main([*QUICK, "--modes", "prefill", "--providers", "open", "--out", str(out)])
    row = json.loads(out.read_text())
    assert not row["gate"] and "p50_ms" not in row


def test_the_gate_reads_what_the_torus_computes_and_leaves_it_as_it_was() -> None:
    problem = bench.Problem(bench.CASES[-1], torch.device("cpu"))
    model = problem.model("gated", torch.float32)
    before = {name: part.clone() for name, part in model.named_parameters()}
    calls = []
    branch = model.branches["0"]
    branch.register_forward_hook(
        lambda module, _, __: calls.append(float(module.lambda_distance.abs().max()))
    )
    problem.logits(model, "train")
    assert calls == [0.0]
    assert all(torch.equal(before[name], part) for name, part in model.named_parameters())


def test_a_decoded_token_stands_behind_the_prompt_every_time() -> None:
    problem = bench.Problem(bench.CASES[-1], torch.device("cpu"))
    call = problem.decode(problem.model("open", torch.float32))
    assert torch.equal(call(), call())
