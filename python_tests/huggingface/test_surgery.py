from __future__ import annotations

import copy
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from transformers import AttentionInterface

from python_tests.huggingface.hosts import biased_mask, host, logits, tokens
from stratcore.huggingface import (
    ToroidalBias,
    remove_toroidal_attention,
    toroidal_parameters,
    use_toroidal_attention,
)
from stratcore.huggingface.settings import ATTRIBUTE
from stratcore.huggingface.surgery import head_count

pytestmark = pytest.mark.usefixtures("single_thread")


def toroidal_layers(model: nn.Module) -> list[str]:
    names = [name for name, module in model.named_modules() if isinstance(module, ToroidalBias)]
    return [name.split(".layers.")[1].split(".")[0] for name in names]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", [0, 1, 2]),
        (1, [1]),
        (-1, [2]),
        ([0, -1], [0, 2]),
        (range(1, 3), [1, 2]),
        ([2, 0, 2], [0, 2]),
        (torch.tensor([1]), [1]),
        (r"layers[.][12][.]", [1, 2]),
        (r"self_attn$", [0, 1, 2]),
        (lambda number: number % 2 == 0, [0, 2]),
    ],
)
def test_choice_of_layers(layers: Any, expected: list[int]) -> None:
    model = host("llama")
    assert use_toroidal_attention(model, layers=layers, lattice=8) == expected
    assert toroidal_layers(model) == [str(number) for number in expected]
    assert [int(key) for key in getattr(model.config, ATTRIBUTE)["layers"]] == expected


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        (3, ValueError, r"numbers of layers with attention, \[0, 1, 2\], got 3"),
        ([-4], ValueError, "got -4"),
        ([True], TypeError, "whole numbers, got True"),
        ([1.0], TypeError, "whole numbers, got 1.0"),
        ([], ValueError, "chooses none of 3 layers"),
        ("layer[.]9", ValueError, r"chooses none of 3 layers \(model.layers.0.self_attn"),
        ("layers[", ValueError, "'all' or a regular expression, got 'layers\\['"),
        (lambda number: number > 5, ValueError, "chooses none"),
    ],
)
def test_choice_that_fails_leaves_the_host(layers: Any, error: type[Exception], message: str) -> None:
    model = host("llama")
    with pytest.raises(error, match=message):
        use_toroidal_attention(model, layers=layers, lattice=8)
    untouched(model)


def untouched(model: Any, implementation: str = "sdpa") -> None:
    assert not hasattr(model.config, ATTRIBUTE) and model.config._attn_implementation == implementation
    assert not any("toroidal" in name for module in model.modules() for name in vars(module))
    assert not any("toroidal" in name for name, _ in model.named_modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("name", "layers"), [("llama", "all"), ("llama", [1]), ("bert", [0])])
def test_removal_gives_the_host_back(name: str, layers: Any, implementation: str) -> None:
    model, ids = host(name, attn_implementation=implementation), tokens()
    before, weights = logits(model, ids), copy.deepcopy(model.state_dict())
    config = model.config.to_dict()
    use_toroidal_attention(model, layers=layers, lattice=8, slopes="alibi")
    assert not torch.equal(logits(model, ids), before)
    remove_toroidal_attention(model)
    untouched(model, implementation)
    assert torch.equal(logits(model, ids), before)
    assert list(model.state_dict()) == list(weights) and model.config.to_dict() == config
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    remove_toroidal_attention(model)
    untouched(model, implementation)


def test_layers_that_were_not_chosen_are_bitwise_the_host() -> None:
    """With the last layer chosen, what goes into it is the host's."""
    for implementation in ("sdpa", "eager"):
        model, ids = host("llama", attn_implementation=implementation), tokens()
        mask = torch.tensor([[0, 0, 0] + [1] * 9, [1] * 12])
        before = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        use_toroidal_attention(model, layers=-1, lattice=8, slopes="alibi")
        after = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        assert all(torch.equal(a, b) for a, b in zip(before[:3], after[:3], strict=True))
        assert not torch.equal(before[3], after[3])


