"""Scoring sequences too long for one device: every rank holds a shard of the tokens and the whole model.

Legend: B rows, N tokens in all, n tokens of this rank, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AttentionInterface, PreTrainedModel

from stratcore.layers.sequence_shards import SequenceShards
from stratcore.models._attention_hosts import dispatching_modules
from stratcore.models.toroidal_lm import ToroidalLM
from stratcore.models.toroidal_lm_attention import BRANCH, SHARDS, host_in_shards

IMPLEMENTATION = "context_parallel"


@contextmanager
def context_parallel(model: ToroidalLM | PreTrainedModel, shards: SequenceShards) -> Iterator[None]:
    """While it lasts, every attention of a model looks at the tokens of all ranks; all of them enter it together.

    Each rank calls the model with its own tokens as input_ids and their positions as position_ids, without mask and
    cache. Branches and the host's own attention go through `context_parallel_attention`; nothing else of a language
    model mixes tokens.

    Args:
        model: the same weights on all ranks.
        shards: what each rank holds.

    Raises:
        ValueError: more tokens than the period of a torus has; FFT mixing.

    Gradient: of first order, through the tokens of all ranks; for weights, the part that this rank's rows give.
    """
    host = model.host if isinstance(model, ToroidalLM) else model
    if isinstance(model, ToroidalLM):
        _check(model, shards)
    if AttentionInterface().get(IMPLEMENTATION) is not host_in_shards:
        AttentionInterface.register(IMPLEMENTATION, host_in_shards)
    changed: list[tuple[Any, Any]] = []
    try:
        for module in dispatching_modules(host):
            own: Any = module
            changed.append((own, own.config))
            own.__dict__[SHARDS] = shards
            if BRANCH not in own.__dict__:  # a branch is looked up where it stands
                own.config = copy.copy(own.config)
                own.config._attn_implementation_internal = IMPLEMENTATION
        yield
    finally:
        for own, config in changed:
            own.config = config
            del own.__dict__[SHARDS]


def context_parallel_logits(
    model: ToroidalLM | PreTrainedModel, ids_BN: Tensor, shards: SequenceShards
) -> Tensor:
    """Logits of this rank's tokens, [B, n, V].

    Args:
        model: as in `context_parallel`.
        ids_BN: int64 [B, N], the whole rows, on all ranks.
        shards: of N tokens.

    Raises:
        ValueError: rows of another length than the shards', or what `context_parallel` refuses.
    """
    if ids_BN.ndim != 2 or ids_BN.shape[1] != shards.length:
        raise ValueError(f"ids: expected [B, {shards.length}], got {list(ids_BN.shape)}")
    own = shards.own
    positions = torch.arange(own.start, own.stop, device=ids_BN.device)[None]
    with context_parallel(model, shards):
        call: Any = model
        output = call(input_ids=ids_BN[:, own.start : own.stop], position_ids=positions, use_cache=False)
    return output.logits  # type: ignore[no-any-return]


@torch.no_grad()
def context_parallel_nll(
    model: ToroidalLM | PreTrainedModel, ids_BN: Tensor, shards: SequenceShards
) -> tuple[float, int]:
    """Negative log-likelihood of all tokens but the first of each row, in nats, summed over all ranks; their number.

    Args, raises: as `context_parallel_logits`.
    """
    logits_BnV = context_parallel_logits(model, ids_BN, shards)
    own = shards.own
    labels_Bn = ids_BN[:, own.start + 1 : own.stop + 1]  # the last rank's last token foresees nothing
    scored = logits_BnV[:, : labels_Bn.shape[1]].float()
    total = cross_entropy(scored.flatten(0, 1), labels_Bn.flatten(), reduction="none").double().sum()
    if shards.ranks > 1:
        dist.all_reduce(total, group=shards.group)
    return float(total), ids_BN.shape[0] * (shards.length - 1)


def _check(model: ToroidalLM, shards: SequenceShards) -> None:
    torus = model.options.torus
    if model.options.attention == "fft_mixing":
        raise ValueError("context_parallel: expected attention, got FFT mixing")
    if torus.window is not None:
        raise ValueError(f"context_parallel: expected no torus.window, got {torus.window}")
    if torus.period is not None and shards.length > torus.period and not torus.wrap:
        raise ValueError(
            f"context_parallel: expected at most {torus.period} tokens, the period of the torus, got {shards.length};"
            " build it with a longer period, or with wrap=True"
        )
