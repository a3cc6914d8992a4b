"""Legend: E experts, B rows, D input size, M atoms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from stratcore.layers import ListaOptions, TopKLISTA

pytestmark = pytest.mark.usefixtures("single_thread")
K = (2, 4, 12)
FORMS = ["coupled", "classic"]


def options(**changes: Any) -> ListaOptions:
    return ListaOptions(**{"input_dim": 8, "atoms": 12, "sparsities": K, "threshold": 0.05, **changes})


def dictionaries(seed: int = 1, atoms: int = 12, dim: int = 8, experts: int = len(K)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(experts, dim, atoms, generator=generator, dtype=torch.float64), dim=1)


def rows(count: int = 20, dim: int = 8, seed: int = 2) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def started(dictionary_EDM: Tensor, step_E: Tensor | None = None, **changes: Any) -> TopKLISTA:
    lista = TopKLISTA(options(**changes)).double()
    lista.initialize(dictionary_EDM, step_E)
    return lista


def iterative_thresholding(x_BD: Tensor, dictionary_DM: Tensor, k: int, theta: float, steps: int) -> Tensor:
    """Plain loops from z = 0: z <- T_k(h_theta(z + D^T (x - D z) / L)), steps + 1 times."""
    step = 1 / torch.linalg.eigvalsh(dictionary_DM.mT @ dictionary_DM)[-1]
    z_BM = x_BD.new_zeros(x_BD.shape[0], dictionary_DM.shape[1])
    for _ in range(steps + 1):
        u_BM = z_BM + step * (x_BD - z_BM @ dictionary_DM.mT) @ dictionary_DM
        h_BM = u_BM.sign() * (u_BM.abs() - theta).clamp_min(0)
        z_BM = torch.zeros_like(h_BM)
        for row in range(len(h_BM)):
            kept = h_BM[row].abs().argsort(descending=True, stable=True)[:k]
            z_BM[row, kept] = h_BM[row, kept]
    return z_BM


# ---- the start is plain iterative thresholding


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.05])
@pytest.mark.parametrize("num_steps", [0, 1, 5])
@pytest.mark.parametrize("tied", [False, True])
def test_the_start_is_iterative_thresholding(form, per_step, threshold, num_steps, tied):
    dictionary, x = dictionaries(), rows()
    changes = {
        "form": form,
        "per_step": per_step,
        "threshold": threshold,
        "num_steps": num_steps,
        "tied": tied,
    }
    lista = started(dictionary, **changes)
    wanted = torch.stack(
        [iterative_thresholding(x, dictionary[e], k, threshold or 0.0, num_steps) for e, k in enumerate(K)]
    )
    torch.testing.assert_close(lista(x, dictionary), wanted, rtol=1e-10, atol=1e-12)


def test_a_given_step_size_scales_the_encoder():
    dictionary, step = dictionaries(), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    classic = started(dictionary, step, form="classic")
    torch.testing.assert_close(classic.weight(dictionary)[0], step[:, None, None] * dictionary.mT)
    torch.testing.assert_close(
        classic.recurrent[0],
        torch.eye(12, dtype=torch.float64) - step[:, None, None] * dictionary.mT @ dictionary,
    )
    torch.testing.assert_close(classic.threshold(), torch.full((1, 3, 12), 0.05, dtype=torch.float64))


@pytest.mark.parametrize("form", FORMS)
def test_more_steps_reconstruct_better(form):
    dictionary = dictionaries(atoms=24, dim=16, experts=1)
    codes = torch.zeros(200, 24, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    for row in codes:
        row[torch.randperm(24, generator=generator)[:3]] = 1 + torch.rand(3, generator=generator).double()
    x = codes @ dictionary[0].mT
    errors = []
    for num_steps in (0, 2, 8, 32):
        lista = started(
            dictionary,
            input_dim=16,
            atoms=24,
            sparsities=(3,),
            form=form,
            num_steps=num_steps,
            threshold=None,
        )
        errors.append(float((x - lista(x, dictionary)[0] @ dictionary[0].mT).square().mean().detach()))
    assert all(one > 1.2 * more for one, more in zip(errors, errors[1:], strict=False)), errors
    assert errors[3] < 0.3 * errors[0]


# ---- sparsity and shapes


@pytest.mark.parametrize("form", FORMS)
def test_exactly_k_without_a_threshold_and_at_most_k_with_one(form):
    dictionary, x = dictionaries(), rows(50)
    counts = (started(dictionary, form=form, threshold=None)(x, dictionary) != 0).sum(-1)
    assert torch.equal(counts, torch.tensor(K)[:, None].expand(3, 50))
    high = (started(dictionary, form=form, threshold=0.3)(x, dictionary) != 0).sum(-1)
    assert (high <= torch.tensor(K)[:, None]).all() and (high < torch.tensor(K)[:, None]).any()


def test_shapes_and_an_input_of_its_own_for_every_expert():
    dictionary, x = dictionaries(), rows(6)
    lista = started(dictionary)
    assert lista(x.view(2, 3, 8), dictionary).shape == (3, 2, 3, 12)
    each = torch.stack([x, 2 * x, -x])
    codes = lista(each, dictionary, input_per_expert=True)
    for e in range(3):
        torch.testing.assert_close(codes[e], lista(each[e], dictionary)[e], rtol=0, atol=0)


# ---- learning


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("backward", ["masked", "straight_through"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_expert_of_every_parameter_gets_a_finite_gradient(form, per_step, backward, tied):
    dictionary, x = dictionaries().requires_grad_(), rows(40)
    lista = started(dictionary.detach(), form=form, per_step=per_step, backward=backward, tied=tied)
    (lista(x, dictionary) @ dictionary.mT - x).square().sum().backward()
    expected = {"log_step", "log_threshold"} | (set() if tied else {"directions"})
    expected |= {"recurrent"} if form == "classic" else set()
    assert {name for name, _ in lista.named_parameters()} == expected
    for name, parameter in lista.named_parameters():
        gradient = parameter.grad
        assert gradient.isfinite().all(), name
        per_slice = gradient.flatten(2).abs().sum(-1) if gradient.ndim > 2 else gradient.abs()
        assert (per_slice > 0).all(), f"{name}: steps and experts without gradient {per_slice.tolist()}"
    assert (dictionary.grad.abs().sum((1, 2)) > 0).all()


def test_training_the_encoder_alone_beats_its_start():
    dictionary, x = dictionaries(), rows(200)
    lista = started(dictionary, num_steps=2, backward="masked")

    def error() -> Tensor:
        return (lista(x, dictionary) @ dictionary.mT - x).square().mean()

    before = float(error().detach())
    optimizer = torch.optim.Adam(lista.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        error().backward()
        optimizer.step()
    assert float(error().detach()) < 0.8 * before


@pytest.mark.parametrize("threshold", [None, 0.05])
def test_state_dict_round_trip_is_bitwise(threshold):
    dictionary, x = dictionaries(), rows()
    first = started(dictionary, form="classic", per_step=True, threshold=threshold)
    names = {"directions", "log_step", "recurrent"} | (set() if threshold is None else {"log_threshold"})
    assert set(first.state_dict()) == names
    second = started(dictionaries(seed=9), form="classic", per_step=True, threshold=threshold)
    assert not torch.equal(first(x, dictionary), second(x, dictionary))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x, dictionary), second(x, dictionary))


def test_a_tied_encoder_follows_its_dictionary():
    dictionary, x = dictionaries(), rows()
    lista = started(dictionary, tied=True)
    moved = dictionaries(seed=5)
    own_start = started(moved, lista.log_step.detach()[0].exp())
    torch.testing.assert_close(lista(x, moved), own_start(x, moved))
    assert lista.directions is None


# ---- options


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("num_steps", [0, 3])
def test_flops_are_those_of_the_op(form, per_step, num_steps):
    dictionary, x = dictionaries(), rows(5)
    lista = started(dictionary, form=form, per_step=per_step, num_steps=num_steps)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        lista(x, dictionary)
    assert counter.get_total_flops() == 3 * 5 * lista.options.flops_per_row


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsities": ()}, r"sparsities: expected numbers in \[1, atoms = 12\], got \(\)"),
        ({"sparsities": (2, 13)}, r"sparsities: .* got \(2, 13\)"),
        ({"sparsities": (0,)}, "sparsities"),
        ({"form": "tied"}, "form: expected 'coupled' or 'classic', got 'tied'"),
        ({"backward": "soft"}, "backward: expected 'straight_through' or 'masked', got 'soft'"),
        ({"input_dim": 0}, "input_dim: expected at least 1, got 0"),
        ({"num_steps": -1}, "num_steps: expected at least 0, got -1"),
        ({"threshold": 0.0}, "threshold: expected a positive number or None, got 0.0"),
    ],
)
def test_bad_options_are_one_clear_line(changes, message):
    with pytest.raises(ValueError, match=message):
        options(**changes)
    assert options().num_experts == 3
