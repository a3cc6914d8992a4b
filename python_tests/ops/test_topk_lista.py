"""Values of topk_lista and topk_ste: known ones, the reference's, special and bad input."""

from __future__ import annotations

import pytest
import torch

from python_tests.accuracy import assert_as_accurate
from python_tests.ops.topk_lista_cases import FORMS, Case, op
from stratcore import ops

# known values


def test_known_values_orthogonal_dictionary(device):
    """D orthonormal, W = D^T, S = I - D^T D = 0: every step gives the k largest thresholded projections."""
    dictionary = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q.to(device)
    x = dictionary @ torch.tensor([3.0, -2.0, 1.0, 0.5, 0.0, 0.0], dtype=torch.float64, device=device)
    theta = torch.full((6,), 0.25, dtype=torch.float64, device=device)
    wanted = torch.tensor([2.75, -1.75, 0, 0, 0, 0], dtype=torch.float64, device=device)
    for form, recurrent in (("classic", torch.zeros_like(dictionary)), ("coupled", dictionary)):
        code = ops.topk_lista(x, dictionary.T.contiguous(), recurrent, theta, 2, num_steps=0, form=form)
        torch.testing.assert_close(code, wanted)
    code = ops.topk_lista(x, dictionary.T.contiguous(), torch.zeros_like(dictionary), theta, 2, num_steps=4)
    torch.testing.assert_close(code, wanted)


def test_ties_go_to_the_lower_index(device):
    x = torch.tensor([[1.0, -2.0, 2.0, 0.5, 2.0]], device=device)
    assert ops.topk_ste(x, 2).tolist() == [[0.0, -2.0, 2.0, 0.0, 0.0]]
    code = ops.topk_lista_sparse(x, torch.eye(5, device=device), torch.zeros(5, 5, device=device),
                                 torch.zeros(5, device=device), 3, num_steps=0)  # fmt: skip
    assert code.indices.tolist() == [[1, 2, 4]] and code.values.tolist() == [[-2.0, 2.0, 2.0]]


def test_zeros_fill_up_from_the_lowest_index(device):
    x = torch.tensor([[0.0, 0.0, 3.0, 0.0, -0.0]], device=device)
    _, values, indices = torch.ops.stratcore.topk_ste(x, 3, False)
    assert indices.tolist() == [[0, 1, 2]] and values.tolist() == [[0.0, 0.0, 3.0]]


def test_exactly_k_nonzeros_per_expert(device):
    case = Case(rows=40)
    codes = case.run(case.inputs(device=device))
    assert codes.count_nonzero(-1).amax(-1).tolist() == [2, 4, 11]


# matches the reference

