from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stratcore.data.token_rows import TokenRows
from stratcore.training import OptimizerOptions, Runtime, Stage, Trainer
from stratcore.training.tasks import TextClassificationTask, predict_logits


class Bag(nn.Module):
    """Mean of token vectors, then a linear map; with the face of a classifier of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"words": nn.Embedding(10, 8), "norm": nn.LayerNorm(8)})
        self.classifier = nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Any:
        mask = attention_mask[..., None].float()
        hidden = self.encoder["norm"](self.encoder["words"](input_ids))
        logits = self.classifier((hidden * mask).sum(1) / mask.sum(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(loss=loss, logits=logits)


def rows(count: int = 60) -> TokenRows:
    """The label is whether token 3 stands in the row."""
    rng = np.random.default_rng(0)
    label = np.arange(count) % 2
    tokens = [np.append(rng.integers(4, 10, rng.integers(1, 6)), 3 if y else 2) for y in label]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in tokens])])
    return TokenRows(np.concatenate(tokens), None, offsets, label, np.zeros_like(label), pad=0)


def task(model: nn.Module, **options: Any) -> TextClassificationTask:
    return TextClassificationTask(
        model, rows(), rows(30), Runtime.create("cpu"), **({"batch_size": 8, "seed": 0} | options)
    )


def test_it_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stage = Stage(steps=60, optimizer=OptimizerOptions(lr=0.05))
    found = Trainer(task(Bag()), stage, Runtime.create("cpu"), tmp_path).fit().metrics
    assert found["accuracy"] == 1.0 and found["nll"] < 0.1


def test_an_epoch_visits_every_row_once_in_an_order_of_its_own() -> None:
    own = task(Bag(), batch_size=15)
    epochs = [np.concatenate(list(own.batches(epoch, 0))) for epoch in (0, 1)]
    assert all(np.array_equal(np.sort(epoch), np.arange(60)) for epoch in epochs)
    assert not np.array_equal(*epochs)
    assert np.array_equal(np.concatenate(list(own.batches(0, 2))), epochs[0][30:])
    assert not np.array_equal(
        next(iter(task(Bag(), seed=1).batches(0, 0))), next(iter(own.batches(0, 0)))[:8]
    )


def test_head_learns_faster_and_biases_and_norms_do_not_decay() -> None:
    model = Bag()
    groups = task(model, head_lr_scale=10.0).parameter_groups()
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {names[p]: (g.get("lr_scale", 1.0), g.get("weight_decay")) for g in groups for p in g["params"]}
    assert found == {
        "encoder.words.weight": (1.0, None),
        "encoder.norm.weight": (1.0, 0.0),
        "encoder.norm.bias": (1.0, 0.0),
        "classifier.weight": (10.0, None),
        "classifier.bias": (10.0, 0.0),
    }
    model.encoder.requires_grad_(False)
    assert len(task(model).parameter_groups()) == 2


def test_step_weighs_by_rows() -> None:
    torch.manual_seed(0)
    model = Bag()
    result = task(model).step(model, np.arange(8), 0)
    batch = rows().batch(np.arange(8), torch.device("cpu"))
    expected = model(**batch.inputs(), labels=batch.label).loss
    assert result.weight == 8 and torch.allclose(result.loss_sum, 8 * expected)
    assert set(result.metrics) == {"loss", "accuracy"}


def test_logits_come_in_the_order_of_the_rows() -> None:
    torch.manual_seed(0)
    model, own, looked = Bag().eval(), rows(), []
    with torch.no_grad():
        found = predict_logits(
            model, own, torch.device("cpu"), lambda numbers, batch, output: looked.append(numbers)
        )
        for row in range(own.num_rows):
            single = model(**own.batch(np.array([row]), torch.device("cpu")).inputs()).logits
            assert torch.allclose(found[row], single[0], atol=1e-6)
    assert np.array_equal(np.sort(np.concatenate(looked)), np.arange(60))


@pytest.mark.parametrize("size", [0, 61])
def test_batch_size_is_checked(size: int) -> None:
    with pytest.raises(
        ValueError, match=rf"batch_size: expected a multiple of 1 ranks in \[1, 60\].*got {size}"
    ):
        task(Bag(), batch_size=size)
