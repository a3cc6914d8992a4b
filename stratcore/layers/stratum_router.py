"""Routing of tokens to strata. Legend: S strata (or experts), K chosen of them, D channels, T tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import register_dataclass

from stratcore.layers._residual_branch import checked_mask, token_mean

ROUTING_MODES = ("softmax", "top_k", "straight_through")
SELECTORS = ("sequence", "token")


def check_routing(num_strata: int, mode: str, top_k: int, temperature: float, noise: float) -> None:
    """One clear error for options that do not fit each other.

    Raises:
        ValueError: which one, what was expected and what was got.
    """
    if num_strata < 1:
        raise ValueError(f"number of strata or experts: expected at least 1, got {num_strata}")
    if mode not in ROUTING_MODES:
        raise ValueError(f"mode: expected one of {', '.join(ROUTING_MODES)}, got {mode!r}")
    if not 1 <= top_k <= num_strata:
        raise ValueError(f"top_k: expected a number in [1, {num_strata}], got {top_k}")
    if mode != "top_k" and top_k != 1:
        raise ValueError(f"top_k: expected 1 with mode {mode!r}, got {top_k}")
    if not temperature > 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    if not noise >= 0:
        raise ValueError(f"noise: expected at least 0, got {noise}")


@dataclass(frozen=True, kw_only=True)
class RouterOptions:
    """Size and form of a `StratumRouter`.

    Args:
        num_strata: S.
        mode: 'softmax', 'top_k' or 'straight_through', see `route`.
        top_k: K of mode 'top_k'; 1 in the others.
        temperature: divides the logits.
        noise: standard deviation of normal noise on the logits, in training only.
        hidden_dim: size of the hidden layer; None: half the input, 0: no hidden layer, the router is linear.
    """

    num_strata: int = 3
    mode: str = "softmax"
    top_k: int = 1
    temperature: float = 1.0
    noise: float = 0.0
    hidden_dim: int | None = None

    def __post_init__(self) -> None:
        check_routing(self.num_strata, self.mode, self.top_k, self.temperature, self.noise)
        if self.hidden_dim is not None and self.hidden_dim < 0:
            raise ValueError(f"hidden_dim: expected at least 0 or None, got {self.hidden_dim}")


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Where tokens go.

    logits: [..., S] of the router, without noise. probabilities: [..., S], their softmax. weights: [..., S] of the
    mixture, 0 at strata that were not chosen and at pads. selected: int64 [..., K], the chosen strata, the most
    probable first; K = 1 in the soft mode. mask: bool [...], true at real tokens, or None.
    """

    logits: Tensor
    probabilities: Tensor
    weights: Tensor
    selected: Tensor
    mask: Tensor | None

    def load(self) -> Tensor:
        """Share of the assignments that each stratum takes, [S]; no gradient. They sum to 1."""
        return _mean_over_tokens(_chosen(self), self.mask) / self.selected.shape[-1]

    def load_variation(self) -> Tensor:
        """Standard deviation of the load divided by its mean, a scalar: 0 for an even load."""
        return _variation(self.load())


register_dataclass(Routing)


