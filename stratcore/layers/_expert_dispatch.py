"""Experts on the tokens that are sent to them.

Legend: T tokens, K choices of a token, R = K T rows (choice-major: all first choices come first), E experts,
D input size, H hidden size, O output size, M rows of the longest segment.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import grouped_mm, linear

from stratcore.layers._expert_assignment import Assignment, assign, dispatch, within_capacity
from stratcore.layers._expert_epilogues import ACTIVATIONS, add_bias_and_activate, add_bias_and_mix
from stratcore.layers.stratum_router import Routing

DISPATCHES = ("dense", "sparse")


# ---- products with one matrix an expert


def grouped_product(x_RD: Tensor, weight_EDH: Tensor, to: Assignment) -> Tensor:
    """Products x W_e of rows sorted by expert; rows left out hold anything, in the gradient too."""
    if _has_grouped_kernel(x_RD, weight_EDH):
        return grouped_mm(x_RD, weight_EDH, offs=to.ends_E)
    return _padded_product(x_RD, weight_EDH, to)


def _has_grouped_kernel(x_RD: Tensor, weight_EDH: Tensor) -> bool:
    if any(size * x_RD.element_size() % 16 for size in weight_EDH.shape[1:]):  # it refuses such strides
        return False
    if x_RD.dtype == torch.bfloat16:
        return True
    # On GPUs it is made for bfloat16; tracing refuses other types before torch 2.15.
    on_cpu = x_RD.device.type == "cpu" and x_RD.dtype in (torch.float32, torch.float16)
    return on_cpu and not torch.compiler.is_compiling()


def _padded_product(x_RD: Tensor, weight_EDH: Tensor, to: Assignment) -> Tensor:
    """One batched product over segments padded to the longest."""
    rows, last = x_RD.shape[0], weight_EDH.shape[0] - 1
    starts_E = to.ends_E - to.ends_E.diff(prepend=to.ends_E.new_zeros(1))
    longest = to.longest
    if not torch.compiler.is_compiling():
        longest = max(1, int((to.ends_E - starts_E).max()))
    slot_EM = starts_E[:, None] + torch.arange(longest, device=x_RD.device)
    filled_EM = slot_EM < to.ends_E[:, None]
    padded_ED = x_RD.index_select(0, slot_EM.clamp_max(rows - 1).flatten())
    padded_EMD = (padded_ED.masked_fill(~filled_EM.flatten()[:, None], 0.0)).unflatten(0, slot_EM.shape)
    y_EH = torch.bmm(padded_EMD, weight_EDH).flatten(0, 1)
    expert_R = to.expert_R.clamp_max(last)
    within_R = torch.arange(rows, device=x_RD.device) - starts_E.index_select(0, expert_R)
    return y_EH.index_select(0, expert_R * longest + within_R.clamp_max(longest - 1))


# ---- experts


class ExpertMLPs(nn.Module):
    """E perceptrons with one hidden layer: f_e(x) = act(x W_e + b_e) V_e + c_e.

    Args:
        num_experts: E.
        dim: D, and O.
        hidden_dim: H.
        activation: 'relu' or 'gelu'.
        zero_output: V and c start at 0.

    Raises:
        ValueError: a size below 1 or an unknown activation.
    """

    def __init__(
        self,
        num_experts: int,
        dim: int,
        hidden_dim: int,
        *,
        activation: str = "relu",
        zero_output: bool = False,
    ) -> None:
        super().__init__()
        for name, size in (("dim", dim), ("hidden_dim", hidden_dim)):
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.num_experts, self.dim, self.hidden_dim = num_experts, dim, hidden_dim
        self.activation, self.zero_output = activation, zero_output
        self.in_weight = nn.Parameter(torch.empty(num_experts, hidden_dim, dim))
        self.in_bias = nn.Parameter(torch.empty(num_experts, hidden_dim))
        self.out_weight = nn.Parameter(torch.empty(num_experts, hidden_dim, dim))
        self.out_bias = nn.Parameter(torch.empty(num_experts, dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights anew, each expert as torch.nn.Linear starts."""
        for parameter in (self.in_weight, self.in_bias):
            parameter.uniform_(-(self.dim**-0.5), self.dim**-0.5)
        bound = 0.0 if self.zero_output else self.hidden_dim**-0.5
        for parameter in (self.out_weight, self.out_bias):
            parameter.uniform_(-bound, bound)

    def dense(self, x_TD: Tensor, weights_TE: Tensor) -> Tensor:
        """sum_e w_te f_e(x_t), [T, O], every expert on every token: two products, as one wide perceptron."""
        act = ACTIVATIONS[self.activation]
        hidden_TH = act(linear(x_TD, self.in_weight.flatten(0, 1), self.in_bias.flatten()))
        weights_TE = weights_TE.to(hidden_TH.dtype)
        weighted_TEH = hidden_TH.unflatten(-1, (self.num_experts, -1)) * weights_TE[..., None]
        return weighted_TEH.flatten(-2) @ self.out_weight.flatten(0, 1) + weights_TE @ self.out_bias

    def sparse(self, x_TD: Tensor, weights_TK: Tensor, to: Assignment) -> Tensor:
        """sum_k w_tk f_(e_tk)(x_t), [T, O], each expert on its own tokens alone."""
        dtype = x_TD.dtype
        if torch.is_autocast_enabled(x_TD.device.type):  # grouped products are none of autocast's
            dtype = torch.get_autocast_dtype(x_TD.device.type)
        rows_RD = dispatch(x_TD.to(dtype), to)
        product_RH = grouped_product(rows_RD, self.in_weight.mT.to(dtype), to)
        hidden_RH = add_bias_and_activate(product_RH, self.in_bias.to(dtype), to, self.activation)
        product_RO = grouped_product(hidden_RH, self.out_weight.to(dtype), to)
        return add_bias_and_mix(product_RO, self.out_bias.to(dtype), weights_TK, to)


