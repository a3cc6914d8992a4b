from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

from python_tests.huggingface.hosts import host, logits, tokens
from stratcore.huggingface import (
    load_toroidal_adapter,
    restore_toroidal_attention,
    save_toroidal_adapter,
    toroidal_parameters,
    use_toroidal_attention,
)
from stratcore.huggingface.settings import ATTRIBUTE

pytestmark = pytest.mark.usefixtures("single_thread")
WEIGHTS, OPTIONS = "adapter_model.safetensors", "toroidal_attention.json"


def trained(name: str = "llama") -> Any:
    """Two tori of all options, with slopes that no start has."""
    model = host(name)
    use_toroidal_attention(
        model, layers=[0], lattice=8, parameterization="softplus", slopes="alibi", eps=2**-10
    )
    use_toroidal_attention(
        model, layers=[2], lattice=[4, 6], block=[2, 3], metric="chordal_sq", per_axis=True, first_position=5
    )
    with torch.no_grad():
        for each in toroidal_parameters(model):
            each.add_(torch.rand_like(each))
    return model


def test_round_trip(tmp_path: Path) -> None:
    model, ids = trained(), tokens()
    save_toroidal_adapter(model, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == [WEIGHTS, OPTIONS]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3000
    tensors = load_file(folder / WEIGHTS)
    assert {key: list(value.shape) for key, value in tensors.items()} == {
        "layers.0.raw_slopes": [4],
        "layers.2.raw_slopes": [4, 2],
    }
    fresh = host("llama")
    assert load_toroidal_adapter(fresh, folder) == [0, 2]
    assert torch.equal(logits(fresh, ids), logits(model, ids))
    assert all(map(torch.equal, toroidal_parameters(fresh), toroidal_parameters(model)))
    assert getattr(fresh.config, ATTRIBUTE) == getattr(model.config, ATTRIBUTE)


def test_loading_into_the_same_layers_keeps_their_parameters(tmp_path: Path) -> None:
    model = trained()
    save_toroidal_adapter(model, tmp_path)
    parameters, saved = toroidal_parameters(model), [each.clone() for each in toroidal_parameters(model)]
    with torch.no_grad():
        parameters[0].zero_()
    load_toroidal_adapter(model, tmp_path)
    assert all(a is b for a, b in zip(parameters, toroidal_parameters(model), strict=True))
    assert all(map(torch.equal, parameters, saved))


def test_saving_again_replaces(tmp_path: Path) -> None:
    save_toroidal_adapter(trained(), tmp_path)
    model = host("llama")
    use_toroidal_attention(model, layers=[1], lattice=16, parameterization="fixed", slopes="alibi")
    save_toroidal_adapter(model, tmp_path)
    fresh = host("llama")
    assert load_toroidal_adapter(fresh, tmp_path) == [1] and toroidal_parameters(fresh) == []
    assert torch.equal(logits(fresh, tokens()), logits(model, tokens()))


def test_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="LlamaForCausalLM: has no toroidal attention to save"):
        save_toroidal_adapter(host("llama"), tmp_path)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / OPTIONS
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


