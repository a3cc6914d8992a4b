"""Tables and numbers of generated pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy import stats


def table(header: Sequence[str], cells: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def command(line: str) -> str:
    """The command of a table."""
    return f"`{line}`\n"


def digits(value: float | None) -> str:
    """Three significant digits."""
    return "" if value is None else np.format_float_positional(value, precision=3, fractional=False, trim="-")


def interval(found: dict[str, Any] | None) -> str:
    """Value, corrected for chance where it is known, and interval."""
    if found is None or found["value"] is None:
        return "none"
    value = digits(found.get("corrected", found["value"]))
    return value if found["low"] is None else f"{value} [{digits(found['low'])}, {digits(found['high'])}]"


def mean_interval(values: Sequence[float]) -> str:
    """Mean and t interval over seeds."""
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.4f} ± {np.format_float_positional(half, precision=2, fractional=False)}"
