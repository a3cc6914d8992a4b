"""What a run says of the machine and the versions that it ran on."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import torch

import stratcore


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and machine of a run."""
    versions = {"stratcore": stratcore.__version__}
    versions |= {name: metadata.version(name) for name in ("torch", "numpy", "scikit-learn")}
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {
        **versions,
        "python": platform.python_version(),
        "device": str(device),
        **gpu,
        "threads": torch.get_num_threads(),
    }
