"""Modules over the ops: no input or output of files, no loss but those of geometry."""

from stratcore.layers.adaptive_depth import AdaptiveDepthBranch
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
from stratcore.layers.fft_mixing import FFTMixing
from stratcore.layers.gating import QueryKeyGate, expert_weights
from stratcore.layers.layer_processing import LayerProcessing, LayerProcessingOptions
from stratcore.layers.lista import ListaOptions, TopKLISTA
from stratcore.layers.position_attention import PositionAttention, PositionAttentionOptions
from stratcore.layers.sequence_shards import SequenceShards
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
from stratcore.layers.sparse_selection import BatchTopK, JumpReLU
from stratcore.layers.stratified_attention import (
    StratifiedAttention,
    StratifiedAttentionOptions,
    log_gate_attention,
)
from stratcore.layers.stratified_embedding import StratifiedEmbedding, StratifiedEmbeddingOptions
from stratcore.layers.stratified_moe import StratifiedMoE, StratifiedMoEOptions
from stratcore.layers.stratified_output import StratifiedOutput
from stratcore.layers.stratified_post_attention import StratifiedPostAttention
from stratcore.layers.stratum_router import (
    RouterOptions,
    Routing,
    StratumRouter,
    load_balance_loss,
    route,
    router_z_loss,
    routing_entropy,
    usage_loss,
)
from stratcore.layers.token_routing import TokenRouting, TokenRoutingOptions
from stratcore.layers.toroidal_attention import ToroidalAttention
from stratcore.layers.toroidal_branch import ToroidalBranch
from stratcore.layers.toroidal_branch_options import ToroidalBranchOptions, legal_depths
from stratcore.layers.toroidal_cache import ToroidalKVCache
from stratcore.layers.toroidal_options import ToroidalAttentionOptions, normalized_slopes
from stratcore.layers.toroidal_rotary import ToroidalRotary

__all__ = [
    "SequenceShards",
    "FFTMixing",
    "AdaptiveDepthBranch",
    "BatchTopK",
    "CVLoss",
    "CVReport",
    "Constellation",
    "ConstellationOptions",
    "ContextParallelAttention",
    "ContextParallelTraffic",
    "DepthFusion",
    "DictionaryExperts",
    "JumpReLU",
    "KSimplexChannel",
    "KSimplexOptions",
    "LayerProcessing",
    "LayerProcessingOptions",
    "ListaOptions",
    "Patchwork",
    "PatchworkOptions",
    "PositionAttention",
    "PositionAttentionOptions",
    "QueryKeyGate",
    "RouterOptions",
    "Routing",
    "SimplexCVLoss",
    "SimplexCVOptions",
    "StratifiedAttention",
    "StratifiedAttentionOptions",
    "StratifiedEmbedding",
    "StratifiedEmbeddingOptions",
    "StratifiedMoE",
    "StratifiedMoEOptions",
    "StratifiedOutput",
    "StratifiedPostAttention",
    "StratumRouter",
    "TokenRouting",
    "TokenRoutingOptions",
    "TopKLISTA",
    "ToroidalAttention",
    "ToroidalAttentionOptions",
    "ToroidalBranch",
    "ToroidalBranchOptions",
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
    "legal_depths",
    "load_balance_loss",
    "log_gate_attention",
    "normalized_slopes",
    "regular_simplex",
    "regularity",
    "regularity_loss",
    "route",
    "router_z_loss",
    "routing_entropy",
    "usage_loss",
]
