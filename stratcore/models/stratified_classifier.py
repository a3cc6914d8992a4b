"""Classifier of texts: a pretrained encoder, a stratified block, a linear map.

Legend: B sequences, N tokens, D channels, C labels, S strata, T real tokens.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from stratcore.layers._residual_branch import checked_mask
from stratcore.layers.layer_processing import LayerProcessing
from stratcore.layers.stratified_output import StratifiedOutput
from stratcore.layers.stratum_router import Routing
from stratcore.models.geometric_regularization import geometric_losses
from stratcore.models.pretrained_encoder import (
    check_encoder,
    check_loaded,
    counted_positions,
    drop_pooler,
    encoder_arguments,
    is_causal,
    load_encoder,
    new_encoder,
    pool,
    takes,
)
from stratcore.models.stratified_classifier_blocks import build_block, router_parameters
from stratcore.models.stratified_classifier_config import StratifiedClassifierConfig
from stratcore.models.text_prediction import TextPrediction, TextPredictor, find_tokenizer


@dataclass
class StratifiedClassifierOutput(ModelOutput):
    """What the classifier gives back.

    loss: scalar, task loss and weighted auxiliary losses; None without labels. logits: [B, C]. task_loss: mean
    cross-entropy alone. auxiliary_losses: scalars by name, not weighted. statistics: scalars without gradient.
    routing: by what it chooses ('strata', 'paths', 'layers', 'experts'). pooled: [B, D].
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    task_loss: Tensor | None = None
    auxiliary_losses: dict[str, Tensor] | None = None
    statistics: dict[str, Tensor] | None = None
    routing: dict[str, Routing] | None = None
    pooled: Tensor | None = None

    def routed_tokens(self, name: str | None = None) -> RoutedTokens:
        """Where real tokens went, pads left out.

        Args:
            name: of the routing; None: the first.

        Raises:
            ValueError: the variant has no routing of this name.
        """
        known = self.routing or {}
        if not known or name not in (None, *known):
            raise ValueError(f"routing: expected one of {list(known)}, got {name!r}")
        routing = known[name or next(iter(known))]
        rows = routing.probabilities.shape[:-1]
        mask = routing.mask
        if mask is None:
            mask = torch.ones(rows, dtype=torch.bool, device=routing.probabilities.device)
        return RoutedTokens(
            probabilities=routing.probabilities.detach()[mask],
            selected=routing.selected[mask],
            sequence=mask.nonzero()[:, 0],
        )


