"""Mixed precision over float32 weights."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Autocast and, for fp16, loss scaling.

    Args:
        name: `fp32`, `bf16` or `fp16`.
        device: Where the model runs.

    Attributes:
        loss_unit: What a summed loss is divided by before its backward pass; None until the caller has set it.

    Numerics:
        Weights, gradients of the weights and moments are float32 in all three. fp16 starts at the loss scale
        2^16, halves it on an overflow (that step is skipped) and doubles it after 2,000 good steps. This scale
        suits a mean loss, so a sum is divided by a constant first: the weight of the first micro-batch. The
        other two have the range of float32 and need neither.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self._dtype = _DTYPES.get(name)
        self._device_type = device.type
        self._scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None
        self.loss_unit: float | None = None if name == "fp16" else 1.0

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the model and its loss run."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._device_type, dtype=self._dtype)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a summed loss, per loss unit (and scaled, until `unscale`)."""
        if self._scaler is not None:
            loss = self._scaler.scale(loss / (self.loss_unit or 1.0))
        loss.backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the loss scale and settle the next scale."""
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
            self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Return the loss scale, its counter and the loss unit, or nothing; reads the device once."""
        if self._scaler is None:
            return {}
        return {"loss_unit": self.loss_unit, "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; a state of another precision is left aside."""
        if self._scaler is not None and state:
            self.loss_unit = state["loss_unit"]
            self._scaler.load_state_dict(state["scaler"])
