"""Constants of simplex geometry that the source documents name, each with what it really is.

Numbers that are functions of a dimension are written with that dimension: none of them is universal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Standing = Literal["theorem", "function of dimension", "convention", "folklore"]


@dataclass(frozen=True, kw_only=True)
class GeometricConstant:
    """A number and where it comes from.

    Args:
        name: as code would write it.
        value: the number.
        formula: closed form, in the words of `stratcore.ops` where a function computes it.
        source: who states the number.
        standing: 'theorem': follows from definitions; 'function of dimension': one point of a curve;
            'convention': chosen; 'folklore': no derivation is known.
        meaning: what it really is.
    """

    name: str
    value: float
    formula: str
    source: str
    standing: Standing
    meaning: str


_CARD = "model card of the dual-stream vision transformer"
_MILES = "Miles 1971, Isotropic random simplices"

GEOMETRIC_CONSTANTS: tuple[GeometricConstant, ...] = (
    GeometricConstant(
        name="cv_band_low",
        value=0.20,
        formula="cv_uniform(16.32) = cv_gaussian(52.51) = 0.20",
        source=_CARD,
        standing="function of dimension",
        meaning="lower end of the 'universal band': uniform points on the sphere in 16.3 dimensions, or normal rows "
        "in 52.5; evenness of a cloud, no attractor",
    ),
    GeometricConstant(
        name="cv_band_high",
        value=0.23,
        formula="cv_uniform(13.56) = cv_gaussian(40.33) = 0.23",
        source=_CARD,
        standing="function of dimension",
        meaning="upper end of the 'universal band': 13.6 dimensions on the sphere, or 40.3 of normal rows",
    ),
    GeometricConstant(
        name="cv_target",
        value=0.22,
        formula="cv_uniform(14.37) = 0.22",
        source=_CARD,
        standing="convention",
        meaning="target of the CV loss: a pull towards about 14 effective dimensions, whatever the embedding's size",
    ),
    GeometricConstant(
        name="binding_constant",
        value=0.29154,
        formula="none; cv_uniform(10.14) = cv_gaussian(26.06) = 0.29154",
        source=_CARD,
        standing="folklore",
        meaning="the CV at 10.1 dimensions on the sphere: nothing is special there on a smooth curve",
    ),
    GeometricConstant(
        name="binding_complement",
        value=0.70846,
        formula="1 - 0.29154",
        source=_CARD,
        standing="folklore",
        meaning="one minus the number above",
    ),
    GeometricConstant(
        name="cv_sphere_rate",
        value=math.sqrt(2 / 5),
        formula="lim sqrt(D) cv_uniform(D, 4) = sqrt(k / (2 (k + 1)))",
        source=_MILES,
        standing="theorem",
        meaning="CV of pentachora on the sphere is 0.632 / sqrt(D) for large D",
    ),
    GeometricConstant(
        name="cv_gaussian_rate",
        value=math.sqrt(2),
        formula="lim sqrt(D) cv_gaussian(D, 4) = sqrt(k / 2)",
        source=_MILES,
        standing="theorem",
        meaning="CV of pentachora with normal vertices is 1.414 / sqrt(D) for large D",
    ),
    GeometricConstant(
        name="mean_volume_limit",
        value=math.sqrt(5) / 24,
        formula="lim mean_volume_uniform(D, 4) = sqrt(k + 1) / k!",
        source=_MILES,
        standing="theorem",
        meaning="volume of a pentachoron with orthonormal vertices: what uniform points on the sphere approach",
    ),
    GeometricConstant(
        name="regular_pentachoron_volume",
        value=math.sqrt(5) / 96,
        formula="sqrt((k + 1) / 2^k) / k!, edge 1",
        source="Coxeter 1973, Regular polytopes",
        standing="theorem",
        meaning="largest volume of a pentachoron whose edges have mean square 1",
    ),
    GeometricConstant(
        name="cayley_menger_coefficient",
        value=-9216.0,
        formula="(-1)^(k + 1) 2^k (k!)^2",
        source="Blumenthal 1953, Theory and applications of distance geometry",
        standing="theorem",
        meaning="determinant of the bordered matrix over the squared volume, of a pentachoron; a determinant that is "
        "not negative is a rounding error where the vertices are real points",
    ),
)


def geometric_constant(name: str) -> GeometricConstant:
    """The constant of this name.

    Raises:
        ValueError: no such name.
    """
    for constant in GEOMETRIC_CONSTANTS:
        if constant.name == name:
            return constant
    names = ", ".join(constant.name for constant in GEOMETRIC_CONSTANTS)
    raise ValueError(f"name: expected one of {names}, got {name!r}")
