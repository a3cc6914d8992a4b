from __future__ import annotations

import torch

from stratcore.data.sequences import PlacedTensors, seeded_generator


def test_generators_are_functions_of_the_whole_key() -> None:
    def first(*key: int) -> float:
        return float(torch.rand((), generator=seeded_generator("cpu", *key)))

    keys = [(seed, part, batch) for seed in range(5) for part in range(3) for batch in range(50)]
    keys += [(0, 1, 2**31), (2**31, 0, 1)]
    assert len({first(*key) for key in keys}) == len(keys)
    assert first(3, 1, 4) == first(3, 1, 4)


def test_tensors_are_placed_once() -> None:
    placed = PlacedTensors(torch.ones(2), torch.zeros(3))
    device = torch.device("meta")
    assert placed.on(device) is placed.on(device) and placed.on(device)[1].shape == (3,)
    assert placed.on(torch.device("cpu"))[0].tolist() == [1, 1]
