"""Volumes of random simplices with vertices uniform on the unit sphere or normal: moments, CV, its inverse.

What a coefficient of variation (CV) of simplex volumes means is read off this baseline: a cloud whose CV equals
that of uniform points on the sphere in dimension D is, to this measure, as even as a D-dimensional one. Clusters
raise the CV as a lower dimension does, so the dimension is an equivalence, not a rank.

Legend: D dimension of the space (the sphere has D - 1), k order of the simplex, V its volume.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

# log(Gamma(z + 1/2) / Gamma(z)) = log(z) / 2 + sum_j COEFFICIENTS[j] z^-(2j+1)
_COEFFICIENTS = (-1 / 8, 1 / 192, -1 / 640, 17 / 14336, -31 / 18432, 691 / 180224, -5461 / 425984)
_ASYMPTOTIC_FROM = 12.0
_LARGEST_DIM = 1e15


class EffectiveDimension(NamedTuple):
    """Dimension in which uniform points on the sphere have the given CV, with its confidence interval.

    dim is NaN where no dimension has a CV as large. Without a number of simplices low and high are NaN.
    """

    dim: float
    low: float
    high: float


def cv_uniform(dim: float, k: int = 4) -> float:
    """CV of the volume of a simplex whose k + 1 vertices are uniform on the unit sphere of R^dim.

        CV^2 = E V^2 / (E V)^2 - 1

    Args:
        dim: D >= k; a real number, by analytic continuation.
        k: order of the simplex, >= 1.

    Returns:
        The CV, about sqrt(k / (2 (k + 1) D)) for large D. Any radius of the sphere gives the same.

    Raises:
        ValueError: dim or k out of range.

    Numerics: relative error below 1e-12; no difference of large numbers is taken.
    Source: Miles 1971, Isotropic random simplices; csrc/cayley_menger/README.md.
    """
    _check(dim, k)
    return math.sqrt(_excess(2, dim, k))


def cv_gaussian(dim: float, k: int = 4) -> float:
    """CV of the volume of a simplex whose k + 1 vertices are standard normal in R^dim.

        CV^2 = prod_{j<k} m_j Gamma(m_j / 2)^2 / (2 Gamma((m_j + 1) / 2)^2) - 1,    m_j = dim - j

    Args:
        dim: D >= k; a real number, by analytic continuation.
        k: order of the simplex, >= 1.

    Returns:
        The CV, about sqrt(k / (2 D)) for large D, sqrt(k + 1) times that of the sphere: rows that are not of one
        length. Any mean and any common variance give the same.

    Raises:
        ValueError: dim or k out of range.

    Numerics: relative error below 1e-12; no difference of large numbers is taken.
    Source: V^2 = (k + 1) / (k!)^2 prod_{j<k} chi^2_{D - j} in law (Miles 1971).
    """
    _check(dim, k)
    return math.sqrt(math.expm1(-2 * sum(_half_step((dim - j) / 2) for j in range(k))))


def mean_volume_uniform(dim: float, k: int = 4) -> float:
    """E V of a simplex whose k + 1 vertices are uniform on the unit sphere of R^dim.

    Args:
        dim: D >= k.
        k: order of the simplex, >= 1.

    Returns:
        The mean volume; times r^k on a sphere of radius r.

    Raises:
        ValueError: dim or k out of range.
    """
    return volume_moment_uniform(dim, 1, k)


def volume_moment_uniform(dim: float, power: int, k: int = 4) -> float:
    """E V^power of a simplex whose k + 1 vertices are uniform on the unit sphere of R^dim.

    Args:
        dim: D >= k.
        power: 1, 2, 3 or 4.
        k: order of the simplex, >= 1.

    Returns:
        The moment; power 2 is (k + 1) / (k!)^2 prod_{j<k} (1 - j / D).

    Raises:
        ValueError: an argument out of range.
    """
    _check(dim, k)
    if power not in (1, 2, 3, 4):
        raise ValueError(f"volume_moment_uniform: expected power 1, 2, 3 or 4, got {power}")
    evenness = math.log1p(k * (power - 2) / ((k + 1) * dim)) + sum(math.log1p(-j / dim) for j in range(k))
    return math.exp(
        power / 2 * (math.log(k + 1) + evenness) - power * math.lgamma(k + 1) + _rest(power, dim, k)
    )


def effective_dim_from_cv(
    cv: float, k: int = 4, *, num_simplices: int | None = None, confidence: float = 0.95
) -> EffectiveDimension:
    """Dimension D in which uniform points on the sphere have this CV, `cv_uniform(D, k) = cv`.

    Args:
        cv: coefficient of variation of simplex volumes, > 0.
        k: order of the simplices, >= 1.
        num_simplices: number of simplices that `cv` was estimated from; asks for the interval.
        confidence: of the interval, in (0, 1).

    Returns:
        EffectiveDimension. dim is NaN where cv > cv_uniform(k, k): no uniform cloud is as uneven. The interval
        holds every D >= k whose CV lies within the sampling error of `cv`: low is k where even the
        least dimension is consistent, and both ends are NaN where none is.

    Raises:
        ValueError: an argument out of range.

    Numerics: the interval is |log cv - log cv_uniform(D)| <= z q(D) / sqrt(num_simplices), where
    q^2 = (kurtosis - 1) / 4 + CV^2 - skewness CV by the delta method, with the exact moments of uniform simplices
    in dimension D. It supposes independent simplices. Simplices that are drawn from few rows share vertices: their
    CV varies more, and the interval is then too short; count the rows, not the simplices, where these are more
    than rows / (k + 1).
    """
    if k < 1:
        raise ValueError(f"effective_dim_from_cv: expected k >= 1, got {k}")
    if not (cv > 0 and math.isfinite(cv)):
        raise ValueError(f"effective_dim_from_cv: expected a finite cv > 0, got {cv}")
    if not 0 < confidence < 1:
        raise ValueError(f"effective_dim_from_cv: expected confidence in (0, 1), got {confidence}")
    if num_simplices is None:
        return EffectiveDimension(_inverse(cv, k, 0.0), math.nan, math.nan)
    if num_simplices < 2:
        raise ValueError(f"effective_dim_from_cv: expected num_simplices >= 2, got {num_simplices}")
    width = NormalDist().inv_cdf((1 + confidence) / 2) / math.sqrt(num_simplices)
    low, high = _inverse(cv, k, -width), _inverse(cv, k, width)
    # Even k dimensions are too even for the upper limit of the CV, or too uneven for the lower one.
    if math.isnan(low) and not math.isnan(high):
        low = float(k)
    return EffectiveDimension(_inverse(cv, k, 0.0), low, high)


def _check(dim: float, k: int) -> None:
    if k < 1:
        raise ValueError(f"simplex baseline: expected k >= 1, got {k}")
    if not k <= dim <= _LARGEST_DIM:
        raise ValueError(f"simplex baseline: expected dim in [k, {_LARGEST_DIM:g}] with k = {k}, got {dim}")


def _half_step(z: float) -> float:
    """log(Gamma(z + 1/2) / Gamma(z)) - log(z) / 2, about -1 / (8 z), for z >= 1/2."""
    shift = 0.0
    start = z
    while z < _ASYMPTOTIC_FROM:
        shift -= math.log1p(0.5 / z)
        z += 1.0
    inverse = 1.0 / z
    series = 0.0
    for coefficient in reversed(_COEFFICIENTS):
        series = series * inverse * inverse + coefficient
    return series * inverse + (shift + 0.5 * math.log(z / start) if z > start else 0.0)


def _step(power: int, z: float) -> float:
    """log(Gamma(z + power / 2) / Gamma(z)) - power / 2 log(z), of order 1 / z."""
    half = _half_step(z) if power % 2 else 0.0
    return half + (math.log1p((power - 2) / (2 * z)) if power > 2 else 0.0)


def _rest(power: int, dim: float, k: int) -> float:
    """The logarithm of E V^power without its powers of D; of order 1 / D."""
    middle = ((k + 1) * dim + k * (power - 2)) / 2
    faces = sum(_step(power, (dim - j) / 2) for j in range(k))
    return _step(power, middle) + faces - (k + 1) * _step(power, dim / 2)


def _excess(power: int, dim: float, k: int) -> float:
    """E V^power / (E V)^power - 1, of order 1 / D, without cancellation."""
    share = k / ((k + 1) * dim)
    log_ratio = power / 2 * (math.log1p(share * (power - 2)) - math.log1p(-share))
    return math.expm1(log_ratio + _rest(power, dim, k) - power * _rest(1, dim, k))


def _log_error(dim: float, k: int) -> float:
    """Standard error of the logarithm of an estimated CV, times the root of the number of simplices."""
    second, third, fourth = (_excess(power, dim, k) for power in (2, 3, 4))
    variance, skew, kurtosis = second, third - 3 * second, fourth - 4 * third + 6 * second
    return math.sqrt(max(0.0, (kurtosis / variance**2 - 1) / 4 + variance - skew / variance))


def _inverse(cv: float, k: int, width: float) -> float:
    """The dim >= k where log CV(dim) + width * error(dim) = log cv, NaN where there is none."""

    def surplus(log_dim: float) -> float:
        dim = max(math.exp(log_dim), float(k))
        error = width * _log_error(dim, k) if width else 0.0
        return 0.5 * math.log(_excess(2, dim, k)) + error - math.log(cv)

    low = high = math.log(k)
    above = below = surplus(low)
    if above <= 0:
        return float(k) if above > -1e-14 else math.nan
    while below > 0:
        if high > math.log(_LARGEST_DIM):
            return math.inf
        low, above, high = high, below, high + 1.0
        below = surplus(high)
    side = 0
    # Regula falsi with the Illinois rule: nearly linear in log dim, so a few steps do.
    while high - low > 1e-15 * (1 + abs(high)):
        middle = min(max((low * below - high * above) / (below - above), low), high)
        value = surplus(middle)
        if abs(value) < 1e-15 or middle in (low, high):
            return math.exp(middle)
        if value > 0:
            low, above, below = middle, value, below / 2 if side > 0 else below
            side = 1
        else:
            high, below, above = middle, value, above / 2 if side < 0 else above
            side = -1
    return math.exp((low + high) / 2)
