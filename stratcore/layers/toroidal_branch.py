"""A gated branch of toroidal attention beside an attention that has its queries, keys and values already.

Legend: B batch, H query heads, G key heads, N queries, M keys, E head size, D depth (slices of a head).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from stratcore import ops
from stratcore.layers.context_parallel import context_parallel_attention
from stratcore.layers.depth_fusion import DepthFusion
from stratcore.layers.sequence_shards import SequenceShards
from stratcore.layers.toroidal_branch_options import ToroidalBranchOptions, legal_depths
from stratcore.layers.toroidal_window import windowed_attention


class _Blend(Function):
    """host + tanh(a) (branch - host); with a = 0 it is the host's bits, whatever the branch holds."""

    @staticmethod
    def forward(host: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
        wide = torch.promote_types(host.dtype, torch.float32)
        opening = torch.tanh(gate.to(wide))
        own = host.to(wide)
        return torch.where(opening == 0, host, (own + opening * (branch.to(wide) - own)).to(host.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        host, branch, gate = ctx.saved_tensors
        wide = torch.promote_types(host.dtype, torch.float32)
        opening, given = torch.tanh(gate.to(wide)), gradient.to(wide)
        along = (given * (branch.to(wide) - host.to(wide))).sum()
        return (
            (given * (1 - opening)).to(host.dtype),
            (given * opening).to(branch.dtype),
            (along * (1 - opening * opening)).to(gate.dtype),
        )


def blend(host: Tensor, torus: Tensor, gate: Tensor | None) -> Tensor:
    """Host and torus mixed by tanh(gate), in the host's dtype, its bits where that is 0; no gate: the torus."""
    return torus if gate is None else _Blend.apply(host, torus, gate)  # type: ignore[no-any-return]


class _Reorder(Function):
    """x[..., order] of a permutation, whose gradient is a gather as well, in place of sums into places."""

    @staticmethod
    def forward(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        return x[..., order]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return _Reorder.apply(gradient, inverse, order), None, None


def _near(mask: Tensor | None, window: int, q: Tensor, k: Tensor) -> Tensor:
    """A mask, without the keys that are further from a query than the window; the last of both stand together."""
    keys = torch.arange(k.shape[2], device=q.device)
    near = (keys[k.shape[2] - q.shape[2] :, None] - keys).abs() <= window
    if mask is None:
        return near[None, None]
    return mask & near if mask.dtype == torch.bool else mask.masked_fill(~near, -torch.inf)


class ToroidalBranch(nn.Module):
    """What toroidal attention makes of a host's queries, keys and values, blended with what the host makes of them.

        O = O_host + tanh(a) (O_torus - O_host),    O_torus = fuse(softmax_j(s sqrt(D) <q_i, k_j> - lambda_h delta) v)

    a starts at 0, where O is bitwise O_host, in every dtype, at every depth and with every fusion, and where a has a
    gradient. The rotary embedding is the host's: queries and keys come turned. Their channels are reordered so that
    the two of a rotary pair stand in one slice; values and results keep the order (head, slice, channel), so that
    the host's output projection fits as it is. s is the host's scale for whole heads.

    Args:
        options: form; `period` set.
        num_heads: H.
        num_key_heads: G, a divisor of H.
        head_dim: E.
        channel_order: [E] int64, channels of queries and keys with rotary pairs next to each other; None: as they
            are, for a host without rotary embedding.

    Raises:
        ValueError: no period, a depth that is not legal, or another number of lambdas than heads.

    Gradient: exact with eps 0. Behind a gate of 0 that of all but the gate is 0.
    Numerics: `lambda_distance` and scores in float32 or better; the blend in float32 or better.
    Cost: 4 B H N M E operations, D times that where coupled; less where causal with a window, see
        `windowed_attention`. The host's own attention comes on top unless the gate is 'open'.
    Source: csrc/toroidal_attention/README.md; depth and fusion: the source documents.
    """

    channel_order: Tensor | None
    lambda_distance: Tensor

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
        if options.period is None:
            raise ValueError("period: expected tokens of a whole turn, got None")
        if options.adaptive_depths:
            raise ValueError("adaptive_depths: expected none, these are for AdaptiveDepthBranch")
        legal = legal_depths(head_dim, rotary=channel_order is not None)
        if options.depth not in legal:
            raise ValueError(
                f"depth: expected one of {', '.join(map(str, legal))} for heads of {head_dim} channels, got "
                f"{options.depth}"
            )
        self.options = options
        self.num_heads, self.num_key_heads, self.head_dim = num_heads, num_key_heads, head_dim
        self.register_buffer("channel_order", None if options.depth == 1 else channel_order, persistent=False)
        start = options.starting_lambdas(num_heads)
        if options.learn_lambda:
            self.lambda_distance = nn.Parameter(start)
        else:
            self.register_buffer("lambda_distance", start)
        mixes = options.depth > 1 and options.fusion is not None
        self.fusion = (
            DepthFusion(options.depth, head_dim // options.depth, str(options.fusion)) if mixes else None
        )
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
        """O_torus of queries that stand at the last of the keys.

        Args:
            q: [B, H, N, E], behind the rotary embedding.
            k: [B, G, M, E], likewise.
            v: as k.
            scaling: of the products of whole heads; E^-1/2 unless given.
            causal: later keys are hidden.
            mask: bool (True takes part) or floating point (added), broadcastable to [B, H, N, M].
            shards: N = M tokens are this rank's of a longer sequence, whose keys are on all ranks.

        Returns:
            [B, H, N, E].

        Raises:
            ValueError: other heads than those of the branch, more queries than keys, or keys beyond the period; a
                mask or a window with shards.
        """
        self._check(q, k)
        options, scale = self.options, self.head_dim**-0.5 if scaling is None else scaling
        before, coupled = k.shape[2] - q.shape[2], options.coupled
        group = options.depth if coupled else 1
        if self.channel_order is not None:
            inverse = self.channel_order.argsort()
            q, k = (_Reorder.apply(x, self.channel_order, inverse) for x in (q, k))
        if shards is not None and (mask is not None or options.window is not None):
            raise ValueError("toroidal attention: expected neither mask nor window across ranks")
        if options.window is not None and not causal:
            mask = _near(mask, options.window, q, k)
        slopes = self.lambda_distance.to(torch.promote_types(q.dtype, torch.float32))
        given = [*(self._rows(x, coupled) for x in (q, k, v)), self._per_slice(slopes, 0, coupled)]
        lattice = (options.period, options.depth) if coupled else (options.period,)
        how: dict[str, Any] = {
            "lattice": lattice,
            "metric": options.metric,
            "causal": causal,
            "mask": self._mask(mask, coupled),
            "scale": scale * options.depth**0.5,
            "eps": options.eps,
        }
        if shards is not None:
            del how["mask"]
            how |= {"causal_group": group, "group": shards.group, "method": shards.method}
            out = context_parallel_attention(*given, **how).out
        elif options.window is not None and causal:
            out = windowed_attention(*given, window=options.window, group=group, **how)
        else:
            out = ops.toroidal_attention(*given, causal_group=group, query_offset=before * group, **how)
        return self._heads(out, coupled)

    def blend(self, host: Tensor, torus: Tensor) -> Tensor:
        """O of O_host and O_torus, of the same shape, in the dtype of the host's."""
        return blend(host, torus, self.gate)

    def _check(self, q: Tensor, k: Tensor) -> None:
        expected = (self.num_heads, self.num_key_heads, self.head_dim)
        if (q.shape[1], k.shape[1], q.shape[3]) != expected:
            raise ValueError(
                f"toroidal attention: expected {expected[0]} query heads, {expected[1]} key heads and {expected[2]} "
                f"channels, got {q.shape[1]}, {k.shape[1]} and {q.shape[3]}"
            )
        if q.shape[2] > k.shape[2]:
            raise ValueError(
                f"toroidal attention: expected a key for each query, got {q.shape[2]} and {k.shape[2]}"
            )
        period = self.options.period
        if period is not None and k.shape[2] > period and not self.options.wrap:
            raise ValueError(
                f"toroidal attention: expected at most {period} tokens, the period of the torus, got {k.shape[2]}; "
                "build it with a longer period, or with wrap=True"
            )

    # Factored rows stand in the order (key head, slice, query head of it), so that heads share keys slice by slice.

    def _rows(self, x: Tensor, coupled: bool) -> Tensor:
        """[B, heads, N, E] as rows of slices: coupled [B, heads, N D, E / D], else [B, heads D, N, E / D]."""
        depth = self.options.depth
        if depth == 1:
            return x
        x = x.unflatten(-1, (depth, -1))
        if coupled:
            return x.flatten(2, 3)
        return x.unflatten(1, (self.num_key_heads, -1)).movedim(4, 2).flatten(1, 3)

    def _heads(self, rows: Tensor, coupled: bool) -> Tensor:
        """Inverse of `_rows`, with the slices fused in between."""
        depth = self.options.depth
        if depth == 1:
            return rows
        if coupled:
            out = rows.unflatten(2, (-1, depth))
        else:
            out = rows.unflatten(1, (self.num_key_heads, depth, -1)).movedim(2, 4).flatten(1, 2)
        if self.fusion is not None:
            out = self.fusion(out.to(self.lambda_distance.dtype)).to(out.dtype)
        return out.flatten(3)

    def _per_slice(self, x: Tensor, axis: int, coupled: bool) -> Tensor:
        """Repeats what every query head has, for its slices, in the order of `_rows`."""
        if coupled or self.options.depth == 1:
            return x
        x = x.unflatten(axis, (self.num_key_heads, 1, -1))
        shape = list(x.shape)
        shape[axis + 1] = self.options.depth
        return x.expand(shape).flatten(axis, axis + 2)

    def _mask(self, mask: Tensor | None, coupled: bool) -> Tensor | None:
        if mask is None:
            return None
        if mask.shape[1] > 1:
            mask = self._per_slice(mask, 1, coupled)
        for axis in (2, 3):
            if coupled and mask.shape[axis] > 1:
                mask = mask.repeat_interleave(self.options.depth, axis)
        return mask

    def extra_repr(self) -> str:
        """The options and sizes."""
        return f"{self.options}, heads={self.num_heads}/{self.num_key_heads}, head_dim={self.head_dim}"
