"""The benchmark of the tangent projection gates before it times, and counts the least bytes."""

from __future__ import annotations

import pytest
import torch

from bench import compare
from bench.ops import bench_tangent_projection as bench

pytestmark = pytest.mark.usefixtures("quick_ceilings")
FAST = ["--warm-up", "0", "--measure", "0.001"]


@pytest.mark.parametrize("name", [case.name for case in bench.CASES if case.group == "small"])
def test_every_provider_passes_its_gate(tmp_path, name):
    out = tmp_path / "rows.jsonl"
    providers = ["--providers", "eager,stratcore,normalize,yardstick"]
    bench.main([*FAST, *providers, "--cases", name, "--out", str(out)])
    rows = compare.read_rows(out)
    assert len(rows) == 8 and all(row["gate"] for row in rows)
    assert {row["mode"] for row in rows} == {"fwd", "fwd+bwd"}
    rivals = {row["provider"] for row in rows if row["case"] == name}
    assert rivals == {"eager", "stratcore"} | ({"normalize"} if "a0" in name else set())


@pytest.mark.parametrize("fault", [1.01, float("nan")])
def test_a_wrong_kernel_gets_no_speed(monkeypatch, capsys, fault):
    right = bench.stratcore
    monkeypatch.setattr(bench, "stratcore", lambda anchors: lambda x: fault * right(anchors)(x))
    bench.main([*FAST, "--providers", "eager,stratcore", "--cases", "small_fp32"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "stratcore:" in line]
    assert len(lines) == 2 and all("GATE FAILED" in line for line in lines)


def test_least_bytes_of_a_case():
    case = bench.Case("name", "group", rows=10, dim=3, anchors=7, dtype=torch.bfloat16)
    assert case.job("fwd").bytes == 2 * 10 * 3 * 2
    assert case.job("fwd+bwd").bytes == case.job("graph").bytes == 5 * 10 * 3 * 2


def test_unknown_names_and_large_cases_are_refused(capsys):
    for arguments in (["--cases", "huge"], ["--modes", "backward"]):
        with pytest.raises(SystemExit):
            bench.parse(arguments)
        assert f"got {arguments[1]!r}" in capsys.readouterr().err
    bench.main([*FAST, "--cases", "n1m_d256_a128_fp32"])
    assert "skipped on the CPU: n1m_d256_a128_fp32 (tensors of 5.0 GiB)" in capsys.readouterr().out
