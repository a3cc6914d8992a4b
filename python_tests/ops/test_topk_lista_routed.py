"""Hard routing: each row by its own expert. Legend: B rows, E experts, M atoms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from python_tests.ops.topk_lista_cases import BACKWARDS, FORMS, Case, leaves
from stratcore import ops

# torch 2.15's opcheck reads .grad of the copies that it makes of our inputs
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

CASE = Case(rows=200, k=(2, 4, 11, 3))


def route(case: Case, kind: str, device: str = "cpu") -> Tensor:
    """Experts of the rows: at random, all the same one, or without one of the experts."""
    random = torch.randint(len(case.k), (case.rows,), generator=torch.Generator().manual_seed(2))
    if kind == "one":
        random = torch.full_like(random, 2)
    elif kind == "gap":
        random = torch.where(random == 1, 3, random)
    return random.to(device)


def run(case: Case, inputs: list[Tensor], expert: Tensor, backward: str = "straight_through") -> Tensor:
    return ops.topk_lista_routed(
        inputs[0][0], expert, *inputs[1:], case.k, num_steps=case.num_steps, form=case.form, backward=backward
    )


def one_by_one(
    case: Case, inputs: list[Tensor], expert: Tensor, backward: str = "straight_through"
) -> Tensor:
    """All experts on all rows, then each row's own."""
    codes_EBM = case.run(inputs, backward)
    return codes_EBM[expert, torch.arange(case.rows, device=expert.device)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize(
    "kind, per_step", [("random", False), ("random", True), ("one", False), ("gap", True)]
)
def test_agrees_with_each_expert_on_its_rows(device, form, backward, kind, per_step):
    case = replace(CASE, form=form, per_step=per_step)
    expert = route(case, kind, device)
    weights = torch.linspace(-1, 1, case.rows * case.atoms, device=device).double().reshape(case.rows, -1)
    results = []
    for function in (run, one_by_one):
        inputs = leaves(case.inputs(device=device))
        codes = function(case, inputs, expert, backward)
        results.append([codes, *torch.autograd.grad((codes * weights).sum(), inputs)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
    if kind == "gap":
        assert all(torch.equal(grad[:, 1], torch.zeros_like(grad[:, 1])) for grad in results[0][2:])


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_both_orders(device, form):
    case = Case(form, rows=5, dim=3, atoms=5, k=(2, 3), num_steps=2)
    expert = torch.tensor([1, 0, 1, 1, 0], device=device)
    inputs = leaves(case.inputs(device=device))

    def codes(*t: Tensor) -> Tensor:
        return run(case, list(t), expert, "masked")

    assert torch.autograd.gradcheck(codes, inputs)
    assert torch.autograd.gradgradcheck(codes, inputs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backward", BACKWARDS)
def test_gradients_with_a_graph_are_those_without(device, form, backward):
    case = replace(CASE, form=form)
    expert = route(case, "random", device)
    inputs = leaves(case.inputs(device=device))
    loss = run(case, inputs, expert, backward).square().sum()
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    again = torch.autograd.grad(loss, inputs, create_graph=True)
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_opcheck(device, form, dtype):
    case = Case(form, rows=4, input_per_expert=True)
    inputs = [t.requires_grad_() for t in case.inputs(dtype, device)]
    groups = torch.tensor([2, 0, 2], dtype=torch.int32, device=device)
    op, reverse = torch.ops.stratcore.topk_lista, torch.ops.stratcore.topk_lista_backward
    for dense, support in ((True, True), (False, False), (True, False)):
        torch.library.opcheck(op, (*inputs, list(case.k), form, 3, dense, support, "auto", groups))
    detached = [t.detach() for t in inputs]
    codes, *saved = op(*detached, list(case.k), form, 3, True, True, "auto", groups)
    arguments = (*detached, *saved, list(case.k), form, True, False, True, True, "auto", groups)
    torch.library.opcheck(reverse, (codes, None, *arguments))


def test_compile_fullgraph_with_dynamic_batch(device):
    torch._dynamo.reset()

    def loss(x: Tensor, encoder: Tensor, recurrent: Tensor, theta: Tensor, expert: Tensor) -> Tensor:
        return ops.topk_lista_routed(x, expert, encoder, recurrent, theta, CASE.k, num_steps=3).square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (7, 33, 2100):
        case = replace(CASE, rows=rows)
        inputs = case.inputs(device=device)
        results = []
        for function in (loss, compiled):
            own = leaves([inputs[0][0], *inputs[1:]])
            value = function(*own, route(case, "random", device))
            results.append([value.detach(), *torch.autograd.grad(value, own)])
        for eager, traced in zip(*results, strict=True):
            torch.testing.assert_close(traced, eager, rtol=1e-11, atol=1e-11)


def test_torch_func_grad(device):
    expert = route(CASE, "random", device)
    inputs = CASE.inputs(device=device)
    eager = leaves(inputs)
    run(CASE, eager, expert).square().sum().backward()
    grads = torch.func.grad(lambda *t: run(CASE, list(t), expert).square().sum(), argnums=(0, 1, 2, 3))(
        *inputs
    )
    for grad, leaf in zip(grads, eager, strict=True):
        torch.testing.assert_close(grad, leaf.grad, rtol=1e-11, atol=1e-11)


@pytest.mark.filterwarnings("ignore:torch.searchsorted")  # torch's batching of it makes copies
@pytest.mark.parametrize("batched", [(0, 0, None), (0, None, 1), (None, None, 0)])
def test_vmap(device, batched):
    """Over rows with a route each, and over experts of one route."""
    x, encoder, recurrent, theta = CASE.inputs(device=device)
    stacked = [
        t if d is None else torch.stack([t, t.flip(0), t.flip(-1)], d)
        for t, d in zip((x[0], route(CASE, "random", device), encoder[0]), batched, strict=True)
    ]

    def single(x: Tensor, expert: Tensor, encoder: Tensor) -> Tensor:
        return run(CASE, [x[None], encoder[None], recurrent, theta], expert)

    result = torch.func.vmap(single, in_dims=batched)(*stacked)
    for i in range(3):
        own = [t if d is None else t.select(d, i) for t, d in zip(stacked, batched, strict=True)]
        torch.testing.assert_close(result[i], single(*own), rtol=1e-12, atol=1e-13)


def test_shapes_and_empty_batches(device):
    inputs = CASE.inputs(torch.float32, device)
    expert = route(CASE, "random", device)
    flat = run(CASE, inputs, expert)
    folded = ops.topk_lista_routed(
        inputs[0][0].reshape(10, 20, -1), expert.reshape(10, 20).int(), *inputs[1:], CASE.k, num_steps=3
    )
    assert torch.equal(folded.reshape(flat.shape), flat)
    none = leaves([inputs[0][0][:0], *inputs[1:]])
    codes = ops.topk_lista_routed(none[0], expert[:0], *none[1:], CASE.k, num_steps=3)
    assert codes.shape == (0, CASE.atoms)
    codes.sum().backward()
    assert all(torch.equal(t.grad, torch.zeros_like(t)) for t in none)


def test_nan_stays_in_its_row(device):
    inputs = CASE.inputs(torch.float32, device)
    expert = route(CASE, "random", device)
    clean = run(CASE, inputs, expert)
    inputs[0][0, 17] = torch.nan
    codes = run(CASE, inputs, expert)
    others = torch.arange(CASE.rows, device=device) != 17
    assert torch.equal(codes[others], clean[others])
    assert codes[17].isnan().any()


def test_two_runs_give_the_same_bits(device):
    case = Case(rows=3000, dim=64, atoms=130, k=(3, 20, 64))
    runs = []
    for _ in range(2):
        inputs = leaves(case.inputs(torch.float32, device))
        run(case, inputs, route(case, "random", device)).square().sum().backward()
        runs.append([t.grad for t in inputs])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_flop_formula(device):
    with FlopCounterMode(display=False) as counter:
        run(CASE, CASE.inputs(torch.float32, device), route(CASE, "random", device))
    groups = (200 + 4 * 63) // 64
    assert counter.get_total_flops() == 2 * groups * 64 * 11 * (6 + 3 * 11)


def test_rejects():
    inputs = CASE.inputs(torch.float32)
    expert = route(CASE, "random")
    with pytest.raises(TypeError, match="expected expert of dtype int64 or int32, got torch.float32"):
        run(CASE, inputs, expert.float())
    with pytest.raises(
        ValueError, match=r"expected expert of shape \[200\], one for each row of x, got \[199\]"
    ):
        run(CASE, inputs, expert[1:])
    with pytest.raises(ValueError, match=r"expected experts in \[0, 4\), got -1 to 3"):
        run(CASE, inputs, torch.where(expert == 0, -1, expert))
    with pytest.raises(RuntimeError, match=r"expected group_expert of shape \[3\], got \[2\]"):
        torch.ops.stratcore.topk_lista(
            inputs[0].expand(3, -1, -1), *inputs[1:], list(CASE.k), "classic", 3, True, False, "auto",
            torch.zeros(2, dtype=torch.int32),
        )  # fmt: skip


@pytest.mark.cuda
def test_replays_in_a_cuda_graph_with_another_route():
    case = Case(rows=500, dim=16, atoms=300, k=(4, 8, 16, 32))
    inputs = case.inputs(torch.float32, "cuda")
    expert = route(case, "random", "cuda")
    run(case, inputs, expert)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        codes = run(case, inputs, expert)
    expert.copy_(route(case, "gap"))
    graph.replay()
    assert torch.equal(codes, run(case, inputs, expert))
    torch.testing.assert_close(codes, one_by_one(case, inputs, expert), rtol=1e-4, atol=1e-5)
