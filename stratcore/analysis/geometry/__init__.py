"""Geometry scans: what a matrix of rows looks like beside random rows of the same size."""

from __future__ import annotations

from stratcore.analysis.geometry.closed_forms import gaussian_dim_from_cv
from stratcore.analysis.geometry.gradient_starvation import (
    GradientStarvation,
    ModuleGradient,
    gradient_starvation,
)
from stratcore.analysis.geometry.results import Baseline, ClassCV, GeometryScan, Measurement, ScanCurves
from stratcore.analysis.geometry.scan import describe_scan, scan_geometry

__all__ = [
    "Baseline",
    "ClassCV",
    "GeometryScan",
    "GradientStarvation",
    "Measurement",
    "ModuleGradient",
    "ScanCurves",
    "describe_scan",
    "gaussian_dim_from_cv",
    "gradient_starvation",
    "scan_geometry",
]
