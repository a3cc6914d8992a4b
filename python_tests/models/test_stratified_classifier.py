"""The classifier: identity at the start, pads, gradients, saving, compiling, exporting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from python_tests.models.stratified_classifier_cases import (
    BLOCKS,
    ENCODERS,
    FAMILIES,
    ROUTED,
    batch,
    classifier,
    encoder,
    moved,
)
from stratcore.layers._residual_branch import ZeroLinear
from stratcore.models import VARIANTS, ParameterCount, StratifiedClassifier, StratifiedClassifierConfig

pytestmark = pytest.mark.usefixtures("single_thread")
EVERY = [(name, variant) for name in ENCODERS for variant in VARIANTS]


def logits(model: StratifiedClassifier, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


# ---- the start


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("training", [False, True])
def test_every_variant_starts_as_plain_bitwise(name: str, training: bool) -> None:
    found = {}
    for variant in VARIANTS:
        model = classifier(name, variant, seed=4).train(training)
        torch.manual_seed(11)  # dropout
        found[variant] = logits(model, batch())
    assert all(torch.equal(value, found["plain"]) for value in found.values())
    assert not torch.equal(found["plain"], logits(classifier(name, "plain", seed=5), batch()))


@pytest.mark.parametrize("variant", BLOCKS)
def test_blocks_change_logits_once_moved(variant: str) -> None:
    plain = logits(classifier(variant="plain"), batch())
    assert (logits(moved(classifier(variant=variant)), batch()) - plain).abs().max() > 1e-3


def test_initialization_of_transformers_leaves_zeros_alone() -> None:
    for variant in BLOCKS:
        model = classifier(variant=variant)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for module in model.modules():
            module._is_hf_initialized = False
        model.encoder.apply(lambda module: setattr(module, "_is_hf_initialized", True))
        model.init_weights()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        zeros = [module for module in model.block.modules() if isinstance(module, ZeroLinear)]
        assert all(not module.weight.any() for module in zeros)


def test_classifiers_share_no_weight_with_each_other_or_the_encoder() -> None:
    first, second = classifier(variant="plain"), classifier(variant="plain")
    places = [{p.data_ptr() for p in model.parameters()} for model in (first, second, encoder("distilbert"))]
    assert not places[0] & places[1] and not places[0] & places[2] and not places[1] & places[2]


def test_making_one_draws_nothing_from_the_global_generator() -> None:
    state = torch.get_rng_state()
    classifier()
    assert torch.equal(torch.get_rng_state(), state)


# ---- pads


def padded(inputs: dict[str, torch.Tensor], count: int, side: str) -> dict[str, torch.Tensor]:
    """More pads, of any content, on a side; those that are there already move to it."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    junk = torch.full((3, count), 1)
    blank = torch.zeros(3, count, dtype=mask.dtype)
    if side == "right":
        return {"input_ids": torch.cat([ids, junk], 1), "attention_mask": torch.cat([mask, blank], 1)}
    rows = [torch.cat([row[keep == 0], row[keep == 1]]) for row, keep in zip(ids, mask, strict=True)]
    masks = [keep.sort().values for keep in mask]
    return {
        "input_ids": torch.cat([junk, torch.stack(rows)], 1),
        "attention_mask": torch.cat([blank, torch.stack(masks)], 1).bool(),
    }


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_pads_change_no_logits(name: str, variant: str) -> None:
    model, inputs = moved(classifier(name, variant)), batch()
    del inputs["labels"]
    expected = logits(model, inputs)
    for count, side in ((1, "right"), (37, "right"), (100, "right"), (0, "left"), (7, "left"), (100, "left")):
        assert (logits(model, padded(inputs, count, side)) - expected).abs().max() <= 1e-5, (count, side)


