"""The benchmark of toroidal attention gates before it times, and counts the least work."""

from __future__ import annotations

import pytest
import torch

from bench import compare
from bench.ops import bench_toroidal_attention as bench

pytestmark = pytest.mark.usefixtures("quick_ceilings")
FAST = ["--warm-up", "0", "--measure", "0.001", "--providers"]


@pytest.mark.parametrize("name", [case.name for case in bench.CASES if case.group == "small"])
def test_every_provider_passes_its_gate(tmp_path, name):
    """FlexAttention aside, whose compiler takes a while, and which has no backward on the CPU."""
    out = tmp_path / "rows.jsonl"
    bench.main([*FAST, "eager,sdpa_bias,stratcore,sdpa", "--cases", name, "--out", str(out)])
    rows = compare.read_rows(out)
    assert all(row["gate"] for row in rows), [row.get("error") for row in rows]
    assert [row["mode"] for row in rows] == ["fwd"] * 4 + ["fwd+bwd"] * 4 + ["learn"] * 3
    rivals = {row["provider"] for row in rows if row["case"] == name}
    assert rivals == {"eager", "sdpa_bias", "stratcore"}


@pytest.mark.parametrize("fault", [1.01, float("nan")])
def test_a_wrong_kernel_gets_no_speed(monkeypatch, capsys, fault):
    def wrong(case: bench.Case, slopes: torch.Tensor) -> bench.Function:
        right = bench.eager(case, slopes)
        return lambda *tensors: fault * right(*tensors)

    monkeypatch.setattr(bench, "stratcore", wrong)
    bench.main([*FAST, "eager,stratcore", "--cases", "small_ring"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "small_ring fwd stratcore:" in line]
    assert len(lines) == 1 and "GATE FAILED" in lines[0]


def test_the_oracle_knows_the_gradient_of_the_slopes():
    """By autograd through the definition, for a problem with shared keys and causal order."""
    case = next(case for case in bench.CASES if case.name == "small_causal")
    problem = bench.Problem(case, torch.device("cpu"))
    leaves = [t[:, :n].double().requires_grad_() for t, n in ((problem.q, 2), (problem.k, 1), (problem.v, 1))]
    slopes = problem.slopes[:2].double().requires_grad_()
    options = {"causal": True, **case.places()}
    out = bench.reference.toroidal_attention(*leaves, slopes, **options)[0]
    wanted = torch.autograd.grad(out, [*leaves, slopes], problem.grad[:, :2].double())
    torch.testing.assert_close(problem.oracle("learn", True), list(wanted))
    torch.testing.assert_close(problem.oracle("fwd", True), [out.detach()])


def test_least_work_of_a_case():
    case = bench.Case("name", "group", 2, 8, 100, 64, causal=True, kv_heads=2)
    forward, both = case.job("fwd"), case.job("learn")
    assert forward.flops == 4 * 2 * 8 * 100 * 100 * 64 / 2 and both.flops == 3.5 * forward.flops
    assert forward.bytes == 2 * 2 * (8 + 2) * 100 * 64 * 2 and both.bytes == 3 * forward.bytes


def test_unknown_names_and_large_cases_are_refused(capsys):
    for arguments in (["--cases", "huge"], ["--modes", "backward"]):
        with pytest.raises(SystemExit):
            bench.parse(arguments)
        assert f"got {arguments[1]!r}" in capsys.readouterr().err
    bench.main([*FAST, "stratcore", "--cases", "n4096_d128"])
    assert "skipped on the CPU: n4096_d128 (1100 GFLOP forward)" in capsys.readouterr().out
