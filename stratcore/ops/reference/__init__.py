"""Definitions of the ops in plain torch: slow, obvious, and what tests and benchmarks compare with."""

from stratcore.ops.reference import cayley_menger
from stratcore.ops.reference.simplex_cv import simplex_cv
from stratcore.ops.reference.sparse_selection import batch_topk, jump_relu, jump_relu_gradients
from stratcore.ops.reference.tangent_projection import (
    nearest_anchor,
    on_sphere,
    surrogate_gradient,
    unit_anchors,
)
from stratcore.ops.reference.topk_lista import topk_lista, topk_ste
from stratcore.ops.reference.toroidal_attention import lattice_sites, toroidal_attention, toroidal_distance

__all__ = [
    "batch_topk",
    "cayley_menger",
    "jump_relu",
    "jump_relu_gradients",
    "lattice_sites",
    "nearest_anchor",
    "on_sphere",
    "simplex_cv",
    "surrogate_gradient",
    "topk_lista",
    "topk_ste",
    "toroidal_attention",
    "toroidal_distance",
    "unit_anchors",
]
