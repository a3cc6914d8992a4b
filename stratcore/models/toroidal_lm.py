"""A causal language model of transformers with toroidal attention in chosen layers.

Legend: B sequences, N tokens, H query heads, E head size.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from stratcore.layers.adaptive_depth import AdaptiveDepthBranch
from stratcore.layers.fft_mixing import FFTMixing
from stratcore.layers.toroidal_branch import ToroidalBranch
from stratcore.models._attention_hosts import AttentionLayer, attention_layers
from stratcore.models.pretrained_encoder import check_loaded, is_causal
from stratcore.models.toroidal_lm_attention import (
    Branch,
    attach_branch,
    check_layer,
    check_unbent,
    refuse,
    rotary_channel_order,
)
from stratcore.models.toroidal_lm_config import ToroidalLMOptions, layer_numbers, options_from_json

OPTIONS, WEIGHTS = "toroidal_lm.json", "toroidal_lm.safetensors"
TRAINABLE = ("branches", "replaced", "all")


class ParameterAccount(NamedTuple):
    """Where the parameters of a `ToroidalLM` are, by number.

    host: of the language model. replaced: of the chosen attentions, a part of the host's. branches: new ones.
    trainable: of all, those that require a gradient.
    """

    host: int
    replaced: int
    branches: int
    trainable: int


class ToroidalLM(nn.Module):
    """A host whose chosen attentions have a toroidal branch each.

        O = O_host + tanh(a) (O_torus - O_host) in front of the host's output projection

    Projections with their biases, rotary embedding, grouping of heads and masks are the host's, in every layer; what
    is new is a gate, a lambda a head and the fusion of each chosen layer, see `ToroidalBranch`. With gates at 0, as
    they start, logits are bitwise the host's. The host that is given is taken over, not copied.

    Args:
        host: a causal language model of transformers that dispatches through AttentionInterface, on 'sdpa' or
            'eager'.
        options: layers, branches, control.

    Raises:
        TypeError: no model of transformers.
        ValueError: a host, layer, depth or number that does not fit, in one line with what would.

    Masks: all that the host takes, but no static cache and no packed sequences by lengths alone. Queries stand at the
        last of their keys; on a ring only differences of positions count, so that padding on either side, sliding
        windows and dynamic caches are right.
    Dropout: in training that of attention weights must be 0, see `turn_off_attention_dropout`.
    Context: sequences beyond the period are refused, unless the options let them wrap around.
    Source: the source documents; their layers start at random, know no mask and take the present length as period.
    """

    def __init__(self, host: PreTrainedModel, options: ToroidalLMOptions) -> None:
        super().__init__()
        check_unbent(host)
        found = attention_layers(host)
        if not is_causal(host.config) or host.get_output_embeddings() is None:
            raise ValueError(f"{type(host).__name__}: expected a causal language model with its head")
        numbers = layer_numbers(options.layers, [each.number for each in found])
        options = replace(
            options, torus=replace(options.torus, period=options.torus.period or _positions(host))
        )
        self.options = options
        self.layers = {each.number: each.name for each in found if each.number in numbers}
        chosen = [each for each in found if each.number in numbers]
        for each in chosen:
            check_layer(each)
        self.branches = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            if options.attention != "host":
                for each in chosen:
                    self.branches[str(each.number)] = _branch(each, host, options)
            if options.projections == "random":
                for each in chosen:
                    _draw_anew(each.module, host)
        self.host = host
        for each in chosen:
            if options.attention != "host":
                attach_branch(each, self.branches[str(each.number)])  # type: ignore[arg-type]
        host.register_forward_pre_hook(_refuse_call, with_kwargs=True)
        self.train(host.training)

    # ---- calling

    def forward(self, input_ids: Tensor | None = None, use_cache: bool | None = None, **inputs: Any) -> Any:
        """What the host returns: `logits`, and with labels `loss`.

        Args:
            input_ids: int64 [B, N].
            use_cache: whether keys and values are returned; None: as the host's configuration says.
            inputs: what else the host takes, such as attention_mask, labels or past_key_values.

        Raises:
            ValueError: something is asked for that a torus cannot do, or more tokens than the period has.
        """
        return self.host(input_ids=input_ids, use_cache=use_cache, **inputs)

    def generate(self, *arguments: Any, **options: Any) -> Any:
        """As the host's, with a dynamic cache."""
        generate: Any = self.host.generate
        return generate(*arguments, **options)

    @property
    def config(self) -> Any:
        """The host's configuration."""
        return self.host.config

    @property
    def device(self) -> torch.device:
        """The host's."""
        return self.host.device

    def gradient_checkpointing_enable(self) -> None:
        """Recomputes activations of every block in the backward pass, also where the embeddings are frozen."""
        with warnings.catch_warnings():  # the name for both of transformers' major versions
            warnings.simplefilter("ignore", FutureWarning)
            self.host.gradient_checkpointing_enable({"use_reentrant": False})

    # ---- parts

    def attentions(self) -> dict[int, nn.Module]:
        """The chosen attention modules, projections and all, by number of layer."""
        return {number: self.host.get_submodule(name) for number, name in self.layers.items()}

    def train_only(self, what: str) -> None:
        """Freezes all but a part: 'branches', 'replaced' (these and the projections of chosen layers), or 'all'.

        Raises:
            ValueError: another word.
        """
        if what not in TRAINABLE:
            raise ValueError(f"train_only: expected one of {', '.join(TRAINABLE)}, got {what!r}")
        self.host.requires_grad_(what == "all")
        self.branches.requires_grad_(True)
        if what == "replaced":
            for module in self.attentions().values():
                module.requires_grad_(True)

    def parameter_account(self) -> ParameterAccount:
        """How many parameters are the host's, of the replaced attentions, and new."""
        return ParameterAccount(
            host=_count(self.host),
            replaced=sum(_count(module) for module in self.attentions().values()),
            branches=_count(self.branches),
            trainable=sum(each.numel() for each in self.parameters() if each.requires_grad),
        )

    def has_adapters(self) -> bool:
        """Whether low-rank adapters stand in the host's projections, see `stratcore.training.lora`."""
        return any("lora_" in name for name, _ in self.host.named_parameters())

    # ---- saving

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the host as transformers does, and beside it branches and options: toroidal_lm.safetensors, .json.

        Raises:
            ValueError: adapters that are not merged.
            OSError: the disk refuses.
        """
        if self.has_adapters():
            raise ValueError(
                "save_pretrained: expected merged adapters; call stratcore.training.lora.merge_lora"
            )
        folder = Path(folder)
        self.host.save_pretrained(folder)
        tensors = {
            name: each.detach().contiguous().cpu() for name, each in self.branches.state_dict().items()
        }
        save_file(tensors, folder / f".tmp-{WEIGHTS}", metadata={"format": "pt"})
        (folder / f".tmp-{OPTIONS}").write_text(self.options.to_json(), encoding="utf-8")
        for name in (WEIGHTS, OPTIONS):
            os.replace(folder / f".tmp-{name}", folder / name)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> ToroidalLM:
        """What `save_pretrained` wrote, in evaluation mode, every tensor of it read from the files.

        Args:
            folder: local folder.
            dtype: of the host's weights; branches keep float32.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file that does not fit; `PretrainedMismatch` where it is the host's.
        """
        folder = Path(folder)
        for name in (OPTIONS, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder / name}: no such file; expected what save_pretrained writes"
                )
        options = options_from_json((folder / OPTIONS).read_text(encoding="utf-8"), str(folder / OPTIONS))
        loader: Any = AutoModelForCausalLM
        host, report = loader.from_pretrained(
            str(folder), dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
        check_loaded(host, report, f"host {str(folder)!r}")
        model = cls(host, replace(options, projections="host"))
        model.options = options
        model._load_branches(folder / WEIGHTS)
        return model.train(False)

    def _load_branches(self, path: Path) -> None:
        try:
            saved = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: expected safetensors, {error}") from None
        own = {name: list(each.shape) for name, each in self.branches.state_dict().items()}
        there = {name: list(each.shape) for name, each in saved.items()}
        if own != there:
            odd = sorted(name for name in own.keys() | there.keys() if own.get(name) != there.get(name))[0]
            raise ValueError(f"{path}: tensor {odd!r}: expected {own.get(odd)}, got {there.get(odd)}")
        self.branches.load_state_dict(saved)


def copy_attentions(host: PreTrainedModel, layers: str | tuple[int, ...]) -> dict[int, nn.Module]:
    """Frozen copies of a host's chosen attentions by number of layer, before it becomes a `ToroidalLM`.

    Args:
        host: as `ToroidalLM` takes it.
        layers: as `ToroidalLMOptions` has them.

    Raises:
        TypeError, ValueError: as `ToroidalLM`.
    """
    found = attention_layers(host)
    numbers = layer_numbers(layers, [each.number for each in found])
    return {
        each.number: copy.deepcopy(each.module).requires_grad_(False)
        for each in found
        if each.number in numbers
    }


def turn_off_attention_dropout(host: PreTrainedModel) -> None:
    """Sets the dropout of attention weights to 0 in all layers; in place. A torus cannot drop weights.

    Raises:
        TypeError, ValueError: as `ToroidalLM`.
    """
    for each in attention_layers(host):
        for name in ("attention_dropout", "attn_dropout"):
            found: Any = getattr(each.module, name, None)
            if isinstance(found, nn.Dropout):
                found.p = 0.0
            elif isinstance(found, float):
                setattr(each.module, name, 0.0)


def _count(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def _positions(host: PreTrainedModel) -> int:
    config = host.config
    found = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if not isinstance(found, int):
        raise ValueError(
            f"torus.period: expected a number, as {type(config).__name__} does not name its positions"
        )
    return found


def _branch(layer: AttentionLayer, host: PreTrainedModel, options: ToroidalLMOptions) -> Branch:
    """The branch of one layer, at its start.

    Raises:
        ValueError: a depth or number that does not fit; names the layer.
    """
    config: Any = layer.module.config
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    device = next(layer.module.parameters()).device
    if device.type == "meta":
        raise ValueError(f"{layer.name}: expected weights on a device, got none yet (meta)")
    adaptive = bool(options.torus.adaptive_depths)
    deep = adaptive or options.torus.depth > 1
    sizes = {
        "num_heads": heads,
        "num_key_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": head_dim,
    }
    try:
        if options.attention == "fft_mixing":
            return FFTMixing(options.torus, **sizes).to(device)
        order = rotary_channel_order(layer, host, head_dim) if deep else None
        kind = AdaptiveDepthBranch if adaptive else ToroidalBranch
        return kind(options.torus, channel_order=order, **sizes).to(device)
    except ValueError as error:
        raise ValueError(f"{layer.name}: {error}") from None


@torch.no_grad()
def _draw_anew(attention: nn.Module, host: PreTrainedModel) -> None:
    """Weights of an attention as the host's architecture starts them; drawn on the CPU, whatever the device."""
    fresh = copy.deepcopy(attention).cpu().float()
    for parameter in fresh.parameters():  # transformers leaves loaded tensors alone
        parameter._is_hf_initialized = False  # type: ignore[attr-defined]
    draw: Any = host._init_weights
    fresh.apply(draw)
    for own, drawn in zip(attention.parameters(), fresh.parameters(), strict=True):
        own.copy_(drawn)


def _refuse_call(host: nn.Module, arguments: tuple, inputs: Mapping[str, Any]) -> None:
    """Forward pre-hook of a host.

    Raises:
        ValueError: a cache whose slots are not the tokens, or weights as an output.
    """
    cache = inputs.get("past_key_values")
    if cache is not None and getattr(cache, "is_compileable", False):
        raise ValueError(f"{type(host).__name__}: expected a dynamic cache, got {type(cache).__name__}")
    config: Any = host.config
    if inputs.get("output_attentions", config.output_attentions):
        refuse(host, "output_attentions")
