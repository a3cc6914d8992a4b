from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.data.image_cases import table
from python_tests.models.dual_stream_cases import small
from stratcore.data import load_images, split_images
from stratcore.models import ArbitrationViT, DualStreamViT, PlainViT, PlainViTOptions
from stratcore.training import Intervals, Numerics, OptimizerOptions, Runtime, Stage, Trainer, seed_everything
from stratcore.training.augmentation import AugmentationOptions
from stratcore.training.batch_stream import BatchStream
from stratcore.training.gal import GALOptions
from stratcore.training.image_objective import ImageObjectiveOptions
from stratcore.training.mastery import MasteryOptions
from stratcore.training.optimization import Optimization
from stratcore.training.tasks import ImageClassificationTask

Waits = Callable[[], AbstractContextManager[None]]
pytestmark = pytest.mark.usefixtures("single_thread")
PLAIN = ImageObjectiveOptions(classification="cross_entropy", smoothing=0.0, views=1)
MASTERED = ImageObjectiveOptions(
    info_nce=0.5, mastery=1.0, geometric=0.3, diversity=0.5, cv=0.1, cm=0.1, usage=0.1, revive_every=4, spread=0.01
)  # fmt: skip
SHIFT = AugmentationOptions(crop=1, flip=0.0)
EASY = MasteryOptions(
    trigger_accuracy=0.05, trigger_batches=2, capacity=64, least=32, most=128, resize=32, cooldown=0, change=0.0
)  # fmt: skip


def task(
    objective: ImageObjectiveOptions = PLAIN,
    model: Any = None,
    kind: type[ImageClassificationTask] = ImageClassificationTask,
    device: str = "cpu",
    **changes: Any,
) -> ImageClassificationTask:
    seed_everything(0)
    train = table(160)
    own = model or DualStreamViT(small(geometric_classifier=True))
    own.pixels.fit(torch.from_numpy(train.images))
    values: dict[str, Any] = {"batch_size": 32, "seed": 0, "augmentation": SHIFT, "mastery": EASY}
    values |= {"control": table(40, seed=2)} | changes
    return kind(own, train, table(80, seed=1), Runtime.create(device), objective=objective, **values)


class Swinging(ImageClassificationTask):
    """The gap of the accuracies goes up and down, whatever the model says."""

    def evaluate(self, model: Any, split: str) -> dict[str, float]:
        found = super().evaluate(model, split)
        if split == "control":
            found["train_accuracy"] = found["accuracy"] + 0.1 * (self._step // 3 % 3)
        return found


def stage(steps: int, **intervals: int) -> Stage:
    return Stage(steps=steps, optimizer=OptimizerOptions(lr=1e-2), intervals=Intervals(**intervals))


def weights(own: ImageClassificationTask) -> Tensor:
    return torch.cat([p.detach().flatten() for p in own.model.parameters()])


def test_it_learns(tmp_path: Path) -> None:
    found = Trainer(task(), stage(60), Runtime.create("cpu"), tmp_path).fit().metrics
    assert found["accuracy"] > 0.97 and found["nll"] < 0.3


def test_the_plain_control_learns_too(tmp_path: Path) -> None:
    model = PlainViT(PlainViTOptions(frame=small(), dim=16, depth=2, num_heads=2))
    found = Trainer(task(model=model), stage(60), Runtime.create("cpu"), tmp_path).fit().metrics
    assert found["accuracy"] > 0.97 and "anchors_in_use" not in found


@pytest.mark.parametrize("rule", ["adamw", "riemannian_adam"])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, rule: str) -> None:
    """Mastery begins, its queue is resized by the controller, anchors are revived, and the run is cut in between."""
    kept = {"control_every": 3, "save_every": 5, "log_every": 1}
    whole, cut, again = (task(MASTERED, kind=Swinging) for _ in range(3))
    own = replace(stage(12, **kept), optimizer=OptimizerOptions(name=rule, lr=1e-2))
    cpu = Runtime.create("cpu")
    Trainer(whole, own, cpu, tmp_path / "whole").fit()
    assert bool(whole._mastery.active) and whole._mastery.queue.capacity != 64
    Trainer(cut, own, cpu, tmp_path / "cut").fit()
    seed_everything(99)
    Trainer(again, own, cpu, tmp_path / "cut").fit(tmp_path / "cut" / "checkpoint-10")
    assert torch.equal(weights(whole), weights(cut)) and torch.equal(weights(whole), weights(again))
    lengths = whole.model.anchors.detach().norm(dim=-1)
    assert torch.allclose(lengths, torch.ones_like(lengths), atol=1e-6) == (rule == "riemannian_adam")
    for first, second in zip(whole._mastery.queue.in_order(), again._mastery.queue.in_order(), strict=True):
        assert torch.equal(first, second)
    assert whole._mastery.state_dict()["gaps"] == again._mastery.state_dict()["gaps"] != []
    assert torch.equal(whole._revival.counts, again._revival.counts)


