"""Geometry of the unit sphere: streams that meet on it, its maps, and rotations between point sets.

All functions take points as rows, on the last axis; leading axes broadcast. Points are of length 1 and tangent
vectors orthogonal to theirs: neither is checked. Legend: n rows, D dimension.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from stratcore import ops

# Below these the Taylor series of 7 and 8 terms are exact to float64 rounding; above, the closed forms are.
_SERIES_ANGLE = 0.25  # square of an angle
_SERIES_SINE = 0.01  # square of a sine

_ARCSINE = (1, 1 / 6, 3 / 40, 5 / 112, 35 / 1152, 63 / 2816, 231 / 13312, 143 / 10240)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value


def normalize_and_add(
    streams: Sequence[Tensor], weights: Tensor | Sequence[float] | None = None, *, eps: float = 1e-12
) -> Tensor:
    """Sum of directions, back on the sphere: y = normalize(sum_i w_i normalize(x_i)).

    Args:
        streams: at least one [..., D], of any lengths.
        weights: one number a stream, [len(streams)]; None: all 1.
        eps: least length that a row is divided by; a sum of 0, as of opposite streams, stays 0.

    Returns:
        [..., D].

    Raises:
        ValueError: no stream, or another number of weights.

    Gradient: exact, to streams and weights; a stream's own length does not matter and gets none.
    """
    if not streams:
        raise ValueError("normalize_and_add: expected at least one stream, got none")
    if weights is not None and len(weights) != len(streams):
        raise ValueError(f"normalize_and_add: expected {len(streams)} weights, got {len(weights)}")

    def onto_sphere(x: Tensor) -> Tensor:
        return ops.sphere_normalize(x, tangential=1.0, separation=0.0, jacobian="normalize", eps=eps)

    units = [onto_sphere(stream) for stream in streams]
    if weights is not None:
        units = [weights[index] * unit for index, unit in enumerate(units)]
    return onto_sphere(functools.reduce(torch.add, units))


def project_tangent(x: Tensor, vector: Tensor) -> Tensor:
    """Part of a vector that is tangent at x: v - <x, v> x."""
    return vector - _dot(x, vector) * x


def riemannian_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """Gradient on the sphere of a function whose gradient in the surrounding space is given: its tangent part."""
    return project_tangent(x, gradient)


def retract(x: Tensor, tangent: Tensor) -> Tensor:
    """First-order step from x along a tangent vector: (x + v) / |x + v|."""
    return normalize(x + tangent, dim=-1)


def exponential_map(x: Tensor, tangent: Tensor) -> Tensor:
    """End of the geodesic from x with velocity v: cos|v| x + sin|v| / |v| v.

    Gradient: smooth everywhere, at v = 0 too.
    """
    square = _dot(tangent, tangent)
    small = square < _SERIES_ANGLE
    angle = torch.where(small, 1.0, square).sqrt()
    cosine = torch.where(
        small,
        _polynomial((1, -1 / 2, 1 / 24, -1 / 720, 1 / 40320, -1 / 3628800, 1 / 479001600), square),
        angle.cos(),
    )
    ratio = torch.where(
        small,
        _polynomial((1, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880, -1 / 39916800, 1 / 6227020800), square),
        angle.sin() / angle,
    )
    return cosine * x + ratio * tangent


def _any_tangent(x: Tensor) -> Tensor:
    """A unit tangent vector: toward the coordinate axis that x has least of."""
    axis = one_hot(x.detach().abs().argmin(-1), x.shape[-1]).to(x.dtype)
    return normalize(project_tangent(x, axis), dim=-1)


def logarithm_map(x: Tensor, y: Tensor) -> Tensor:
    """Velocity at x of the shortest geodesic to y: theta / sin(theta) (y - cos(theta) x), of length theta.

    Args:
        x: [..., D], start.
        y: [..., D], end.

    Returns:
        [..., D], tangent at x, of length in [0, pi].

    Gradient: smooth up to theta = pi; there every direction is shortest, and the derivative grows as
    1 / (pi - theta). At y = -x exactly, the direction toward the axis that x has least of is taken, of length pi, so
    that `exponential_map` still arrives at y; the gradient to y is 0.
    Numerics: from y - x or y + x, whichever is shorter, and atan2, so that angles near 0 and pi keep their digits.
    """
    cosine = _dot(x, y)
    near = cosine > 0
    # The tangent part of y is that of y -+ x, where nothing cancels.
    sine_vector = project_tangent(x, torch.where(near, y - x, y + x))
    square = _dot(sine_vector, sine_vector)
    small = near & (square < _SERIES_SINE)
    antipodal = ~near & (square == 0)
    sine = torch.where(small | antipodal, 1.0, square).sqrt()
    ratio = torch.where(small, _polynomial(_ARCSINE, square), torch.atan2(sine, cosine) / sine)
    return torch.where(antipodal, torch.pi * _any_tangent(x), ratio * sine_vector)


def geodesic_distance(x: Tensor, y: Tensor) -> Tensor:
    """Angle between points, [...], in [0, pi]: 2 atan2(|x - y|, |x + y|), exact to rounding at both ends.

    Gradient: of length 1 toward y, but 0 where x = y or x = -y, where there is none.
    """
    difference = torch.linalg.vector_norm(x - y, dim=-1)
    return 2 * torch.atan2(difference, torch.linalg.vector_norm(x + y, dim=-1))


def parallel_transport(x: Tensor, y: Tensor, tangent: Tensor) -> Tensor:
    """Tangent vector at x, carried along the shortest geodesic to y: v - 2 <m, v> m, m = (x + y) / |x + y|.

    Returns:
        [..., D], tangent at y; lengths and angles are kept. At y = -x along the geodesic that `logarithm_map` takes.
    """
    middle = x + y
    middle = torch.where((middle == 0).all(-1, keepdim=True), _any_tangent(x), middle)
    return tangent - 2 * _dot(middle, tangent) / _dot(middle, middle) * middle


def slerp(x: Tensor, y: Tensor, t: float | Tensor) -> Tensor:
    """Point at share t of the shortest geodesic from x (t = 0) to y (t = 1); t outside [0, 1] goes on along it.

    Args:
        x: [..., D], start.
        y: [..., D], end; at y = -x see `logarithm_map`.
        t: number, or tensor over the leading axes [...].

    Returns:
        [..., D].
    """
    share = t.unsqueeze(-1) if isinstance(t, Tensor) else t
    return exponential_map(x, share * logarithm_map(x, y))


# ---- rotations between point sets


class Alignment(NamedTuple):
    """scale * source @ rotation is nearest to the target.

    rotation: [D, D]. scale: scalar. residual: scalar, |scale S R - T| / |T| with the weights, detached.
    """

    rotation: Tensor
    scale: Tensor
    residual: Tensor


def procrustes(
    source: Tensor,
    target: Tensor,
    *,
    rotation: bool = True,
    scale: bool = False,
    weights: Tensor | None = None,
) -> Alignment:
    """Rotation about 0 that brings one point set nearest to another, and turns as little as it can.

        minimize sum_i w_i |s S_i R - T_i|^2 over R, then |R - I| over the R that do

    Fewer points than dimensions leave R open outside their spans; it is the identity there. (One direction
    outside is turned over where the points are matched by a reflection inside their span only.)

    Args:
        source: S [n, D].
        target: T [n, D].
        rotation: R has determinant 1; False: reflections are allowed.
        scale: fit s too; False: s = 1.
        weights: w [n], not negative; None: all 1.

    Returns:
        `Alignment`, in the dtype of `source`.

    Raises:
        ValueError: not two matrices of one shape, or another number of weights.

    Gradient: exact to source, target and weights, also for n < D. There is none, and the values near it are large,
    where two singular values of S^T W T (or, for n < D, of the overlap of its null spaces) add up to 0, the last one
    counted negative if R would be a reflection else, or where its rank changes. Once differentiable.
    Numerics: float64 inside. Singular values of S^T W T below (8 eps)^2 of the largest, eps of the input dtype, count
    as 0.
    Cost: two singular value decompositions, O(D^3); O(n D^2) for n < D / 2 where no gradient is needed. Waits for
    the device.
    Source: Schoenemann 1966; Kabsch 1976 for the determinant.
    """
    if source.ndim != 2 or source.shape != target.shape:
        raise ValueError(
            f"procrustes: expected source and target [n, D], got {[*source.shape]} and {[*target.shape]}"
        )
    if weights is not None and weights.shape != source.shape[:1]:
        raise ValueError(f"procrustes: expected {source.shape[0]} weights, got {[*weights.shape]}")
    s_nD, t_nD = source.double(), target.double()
    w_n1 = torch.ones_like(s_nD[:, :1]) if weights is None else weights.double()[:, None]
    r_DD = _rotation_between(w_n1 * s_nD, t_nD, torch.finfo(source.dtype).eps, rotation)
    factor = torch.ones((), dtype=s_nD.dtype, device=s_nD.device)
    if scale:
        length = (w_n1 * s_nD.square()).sum()
        factor = (w_n1 * (s_nD @ r_DD) * t_nD).sum() / length.clamp_min(torch.finfo(length.dtype).tiny)
    with torch.no_grad():
        error, size = factor * s_nD @ r_DD - t_nD, w_n1 * t_nD.square()
        residual = ((w_n1 * error.square()).sum() / size.sum().clamp_min(torch.finfo(size.dtype).tiny)).sqrt()
    return Alignment(*(tensor.to(source.dtype) for tensor in (r_DD, factor, residual)))


def _rotation_between(source_nD: Tensor, target_nD: Tensor, eps: float, proper: bool) -> Tensor:
    count, dim = source_nD.shape
    tolerance = max((8 * eps) ** 2, 8 * max(count, dim) * torch.finfo(torch.float64).eps)
    differentiated = torch.is_grad_enabled() and (source_nD.requires_grad or target_nD.requires_grad)
    if differentiated or 2 * count >= dim:
        return _NearestRotation.apply(source_nD.mT @ target_nD, tolerance, proper)
    basis = torch.linalg.qr(torch.cat([source_nD, target_nD]).mT).Q
    inside = _NearestRotation.apply((source_nD @ basis).mT @ (target_nD @ basis), tolerance, proper)
    inside.diagonal().sub_(1)
    return torch.eye(dim, dtype=basis.dtype, device=basis.device) + basis @ inside @ basis.mT


class _NearestRotation(torch.autograd.Function):
    """R of largest <R, M> and, among those, of largest trace: U V^T, with frames chosen on the null spaces of M.

    In blocks 1 (singular values sigma) and 0 (null spaces; c, singular values of U0^T V0), R turns by
    dR = U z V^T, z skew:
        sigma z11 + z11 sigma = skew(X11),  sigma z10 = X10 - X01^T,  X = U^T dM V, X00 = 0 at constant rank
        c z00 + z00 c = skew(z10^T p10) - skew(B X10),  p10 = U1^T V0,  B = (U0^T V1 - V0^T U1) / sigma
    with skew(Y) = Y - Y^T. The last line is the first order of the trace's own condition.
    """

    @staticmethod
    def forward(ctx: Any, product: Tensor, tolerance: float, proper: bool) -> Tensor:
        u_DD, sigma, vh_DD = torch.linalg.svd(product)
        rank = int((sigma > tolerance * sigma[:1]).sum())
        v_DD = vh_DD.mT.clone()
        left, cosine, right = torch.linalg.svd(u_DD[:, rank:].mT @ v_DD[:, rank:])
        u_DD[:, rank:] = u_DD[:, rank:] @ left
        v_DD[:, rank:] = v_DD[:, rank:] @ right.mT
        values = torch.cat([sigma[:rank], cosine])
        rotation = u_DD @ v_DD.mT
        if proper and torch.linalg.det(rotation) < 0:
            u_DD[:, -1].neg_()
            values[-1].neg_()
            rotation = u_DD @ v_DD.mT
        ctx.rank = rank
        ctx.save_for_backward(product, u_DD, v_DD, values)
        return rotation

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        product, *frames = ctx.saved_tensors
        with torch.no_grad():
            gradient = _NearestRotation.gradient(ctx.rank, grad, *frames)
        return _DifferentiableOnce.apply(gradient, product, grad), None, None

    @staticmethod
    def gradient(rank: int, grad: Tensor, u: Tensor, v: Tensor, values: Tensor) -> Tensor:
        """Cotangent of M from that of R."""
        one, null = slice(0, rank), slice(rank, None)
        sigma, cosine = values[one, None], values[null]
        g = u.mT @ grad @ v
        overlap = u.mT @ v
        skew = _skew_over_sums(g[null, null], cosine)
        leaning = (overlap[null, one].mT - overlap[one, null]) / sigma
        coupled = (g[one, null] - g[null, one].mT - overlap[one, null] @ skew) / sigma
        x = torch.zeros_like(g)
        x[one, one] = _skew_over_sums(g[one, one], values[one])
        x[one, null] = coupled - leaning @ skew
        x[null, one] = -coupled.mT
        return u @ x @ v.mT


class _DifferentiableOnce(torch.autograd.Function):
    """A value with no derivative with respect to its sources: asking for one is an error, never a silent 0."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *sources: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("procrustes: differentiable once, a second derivative was asked for")


