"""The sample of simplex_cv: known answers, uniformity, one sample for every device, thread count and graph replay.

Legend: n simplices, k order.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from stratcore import ops


def points(rows: int, dim: int, device: str = "cpu", dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(rows, dim, generator=generator, dtype=torch.float64).to(dtype).to(device)


def test_philox_known_answers():
    """k = 1, which draws one block a simplex: its two vertices come from the words of the block.

    With a pool of 2^32 + 1 rows the first vertex would be the upper word of the first number; a pool that large
    does not fit, so the upper bits are read: row = floor(bits * range / 2^64).
    """
    zero = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    for rows in (65536, 50_001):
        x = torch.zeros(rows, 1)
        first, second = ops.simplex_cv(x, k=1, num_simplices=1, seed=0).indices[0].tolist()
        assert first == (zero[1] << 32 | zero[0]) * (rows - 1) >> 64
        assert second == (zero[3] << 32 | zero[2]) * rows >> 64
    ones = (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    assert philox((2**32 - 1,) * 4, (2**32 - 1,) * 2) == ones and philox((0,) * 4, (0,) * 2) == zero


def philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [p1 >> 32 ^ c[1] ^ k0, p1 % 2**32, p0 >> 32 ^ c[3] ^ k1, p0 % 2**32]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return tuple(c)


def words(number: int) -> tuple[int, int]:
    number %= 2**64
    return number % 2**32, number >> 32


def sample(seed: int, offset: int, n: int, k: int, pool: int) -> list[list[int]]:
    """The sampler in Python: Floyd's algorithm on the words of Philox blocks."""
    chosen, blocks = [], (k + 2) // 2
    for which in range(n):
        rows: list[int] = []
        for j in range(k + 1):
            block = philox((*words(which * blocks + j // 2), *words(offset)), words(seed))
            bits = block[j % 2 * 2 + 1] << 32 | block[j % 2 * 2]
            row = bits * (pool - k + j) >> 64
            rows.append(pool - k - 1 + j if row in rows else row)
        chosen.append(rows)
    return chosen


@pytest.mark.parametrize("k", range(1, 9))
@pytest.mark.parametrize("seed, offset", [(0, 0), (-3, 5), (2**63 - 1, -(2**63))])
def test_sample_is_a_function_of_the_seed(device, seed, offset, k):
    """On every device the sample of the definition, for the pool alone."""
    x = points(40, 3, device)
    pair = torch.tensor([seed, offset], device=device)
    for pool in (k + 1, 23):
        found = ops.simplex_cv(x, k=k, num_simplices=19, seed=pair, pool=pool)
        assert found.indices.tolist() == sample(seed, offset, 19, k, pool)


def test_every_set_is_equally_likely(device):
    n, sets = 60_000, list(itertools.combinations(range(6), 3))
    found = ops.simplex_cv(points(6, 3, device), k=2, num_simplices=n, seed=4)
    drawn = found.indices.sort(1).values
    assert (drawn.diff(dim=1) > 0).all()
    codes = (drawn * torch.tensor([36, 6, 1], device=device)).sum(1).bincount(minlength=216)
    counts = torch.stack([codes[36 * a + 6 * b + c] for a, b, c in sets]).double()
    chi_square = ((counts - n / len(sets)) ** 2).sum() / (n / len(sets))
    assert 5.4 < float(chi_square) < 42.3  # 0.1 % to 99.9 % of chi-square with 19 degrees of freedom, widened


def test_same_bits_for_any_number_of_threads():
    x = points(700, 40, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            leaf = x.clone().requires_grad_()
            found = ops.simplex_cv(leaf, num_simplices=9000, seed=8)
            found.loss.backward()
            results.append([*(t.detach() for t in found), leaf.grad])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_seed_arguments(device):
    x = points(100, 4, device)
    torch.manual_seed(1)
    first, second = (ops.simplex_cv(x, num_simplices=9).indices for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(ops.simplex_cv(x, num_simplices=9).indices, first)
    pair = torch.tensor([6, 0], device=device)
    of_number = ops.simplex_cv(x, num_simplices=9, seed=6).indices
    assert torch.equal(ops.simplex_cv(x, num_simplices=9, seed=pair).indices, of_number)
    pair[1] += 1
    assert not torch.equal(ops.simplex_cv(x, num_simplices=9, seed=pair).indices, of_number)


@pytest.mark.cuda
def test_cuda_draws_the_sample_of_the_cpu_and_replays_fresh_ones():
    x = points(300, 128, "cuda", torch.float32)
    seed = torch.tensor([5, 0], device="cuda")
    on_cpu = ops.simplex_cv(x.cpu(), num_simplices=500, seed=seed.cpu())
    on_gpu = ops.simplex_cv(x, num_simplices=500, seed=seed)
    assert torch.equal(on_cpu.indices, on_gpu.indices.cpu())
    torch.testing.assert_close(on_gpu.volumes.cpu(), on_cpu.volumes, rtol=1e-6, atol=0)
    leaf = x.clone().requires_grad_()

    def step() -> tuple[Tensor, Tensor]:
        found = ops.simplex_cv(leaf, num_simplices=500, seed=seed)
        (grad,) = torch.autograd.grad(found.loss, leaf)
        seed[1] += 1
        return found.cv, grad

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        cv, grad = step()
    seed.copy_(torch.tensor([5, 0], device="cuda"))
    for offset in range(3):
        graph.replay()
        own = x.clone().requires_grad_()
        wanted = ops.simplex_cv(own, num_simplices=500, seed=torch.tensor([5, offset], device="cuda"))
        wanted.loss.backward()
        assert torch.equal(cv, wanted.cv) and torch.equal(grad, own.grad)
