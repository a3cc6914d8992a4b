from __future__ import annotations

import numpy as np
import pytest

from stratcore.data.synthetic import Strata, StrataOptions, union_of_strata

KINDS = ("plane", "sphere", "torus", "curve")


def measured_rank(points: np.ndarray) -> int:
    singular = np.linalg.svd(points - points.mean(0), compute_uv=False)
    return int((singular > 1e-4 * singular[0]).sum())


def pieces(strata: Strata) -> list[np.ndarray]:
    return [strata.points[strata.stratum == i].astype(np.float64) for i in range(len(strata.dims))]


@pytest.mark.parametrize("curvature", [0.0, 0.5])
@pytest.mark.parametrize("ambient", [64, 768])
def test_span_dims_equal_svd_rank(curvature: float, ambient: int) -> None:
    options = StrataOptions(
        kinds=(*KINDS, "sphere", "plane"),
        dims=(2, 3, 2, 1, 1, 16),
        ambient=ambient,
        points=1200,
        noise=0.0,
        curvature=curvature,
        harmonics=3,
    )
    strata = union_of_strata(options)
    bend = int(curvature > 0)
    assert strata.span_dims == tuple(dim + bend for dim in (2, 4, 4, 6, 2, 16))
    assert tuple(measured_rank(piece) for piece in pieces(strata)) == strata.span_dims
    assert strata.points.dtype == np.float32 and strata.points.shape == (1200, ambient)


def test_points_per_stratum() -> None:
    even = StrataOptions(kinds=("plane",) * 3, dims=(1, 1, 1), points=11)
    assert np.bincount(union_of_strata(even).stratum).tolist() == [4, 4, 3]
    given = StrataOptions(kinds=("plane",) * 3, dims=(1, 1, 1), points=(5, 1, 7))
    assert np.bincount(union_of_strata(given).stratum).tolist() == [5, 1, 7]
    assert np.count_nonzero(np.diff(union_of_strata(given).stratum)) > 2, "strata are not in random order"


def test_radius_and_center_distance() -> None:
    options = StrataOptions(
        kinds=KINDS, dims=(4, 4, 3, 1), points=4000, radius=2.5, noise=0.0, center_distance=3.0
    )
    strata = union_of_strata(options)
    lengths = [np.linalg.norm(p - c, axis=1) for p, c in zip(pieces(strata), strata.centers, strict=True)]
    for length in lengths[1:]:
        np.testing.assert_allclose(length, 2.5, rtol=1e-5)
    assert lengths[0].max() < 2.5 and np.mean((lengths[0] / 2.5) ** 4) == pytest.approx(0.5, abs=0.03)
    gaps = np.linalg.norm(strata.centers[:, None] - strata.centers[None], axis=-1)
    np.testing.assert_allclose(gaps[np.triu_indices(4, 1)], 7.5, rtol=1e-12)
    np.testing.assert_allclose(strata.centers.mean(0), 0, atol=1e-12)


def test_noise_level() -> None:
    clean = union_of_strata(StrataOptions(noise=0.0, radius=3.0))
    noisy = union_of_strata(StrataOptions(noise=0.02, radius=3.0))
    np.testing.assert_array_equal(clean.stratum, noisy.stratum)
    difference = noisy.points - clean.points
    assert difference.std() == pytest.approx(0.06, rel=0.01)
    assert np.abs(difference.std(axis=0) - 0.06).max() < 0.003


def test_shared_center_and_singular_flags() -> None:
    options = StrataOptions(
        kinds=("plane", "plane"), dims=(1, 2), points=4000, noise=0.0, center_distance=0.0
    )
    strata = union_of_strata(options)
    np.testing.assert_array_equal(strata.centers, 0)
    line, disk = (strata.stratum == i for i in (0, 1))
    length = np.linalg.norm(strata.points, axis=1)
    # Distance of x on the line to the disk: |x| sin(angle); the angle follows from the bases.
    basis = np.linalg.svd(strata.points[disk], full_matrices=False)[2][:2]
    direction = strata.points[line][np.argmax(length[line])]
    direction = direction / np.linalg.norm(direction)
    sine = np.sqrt(1 - np.sum((basis @ direction) ** 2))
    np.testing.assert_array_equal(strata.singular[line], length[line] * sine <= 0.1)
    assert strata.singular[line].mean() == pytest.approx(0.1 / sine, abs=0.02)
    assert strata.singular[disk].mean() < 0.05


