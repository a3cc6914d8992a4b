"""The ops: functions on tensors, with kernels for CPU and CUDA."""

from stratcore.ops.simplex_baseline import (
    EffectiveDimension,
    cv_uniform,
    effective_dim_from_cv,
    mean_volume_uniform,
    volume_moment_uniform,
)
from stratcore.ops.simplex_cv import SimplexCV, simplex_cv
from stratcore.ops.topk_lista import SparseCode, topk_lista, topk_lista_sparse
from stratcore.ops.topk_ste import topk_ste

__all__ = [
    "EffectiveDimension",
    "SimplexCV",
    "SparseCode",
    "cv_uniform",
    "effective_dim_from_cv",
    "mean_volume_uniform",
    "simplex_cv",
    "topk_lista",
    "topk_lista_sparse",
    "topk_ste",
    "volume_moment_uniform",
]
