"""Modules over the ops: no input or output of files, no loss but those of geometry."""

from stratcore.layers.constellation import (
    Constellation,
    ConstellationOptions,
    Patchwork,
    PatchworkOptions,
    Triangulation,
    anchor_usage,
)
from stratcore.layers.context_parallel import (
    ContextParallelAttention,
    ContextParallelTraffic,
    context_parallel_attention,
)
from stratcore.layers.depth_fusion import DepthFusion
from stratcore.layers.dictionary import DictionaryExperts
from stratcore.layers.gating import QueryKeyGate, expert_weights
from stratcore.layers.lista import ListaOptions, TopKLISTA
from stratcore.layers.simplex import (
    KSimplexChannel,
    KSimplexOptions,
    cm_barrier,
    regular_simplex,
    regularity,
    regularity_loss,
)
from stratcore.layers.simplex_cv import (
    CVLoss,
    CVReport,
    SimplexCVLoss,
    SimplexCVOptions,
    anchor_cv_loss,
    cv_loss,
    dual_cv_loss,
)
from stratcore.layers.toroidal_attention import ToroidalAttention
from stratcore.layers.toroidal_cache import ToroidalKVCache
from stratcore.layers.toroidal_options import ToroidalAttentionOptions, normalized_slopes
from stratcore.layers.toroidal_rotary import ToroidalRotary

__all__ = [
    "CVLoss",
    "CVReport",
    "Constellation",
    "ConstellationOptions",
    "ContextParallelAttention",
    "ContextParallelTraffic",
    "DepthFusion",
    "DictionaryExperts",
    "KSimplexChannel",
    "KSimplexOptions",
    "ListaOptions",
    "Patchwork",
    "PatchworkOptions",
    "QueryKeyGate",
    "SimplexCVLoss",
    "SimplexCVOptions",
    "TopKLISTA",
    "ToroidalAttention",
    "ToroidalAttentionOptions",
    "ToroidalKVCache",
    "ToroidalRotary",
    "Triangulation",
    "anchor_cv_loss",
    "anchor_usage",
    "cm_barrier",
    "context_parallel_attention",
    "cv_loss",
    "dual_cv_loss",
    "expert_weights",
    "normalized_slopes",
    "regular_simplex",
    "regularity",
    "regularity_loss",
]
