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

__all__ = [
    "CVLoss",
    "CVReport",
    "Constellation",
    "ConstellationOptions",
    "ContextParallelAttention",
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
    "ContextParallelTraffic",
    "Triangulation",
    "anchor_cv_loss",
    "anchor_usage",
    "cm_barrier",
    "context_parallel_attention",
    "cv_loss",
    "dual_cv_loss",
    "expert_weights",
    "regular_simplex",
    "regularity",
    "regularity_loss",
]
