"""Top-k LISTA: unrolled sparse coding with an exact selection of the k largest entries after every step.

Legend: E experts, B rows, D input size, M atoms, K code width (largest k), T steps, P 1 or the number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

import stratcore.ops._library  # noqa: F401
from stratcore.ops._autograd import differentiable
from stratcore.ops._checks import check_choice, check_floating
from stratcore.ops._topk_lista_call import BACKWARDS, FORMS, REGIMES, Call, check_shapes
from stratcore.ops._topk_lista_replay import Replay

# As in csrc/topk_lista/topk_lista.h: atoms for each kept one from which gathering beats dense products, and bytes
# of S up to which its rows come from the cache.
GATHER_RATIO, FAR_GATHER_RATIO, MASKED_GATHER_RATIO, NEAR_BYTES = 96, 200, 32, 80 << 20


def topk_lista_regime(
    *,
    atoms: int,
    k: int | Sequence[int],
    form: str = "classic",
    dtype: torch.dtype = torch.float32,
    backward: str | None = None,
) -> str:
    """How `topk_lista` makes its products with codes on a GPU, unless `regime` forces it.

    Args:
        atoms: M.
        k: entries kept, one number or one an expert; the largest counts.
        form: 'classic' or 'coupled'.
        dtype: of the input.
        backward: None for the forward, 'straight_through' or 'masked' for that backward.

    Returns:
        'dense' (matrix products) or 'gather' (rows of the parameters at the kept entries). On the CPU and in float64
        all is dense; so is the forward outside of 1,025 to 16,384 atoms, a multiple of 8, and with very large k (more
        than 64 of up to 2,048 atoms, 128 of up to 4,096, 256 beyond).

    Raises:
        ValueError: an unknown form or backward.
    """
    check_choice("topk_lista_regime", "form", form, FORMS)
    if backward is not None:
        check_choice("topk_lista_regime", "backward", backward, BACKWARDS)
    near = form == "coupled" or atoms * atoms * min(dtype.itemsize, 4) <= NEAR_BYTES
    ratio = GATHER_RATIO if near else FAR_GATHER_RATIO
    if backward == "masked":
        ratio = MASKED_GATHER_RATIO
    width = k if isinstance(k, int) else max(k)
    return "gather" if dtype != torch.float64 and atoms >= ratio * width else "dense"


class SparseCode(NamedTuple):
    """A sparse code: `values` stand at `indices`, everything else is 0.

    indices: int32 [..., K], distinct and, up to k, ascending; where an expert's k is smaller than K, the rest are
    unused atoms with value 0. values: [..., K].
    """

    indices: Tensor
    values: Tensor


def topk_lista(
    x: Tensor,
    encoder: Tensor,
    recurrent: Tensor,
    theta: Tensor,
    k: int | Sequence[int],
    *,
    num_steps: int,
    form: str = "classic",
    backward: str = "straight_through",
    input_per_expert: bool = False,
    regime: str = "auto",
) -> Tensor:
    """Sparse codes of `x` by learned iterative soft thresholding with a hard top-k after every step.

        z_0 = T_k(h_theta(W x))
        classic:  z <- T_k(h_theta(W x + S z))             num_steps times
        coupled:  z <- T_k(h_theta(z + W (x - D z)))       num_steps times

    h_theta(u) = sign(u) max(|u| - theta, 0); T_k keeps the k entries of largest magnitude, equal magnitudes in
    the order of their index. Literature that starts from z = 0 and counts L layers means num_steps = L - 1.

    Args:
        x: [..., D]; with `input_per_expert` [E, ..., D]. float64, float32, bfloat16 or float16; any strides.
        encoder: W [M, D] for one expert, [E, M, D] for several, [T + 1, E, M, D] for own weights a step.
        recurrent: classic S [M, M], coupled D [D, M]; [E, ...]; or [T, E, ...].
        theta: threshold >= 0, [M]; [E, M]; or [T + 1, E, M].
        k: entries kept, one number or one an expert, in [1, M].
        num_steps: T >= 0, products with `recurrent`.
        form: 'classic' or 'coupled'.
        backward: 'straight_through' or 'masked', see Gradient.
        input_per_expert: `x` holds an own input for every expert.
        regime: how products with codes are made on a GPU, 'dense' or 'gather'; 'auto' decides by the sizes as
            `topk_lista_regime` does. No other result than by rounding.

    Returns:
        Codes [..., M]; with several experts [E, ..., M]. dtype and device of `x`.

    Raises:
        ValueError: a shape, k, form or backward that does not fit, named with what was expected.
        TypeError: not floating point, or differing dtypes.

    Gradient: true derivative of the soft threshold (1 where |u| > theta). Through the selection T_k:
    'straight_through' passes the identity, so that atoms that were not selected learn too; 'masked' passes
    the selected entries only, the exact gradient wherever the selection does not change. Differentiable twice; no
    forward mode.
    Numerics: computed in float32 (float64 for float64 input), whatever the input; products follow torch's
    matmul precision settings. NaN stays in its row. Under autocast: float32.
    Determinism: the same bits on every run, on both devices. Empty batches give empty codes.
    Cost: O(B E (M D + T M^2)) for classic, O(B E T M D) for coupled; about 2 B E M floats of scratch.
    Source: Gregor and LeCun 2010; coupling: Chen et al. 2018 (arXiv 1808.10038); csrc/topk_lista/README.md.
    """
    call = Call(x, (encoder, recurrent, theta), k, num_steps, form, backward, input_per_expert, regime)
    return call.restore(_call(*call.arguments(dense=True))[0])


def topk_lista_sparse(
    x: Tensor,
    encoder: Tensor,
    recurrent: Tensor,
    theta: Tensor,
    k: int | Sequence[int],
    *,
    num_steps: int,
    form: str = "classic",
    backward: str = "straight_through",
    input_per_expert: bool = False,
    regime: str = "auto",
    every_step: bool = False,
) -> SparseCode:
    """`topk_lista` with the codes as indices and values instead of a dense tensor.

    Returns:
        SparseCode with [..., K] or [E, ..., K]; with `every_step` the codes of all steps, [T + 1, ...] in front.

    Arguments and errors: those of `topk_lista`.
    Gradient: flows through the values. Entries that the returned code does not hold get none; inside the
    recurrence `backward` rules as in `topk_lista`.
    """
    call = Call(x, (encoder, recurrent, theta), k, num_steps, form, backward, input_per_expert, regime)
    _, values, indices, _ = _call(*call.arguments(dense=False))
    if not every_step:
        return SparseCode(call.restore(indices[-1]), call.restore(values[-1]))
    return SparseCode(
        torch.stack([call.restore(i) for i in indices]), torch.stack([call.restore(v) for v in values])
    )


_op = torch.ops.stratcore.topk_lista.default
_backward_op = torch.ops.stratcore.topk_lista_backward.default


@torch.library.register_fake("stratcore::topk_lista")
def _fake(
    x: Tensor,
    encoder: Tensor,
    recurrent: Tensor,
    theta: Tensor,
    k: Sequence[int],
    form: str,
    num_steps: int,
    dense: bool,
    save_support: bool,
    regime: str = "auto",
) -> tuple[Tensor, ...]:
    check_choice("topk_lista", "form", form, FORMS)
    check_choice("topk_lista", "regime", regime, REGIMES)
    check_floating("topk_lista", "x", x)
    check_shapes(x, encoder, recurrent, theta, k, form, num_steps, RuntimeError)
    code = (encoder.shape[1], x.shape[1], encoder.shape[2])
    slots = (num_steps + 1, *code[:2], max(k))
    return (
        x.new_empty(code if dense else (0,)),
        x.new_empty(slots),
        x.new_empty(slots, dtype=torch.int32),
        x.new_empty((num_steps + 1, *code) if save_support else (0,), dtype=torch.int8),
    )


@torch.library.register_fake("stratcore::topk_lista_backward")
def _fake_backward(
    grad_codes: Tensor | None,
    grad_values: Tensor | None,
    x: Tensor,
    encoder: Tensor,
    recurrent: Tensor,
    theta: Tensor,
    values: Tensor,
    indices: Tensor,
    support: Tensor,
    k: Sequence[int],
    form: str,
    need_x: bool,
    need_encoder: bool,
    need_recurrent: bool,
    need_theta: bool,
    regime: str = "auto",
) -> tuple[Tensor, ...]:
    needs = need_x, need_encoder, need_recurrent, need_theta
    return tuple(
        x.new_empty(t.shape if need else (0,))
        for t, need in zip((x, encoder, recurrent, theta), needs, strict=True)
    )


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, encoder, recurrent, theta, k, form, _, _, _, regime = inputs
    _, values, indices, support = output
    ctx.mark_non_differentiable(indices, support)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, encoder, recurrent, theta, values, indices, support)
    ctx.k, ctx.form, ctx.regime = list(k), form, regime


def _gradient(ctx: Any, grad_codes: Tensor | None, grad_values: Tensor | None, *_: Any) -> tuple:
    """First order by the kernel; where a second may follow, by the same formulas in torch operations."""
    x, encoder, recurrent, theta, values, indices, support = ctx.saved_tensors
    if grad_codes is None and grad_values is None:
        return (None,) * 10
    needs = ctx.needs_input_grad[:4]
    if grad_codes is not None and grad_codes.ndim == 1:  # the dense code was not asked for
        grad_codes = None
    if torch.is_grad_enabled():
        grads = Replay(x, encoder, recurrent, theta, indices, support, ctx.k, ctx.form).gradients(
            grad_codes, grad_values
        )
    else:
        grads = _backward_op(
            grad_codes,
            grad_values,
            x,
            encoder,
            recurrent,
            theta,
            values,
            indices,
            support,
            ctx.k,
            ctx.form,
            *needs,
            ctx.regime,
        )
    return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), *(None,) * 6)


_call = differentiable(_op, setup_context=_save, backward=_gradient)


@torch.library.register_vmap("stratcore::topk_lista")
def _vmap(
    info: Any,
    in_dims: tuple,
    x: Tensor,
    encoder: Tensor,
    recurrent: Tensor,
    theta: Tensor,
    k: Sequence[int],
    *options: Any,
) -> tuple:
    """Batched inputs become rows; batched parameters become experts."""
    size = info.batch_size
    if all(dim is None for dim in in_dims[1:4]):
        x_XVBD = x.movedim(in_dims[0], 1)
        outputs = _op(x_XVBD.flatten(1, 2), encoder, recurrent, theta, k, *options)
        shape = x_XVBD.shape[1:3]
        return _split(outputs, -2, shape, -3)

    def fold(tensor: Tensor, dim: int | None, axis: int) -> Tensor:
        """Batch axis (repeated where there is none) in front of the expert axis `axis`, as one axis."""
        if dim is None:
            tensor = tensor.unsqueeze(axis).expand(*tensor.shape[:axis], size, *tensor.shape[axis:])
        else:
            tensor = tensor.movedim(dim, axis)
        return tensor.flatten(axis, axis + 1)

    experts = len(k)
    if in_dims[0] is not None:
        x = x.movedim(in_dims[0], 0).expand(size, experts, -1, -1)
    else:
        x = x.expand(experts, -1, -1)
    folded = (
        fold(x, None if in_dims[0] is None else 0, 0),
        *(fold(t, d, 1) for t, d in zip((encoder, recurrent, theta), in_dims[1:4], strict=True)),
    )
    return _split(_op(*folded, list(k) * size, *options), -3, (size, experts), -4)


def _split(outputs: tuple, axis: int, shape: Sequence[int], batch_dim: int) -> tuple[tuple, tuple]:
    """Undoes the folding; outputs that were not asked for (one axis of size 0) have no batch."""
    split = tuple(t.unflatten(axis, shape) if t.ndim > 1 else t for t in outputs)
    return split, tuple(t.ndim + batch_dim if t.ndim > 1 else None for t in split)


torch.library.register_autocast("stratcore::topk_lista", "cpu", torch.float32)
torch.library.register_autocast("stratcore::topk_lista", "cuda", torch.float32)


def _product_flops(
    x: Sequence[int], encoder: Sequence[int], recurrent: Sequence[int], form: str, steps: int
) -> int:
    """FLOPs of all matrix products of the forward; shapes in the op's layout."""
    _, experts, atoms, dim = encoder
    encode, rows = 2 * experts * x[1] * atoms * dim, x[1]
    if form == "coupled":
        return encode * (1 + 2 * steps)
    encodes = steps + 1 if encoder[0] > 1 else 1
    return encode * encodes + 2 * experts * rows * atoms * atoms * steps


@register_flop_formula(torch.ops.stratcore.topk_lista)
def _flops(
    x: Sequence[int],
    encoder: Sequence[int],
    recurrent: Sequence[int],
    theta: Sequence[int],
    k: Sequence[int],
    form: str,
    num_steps: int,
    *args: Any,
    **kwargs: Any,
) -> int:
    return _product_flops(x, encoder, recurrent, form, num_steps)


@register_flop_formula(torch.ops.stratcore.topk_lista_backward)
def _backward_flops(
    grad_codes: Any,
    grad_values: Any,
    x: Sequence[int],
    encoder: Sequence[int],
    recurrent: Sequence[int],
    theta: Sequence[int],
    values: Sequence[int],
    indices: Sequence[int],
    support: Sequence[int],
    k: Sequence[int],
    form: str,
    need_x: bool,
    need_encoder: bool,
    need_recurrent: bool,
    *args: Any,
    **kwargs: Any,
) -> int:
    forward = _product_flops(x, encoder, recurrent, form, values[0] - 1)
    return forward * (1 + int(need_encoder or need_recurrent))
