"""What a run says of the machine and the versions that it ran on."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import torch


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and machine of a run."""
    packages = ("stratcore", "torch", "numpy", "scikit-learn")
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {
        **versions,
        "python": platform.python_version(),
        "device": str(device),
        **gpu,
        "threads": torch.get_num_threads(),
    }
