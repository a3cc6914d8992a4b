from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from stratcore.data.periodic_series import DayWeekOptions, DayWeekSeries
from stratcore.data.ring_sequences import RingOptions, RingSequences
from stratcore.data.sequences import Sequences
from stratcore.models import SequenceTransformer, SequenceTransformerOptions
from stratcore.models.sequence_transformer import POSITIONS
from stratcore.training import Intervals, Numerics, OptimizerOptions, Runtime, Stage, Trainer
from stratcore.training.tasks import SequencePredictionTask, sequence_loss

pytestmark = pytest.mark.usefixtures("single_thread")
RING = RingSequences(RingOptions(rule="next_mark", sites=8, symbols=3, reach=2))


def small_task(positions: str = "torus", **settings) -> SequencePredictionTask:
    torch.manual_seed(0)
    options = SequenceTransformerOptions(
        vocabulary=4,
        outputs=3,
        length=8,
        lattice=(8,),
        positions=positions,
        dim=16,
        num_layers=1,
        num_heads=2,
    )
    arguments = {"batch_size": 4, "seed": 7, "evaluation_sequences": 8} | settings
    return SequencePredictionTask(SequenceTransformer(options), RING, Runtime.create("cpu"), **arguments)


def test_losses_by_hand() -> None:
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]]])
    labels = Sequences(torch.zeros(1, 2), torch.tensor([[1, 0]]))
    wanted = -(math.log(3 / 4) + math.log(1 / 2)) / 2
    assert float(sequence_loss(logits, labels, labels=True)) == pytest.approx(wanted)
    values = Sequences(torch.zeros(1, 2), torch.tensor([[[1.0], [3.0]]]))
    assert float(sequence_loss(torch.zeros(1, 2, 1), values, labels=False)) == pytest.approx(5)


def test_every_batch_and_part_has_draws_of_its_own() -> None:
    task = small_task()
    first, second = islice(task.batches(0, 0), 2)
    steps = [task.step(task.model, batch, 0) for batch in (first, next(task.batches(0, 0)), second)]
    sums = [step.loss_sum.item() for step in steps]
    assert sums[0] == sums[1] != sums[2]
    assert float(steps[0].weight) == 4 and sums[0] == pytest.approx(4 * float(steps[0].metrics["loss"]))
    assert torch.equal(next(task.batches(0, 1)).inputs, second.inputs)
    parts = {
        part: torch.cat([d.inputs for d in task.evaluation_draws(part)])
        for part in ("validation", *RING.parts)
    }
    assert all(rows.shape == (8, 8) for rows in parts.values())
    assert not torch.equal(parts["validation"], parts["test"])
    with torch.no_grad():
        losses = [task.evaluate(task.model, part)["loss"] for part in ("validation", "validation", "test")]
    assert losses[0] == losses[1] != losses[2]


def test_slopes_and_tables_are_not_decayed() -> None:
    for positions in ("torus", "t5"):
        task = small_task(positions)
        decayed, kept = task.parameter_groups()
        names = {id(p): name for name, p in task.model.named_parameters()}
        assert kept["weight_decay"] == 0 and "weight_decay" not in decayed
        assert {names[id(p)].rsplit(".", 1)[-1] for p in decayed["params"]} == {"weight"}
        assert len(decayed["params"]) + len(kept["params"]) == len(names)


def test_training_lowers_the_loss_to_where_it_should_be(tmp_path: Path) -> None:
    task = small_task(batch_size=32, evaluation_sequences=64)
    stage = Stage(
        steps=150, optimizer=OptimizerOptions(lr=1e-2, schedule="cosine"), intervals=Intervals(eval_every=50)
    )
    loss = Trainer(task, stage, Runtime.create("cpu"), tmp_path).fit().metrics["loss"]
    assert loss < 0.3 * math.log(3)


@pytest.mark.cuda
@pytest.mark.parametrize("positions", POSITIONS)
def test_cuda_graphs_of_steps_compute_their_bits(tmp_path: Path, positions: str) -> None:
    lattice = (2, 4) if positions.endswith("_axial") else (8,)
    found = {}
    for graph in (False, True):
        torch.manual_seed(0)
        options = SequenceTransformerOptions(
            vocabulary=4, outputs=3, length=8, lattice=lattice, positions=positions, dim=16, num_layers=1,
            num_heads=2,
        )  # fmt: skip
        runtime = Runtime.create("cuda")
        model = SequenceTransformer(options)
        task = SequencePredictionTask(model, RING, runtime, batch_size=4, seed=7, evaluation_sequences=8)
        stage = Stage(
            steps=20,
            optimizer=OptimizerOptions(lr=1e-2),
            intervals=Intervals(eval_every=10),
            numerics=Numerics(cuda_graph=graph),
        )
        losses = Trainer(task, stage, runtime, tmp_path / str(graph)).fit().metrics
        found[graph] = [losses["loss"], *(p.detach().cpu() for p in model.parameters())]
    assert found[True][0] == found[False][0]
    assert all(torch.equal(a, b) for a, b in zip(found[True][1:], found[False][1:], strict=True))


def test_real_vectors_are_learned_too() -> None:
    source = DayWeekSeries(DayWeekOptions(days=2, hours=3, weeks=1))
    shape = source.shape
    options = SequenceTransformerOptions(
        in_channels=1, outputs=1, length=shape.length, lattice=shape.lattice, positions="t5_axial", causal=True,
        dim=8, num_layers=1, num_heads=1,
    )  # fmt: skip
    task = SequencePredictionTask(
        SequenceTransformer(replace(options)), source, Runtime.create("cpu"), batch_size=2, seed=0,
        evaluation_sequences=4,
    )  # fmt: skip
    task.step(task.model, next(task.batches(0, 0)), 0).loss_sum.backward()
    assert all(p.grad is not None for p in task.model.parameters())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 0}, "batch_size: expected a multiple of 1 ranks, got 0"),
        ({"evaluation_sequences": 6}, "evaluation_sequences: expected a multiple of batch_size = 4, got 6"),
    ],
)
def test_bad_sizes_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small_task(**settings)
