from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from stratcore.data.periodic_fields import AdvectionDiffusion, AdvectionDiffusionOptions
from stratcore.data.sequences import seeded_generator

OPTIONS = AdvectionDiffusionOptions(size=8, speed=2.0, diffusivity=0.3)


def test_a_plane_wave_moves_and_fades_as_it_must() -> None:
    source, points = AdvectionDiffusion(OPTIONS), torch.arange(8, dtype=torch.float64)
    k, steps, velocity = 2 * math.pi / 8, 2.5, torch.tensor([[1.3, -0.7]], dtype=torch.float64)
    for mx, my in ((1, 0), (2, -3), (0, 3)):
        first = torch.cos(k * (mx * points[:, None] + my * points) + 0.4)
        phase = k * (mx * (points[:, None] - 1.3 * steps) + my * (points + 0.7 * steps)) + 0.4
        wanted = math.exp(-0.3 * k**2 * (mx**2 + my**2) * steps) * torch.cos(phase)
        found = source.advance(first[None], velocity, steps)[0]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_whole_steps_without_diffusion_are_rolls() -> None:
    source = AdvectionDiffusion(replace(OPTIONS, diffusivity=0.0))
    field = source.draw(3, seeded_generator("cpu", 0)).inputs[..., 0].unflatten(1, (8, 8))
    moved = source.advance(field, torch.tensor([[1.0, -2.0]]).expand(3, 2), 3)
    torch.testing.assert_close(moved, field.roll((3, -6), (1, 2)), rtol=0, atol=1e-5)


def test_what_is_drawn() -> None:
    source = AdvectionDiffusion(OPTIONS)
    found = source.draw(4000, seeded_generator("cpu", 1))
    field, velocity = found.inputs[..., 0], found.inputs[..., 1:]
    assert found.inputs.shape == (4000, 64, 3) and found.targets.shape == (4000, 64, 1)
    assert float(field.square().mean()) == pytest.approx(1, abs=0.02)
    assert float(field.mean(1).abs().max()) < 1e-5
    assert torch.equal(velocity, velocity[:, :1].expand_as(velocity))
    assert float(velocity.abs().max()) <= 1 and float(velocity.square().mean()) == pytest.approx(
        1 / 3, abs=0.01
    )
    # Step after step is one long step: what a rollout is compared with.
    square = field.unflatten(1, (8, 8))
    twice = source.advance(source.advance(square, 2 * velocity[:, 0]), 2 * velocity[:, 0])
    torch.testing.assert_close(twice, source.advance(square, 2 * velocity[:, 0], 2), rtol=0, atol=1e-5)
    later = source.advance(square, 2 * velocity[:, 0]).flatten(1)
    torch.testing.assert_close(found.targets[..., 0], later, rtol=0, atol=1e-6)
    assert torch.equal(found.inputs, source.draw(4000, seeded_generator("cpu", 1)).inputs)


def test_the_spectrum_falls_with_the_wave_number() -> None:
    field = AdvectionDiffusion(OPTIONS).draw(4000, seeded_generator("cpu", 2)).inputs[..., 0]
    power = torch.fft.fft2(field.unflatten(1, (8, 8))).abs().square().mean(0)
    assert float(power[0, 1] / power[0, 2]) == pytest.approx(4, rel=0.1)  # amplitude 1 / k
    assert float(power[1, 1] / power[2, 2]) == pytest.approx(4, rel=0.1)
    assert float(power[4].max()) < 1e-6 and float(power[:, 4].max()) < 1e-6


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": 7}, "size: expected an even number >= 4, got 7"),
        ({"speed": -1.0}, "speed: expected a finite number >= 0, got -1.0"),
        ({"diffusivity": math.inf}, "diffusivity: expected a finite number >= 0, got inf"),
    ],
)
def test_bad_options_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(OPTIONS, **settings)