def test_metrics_of_every_term() -> None:
    own = task(MASTERED)
    rows = next(iter(own.batches(0, 0)))
    for _ in range(2):
        result = own.step(own.model, rows, 0)
    wanted = {
        "classification", "geometric", "info_nce", "mastery", "diversity", "cv", "cm", "usage", "spread", "cv_value",
        "accuracy", "info_nce_accuracy", "hard_negative", "hard_positive", "mastery_active", "margin",
    }  # fmt: skip
    assert set(result.metrics) == wanted and float(result.metrics["mastery_active"]) == 1.0
    total = result.metrics["classification"] + sum(
        getattr(MASTERED, name) * result.metrics[name]
        for name in ("geometric", "info_nce", "mastery", "diversity", "cv", "cm", "usage", "spread")
    )
    torch.testing.assert_close(result.loss_sum.detach(), 32 * total)
    quiet = task(replace(MASTERED, info_nce_with_mastery=False))
    for _ in range(2):
        result = quiet.step(quiet.model, rows, 0)
    assert float(result.metrics["info_nce"]) == 0.0  # run 9: off once mastery has begun


def test_controllers_read_held_out_training_images_and_never_validation() -> None:
    own = task(MASTERED)
    own._images["validation"].fill_(0)
    found = own.evaluate(own.model.eval(), "control")
    assert set(found) == {"accuracy", "train_accuracy"}
    asked = []
    own._mastery.control = lambda *pair: asked.append(pair)
    own.after_control({"train_accuracy": 0.9, "accuracy": 0.7})
    assert asked == [(0.9, 0.7)]


def test_an_epoch_visits_every_image_once_in_an_order_of_its_own() -> None:
    own = task()
    epochs = [torch.cat(list(own.batches(epoch, 0))) for epoch in (0, 1)]
    assert all(epoch.sort().values.tolist() == list(range(160)) for epoch in epochs)
    assert not torch.equal(*epochs)
    assert torch.equal(torch.cat(list(own.batches(0, 2))), epochs[0][64:])


def test_matrices_decay_and_vectors_positions_and_anchors_do_not() -> None:
    own = task()
    decayed, free, anchors = own.parameter_groups()
    names = {parameter: name for name, parameter in own.model.named_parameters()}
    assert free["weight_decay"] == anchors["weight_decay"] == 0.0 and "weight_decay" not in decayed
    assert [names[p] for p in anchors["params"]] == ["constellation.anchors"] and anchors[
        "manifold"
    ] == "sphere"
    assert len(names) == sum(len(group["params"]) for group in (decayed, free, anchors))
    fixed = {names[p] for p in free["params"]}
    assert {"tokenizer.position", "geometric_norm.weight"} <= fixed
    assert {"pairs.0.geometric.attention.inputs.weight", "classifier.0.weight"}.isdisjoint(fixed)


def test_health_scans_ride_on_evaluations_and_change_nothing(tmp_path: Path) -> None:
    scanned, plain = task(MASTERED, scan_every=3), task(MASTERED)
    every = stage(6, eval_every=3)
    found = Trainer(scanned, every, Runtime.create("cpu"), tmp_path / "a").fit().metrics
    Trainer(plain, every, Runtime.create("cpu"), tmp_path / "b").fit()
    assert torch.equal(weights(scanned), weights(plain))
    wanted = ("effective_dim", "class_cv", "anchor_entropy", "bf16_cosine", "starved_parts")
    assert all(f"health/{name}" in found for name in wanted)
    assert all(found[f"health/gradient/{part}"] > 0 for part in ("geometric_output", "constellation"))


