from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from python_tests.huggingface.hosts import host
from python_tests.training.tasks.token_cases import token_rows
from stratcore.models.graph_capture import unasked, with_own_caches


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a CUDA graph were being captured, in which the host must not ask the device for anything."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: True)

    def look(*_: object) -> None:
        raise AssertionError("the device is asked whether rows are packed")

    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", look)


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral", "phi", "phi3", "gpt2", "gpt_neox"])
def test_a_model_in_a_graph_asks_for_nothing_and_computes_its_bits(
    name: str, request: pytest.FixtureRequest
) -> None:
    model = host(name)
    ids = torch.from_numpy(token_rows(3, 9))
    assert unasked() == {}
    expected = model(input_ids=ids, use_cache=False).logits
    request.getfixturevalue("capturing")
    assert torch.equal(model(input_ids=ids, use_cache=False, **unasked()).logits, expected)


def test_a_cache_that_was_written_to_is_replaced() -> None:
    used = DynamicCache()
    used.update(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4), 0)
    found = with_own_caches({"past_key_values": used, "scaling": 0.5, "mask": None})
    assert found["past_key_values"].get_seq_length() == 0 and used.get_seq_length() == 2
    assert (found["scaling"], found["mask"]) == (0.5, None)
