"""Selection over a whole batch: known values, the reference's, gradients, special and bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stratcore import ops
from stratcore.ops import reference

BACKWARDS = ["straight_through", "masked"]


def test_rows_share_their_entries(device):
    x = torch.tensor([[5.0, -4.0, 3.0], [1.0, 0.5, -2.0]], device=device)
    assert ops.batch_topk(x, 2).tolist() == [[5.0, -4.0, 3.0], [0.0, 0.0, -2.0]]


def test_ties_go_to_the_lower_row_and_index(device):
    x = torch.tensor([[1.0, -2.0, 2.0], [2.0, -2.0, 3.0]], device=device)
    assert ops.batch_topk(x, 1).tolist() == [[0.0, -2.0, 0.0], [0.0, 0.0, 3.0]]
    assert ops.batch_topk(x, 2).tolist() == [[0.0, -2.0, 2.0], [2.0, 0.0, 3.0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows, atoms, k", [(1, 1, 1), (7, 5, 5), (33, 64, 3), (50, 257, 40)])
def test_selects_what_float64_selects(device, dtype, rows, atoms, k):
    """Rounded to few digits, so that ties are everywhere and float64 holds the same numbers."""
    x = torch.randn(rows, atoms, generator=torch.Generator().manual_seed(5)).to(dtype).to(device)
    assert torch.equal(ops.batch_topk(x, k).double(), reference.batch_topk(x.double(), k, "masked"))
    assert int(ops.batch_topk(x, k).count_nonzero()) == k * rows


@pytest.mark.parametrize("backward", BACKWARDS)
def test_gradient_is_that_of_the_reference(device, backward):
    x = torch.randn(6, 9, dtype=torch.float64, device=device)
    weights = torch.randn_like(x)
    grads = []
    for function in (ops.batch_topk, reference.batch_topk):
        leaf = x.clone().requires_grad_()
        grads.append(torch.autograd.grad((function(leaf, 2, backward=backward) * weights).sum(), leaf)[0])
    assert torch.equal(*grads)
    if backward == "masked":
        leaf = x.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda t: ops.batch_topk(t, 2, backward="masked"), leaf)
        assert torch.autograd.gradgradcheck(lambda t: ops.batch_topk(t, 2, backward="masked"), leaf)


def test_compile_with_dynamic_batch_and_torch_func(device):
    torch._dynamo.reset()

    def loss(x: Tensor) -> Tensor:
        return ops.batch_topk(x, 3).square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (4, 9):
        x = torch.randn(rows, 11, dtype=torch.float64, device=device, requires_grad=True)
        grad = torch.autograd.grad(loss(x), x)[0]
        assert torch.equal(torch.autograd.grad(compiled(x), x)[0], grad)
        assert torch.equal(torch.func.grad(loss)(x.detach()), grad)


def test_batch_dimensions_strides_and_empty_batches(device):
    x = torch.randn(3, 4, 10, device=device)
    assert torch.equal(ops.batch_topk(x, 2).flatten(0, 1), ops.batch_topk(x.flatten(0, 1), 2))
    assert torch.equal(ops.batch_topk(x.mT.contiguous().mT, 2), ops.batch_topk(x, 2))
    assert ops.batch_topk(x[:0], 2).shape == (0, 4, 10)


def test_nan_is_kept(device):
    x = torch.tensor([[1.0, torch.nan, torch.inf], [2.0, 3.0, 0.0]], device=device)
    assert torch.equal(
        ops.batch_topk(x, 1, backward="masked").nan_to_num(nan=7.0, posinf=8.0),
        torch.tensor([[0.0, 7.0, 8.0], [0.0, 0.0, 0.0]], device=device),
    )


def test_rejects():
    with pytest.raises(ValueError, match=r"batch_topk: expected k in \[1, M\] for x \[..., M\], got k = 4"):
        ops.batch_topk(torch.ones(2, 3), 4)
    with pytest.raises(
        ValueError, match="batch_topk: expected backward to be one of straight_through, masked"
    ):
        ops.batch_topk(torch.ones(2, 3), 1, backward="none")
    with pytest.raises(TypeError, match="batch_topk: expected x of dtype float64, float32"):
        ops.batch_topk(torch.ones(2, 3, dtype=torch.int64), 1)