def test_anchors_stay_in_use_without_info_nce(tmp_path: Path) -> None:
    """From a collapse onto 1 anchor of 32, as the source documents' run 9 had it when InfoNCE went off."""
    digits = load_images("digits").train
    train, validation = (digits.take(rows) for rows in split_images(digits, (0.7, 0.3), seed=0))
    used = {}
    for name, mend in (("source", {}), ("ours", {"usage": 0.5, "revive_every": 10})):
        seed_everything(0)
        model = DualStreamViT(small(num_classes=10, num_anchors=32, output_dim=16, embedding_norm="layer"))
        with torch.no_grad():
            pole = model(torch.from_numpy(train.images[:64])).embedding.mean(0)
            model.anchors.copy_(-pole + 0.1 * torch.randn(32, 16))
            model.anchors[0] = pole
        own = ImageClassificationTask(
            model, train, validation, Runtime.create("cpu"),
            objective=replace(PLAIN, **mend), augmentation=SHIFT, batch_size=64, seed=0,
        )  # fmt: skip
        quick = replace(stage(200), optimizer=OptimizerOptions(lr=3e-3))
        used[name] = (
            Trainer(own, quick, Runtime.create("cpu"), tmp_path / name).fit().metrics["anchors_in_use"]
        )
    assert used["source"] < 0.5 and used["ours"] >= 0.9


def places(own: ImageClassificationTask) -> list[int]:
    """Addresses of all that a step writes beside weights and moments."""
    queues, tensors = [], [own._revival.counts] if own._revival else []
    if own._mastery is not None:
        queues, tensors = [own._mastery.queue], [*tensors, own._mastery._streak, own._mastery._age]
    if own._alignment is not None:
        queues.append(own._alignment.buffer)
    tensors += [part for queue in queues for part in (queue._rows, queue._labels, queue._head)]
    return [tensor.data_ptr() for tensor in tensors]


def test_what_a_graph_holds_stays_where_it_is_and_its_key_is_the_size_of_the_queue(tmp_path: Path) -> None:
    turning = task(replace(PLAIN, gal=1.0), ArbitrationViT(small()), gal=GALOptions(interval=3))
    for own in (task(MASTERED, kind=Swinging), turning):
        start, key = places(own), own.capture_key
        assert own.capturable and len(start) >= 3
        Trainer(own, stage(7, control_every=3), Runtime.create("cpu"), tmp_path / str(len(start))).fit()
        own.load_state_dict(own.state_dict())
        assert places(own) == start
        assert own.capture_key == (96 if own._mastery else key)


@pytest.mark.cuda
@pytest.mark.parametrize("rule", ["adamw", "riemannian_adam"])
def test_cuda_graphs_of_steps_compute_their_bits(tmp_path: Path, rule: str) -> None:
    """Views, mixing, dropout and sampled simplices draw the same; anchors are revived between the steps."""
    found, runtime = [], Runtime.create("cuda")
    objective = replace(PLAIN, geometric=0.3, cm=0.01, cv=0.1, usage=0.02, spread=0.01, revive_every=5)
    augmentation = AugmentationOptions(crop=1, flip=0.5, erase=0.2, mixup=0.2, cutmix=1.0)
    for graph in (False, True):
        seed_everything(0)
        train = table(160)
        model = DualStreamViT(small(geometric_classifier=True, drop_path=0.1, anchor_dropout=0.1))
        model.pixels.fit(torch.from_numpy(train.images))
        own = ImageClassificationTask(
            model, train, table(80, seed=1), runtime, objective=objective, augmentation=augmentation, batch_size=32,
            seed=0,
        )  # fmt: skip
        settings = replace(
            stage(12, eval_every=6),
            optimizer=OptimizerOptions(name=rule, lr=1e-2, clip_norm=1.0),
            numerics=Numerics(cuda_graph=graph),
        )
        metrics = Trainer(own, settings, runtime, tmp_path / str(graph)).fit().metrics
        found.append((metrics["nll"], weights(own).cpu()))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["mastery", "experts"])
