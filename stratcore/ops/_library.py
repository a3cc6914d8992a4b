"""Loads the compiled library, whose import registers the ops with torch."""

from __future__ import annotations

from pathlib import Path

import torch

FOLDER = Path(__file__).parents[1]

try:
    from stratcore import _C as _C
except ImportError as error:
    if not (FOLDER / "_C.abi3.so").is_file():
        raise ImportError(
            f"Python found the sources of stratcore in {FOLDER}, without the compiled library. Run from another "
            "folder (or use stratcore-train), or install with 'pip install -e .' to run from this one."
        ) from error
    raise ImportError(
        "stratcore's compiled library could not be loaded "
        f"(torch {torch.__version__}): {error}. Reinstall with 'pip install .'; "
        "'python -m stratcore.info' tells what is missing."
    ) from error