def route(
    logits: Tensor,
    mask: Tensor | None = None,
    *,
    mode: str = "softmax",
    top_k: int = 1,
    temperature: float = 1.0,
    noise: float = 0.0,
) -> Routing:
    """Weights of a mixture over strata from logits.

        p = softmax((logits + noise n) / temperature),  n normal
        softmax           w = p
        top_k             w_s = p_s / sum over the chosen, for the K largest, else 0; for K = 1 w = p of the largest
        straight_through  w = one-hot of the largest p

    Args:
        logits: [..., S], floating point.
        mask: [...], bool, true at real tokens; weights are 0 elsewhere.
        mode: one of the three.
        top_k: K, in [1, S]; 1 unless the mode is 'top_k'.
        temperature: positive.
        noise: at least 0; give 0 in evaluation.

    Returns:
        The routing. Weights sum to 1 at real tokens, but for 'top_k' with K = 1.

    Raises:
        ValueError: an unknown mode or a number out of its range.

    Gradient: softmax, top_k: exact for the selection made. A single chosen probability that were divided by itself
        would be the constant 1, from which a router learns nothing; so K = 1 keeps p, as the Switch Transformer.
        straight_through: that of p.
    Numerics: 16-bit logits are raised to float32. Ties go to the lower stratum.
    Determinism: bitwise; noise is drawn from torch's generator.
    Cost: O(K S) a token for few choices, O(S log S) for many.
    Source: Shazeer et al. 2017; Fedus et al. 2021.
    """
    check_routing(logits.shape[-1], mode, top_k, temperature, noise)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    noisy = logits + noise * torch.randn_like(logits) if noise else logits
    probabilities = (noisy if temperature == 1 else noisy / temperature).softmax(-1)
    if mode == "softmax":
        selected = probabilities.argmax(-1, keepdim=True)
        weights = probabilities
    else:
        selected = _largest(noisy.detach(), top_k)
        chosen = torch.zeros_like(probabilities).scatter(-1, selected, 1.0)
        if mode == "straight_through":
            weights = chosen + (probabilities - probabilities.detach())  # in this order exactly one-hot
        else:
            weights = probabilities * chosen
            if top_k > 1:
                weights = weights / weights.sum(-1, keepdim=True)
    if mask is not None:
        weights = torch.where(mask[..., None], weights, 0.0)
    return Routing(logits=logits, probabilities=probabilities, weights=weights, selected=selected, mask=mask)


def _largest(logits: Tensor, k: int) -> Tensor:
    """Places [..., K] of the K largest, the largest first, of equal ones the lower first; NaN counts as the largest.

    Few are found one by one, faster than by a stable sort, which has no counterpart in ONNX either.
    """
    if k > max(2, logits.shape[-1] // 4) and not torch.compiler.is_exporting():
        return logits.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    found = [logits.argmax(-1, keepdim=True)]
    if k > 1:  # what is found becomes -inf, behind all that was
        logits = logits.clamp_min(torch.finfo(logits.dtype).min)
    for _ in range(k - 1):
        logits = logits.scatter(-1, found[-1], -torch.inf)
        found.append(logits.argmax(-1, keepdim=True))
    return torch.cat(found, -1) if k > 1 else found[0]


class StratumRouter(nn.Module):
    """A small network that sends each row to strata: logits W_2 relu(W_1 x + b_1) + b_2, then `route`.

    Args:
        dim: D.
        options: size and form.

    Shapes: input [..., D], mask [...]; result `Routing` over [..., S].
    Gradient: see `route`.
    Numerics: computed outside autocast in the type of its weights, as routing flips with rounding.
    Cost: D^2 + D S operations a row at the default hidden size.
    Source: the source documents, whose choice by argmax gave the router no gradient.
    """

    def __init__(self, dim: int, options: RouterOptions | None = None) -> None:
        super().__init__()
        self.dim, self.options = dim, options or RouterOptions()
        hidden, strata = self.options.hidden_dim, self.options.num_strata
        hidden = max(1, dim // 2) if hidden is None else hidden
        self.network: nn.Module
        if hidden:
            self.network = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, strata))
        else:
            self.network = nn.Linear(dim, strata)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Routing:
        """Routing of rows [..., D].

        Raises:
            ValueError: rows of another size, or a mask of another shape.
        """
        if x.shape[-1] != self.dim:
            raise ValueError(f"x: expected shape [..., {self.dim}], got {list(x.shape)}")
        options = self.options
        return route(
            full_precision(self.network, x),
            checked_mask(mask, x.shape[:-1]),
            mode=options.mode,
            top_k=options.top_k,
            temperature=options.temperature,
            noise=options.noise if self.training else 0.0,
        )

    def select(self, x: Tensor, mask: Tensor | None, selector: str) -> tuple[Routing, Tensor]:
        """Routing and weights [B, N, S] of tokens [B, N, D], for each token or one for a whole sequence.

        selector 'sequence' routes the mean over real tokens; its routing is over [B, S].
        """
        if selector == "token":
            routing = self(x, mask)
            return routing, routing.weights
        routing = self(token_mean(x, mask), None if mask is None else mask.any(1))
        return routing, routing.weights[:, None].expand(*x.shape[:2], -1)


