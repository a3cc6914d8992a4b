"""Legend: B sequences, N tokens, H query heads, E head size."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.huggingface.hosts import biased_mask, host, logits, tokens
from stratcore.layers import ToroidalBranchOptions
from stratcore.models import ToroidalLM, ToroidalLMOptions
from stratcore.models.toroidal_lm import turn_off_attention_dropout

pytestmark = pytest.mark.usefixtures("single_thread")
HOSTS = ["phi", "phi3", "llama", "qwen2", "gpt2", "gpt_neox", "mistral"]
FORMS: list[dict[str, Any]] = [
    {"depth": 1},
    {"adaptive_depths": (1, 2, 4)},
    *({"depth": 2, "fusion": fusion} for fusion in ("low_rank", "attention", "mean", None)),
    *({"depth": 4, "fusion": fusion, "depth_attention": "coupled"} for fusion in ("low_rank", "mean")),
]
LAMBDA = (0.05, 0.2, 0.6, 1.5)


def bent(model: Any, layers: Any = "all", **torus: Any) -> ToroidalLM:
    form = ToroidalBranchOptions(**{"lambda_distance": LAMBDA, **torus})
    return ToroidalLM(model, ToroidalLMOptions(layers=layers, torus=form))


def opened(model: ToroidalLM, gate: float = 0.5) -> ToroidalLM:
    for branch in model.branches.values():
        branch.gate.data.fill_(gate)  # type: ignore[union-attr, operator]
    return model


# ---- the start


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", HOSTS)
def test_logits_start_bitwise_as_the_hosts(name: str, dtype: torch.dtype) -> None:
    ids = tokens()
    padded = {"attention_mask": torch.tensor([[0] * 3 + [1] * 9, [1] * 12])}
    plain = host(name).to(dtype)
    expected = [logits(plain, ids), logits(plain, ids, **padded)]
    for index, form in enumerate(FORMS):
        model = bent(copy.deepcopy(plain), ("all", (1,))[index % 2], **form)
        assert torch.equal(logits(model, ids), expected[0]), form
        assert torch.equal(logits(model, ids, **padded), expected[1]), form


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_start_is_that_of_either_implementation(implementation: str) -> None:
    plain = host("llama", attn_implementation=implementation)
    expected = logits(plain, tokens())
    assert torch.equal(logits(bent(plain), tokens()), expected)


@pytest.mark.parametrize("name", HOSTS)
def test_an_open_branch_at_depth_1_without_lambda_is_the_host(name: str) -> None:
    expected = logits(host(name), tokens())
    found = logits(bent(host(name), gate="open", lambda_distance=0.0), tokens())
    assert not torch.equal(found, expected), "the branch was not used"
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("name", [name for name in HOSTS if name != "mistral"])  # whose window is a mask
def test_fft_mixing_sees_the_future_and_refuses_masks_and_caches(name: str, tmp_path: Path) -> None:
    options = ToroidalLMOptions(layers=(1,), attention="fft_mixing", torus=ToroidalBranchOptions(gate="open"))
    model, ids, other = ToroidalLM(host(name), options), tokens(), tokens()
    other[:, -1] = tokens(seed=2)[:, -1]
    change = (logits(model, ids) - logits(model, other)).abs()
    assert float(change[:, 0].max()) > 1e-7
    with pytest.raises(ValueError, match="FFT mixing: expected no mask"):
        logits(model, ids, attention_mask=torch.tensor([[0] * 3 + [1] * 9, [1] * 12]))
    with pytest.raises(ValueError, match="one whole sequence"):
        model.generate(ids, max_new_tokens=2, do_sample=False)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(ToroidalLM.from_pretrained(tmp_path), ids), logits(model, ids))


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi"])
def test_an_open_branch_is_its_bias_as_a_mask(name: str) -> None:
    ids = tokens()
    mask = biased_mask(torch.tensor(LAMBDA), 12, [13]).expand(2, -1, -1, -1)
    expected = logits(host(name, attn_implementation="eager"), ids, attention_mask=mask)
    found = logits(bent(host(name), gate="open", period=13), ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-5)
    assert float((logits(host(name), ids) - expected).abs().max()) > 0.1


def test_layers_that_are_not_chosen_stay_as_they_are() -> None:
    plain, model = host("llama"), opened(bent(host("llama"), (1,)))
    for index in (0, 2):
        assert model.host.model.layers[index].self_attn.config is model.host.config
    with torch.no_grad():
        before = plain(tokens(), output_hidden_states=True).hidden_states
        after = model(tokens(), output_hidden_states=True).hidden_states
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[2], after[2])


# ---- learning


@pytest.mark.parametrize("form", FORMS)
def test_the_gate_has_a_gradient_at_once_and_all_else_once_it_opens(form: dict[str, Any]) -> None:
    model, ids = bent(host("llama"), **form), tokens()
    model.train_only("branches")

    def gradients() -> dict[str, float]:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return {n: float(p.grad.abs().max()) for n, p in model.named_parameters() if p.grad is not None}

    start = gradients()
    assert all((value > 1e-6) == name.endswith(".gate") or "fusion" in name for name, value in start.items())
    later = (gradients() for _ in [opened(model)])
    waiting = ("fusion.u", "fusion.query", "fusion.key")  # behind the fusion's own zero
    assert all(value > 1e-7 for name, value in next(later).items() if not any(w in name for w in waiting))


def test_what_is_trained_and_where_parameters_are() -> None:
    model = bent(host("llama"), (0, 2), depth=2)
    branch = 4 + 1 + 2 * 2  # lambdas, gate, low-rank fusion
    attention = 32 * 32 * 2 + 32 * 16 * 2
    expected = {"branches": 2 * branch, "replaced": 2 * (branch + attention)}
    whole = sum(p.numel() for p in host("llama").parameters())
    expected["all"] = whole + 2 * branch
    for what, count in expected.items():
        model.train_only(what)
        assert tuple(model.parameter_account()) == (whole, 2 * attention, 2 * branch, count)
    assert sum(p.numel() for p in model.parameters()) == expected["all"]
    with pytest.raises(ValueError, match="train_only: expected one of branches, replaced, all, got 'none'"):
        model.train_only("none")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_checkpointed_activations_give_the_same_gradients(name: str) -> None:
    found = []
    changes = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0} if name == "gpt2" else {}
    for checkpointed in (False, True):
        model = opened(bent(host(name, **changes), (1, 2), depth=2)).train()
        model.train_only("replaced")  # embeddings are frozen
        if checkpointed:
            model.gradient_checkpointing_enable()
        model(tokens(), labels=tokens(), use_cache=False).loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 8
    for each, gradient in found[0].items():
        torch.testing.assert_close(found[1][each], gradient, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", HOSTS)
def test_every_host_trains_once_dropout_of_attention_is_off(name: str) -> None:
    changes = {"attn_pdrop": 0.1} if name == "gpt2" else {"attention_dropout": 0.1}
    own = host(name, **changes)
    with pytest.raises(ValueError, match="cannot drop weights, got dropout 0.1 in training"):
        bent(copy.deepcopy(own)).train()(tokens())
    turn_off_attention_dropout(own)
    model = opened(bent(own, depth=2)).train()
    model(tokens(), labels=tokens()).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.branches.parameters())


# ---- decoding


@pytest.mark.parametrize("form", [{"depth": 1}, {"depth": 2, "depth_attention": "coupled"}, {"depth": 4}])
@pytest.mark.parametrize("name", HOSTS)
def test_decoding_step_by_step_is_one_call(name: str, form: dict[str, Any]) -> None:
    model, ids = opened(bent(host(name), **form)), tokens()
    whole, cache, parts = logits(model, ids), None, []
    with torch.no_grad():
        for first, last in ((0, 5), (5, 6), (6, 9), (9, 12)):
            out = model(ids[:, first:last], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
    assert float((torch.cat(parts, 1) - whole).abs().max()) <= 1e-5 * float(whole.abs().max())


@pytest.mark.parametrize("window", [None, 3])
def test_generation_is_greedy_search_by_full_calls(window: int | None) -> None:
    model, ids = opened(bent(host("phi"), depth=2, window=window)), tokens(1, 6)
    expected = ids
    for _ in range(6):
        expected = torch.cat([expected, logits(model, expected)[:, -1:].argmax(-1)], 1)
    found = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch's own, where it traces a Function
def test_it_compiles_in_one_graph() -> None:
    model = opened(bent(host("llama", num_hidden_layers=1), depth=2, fusion="attention"))
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = []
    for call in (model, compiled):
        model.zero_grad()
        out = call(tokens(), use_cache=False).logits
        out.square().mean().backward()
        found.append([out.detach(), *(p.grad for p in model.branches.parameters())])
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(other, own, rtol=1e-5, atol=1e-6)


# ---- controls


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_projections_drawn_anew_are_those_of_the_seed_in_chosen_layers_alone(name: str) -> None:
    def drawn(seed: int, attention: str) -> dict[str, Tensor]:
        options = ToroidalLMOptions(layers=(1,), projections="random", attention=attention, seed=seed)
        return ToroidalLM(host(name), options).host.state_dict()

    plain, first = host(name).state_dict(), drawn(0, "host")
    changed = {key for key in plain if not torch.equal(plain[key], first[key])}
    assert {key.split(".")[2] for key in changed} == {"1"} and len(changed) >= 2
    assert all("attn" in key and "weight" in key for key in changed)
    for key in changed:
        assert 0.8 < float(first[key].std() / plain[key].std()) < 1.25
    assert all(torch.equal(first[key], each) for key, each in drawn(0, "host").items())
    assert any(not torch.equal(first[key], each) for key, each in drawn(1, "host").items())


def test_a_control_of_the_hosts_attention_has_no_branch() -> None:
    model = ToroidalLM(host("llama"), ToroidalLMOptions(layers="all", attention="host"))
    assert model.parameter_account().branches == 0
    assert torch.equal(logits(model, tokens()), logits(host("llama"), tokens()))
    model.train_only("replaced")
    assert model.parameter_account().trainable == model.parameter_account().replaced > 0


# ---- refusals


@pytest.mark.parametrize(
    ("torus", "words"),
    [
        ({"depth": 3}, r"layers.0.self_attn: depth: expected one of 1, 2, 4 for heads of 8 channels, got 3"),
        ({"depth": 8}, "expected one of 1, 2, 4 for heads of 8 channels, got 8"),
        ({"lambda_distance": (0.1, 0.2)}, "expected one number or one for each of 4 heads, got 2"),
    ],
)
def test_what_does_not_fit_the_host_is_refused(torus: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bent(host("llama"), **torus)


def test_a_layer_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="layers: expected numbers in 0 to 2, .* got 3"):
        bent(host("llama"), (3,))


def test_the_period_is_the_hosts_positions_unless_given() -> None:
    assert bent(host("llama")).options.torus.period == 128
    assert bent(host("gpt2")).options.torus.period == 128
    assert bent(host("llama"), period=40).options.torus.period == 40


# ---- saving


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_saved_model_is_the_same_bit_for_bit(name: str, tmp_path: Path) -> None:
    options = ToroidalLMOptions(
        layers=(0, -1),
        torus=ToroidalBranchOptions(depth=2, fusion="attention", lambda_distance=LAMBDA),
        projections="random",
    )
    model = opened(ToroidalLM(host(name), options))
    model.save_pretrained(tmp_path)
    again = ToroidalLM.from_pretrained(tmp_path)
    assert again.options == model.options and not again.training
    assert torch.equal(logits(again, tokens()), logits(model, tokens()))
    assert again.parameter_account() == model.parameter_account()
    assert again.state_dict().keys() == model.state_dict().keys()


def test_files_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    bent(host("llama"), (0,), depth=2).save_pretrained(tmp_path)
    settings = tmp_path / "toroidal_lm.json"
    data = json.loads(settings.read_text())
    settings.write_text(json.dumps(data | {"layers": [0, 1]}))
    with pytest.raises(
        ValueError, match=r"toroidal_lm.safetensors: tensor '1.fusion.u': expected \[2, 1\], got None"
    ):
        ToroidalLM.from_pretrained(tmp_path)
    (tmp_path / "toroidal_lm.safetensors").write_bytes(b"1 2 3")
    with pytest.raises(ValueError, match="toroidal_lm.safetensors: expected safetensors"):
        ToroidalLM.from_pretrained(tmp_path)
    settings.unlink()
    with pytest.raises(FileNotFoundError, match="toroidal_lm.json: no such file"):
        ToroidalLM.from_pretrained(tmp_path)


def test_a_copy_has_branches_of_its_own() -> None:
    model = bent(host("llama"))
    expected = logits(model, tokens())
    twin = opened(copy.deepcopy(model))
    assert torch.equal(logits(model, tokens()), expected)
    assert not torch.equal(logits(twin, tokens()), expected)