def test_a_second_call_adds_layers_and_replaces_tori() -> None:
    model, ids = host("llama"), tokens()
    use_toroidal_attention(model, layers=0, lattice=8, slopes=0.5)
    kept = toroidal_parameters(model)[0]
    use_toroidal_attention(model, layers=2, lattice=(3, 4), slopes=1.0, per_axis=True)
    assert toroidal_parameters(model)[0] is kept
    assert getattr(model.config, ATTRIBUTE)["mask"] == "sdpa"
    steps = logits(model, ids)
    use_toroidal_attention(model, layers=1, lattice=8)
    assert getattr(model.config, ATTRIBUTE)["mask"] == "toroidal"
    torch.testing.assert_close(logits(model, ids), steps, rtol=1e-4, atol=2e-5)
    assert not any(hasattr(module, "toroidal_host") for module in model.modules())
    use_toroidal_attention(model, layers=0, lattice=6)
    record = getattr(model.config, ATTRIBUTE)
    assert [record["layers"][key]["lattice"] for key in "012"] == [[6], [8], [3, 4]]
    assert record["implementation"] == "sdpa"
    remove_toroidal_attention(model)
    untouched(model)


def test_the_host_can_be_switched_to_and_from() -> None:
    model, ids = host("llama"), tokens()
    before = logits(model, ids)
    use_toroidal_attention(model, lattice=8, slopes="alibi")
    bent = logits(model, ids)
    model.set_attn_implementation("sdpa")
    assert torch.equal(logits(model, ids), before)
    model.set_attn_implementation("toroidal")
    assert torch.equal(logits(model, ids), bent)
    model.set_attn_implementation("eager")
    remove_toroidal_attention(model)
    assert model.config._attn_implementation == "eager"


def test_copies_are_whole() -> None:
    model, ids = host("llama"), tokens()
    use_toroidal_attention(model, layers=[0, 1], lattice=8, slopes="alibi")
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, ids), logits(model, ids))
    assert not set(map(id, toroidal_parameters(twin))) & set(map(id, toroidal_parameters(model)))
    remove_toroidal_attention(twin)
    untouched(twin)
    assert toroidal_layers(model) == ["0", "1"]


def test_a_part_of_a_model() -> None:
    model, ids = host("llama"), tokens()
    use_toroidal_attention(model.model, lattice=8, slopes="alibi")
    expected = host("llama")
    use_toroidal_attention(expected, lattice=8, slopes="alibi")
    assert torch.equal(logits(model, ids), logits(expected, ids))
    with pytest.raises(ValueError, match="of LlamaModel: cannot have weights"):
        model(ids, output_attentions=True)
    remove_toroidal_attention(model)
    untouched(model)


