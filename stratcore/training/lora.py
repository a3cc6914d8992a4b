"""Low-rank adapters in the projections of replaced attentions, by the optional package peft."""

from __future__ import annotations

from typing import Any

from torch import nn

from stratcore.models.toroidal_lm import ToroidalLM


def add_lora(model: ToroidalLM, *, rank: int = 8, alpha: float = 16.0) -> int:
    """Freezes the host and puts adapters on every projection of the chosen attentions; branches stay trainable.

        W' = W + alpha / rank B A,    B = 0 at the start: the model's outputs are bitwise what they were

    Args:
        model: is changed.
        rank: rows of A.
        alpha: weight of the adapters.

    Returns:
        Number of new parameters.

    Raises:
        ModuleNotFoundError: peft is not installed.
        ValueError: a rank below 1, or adapters that are there already.
    """
    peft = _peft()
    if rank < 1:
        raise ValueError(f"rank: expected at least 1, got {rank}")
    if model.has_adapters():
        raise ValueError("add_lora: the model has adapters already")
    targets = [
        f"{place}.{name}"
        for place, attention in zip(model.layers.values(), model.attentions().values(), strict=True)
        for name, module in attention.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2
    ]
    before = sum(each.numel() for each in model.parameters())
    model.train_only("branches")
    conv = any(type(model.host.get_submodule(name)).__name__ == "Conv1D" for name in targets)
    options = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, fan_in_fan_out=conv)
    peft.inject_adapter_in_model(options, model.host)
    return sum(each.numel() for each in model.parameters()) - before


def merge_lora(model: ToroidalLM) -> None:
    """Adds the adapters to the weights that they adapt and takes them out; then the model can be saved.

    Raises:
        ModuleNotFoundError: peft is not installed.
    """
    _peft()
    from peft.tuners.lora import LoraLayer

    adapted = [(name, module) for name, module in model.host.named_modules() if isinstance(module, LoraLayer)]
    for name, module in adapted:
        layer: Any = module
        layer.merge(safe_merge=True)
        parent, _, own = name.rpartition(".")
        place: nn.Module = model.host.get_submodule(parent)
        setattr(place, own, layer.get_base_layer())


def _peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        message = "adapters of low rank need peft: pip install 'stratcore[peft]'"
        raise ModuleNotFoundError(message, name=error.name) from error
    return peft
