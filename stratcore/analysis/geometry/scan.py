"""One scan of a matrix of rows: what its geometry is, figure by figure, each beside random rows.

Legend: N rows, D features, A anchors.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from stratcore.analysis.geometry._anchors import anchor_measurements, unit_anchors
from stratcore.analysis.geometry._directions import (
    cosine_measurements,
    norm_measurements,
    sample_cosines,
    spectrum_measurements,
)
from stratcore.analysis.geometry._neighbors import hubness_measurements, label_measurements
from stratcore.analysis.geometry._rows import GaussianTwin, Rows, fit_twin, take_rows
from stratcore.analysis.geometry._simplices import (
    class_measurements,
    cv_measurements,
    rounding_measurements,
)
from stratcore.analysis.geometry.closed_forms import marchenko_pastur_eigenvalues
from stratcore.analysis.geometry.results import GeometryScan, Measurement, ScanCurves


def scan_geometry(
    X: ArrayLike,
    labels: ArrayLike | None = None,
    anchors: ArrayLike | None = None,
    *,
    seed: int = 0,
    max_rows: int = 20_000,
    num_simplices: int = 20_000,
    order: int = 4,
    top_k: tuple[int, ...] = (1, 5, 10, 50),
) -> GeometryScan:
    """Measure norms, cosines, spectrum, simplex volumes, neighbors, labels and anchors of the rows.

    Args:
        X: rows, [N, D], NumPy or torch; N >= 2. Unit: length.
        labels: class of each row, [N]; None leaves the figures of classes out.
        anchors: [A, D], of any length but 0; None leaves the figures of anchors out.
        seed: of every draw; the same seed gives the same bits.
        max_rows: rows that are looked at; of more, as many at random (all are checked for NaN).
        num_simplices: simplices of the CV of all rows.
        order: of the simplices, 1 to 8; 4 is the pentachoron.
        top_k: numbers of leading principal components whose energy is reported.

    Returns:
        GeometryScan. Figures that the rows do not allow (one class, too few rows or dimensions) are NaN and say why.

    Raises:
        ValueError: an array ill-shaped or not finite, fewer than 2 rows, numbers beyond 1e+-100, a bad option.

    Cost: O(n^2 D) for neighbors, in blocks, and O(n D min(n, D)) for the spectrum, with n = min(N, max_rows).
    Source: the health scans of the source documents.
    """
    _check_options(num_simplices, order, top_k)
    rng = np.random.default_rng(seed)
    rows = take_rows(X, labels, max_rows, rng)
    anchor_AD = None if anchors is None else unit_anchors(anchors, rows.x_ND.shape[1])
    twin = fit_twin(rows.x_ND)
    cosines = sample_cosines(rows.u_ND, rng)
    whole = (
        *norm_measurements(rows, twin, rng),
        *cosine_measurements(rows, cosines, rng),
        *spectrum_measurements(rows, twin.eigenvalues, top_k, rng),
        *cv_measurements(rows, twin, num_simplices, order, rng),
        *rounding_measurements(rows, order, rng),
        *hubness_measurements(rows, twin, rng),
    )
    by_class, class_cv = class_measurements(rows, order, rng)
    by_label = label_measurements(rows, rng)
    by_anchor = anchor_measurements(rows, anchor_AD, order, rng)
    return GeometryScan(
        **_counts(rows),
        order=order,
        seed=seed,
        measurements=(*whole, *by_class, *by_label, *by_anchor),
        class_cv=class_cv,
        curves=_curves(rows, twin, cosines),
        notes=_notes(rows),
    )


def _counts(rows: Rows) -> dict[str, int]:
    count, dim = rows.x_ND.shape
    return {
        "num_rows": rows.total,
        "num_features": dim,
        "num_scanned": count,
        "num_zero_rows": count - len(rows.u_ND),
        "num_duplicate_rows": rows.num_duplicates,
        "num_constant_columns": rows.num_constant,
    }


def _curves(rows: Rows, twin: GaussianTwin, cosines: np.ndarray) -> ScanCurves:
    count, dim = rows.x_ND.shape
    mean_variance = float(twin.eigenvalues.sum()) / dim
    return ScanCurves(
        norms=rows.norm_N,
        cosines=cosines,
        eigenvalues=twin.eigenvalues[: min(dim, count - 1)],
        isotropic_eigenvalues=marchenko_pastur_eigenvalues(count, dim) * mean_variance,
    )


def _check_options(num_simplices: int, order: int, top_k: tuple[int, ...]) -> None:
    if not 1 <= order <= 8:
        raise ValueError(f"order: expected 1 to 8, got {order}")
    if num_simplices < 100:
        raise ValueError(f"num_simplices: expected at least 100, got {num_simplices}")
    if any(k < 1 for k in top_k):
        raise ValueError(f"top_k: expected numbers of at least 1, got {top_k}")


def _notes(rows: Rows) -> tuple[str, ...]:
    count, dim = rows.x_ND.shape
    zero = count - len(rows.u_ND)
    found = (
        (rows.total > count, f"{count:,} of {rows.total:,} rows were drawn for the scan"),
        (zero > 0, f"{zero} rows are 0 and have no direction: figures of directions leave them out"),
        (rows.num_duplicates > 0, f"{rows.num_duplicates} rows repeat another row"),
        (rows.num_constant > 0, f"{rows.num_constant} of {dim} columns are constant"),
        (count <= dim, f"{count} rows of {dim} features: no dimension above {count - 1} can be seen"),
    )
    return tuple(text for holds, text in found if holds)


def describe_scan(scan: GeometryScan) -> list[str]:
    """The scan in plain sentences: the rows first, then each figure with interval, baselines and reading."""
    lines = [f"{scan.num_scanned:,} rows of {scan.num_features} features were scanned with seed {scan.seed}."]
    lines += [f"Note: {note}." for note in scan.notes]
    return lines + [_sentence(measurement) for measurement in scan.measurements]


def _sentence(measurement: Measurement) -> str:
    name = measurement.name.replace("_", " ")
    if not math.isfinite(measurement.value):
        return f"{name}: no number, {measurement.reading}."
    text = f"{name}: {measurement.value:.4g}"
    if math.isfinite(measurement.low) and math.isfinite(measurement.high):
        text += f" (95 % interval {measurement.low:.4g} to {measurement.high:.4g})"
    for baseline in measurement.baselines:
        if not math.isfinite(baseline.value):
            continue
        text += f"; {baseline.name}: {baseline.value:.4g}"
        if math.isfinite(baseline.low) and baseline.low < baseline.high:
            text += f" ({baseline.low:.4g} to {baseline.high:.4g})"
        text += f" [{baseline.source}]"
    return f"{text}. {measurement.reading[:1].upper()}{measurement.reading[1:]}."
