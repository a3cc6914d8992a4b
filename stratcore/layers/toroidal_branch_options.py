"""Options of `ToroidalBranch`. Legend: H query heads, E head size, D depth (slices of a head)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stratcore import ops
from stratcore.layers.depth_fusion import FUSIONS
from stratcore.layers.toroidal_options import METRICS

GATES = ("zero", "open")
DEPTH_ATTENTIONS = ("factored", "coupled")


@dataclass(frozen=True, kw_only=True)
class ToroidalBranchOptions:
    """Form of a `ToroidalBranch`.

    Args:
        period: tokens of a whole turn, part of the model; None: to be set by who builds the branch, to the host's
            number of positions.
        wrap: sequences may be longer than the period; tokens a period apart then have distance 0. Else they are
            refused.
        window: queries look at keys at most so many tokens away along the sequence, in all slices of these; None: at
            all. A key that comes near again around the torus stays hidden. A cache of keys keeps all of them.
        metric: 'l1', 'l2', 'linf', 'chordal' or 'chordal_sq', in units of one token's step (squared).
        lambda_distance: what a step takes off a score at the start: one number, one a head, or 'alibi'.
            `normalized_slopes` turns the source documents' lambda into it.
        learn_lambda: every head learns its own, of any sign.
        depth: D, slices of a head; see `legal_depths`.
        adaptive_depths: depths that an `AdaptiveDepthBranch` chooses from, in place of `depth`.
        temperature: of that choice in training.
        depth_attention: 'factored': a slice attends to the same slice of other tokens; 'coupled': to all slices of
            them, D times the cost. Depth is then one more axis of the torus, of period D. Slices turn at frequencies
            of their own, so that scores between two of them depend on positions themselves, not on differences
            alone, where queries and keys come with a rotary embedding.
        fusion: how slices are mixed behind it, see `DepthFusion`: 'low_rank', 'attention', 'mean' or None. Nothing
            to mix at depth 1.
        gate: 'zero': the branch is blended in by a learned gate that starts closed. 'open': it replaces the
            attention beside it, which is then not computed.
        eps: most of a row's probability that may be lost to tiles not looked at.

    Raises:
        ValueError: a value that does not fit.
    """

    period: int | None = None
    wrap: bool = False
    window: int | None = None
    metric: str = "l1"
    lambda_distance: float | str | tuple[float, ...] = 0.01
    learn_lambda: bool = True
    depth: int = 1
    adaptive_depths: tuple[int, ...] = ()
    temperature: float = 1.0
    depth_attention: str = "factored"
    fusion: str | None = "low_rank"
    gate: str = "zero"
    eps: float = 0.0

    def __post_init__(self) -> None:
        if self.period is not None and self.period < 1:
            raise ValueError(f"period: expected at least 1 token, got {self.period}")
        if self.depth < 1:
            raise ValueError(f"depth: expected at least 1, got {self.depth}")
        depths = self.adaptive_depths
        if depths and (
            self.depth != 1 or len({*depths}) != len(depths) or len(depths) < 2 or min(depths) < 1
        ):
            raise ValueError(
                "adaptive_depths: expected at least two different depths, and depth left at 1, got "
                f"{', '.join(map(str, depths))} and {self.depth}"
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature: expected a number > 0, got {self.temperature}")
        if self.window is not None and self.window < 0:
            raise ValueError(f"window: expected at least 0 tokens or None, got {self.window}")
        choices: dict[str, Sequence[str]] = {
            "metric": METRICS,
            "depth_attention": DEPTH_ATTENTIONS,
            "gate": GATES,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.fusion is not None and self.fusion not in FUSIONS:
            raise ValueError(f"fusion: expected one of {', '.join(FUSIONS)} or None, got {self.fusion!r}")
        if not 0 <= self.eps < 1:
            raise ValueError(f"eps: expected a number in [0, 1), got {self.eps}")
        self._check_lambda()

    def _check_lambda(self) -> None:
        given = self.lambda_distance
        if isinstance(given, str):
            if given != "alibi":
                raise ValueError(f"lambda_distance: expected numbers or 'alibi', got {given!r}")
            return
        values = given if isinstance(given, tuple) else (given,)
        if not values or not torch.tensor(values, dtype=torch.float64).isfinite().all():
            raise ValueError(f"lambda_distance: expected finite numbers, got {given}")
        flat = self.depth == 1 and not self.adaptive_depths
        if self.gate == "zero" and self.learn_lambda and flat and not any(values):
            raise ValueError(
                "lambda_distance: expected a number other than 0, got 0 behind a closed gate: at depth 1 the branch "
                "equals its host there, so that neither gate nor lambda has a gradient; open the gate, or set "
                "learn_lambda false"
            )

    @property
    def coupled(self) -> bool:
        """Whether slices attend to all slices."""
        return self.depth > 1 and self.depth_attention == "coupled"

    def starting_lambdas(self, num_heads: int) -> Tensor:
        """`lambda_distance` of every head, [H] float32.

        Raises:
            ValueError: numbers that are neither one nor one a head.
        """
        given = self.lambda_distance
        if isinstance(given, str):
            return ops.alibi_slopes(num_heads).float()
        values = torch.tensor(given if isinstance(given, tuple) else (given,), dtype=torch.float32)
        if values.numel() not in (1, num_heads):
            raise ValueError(
                f"lambda_distance: expected one number or one for each of {num_heads} heads, got {values.numel()}"
            )
        return values.expand(num_heads).clone()


def legal_depths(head_dim: int, *, rotary: bool) -> list[int]:
    """Numbers of slices that a head can be cut into.

    Args:
        head_dim: E.
        rotary: pairs of channels turn together, so that a slice holds an even number of them.
    """
    step = 2 if rotary else 1
    return [
        depth for depth in range(1, head_dim + 1) if head_dim % depth == 0 and head_dim // depth % step == 0
    ]
