"""Artefacts C1 and C2 of the source documents: each test fails on their rule and passes on ours."""

from __future__ import annotations

import numpy as np
import torch

from stratcore.analysis import describe_scan, scan_geometry
from stratcore.ops import cv_uniform, effective_dim_from_cv, measures_from_distances, simplex_cv

BAND = (0.20, 0.23)
ROWS = 1000


# ---- C1: the "universal band" of the CV is the CV of random points in 14 to 16 dimensions


def random_rows(dim: int, kind: str, seed: int) -> torch.Tensor:
    rows = torch.randn(ROWS, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows if kind == "normal" else rows / rows.norm(dim=1, keepdim=True)


def cv_of(rows: torch.Tensor, seed: int = 0) -> float:
    return float(simplex_cv(rows, num_simplices=20_000, seed=seed).cv)


def source_rule(rows: torch.Tensor) -> bool:
    """'In band' is called structure; no random cloud is asked."""
    return BAND[0] <= cv_of(rows) <= BAND[1]


def our_rule(rows: torch.Tensor) -> bool:
    """Structure is a CV that normal rows of the same mean and covariance do not show."""
    measured = scan_geometry(rows, num_simplices=5000)["cv_rows"]
    twin = measured.baselines[1]
    return measured.low > twin.high or measured.high < twin.low


def test_c1_band_is_dimension():
    """Noise is 'in band' at 14 to 16 dimensions on the sphere and at 41 to 52 of normal rows, and nowhere else."""
    for kind, inside, outside in (
        ("sphere", (14, 15, 16), (8, 12, 18, 128)),
        ("normal", (42, 46, 50), (20, 64, 128)),
    ):
        for dim in inside:
            assert source_rule(random_rows(dim, kind, dim)), (kind, dim)
        for dim in outside:
            assert not source_rule(random_rows(dim, kind, dim)), (kind, dim)


def test_c1_our_rule_calls_no_noise_structure_and_sees_clusters():
    assert not any(our_rule(random_rows(dim, "normal", dim)) for dim in (16, 42, 50))
    centers = 2.0 * random_rows(64, "normal", 1)[:6]
    clusters = centers[torch.arange(ROWS) % 6] + random_rows(64, "normal", 2)
    assert our_rule(clusters)


def test_c1_cards_numbers_are_dimensions():
    """Global CVs of the cards, .1085, .1149 and .1922, are those of 42, 38 and 17 dimensions."""
    dims = [effective_dim_from_cv(cv).dim for cv in (0.1085, 0.1149, 0.1922)]
    assert [round(dim) for dim in dims] == [42, 38, 17]
    assert cv_uniform(128) < 0.0579  # what a healthy embedding of that size would show


# ---- C2: "Cayley-Menger validity 100 %" is a theorem about real points


def test_c2_validity_of_points_cannot_fail_and_that_of_distances_can():
    """Rows that are noise, all equal or collapsed onto a line are all valid; predicted distances may fail."""
    rng = np.random.default_rng(0)
    line = np.outer(rng.standard_normal(100), rng.standard_normal(16))
    for rows in (rng.standard_normal((100, 16)), np.ones((100, 16)), line, rng.integers(2, size=(100, 16))):
        scan = scan_geometry(rows)
        assert scan["valid_share"].value == 1
        assert "a theorem, no finding" in scan["valid_share"].reading
        assert any(
            text.startswith("valid share") and "any real points: 1" in text for text in describe_scan(scan)
        )
    assert scan_geometry(line)["degenerate_share"].value == 1
    free = torch.from_numpy(rng.uniform(0.5, 2.0, size=(1000, 10)))
    valid = measures_from_distances(free).euclidean.double().mean()
    assert 0.05 < float(valid) < 0.95