def test_cuda_graphs_follow_a_queue_that_grows_and_anchors_that_turn(tmp_path: Path, name: str) -> None:
    found = []
    for graph in (False, True):
        if name == "mastery":
            own = task(MASTERED, kind=Swinging, device="cuda")
        else:
            objective, options = (
                replace(PLAIN, experts=1.0, gal=1.0),
                GALOptions(interval=3, num_simplices=32),
            )
            own = task(objective, ArbitrationViT(small()), device="cuda", gal=options)
        settings = replace(stage(16, control_every=3), numerics=Numerics(cuda_graph=graph))
        Trainer(own, settings, Runtime.create("cuda"), tmp_path / str(graph)).fit()
        found.append((weights(own).cpu(), own.capture_key))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]
    assert name == "experts" or found[0][1] != 64


@pytest.mark.cuda
@pytest.mark.parametrize("rule", ["adamw", "riemannian_adam"])
def test_cuda_steps_do_not_wait_for_the_device(rule: str, refused_waits: Waits) -> None:
    """But once an epoch, for the order of its images."""
    runtime = Runtime.create("cuda")
    train = table(320)
    model = DualStreamViT(small(geometric_classifier=True))
    model.pixels.fit(torch.from_numpy(train.images))
    objective = replace(PLAIN, geometric=0.3, cm=0.01, usage=0.02, spread=0.01, revive_every=5)
    augmentation = AugmentationOptions(
        crop=1, flip=0.5, contrast=0.2, brightness=0.1, erase=0.2, mixup=0.2, cutmix=1.0
    )
    own = ImageClassificationTask(
        model,
        train,
        table(80, seed=1),
        runtime,
        objective=objective,
        augmentation=augmentation,
        batch_size=32,
        seed=0,
    )
    numerics = Numerics(precision="bf16", deterministic=False)
    settings = replace(
        stage(10), optimizer=OptimizerOptions(name=rule, lr=1e-2, clip_norm=1.0), numerics=numerics
    )
    optimization, stream = Optimization(own, settings, runtime), BatchStream(own)
    for index in range(3):
        optimization.run(stream, index)
    with refused_waits():
        for index in range(3, 10):
            optimization.run(stream, index)


def test_experts_a_geometric_tower_and_the_turning_anchors(tmp_path: Path) -> None:
    """Run 12 in small, cut and resumed: the buffer is in the checkpoint."""
    objective = replace(PLAIN, experts=1.0, gal=1.0)
    options = GALOptions(capacity=256, interval=3, rate=0.5, num_simplices=32)
    whole, cut, again = (task(objective, ArbitrationViT(small()), gal=options) for _ in range(3))
    start = whole.model.state_dict()
    cut.model.load_state_dict(start)
    again.model.load_state_dict(start)
    kept = {"save_every": 4}
    Trainer(whole, stage(8, **kept), Runtime.create("cpu"), tmp_path / "whole").fit()
    Trainer(cut, stage(8, **kept), Runtime.create("cpu"), tmp_path / "cut").fit()
    Trainer(again, stage(8, **kept), Runtime.create("cpu"), tmp_path / "cut").fit(
        tmp_path / "cut/checkpoint-4"
    )
    assert torch.equal(weights(whole), weights(cut)) and torch.equal(weights(whole), weights(again))
    still = task(objective, ArbitrationViT(small()), gal=replace(options, rate=0.0))
    assert still._alignment is not None and task(PLAIN)._alignment is None
    rows = next(iter(whole.batches(0, 0)))
    result = whole.step(whole.model, rows, 0)
    assert {"experts", "gal"} <= set(result.metrics)
    before = whole.model.anchors.detach().clone()
    whole.after_step(9)
    assert not torch.equal(whole.model.anchors, before)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"batch_size: expected a number in \[1, 160\] training images, got 161"
    ):
        task(batch_size=161)
    with pytest.raises(ValueError, match="augmentation.mixup, cutmix: expected 0 with two views"):
        task(MASTERED, augmentation=AugmentationOptions(mixup=0.2))
