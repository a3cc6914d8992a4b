"""The artefacts in the numbers of the toroidal language model of the source documents.

Legend: B batch, N tokens, C channels, H heads, D depth (slices of a head), E channels of a slice.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from python_tests.huggingface.hosts import host, logits, tokens
from stratcore.data import PerplexityOptions, text_perplexity
from stratcore.layers import ToroidalBranchOptions
from stratcore.models import ToroidalLM, ToroidalLMOptions
from stratcore.training import OptimizerOptions, Runtime, Stage, Trainer
from stratcore.training.tasks import LanguageModelingTask, next_token_loss

pytestmark = pytest.mark.usefixtures("single_thread")


def walks(rows: int, length: int = 16, seed: int = 0) -> np.ndarray:
    """[rows, N]: two walks around 20 tokens, token by token in turn, so that two back must be looked at."""
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 20, (rows, 2))
    step = np.arange(length) // 2 + (rng.random((rows, length)) < 0.1)
    return (start[:, np.arange(length) % 2] + step) % 20 + 1


def loss_of(model: nn.Module, ids: Tensor) -> float:
    """Nats a token by our rule."""
    with torch.no_grad():
        total, count = next_token_loss(model, ids)
    return float(total) / count


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A Phi of three layers that has learned these walks."""
    model = host("phi", initializer_range=0.1)
    task = LanguageModelingTask(
        model, walks(400), walks(20, seed=1), Runtime.create("cpu"), batch_size=20, seed=0
    )
    stage = Stage(steps=200, optimizer=OptimizerOptions(lr=1e-2, schedule="cosine"))
    found = Trainer(task, stage, Runtime.create("cpu"), tmp_path_factory.mktemp("phi")).fit().metrics
    assert found["perplexity"] < 4, found
    return model.eval()


# ---- B1: "baseline perplexity 654.63" scores the pads, and weighs rows instead of tokens


class Numbers:
    """A tokenizer of numbers, with its end token as its pad."""

    pad_token_id = eos_token_id = 0
    model_max_length = 128

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}


def source_baseline(model: nn.Module, rows: list[list[int]], length: int) -> float:
    """Every line padded on the right with the end token, labels the inputs, mean of the means of rows."""
    losses = []
    for row in rows:
        ids = torch.tensor([row + [0] * (length - len(row))])
        with torch.no_grad():
            losses.append(float(model(input_ids=ids, labels=ids).loss))
    return math.exp(float(np.mean(losses)))


def test_b1_scored_pads(trained: Any) -> None:
    rows = [list(map(int, row[: 4 + i])) for i, row in enumerate(walks(12, seed=4))]
    source = [source_baseline(trained, rows, length) for length in (16, 32, 64)]
    assert min(b / a for a, b in zip(source, source[1:], strict=False)) > 1.2, source

    texts = [" ".join(map(str, row)) for row in rows]
    ours = [
        text_perplexity(trained, texts, Numbers(), PerplexityOptions(tokens_per_batch=size)).overall()
        for size in (10, 40, 640)  # rows by themselves, few together, all of them padded to the longest
    ]
    exact = copy.deepcopy(trained).double()
    sums = [loss_of(exact, torch.tensor([row])) * (len(row) - 1) for row in rows]
    expected = math.exp(sum(sums) / sum(len(row) - 1 for row in rows))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    assert source[0] > 1.5 * expected


# ---- B2: "toroidal 1685 against 654" compares the next token but one with the next


def source_metric(model: nn.Module, ids: Tensor) -> float:
    """Labels shifted by hand, then by transformers again."""
    shifted = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], 1)
    with torch.no_grad():
        return float(model(input_ids=ids, labels=shifted).loss)


