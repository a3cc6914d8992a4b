"""The eight tests of an op. Legend: E experts, B rows, D input size, M atoms, T steps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from python_tests.accuracy import assert_as_accurate
from stratcore import ops
from stratcore.ops import reference

op = torch.ops.stratcore.topk_lista
# torch 2.15's opcheck reads .grad of the copies that it makes of our inputs
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
FORMS = ["classic", "coupled"]
BACKWARDS = ["straight_through", "masked"]


@dataclass(frozen=True)
class Case:
    form: str = "classic"
    rows: int = 5
    dim: int = 6
    atoms: int = 11
    k: tuple[int, ...] = (2, 4, 11)
    num_steps: int = 3
    per_step: bool = False
    input_per_expert: bool = False

    def inputs(self, dtype: torch.dtype = torch.float64, device: str = "cpu") -> list[Tensor]:
        generator = torch.Generator().manual_seed(7)
        experts, steps = len(self.k), self.num_steps + 1 if self.per_step else 1
        square = self.atoms if self.form == "classic" else self.dim

        def normal(*shape: int, scale: float) -> Tensor:
            values = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
            return values.to(dtype).to(device)

        return [
            normal(experts if self.input_per_expert else 1, self.rows, self.dim, scale=1.0),
            normal(steps, experts, self.atoms, self.dim, scale=self.dim**-0.5),
            normal(
                self.num_steps if self.per_step else 1, experts, square, self.atoms, scale=self.atoms**-0.5
            ),
            normal(steps, experts, self.atoms, scale=0.1).abs(),
        ]

    def run(self, inputs: list[Tensor], backward: str = "straight_through") -> Tensor:
        x = inputs[0] if self.input_per_expert else inputs[0][0]
        return ops.topk_lista(
            x, *inputs[1:], self.k, num_steps=self.num_steps, form=self.form, backward=backward,
            input_per_expert=self.input_per_expert,
        )  # fmt: skip

    def define(self, inputs: list[Tensor], backward: str = "straight_through") -> list[Tensor]:
        return reference.topk_lista(*inputs, self.k, self.num_steps, self.form, backward)


def leaves(inputs: list[Tensor]) -> list[Tensor]:
    return [t.clone().requires_grad_() for t in inputs]


# 1. known values


def test_known_values_orthogonal_dictionary(device):
    """D orthonormal, W = D^T, S = I - D^T D = 0: every step gives the k largest thresholded projections."""
    dictionary = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q.to(device)
    x = dictionary @ torch.tensor([3.0, -2.0, 1.0, 0.5, 0.0, 0.0], dtype=torch.float64, device=device)
    theta = torch.full((6,), 0.25, dtype=torch.float64, device=device)
    wanted = torch.tensor([2.75, -1.75, 0, 0, 0, 0], dtype=torch.float64, device=device)
    for form, recurrent in (("classic", torch.zeros_like(dictionary)), ("coupled", dictionary)):
        code = ops.topk_lista(x, dictionary.T.contiguous(), recurrent, theta, 2, num_steps=0, form=form)
        torch.testing.assert_close(code, wanted)
    code = ops.topk_lista(x, dictionary.T.contiguous(), torch.zeros_like(dictionary), theta, 2, num_steps=4)
    torch.testing.assert_close(code, wanted)


def test_ties_go_to_the_lower_index(device):
    x = torch.tensor([[1.0, -2.0, 2.0, 0.5, 2.0]], device=device)
    assert ops.topk_ste(x, 2).tolist() == [[0.0, -2.0, 2.0, 0.0, 0.0]]
    code = ops.topk_lista_sparse(x, torch.eye(5, device=device), torch.zeros(5, 5, device=device),
                                 torch.zeros(5, device=device), 3, num_steps=0)  # fmt: skip
    assert code.indices.tolist() == [[1, 2, 4]] and code.values.tolist() == [[-2.0, 2.0, 2.0]]


def test_zeros_fill_up_from_the_lowest_index(device):
    x = torch.tensor([[0.0, 0.0, 3.0, 0.0, -0.0]], device=device)
    _, values, indices = torch.ops.stratcore.topk_ste(x, 3, False)
    assert indices.tolist() == [[0, 1, 2]] and values.tolist() == [[0.0, 0.0, 3.0]]


def test_exactly_k_nonzeros_per_expert(device):
    case = Case(rows=40)
    codes = case.run(case.inputs(device=device))
    assert codes.count_nonzero(-1).amax(-1).tolist() == [2, 4, 11]


# 2. matches the reference

SHAPES = [(0, 6, 11), (1, 1, 1), (3, 5, 7), (33, 64, 32), (2, 8, 257), (2, 31, 1000)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows, dim, atoms", SHAPES)
def test_matches_reference(device, dtype, form, rows, dim, atoms):
    case = Case(form, rows, dim, atoms, k=(1, max(1, atoms // 3), atoms), num_steps=2)
    inputs = case.inputs(dtype, device)
    # The selection jumps where two magnitudes cross: compare codes where float64 and eager agree on it.
    exact = case.define([t.double() for t in inputs])[-1]
    eager = case.define(inputs)[-1]
    result = case.run(inputs)
    agreed = ((exact != 0) == (eager != 0)).all(-1) & ((exact != 0) == (result != 0)).all(-1)
    if rows:
        assert agreed.float().mean() > (0.99 if dtype in (torch.float64, torch.float32) else 0.2)
    assert_as_accurate(result[agreed], eager[agreed], exact[agreed])


@pytest.mark.parametrize("per_step, input_per_expert", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("form", FORMS)
def test_matches_reference_in_every_layout(device, form, per_step, input_per_expert):
    case = Case(form, per_step=per_step, input_per_expert=input_per_expert)
    inputs = case.inputs(device=device)
    torch.testing.assert_close(case.run(inputs), case.define(inputs)[-1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("form", FORMS)
def test_any_strides_and_batch_dimensions(device, form):
    case = Case(form, rows=12)
    x, encoder, recurrent, theta = case.inputs(device=device)
    plain = case.run([x, encoder, recurrent, theta])
    wide = torch.zeros(3, 4, 2 * case.dim + 1, dtype=x.dtype, device=device)
    wide[..., 1::2] = x[0].view(3, 4, case.dim)
    strided = ops.topk_lista(
        wide[..., 1::2], encoder[0].mT.contiguous().mT, recurrent[0], theta[0], case.k,
        num_steps=case.num_steps, form=form,
    )  # fmt: skip
    assert strided.shape == (3, 3, 4, case.atoms)
    torch.testing.assert_close(strided.flatten(1, 2), plain, rtol=0, atol=0)
    expanded = ops.topk_lista(
        x[0, :1].expand(12, -1), encoder, recurrent, theta, case.k, num_steps=3, form=form
    )
    torch.testing.assert_close(expanded, plain[:, :1].expand(-1, 12, -1), rtol=1e-12, atol=1e-13)


def test_sparse_output_holds_the_dense_code(device):
    case = Case()
    inputs = case.inputs(device=device)
    dense = case.define(inputs)
    every = ops.topk_lista_sparse(inputs[0][0], *inputs[1:], case.k, num_steps=3, every_step=True)
    for step, codes in enumerate(dense):
        rebuilt = torch.zeros_like(codes).scatter(-1, every.indices[step].long(), every.values[step])
        torch.testing.assert_close(rebuilt, codes, rtol=1e-12, atol=1e-13)
    assert every.indices.shape == (4, 3, 5, 11)
    assert all(len(set(row)) == 11 for row in every.indices.flatten(0, 2).tolist())
    last = ops.topk_lista_sparse(inputs[0][0], *inputs[1:], case.k, num_steps=3)
    assert torch.equal(last.indices, every.indices[-1]) and torch.equal(last.values, every.values[-1])


def test_nan_and_infinity_stay_in_their_row(device):
    case = Case(rows=4)
    inputs = case.inputs(device=device)
    clean = case.run(inputs)
    inputs[0][0, 1, 0], inputs[0][0, 2, 3] = float("nan"), float("inf")
    codes = case.run(inputs)
    assert torch.equal(codes[:, [0, 3]], clean[:, [0, 3]])
    assert codes[:, 1].isnan().any()


# 3. gradcheck


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_masked(device, form, per_step):
    """The masked backward is the exact gradient while the selection stays."""
    case = Case(form, rows=3, dim=4, atoms=6, k=(2, 3), num_steps=2, per_step=per_step)
    inputs = leaves(case.inputs(device=device))
    assert torch.autograd.gradcheck(lambda *t: case.run(list(t), "masked"), inputs, nondet_tol=0.0)
    assert torch.autograd.gradgradcheck(lambda *t: case.run(list(t), "masked"), inputs, nondet_tol=0.0)


def test_gradcheck_sparse_values(device):
    case = Case(rows=3, dim=4, atoms=6, k=(2, 3), num_steps=2)
    inputs = leaves(case.inputs(device=device))

    def values(x, *parameters):
        return ops.topk_lista_sparse(
            x[0], *parameters, case.k, num_steps=2, backward="masked", every_step=True
        ).values

    assert torch.autograd.gradcheck(values, inputs, nondet_tol=0.0)
    assert torch.autograd.gradgradcheck(values, inputs, nondet_tol=0.0)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_gradcheck_topk_masked(device, k):
    x = torch.randn(4, 6, dtype=torch.float64, device=device, requires_grad=True)
    check = {"check_forward_ad": True, "check_batched_grad": True, "nondet_tol": 0.0}
    assert torch.autograd.gradcheck(lambda t: ops.topk_ste(t, k, backward="masked"), x, **check)
    assert torch.autograd.gradgradcheck(lambda t: ops.topk_ste(t, k, backward="masked"), x)


# 4. backward matches the reference


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("per_step, input_per_expert", [(False, False), (True, True)])
@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("form", FORMS)
def test_backward_matches_reference(device, form, backward, per_step, input_per_expert, dtype):
    case = Case(form, per_step=per_step, input_per_expert=input_per_expert)
    inputs = case.inputs(device=device)
    weights = torch.randn(3, 5, 11, dtype=torch.float64, device=device)
    exact = leaves(inputs)
    (case.define(exact, backward)[-1] * weights).sum().backward()
    ours = leaves([t.to(dtype) for t in inputs])
    (case.run(ours, backward) * weights.to(dtype)).sum().backward()
    tolerance = 1e-11 if dtype == torch.float64 else 2e-5
    for result, wanted in zip(ours, exact, strict=True):
        torch.testing.assert_close(result.grad.double(), wanted.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("form", FORMS)
def test_second_order_matches_reference(device, form, backward):
    case = Case(form, per_step=True)
    weights = torch.randn(3, 5, 11, dtype=torch.float64, device=device)
    seconds = []
    for run in (lambda t: case.run(t, backward), lambda t: case.define(t, backward)[-1]):
        inputs = leaves(case.inputs(device=device))
        grads = torch.autograd.grad((run(inputs) * weights).square().sum(), inputs, create_graph=True)
        sum(g.square().sum() for g in grads).backward()
        seconds.append([t.grad for t in inputs])
    for result, wanted in zip(*seconds, strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-10, atol=1e-10)


def test_only_wanted_gradients_are_computed(device):
    case = Case()
    inputs = case.inputs(device=device)
    inputs[2].requires_grad_()
    code = case.run(inputs)
    (grad,) = torch.autograd.grad(code.sum(), [inputs[2]])
    assert grad.shape == inputs[2].shape and all(t.grad is None for t in inputs)


@pytest.mark.parametrize("backward", BACKWARDS)
def test_topk_backward(device, backward):
    x = torch.tensor([[1.0, -3.0, 2.0]], device=device, requires_grad=True)
    ops.topk_ste(x, 1, backward=backward).backward(torch.tensor([[5.0, 6.0, 7.0]], device=device))
    assert x.grad.tolist() == [[5.0, 6.0, 7.0] if backward == "straight_through" else [0.0, 6.0, 0.0]]


# 5. opcheck


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [0, 5])
def test_opcheck(device, form, rows, requires_grad):
    case = Case(form, rows=rows)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [t.requires_grad_(requires_grad) for t in case.inputs(dtype, device)]
        for dense, support in ((True, True), (False, False), (True, False)):
            torch.library.opcheck(op, (*inputs, list(case.k), form, 3, dense, support))


def test_opcheck_topk_and_backward(device):
    x = torch.randn(4, 6, device=device)
    for masked in (False, True):
        torch.library.opcheck(torch.ops.stratcore.topk_ste, (x.clone().requires_grad_(), 3, masked))
    case = Case()
    inputs = case.inputs(torch.float32, device)
    codes, values, indices, support = op(*inputs, list(case.k), "classic", 3, True, True)
    arguments = (*inputs, values, indices, support, list(case.k), "classic", True, False, True, True)
    torch.library.opcheck(torch.ops.stratcore.topk_lista_backward, (codes, values, *arguments))
    torch.library.opcheck(torch.ops.stratcore.topk_lista_backward, (None, values, *arguments))


# 6. compile, export, torch.func, autocast, FLOPs


@pytest.mark.parametrize("form", FORMS)
def test_compile_fullgraph_with_dynamic_batch(device, form):
    case = Case(form)
    torch._dynamo.reset()

    def loss(x, encoder, recurrent, theta):
        code = ops.topk_lista(x, encoder, recurrent, theta, case.k, num_steps=3, form=form)
        return (ops.topk_ste(code, 3) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (5, 9, 17):
        inputs = replace(case, rows=rows).inputs(device=device)
        results = []
        for function in (loss, compiled):
            own = leaves([inputs[0][0], *inputs[1:]])
            value = function(*own)
            value.backward()
            results.append([value.detach(), *(t.grad for t in own)])
        for eager, traced in zip(*results, strict=True):
            torch.testing.assert_close(traced, eager, rtol=1e-12, atol=1e-12)


def test_export_with_dynamic_batch(device):
    case = Case()
    x, *parameters = case.inputs(device=device)

    class Encoder(torch.nn.Module):
        def forward(self, x):
            return ops.topk_lista(x, *parameters, case.k, num_steps=3)

    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Encoder(), (x[0],), dynamic_shapes=({0: batch},))
    larger = replace(case, rows=20).inputs(device=device)[0][0]
    torch.testing.assert_close(program.module()(larger), Encoder()(larger))


def test_torch_func(device):
    case = Case(rows=3, num_steps=2)
    inputs = case.inputs(device=device)

    def loss(*t):
        return case.run(list(t)).square().sum()

    eager = leaves(inputs)
    loss(*eager).backward()
    grads = torch.func.grad(loss, argnums=(0, 1, 2, 3))(*inputs)
    for grad, leaf in zip(grads, eager, strict=True):
        torch.testing.assert_close(grad, leaf.grad, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batched", [(0, None, None, None), (None, 1, None, 0), (1, 2, 0, None)])
def test_vmap(device, form, batched):
    case = Case(form)
    inputs = case.inputs(device=device)
    stacked = [
        t if d is None else torch.stack([t, 0.5 * t, -t], d) for t, d in zip(inputs, batched, strict=True)
    ]

    def single(*t):
        return case.run(list(t))

    result = torch.func.vmap(single, in_dims=batched)(*stacked)
    for i in range(3):
        own = [t if d is None else t.select(d, i) for t, d in zip(stacked, batched, strict=True)]
        torch.testing.assert_close(result[i], single(*own), rtol=1e-12, atol=1e-13)
    if batched[0] == 0:
        grads = torch.func.vmap(torch.func.grad(lambda *t: single(*t).square().sum()), in_dims=batched)(
            *stacked
        )
        wanted = torch.func.grad(lambda *t: single(*t).square().sum())(stacked[0][1], *stacked[1:])
        torch.testing.assert_close(grads[1], wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(device, dtype):
    case = Case()
    inputs = case.inputs(torch.float32, device)
    with torch.autocast(device, dtype=dtype):
        code = case.run(inputs)
        low = case.run([t.to(dtype) for t in inputs])
    assert code.dtype == low.dtype == torch.float32
    assert torch.equal(code, case.run(inputs))


def test_flop_formula(device):
    case = Case(rows=5, dim=6, atoms=11)
    for form, products in (
        ("classic", 2 * 5 * 6 * 11 + 3 * 2 * 5 * 11 * 11),
        ("coupled", 7 * 2 * 5 * 6 * 11),
    ):
        inputs = leaves(replace(case, form=form).inputs(torch.float32, device))
        with FlopCounterMode(display=False) as counter:
            code = replace(case, form=form).run(inputs)
        assert counter.get_total_flops() == 3 * products
        with FlopCounterMode(display=False) as counter:
            code.sum().backward()
        assert counter.get_total_flops() >= 2 * 3 * products


# 7. rejects


def bad_calls() -> dict[str, tuple[dict, str]]:
    return {
        "x too narrow": ({"x": (1, 5, 7)}, r"expected x of shape \[.*6\], got \[.*7\]"),
        "x experts": ({"x": (2, 5, 6)}, "expected x with 1 or 3 leading entries, got 2"),
        "encoder steps": ({"encoder": (2, 3, 11, 6)}, r"expected encoder with 1 \(tied\) or 4 \(per step\)"),
        "recurrent shape": (
            {"recurrent": (1, 3, 11, 10)},
            r"expected recurrent of shape \[1, 3, 11, 11\], got",
        ),
        "theta shape": ({"theta": (1, 3, 10)}, r"expected theta of shape \[1, 3, 11\], got \[1, 3, 10\]"),
        "k count": ({"k": [1, 2]}, "expected k with 3 entries, got 2"),
        "k large": ({"k": [1, 2, 12]}, r"expected every k in \[1, 11\], got"),
        "k zero": ({"k": [0, 2, 3]}, r"expected every k in \[1, 11\], got"),
        "form": ({"form": "classical"}, "expected form .*, got 'classical'"),
        "num_steps": ({"num_steps": -1}, "expected num_steps >= 0, got -1"),
    }


@pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("name", bad_calls())
def test_rejects(device, name):
    changes, message = bad_calls()[name]
    shapes = {"x": (1, 5, 6), "encoder": (1, 3, 11, 6), "recurrent": (1, 3, 11, 11), "theta": (1, 3, 11)}
    options = {"k": [2, 4, 11], "form": "classic", "num_steps": 3} | {
        key: value for key, value in changes.items() if key not in shapes
    }
    tensors = [torch.ones(changes.get(key, shape), device=device) for key, shape in shapes.items()]
    with pytest.raises((RuntimeError, ValueError), match=f"topk_lista: {message}"):
        op(*tensors, options["k"], options["form"], options["num_steps"], True, False)


def test_rejects_in_the_public_function():
    x, encoder, recurrent, theta = (t[0] for t in Case(k=(2,)).inputs())
    arguments = (encoder[0], recurrent[0], theta[0], 2)
    with pytest.raises(
        ValueError, match="topk_lista: expected backward to be one of straight_through, masked"
    ):
        ops.topk_lista(x, *arguments, num_steps=1, backward="none")
    with pytest.raises(TypeError, match="topk_lista: expected encoder of dtype torch.float64 as x"):
        ops.topk_lista(x, encoder[0].float(), *arguments[1:], num_steps=1)
    with pytest.raises(TypeError, match="topk_lista: expected x of dtype float64, float32"):
        ops.topk_lista(x.long(), *arguments, num_steps=1)
    with pytest.raises(ValueError, match=r"topk_ste: expected k in \[1, M\] for x \[..., M\], got k = 7"):
        ops.topk_ste(x, 7)


# 8. determinism, stream, graph, device


def test_two_runs_give_the_same_bits(device):
    case = Case(rows=257, dim=64, atoms=130, k=(3, 20, 64))
    runs = []
    for _ in range(2):
        inputs = leaves(case.inputs(torch.float32, device))
        case.run(inputs).square().sum().backward()
        runs.append([t.grad for t in inputs])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.cuda
def test_honours_the_stream():
    case = Case(rows=4096, dim=64, atoms=64, k=(8, 8, 8))
    inputs = case.inputs(torch.float32, "cuda")
    assert inputs[0].is_cuda
    wanted = case.run(inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = [t * 1.0 for t in inputs]  # ready only after the sleep, on this stream
        result = case.run(late)
    stream.synchronize()
    assert torch.equal(result, wanted)


@pytest.mark.cuda
def test_replays_in_a_cuda_graph():
    case = Case(rows=64, dim=16, atoms=32, k=(4, 8, 16))
    inputs = case.inputs(torch.float32, "cuda")
    case.run(inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        code = case.run(inputs)
    inputs[0].mul_(-0.5)
    graph.replay()
    assert torch.equal(code, case.run(inputs))


@pytest.mark.cuda
def test_uses_the_device_of_its_input():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    case = Case()
    inputs = case.inputs(torch.float32, "cuda:1")
    code = case.run(inputs)
    assert code.device == torch.device("cuda:1")
    torch.testing.assert_close(code.cpu(), case.run([t.cpu() for t in inputs]))
    with pytest.raises(RuntimeError, match="on the device of the first argument"):
        op(inputs[0].to("cuda:0"), *inputs[1:], list(case.k), "classic", 3, True, False)


@pytest.mark.cuda
@pytest.mark.parametrize("atoms, k", [(32, 8), (256, 32), (4096, 32), (16384, 64)])
def test_cuda_selects_what_the_cpu_selects(atoms, k):
    """Equal magnitudes everywhere: 8 distinct values, so that the order of ties decides."""
    x = torch.randint(-4, 5, (64, atoms), generator=torch.Generator().manual_seed(1)).float()
    on_cpu, on_gpu = (torch.ops.stratcore.topk_ste(t, k, False) for t in (x, x.cuda()))
    for a, b in zip(on_cpu, on_gpu, strict=True):
        assert torch.equal(a, b.cpu())
