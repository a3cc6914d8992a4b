"""Top-k LISTA: unrolled sparse coding with an exact selection of the k largest entries after every step.

Legend: E experts, B rows, D input size, M atoms, K code width (largest k), T steps, P 1 or the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

import stratcore.ops._library  # noqa: F401
from stratcore.ops._autograd import differentiable, transforms_active
from stratcore.ops._checks import check_choice, check_floating
from stratcore.ops._topk_lista_replay import Replay

BACKWARDS = ("straight_through", "masked")
FORMS = ("classic", "coupled")


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
    call = _Call(x, (encoder, recurrent, theta), k, num_steps, form, backward, input_per_expert)
    return call.restore(call.run(dense=True)[0])


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
    every_step: bool = False,
) -> SparseCode:
    """`topk_lista` with the codes as indices and values instead of a dense tensor.

    Args:
        x: as are all further arguments, those of `topk_lista`.
        encoder: see there.
        recurrent: see there.
        theta: see there.
        k: see there.
        num_steps: see there.
        form: see there.
        backward: see there.
        input_per_expert: see there.
        every_step: return the codes of all steps, with a leading axis T + 1.

    Returns:
        SparseCode with [..., K] or [E, ..., K]; with `every_step` [T + 1, ...] in front.

    Raises:
        ValueError: see `topk_lista`.
        TypeError: see `topk_lista`.

    Gradient: flows through the values. Entries that the returned code does not hold get none; inside the
    recurrence `backward` rules as in `topk_lista`.
    """
    call = _Call(x, (encoder, recurrent, theta), k, num_steps, form, backward, input_per_expert)
    _, values, indices, _ = call.run(dense=False)
    if not every_step:
        return SparseCode(call.restore(indices[-1]), call.restore(values[-1]))
    return SparseCode(
        torch.stack([call.restore(i) for i in indices]), torch.stack([call.restore(v) for v in values])
    )


class _Call:
    """The arguments of one call in the op's own layout: x [1 or E, B, D], parameters [P, E, ...]."""

    def __init__(
        self,
        x: Tensor,
        parameters: tuple[Tensor, Tensor, Tensor],
        k: int | Sequence[int],
        num_steps: int,
        form: str,
        backward: str,
        input_per_expert: bool,
    ) -> None:
        check_choice("topk_lista", "form", form, FORMS)
        check_choice("topk_lista", "backward", backward, BACKWARDS)
        named = list(zip(("encoder", "recurrent", "theta"), parameters, (4, 4, 3), strict=True))
        for name, tensor in [("x", x), *((name, tensor) for name, tensor, _ in named)]:
            check_floating("topk_lista", name, tensor)
            if tensor.dtype != x.dtype:
                raise TypeError(f"topk_lista: expected {name} of dtype {x.dtype} as x, got {tensor.dtype}")
        self.single = parameters[0].ndim == 2
        self.parameters = [_with_leading(name, tensor, ndim) for name, tensor, ndim in named]
        experts, _, dim = self.parameters[0].shape[1:]
        wanted = f"[{experts}, ..., {dim}]" if input_per_expert else f"[..., {dim}]"
        if (
            x.ndim < 1 + input_per_expert
            or x.shape[-1] != dim
            or (input_per_expert and x.shape[0] != experts)
        ):
            raise ValueError(
                f"topk_lista: expected x of shape {wanted} as encoder has it, got {list(x.shape)}"
            )
        self.batch = x.shape[int(input_per_expert) : -1]
        self.x = x.reshape(experts if input_per_expert else 1, math.prod(self.batch), dim)
        self.k = [k] * experts if isinstance(k, int) else list(k)
        self.num_steps, self.form, self.backward = num_steps, form, backward
        _check_shapes(self.x, *self.parameters, self.k, form, num_steps, ValueError)

    def run(self, dense: bool) -> Any:
        inputs = (self.x, *self.parameters)
        learns = transforms_active() or (torch.is_grad_enabled() and any(t.requires_grad for t in inputs))
        save_support = learns and self.backward == "straight_through"
        return _call(*inputs, self.k, self.form, self.num_steps, dense, save_support)

    def restore(self, code: Tensor) -> Tensor:
        """[E, B, n] -> [E, ..., n], or [..., n] for a single expert."""
        shape = (*self.batch, code.shape[-1])
        return code.reshape(shape if self.single else (code.shape[0], *shape))


def _with_leading(name: str, tensor: Tensor, ndim: int) -> Tensor:
    if not ndim - 2 <= tensor.ndim <= ndim:
        raise ValueError(
            f"topk_lista: expected {name} with {ndim - 2} to {ndim} dimensions, got {list(tensor.shape)}"
        )
    return tensor.reshape((1,) * (ndim - tensor.ndim) + tensor.shape)


