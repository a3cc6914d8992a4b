"""Tests of the manifold and fiber-bundle hypotheses around each point: ours, the published one, the source's."""

from __future__ import annotations

from stratcore.analysis.fiber_bundle.change_point import Scan, scan
from stratcore.analysis.fiber_bundle.corrections import Correction, corrected_p_values
from stratcore.analysis.fiber_bundle.estimators import (
    FiberBundleTest,
    ManifoldTest,
    Method,
    RejectionCount,
    fitting_window,
    neighborhood_test,
)
from stratcore.analysis.fiber_bundle.reference import PublishedStrata, published_strata, reference_test
from stratcore.analysis.fiber_bundle.scan_law import NullLaw, Side, null_law
from stratcore.analysis.fiber_bundle.source_rule import source_rule
from stratcore.analysis.fiber_bundle.spacings import (
    NeighborhoodTest,
    fixed_split_p_values,
    spacings_of,
    spacings_test,
)

__all__ = [
    "Correction",
    "FiberBundleTest",
    "ManifoldTest",
    "Method",
    "NeighborhoodTest",
    "NullLaw",
    "PublishedStrata",
    "RejectionCount",
    "Scan",
    "Side",
    "corrected_p_values",
    "fitting_window",
    "fixed_split_p_values",
    "neighborhood_test",
    "null_law",
    "published_strata",
    "reference_test",
    "scan",
    "source_rule",
    "spacings_of",
    "spacings_test",
]
