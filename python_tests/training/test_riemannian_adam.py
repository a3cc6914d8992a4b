"""On the circle it is Adam on the angle; elsewhere it stays on the sphere, skips and resumes like a fused one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch.nn.functional import normalize

from stratcore.training import OptimizerOptions, build_optimizer
from stratcore.training.riemannian_adam import SPHERE, RiemannianAdam


def on_sphere(parameter: torch.Tensor, **settings) -> RiemannianAdam:
    return RiemannianAdam([{"params": [parameter], "manifold": SPHERE}], **settings)


def test_on_a_circle_it_is_adam_on_the_angle() -> None:
    angle = torch.tensor([0.3, 2.0, -1.0], dtype=torch.float64, requires_grad=True)
    point = torch.stack((angle.cos(), angle.sin()), 1).detach().requires_grad_()
    settings = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3}
    flat = torch.optim.Adam([angle], **settings)
    round_ = on_sphere(point, weight_decay=0.3, **settings)
    target = torch.tensor([[0.6, 0.8], [-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    for _ in range(40):
        for optimizer, x in ((flat, torch.stack((angle.cos(), angle.sin()), 1)), (round_, point)):
            optimizer.zero_grad()
            (-(x * target).sum() + (x[:, 0] ** 3).sum()).backward()
            optimizer.step()
    wanted = torch.stack((angle.cos(), angle.sin()), 1)
    assert torch.allclose(point, wanted, rtol=0, atol=1e-12)


def test_small_steps_have_the_direction_of_adam_with_one_moment_a_row() -> None:
    generator = torch.Generator().manual_seed(0)
    point = normalize(torch.randn(5, 16, generator=generator, dtype=torch.float64), dim=-1).requires_grad_()
    before, optimizer = point.detach().clone(), on_sphere(point, lr=1e-6)
    point.grad = torch.randn(5, 16, generator=generator, dtype=torch.float64)
    tangent = point.grad - (point.grad * before).sum(-1, keepdim=True) * before
    optimizer.step()
    assert torch.allclose((point.detach() - before) / 1e-6, -normalize(tangent, dim=-1), atol=1e-5)


def test_it_finds_the_mean_direction_and_stays_on_the_sphere() -> None:
    generator = torch.Generator().manual_seed(1)
    center = normalize(torch.randn(4, 8, generator=generator), dim=-1)
    draws = normalize(center[:, None] + 0.3 * torch.randn(4, 500, 8, generator=generator), dim=-1)
    point = normalize(torch.randn(4, 8, generator=generator), dim=-1).requires_grad_()
    optimizer = on_sphere(point, lr=0.1)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 400)
        optimizer.zero_grad()
        (-(normalize(point, dim=-1)[:, None] * draws).sum(-1).mean()).backward()
        optimizer.step()
        assert (point.detach().norm(dim=-1) - 1).abs().max() < 1e-6
    wanted = normalize(draws.mean(1), dim=-1)
    assert (1 - (point * wanted).sum(-1)).max() < 1e-6


def test_rows_of_another_length_come_onto_the_sphere() -> None:
    found = []
    for lengths in ((1.0, 1.0), (3.0, 0.5)):
        point = torch.diag(torch.tensor(lengths)).requires_grad_()
        point.grad = torch.tensor([[5.0, 1.0], [2.0, 3.0]])
        on_sphere(point, lr=0.1, eps=0.5).step()
        found.append(point.detach())
    assert torch.allclose(*found) and not torch.allclose(found[0], torch.eye(2), atol=0.01)


def test_gradients_are_divided_and_bad_steps_skipped() -> None:
    point = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    twin = point.detach().clone().requires_grad_()
    ours, other = on_sphere(point, lr=0.1, eps=0.5), on_sphere(twin, lr=0.1, eps=0.5)
    for optimizer, x, scale in ((ours, point, 4.0), (other, twin, 1.0)):
        x.grad = scale * torch.tensor([[0.1, 0.2, -0.3]])
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale), torch.tensor(0.0)
        optimizer.step()
    assert torch.equal(point, twin)
    kept = {name: value.clone() for name, value in ours.state[point].items()}
    point.grad = torch.full((1, 3), math.nan)
    ours.found_inf = torch.tensor(1.0)
    ours.step()
    assert torch.equal(point, twin)
    assert all(torch.equal(ours.state[point][name], value) for name, value in kept.items())


def test_flat_groups_are_adamw_bit_by_bit_and_all_resume() -> None:
    def parameters() -> list[torch.nn.Parameter]:
        generator = torch.Generator().manual_seed(2)
        matrix = torch.randn(3, 4, generator=generator)
        return [torch.nn.Parameter(matrix), torch.nn.Parameter(normalize(matrix, dim=-1))]

    def built(own: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        options = OptimizerOptions(name="riemannian_adam", lr=0.01, weight_decay=0.1)
        groups = [{"params": own[:1]}, {"params": own[1:], "weight_decay": 0.0, "manifold": SPHERE}]
        return build_optimizer(groups, options)

    def steps(optimizer: torch.optim.Optimizer, own: list[torch.nn.Parameter], count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            for parameter in own:
                parameter.grad = torch.randn(3, 4, generator=generator)
            optimizer.step()

    ours, plain = parameters(), parameters()
    optimizer = built(ours)
    assert isinstance(optimizer, RiemannianAdam)
    adamw = build_optimizer([{"params": plain}], OptimizerOptions(lr=0.01, weight_decay=0.1))
    steps(optimizer, ours, 5, 3)
    steps(adamw, plain, 5, 3)
    assert torch.equal(ours[0], plain[0]) and not torch.equal(ours[1], plain[1])
    again = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    resumed = built(again)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(optimizer, ours, 3, 4)
    steps(resumed, again, 3, 4)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


@pytest.mark.cuda
def test_cuda_equals_the_cpu_and_does_not_wait(
    refused_waits: Callable[[], AbstractContextManager[None]],
) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        generator = torch.Generator().manual_seed(5)
        point = normalize(torch.randn(7, 33, generator=generator), dim=-1).to(device).requires_grad_()
        gradients = [torch.randn(7, 33, generator=generator).to(device) for _ in range(6)]
        optimizer = on_sphere(point, lr=0.05)
        optimizer.grad_scale = torch.tensor(2.0, device=device)
        optimizer.found_inf = torch.tensor(0.0, device=device)
        with refused_waits() if device == "cuda" else nullcontext():
            for gradient in gradients:
                point.grad = gradient
                optimizer.step()
        found[device] = point.detach().cpu()
    assert torch.allclose(found["cpu"], found["cuda"], atol=1e-6)
