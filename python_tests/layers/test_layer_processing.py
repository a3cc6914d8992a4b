"""Legend: L layers, B sequences, N tokens, D channels."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import layer_norm

from python_tests.layers.stratified_cases import moved
from stratcore.layers import LayerProcessing, LayerProcessingOptions, RouterOptions

pytestmark = pytest.mark.usefixtures("single_thread")
THREE = RouterOptions(num_strata=3)


def processing(**options):
    options = {"dim": 6, "router": THREE, "hidden_dim": 5} | options
    return moved(LayerProcessing(LayerProcessingOptions(**options))).double()


@pytest.mark.parametrize("inputs", ["all", "last"])
@pytest.mark.parametrize("processor", ["mlp", "norm"])
@pytest.mark.parametrize("selector", ["sequence", "token"])
def test_formula(inputs, processor, selector):
    block = processing(inputs=inputs, processor=processor, selector=selector)
    states = list(torch.randn(3, 2, 4, 6).double())
    normed = [layer_norm(state, (6,)) for state in states]
    read = normed[-1] if selector == "token" else normed[-1].mean(1, keepdim=True).expand(2, 4, 6)
    weights = block.router(read).weights
    mixed, own = torch.zeros(2, 4, 6).double(), block.processors
    for layer in range(3):
        x = normed[layer if inputs == "all" else -1]
        if processor == "mlp":
            hidden = layer_norm(x @ own.in_weight[layer].mT + own.in_bias[layer], (5,))
            hidden = (hidden * own.norm_weight[layer] + own.norm_bias[layer]).relu()
            x = hidden @ own.out_weight[layer] + own.out_bias[layer]
        else:
            x = x * own.weight[layer] + own.bias[layer]
        mixed = mixed + weights[..., layer, None] * x
    output = block(states)
    assert output.routing["layers"].weights.shape == ((2, 4, 3) if selector == "token" else (2, 3))
    torch.testing.assert_close(output.hidden, states[-1] + mixed @ block.combiner.weight.mT)


def test_last_takes_one_tensor_or_all_states():
    block, states = processing(inputs="last"), torch.randn(4, 2, 5, 6).double()
    assert torch.equal(block(states[-1]).hidden, block(list(states)).hidden)


def test_the_selector_does_not_see_pads():
    block, x = processing(inputs="last"), torch.randn(2, 5, 6).double()
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    wanted = block(x[1:, :2]).routing["layers"].weights
    torch.testing.assert_close(block(x, mask).routing["layers"].weights[1:], wanted)
    assert not torch.allclose(block(x).routing["layers"].weights[1:], wanted)


def test_a_mixture_over_depth_can_find_the_layer_that_knows():
    """The answer stands in a middle layer only: the selector must leave the others."""
    torch.manual_seed(0)
    block = LayerProcessing(LayerProcessingOptions(dim=6, router=THREE, processor="norm"))
    states, mixing = torch.randn(3, 32, 4, 6), torch.randn(6, 6)
    target = states[-1] + layer_norm(states[1], (6,)) @ mixing
    optimizer = torch.optim.Adam(block.parameters(), lr=0.03)
    for _ in range(250):
        optimizer.zero_grad()
        loss = (block(list(states)).hidden - target).square().mean()
        loss.backward()
        optimizer.step()
    assert block(list(states)).routing["layers"].weights[:, 1].min() > 0.9
    assert loss < 0.05 * (states[-1] - target).square().mean()


def test_parameter_count_of_the_source_documents():
    """Six processors and their selector; the combiner is ours."""
    options = LayerProcessingOptions(dim=768, inputs="last")
    with torch.device("meta"):
        block = LayerProcessing(options)
    assert sum(p.numel() for p in block.parameters()) == 7_393_926 + 768**2


def test_rejects_hidden_states_that_do_not_fit():
    block, x = processing(), torch.randn(2, 4, 6).double()
    with pytest.raises(ValueError, match="hidden_states: expected 3 of them, got 2"):
        block([x, x])
    with pytest.raises(ValueError, match=r"hidden_states: expected shape \[2, 4, 6\], got .*\[2, 3, 6\]"):
        block([x, x[:, :3], x])
    with pytest.raises(ValueError, match="hidden_states: expected at least 1 of them, got 0"):
        processing(inputs="last")([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": "first"}, "inputs: expected one of all, last, got 'first'"),
        ({"processor": "cnn"}, "processor: expected one of mlp, norm, got 'cnn'"),
        ({"selector": "batch"}, "selector: expected one of sequence, token, got 'batch'"),
        ({"hidden_dim": 0}, "hidden_dim: expected at least 1 or None, got 0"),
    ],
)
def test_rejects_options(options, message):
    with pytest.raises(ValueError, match=message):
        processing(**options)
