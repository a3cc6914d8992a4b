"""The one result of every stratified block."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.export import register_dataclass

from stratcore.layers.stratum_router import Routing, routing_losses


@dataclass(frozen=True, kw_only=True)
class StratifiedOutput:
    """What a stratified block gives back.

    hidden: [B, N, D], as the input. losses: scalars with gradient, not weighted: 'balance' (`load_balance_loss`),
    'z' (`router_z_loss`), 'entropy' (`routing_entropy`), 'usage' (`usage_loss`), each the sum over the block's
    routers; the entropy is given as it is, a task chooses its sign. statistics: scalars
    without gradient: 'load_variation' of the first router and, where there is a capacity, 'overflow', the share of
    assignments that were dropped. routing: by what it chooses: 'strata', 'paths', 'layers', 'experts'.
    """

    hidden: Tensor
    losses: dict[str, Tensor]
    statistics: dict[str, Tensor]
    routing: dict[str, Routing]


register_dataclass(StratifiedOutput)


def stratified_output(
    hidden: Tensor, routing: dict[str, Routing], *, overflow: Tensor | None = None
) -> StratifiedOutput:
    """The result of a block from its hidden state and its routers; losses and statistics follow from those."""
    (losses, variation), *others = map(routing_losses, routing.values())
    for further, _ in others:
        losses = {name: loss + further[name] for name, loss in losses.items()}
    statistics = {"load_variation": variation}
    if overflow is not None:
        statistics["overflow"] = overflow.detach()
    return StratifiedOutput(hidden=hidden, losses=losses, statistics=statistics, routing=routing)
