"""The harness measures what it says, gates before it times, and its tables mark what is slower."""

from __future__ import annotations

import json
import sys
import time

import pytest
import torch

from bench import compare, harness, runner
from bench.ops import bench_simplex_cv, bench_topk_lista

CPU = torch.device("cpu")
QUICK = harness.Budget(warmup_s=0.0, measure_s=0.02, min_repeats=3)
EXACT = harness.Gate(True, 0.0, 0.0)
JOB = harness.Job("op", "case", "fwd", {"rows": 2}, torch.float32, flops=2e6, bytes=4e6)
FIELDS = {
    "op", "provider", "mode", "case", "shapes", "dtype", "matmul_precision", "gate", "max_error", "relative_error",
    "p20_ms", "p50_ms", "p80_ms", "wall_ms", "repeats", "peak_mib", "flops", "bytes", "tflop_per_s", "gb_per_s",
    "floor_ms", "roofline_share", "ceiling_tflop_per_s", "ceiling_gb_per_s", "device", "threads", "processors",
    "driver", "torch", "stratcore", "commit", "date", "command",
}  # fmt: skip


# timing


def test_measures_a_call_of_known_length():
    timing = harness.measure(lambda: time.sleep(0.005), CPU, QUICK)
    assert 5.0 <= timing.p20_ms <= timing.p50_ms <= timing.p80_ms
    assert timing.wall_ms == timing.p50_ms and timing.repeats >= 3


def test_short_calls_are_timed_in_blocks():
    calls = []
    timing = harness.measure(lambda: calls.append(0), CPU, QUICK)
    assert timing.repeats * 10 < len(calls)
    assert timing.p20_ms < 0.01


def test_warm_up_is_not_measured():
    pauses = iter([0.05, 0.05])
    budget = harness.Budget(warmup_s=0.06, measure_s=0.02, min_repeats=3)
    timing = harness.measure(lambda: time.sleep(next(pauses, 0.001)), CPU, budget)
    assert timing.p50_ms < 50


@pytest.mark.parametrize("estimate, repeats", [(10.0, 3), (0.01, 100), (1e-9, 500)])
def test_repeats_follow_the_budget(estimate, repeats):
    budget = harness.Budget(measure_s=1.0, min_repeats=3, max_repeats=500)
    assert harness._repeats(estimate, budget) == repeats


@pytest.mark.cuda
def test_measures_device_and_wall_time():
    device = torch.device("cuda")
    large = torch.randn(1 << 26, device=device)
    timing = harness.measure(lambda: large.mul_(1.0), device, QUICK)
    rate = 2 * large.numel() * 4 / timing.p50_ms * 1e3
    assert 1e11 < rate < 1e13
    small = large[:8]
    small_timing = harness.measure(lambda: small.mul_(1.0), device, QUICK)
    assert small_timing.p50_ms < timing.p50_ms and small_timing.wall_ms > 0
    peak = harness.peak_memory(lambda: torch.empty(1 << 20, device=device), device)
    assert peak == 4.0


# correctness gate


def test_gate_compares_with_the_error_of_the_baseline():
    exact = torch.randn(64, 8, dtype=torch.float64)
    noise = torch.randn_like(exact)
    tolerance = harness.Tolerance(floor=1e-6)

    def gate(scale: float) -> harness.Gate:
        return harness.check([exact + scale * noise], [exact], [exact + 1e-3 * noise], tolerance)

    passed, failed = gate(1.9e-3), gate(2.1e-3)
    assert passed.passed and not failed.passed
    assert failed.text.startswith("output 0: relative error ")
    assert failed.relative_error == pytest.approx(2.1e-3 * float(noise.norm() / exact.norm()), rel=1e-9)
    assert failed.max_error == pytest.approx(2.1e-3 * float(noise.abs().max()), rel=1e-9)


def test_slack_allows_a_few_rows_to_jump_but_not_most_to_drift():
    exact = torch.ones(100, 8, dtype=torch.float64)
    tolerance = harness.Tolerance(floor=1e-6, slack=0.05)
    jumped, drifted = exact.clone(), exact.clone()
    jumped[3] *= 1.3
    drifted[:60] *= 1.01
    assert harness.check([jumped], [exact], [exact], tolerance).passed
    gate = harness.check([drifted], [exact], [exact], tolerance)
    assert not gate.passed and "median row" in gate.text
    assert not harness.check([jumped], [exact], [exact], harness.Tolerance(floor=1e-6)).passed


def test_gate_refuses_nan_and_other_shapes():
    exact = torch.ones(4, 2, dtype=torch.float64)
    broken = exact.clone()
    broken[1, 1] = torch.nan
    assert harness.check([broken], [exact], None, harness.Tolerance(1.0)).text == "output 0: not finite"
    gate = harness.check([exact[:3]], [exact], None, harness.Tolerance(1.0))
    assert gate.text == "output 0: shape [3, 2], expected [4, 2]"


