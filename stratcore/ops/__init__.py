"""The ops: functions on tensors, with kernels for CPU and CUDA."""

from stratcore.ops.batch_topk import batch_topk
from stratcore.ops.cayley_menger import (
    SimplexMeasures,
    cayley_menger_determinant,
    simplex_log_volume,
    simplex_measures,
    simplex_squared_volume,
    simplex_volume,
)
from stratcore.ops.jump_relu import JumpReLUCode, jump_relu
from stratcore.ops.simplex_baseline import (
    EffectiveDimension,
    cv_gaussian,
    cv_uniform,
    effective_dim_from_cv,
    mean_volume_uniform,
    volume_moment_uniform,
)
from stratcore.ops.simplex_cv import SimplexCV, simplex_cv
from stratcore.ops.simplex_distances import DistanceMeasures, measures_from_distances
from stratcore.ops.tangent_projection import SphereNormalized, sphere_normalize, sphere_normalize_nearest
from stratcore.ops.topk_lista import SparseCode, topk_lista, topk_lista_regime, topk_lista_sparse
from stratcore.ops.topk_lista_routed import topk_lista_routed
from stratcore.ops.topk_ste import topk_ste
from stratcore.ops.toroidal_attention import (
    ToroidalAttention,
    merge_attention,
    toroidal_attention,
    toroidal_attention_lse,
)
from stratcore.ops.toroidal_lattice import alibi_slopes, lattice_order

__all__ = [
    "DistanceMeasures",
    "JumpReLUCode",
    "SimplexMeasures",
    "SparseCode",
    "batch_topk",
    "cayley_menger_determinant",
    "jump_relu",
    "measures_from_distances",
    "simplex_log_volume",
    "simplex_measures",
    "simplex_squared_volume",
    "simplex_volume",
    "SphereNormalized",
    "sphere_normalize",
    "sphere_normalize_nearest",
    "topk_lista",
    "topk_lista_regime",
    "topk_lista_routed",
    "topk_lista_sparse",
    "topk_ste",
    "EffectiveDimension",
    "SimplexCV",
    "cv_gaussian",
    "cv_uniform",
    "effective_dim_from_cv",
    "mean_volume_uniform",
    "simplex_cv",
    "volume_moment_uniform",
    "ToroidalAttention",
    "alibi_slopes",
    "lattice_order",
    "merge_attention",
    "toroidal_attention",
    "toroidal_attention_lse",
]
