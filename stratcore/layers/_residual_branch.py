"""What residual branches on masked tokens share. Legend: B sequences, N tokens, D channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ZeroLinear(nn.Linear):
    """A linear map without bias that starts at 0: the one zero that makes a residual branch start as nothing."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights back to 0."""
        self.weight.zero_()


def checked_tokens(hidden: Tensor, mask: Tensor | None, dim: int) -> Tensor | None:
    """Mask of real tokens as bool [B, N] or None, after a look at the shapes of both."""
    if hidden.dim() != 3 or hidden.shape[-1] != dim:
        raise ValueError(f"hidden: expected shape [B, N, {dim}], got {list(hidden.shape)}")
    return checked_mask(mask, hidden.shape[:2])


def checked_mask(mask: Tensor | None, shape: torch.Size) -> Tensor | None:
    """Mask of real tokens as bool, or None."""
    if mask is None:
        return None
    if mask.shape != shape:
        raise ValueError(f"mask: expected shape {list(shape)}, true at real tokens, got {list(mask.shape)}")
    if mask.is_floating_point() or mask.is_complex():
        raise ValueError(f"mask: expected bool or integers, true at real tokens, got {mask.dtype}")
    return mask.bool()


def blank_pads(x: Tensor, mask: Tensor | None) -> Tensor:
    """Rows of [..., D] at pads as 0, whatever stands there, NaN too."""
    return x if mask is None else torch.where(mask[..., None], x, 0.0)


def add_branch(hidden: Tensor, branch: Tensor, mask: Tensor | None, scale: float = 1.0) -> Tensor:
    """Hidden + scale branch, in the type of the hidden state; pads keep their hidden state."""
    return torch.add(hidden, blank_pads(branch, mask).to(hidden.dtype), alpha=scale)


def token_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the real tokens of [B, N, D]; 0 where a sequence has none."""
    if mask is None:
        return x.sum(1) / max(x.shape[1], 1)
    return blank_pads(x, mask).sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
