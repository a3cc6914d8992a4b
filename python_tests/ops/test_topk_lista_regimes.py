"""Regimes of topk_lista: dense products and gathered rows are one function, at every size and in every layout."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from python_tests.conftest import ROOT
from python_tests.ops.topk_lista_cases import BACKWARDS, FORMS, Case, leaves, op
from stratcore import ops

# Atoms that take the kernel of long rows, with rows that fill its threads and that do not.
LONG = [Case(rows=37, dim=24, atoms=2048, k=(3, 64, 33)), Case(rows=19, dim=31, atoms=1104, k=(5, 1, 40))]
SHORT = Case(rows=33, dim=21, atoms=75, k=(2, 40, 9))
# On the CPU: last strips of columns and last blocks of rows that are cut, and whole ones.
CUT, WHOLE = Case(rows=515, dim=70, atoms=75, k=(2, 9)), Case(rows=64, dim=64, atoms=128, k=(2, 40))


def gradients(case: Case, inputs: list[Tensor], backward: str, define: bool = False) -> list[Tensor]:
    """Codes and gradients with respect to all inputs."""
    own = leaves(inputs)
    codes = case.define(own, backward)[-1] if define else case.run(own, backward)
    weights = torch.randn(codes.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (codes * weights.to(codes)).sum().backward()
    return [codes.detach(), *(t.grad for t in own)]


def distance(result: Tensor, wanted: Tensor) -> float:
    return float((result.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.cuda
@pytest.mark.parametrize("regime", ["dense", "gather"])
@pytest.mark.parametrize("per_step, input_per_expert", [(False, False), (True, True)])
@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", [*LONG, SHORT], ids=["full", "odd", "short"])
def test_matches_reference_in_every_regime(case, form, backward, per_step, input_per_expert, regime):
    case = dataclasses.replace(
        case, form=form, per_step=per_step, input_per_expert=input_per_expert, regime=regime, num_steps=2
    )
    inputs = case.inputs(torch.float32, "cuda")
    wanted = gradients(case, [t.double() for t in inputs], backward, define=True)
    for result, exact in zip(gradients(case, inputs, backward), wanted, strict=True):
        assert distance(result, exact) < 1e-4


@pytest.mark.cuda
@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_regimes_agree_on_16_bits(dtype, form, backward):
    """One selected projection and one step: both regimes see the same selections but where rounding decides."""
    case = Case(form, rows=40, dim=64, atoms=2048, k=(16, 32), num_steps=1)
    inputs = case.inputs(dtype, "cuda")
    dense, gathered = (
        gradients(dataclasses.replace(case, regime=regime), inputs, backward)
        for regime in ("dense", "gather")
    )
    for result, wanted in zip(gathered, dense, strict=True):
        assert distance(result, wanted) < 0.15  # a flipped selection moves a whole row


@pytest.mark.cuda
@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("form", FORMS)
def test_gathering_twice_gives_the_same_bits(form, backward):
    case = Case(form, rows=300, dim=64, atoms=1536, k=(8, 30), regime="gather")
    inputs = case.inputs(torch.float32, "cuda")
    runs = [gradients(case, inputs, backward) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.cuda
@pytest.mark.parametrize("regime", ["dense", "gather"])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_the_values_of_every_step(form, regime):
    case = Case(form, rows=9, dim=12, atoms=40, k=(3, 7), num_steps=2, regime=regime)
    grads = []
    for dtype, where in ((torch.float64, "cpu"), (torch.float32, "cuda")):
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


@pytest.mark.cuda
@pytest.mark.parametrize("regime", ["dense", "gather"])
def test_few_non_zeros_fill_up_from_the_lowest_index(regime):
    """A high threshold leaves some rows nothing and others less than k."""
    x = torch.zeros(3, 4, device="cuda")
    x[1, 0], x[2] = 3.0, 5.0
    encoder = torch.zeros(1504, 4, device="cuda")
    encoder[1400, 0] = encoder[2, 1] = encoder[0, 2] = 1.0
    theta = torch.full((1504,), 1.0, device="cuda")
    code = ops.topk_lista_sparse(
        x, encoder, torch.zeros(1504, 1504, device="cuda"), theta, 4, num_steps=1, regime=regime
    )
    assert code.indices.tolist() == [[0, 1, 2, 3], [0, 1, 2, 1400], [0, 1, 2, 1400]]
    assert code.values.tolist() == [[0, 0, 0, 0], [0, 0, 0, 2], [4, 0, 4, 4]]


@pytest.mark.cuda
@pytest.mark.parametrize("form", FORMS)
def test_nan_stays_in_its_row_where_rows_are_gathered(form):
    case = Case(form, rows=4, dim=16, atoms=1200, k=(6,), regime="gather")
    inputs = case.inputs(torch.float32, "cuda")
    clean = case.run(inputs)
    inputs[0][0, 1, 0] = float("nan")
    code = case.run(inputs)
    assert code[:, 1].isnan().any()
    torch.testing.assert_close(code[:, [0, 2, 3]], clean[:, [0, 2, 3]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("regime", ["dense", "gather"])
@pytest.mark.parametrize("per_step, input_per_expert", [(False, False), (True, True)])
@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", [CUT, WHOLE], ids=["cut", "whole"])
def test_matches_reference_in_every_regime_on_the_cpu(
    case, form, backward, per_step, input_per_expert, regime
):
    case = dataclasses.replace(
        case, form=form, per_step=per_step, input_per_expert=input_per_expert, regime=regime, num_steps=3
    )
    inputs = case.inputs(torch.float32)
    wanted = gradients(case, [t.double() for t in inputs], backward, define=True)
    for result, exact in zip(gradients(case, inputs, backward), wanted, strict=True):
        assert distance(result, exact) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_float64_on_the_cpu_has_one_regime(form):
    case = Case(form)
    dense, gathered = (
        gradients(dataclasses.replace(case, regime=regime), case.inputs(), "masked")
        for regime in ("dense", "gather")
    )
    assert all(torch.equal(a, b) for a, b in zip(dense, gathered, strict=True))


@pytest.mark.parametrize("atoms, k", [(32, (2, 8)), (31, (2, 8)), (600, (8, 5))])
@pytest.mark.parametrize("form", FORMS)
def test_the_cpu_takes_the_regime_of_the_sizes(form, atoms, k):
    """Bits tell: the regimes add up in another order."""
    case = Case(form, rows=9, dim=70, atoms=atoms, k=k)
    inputs = case.inputs(torch.float32)
    regime = ops.topk_lista_regime(atoms=atoms, k=k, form=form, device="cpu")
    other = {"dense": "gather", "gather": "dense"}[regime]
    auto = gradients(case, inputs, "straight_through")
    chosen, unchosen = (
        gradients(dataclasses.replace(case, regime=name), inputs, "straight_through")
        for name in (regime, other)
    )
    assert all(torch.equal(a, b) for a, b in zip(auto, chosen, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(auto, unchosen, strict=True))


def test_threads_do_not_change_the_bits_of_the_cpu():
    """Of what is no product: with multiples of 1/4 products do not round."""
    case = Case(rows=1100, dim=70, atoms=130, k=(3, 9), num_steps=1)
    inputs = [(t * 4).round() / 4 for t in case.inputs(torch.float32)]
    threads = torch.get_num_threads()
    runs = []
    for count in (1, 3):
        torch.set_num_threads(count)
        try:
            runs.append(gradients(case, inputs, "straight_through"))
        finally:
            torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_regime_of_sizes():
    regime = ops.topk_lista_regime
    assert regime(atoms=16384, k=32, dtype=torch.bfloat16) == "gather"
    assert regime(atoms=16384, k=128, dtype=torch.bfloat16) == "dense"
    assert regime(atoms=16384, k=128, dtype=torch.bfloat16, form="coupled") == "gather"
    assert regime(atoms=4096, k=32) == "gather" and regime(atoms=4096, k=(8, 64)) == "dense"
    assert regime(atoms=4096, k=32, dtype=torch.float64) == "dense"
    assert (
        regime(atoms=512, k=16, device="cpu") == "gather" and regime(atoms=63, k=16, device="cpu") == "dense"
    )
    assert regime(atoms=512, k=16, device="cpu", dtype=torch.float64) == "dense"
    assert regime(atoms=512, k=16) == "dense" and regime(atoms=512, k=16, backward="masked") == "gather"
    header = (ROOT / "csrc/topk_lista/topk_lista.h").read_text()
    wanted = "kGatherRatio = 96, kFarGatherRatio = 200, kMaskedGatherRatio = 32, kNearBytes = 80 << 20;"
    assert wanted in header
    assert "kCpuGatherRatio = 4;" in header


def test_unknown_regime_is_named():
    case = Case(regime="sparse")
    with pytest.raises(ValueError, match="regime"):
        case.run(case.inputs())
    with pytest.raises(RuntimeError, match="expected regime 'auto', 'dense' or 'gather', got 'sparse'"):
        op(*case.inputs(), list(case.k), "classic", 3, True, False, "sparse")
