"""Legend: R rows, L tokens of a row, V vocabulary."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from python_tests.training.tasks.token_cases import small_lm, token_rows
from stratcore.layers import ToroidalBranchOptions
from stratcore.training import Numerics, OptimizerOptions, Runtime, Stage, Trainer
from stratcore.training.tasks import LanguageModelingTask, next_token_loss

pytestmark = pytest.mark.usefixtures("single_thread")


def task(model: torch.nn.Module, **options: Any) -> LanguageModelingTask:
    form = {"batch_size": 4, "seed": 0} | options
    return LanguageModelingTask(model, token_rows(), token_rows(10, seed=1), Runtime.create("cpu"), **form)


def fit(own: LanguageModelingTask, folder: Path, steps: int = 8, accumulate: int = 1, **numerics: Any) -> Any:
    stage = Stage(
        steps=steps,
        accumulate=accumulate,
        optimizer=OptimizerOptions(lr=1e-2),
        numerics=Numerics(**numerics),
    )
    return Trainer(own, stage, Runtime.create("cpu"), folder).fit()


def test_the_loss_is_that_of_each_next_token() -> None:
    model, ids = small_lm(), torch.from_numpy(token_rows(3, 5))
    total, count = next_token_loss(model, ids)
    expected = 0.0
    with torch.no_grad():
        for row in ids:
            for t in range(1, 5):  # one token at a time, from its prefix alone
                odds = model(row[None, :t]).logits[0, -1].double().log_softmax(-1)
                expected -= float(odds[row[t]])
    assert count == 12
    assert total.item() == pytest.approx(expected, rel=1e-6)
    assert model(ids, labels=ids).loss.item() == pytest.approx(expected / 12, rel=1e-6)


def test_validation_weighs_every_token_alike() -> None:
    own = task(small_lm(), batch_size=4)  # batches of 4, 4 and 2
    with torch.no_grad():
        found = own.evaluate(own.model, "validation")
        whole, count = next_token_loss(own.model, torch.from_numpy(token_rows(10, seed=1)))
    assert found["nll"] == pytest.approx(float(whole) / count, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(float(whole) / count), rel=1e-5)


def test_it_learns_and_leaves_the_frozen_part_alone(tmp_path: Path) -> None:
    own = task(small_lm())
    with torch.no_grad():
        before = own.evaluate(own.model, "validation")["nll"]
    frozen = {n: p.detach().clone() for n, p in own.model.named_parameters() if not p.requires_grad}
    moved = {n: p.detach().clone() for n, p in own.model.named_parameters() if p.requires_grad}
    assert fit(own, tmp_path, 120).metrics["nll"] < before - 0.3
    now = dict(own.model.named_parameters())
    assert all(torch.equal(now[name], each) for name, each in frozen.items())
    assert not any(torch.equal(now[name], each) for name, each in moved.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_masters_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    own = task(small_lm(dtype))
    kept = {name: each.dtype for name, each in own.model.named_parameters()}
    for name, each in own.model.named_parameters():
        assert each.dtype == (torch.float32 if each.requires_grad else dtype), name
    precision = "bf16" if dtype == torch.bfloat16 else "fp16"
    result = fit(own, tmp_path, 12, precision=precision)
    exact = fit(task(small_lm()), tmp_path / "exact", 12)
    assert {name: each.dtype for name, each in own.model.named_parameters()} == kept
    assert result.metrics["nll"] == pytest.approx(exact.metrics["nll"], abs=0.05)


def test_accumulated_micro_batches_are_one_batch(tmp_path: Path) -> None:
    found = []
    for size, accumulate in ((8, 1), (2, 4)):
        own = task(small_lm(), batch_size=size)
        fit(own, tmp_path / str(size), 3, accumulate)
        found.append(torch.cat([p.detach().flatten() for p in own.model.parameters() if p.requires_grad]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_checkpointed_activations_train_the_same(tmp_path: Path) -> None:
    found = []
    start = small_lm()
    for flag in (False, True):
        own = task(copy.deepcopy(start))
        fit(own, tmp_path / str(flag), 3, gradient_checkpointing=flag)
        found.append(own.model.state_dict())
    for name, each in found[0].items():
        torch.testing.assert_close(found[1][name], each, rtol=1e-5, atol=1e-6)


def test_an_epoch_visits_every_row_once_in_an_order_of_its_own() -> None:
    own = task(small_lm(), batch_size=6)
    epochs = [torch.cat(list(own.batches(epoch, 0))) for epoch in (0, 1)]
    rows = sorted(token_rows().tolist())
    assert all(sorted(epoch.tolist()) == rows for epoch in epochs)
    assert not torch.equal(*epochs)
    assert torch.equal(torch.cat(list(own.batches(0, 2))), epochs[0][12:])


@pytest.mark.cuda
@pytest.mark.parametrize("options", [{}, {"torus": ToroidalBranchOptions(adaptive_depths=(1, 2))}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_graphs_of_steps_compute_their_bits(
    tmp_path: Path, precision: str, options: dict[str, Any]
) -> None:
    found, runtime = [], Runtime.create("cuda")
    for graph in (False, True):
        torch.manual_seed(0)
        own = LanguageModelingTask(
            small_lm(**options), token_rows(), token_rows(10, seed=1), runtime, batch_size=4, seed=0
        )
        stage = Stage(
            steps=9,
            accumulate=2,
            optimizer=OptimizerOptions(lr=1e-2, clip_norm=1.0),
            numerics=Numerics(precision=precision, cuda_graph=graph),
        )
        result = Trainer(own, stage, runtime, tmp_path / str(graph)).fit()
        weights = torch.cat([p.detach().flatten() for p in own.model.parameters() if p.requires_grad])
        found.append((result.metrics["nll"], weights))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])


def test_vectors_do_not_decay_and_branches_have_a_rate_of_their_own() -> None:
    own = task(small_lm(), branch_lr_scale=30.0)
    groups = own.parameter_groups()
    names = {id(p): name for name, p in own.model.named_parameters()}
    for group in groups:
        assert ("weight_decay" in group) == (group["params"][0].ndim <= 1)
        assert group.get("lr_scale") == (
            30.0 if names[id(group["params"][0])].startswith("branches") else None
        )
    listed = {names[id(p)] for group in groups for p in group["params"]}
    assert listed == {name for name, p in own.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"batch_size": 25},
            r"batch_size: expected a multiple of 1 ranks in \[1, 24\] training rows, got 25",
        ),
        ({"batch_size": 0}, "got 0"),
    ],
)
def test_a_batch_that_does_not_fit(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        task(small_lm(), **change)


def test_rows_that_do_not_fit() -> None:
    with pytest.raises(
        ValueError, match=r"validation: expected token ids \[R, L\] with L at least 2, got \[3, 1\]"
    ):
        LanguageModelingTask(
            small_lm(), token_rows(), np.zeros((3, 1), np.int64), Runtime.create("cpu"), batch_size=1, seed=0
        )
