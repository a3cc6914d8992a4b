"""Toroidal layers of a host, saved apart from it or with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stratcore.huggingface.attention import BIAS
from stratcore.huggingface.bias import ToroidalBias
from stratcore.huggingface.settings import ATTRIBUTE, Settings, Torus, settings_from
from stratcore.huggingface.surgery import attached, head_count, install
from stratcore.models._attention_hosts import AttentionLayer, attention_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS, OPTIONS = "adapter_model.safetensors", "toroidal_attention.json"
_SUFFIX = f".{BIAS}.raw_slopes"


def save_toroidal_adapter(model: PreTrainedModel, folder: str | Path) -> None:
    """Write the slopes and options of all toroidal layers: a few kilobytes, without the host.

    Args:
        model: with toroidal attention.
        folder: made if it is not there; gets `adapter_model.safetensors` (`layers.<number>.raw_slopes`, [H] or
            [H, axes]) and `toroidal_attention.json`.

    Raises:
        ValueError: the model has no toroidal layer.
        OSError: the disk refuses.
    """
    biases = attached(attention_layers(model))
    if not biases:
        raise ValueError(f"{type(model).__name__}: has no toroidal attention to save")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"layers.{n}.raw_slopes": bias.raw_slopes.detach().cpu() for n, bias in biases.items()}
    settings = Settings(heads=head_count(model), layers={n: bias.torus for n, bias in biases.items()})
    text = json.dumps(settings.to_json(), indent=2) + "\n"
    # Whole files take their places one after the other: a reader never sees half of one.
    save_file(tensors, folder / f".tmp-{WEIGHTS}", metadata={"format": "pt"})
    (folder / f".tmp-{OPTIONS}").write_text(text, encoding="utf-8")
    for name in (WEIGHTS, OPTIONS):
        os.replace(folder / f".tmp-{name}", folder / name)


def load_toroidal_adapter(model: PreTrainedModel, folder: str | Path) -> list[int]:
    """Put saved toroidal layers into a host, fresh or with the same layers already, whose slopes are replaced.

    Args:
        model: as the one that was saved; its heads and layers are compared, and its toroidal options if it has any.
        folder: what `save_toroidal_adapter` wrote.

    Returns:
        Numbers of the layers.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file that does not fit itself, or an adapter that does not fit the model: file, key, what was
            expected and got. The model is then as before.
    """
    folder = Path(folder)
    settings = _read_options(folder / OPTIONS)
    found = attention_layers(model)
    where = str(folder / OPTIONS)
    _check_host(model, found, settings, where)
    record = getattr(model.config, ATTRIBUTE, None)
    if record is not None:
        own = settings_from(record, f"{type(model).__name__}.config", also=_RUNNING)
        _check_same(own, settings, where)
    slopes = {}
    names = {f"layers.{number}.raw_slopes": number for number in settings.layers}
    for key, tensor in _tensors(folder / WEIGHTS):
        if key not in names:
            raise ValueError(f"{folder / WEIGHTS}: unknown tensor {key!r}; {OPTIONS} has {', '.join(names)}")
        slopes[names[key]] = tensor
    _put(model, found, settings, slopes, str(folder / WEIGHTS))
    return sorted(settings.layers)


def restore_toroidal_attention(model: PreTrainedModel, folder: str | Path | None = None) -> list[int]:
    """Make toroidal again what `from_pretrained` gave: the options are in its configuration, the slopes in its files.

    Args:
        model: saved by `save_pretrained` with toroidal attention. transformers builds the plain host from it, and
            names the slopes among the weights that it did not use.
        folder: that holds its safetensors; the one that it was loaded from unless given.

    Returns:
        Numbers of the layers.

    Raises:
        FileNotFoundError: no such folder or file; a model from the hub: give the folder of its snapshot.
        ValueError: the configuration has no toroidal attention, or it does not fit the model or the files.
    """
    kind = type(model).__name__
    record = getattr(model.config, ATTRIBUTE, None)
    if record is None:
        raise ValueError(
            f"{kind}: its configuration has no {ATTRIBUTE}: it was saved without toroidal attention"
        )
    settings = settings_from(record, f"{kind}.config", also=_RUNNING)
    found = attention_layers(model)
    _check_host(model, found, settings, f"{kind}.config")
    folder = Path(str(model.name_or_path) if folder is None else folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected the one with the model's safetensors")
    chosen = {each.name: each.number for each in found if each.number in settings.layers}
    slopes = {}
    for file in _weight_files(folder):
        for key, tensor in _tensors(file, ending=_SUFFIX):
            number = _layer_of(key.removesuffix(_SUFFIX), chosen)
            if number is not None:
                slopes[number] = tensor
    _put(model, found, settings, slopes, str(folder))
    return sorted(settings.layers)


# What the configuration holds beside what is saved: how the running model dispatches.
_RUNNING = ("implementation", "mask")


def _read_options(path: Path) -> Settings:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected what save_toroidal_adapter writes")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, {error}") from None
    return settings_from(data, str(path))


def _check_host(model: PreTrainedModel, found: list[AttentionLayer], settings: Settings, where: str) -> None:
    heads, numbers = head_count(model), [each.number for each in found]
    if settings.heads != heads:
        raise ValueError(f"{where}: expected heads {heads}, as the model has, got {settings.heads}")
    for number in settings.layers:
        if number not in numbers:
            raise ValueError(f"{where}: expected layers with attention, {numbers}, got {number}")


def _check_same(own: Settings, other: Settings, where: str) -> None:
    if sorted(own.layers) != sorted(other.layers):
        raise ValueError(
            f"{where}: expected layers {sorted(own.layers)}, as the model has, got {sorted(other.layers)}"
        )
    for number, torus in own.layers.items():
        if torus != other.layers[number]:
            raise ValueError(
                f"{where}: layer {number}: expected {torus}, as the model has, got {other.layers[number]}"
            )


def _put(
    model: PreTrainedModel,
    found: list[AttentionLayer],
    settings: Settings,
    slopes: Mapping[int, Tensor],
    where: str,
) -> None:
    for number, torus in settings.layers.items():
        shape = [settings.heads, torus.axes] if torus.per_axis else [settings.heads]
        if number not in slopes:
            raise ValueError(f"{where}: expected slopes of layer {number}, got none")
        raw = slopes[number]
        if list(raw.shape) != shape or not raw.dtype.is_floating_point:
            raise ValueError(
                f"{where}: expected slopes of layer {number} as floating point {shape}, got {raw.dtype} "
                f"{list(raw.shape)}"
            )
    if not attached(found):  # else the same layers have it, and whoever trains their parameters keeps them
        start = {n: (torus, _any_slopes(settings, torus)) for n, torus in settings.layers.items()}
        install(model, found, start)
    for number, bias in attached(found).items():
        _overwrite(bias, slopes[number])


def _any_slopes(settings: Settings, torus: Torus) -> Tensor:
    """A start that every parameterization has, to be overwritten."""
    return torch.ones((settings.heads, torus.axes) if torus.per_axis else settings.heads)


@torch.no_grad()
def _overwrite(bias: ToroidalBias, raw: Tensor) -> None:
    bias.raw_slopes.copy_(raw)


def _tensors(path: Path, ending: str = "") -> Iterator[tuple[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():
                if key.endswith(ending):
                    yield key, file.get_tensor(key)
    except SafetensorError as error:
        raise ValueError(f"{path}: expected safetensors, {error}") from None


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    places: Any = None
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(f"{index}: expected JSON with weight_map") from None
    # Names only: a file elsewhere is none of the model's.
    return [
        folder / name for name in sorted({Path(place).name for key, place in places if key.endswith(_SUFFIX)})
    ]


def _layer_of(saved: str, chosen: Mapping[str, int]) -> int | None:
    """The layer of this name, though the model may have been saved with another head around it."""
    for name, number in chosen.items():
        if name == saved or name.endswith(f".{saved}") or saved.endswith(f".{name}"):
            return number
    return None