def _check_shapes(
    x: Tensor,
    encoder: Tensor,
    recurrent: Tensor,
    theta: Tensor,
    k: Sequence[int],
    form: str,
    num_steps: int,
    error: type[Exception],
) -> None:
    """The conditions of check() in topk_lista_op.cpp, in its words, for every route that is no kernel."""
    experts, atoms, dim = encoder.shape[1:]

    def require(condition: bool, text: str) -> None:
        if not condition:
            raise error(f"topk_lista: expected {text}")

    require(num_steps >= 0, f"num_steps >= 0, got {num_steps}")
    steps = {
        "encoder": (encoder, num_steps + 1),
        "recurrent": (recurrent, num_steps),
        "theta": (theta, num_steps + 1),
    }
    for name, (tensor, count) in steps.items():
        require(
            tensor.shape[0] in (1, count),
            f"{name} with 1 (tied) or {count} (per step) leading entries, got {tensor.shape[0]}",
        )
    require(
        min(experts, atoms, dim) > 0,
        f"at least one expert, atom and input dimension, got {list(encoder.shape)}",
    )
    require(x.shape[0] in (1, experts), f"x with 1 or {experts} leading entries, got {x.shape[0]}")
    require(x.shape[-1] == dim, f"x of shape [..., {dim}], got {list(x.shape)}")
    wanted = [experts, atoms if form == "classic" else dim, atoms]
    require(
        list(recurrent.shape[1:]) == wanted,
        f"recurrent of shape {[recurrent.shape[0], *wanted]}, got {list(recurrent.shape)}",
    )
    require(
        list(theta.shape[1:]) == [experts, atoms],
        f"theta of shape {[theta.shape[0], experts, atoms]}, got {list(theta.shape)}",
    )
    require(len(k) == experts, f"k with {experts} entries, got {len(k)}")
    require(all(1 <= width <= atoms for width in k), f"every k in [1, {atoms}], got {list(k)}")


# ---- registration: topk_lista

_op = torch.ops.stratcore.topk_lista.default
_backward_op = torch.ops.stratcore.topk_lista_backward.default


@torch.library.register_fake("stratcore::topk_lista")
def _fake(x, encoder, recurrent, theta, k, form, num_steps, dense, save_support):
    check_choice("topk_lista", "form", form, FORMS)
    check_floating("topk_lista", "x", x)
    _check_shapes(x, encoder, recurrent, theta, k, form, num_steps, RuntimeError)
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
    grad_codes,
    grad_values,
    x,
    encoder,
    recurrent,
    theta,
    values,
    indices,
    support,
    k,
    form,
    *needs,
):
    return tuple(
        x.new_empty(t.shape if need else (0,))
        for t, need in zip((x, encoder, recurrent, theta), needs, strict=True)
    )


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, encoder, recurrent, theta, k, form, _, _, _ = inputs
    _, values, indices, support = output
    ctx.mark_non_differentiable(indices, support)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, encoder, recurrent, theta, values, indices, support)
    ctx.k, ctx.form = list(k), form


def _gradient(ctx: Any, grad_codes: Tensor | None, grad_values: Tensor | None, *_: Any) -> tuple:
    """First order by the kernel; where a second may follow, by the same formulas in torch operations."""
    x, encoder, recurrent, theta, values, indices, support = ctx.saved_tensors
    if grad_codes is None and grad_values is None:
        return (None,) * 9
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
        )
    return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), *(None,) * 5)


_call = differentiable(_op, setup_context=_save, backward=_gradient)


@torch.library.register_vmap("stratcore::topk_lista")
def _vmap(info, in_dims, x, encoder, recurrent, theta, k, form, num_steps, dense, save_support):
    """Batched inputs become rows; batched parameters become experts."""
    size, options = info.batch_size, (form, num_steps, dense, save_support)
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
def _flops(x, encoder, recurrent, theta, k, form, num_steps, *args, **kwargs) -> int:
    return _product_flops(x, encoder, recurrent, form, num_steps)


@register_flop_formula(torch.ops.stratcore.topk_lista_backward)
def _backward_flops(
    grad_codes,
    grad_values,
    x,
    encoder,
    recurrent,
    theta,
    values,
    indices,
    support,
    k,
    form,
    need_x,
    need_encoder,
    need_recurrent,
    *args,
    **kwargs,
) -> int:
    forward = _product_flops(x, encoder, recurrent, form, values[0] - 1)
    return forward * (1 + int(need_encoder or need_recurrent))
