"""Arguments of `topk_lista` in the layout of the op, checked with one wording on every route.

Legend: E experts, B rows, D input size, M atoms, T steps, P 1 or the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stratcore.ops._autograd import transforms_active
from stratcore.ops._checks import check_choice, check_floating

BACKWARDS = ("straight_through", "masked")
FORMS = ("classic", "coupled")
REGIMES = ("auto", "dense", "gather")


class Call:
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
        regime: str = "auto",
    ) -> None:
        check_choice("topk_lista", "form", form, FORMS)
        check_choice("topk_lista", "regime", regime, REGIMES)
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
        self.num_steps, self.form, self.backward, self.regime = num_steps, form, backward, regime
        encoder, recurrent, theta = self.parameters
        check_shapes(self.x, encoder, recurrent, theta, self.k, form, num_steps, ValueError)

    def arguments(self, dense: bool, groups: tuple[Tensor, Tensor] | None = None) -> tuple[Any, ...]:
        """Arguments of the op; the support is saved only where a backward may need it.

        groups: x [G, R, D] and the expert [G] of each group, in place of x.
        """
        x, group_expert = groups or (self.x, None)
        inputs = (x, *self.parameters)
        learns = transforms_active() or (torch.is_grad_enabled() and any(t.requires_grad for t in inputs))
        save_support = learns and self.backward == "straight_through"
        return (*inputs, self.k, self.form, self.num_steps, dense, save_support, self.regime, group_expert)

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


def check_shapes(
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
