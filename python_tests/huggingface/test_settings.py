from __future__ import annotations

import json
from typing import Any

import pytest

from stratcore.huggingface import Torus
from stratcore.huggingface.settings import Settings, settings_from, torus_from


def test_torus_is_plain_data() -> None:
    torus = Torus(lattice=[4, 6], block=(2, 3), metric="l2", first_position=5)
    assert torus == Torus(lattice=(4, 6), block=[2, 3], metric="l2", first_position=5)
    assert (torus.lattice, torus.block, torus.axes) == ((4, 6), (2, 3), 2)
    assert (Torus(lattice=7).lattice, Torus(lattice=7).axes) == ((7,), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lattice": [0]}, "1 to 3 periods"),
        ({"lattice": [4, 4, 4, 4]}, "1 to 3 periods"),
        ({"lattice": 8, "block": 3}, r"block of sizes that divide lattice \[8\], got \[3\]"),
        ({"lattice": 8, "metric": "l3"}, "metric one of l1, l2, linf, chordal, chordal_sq, got 'l3'"),
        ({"lattice": 8, "parameterization": "exp"}, "one of linear, softplus, fixed, got 'exp'"),
        ({"lattice": 8, "metric": "l2", "per_axis": True}, "expects metric l1 or chordal_sq, got 'l2'"),
        ({"lattice": 8, "eps": 1.0}, r"eps in \[0, 1\), got 1.0"),
        ({"lattice": 8, "first_position": 8}, r"first_position in \[0, 8\), got 8"),
        ({"lattice": 8, "metrc": "l1"}, "here: unknown option 'metrc', did you mean 'metric'"),
        ({"block": 8}, "here: expected lattice"),
    ],
)
def test_torus_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        torus_from(options, "here")
    assert "\n" not in str(caught.value)


def test_periods_are_whole_numbers() -> None:
    with pytest.raises(TypeError, match="lattice of whole numbers"):
        Torus(lattice=[2.5])  # type: ignore[list-item]


def test_settings_through_json() -> None:
    layers = {
        10: Torus(lattice=8, eps=0.25),
        2: Torus(lattice=(4, 4), per_axis=True, parameterization="fixed"),
    }
    written = Settings(heads=4, layers=layers).to_json()
    assert list(written["layers"]) == ["2", "10"]
    assert settings_from(json.loads(json.dumps(written)), "here") == Settings(heads=4, layers=layers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "here: expected schema_version 1, got 2"),
        ({"haeds": 4}, "here: unknown key 'haeds', did you mean 'heads'"),
        ({"heads": 4.5}, "heads, a whole number"),
        ({"layers": []}, "layers, an object"),
        ({"layers": {}}, "here: expected at least one layer, got none"),
        ({"layers": {"0": {"lattice": None}}}, "here: layer 0: expected lattice"),
        ({"layers": {"0": {"lattice": "8"}}}, "here: layer 0: .*whole numbers"),
        (
            {"layers": {"0": {"lattice": [8], "per_axis": "no"}}},
            "layer 0: Torus: expected per_axis of type bool",
        ),
        (
            {"layers": {"0": {"lattice": [8], "eps": "0"}}},
            "layer 0: Torus: expected eps of type float or int",
        ),
        ({"layers": {"-1": {}}}, "got '-1'"),
        (
            {"layers": {"0": {"lattice": [8], "blok": [8]}}},
            "here: layer 0: unknown option 'blok', did you mean 'block'",
        ),
        ({"layers": {"0": {"lattice": [-8]}}}, "here: layer 0: Torus: expected lattice"),
    ],
)
def test_settings_refuse(changes: dict[str, Any], message: str) -> None:
    written = Settings(heads=4, layers={0: Torus(lattice=8)}).to_json()
    with pytest.raises(ValueError, match=message):
        settings_from(written | changes, "here")


def test_settings_refuse_what_is_missing() -> None:
    with pytest.raises(ValueError, match="here: expected key 'heads', got none"):
        settings_from({"schema_version": 1, "layers": {}}, "here")
    with pytest.raises(ValueError, match="here: expected an object .* got list"):
        settings_from([], "here")


def test_other_keys_must_be_named() -> None:
    settings = Settings(heads=4, layers={0: Torus(lattice=8)})
    written = settings.to_json() | {"mask": "sdpa"}
    assert settings_from(written, "here", also=("mask",)) == settings
    with pytest.raises(ValueError, match="unknown key 'mask'"):
        settings_from(written, "here")
