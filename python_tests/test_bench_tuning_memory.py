from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.models import bench_tuning_memory as bench
from stratcore.training import Runtime
from stratcore.training.memory import TuningPlan, estimate_memory, host_sizes

pytestmark = pytest.mark.usefixtures("single_thread")
TINY = bench.CASES[-1]


def test_rows_have_what_was_done_and_what_fits(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    assert bench.main(["--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["budget_gb"], row["setting"]) for row in rows] == [
        (budget, why) for budget in TINY.budgets for why in ("as published", "advised")
    ]
    for row in rows:
        assert row["measured"] is None and row["gate"] is None
        if row["setting"] == "advised":
            assert row["estimate"]["peak"] <= 0.95e9 * row["budget_gb"]
    assert rows[1]["plan"] != rows[3]["plan"]


def test_a_phi_2_of_4_8_and_32_layers_has_settings_for_both_budgets() -> None:
    case = bench.CASES[0]
    with torch.device("meta"):
        sizes = host_sizes(AutoModelForCausalLM.from_config(case.config))
    assert 2.77e9 < sizes.parameters < 2.79e9
    found = list(bench.settings(case, sizes))
    assert sum(why == "advised" for _, why, _ in found) == 6
    assert all(estimate_memory(sizes, plan).peak > 16e9 for _, why, plan in found if why == "as published")


@pytest.mark.parametrize("trained", ["replaced", "branches", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_plan_trains(trained: str, checkpointing: bool) -> None:
    if trained == "lora":
        pytest.importorskip("peft")
    plan = TuningPlan(
        layers=(0, 2),
        rows=2,
        length=16,
        trained=trained,
        checkpointing=checkpointing,
        depths=(2,),
        accumulate=2,
        host_dtype="float32",
        precision="fp32",
    )
    optimization, stream = bench.tuning(TINY, plan, Runtime.create("cpu"))
    for index in range(2):
        optimization.run(stream, index)
    assert optimization.read_metrics()["skipped_steps"] == 0
