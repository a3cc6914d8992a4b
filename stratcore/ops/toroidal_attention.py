"""Attention whose scores fall with the distance on a torus, without a matrix of scores in memory.

Legend: B batch, H query heads, G key heads, N queries, M keys, E dimension of a head, V a batch of vmap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

import stratcore.ops._library  # noqa: F401
from stratcore.ops._autograd import differentiable, forward_mode_active
from stratcore.ops._checks import check_floating
from stratcore.ops._toroidal_attention_call import OP, Options, arguments, check, compute_dtype
from stratcore.ops._toroidal_attention_replay import Replay
from stratcore.ops._vmap import one_by_one


class ToroidalAttention(NamedTuple):
    """Attention and what merging or watching it needs.

    out: [B, H, N, E], dtype of q. lse: [B, H, N], log of the sum of exp(score), -inf in a row without visible keys;
    float64 for float64 q, else float32; it has a gradient. skipped_tiles, visible_tiles: int32 [B, H], how many tiles
    of scores `eps` left out, of those that `causal` allows; their size is the kernel's, so compare fractions.
    """

    out: Tensor
    lse: Tensor
    skipped_tiles: Tensor
    visible_tiles: Tensor


def toroidal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    *,
    lattice: int | Sequence[int],
    block: int | Sequence[int] | None = None,
    metric: str = "l1",
    causal: bool = False,
    causal_group: int = 1,
    mask: Tensor | None = None,
    scale: float | None = None,
    query_offset: int = 0,
    key_offset: int = 0,
    eps: float = 0.0,
    deterministic: bool | None = None,
) -> Tensor:
    """Attention with a bias that falls with the distance of two tokens on a torus of fixed periods.

        s_ij = scale <q_i, k_j> - sum_a slopes[h, a] part_a(i, j) (+ mask_ij)
        out_i = sum_j softmax_j(s_ij) v_j

        delta_a = min(|x_a - y_a|, period_a - |x_a - y_a|)         steps along axis a
        l1: sum_a delta_a    l2: sqrt(sum_a delta_a^2)    linf: max_a delta_a
        chordal_sq: sum_a (period_a / pi)^2 sin^2(pi delta_a / period_a)    chordal: its root

    Args:
        q: [B, H, N, E], 1 <= E <= 256; float64, float32, bfloat16 or float16. Any strides; a copy is made only where
            the last axis is not contiguous.
        k: [B, G, M, E], dtype of `q`; G divides H, and key head g serves the query heads g H/G .. (g + 1) H/G - 1.
        v: as `k`.
        slopes: what a step takes off a score, [H]; for 'l1' and 'chordal_sq' also [H, axes], one an axis. Any
            sign. Used in float32 (float64 for float64 `q`).
        lattice: 1 to 3 periods of the torus, in tokens. They are part of the model: never the current length.
        block: sizes that divide the periods; tokens are numbered block after block, row-major within each and among
            them, see `lattice_order`. None: row-major.
        metric: 'l1', 'l2', 'linf', 'chordal' or 'chordal_sq', in units of one token's step (squared).
        causal: key j is visible to query i where its position is not later, by raw positions, not by the torus.
        causal_group: positions are compared in groups of so many, `position // causal_group`.
        mask: bool (True takes part) or floating point (added to the scores), broadcastable to [B, H, N, M]. Without a
            gradient.
        scale: of the products, E^-1/2 unless given.
        query_offset: position of query 0; query i has `query_offset` + i, taken modulo the number of sites.
        key_offset: the same of key 0.
        eps: most of a row's probability, in [0, 1), that may be lost by tiles of scores not looked at. 0: all are.
        deterministic: whether the backward gives the same bits on every run on a GPU; None follows
            `torch.use_deterministic_algorithms`. The CPU and the forward always do.

    Returns:
        [B, H, N, E], dtype and device of `q`; with its heads next to each other in memory where `q` has them so, as
        transposed projections do. A row without visible keys is 0.

    Raises:
        ValueError: a shape, lattice, block, metric, number or device that does not fit, named with what was expected,
            or a mask that requires grad.
        TypeError: not floating point, or differing dtypes.

    Gradient: to q, k, v and slopes; exact for eps 0, else that of the tiles that were looked at. 0 from a row without
        visible keys. Differentiable twice, and in forward mode, by dense torch operations with eps 0, whose N x M
        tensors take memory.
    Numerics: scores, probabilities and sums in float32 (float64 for float64 input). With eps > 0,
        |out - exact| <= 2 eps / (1 - eps) max |v| and |lse - exact| <= -log(1 - eps). Tiles are left out only for
        heads without a negative slope, and never with a mask that is added. A row whose mask adds the least finite
        number everywhere is not masked: it averages. Autocast: q, k and v to its dtype.
    Determinism: the same bits on every run, whatever the number of threads; on a GPU the backward with
        `deterministic`.
    Cost: 4 B H N M E operations forward, 2.5 times that backward, times the share of tiles looked at; O(N + M) memory
        a head.
    Source: csrc/toroidal_attention/README.md.
    """
    options = (lattice, block, metric, scale, causal, causal_group, query_offset, key_offset)
    return _call(*arguments(q, k, v, slopes, mask, (*options, eps, deterministic)))[0]


def toroidal_attention_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    *,
    lattice: int | Sequence[int],
    block: int | Sequence[int] | None = None,
    metric: str = "l1",
    causal: bool = False,
    causal_group: int = 1,
    mask: Tensor | None = None,
    scale: float | None = None,
    query_offset: int = 0,
    key_offset: int = 0,
    eps: float = 0.0,
    deterministic: bool | None = None,
) -> ToroidalAttention:
    """`toroidal_attention` with the log-sum of every row and the number of tiles that were left out.

    Returns:
        ToroidalAttention. With `lse`, results over disjoint sets of keys merge to that over all: `merge_attention`.

    Arguments and errors: those of `toroidal_attention`.
    Gradient: through `out` and `lse`.
    """
    options = (lattice, block, metric, scale, causal, causal_group, query_offset, key_offset)
    out, lse, tiles = _call(*arguments(q, k, v, slopes, mask, (*options, eps, deterministic)))
    return ToroidalAttention(out, lse, tiles[..., 0], tiles[..., 1])


def merge_attention(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two disjoint sets of keys as one.

        lse = log(exp(lse_a) + exp(lse_b)),  out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b

    Args:
        out_a: [..., E], attention over the first set.
        lse_a: [...], its log-sums; -inf in a row without keys.
        out_b: as out_a, over the second set.
        lse_b: as lse_a.

    Returns:
        out [..., E] and lse [...], each of the promoted dtype of its two sources: of several merges, keep the running
        `out` in float32.

    Gradient: to all four, 0 through an lse of -inf, never NaN; of any order.
    Numerics: computed in float32 or better.
    Source: M. Milakov, N. Gimelshein, arXiv 1805.02867; H. Liu et al., arXiv 2310.01889.
    """
    dtype = torch.promote_types(torch.promote_types(lse_a.dtype, lse_b.dtype), torch.float32)
    first, second = lse_a.to(dtype), lse_b.to(dtype)
    top = torch.maximum(first.detach(), second.detach())
    top = torch.where(top == -torch.inf, 0.0, top)
    weight_a, weight_b = torch.exp(first - top), torch.exp(second - top)
    total = weight_a + weight_b
    empty = total == 0
    total = torch.where(empty, 1.0, total)
    out = (out_a * weight_a[..., None] + out_b * weight_b[..., None]) / total[..., None]
    lse = torch.where(empty, -torch.inf, top + torch.log(total))
    return out.to(torch.promote_types(out_a.dtype, out_b.dtype)), lse.to(
        torch.promote_types(lse_a.dtype, lse_b.dtype)
    )


