"""Peak memory of tuning replaced layers of a language model, by arithmetic, before anything is allocated.

Legend: T tokens of a micro-batch, C hidden size, H query heads, G key heads, E head size, F size of the MLP's middle,
V vocabulary, L layers, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from stratcore.models._attention_hosts import attention_layers

TRAINED = ("replaced", "branches", "lora", "all")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp32": 4, "bf16": 2, "fp16": 2}
MOMENTS = {"adamw": 8, "adam": 8, "sgd": 0}
# Bytes a logit in the loss: its log-softmax, the gradient of that and that of the logits, all float32.
LOSS_BYTES = 12
# Tensors of the MLP's middle that an activation written out in Python keeps; a fused one keeps its input.
_WRITTEN_OUT = {"gelu_new": 4, "gelu_fast": 4, "gelu_python": 3, "quick_gelu": 3}


@dataclass(frozen=True, kw_only=True)
class HostSizes:
    """What the arithmetic needs of a host.

    Args:
        parameters: P, of the whole model.
        attention_parameters: of one attention.
        layers: L.
        hidden: C.
        heads: H.
        key_heads: G.
        head_dim: E.
        intermediate: F.
        vocabulary: V.
        norms: of one block.
        layer_norm: the norms are LayerNorm, whose results are float32 under autocast, so that every projection
            behind one keeps a copy of its own.
        middle_tensors: of size F that the MLP keeps for its backward pass.
        parallel: attention and MLP read the same stream, so that no gradient goes through the MLP of the first
            trained layer.
        rotary: queries and keys are turned, into tensors of their own.
        fused: queries, keys and values come out of one projection, whose whole result the values keep.
    """

    parameters: int
    attention_parameters: int
    layers: int
    hidden: int
    heads: int
    key_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    norms: int
    layer_norm: bool
    middle_tensors: int
    parallel: bool
    rotary: bool
    fused: bool


def host_sizes(host: nn.Module) -> HostSizes:
    """Sizes of a causal language model of transformers; one on the device `meta` will do.

    Raises:
        TypeError, ValueError: as `ToroidalLM`, of a host that it cannot take.
    """
    config: Any = host.config
    heads, hidden = config.num_attention_heads, config.hidden_size
    attentions = [each.module for each in attention_layers(host)]
    first = attentions[0]
    block = next(m for m in host.modules() if any(child is first for child in m.children()))
    norms = [child for child in block.children() if "norm" in type(child).__name__.lower()]
    gated = any("gate" in name for name, _ in block.named_modules())
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation_function", None)
    kept = _WRITTEN_OUT.get(str(activation), 1)
    return HostSizes(
        parameters=sum(p.numel() for p in host.parameters()),
        attention_parameters=sum(p.numel() for p in first.parameters()),
        layers=len(attentions),
        hidden=hidden,
        heads=heads,
        key_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or hidden // heads,
        intermediate=getattr(config, "intermediate_size", None)
        or getattr(config, "n_inner", None)
        or 4 * hidden,
        vocabulary=config.vocab_size,
        norms=len(norms),
        layer_norm=any(isinstance(each, nn.LayerNorm) for each in norms),
        middle_tensors=kept + 2 if gated else kept,  # the product of gate and value keeps both
        parallel=len(norms) == 1 or bool(getattr(config, "use_parallel_residual", False)),
        rotary=any(hasattr(module, "inv_freq") for module in host.modules()),
        fused=sum(getattr(getattr(m, "weight", None), "ndim", 0) == 2 for m in first.modules()) == 2,
    )


@dataclass(frozen=True, kw_only=True)
class TuningPlan:
    """What is trained, and how.

    Args:
        layers: numbers of the replaced layers.
        rows: of a micro-batch.
        length: tokens of a row.
        trained: 'replaced', 'branches', 'lora' or 'all', as in `recipes.toroidal_lm`.
        lora_rank: of the adapters.
        host_dtype: of the frozen weights.
        precision: of the arithmetic, 'fp32', 'bf16' or 'fp16'.
        optimizer: 'adamw', 'adam' or 'sgd' (without momentum).
        checkpointing: activations of blocks are computed again in the backward pass.
        accumulate: micro-batches of a step; with more than one, gradients are there from the second on.
        torus: the layers have branches; False: controls without.
        gated: the host's attention is computed beside each branch.
        depths: slices of a head, of every branch that a layer chooses from.
    """

    layers: tuple[int, ...]
    rows: int
    length: int
    trained: str = "replaced"
    lora_rank: int = 8
    host_dtype: str = "bfloat16"
    precision: str = "bf16"
    optimizer: str = "adamw"
    checkpointing: bool = False
    accumulate: int = 1
    torus: bool = True
    gated: bool = True
    depths: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        choices = {"trained": TRAINED, "host_dtype": BYTES, "precision": BYTES, "optimizer": MOMENTS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("rows", "length", "lora_rank", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not self.depths or min(self.depths) < 1:
            raise ValueError(f"depths: expected numbers >= 1, got {self.depths}")
        if not self.layers or min(self.layers) < 0:
            raise ValueError(f"layers: expected numbers >= 0, got {self.layers}")


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes at the peak, by what they hold; `peak` is not their sum, as not all are there at once.

    Args:
        weights: of host and trained part.
        half_copies: of trained matrices, which autocast makes and keeps for a micro-batch.
        gradients: float32.
        moments: of the optimizer.
        activations: kept by all blocks that the backward pass goes through.
        block: activations of the largest block, which are there once more while it is computed again.
        loss: of the logits.
        peak: the larger of what is there when the backward pass begins and when it ends.
    """

    weights: int
    half_copies: int
    gradients: int
    moments: int
    activations: int
    block: int
    loss: int
    peak: int


