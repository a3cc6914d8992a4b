"""The ops: functions on tensors, with kernels for CPU and CUDA."""

from stratcore.ops.tangent_projection import SphereNormalized, sphere_normalize, sphere_normalize_nearest
from stratcore.ops.topk_lista import SparseCode, topk_lista, topk_lista_sparse
from stratcore.ops.topk_ste import topk_ste

__all__ = [
    "SparseCode",
    "SphereNormalized",
    "sphere_normalize",
    "sphere_normalize_nearest",
    "topk_lista",
    "topk_lista_sparse",
    "topk_ste",
]
