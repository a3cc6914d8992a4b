"""Circular convolution in the place of attention: a control that sees the future.

Legend: B batch, H query heads, G key heads, N tokens, E channels of a head, s shift.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stratcore.layers.toroidal_branch_options import ToroidalBranchOptions


class FFTMixing(nn.Module):
    """One set of weights for all queries, from the circular correlation of queries and keys; a negative control.

        r_s = scale / N sum_i <q_i, k_(i - s)> - lambda min(s, N - s)
        w = softmax_s(r)
        o_i = sum_s w_s v_(i - s),   indices modulo N

    It is no attention: every output depends on all tokens, later ones too, so a language model
    with it scores what it has seen, and its perplexity means nothing. Nothing can be decoded with it.

    Args:
        options: `lambda_distance` and `learn_lambda` are read.
        num_heads: H.
        num_key_heads: G, a divisor of H.
        head_dim: E.

    Raises:
        ValueError: another number of lambdas than heads.

    Gradient: exact.
    Cost: O(B H N log N E).
    Source: the source documents' origin, which calls it FFT attention.
    """

    gate = None

    def __init__(
        self, options: ToroidalBranchOptions, *, num_heads: int, num_key_heads: int, head_dim: int
    ) -> None:
        super().__init__()
        self.num_heads, self.num_key_heads, self.head_dim = num_heads, num_key_heads, head_dim
        start = options.starting_lambdas(num_heads)
        if options.learn_lambda:
            self.lambda_distance = nn.Parameter(start)
        else:
            self.register_buffer("lambda_distance", start)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scaling: float | None = None,
        causal: bool = True,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Mixed values of a whole sequence.

        Args:
            q: [B, H, N, E].
            k: [B, G, N, E].
            v: as k.
            scaling: of the products; E^-1/2 unless given.
            causal: not obeyed, which is what the control is for.
            mask: must be None.

        Returns:
            [B, H, N, E], in the dtype of v.

        Raises:
            ValueError: a mask, or keys that are not the queries' own, as behind a cache.
        """
        if mask is not None:
            raise ValueError(
                "FFT mixing: expected no mask, as one set of weights serves all queries; got one"
            )
        if q.shape[2] != k.shape[2]:
            raise ValueError(
                "FFT mixing: expected queries and keys of one whole sequence, as every output depends on all tokens; "
                f"got {q.shape[2]} and {k.shape[2]} (a cache)"
            )
        with torch.autocast(q.device.type, enabled=False):
            return self._mixed(q, k, v, self.head_dim**-0.5 if scaling is None else scaling).to(v.dtype)

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        length, group = q.shape[2], self.num_heads // self.num_key_heads
        wide = torch.promote_types(q.dtype, torch.float32)
        q, k, v = (torch.fft.rfft(x.to(wide), dim=2) for x in (q, k, v))
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        products = torch.fft.irfft((q * k.conj()).sum(-1), n=length, dim=2)
        shift = torch.arange(length, device=q.device)
        distance = torch.minimum(shift, length - shift)
        scores = scale / length * products - self.lambda_distance.to(wide)[:, None] * distance
        weights = torch.fft.rfft(scores.softmax(-1), dim=2)
        return torch.fft.irfft(weights[..., None] * v, n=length, dim=2)
