"""Training throughput of the dual-stream vision transformer against timm's of equal FLOPs, in one run.

    python -m bench.models.bench_dual_stream_vit --device cuda --cases table --out FILE.jsonl

Ours is a whole step of the Trainer: random views, mixing, all terms of the loss, guard, clipping, optimizer, average,
metrics. A step of timm's is what a user would write at the least: forward, cross-entropy, backward and fused AdamW on
ready images. Both in bfloat16 autocast: eager, through torch.compile, each also as a CUDA graph.
timm's transformer has the same images and patches, and the width and depth whose counted FLOPs are nearest. Gate:
embeddings of images at the start against eager float32.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from bench import runner
from bench.harness import Call, Job, Recorder, Tolerance, check
from stratcore.data import ImageTable
from stratcore.recipes import RECIPES, DualStreamViTRun
from stratcore.recipes.dual_stream_vit_run import build, task_of
from stratcore.training import Runtime
from stratcore.training.batch_stream import BatchStream
from stratcore.training.optimization import Optimization
from stratcore.training.step_graph import CapturedStep

PROVIDERS = tuple(
    f"{whose}{how}" for whose in ("timm", "stratcore") for how in ("", "_compile", "_graph", "_compile_graph")
)
SAMPLE, SPARE = 64, 64
HEAD_DIMS, DEPTHS = (64, 32), range(6, 25)
EQUAL = 0.03


@dataclass(frozen=True)
class Case:
    """A recipe and the images that it is meant for.

    Args:
        steps: in an epoch of random images.
    """

    name: str
    group: str
    recipe: str
    channels: int
    size: int
    steps: int = 20

    @cached_property
    def run(self) -> DualStreamViTRun:
        """The recipe with a model for these images."""
        run = RECIPES[self.recipe]()
        model = replace(run.model, channels=self.channels, image_size=self.size, num_classes=10)
        return replace(run, model=model, compile=False, scan_every=0, warm_start=None)

    @property
    def views(self) -> int:
        """Images that the model sees in a step."""
        return self.run.batch_size * self.run.objective.views

    def images(self, count: int, seed: int) -> ImageTable:
        """Noise."""
        draws = np.random.default_rng(seed)
        images = draws.integers(0, 256, (count, self.channels, self.size, self.size), dtype=np.uint8)
        return ImageTable(images, np.arange(count) % 10, tuple("0123456789"), "noise")

    @cached_property
    def gigaflops(self) -> float:
        """Of a forward pass of one image."""
        return counted(build(self.run, self.images(SPARE, 0)), torch.from_numpy(self.images(2, 1).images))

    def job(self, mode: str) -> Job:
        """Products of a step, and the least it moves: images once, weights, gradients and moments once each way."""
        parameters = build(self.run, self.images(SPARE, 0)).num_parameters()["total"]
        shapes = {"images": self.views, "gflop_an_image": round(self.gigaflops, 4), "parameters": parameters}
        moved = self.views * self.channels * self.size**2 + 28 * parameters
        dtype = getattr(torch, "bfloat16" if self.group == "table" else "float32")
        return Job(
            "dual_stream_vit", self.name, mode, shapes, dtype, 3e9 * self.gigaflops * self.views, moved
        )


CASES = (
    Case("dual_stream_vit", "table", "dual_stream_vit", 1, 28),
    Case("v5", "table", "dual_stream_vit_v5", 3, 32),
    Case("digits", "small", "dual_stream_vit_digits", 1, 8),
)


def counted(model: nn.Module, images: Tensor) -> float:
    """Gigaflops of a forward pass of one of these images; attention as plain products, which alone are counted."""
    plain = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
        model.eval()(images)
    return counter.get_total_flops() / len(images) / 1e9


def equal_transformer(case: Case) -> nn.Module:
    """Timm's transformer of as many FLOPs.

    Raises:
        ImportError: timm is not installed.
        ValueError: none comes near enough.
    """
    from timm.models.vision_transformer import VisionTransformer

    patch, wanted = case.run.model.patch_size, case.gigaflops
    tokens = (case.size // patch) ** 2 + 1

    def estimate(size: tuple[int, int, int]) -> float:
        dim, _, depth = size
        each = 24 * tokens * dim**2 + 4 * tokens**2 * dim
        return (depth * each + 2 * tokens * dim * case.channels * patch**2) / 1e9

    sizes = [
        (dim, dim // head, depth) for head in HEAD_DIMS for depth in DEPTHS for dim in range(head, 769, head)
    ]
    dim, heads, depth = min(sizes, key=lambda size: abs(estimate(size) / wanted - 1))
    model = VisionTransformer(
        img_size=case.size, patch_size=patch, in_chans=case.channels, num_classes=10, embed_dim=dim, depth=depth,
        num_heads=heads,
    )  # fmt: skip
    own = counted(model, torch.rand(2, case.channels, case.size, case.size))
    if abs(own / wanted - 1) > EQUAL:
        raise ValueError(
            f"{case.name}: no transformer of {wanted:.3f} GFLOP an image, the nearest has {own:.3f}"
        )
    print(
        f"{case.name}: {wanted:.3f} GFLOP an image; timm: {dim} x {depth}, {heads} heads, {own:.3f} GFLOP",
        flush=True,
    )
    return model


@dataclass(frozen=True)
class Provider:
    """A training step, and embeddings of sample images for the gate: in its own arithmetic, and eager in float32."""

    step: Call
    embed: Callable[[], Tensor]
    exact: Callable[[], Tensor]


class Problem:
    """A case on a device."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        self.runtime = Runtime.create("cuda" if device.type == "cuda" else "cpu")
        self.sample = torch.from_numpy(case.images(SAMPLE, 3).images).to(device)

    def autocast(self) -> Any:
        """bfloat16 on a GPU; on a CPU all is float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def provider(self, name: str) -> Provider:
        """By name."""
        torch.manual_seed(0)
        return self._timm(name) if name.startswith("timm") else self._stratcore(name)

    def _timm(self, name: str) -> Provider:
        case = self.case
        model = equal_transformer(case).to(self.device).train()
        graph = name.endswith("graph")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True, capturable=graph)
        images = torch.rand(case.views, case.channels, case.size, case.size, device=self.device)
        labels = torch.arange(case.views, device=self.device) % 10
        run = torch.compile(model, dynamic=False) if "compile" in name else model
        sample = self.sample.float() / 255

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with self.autocast():
                loss = cross_entropy(run(images), labels)
            loss.backward()
            optimizer.step()

        captured = CapturedStep(lambda _: step())
        return Provider(
            (lambda: captured([])) if graph else step,
            self._own(run, sample, model, None),
            self._eager(model, sample, None),
        )

    def _stratcore(self, name: str) -> Provider:
        case, run = self.case, self.case.run
        tables = {part: case.images(SPARE, 1) for part in ("validation", "control", "test")}
        tables["train"] = case.images(case.steps * run.batch_size, 0)
        model = build(run, tables["train"])
        task = task_of(run, model, tables, self.runtime)
        precision = "bf16" if self.device.type == "cuda" else "fp32"
        numerics = replace(run.stage.numerics, precision=precision, cuda_graph=name.endswith("graph"))
        optimization = Optimization(task, replace(run.stage, numerics=numerics), self.runtime)
        stream = BatchStream(task)
        exact = self._eager(model, self.sample, "embedding")
        found = exact()  # before the model is compiled in place
        if "compile" in name:
            model.compile(dynamic=False)

        def step() -> None:
            model.train()
            optimization.run(stream, 0)

        return Provider(step, self._own(model, self.sample, model, "embedding"), lambda: found)

    def _own(self, run: Any, images: Tensor, model: nn.Module, field: str | None) -> Callable[[], Tensor]:
        def embed() -> Tensor:
            model.eval()
            with torch.no_grad(), self.autocast():
                output = run(images)
            model.train()
            return output.float() if field is None else getattr(output, field).float()

        return embed

    def _eager(self, model: nn.Module, images: Tensor, field: str | None) -> Callable[[], Tensor]:
        def embed() -> Tensor:
            model.eval()
            with torch.no_grad():
                output = model(images)
            model.train()
            return output.float() if field is None else getattr(output, field).float()

        return embed


def run_case(case: Case, recorder: Recorder, options: argparse.Namespace) -> None:
    """All providers of a case."""
    problem = Problem(case, recorder.device)
    for name in providers(options, recorder.device):
        with runner.may_be_missing(case.name, "step", name, options):
            provider = problem.provider(name)
            gate = check([provider.embed()], [provider.exact()], None, Tolerance(floor=0.05, coarse=0.05))
            row = recorder.record(case.job("step"), name, provider.step, gate)
            runner.report(row, wall=True)
            if row["gate"]:
                print(f"  {1e3 * case.views / row['wall_ms']:,.0f} images a second", flush=True)
        torch.compiler.reset()


def providers(options: argparse.Namespace, device: torch.device) -> Iterator[str]:
    """Those that were asked for and that the device can run."""
    for name in PROVIDERS:
        if (not options.providers or name in options.providers) and (
            device.type == "cuda" or name in ("timm", "stratcore")
        ):
            yield name


def main(arguments: Sequence[str]) -> int:
    """Entry point."""
    module = "bench.models.bench_dual_stream_vit"
    parser = runner.argument_parser(module, "table, small or names of cases", modes=("step",))
    parser.add_argument("--compile-limit", type=float, default=300, help="seconds for one torch.compile")
    options = runner.parse_known(parser, arguments, cases=runner.names_of(CASES), providers=PROVIDERS)
    runner.run_cases(options, CASES, run_case)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
