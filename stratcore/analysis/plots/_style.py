"""How every figure looks, and how one becomes a PNG. No figure touches pyplot or any global state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from stratcore.analysis._panels import INK, MUTED
from stratcore.analysis.schema import write_atomic

STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.12,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#E3E6EA",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def styled(function: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw under `STYLE` and under no other setting of the process."""

    @functools.wraps(function)
    def draw(*args: Any, **kwargs: Any) -> Figure:
        with matplotlib.rc_context(STYLE):
            return function(*args, **kwargs)

    return draw


def png_bytes(figure: Figure, dpi: int = 130) -> bytes:
    """Encode a figure as PNG."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def save_figures(folder: str | Path, figures: Mapping[str, Figure]) -> dict[str, Path]:
    """Write each figure to `folder/<name>.png` and return the paths by name."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    return {name: write_atomic(Path(folder) / f"{name}.png", png_bytes(f)) for name, f in figures.items()}
