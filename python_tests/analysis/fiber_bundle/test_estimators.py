"""The estimators: copies, strata, corrections, windows, and spaces whose singular points are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stratcore.analysis import FiberBundleTest, ManifoldTest
from stratcore.analysis.fiber_bundle import corrected_p_values
from stratcore.data.manifolds import SMOOTH_NULLS
from stratcore.data.singular import disc_in_cube, line_in_hollow_ball, plane_union_line, thinning_strip


@pytest.mark.parametrize("name", ["sphere 2", "torus 2", "gaussian 8"])
def test_no_point_of_a_smooth_manifold_is_no_fiber_bundle(name):
    space = SMOOTH_NULLS[name].draw(600, 0)
    assert FiberBundleTest(period=space.period).fit(space.points).rejected_.sum() == 0


def test_a_line_through_a_plane():
    space = plane_union_line(800)
    found = FiberBundleTest().fit(space.points, space.stratum)
    assert found.rejected_.sum() > 30
    assert space.singular_distance[found.rejected_].max() < 0.7
    assert (found.inside_ < found.outside_)[found.rejected_].all()
    assert np.median(found.inside_[found.rejected_]) < 2.5
    assert [count.stratum for count in found.counts_] == ["all rows", "0", "1"]
    assert found.counts_[0].num_rejected == sum(count.num_rejected for count in found.counts_[1:])
    assert found.counts_[0].num_tested == 800


def test_a_dense_disc_is_found_from_the_cube_around_it():
    """A point of the cube sees six dimensions, then the disc's many points at once; the disc sees only itself."""
    space = disc_in_cube(1500)
    rejected = FiberBundleTest().fit(space.points).rejected_
    cube = space.stratum == 1
    assert (rejected & cube).sum() > 100 and (rejected & ~cube).sum() == 0


def test_a_strip_that_thins_is_no_manifold_but_a_fiber_bundle():
    points = thinning_strip(2000).points
    assert ManifoldTest().fit(points).rejected_.sum() >= 5
    assert FiberBundleTest().fit(points).rejected_.sum() == 0


def test_copies_count_once_and_share_an_answer():
    points = plane_union_line(400).points
    once = FiberBundleTest().fit(points)
    twice = FiberBundleTest().fit(np.concatenate([points, points[::-1]]))
    np.testing.assert_array_equal(twice.p_values_[:400], once.p_values_)
    np.testing.assert_array_equal(twice.p_values_[400:], once.p_values_[::-1])
    assert twice.window_ == once.window_


def test_a_lattice_cannot_be_tested():
    grid = np.stack(np.meshgrid(*[np.arange(7.0)] * 3), axis=-1).reshape(-1, 3)
    found = ManifoldTest().fit(grid)
    assert np.isnan(found.p_values_).all() and not found.rejected_.any()
    assert found.counts_[0].num_tested == 0


def test_corrections_differ_and_none_leaves_the_p_values():
    points = disc_in_cube(1200).points
    counts = [
        FiberBundleTest(correction=name).fit(points).rejected_.sum()
        for name in ("holm", "benjamini_hochberg", None)
    ]
    assert counts[0] < counts[1] < counts[2]


@pytest.mark.parametrize("method", ["reference", "source"])
def test_other_procedures_reject_by_their_own_rules(method):
    points = 3 * plane_union_line(400).points
    found = ManifoldTest(method=method, window=(10, 200)).fit(points)
    assert found.rejected_.any()
    np.testing.assert_array_equal(found.adjusted_p_values_, found.p_values_)


def test_the_window_follows_few_rows():
    points = np.random.default_rng(0).normal(size=(40, 3))
    assert ManifoldTest().fit(torch.from_numpy(points)).window_ == (10, 39)
    assert ManifoldTest().fit(points[:12]).window_ == (5, 11)
    with pytest.raises(ValueError, match="window: expected a first rank >= 1 and at least 6 ranks after it"):
        ManifoldTest().fit(points[:7])
    with pytest.raises(ValueError, match="at least 6 ranks after it, got .10, 12. of 40 different rows"):
        ManifoldTest(window=(10, 12)).fit(points)
    with pytest.raises(ValueError, match="method: expected spacings, reference or source, got 'best'"):
        ManifoldTest(method="best").fit(points)
    with pytest.raises(ValueError, match="y: expected a label for each of 40 rows"):
        ManifoldTest().fit(points, [1, 2])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_at_most_two_of_twelve_smooth_manifolds_are_touched(seed):
    """Chord distances are not the intrinsic ones, so a point of a small sample may be rejected by curvature alone."""
    touched = []
    for name, manifold in SMOOTH_NULLS.items():
        space = manifold.draw(1200, seed)
        if FiberBundleTest(period=space.period).fit(space.points).rejected_.any():
            touched.append(name)
    assert len(touched) <= 2, touched


@pytest.mark.slow
@pytest.mark.parametrize(
    "draw", [lambda: plane_union_line(1200), lambda: disc_in_cube(4000), line_in_hollow_ball]
)
def test_five_times_the_power_of_the_published_procedure(draw):
    """At equal error: the published p-values times the number of positions that do not overlap, then Holm."""
    points = draw().points
    ours = FiberBundleTest(window=(10, 128)).fit(points).rejected_.sum()
    published = FiberBundleTest(method="reference", window=(10, 128)).fit(points).p_values_
    theirs = (corrected_p_values(np.minimum(published * (128 - 10 - 40) / 10, 1)) <= 0.05).sum()
    assert ours >= 90 and ours >= 5 * theirs, (ours, theirs)
