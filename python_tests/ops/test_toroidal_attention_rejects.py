"""What toroidal attention refuses, with one wording on every device, and how results merge."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.ops.toroidal_problem import normal, problem, run
from stratcore import ops

op = torch.ops.stratcore.toroidal_attention
backward_op = torch.ops.stratcore.toroidal_attention_backward
SHAPES = {"q": (2, 4, 5, 6), "k": (2, 2, 7, 6), "v": (2, 2, 7, 6), "slopes": (4, 1)}
OPTIONS = {
    "lattice": [4, 6],
    "block": [2, 6],
    "metric": "l1",
    "scale": 1.0,
    "causal": True,
    "causal_group": 1,
    "query_offset": 0,
    "key_offset": 0,
    "eps": 0.0,
    "deterministic": False,
}
LATTICE = "expected lattice of 1 to 3 periods from 1 to 2\\^24, at most 2\\^60 sites, got "
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "q dimensions": ({"q": (2, 5, 6)}, r"expected q with 4 dimensions, got \[2, 5, 6\]"),
    "k dimensions": ({"k": (7, 6)}, r"expected k with 4 dimensions, got \[7, 6\]"),
    "no heads": ({"q": (2, 0, 5, 6)}, "expected q with at least one head, of dimension 1 to 256, got"),
    "no dimension": ({"q": (2, 4, 5, 0)}, "expected q with at least one head, of dimension 1 to 256"),
    "large heads": ({"q": (2, 4, 5, 258)}, "expected q with at least one head, of dimension 1 to 256"),
    "k batch": (
        {"k": (3, 2, 7, 6)},
        r"expected k of shape \[2, G, M, 6\] with G a divisor of 4, got \[3, 2, 7, 6\]",
    ),
    "k heads": ({"k": (2, 3, 7, 6)}, r"expected k of shape \[2, G, M, 6\] with G a divisor of 4"),
    "k dimension": ({"k": (2, 2, 7, 5)}, r"expected k of shape \[2, G, M, 6\] with G a divisor of 4"),
    "v shape": ({"v": (2, 2, 8, 6)}, r"expected v of shape \[2, 2, 7, 6\], got \[2, 2, 8, 6\]"),
    "slopes heads": (
        {"slopes": (3, 1)},
        r"expected slopes of shape \[4, 1\], or \[4, 2\] with metric l1 or chordal_sq, got \[3, 1\]",
    ),
    "slopes axes": ({"slopes": (4, 3)}, r"expected slopes of shape \[4, 1\], or \[4, 2\]"),
    "slopes metric": ({"slopes": (4, 2), "metric": "l2"}, r"expected slopes of shape \[4, 1\], or \[4, 2\]"),
    "no lattice": ({"lattice": [], "block": []}, LATTICE + r"\[\]"),
    "four axes": ({"lattice": [2, 2, 2, 2], "block": [2, 2, 2, 2]}, LATTICE + r"\[2, 2, 2, 2\]"),
    "empty axis": ({"lattice": [4, 0]}, LATTICE + r"\[4, 0\]"),
    "large axis": ({"lattice": [4, 2**24 + 1]}, LATTICE),
    "large torus": ({"lattice": [2**21] * 3, "block": [1] * 3}, LATTICE),
    "block": ({"block": [2, 4]}, r"expected block of sizes that divide lattice \[4, 6\], got \[2, 4\]"),
    "block axes": ({"block": [2]}, r"expected block of sizes that divide lattice \[4, 6\], got \[2\]"),
    "block zero": ({"block": [2, 0]}, "expected block of sizes that divide lattice"),
    "metric": ({"metric": "l3"}, "expected metric to be one of l1, l2, linf, chordal, chordal_sq, got 'l3'"),
    "scale": ({"scale": math.inf}, "expected a finite scale, got inf"),
    "eps": ({"eps": 1.0}, "expected eps in \\[0, 1\\), got 1"),
    "eps nan": ({"eps": math.nan}, "expected eps in \\[0, 1\\), got nan"),
    "group": ({"causal_group": 0}, "expected causal_group from 1 to 2\\^60, got 0"),
    "query offset": ({"query_offset": -1}, "expected query_offset from 0 to 2\\^60, got -1"),
    "key offset": ({"key_offset": 2**62}, "expected key_offset from 0 to 2\\^60, got 4611686018427387904"),
    "mask shape": ({"mask": (2, 1, 5, 7)}, r"expected mask of shape \[2, 4, 5, 7\], got \[2, 1, 5, 7\]"),
}


# 7. rejects


@pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("name", BAD)
def test_rejects(device, name):
    changes, message = BAD[name]
    tensors = [torch.ones(changes.get(k, shape), device=device) for k, shape in SHAPES.items()]
    mask = torch.ones(changes["mask"], device=device) if "mask" in changes else None
    options = OPTIONS | {key: value for key, value in changes.items() if key in OPTIONS}
    with pytest.raises((RuntimeError, ValueError), match=f"toroidal_attention: {message}"):
        op(*tensors, mask, *options.values())


@pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_rejects_dtypes(device):
    q, k, v, slopes = (torch.ones(shape, device=device) for shape in SHAPES.values())
    mask = torch.ones(2, 4, 5, 7, device=device)
    for tensors, message in (
        ((q.long(), k, v, slopes, None), "expected q of dtype float64, float32, bfloat16 or float16"),
        ((q, k.double(), v, slopes, None), "expected k of the dtype of the first argument"),
        ((q, k, v.half(), slopes, None), "expected v of the dtype of the first argument"),
        ((q, k, v, slopes.double(), None), "expected slopes of dtype float32"),
        ((q, k, v, slopes, mask.half()), "expected mask of dtype bool, float32 or that of q"),
    ):
        with pytest.raises((RuntimeError, TypeError), match=f"toroidal_attention: {message}"):
            op(*tensors, *OPTIONS.values())


def test_rejects_a_backward_that_does_not_fit(device):
    q, k, v, slopes = (torch.ones(shape, device=device) for shape in SHAPES.values())
    out, lse, _ = op(q, k, v, slopes, None, *OPTIONS.values())
    for grad_out, grad_lse, result, sums in (
        (out[:1], None, out, lse),
        (out.double(), None, out, lse),
        (out, lse[..., :1], out, lse),
        (out, lse.double(), out, lse),
        (out, None, out[..., :2], lse),
        (out, None, out, lse.double()),
    ):
        with pytest.raises(RuntimeError, match="toroidal_attention: expected (grad_out|grad_lse|out|lse)"):
            backward_op(grad_out, grad_lse, q, k, v, slopes, None, result, sums, *OPTIONS.values())


def test_rejects_in_the_public_functions():
    q, k, v, slopes = problem((2, 4, 2, 5, 7, 6))
    good: dict[str, Any] = {"lattice": [4, 6]}
    for error, tensors, options, message in (
        (TypeError, (q.long(), k, v, slopes), good, "expected q of dtype float64, float32"),
        (TypeError, (q, k.float(), v, slopes), good, "expected k of the dtype of the first argument"),
        (TypeError, (q, k, v, slopes.long()), good, "expected slopes of dtype float64, float32"),
        (ValueError, (q[0], k, v, slopes), good, r"expected q with 4 dimensions, got \[4, 5, 6\]"),
        (ValueError, (q, k, v, slopes[0, 0]), good, "expected slopes of shape"),
        (ValueError, (q, k, v, slopes), {"lattice": [4, 6], "block": 5}, "expected block of sizes"),
        (TypeError, (q, k, v, slopes), {"lattice": [4.0, 6]}, "expected lattice of whole numbers"),
        (ValueError, (q, k, v, slopes), good | {"metric": "cosine"}, "expected metric to be one of"),
        (ValueError, (q, k, v, slopes), good | {"eps": -0.1}, r"expected eps in \[0, 1\)"),
        (
            ValueError,
            (q, k, v, slopes),
            good | {"mask": torch.ones(3, 7)},
            r"expected mask that broadcasts to \[2, 4, 5, 7\], got \[3, 7\]",
        ),
        (
            TypeError,
            (q, k, v, slopes),
            good | {"mask": torch.ones(7).long()},
            "expected mask of dtype bool or floating point",
        ),
        (
            ValueError,
            (q, k, v, slopes),
            good | {"mask": torch.ones(7, requires_grad=True)},
            "expected a mask without a gradient",
        ),
    ):
        for function in (ops.toroidal_attention, ops.toroidal_attention_lse):
            with pytest.raises(error, match=f"toroidal_attention: {message}"):
                function(*tensors, **options)


# merging


def split(tensors: list[Tensor], cuts: list[int], **options: Any) -> tuple[Tensor, Tensor]:
    """Attention over ranges of keys, merged."""
    q, k, v, slopes = tensors
    result = None
    for first, last in zip(cuts, cuts[1:], strict=False):
        mask = options["mask"][..., first:last] if "mask" in options else None
        part = run(
            q,
            k[:, :, first:last],
            v[:, :, first:last],
            slopes,
            **(options | {"mask": mask, "key_offset": first}),
        )
        result = part[:2] if result is None else ops.merge_attention(*result, *part[:2])
    return result


@pytest.mark.parametrize("causal", [False, True])
def test_merged_parts_are_the_whole(device, causal):
    """Also where a part, or every part, has no key for a row; values, and gradients of first and second order."""
    tensors = problem((1, 4, 2, 20, 24, 8), device=device)
    mask = normal(20, 24, device=device, seed=8) > 0
    mask[3], mask[7, 10:] = False, False
    options = {"lattice": [24], "causal": causal, "mask": mask}
    results = []
    for call in (lambda *t: split(list(t), [0, 10, 17, 24], **options), lambda *t: run(*t, **options)[:2]):
        leaves = [t.clone().requires_grad_() for t in tensors]
        out, lse = call(*leaves)
        seen = torch.where(lse == -math.inf, 0.0, lse)
        grads = torch.autograd.grad((out.sin() + seen[..., None].cos()).sum(), leaves, create_graph=True)
        twice = torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)
        results.append([out, lse, *grads, *twice])
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-10)
    assert bool((results[0][1] == -math.inf).any()) and not results[0][0][:, :, 3].any()


def test_merge_gradcheck_and_dtypes(device):
    out, lse = normal(2, 3, 4, device=device, seed=1), normal(2, 3, device=device, seed=2)
    inputs = [t.requires_grad_() for t in (out, lse, out.detach().flip(0), lse.detach().flip(0) * 3)]
    torch.autograd.gradcheck(ops.merge_attention, inputs, check_forward_ad=True)
    torch.autograd.gradgradcheck(ops.merge_attention, inputs)
    low = [t.detach().bfloat16() if t.ndim == 3 else t.detach().float() for t in inputs]
    merged, lse = ops.merge_attention(*low)
    assert merged.dtype == torch.bfloat16 and lse.dtype == torch.float32
    assert ops.merge_attention(low[0].float(), *low[1:])[0].dtype == torch.float32


def test_merge_with_nothing(device):
    out = normal(3, 4, device=device).requires_grad_()
    lse = torch.tensor([0.5, -math.inf, -math.inf], device=device, dtype=torch.float64, requires_grad=True)
    nothing = torch.full_like(lse, -math.inf).detach().requires_grad_()
    zeros = torch.zeros_like(out).detach().requires_grad_()
    merged, total = ops.merge_attention(out, lse, zeros, nothing)
    torch.testing.assert_close(merged[0], out[0])
    assert total.tolist() == [0.5, -math.inf, -math.inf] and not merged[1:].any()
    inputs = (out, lse, zeros, nothing)
    for result in (merged, total):
        grads = torch.autograd.grad(result.sum(), inputs, retain_graph=True, allow_unused=True)
        assert all(g is None or bool(g.isfinite().all()) for g in grads)