def test_b2_labels_shifted_twice(trained: Any) -> None:
    ids = torch.from_numpy(walks(8, seed=2))
    scores = logits(trained, ids)
    after_next = cross_entropy(scores[:, :-2].flatten(0, 1), ids[:, 2:].flatten())
    following = cross_entropy(scores[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert source_metric(trained, ids) == pytest.approx(float(after_next), rel=1e-5)
    assert loss_of(trained, ids) == pytest.approx(float(following), rel=1e-5)
    assert source_metric(trained, ids) > loss_of(trained, ids) + 1


# ---- B3, B4, B5: the replaced layer sees the future, hangs on the length, and starts at random


class SourceAttention(nn.Module):
    """A layer as the source documents put it into Phi: weights copied without biases, all channels rotary.

    The slices of all tokens attend to each other, angles and distances go by the present length, and the mask of
    transformers, of 4 dimensions, matches no branch. `honest_mask` plants one that does.
    """

    def __init__(
        self, original: Any, depth: int = 2, strength: float = 0.1, honest_mask: bool = False
    ) -> None:
        super().__init__()
        self.layer_idx, self.config = original.layer_idx, original.config
        self.heads, self.depth, self.strength, self.honest = 4, depth, strength, honest_mask
        pairs = (
            (original.q_proj, "q"),
            (original.k_proj, "k"),
            (original.v_proj, "v"),
            (original.dense, "o"),
        )
        for linear, name in pairs:
            fresh = nn.Linear(linear.in_features, linear.out_features)
            fresh.weight.data.copy_(linear.weight.data)
            nn.init.zeros_(fresh.bias)
            setattr(self, name, fresh)
        rank = max(1, depth // 4)
        u, v = (nn.init.orthogonal_(torch.empty(depth, rank)) for _ in range(2))
        self.omega = nn.Parameter(u @ v.mT / rank**0.5)

    def forward(self, hidden_states: Tensor, **inputs: Any) -> tuple[Tensor, None]:
        batch, length, width = hidden_states.shape
        q, k, v = (self._slices(part(hidden_states)) for part in (self.q, self.k, self.v))
        q, k = self._turn(q, length), self._turn(k, length)
        place, level = (
            torch.arange(length * self.depth) // self.depth,
            torch.arange(length * self.depth) % self.depth,
        )
        steps = (place[:, None] - place).abs()
        distance = torch.minimum(steps, length - steps) / length + (level[:, None] - level).abs() / self.depth
        scores = q @ k.mT / q.shape[-1] ** 0.5 - self.strength * distance
        mask = inputs.get("attention_mask")
        assert mask is None or mask.ndim == 4  # which the source documents' code passes over
        if self.honest:
            scores = scores.masked_fill(place[:, None] < place, -torch.inf)
        out = (scores.softmax(-1) @ v).unflatten(2, (length, self.depth))  # [B, H, N, D, E]
        mixed = torch.einsum("bhnde,dk->bnkhe", out, self.omega)
        return self.o(mixed.reshape(batch, length, width)), None

    def _slices(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.depth, -1)).transpose(1, 2).flatten(2, 3)

    def _turn(self, x: Tensor, length: int) -> Tensor:
        half = x.shape[-1] // 2
        angle = torch.arange(length * self.depth)[:, None] // self.depth * (2 * math.pi / length)
        angle = angle * 10000.0 ** (-torch.arange(half) / half)
        first, second = x.chunk(2, -1)
        cosine, sine = angle.cos(), angle.sin()
        return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1)


def as_in_the_source(model: Any, layers: tuple[int, ...] = (0,), **options: Any) -> Any:
    torch.manual_seed(0)
    changed = copy.deepcopy(model)
    for number in layers:
        block = changed.model.layers[number]
        block.self_attn = SourceAttention(block.self_attn, **options).eval()
    return changed


def as_ours(model: Any, layers: tuple[int, ...] = (0,), gate: str = "open", **torus: Any) -> ToroidalLM:
    form = {"lambda_distance": 0.1, "depth": 2, "depth_attention": "coupled", "gate": gate, **torus}
    return ToroidalLM(
        copy.deepcopy(model), ToroidalLMOptions(layers=layers, torus=ToroidalBranchOptions(**form))
    )


def future_leak(model: Any) -> float:
    """Largest change of logits in front of tokens that change."""
    ids, other = tokens(), tokens()
    other[:, 7:] = tokens(seed=2)[:, 7:]
    return float((logits(model, ids)[:, :7] - logits(model, other)[:, :7]).abs().max())


def prefix_error(model: Any) -> float:
    """Largest change of logits when tokens follow."""
    ids = tokens()
    return float((logits(model, ids)[:, :7] - logits(model, ids[:, :7])).abs().max())


def test_b3_the_replaced_layer_sees_the_future(trained: Any) -> None:
    source = as_in_the_source(trained)
    assert future_leak(source) > 0.05
    ids, triangle = tokens(), torch.ones(1, 1, 12, 12).tril().bool()
    assert torch.equal(
        logits(source, ids), logits(source, ids, attention_mask=triangle.expand(2, -1, -1, -1))
    )
    assert future_leak(as_in_the_source(trained, honest_mask=True)) == 0
    for depth in (1, 2, 4):
        for gate in ("open", "zero"):
            assert future_leak(as_ours(trained, depth=depth, gate=gate)) == 0


def test_b3_fft_mixing_foresees_tokens_that_nothing_can_foresee(tmp_path: Path) -> None:
    """Tokens drawn evenly from 20 cost ln 20 nats each; the origin's FFT path reads them off and pays nothing."""

    def rows(count: int, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(1, 21, (count, 16))

    found = {}
    for attention in ("host", "fft_mixing"):
        torus = ToroidalBranchOptions(gate="open", lambda_distance=0.1)
        options = ToroidalLMOptions(layers=(0,), attention=attention, torus=torus)
        model = ToroidalLM(host("phi", initializer_range=0.1), options)
        model.train_only("all")
        task = LanguageModelingTask(
            model, rows(400, 0), rows(100, 1), Runtime.create("cpu"), batch_size=20, seed=0
        )
        stage = Stage(steps=300, optimizer=OptimizerOptions(lr=1e-2, schedule="cosine", clip_norm=1.0))
        found[attention] = (
            Trainer(task, stage, Runtime.create("cpu"), tmp_path / attention).fit().metrics["nll"]
        )
    assert found["host"] > math.log(20) and found["fft_mixing"] < 0.1


def test_b4_the_present_length_as_period(trained: Any) -> None:
    for strength in (0.0, 0.1):  # without distances the angles still go by the length
        assert prefix_error(as_in_the_source(trained, honest_mask=True, strength=strength)) > 0.01
        assert prefix_error(as_ours(trained, lambda_distance=strength)) <= 1e-5
    with pytest.raises(ValueError, match="expected at most 8 tokens, the period of the torus, got 12"):
        logits(as_ours(trained, period=8), tokens())


def test_b5_a_start_away_from_the_host(trained: Any) -> None:
    ids = torch.from_numpy(walks(40, seed=3))
    start = math.exp(loss_of(trained, ids))
    honest = {"honest_mask": True}  # lest the future help to foresee it
    one, three = (
        math.exp(loss_of(as_in_the_source(trained, layers, **honest), ids)) for layers in ((0,), (0, 1, 2))
    )
    assert one > 1.1 * start and three > 1.1 * one, (start, one, three)
    # One slice and no distance do not make it the host: biases and rotary embedding are still others.
    bare = as_in_the_source(trained, depth=1, strength=0.0, honest_mask=True)
    assert math.exp(loss_of(bare, ids)) > 1.02 * start
    for layers in ((0,), (0, 1, 2)):
        for depth in (1, 2, 4):
            assert math.exp(loss_of(as_ours(trained, layers, "zero", depth=depth), ids)) == start
