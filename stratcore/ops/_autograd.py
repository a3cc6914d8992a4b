"""The one switch between eager autograd, torch.func and compile; the only place with private torch names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch.autograd import Function


def transforms_active() -> bool:
    """Whether a torch.func transform (grad, vmap, jvp, ...) is running."""
    return bool(torch._C._are_functorch_transforms_active())


def forward_mode_active() -> bool:
    """Whether dual numbers of forward mode may be about: then backwards save for it too."""
    return fwAD._current_level >= 0 or transforms_active()


def unrecorded(op: torch._ops.OpOverload, *args: Any) -> Any:
    """Calls an op inside a Function, where nothing is recorded: past its autograd kernel, which is Python."""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def differentiable(
    op: torch._ops.OpOverload,
    *,
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    jvp: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Makes `op` differentiable on every route and returns the function to call.

    Args:
        op: a registered overload such as `torch.ops.stratcore.name.default`.
        setup_context: `(ctx, inputs, output) -> None`; saves what backward wants.
        backward: `(ctx, *grad_outputs) -> gradients`, one an input. Written in differentiable operations where
            grad mode is on, so that it can be differentiated again.
        jvp: `(ctx, *tangents) -> tangents` for forward mode, or None.

    Returns:
        A function with the signature of `op`.

    Each route has its reason: compile and export want the op itself; torch.func accepts only a Function with
    `setup_context`; and in plain eager mode an old-style Function costs half of that one a call.
    """
    torch.library.register_autograd(op, backward, setup_context=setup_context)

    def forward_and_save(ctx: Any, *args: Any) -> Any:
        output = unrecorded(op, *args)
        setup_context(ctx, args, output)
        return output

    shared: dict[str, Any] = {"backward": staticmethod(backward)}
    if jvp is not None:
        shared["jvp"] = staticmethod(jvp)
    eager: Any = type("Eager", (Function,), {"forward": staticmethod(forward_and_save), **shared})
    transform_only = {
        "forward": staticmethod(lambda *args: op(*args)),
        "setup_context": staticmethod(setup_context),
        "generate_vmap_rule": True,
    }
    transform: Any = type("Transform", (Function,), transform_only | shared)

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return op(*args)
        if transforms_active():
            return transform.apply(*args)
        return eager.apply(*args)

    return call
