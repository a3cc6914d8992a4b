"""Classical sparse coding: pursuit, thresholding and dictionary learning, batched over rows on any device.

A dictionary is [M, D], an atom a row, as `components_` of scikit-learn's estimators; codes are [N, M]. Functions
take NumPy arrays or torch tensors, compute in float32 where the rows are float32 and in float64 otherwise, on
`device` or where the rows are, and answer in the kind and on the device of the rows.
"""

from __future__ import annotations

from stratcore.analysis.sparse_coding.dictionary_learning import KSVD, OnlineDictionaryLearning
from stratcore.analysis.sparse_coding.pursuit import (
    batch_orthogonal_matching_pursuit,
    iterative_hard_thresholding,
    least_squares_codes,
    orthogonal_matching_pursuit,
)
from stratcore.analysis.sparse_coding.shrinkage import (
    LassoResult,
    alista,
    alista_weight,
    fista,
    ista,
    lipschitz_constant,
)

__all__ = [
    "KSVD",
    "LassoResult",
    "OnlineDictionaryLearning",
    "alista",
    "alista_weight",
    "batch_orthogonal_matching_pursuit",
    "fista",
    "ista",
    "iterative_hard_thresholding",
    "least_squares_codes",
    "lipschitz_constant",
    "orthogonal_matching_pursuit",
]