def _skew_over_sums(matrix: Tensor, values: Tensor) -> Tensor:
    sums = values[:, None] + values
    return (matrix - matrix.mT) / sums.fill_diagonal_(1)


@torch.no_grad()
def rotation_power(rotation: Tensor, share: float) -> Tensor:
    """Share of a rotation, R^share = exp(share log R): every plane turns by that share of its angle.

    Args:
        rotation: R [D, D], orthogonal with determinant 1.
        share: 0 gives the identity, 1 gives R; any real number.

    Returns:
        [D, D], orthogonal to rounding, dtype and device of `rotation`.

    Raises:
        ValueError: not a rotation.

    Gradient: none. Angles are in (-pi, pi]; of several planes turned by exactly pi, any pairing is a logarithm,
    and one is taken.
    Numerics: real Schur form in float64 on the host, O(D^3); accurate for angles near 0 and pi, and where several
    are equal.
    """
    from scipy.linalg import block_diag, schur

    if rotation.ndim != 2 or rotation.shape[0] != rotation.shape[1]:
        raise ValueError(f"rotation_power: expected a rotation [D, D], got {[*rotation.shape]}")
    matrix = rotation.double().cpu()
    deviation = float((matrix @ matrix.mT - torch.eye(len(matrix), dtype=matrix.dtype)).abs().max())
    allowed = 64 * torch.finfo(rotation.dtype).eps * max(1, len(matrix)) ** 0.5
    if not deviation <= allowed or torch.linalg.det(matrix) < 0:
        raise ValueError(
            f"rotation_power: expected a rotation, R R^T = I within {allowed:.1g} and determinant 1, got a "
            f"deviation of {deviation:.1g} and determinant {float(torch.linalg.det(matrix)):.3g}"
        )
    form, basis = schur(matrix.numpy(), output="real")
    planes, half_turned, order = [], [], []
    index = 0
    while index < len(form):
        if index + 1 < len(form) and form[index + 1, index] != 0:
            sine = math.copysign(
                math.sqrt(abs(form[index + 1, index] * form[index, index + 1])), form[index + 1, index]
            )
            planes.append(_turn(share * math.atan2(sine, form[index, index])))
            order += [index, index + 1]
            index += 2
            continue
        if form[index, index] < 0:
            half_turned.append(index)
        else:
            planes.append([[1.0]])
            order.append(index)
        index += 1
    planes += [_turn(share * math.pi)] * (len(half_turned) // 2)
    basis = basis[:, order + half_turned]
    power = basis @ block_diag(*planes) @ basis.T
    return torch.from_numpy(power).to(rotation)


def _turn(angle: float) -> list[list[float]]:
    return [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
