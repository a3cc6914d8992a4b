"""p-values of many points at once."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from statsmodels.stats.multitest import multipletests

Correction = Literal["holm", "benjamini_hochberg", "benjamini_yekutieli"]
_NAMES = {"holm": "holm", "benjamini_hochberg": "fdr_bh", "benjamini_yekutieli": "fdr_by"}


def corrected_p_values(p_values: ArrayLike, method: Correction = "holm") -> np.ndarray:
    """Adjusted p-values of the points that were tested; NaN stays NaN and does not count.

    Args:
        p_values: [P], NaN where a point was not tested.
        method: `holm`: the chance of any false rejection, under any dependence; `benjamini_hochberg`: the share of
            false rejections, under positive dependence; `benjamini_yekutieli`: that share under any dependence.

    Raises:
        ValueError: a number outside [0, 1] or an unknown method.
    """
    p_P = np.array(p_values, dtype=np.float64)
    if method not in _NAMES:
        raise ValueError(f"method: expected one of {', '.join(_NAMES)}, got {method!r}")
    tested_P = ~np.isnan(p_P)
    if p_P.ndim != 1 or ((p_P[tested_P] < 0) | (p_P[tested_P] > 1)).any():
        raise ValueError("p_values: expected numbers in [0, 1] or NaN, one a point")
    if tested_P.any():
        p_P[tested_P] = multipletests(p_P[tested_P], method=_NAMES[method])[1]
    return p_P
