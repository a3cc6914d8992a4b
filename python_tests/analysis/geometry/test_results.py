from __future__ import annotations

import math

import numpy as np
import pytest

from stratcore.analysis.geometry.results import Baseline, GeometryScan, Measurement, ScanCurves


def test_a_scan_is_read_by_name():
    baseline = Baseline(name="none", source="closed form", value=1.0)
    assert math.isnan(baseline.low) and math.isnan(baseline.high)
    measurement = Measurement(name="isotropy", value=0.5, baselines=(baseline,), reading="half")
    empty = np.empty(0)
    scan = GeometryScan(
        num_rows=2, num_features=1, num_scanned=2, num_zero_rows=0, num_duplicate_rows=0, num_constant_columns=0,
        order=4, seed=0, measurements=(measurement,), class_cv=(), notes=(),
        curves=ScanCurves(norms=empty, cosines=empty, eigenvalues=empty, isotropic_eigenvalues=empty),
    )  # fmt: skip
    assert scan["isotropy"] is measurement
    with pytest.raises(KeyError, match="'hubness': expected one of isotropy"):
        scan["hubness"]
