from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.models import bench_dual_stream_vit as bench

pytestmark = pytest.mark.usefixtures("single_thread")
QUICK = ["--warm-up", "0", "--measure", "0.01", "--providers", "stratcore"]


def test_products_are_counted() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5, bias=False))
    assert bench.counted(model, torch.zeros(3, 2, 3)) == pytest.approx(2 * 6 * 5 / 1e9)


def test_a_step_passes_its_gate_and_has_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.jsonl"
    assert bench.main([*QUICK, "--out", str(out)]) == 0
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert row["gate"] and row["p50_ms"] > 0
    assert (row["case"], row["provider"], row["shapes"]["images"]) == ("digits", "stratcore", 64)
    assert "images a second" in capsys.readouterr().out


def test_wrong_embeddings_have_no_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = bench.Problem._own
    monkeypatch.setattr(bench.Problem, "_own", lambda *given: lambda: 1.1 * right(*given)())
    out = tmp_path / "rows.jsonl"
    bench.main([*QUICK, "--out", str(out)])
    row = json.loads(out.read_text())
    assert not row["gate"] and "p50_ms" not in row


def test_cases_are_the_recipes_with_models_for_their_images() -> None:
    dual, faithful, _ = bench.CASES
    assert dual.run.model.image_size == 28 and faithful.run.model.channels == 3
    assert (dual.views, faithful.views) == (256, 1024)
