"""Top-k LISTA and its reverse in differentiable torch operations, for derivatives of second order.

The selections are those that the kernel made, so that both orders speak of one function. Legend: E experts,
B rows, D input size, M atoms, K code width, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Replay:
    """Recurrence and reverse in differentiable operations, with the selections that the kernel made."""

    def __init__(
        self,
        x: Tensor,
        encoder: Tensor,
        recurrent: Tensor,
        theta: Tensor,
        indices: Tensor,
        support: Tensor,
        k: Sequence[int] | Tensor,
        form: str,
    ) -> None:
        self.dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.output_dtype = x.dtype
        self.x, self.encoder, self.recurrent, self.theta = (
            t.to(self.dtype) for t in (x, encoder, recurrent, theta)
        )
        self.indices, self.form, self.num_steps = indices.long(), form, indices.shape[0] - 1
        width = torch.as_tensor(k, device=x.device)
        self.slots = torch.arange(indices.shape[-1], device=x.device) < width[:, None, None]  # [E, 1, K]
        self.straight_through = support.ndim == 4
        self.support = support.to(self.dtype) if self.straight_through else None

    def gradients(self, grad_codes: Tensor | None, grad_values: Tensor | None) -> tuple[Tensor, ...]:
        codes, signs = self._forward()
        grad_z = torch.zeros_like(codes[0]) if grad_codes is None else grad_codes.to(self.dtype)
        parts: dict[str, dict[int, list[Tensor]]] = {"encoder": {}, "recurrent": {}, "theta": {}}
        grad_x = torch.zeros_like(codes[0][..., :1]) * self.x[..., :1, :]
        for step in range(self.num_steps, -1, -1):
            if grad_values is not None:
                grad_z = grad_z + self._expand(grad_values[step].to(self.dtype), step)
            grad_u = grad_z * signs[step].abs()
            self._keep(parts["theta"], self.theta, step, -(grad_u * signs[step]).sum(1))
            weight = self._at(self.encoder, step)
            if step == 0 or self.form == "classic":
                self._keep(parts["encoder"], self.encoder, step, grad_u.mT @ self._wide(self.x))
                grad_x = grad_x + grad_u @ weight
            if step == 0:
                break
            code, product = codes[step - 1], self._at(self.recurrent, step - 1)
            if self.form == "classic":
                self._keep(parts["recurrent"], self.recurrent, step - 1, grad_u.mT @ code)
                grad_z = grad_u @ product
            else:
                residual = self.x - code @ product.mT
                self._keep(parts["encoder"], self.encoder, step, grad_u.mT @ residual)
                grad_residual = grad_u @ weight
                grad_x = grad_x + grad_residual
                self._keep(parts["recurrent"], self.recurrent, step - 1, -(grad_residual.mT @ code))
                grad_z = grad_u - grad_residual @ product
        if self.x.shape[0] == 1:
            grad_x = grad_x.sum(0, keepdim=True)
        grads = (grad_x, *(self._collect(parts[n], t) for n, t in self._named()))
        return tuple(grad.to(self.output_dtype) for grad in grads)

    def _named(self) -> list[tuple[str, Tensor]]:
        return [("encoder", self.encoder), ("recurrent", self.recurrent), ("theta", self.theta)]

    def _forward(self) -> tuple[list[Tensor], list[Tensor]]:
        codes: list[Tensor] = []
        signs: list[Tensor] = []
        for step in range(self.num_steps + 1):
            weight = self._at(self.encoder, step).mT
            if step == 0:
                u = self.x @ weight
            elif self.form == "classic":
                u = self.x @ weight + codes[-1] @ self._at(self.recurrent, step - 1).mT
            else:
                u = codes[-1] + (self.x - codes[-1] @ self._at(self.recurrent, step - 1).mT) @ weight
            kept = self._expand(self.slots.to(self.dtype).expand(self.indices.shape[1:]), step)
            if self.support is not None:
                sign = self.support[step]
            else:
                theta = self._at(self.theta, step)[:, None, :]
                sign = u.detach().sign() * (u.detach().abs() > theta.detach()) * kept
            thresholded = (u - sign * self._at(self.theta, step)[:, None, :]) * sign.abs()
            selected = thresholded * kept
            if self.straight_through:
                selected = thresholded + (selected - thresholded).detach()
            codes.append(selected)
            signs.append(sign)
        return codes, signs

    def _expand(self, values: Tensor, step: int) -> Tensor:
        shape = (*values.shape[:-1], self.encoder.shape[2])
        return torch.zeros(shape, dtype=self.dtype, device=values.device).scatter(
            -1, self.indices[step], values
        )

    def _wide(self, x: Tensor) -> Tensor:
        return x.expand(self.encoder.shape[1], -1, -1)

    @staticmethod
    def _at(parameter: Tensor, step: int) -> Tensor:
        return parameter[step if parameter.shape[0] > 1 else 0]

    @staticmethod
    def _keep(parts: dict[int, list[Tensor]], parameter: Tensor, step: int, part: Tensor) -> None:
        parts.setdefault(step if parameter.shape[0] > 1 else 0, []).append(part)

    @staticmethod
    def _collect(parts: dict[int, list[Tensor]], parameter: Tensor) -> Tensor:
        rows = [
            sum(parts.get(step, []), start=torch.zeros_like(parameter[step]))
            for step in range(parameter.shape[0])
        ]
        return torch.stack(rows) if rows else torch.zeros_like(parameter)
