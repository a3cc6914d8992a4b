"""Texts of made-up words whose label needs the stratum to be read, with a known best accuracy.

Legend: N texts, S strata, C content words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stratcore.data.classification import ClassificationTable

LABELS = ("negative", "positive")


@dataclass(frozen=True, kw_only=True)
class TokenStrataOptions:
    """Size and difficulty.

    Args:
        texts: N.
        strata: S; each has a marker word of its own.
        words: C content words, which all strata share.
        length: content words of a text.
        dims: dimensions of the strata, one each: so many latent coordinates of a word count in it.
        noise: share of labels that are turned over, in [0, .5).
        seed: of the draw.

    Raises:
        ValueError: a number out of its range.
    """

    texts: int = 8000
    strata: int = 4
    words: int = 16
    length: int = 12
    dims: tuple[int, ...] = (1, 2, 4, 8)
    noise: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.texts < 1 or self.words < 2 or self.length < 1 or self.strata < 1:
            raise ValueError(
                "texts, strata, words, length: expected at least 1, 1, 2 and 1, "
                f"got {self.texts}, {self.strata}, {self.words}, {self.length}"
            )
        if len(self.dims) != self.strata or min(self.dims) < 1:
            raise ValueError(f"dims: expected {self.strata} numbers >= 1, one a stratum, got {self.dims}")
        if not 0 <= self.noise < 0.5:
            raise ValueError(f"noise: expected a share in [0, .5), got {self.noise}")


def token_strata(options: TokenStrataOptions) -> ClassificationTable:
    """Draw texts of content words and one marker; the label is a linear rule of the marker's stratum.

        y = [sum_i s_m(w_i) > 0],   s_m(w) = a_m . z(w), a_m in the d_m coordinates of stratum m

    Every word has a latent point z(w); stratum m looks at d_m coordinates of its own, so the same words mean one
    thing after one marker and another after the next: without the marker the label cannot be told.

    Args:
        options: size and difficulty.

    Returns:
        Texts such as "w17 m2 w3 ...", labels balanced within each stratum to one text, domains = strata.

    Determinism: a function of the options.
    """
    rng = np.random.default_rng(options.seed)
    scores_SC = np.stack([_scores(rng, options.words, dim) for dim in options.dims])
    domain_N = np.arange(options.texts) % options.strata
    words_NL = rng.integers(options.words, size=(options.texts, options.length))
    label_N = np.empty(options.texts, np.int64)
    for stratum in range(options.strata):
        own = domain_N == stratum
        total = scores_SC[stratum][words_NL[own]].sum(axis=1)
        label_N[own] = total > np.median(total)
    flipped = rng.random(options.texts) < options.noise
    label_N = np.where(flipped, 1 - label_N, label_N)
    place_N = rng.integers(options.length + 1, size=options.texts)
    texts = tuple(
        " ".join(np.insert(np.char.add("w", row.astype(str)).astype(object), place, f"m{stratum}"))
        for row, place, stratum in zip(words_NL, place_N, domain_N, strict=True)
    )
    return ClassificationTable(
        texts=texts,
        label=label_N,
        label_names=LABELS,
        domain=domain_N,
        domain_names=tuple(f"stratum {index}" for index in range(options.strata)),
        source="token_strata",
    )


def vocabulary(options: TokenStrataOptions) -> list[str]:
    """All words: markers, then content words."""
    return [f"m{index}" for index in range(options.strata)] + [f"w{index}" for index in range(options.words)]


def best_accuracy(options: TokenStrataOptions) -> float:
    """Accuracy of the rule itself, which nothing can beat but by luck: 1 - noise."""
    return 1.0 - options.noise


def _scores(rng: np.random.Generator, words: int, dim: int) -> np.ndarray:
    """Scores [C] of the words in a stratum of a dimension, mean 0 and variance 1."""
    latent = rng.standard_normal((words, dim))
    weights = rng.standard_normal(dim)
    scores = latent @ weights
    return (scores - scores.mean()) / scores.std()
