"""Encoders are loaded whole or refused (artefact A1), and read alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from python_tests.models.stratified_classifier_cases import CONFIGS, ENCODERS, SIZES, encoder
from stratcore.models import PretrainedMismatch, StratifiedClassifier, load_encoder
from stratcore.models.pretrained_encoder import check_encoder, counted_positions, drop_pooler, is_causal, pool


def saved(name: str, folder: Path) -> Path:
    encoder(name).save_pretrained(folder)
    return folder


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, rename: dict[str, str | None]) -> None:
    """Renames the beginnings of keys; None drops them."""
    tensors = load_file(folder / "model.safetensors")
    for old, new in rename.items():
        for key in [key for key in tensors if key.startswith(old)]:
            value = tensors.pop(key)
            if new is not None:
                tensors[new + key.removeprefix(old)] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", ENCODERS)
def test_a_saved_encoder_is_loaded_bitwise(name: str, tmp_path: Path) -> None:
    loaded = load_encoder(saved(name, tmp_path))
    expected = encoder(name).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    assert not loaded.training


def test_a_missing_pooler_is_not_worth_a_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = saved("bert", tmp_path)
    change_weights(folder, {"pooler.": None})
    capfd.readouterr()
    load_encoder(folder)
    assert "MISSING" not in capfd.readouterr().err


def test_the_hub_path_of_distilbert(tmp_path: Path) -> None:
    model = StratifiedClassifier.from_encoder(str(saved("distilbert", tmp_path)), variant="plain")
    expected = encoder("distilbert").state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.encoder.state_dict().items())


# ---- A1: the published experiment loaded DistilBERT's weights into a BertModel


def test_distilbert_into_bert_is_refused(tmp_path: Path) -> None:
    folder = saved("distilbert", tmp_path)
    message = (
        r"^encoder '.*' is no BertModel: \d+ of its tensors are not in the weights, such as"
        r" 'embeddings.token_type_embeddings.weight', 'encoder.layer.0"
    )
    with pytest.raises(PretrainedMismatch, match=message) as raised:
        load_encoder(folder, encoder_class=hf.BertModel)
    assert "\n" not in str(raised.value)
    change_config(folder, **hf.BertConfig(**SIZES).to_dict())
    with pytest.raises(PretrainedMismatch, match="is no BertModel: "):
        StratifiedClassifier.from_encoder(folder)


def test_a_wrong_prefix_is_refused(tmp_path: Path) -> None:
    folder = saved("distilbert", tmp_path)
    change_weights(folder, {"transformer.": "student.transformer."})
    with pytest.raises(
        PretrainedMismatch, match="32 of its tensors are not in the weights, such as 'transformer.layer.0"
    ):
        load_encoder(folder)


def test_another_shape_is_refused(tmp_path: Path) -> None:
    folder = saved("bert", tmp_path)
    change_config(folder, vocab_size=65)
    with pytest.raises(
        PretrainedMismatch, match="1 have another shape there, such as 'embeddings.word_embeddings.weight'"
    ):
        load_encoder(folder)


@pytest.mark.parametrize(
    ("name", "key"), [("distilbert", "n_layers"), ("bert", "num_hidden_layers"), ("gpt2", "n_layer")]
)
def test_layers_that_would_be_left_out_are_refused(name: str, key: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path)
    change_config(folder, **{key: 1})
    with pytest.raises(
        PretrainedMismatch, match=r"tensors of the weights have no place in it, such as '\S*\.1\."
    ):
        load_encoder(folder)


def test_heads_poolers_and_old_constants_are_no_mismatch(tmp_path: Path) -> None:
    head = hf.AutoModelForMaskedLM.from_config(CONFIGS["distilbert"]())
    head.save_pretrained(tmp_path / "head")
    loaded = load_encoder(tmp_path / "head")
    assert torch.equal(
        loaded.embeddings.word_embeddings.weight, head.distilbert.embeddings.word_embeddings.weight
    )
    folder = saved("bert", tmp_path / "bert")
    change_weights(folder, {"pooler.": None})
    load_encoder(folder)
    tensors = load_file(folder / "model.safetensors") | {"embeddings.position_ids": torch.arange(160)[None]}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    load_encoder(folder)


def test_a_classifier_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    StratifiedClassifier.from_encoder(encoder("distilbert")).save_pretrained(tmp_path)
    change_weights(tmp_path, {"block.gate.": None})
    message = (
        r"^classifier '.*' is no StratifiedClassifier: 1 of its tensors .*, such as 'block.gate.weight'$"
    )
    with pytest.raises(PretrainedMismatch, match=message):
        StratifiedClassifier.from_pretrained(tmp_path)
    change_weights(tmp_path, {"classifier.": "head."})
    with pytest.raises(PretrainedMismatch, match="3 of its tensors"):
        StratifiedClassifier.from_pretrained(tmp_path)


def test_no_folder_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        load_encoder(tmp_path / "nothing")


# ---- reading


def test_which_encoders_are_causal() -> None:
    assert {name: is_causal(CONFIGS[name]()) for name in ENCODERS} == {
        "distilbert": False,
        "bert": False,
        "roberta": False,
        "gpt2": True,
    }
    assert is_causal(hf.LlamaConfig()) and is_causal(hf.BertConfig(is_decoder=True))
    assert not is_causal(hf.ElectraConfig()) and not is_causal(hf.MPNetConfig())


def test_pooling() -> None:
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    hidden[0, 2] = hidden[1, 0] = float("nan")
    mask = torch.tensor([[True, True, False], [False, True, True]])
    assert pool(hidden, mask, "mean").tolist() == [[1.0, 2.0], [9.0, 10.0]]
    assert pool(hidden, mask, "cls").tolist() == [[0.0, 1.0], [8.0, 9.0]]
    assert pool(hidden, mask, "last").tolist() == [[2.0, 3.0], [10.0, 11.0]]
    nothing = torch.zeros_like(mask)
    assert all(not pool(hidden, nothing, kind).any() for kind in ("mean", "cls", "last"))
    whole = torch.arange(12.0).reshape(2, 3, 2)
    for kind in ("mean", "cls", "last"):
        assert pool(whole, None, kind).equal(pool(whole, torch.ones(2, 3, dtype=torch.bool), kind))


def test_positions_are_counted_from_the_first_real_token() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]).bool()
    expected = [[0, 0, 0, 1], [0, 1, 2, 2]]
    for name in ("distilbert", "bert", "gpt2"):
        assert counted_positions(CONFIGS[name](), mask).tolist() == expected
        assert counted_positions(CONFIGS[name](), None) is None
    assert counted_positions(CONFIGS["roberta"](), mask) is None


def test_poolers_are_taken_out() -> None:
    model = hf.BertModel(CONFIGS["bert"]())
    drop_pooler(model)
    assert model.pooler is None and not any("pooler" in name for name, _ in model.named_parameters())
    assert StratifiedClassifier.from_encoder(encoder("bert")).encoder.pooler is None
    assert encoder("bert").pooler is not None


def test_encoder_decoders_are_refused() -> None:
    config = hf.BartConfig(
        vocab_size=8,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=1,
        decoder_attention_heads=1,
    )
    with pytest.raises(ValueError, match="expected an encoder or a decoder alone, got BartModel"):
        check_encoder(hf.BartModel(config))
