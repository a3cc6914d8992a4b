"""Norms, cosines and the spectrum of the rows.

Legend: N rows, D features.
"""

from __future__ import annotations

import math

import numpy as np

from stratcore.analysis.geometry import closed_forms
from stratcore.analysis.geometry._rows import SIMULATED_ROWS, GaussianTwin, Rows, jackknife
from stratcore.analysis.geometry.results import Baseline, Measurement
from stratcore.analysis.intrinsic_dim import effective_rank, participation_ratio

SAMPLED_PAIRS = 200_000
TWIN = "normal rows of the same mean and covariance"
SPHERE = "uniform on the sphere in {dim} dimensions"
ISOTROPIC = "isotropic normal rows of the same number and dimension"


def simulated(name: str, draws: list[float]) -> Baseline:
    """Mean and range of the draws, over those that exist."""
    known = [draw for draw in draws if math.isfinite(draw)]
    if not known:
        return Baseline(name=name, source="simulation", value=math.nan)
    return Baseline(
        name=name, source="simulation", value=float(np.mean(known)), low=min(known), high=max(known)
    )


def against(value: float, baseline: Baseline) -> str:
    """Where a value lies by the range of a baseline: 'above', 'below' or 'within'."""
    if value > baseline.high:
        return "above"
    return "below" if value < baseline.low else "within"


# ---- norms


def _norm_figures(norm_N: np.ndarray) -> tuple[float, float, float]:
    mean = float(norm_N.mean())
    median = float(np.median(norm_N))
    tail = float(np.quantile(norm_N, 0.99)) / median if median > 0 else math.nan
    return mean, float(norm_N.std()) / mean if mean > 0 else math.nan, tail


def norm_measurements(rows: Rows, twin: GaussianTwin, rng: np.random.Generator) -> list[Measurement]:
    """Mean, spread (standard deviation over mean) and upper tail (99 % quantile over median) of the norms."""
    mean, spread, tail = _norm_figures(rows.norm_N)
    size = min(len(rows.x_ND), SIMULATED_ROWS)
    draws = [_norm_figures(np.linalg.norm(twin.draw(size, rng), axis=1)) for _ in range(20)]
    of_mean, of_spread, of_tail = (simulated(TWIN, list(column)) for column in zip(*draws, strict=True))
    if spread < 1e-6:
        how = "all rows have one norm: they lie on a sphere"
    else:
        how = f"a spread {against(spread, of_spread)} what normal rows of this covariance show"
    words = {"above": "heavier than", "below": "lighter than", "within": "as heavy as"}
    return [
        Measurement(name="norm_mean", value=mean, baselines=(of_mean,), reading=f"mean norm {mean:.4g}"),
        Measurement(name="norm_spread", value=spread, baselines=(of_spread,), reading=how),
        Measurement(
            name="norm_tail",
            value=tail,
            baselines=(of_tail,),
            reading=f"the upper tail of the norms is {words[against(tail, of_tail)]} normal rows'"
            if math.isfinite(tail)
            else "more than half of the rows are 0",
        ),
    ]


# ---- cosines


