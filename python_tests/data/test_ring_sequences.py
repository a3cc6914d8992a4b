from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stratcore.data.ring_sequences import RingOptions, RingSequences, copy_steps
from stratcore.data.sequences import Sequences, seeded_generator

COPY = RingOptions(sites=12, symbols=5, reach=4)
MARK = replace(COPY, rule="next_mark")


def drawn(options: RingOptions, part: str = "train", count: int = 200, seed: int = 0) -> Sequences:
    return RingSequences(options).draw(count, seeded_generator("cpu", seed), part)


def copied(tokens: list[int], options: RingOptions, wrap: bool) -> list[int | None]:
    """Labels by the words of the rule; None where the source lies across the cut and `wrap` is off."""
    labels: list[int | None] = []
    steps = [*range(-options.reach, 0), *range(1, options.reach + 1)]
    for site, token in enumerate(tokens):
        source = site + steps[token % len(steps)]
        inside = 0 <= source < len(tokens)
        labels.append(tokens[source % len(tokens)] // len(steps) if inside or wrap else None)
    return labels


def next_marks(tokens: list[int], wrap: bool) -> list[int | None]:
    labels: list[int | None] = []
    for site in range(len(tokens)):
        ahead = tokens[site:] + (tokens[:site] if wrap else [])
        labels.append(next((token - 1 for token in ahead if token), None))
    return labels


def answered(options: RingOptions, tokens: list[int], wrap: bool) -> list[int | None]:
    return copied(tokens, options, wrap) if options.rule == "copy" else next_marks(tokens, wrap)


@pytest.mark.parametrize("options", [COPY, MARK], ids=["copy", "next_mark"])
def test_labels_are_those_of_the_rule(options: RingOptions) -> None:
    for seam, part, crossed in (
        ("crossed", "train", True),
        ("crossed", "validation", True),
        ("crossed", "unrotated", False),
        ("avoided", "train", False),
        ("avoided", "validation", False),
        ("avoided", "test", True),
    ):
        found = drawn(replace(options, seam=seam), part)
        tokens, labels = found.inputs.tolist(), found.targets.tolist()
        assert [answered(options, row, wrap=True) for row in tokens] == labels
        straight = [answered(options, row, wrap=False) for row in tokens]
        assert (straight == labels) is not crossed


def test_symbols_instructions_and_marks_are_as_asked() -> None:
    assert copy_steps(torch.arange(8), 4).tolist() == [-4, -3, -2, -1, 1, 2, 3, 4]
    found = drawn(COPY, count=1000)
    shares = torch.bincount((found.inputs // 8).flatten(), minlength=5) / found.inputs.numel()
    torch.testing.assert_close(shares, torch.full((5,), 0.2), rtol=0, atol=0.02)
    assert set((found.inputs % 8).flatten().tolist()) == set(range(8))
    # Of 12 sites the last is always marked, the others with probability 1/4.
    marked = (drawn(MARK, count=1000).inputs > 0).float().mean()
    assert float(marked) == pytest.approx((1 + 11 / 4) / 12, abs=0.02)


def test_draws_are_functions_of_the_seed() -> None:
    first, again, other = (drawn(COPY, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.inputs, again.inputs) and torch.equal(first.targets, again.targets)
    assert not torch.equal(first.inputs, other.inputs)
    for options, vocabulary in ((COPY, 40), (MARK, 6)):
        shape = RingSequences(options).shape
        assert (shape.lattice, shape.length, shape.vocabulary, shape.outputs) == ((12,), 12, vocabulary, 5)
        assert int(drawn(options).inputs.max()) == vocabulary - 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rule": "magic"}, "rule: expected copy or next_mark, got 'magic'"),
        ({"seam": "magic"}, "seam: expected crossed or avoided, got 'magic'"),
        ({"symbols": 1}, "sites: expected 2 or more, and symbols too, got 12 and 1"),
        ({"reach": 7}, r"reach: expected a number in \[1, 6\], got 7"),
        ({"density": 0.0}, r"density: expected a share in \(0, 1\], got 0.0"),
    ],
)
def test_bad_options_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(COPY, **settings)
