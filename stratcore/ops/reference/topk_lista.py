"""Definition of top-k LISTA in plain torch. Legend: E experts, B rows, D input size, M atoms, T steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def largest(v: Tensor, k: int) -> Tensor:
    """Mask [..., M] of the k entries of largest magnitude; equal ones in the order of their index."""
    order = v.abs().sort(dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(v, dtype=torch.bool).scatter_(-1, order[..., :k], True)


def topk_ste(x: Tensor, k: int, backward: str = "straight_through") -> Tensor:
    """T_k(x) with the identity (`straight_through`) or the selection (`masked`) as its gradient."""
    kept = torch.where(largest(x.detach(), k), x, 0.0)
    return kept if backward == "masked" else x + (kept - x).detach()


def soft_threshold(u: Tensor, theta: Tensor) -> Tensor:
    """sign(u) max(|u| - theta, 0), derivative 1 where |u| > theta and 0 elsewhere."""
    return torch.where(u.abs() > theta, u - u.detach().sign() * theta, 0.0)


def topk_lista(
    x_XBD: Tensor,
    encoder_PEMD: Tensor,
    recurrent_PEMN: Tensor,
    theta_PEM: Tensor,
    k: Sequence[int],
    num_steps: int,
    form: str = "classic",
    backward: str = "straight_through",
) -> list[Tensor]:
    """Dense codes [E, B, M] of steps 0..T; a leading size P of 1 means tied over the steps."""

    def at(parameter: Tensor, step: int) -> Tensor:
        return parameter[step if parameter.shape[0] > 1 else 0]

    def code(u_EBM: Tensor, step: int) -> Tensor:
        h = soft_threshold(u_EBM, at(theta_PEM, step)[:, None, :])
        return torch.stack([topk_ste(h[e], k_e, backward) for e, k_e in enumerate(k)])

    def encode(input_XBD: Tensor, step: int) -> Tensor:
        return input_XBD @ at(encoder_PEMD, step).mT

    codes = [code(encode(x_XBD, 0), 0)]
    for step in range(1, num_steps + 1):
        z, weight = codes[-1], at(recurrent_PEMN, step - 1)
        if form == "classic":
            u = encode(x_XBD, step) + z @ weight.mT
        else:
            u = z + encode(x_XBD - z @ weight.mT, step)
        codes.append(code(u, step))
    return codes
