"""The benchmark of the simplex measures: its gates, its work, its table of numerics."""

from __future__ import annotations

import pytest
import torch

from bench import compare
from bench.ops import bench_cayley_menger as bench

pytestmark = pytest.mark.usefixtures("quick_ceilings")
FAST = ["--warm-up", "0", "--measure", "0.001", "--modes", "fwd,fwd+bwd"]


@pytest.mark.parametrize("name", ["small_points", "small_bf16", "small_table", "small_distances"])
def test_every_provider_passes_its_gate(tmp_path, name):
    out = tmp_path / "rows.jsonl"
    providers = ["det", "cdist", "cholesky", "stratcore"]
    bench.main([*FAST, "--providers", ",".join(providers), "--cases", name, "--out", str(out)])
    rows = compare.read_rows(out)
    wanted = {"det", "stratcore"} if name == "small_distances" else set(providers)
    assert {row["provider"] for row in rows} == wanted and all(row["gate"] for row in rows)
    assert {row["mode"] for row in rows} == {"fwd", "fwd+bwd"}


def test_a_wrong_kernel_gets_no_speed(monkeypatch, capsys):
    right = bench.ops.simplex_volume
    monkeypatch.setattr(bench.ops, "simplex_volume", lambda *a, **k: 1.0001 * right(*a, **k))
    bench.main([*FAST, "--providers", "stratcore", "--cases", "small_points"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "stratcore:" in line]
    assert len(lines) == 2 and all("GATE FAILED" in line for line in lines)


def test_the_unrolled_form_is_the_volume():
    points = torch.randn(50, 5, 8, dtype=torch.float64)
    volume = bench.reference.squared_volume(points).sqrt()
    torch.testing.assert_close(bench.unrolled_volume(points), volume, rtol=1e-9, atol=0)
    distances = bench.reference.squared_distances(points)
    torch.testing.assert_close(bench.unrolled_distances_volume(distances), volume, rtol=1e-9, atol=0)


def test_work_of_a_case():
    job = bench.Case("name", "group", simplices=10, dim=3).job("fwd")
    assert job.flops == 10 * 3 * 24 and job.bytes == 4 * (10 * 5 * 3 + 10)
    both = bench.Case("name", "group", simplices=10, dim=3).job("fwd+bwd")
    assert both.flops == 2 * job.flops + 10 * 3 * 36 and both.bytes == 4 * (3 * 10 * 5 * 3 + 2 * 10)
    table = bench.Case("name", "group", simplices=10, dim=3, kind="table", rows=7).job("fwd")
    assert table.bytes == 4 * (7 * 3 + 10) + 8 * 50


def test_numerics_counts_wrong_signs(capsys):
    bench.main(["--cases", "numerics", "--count", "3000"])
    _, header, *lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert header[:3] == ["height", "shift", "provider"] and len(lines) == 6
    flat = {tuple(line[2:-4]): line for line in lines if line[0] == "0.0001"}
    ours, naive = flat[("stratcore",)], flat[("bordered", "determinant")]
    assert float(ours[-3]) <= 1e-3 and ours[-2] == "0"
    assert int(naive[-2]) > 900