# rows


def test_a_failing_gate_leaves_no_speed(tmp_path):
    recorder = harness.Recorder(CPU, QUICK, "command", tmp_path / "runs" / "rows.jsonl")

    def never() -> None:
        raise AssertionError("timed although its gate failed")

    recorder.record(
        JOB, "stratcore", never, harness.Gate(False, float("inf"), float("inf"), "output 0: not finite")
    )
    (row,) = compare.read_rows(tmp_path / "runs" / "rows.jsonl")
    assert row["gate"] is False and row["error"] == "output 0: not finite" and row["max_error"] is None
    assert not [name for name in row if name.endswith("_ms") or "_per_s" in name]
    assert "GATE FAILED: output 0: not finite" in compare.summarize([row])


def test_a_row_says_how_and_where_it_was_measured(tmp_path, monkeypatch):
    ceilings = harness.Ceilings(bytes_per_s=1e9, flops_per_s=1e9)
    monkeypatch.setattr(harness, "measure_ceilings", lambda *_: ceilings)
    recorder = harness.Recorder(CPU, QUICK, "python -m bench", tmp_path / "rows.jsonl")
    row = recorder.record(JOB, "stratcore", lambda: time.sleep(0.008), EXACT)
    assert set(row) == FIELDS
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == row
    assert row["command"] == "python -m bench" and row["torch"] == torch.__version__
    assert row["floor_ms"] == 4.0
    assert row["roofline_share"] == pytest.approx(4.0 / row["p50_ms"]) and row["roofline_share"] < 0.5
    assert row["gb_per_s"] == pytest.approx(4e6 / row["p50_ms"] / 1e6)
    assert row["tflop_per_s"] == pytest.approx(2e6 / row["p50_ms"] / 1e9)


def test_ceilings_are_measured():
    found = harness.measure_ceilings(CPU, torch.float32, QUICK)
    assert 1e8 < found.bytes_per_s < 1e13 and 1e8 < found.flops_per_s < 1e14
    assert found.floor_ms(found.flops_per_s, 0) == pytest.approx(1e3)


# tables


def row(provider: str, p50: float, wall: float | None = None, **changes: object) -> dict:
    speed = {
        "p20_ms": 0.99 * p50,
        "p50_ms": p50,
        "p80_ms": 1.01 * p50,
        "wall_ms": p50 if wall is None else wall,
    }
    rates = {
        "peak_mib": None,
        "gb_per_s": 1.0,
        "tflop_per_s": 0.0,
        "roofline_share": 0.5,
        "relative_error": 0.0,
    }
    label = {
        "op": "op",
        "case": "case",
        "mode": "fwd",
        "provider": provider,
        "dtype": "float32",
        "gate": True,
    }
    return {**label, "matmul_precision": "highest", "device": "cpu", **speed, **rates, **changes}


@pytest.mark.parametrize(
    "own, ending",
    [
        (row("stratcore", 1.0), "2.00x         2.00x"),
        (row("stratcore", 4.0), "0.50x         0.50x  SLOWER"),
        (row("stratcore", 1.0, wall=4.0), "2.00x         0.50x  SLOWER host-bound"),
        (row("stratcore", 1.0, p80_ms=1.9), "2.00x         2.00x  noisy"),
    ],
)
def test_summary_marks_where_stratcore_is_slower(own, ending):
    others = [
        row("eager", 3.0),
        row("compile", 2.0),
        row("eager", 0.1, case="other"),
        row("eager", 0.1, mode="x"),
    ]
    lines = compare.summarize([own, *others]).splitlines()
    assert lines[1].endswith(ending)
    assert not any("SLOWER" in line for line in lines[2:])


def test_comparison_marks_slower_rows_and_missing_ones():
    before = [row("a", 1.0), row("b", 1.0), row("c", 1.0), row("d", 1.0), row("gone", 1.0)]
    after = [
        row("a", 1.2), row("b", 0.5), row("c", 1.02), {**row("d", 1.0), "gate": False, "error": "wrong"},
        row("fresh", 1.0, device="gpu"),
    ]  # fmt: skip
    note, _, *lines = compare.compare(before, after).splitlines()
    assert note == "note: device differs: cpu before, cpu, gpu after"
    endings = ["0.83         0.83  SLOWER", "2.00         2.00  faster", "0.98         0.98",
               "GATE FAILED after", "only in before", "only in after"]  # fmt: skip
    assert len(lines) == len(endings)
    for line, ending in zip(lines, endings, strict=True):
        assert line.endswith(ending), line


