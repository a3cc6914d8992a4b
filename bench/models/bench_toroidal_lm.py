"""Training and generation of a language model with toroidal layers against the same model with SDPA, in one run.

    python -m bench.models.bench_toroidal_lm --device cuda --cases table --out FILE.jsonl

`train`: a step of the Trainer, all weights, bfloat16 autocast on a GPU. `prefill`: logits of a prompt. `decode`:
one token for every row behind a prompt, with a dynamic cache; the weights of both are bfloat16 on a GPU. `host` has
its own attention in all layers, `open` a torus in its place in the chosen ones, `gated` a torus beside it, which
computes both; with `_graph` the training step is a CUDA graph. Weights are random, as they change no time. Gate:
logits with lambda 0 against the host's in float32, where a torus computes the host's function.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from bench import runner
from bench.harness import Call, Job, Recorder, Tolerance, check
from stratcore.layers import ToroidalBranchOptions
from stratcore.models import ToroidalLM, ToroidalLMOptions
from stratcore.training import Numerics, OptimizerOptions, Runtime, Stage
from stratcore.training.batch_stream import BatchStream
from stratcore.training.optimization import Optimization
from stratcore.training.tasks import LanguageModelingTask

MODES = ("train", "prefill", "decode")
KINDS = ("host", "open", "gated")
PROVIDERS = (*KINDS, *(f"{kind}_graph" for kind in KINDS))
SAMPLE = 64
SMOL = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
}
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 512,
}


@dataclass(frozen=True)
class Case:
    """A host, its toroidal layers, and the sizes of what it reads.

    Args:
        rows: of a training step, and of prompts.
        length: tokens of a training row, and of a prompt.
    """

    name: str
    group: str
    host: dict[str, int]
    layers: str | tuple[int, ...]
    rows: int
    length: int

    @cached_property
    def config(self) -> LlamaConfig:
        """The host's."""
        return LlamaConfig(**self.host, tie_word_embeddings=True)

    def parameters(self) -> int:
        """Of the host."""
        with torch.device("meta"):
            return sum(p.numel() for p in AutoModelForCausalLM.from_config(self.config).parameters())

    def job(self, mode: str) -> Job:
        """Products with weights and of attention, and the least that is moved."""
        host, tokens = self.host, self.rows * (1 if mode == "decode" else self.length)
        parameters = self.parameters()
        seen = self.length if mode == "decode" else self.length / 2
        attention = 4 * host["num_hidden_layers"] * host["hidden_size"] * seen
        passes = 3 if mode == "train" else 1
        head_dim = host["hidden_size"] // host["num_attention_heads"]
        cache = (
            4 * host["num_hidden_layers"] * host["num_key_value_heads"] * head_dim * self.length * self.rows
        )
        moved = 28 * parameters if mode == "train" else 2 * parameters + (cache if mode == "decode" else 0)
        chosen = "all" if self.layers == "all" else ",".join(map(str, self.layers))
        shapes = {"rows": self.rows, "length": self.length, "parameters": parameters, "layers": chosen}
        dtype = torch.float32 if self.group == "small" else torch.bfloat16
        return Job(
            "toroidal_lm",
            self.name,
            mode,
            shapes,
            dtype,
            passes * tokens * (2 * parameters + attention),
            moved,
        )


CASES = (
    Case("smollm2_all", "table", SMOL, "all", 16, 1024),
    Case("smollm2_two", "table", SMOL, (0, 15), 16, 1024),
    Case("tiny", "small", TINY, "all", 2, 16),
)


