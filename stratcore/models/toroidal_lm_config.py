"""What of a causal language model becomes toroidal, as plain data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from stratcore.layers.toroidal_branch_options import ToroidalBranchOptions

ATTENTIONS = ("toroidal", "host", "fft_mixing")
PROJECTIONS = ("host", "random")
SCHEMA_VERSION = 1
_NAMED = ("all", "input", "middle", "output")


@dataclass(frozen=True, kw_only=True)
class ToroidalLMOptions:
    """Replaced layers of a host and what replaces them.

    Args:
        layers: numbers of layers, negative ones from the last; 'all', 'input' (the first), 'middle', 'output' (the
            last); or a range with both ends, such as '0-3'.
        torus: form of the branches.
        attention: 'toroidal'; or, as controls, 'host': the chosen layers keep the host's kind of attention; and
            'fft_mixing': they get `layers.FFTMixing`, which sees the future (torus.gate 'open').
        projections: 'host': the weights and biases of the chosen attentions stay. 'random': they are drawn anew as
            the host would, which is how the source documents replace layers.
        seed: of what is drawn.

    Raises:
        ValueError: a value that does not fit.
    """

    layers: str | tuple[int, ...] = "input"
    torus: ToroidalBranchOptions = field(default_factory=ToroidalBranchOptions)
    attention: str = "toroidal"
    projections: str = "host"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("attention", ATTENTIONS), ("projections", PROJECTIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        torus = self.torus
        if self.attention == "fft_mixing" and (
            torus.gate != "open" or torus.depth > 1 or torus.adaptive_depths
        ):
            raise ValueError(
                "attention: expected torus.gate 'open' and torus.depth 1 with 'fft_mixing', got "
                f"{torus.gate!r} and {torus.adaptive_depths or torus.depth}"
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: expected a number in [0, 2^32), got {self.seed}")
        if isinstance(self.layers, str):
            if self.layers not in _NAMED and _range(self.layers) is None:
                raise ValueError(
                    f"layers: expected numbers, {', '.join(_NAMED)}, or a range such as 0-3, got {self.layers!r}"
                )
        elif not self.layers:
            raise ValueError("layers: expected at least one number, got none")

    def to_json(self) -> str:
        """As `options_from_json` reads it."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=2) + "\n"


def _range(text: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"(\d+)-(\d+)", text)
    if found is None or int(found[1]) > int(found[2]):
        return None
    return int(found[1]), int(found[2])


def layer_numbers(layers: str | Sequence[int], known: Sequence[int]) -> list[int]:
    """Numbers of layers that `ToroidalLMOptions.layers` stands for, in their order.

    Args:
        layers: as there.
        known: numbers of the host's layers with attention, in their order.

    Raises:
        ValueError: a number that is none of theirs.
    """
    if layers == "all":
        return list(known)
    if isinstance(layers, str) and layers in _NAMED:
        return [known[{"input": 0, "middle": len(known) // 2, "output": -1}[layers]]]
    if isinstance(layers, str):
        first, last = _range(layers) or (0, -1)
        wanted = list(range(first, last + 1))
    else:
        wanted = [known[number] if -len(known) <= number < 0 else number for number in layers]
    for number in wanted:
        if number not in known:
            raise ValueError(
                f"layers: expected numbers in {known[0]} to {known[-1]}, or from -{len(known)} for the last ones, "
                f"got {number}"
            )
    return sorted(set(wanted))


def options_from_json(text: str, where: str) -> ToroidalLMOptions:
    """Options that `ToroidalLMOptions.to_json` wrote.

    Args:
        text: JSON.
        where: begins the line of an error.

    Raises:
        ValueError: no JSON, another schema, an unknown key, or a value that does not fit.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: expected JSON, {error}") from None
    if not isinstance(data, dict) or data.pop("schema_version", None) != SCHEMA_VERSION:
        raise ValueError(f"{where}: expected an object with schema_version {SCHEMA_VERSION}")
    torus = data.get("torus", {})
    if not isinstance(torus, Mapping):
        raise ValueError(f"{where}: expected torus, an object")
    for values, kind in ((data, ToroidalLMOptions), (torus, ToroidalBranchOptions)):
        known = {each.name for each in fields(kind)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"{where}: unknown key {unknown[0]!r}, expected some of {', '.join(sorted(known))}"
            )
    try:
        branch = ToroidalBranchOptions(**_tuples(torus))
        return ToroidalLMOptions(**{**_tuples(data), "torus": branch})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