def test_compare_command(tmp_path, capsys):
    files = [tmp_path / "before.jsonl", tmp_path / "after.jsonl"]
    for file, p50 in zip(files, (1.0, 3.0), strict=True):
        file.write_text(json.dumps(row("stratcore", p50)) + "\n")
    compare.main([str(file) for file in files])
    assert "SLOWER" in capsys.readouterr().out
    files[1].write_text("{}\n")
    with pytest.raises(SystemExit):
        compare.main([str(files[1])])
    assert "after.jsonl, line 1: expected a benchmark row, got '{}'" in capsys.readouterr().err


# the benchmark of top-k LISTA

FAST = ["--warm-up", "0", "--measure", "0.001", "--modes", "fwd,fwd+bwd"]
KINDS = ["small_classic", "small_coupled", "small_experts", "small_routed", "small_topk"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.usefixtures("quick_ceilings")
def test_every_provider_passes_its_gate(tmp_path, name):
    out = tmp_path / "rows.jsonl"
    providers = ["--providers", "eager,torch.topk,stratcore"]
    bench_topk_lista.main([*FAST, *providers, "--cases", name, "--out", str(out)])
    rows = compare.read_rows(out)
    assert len(rows) == 4 and all(row["gate"] for row in rows)
    assert {row["mode"] for row in rows} == {"fwd", "fwd+bwd"}
    assert rows[0]["command"].startswith("python -m bench.ops.bench_topk_lista --warm-up 0 ")


@pytest.mark.parametrize("fault", [1.01, float("nan")])
@pytest.mark.usefixtures("quick_ceilings")
def test_a_wrong_kernel_gets_no_speed(monkeypatch, capsys, fault):
    right = bench_topk_lista.stratcore_code
    monkeypatch.setattr(bench_topk_lista, "stratcore_code", lambda *a: fault * right(*a))
    bench_topk_lista.main([*FAST, "--providers", "stratcore", "--cases", "small_classic"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "stratcore:" in line]
    assert len(lines) == 2 and all("GATE FAILED" in line for line in lines)


@pytest.mark.usefixtures("quick_ceilings")
def test_missing_providers_and_heavy_cases_are_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "bench.native._native", None)
    cases = ["--cases", "small_topk,m16384_bf16", "--modes", "fwd", "--providers", "native"]
    bench_topk_lista.main([*FAST, *cases])
    out = capsys.readouterr().out
    assert "missing: small_topk fwd native: ImportError: import of bench.native._native halted" in out
    assert "bench/__init__.py says how to build it" in out
    assert "skipped on the CPU: m16384_bf16 (18142 GFLOP, tensors of 0.8 GiB)" in out


def test_compiling_is_bounded():
    with pytest.raises(runner.TimeLimit, match="took longer than 0.05 s"):
        with runner.time_limit(0.05):
            time.sleep(5)


def test_work_of_a_case():
    case = bench_topk_lista.Case("name", "group", rows=10, dim=3, atoms=7, k=(2, 3))
    job = case.job("fwd")
    assert job.flops == 2 * (2 * 10 * 3 * 7 + 4 * 2 * 10 * 7 * 7)
    assert job.bytes == 4 * (10 * 3 + 2 * (7 * 3 + 7 * 7 + 7) + 2 * 10 * 7)
    assert case.job("fwd+bwd").flops == 3 * job.flops and case.job("fwd+bwd").bytes == 2 * job.bytes
    coupled = bench_topk_lista.Case("name", "group", 10, 3, 7, (2,), "coupled", torch.bfloat16, "routed")
    assert coupled.job("fwd").flops == 2 * 10 * 3 * 7 * 9
    assert coupled.job("fwd").bytes == 2 * (10 * 3 + 7 * 3 + 3 * 7 + 7 + 10 * 7)


def test_unknown_names_are_refused(capsys):
    with pytest.raises(SystemExit):
        bench_topk_lista.parse(["--cases", "huge"])
    assert "got 'huge'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench_topk_lista.parse(["--modes", "backward"])
    assert "got 'backward'" in capsys.readouterr().err


# the benchmark of simplex_cv


@pytest.mark.usefixtures("quick_ceilings")
def test_simplex_cv_passes_its_gate_and_a_wrong_one_gets_no_speed(tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.jsonl"
    bench_simplex_cv.main([*FAST, "--cases", "small", "--out", str(out)])
    rows = compare.read_rows(out)
    assert [row["provider"] for row in rows] == ["eager", "stratcore", "eager", "stratcore", "yardstick"]
    assert all(row["gate"] for row in rows)
    right = bench_simplex_cv.own_loss
    monkeypatch.setattr(bench_simplex_cv, "own_loss", lambda *a: 1.01 * right(*a))
    bench_simplex_cv.main([*FAST, "--cases", "small", "--providers", "stratcore"])
    assert capsys.readouterr().out.count(" stratcore: GATE FAILED") == 2
    with pytest.raises(SystemExit):
        bench_simplex_cv.parse(["--cases", "huge"])
