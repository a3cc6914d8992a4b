import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from stratcore.analysis import read_metrics, run_figures, to_plain
from stratcore.analysis._panels import colors_of, domain_colors, expert_colors, rarefied
from stratcore.analysis.plots import (
    agreement_plot,
    expert_distance_matrix,
    gate_heatmap,
    png_bytes,
    training_curves,
)

NAMES = [
    "results_summary",
    "embedding_2d",
    "embedding_3d",
    "gate_heatmap",
    "assignment_histogram",
    "agreement",
    "reconstruction",
    "dimension_analysis",
    "dimension_and_sparsity",
    "expert_distances",
    "training_curves",
]


def _texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_all_figures_are_drawn(figures, run):
    assert list(figures) == NAMES
    assert all(isinstance(figure, Figure) for figure in figures.values())
    assert "training_curves" not in run_figures(run[0], run[1])


def test_every_axes_has_a_title_and_flat_axes_have_labels(figures):
    for figure in figures.values():
        for axes in figure.axes:
            assert axes.get_title(loc="left") or axes.get_title()
            assert axes.get_xlabel()


def test_pictures_are_png_of_stated_size(figures, pictures):
    for name, path in pictures.items():
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = figures[name].get_size_inches() * 130
        assert int.from_bytes(content[16:20], "big") == pytest.approx(width, abs=1)
        assert int.from_bytes(content[20:24], "big") == pytest.approx(height, abs=1)
        assert path.name == f"{name}.png"


def test_same_results_make_the_same_picture(run):
    agreement = to_plain(run[0])["agreement"]
    assert png_bytes(agreement_plot(agreement)) == png_bytes(agreement_plot(agreement))


def test_heat_map_prints_its_numbers():
    figure = gate_heatmap(np.array([[0.25, 0.75], [1.0, 0.0]]), ["a", "b"], [8, 16])
    assert _texts(figure) == ["0.25", "0.75", "1.00", "0.00"]
    assert "0.50" in figure.axes[0].get_xlabel()


def test_numbers_of_missing_experts_are_left_out():
    nan = float("nan")
    matrix = [[0.0, nan], [nan, 0.0]]
    distances = {
        "subspace_rank": 4, "chordal": matrix, "matching": to_plain(matrix),
        "random_chordal": 0.9, "random_matching": 0.6,
    }  # fmt: skip
    assert _texts(expert_distance_matrix(distances, [8, 16])) == ["0.00"] * 4


def test_curves_join_prefixes_and_splits_and_skip_constants():
    records = [{"step": step, "split": "train", "loss": 9.0 - step, "rate": 1.0} for step in (1, 2)]
    records += [{"step": 2, "test/loss": 8.0}, {"event": "saved"}, {"step": 2, "loss": float("nan")}]
    figure = training_curves(records)
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "loss"
    assert {line.get_label(): line.get_ydata().tolist() for line in axes.lines} == {
        "train": [8.0, 7.0],
        "test": [8.0],
    }
    with pytest.raises(ValueError, match="at least one line with 'step'"):
        training_curves([{"loss": 1.0}])


def test_metrics_cut_by_a_crash_lose_their_last_line_only(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "loss": 2.0}) + '\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]
    path.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl: line 1: expected JSON"):
        read_metrics(path)


def test_experts_are_colored_by_rank_of_sparsity_and_domains_apart():
    colors = expert_colors([32, 8, 16])
    brightness = [np.dot(colors[expert], (0.21, 0.72, 0.07)) for expert in (1, 2, 0)]
    assert brightness == sorted(brightness)
    assert len(set(domain_colors([f"d{i}" for i in range(10)]).values())) == 10
    assert colors_of(np.array(["b", "a"]), {"a": "#000000", "b": "#ffffff"}).tolist() == [
        "#ffffff",
        "#000000",
    ]


def test_rows_and_their_colors_are_shuffled_alike():
    rows = np.arange(6000)
    assert (rarefied(rows) == rarefied(rows.copy())).all()
    assert len(np.unique(rarefied(rows))) == 4000
