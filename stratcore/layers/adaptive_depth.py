"""Toroidal branches of several depths, of which a layer learns the best. Legend: see `toroidal_branch`."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import gumbel_softmax

from stratcore.layers.sequence_shards import SequenceShards
from stratcore.layers.toroidal_branch import ToroidalBranch, blend
from stratcore.layers.toroidal_branch_options import ToroidalBranchOptions


class AdaptiveDepthBranch(nn.Module):
    """A choice of depth, one for all inputs of a layer, made by a Gumbel softmax.

        training:    O_torus = sum_d w_d O_torus^(d),    w = softmax((c + g) / t),  g Gumbel noise, drawn every call
        evaluation:  O_torus = O_torus^(d) of the largest c_d, the first of equal ones

    c starts at 0: every depth is as likely. Each depth has a lambda and a fusion of its own; the gate is shared, and
    where it is 0 the blend is the host, bitwise, whatever is drawn.

    Args:
        options: form; `adaptive_depths` and `temperature` t set.
        num_heads, num_key_heads, head_dim, channel_order: as those of `ToroidalBranch`.

    Raises:
        ValueError: no depths, or what `ToroidalBranch` refuses.

    Gradient: exact for the weights that were drawn.
    Cost: training: that of all depths together. Evaluation: that of one, and on a GPU one wait for the choice.
    Source: the source documents' origin, which names a Gumbel softmax over depths of 1, 2, 4 and 8; that it depends
        on the layer and not on the input is our reading.
    """

    def __init__(
        self,
        options: ToroidalBranchOptions,
        *,
        num_heads: int,
        num_key_heads: int,
        head_dim: int,
        channel_order: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not options.adaptive_depths:
            raise ValueError("adaptive_depths: expected at least two depths, got none")
        self.options = options
        alone = replace(options, adaptive_depths=(), gate="open")
        self.depths = nn.ModuleList(
            ToroidalBranch(
                replace(alone, depth=depth),
                num_heads=num_heads,
                num_key_heads=num_key_heads,
                head_dim=head_dim,
                channel_order=channel_order,
            )
            for depth in options.adaptive_depths
        )
        self.choice = nn.Parameter(torch.zeros(len(self.depths)))
        self.gate = nn.Parameter(torch.zeros(())) if options.gate == "zero" else None

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scaling: float | None = None,
        causal: bool = True,
        mask: Tensor | None = None,
        shards: SequenceShards | None = None,
    ) -> Tensor:
        """O_torus, [B, H, N, E]; arguments as those of `ToroidalBranch`."""
        how = {"scaling": scaling, "causal": causal, "mask": mask, "shards": shards}
        if not self.training:
            return self.depths[self.chosen()](q, k, v, **how)  # type: ignore[no-any-return]
        weights = gumbel_softmax(self.choice.float(), self.options.temperature)
        found = [branch(q, k, v, **how) for branch in self.depths]
        mixed = sum(weight * own for weight, own in zip(weights, found, strict=True))
        return mixed.to(v.dtype)  # type: ignore[union-attr]

    def chosen(self) -> int:
        """Which of the depths is used in evaluation."""
        return int(self.choice.argmax())

    def blend(self, host: Tensor, torus: Tensor) -> Tensor:
        """O of O_host and O_torus, of the same shape, in the dtype of the host's."""
        return blend(host, torus, self.gate)
