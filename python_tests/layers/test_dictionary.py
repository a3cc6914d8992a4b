"""Legend: E experts, B rows, D input size, M atoms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from stratcore.layers import DictionaryExperts, ListaOptions

pytestmark = pytest.mark.usefixtures("single_thread")
K = (2, 4, 6)
FORMS = ["coupled", "classic"]


def experts(*, centers: bool = True, **changes: Any) -> DictionaryExperts:
    options = {"input_dim": 8, "atoms": 16, "sparsities": K, "threshold": None, "num_steps": 3, **changes}
    return DictionaryExperts(ListaOptions(**options), centers=centers).double()


def rows(count: int = 60, seed: int = 2) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def best_rows_error(module: DictionaryExperts, x_BD: Tensor) -> Tensor:
    """Mean squared residual [E] of the share 1 / E of the rows that each expert reconstructs best."""
    with torch.no_grad():
        error_EB = (x_BD - module(x_BD)[1]).square().sum(-1)
    return error_EB.sort(-1).values[:, : len(x_BD) // len(K)].mean(-1)


def test_codes_and_reconstructions_are_those_of_the_formula():
    module, x = experts(), rows()
    with torch.no_grad():
        module.centers.copy_(rows(3, seed=5))
    codes, each = module(x)
    assert codes.shape == (3, 60, 16) and each.shape == (3, 60, 8)
    for e, k in enumerate(K):
        alone = module.encoder(x - module.centers[e], module.atoms)[e]
        torch.testing.assert_close(codes[e], alone)
        torch.testing.assert_close(each[e], module.centers[e] + alone @ module.atoms[e].mT)
        assert ((codes[e] != 0).sum(-1) == k).all()


def test_atoms_start_and_stay_on_the_sphere():
    module = experts()
    ones = torch.ones(3, 16, dtype=torch.float64)
    module.normalize_atoms()
    torch.testing.assert_close(module.atoms.norm(dim=1), ones)
    direction = module.atoms.detach().clone()
    with torch.no_grad():
        module.atoms.mul_(torch.rand(3, 1, 16) + 0.5)
    module.normalize_atoms()
    torch.testing.assert_close(module.atoms.detach(), direction)


def test_an_atom_of_zero_becomes_an_axis():
    module = experts()
    with torch.no_grad():
        module.atoms[1, :, 11] = 0.0
    module.normalize_atoms()
    assert torch.equal(module.atoms[1, :, 11].detach(), torch.eye(8, dtype=torch.float64)[3])


def test_two_seeds_give_two_dictionaries_and_one_seed_one():
    first = experts().atoms
    torch.manual_seed(0)
    again = experts().atoms
    other = experts().atoms
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("form", FORMS)
def test_every_expert_of_every_parameter_gets_a_finite_gradient(form):
    module, x = experts(form=form, threshold=0.01), rows()
    codes, each = module(x)
    ((each - x).square().mean() + codes.abs().mean()).backward()
    for name, parameter in module.named_parameters():
        gradient = parameter.grad
        axis = 1 if name.startswith("encoder.") else 0
        size = gradient.movedim(axis, 0).flatten(1).abs().amax(1)
        assert gradient.isfinite().all() and (size > 0).all(), f"{name}: {size.tolist()}"


def test_a_code_worse_than_the_center_gives_way_to_it():
    """A step far beyond 2 / L diverges."""
    module, x = experts(), rows()
    with torch.no_grad():
        module.centers.copy_(rows(3, seed=5))
        module.encoder.log_step[:, 1] = math.log(20.0)
    codes, each = module(x)
    assert not codes[1].any() and torch.equal(each[1], module.centers[1].expand(60, -1))
    torch.testing.assert_close(each, module.decode(codes))
    (each - x).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.isfinite().all(), name


def test_frozen_centers_stay_at_zero():
    module = experts(centers=False)
    module(rows())[1].square().sum().backward()
    assert module.centers.grad is None and not module.centers.any()


# ---- new atoms


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tied", [False, True])
def test_replace_atoms_touches_these_alone_and_the_encoder_matches(form, tied):
    module, x = experts(form=form, tied=tied), rows()
    before = module.atoms.detach().clone()
    new = rows(2, seed=7)
    module.replace_atoms(1, torch.tensor([3, 9]), new)
    changed = (module.atoms != before).any(1)
    assert changed.nonzero().tolist() == [[1, 3], [1, 9]]
    torch.testing.assert_close(module.atoms[1, :, [3, 9]], normalize(new, dim=-1).mT)

    fresh = experts(form=form, tied=tied)
    with torch.no_grad():
        fresh.atoms.copy_(module.atoms)
    fresh.encoder.initialize(module.atoms, module.encoder.log_step.detach()[0].exp())
    torch.testing.assert_close(module(x)[0], fresh(x)[0])


# ---- step size


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_steps", [0, 3])
def test_search_step_is_never_worse_than_one_over_l(form, num_steps):
    module, x = experts(form=form, num_steps=num_steps), rows(120)
    atoms = module.atoms.detach().clone()
    module.encoder.initialize(module.atoms)
    safe = best_rows_error(module, x)
    module.search_step(x)
    found = best_rows_error(module, x)
    assert (found <= safe + 1e-12).all() and (found < 0.9 * safe).any(), (safe, found)
    assert torch.equal(module.atoms, atoms)
    lipschitz = torch.linalg.matrix_norm(module.atoms, 2).square()
    step = module.encoder.log_step[0].exp()
    assert ((step >= 1 / lipschitz - 1e-12) & (step <= 1 + 1e-12)).all()


def test_search_step_is_as_good_as_a_fine_grid():
    """Within the coarse grid's best cell and its neighbors, a quarter of the coarse spacing apart."""
    module, x = experts(atoms=32, sparsities=(4,) * 3), rows(200)
    lipschitz = torch.linalg.matrix_norm(module.atoms, 2).square()
    coarse, fine = [], []
    for index in range(33):
        module.encoder.initialize(module.atoms, lipschitz ** (index / 32 - 1))
        fine.append(best_rows_error(module, x))
        coarse += fine[-1:] if index % 4 == 0 else []
    module.search_step(x)
    found = best_rows_error(module, x)
    assert (found <= torch.stack(coarse).amin(0) + 1e-12).all()
    assert (found < torch.stack(coarse).amin(0) - 1e-9).any()
    torch.testing.assert_close(found, torch.stack(fine).amin(0), rtol=0.02, atol=0)


def test_search_step_survives_steps_that_diverge():
    """64 steps of size 1 with coherent atoms overflow; the safe step must win."""
    module = experts(atoms=64, sparsities=(64,) * 3, num_steps=400)
    module.search_step(rows())
    codes, each = module(rows())
    assert codes.isfinite().all() and each.isfinite().all()


def test_search_step_of_orthonormal_atoms_is_one():
    module = experts(atoms=8, sparsities=(8,) * 3)
    with torch.no_grad():
        module.atoms.copy_(torch.linalg.qr(torch.randn(3, 8, 8, dtype=torch.float64)).Q)
    module.search_step(rows())
    torch.testing.assert_close(module.encoder.log_step.exp(), torch.ones(1, 3, dtype=torch.float64))
    torch.testing.assert_close(module(rows())[1], rows().expand(3, -1, -1))


def test_state_dict_round_trip_is_bitwise():
    first, second, x = experts(), experts(), rows()
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(first(x), second(x), strict=True))
    assert set(first.state_dict()) == {"atoms", "centers", "encoder.directions", "encoder.log_step"}
