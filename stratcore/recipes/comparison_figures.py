"""Figures of comparisons over paired seeds, each with the words that say how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stratcore.recipes.trials import CaptionedFigure


def differences(
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    title: str,
    what: str,
    unit: str,
    seeds: int,
    reading: str,
    margin: float | None = None,
) -> CaptionedFigure:
    """Paired differences with their intervals.

    Args:
        rows: name of the pair; `value`, `low`, `high`.
        title: of the figure.
        what: is subtracted from what.
        unit: of the differences.
        seeds: that both share.
        reading: which side is better.
        margin: what counts as no loss, shaded.
    """
    from stratcore.analysis.plots import difference_intervals

    text = (
        f"One line a pair: {what}, in {unit}, mean over {seeds} seeds that both share (dot), with the BCa bootstrap "
        f"interval of 95 % (bar). {reading} Bars are not corrected for the number of pairs; the table's p values are."
    )
    return CaptionedFigure(difference_intervals(rows, unit=unit, margin=margin), title, text)


def curves(
    by_arm: Mapping[str, Sequence[Sequence[tuple[float, float]]]],
    *,
    title: str,
    y_label: str,
    seeds: int,
    better: str,
    note: str = "",
) -> CaptionedFigure:
    """A number on validation rows against optimizer steps, an arm a color.

    Args:
        by_arm: runs as lists of (step, value).
        title: of the figure.
        y_label: the number and its unit.
        seeds: runs of an arm.
        better: 'rise' or 'fall'.
        note: a further sentence.
    """
    from stratcore.analysis.plots import mean_curves

    text = (
        f"{y_label[0].upper()}{y_label[1:]} against optimizer steps: each of {seeds} seeds faint, their mean bold, a "
        f"color an arm. {note + ' ' if note else ''}Curves that still {better} at the right end say that training "
        "stopped early."
    )
    return CaptionedFigure(mean_curves(by_arm, y_label=y_label), title, text)
