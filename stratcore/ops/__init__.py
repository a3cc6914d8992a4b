"""The ops: functions on tensors, with kernels for CPU and CUDA."""

from stratcore.ops.topk_lista import SparseCode, topk_lista, topk_lista_sparse
from stratcore.ops.topk_ste import topk_ste

__all__ = ["SparseCode", "topk_lista", "topk_lista_sparse", "topk_ste"]