@pytest.mark.parametrize("name", FAMILIES)
def test_further_families_of_encoders(name: str) -> None:
    plain, model = classifier(name, "plain"), classifier(name, "layer_processing")
    inputs = batch()
    assert torch.equal(logits(model, inputs), logits(plain, inputs))
    moved(model)(**inputs).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    del inputs["labels"]
    expected = logits(model, inputs)
    for side in ("right", "left"):
        assert (logits(model, padded(inputs, 60, side)) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_pads_change_no_logits_however_pooled(name: str, pooling: str) -> None:
    model, inputs = moved(classifier(name, pooling=pooling)), batch()
    del inputs["labels"]
    expected = logits(model, inputs)
    for side in ("right", "left"):
        assert (logits(model, padded(inputs, 20, side)) - expected).abs().max() <= 1e-5


def test_rows_alone_equal_rows_in_a_batch() -> None:
    model, inputs = moved(classifier("bert")), batch()
    together = logits(model, inputs)
    for row, length in enumerate((9, 5, 1)):
        alone = logits(model, {"input_ids": inputs["input_ids"][row : row + 1, :length]})
        assert (alone - together[row]).abs().max() <= 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_of_pads_alone_gives_the_bias(variant: str) -> None:
    model, inputs = moved(classifier(variant=variant)), batch()
    inputs["attention_mask"][1] = 0
    output = model(**inputs)
    assert torch.equal(output.logits[1], model.classifier.bias)
    output.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_bad_masks_are_refused() -> None:
    inputs = batch()
    with pytest.raises(ValueError, match=r"mask: expected shape \[3, 9\]"):
        classifier()(inputs["input_ids"], inputs["attention_mask"][:, :4])
    with pytest.raises(ValueError, match="got torch.float32"):
        classifier()(inputs["input_ids"], inputs["attention_mask"].float())
    with pytest.raises(ValueError, match="input_ids: expected"):
        classifier()(attention_mask=inputs["attention_mask"])


def test_types_of_pairs_reach_only_encoders_that_know_them() -> None:
    inputs = batch() | {"token_type_ids": torch.ones(3, 9, dtype=torch.long)}
    for name in ENCODERS:
        model = classifier(name, "plain")
        same = torch.equal(logits(model, inputs), logits(model, batch()))
        assert same == (name != "bert"), name


# ---- gradients and losses


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_gradient_reaches_every_trained_parameter(name: str, variant: str) -> None:
    model = classifier(name, variant)
    model(**batch()).loss.backward()
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert [key for key, p in trained.items() if p.grad is None] == []  # none that DDP would wait for
    frozen = [p.grad for p in model.parameters() if not p.requires_grad]
    assert all(grad is None for grad in frozen)
    model.zero_grad()
    moved(model)(**batch()).loss.backward()
    assert [key for key, p in trained.items() if not p.grad.any()] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_is_the_weighted_sum(variant: str) -> None:
    model, inputs = moved(classifier(variant=variant)), batch()
    output = model(**inputs)
    expected = torch.nn.functional.cross_entropy(output.logits, inputs["labels"])
    assert torch.equal(output.task_loss, expected)
    for name, weight in model.config.weights.items():
        expected = expected + weight * output.auxiliary_losses[name]
    assert torch.equal(output.loss, expected)
    assert set(output.auxiliary_losses) == set(model.config.loss_names)
    without = model(inputs["input_ids"], inputs["attention_mask"])
    assert without.loss is None and without.task_loss is None


def test_weights_of_losses_can_be_given() -> None:
    model = classifier(auxiliary_weights={"entropy": 2.0})
    output = model(**batch())
    assert torch.equal(output.loss, output.task_loss + 2.0 * output.auxiliary_losses["entropy"])


def test_a_frozen_router_stays_as_it_was_drawn() -> None:
    for base in ("stratified_moe", "stratified_attention", "token_routing"):
        model = moved(classifier(variant="frozen_random_router", frozen_variant=base)).train()
        parts = ("router.", "strata.", "gate.", "affinity")
        keys = [k for k, _ in model.block.named_parameters() if k.startswith(parts)]
        before = {key: model.block.get_parameter(key).clone() for key in keys}
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            model(**batch()).loss.backward()
            optimizer.step()
        assert keys and all(torch.equal(model.block.get_parameter(key), before[key]) for key in keys)
        trained = classifier(variant=base)  # the same draw, but for what is trained
        assert all(torch.equal(trained.block.get_parameter(key), before[key]) for key in keys)
        counts = model.parameter_counts()
        assert (
            counts["router"].trainable == 0
            and counts["block"].total == trained.parameter_counts()["block"].total
        )


def test_a_frozen_encoder_is_neither_trained_nor_in_training_mode() -> None:
    model = moved(classifier(freeze_encoder=True)).train()
    assert model.training and model.block.training and not model.encoder.training
    model(**batch()).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.block.parameters())


def test_gradient_checkpointing_changes_no_gradient() -> None:
    for name in ENCODERS:
        found = []
        for enabled in (False, True):
            model = moved(classifier(name, "layer_processing")).train()
            model.dropout.p = 0.0
            if enabled:
                model.gradient_checkpointing_enable()
                flags = [
                    m.gradient_checkpointing for m in model.modules() if hasattr(m, "gradient_checkpointing")
                ]
                assert flags and all(flags)
            torch.manual_seed(2)
            model(**batch()).loss.backward()
            found.append([p.grad for p in model.parameters() if p.requires_grad])
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


# ---- what it tells