RING = {"lattice": [8]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 8}, "expected heads 4, as the model has, got 8"),
        ({"layers": {"7": RING}}, r"expected layers with attention, \[0, 1, 2\], got 7"),
        ({"layers": {"0": {"lattise": [8]}}}, "layer 0: unknown option 'lattise', did you mean 'lattice'"),
        ({"layer": {}}, "unknown key 'layer', did you mean 'layers'"),
        ({"schema_version": 3}, "expected schema_version 1, got 3"),
        (
            {"layers": {"0": RING}},
            r"unknown tensor 'layers.2.raw_slopes'; toroidal_attention.json has layers.0",
        ),
        (
            {"layers": {"0": RING, "1": RING, "2": RING}},
            "expected slopes of layer 1, got none",
        ),
        (
            {"layers": {"0": RING, "2": RING}},
            r"slopes of layer 2 as floating point \[4\], got torch.float32 \[4, 2\]",
        ),
    ],
)
def test_adapters_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save_toroidal_adapter(trained(), tmp_path)
    edit(tmp_path, **changes)
    model = host("llama")
    with pytest.raises(ValueError, match=message) as caught:
        load_toroidal_adapter(model, tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert not hasattr(model.config, ATTRIBUTE) and toroidal_parameters(model) == []


def test_adapters_of_another_torus(tmp_path: Path) -> None:
    save_toroidal_adapter(trained(), tmp_path)
    model = host("llama")
    use_toroidal_attention(model, layers=[0, 2], lattice=8)
    with pytest.raises(
        ValueError, match=r"layer 0: expected Torus\(lattice=\(8,\).*as the model has, got Torus"
    ):
        load_toroidal_adapter(model, tmp_path)
    use_toroidal_attention(model, layers=[1], lattice=8)
    with pytest.raises(ValueError, match=r"expected layers \[0, 1, 2\], as the model has, got \[0, 2\]"):
        load_toroidal_adapter(model, tmp_path)


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{OPTIONS}: no such file"):
        load_toroidal_adapter(host("llama"), tmp_path)
    save_toroidal_adapter(trained(), tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=f"{WEIGHTS}: expected safetensors"):
        load_toroidal_adapter(host("llama"), tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=f"{WEIGHTS}: no such file"):
        load_toroidal_adapter(host("llama"), tmp_path)
    (tmp_path / OPTIONS).write_text("{")
    with pytest.raises(ValueError, match=f"{OPTIONS}: expected JSON"):
        load_toroidal_adapter(host("llama"), tmp_path)


# ---- with the host


def saved(model: Any, folder: Path, **options: Any) -> Tensor:
    model.save_pretrained(folder, **options)
    return logits(model, tokens())


def test_save_pretrained_keeps_all(tmp_path: Path) -> None:
    expected = saved(trained(), tmp_path)
    assert (
        json.loads((tmp_path / "config.json").read_text())[ATTRIBUTE]["layers"]["2"]["metric"] == "chordal_sq"
    )
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(model, tokens()), logits(host("llama"), tokens()))
    assert restore_toroidal_attention(model) == [0, 2]
    torch.testing.assert_close(logits(model, tokens()), expected, rtol=0, atol=0)


def test_shards_and_other_heads(tmp_path: Path) -> None:
    model = trained()
    saved(model, tmp_path, max_shard_size="10KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    bare = hf.AutoModel.from_pretrained(tmp_path)
    restore_toroidal_attention(bare, tmp_path)
    assert all(map(torch.equal, toroidal_parameters(bare), toroidal_parameters(model)))
    with torch.no_grad():
        states = model.model(tokens()).last_hidden_state
        assert torch.equal(bare(tokens()).last_hidden_state, states)
    bare.save_pretrained(tmp_path / "bare")
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "bare")
    restore_toroidal_attention(model)
    with torch.no_grad():
        assert torch.equal(model.model(tokens()).last_hidden_state, states)


def test_restoring_by_the_name_of_the_implementation(tmp_path: Path) -> None:
    expected = saved(trained(), tmp_path)
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="toroidal")
    with pytest.raises(ValueError, match=r"restore_toroidal_attention\(model\) after from_pretrained"):
        model(tokens())
    restore_toroidal_attention(model)
    assert torch.equal(logits(model, tokens()), expected)


def test_what_cannot_be_restored(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it was saved without toroidal attention"):
        restore_toroidal_attention(host("llama"), tmp_path)
    saved(trained(), tmp_path)
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="elsewhere: no such folder"):
        restore_toroidal_attention(model, tmp_path / "elsewhere")
    weights = load_file(tmp_path / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "layers.2.self_attn.toroidal" not in key}
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="expected slopes of layer 2, got none"):
        restore_toroidal_attention(model)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors: no such file"):
        restore_toroidal_attention(model)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match="expected JSON with weight_map"):
        restore_toroidal_attention(model)
    assert toroidal_parameters(model) == []


def test_an_index_cannot_point_out_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    saved(trained(), folder)
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    key = "model.layers.0.self_attn.toroidal_bias.raw_slopes"
    index = {"weight_map": {key: "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    model = host("llama")
    use_toroidal_attention(model, layers=[0, 2], lattice=8)
    with pytest.raises(FileNotFoundError, match="model.safetensors: no such file"):
        restore_toroidal_attention(model, folder)