def trainable_parameters(host: HostSizes, plan: TuningPlan) -> tuple[int, int]:
    """Trained parameters of the host, and new ones (branches without fusion, adapters)."""
    count = len(plan.layers)
    choices = len(plan.depths)
    branches = count * (host.heads * choices + choices * (choices > 1) + plan.gated) if plan.torus else 0
    if plan.trained == "all":
        return host.parameters, branches
    if plan.trained == "replaced":
        return count * host.attention_parameters, branches
    if plan.trained == "branches":
        return 0, branches
    query, key = host.heads * host.head_dim, host.key_heads * host.head_dim
    widths = (2 if host.fused else 4) * host.hidden + 2 * query + 2 * key
    return 0, branches + count * plan.lora_rank * widths


def estimate_memory(host: HostSizes, plan: TuningPlan) -> MemoryEstimate:
    """Peak bytes of a training step.

        begin  weights + moments + half_copies + activations + loss (+ gradients where accumulated)
        end    weights + moments + half_copies + gradients + block

    Blocks in front of the first trained layer keep nothing, as no gradient goes there. With checkpointing a block
    keeps its input, and all else of one block at a time. Frozen projections keep nothing; trained ones their inputs.

    Args:
        host: sizes.
        plan: what is trained.

    Raises:
        ValueError: a layer that the host has not.

    Numerics: counted are tensors, not the allocator's rounding and fragments, nor the CUDA context and workspaces.
        The activations agree within 10 % with those that tiny hosts of seven architectures keep in float32 on the
        CPU; against a GPU nothing is measured yet.
    Source: V. Korthikanti et al., arXiv 2205.05198, per tensor in place of per layer.
    """
    if max(plan.layers) >= host.layers:
        raise ValueError(f"layers: expected numbers in 0 to {host.layers - 1}, got {max(plan.layers)}")
    own, new = trainable_parameters(host, plan)
    weights = (host.parameters - own) * BYTES[plan.host_dtype] + 4 * (own + new)
    halves = 0 if plan.precision == "fp32" else 2 * (own + new)
    gradients, moments = 4 * (own + new), MOMENTS[plan.optimizer] * (own + new)
    tokens = plan.rows * plan.length
    reached = range(0 if plan.trained == "all" else min(plan.layers), host.layers)
    blocks = [tokens * block_bytes(host, plan, number) for number in reached]
    stream = tokens * host.hidden * BYTES[plan.host_dtype]
    activations = len(blocks) * stream if plan.checkpointing else sum(blocks)
    loss = LOSS_BYTES * plan.rows * (plan.length - 1) * host.vocabulary
    lasting = weights + moments + halves
    begin = lasting + activations + loss + (gradients if plan.accumulate > 1 else 0)
    end = lasting + gradients + max(blocks) + (activations if plan.checkpointing else 0)
    return MemoryEstimate(
        weights=weights,
        half_copies=halves,
        gradients=gradients,
        moments=moments,
        activations=activations,
        block=max(blocks),
        loss=loss,
        peak=max(begin, end),
    )


