"""What is installed, what was built and which kernels run here: `python -m stratcore.info`."""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from stratcore import __version__

PACKAGES = (
    "torch", "numpy", "safetensors", "transformers", "datasets", "accelerate", "jsonargparse", "rich",
    "matplotlib", "jinja2", "scikit-learn", "scipy", "statsmodels", "peft", "tensorboard", "scikit-dimension",
)  # fmt: skip

Rows = list[tuple[str, str]]


def main() -> None:
    """Prints the report; the exit code is 0 whatever is missing."""
    print(report())


def report() -> str:
    """The whole report as aligned plain text."""
    description = build_description()
    torch, problem = _import("torch")
    sections = {
        "stratcore": _versions(),
        "libraries": _libraries(description, problem),
        "devices": _devices(torch),
        "kernels": _kernels(description, torch, problem),
        "packages": [(name, _version(name)) for name in PACKAGES],
    }
    width = max(len(name) for rows in sections.values() for name, _ in rows) + 2
    blocks = []
    for title, rows in sections.items():
        blocks.append("\n".join([title, *(f"  {name:<{width}}{text}".rstrip() for name, text in rows)]))
    return "\n\n".join(blocks)


def build_description() -> dict[str, str]:
    """How libstratcore.so was built: compiler, cuda, architectures, ops; `error` alone where it does not load."""
    path = Path(__file__).with_name("libstratcore.so")
    if not path.is_file():
        return {"error": "not built: run 'pip install .' or 'python setup.py build_ext --inplace'"}
    try:
        describe = ctypes.CDLL(str(path)).stratcore_build_description
    except (OSError, AttributeError) as error:
        return {"error": _line(error)}
    describe.restype = ctypes.c_char_p
    return dict(line.split(": ", 1) for line in describe().decode().splitlines())


def cuda_obstacle(description: dict[str, str], torch: Any) -> str | None:
    """Why no CUDA kernel can run with this torch, or None."""
    if description.get("cuda") in (None, "no"):
        return "this build holds no CUDA kernels (STRATCORE_CUDA=on and nvcc on PATH build them)"
    if torch.version.cuda is None:
        return "torch is a ROCm build" if torch.version.hip else "torch is a CPU build"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    return None


def _import(module: str) -> tuple[Any, str]:
    """The module, or None and why it does not load."""
    try:
        return importlib.import_module(module), ""
    except (ImportError, OSError) as error:
        return None, _line(error)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _versions() -> Rows:
    python = f"{platform.python_version()} ({platform.system()} {platform.machine()})"
    return [("version", __version__), ("python", python)]


def _libraries(description: dict[str, str], torch_problem: str) -> Rows:
    if "error" in description:
        core = f"no: {description['error']}"
    elif description["cuda"] == "no":
        core = f"yes: {description['compiler']}, no CUDA kernels"
    else:
        core = (
            f"yes: {description['compiler']}, CUDA {description['cuda']} for {description['architectures']}"
        )
    # Through the ops: they bring torch's own libraries in first.
    torch_part = torch_problem or _import("stratcore.ops")[1]
    array_part = _import("stratcore._array")[1]
    return [
        ("libstratcore", core),
        ("_C", f"no: {torch_part}" if torch_part else "yes"),
        ("_array", f"no: {array_part}" if array_part else "yes"),
    ]


def _devices(torch: Any) -> Rows:
    rows = [("cpu", f"{_cpu_name()}, {os.cpu_count()} logical processors")]
    if torch is None or not torch.cuda.is_available():
        return rows
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        text = f"{found.name}, compute capability {found.major}.{found.minor}, {found.total_memory >> 20} MiB"
        rows.append((f"cuda:{index}", text))
    return rows


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _kernels(description: dict[str, str], torch: Any, torch_problem: str) -> Rows:
    rows = []
    for op in description.get("ops", "").split():
        live = {"array": _runs(op, "numpy", "stratcore.array", None)}
        if torch is None:
            live |= dict.fromkeys(("cpu", "cuda"), f"no: {torch_problem}")
        else:
            obstacle = cuda_obstacle(description, torch)
            live["cpu"] = _runs(op, "torch", "stratcore.ops", "cpu")
            live["cuda"] = f"no: {obstacle}" if obstacle else _runs(op, "torch", "stratcore.ops", "cuda")
        rows.append((op, ", ".join(f"{where} {live[where]}" for where in ("cpu", "array", "cuda"))))
    return rows or [("none", "the library does not load")]


def _runs(op: str, library: str, face: str, device: str | None) -> str:
    """Calls the op on one element, the only proof that its kernel is there and fits the device."""
    return _attempt(
        lambda: PROBES[op](importlib.import_module(library), importlib.import_module(face), device)
    )


def _attempt(probe: Callable[[], float]) -> str:
    try:
        result = probe()
    except (ImportError, RuntimeError, KeyError) as error:
        return f"no: {type(error).__name__}: {_line(error)[:160]}"
    return "yes" if result == 1.0 else f"no: it computes {result} instead of 1"


def _probe_topk_lista(library: Any, ops: Any, device: str | None) -> float:
    """The code of 2 by one atom with threshold 1 is 1."""
    one = library.ones((1, 1), **({"device": device} if device else {}))
    return float(ops.topk_lista(2 * one, one, 0 * one, one[0], 1, num_steps=1)[0, 0])


def _probe_cayley_menger(library: Any, ops: Any, device: str | None) -> float:
    """An edge from 0 to 1 has length 1."""
    points = library.arange(2.0, **({"device": device} if device else {})).reshape(1, 2, 1)
    return float(ops.simplex_measures(points, outputs=("volume",)).volume[0])


def _probe_tangent_projection(library: Any, ops: Any, device: str | None) -> float:
    """The number 2 on the sphere of one dimension is 1."""
    one = library.ones((1, 1), **({"device": device} if device else {}))
    return float(ops.sphere_normalize(2 * one)[0, 0])


def _probe_toroidal_attention(library: Any, ops: Any, device: str | None) -> float:
    """All attention to a single key with value 1 gives 1."""
    one = library.ones((1, 1, 1, 2), **({"device": device} if device else {}))
    return float(ops.toroidal_attention(one, one, one, one[0, 0, 0, :1], lattice=1)[0, 0, 0, 0])


PROBES: dict[str, Callable[[Any, Any, str | None], float]] = {
    "cayley_menger": _probe_cayley_menger,
    "topk_lista": _probe_topk_lista,
    "tangent_projection": _probe_tangent_projection,
    "toroidal_attention": _probe_toroidal_attention,
}


if __name__ == "__main__":
    main()