@pytest.mark.parametrize("variant", ROUTED)
def test_routed_tokens_leave_pads_out(variant: str) -> None:
    inputs = batch()
    inputs["attention_mask"] = inputs["attention_mask"].bool()
    output = classifier(variant=variant)(**inputs)
    for name, routing in output.routing.items():
        tokens = output.routed_tokens(name)
        of_sequences = routing.probabilities.dim() == 2
        assert tokens.sequence.tolist() == ([0, 1, 2] if of_sequences else [0] * 9 + [1] * 5 + [2])
        assert torch.allclose(tokens.probabilities.sum(-1), torch.ones(len(tokens.sequence)))
        assert tokens.selected[:, 0].equal(tokens.probabilities.argmax(-1))
        assert not tokens.probabilities.requires_grad
    first = output.routed_tokens(next(iter(output.routing)))
    assert output.routed_tokens().probabilities.equal(first.probabilities)
    with pytest.raises(ValueError, match=r"routing: expected one of \['\w+"):
        output.routed_tokens("elsewhere")


def test_layers_are_one_stratum_a_hidden_state() -> None:
    output = classifier(variant="layer_processing")(**batch())
    assert output.routing["layers"].probabilities.shape == (3, 3)
    last = classifier(variant="layer_processing", num_strata=5, block_options={"inputs": "last"})
    assert last(**batch()).routing["layers"].probabilities.shape == (3, 5)


def test_parameter_counts() -> None:
    model = classifier(variant="plain", num_labels=3, freeze_encoder=True)
    host = sum(p.numel() for p in encoder("distilbert").parameters())
    assert model.parameter_counts() == {
        "encoder": ParameterCount(total=host, trainable=0),
        "block": ParameterCount(total=0, trainable=0),
        "router": ParameterCount(total=0, trainable=0),
        "classifier": ParameterCount(total=99, trainable=99),
        "all": ParameterCount(total=host + 99, trainable=99),
    }


# ---- saving and loading


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_saved_and_loaded_bitwise(name: str, variant: str, tmp_path: Path) -> None:
    model = moved(classifier(name, variant, num_labels=3, id2label={0: "no", 1: "yes", 2: "maybe"}))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file() and not list(tmp_path.glob("*.bin"))
    loaded = StratifiedClassifier.from_pretrained(tmp_path)
    assert type(loaded.config) is StratifiedClassifierConfig and type(loaded.encoder) is type(model.encoder)
    assert loaded.config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    states = model.state_dict(), loaded.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    flags = [{k: p.requires_grad for k, p in m.named_parameters()} for m in (model, loaded)]
    assert flags[0] == flags[1]
    inputs = batch()
    del inputs["labels"]
    assert torch.equal(logits(model, inputs), logits(loaded, inputs))


def test_a_frozen_encoder_is_loaded_frozen(tmp_path: Path) -> None:
    classifier(freeze_encoder=True).save_pretrained(tmp_path)
    loaded, report = StratifiedClassifier.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(p.requires_grad for p in loaded.encoder.parameters()) and not loaded.encoder.training
    assert not report["missing_keys"]


# ---- compiling and exporting


def quick(quick_ones: tuple[str, ...], *, names: tuple[str, ...], variants: tuple[str, ...]) -> list[Any]:
    """Every pair of encoder and variant; all but those of 'name variant' are slow."""
    pairs = [(name, variant) for name in names for variant in variants]
    slow = pytest.mark.slow
    return [pytest.param(*p, marks=() if " ".join(p) in quick_ones else slow, id="-".join(p)) for p in pairs]


COMPILED = ("distilbert stratified_moe", "roberta stratified_attention", "gpt2 layer_processing")


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch's own, of the dispatch
@pytest.mark.parametrize(("name", "variant"), quick(COMPILED, names=ENCODERS, variants=VARIANTS))
def test_compiles_without_a_graph_break(name: str, variant: str) -> None:
    torch._dynamo.reset()
    model, inputs = moved(classifier(name, variant)), batch()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected, got = model(**inputs), compiled(**inputs)
    assert torch.allclose(expected.logits, got.logits, atol=1e-5)
    assert torch.allclose(expected.loss, got.loss, atol=1e-5)
    got.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


EXPORTED = ("gpt2 stratified_moe",)


@pytest.mark.parametrize(("name", "variant"), quick(EXPORTED, names=ENCODERS, variants=VARIANTS))
def test_exports_with_any_batch_and_length(name: str, variant: str) -> None:
    model, inputs = moved(classifier(name, variant)), batch()
    del inputs["labels"]
    sizes = {0: torch.export.Dim("rows", min=2, max=64), 1: torch.export.Dim("tokens", min=2, max=128)}
    program = torch.export.export(
        model, (), inputs, dynamic_shapes={"input_ids": sizes, "attention_mask": sizes}, strict=False
    )
    longer = padded(inputs, 7, "right")
    for given in (inputs, {key: value[:2] for key, value in longer.items()}):
        got, expected = program.module()(**given), model(**given)
        assert torch.allclose(got.logits, expected.logits, atol=1e-5)
        assert len(tree_leaves(got.routing)) == len(tree_leaves(expected.routing))
