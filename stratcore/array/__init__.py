"""The ops on NumPy arrays, without torch and without gradients.

    from stratcore import array

    codes = array.topk_lista(x, encoder, recurrent, theta, 8, num_steps=4)

Inputs are whatever `numpy.asarray` takes, and CPU arrays of other libraries (JAX, torch) through DLPack; memory
that is not row-major is copied, other memory is used as it is. Outputs are fresh NumPy arrays. The kernels are
those of `stratcore.ops`, on plain threads and with a plain matrix product instead of torch's: for large problems
where torch is installed, `stratcore.ops` is faster.
"""

try:
    from stratcore import _array as _array
except ImportError as error:
    raise ImportError(
        f"stratcore.array needs the compiled module _array, which did not load: {error}. "
        "Reinstall with nanobind present (STRATCORE_ARRAY=on pip install .); 'python -m stratcore.info' tells more."
    ) from error

from stratcore.array._cayley_menger import (
    DistanceMeasures,
    SimplexMeasures,
    measures_from_distances,
    simplex_measures,
)
from stratcore.array._simplex_cv import SimplexCV, simplex_cv
from stratcore.array._tangent_projection import SphereNormalized, sphere_normalize, sphere_normalize_nearest
from stratcore.array._topk_lista import SparseCode, topk, topk_lista, topk_lista_sparse
from stratcore.array._toroidal_attention import (
    ToroidalAttention,
    toroidal_attention,
    toroidal_attention_lse,
)

__all__ = [
    "DistanceMeasures",
    "SimplexCV",
    "SimplexMeasures",
    "SparseCode",
    "SphereNormalized",
    "ToroidalAttention",
    "measures_from_distances",
    "simplex_cv",
    "simplex_measures",
    "sphere_normalize",
    "sphere_normalize_nearest",
    "topk",
    "topk_lista",
    "topk_lista_sparse",
    "toroidal_attention",
    "toroidal_attention_lse",
]