def full_precision(module: nn.Module, x: Tensor) -> Tensor:
    """module(x) outside autocast, in the type of the module's weights."""
    with torch.autocast(x.device.type, enabled=False):
        return module(x.to(next(module.parameters()).dtype))


# ---- losses, unweighted


def load_balance_loss(routing: Routing) -> Tensor:
    """S sum_s f_s P_s, a scalar: 1 for an even load, up to S when one stratum takes all.

    f is the share of assignments that a stratum takes (no gradient), P its mean probability, both over real tokens
    of this process. Source: Fedus et al. 2021.
    """
    return _balance(_mean_over_tokens(routing.probabilities, routing.mask), routing.load())


def router_z_loss(routing: Routing) -> Tensor:
    """Mean over real tokens of logsumexp(logits)^2, a scalar: keeps logits small. Source: Zoph et al. 2022."""
    return _mean_over_tokens(_squared_logsumexp(routing), routing.mask).sum()


def routing_entropy(routing: Routing) -> Tensor:
    """Mean over real tokens of the entropy of the probabilities, a scalar in nats, at most log S."""
    return _mean_over_tokens(_entropy(routing), routing.mask).sum()


def usage_loss(routing: Routing) -> Tensor:
    """mean_s (P_s - 1 / S)^2, a scalar, P the mean probability over real tokens. Source: the source documents."""
    return _usage(_mean_over_tokens(routing.probabilities, routing.mask), routing.mask)


def routing_losses(routing: Routing) -> tuple[dict[str, Tensor], Tensor]:
    """All four, by name, and the variation of the load, with one sum over tokens.

    Returns:
        'balance', 'z', 'entropy', 'usage', and `Routing.load_variation`.
    """
    strata = routing.probabilities.shape[-1]
    of_tokens = [routing.probabilities, _chosen(routing), _squared_logsumexp(routing), _entropy(routing)]
    means = _mean_over_tokens(torch.cat(of_tokens, -1), routing.mask)
    mean_S, load_S = means[:strata], means[strata : 2 * strata].detach() / routing.selected.shape[-1]
    losses = {
        "balance": _balance(mean_S, load_S),
        "z": means[-2],
        "entropy": means[-1],
        "usage": _usage(mean_S, routing.mask),
    }
    return losses, _variation(load_S)


def _chosen(routing: Routing) -> Tensor:
    """1 at the chosen strata [..., S], else 0."""
    return torch.zeros_like(routing.probabilities.detach()).scatter(-1, routing.selected, 1.0)


def _squared_logsumexp(routing: Routing) -> Tensor:
    return routing.logits.logsumexp(-1, keepdim=True).square()


def _entropy(routing: Routing) -> Tensor:
    probabilities = routing.probabilities
    return -(probabilities * probabilities.clamp_min(1e-30).log()).sum(-1, keepdim=True)


def _balance(mean_S: Tensor, load_S: Tensor) -> Tensor:
    return mean_S.numel() * (load_S * mean_S).sum()


def _usage(mean_S: Tensor, mask: Tensor | None) -> Tensor:
    distance = (mean_S - 1 / mean_S.numel()).square().mean()
    return distance if mask is None else distance * mask.any()


def _variation(load_S: Tensor) -> Tensor:
    return load_S.std(correction=0) * load_S.numel()


def _mean_over_tokens(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of [..., S] over all real tokens, [S]; 0 when there are none."""
    rows_TS = values.flatten(0, -2) if values.dim() > 1 else values[None]
    if mask is None:
        return rows_TS.sum(0) / max(rows_TS.shape[0], 1)
    mask_T = mask.flatten()
    return torch.where(mask_T[:, None], rows_TS, 0.0).sum(0) / mask_T.sum().clamp_min(1)
