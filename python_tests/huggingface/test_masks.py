"""Legend: B batch, N queries, M keys."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    eager_mask,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from stratcore.huggingface import register_toroidal_attention
from stratcore.huggingface.masks import first_slot, toroidal_mask, visible_of
from stratcore.huggingface.settings import ATTRIBUTE, Settings, Torus

PADDING = torch.tensor([[False, False, True, True, True], [True, True, True, True, False]])


def config(lattice: Any = 8, mask: str = "toroidal") -> SimpleNamespace:
    record = Settings(heads=1, layers={0: Torus(lattice=lattice)}).to_json()
    return SimpleNamespace(**{ATTRIBUTE: record | {"mask": mask}})


def request(**changes: Any) -> dict[str, Any]:
    asked = {
        "config": config(),
        "batch_size": 2,
        "q_length": 5,
        "kv_length": 5,
        "q_offset": 0,
        "kv_offset": 0,
        "mask_function": causal_mask_function,
        "attention_mask": None,
        "allow_is_causal_skip": True,
        "dtype": torch.float32,
        "device": "cpu",
    }
    return asked | changes


def whole(asked: dict[str, Any]) -> torch.Tensor:
    return sdpa_mask(**asked | {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


@pytest.fixture(autouse=True)
def registered() -> None:
    register_toroidal_attention()


@pytest.mark.parametrize("pattern", [causal_mask_function, bidirectional_mask_function])
def test_plain_patterns_have_no_pairs(pattern: Any) -> None:
    assert toroidal_mask(**request(mask_function=pattern)) is None
    mask = toroidal_mask(**request(mask_function=pattern, attention_mask=PADDING))
    assert mask is not None and torch.equal(mask, PADDING)


def test_a_chunk_after_a_cache_has_no_pairs() -> None:
    assert toroidal_mask(**request(q_length=2, q_offset=3)) is None
    mask = toroidal_mask(**request(q_length=2, q_offset=3, attention_mask=PADDING))
    assert mask is not None and torch.equal(mask, PADDING)


def test_an_empty_static_cache_ends_at_the_last_query() -> None:
    mask = toroidal_mask(**request(q_length=3, kv_length=9))
    assert mask is not None and mask.shape == (2, 3) and bool(mask.all())
    padded = toroidal_mask(**request(q_length=3, kv_length=9, attention_mask=PADDING[:, :3]))
    assert padded is not None and torch.equal(padded, PADDING[:, :3])
    # As in transformers, what the padding does not name is not there.
    short = toroidal_mask(**request(q_length=3, kv_length=9, attention_mask=PADDING[:, 2:4]))
    assert short is not None and short.tolist() == [[True, True, False]] * 2


def test_given_again_it_is_the_same() -> None:
    """`generate` makes the mask of a static cache itself, and the model makes it once more out of that."""
    once = toroidal_mask(**request(q_length=3, kv_length=9, attention_mask=PADDING[:, :3]))
    again = toroidal_mask(**request(q_length=3, kv_length=9, attention_mask=once))
    assert once is not None and again is not None and torch.equal(once, again)


def test_a_window_that_does_not_bite_is_plain() -> None:
    window = sliding_window_causal_mask_function(6)
    assert toroidal_mask(**request(mask_function=window, local_size=6)) is None
    asked = request(
        mask_function=sliding_window_causal_mask_function(4), local_size=4, attention_mask=PADDING
    )
    mask = toroidal_mask(**asked)
    assert mask is not None and torch.equal(mask, whole(asked)) and mask.shape == (2, 1, 5, 5)


def test_other_patterns_have_all_pairs() -> None:
    documents = torch.tensor([0, 0, 1, 1, 1])
    pattern = and_masks(causal_mask_function, lambda b, h, q, k: documents[q] == documents[k])
    asked = request(mask_function=pattern, allow_is_causal_skip=False)
    mask = toroidal_mask(**asked)
    assert mask is not None and torch.equal(mask, whole(asked)) and int(mask[0].sum()) == 3 + 6


def test_a_cache_that_moves_on_keeps_its_queries_last() -> None:
    asked = request(
        q_length=2,
        q_offset=9,
        kv_offset=6,
        mask_function=sliding_window_causal_mask_function(4),
        local_size=4,
    )
    mask = toroidal_mask(**asked)
    assert mask is not None and mask[0, 0].tolist() == [[True, True, True, True, False], [False, *[True] * 4]]


def test_a_length_on_the_device_is_said_by_slots() -> None:
    asked = request(q_length=2, kv_length=9, q_offset=torch.tensor(3), attention_mask=PADDING)
    mask = toroidal_mask(**asked)
    assert mask is not None and mask.dtype == torch.int32 and mask.shape == (2, 1, 2, 9)
    assert int(first_slot(mask)) == 3
    assert torch.equal(visible_of(mask), whole(asked))
    # All keys: then the queries are all of them, wherever the cache says that it is.
    assert toroidal_mask(**request(q_offset=torch.tensor(0))) is None


def test_versions_that_pass_positions() -> None:
    old = request(q_length=2, q_offset=3, attention_mask=PADDING)
    for name in ("q_length", "q_offset", "device"):
        del old[name]
    mask = toroidal_mask(**old, cache_position=torch.tensor([3, 4]))
    assert mask is not None and torch.equal(mask, PADDING)
    mask = toroidal_mask(**old | {"kv_length": 9, "attention_mask": None}, cache_position=torch.arange(3))
    assert mask is not None and mask.shape == (2, 3)


@pytest.mark.parametrize(("name", "function"), [("sdpa", sdpa_mask), ("eager", eager_mask)])
def test_layers_that_keep_the_host_get_its_mask(name: str, function: Any) -> None:
    host = config(mask=name)
    for changes in ({}, {"attention_mask": PADDING}, {"q_length": 2, "q_offset": 3}):
        asked = request(config=host, **changes)
        mask, expected = toroidal_mask(**asked), function(**asked)
        assert (mask is None) == (expected is None)
        if mask is not None:
            assert torch.equal(mask, expected) and mask.dtype == expected.dtype
    asked = request(config=host, q_length=3, kv_length=9)
    mask = toroidal_mask(**asked)
    expected = function(**asked | {"allow_is_causal_skip": False})
    assert mask is not None and torch.equal(mask, expected[..., :3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": SimpleNamespace()}, "call use_toroidal_attention"),
        ({"config": None}, "call use_toroidal_attention"),
        ({"q_offset": 3}, "queries that end with the keys, got slots 3 to 8 of 5"),
        ({"q_length": 3, "mask_function": bidirectional_mask_function}, "got slots 0 to 3 of 5"),
        ({"config": config([4, 4]), "attention_mask": PADDING}, "several axes .* padding on the left"),
        (
            {
                "config": config([4, 4]),
                "mask_function": and_masks(causal_mask_function, causal_mask_function),
            },
            "several axes .* packed sequences",
        ),
        ({"config": config([4, 4]), "q_offset": 6, "q_length": 2, "kv_offset": 3}, "begin at slot 0"),
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toroidal_mask(**request(**changes))


def test_several_axes_leave_windows_to_other_layers() -> None:
    asked = request(
        config=config([4, 4], "sdpa"),
        mask_function=sliding_window_causal_mask_function(3),
        local_size=3,
        attention_mask=PADDING,
    )
    mask = toroidal_mask(**asked)
    assert mask is not None and torch.equal(mask, whole(asked))
    assert toroidal_mask(**request(config=config([4, 4]), attention_mask=PADDING.flip(1)[:1])) is not None
