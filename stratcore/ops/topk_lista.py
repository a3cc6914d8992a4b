"""Top-k LISTA: unrolled sparse coding with an exact selection of the k largest entries after every step.

Legend: E experts, B rows, D input size, M atoms, K code width (largest k), T steps, P 1 or the number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stratcore.ops._checks import check_choice
from stratcore.ops._topk_lista_call import BACKWARDS, FORMS, Call
from stratcore.ops._topk_lista_op import run

# As in csrc/topk_lista/topk_lista.h: atoms for each kept one from which gathering beats dense products, and bytes
# of S up to which its rows come from the cache.
GATHER_RATIO, FAR_GATHER_RATIO, MASKED_GATHER_RATIO, NEAR_BYTES = 96, 200, 32, 80 << 20
CPU_GATHER_RATIO = 4


def topk_lista_regime(
    *,
    atoms: int,
    k: int | Sequence[int],
    form: str = "classic",
    dtype: torch.dtype = torch.float32,
    backward: str | None = None,
    device: str = "cuda",
) -> str:
    """How `topk_lista` makes its products with codes, unless `regime` forces it.

    Args:
        atoms: M.
        k: entries kept, one number or one an expert; the largest counts.
        form: 'classic' or 'coupled'.
        dtype: of the input.
        backward: None for the forward, 'straight_through' or 'masked' for that backward.
        device: 'cuda' or 'cpu'.

    Returns:
        'dense' (matrix products) or 'gather' (rows of the parameters at the kept entries). In float64 all is dense;
        on a GPU so is the forward outside of 1,025 to 16,384 atoms, a multiple of 8, and with very large k (more
        than 64 of up to 2,048 atoms, 128 of up to 4,096, 256 beyond).

    Raises:
        ValueError: an unknown form, backward or device.
    """
    check_choice("topk_lista_regime", "device", device, ("cuda", "cpu"))
    check_choice("topk_lista_regime", "form", form, FORMS)
    if backward is not None:
        check_choice("topk_lista_regime", "backward", backward, BACKWARDS)
    width = k if isinstance(k, int) else max(k)
    if device == "cpu":
        return "gather" if dtype != torch.float64 and atoms >= CPU_GATHER_RATIO * width else "dense"
    near = form == "coupled" or atoms * atoms * min(dtype.itemsize, 4) <= NEAR_BYTES
    ratio = GATHER_RATIO if near else FAR_GATHER_RATIO
    if backward == "masked":
        ratio = MASKED_GATHER_RATIO
    return "gather" if dtype != torch.float64 and atoms >= ratio * width else "dense"


class SparseCode(NamedTuple):
    """A sparse code: `values` stand at `indices`, everything else is 0.

    indices: int32 [..., K], distinct and, up to k, ascending; where an expert's k is smaller than K, the rest are
    unused atoms with value 0. values: [..., K].
    """

    indices: Tensor
    values: Tensor


def topk_lista(
    x: Tensor,
    encoder: Tensor,
    recurrent: Tensor,
    theta: Tensor,
    k: int | Sequence[int],
    *,
    num_steps: int,
    form: str = "classic",
    backward: str = "straight_through",
    input_per_expert: bool = False,
    regime: str = "auto",
) -> Tensor:
    """Sparse codes of `x` by learned iterative soft thresholding with a hard top-k after every step.

        z_0 = T_k(h_theta(W x))
        classic:  z <- T_k(h_theta(W x + S z))             num_steps times
        coupled:  z <- T_k(h_theta(z + W (x - D z)))       num_steps times

    h_theta(u) = sign(u) max(|u| - theta, 0); T_k keeps the k entries of largest magnitude, equal magnitudes in
    the order of their index. Literature that starts from z = 0 and counts L layers means num_steps = L - 1.

    Args:
        x: [..., D]; with `input_per_expert` [E, ..., D]. float64, float32, bfloat16 or float16; any strides.
        encoder: W [M, D] for one expert, [E, M, D] for several, [T + 1, E, M, D] for own weights a step.
        recurrent: classic S [M, M], coupled D [D, M]; [E, ...]; or [T, E, ...].
        theta: threshold >= 0, [M]; [E, M]; or [T + 1, E, M].
        k: entries kept, one number or one an expert, in [1, M].
        num_steps: T >= 0, products with `recurrent`.
        form: 'classic' or 'coupled'.
        backward: 'straight_through' or 'masked', see Gradient.
        input_per_expert: `x` holds an own input for every expert.
        regime: how products with codes are made, 'dense' or 'gather'; 'auto' decides by the sizes as
            `topk_lista_regime` does. No other result than by rounding.

    Returns:
        Codes [..., M]; with several experts [E, ..., M]. dtype and device of `x`.

    Raises:
        ValueError: a shape, k, form or backward that does not fit, named with what was expected.
        TypeError: not floating point, or differing dtypes.

    Gradient: true derivative of the soft threshold (1 where |u| > theta). Through the selection T_k:
    'straight_through' passes the identity, so that atoms that were not selected learn too; 'masked' passes
    the selected entries only, the exact gradient wherever the selection does not change. Differentiable twice; no
    forward mode.
    Numerics: computed in float32 (float64 for float64 input), whatever the input; products follow torch's
    matmul precision settings. NaN stays in its row. Under autocast: float32.
    Determinism: the same bits on every run, on both devices. Empty batches give empty codes.
    Cost: O(B E (M D + T M^2)) for classic, O(B E T M D) for coupled; about 2 B E M floats of scratch.
    Source: Gregor and LeCun 2010; coupling: Chen et al. 2018 (arXiv 1808.10038); csrc/topk_lista/README.md.
    """
    call = Call(x, (encoder, recurrent, theta), k, num_steps, form, backward, input_per_expert, regime)
    return call.restore(run(*call.arguments(dense=True))[0])


def topk_lista_sparse(
    x: Tensor,
    encoder: Tensor,
    recurrent: Tensor,
    theta: Tensor,
    k: int | Sequence[int],
    *,
    num_steps: int,
    form: str = "classic",
    backward: str = "straight_through",
    input_per_expert: bool = False,
    regime: str = "auto",
    every_step: bool = False,
) -> SparseCode:
    """`topk_lista` with the codes as indices and values instead of a dense tensor.

    Returns:
        SparseCode with [..., K] or [E, ..., K]; with `every_step` the codes of all steps, [T + 1, ...] in front.

    Arguments and errors: those of `topk_lista`.
    Gradient: flows through the values. Entries that the returned code does not hold get none; inside the
    recurrence `backward` rules as in `topk_lista`.
    """
    call = Call(x, (encoder, recurrent, theta), k, num_steps, form, backward, input_per_expert, regime)
    _, values, indices, _ = run(*call.arguments(dense=False))
    if not every_step:
        return SparseCode(call.restore(indices[-1]), call.restore(values[-1]))
    return SparseCode(
        torch.stack([call.restore(i) for i in indices]), torch.stack([call.restore(v) for v in values])
    )