@dataclass(frozen=True, kw_only=True)
class RoutedTokens:
    """Routing of T real tokens (or of sequences, where one mixture serves a sequence).

    probabilities: [T, S]. selected: [T, K], the most probable first. sequence: [T], row of the batch.
    """

    probabilities: Tensor
    selected: Tensor
    sequence: Tensor


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Number of parameters of a part, and of those that are trained."""

    total: int
    trainable: int


class StratifiedClassifier(PreTrainedModel):
    """Labels of texts from the hidden states of an encoder, through a block that starts as the identity.

        h = encoder(tokens);   y = block(h);   logits = W pool(y) + b
        loss = cross-entropy + sum_n weight_n loss_n

    With the same seed the logits of every variant are at first those of 'plain', bitwise: the classifier is drawn
    before the block, and each block begins with one zero.

    Args:
        config: options.
        encoder: taken as it is; None: a new one with random weights.

    Shapes: input_ids int64 [B, N]; attention_mask bool or integers [B, N], true at real tokens; labels int64 [B].
    Gradient: reaches every parameter that `requires_grad` within two steps, and is never None: no unused parameters.
    Numerics: pads on the right, and on the left of decoders and of BERT's and RoBERTa's families, change logits by
        rounding only, <= 1e-5.
    Determinism: as the encoder's attention.
    Cost: that of the encoder and of the block. `torch.compile(fullgraph=True)`, `torch.export`: yes.
    Source: the source documents, with the encoder's own weights, masks and a residual start.
    """

    config_class = StratifiedClassifierConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules: list[str] = []

    def __init__(self, config: StratifiedClassifierConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if encoder is None:
            encoder = new_encoder(config.encoder)
        else:
            config.encoder = encoder.config
            parts: Iterable[Any] = encoder.modules()
            for part in parts:
                part._is_hf_initialized = True  # transformers' own mark: not to be drawn anew
        check_encoder(encoder)
        drop_pooler(encoder)
        self.encoder = encoder
        self.dropout = nn.Dropout(config.dropout)
        # Drawn before the block, so that it is the same for every variant.
        self.classifier = nn.Linear(config.hidden_size, len(config.label_names))
        self.block = build_block(config)
        self.pooling = config.pooling or ("last" if is_causal(config.encoder) else "mean")
        self.tokenizer: Any = None
        self._call = encoder_arguments(encoder)
        self._takes_positions = takes(encoder, "position_ids")
        self.post_init()
        self._freeze()

    def _init_weights(self, module: nn.Module) -> None:
        """Leaves what constructors set: the general rule of transformers would undo the zeros of the blocks."""

    def _freeze(self) -> None:
        if self.config.freeze_encoder:
            self.encoder.requires_grad_(False).eval()
        if self.config.variant == "frozen_random_router" and self.block is not None:
            for parameter in router_parameters(self.block):
                parameter.requires_grad_(False)

    # ---- making, saving, loading

    @classmethod
    def from_encoder(
        cls,
        encoder: str | Path | PreTrainedModel,
        *,
        tokenizer: Any = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> StratifiedClassifier:
        """A classifier on a pretrained encoder.

            StratifiedClassifier.from_encoder("distilbert-base-uncased", variant="stratified_moe", num_labels=2)

        Args:
            encoder: local folder, name on the hub, or a model, which is copied: two classifiers share no weight.
            tokenizer: saved along, for `predict`; None: the one that lies beside the encoder, if any.
            seed: of the classifier's and the block's weights; torch's generator is left as it was.
            dtype: of the weights.
            options: of `StratifiedClassifierConfig`.

        Raises:
            PretrainedMismatch: see `load_encoder`.
            ValueError: options that do not fit.
        """
        if isinstance(encoder, PreTrainedModel):
            host = copy.deepcopy(encoder)
        else:
            host = load_encoder(encoder, dtype=dtype)
            tokenizer = tokenizer or find_tokenizer(encoder)
        config = StratifiedClassifierConfig(host.config, dtype=dtype, **options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: Any = cls(config, host)
        model.to(dtype)
        model.tokenizer = tokenizer
        return model.eval()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[Any] | None,
        *model_args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """A saved classifier, with the tokenizer that lies beside it.

        Raises:
            PretrainedMismatch: a tensor that the weights lack, have in another shape, or have besides.
        """
        name = str(pretrained_model_name_or_path)
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded: Any = super().from_pretrained(name, *model_args, **kwargs)
        model, report = loaded
        check_loaded(model, report, f"classifier {name!r}")
        model._freeze()  # loading made parameters anew
        model.tokenizer = find_tokenizer(name)
        return (model, report) if output_loading_info else model

    def save_pretrained(self, save_directory: str | PathLike[Any], *args: Any, **kwargs: Any) -> None:
        """Writes config.json, safetensors and, if there is one, the tokenizer."""
        super().save_pretrained(str(save_directory), *args, **kwargs)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(str(save_directory))

    # ---- running

    def train(self, mode: bool = True) -> StratifiedClassifier:
        """Training mode; a frozen encoder stays out of it."""
        super().train(mode)
        if self.config.freeze_encoder:
            self.encoder.eval()
        return self

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Activations of the encoder's blocks are computed again in the backward pass; arguments: transformers'."""
        with warnings.catch_warnings():  # later releases warn of this name, the first ones have no other
            warnings.simplefilter("ignore", FutureWarning)
            super().gradient_checkpointing_enable(*args, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **inputs: Any,
    ) -> StratifiedClassifierOutput:
        """Logits, losses and routing.

        Args:
            input_ids: int64 [B, N].
            attention_mask: bool or integers [B, N], true at real tokens; None: all are real.
            labels: int64 [B], in [0, C), or -100 for a row that does not count.
            inputs: what else the encoder takes, such as position_ids, inputs_embeds or token_type_ids; the last have
                no effect where the encoder knows a single type.

        Raises:
            ValueError: a mask of another shape or of floating point.
        """
        tokens = input_ids if input_ids is not None else inputs.get("inputs_embeds")
        if tokens is None:
            raise ValueError("input_ids: expected token ids [B, N] or inputs_embeds, got None")
        mask = checked_mask(attention_mask, tokens.shape[:2])
        states = self._hidden_states(input_ids, mask, inputs)
        output = self._through_block(states, mask)
        pooled = pool(output.hidden, mask, self.pooling)
        logits = self.classifier(self.dropout(pooled.to(self.classifier.weight.dtype)))
        losses = output.losses
        if labels is not None and self.config.variant == "geometric_regularization":
            losses = geometric_losses(output.hidden, mask, signs=self.config.geometric_signs)
        task_loss = None if labels is None else cross_entropy(logits.float(), labels)
        loss = task_loss
        if loss is not None:
            for name, weight in self.config.weights.items():
                loss = loss + weight * losses[name]
        return StratifiedClassifierOutput(
            loss=loss,
            logits=logits,
            task_loss=task_loss,
            auxiliary_losses=losses,
            statistics=output.statistics,
            routing=output.routing,
            pooled=pooled,
        )

    def _hidden_states(
        self, input_ids: Tensor | None, mask: Tensor | None, inputs: dict[str, Any]
    ) -> list[Tensor]:
        """Hidden states [B, N, D] of all layers, or the last one alone where the block needs no more."""
        of_all = isinstance(self.block, LayerProcessing) and self.block.options.inputs == "all"
        arguments = inputs | self._call | {"input_ids": input_ids, "output_hidden_states": of_all}
        if mask is not None:
            arguments["attention_mask"] = mask.long()
        if getattr(self.config.encoder, "type_vocab_size", 0) < 2:  # GPT-2 would add the words 0 and 1
            arguments["token_type_ids"] = None
        if self._takes_positions and arguments.get("position_ids") is None:
            arguments["position_ids"] = counted_positions(self.config.encoder, mask)
        arguments = {name: value for name, value in arguments.items() if value is not None}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_encoder):
            output = self.encoder(**arguments)
        if not of_all:
            return [output.last_hidden_state]
        return [*output.hidden_states[:-1], output.last_hidden_state]

    def _through_block(self, states: list[Tensor], mask: Tensor | None) -> StratifiedOutput:
        if self.block is None:
            return StratifiedOutput(hidden=states[-1], losses={}, statistics={}, routing={})
        if isinstance(self.block, LayerProcessing):
            return self.block(states, mask)
        return self.block(states[-1], mask)

    # ---- using

    def predict(self, texts: list[str], **options: Any) -> TextPrediction:
        """Labels and probabilities of texts; options: see `TextPredictor`.

        Raises:
            ValueError: no tokenizer, or a text that cannot be read, named by its row.
        """
        return TextPredictor(self, **options)(texts)

    def parameter_counts(self) -> dict[str, ParameterCount]:
        """Parameters of 'encoder', 'block', of its 'router' (a part of the block), 'classifier' and 'all'."""
        block = [] if self.block is None else list(self.block.parameters())
        router = [] if self.block is None else router_parameters(self.block)
        parts = {
            "encoder": list(self.encoder.parameters()),
            "block": block,
            "router": router,
            "classifier": list(self.classifier.parameters()),
            "all": list(self.parameters()),
        }
        return {
            name: ParameterCount(
                total=sum(p.numel() for p in parameters),
                trainable=sum(p.numel() for p in parameters if p.requires_grad),
            )
            for name, parameters in parts.items()
        }
