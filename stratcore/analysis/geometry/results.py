"""What a scan hands back: figures with their baselines, and the arrays that its pictures are drawn from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

Source = Literal["closed form", "simulation", "shuffled labels"]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What the same figure is on random rows of the same size.

    value is the expectation, or the mean over draws; low to high is where 95 % of random clouds lie by a closed form,
    or the range of all draws where they are few; NaN where only the value is known.
    """

    name: str
    source: Source
    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One figure of a scan: its value, a 95 % interval (NaN where there is none), baselines, and what it says.

    The value is NaN where the rows do not allow the figure; `reading` then says why.
    """

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    baselines: tuple[Baseline, ...] = ()
    reading: str


@dataclass(frozen=True, kw_only=True)
class ClassCV:
    """CV of simplex volumes of one class's directions, and the dimension of random rows with the same CV.

    dim is that of uniform rows on the whole sphere, with its interval. A class that fills only a small cap looks flat
    from inside: its rows are closer to normal ones, whose dimension with this CV is normal_dim, a few times dim.
    """

    label: str
    num_rows: int
    cv: float
    low: float
    high: float
    dim: float
    dim_low: float
    dim_high: float
    normal_dim: float


@dataclass(frozen=True, kw_only=True)
class ScanCurves:
    """Arrays for the pictures: norms [n], cosines of sampled pairs [p], covariance eigenvalues largest first."""

    norms: np.ndarray
    cosines: np.ndarray
    eigenvalues: np.ndarray
    isotropic_eigenvalues: np.ndarray


@dataclass(frozen=True, kw_only=True)
class GeometryScan:
    """A scan of one matrix of rows.

    num_scanned rows of num_rows were looked at. order: of the simplices. notes: what the reader should know of the
    rows themselves.
    """

    num_rows: int
    num_features: int
    num_scanned: int
    num_zero_rows: int
    num_duplicate_rows: int
    num_constant_columns: int
    order: int
    seed: int
    measurements: tuple[Measurement, ...]
    class_cv: tuple[ClassCV, ...]
    curves: ScanCurves
    notes: tuple[str, ...]

    def __getitem__(self, name: str) -> Measurement:
        for measurement in self.measurements:
            if measurement.name == name:
                return measurement
        names = ", ".join(m.name for m in self.measurements)
        raise KeyError(f"{name!r}: expected one of {names}")
