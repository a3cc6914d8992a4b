from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.layers import bench_stratified_routing as bench


def test_small_cases_pass_their_gate(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    words = ["--warm-up", "0", "--measure", "0.01", "--providers", "dense,sparse", "--out", str(out)]
    assert bench.main(words) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {(r["case"], r["mode"], r["provider"]) for r in rows} == {
        (case, mode, provider)
        for case in ("small_routing", "small_moe")
        for mode in ("fwd", "fwd+bwd")
        for provider in ("dense", "sparse")
    }
    assert all(row["gate"] and row["p50_ms"] > 0 for row in rows)


def test_a_wrong_dispatch_has_no_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = bench.build

    def planted(case: bench.Case, dispatch: str) -> nn.Module:
        layer = right(case, dispatch)
        if dispatch == "sparse":
            with torch.no_grad():
                next(iter(layer.parameters())).mul_(1.01)
        return layer

    monkeypatch.setattr(bench, "build", planted)
    out = tmp_path / "rows.jsonl"
    bench.main(
        ["--warm-up", "0", "--measure", "0.01", "--modes", "fwd", "--providers", "sparse", "--out", str(out)]
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 2 and not any(row["gate"] for row in rows)
    assert not any("p50_ms" in row for row in rows)
