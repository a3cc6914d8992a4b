"""Legend: B sequences, N tokens, D channels, P paths, T tokens, K choices, R rows, E experts."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, relu

from python_tests.layers.stratified_cases import moved
from stratcore.layers import RouterOptions, TokenRouting, TokenRoutingOptions
from stratcore.layers._expert_assignment import assign, combine, dispatch, within_capacity
from stratcore.layers._expert_dispatch import ExpertMLPs, _padded_product, grouped_product
from stratcore.layers._expert_epilogues import add_bias

pytestmark = pytest.mark.usefixtures("single_thread")


def routing_block(mode="top_k", top_k=2, paths=4, dtype=torch.float32, **options):
    router = RouterOptions(num_strata=paths, mode=mode, top_k=top_k)
    block = TokenRouting(TokenRoutingOptions(dim=8, hidden_dim=16, router=router, **options))
    return moved(block).to(dtype)


def naive(block, x, weights):
    """The formula, one path after the other."""
    act = {"relu": relu, "gelu": gelu}[block.options.activation]
    normed = layer_norm(x, x.shape[-1:], block.norm.weight, block.norm.bias)
    mixed = torch.zeros_like(x)
    for p in range(weights.shape[-1]):
        hidden = act(normed @ block.paths.in_weight[p].mT + block.paths.in_bias[p])
        path = hidden @ block.paths.out_weight[p] + block.paths.out_bias[p]
        mixed = mixed + weights[..., p, None] * path
    return x + block.options.scale * mixed @ block.combiner.weight.mT


# ---- values


@pytest.mark.parametrize(
    ("mode", "top_k", "how"),
    [
        ("softmax", 1, "dense"),
        *[("top_k", k, how) for k in (1, 2, 4) for how in ("dense", "sparse")],
        ("straight_through", 1, "dense"),
        ("straight_through", 1, "sparse"),
    ],
)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_formula(mode, top_k, how, activation):
    block = routing_block(mode, top_k, dtype=torch.float64, dispatch=how, activation=activation, scale=0.7)
    x = torch.randn(3, 5, 8).double()
    output = block(x)
    weights = output.routing["paths"].weights
    assert ((weights > 0).sum(-1) == (4 if mode == "softmax" else top_k)).all()
    torch.testing.assert_close(output.hidden, naive(block, x, weights), rtol=0, atol=1e-12)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_sparse_equals_dense_forward_and_backward(top_k):
    sparse = routing_block(top_k=top_k, dispatch="sparse")
    dense = TokenRouting(TokenRoutingOptions(**vars(sparse.options) | {"dispatch": "dense"}))
    dense.load_state_dict(sparse.state_dict())
    mask = torch.rand(4, 9) > 0.3
    x = torch.randn(4, 9, 8, requires_grad=True)
    gradients = []
    for block in (sparse, dense):
        hidden = block(x, mask).hidden
        gradients.append([hidden, *torch.autograd.grad(hidden.sin().mean(), [x, *block.parameters()])])
    for found, wanted in zip(*gradients, strict=True):
        assert (found - wanted).abs().max() <= 1e-6
    assert (gradients[0][0] - x).abs().max() > 0.1


def test_sparse_with_all_paths_equals_softmax():
    block = routing_block(top_k=4)
    soft = routing_block("softmax", 1)
    soft.load_state_dict(block.state_dict())
    x = torch.randn(4, 9, 8)
    assert (block(x).hidden - soft(x).hidden).abs().max() <= 1e-6


def test_router_may_read_the_input_itself():
    block = routing_block(route_on="input")
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(block(x).routing["paths"].logits, block.router(x).logits)
    assert not torch.equal(routing_block()(x).routing["paths"].logits, block.router(x).logits)


# ---- capacity


def overflowing(top_k, factor, mask=None, tokens=40):
    block = routing_block(top_k=top_k, dtype=torch.float64, capacity_factor=factor)
    x = torch.randn(2, tokens // 2, 8).double()
    return block, x, block(x, mask)


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0])
def test_capacity_takes_first_choices_and_early_tokens(top_k, factor):
    mask = torch.rand(2, 20) > 0.25
    block, x, output = overflowing(top_k, factor, mask)
    routing = output.routing["paths"]
    real = int(mask.sum())
    capacity, taken = math.ceil(factor * top_k * real / 4), [0] * 4
    weights, dropped = routing.weights.clone().flatten(0, 1), 0
    for choice in range(top_k):
        for token in mask.flatten().nonzero().flatten().tolist():
            path = int(routing.selected.flatten(0, 1)[token, choice])
            taken[path] += 1
            if taken[path] > capacity:
                weights[token, path] = 0
                dropped += 1
    assert factor == 1.0 or dropped > 0
    assert output.statistics["overflow"].item() == pytest.approx(dropped / (top_k * real))
    wanted = torch.where(mask[..., None], naive(block, x, weights.view(2, 20, 4)), x)
    torch.testing.assert_close(output.hidden, wanted, rtol=0, atol=1e-12)


def test_what_overflows_is_left_to_the_residual_bitwise():
    block, x, output = overflowing(1, 0.1)
    assert block.options.capacity_factor == 0.1
    untouched = (output.hidden == x).all(-1)
    assert untouched.sum() >= 36  # one token a path
    assert output.statistics["overflow"].item() == pytest.approx(untouched.sum().item() / 40)


def test_a_large_capacity_changes_nothing():
    block, x, output = overflowing(2, 100.0)
    free = TokenRouting(TokenRoutingOptions(**vars(block.options) | {"capacity_factor": None})).double()
    free.load_state_dict(block.state_dict())
    assert output.statistics["overflow"].item() == 0
    torch.testing.assert_close(output.hidden, free(x).hidden, rtol=0, atol=1e-14)


# ---- dispatch


def assignment(tokens=13, choices=2, experts=5, capacity_factor=None, mask=None):
    selected = torch.stack([torch.randperm(experts - 1)[:choices] for _ in range(tokens)])
    return selected, assign(selected, experts, mask, capacity_factor)  # the last expert gets nobody


@pytest.mark.parametrize("capacity_factor", [None, 0.6])
@pytest.mark.parametrize("masked", [False, True])
def test_rows_are_sorted_and_come_back(capacity_factor, masked):
    mask = torch.rand(13) > 0.4 if masked else None
    selected, to = assignment(capacity_factor=capacity_factor, mask=mask)
    assert (to.expert_R.diff() >= 0).all() and to.ends_E[-1] == to.ends_E[-2]
    assert torch.equal(to.order_R[to.inverse_R], torch.arange(26))
    kept = to.expert_R < 5
    assert (to.kept_R is None) == (capacity_factor is None and not masked)
    assert torch.equal(selected.mT.flatten()[to.order_R][kept], to.expert_R[kept])
    x = torch.randn(13, 4, dtype=torch.float64)
    rows = dispatch(x, to)
    assert torch.equal(rows[kept], x[to.order_R[kept] % 13]) and (rows[~kept] == 0).all()
    shares = torch.bincount(to.order_R[kept] % 13, minlength=13)
    torch.testing.assert_close(combine(rows, to, 13), shares[:, None] * x)


@pytest.mark.parametrize("choices", [1, 2, 3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("capacity_factor", [0.1, 0.6, 1.0, 5.0])
def test_counting_keeps_what_sorting_keeps(choices, masked, capacity_factor):
    mask = torch.rand(57) > 0.4 if masked else None
    selected, to = assignment(57, choices, 5, capacity_factor, mask)
    wanted = torch.zeros(57 * choices, dtype=torch.bool).scatter(0, to.order_R, to.kept_R)
    found = within_capacity(selected, 5, mask, capacity_factor)
    assert (
        torch.equal(found.mT.flatten(), wanted)
        and wanted.any()
        and (masked or wanted.all() == (capacity_factor > 1))
    )


@pytest.mark.parametrize("experts", [255, 256, 40_000])
def test_any_number_of_experts_is_sorted(experts):
    """Keys of one, two and eight bytes; the experts of the largest numbers and the rows left out are told apart."""
    selected = torch.randint(experts - 3, experts, (30, 1))
    to = assign(selected, experts, torch.arange(30) % 3 > 0, None)
    assert (
        to.expert_R.tolist() == sorted(selected[torch.arange(30) % 3 > 0].flatten().tolist()) + [experts] * 10
    )
    assert to.ends_E[-1] == 20 and to.ends_E[-4] == 0


def test_combine_is_the_transpose_of_dispatch():
    _, to = assignment(choices=3, capacity_factor=0.7)
    x, rows = torch.randn(13, 4).double(), torch.randn(39, 4).double()
    torch.testing.assert_close((dispatch(x, to) * rows).sum(), (x * combine(rows, to, 13)).sum())
    x.requires_grad_(), rows.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dispatch(x, to), x)
    assert torch.autograd.gradcheck(lambda rows: combine(rows, to, 13), rows)
    assert torch.autograd.gradgradcheck(lambda x: dispatch(x, to).square(), x)
    assert torch.autograd.gradgradcheck(lambda rows: combine(rows, to, 13).square(), rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("capacity_factor", [None, 0.6])
def test_grouped_and_padded_products_agree(dtype, capacity_factor):
    _, to = assignment(capacity_factor=capacity_factor)
    x, weight = dispatch(torch.randn(13, 8), to).to(dtype), torch.randn(5, 8, 16, dtype=dtype)
    bias = torch.randn(5, 16, dtype=dtype)
    kept = to.expert_R < 5
    of_row = to.expert_R[kept]
    wanted = torch.einsum("rd,rdh->rh", x[kept].double(), weight[of_row].double())
    limit = 1e-5 if dtype == torch.float32 else 0.06
    assert (_padded_product(x, weight, to)[kept] - wanted).abs().max() < limit
    found = add_bias(grouped_product(x, weight, to), bias, to)
    assert (found[kept] - wanted - bias[of_row]).abs().max() < limit and (found[~kept] == 0).all()


def test_rows_left_out_never_reach_a_gradient(monkeypatch):
    """A grouped product leaves rows behind its last segment uninitialized, forward and backward: poison them."""
    from stratcore.layers import _expert_dispatch as module

    class Poisoned(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, ends):
            ctx.save_for_backward(x, weight, ends)
            with torch.enable_grad():
                product = module.F_grouped_mm(x.detach(), weight.detach(), offs=ends)
            return product.detach().index_fill(0, torch.arange(int(ends[-1]), x.shape[0]), torch.nan)

        @staticmethod
        def backward(ctx, grad):
            x, weight, ends = ctx.saved_tensors
            with torch.enable_grad():
                x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
                product = module.F_grouped_mm(x, weight, offs=ends)
            grad_x, grad_weight = torch.autograd.grad(product, (x, weight), grad)
            left_out = torch.arange(int(ends[-1]), x.shape[0])
            assert (grad[left_out] == 0).all()
            return grad_x.index_fill(0, left_out, torch.nan), grad_weight, None

    monkeypatch.setattr(module, "F_grouped_mm", module.grouped_mm, raising=False)
    monkeypatch.setattr(module, "grouped_mm", lambda x, weight, offs: Poisoned.apply(x, weight, offs))
    block = routing_block(capacity_factor=0.5)
    x, mask = torch.randn(2, 20, 8, requires_grad=True), torch.rand(2, 20) > 0.3
    output = block(x, mask)
    assert output.statistics["overflow"] > 0
    output.hidden.square().sum().backward()
    assert output.hidden.isfinite().all() and x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in block.parameters())


def test_first_weights_are_those_of_linear_layers():
    experts = ExpertMLPs(200, 16, 4)
    assert experts.in_weight.abs().max() <= 0.25 and experts.out_weight.abs().max() <= 0.5
    assert experts.in_weight.std().item() == pytest.approx(0.25 / math.sqrt(3), rel=0.05)
    assert experts.out_weight.std().item() == pytest.approx(0.5 / math.sqrt(3), rel=0.05)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 3, 8, 24])
@pytest.mark.parametrize("start", [0, 1])
def test_cuda_copies_rows_of_any_size_and_place_bitwise(dtype, size, start):
    _, to = assignment(choices=3, capacity_factor=0.7)
    on_gpu = type(to)(**{k: v.cuda() if torch.is_tensor(v) else v for k, v in vars(to).items()})
    x = torch.randint(-8, 8, (13 * size + start,)).to(dtype)  # whole numbers: sums are exact
    rows = dispatch(x.cuda()[start:].view(13, size), on_gpu)
    wanted = dispatch(x[start:].view(13, size), to)
    assert torch.equal(rows.cpu(), wanted)
    assert torch.equal(combine(rows, on_gpu, 13).cpu(), combine(wanted, to, 13))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("capacity_factor", [None, 0.8])
def test_cuda_sparse_equals_dense_and_repeats_bitwise(dtype, capacity_factor):
    block = routing_block(dtype=dtype, capacity_factor=capacity_factor).cuda()
    x = torch.randn(8, 64, 8, device="cuda", dtype=dtype, requires_grad=True)
    mask = torch.rand(8, 64, device="cuda") > 0.2
    runs = []
    for _ in range(2):
        hidden = block(x, mask).hidden
        runs.append([hidden, *torch.autograd.grad(hidden.square().sum(), [x, *block.parameters()])])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))
    cpu = copy.deepcopy(block).cpu().double()
    wanted = cpu(x.detach().cpu().double(), mask.cpu()).hidden
    if dtype != torch.bfloat16:
        assert (runs[0][0].cpu() - wanted).abs().max() < (1e-4 if dtype == torch.float32 else 1e-10)
    assert all(value.isfinite().all() for value in runs[0])


# ---- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dispatch": "loop"}, "dispatch: expected one of dense, sparse, got 'loop'"),
        ({"router": RouterOptions(), "dispatch": "sparse"}, "dispatch: expected 'dense' with mode 'softmax'"),
        ({"capacity_factor": 0.0}, "capacity_factor: expected a positive number or None, got 0.0"),
        ({"capacity_factor": math.inf}, "capacity_factor: expected a positive number or None, got inf"),
        (
            {"capacity_factor": 1.0, "dispatch": "dense"},
            "capacity_factor: expected None with dispatch 'dense'",
        ),
        ({"route_on": "output"}, "route_on: expected one of normalized, input, got 'output'"),
        ({"scale": 0.0}, "scale: expected a positive number, got 0.0"),
        ({"hidden_dim": 0}, "hidden_dim: expected at least 1, got 0"),
        ({"activation": "tanh"}, "activation: expected one of relu, gelu, got 'tanh'"),
    ],
)
def test_rejects_options(options, message):
    router = RouterOptions(mode="top_k", top_k=2)
    with pytest.raises(ValueError, match=message):
        TokenRouting(TokenRoutingOptions(**{"dim": 8, "router": router} | options))
