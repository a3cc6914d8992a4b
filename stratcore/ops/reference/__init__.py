"""Definitions of the ops in plain torch: slow, obvious, and what tests and benchmarks compare with."""

from stratcore.ops.reference.simplex_cv import simplex_cv
from stratcore.ops.reference.topk_lista import topk_lista, topk_ste

__all__ = ["simplex_cv", "topk_lista", "topk_ste"]
