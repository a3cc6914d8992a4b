"""A language model whose tokens lie on several ranks is the model on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from python_tests.huggingface.hosts import host
from python_tests.models.context_parallel_lm_cases import CASES, LENGTH, compare, model_of, token_ids
from stratcore.layers import SequenceShards, ToroidalBranchOptions
from stratcore.models import ToroidalLM, ToroidalLMOptions
from stratcore.models.context_parallel_lm import context_parallel, context_parallel_logits

Found = list[dict[str, dict[str, float]]]


@pytest.fixture(
    scope="module",
    params=[
        (2, "cpu"),
        pytest.param((3, "cpu"), marks=pytest.mark.slow),
        pytest.param((2, "cuda"), marks=pytest.mark.cuda),
    ],
    ids=lambda param: f"{param[0]} ranks, {param[1]}",
)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    ranks, device = request.param
    if device == "cuda" and torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    done = subprocess.run(
        [*command, "-m", "python_tests.models.context_parallel_lm_cases", str(folder), device],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.parametrize("method", ["ring", "all_gather"])
@pytest.mark.parametrize(("name", "form"), CASES)
def test_ranks_find_the_logits_and_the_loss_of_one(
    found: Found, name: str, form: str | None, method: str
) -> None:
    for rank in found:
        own = rank[f"{name} {form} {method}"]
        assert own["logits"] <= 1e-5 and own["nll"] <= 1e-5, own
        assert own["scored"] == 0 and own["left_as_it_was"]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_one_process_is_the_model_itself(name: str, form: str | None) -> None:
    own = compare(name, form, "cpu", "ring")
    assert own["logits"] <= 1e-5 and own["nll"] <= 1e-5 and own["scored"] == 0


def refused(model: Any, words: str, length: int = LENGTH, **inputs: Any) -> None:
    with pytest.raises(ValueError, match=words), context_parallel(model, SequenceShards(length=length)):
        model(input_ids=token_ids(length), use_cache=False, **inputs)


def test_what_a_shard_cannot_honour_is_refused() -> None:
    padding = {"attention_mask": torch.tensor([[0] * 3 + [1] * (LENGTH - 3), [1] * LENGTH])}
    refused(host("llama"), "expected plain causal attention, got a mask", **padding)
    refused(model_of("llama", "gated"), "expected neither mask nor window across ranks", **padding)
    refused(host("mistral"), "expected plain causal attention, got a")
    options = ToroidalLMOptions(layers=(0,), torus=ToroidalBranchOptions(window=4))
    refused(ToroidalLM(host("llama"), options), "context_parallel: expected no torus.window, got 4")
    short = ToroidalLMOptions(layers=(0,), torus=ToroidalBranchOptions(period=30))
    refused(
        ToroidalLM(host("llama"), short), "expected at most 30 tokens, the period of the torus, got 37; build"
    )
    mixing = ToroidalLMOptions(layers=(0,), attention="fft_mixing", torus=ToroidalBranchOptions(gate="open"))
    refused(ToroidalLM(host("llama"), mixing), "expected attention, got FFT mixing")
    with pytest.raises(ValueError, match=r"ids: expected \[B, 40\], got \[2, 37\]"):
        context_parallel_logits(host("llama"), token_ids(), SequenceShards(length=40))


def test_a_model_is_as_it_was_behind_an_error() -> None:
    model, ids = model_of("llama", "gated"), token_ids()
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        refused(model, "neither mask nor window", attention_mask=torch.zeros(2, LENGTH).long())
        assert torch.equal(model(input_ids=ids, use_cache=False).logits, expected)
