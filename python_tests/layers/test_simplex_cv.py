"""Legend: N rows, D dimension, k order."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import normalize

from stratcore import ops
from stratcore.layers import (
    CVLoss,
    SimplexCVLoss,
    SimplexCVOptions,
    anchor_cv_loss,
    cv_loss,
    dual_cv_loss,
    regular_simplex,
)


def on_sphere(count: int, dim: int, generator: int = 0) -> Tensor:
    seeded = torch.Generator().manual_seed(generator)
    return normalize(torch.randn(count, dim, dtype=torch.float64, generator=seeded), dim=-1)


def seed(offset: int = 0, start: int = 5) -> Tensor:
    return torch.tensor([start, offset])


@pytest.mark.parametrize(("order", "dim"), [(4, 16), (4, 64), (2, 16)])
def test_uniform_points_have_the_baseline_and_their_dimension(order, dim):
    options = SimplexCVOptions(order=order, num_simplices=20_000)
    (report,) = cv_loss(on_sphere(4000, dim), options, seed=seed()).report()
    assert report.baseline == ops.cv_uniform(dim, order)
    assert report.cv == pytest.approx(report.baseline, rel=0.03)
    assert report.low < dim < report.high and report.low < report.effective_dim < report.high
    assert (report.dim, report.order, report.count) == (dim, order, 20_000)


def test_points_of_a_subspace_have_its_dimension_and_say_so():
    x = torch.cat([on_sphere(2000, 8), torch.zeros(2000, 24, dtype=torch.float64)], -1)
    (report,) = cv_loss(x, SimplexCVOptions(num_simplices=20_000), seed=seed()).report()
    assert report.effective_dim == pytest.approx(8, abs=0.3)
    assert report.baseline == pytest.approx(0.1272, abs=1e-4)
    assert str(report).startswith(
        f"CV {report.cv:.4f} of 20000 simplices of order 4; uniform in 32 dimensions 0.1272; effective dimension"
    )


def test_loss_is_the_squared_distance_to_its_target():
    x = on_sphere(100, 10)
    for options, target in (
        (SimplexCVOptions(), ops.cv_uniform(10, 4)),
        (SimplexCVOptions(target_dim=6), ops.cv_uniform(6, 4)),
        (SimplexCVOptions(target=0.7), 0.7),
    ):
        loss, cv, valid, shapes, order = cv_loss(x, options, seed=seed())
        assert loss.item() == pytest.approx((cv.item() - target) ** 2, rel=1e-6)
        assert valid.tolist() == [512] and shapes == ((100, 10),) and order == 4


def test_cv_is_that_of_the_volumes_drawn():
    x = on_sphere(50, 6)
    indices = ops.simplex_cv(x, k=3, num_simplices=40, target=0.1, seed=seed()).indices
    edges = x[indices[:, 1:]] - x[indices[:, :1]]
    volumes = torch.linalg.det(edges @ edges.mT).sqrt() / 6
    found = cv_loss(x, SimplexCVOptions(order=3, num_simplices=40, eps=0.01), seed=seed())
    assert found.cv.item() == pytest.approx((volumes.std() / (volumes.mean() + 0.01)).item(), rel=1e-6)


def test_dual_loss_is_the_mean_over_embeddings_with_the_same_simplices():
    x, y = on_sphere(100, 10), on_sphere(100, 20, 1)
    options = SimplexCVOptions(num_simplices=64)
    dual = dual_cv_loss([x, y], options, seed=seed())
    each = [cv_loss(z, options, seed=seed()) for z in (x, y)]
    assert dual.loss.item() == pytest.approx((each[0].loss + each[1].loss).item() / 2)
    assert dual.cv.tolist() == [each[0].cv.item(), each[1].cv.item()]
    assert [report.dim for report in dual.report()] == [10, 20]


def test_anchor_loss_is_that_of_normalized_anchors_and_its_gradient_is_tangent():
    anchors = (3 * torch.rand(40, 1, dtype=torch.float64) * on_sphere(40, 8)).requires_grad_()
    found = anchor_cv_loss(anchors, SimplexCVOptions(target=0.2), seed=seed())
    plain = cv_loss(normalize(anchors.detach(), dim=-1), SimplexCVOptions(target=0.2), seed=seed())
    assert found.loss.item() == pytest.approx(plain.loss.item())
    found.loss.backward()
    assert (anchors.grad.norm(dim=-1) > 0).all()
    assert (anchors.grad * anchors).sum(-1).abs().max() < 1e-12 * anchors.grad.abs().max()


def test_gradients_of_the_cv_loss():
    x = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    options = SimplexCVOptions(order=3, num_simplices=12, target=0.3)
    assert gradcheck(lambda x: cv_loss(x, options, seed=seed()).loss, (x,))
    assert gradcheck(lambda x: dual_cv_loss([x, x[:, :4]], options, seed=seed()).loss, (x,))
    assert not cv_loss(x, options, seed=seed()).cv.requires_grad


def test_the_loss_moves_a_cloud_to_its_target():
    x = on_sphere(200, 16).requires_grad_()
    module = SimplexCVLoss(SimplexCVOptions(target_dim=10, num_simplices=1024), seed=0)
    for _ in range(60):
        (gradient,) = torch.autograd.grad(module(x).loss, x)
        with torch.no_grad():
            x.copy_(normalize(x - 20 * gradient, dim=-1))
    many = SimplexCVOptions(num_simplices=8192)
    (before,), (after,) = (cv_loss(z, many, seed=seed()).report() for z in (on_sphere(200, 16), x.detach()))
    assert before.effective_dim == pytest.approx(16, abs=1.5)
    assert after.effective_dim == pytest.approx(10, abs=1)


def test_convention_of_the_source_documents():
    options = SimplexCVOptions.of_source_documents()
    x = on_sphere(700, 8).requires_grad_()
    found = cv_loss(x, options, seed=seed())
    found.loss.backward()
    assert x.grad[:512].any() and not x.grad[512:].any(), "the first 512 rows"
    assert found.valid.item() == 64
    few = cv_loss(1e-3 * on_sphere(300, 8), options, seed=seed())
    assert few.valid.item() == 0 and few.loss.item() == 0, "V^2 > 1e-20"
    assert math.isnan(few.report()[0].effective_dim)
    assert cv_loss(on_sphere(20, 8), options, seed=seed()).valid.item() == 64, "fewer than 512 rows"


def test_equal_volumes_have_no_dimension_and_few_rows_no_interval():
    (report,) = cv_loss(regular_simplex(4, 6), SimplexCVOptions(num_simplices=16), seed=seed()).report()
    assert report.cv == pytest.approx(0, abs=1e-7) and report.baseline == ops.cv_uniform(6)
    (report,) = cv_loss(on_sphere(9, 6), SimplexCVOptions(num_simplices=256), seed=seed()).report()
    assert math.isfinite(report.effective_dim) and math.isnan(report.low) and math.isnan(report.high)


# ---- the module


def test_every_call_draws_fresh_simplices_and_a_resumed_run_the_same():
    x = on_sphere(300, 8)
    module, again = (SimplexCVLoss(SimplexCVOptions(num_simplices=64), seed=3) for _ in range(2))
    where = module.state.data_ptr()
    first = [module(x).cv.item() for _ in range(5)]
    assert len(set(first)) == 5
    assert [again(x).cv.item() for _ in range(5)] == first
    assert module.state.tolist() == [3, 5] and module.state.data_ptr() == where, "in place"
    resumed = SimplexCVLoss(SimplexCVOptions(num_simplices=64))
    resumed.load_state_dict(copy.deepcopy(module.state_dict()))
    assert [resumed(x).cv.item() for _ in range(3)] == [module(x).cv.item() for _ in range(3)]
    assert SimplexCVLoss().state[0] != SimplexCVLoss().state[0]


def test_calls_may_be_differentiated_later_and_together():
    x = on_sphere(60, 8).requires_grad_()
    module = SimplexCVLoss(seed=3)
    (module(x).loss + module(x, x).loss).backward()
    expected = torch.zeros_like(x)
    for offset in (1, 2):
        (gradient,) = torch.autograd.grad(cv_loss(x, seed=seed(offset, 3)).loss, x)
        expected += gradient
    torch.testing.assert_close(x.grad, expected)


def test_compiles_as_one_graph():
    module, x = SimplexCVLoss(seed=1), on_sphere(40, 8)
    found = torch.compile(module, fullgraph=True, backend="eager")(x, x[:, :6])
    assert module.state.tolist() == [1, 1]
    module.state[1] = 0
    expected = module(x, x[:, :6])
    torch.testing.assert_close(found.loss, expected.loss)
    assert found.report() == expected.report()


@pytest.mark.cuda
def test_graph_replays_draw_fresh_simplices():
    x = on_sphere(300, 8).float().cuda().requires_grad_()
    module = SimplexCVLoss(SimplexCVOptions(num_simplices=256), seed=3).cuda()

    def step() -> CVLoss:
        x.grad = None
        result = module(x)
        result.loss.backward()
        return result

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    offset, seen = int(module.state[1]), []
    for _ in range(4):
        graph.replay()
        seen.append(result.cv.item())
    assert len(set(seen)) == 4 and int(module.state[1]) == offset + 4
    plain = cv_loss(x, module.options, seed=torch.tensor([3, offset + 4], device="cuda"))
    assert plain.cv.item() == seen[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 0}, r"order: expected a number in \[1, 8\], got 0"),
        ({"min_valid": 1}, r"min_valid: expected a number in \[2, num_simplices = 512\], got 1"),
        (
            {"target": 0.2, "target_dim": 9},
            "target and target_dim: expected one of them at most, got 0.2 and 9",
        ),
        ({"target": -0.1}, "target: expected a positive number or None, got -0.1"),
        ({"target_dim": 3}, "target_dim: expected at least order = 4, got 3"),
        ({"pool": 4}, "pool: expected more than order = 4 rows, got 4"),
        ({"eps": -1.0}, "valid_above and eps: expected numbers >= 0, got 0.0 and -1.0"),
    ],
)
def test_cv_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        SimplexCVOptions(**options)


def test_embeddings_that_do_not_fit():
    with pytest.raises(ValueError, match="^dual_cv_loss: expected at least one embedding, got none$"):
        dual_cv_loss([])
    for shape in ((10, 3), (10,), (2, 10, 8)):
        with pytest.raises(
            ValueError, match=r"^dual_cv_loss: expected embeddings \[N, D\] with D >= order = 4"
        ):
            cv_loss(torch.randn(shape))
