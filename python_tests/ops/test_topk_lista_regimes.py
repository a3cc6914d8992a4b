"""Regimes of topk_lista: dense products and gathered rows are one function, at every size and in every layout."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from python_tests.conftest import ROOT
from python_tests.ops.topk_lista_cases import BACKWARDS, FORMS, Case, leaves, op
from stratcore import ops

# Atoms that take the kernel of long rows, with rows that can and cannot be read eight at a time.
LONG = [Case(rows=37, dim=24, atoms=2048, k=(3, 64, 33)), Case(rows=19, dim=31, atoms=1101, k=(5, 1, 40))]
SHORT = Case(rows=33, dim=20, atoms=72, k=(2, 40, 9))


def gradients(case: Case, inputs: list[Tensor], backward: str, define: bool = False) -> list[Tensor]:
    """Codes and gradients with respect to all inputs."""
    own = leaves(inputs)
    codes = case.define(own, backward)[-1] if define else case.run(own, backward)
    weights = torch.randn(codes.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (codes * weights.to(codes)).sum().backward()
    return [codes.detach(), *(t.grad for t in own)]


def distance(result: Tensor, wanted: Tensor) -> float:
    return float((result.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("regime", ["dense", "gather"])
@pytest.mark.parametrize("per_step, input_per_expert", [(False, False), (True, True)])
@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", [*LONG, SHORT], ids=["eights", "odd", "short"])
def test_matches_reference_in_every_regime(device, case, form, backward, per_step, input_per_expert, regime):
    case = dataclasses.replace(
        case, form=form, per_step=per_step, input_per_expert=input_per_expert, regime=regime, num_steps=2
    )
    inputs = case.inputs(torch.float32, device)
    wanted = gradients(case, [t.double() for t in inputs], backward, define=True)
    for result, exact in zip(gradients(case, inputs, backward), wanted, strict=True):
        assert distance(result, exact) < 1e-4


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_regimes_agree_on_16_bits(device, dtype, form, backward):
    """One selected projection and one step: both regimes see the same selections but where rounding decides."""
    case = Case(form, rows=40, dim=64, atoms=2048, k=(16, 32), num_steps=1)
    inputs = case.inputs(dtype, device)
    dense, gathered = (
        gradients(dataclasses.replace(case, regime=regime), inputs, backward)
        for regime in ("dense", "gather")
    )
    for result, wanted in zip(gathered, dense, strict=True):
        assert distance(result, wanted) < 0.15  # a flipped selection moves a whole row


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("form", FORMS)
def test_gathering_twice_gives_the_same_bits(device, form, backward):
    case = Case(form, rows=300, dim=64, atoms=1536, k=(8, 30), regime="gather")
    inputs = case.inputs(torch.float32, device)
    runs = [gradients(case, inputs, backward) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("regime", ["dense", "gather"])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_the_values_of_every_step(device, form, regime):
    case = Case(form, rows=9, dim=12, atoms=40, k=(3, 7), num_steps=2, regime=regime)
    grads = []
    for dtype, where in ((torch.float64, "cpu"), (torch.float32, device)):
        own = leaves([t.to(dtype).to(where) for t in case.inputs(torch.float32)])
        values = ops.topk_lista_sparse(
            own[0][0], *own[1:], case.k, num_steps=2, form=form, backward="masked", every_step=True,
            regime=regime,
        ).values  # fmt: skip
        weights = torch.arange(values.numel(), dtype=torch.float64).reshape(values.shape).sin()
        (values * weights.to(values)).sum().backward()
        grads.append([t.grad.cpu() for t in own])
    for result, exact in zip(grads[1], grads[0], strict=True):
        assert distance(result, exact) < 1e-4


@pytest.mark.parametrize("regime", ["dense", "gather"])
def test_few_non_zeros_fill_up_from_the_lowest_index(device, regime):
    """A high threshold leaves some rows nothing and others less than k."""
    x = torch.zeros(3, 4, device=device)
    x[1, 0], x[2] = 3.0, 5.0
    encoder = torch.zeros(1500, 4, device=device)
    encoder[1400, 0] = encoder[2, 1] = encoder[0, 2] = 1.0
    theta = torch.full((1500,), 1.0, device=device)
    code = ops.topk_lista_sparse(
        x, encoder, torch.zeros(1500, 1500, device=device), theta, 4, num_steps=1, regime=regime
    )
    assert code.indices.tolist() == [[0, 1, 2, 3], [0, 1, 2, 1400], [0, 1, 2, 1400]]
    assert code.values.tolist() == [[0, 0, 0, 0], [0, 0, 0, 2], [4, 0, 4, 4]]


@pytest.mark.parametrize("form", FORMS)
def test_nan_stays_in_its_row_where_rows_are_gathered(device, form):
    case = Case(form, rows=4, dim=16, atoms=1200, k=(6,), regime="gather")
    inputs = case.inputs(torch.float32, device)
    clean = case.run(inputs)
    inputs[0][0, 1, 0] = float("nan")
    code = case.run(inputs)
    assert code[:, 1].isnan().any()
    torch.testing.assert_close(code[:, [0, 2, 3]], clean[:, [0, 2, 3]], rtol=1e-5, atol=1e-6)


def test_regime_of_sizes():
    assert ops.topk_lista_regime(atoms=16384, k=32) == "gather"
    assert ops.topk_lista_regime(atoms=4096, k=32) == "dense"
    assert ops.topk_lista_regime(atoms=4096, k=(8, 32)) == "dense"
    assert ops.topk_lista_regime(atoms=4096, k=32, backward="masked") == "gather"
    assert ops.topk_lista_regime(atoms=512, k=32, backward="masked") == "dense"
    header = (ROOT / "csrc/topk_lista/topk_lista.h").read_text()
    assert "kGatherRatio = 160, kMaskedGatherRatio = 32;" in header


def test_unknown_regime_is_named():
    case = Case(regime="sparse")
    with pytest.raises(ValueError, match="regime"):
        case.run(case.inputs())
    with pytest.raises(RuntimeError, match="expected regime 'auto', 'dense' or 'gather', got 'sparse'"):
        op(*case.inputs(), list(case.k), "classic", 3, True, False, "sparse")
