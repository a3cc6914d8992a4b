"""Plain values, the check of a schema, and files written whole or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
import pytest

from stratcore.analysis import check_schema, to_plain, write_json


@dataclass(frozen=True)
class Leaf:
    value: float
    names: list[str]


class Tree(TypedDict):
    kind: Literal["a", "b"]
    leaf: Leaf | None
    count: int


TREE = {"kind": "a", "leaf": {"value": 1.0, "names": ["x"]}, "count": 3}


def test_a_tree_that_fits_passes():
    check_schema(TREE, Tree)
    check_schema(TREE | {"leaf": None, "more": 1}, Tree)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "c"}, "kind: expected one of a, b, got str 'c'"),
        ({"leaf": {"value": "x", "names": []}}, "leaf.value: expected a number"),
        ({"leaf": {"value": None, "names": [1]}}, r"leaf.names\[0\]: expected a string"),
        ({"leaf": {"value": 1.0}}, "missing key 'leaf.names'"),
        ({"count": True}, "count: expected an integer"),
    ],
)
def test_what_does_not_fit_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        check_schema(TREE | change, Tree)


def test_plain_values_and_their_file(tmp_path):
    value = {"a": np.float32(0.5), "b": np.array([1, 2]), "c": float("nan"), "d": Leaf(np.inf, ["x"])}
    assert to_plain(value) == {"a": 0.5, "b": [1, 2], "c": None, "d": {"value": None, "names": ["x"]}}
    assert json.loads(write_json(tmp_path / "x.json", value).read_text()) == to_plain(value)
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
