"""Definitions of the ops in plain torch: slow, obvious, and what tests and benchmarks compare with."""

from stratcore.ops.reference import cayley_menger
from stratcore.ops.reference.topk_lista import topk_lista, topk_ste

__all__ = ["cayley_menger", "topk_lista", "topk_ste"]
