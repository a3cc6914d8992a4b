"""The eight tests of an op, and what it is for. Legend: N rows, D dimension, A anchors."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from python_tests.accuracy import assert_as_accurate
from stratcore import ops
from stratcore.ops import reference

op = torch.ops.stratcore.tangent_projection
backward_op = torch.ops.stratcore.tangent_projection_backward
# torch 2.15's opcheck reads .grad of the copies that it makes of our inputs
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
SIGNS = ["repel", "reference"]
JACOBIANS = ["tangent", "normalize", "identity"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SURROGATES = [
    {"tangential": 0.7, "separation": 0.3, "separation_sign": sign, "jacobian": jacobian}
    for sign, jacobian in itertools.product(SIGNS, JACOBIANS)
]


def normal(*shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).to(device)


def problem(
    rows: int, dim: int, anchors: int, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """x, anchors of various lengths, and a gradient of y."""
    lengths = normal(anchors, 1, dtype=dtype, device=device, seed=3).exp()
    return (
        normal(rows, dim, dtype=dtype, device=device),
        normal(anchors, dim, dtype=dtype, device=device, seed=8) * lengths,
        normal(rows, dim, dtype=dtype, device=device, seed=9),
    )


def gradient(x: Tensor, anchors: Tensor | None, grad: Tensor, **options: Any) -> Tensor:
    leaf = x.detach().requires_grad_()
    ops.sphere_normalize(leaf, anchors, **options).backward(grad)
    return leaf.grad


def define_gradient(x: Tensor, anchors: Tensor | None, grad: Tensor, nearest: Any, **options: Any) -> Tensor:
    n = None if anchors is None else reference.unit_anchors(anchors)[nearest.long()]
    return reference.surrogate_gradient(grad, x, n, **options)


# what it is for


def cosine_after_a_step(x: Tensor, anchors: Tensor, grad: Tensor, **options: Any) -> Tensor:
    """To the anchor that was nearest before, after a small step against the gradient."""
    nearest = ops.sphere_normalize_nearest(x, anchors).nearest.long()
    stepped = x - 1e-3 * gradient(x, anchors, grad, **options)
    return (normalize(stepped) * normalize(anchors)[nearest]).sum(-1)


@pytest.mark.parametrize("jacobian", JACOBIANS)
def test_repel_lowers_the_cosine_to_the_nearest_anchor_for_every_sample(device, jacobian):
    x, anchors, grad = problem(512, 32, 16, device=device)
    without = cosine_after_a_step(x, anchors, grad, jacobian=jacobian)
    repelled = cosine_after_a_step(x, anchors, grad, jacobian=jacobian, separation=0.5)
    assert bool((repelled < without).all())


def test_the_reference_sign_holds_rows_near_their_anchor(device):
    """Where a step would leave the anchor it leaves it less; elsewhere it changes nothing. Never lower."""
    x, anchors, grad = problem(512, 32, 16, device=device)
    without = cosine_after_a_step(x, anchors, grad)
    held = cosine_after_a_step(x, anchors, grad, separation=0.5, separation_sign="reference")
    leaves = define_gradient(x, None, grad, None)
    leaves = (leaves * normalize(anchors)[ops.sphere_normalize_nearest(x, anchors).nearest.long()]).sum(
        -1
    ) > 0
    assert 0.3 < leaves.double().mean() < 0.7
    assert bool((held[leaves] > without[leaves]).all())
    torch.testing.assert_close(held[~leaves], without[~leaves], rtol=0, atol=1e-15)


@pytest.mark.parametrize("tangential", [0.0, 0.5, 1.0, 2.0])
def test_behind_normalize_the_tangential_term_changes_nothing(device, tangential):
    """The Jacobian of F.normalize takes out the radial part by itself: before the op, and inside it."""
    x, _, grad = problem(64, 32, 1, device=device)
    wanted = torch.func.vjp(normalize, x)[1](grad)[0]
    leaf = x.clone().requires_grad_()
    ops.sphere_normalize(normalize(leaf), tangential=tangential, jacobian="identity").backward(grad)
    torch.testing.assert_close(leaf.grad, wanted, rtol=0, atol=1e-12)
    own = gradient(x, None, grad, tangential=tangential, jacobian="normalize")
    torch.testing.assert_close(own, wanted, rtol=0, atol=1e-12)


def test_tangent_is_the_gradient_of_normalize_too(device):
    x, _, grad = problem(64, 32, 1, device=device)
    wanted = torch.func.vjp(normalize, x)[1](grad)[0]
    torch.testing.assert_close(gradient(x, None, grad), wanted, rtol=0, atol=1e-12)
    assert (gradient(x, None, grad, tangential=0.5) - wanted).abs().max() > 0.01


# 1. known values


def test_known_values(device):
    x = torch.tensor([[3.0, 4.0], [-2.0, 0.0]], dtype=torch.float64, device=device, requires_grad=True)
    anchors = torch.tensor([[0.0, 7.0], [5.0, 0.0], [0.0, 0.5]], dtype=torch.float64, device=device)
    result = ops.sphere_normalize_nearest(x, anchors, separation=0.5, jacobian="identity")
    wanted = torch.tensor([[0.6, 0.8], [-1.0, 0.0]], dtype=torch.float64, device=device)
    torch.testing.assert_close(result.y, wanted)
    # (0, 7) and (0, 0.5) are one direction: the lower index
    assert result.nearest.tolist() == [0, 0] and result.nearest.dtype == torch.int32
    assert result.cosine.tolist() == pytest.approx([0.8, 0.0])
    assert not result.cosine.requires_grad
    result.y.backward(torch.zeros_like(wanted))
    # 0.5 (n - c y)
    torch.testing.assert_close(
        x.grad, torch.tensor([[-0.24, 0.18], [0.0, 0.5]], dtype=torch.float64).to(device)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_anchors_tie_to_the_lower_index(device, dtype):
    x, _, _ = problem(101, 37, 1, dtype, device)
    one = normal(1, 37, dtype=dtype, device=device, seed=5)
    anchors = torch.cat([-one, one.expand(299, -1)])
    nearest = ops.sphere_normalize_nearest(x + 3 * one, anchors).nearest
    assert nearest.tolist() == [1] * 101


# 2. matches the reference

SHAPES = [
    (0, 3, 2),
    (1, 1, 1),
    (5, 7, 1),
    (33, 64, 17),
    (70, 129, 300),
    (3, 1030, 65),
    (9, 256, 4096),
    (300, 8, 2),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, dim, anchors", SHAPES)
def test_matches_reference(device, dtype, rows, dim, anchors):
    x, directions, _ = problem(rows, dim, anchors, dtype, device)
    exact = reference.on_sphere(x.double())
    y, nearest, cosine = ops.sphere_normalize_nearest(x, directions)
    assert_as_accurate(y, reference.on_sphere(x), exact)
    # On a GPU the kernels with and without anchors add up a row's squares in different orders.
    torch.testing.assert_close(ops.sphere_normalize(x), y, rtol=4 * torch.finfo(dtype).eps, atol=0)
    if rows == 0:
        assert nearest.shape == cosine.shape == (0,)
        return
    wanted, largest = reference.nearest_anchor(exact, directions.double())
    tolerance = 1e-13 if dtype == torch.float64 else 3e-6
    torch.testing.assert_close(cosine.double(), largest, rtol=0, atol=tolerance)
    chosen = (exact * reference.unit_anchors(directions.double())[nearest.long()]).sum(-1)
    torch.testing.assert_close(chosen, largest, rtol=0, atol=tolerance)
    if dtype == torch.float64:
        assert torch.equal(nearest.long(), wanted)
    assert cosine.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_dimension_is_the_sign(device, dtype):
    """The sphere has two points, no tangent, and no gradient but what rounding leaves."""
    x, anchors, grad = problem(19, 1, 2, dtype, device)
    torch.testing.assert_close(ops.sphere_normalize(x), x.sign())
    rounding = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    for jacobian in ("tangent", "normalize"):
        ours = gradient(x, anchors, grad, separation=0.3, jacobian=jacobian)
        assert (ours * x).abs().max() < 10 * rounding


@pytest.mark.parametrize("shape", [(7,), (0, 7), (2, 0, 7), (2, 3, 4, 7)])
def test_batch_dimensions(device, shape):
    x, anchors = normal(*shape, device=device), normal(5, 7, device=device)
    y, nearest, cosine = ops.sphere_normalize_nearest(x, anchors)
    assert y.shape == shape and nearest.shape == cosine.shape == shape[:-1]
    torch.testing.assert_close(y, reference.on_sphere(x))
    assert gradient(x, anchors, torch.ones_like(x), separation=0.1).shape == shape


@pytest.mark.parametrize("separation", [0.0, 0.3])
def test_any_strides(device, separation):
    x, anchors, grad = problem(12, 6, 5, device=device)
    wide = torch.zeros(12, 13, dtype=x.dtype, device=device)
    wide[:, 1::2] = x
    leaf = wide.requires_grad_()
    y = ops.sphere_normalize(leaf[:, 1::2], anchors.T.contiguous().T, separation=separation)
    y.backward(grad.T.contiguous().T)
    dense = x.clone().requires_grad_()  # without a gradient to come, the anchors are not read
    assert torch.equal(y, ops.sphere_normalize(dense, anchors, separation=separation))
    assert torch.equal(leaf.grad[:, 1::2], gradient(x, anchors, grad, separation=separation))
    expanded = grad[:1].expand(12, -1)
    assert torch.equal(gradient(x, anchors, expanded), gradient(x, anchors, expanded.contiguous()))
    assert torch.equal(ops.sphere_normalize(x[:1].expand(12, -1)), ops.sphere_normalize(x)[:1].expand(12, -1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("jacobian", JACOBIANS)
def test_zero_and_tiny_rows(device, dtype, jacobian):
    """Below eps: y = x / eps, and the Jacobian is that of x / eps."""
    x, anchors, grad = problem(5, 9, 3, dtype, device)
    x[1], x[3] = 0.0, 0.0 if dtype == torch.float16 else 1e-30 * x[3]
    grad *= 1e-9
    options = {"tangential": 0.0, "jacobian": jacobian}
    y, nearest, cosine = ops.sphere_normalize_nearest(x, anchors)
    torch.testing.assert_close(y, reference.on_sphere(x.double()).to(dtype), rtol=2e-2, atol=0)
    assert y[1].tolist() == [0.0] * 9 and nearest[1] == 0 and cosine[1] == 0.0
    scale = 1.0 if jacobian == "identity" else 1e12
    ours = gradient(x, anchors, grad, **options)
    torch.testing.assert_close(ours[[1, 3]], grad[[1, 3]] * scale)
    for others in (
        {"tangential": 1.0},
        {"separation": 0.5},
        {"separation": 0.5, "separation_sign": "reference"},
    ):
        ours = gradient(x, anchors, grad, **(options | others))
        exact = define_gradient(x.double(), anchors.double(), grad.double(), nearest, **(options | others))
        finite = exact.abs() < 6e4 if dtype == torch.float16 else exact.isfinite()
        torch.testing.assert_close(ours[finite].double(), exact[finite], rtol=3e-2, atol=1e-10)


def test_long_rows_and_zero_anchors(device):
    x = normal(6, 33, dtype=torch.bfloat16, device=device)
    x = x / x.norm(dim=-1, keepdim=True) * 1e4
    _, norm, _, _ = op(x, None, 1.0, 0.0, "repel", "tangent", 1e-12)
    torch.testing.assert_close(norm.double(), x.double().norm(dim=-1), rtol=1e-6, atol=0)
    y = ops.sphere_normalize(x)
    torch.testing.assert_close(y.double(), reference.on_sphere(x.double()), rtol=4e-3, atol=0)
    anchors = torch.cat([-x[:1], torch.zeros_like(x[:1])])
    result = ops.sphere_normalize_nearest(x[:1], anchors)
    assert result.nearest.tolist() == [1] and result.cosine.tolist() == [0.0]
    for sign in SIGNS:
        ours = gradient(x[:1].float(), anchors.float(), x[1:2].float(), separation=0.3, separation_sign=sign)
        torch.testing.assert_close(ours, gradient(x[:1].float(), None, x[1:2].float()))


def test_nan_and_infinity_stay_in_their_row(device):
    x, anchors, grad = problem(5, 9, 20, torch.float32, device)
    clean = ops.sphere_normalize_nearest(x, anchors)
    clean_grad = gradient(x, anchors, grad, separation=0.1)
    x[1, 4], x[3, 0] = float("nan"), float("inf")
    dirty = ops.sphere_normalize_nearest(x, anchors)
    dirty_grad = gradient(x, anchors, grad, separation=0.1)
    others = [0, 2, 4]
    for a, b in zip((*clean, clean_grad), (*dirty, dirty_grad), strict=True):
        assert torch.equal(a[others], b[others])
    assert dirty.y[1].isnan().all() and dirty_grad[1].isnan().all()
    assert dirty.y[3].isnan().any() and dirty_grad[3].isnan().any()
    assert dirty.cosine[[1, 3]].isnan().all() and dirty.nearest[[1, 3]].tolist() == [0, 0]


def test_a_nan_anchor_shows(device):
    x, anchors, _ = problem(5, 9, 20, torch.float32, device)
    anchors[7, 2] = float("nan")
    _, nearest, cosine = ops.sphere_normalize_nearest(x, anchors)
    assert nearest.tolist() == [7] * 5 and cosine.isnan().all()


# 3. gradcheck


@pytest.mark.parametrize("tangential", [0.0, 1.0])
def test_gradcheck_where_it_is_a_gradient(device, tangential):
    x = normal(4, 5, device=device).requires_grad_()
    anchors = normal(3, 5, device=device)
    checks = {"check_batched_grad": True, "check_undefined_grad": True, "nondet_tol": 0.0}

    def run(x: Tensor) -> Tensor:
        result = ops.sphere_normalize_nearest(x, anchors, tangential=tangential, jacobian="normalize")
        return result.y

    assert torch.autograd.gradcheck(run, x, check_forward_ad=True, **checks)
    assert torch.autograd.gradgradcheck(run, x, **checks)
    below = (1e-3 * x.detach()).requires_grad_()
    run_below = lambda x: ops.sphere_normalize(x, tangential=0.0, jacobian="normalize", eps=1.0)  # noqa: E731
    assert torch.autograd.gradcheck(run_below, below, check_forward_ad=True, **checks)


# 4. backward matches the reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", SURROGATES, ids=lambda o: f"{o['separation_sign']}-{o['jacobian']}")
@pytest.mark.parametrize("rows, dim, anchors", [(33, 64, 17), (5, 7, 1), (4, 1030, 70), (19, 2, 2)])
def test_backward_matches_reference(device, dtype, options, rows, dim, anchors):
    x, directions, grad = problem(rows, dim, anchors, dtype, device)
    nearest = ops.sphere_normalize_nearest(x, directions).nearest
    exact = define_gradient(x.double(), directions.double(), grad.double(), nearest, **options)
    eager = define_gradient(x, directions, grad, nearest, **options)
    assert_as_accurate(gradient(x, directions, grad, **options), eager, exact)


@pytest.mark.parametrize("options", SURROGATES, ids=lambda o: f"{o['separation_sign']}-{o['jacobian']}")
def test_second_order_matches_reference(device, options):
    """The derivative of the surrogate with respect to dL/dy and x, also of rows below eps."""
    x, anchors, grad = problem(6, 7, 4, device=device)
    x[2] *= 1e-3
    options = options | {"eps": 0.1}
    nearest = ops.sphere_normalize_nearest(x, anchors).nearest
    seconds = []
    for run in (gradients_of_op, lambda *a, **o: define_gradient(*a, nearest, **o)):
        leaves = [t.clone().requires_grad_() for t in (x, grad)]
        run(leaves[0], anchors, leaves[1], **options).square().sum().backward()
        seconds += [t.grad for t in leaves]
    torch.testing.assert_close(seconds[:2], seconds[2:], rtol=1e-10, atol=1e-10)


def gradients_of_op(x: Tensor, anchors: Tensor, grad: Tensor, **options: Any) -> Tensor:
    y = ops.sphere_normalize(x, anchors, **options)
    return torch.autograd.grad(y, x, grad, create_graph=True)[0]


def test_anchors_have_no_gradient(device):
    x, anchors, grad = problem(6, 7, 4, device=device)
    anchors.requires_grad_()
    assert not ops.sphere_normalize_nearest(x, anchors, separation=0.1).y.requires_grad
    ops.sphere_normalize_nearest(x.requires_grad_(), anchors, separation=0.1).y.backward(grad)
    assert anchors.grad is None and x.grad is not None
    assert not ops.sphere_normalize(x.detach(), anchors, separation=0.1).requires_grad


def test_anchors_are_those_of_the_forward(device):
    x, anchors, grad = problem(6, 7, 4, device=device)
    leaf = x.clone().requires_grad_()
    y = ops.sphere_normalize(leaf, anchors, separation=0.1)
    anchors.mul_(-1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(grad)
    y = ops.sphere_normalize(leaf, anchors)  # without separation they are not read
    anchors.mul_(-1)
    y.backward(grad)
    assert torch.equal(leaf.grad, gradient(x, None, grad))


# 5. opcheck


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 5])
def test_opcheck(device, dtype, rows, requires_grad):
    x, anchors, grad = problem(rows, 9, 4, dtype, device)
    x.requires_grad_(requires_grad)
    for directions, strength in ((anchors, 0.3), (anchors, 0.0), (None, 0.0)):
        options = (1.0, strength, "repel", "tangent", 1e-12)
        torch.library.opcheck(op, (x, directions, *options))
        _, norm, nearest, _ = op(x.detach(), directions, *options)
        torch.library.opcheck(backward_op, (grad, x.detach(), directions, norm, nearest, *options))


# 6. compile, export, torch.func, autocast, FLOPs


@pytest.mark.parametrize("options", [*SURROGATES[::4], {}], ids=str)
def test_compile_fullgraph_with_dynamic_batch(device, options):
    torch._dynamo.reset()

    def loss(x: Tensor, anchors: Tensor, grad: Tensor) -> Tensor:
        result = ops.sphere_normalize_nearest(x, anchors, **options)
        return (ops.sphere_normalize(result.y, anchors, **options) * grad * result.cosine[:, None]).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (5, 9, 17):
        x, anchors, grad = problem(rows, 7, 4, device=device)
        results = []
        for function in (loss, compiled):
            leaf = x.clone().requires_grad_()
            value = function(leaf, anchors, grad)
            value.backward()
            results.append([value.detach(), leaf.grad])
        torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)


def test_export_with_dynamic_batch(device):
    x, anchors, _ = problem(6, 7, 4, device=device)

    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return (
                ops.sphere_normalize(x, anchors, separation=0.1),
                *ops.sphere_normalize_nearest(x, anchors),
            )

    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Module(), (x,), dynamic_shapes=({0: batch},))
    larger = normal(20, 7, device=device, seed=4)
    torch.testing.assert_close(program.module()(larger), Module()(larger))


@pytest.mark.parametrize("options", [*SURROGATES, {}], ids=str)
def test_torch_func(device, options):
    x, anchors, grad = problem(6, 7, 4, device=device)

    def loss(x: Tensor, anchors: Tensor, grad: Tensor) -> Tensor:
        return (ops.sphere_normalize(x, anchors, **options) * grad).sum()

    wanted = gradient(x, anchors, grad, **options)
    own, other = torch.func.grad(loss, argnums=(0, 1))(x, anchors, grad)
    torch.testing.assert_close(own, wanted, rtol=1e-12, atol=1e-12)
    assert not other.any()
    rows = torch.func.vmap(torch.func.grad(loss), (0, None, 0))(x, anchors, grad)
    torch.testing.assert_close(rows, wanted, rtol=1e-12, atol=1e-12)
    stacked = torch.stack([anchors, anchors.flip(0) * 2, -anchors], 1)
    each = torch.func.vmap(torch.func.grad(loss), (None, 1, None))(x, stacked, grad)
    for i in range(3):
        torch.testing.assert_close(
            each[i], gradient(x, stacked[:, i], grad, **options), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("in_dims", [(0, None), (1, None), (None, 0), (2, 1)])
def test_vmap(device, in_dims, anchored):
    x = normal(*(4, 7) if in_dims[0] is None else (3, 4, 7), device=device)
    anchors = normal(*(5, 7) if in_dims[1] is None else (3, 5, 7), device=device, seed=2)
    stacked = [t if d is None else t.movedim(0, d) for t, d in zip((x, anchors), in_dims, strict=True)]

    def run(x: Tensor, anchors: Tensor) -> tuple[Tensor, ...]:
        return (
            tuple(ops.sphere_normalize_nearest(x, anchors))
            if anchored
            else (ops.sphere_normalize(x, anchors),)
        )

    results = torch.func.vmap(run, in_dims)(*stacked)
    for i in range(3):
        single = run(*(t if d is None else t[i] for t, d in zip((x, anchors), in_dims, strict=True)))
        for result, wanted in zip(results, single, strict=True):
            assert torch.equal(result[i], wanted)


@pytest.mark.parametrize("options", [*SURROGATES, {}], ids=str)
def test_batched_gradients(device, options):
    x, anchors, _ = problem(4, 7, 5, device=device)
    grads = normal(3, 4, 7, device=device, seed=1)
    leaf = x.clone().requires_grad_()
    y = ops.sphere_normalize(leaf, anchors, **options)

    def one(grad: Tensor) -> Tensor:
        return torch.autograd.grad(y, leaf, grad, retain_graph=True)[0]

    (batched,) = torch.autograd.grad(y, leaf, grads, is_grads_batched=True, retain_graph=True)
    for result in (batched, torch.func.vmap(one)(grads), torch.func.vmap(one, 1)(grads.transpose(0, 1))):
        for i in range(3):
            assert torch.equal(result[i], gradient(x, anchors, grads[i], **options))


@pytest.mark.parametrize(
    "in_dims", [(0, 0, None, 0, 0), (0, 0, 0, 0, 0), (None, 1, None, 1, 1), (0, None, 1, None, 0)]
)
def test_vmap_of_the_backward(device, in_dims):
    x, anchors, grad = problem(12, 7, 5, device=device)
    parts = [t.view(3, 4, 7) for t in (grad, x)] + [normal(3, 5, 7, device=device, seed=2)]
    parts += [parts[1].norm(dim=-1), torch.arange(12, dtype=torch.int32, device=device).view(3, 4) % 5]
    own = [t[0] if d is None else t.movedim(0, d) for t, d in zip(parts, in_dims, strict=True)]
    options = (0.7, 0.3, "repel", "tangent", 1e-12)
    results = torch.func.vmap(lambda *t: backward_op(*t, *options), in_dims)(*own)
    for i in range(3):
        single = [t[0] if d is None else t[i] for t, d in zip(parts, in_dims, strict=True)]
        assert torch.equal(results[i], backward_op(*single, *options))


def test_forward_mode(device):
    x, anchors, tangent = problem(4, 7, 5, device=device)
    run = lambda x: ops.sphere_normalize(x, jacobian="normalize")  # noqa: E731
    _, ours = torch.func.jvp(run, (x,), (tangent,))
    torch.testing.assert_close(ours, torch.func.jvp(reference.on_sphere, (x,), (tangent,))[1])
    with pytest.raises(RuntimeError, match="tangent_projection: expected separation 0 in forward mode"):
        torch.func.jvp(lambda x: ops.sphere_normalize(x, anchors, separation=0.1), (x,), (tangent,))


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(device, low):
    x, anchors, grad = problem(6, 7, 4, torch.float32, device)
    with torch.autocast(device, dtype=low):
        assert torch.equal(ops.sphere_normalize(x), ops.sphere_normalize(x.clone()))
        assert ops.sphere_normalize(x).dtype == torch.float32
        mixed = ops.sphere_normalize_nearest(x.to(low), anchors)
        mixed_grad = gradient(x.to(low), anchors, grad.to(low), separation=0.1)
    same = ops.sphere_normalize_nearest(x.to(low), anchors.to(low))
    assert mixed.y.dtype == mixed_grad.dtype == low
    assert all(torch.equal(a, b) for a, b in zip(mixed, same, strict=True))


def test_flop_formula(device):
    x, anchors, grad = problem(6, 7, 4, torch.float32, device)
    with FlopCounterMode(display=False) as counter:
        ops.sphere_normalize_nearest(x, anchors)
    assert counter.get_total_flops() == 2 * 6 * 7 * 4
    with FlopCounterMode(display=False) as counter:
        gradient(x, anchors, grad)
    assert counter.get_total_flops() == 0  # without separation the anchors are not read


# 7. rejects


def bad_calls() -> dict[str, tuple[dict, str]]:
    return {
        "x dimensions": ({"x": (5, 6, 1)}, r"expected x with 2 dimensions, got \[5, 6, 1\]"),
        "x empty rows": (
            {"x": (5, 0), "anchors": (4, 0)},
            "expected x with at least one dimension a row, got",
        ),
        "anchors width": (
            {"anchors": (4, 7)},
            r"expected anchors of shape \[A, 6\] with A >= 1, got \[4, 7\]",
        ),
        "no anchors": ({"anchors": (0, 6)}, r"expected anchors of shape \[A, 6\] with A >= 1, got \[0, 6\]"),
        "sign": (
            {"sign": "attract"},
            "expected separation_sign to be one of repel, reference, got 'attract'",
        ),
        "jacobian": ({"jacobian": "full"}, "expected jacobian to be one of tangent, normalize, identity"),
        "eps": ({"eps": 1e-20}, "expected a finite eps >= 1e-18, got 1e-20"),
        "eps nan": ({"eps": float("nan")}, "expected a finite eps >= 1e-18, got nan"),
        "tangential": (
            {"tangential": float("inf")},
            "expected finite tangential and separation, got inf and 0",
        ),
    }


@pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("name", bad_calls())
def test_rejects(device, name):
    changes, message = bad_calls()[name]
    options = {"tangential": 1.0, "separation": 0.0, "sign": "repel", "jacobian": "tangent", "eps": 1e-12}
    options |= {key: value for key, value in changes.items() if key in options}
    tensors = [torch.ones(changes.get(k, s), device=device) for k, s in (("x", (5, 6)), ("anchors", (4, 6)))]
    with pytest.raises((RuntimeError, ValueError), match=f"tangent_projection: {message}"):
        op(*tensors, *options.values())


def test_rejects_a_backward_that_does_not_fit(device):
    x, anchors, grad = problem(6, 7, 4, torch.float32, device)
    options = (1.0, 0.3, "repel", "tangent", 1e-12)
    _, norm, nearest, _ = op(x, anchors, *options)
    for wrong in (
        (grad[:5], x, anchors, norm, nearest),
        (grad.double(), x, anchors, norm, nearest),
        (grad, x, anchors, norm.double(), nearest),
        (grad, x, anchors, norm, nearest[:0]),
        (grad, x, anchors, norm, nearest.long()),
    ):
        with pytest.raises(RuntimeError, match="tangent_projection: expected (grad_y|norm|nearest)"):
            backward_op(*wrong, *options)


def test_rejects_in_the_public_functions():
    x, anchors, _ = problem(5, 6, 4)
    for error, arguments, options, message in (
        (TypeError, (x.long(),), {}, "expected x of dtype float64, float32"),
        (
            TypeError,
            (x, anchors.float()),
            {},
            "expected anchors of dtype torch.float64 as x, got torch.float32",
        ),
        (ValueError, (x[0, 0],), {}, r"expected x of shape \[..., D\] with D >= 1, got \[\]"),
        (ValueError, (x[:, :0],), {}, r"expected x of shape \[..., D\] with D >= 1, got \[5, 0\]"),
        (
            ValueError,
            (x, anchors[:, :5]),
            {},
            r"expected anchors of shape \[A, 6\] with A >= 1, got \[4, 5\]",
        ),
        (ValueError, (x, anchors[0]), {}, r"expected anchors of shape \[A, 6\] with A >= 1, got \[6\]"),
        (ValueError, (x, anchors[:0]), {}, r"expected anchors of shape \[A, 6\] with A >= 1, got \[0, 6\]"),
        (ValueError, (x, anchors), {"separation_sign": "attract"}, "expected separation_sign to be one of"),
        (ValueError, (x, anchors), {"jacobian": "full"}, "expected jacobian to be one of tangent, normalize"),
        (ValueError, (x, anchors), {"eps": 0.0}, "expected a finite eps >= 1e-18, got 0.0"),
        (ValueError, (x, anchors), {"separation": float("nan")}, "expected finite tangential and separation"),
    ):
        for function in (ops.sphere_normalize, ops.sphere_normalize_nearest):
            if function is ops.sphere_normalize or len(arguments) == 2:
                with pytest.raises(error, match=f"tangent_projection: {message}"):
                    function(*arguments, **options)
    with pytest.raises(ValueError, match=r"expected anchors of shape \[A, D\], got None"):
        ops.sphere_normalize_nearest(x, None)


# 8. determinism, stream, graph, device


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_runs_give_the_same_bits(device, dtype):
    x, anchors, grad = problem(517, 65, 33, dtype, device)
    runs = [
        (*ops.sphere_normalize_nearest(x, anchors), gradient(x, anchors, grad, separation=0.1))
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    # nor does a row depend on where it stands
    last = ops.sphere_normalize_nearest(x[-5:], anchors)
    assert all(torch.equal(a[-5:], b) for a, b in zip(runs[0], last, strict=False))


@pytest.mark.cuda
def test_honours_the_stream():
    x, anchors, grad = problem(4096, 64, 64, torch.float32, "cuda")
    wanted = gradient(x, anchors, grad, separation=0.1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = x * 1.0  # ready only after the sleep, on this stream
        result = gradient(late, anchors, grad, separation=0.1)
    stream.synchronize()
    assert torch.equal(result, wanted)


@pytest.mark.cuda
def test_replays_in_a_cuda_graph():
    x, anchors, grad = problem(64, 16, 32, torch.float32, "cuda")
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(ops.sphere_normalize(leaf, anchors, separation=0.1), leaf, grad)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (result,) = torch.autograd.grad(ops.sphere_normalize(leaf, anchors, separation=0.1), leaf, grad)
    with torch.no_grad():
        leaf.mul_(-0.5)
    graph.replay()
    assert torch.equal(result, gradient(leaf, anchors, grad, separation=0.1))


@pytest.mark.cuda
def test_uses_the_device_of_its_input():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x, anchors, grad = problem(6, 7, 4, torch.float32, "cuda:1")
    ours = gradient(x, anchors, grad, separation=0.1)
    assert ours.device == torch.device("cuda:1")
    torch.testing.assert_close(ours.cpu(), gradient(x.cpu(), anchors.cpu(), grad.cpu(), separation=0.1))
    with pytest.raises(RuntimeError, match="on the device of the first argument"):
        ops.sphere_normalize_nearest(x.to("cuda:0"), anchors)
