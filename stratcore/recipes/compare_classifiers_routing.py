"""What a router did on test rows: agreement with domains and labels, load, entropy.

Legend: N rows, T tokens, S strata.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from stratcore.analysis.domain_agreement import agreement
from stratcore.analysis.resampling import Resampling


class RouteLog:
    """Sums the router's probabilities over the tokens of each row, batch by batch.

    Args:
        num_rows: N.
    """

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._sums_NS: np.ndarray | None = None
        self._tokens_N = np.zeros(num_rows)
        self._choices_S: np.ndarray | None = None
        self._entropy, self._tokens = 0.0, 0

    def add(self, numbers: np.ndarray, batch: object, output: Any) -> None:
        """Takes the routing of the rows with these numbers, if the model has any."""
        if not output.routing:
            return
        routed = output.routed_tokens()
        probabilities_TS = _array(routed.probabilities)
        if self._sums_NS is None or self._choices_S is None:
            self._sums_NS = np.zeros((self._num_rows, probabilities_TS.shape[-1]))
            self._choices_S = np.zeros(probabilities_TS.shape[-1])
        row_T = numbers[routed.sequence.cpu().numpy()]
        np.add.at(self._sums_NS, row_T, probabilities_TS)
        np.add.at(self._tokens_N, row_T, 1)
        np.add.at(self._choices_S, probabilities_TS.argmax(-1), 1)
        logs_TS = np.log(np.clip(probabilities_TS, 1e-30, None))
        self._entropy -= float((probabilities_TS * logs_TS).sum())
        self._tokens += len(row_T)

    def statistics(self, domain_N: np.ndarray, label_N: np.ndarray) -> dict[str, float] | None:
        """Numbers of the routing, None for a model without a router.

        nmi_domain and nmi_label: normalized mutual information of a row's route (the stratum of largest mean
        probability) with domain and label; `_floor`: what 95 % of shuffled routes stay below. load_variation:
        standard deviation over mean of the probability that each stratum gets; `_of_choices`: of the tokens that
        prefer it, which is far from even where a soft router leans to one side by a hair. entropy: mean over
        tokens, as a share of log S.
        """
        if self._sums_NS is None or self._choices_S is None:
            return None
        route_N = (self._sums_NS / np.maximum(self._tokens_N, 1)[:, None]).argmax(-1)
        strata = len(self._choices_S)
        found: dict[str, float] = {}
        for name, groups_N in (("domain", domain_N), ("label", label_N)):
            found[f"nmi_{name}"] = found[f"nmi_{name}_floor"] = 0.0
            if np.ptp(groups_N) > 0 and np.ptp(route_N) > 0:
                nmi = agreement(route_N, groups_N, Resampling(seed=0)).nmi
                found[f"nmi_{name}"], found[f"nmi_{name}_floor"] = nmi.value, nmi.floor_high
        load_S = self._sums_NS.sum(0)
        found["load_variation"] = float(load_S.std() / load_S.mean())
        found["load_variation_of_choices"] = float(self._choices_S.std() / self._choices_S.mean())
        found["entropy"] = self._entropy / (self._tokens * math.log(strata)) if strata > 1 else 0.0
        return found


def _array(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy().astype(np.float64)