def check_dispatch(how: str, mode: str, capacity_factor: float | None) -> None:
    """One clear error for a dispatch that does not fit the routing."""
    if how not in DISPATCHES:
        raise ValueError(f"dispatch: expected one of {', '.join(DISPATCHES)}, got {how!r}")
    if how == "sparse" and mode == "softmax":
        raise ValueError("dispatch: expected 'dense' with mode 'softmax', which chooses all, got 'sparse'")
    if capacity_factor is not None and how != "sparse":
        raise ValueError("capacity_factor: expected None with dispatch 'dense', which drops no token")
    if capacity_factor is not None and not (0 < capacity_factor < math.inf):
        raise ValueError(f"capacity_factor: expected a positive number or None, got {capacity_factor}")


def mix_experts(
    experts: ExpertMLPs, x: Tensor, routing: Routing, how: str, capacity_factor: float | None
) -> tuple[Tensor, Tensor | None]:
    """Mixture [..., O] of experts on [..., D] and, with a capacity, the share of assignments that overflowed.

    ONNX has neither a stable sort nor grouped products: a model exported to it runs every expert on every token.
    """
    x_TD, weights_TE = x.flatten(0, -2), routing.weights.flatten(0, -2)
    to_onnx = torch.onnx.is_in_onnx_export()
    if how == "dense" or x_TD.shape[0] == 0 or (to_onnx and capacity_factor is None):
        return experts.dense(x_TD, weights_TE).unflatten(0, x.shape[:-1]), None
    mask_T = None if routing.mask is None else routing.mask.flatten()
    selected_TK = routing.selected.flatten(0, -2)
    kept: Tensor | None
    if to_onnx and capacity_factor is not None:
        kept = within_capacity(selected_TK, experts.num_experts, mask_T, capacity_factor)
        kept_TE = torch.zeros_like(weights_TE).scatter(-1, selected_TK, kept.to(weights_TE.dtype))
        mixed_TO = experts.dense(x_TD, weights_TE * kept_TE)
    else:
        to = assign(selected_TK, experts.num_experts, mask_T, capacity_factor)
        kept, mixed_TO = to.kept_R, experts.sparse(x_TD, weights_TE.gather(-1, selected_TK), to)
    mixed = mixed_TO.unflatten(0, x.shape[:-1])
    if capacity_factor is None or kept is None:
        return mixed, None
    wanted = selected_TK.numel() if mask_T is None else mask_T.sum().clamp_min(1) * selected_TK.shape[1]
    return mixed, 1 - kept.sum() / wanted
