"""Keeping the anchors of a constellation in use. Legend: B rows, A anchors, O embedding size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


class AnchorRevival:
    """Counts which anchor is nearest to how many rows, and moves those that no row is near.

    A dead anchor takes the place of a row: the first one that of the row farthest from all anchors, the next one that
    of the next such row. All of it stays on the device.

    Args:
        num_anchors: A.
        device: of the anchors.
    """

    def __init__(self, num_anchors: int, device: torch.device) -> None:
        self._counts = torch.zeros(num_anchors, dtype=torch.int64, device=device)

    @property
    def counts(self) -> Tensor:
        """Rows of each anchor since the last revival, [A]."""
        return self._counts

    @torch.no_grad()
    def note(self, nearest_B: Tensor) -> None:
        """Count the nearest anchors of a batch."""
        self._counts.index_add_(0, nearest_B.long(), torch.ones_like(nearest_B, dtype=torch.int64))

    @torch.no_grad()
    def revive(self, anchors: nn.Parameter, embeddings_BO: Tensor) -> Tensor:
        """Move the anchors without a row onto rows, and count anew; returns how many were dead, a scalar."""
        dead_A = self._counts == 0
        directions_AO = normalize(anchors.detach(), dim=-1)
        nearest_B = (embeddings_BO @ directions_AO.mT).masked_fill(dead_A, -torch.inf).amax(-1)
        order_B = nearest_B.sort(stable=True).indices
        turn_A = (dead_A.long().cumsum(0) - 1).clamp_min(0)
        taken_A = order_B[turn_A % order_B.shape[0]]
        length_A1 = anchors.detach().norm(dim=-1, keepdim=True)
        enough_A = dead_A & (turn_A < order_B.shape[0])
        moved_AO = embeddings_BO[taken_A].to(anchors.dtype) * length_A1
        anchors.copy_(torch.where(enough_A[:, None], moved_AO, anchors))
        self._counts.zero_()
        return dead_A.sum()

    def state_dict(self) -> dict[str, Any]:
        """Counts since the last revival."""
        return {"counts": self._counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._counts = state["counts"].to(self._counts.device)
