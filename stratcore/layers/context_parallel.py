"""Toroidal attention over a sequence that is cut into contiguous shards, one on each rank of a process group.

Each rank holds the queries, keys and values of its shard. It attends to its own keys first, then to those of the
other ranks, block by block, and merges the results by their log-sums. Blocks go from their owner straight to the rank
that needs them. What needs no looking at is neither sent nor computed.

What eps leaves out, with the proof that a row loses at most eps of its probability. Shards are cut into pieces (at
most 32, of 128 keys or a multiple). Let T be the number of pieces of keys, on all ranks, that causal order lets this
rank's queries look at. Each has a share eps / T.

1. A piece is not looked at. For a row i let K be the largest norm of the piece's n visible keys, d the least that
   distance takes off a score between the piece and the piece of queries that i lies in (from boxes around both, as in
   the op), and L_i the log-sum over the own shard's keys, which the row has looked at. Then for every key j of it

       s_ij <= |scale| |q_i| K - d,  so  sum_j p_ij <= n exp(|scale| |q_i| K - d - lse_i),  and lse_i >= L_i.

   It is left out where max_i (|scale| |q_i| K - L_i) - d + log n < log(eps / T), over the rows i of the piece of
   queries: then it holds at most eps / T of each row. As a function of K the maximum is convex, so it is computed at
   0 and at the largest K of all pieces, and the chord between them, which lies above it, stands for it. Norms,
   log-sums and distances have margins far above their rounding. Keys are sent if that fails in any head of any batch
   element.
2. Pieces are looked at, m of them side by side, in one call of the op, with eps m / T. Forward, the op loses at most
   that share of the probability of these keys, hence of the row's. Backward, it judges by lse over all keys and loses
   at most eps m / T of the row again, and never looks at what the forward left out.

For every row each visible piece falls under 1 or 2, once, so that the shares add up to eps. Nothing is left out of a
head with a negative slope or one that is not a number, nor where a norm or a log-sum is not finite (so a row that
sees no key of its own shard looks at all others), as in the op. A bool mask only takes keys away from n, K and L_i.

Legend: B batch, H query heads, G key heads, N queries and M keys of this rank, E dimension of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

from stratcore import ops
from stratcore.layers._context_parallel_call import METHODS, ContextParallel, agreed_call, check_padding
from stratcore.layers._context_parallel_ring import OP, ContextParallelTraffic
from stratcore.ops._checks import check_choice


class ContextParallelAttention(NamedTuple):
    """Attention of this rank's queries to the keys of all ranks.

    out: [B, H, N, E], dtype of q. lse: [B, H, N], log of the sum of exp(score) over all keys, -inf in a row without
    visible keys; float64 for float64 q, else float32; it has a gradient. skipped_tiles, visible_tiles: int32 [B, H],
    how many tiles of scores `eps` left out, of those that `causal` allows, in the blocks that this rank computed.
    traffic: what this rank sent.
    """

    out: Tensor
    lse: Tensor
    skipped_tiles: Tensor
    visible_tiles: Tensor
    traffic: ContextParallelTraffic


def context_parallel_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    lattice: int | Sequence[int],
    block: int | Sequence[int] | None = None,
    metric: str = "l1",
    causal: bool = False,
    causal_group: int = 1,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    query_offset: int = 0,
    key_offset: int = 0,
    eps: float = 0.0,
    deterministic: bool | None = None,
    method: str = "ring",
) -> ContextParallelAttention:
    """`stratcore.ops.toroidal_attention` with the sequence cut into contiguous shards, in the order of ranks.

        out_i = sum over the keys j of all ranks of softmax_j(scale <q_i, k_j> - sum_a slopes[h, a] part_a(i, j)) v_j

    Every rank of the group calls it, and then its backward, as often and in the same order.

    Args:
        q: [B, H, N, E], this rank's queries. N may differ from rank to rank, and be 0. Position of query i:
            `query_offset` + the queries of the ranks before + i.
        k: [B, G, M, E], this rank's keys; M may differ from N and from rank to rank. Positions as those of queries.
        v: as `k`.
        slopes: [H] or [H, axes], as the op takes them; the same on all ranks.
        group: the ranks that share the sequence; None: the default group. Without one, or with a single rank, this
            is the plain op.
        lattice: 1 to 3 periods of the torus, in tokens.
        block: sizes that divide the periods, see `stratcore.ops.lattice_order`. None: row-major.
        metric: 'l1', 'l2', 'linf', 'chordal' or 'chordal_sq'.
        causal: key j is visible to query i where its position is not later. No later key is sent.
        causal_group: positions are compared in groups of so many.
        key_mask: bool [B, M], True takes part: of this rank's keys. On all ranks or on none.
        scale: of the products, E^-1/2 unless given.
        query_offset: position of the first query of rank 0.
        key_offset: position of the first key of rank 0.
        eps: most of a row's probability, in [0, 1), that may be lost by keys not sent or not looked at. 0: none; then
            all blocks are sent that causal order lets a rank see.
        deterministic: whether the backward gives the same bits on every run on a GPU; None follows
            `torch.use_deterministic_algorithms`.
        method: 'ring': one block is on its way while another is computed, and the backward sends the blocks again;
            memory of three shards' keys and values, one of them a copy of the own. 'all_gather': all blocks are sent
            at once, arrive while the first are computed and are kept for the backward; memory of those of all shards.

    Returns:
        ContextParallelAttention of this rank's rows.

    Raises:
        ValueError: what the op refuses; a mask, method or group that does not fit; on all ranks, where sizes, dtypes,
            options or what requires grad differ between ranks, or where another rank refused its arguments.
        TypeError: not floating point, or differing dtypes; the other ranks raise ValueError.

    Gradient: to q, k, v and slopes, of first order, through `out` and `lse`. It is that of the sum of all losses:
        a rank gets all of its gradient for its own q, k and v, and for slopes the part that its own rows give. So
        slopes are like every parameter that all ranks share: summed over the ranks the gradient is whole, and
        DistributedDataParallel's mean over the ranks is that of the mean loss. Exact for eps 0, else that of the
        tiles that were looked at. A rank whose loss does not use the result must run the backward all the same.
    Numerics: as the op. Results of blocks are merged in float32 (float64 for float64 input); of 16-bit types each
        block's result and gradients are rounded before they are summed. With eps > 0,
        |out - exact| <= 2 eps / (1 - eps) max |v| and |lse - exact| <= -log(1 - eps).
    Determinism: that of the op; no sum depends on what arrives first.
    Cost: that of the op, shared by the ranks; with causal order the last have more to do than the first. A piece of
        keys (at most 32 of a shard) is sent to a rank, with all heads, if one row there needs it. The call waits for
        the device once, to compare sizes, and with eps > 0 once more, to exchange who needs what: that follows from
        the log-sums over own keys, so only with eps 0 are the first blocks on their way while these are looked at.
        The backward does not wait. `torch.compile` breaks its graph here.
    Source: H. Liu, M. Zaharia, P. Abbeel, arXiv 2310.01889 (ring); csrc/toroidal_attention/README.md (bound); the
        proof is in this module's docstring.
    """
    options: dict[str, Any] = {
        "lattice": lattice,
        "block": block,
        "metric": metric,
        "scale": scale,
        "causal": causal,
        "causal_group": causal_group,
        "query_offset": query_offset,
        "key_offset": key_offset,
        "eps": eps,
        "deterministic": deterministic,
    }
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        check_choice(OP, "method", method, METHODS)
        check_padding(k, key_mask)
        mask = None if key_mask is None else key_mask[:, None, None]
        result = ops.toroidal_attention_lse(q, k, v, slopes, mask=mask, **options)
        return ContextParallelAttention(*result, ContextParallelTraffic([0]))
    call, tensors = agreed_call(group, method, (q, k, v, slopes, key_mask), options)
    out, lse, tiles = ContextParallel.apply(*tensors, call)
    return ContextParallelAttention(out, lse, tiles[..., 0], tiles[..., 1], call.traffic)
