"""Language models on several text sets, scored by one rule and compared text by text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PerplexitySuiteRun:
    """Score every model on every set.

    Args:
        recipe: name of the recipe that this run is derived from.
        models: folders (of transformers, or what `ToroidalLM.save_pretrained` wrote), .gguf files or hub names; the
            others are compared with the first.
        sets: names of text sets or files, see `stratcore.data.load_texts`.
        rows: texts drawn from each set; None: all.
        seed: of the draw and of the bootstrap.
        window: tokens a model sees at once.
        stride: tokens by which the window moves along a longer text; None: half the window.
        dtype: of the weights.
        device: 'auto' (a GPU if there is one), 'cpu' or 'cuda'.
    """

    recipe: str = "perplexity_suite"
    models: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    rows: int | None = None
    seed: int = 0
    window: int = 1024
    stride: int | None = None
    dtype: str = "float32"
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("models", "sets"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ValueError(f"{name}: expected different names, got {getattr(self, name)}")
        for name in ("rows", "stride"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number >= 1, got {getattr(self, name)}")
        if self.window < 2:
            raise ValueError(f"window: expected a number >= 2, got {self.window}")


def perplexity_suite() -> PerplexitySuiteRun:
    """Perplexity of language models on several text sets, by one rule, with intervals over texts."""
    return PerplexitySuiteRun()
