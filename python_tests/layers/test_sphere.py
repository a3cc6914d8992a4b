"""Legend: n rows, D dimension."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.linalg import expm, logm
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import normalize

from stratcore.layers import sphere
from stratcore.layers.sphere import procrustes, rotation_power


def points(*shape: int) -> Tensor:
    return normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def tangents(x: Tensor) -> Tensor:
    """Unit tangent vectors."""
    v = torch.randn_like(x)
    return normalize(v - (x * v).sum(-1, keepdim=True) * x, dim=-1)


def random_rotation(dim: int) -> Tensor:
    q = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64)).Q
    q[:, 0] *= torch.linalg.det(q)
    return q


# ---- maps


ANGLES = [1e-12, 1e-8, 1e-3, 0.09, 0.11, 0.49, 0.51, 1.0, math.pi / 2, 3.0, math.pi - 1e-4, math.pi - 1e-7]


@pytest.mark.parametrize("angle", ANGLES)
def test_maps_along_a_known_geodesic(angle):
    x = points(20, 7)
    d = tangents(x)
    y = math.cos(angle) * x + math.sin(angle) * d
    # Rounding of x and y turns the direction by eps / sin, and moves the end by eps.
    slack = 4e-16 * max(1.0, angle / math.sin(angle))
    torch.testing.assert_close(sphere.exponential_map(x, angle * d), y, rtol=0, atol=1e-15)
    torch.testing.assert_close(sphere.logarithm_map(x, y), angle * d, rtol=0, atol=2 * slack)
    torch.testing.assert_close(
        sphere.geodesic_distance(x, y), torch.full((20,), angle, dtype=x.dtype), rtol=0, atol=1e-15
    )
    arrived = math.cos(angle) * d - math.sin(angle) * x
    torch.testing.assert_close(sphere.parallel_transport(x, y, d), arrived, rtol=0, atol=4 * slack)
    for share in (0.0, 0.3, 1.0, -0.5):
        expected = math.cos(share * angle) * x + math.sin(share * angle) * d
        torch.testing.assert_close(sphere.slerp(x, y, share), expected, rtol=0, atol=4 * slack)


def test_float32_keeps_its_digits_near_zero_and_pi():
    x = points(50, 16)
    d = tangents(x)
    for angle in (1e-4, math.pi - 1e-3):
        y = (math.cos(angle) * x + math.sin(angle) * d).float()
        found = sphere.geodesic_distance(x.float(), y).double()
        assert (found - angle).abs().max() < 3e-7
        assert (sphere.logarithm_map(x.float(), y).norm(dim=-1) - angle).abs().max() < 5e-7
        by_arccosine = (x.float() * y).sum(-1).clamp(-1, 1).acos().double()
        assert (by_arccosine - angle).abs().max() > 3e-5, "what atan2 is for"


@pytest.mark.parametrize("sign", [1, -1])
def test_float32_logarithms_of_close_and_opposite_points_are_tangent(sign):
    x = points(50, 16)
    y = sphere.exponential_map(x, 1e-5 * tangents(x))
    x, y = x.float(), sign * y.float()
    exact = sphere.logarithm_map(*(normalize(z.double(), dim=-1) for z in (x, y)))
    found = sphere.logarithm_map(x, y).double()
    assert ((found - exact).norm(dim=-1) / exact.norm(dim=-1)).max() < 1e-5
    by_projection = sphere.project_tangent(x, y)
    assert (by_projection * x).sum(-1).abs().max() > 1e-8, "what the differences are for"


def test_antipodal_points_have_a_documented_geodesic():
    x = points(9, 5)
    log = sphere.logarithm_map(x, -x)
    torch.testing.assert_close(log.norm(dim=-1), torch.full((9,), math.pi, dtype=x.dtype))
    torch.testing.assert_close((log * x).sum(-1), torch.zeros(9, dtype=x.dtype), rtol=0, atol=1e-15)
    torch.testing.assert_close(sphere.exponential_map(x, log), -x, rtol=0, atol=1e-15)
    v = tangents(x)
    direction = log / math.pi
    y = -math.cos(1e-5) * x + math.sin(1e-5) * direction
    moved = sphere.parallel_transport(x, -x, v)
    torch.testing.assert_close(moved, sphere.parallel_transport(x, y, v), rtol=0, atol=3e-5)
    torch.testing.assert_close(moved.norm(dim=-1), v.norm(dim=-1))
    start = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(sphere.logarithm_map(start, -x).sum(), start)
    assert gradient.isfinite().all()


def test_log_and_distance_of_a_point_to_itself_are_zero_with_finite_gradient():
    x = points(6, 4).requires_grad_()
    y = x.detach().clone().requires_grad_()
    assert not sphere.logarithm_map(x, y).any() and not sphere.geodesic_distance(x, y).any()
    (sphere.logarithm_map(x, y).sum() + sphere.geodesic_distance(x, y).sum()).backward()
    assert x.grad.isfinite().all() and y.grad.isfinite().all()


def test_transport_is_an_isometry_that_reverses_the_logarithm():
    x, y = points(30, 6), points(30, 6)
    u, v = torch.randn_like(x), tangents(x)
    u = sphere.project_tangent(x, u)
    moved_u, moved_v = sphere.parallel_transport(x, y, u), sphere.parallel_transport(x, y, v)
    zero = torch.zeros(30, dtype=x.dtype)
    torch.testing.assert_close((moved_u * y).sum(-1), zero, rtol=0, atol=1e-14)
    torch.testing.assert_close((moved_u * moved_v).sum(-1), (u * v).sum(-1), rtol=1e-12, atol=1e-13)
    log = sphere.logarithm_map(x, y)
    torch.testing.assert_close(
        sphere.parallel_transport(x, y, log), -sphere.logarithm_map(y, x), rtol=1e-11, atol=1e-12
    )


def test_slerp_has_even_speed_and_takes_a_share_for_every_row():
    x, y = points(8, 5), points(8, 5)
    t = torch.linspace(0, 1, 8, dtype=x.dtype)
    z = sphere.slerp(x, y, t)
    torch.testing.assert_close(sphere.geodesic_distance(x, z), t * sphere.geodesic_distance(x, y))
    torch.testing.assert_close(sphere.slerp(x, y, 0.5), normalize(x + y, dim=-1))


def test_projection_and_retraction():
    x = points(10, 6)
    v = torch.randn_like(x)
    tangent = sphere.project_tangent(x, v)
    torch.testing.assert_close(sphere.project_tangent(x, tangent), tangent)
    assert (tangent * x).sum(-1).abs().max() < 1e-15
    torch.testing.assert_close(
        torch.cat([tangent, v - tangent], -1).norm(dim=-1), v.norm(dim=-1), msg="orthogonal parts"
    )
    assert torch.equal(sphere.riemannian_gradient(x, v), tangent)
    errors = [
        (sphere.retract(x, h * tangent) - sphere.exponential_map(x, h * tangent)).norm().item()
        for h in (1e-2, 1e-3)
    ]
    assert errors[0] / errors[1] == pytest.approx(1000, rel=0.02), "third order"


def test_riemannian_gradient_is_the_derivative_along_geodesics():
    x, matrix = points(1, 5), torch.randn(5, 5, dtype=torch.float64)
    matrix = matrix + matrix.mT
    gradient = sphere.riemannian_gradient(x, 2 * x @ matrix)
    v = tangents(x)

    def value(t: float) -> float:
        z = sphere.exponential_map(x, t * v)
        return float((z @ matrix * z).sum())

    assert (value(1e-5) - value(-1e-5)) / 2e-5 == pytest.approx(float((gradient * v).sum()), rel=1e-8)


@pytest.mark.parametrize("angle", [0.0, 0.05, 0.7, 2.5])
def test_gradients_of_the_maps(angle):
    x = points(1, 3)
    v = angle * tangents(x)
    y = sphere.exponential_map(x, v)
    w = torch.randn_like(x)
    for tensor in (x, v, y, w):
        tensor.requires_grad_()
    for function, inputs in (
        (sphere.exponential_map, (x, v)),
        (sphere.logarithm_map, (x, y)),
        (sphere.retract, (x, v)),
        (sphere.project_tangent, (x, w)),
        (sphere.parallel_transport, (x, y, w)),
        (lambda a, b: sphere.slerp(a, b, 0.3), (x, y)),
    ):
        assert gradcheck(function, inputs)
        assert gradgradcheck(function, inputs, fast_mode=True)
    if angle:
        assert gradcheck(sphere.geodesic_distance, (x, y))


# ---- streams


def test_streams_are_normalized_weighted_added_and_normalized():
    streams = [scale * torch.randn(6, 9, dtype=torch.float64) for scale in (0.01, 1.0, 100.0)]
    unit = [s / s.norm(dim=-1, keepdim=True) for s in streams]
    plain = sum(unit)
    torch.testing.assert_close(
        sphere.normalize_and_add(streams), plain / plain.norm(dim=-1, keepdim=True), rtol=1e-12, atol=1e-14
    )
    weighted = 2 * unit[0] - 0.5 * unit[1] + 0.1 * unit[2]
    expected = weighted / weighted.norm(dim=-1, keepdim=True)
    for weights in ((2, -0.5, 0.1), torch.tensor([2, -0.5, 0.1], dtype=torch.float64)):
        torch.testing.assert_close(
            sphere.normalize_and_add(streams, weights), expected, rtol=1e-12, atol=1e-14
        )


def test_streams_and_weights_get_exact_gradients():
    a, b = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weights = torch.tensor([0.7, -1.3], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda a, b, w: sphere.normalize_and_add([a, b], w), (a, b, weights))


def test_opposite_streams_add_to_zero():
    x = torch.randn(4, 8)
    assert not sphere.normalize_and_add([x, -x]).any()


def test_streams_that_do_not_fit():
    with pytest.raises(ValueError, match="^normalize_and_add: expected at least one stream, got none$"):
        sphere.normalize_and_add([])
    with pytest.raises(ValueError, match="^normalize_and_add: expected 1 weights, got 2$"):
        sphere.normalize_and_add([torch.ones(1, 2)], [1.0, 2.0])


# ---- Procrustes


@pytest.mark.parametrize("dim", [2, 3, 8, 24, 100, 256])
def test_a_rotated_copy_is_found_with_few_points_and_many(dim):
    turn = random_rotation(dim)
    for count in {1, 2, dim // 2, dim - 1, dim, 3 * dim}:
        source = torch.randn(count, dim)
        found = procrustes(source, (source.double() @ turn).float())
        assert found.residual < 1e-5, count
        assert torch.linalg.det(found.rotation.double()).item() == pytest.approx(1, abs=1e-4)
        if count >= dim:
            assert (found.rotation - turn).abs().max() < 1e-3


@pytest.mark.parametrize("grad", [False, True])
def test_the_rotation_is_the_identity_outside_the_spans(grad):
    source, target = torch.randn(3, 40, dtype=torch.float64, requires_grad=grad), torch.randn(3, 40).double()
    rotation = procrustes(source, target).rotation.detach()
    both = torch.linalg.qr(torch.cat([source.detach(), target]).mT).Q
    outside = torch.eye(40, dtype=torch.float64) - both @ both.mT
    assert (outside @ rotation - outside).abs().max() < 1e-13
    assert (rotation @ outside - outside).abs().max() < 1e-13
    assert (rotation @ rotation.mT - torch.eye(40)).abs().max() < 1e-13


def test_one_point_turns_in_one_plane():
    source, target = points(1, 12), points(1, 12)
    angle = sphere.geodesic_distance(source, target).item()
    rotation = procrustes(source, target).rotation
    assert rotation.trace().item() == pytest.approx(10 + 2 * math.cos(angle), abs=1e-12)
    x = sphere.project_tangent(source, torch.randn(1, 12, dtype=torch.float64))
    torch.testing.assert_close(x @ rotation, sphere.parallel_transport(source, target, x))


def test_no_other_best_rotation_turns_less():
    source, target = torch.randn(4, 7, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)
    found = procrustes(source, target)
    free = torch.linalg.qr(target.mT, mode="complete").Q[:, 4:]
    for _ in range(50):
        inside = random_rotation(3)
        other = found.rotation @ (
            torch.eye(7, dtype=torch.float64) + free @ (inside - torch.eye(3)).mT @ free.mT
        )
        assert (source @ other - target).norm() / target.norm() == pytest.approx(found.residual.item())
        assert other.trace() < found.rotation.trace()


def test_agrees_with_the_known_solution_in_three_dimensions():
    for _ in range(20):
        source, target = (torch.randn(4, 3, dtype=torch.float64) for _ in range(2))
        weights = torch.rand(4, dtype=torch.float64)
        known, _ = Rotation.align_vectors(target.numpy(), source.numpy(), weights=weights.numpy())
        found = procrustes(source, target, weights=weights).rotation
        torch.testing.assert_close(found, torch.from_numpy(known.as_matrix()).mT, rtol=0, atol=1e-9)


def test_reflections_only_where_they_are_allowed():
    source = torch.randn(9, 4, dtype=torch.float64)
    mirror = torch.diag(torch.tensor([1.0, 1, 1, -1], dtype=torch.float64))
    free = procrustes(source, source @ mirror, rotation=False)
    torch.testing.assert_close(free.rotation, mirror, rtol=0, atol=1e-12)
    proper = procrustes(source, source @ mirror)
    assert torch.linalg.det(proper.rotation).item() == pytest.approx(1) and proper.residual > 0.1


def test_a_reflection_inside_the_span_of_few_points_is_a_half_turn_outside():
    source = torch.eye(3, dtype=torch.float64)[:2]
    target = source * torch.tensor([[1.0], [-1.0]])
    found = procrustes(source, target)
    torch.testing.assert_close(
        found.rotation, torch.diag(torch.tensor([1.0, -1, -1], dtype=torch.float64)), rtol=0, atol=1e-14
    )
    assert found.residual < 1e-14


def test_scale_and_weights():
    source = torch.randn(10, 5, dtype=torch.float64)
    turn = random_rotation(5)
    found = procrustes(source, 2.5 * source @ turn, scale=True)
    assert found.scale.item() == pytest.approx(2.5) and found.residual < 1e-14
    assert procrustes(source, 2.5 * source @ turn).scale.item() == 1.0
    target = torch.randn(10, 5, dtype=torch.float64)
    weights = torch.tensor([0.0, 3, 1, 1, 2, 1, 1, 1, 1, 1], dtype=torch.float64)
    rows = torch.repeat_interleave(torch.arange(10), weights.long())
    ours = procrustes(source, target, scale=True, weights=weights)
    repeated = procrustes(source[rows], target[rows], scale=True)
    for one, other in zip(ours, repeated, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("count", "dim"), [(1, 2), (1, 5), (2, 5), (3, 7), (4, 5), (5, 5), (9, 4)])
def test_gradients_with_few_points_and_many(count, dim):
    source, target = (torch.randn(count, dim, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weights = torch.rand(count, dtype=torch.float64, requires_grad=True)
    for proper in (True, False):
        assert gradcheck(
            lambda s, t, w, p=proper: procrustes(s, t, weights=w, rotation=p, scale=True)[:2],
            (source, target, weights),
        )


def test_equal_singular_values_do_not_harm_the_gradient():
    source = random_rotation(4).requires_grad_()
    target = random_rotation(4)
    if torch.linalg.det(source @ target) < 0:
        target = target.roll(1, 0)
    assert gradcheck(lambda s: procrustes(s, target).rotation, (source,))


def test_a_second_derivative_is_refused():
    source = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    rotation = procrustes(source, torch.randn(4, 3).double()).rotation
    (gradient,) = torch.autograd.grad(rotation[0, 1], source, create_graph=True)
    with pytest.raises(RuntimeError, match="^procrustes: differentiable once"):
        gradient.sum().backward()


def test_nothing_to_align_is_the_identity():
    for count in (0, 3):
        found = procrustes(torch.zeros(count, 4), torch.zeros(count, 4), scale=True)
        assert torch.equal(found.rotation, torch.eye(4)) and found.residual == 0


def test_point_sets_that_do_not_fit():
    with pytest.raises(
        ValueError, match=r"^procrustes: expected source and target \[n, D\], got \[2, 3\] and"
    ):
        procrustes(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"^procrustes: expected 2 weights, got \[3\]$"):
        procrustes(torch.ones(2, 3), torch.ones(2, 3), weights=torch.ones(3))


# ---- part of a rotation


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 16])
def test_power_is_the_exponential_of_a_share_of_the_logarithm(dim):
    turn = random_rotation(dim)
    for share in (0.0, 0.1, 0.5, 1.0, -0.7):
        expected = torch.from_numpy(expm(share * logm(turn.numpy()).real))
        torch.testing.assert_close(rotation_power(turn, share), expected, rtol=0, atol=1e-10)


def test_power_of_a_minimal_rotation_is_a_small_step_that_leaves_the_rest():
    source, target = torch.randn(4, 60, dtype=torch.float64), torch.randn(4, 60, dtype=torch.float64)
    turn = procrustes(source, target).rotation
    step = rotation_power(turn, 0.1)
    both = torch.linalg.qr(torch.cat([source, target]).mT).Q
    outside = torch.eye(60, dtype=torch.float64) - both @ both.mT
    assert (outside @ step - outside).abs().max() < 1e-13
    torch.testing.assert_close(torch.linalg.matrix_power(step, 10), turn, rtol=0, atol=1e-12)
    assert (step @ step.mT - torch.eye(60)).abs().max() < 1e-13


def test_power_near_half_turns_and_of_tiny_and_equal_angles():
    basis = random_rotation(9)
    angles = [math.pi, math.pi, math.pi - 1e-9, 1e-9]

    def turned(share: float) -> Tensor:
        blocks = [rotation_of(share * angle) for angle in angles]
        return basis @ torch.block_diag(*blocks, torch.ones(1, 1, dtype=torch.float64)) @ basis.mT

    half = rotation_power(turned(1.0), 0.5)
    torch.testing.assert_close(half @ half, turned(1.0), rtol=0, atol=1e-13)
    equal = basis @ torch.block_diag(*[rotation_of(0.4)] * 4, torch.ones(1, 1).double()) @ basis.mT
    quarter = basis @ torch.block_diag(*[rotation_of(0.1)] * 4, torch.ones(1, 1).double()) @ basis.mT
    torch.testing.assert_close(rotation_power(equal, 0.25), quarter, rtol=0, atol=1e-14)


def rotation_of(angle: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


def test_power_keeps_the_dtype_and_refuses_what_is_no_rotation():
    assert rotation_power(random_rotation(4).float(), 0.5).dtype == torch.float32
    with pytest.raises(ValueError, match=r"^rotation_power: expected a rotation \[D, D\], got \[2, 3\]$"):
        rotation_power(torch.ones(2, 3), 0.5)
    for wrong in (torch.diag(torch.tensor([1.0, -1.0])), 2 * torch.eye(2), torch.full((2, 2), math.nan)):
        with pytest.raises(ValueError, match="^rotation_power: expected a rotation, R R"):
            rotation_power(wrong, 0.5)
