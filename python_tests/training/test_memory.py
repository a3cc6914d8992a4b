"""Legend: B rows, L tokens of a row, C hidden size."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PhiConfig, PhiForCausalLM

from python_tests.huggingface.hosts import host
from stratcore.layers import ToroidalBranchOptions
from stratcore.models import ToroidalLM, ToroidalLMOptions
from stratcore.training.lora import add_lora
from stratcore.training.memory import (
    HostSizes,
    TuningPlan,
    estimate_memory,
    host_sizes,
    plans_that_fit,
    trainable_parameters,
)

pytestmark = pytest.mark.usefixtures("single_thread")
HOSTS = ["phi", "phi3", "llama", "qwen2", "gpt2", "gpt_neox", "mistral"]
WIDER: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 128, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "mistral": {"hidden_size": 128, "intermediate_size": 384, "sliding_window": None},
}
SOURCE = TuningPlan(
    layers=(0,),
    rows=1,
    length=256,
    accumulate=16,
    host_dtype="float16",
    precision="fp16",
    gated=False,
    depths=(2,),
)  # what the source documents ran


def wide_host(name: str) -> Any:
    return host(name, **WIDER.get(name, {"hidden_size": 128, "intermediate_size": 384}))


@cache
def phi2() -> HostSizes:
    """Sizes of Phi-2, whose weights are never made."""
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.4}
    config = PhiConfig(
        vocab_size=51200, hidden_size=2560, intermediate_size=10240, num_hidden_layers=32, num_attention_heads=32,
        rope_parameters=rotary,
    )  # fmt: skip
    with torch.device("meta"):
        return host_sizes(PhiForCausalLM(config))


def kept_bytes(model: nn.Module, ids: Tensor) -> int:
    """Bytes of all tensors but parameters and buffers that a forward pass keeps for the backward pass."""
    lasting = [*model.parameters(), *model.buffers()]
    known = {each.untyped_storage().data_ptr() for each in lasting}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in known:
            kept[place] = tensor  # alive, lest its place be used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=ids, use_cache=False)
    return sum(each.untyped_storage().nbytes() for each in kept.values())


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize(
    ("trained", "layers", "gated", "depths"),
    [
        ("replaced", (0,), True, (1,)),
        ("replaced", (1,), True, (2,)),
        ("replaced", (0, 1), False, (1,)),
        ("branches", (0,), True, (1,)),
        ("all", (0,), True, (2,)),
        ("all", (0, 1), True, (1, 2, 4)),
        ("replaced", (0, 1), False, (1, 2, 4)),
    ],
)
def test_activations_are_those_that_a_forward_pass_keeps(
    name: str, trained: str, layers: tuple[int, ...], gated: bool, depths: tuple[int, ...]
) -> None:
    own = wide_host(name)
    sizes = host_sizes(own)
    several = {"adaptive_depths": depths} if len(depths) > 1 else {"depth": depths[0]}
    torus = ToroidalBranchOptions(gate="zero" if gated else "open", fusion=None, **several)
    model = ToroidalLM(own, ToroidalLMOptions(layers=layers, torus=torus)).train()
    model.train_only(trained)
    counted = kept_bytes(model, torch.randint(1, 64, (2, 100)))
    plan = TuningPlan(
        layers=layers, rows=2, length=100, trained=trained, gated=gated, depths=depths, host_dtype="float32",
        precision="fp32",
    )  # fmt: skip
    assert estimate_memory(sizes, plan).activations == pytest.approx(counted, rel=0.1)
    account = model.parameter_account()
    assert sum(trainable_parameters(sizes, plan)) == account.trainable


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2"])
def test_adapters_are_counted_as_peft_makes_them(name: str) -> None:
    pytest.importorskip("peft")
    own = wide_host(name)
    sizes = host_sizes(own)
    model = ToroidalLM(own, ToroidalLMOptions(layers=(0, 2)))
    add_lora(model, rank=4)
    plan = replace(SOURCE, layers=(0, 2), trained="lora", lora_rank=4, gated=True, depths=(1,))
    assert trainable_parameters(sizes, plan) == (0, model.parameter_account().trainable)


def test_the_sizes_of_phi_2() -> None:
    found = phi2()
    assert found.parameters == 2_779_683_840
    assert found.attention_parameters == 26_224_640  # and 4 of a fusion: 26,224,644 in the source documents
    assert (found.layers, found.hidden, found.heads, found.head_dim) == (32, 2560, 32, 80)
    assert found.parallel and found.layer_norm and not found.fused


def test_weights_gradients_and_moments_are_products() -> None:
    found = estimate_memory(phi2(), replace(SOURCE, layers=(0, 8, 16, 24), torus=False))
    own = 4 * 26_224_640
    assert found.weights == 2 * (2_779_683_840 - own) + 4 * own
    assert (found.half_copies, found.gradients, found.moments) == (2 * own, 4 * own, 8 * own)
    assert found.loss == 12 * 255 * 51200
    assert found.peak == found.weights + 14 * own + found.activations + found.loss
    once = estimate_memory(phi2(), replace(SOURCE, layers=(0, 8, 16, 24), torus=False, accumulate=1))
    assert once.peak == found.peak - found.gradients  # not there when the backward pass begins


def test_blocks_in_front_of_the_first_trained_one_keep_nothing() -> None:
    first, late, every = (
        estimate_memory(phi2(), replace(SOURCE, layers=layers, trained=trained)).activations
        for layers, trained in (((0,), "replaced"), ((24,), "replaced"), ((24,), "all"))
    )
    assert 3 * late < first < every


def test_checkpointed_blocks_keep_their_inputs() -> None:
    plain, cut = (estimate_memory(phi2(), replace(SOURCE, checkpointing=flag)) for flag in (False, True))
    assert cut.activations == 32 * 256 * 2560 * 2
    assert cut.peak < plain.peak - 0.8 * plain.activations


def test_the_source_documents_case_out_of_memory() -> None:
    """At 7.6 GB one layer fits and four do not, unless they are adapted at low rank; at 16 GB they do."""
    small, large = 7_600_000_000, 16_000_000_000

    def best(count: int, budget: int) -> tuple[str, bool] | None:
        layers = {1: (0,), 4: (0, 8, 16, 24), 8: tuple(range(0, 32, 4)), 32: tuple(range(32))}[count]
        fitting = plans_that_fit(phi2(), replace(SOURCE, layers=layers), budget)
        return (fitting[0][0].trained, fitting[0][0].checkpointing) if fitting else None

    assert [best(count, small) for count in (1, 4, 8, 32)] == [
        ("replaced", False),
        ("lora", False),
        ("lora", False),
        ("lora", False),
    ]
    assert [best(count, large) for count in (1, 4, 8, 32)] == [
        ("replaced", False),
        ("replaced", False),
        ("replaced", False),
        ("lora", False),
    ]
    assert plans_that_fit(phi2(), SOURCE, 5_000_000_000) == []  # less than the weights


def test_rows_are_halved_until_they_fit() -> None:
    plan = replace(SOURCE, rows=8)
    fitting = plans_that_fit(phi2(), plan, 7_600_000_000)
    kinds = [each.trained for each, _ in fitting]
    assert kinds == sorted(kinds, key=["replaced", "lora", "branches"].index)
    rows = [each.rows for each, _ in fitting if each.trained == "replaced"]
    assert rows == sorted(rows, reverse=True) and 1 <= rows[-1] < 8
    assert all(found.peak <= 0.95 * 7_600_000_000 for _, found in fitting)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trained": "bias"}, "trained: expected one of replaced, branches, lora, all, got 'bias'"),
        ({"host_dtype": "int8"}, "host_dtype: expected one of float32"),
        ({"optimizer": "lion"}, "optimizer: expected one of adamw, adam, sgd, got 'lion'"),
        ({"rows": 0}, "rows: expected at least 1, got 0"),
        ({"layers": ()}, "layers: expected numbers >= 0"),
        ({"layers": (32,)}, "layers: expected numbers in 0 to 31, got 32"),
    ],
)
def test_plans_that_make_no_sense_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        estimate_memory(phi2(), replace(SOURCE, **change))
