"""Hosts with toroidal attention against themselves: without it, with its bias as a mask, alone, and step by step.

Legend: B batch, H heads, N queries, M keys, E dimension of a head.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, StaticCache

from python_tests.huggingface.hosts import biased_mask, host, logits, tokens
from stratcore.huggingface import (
    toroidal_parameters,
    use_toroidal_attention,
)

pytestmark = pytest.mark.usefixtures("single_thread")
SLOPES = torch.tensor([0.05, 0.2, 0.6, 1.5])
LEFT = torch.tensor([[0, 0, 0] + [1] * 9, [1] * 12])
PACKED = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]])
RIGHT = torch.tensor([[1] * 9 + [0, 0, 0], [1] * 12])


def bent(name: str, **options: Any) -> Any:
    """A host on a ring that its sequences go around, or as the options say."""
    changes = options.pop("host", {})
    model = host(name, **changes)
    use_toroidal_attention(model, **{"lattice": 10, "slopes": SLOPES, **options})
    return model


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("layers", ["all", [1]])
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi", "mistral", "gemma3", "bert"])
def test_slopes_of_0_are_the_host(name: str, layers: Any, implementation: str) -> None:
    model, ids = host(name, attn_implementation=implementation), tokens()
    inputs: list[dict[str, Any]] = [{}, {"attention_mask": RIGHT}]
    if name != "bert":
        inputs.append({"attention_mask": LEFT})
    before = [logits(model, ids, **each) for each in inputs]
    use_toroidal_attention(model, lattice=10, layers=layers)
    for each, expected in zip(inputs, before, strict=True):
        real = each.get("attention_mask", torch.ones_like(ids)).bool()
        torch.testing.assert_close(logits(model, ids, **each)[real], expected[real], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_slopes_of_0_are_the_host_in_half_precision(name: str) -> None:
    ids = tokens()
    exact = logits(host(name), ids)
    model = host(name).to(torch.bfloat16)
    error = (logits(model, ids) - exact).abs().mean()
    use_toroidal_attention(model, lattice=10)
    half = logits(model, ids)
    assert half.dtype == torch.bfloat16
    assert float((half - exact).abs().mean()) <= 1.2 * float(error)


@pytest.mark.parametrize(("name", "causal"), [("llama", True), ("gpt2", True), ("bert", False)])
@pytest.mark.parametrize(("lattice", "metric"), [([10], "l1"), ([3, 2], "l2"), ([2, 2, 3], "linf")])
def test_the_bias_is_that_of_its_definition(name: str, causal: bool, lattice: list[int], metric: str) -> None:
    ids = tokens()
    mask = biased_mask(SLOPES, ids.shape[1], lattice, metric, causal).expand(2, -1, -1, -1)
    expected = logits(host(name, attn_implementation="eager"), ids, attention_mask=mask)
    plain = logits(host(name), ids)
    actual = logits(bent(name, lattice=lattice, metric=metric), ids)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=5e-5)
    assert float((plain - expected).abs().max()) > 0.1


def test_first_position_moves_a_lattice() -> None:
    ids = tokens()
    mask = biased_mask(SLOPES, ids.shape[1], [3, 4], first=5).expand(2, -1, -1, -1)
    expected = logits(host("llama", attn_implementation="eager"), ids, attention_mask=mask)
    torch.testing.assert_close(
        logits(bent("llama", lattice=[3, 4], first_position=5), ids), expected, rtol=1e-4, atol=5e-5
    )
    assert not torch.allclose(logits(bent("llama", lattice=[3, 4]), ids), expected, atol=1e-2)


def test_the_future_does_not_reach_back() -> None:
    model, ids = bent("llama", lattice=4), tokens()
    changed = ids.clone()
    changed[:, 7:] = 63 - changed[:, 7:]
    assert torch.equal(logits(model, ids)[:, :7], logits(model, changed)[:, :7])


# ---- padding, packing


@pytest.mark.parametrize("layers", ["all", [0, 2]])
@pytest.mark.parametrize(
    ("name", "mask"),
    [("llama", LEFT), ("llama", RIGHT), ("mistral", LEFT), ("gemma3", LEFT), ("bert", RIGHT)],
)
def test_padded_sequences_are_as_alone(name: str, mask: Tensor, layers: Any) -> None:
    model, ids = bent(name, layers=layers), tokens()
    together = logits(model, ids, attention_mask=mask)
    for row in range(2):
        real = mask[row].bool()
        alone = logits(model, ids[row][real][None])[0]
        torch.testing.assert_close(together[row][real], alone, rtol=1e-4, atol=2e-5)


def test_right_padding_on_several_axes_is_harmless_and_left_padding_raises() -> None:
    model, ids = bent("llama", lattice=[3, 4]), tokens()
    together = logits(model, ids, attention_mask=RIGHT)
    torch.testing.assert_close(together[0, :9], logits(model, ids[:1, :9])[0], rtol=1e-4, atol=2e-5)
    with pytest.raises(ValueError, match="padding on the left"):
        model(ids, attention_mask=LEFT)
    with pytest.raises(ValueError, match="packed sequences"):
        model(ids, position_ids=PACKED, use_cache=False)


@pytest.mark.parametrize("layers", ["all", [0, 2]])
def test_packed_sequences_are_as_alone(layers: Any) -> None:
    model, ids = bent("llama", layers=layers), tokens(1)
    packed = logits(model, ids, position_ids=PACKED, use_cache=False)
    for part in (slice(0, 5), slice(5, 12)):
        torch.testing.assert_close(packed[:, part], logits(model, ids[:, part]), rtol=1e-4, atol=2e-5)


# ---- caches


def in_chunks(model: Any, ids: Tensor, cache: Any, *sizes: int, mask: Tensor | None = None) -> Tensor:
    parts, seen = [], 0
    for size in sizes:
        inputs = {} if mask is None else {"attention_mask": mask[:, : seen + size]}
        if mask is not None:
            inputs["position_ids"] = (mask[:, : seen + size].cumsum(1) - 1).clamp_min(0)[:, seen:]
        parts.append(logits(model, ids[:, seen : seen + size], past_key_values=cache, **inputs))
        seen += size
    return torch.cat(parts, 1)


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {}),
        ("llama", {"layers": [1]}),
        ("llama", {"layers": [1], "host": {"attn_implementation": "eager"}}),
        ("llama", {"lattice": [3, 4]}),
        ("llama", {"lattice": [3, 4], "layers": [1]}),
        ("gpt2", {}),
        ("mistral", {"lattice": 4}),  # less than the window, so that a shift of positions shows
        ("mistral", {"lattice": 4, "layers": [1]}),
        ("gemma3", {"lattice": 4}),
        ("gemma3", {"layers": [1], "lattice": [3, 4]}),
    ],
)
def test_a_cache_gives_what_the_whole_gives(name: str, options: dict[str, Any], static: bool) -> None:
    model, ids = bent(name, **options), tokens(2, 14)
    whole = logits(model, ids)
    for sizes in ((6, 1, 1, 3, 1, 2), (14,), (3, 11), (1,) * 14):
        cache = (
            StaticCache(config=model.config, max_cache_len=20)
            if static
            else DynamicCache(config=model.config)
        )
        steps = in_chunks(model, ids, cache, *sizes)
        torch.testing.assert_close(steps, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("layers", ["all", [1]])
def test_a_cache_of_padded_sequences(static: bool, layers: Any) -> None:
    model, ids = bent("llama", layers=layers), tokens()
    cache = (
        StaticCache(config=model.config, max_cache_len=20) if static else DynamicCache(config=model.config)
    )
    steps = in_chunks(model, ids, cache, 5, 1, 4, 1, 1, mask=LEFT)
    for row in range(2):
        real = LEFT[row].bool()
        torch.testing.assert_close(
            steps[row][real], logits(model, ids[row][real][None])[0], rtol=1e-4, atol=2e-5
        )


GREEDY = {
    "max_new_tokens": 8,
    "min_new_tokens": 8,
    "do_sample": False,
    "pad_token_id": 0,
    "eos_token_id": None,
}


@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"])
@pytest.mark.parametrize(
    ("name", "layers"), [("llama", "all"), ("llama", [1]), ("mistral", "all"), ("gemma3", [0, 1])]
)
def test_generation_is_greedy_on_the_whole(name: str, layers: Any, cache: dict[str, str]) -> None:
    model, ids = bent(name, layers=layers), tokens()
    found = model.generate(ids, attention_mask=LEFT, **GREEDY, **cache)
    for row in range(2):
        text = ids[row][LEFT[row].bool()][None]
        for _ in range(8):
            text = torch.cat([text, logits(model, text)[:, -1:].argmax(-1)], 1)
        assert found[row, 12:].tolist() == text[0, -8:].tolist()


def test_generation_with_an_assistant() -> None:
    model, assistant, ids = bent("llama"), host("llama"), tokens(1)
    alone = model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY)
    helped = model.generate(ids, attention_mask=torch.ones_like(ids), assistant_model=assistant, **GREEDY)
    assert torch.equal(alone, helped)


# ---- compiling, gradients


@pytest.mark.parametrize("layers", ["all", [1]])
def test_it_compiles_whole(layers: Any) -> None:
    model, ids = bent("llama", layers=layers, host={"num_hidden_layers": 2}), tokens()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for inputs in ({}, {"attention_mask": LEFT}):
        torch.testing.assert_close(
            logits(compiled, ids, use_cache=False, **inputs), logits(model, ids, use_cache=False, **inputs)
        )


def test_a_step_of_decoding_compiles_once() -> None:
    """The length of a static cache is on the device: nothing is read from it."""
    model, ids = bent("llama", host={"num_hidden_layers": 2}), tokens()
    whole = logits(model, ids)
    cache = StaticCache(config=model.config, max_cache_len=20)
    logits(model, ids[:, :6], past_key_values=cache)
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for step in range(6, 12):
        out = logits(compiled, ids[:, step : step + 1], past_key_values=cache)
        torch.testing.assert_close(out, whole[:, step : step + 1], rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.parametrize("parameterization", ["linear", "softplus"])
def test_the_gradient_reaches_the_slopes(parameterization: str) -> None:
    model, ids = bent("gpt2", parameterization=parameterization).double(), tokens()
    parameters = toroidal_parameters(model)
    assert [tuple(each.shape) for each in parameters] == [(4,)] * 3

    def loss() -> Tensor:
        return cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    gradients = torch.autograd.grad(loss(), parameters)
    for layer, head in ((0, 0), (2, 3)):
        losses = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameters[layer][head] += step
                losses.append(float(loss()))
                parameters[layer][head] -= step
        difference = (losses[0] - losses[1]) / 2e-5
        assert float(gradients[layer][head]) == pytest.approx(difference, rel=1e-5, abs=1e-8)
        assert abs(difference) > 1e-4


def test_the_gradient_starts_at_slopes_of_0() -> None:
    model, ids = bent("llama", slopes=0.0), tokens()
    # Of the newer name where there is one: warnings are errors.
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    model.train()
    model(ids, labels=ids, use_cache=False).loss.backward()
    assert all(float(each.grad.abs().min()) > 0 for each in toroidal_parameters(model))


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_training_moves_only_the_slopes(name: str) -> None:
    changes = {"attention_probs_dropout_prob": 0.0} if name == "bert" else {}
    model, ids = bent(name, host=changes), tokens()
    model.requires_grad_(False)
    for slopes in toroidal_parameters(model):
        slopes.requires_grad_(True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    moved = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert len(moved) == 3 and all(key.endswith(".toroidal_bias.raw_slopes") for key in moved)


# ---- what a host can ask for, and this attention cannot do


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_weights_are_refused_before_anything_is_done(name: str) -> None:
    model = bent(name)
    with pytest.raises(ValueError, match=r"never in memory \(output_attentions\)"):
        model(
            torch.full((1, 1), 10**6), output_attentions=True
        )  # no such token: the embedding is not reached
    model.set_attn_implementation("eager")
    assert model(tokens(), output_attentions=True).attentions[0].shape == (2, 4, 12, 12)


def test_dropout_in_training_is_refused() -> None:
    model = bent("gpt2").train()
    with pytest.raises(ValueError, match="got dropout 0.1 in training.*attn_pdrop=0"):
        model(tokens())
    bent("gpt2", host={"attn_pdrop": 0.0}).train()(tokens())
