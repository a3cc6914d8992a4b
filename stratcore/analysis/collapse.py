"""Has a representation collapsed? A detector for training loops: a few numbers of a sample of rows at each look.

Legend: N rows of a batch, D features, n sampled rows, A anchors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

EXIT_HEALTHY = 0
EXIT_COLLAPSED = 3
_MOVING = ("effective_dim", "neighbor_distance", "norm")


@dataclass(frozen=True, kw_only=True)
class CollapseOptions:
    """When a detector speaks, and how much it looks at.

    A threshold of None is never looked at. "Start" is the median over the first `warmup` looks.

    Args:
        min_dim_share: least effective dimension (`CollapseMeasures`), as a share of its start.
        min_dim: least effective dimension, absolute.
        max_mean_cosine: largest mean cosine of pairs of rows; 1 is one direction for all.
        min_neighbor_share: least distance to the nearest other row over that to a random row (medians), as a
            share of its start: rows that gather on a few points keep their dimension but lose this.
        min_anchor_share: least effective number of anchors e^H over min(A, n).
        max_norm_growth: largest mean norm over its start.
        min_norm_share: least mean norm, as a share of its start.
        patience: looks in a row that must find the same sign; rows that are not finite count at once.
        warmup: looks that make the start.
        max_rows: rows sampled from a batch, n.
        min_rows: batches with fewer rows are not judged.
        seed: of the sampling, with the step.
    """

    min_dim_share: float | None = 0.25
    min_dim: float | None = None
    max_mean_cosine: float | None = 0.9
    min_neighbor_share: float | None = 0.1
    min_anchor_share: float | None = 0.1
    max_norm_growth: float | None = 10.0
    min_norm_share: float | None = 0.01
    patience: int = 3
    warmup: int = 3
    max_rows: int = 256
    min_rows: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            integer = field.name in ("patience", "warmup", "max_rows", "min_rows", "seed")
            least = {"min_rows": 4, "max_rows": 4, "seed": 0}.get(field.name, 1 if integer else 0)
            if value is not None and not value >= least:
                raise ValueError(f"{field.name}: expected at least {least}, got {value}")
        if self.min_rows > self.max_rows:
            raise ValueError(f"min_rows: expected at most max_rows = {self.max_rows}, got {self.min_rows}")


@dataclass(frozen=True, kw_only=True)
class CollapseMeasures:
    """What one look saw; NaN where it could not be seen.

    Args:
        effective_dim: participation ratio of the directions of differences of rows.
        mean_cosine: over all pairs of sampled rows.
        neighbor_distance: median distance to the nearest other row over that to a random one.
        norm: mean norm. Unit: length.
        anchor_share: e^H of the nearest anchors over min(A, n).
    """

    effective_dim: float
    mean_cosine: float
    neighbor_distance: float
    norm: float
    anchor_share: float


@dataclass(frozen=True, kw_only=True)
class CollapseVerdict:
    """What a look found.

    Args:
        step: of training.
        judged: False where the batch had fewer than `min_rows` rows, or the start is still being measured.
        collapsed: a sign has lasted for `patience` looks, or rows are not finite.
        reasons: the signs that have lasted, in words with their numbers.
        warnings: the signs that have not lasted yet.
        measures: the numbers; None for rows that are too few or not finite.
    """

    step: int
    judged: bool
    collapsed: bool
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    measures: CollapseMeasures | None = None


def collapse_exit_code(verdict: CollapseVerdict) -> int:
    """Exit code of a command that ends with this verdict: 0 healthy or not judged, 3 collapsed.

    1 and 2 are left to errors and to wrong usage, as shells and Python use them.
    """
    return EXIT_COLLAPSED if verdict.collapsed else EXIT_HEALTHY


class CollapseDetector:
    """Watches the rows that a model makes, and says when their geometry has collapsed.

    Args:
        options: thresholds and sizes.

    Call `update` every few steps with a batch of embeddings. The first `warmup` batches make the start that later
    ones are measured by; absolute thresholds (mean cosine, anchors, least dimension) hold from the first batch on.

    Determinism: the rows of a batch are drawn by (seed, step): a run that resumes from `state_dict` sees the same.
    Cost: O(n^2 D) with n <= max_rows, whatever the batch; one pass over the batch for NaN and infinity. A tensor on
    a GPU is waited for.
    """

    def __init__(self, options: CollapseOptions | None = None) -> None:
        self.options = options or CollapseOptions()
        self._start: dict[str, list[float]] = {name: [] for name in _MOVING}
        self._streak: dict[str, int] = {}

    def update(self, step: int, X: Any, anchors: Any = None) -> CollapseVerdict:
        """Look at one batch.

        Args:
            step: of training, >= 0.
            X: rows [N, D], NumPy or torch, any floating dtype.
            anchors: [A, D], of any length; None leaves anchors out.

        Raises:
            ValueError: X or anchors ill-shaped.
        """
        _check_shape("X", X)
        if anchors is not None:
            _check_shape("anchors", anchors, columns=int(X.shape[1]))
        for name, value in (("rows", X), ("anchors", anchors)):
            if value is not None and (bad := _num_bad_rows(value)):
                reason = f"{bad} of {value.shape[0]} {name} hold NaN or infinity"
                return CollapseVerdict(step=step, judged=True, collapsed=True, reasons=(reason,))
        if X.shape[0] < self.options.min_rows:
            return CollapseVerdict(step=step, judged=False, collapsed=False)
        measures = _measure(_sample(X, self.options.max_rows, self.options.seed, step), anchors)
        warming = len(self._start["norm"]) < self.options.warmup
        if warming:
            for name in _MOVING:
                self._start[name].append(getattr(measures, name))
        signs = _signs(measures, {} if warming else self.start, self.options)
        self._streak = {name: self._streak.get(name, 0) + 1 for name in signs}
        lasting = [text for name, text in signs.items() if self._streak[name] >= self.options.patience]
        fresh = [text for name, text in signs.items() if self._streak[name] < self.options.patience]
        return CollapseVerdict(
            step=step,
            judged=not warming or bool(lasting),
            collapsed=bool(lasting),
            reasons=tuple(lasting),
            warnings=tuple(fresh),
            measures=measures,
        )

    @property
    def start(self) -> dict[str, float]:
        """Medians of the first looks, by name; NaN before the first."""
        return {name: float(np.median(v)) if v else math.nan for name, v in self._start.items()}

    def state_dict(self) -> dict[str, Any]:
        """The start and the streaks of signs, in JSON's own types."""
        return {"start": {name: list(v) for name, v in self._start.items()}, "streak": dict(self._streak)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of another detector; options stay those of this one.

        Raises:
            ValueError: a key or a number is missing.
        """
        start, streak = state.get("start"), state.get("streak")
        if not isinstance(start, Mapping) or not isinstance(streak, Mapping) or set(start) != set(_MOVING):
            raise ValueError(
                f"state: expected 'streak' and 'start' with {', '.join(_MOVING)}, got {sorted(state)}"
            )
        if len({len(values) for values in start.values()}) > 1:
            raise ValueError("state: expected as many numbers of each name in 'start'")
        self._start = {name: [float(value) for value in start[name]] for name in _MOVING}
        self._streak = {str(name): int(count) for name, count in streak.items()}


def _measure(x_ND: np.ndarray, anchors: Any) -> CollapseMeasures:
    """Measure finite rows [n, D] in random order, n >= 4; O(n^2 D)."""
    # One power of two for all rows keeps squares from overflow and leaves every ratio its bits.
    largest = float(np.abs(x_ND).max())
    scale = 2.0 ** -max(math.frexp(largest)[1], -1000) if largest else 1.0
    x_ND = x_ND * scale
    norm_N = np.linalg.norm(x_ND, axis=1)
    u_ND = x_ND[norm_N > 0] / norm_N[norm_N > 0, None]
    half = len(x_ND) // 2
    differences = x_ND[:half] - x_ND[half : 2 * half]
    differences[np.abs(differences).max(axis=1) < 1e-13] = 0.0  # rounding of rows that are equal
    typical = float(np.median(np.linalg.norm(differences, axis=1)))
    return CollapseMeasures(
        effective_dim=_effective_dim(differences),
        mean_cosine=_mean_cosine(u_ND),
        neighbor_distance=_neighbor_distance(x_ND, typical),
        norm=float(norm_N.mean()) / scale,
        anchor_share=math.nan
        if anchors is None or not len(u_ND)
        else _anchor_share(u_ND, _to_array(anchors)),
    )


def _mean_cosine(u_ND: np.ndarray) -> float:
    """Over pairs of rows that are not 0; rows that are all 0 point nowhere and count as one direction."""
    count, total_D = len(u_ND), u_ND.sum(axis=0)
    return float((total_D @ total_D - count) / (count * (count - 1))) if count > 1 else 1.0


def _effective_dim(differences: np.ndarray) -> float:
    """1 / mean squared cosine between differences of rows; 0 where rows are all equal, at most D.

    m equal axes give m. No mean has to be known, differences share no row, and each counts by its direction alone:
    so neither few rows nor a few long ones shift it, as they shift the eigenvalues of a covariance.
    """
    norm = np.linalg.norm(differences, axis=1)
    u = differences[norm > 0] / norm[norm > 0, None]
    count, dim = u.shape
    if count < 2:
        return 0.0
    small = u if count <= dim else u.T
    square = (float(((small @ small.T) ** 2).sum()) - count) / (count * (count - 1))
    return min(1 / square, float(dim)) if square > 0 else float(dim)


def _neighbor_distance(x_ND: np.ndarray, typical: float) -> float:
    x_ND = x_ND - x_ND.mean(axis=0)
    norm2_N = np.einsum("nd,nd->n", x_ND, x_ND)
    square = norm2_N[:, None] + norm2_N[None, :] - 2 * x_ND @ x_ND.T
    np.fill_diagonal(square, np.inf)
    nearest = math.sqrt(max(float(np.median(square.min(axis=1))), 0.0))
    return nearest / typical if typical > 0 else 0.0


def _anchor_share(u_ND: np.ndarray, anchors: np.ndarray) -> float:
    norm_A = np.linalg.norm(anchors, axis=1)
    nearest_N = (u_ND @ (anchors / np.where(norm_A > 0, norm_A, 1)[:, None]).T).argmax(axis=1)
    share = np.bincount(nearest_N) / len(nearest_N)
    entropy = -float((share[share > 0] * np.log(share[share > 0])).sum())
    return math.exp(entropy) / min(len(anchors), len(u_ND))


# ---- signs


def _signs(now: CollapseMeasures, start: Mapping[str, float], options: CollapseOptions) -> dict[str, str]:
    """The signs of collapse, by name, in words."""
    found = {}

    def below(name: str, value: float, limit: float | None, first: float, what: str) -> None:
        if limit is not None and value < limit * first:
            told = f"{what} is {value:.4g}, below {limit:g}"
            found[name] = told if first == 1 else f"{told} of its start {first:.4g}"

    def above(name: str, value: float, limit: float | None, first: float, what: str) -> None:
        if limit is not None and value > limit * first:
            told = f"{what} is {value:.4g}, above {limit:g}"
            found[name] = told if first == 1 else f"{told} times its start {first:.4g}"

    at = {name: start.get(name, math.nan) for name in _MOVING}
    below("min_dim", now.effective_dim, options.min_dim, 1, "effective dimension")
    below(
        "min_dim_share", now.effective_dim, options.min_dim_share, at["effective_dim"], "effective dimension"
    )
    above("max_mean_cosine", now.mean_cosine, options.max_mean_cosine, 1, "mean cosine")
    below(
        "min_neighbor_share", now.neighbor_distance, options.min_neighbor_share, at["neighbor_distance"],
        "relative distance of nearest rows",
    )  # fmt: skip
    below("min_anchor_share", now.anchor_share, options.min_anchor_share, 1, "effective share of anchors")
    above("max_norm_growth", now.norm, options.max_norm_growth, at["norm"], "mean norm")
    below("min_norm_share", now.norm, options.min_norm_share, at["norm"], "mean norm")
    return found


# ---- rows


def _check_shape(name: str, value: Any, columns: int | None = None) -> None:
    shape = tuple(getattr(value, "shape", ()))
    if len(shape) != 2 or 0 in shape or (columns is not None and shape[1] != columns):
        wanted = "a non-empty array [rows, columns]" if columns is None else f"an array [anchors, {columns}]"
        raise ValueError(f"{name}: expected {wanted}, got shape {shape}")


def _num_bad_rows(X: Any) -> int:
    finite = X.isfinite() if hasattr(X, "isfinite") else np.isfinite(np.asarray(X))
    return int((~finite.all(1)).sum())


def _sample(X: Any, max_rows: int, seed: int, step: int) -> np.ndarray:
    """At most `max_rows` rows in random order."""
    order = np.random.default_rng([seed, step]).permutation(X.shape[0])[:max_rows]
    return _to_array(X[order.tolist()])


def _to_array(X: Any) -> np.ndarray:
    if hasattr(X, "detach"):
        X = X.detach().double().cpu().numpy()
    return np.asarray(X, dtype=np.float64)
