"""Options of the stratified classifier, as a configuration of transformers that refuses what it does not know."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers import AutoConfig, PretrainedConfig

ROUTED_VARIANTS = (
    "stratified_attention",
    "token_routing",
    "layer_processing",
    "stratified_moe",
    "stratified_post_attention",
)
VARIANTS = ("plain", "mlp", "frozen_random_router", "geometric_regularization", *ROUTED_VARIANTS)
POOLINGS = ("mean", "cls", "last")
SIGNS = ("corrected", "source")
ROUTING_LOSSES = ("balance", "z", "entropy", "usage")
GEOMETRIC_LOSSES = ("strata", "curvature", "manifold")

# Weights of the losses beside the task's; the last two rows are those of the source documents.
DEFAULT_WEIGHTS: dict[str, dict[str, float]] = {
    **{variant: {"balance": 0.01, "z": 0.001} for variant in ROUTED_VARIANTS},
    "stratified_post_attention": {"entropy": -1e-4, "usage": 1e-4},
    "geometric_regularization": {"strata": 0.1, "curvature": 0.05, "manifold": 0.02},
}

# What transformers itself gives to a configuration beside the fields of its base class.
_INHERITED = {
    "model_type",
    "transformers_version",
    "num_labels",
    "torch_dtype",
    "dtype",
    "name_or_path",
    "_name_or_path",
    "_commit_hash",
    "attn_implementation",
    "experts_implementation",
    "output_attentions",
    "_attn_implementation_internal",
    "_experts_implementation_internal",
    "_attn_implementation_autoset",
}


class StratifiedClassifierConfig(PretrainedConfig):
    """Encoder and what stands between it and the labels.

    Args:
        encoder: configuration of the encoder, as such or as a mapping with its `model_type`.
        variant: one of `VARIANTS`. 'plain': nothing. 'mlp': a residual perceptron of `matched_parameters`.
            'frozen_random_router': the block of `frozen_variant`, whose routers stay as they were drawn.
            'geometric_regularization': nothing but further losses. The others: the stratified block of that name.
        num_strata: S of the block's router ('layer_processing' has one stratum a hidden state).
        block_options: further options of the block, by the names of its options class; those of the router under
            'router', such as {"num_heads": 4, "router": {"mode": "top_k", "top_k": 2}}.
        frozen_variant: which block 'frozen_random_router' takes.
        matched_parameters: parameters that 'mlp' is to have, within 1 %.
        pooling: 'mean' over real tokens, 'cls' (the first real token), 'last' (the last real one); None: 'last' for
            a causal encoder, else 'mean'.
        dropout: in front of the classifier.
        auxiliary_weights: weights of the losses beside the task's, by name; None: those of `DEFAULT_WEIGHTS`, none
            for a frozen router.
        geometric_signs: 'corrected' or 'source', see `geometric_losses`.
        freeze_encoder: the encoder is neither trained nor in training mode.
        kwargs: fields of PretrainedConfig, such as num_labels or id2label.

    Raises:
        ValueError: an unknown option, with the nearest known one, or a value out of its set.
    """

    model_type = "stratified_classifier"
    sub_configs = {"encoder": AutoConfig}
    has_no_defaults_at_init = True
    # What transformers' Trainer leaves out of predictions: it can join tensors over batches, not routings.
    keys_to_ignore_at_inference = ["task_loss", "auxiliary_losses", "statistics", "routing", "pooled"]

    def __init__(
        self,
        encoder: PretrainedConfig | Mapping[str, Any] | None = None,
        *,
        variant: str = "stratified_moe",
        num_strata: int = 3,
        block_options: Mapping[str, Any] | None = None,
        frozen_variant: str = "stratified_moe",
        matched_parameters: int | None = None,
        pooling: str | None = None,
        dropout: float = 0.1,
        auxiliary_weights: Mapping[str, float] | None = None,
        geometric_signs: str = "corrected",
        freeze_encoder: bool = False,
        **kwargs: Any,
    ) -> None:
        _refuse_unknown(kwargs)
        super().__init__(**kwargs)
        if isinstance(encoder, Mapping):
            encoder = _encoder_config(encoder)
        if encoder is not None and kwargs.get("attn_implementation") is not None:
            encoder._attn_implementation = kwargs["attn_implementation"]
        self.encoder: Any = encoder
        self.variant = variant
        self.num_strata = num_strata
        self.block_options = dict(block_options or {})
        self.frozen_variant = frozen_variant
        self.matched_parameters = matched_parameters
        self.pooling = pooling
        self.dropout = dropout
        self.auxiliary_weights = None if auxiliary_weights is None else dict(auxiliary_weights)
        self.geometric_signs = geometric_signs
        self.freeze_encoder = freeze_encoder
        self._check()

    def _check(self) -> None:
        for name, allowed in (
            ("variant", VARIANTS),
            ("frozen_variant", ROUTED_VARIANTS),
            ("pooling", (None, *POOLINGS)),
            ("geometric_signs", SIGNS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}: expected one of {', '.join(map(str, allowed))}, got {getattr(self, name)!r}"
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a share in [0, 1), got {self.dropout}")
        if (self.variant == "mlp") != (self.matched_parameters is not None):
            raise ValueError(
                "matched_parameters: expected a number with variant 'mlp' and None with others, got"
                f" {self.matched_parameters} with {self.variant!r}"
            )
        if self.block_options and self.block_variant is None:
            raise ValueError(f"block_options: variant {self.variant!r} has none, got {self.block_options}")
        known = self.loss_names
        for name, weight in (self.auxiliary_weights or {}).items():
            if name not in known:
                raise ValueError(
                    f"auxiliary_weights: variant {self.variant!r} has the losses {list(known)}, got {name!r}"
                )
            if not math.isfinite(weight):
                raise ValueError(f"auxiliary_weights: {name!r}: expected a finite number, got {weight}")

    @property
    def block_variant(self) -> str | None:
        """Name of the stratified block behind the encoder, or None."""
        name = self.frozen_variant if self.variant == "frozen_random_router" else self.variant
        return name if name in ROUTED_VARIANTS else None

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses that the variant has beside the task's."""
        if self.variant == "geometric_regularization":
            return GEOMETRIC_LOSSES
        return ROUTING_LOSSES if self.block_variant else ()

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the losses beside the task's, those of 0 left out."""
        given = self.auxiliary_weights
        weights = DEFAULT_WEIGHTS.get(self.variant, {}) if given is None else given
        return {name: float(weight) for name, weight in weights.items() if weight}

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels, by their number."""
        names: Any = self.id2label
        return tuple(names[index] for index in range(len(names)))

    @property
    def hidden_size(self) -> int:
        """Channels of the encoder's hidden state."""
        return self.encoder.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        """Blocks of the encoder; it has one hidden state more."""
        return self.encoder.num_hidden_layers


def _encoder_config(options: Mapping[str, Any]) -> PretrainedConfig:
    model_type = options.get("model_type")
    if not isinstance(model_type, str):
        raise ValueError(f"encoder: expected a model_type known to transformers, got {model_type!r}")
    return AutoConfig.for_model(**options)


def _refuse_unknown(kwargs: Mapping[str, Any]) -> None:
    """PretrainedConfig takes any name in silence, so that a misspelled option would have no effect."""
    own = set(inspect.signature(StratifiedClassifierConfig).parameters) - {"kwargs"}
    known = own | {field.name for field in fields(PretrainedConfig)} | _INHERITED
    for name in kwargs:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"StratifiedClassifierConfig: unknown option {name!r}{hint}")
