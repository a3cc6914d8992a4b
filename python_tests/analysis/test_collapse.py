"""Planted collapses are called, healthy runs are not: over seeds, with both rates."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from stratcore.analysis import (
    CollapseDetector,
    CollapseOptions,
    CollapseVerdict,
    collapse_exit_code,
)

DIM, ROWS, STEPS = 48, 128, 20
SEEDS = range(30)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def healthy(kind, rng, step):
    """A batch of a run that trains well."""
    num_rows = {"small": 32, "uneven": int(rng.integers(8, 300)), "large": 600}.get(kind, ROWS)
    rows = rng.standard_normal((num_rows, DIM))
    centers = np.random.default_rng(99).standard_normal((10, DIM))
    if kind == "classes":
        rows = 3 * centers[rng.integers(10, size=num_rows)] + 0.5 * rows
    elif kind == "heavy tails":
        rows = rows * rng.standard_t(3, size=(num_rows, 1))
    elif kind == "power law":
        rows = rows * np.arange(1, DIM + 1) ** -0.5
    elif kind == "sphere":
        rows = unit(rows)
    elif kind == "growing and thinning":  # norm to 3 times, half of the axes to a fifth, a drifting mean
        share = step / STEPS
        rows = rows * np.where(np.arange(DIM) < DIM // 2, 1, 1 - 0.8 * share) * (1 + 2 * share) + 0.8 * share
    elif kind == "two features":
        rows = rows[:, :2]
    return rows


HEALTHY = (
    "normal", "classes", "heavy tails", "power law", "sphere", "growing and thinning", "two features", "small",
    "uneven", "large",
)  # fmt: skip


@pytest.mark.parametrize("kind", HEALTHY)
def test_healthy_runs_raise_no_alarm(kind):
    """30 runs of 20 looks of each of ten kinds: no alarm, no warning even."""
    anchors = np.random.default_rng(0).standard_normal((32, 2 if kind == "two features" else DIM))
    warnings = 0
    for seed in SEEDS:
        rng, detector = np.random.default_rng(seed), CollapseDetector(CollapseOptions(max_rows=64))
        for step in range(STEPS):
            verdict = detector.update(step, healthy(kind, rng, step), anchors)
            assert not verdict.collapsed, (seed, verdict.reasons)
            warnings += len(verdict.warnings)
    assert warnings == 0


def collapsed(kind, rng, amount):
    """Healthy rows at amount 0, collapsed ones at 1."""
    rows = rng.standard_normal((ROWS, DIM))
    if kind == "dimensional":
        rows = rows * np.where(np.arange(DIM) < 4, 1.0, 1 - 0.97 * amount)
    elif kind == "complete":
        rows = (1 - 0.98 * amount) * rows + amount * np.linspace(-1, 2, DIM)
    elif kind == "to a point without direction":
        rows = (1 - 0.999 * amount) * rows
    elif kind == "to classes":
        centers = np.random.default_rng(5).standard_normal((32, DIM))
        rows = (1 - 0.99 * amount) * rows + 1.5 * amount * centers[rng.integers(32, size=ROWS)]
    elif kind == "to one anchor":
        rows = rows + 5 * amount * ANCHORS[0]
    elif kind == "norm blow-up":
        rows = rows * 100**amount
    return rows


ANCHORS = np.eye(DIM)[:32]
SIGNS = {
    "dimensional": "effective dimension",
    "complete": "mean cosine",
    "to a point without direction": "mean norm",
    "to classes": "relative distance of nearest rows",
    "to one anchor": "effective share of anchors",
    "norm blow-up": "mean norm",
}


@pytest.mark.parametrize("kind", SIGNS)
def test_planted_collapses_are_called_by_their_sign(kind):
    """30 runs of each kind that collapse over ten looks: all are called, at the latest two looks after the end."""
    for seed in SEEDS:
        rng, detector = np.random.default_rng(seed), CollapseDetector()
        called = None
        for step in range(STEPS):
            amount = min(max(step - 4, 0) / 10, 1.0)
            verdict = detector.update(step, collapsed(kind, rng, amount), ANCHORS)
            if verdict.collapsed and called is None:
                called = step
                assert any(reason.startswith(SIGNS[kind]) for reason in verdict.reasons), verdict.reasons
        assert called is not None and 5 < called <= 16, (seed, called)
        assert collapse_exit_code(verdict) == 3


def test_rows_that_are_not_finite_count_at_once():
    detector = CollapseDetector()
    rows = np.random.default_rng(0).standard_normal((64, 8))
    assert not detector.update(0, rows).collapsed
    rows[[3, 9], 2] = np.nan, np.inf
    for bad in (rows, torch.from_numpy(rows)):
        verdict = detector.update(1, bad)
        assert verdict.collapsed and verdict.measures is None
        assert verdict.reasons == ("2 of 64 rows hold NaN or infinity",)
    verdict = detector.update(2, np.ones((64, 8)), np.full((3, 8), np.nan))
    assert verdict.reasons == ("3 of 3 anchors hold NaN or infinity",)


def test_one_bad_look_is_a_warning():
    detector, rng = CollapseDetector(), np.random.default_rng(0)
    for step in range(10):
        rows = rng.standard_normal((64, 8))
        verdict = detector.update(step, np.ones((64, 8)) if step in (5, 7) else rows)
        assert not verdict.collapsed
        assert bool(verdict.warnings) == (step in (5, 7))
    assert detector._streak == {}


def test_a_run_that_starts_collapsed_is_called_by_the_absolute_thresholds():
    detector = CollapseDetector(CollapseOptions(patience=2))
    verdicts = [detector.update(step, np.ones((64, 8))) for step in range(2)]
    assert [verdict.collapsed for verdict in verdicts] == [False, True]
    assert verdicts[1].reasons == ("mean cosine is 1, above 0.9",)


def test_thresholds_are_options():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200, 8)) * np.array([1, 1, 1, 0, 0, 0, 0, 0])
    detector = CollapseDetector(CollapseOptions(min_dim=4, patience=1))
    assert detector.update(0, rows).reasons[0].endswith(", below 4")
    assert not CollapseDetector(CollapseOptions(min_dim=2.5, patience=1)).update(0, rows).collapsed
    nothing = CollapseOptions(max_mean_cosine=None, min_anchor_share=None, patience=1)
    assert not CollapseDetector(nothing).update(0, np.ones((64, 8)), np.eye(8)).collapsed


@pytest.mark.parametrize("num_rows", [32, 64, 256])
@pytest.mark.parametrize("rank", [1, 4, 20])
def test_effective_dimension_is_that_of_equal_axes_for_any_number_of_rows(num_rows, rank):
    rng = np.random.default_rng(0)
    detector = CollapseDetector()
    seen = [
        detector.update(
            step, rng.standard_normal((num_rows, rank)) @ np.eye(rank, 100)
        ).measures.effective_dim
        for step in range(60)
    ]
    assert 1 / np.mean(1 / np.array(seen)) == pytest.approx(rank, rel=0.03)


def test_measures_by_their_definitions():
    rng = np.random.default_rng(1)
    rows, anchors = rng.standard_normal((40, 5)) + 1, rng.standard_normal((6, 5))
    seen = CollapseDetector().update(0, rows, anchors).measures
    cosine = unit(rows) @ unit(rows).T
    assert seen.mean_cosine == pytest.approx(cosine[~np.eye(40, dtype=bool)].mean(), abs=1e-12)
    assert seen.norm == pytest.approx(np.linalg.norm(rows, axis=1).mean(), rel=1e-12)
    share = np.bincount((rows @ unit(anchors).T).argmax(axis=1)) / 40
    entropy = -sum(s * math.log(s) for s in share if s)
    assert seen.anchor_share == pytest.approx(math.exp(entropy) / 6, rel=1e-12)
    assert math.isnan(CollapseDetector().update(0, rows).measures.anchor_share)


def test_a_resumed_run_gives_the_same_verdicts():
    rng = np.random.default_rng(2)
    batches = [collapsed("dimensional", rng, min(step / 12, 1)) for step in range(16)]
    options = CollapseOptions(max_rows=50)
    whole, first = CollapseDetector(options), CollapseDetector(options)
    expected = [whole.update(step, rows) for step, rows in enumerate(batches)]
    before = [first.update(step, rows) for step, rows in enumerate(batches[:13])]
    second = CollapseDetector(options)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    after = [second.update(step, rows) for step, rows in enumerate(batches[13:], start=13)]
    assert repr(before + after) == repr(expected)
    assert expected[-1].collapsed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_tensors_are_rows_and_keep_their_graph(dtype):
    rows = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    ours = CollapseDetector().update(0, rows, rows[:4])
    theirs = CollapseDetector().update(0, rows.detach().double().numpy(), rows[:4].detach().double().numpy())
    assert ours == theirs
    assert rows.grad is None


def test_no_matrix_of_all_pairs_of_a_batch():
    """A batch of 200,000 rows: all pairs would be 320 GB."""
    rows = np.random.default_rng(0).standard_normal((200_000, 4))
    assert CollapseDetector().update(0, rows).measures.effective_dim == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("rows", [np.full((64, 4), 1e300), np.full((64, 4), 5e-324), np.zeros((64, 4))])
def test_extreme_sizes_are_measured(rows):
    verdict = CollapseDetector(CollapseOptions(patience=1)).update(0, rows)
    assert verdict.collapsed
    assert verdict.measures.mean_cosine == pytest.approx(1)
    assert verdict.measures.effective_dim == 0
    assert verdict.measures.neighbor_distance == 0


def test_few_rows_are_not_judged():
    detector = CollapseDetector(CollapseOptions(patience=1))
    verdict = detector.update(0, np.ones((31, 4)))
    assert (verdict.judged, verdict.collapsed, verdict.measures) == (False, False, None)
    assert detector.update(1, np.ones((32, 4))).collapsed
    assert collapse_exit_code(verdict) == 0


def test_exit_codes():
    assert collapse_exit_code(CollapseVerdict(step=0, judged=True, collapsed=False, warnings=("x",))) == 0
    assert collapse_exit_code(CollapseVerdict(step=0, judged=True, collapsed=True)) == 3


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda: CollapseDetector().update(0, np.ones(4)),
            r"X: expected a non-empty array .* got shape \(4,\)",
        ),
        (lambda: CollapseDetector().update(0, np.ones((0, 4))), r"got shape \(0, 4\)"),
        (lambda: CollapseDetector().update(0, [[1.0]]), r"X: .* got shape \(\)"),
        (
            lambda: CollapseDetector().update(0, np.ones((40, 4)), np.ones((2, 3))),
            r"anchors: expected an array \[anchors, 4\], got shape \(2, 3\)",
        ),
        (lambda: CollapseOptions(patience=0), "patience: expected at least 1, got 0"),
        (lambda: CollapseOptions(max_norm_growth=math.nan), "max_norm_growth: expected at least 0, got nan"),
        (lambda: CollapseOptions(min_rows=300), "min_rows: expected at most max_rows = 256, got 300"),
        (lambda: CollapseDetector().load_state_dict({"streak": {}}), "state: expected 'streak' and 'start'"),
        (
            lambda: CollapseDetector().load_state_dict(
                {"streak": {}, "start": {"effective_dim": [1.0], "neighbor_distance": [], "norm": []}}
            ),
            "as many numbers",
        ),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
