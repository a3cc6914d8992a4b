"""report.html of an analysis."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stratcore.analysis.report import write_page
from stratcore.analysis.schema import check_schema, to_plain
from stratcore.analysis.stratification_results import AnalysisResults
from stratcore.analysis.stratification_words import (
    ANALYSIS_CAPTIONS,
    analysis_answer,
    analysis_caveats,
    analysis_numbers,
)


def write_analysis_report(
    folder: str | Path, results: AnalysisResults | Mapping[str, Any], figures: Mapping[str, Any]
) -> Path:
    """Write `folder/report.html` of an analysis, whole or not at all.

    Args:
        folder: it must exist.
        results: see `AnalysisResults`; checked first.
        figures: see `report.write_page`.
    """
    plain = to_plain(results)
    check_schema(plain, AnalysisResults)
    page = {
        "r": plain,
        "answer": analysis_answer(plain),
        "tiles": analysis_numbers(plain),
        "caveats": analysis_caveats(plain),
    }
    return write_page(Path(folder) / "report.html", "stratification", page, figures, ANALYSIS_CAPTIONS)
