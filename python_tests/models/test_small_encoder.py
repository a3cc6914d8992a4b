from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stratcore.models.pretrained_encoder import load_encoder
from stratcore.models.small_encoder import save_small_encoder
from stratcore.models.text_prediction import find_tokenizer

TEXTS = ["A fine film, a fine plot.", "a poor PLOT"]


def test_it_loads_as_any_encoder_and_knows_the_words(tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    folder = save_small_encoder(tmp_path / "small", TEXTS, hidden_size=16, heads=2, max_length=32)
    assert torch.equal(torch.get_rng_state(), state)
    encoder, tokenizer = load_encoder(folder), find_tokenizer(folder)
    assert encoder.config.hidden_size == 16 and encoder.config.num_hidden_layers == 2
    words = tokenizer.convert_ids_to_tokens(tokenizer("a Film, poor unheard")["input_ids"])
    assert words == ["[CLS]", "a", "film", ",", "poor", "[UNK]", "[SEP]"]
    assert tokenizer("a", "b")["token_type_ids"] == [0, 0, 0, 1, 1]
    assert len(tokenizer) == 4 + 7


def test_the_same_texts_give_the_same_encoder(tmp_path: Path) -> None:
    first, again, other = (
        save_small_encoder(tmp_path / name, texts, hidden_size=16, seed=seed)
        for name, texts, seed in (("a", TEXTS, 0), ("b", TEXTS[::-1], 0), ("c", TEXTS, 1))
    )
    for file in ("model.safetensors", "tokenizer.json"):
        assert (first / file).read_bytes() == (again / file).read_bytes()
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()
    assert (first / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()


def test_rare_words_are_left_out(tmp_path: Path) -> None:
    folder = save_small_encoder(tmp_path, TEXTS, hidden_size=16, max_words=2)
    assert find_tokenizer(folder).convert_ids_to_tokens([4, 5]) == ["a", "fine"]


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="heads: expected a number that divides 16, got 3"):
        save_small_encoder(tmp_path, TEXTS, hidden_size=16, heads=3)
    with pytest.raises(ValueError, match="texts: expected at least one word, got none"):
        save_small_encoder(tmp_path, [" "])
