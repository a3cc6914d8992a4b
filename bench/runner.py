"""What the benches of the ops share: the command line, the loop over the cases it names, and that over providers.

A bench module holds its cases, a `Problem` for one of them, and what it asks of the command line beyond this.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from bench.compare import summarize
from bench.harness import Budget, Call, Job, Recorder, Tolerance, check, device_of

MODES = ("fwd", "fwd+bwd")
Function = Callable[..., Any]


# ---- the command line


class Case(Protocol):
    """What the command line knows of a case."""

    @property
    def name(self) -> str: ...

    @property
    def group(self) -> str: ...

    def job(self, mode: str) -> Job: ...


AnyCase = TypeVar("AnyCase", bound=Case)


def names_of(cases: Sequence[Case]) -> set[str]:
    """Everything by which --cases can choose."""
    return {name for case in cases for name in (case.name, case.group)}


def argument_parser(module: str, cases: str, modes: Sequence[str] = MODES) -> argparse.ArgumentParser:
    """The options that all benches of ops have; `cases` is the help on --cases."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", allow_abbrev=False)

    def words(text: str) -> list[str]:
        return [word for word in text.split(",") if word]

    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--modes", type=words, default=list(modes), help=",".join(modes))
    parser.add_argument("--cases", type=words, default=["small"], help=cases)
    parser.add_argument("--providers", type=words, default=[], help="all unless named")
    parser.add_argument("--out", type=Path, help="JSONL file to write")
    parser.add_argument("--warm-up", type=float, default=0.3, help="seconds a row")
    parser.add_argument("--measure", type=float, default=1.0, help="seconds a row")
    return parser


def add_limits(parser: argparse.ArgumentParser, cpu_limit: float, unit: str) -> None:
    """How long a provider may compile, and what is too much for a CPU."""
    parser.add_argument("--compile-limit", type=float, default=180, help="seconds for one torch.compile")
    above = f"{unit} above which the CPU skips a case"
    parser.add_argument("--cpu-limit", type=float, default=cpu_limit, help=above)


def parse_known(
    parser: argparse.ArgumentParser, arguments: Sequence[str], **known: Collection[str]
) -> argparse.Namespace:
    """The options, with the command that gave them; an option of names takes those that are `known`."""
    options = parser.parse_args(arguments)
    options.command = shlex.join([*parser.prog.split(), *arguments])
    for option, allowed in ({"modes": parser.get_default("modes")} | known).items():
        for unknown in [word for word in getattr(options, option) if word not in allowed]:
            kind = option.removesuffix("s")
            parser.error(f"expected a {kind} of {', '.join(sorted(allowed))}, got {unknown!r}")
    return options


def run_cases(
    options: argparse.Namespace,
    cases: Sequence[AnyCase],
    run_case: Callable[[AnyCase, Recorder, argparse.Namespace], None],
) -> Recorder:
    """Runs the cases that were chosen, and prints the summary."""
    budget = Budget(options.warm_up, options.measure)
    recorder = Recorder(device_of(options.device), budget, options.command, options.out)
    for case in cases:
        if case.name in options.cases or case.group in options.cases:
            run_case(case, recorder, options)
    print(summarize(recorder.rows))
    return recorder


# ---- providers


class TimeLimit(Exception):
    """Compiling took longer than was allowed."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeLimit in the body after so many seconds."""

    def stop(*_: Any) -> None:
        raise TimeLimit(f"took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def may_be_missing(case: str, mode: str, provider: str, options: argparse.Namespace) -> Iterator[None]:
    """A provider that cannot run is a finding, not the end of the run: the reason is printed."""
    try:
        with time_limit(options.compile_limit) if provider == "compile" else contextlib.nullcontext():
            yield
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        print(f"missing: {case} {mode} {provider}: {type(error).__name__}: {reason}", flush=True)


def timed_call(function: Function, inputs: Sequence[Tensor], mode: str, grad: Tensor | None = None) -> Call:
    """What is timed: the result, or the gradients of all inputs."""
    leaves = [t.detach().requires_grad_(mode == "fwd+bwd") for t in inputs]

    def run() -> Any:
        if mode == "fwd":
            with torch.no_grad():
                return function(*leaves)
        return torch.autograd.grad(function(*leaves), leaves, grad)

    return run


def report(row: Mapping[str, Any], *, wall: bool = False) -> None:
    """Prints the speed of a row, or why it has none."""
    speed = f"{row['p50_ms']:.4f} ms" if row["gate"] else f"GATE FAILED: {row['error']}"
    if row["gate"] and wall:
        speed += f", wall {row['wall_ms']:.4f} ms"
    print(f"{row['case']} {row['mode']} {row['provider']}: {speed}", flush=True)


class SampledProblem(Protocol):
    """A case at full size, which is compared with float64 on a sample."""

    @property
    def case(self) -> Case: ...

    def functions(self, mode: str) -> Mapping[str, Callable[[], Function]]: ...

    def call(self, function: Function, mode: str) -> Call: ...

    def sampled(self, function: Function, mode: str) -> list[Tensor]: ...

    def oracle(self, mode: str) -> list[Tensor]: ...

    def tolerance(self, mode: str) -> Tolerance: ...


def run_providers(
    problem: SampledProblem, mode: str, recorder: Recorder, options: argparse.Namespace
) -> None:
    """Gates and times every wanted provider; the first is the baseline of the gate."""
    case, baseline, exact = problem.case, None, problem.oracle(mode)
    for name, make in problem.functions(mode).items():
        first, wanted = baseline is None, not options.providers or name in options.providers
        if not first and not wanted:
            continue
        results = None
        with may_be_missing(case.name, mode, name, options):
            function = make()
            results = problem.sampled(function, mode)
        if results is None:
            continue
        gate = check(results, exact, baseline, problem.tolerance(mode))
        baseline = results if first else baseline
        if wanted:
            report(recorder.record(case.job(mode), name, problem.call(function, mode), gate))
