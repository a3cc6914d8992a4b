"""Many rows against many anchors on a GPU, where tensor cores choose whom to compare exactly.

Legend: N rows, D dimension, A anchors. Each shape takes another way: anchors that stay in shared memory or pass
through it, rows that are shorter than the steps of the product or that 16-byte accesses cannot take, a last chunk of
anchors that is not full, more anchors or longer rows than the fast kernel takes.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stratcore import ops
from stratcore.ops import reference

pytestmark = pytest.mark.cuda
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [
    (20001, 256, 128),
    (20001, 256, 400),
    (20001, 256, 512),
    (20001, 256, 520),
    (20001, 136, 500),
    (10001, 256, 1100),
    (20001, 200, 130),
    (20001, 128, 130),
    (40001, 64, 70),
    (20001, 77, 130),
    (5001, 256, 4096),
    (5001, 256, 4100),
    (5001, 520, 130),
    (5001, 1024, 520),
    (3001, 2504, 300),
]
# Dimensions and anchors that take different kernels of sm_90a.
WAYS = [(256, 130), (256, 500), (256, 520), (264, 130)]


def normal(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, generator=generator, device="cuda").to(dtype)


def problem(rows: int, dim: int, anchors: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return normal(rows, dim, dtype=dtype, seed=1), 3 * normal(anchors, dim, dtype=dtype, seed=2)


def exact_cosines(x: Tensor, anchors: Tensor) -> Tensor:
    return reference.on_sphere(x.double()) @ reference.unit_anchors(anchors.double()).T


def assert_nearest(x: Tensor, anchors: Tensor) -> None:
    """The anchor of largest cosine within the rounding of float32, its cosine, and y."""
    y, nearest, cosine = ops.sphere_normalize_nearest(x, anchors)
    exact = exact_cosines(x, anchors)
    chosen = exact.gather(1, nearest.long()[:, None])[:, 0]
    torch.testing.assert_close(chosen, exact.amax(1), rtol=0, atol=2e-6)
    torch.testing.assert_close(cosine.double(), chosen, rtol=0, atol=2e-6)
    wanted = reference.on_sphere(x.double())
    torch.testing.assert_close(y.double(), wanted, rtol=4 * torch.finfo(x.dtype).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, dim, anchors", SHAPES)
def test_finds_the_nearest_of_many(dtype, rows, dim, anchors):
    assert_nearest(*problem(rows, dim, anchors, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim, anchors", WAYS)
def test_finds_it_among_near_ties(dtype, dim, anchors):
    """Anchors about one direction, and rows against all of them: small differences of large cosines, all below 0."""
    x, anchors = problem(20001, dim, anchors, dtype)
    anchors = 0.05 * anchors + anchors[:1]
    assert_nearest(x, anchors)
    assert_nearest(0.1 * x - anchors[:1], anchors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim, anchors", [(256, 128), (256, 500), (256, 520), (77, 130), (1024, 520)])
def test_copies_tie_to_the_lower_index(dtype, dim, anchors):
    x, directions = problem(20001, dim, anchors, dtype)
    directions[1::2] = directions[::2]
    assert bool((ops.sphere_normalize_nearest(x, directions).nearest % 2 == 0).all())


@pytest.mark.parametrize("dim, anchors", WAYS)
@pytest.mark.parametrize("scale", [1e-25, 1e-15, 1e15])
def test_rows_of_any_length(scale, dim, anchors):
    x, anchors = problem(20001, dim, anchors, torch.float32)
    lengths = torch.logspace(-3, 3, len(x), device="cuda")[:, None]
    nearest = ops.sphere_normalize_nearest(x * lengths * scale, anchors, eps=1e-18).nearest
    exact = exact_cosines(x, anchors)
    chosen = exact.gather(1, nearest.long()[:, None])[:, 0]
    torch.testing.assert_close(chosen, exact.amax(1), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim, anchors", WAYS)
def test_rows_of_zeros_and_nan_change_no_other(dtype, dim, anchors):
    x, anchors = problem(20001, dim, anchors, dtype)
    clean = ops.sphere_normalize_nearest(x, anchors)
    zero, bad = [0, 17, 20000], [5, 9000]
    x[zero] = 0.0
    x[5, 200], x[9000, 3] = float("nan"), float("inf")
    dirty = ops.sphere_normalize_nearest(x, anchors)
    others = torch.ones(len(x), dtype=torch.bool, device="cuda")
    others[zero + bad] = False
    assert all(torch.equal(a[others], b[others]) for a, b in zip(clean, dirty, strict=True))
    assert dirty.nearest[zero + bad].tolist() == [0] * 5
    assert dirty.cosine[zero].tolist() == [0.0] * 3 and dirty.cosine[bad].isnan().all()
    assert not dirty.y[zero].any() and dirty.y[5].isnan().all() and dirty.y[9000].isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim, anchors", WAYS)
def test_zero_and_nan_anchors(dtype, dim, anchors):
    x, anchors = problem(5001, dim, anchors, dtype)
    anchors[40] = 0.0
    assert_nearest(x, anchors)
    anchors[7, 250] = float("nan")
    _, nearest, cosine = ops.sphere_normalize_nearest(x, anchors)
    assert bool((nearest == 7).all()) and cosine.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim, anchors", WAYS)
def test_a_row_does_not_depend_on_its_place(dtype, dim, anchors):
    x, anchors = problem(20001, dim, anchors, dtype)
    runs = [ops.sphere_normalize_nearest(x, anchors) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    last = ops.sphere_normalize_nearest(x[-10001:], anchors)
    assert all(torch.equal(a[-10001:], b) for a, b in zip(runs[0], last, strict=True))
