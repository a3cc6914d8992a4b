"""report.html: one self-contained page of a run, in the order in which a person reads.

The page is written from `Results` (results.py) and figures alone; its words come from narrative.py.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from stratcore.analysis.narrative import (
    CAPTIONS,
    caption,
    caveats,
    format_count,
    format_decimal,
    format_interval,
    format_number,
    format_percent,
    key_numbers,
    plain_answer,
)
from stratcore.analysis.plots import png_bytes
from stratcore.analysis.results import Results, to_plain, validate_results, write_atomic


def write_report(folder: str | Path, results: Results, figures: Mapping[str, Figure | str | Path]) -> Path:
    """Write `folder/report.html`, whole or not at all.

    Args:
        folder: the run folder; it must exist.
        results: see `results.Results`; validated first.
        figures: figures, or paths of PNG files (such as `save_figures` returns), by name. Names in
            `narrative.CAPTIONS` come in that order with their captions; others follow under their own name.

    Returns:
        The path of the page. Images and styles are inside it; it loads nothing.

    Raises:
        ValueError: a key of the results is missing, or a path holds no PNG.
        FileNotFoundError: no such figure.
    """
    validate_results(results)
    plain = to_plain(results)
    known = [name for name in CAPTIONS if name in figures]
    ordered = [*known, *(name for name in figures if name not in CAPTIONS)]
    page = _template().render(
        r=plain,
        answer=plain_answer(results),
        tiles=key_numbers(results),
        caveats=caveats(results),
        configuration=_flat(plain["configuration"]),
        figures=[(name, *caption(name), _data_uri(name, figures[name])) for name in ordered],
    )
    return write_atomic(Path(folder) / "report.html", page.encode())


def _template() -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": format_number,
        "decimal": format_decimal,
        "percent": format_percent,
        "count": format_count,
        "interval": format_interval,
        "flat": _flat,
        "losses": lambda losses: [(name, format_number(value)) for name, value in losses.items()],
    }
    source = files("stratcore.analysis").joinpath("report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source)


def _data_uri(name: str, figure: Figure | str | Path) -> Markup:
    content = png_bytes(figure) if isinstance(figure, Figure) else Path(figure).read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"figures: {name!r}: expected a PNG file, got {figure}")
    return Markup("data:image/png;base64," + base64.b64encode(content).decode())


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Nested mappings as rows of dotted path and value."""
    if isinstance(value, Mapping) and value:
        return [row for key, item in value.items() for row in _flat(item, f"{path}.{key}" if path else key)]
    return [(path, str(value))] if path else []
