"""What sphere_normalize is for, its values, special and bad input. Letters: tangent_projection_cases.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from python_tests.accuracy import assert_as_accurate
from python_tests.ops.tangent_projection_cases import (
    DTYPES,
    JACOBIANS,
    SIGNS,
    backward_op,
    define_gradient,
    gradient,
    normal,
    op,
    problem,
)
from stratcore import ops
from stratcore.ops import reference

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


# known values


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


# matches the reference

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


# rejects


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