def test_flags_are_exact_for_every_kind() -> None:
    """A point cloud of one stratum is near another exactly where brute force over dense samples says so."""
    for kind, dim in zip(KINDS, (2, 2, 1, 1), strict=True):
        options = StrataOptions(
            kinds=(kind, "sphere"),
            dims=(dim, 1),
            ambient=5,
            points=(60_000, 300),
            noise=0.0,
            glue=True,
            center_distance=0.0,
            singular_distance=0.3,
        )
        strata = union_of_strata(options)
        dense, probes = pieces(strata)
        brute = np.array([np.linalg.norm(dense - probe, axis=1).min() for probe in probes])
        flags = strata.singular[strata.stratum == 1]
        clear = np.abs(brute - 0.3) > 0.01  # the samples are about 0.01 apart
        np.testing.assert_array_equal(flags[clear], brute[clear] <= 0.3)
        assert 5 < flags.sum() < 295


def test_bent_flags_never_miss_low() -> None:
    options = StrataOptions(
        kinds=("plane", "plane"),
        dims=(2, 1),
        ambient=6,
        points=(40_000, 200),
        noise=0.0,
        center_distance=0.0,
        curvature=0.6,
        singular_distance=0.2,
    )
    strata = union_of_strata(options)
    dense, probes = pieces(strata)
    brute = np.array([np.linalg.norm(dense - probe, axis=1).min() for probe in probes])
    flags = strata.singular[strata.stratum == 1]
    assert (brute[flags] <= 0.2 + 0.02).all()
    assert (flags == (brute <= 0.2)).mean() > 0.95


def test_far_strata_have_no_singular_point() -> None:
    strata = union_of_strata(StrataOptions(center_distance=4.0))
    assert strata.singular.sum() == 0


def test_glue_meets_in_the_origin() -> None:
    for curvature in (0.0, 0.4):
        options = StrataOptions(
            kinds=KINDS,
            dims=(2, 2, 1, 1),
            points=8000,
            noise=0.0,
            glue=True,
            center_distance=0.0,
            curvature=curvature,
        )
        strata = union_of_strata(options)
        nearest = [np.linalg.norm(piece, axis=1).min() for piece in pieces(strata)]
        assert max(nearest) < 0.1
        assert all(strata.singular[strata.stratum == i].any() for i in range(4))
        if not curvature:
            np.testing.assert_allclose(np.linalg.norm(strata.centers, axis=1), [0, 1, 1, 1], atol=1e-12)


def test_bend_has_the_stated_curvature() -> None:
    options = StrataOptions(kinds=("plane",), dims=(1,), points=2000, noise=0.0, curvature=0.8, radius=2.0)
    points = union_of_strata(options).points.astype(np.float64)
    flat, bent = np.linalg.svd(points - points.mean(0), full_matrices=False)[2][:2]
    quadratic = np.polyfit(points @ flat, points @ bent, 2)[0]
    assert abs(2 * quadratic) == pytest.approx(0.8 / 2.0, rel=1e-3)


def test_seed_decides() -> None:
    first, again, other = (union_of_strata(StrataOptions(points=50, seed=s)) for s in (0, 0, 1))
    assert first.as_table().content_hash() == again.as_table().content_hash()
    assert first.as_table().content_hash() != other.as_table().content_hash()


def test_as_table() -> None:
    table = union_of_strata(StrataOptions(points=50)).as_table()
    assert table.domain_names == ("0 sphere 1", "1 sphere 2", "2 sphere 4", "3 sphere 8", "4 sphere 16")
    assert np.bincount(table.domain).tolist() == [10] * 5 and (table.label == -1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kinds": ("ball",) * 5}, "StrataOptions.kinds: expected some of"),
        ({"dims": (1, 2)}, "StrataOptions.dims: expected 5 dimensions >= 1, got (1, 2)"),
        ({"dims": (0, 1, 1, 1, 1)}, "StrataOptions.dims"),
        ({"kinds": ("curve",), "dims": (2,)}, "StrataOptions.dims: expected 1 for a curve"),
        ({"ambient": 16}, "StrataOptions.ambient: expected at least 17 for these strata, got 16"),
        ({"points": 4}, "StrataOptions.points"),
        ({"points": (1, 1)}, "StrataOptions.points"),
        ({"noise": -0.1}, "StrataOptions.noise"),
        ({"radius": 0.0}, "StrataOptions.radius"),
        ({"curvature": float("nan")}, "StrataOptions.curvature"),
        ({"glue": True}, "StrataOptions.center_distance: expected 0 where glue is on, got 3.0"),
        ({"harmonics": 0}, "StrataOptions.harmonics"),
    ],
)
def test_rejects(change: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        StrataOptions(**change)
    assert str(caught.value).startswith(message)
