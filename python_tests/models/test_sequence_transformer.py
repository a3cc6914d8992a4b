from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stratcore.models import SequenceTransformer, SequenceTransformerOptions
from stratcore.models.sequence_transformer import POSITIONS

pytestmark = pytest.mark.usefixtures("single_thread")
RING = SequenceTransformerOptions(
    vocabulary=11, outputs=5, length=24, lattice=(24,), positions="torus", dim=32, num_layers=2, num_heads=2
)
FIELD = replace(RING, vocabulary=None, in_channels=3, length=48, lattice=(8, 6))
WEEKS = replace(RING, causal=True, length=30, lattice=(3, 4))
KNOWS_ORDER = [positions for positions in POSITIONS if positions != "none"]


def built(options: SequenceTransformerOptions, positions: str) -> SequenceTransformer:
    torch.manual_seed(3)
    model = SequenceTransformer(replace(options, positions=positions)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("tables_AKH"):  # which start at 0, and so know nothing yet
            torch.nn.init.normal_(parameter)
    return model


def drawn(options: SequenceTransformerOptions) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    if options.vocabulary is not None:
        return torch.randint(options.vocabulary, (2, options.length), generator=generator)
    return torch.randn(2, options.length, options.in_channels, generator=generator)


def rolled(tokens: Tensor, lattice: tuple[int, ...], steps: tuple[int, ...]) -> Tensor:
    axes = tuple(range(1, 1 + len(lattice)))
    return tokens.unflatten(1, lattice).roll(steps, axes).flatten(1, len(lattice))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(("options", "steps"), [(RING, (9,)), (FIELD, (3, 5))], ids=["ring", "field"])
def test_only_the_torus_commutes_with_rotations(options, steps, positions):
    model, inputs = built(options, positions), drawn(options)
    with torch.no_grad():
        turned = model(rolled(inputs, options.lattice, steps))
        error = (turned - rolled(model(inputs), options.lattice, steps)).abs().max()
    if positions in ("torus", "none"):  # a set commutes with every permutation
        assert error < 1e-5
    else:
        assert error > 1e-2


@pytest.mark.parametrize("positions", KNOWS_ORDER)
def test_all_but_sets_know_the_order(positions):
    model, inputs = built(FIELD, positions), drawn(FIELD)
    order = torch.randperm(FIELD.length)
    with torch.no_grad():
        assert (model(inputs[:, order]) - model(inputs)[:, order]).abs().max() > 1e-2


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_decoder_sees_nothing_of_the_future(positions):
    model, inputs = built(WEEKS, positions), drawn(WEEKS)
    other = inputs.clone()
    other[:, 17:] = (other[:, 17:] + 1) % WEEKS.vocabulary
    with torch.no_grad():
        first, second = model(inputs), model(other)
    assert torch.equal(first[:, :17], second[:, :17])
    assert not torch.equal(first[:, 17:], second[:, 17:])


def test_the_open_torus_is_the_torus_where_nothing_goes_around():
    """Tokens in one corner of a lattice at least twice as long see the same distances."""
    wide = replace(RING, lattice=(48,))
    with torch.no_grad():
        wanted = built(wide, "torus")(drawn(RING))
        torch.testing.assert_close(built(RING, "open")(drawn(RING)), wanted, rtol=0, atol=1e-6)


def test_arms_start_alike_and_count_their_own_parameters():
    models = {positions: built(WEEKS, positions) for positions in POSITIONS}
    plain = models["none"].num_parameters()
    for positions, model in models.items():
        own = {"torus": 2 * 2, "open": 2 * 2, "t5": 2 * 32 * 2, "t5_axial": 2 * 2 * 32 * 2}.get(positions, 0)
        assert model.num_parameters() == {"total": plain["total"] + own, "positions": own}
        states = models["none"].state_dict().items()
        assert all(torch.equal(model.state_dict()[name], value) for name, value in states)
    dim, hidden = 32, 128
    block = 4 * (dim + 1) * dim + 2 * 2 * dim + (dim + 1) * hidden + (hidden + 1) * dim
    assert plain["total"] == 11 * dim + 2 * block + 2 * dim + (dim + 1) * 5


@pytest.mark.parametrize("positions", POSITIONS)
def test_every_parameter_gets_a_gradient(positions):
    model = built(FIELD, positions)
    model(drawn(FIELD)).square().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias of the keys adds the same to all scores of a query, where no rotary turns it.
    turned = positions.startswith("rope") or positions in ("torus", "open")
    assert [name for name in silent if turned or not name.endswith("k_proj.bias")] == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"positions": "magic"}, "positions: expected one of none, rope, .*, got 'magic'"),
        ({"in_channels": 3}, "vocabulary: expected either it or in_channels, got 11 and in_channels = 3"),
        ({"vocabulary": None}, "vocabulary: expected either it or in_channels, got None"),
        ({"length": 0}, "length: expected a number >= 1, got 0"),
        ({"lattice": (2, 2, 2, 2)}, "lattice: expected 1 to 3 periods"),
    ],
)
def test_bad_options_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        replace(RING, **settings)


def test_bad_inputs_are_refused():
    with pytest.raises(ValueError, match=r"inputs: expected \[B, N\], got \[2, 24, 3\]"):
        built(RING, "torus")(torch.zeros(2, 24, 3))
    with pytest.raises(ValueError, match=r"inputs: expected \[B, N, 3\], got \[2, 24, 4\]"):
        built(FIELD, "torus")(torch.zeros(2, 24, 4))
    with pytest.raises(ValueError, match="inputs: expected at most 24 tokens, got 25"):
        built(RING, "torus")(torch.zeros(1, 25, dtype=torch.int64))