class Problem:
    """A case on a device."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        torch.manual_seed(0)
        self.host = AutoModelForCausalLM.from_config(case.config).eval()
        draws = np.random.default_rng(0)
        self.rows = draws.integers(0, case.host["vocab_size"], (4 * case.rows, case.length))
        self.prompts = torch.from_numpy(self.rows[: case.rows]).to(device)
        self.half = torch.bfloat16 if device.type == "cuda" else torch.float32

    def model(self, kind: str, dtype: torch.dtype) -> nn.Module:
        """The host, or a copy of it with toroidal layers, on the device."""
        host: Any = copy.deepcopy(self.host).to(dtype)
        if kind != "host":
            torus = ToroidalBranchOptions(gate="open" if kind == "open" else "zero")
            host = ToroidalLM(host, ToroidalLMOptions(layers=self.case.layers, torus=torus))
        return host.to(self.device)  # type: ignore[no-any-return]

    def train(self, kind: str, *, graph: bool) -> tuple[Call, nn.Module]:
        """A step of the Trainer, and its model."""
        case, model = self.case, self.model(kind, torch.float32).train()
        runtime = Runtime.create("cuda" if self.device.type == "cuda" else "cpu")
        task = LanguageModelingTask(model, self.rows, self.rows[:1], runtime, batch_size=case.rows, seed=0)
        precision = "bf16" if self.device.type == "cuda" else "fp32"
        stage = Stage(
            steps=1_000_000,
            optimizer=OptimizerOptions(lr=1e-5, clip_norm=1.0),
            numerics=Numerics(precision=precision, deterministic=False, cuda_graph=graph),  # type: ignore[arg-type]
        )
        optimization, stream = Optimization(task, stage, runtime), BatchStream(task)
        return (lambda: optimization.run(stream, 0)), model

    def prefill(self, model: nn.Module) -> Call:
        """Logits of the prompts' last tokens."""

        @torch.inference_mode()
        def step() -> Tensor:
            return model(input_ids=self.prompts, use_cache=False, logits_to_keep=1).logits  # type: ignore[no-any-return]

        return step

    def decode(self, model: nn.Module, rows: int | None = None, length: int | None = None) -> Call:
        """Logits of one more token a row behind the prompts; the cache is cut back to these."""
        prompts = self.prompts[:rows, :length]
        cache, token = DynamicCache(), prompts[:, :1]
        with torch.inference_mode():
            model(input_ids=prompts, past_key_values=cache, use_cache=True, logits_to_keep=1)

        @torch.inference_mode()
        def step() -> Tensor:
            logits = model(input_ids=token, past_key_values=cache, use_cache=True).logits
            cache.crop(-1)
            return logits  # type: ignore[no-any-return]

        return step

    def logits(self, model: nn.Module, mode: str) -> Tensor:
        """What the gate compares, float32 [rows, 1 or tokens, V]: with lambda 0, and the gate, if any, open."""
        model.eval()
        with as_host(model), torch.inference_mode():
            if mode == "decode":
                return self.decode(model, 2, SAMPLE)().float()
            whole = torch.autocast(self.device.type, torch.bfloat16, enabled=self.half == torch.bfloat16)
            with whole:
                return model(input_ids=self.prompts[:2, :SAMPLE], use_cache=False).logits.float()  # type: ignore[no-any-return]

    @cached_property
    def exact(self) -> dict[str, Tensor]:
        """The host's logits in float32."""
        model = self.model("host", torch.float32)
        with torch.inference_mode():
            ids = self.prompts[:2, :SAMPLE]
            whole = model(input_ids=ids, use_cache=False).logits
            more = model(input_ids=torch.cat([ids, ids[:, :1]], 1), use_cache=False).logits[:, -1:]
        return {"train": whole, "prefill": whole, "decode": more}


@contextmanager
def as_host(model: nn.Module) -> Iterator[None]:
    """Lambda 0 and gates wide open, under which a model computes the host's function through the torus."""
    parts = [
        (part, value)
        for name, part in model.named_parameters()
        for value in [0.0 if name.endswith("lambda_distance") else 10.0]
        if name.startswith("branches.") and name.endswith(("lambda_distance", "gate"))
    ]
    kept = [part.detach().clone() for part, _ in parts]
    with torch.no_grad():
        for part, value in parts:
            part.fill_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for (part, _), own in zip(parts, kept, strict=True):
                part.copy_(own)


def run_case(case: Case, recorder: Recorder, options: argparse.Namespace) -> None:
    """All modes and providers of a case."""
    problem = Problem(case, recorder.device)
    for mode in options.modes:
        for name in PROVIDERS:
            graph, kind = name.endswith("_graph"), name.removesuffix("_graph")
            wanted = not options.providers or name in options.providers
            if not wanted or (graph and (mode != "train" or recorder.device.type != "cuda")):
                continue
            with runner.may_be_missing(case.name, mode, name, options):
                record(problem, mode, name, kind, graph, recorder)
            if recorder.device.type == "cuda":
                torch.cuda.empty_cache()


def record(problem: Problem, mode: str, name: str, kind: str, graph: bool, recorder: Recorder) -> None:
    """One row, its gate first."""
    call: Callable[[], Any]
    if mode == "train":
        call, model = problem.train(kind, graph=graph)
    else:
        model = problem.model(kind, problem.half).eval()
        call = problem.prefill(model) if mode == "prefill" else problem.decode(model)
    gate = check(
        [problem.logits(model, mode)], [problem.exact[mode]], None, Tolerance(floor=0.05, coarse=0.05)
    )
    model.train(mode == "train")
    row = recorder.record(problem.case.job(mode), name, call, gate)
    runner.report(row, wall=True)
    if row["gate"]:
        case = problem.case
        tokens = case.rows * (1 if mode == "decode" else case.length)
        print(f"  {1e3 * tokens / row['wall_ms']:,.0f} tokens a second", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Entry point."""
    module = "bench.models.bench_toroidal_lm"
    parser = runner.argument_parser(module, "table, small or names of cases", modes=MODES)
    options = runner.parse_known(parser, arguments, cases=runner.names_of(CASES), providers=PROVIDERS)
    runner.run_cases(options, CASES, run_case)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
