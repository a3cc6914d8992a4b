from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from python_tests.huggingface.hosts import logits, tokens
from python_tests.training.tasks.token_cases import small_lm
from stratcore.models import ToroidalLM
from stratcore.training.lora import add_lora, merge_lora

pytestmark = pytest.mark.usefixtures("single_thread")


def test_without_peft_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    for call in (add_lora, merge_lora):
        with pytest.raises(ModuleNotFoundError, match=r"need peft: pip install 'stratcore\[peft\]'"):
            call(small_lm())


def test_adapters_start_as_nothing_and_merge_into_the_weights(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = small_lm()
    start = logits(model, tokens())
    added = add_lora(model, rank=4)
    assert added == 4 * ((32 + 32) * 2 + (32 + 16) * 2)
    assert torch.equal(logits(model, tokens()), start)
    account = model.parameter_account()
    assert account.trainable == account.branches + added
    with pytest.raises(ValueError, match="has adapters already"):
        add_lora(model)
    with pytest.raises(ValueError, match="merge"):
        model.save_pretrained(tmp_path)
    for name, each in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(each, std=0.1)
    moved = logits(model, tokens())
    assert not torch.equal(moved, start)
    merge_lora(model)
    torch.testing.assert_close(logits(model, tokens()), moved, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(ToroidalLM.from_pretrained(tmp_path), tokens()), logits(model, tokens()))


def test_a_rank_that_is_none() -> None:
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match="rank: expected at least 1, got 0"):
        add_lora(small_lm(), rank=0)