def test_the_image_of_a_vision_model_is_a_lattice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class token is one site before the first patch, which is the first site."""
    slopes, pixels = torch.tensor([0.1, 0.3, 0.5, 1.0]), torch.randn(1, 3, 16, 16)
    mask = biased_mask(slopes, 17, [4, 4], "l2", causal=False, first=15)

    def biased(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, _: None, **options: Any) -> Any:
        return AttentionInterface()["sdpa"](module, q, k, v, mask, **options)

    monkeypatch.setitem(AttentionInterface._global_mapping, "biased", biased)
    with torch.no_grad():
        expected = host("vit", attn_implementation="biased")(pixels).last_hidden_state
        model = host("vit")
        plain = model(pixels).last_hidden_state
        options = {"lattice": (4, 4), "first_position": 15, "metric": "l2", "slopes": slopes}
        assert use_toroidal_attention(model, **options) == [0, 1, 2]
        torch.testing.assert_close(model(pixels).last_hidden_state, expected, rtol=1e-4, atol=5e-5)
    assert float((expected - plain).abs().max()) > 0.1


def test_fixed_slopes_are_no_parameters() -> None:
    model = host("llama")
    count = len(list(model.parameters()))
    use_toroidal_attention(model, lattice=8, slopes="alibi", parameterization="fixed")
    assert toroidal_parameters(model) == [] and len(list(model.parameters())) == count
    assert sum("raw_slopes" in key for key in model.state_dict()) == 3


@pytest.mark.parametrize(
    ("name", "changes", "options", "message"),
    [
        (
            "gemma2",
            {"attn_implementation": "eager"},
            {},
            r"layers.0.self_attn: caps its scores \(attn_logit_softcapping\)",
        ),
        ("bart", {}, {}, r"an encoder and a decoder.*\(is_encoder_decoder\)"),
        ("gpt2", {"add_cross_attention": True}, {}, r"another sequence.*\(add_cross_attention\)"),
        ("bloom", {"attn_implementation": "eager"}, {}, "BloomModel: none of its modules dispatches"),
        ("mistral", {}, {"lattice": (4, 4)}, "attends to a window, .* a lattice of 2 axes"),
        ("gemma3", {}, {"lattice": (4, 4), "layers": [0]}, "attends to a window"),
        ("llama", {}, {"slopes": [0.1]}, r"shape \[4\], got \[1\]"),
        (
            "llama",
            {},
            {"lattic": 8},
            "use_toroidal_attention: unknown option 'lattic', did you mean 'lattice'",
        ),
        (
            "gpt2",
            {"attn_implementation": "eager", "reorder_and_upcast_attn": True},
            {"layers": [0]},
            "cannot keep eager attention beside toroidal layers",
        ),
    ],
)
def test_refused_hosts(name: str, changes: dict[str, Any], options: dict[str, Any], message: str) -> None:
    model = host(name, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        use_toroidal_attention(model, **{"lattice": 8, **options})
    assert "\n" not in str(caught.value)
    untouched(model, changes.get("attn_implementation", "sdpa"))


def test_refused_without_weights_sinks_or_heads() -> None:
    with torch.device("meta"):
        empty = hf.LlamaForCausalLM(host("llama").config)
    with pytest.raises(ValueError, match="weights on a device, got none yet"):
        use_toroidal_attention(empty, lattice=8)
    model = host("llama")
    model.model.layers[1].self_attn.sinks = nn.Parameter(torch.zeros(4))
    with pytest.raises(ValueError, match="layers.1.self_attn: has attention sinks"):
        use_toroidal_attention(model, lattice=8)
    uneven: Any = SimpleNamespace(config=SimpleNamespace(num_attention_heads=[4, 8]))
    with pytest.raises(ValueError, match=r"one number of attention heads, got \[4, 8\]"):
        head_count(uneven)
    with pytest.raises(TypeError, match="expected a PreTrainedModel of transformers, got Linear"):
        use_toroidal_attention(nn.Linear(2, 2), lattice=8)  # type: ignore[arg-type]


def test_other_implementations_cannot_stay_beside() -> None:
    model = host("llama", attn_implementation="flex_attention")
    with pytest.raises(ValueError, match="only 'sdpa' and 'eager' can stay .* has 'flex_attention'"):
        use_toroidal_attention(model, layers=[0], lattice=8)
    untouched(model, "flex_attention")
    use_toroidal_attention(model, lattice=8)
    remove_toroidal_attention(model)
    untouched(model, "flex_attention")


def test_several_parts_must_be_named() -> None:
    parts = hf.Gemma3Config(
        text_config={**host("gemma3").config.to_dict()},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
        },
    )
    model = hf.Gemma3Model(parts).eval()
    with pytest.raises(ValueError, match="Gemma3Model: has parts .* pass one part"):
        use_toroidal_attention(model, lattice=8)
    ids = tokens()
    with torch.no_grad():
        before = model(ids).last_hidden_state
        assert use_toroidal_attention(model.language_model, lattice=8) == [0, 1, 2]
        torch.testing.assert_close(model(ids).last_hidden_state, before, rtol=1e-4, atol=2e-5)
    assert model.vision_tower.config._attn_implementation == "sdpa"
    remove_toroidal_attention(model.language_model)
    untouched(model)


def test_a_host_that_cannot_be_switched(monkeypatch: pytest.MonkeyPatch) -> None:
    model = host("llama")
    monkeypatch.setattr(
        type(model), "set_attn_implementation", lambda *_: logging.getLogger().debug("ignored")
    )
    with pytest.raises(ValueError, match="does not let its attention implementation be set"):
        use_toroidal_attention(model, lattice=8)
    untouched(model)


def test_a_host_asked_for_by_name_has_no_torus_yet() -> None:
    model, ids = host("llama"), tokens()
    before = logits(model, ids)
    use_toroidal_attention(host("llama"), lattice=8)
    model.set_attn_implementation("toroidal")
    with pytest.raises(ValueError, match="call use_toroidal_attention"):
        model(ids)
    use_toroidal_attention(model, layers=[0], lattice=8)
    torch.testing.assert_close(logits(model, ids), before, rtol=1e-4, atol=2e-5)
    remove_toroidal_attention(model)
    untouched(model)
