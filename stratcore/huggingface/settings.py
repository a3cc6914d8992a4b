"""Which layers of a host attend on which torus, as plain data: in the host's configuration and beside an adapter."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from stratcore.ops._toroidal_attention_call import METRICS, PER_AXIS, as_periods, check_periods

IMPLEMENTATION = "toroidal"
ATTRIBUTE = "stratcore_toroidal_attention"
SCHEMA_VERSION = 1
PARAMETERIZATIONS = ("linear", "softplus", "fixed")


def nearest(name: str, known: Iterable[str]) -> str:
    """', did you mean ...?' with the known name that is spelt most alike, or nothing."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f", did you mean {close[0]!r}?" if close else ""


@dataclass(frozen=True, kw_only=True)
class Torus:
    """The distance that one layer's attention falls with; see `stratcore.ops.toroidal_attention`.

    Args:
        lattice: 1 to 3 periods, in tokens. Part of the model: never the current length.
        block: sizes that divide them, if tokens are numbered block after block; None: row-major.
        metric: 'l1', 'l2', 'linf', 'chordal' or 'chordal_sq'.
        per_axis: one slope a head and axis in place of one a head; for 'l1' and 'chordal_sq'.
        parameterization: what is learned: the slope itself ('linear', of any sign, may start at 0), its inverse
            softplus ('softplus', stays positive), or nothing ('fixed').
        eps: most of a row's probability that tiles which are not looked at may hold; 0 looks at all.
        first_position: position of the first slot. Matters on several axes only: on a lattice of (14, 14) behind one
            class token, 195 makes the first patch the first site.

    Raises:
        ValueError: a value that does not fit.
        TypeError: a value of another type, such as periods that are not whole numbers.
    """

    lattice: int | Sequence[int]
    block: int | Sequence[int] | None = None
    metric: str = "l1"
    per_axis: bool = False
    parameterization: str = "linear"
    eps: float = 0.0
    first_position: int = 0

    def __post_init__(self) -> None:
        for name, kinds in (("per_axis", "bool"), ("eps", "float or int"), ("first_position", "int")):
            if type(getattr(self, name)).__name__ not in kinds.split(" or "):
                raise TypeError(f"Torus: expected {name} of type {kinds}, got {getattr(self, name)!r}")
        periods = as_periods("lattice", self.lattice)
        sizes = periods if self.block is None else as_periods("block", self.block)
        check_periods("Torus", periods, sizes, ValueError)
        object.__setattr__(self, "lattice", tuple(periods))
        object.__setattr__(self, "block", None if self.block is None else tuple(sizes))
        for name, choices in (("metric", METRICS), ("parameterization", PARAMETERIZATIONS)):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"Torus: expected {name} one of {', '.join(choices)}, got {value!r}")
        if self.per_axis and self.metric not in PER_AXIS:
            raise ValueError(f"Torus: per_axis expects metric {' or '.join(PER_AXIS)}, got {self.metric!r}")
        if not 0 <= self.eps < 1:
            raise ValueError(f"Torus: expected eps in [0, 1), got {self.eps}")
        if not 0 <= self.first_position < math.prod(periods):
            raise ValueError(
                f"Torus: expected first_position in [0, {math.prod(periods)}), got {self.first_position}"
            )

    @property
    def axes(self) -> int:
        """Number of periods."""
        return len(as_periods("lattice", self.lattice))


def torus_from(options: Mapping[str, Any], where: str) -> Torus:
    """A Torus from its fields by name.

    Raises:
        ValueError: an unknown field, with the nearest known one, none for the lattice, or a value that does not fit;
            `where` begins the line.
    """
    known = [field.name for field in fields(Torus)]
    for name in options:
        if name not in known:
            raise ValueError(f"{where}: unknown option {name!r}{nearest(name, known)}")
    if options.get("lattice") is None:
        raise ValueError(f"{where}: expected lattice, the periods of the torus in tokens")
    try:
        return Torus(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The toroidal layers of one host.

    Args:
        heads: query heads of every attention.
        layers: torus by number of layer.
    """

    heads: int
    layers: Mapping[int, Torus]

    def to_json(self) -> dict[str, Any]:
        """As JSON writes it; `settings_from` reads it."""
        layers = {str(number): _listed(asdict(torus)) for number, torus in sorted(self.layers.items())}
        return {"schema_version": SCHEMA_VERSION, "heads": self.heads, "layers": layers}


def settings_from(data: Any, where: str, *, also: Sequence[str] = ()) -> Settings:
    """Settings that `Settings.to_json` wrote; `also` names further keys that may be there.

    Raises:
        ValueError: another schema, an unknown key, with the nearest known one, or one that is missing.
    """
    known = ("schema_version", "heads", "layers")
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: expected an object with {', '.join(known)}, got {type(data).__name__}")
    for name in data:
        if name not in known and name not in also:
            raise ValueError(f"{where}: unknown key {name!r}{nearest(str(name), known)}")
    for name in known:
        if name not in data:
            raise ValueError(f"{where}: expected key {name!r}, got none")
    if data["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"{where}: expected schema_version {SCHEMA_VERSION}, got {data['schema_version']!r}")
    if type(data["heads"]) is not int or not isinstance(data["layers"], Mapping):
        raise ValueError(f"{where}: expected heads, a whole number, and layers, an object")
    layers = {}
    for number, torus in data["layers"].items():
        if not str(number).isdecimal() or not isinstance(torus, Mapping):
            raise ValueError(f"{where}: expected layers from number to options of a torus, got {number!r}")
        layers[int(number)] = torus_from(torus, f"{where}: layer {number}")
    if not layers:
        raise ValueError(f"{where}: expected at least one layer, got none")
    return Settings(heads=data["heads"], layers=layers)


def _listed(options: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
