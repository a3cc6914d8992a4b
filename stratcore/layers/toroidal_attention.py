"""Self-attention on a torus: distance bias, rotary embedding, depth, window and cache.

Legend: B batch, N tokens, M tokens that are looked at, C channels, H query heads, G key heads, E head size, D depth
(slices of a head), S slopes a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from stratcore import ops
from stratcore.layers.depth_fusion import DepthFusion
from stratcore.layers.toroidal_cache import ToroidalKVCache
from stratcore.layers.toroidal_options import ToroidalAttentionOptions
from stratcore.layers.toroidal_rotary import ToroidalRotary
from stratcore.layers.toroidal_window import windowed_attention


class ToroidalAttention(nn.Module):
    """Self-attention with a bias that falls with the distance of two tokens on a torus of fixed periods.

        y = W_o fuse(softmax_j(<R q_i, R k_j> / sqrt(E / D) - sum_a slopes[h, a] part_a(i, j)) v_j) + b

    R is the rotary embedding, parts and slopes are those of `ops.toroidal_attention`. With a full lattice of tokens,
    not causal, rolling the tokens around the torus rolls the result.

    Channels keep the order (head, slice, channel) throughout, so the projections of another attention of the same
    heads can be copied in as they are. With depth 1, slopes 0 and no rotary this is plain attention.

    Shapes: tokens [B, N, C], in and out. Any N; positions beyond the lattice go around it.
    Gradient: exact with eps 0; to slopes where they are learned, by softplus of `raw_slopes`, [H, S].
    Numerics: scores, softmax and slopes in float32 or better, also under autocast. A token without visible keys gets
        0 from the attention, so the bias of `o_proj`. `.bfloat16()` rounds slopes too.
    Determinism: as `ops.toroidal_attention`, by `torch.use_deterministic_algorithms`.
    Cost: 4 B H N^2 E operations beside the projections, no matrix of scores; D times that where coupled, where a mask
        of pairs of tokens grows to D^2 times its size. With a window: `windowed_attention`.
    Source: csrc/toroidal_attention/README.md; depth and fusion: the source documents.
    """

    fixed_slopes: Tensor

    def __init__(self, options: ToroidalAttentionOptions) -> None:
        super().__init__()
        self.options = options
        dim, width = options.dim, options.num_heads * options.channels
        shared = options.key_heads * options.channels
        self.q_proj = nn.Linear(dim, width, bias=options.bias)
        self.k_proj = nn.Linear(dim, shared, bias=options.bias)
        self.v_proj = nn.Linear(dim, shared, bias=options.bias)
        self.o_proj = nn.Linear(width, dim, bias=options.bias)
        self.dropout = nn.Dropout(options.dropout)
        block = options.block
        self._block = None if block is None else (*block, *options.axes[len(block) :])
        self.rotary = ToroidalRotary(options.slice_dim, options.axes, self._block) if options.rotary else None
        self.fusion = (
            None if options.fusion is None else DepthFusion(options.depth, options.slice_dim, options.fusion)
        )
        start = self._start_of_slopes()
        if options.learn_slopes:
            self.raw_slopes = nn.Parameter(torch.empty_like(start))
        else:
            self.register_buffer("fixed_slopes", torch.empty_like(start))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Slopes anew, as the options say; projections, rotary and fusion have their own."""
        start = self._start_of_slopes()
        if self.options.learn_slopes:
            self.raw_slopes.copy_(start + torch.log(-torch.expm1(-start)))  # inverse of softplus
        else:
            self.fixed_slopes.copy_(start)

    def _start_of_slopes(self) -> Tensor:
        """[H, S]."""
        slopes, heads = self.options.slopes, self.options.num_heads
        if isinstance(slopes, str):
            return ops.alibi_slopes(heads)[:, None]
        values = slopes if isinstance(slopes, tuple) else (slopes,)
        return torch.tensor(values, dtype=torch.float32).repeat(heads, 1)

    def slopes(self) -> Tensor:
        """Slopes of all heads, [H, S]; S is 1, or the number of axes."""
        return softplus(self.raw_slopes) if self.options.learn_slopes else self.fixed_slopes

    def new_cache(self, capacity: int | None = None) -> ToroidalKVCache:
        """An empty cache for decoding one batch.

        Args:
            capacity: most tokens in all; not needed with a window, whose cache takes any number.

        Raises:
            ValueError: attention that is not causal, or no capacity where one is needed.
        """
        options = self.options
        if not options.causal:
            raise ValueError("cache: expected causal attention, got causal=False")
        if options.window is not None:
            return ToroidalKVCache(window=options.window, group=options.group)
        return ToroidalKVCache(capacity=capacity, group=options.group)

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, cache: ToroidalKVCache | None = None
    ) -> Tensor:
        """Attention of tokens to each other, and to those in the cache.

        Args:
            x: [B, N, C]; with a cache the next N tokens, in any chunks.
            mask: [B, M], of keys, or 4 dimensions that broadcast to [B, H, N, M]; bool (True takes part) or floating
                point (added to the scores). M counts all tokens so far, those in the cache included.
            cache: of `new_cache`; is changed. The results are those of one call with all tokens. Runs eagerly:
                `torch.compile` would compile every length anew.

        Returns:
            [B, N, C].

        Raises:
            ValueError: another shape; a mask that does not fit or requires grad; see also `ToroidalKVCache.append`.
            TypeError: a mask neither bool nor floating point.
        """
        options = self.options
        if x.ndim != 3 or x.shape[-1] != options.dim:
            raise ValueError(f"x: expected [B, N, {options.dim}], got {list(x.shape)}")
        before = 0 if cache is None else cache.length
        q = self._rows(self.q_proj(x), options.num_heads)
        k = self._rows(self.k_proj(x), options.key_heads)
        v = self._rows(self.v_proj(x), options.key_heads)
        if self.rotary is not None:
            q, k = self.rotary(q, k, offset=before * options.group)
        if mask is not None:
            mask = self._mask(mask, x, before + x.shape[1])
        if cache is not None:
            k, v = cache.append(k, v)
            mask = None if mask is None else mask[..., -k.shape[2] :]
        out = self._channels(self._attend(q, k, v, mask))
        return self.dropout(self.o_proj(out))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        options = self.options
        slopes = self._per_head(self.slopes(), 0)
        if options.window is not None:
            return windowed_attention(
                q,
                k,
                v,
                slopes,
                window=options.window,
                lattice=options.axes,
                group=options.group,
                causal=options.causal,
                mask=mask,
                metric=options.metric,
                eps=options.eps,
            )
        return ops.toroidal_attention(
            q,
            k,
            v,
            slopes,
            lattice=options.axes,
            block=self._block,
            metric=options.metric,
            causal=options.causal,
            causal_group=options.group,
            mask=mask,
            query_offset=k.shape[2] - q.shape[2],
            eps=options.eps,
        )

    def _rows(self, x: Tensor, heads: int) -> Tensor:
        """Projections [B, N, heads E] as rows of slices: coupled [B, heads, N D, E / D], else [B, heads D, N, E / D].

        The latter in the order (key head, slice, head of that key head), so that heads share keys slice by slice.
        """
        options = self.options
        if options.group > 1:
            return x.unflatten(-1, (heads, options.depth, -1)).transpose(1, 2).flatten(2, 3)
        shape = (options.key_heads, heads // options.key_heads, options.depth, options.slice_dim)
        return x.unflatten(-1, shape).transpose(3, 4).flatten(2, 4).transpose(1, 2)

    def _channels(self, rows: Tensor) -> Tensor:
        """Inverse of `_rows`, with the slices fused in between."""
        options = self.options
        if options.group > 1:
            out = rows.unflatten(2, (-1, options.depth)).transpose(1, 2)
        else:
            shape = (options.key_heads, options.depth, options.num_heads // options.key_heads)
            out = rows.transpose(1, 2).unflatten(2, shape).transpose(3, 4).flatten(2, 3)
        if self.fusion is not None:
            out = self.fusion(out)
        return out.flatten(2)

    def _per_head(self, x: Tensor, axis: int) -> Tensor:
        """Repeats what every head has, for its slices, in the order of `_rows`."""
        options = self.options
        if options.group > 1 or options.depth == 1:
            return x
        x = x.unflatten(axis, (options.key_heads, 1, -1))
        shape = list(x.shape)
        shape[axis + 1] = options.depth
        return x.expand(shape).flatten(axis, axis + 2)

    def _mask(self, mask: Tensor, x: Tensor, seen: int) -> Tensor:
        """In the layout of `_rows`: 4 dimensions, broadcastable to [B, heads, rows, rows of keys]."""
        full = (x.shape[0], self.options.num_heads, x.shape[1], seen)
        wide = mask[:, None, None] if mask.ndim == 2 else mask
        fits = wide.ndim == 4 and all(m in (1, f) for m, f in zip(wide.shape, full, strict=True))
        if not fits:
            raise ValueError(
                f"mask: expected [{full[0]}, {seen}], or 4 dimensions that broadcast to {list(full)}, got "
                f"{list(mask.shape)}"
            )
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise TypeError(f"mask: expected bool or floating point, got {mask.dtype}")
        if wide.shape[1] > 1:
            wide = self._per_head(wide, 1)
        for axis in (2, 3):
            if self.options.group > 1 and wide.shape[axis] > 1:
                wide = wide.repeat_interleave(self.options.group, axis)
        return wide
