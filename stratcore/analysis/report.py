"""report.html: one self-contained page, in the order in which a person reads.

The page of a run is written from `Results` (results.py) and figures alone; its words come from narrative.py.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from stratcore.analysis.narrative import (
    CAPTIONS,
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
from stratcore.analysis.results import Results, validate_results
from stratcore.analysis.schema import to_plain, write_atomic


def write_report(folder: str | Path, results: Results, figures: Mapping[str, Figure | str | Path]) -> Path:
    """Write `folder/report.html` of a run, whole or not at all.

    Args:
        folder: the run folder; it must exist.
        results: see `results.Results`; validated first.
        figures: see `write_page`.

    Returns:
        The path of the page. Images and styles are inside it; it loads nothing.

    Raises:
        ValueError: a key of the results is missing, or a path holds no PNG.
        FileNotFoundError: no such figure.
    """
    validate_results(results)
    page = {
        "r": to_plain(results),
        "answer": plain_answer(results),
        "tiles": key_numbers(results),
        "caveats": caveats(results),
    }
    return write_page(Path(folder) / "report.html", "run", page, figures, CAPTIONS)


def write_page(
    path: Path,
    template: str,
    page: Mapping[str, Any],
    figures: Mapping[str, Figure | str | Path],
    captions: Mapping[str, tuple[str, str]],
) -> Path:
    """Write a self-contained page from one of the room's templates.

    Args:
        path: the file, in an existing folder.
        template: name of a template that extends `base`.
        page: `r` (plain results with `command` and `configuration`), `answer` (sentences), `tiles` (name, value,
            comparison), `caveats` (word, sentence).
        figures: figures, or paths of PNG files (such as `save_figures` returns), by name. Names in `captions`
            come in that order with title and text; others follow under their own name.
        captions: title and text of known figures.
    """
    known = [name for name in captions if name in figures]
    ordered = [*known, *(name for name in figures if name not in captions)]
    drawn = [
        (name, *captions.get(name, (name.replace("_", " ").capitalize(), "")), _data_uri(name, figures[name]))
        for name in ordered
    ]
    with as_file(files("stratcore.analysis") / "templates") as templates:
        text = (
            _environment(templates)
            .get_template(f"{template}.html.jinja")
            .render(**page, configuration=_flat(page["r"]["configuration"]), figures=drawn)
        )
    return write_atomic(path, text.encode())


def _environment(templates: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(templates),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
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
    return environment


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
