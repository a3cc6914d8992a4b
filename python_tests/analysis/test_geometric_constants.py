"""Every constant is computed anew from the closed forms."""

from __future__ import annotations

import math
import re

import pytest
import torch

from stratcore import ops
from stratcore.analysis import GEOMETRIC_CONSTANTS, gaussian_dim_from_cv, geometric_constant

FAR = 1e9

COMPUTED = {
    "cv_band_low": lambda: ops.cv_uniform(16.324666832505),
    "cv_band_high": lambda: ops.cv_uniform(13.556931435547),
    "cv_target": lambda: ops.cv_uniform(14.365129566223),
    "binding_constant": lambda: ops.cv_uniform(10.144742968293),
    "binding_complement": lambda: 1 - 0.29154,
    "cv_sphere_rate": lambda: ops.cv_uniform(FAR) * FAR**0.5,
    "cv_gaussian_rate": lambda: ops.cv_gaussian(FAR) * FAR**0.5,
    "mean_volume_limit": lambda: ops.mean_volume_uniform(FAR),
    "regular_pentachoron_volume": lambda: float(ops.simplex_volume(torch.eye(5).double() / 2**0.5)),
    "cayley_menger_coefficient": lambda: float(
        ops.cayley_menger_determinant(torch.eye(5).double())
        / ops.simplex_squared_volume(torch.eye(5).double())
    ),
}


@pytest.mark.parametrize("constant", GEOMETRIC_CONSTANTS, ids=lambda constant: constant.name)
def test_value_follows_from_its_closed_form(constant):
    assert constant.value == pytest.approx(COMPUTED[constant.name](), rel=1e-7)
    assert geometric_constant(constant.name) is constant
    assert constant.source and constant.meaning


def test_formulas_name_the_dimensions_that_have_these_values():
    seen = 0
    for constant in GEOMETRIC_CONSTANTS:
        for function, dim in re.findall(r"cv_(uniform|gaussian)\(([\d.]+)\)", constant.formula):
            inverse = gaussian_dim_from_cv if function == "gaussian" else _sphere_dim
            assert inverse(constant.value) == pytest.approx(float(dim), abs=0.0051), constant.name
            seen += 1
    assert seen == 7


def _sphere_dim(cv):
    return ops.effective_dim_from_cv(cv).dim


def test_nothing_that_depends_on_a_dimension_is_called_a_theorem():
    """The curve is smooth and strictly falling through every value of the cards: none of them is special."""
    curve = [ops.cv_uniform(4 + step / 4) for step in range(200)]
    ratios = [b / a for a, b in zip(curve, curve[1:], strict=False)]
    assert all(ratio < 1 for ratio in ratios)
    assert all(later > earlier for earlier, later in zip(ratios, ratios[1:], strict=False))
    standing = {constant.name: constant.standing for constant in GEOMETRIC_CONSTANTS}
    assert {standing[name] for name in ("cv_band_low", "cv_band_high")} == {"function of dimension"}
    assert {standing[name] for name in ("binding_constant", "binding_complement")} == {"folklore"}
    assert math.isclose(
        geometric_constant("binding_constant").value + geometric_constant("binding_complement").value, 1
    )


def test_unknown_names_are_told():
    with pytest.raises(ValueError, match="expected one of cv_band_low, .*got 'phi'"):
        geometric_constant("phi")