_op = torch.ops.stratcore.toroidal_attention.default
_backward_op = torch.ops.stratcore.toroidal_attention_backward.default


@torch.library.register_fake("stratcore::toroidal_attention")
def _fake(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, mask: Tensor | None, *options: Any
) -> tuple[Tensor, ...]:
    check_floating(OP, "q", q)
    check(q, k, v, slopes, mask, Options(*options), RuntimeError)
    batch, heads, queries, dim = q.shape
    if q.stride(1) >= q.stride(2):
        out = q.new_empty(q.shape)
    else:
        out = q.new_empty((batch, queries, heads, dim)).transpose(1, 2)
    return (
        out,
        q.new_empty(q.shape[:3], dtype=compute_dtype(q)),
        q.new_empty((batch, heads, 2), dtype=torch.int32),
    )


@torch.library.register_fake("stratcore::toroidal_attention_backward")
def _fake_backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, *args: Any
) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (q, k, v, slopes))


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    q, k, v, slopes, mask, *options = inputs
    out, lse, tiles = output
    ctx.mark_non_differentiable(tiles)
    ctx.set_materialize_grads(False)
    saved = (q, k, v, slopes, out, lse) if mask is None else (q, k, v, slopes, out, lse, mask)
    ctx.save_for_backward(*saved)
    if forward_mode_active():
        ctx.save_for_forward(*saved)
    ctx.options = Options(*options)


