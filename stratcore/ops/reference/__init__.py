"""Definitions of the ops in plain torch: slow, obvious, and what tests and benchmarks compare with."""

from stratcore.ops.reference import cayley_menger
from stratcore.ops.reference.simplex_cv import simplex_cv
from stratcore.ops.reference.tangent_projection import (
    nearest_anchor,
    on_sphere,
    surrogate_gradient,
    unit_anchors,
)
from stratcore.ops.reference.topk_lista import topk_lista, topk_ste

__all__ = [
    "cayley_menger",
    "nearest_anchor",
    "on_sphere",
    "simplex_cv",
    "surrogate_gradient",
    "topk_lista",
    "topk_ste",
    "unit_anchors",
]
