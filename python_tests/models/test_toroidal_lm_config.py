from __future__ import annotations

import json
from typing import Any

import pytest

from stratcore.layers import ToroidalBranchOptions
from stratcore.models.toroidal_lm_config import ToroidalLMOptions, layer_numbers, options_from_json

KNOWN = list(range(12))


@pytest.mark.parametrize(
    ("layers", "numbers"),
    [
        ("all", KNOWN),
        ("input", [0]),
        ("middle", [6]),
        ("output", [11]),
        ("2-4", [2, 3, 4]),
        ((0, 8, 4), [0, 4, 8]),
        ((-1, 0, 0), [0, 11]),
    ],
)
def test_layers_by_name_range_and_number(layers: Any, numbers: list[int]) -> None:
    assert layer_numbers(ToroidalLMOptions(layers=layers).layers, KNOWN) == numbers


@pytest.mark.parametrize("layers", [(12,), (-13,), "11-12"])
def test_a_layer_that_is_none_is_refused_with_those_that_are(layers: Any) -> None:
    with pytest.raises(ValueError, match=r"layers: expected numbers in 0 to 11, or from -12 .*, got -?1[23]"):
        layer_numbers(layers, KNOWN)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": "first"}, "layers: expected numbers, all, input, middle, output, or a range such as 0-3"),
        ({"layers": "4-2"}, "or a range such as 0-3, got '4-2'"),
        ({"layers": ()}, "layers: expected at least one number, got none"),
        (
            {"attention": "fft_mixing"},
            "attention: expected torus.gate 'open' and torus.depth 1 with 'fft_mixing'",
        ),
        ({"attention": "linear"}, "attention: expected one of toroidal, host, fft_mixing, got 'linear'"),
        ({"projections": "zero"}, "projections: expected one of host, random, got 'zero'"),
        ({"seed": -1}, "seed: expected a number in [0, 2^32), got -1"),
    ],
)
def test_bad_options_are_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as raised:
        ToroidalLMOptions(**options)
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_options_survive_json() -> None:
    torus = ToroidalBranchOptions(period=64, lambda_distance=(0.5, 0.25), depth=2, fusion=None)
    options = ToroidalLMOptions(layers=(0, -1), torus=torus, projections="random", seed=3)
    assert options_from_json(options.to_json(), "here") == options


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.update(schema_version=2), "here: expected an object with schema_version 1"),
        (lambda data: data.update(layer=0), "here: unknown key 'layer', expected some of attention, layers"),
        (
            lambda data: data["torus"].update(lamda=0),
            "here: unknown key 'lamda', expected some of adaptive_depths",
        ),
        (lambda data: data["torus"].update(depth=0), "here: depth: expected at least 1, got 0"),
        (lambda data: data.update(torus=1), "here: expected torus, an object"),
    ],
)
def test_files_that_do_not_fit_are_one_line(change: Any, words: str) -> None:
    data = json.loads(ToroidalLMOptions().to_json())
    change(data)
    with pytest.raises(ValueError) as raised:
        options_from_json(json.dumps(data), "here")
    assert words in str(raised.value)


def test_no_json() -> None:
    with pytest.raises(ValueError, match="here: expected JSON"):
        options_from_json("{", "here")