def _replay(ctx: Any) -> Replay:
    q, k, v, slopes, _, _, *mask = ctx.saved_tensors
    return Replay(q, k, v, slopes, mask[0] if mask else None, ctx.options)


def _gradient(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None, *_: Any) -> tuple:
    """First order by the kernel; where a second may follow, by dense torch operations."""
    q, k, v, slopes, out, lse, *mask = ctx.saved_tensors
    if grad_out is None and grad_lse is None:
        return (None,) * 15
    if torch.is_grad_enabled() and k.shape[2] > 0:
        with torch.autocast(q.device.type, enabled=False):
            grads = _replay(ctx).gradients(grad_out, grad_lse)
    else:
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        tensors = (q, k, v, slopes, mask[0] if mask else None, out, lse)
        grads = _backward_op(grad_out, grad_lse, *tensors, *ctx.options)
    needed = (grad if need else None for grad, need in zip(grads, ctx.needs_input_grad, strict=False))
    return (*needed, *(None,) * 11)


def _tangent(ctx: Any, *tangents: Tensor | None) -> tuple:
    with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
        return (*_replay(ctx).tangents(*tangents[:4]), None)


_call = differentiable(_op, setup_context=_save, backward=_gradient, jvp=_tangent)


def _fold(tensor: Tensor, dim: int | None, size: int, heads: int) -> Tensor:
    """The batch of vmap, repeated where there is none, in front of the axis `heads` and as one with it."""
    if dim is None:
        shape = list(tensor.shape)
        shape.insert(heads, size)
        return tensor.unsqueeze(heads).expand(shape).flatten(heads, heads + 1)
    return tensor.movedim(dim, heads).flatten(heads, heads + 1)


def _folds(mask: Tensor | None, dim: int | None) -> bool:
    """Whether the mask can have more heads without a copy."""
    return mask is None or (dim is None and (mask.stride(1) == 0 or mask.shape[1] == 1))


@torch.library.register_vmap("stratcore::toroidal_attention")
def _vmap(info: Any, in_dims: tuple, *args: Any) -> tuple:
    """Batched inputs become heads."""
    mask, size = args[4], info.batch_size
    if not _folds(mask, in_dims[4]):
        return one_by_one(_op)(info, in_dims, *args)
    inputs = [_fold(args[i], in_dims[i], size, 1 if i < 3 else 0) for i in range(4)]
    if mask is not None:
        mask = mask[:, :1].expand(-1, inputs[0].shape[1], -1, -1)
    results = _op(*inputs, mask, *args[5:])
    return tuple(t.unflatten(1, (size, -1)) for t in results), (1, 1, 1)


@torch.library.register_vmap("stratcore::toroidal_attention_backward")
def _vmap_backward(info: Any, in_dims: tuple, *args: Any) -> tuple:
    mask, size = args[6], info.batch_size
    if not _folds(mask, in_dims[6]):
        return one_by_one(_backward_op)(info, in_dims, *args)
    folded = [
        t if t is None or i == 6 else _fold(t, in_dims[i], size, 0 if i == 5 else 1)
        for i, t in enumerate(args[:9])
    ]
    if mask is not None:
        folded[6] = mask[:, :1].expand(-1, folded[2].shape[1], -1, -1)
    *grads, grad_slopes = _backward_op(*folded, *args[9:])
    return (*(t.unflatten(1, (size, -1)) for t in grads), grad_slopes.unflatten(0, (size, -1))), (1, 1, 1, 0)


@register_flop_formula(torch.ops.stratcore.toroidal_attention)
def _flops(q: Sequence[int], k: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """Two products, as torch counts its own attention: not less for causal ones, nor for tiles left out."""
    return 4 * q[0] * q[1] * q[2] * k[2] * q[3]


@register_flop_formula(torch.ops.stratcore.toroidal_attention_backward)
def _backward_flops(
    grad_out: Any, grad_lse: Any, q: Sequence[int], k: Sequence[int], *args: Any, **kwargs: Any
) -> int:
    """Five products."""
    return 10 * q[0] * q[1] * q[2] * k[2] * q[3]