def block_bytes(host: HostSizes, plan: TuningPlan, number: int) -> int:
    """Bytes a token that one block keeps for its backward pass.

    norm: float32 input, one for all norms of the same stream. Attention: q, k, v and result, and the log-sum of a row
    in float32. MLP: `middle_tensors`. A trained projection adds its input, a trained RMSNorm its result. A branch
    adds its result and log-sums, behind a gate both results once more in the order of tokens, and at depth > 1
    queries and keys in the order of rotary pairs, and values where the host's are a part of a wider tensor. Where a
    layer chooses from several, each adds its result, those at depth > 1 also in the order of heads.
    """
    size = BYTES[plan.precision]
    query, key = host.heads * host.head_dim, host.key_heads * host.head_dim
    chosen, all_trained = number in plan.layers, plan.trained == "all"
    first = number == min(plan.layers) and not all_trained
    streams = 1 if host.parallel else host.norms
    kept = 4 * host.hidden * (streams - first)
    kept += size * (2 * query + 2 * key) + 4 * host.heads
    kept += size * (query + key) if host.fused and host.rotary else 0
    if not (first and host.parallel):
        kept += size * host.middle_tensors * host.intermediate
    copies = 1 if host.fused or not host.layer_norm or plan.precision == "fp32" else 3
    if all_trained or (chosen and plan.trained in ("replaced", "lora")):
        kept += size * (host.hidden * copies + query)
    if all_trained:
        kept += size * (host.hidden + host.intermediate)
        kept += 0 if host.layer_norm else 4 * host.norms * host.hidden
    if chosen and plan.torus:
        if plan.gated:
            kept += size * 3 * query + 4 * host.heads * plan.depths[0]
        kept += sum(size * query + 4 * host.heads * depth for depth in plan.depths[1:])
        deep = sum(depth > 1 for depth in plan.depths)
        kept += size * query * deep if len(plan.depths) > 1 else 0
        kept += size * key * deep if host.fused and host.rotary else 0
        if host.rotary and not (first and plan.trained == "branches"):
            kept += size * (query + key) * deep
    return kept


def plans_that_fit(
    host: HostSizes, plan: TuningPlan, budget: int, *, spare: float = 0.05
) -> list[tuple[TuningPlan, MemoryEstimate]]:
    """Which of the ways to tune these layers fit into a GPU's memory, the most thorough first.

    Tried are, in this order: `plan.trained` as it is, with checkpointing, with rows halved down to 1; then the same
    with 'lora', then with 'branches'.

    Args:
        host: sizes.
        plan: what is wished for.
        budget: bytes.
        spare: share of the budget left to the allocator.

    Returns:
        Plans that fit with their estimates; none where nothing does.
    """
    kinds = [plan.trained, *(kind for kind in ("lora", "branches") if kind != plan.trained)]
    fitting = []
    for kind in kinds:
        rows = plan.rows
        while True:
            for checkpointing in (False, True):
                tried = replace(plan, trained=kind, checkpointing=checkpointing, rows=rows)
                found = estimate_memory(host, tried)
                if found.peak <= (1 - spare) * budget:
                    fitting.append((tried, found))
            if rows == 1:
                break
            rows //= 2
    return fitting
