"""Loads the compiled library, whose import registers the ops with torch."""

from __future__ import annotations

import torch

try:
    from stratcore import _C as _C
except ImportError as error:
    raise ImportError(
        "stratcore's compiled library could not be loaded "
        f"(torch {torch.__version__}): {error}. Reinstall with 'pip install .'; "
        "'python -m stratcore.info' tells what is missing."
    ) from error