SHAPES = [(0, 6, 11), (1, 1, 1), (3, 5, 7), (33, 64, 32), (2, 8, 257), (2, 31, 1000)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows, dim, atoms", SHAPES)
def test_matches_reference(device, dtype, form, rows, dim, atoms):
    case = Case(form, rows, dim, atoms, k=(1, max(1, atoms // 3), atoms), num_steps=2)
    inputs = case.inputs(dtype, device)
    # The selection jumps where two magnitudes cross: compare codes where float64 and eager agree on it.
    exact = case.define([t.double() for t in inputs])[-1]
    eager = case.define(inputs)[-1]
    result = case.run(inputs)
    agreed = ((exact != 0) == (eager != 0)).all(-1) & ((exact != 0) == (result != 0)).all(-1)
    if rows:
        assert agreed.float().mean() > (0.99 if dtype in (torch.float64, torch.float32) else 0.2)
    assert_as_accurate(result[agreed], eager[agreed], exact[agreed])


@pytest.mark.parametrize("per_step, input_per_expert", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("form", FORMS)
def test_matches_reference_in_every_layout(device, form, per_step, input_per_expert):
    case = Case(form, per_step=per_step, input_per_expert=input_per_expert)
    inputs = case.inputs(device=device)
    torch.testing.assert_close(case.run(inputs), case.define(inputs)[-1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("form", FORMS)
def test_any_strides_and_batch_dimensions(device, form):
    case = Case(form, rows=12)
    x, encoder, recurrent, theta = case.inputs(device=device)
    plain = case.run([x, encoder, recurrent, theta])
    wide = torch.zeros(3, 4, 2 * case.dim + 1, dtype=x.dtype, device=device)
    wide[..., 1::2] = x[0].view(3, 4, case.dim)
    strided = ops.topk_lista(
        wide[..., 1::2], encoder[0].mT.contiguous().mT, recurrent[0], theta[0], case.k,
        num_steps=case.num_steps, form=form,
    )  # fmt: skip
    assert strided.shape == (3, 3, 4, case.atoms)
    torch.testing.assert_close(strided.flatten(1, 2), plain, rtol=0, atol=0)
    expanded = ops.topk_lista(
        x[0, :1].expand(12, -1), encoder, recurrent, theta, case.k, num_steps=3, form=form
    )
    torch.testing.assert_close(expanded, plain[:, :1].expand(-1, 12, -1), rtol=1e-12, atol=1e-13)


def test_sparse_output_holds_the_dense_code(device):
    case = Case()
    inputs = case.inputs(device=device)
    dense = case.define(inputs)
    every = ops.topk_lista_sparse(inputs[0][0], *inputs[1:], case.k, num_steps=3, every_step=True)
    for step, codes in enumerate(dense):
        rebuilt = torch.zeros_like(codes).scatter(-1, every.indices[step].long(), every.values[step])
        torch.testing.assert_close(rebuilt, codes, rtol=1e-12, atol=1e-13)
    assert every.indices.shape == (4, 3, 5, 11)
    assert all(len(set(row)) == 11 for row in every.indices.flatten(0, 2).tolist())
    last = ops.topk_lista_sparse(inputs[0][0], *inputs[1:], case.k, num_steps=3)
    assert torch.equal(last.indices, every.indices[-1]) and torch.equal(last.values, every.values[-1])


def test_nan_and_infinity_stay_in_their_row(device):
    case = Case(rows=4)
    inputs = case.inputs(device=device)
    clean = case.run(inputs)
    inputs[0][0, 1, 0], inputs[0][0, 2, 3] = float("nan"), float("inf")
    codes = case.run(inputs)
    assert torch.equal(codes[:, [0, 3]], clean[:, [0, 3]])
    assert codes[:, 1].isnan().any()


# rejects


def bad_calls() -> dict[str, tuple[dict, str]]:
    return {
        "x too narrow": ({"x": (1, 5, 7)}, r"expected x of shape \[.*6\], got \[.*7\]"),
        "x experts": ({"x": (2, 5, 6)}, "expected x with 1 or 3 leading entries, got 2"),
        "encoder steps": ({"encoder": (2, 3, 11, 6)}, r"expected encoder with 1 \(tied\) or 4 \(per step\)"),
        "recurrent shape": (
            {"recurrent": (1, 3, 11, 10)},
            r"expected recurrent of shape \[1, 3, 11, 11\], got",
        ),
        "theta shape": ({"theta": (1, 3, 10)}, r"expected theta of shape \[1, 3, 11\], got \[1, 3, 10\]"),
        "k count": ({"k": [1, 2]}, "expected k with 3 entries, got 2"),
        "k large": ({"k": [1, 2, 12]}, r"expected every k in \[1, 11\], got"),
        "k zero": ({"k": [0, 2, 3]}, r"expected every k in \[1, 11\], got"),
        "form": ({"form": "classical"}, "expected form .*, got 'classical'"),
        "num_steps": ({"num_steps": -1}, "expected num_steps >= 0, got -1"),
    }


@pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("name", bad_calls())
def test_rejects(device, name):
    changes, message = bad_calls()[name]
    shapes = {"x": (1, 5, 6), "encoder": (1, 3, 11, 6), "recurrent": (1, 3, 11, 11), "theta": (1, 3, 11)}
    options = {"k": [2, 4, 11], "form": "classic", "num_steps": 3} | {
        key: value for key, value in changes.items() if key not in shapes
    }
    tensors = [torch.ones(changes.get(key, shape), device=device) for key, shape in shapes.items()]
    with pytest.raises((RuntimeError, ValueError), match=f"topk_lista: {message}"):
        op(*tensors, options["k"], options["form"], options["num_steps"], True, False)


def test_rejects_in_the_public_function():
    x, encoder, recurrent, theta = (t[0] for t in Case(k=(2,)).inputs())
    arguments = (encoder[0], recurrent[0], theta[0], 2)
    with pytest.raises(
        ValueError, match="topk_lista: expected backward to be one of straight_through, masked"
    ):
        ops.topk_lista(x, *arguments, num_steps=1, backward="none")
    with pytest.raises(TypeError, match="topk_lista: expected encoder of dtype torch.float64 as x"):
        ops.topk_lista(x, encoder[0].float(), *arguments[1:], num_steps=1)
    with pytest.raises(TypeError, match="topk_lista: expected x of dtype float64, float32"):
        ops.topk_lista(x.long(), *arguments, num_steps=1)
    with pytest.raises(ValueError, match=r"topk_ste: expected k in \[1, M\] for x \[..., M\], got k = 7"):
        ops.topk_ste(x, 7)
