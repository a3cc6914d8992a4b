from __future__ import annotations

import math

import numpy as np
import pytest

from stratcore.analysis import save_figures, scan_figures, scan_geometry
from stratcore.analysis.plots import png_bytes, simplex_cv_plot, spectrum_plot
from stratcore.ops import cv_gaussian, cv_uniform


@pytest.fixture(scope="module")
def scan():
    rng = np.random.default_rng(0)
    label = rng.integers(3, size=400)
    rows = 3 * rng.standard_normal((3, 20))[label] + rng.standard_normal((400, 20))
    return scan_geometry(rows, np.array(["red", "green", "blue"])[label])


def test_figures_have_titles_and_labels(scan, tmp_path):
    figures = scan_figures(scan)
    assert list(figures) == [
        "scan_overview", "scan_simplex_cv", "scan_spectrum", "scan_norms_and_cosines",
    ]  # fmt: skip
    for figure in figures.values():
        for axes in figure.axes:
            assert axes.get_title(loc="left")
            assert axes.get_xlabel()
    paths = save_figures(tmp_path, {"scan_overview": figures["scan_overview"]})
    assert paths["scan_overview"].read_bytes().startswith(b"\x89PNG")


def test_measured_points_lie_on_the_closed_form_curves(scan):
    left, right = simplex_cv_plot(scan).axes
    lines = {line.get_label(): line.get_xydata() for line in left.lines}
    for label, function in (("uniform on the sphere", cv_uniform), ("normal rows", cv_gaussian)):
        (curve,) = [data for name, data in lines.items() if name.startswith(label)]
        assert curve[::20, 1] == pytest.approx([function(max(dim, 4)) for dim in curve[::20, 0]], rel=1e-12)
    for label, function in (("measured directions", cv_uniform), ("measured rows", cv_gaussian)):
        ((dim, cv),) = next(data for name, data in lines.items() if name.startswith(label))
        assert function(dim) == pytest.approx(cv, rel=1e-9)
    names = [text.get_text() for text in right.get_yticklabels()]
    assert [name.split()[0] for name in names] == ["blue", "green", "red"]


def test_spectrum_has_the_edge_and_its_count(scan):
    left, right = spectrum_plot(scan).axes
    edge = scan.curves.eigenvalues.sum() / 20 * (1 + math.sqrt(20 / 399)) ** 2
    above = int((scan.curves.eigenvalues > edge).sum())
    assert above == 2  # three centers span a plane
    assert [text.get_text() for text in left.texts] == ["edge: 2 axes above"]
    assert any(line.get_ydata()[0] == pytest.approx(edge) for line in left.lines)
    energy = next(line for line in right.lines if line.get_label() == "measured").get_ydata()
    assert energy[5] == pytest.approx(100 * scan["top_5_energy"].value)


@pytest.mark.parametrize("rows", [np.zeros((4, 2)), np.array([[1.0], [2.0]])])
def test_degenerate_scans_are_drawn(rows):
    for figure in scan_figures(scan_geometry(rows, np.arange(len(rows)) % 2)).values():
        assert len(png_bytes(figure, dpi=30)) > 1000