def sample_cosines(u_ND: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cosines of random pairs of different rows, float64; none with fewer than two rows."""
    if len(u_ND) < 2:
        return np.empty(0)
    first = rng.integers(len(u_ND), size=SAMPLED_PAIRS)
    second = (first + rng.integers(1, len(u_ND), size=SAMPLED_PAIRS)) % len(u_ND)
    cosines = [
        np.einsum("nd,nd->n", u_ND[i], u_ND[j])
        for i, j in zip(np.array_split(first, 20), np.array_split(second, 20), strict=True)
    ]
    return np.clip(np.concatenate(cosines), -1, 1)


def mean_cosine(u_ND: np.ndarray) -> float:
    """Mean cosine of all pairs of different rows: (|sum u|^2 - N) / (N (N - 1)), without the pairs."""
    total_D, count = u_ND.sum(axis=0), len(u_ND)
    return float((total_D @ total_D - count) / (count * (count - 1)))


def mean_squared_cosine(u_ND: np.ndarray) -> float:
    """Mean squared cosine of all pairs of different rows, from the smaller Gram matrix."""
    small = u_ND.T if u_ND.shape[0] > u_ND.shape[1] else u_ND
    count = len(u_ND)
    return float((np.sum((small @ small.T) ** 2) - count) / (count * (count - 1)))


def cosine_measurements(rows: Rows, cosines: np.ndarray, rng: np.random.Generator) -> list[Measurement]:
    """Mean, spread and upper quantile of the cosines of pairs, and isotropy of the directions."""
    count, dim = rows.u_ND.shape
    names = ("mean_cosine", "cosine_spread", "cosine_q99", "isotropy")
    if count < 2:
        why = "fewer than two rows are not 0: no pair has a cosine"
        return [Measurement(name=name, value=math.nan, reading=why) for name in names]
    sphere = SPHERE.format(dim=dim)
    mean, square = mean_cosine(rows.u_ND), mean_squared_cosine(rows.u_ND)
    half = float(jackknife(lambda u: np.array([mean_cosine(u)]), rows.u_ND, rng)[0])
    low, high = closed_forms.sphere_mean_cosine_range(count, dim)
    of_mean = Baseline(name=sphere, source="closed form", value=0.0, low=low, high=high)
    spread, q99 = math.sqrt(max(square - mean**2, 0.0)), float(np.quantile(cosines, 0.99))
    isotropy = 1 / (dim * square) if square > 0 else math.nan
    error = 1.96 * math.sqrt(4 * (dim - 1) / ((dim + 2) * count * (count - 1)))
    of_isotropy = Baseline(
        name=sphere,
        source="closed form",
        value=1.0,
        low=1 / (1 + error),
        high=1 / (1 - error) if error < 1 else math.inf,
    )
    of_q99 = float(closed_forms.sphere_cosine_quantile(0.99, dim))
    side = against(mean, of_mean)
    cone = {"above": "the rows share a direction", "below": "rows repel each other, as a class simplex does"}
    return [
        Measurement(
            name="mean_cosine", value=mean, low=mean - half, high=mean + half, baselines=(of_mean,),
            reading=cone.get(side, "no common direction beyond chance"),
        ),
        Measurement(
            name="cosine_spread", value=spread,
            baselines=(Baseline(name=sphere, source="closed form", value=1 / math.sqrt(dim)),),
            reading=f"cosines spread {spread * math.sqrt(dim):.2f} times as widely as on the sphere",
        ),
        Measurement(
            name="cosine_q99", value=q99,
            baselines=(Baseline(name=sphere, source="closed form", value=of_q99),),
            reading="the closest 1 % of pairs are "
            + ("closer than" if q99 > of_q99 else "no closer than") + " uniform directions'",
        ),
        Measurement(
            name="isotropy", value=isotropy, baselines=(of_isotropy,),
            reading=f"directions fill {100 * min(isotropy, 1):.3g} % of what uniform ones would"
            if math.isfinite(isotropy)
            else "all pairs are orthogonal",
        ),
    ]  # fmt: skip


# ---- spectrum


def _spectrum_figures(x_ND: np.ndarray) -> np.ndarray:
    centered = x_ND - x_ND.mean(axis=0)
    small = centered.T if x_ND.shape[0] > x_ND.shape[1] else centered
    eigenvalues = np.maximum(np.linalg.eigvalsh(small @ small.T), 0)
    if not eigenvalues.sum() > 0:
        return np.full(2, np.nan)
    return np.array([participation_ratio(eigenvalues), effective_rank(eigenvalues)])


def spectrum_measurements(
    rows: Rows, eigenvalues: np.ndarray, top_k: tuple[int, ...], rng: np.random.Generator
) -> list[Measurement]:
    """Participation ratio, effective rank and the energy of the leading principal components."""
    count, dim = rows.x_ND.shape
    shares = tuple(k for k in top_k if k <= min(dim, count - 1))
    if not eigenvalues.sum() > 0:
        why = "all rows are equal: there is no variance to measure a dimension by"
        names = ("participation_ratio", "effective_rank", *(f"top_{k}_energy" for k in shares))
        return [Measurement(name=name, value=math.nan, reading=why) for name in names]
    half = jackknife(_spectrum_figures, rows.x_ND, rng)
    isotropic = closed_forms.marchenko_pastur_eigenvalues(count, dim) / dim
    values = (participation_ratio(eigenvalues), effective_rank(eigenvalues))
    null = (
        closed_forms.isotropic_participation_ratio(count, dim),
        closed_forms.isotropic_effective_rank(count, dim),
    )
    found = [
        Measurement(
            name=name,
            value=value,
            low=max(value - width, 1.0),
            high=value + width,
            baselines=(Baseline(name=ISOTROPIC, source="closed form", value=expected),),
            reading=f"{100 * value / expected:.3g} % of what isotropic rows would show",
        )
        for name, value, width, expected in zip(
            ("participation_ratio", "effective_rank"), values, half, null, strict=True
        )
    ]
    for k in shares:
        energy, expected = float(eigenvalues[:k].sum() / eigenvalues.sum()), float(isotropic[:k].sum())
        found.append(
            Measurement(
                name=f"top_{k}_energy",
                value=energy,
                baselines=(Baseline(name=ISOTROPIC, source="closed form", value=expected),),
                reading=f"the leading {k} of {dim} axes hold {100 * energy:.3g} % of the variance, "
                f"{energy / expected:.3g} times an isotropic share",
            )
        )
    return found
