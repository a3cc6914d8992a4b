"""Context parallel attention on several ranks against the op on one device, and what the ranks send.

Legend: B batch, H query heads, G key heads, N queries, M keys, E dimension of a head, R ranks.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from python_tests.layers.context_parallel_cases import CASES, FRUGAL, TOLERANCE, Results, shards
from python_tests.ops.toroidal_problem import normal, problem
from stratcore import ops
from stratcore.layers import context_parallel_attention

SETTINGS = [
    f"{name}, {dtype}, {method}" for name in CASES for dtype in TOLERANCE for method in ("ring", "all_gather")
]
PIECE_BYTES = 128 * 16 * 8 * 2  # keys and values of one head in float64


def run_ranks(ranks: int, device: str, folder: Path) -> list[Results]:
    """What each rank found."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    done = subprocess.run(
        [*command, "-m", "python_tests.layers.context_parallel_driver", str(folder), device],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(
    scope="module",
    params=[
        (2, "cpu"),
        pytest.param((3, "cpu"), marks=pytest.mark.slow),
        pytest.param((4, "cpu"), marks=pytest.mark.slow),
        pytest.param((2, "cuda"), marks=pytest.mark.cuda),
    ],
    ids=lambda param: f"{param[0]} ranks, {param[1]}",
)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    ranks, device = request.param
    if device == "cuda" and torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    return run_ranks(ranks, device, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("setting", SETTINGS)
def test_equals_one_device(found, setting):
    tolerance = TOLERANCE["float64" if "float64" in setting else "float32"]
    for rank in found:
        assert set(rank[setting]["errors"]) == {"out", "lse", "q", "k", "v", "slopes"}
        assert max(rank[setting]["errors"].values()) <= tolerance, rank[setting]["errors"]


def test_causal_order_sends_no_later_key(found):
    """Queries of rank r see the keys of the ranks before it, whole; of `rank` 0 no one but itself hears nothing."""
    name = "causal, uneven, float32, ring"
    sizes = [part.stop - part.start for part in shards(600, CASES["causal, uneven"].key_parts, len(found))]
    for rank, results in enumerate(found):
        assert results[name]["keys_sent"] == [
            sizes[rank] if other > rank else 0 for other in range(len(found))
        ]


def test_traffic_is_counted(found):
    """In bytes of keys and values, 600 / R keys of 2 heads of 16 numbers in 2 batch elements, to all others."""
    ranks, name = len(found), "ring of the whole length, float32, "
    once = 600 // ranks * 2 * 2 * 16 * 4 * 2 * (ranks - 1)
    for results in found:
        ring, at_once = results[name + "ring"], results[name + "all_gather"]
        assert ring["bytes_sent"] == at_once["bytes_sent"] == once
        assert ring["blocks_sent"] == ranks - 1
        assert ring["backward_bytes_sent"] == 2 * once and at_once["backward_bytes_sent"] == once


def neighbors(found: list[Results], *, around: bool) -> list[list[int]]:
    """128 keys to each of the ranks beside one, twice 128 where that is the same rank around the ring."""
    ranks = len(found)
    expected = [[0] * ranks for _ in range(ranks)]
    for rank in range(ranks - (not around)):
        expected[rank][(rank + 1) % ranks] += 128
        expected[(rank + 1) % ranks][rank] += 128
    return expected


@pytest.mark.parametrize(
    "name", ["around the ring", "around the ring, all at once", "all alike", "float32", "bfloat16"]
)
def test_no_piece_beyond_the_radius_is_sent(found, name):
    assert [results[name]["keys_sent"] for results in found] == neighbors(found, around=True)
    size = {"float32": 4, "bfloat16": 2}.get(name, 8)
    assert all(results[name]["bytes_sent"] == 2 * PIECE_BYTES * size // 8 for results in found)


def test_an_open_sequence_does_not_go_around(found):
    assert [results["open"]["keys_sent"] for results in found] == neighbors(found, around=False)


def test_causal_order_and_eps(found):
    """Borders to the rank behind; the first piece of all is near the last queries."""
    ranks = len(found)
    expected = [[128 * (other == rank + 1) for other in range(ranks)] for rank in range(ranks)]
    expected[0][-1] += 128
    assert [results["causal"]["keys_sent"] for results in found] == expected


def test_what_must_be_seen_is_sent(found):
    """A head whose slope is small or negative needs all; so does a NaN, and a key that outweighs the distance."""
    ranks = len(found)
    for name in ("all blocks", "one wide head", "rising"):
        sent = [results[name]["keys_sent"] for results in found]
        assert sent == [[512 * (rank != other) for other in range(ranks)] for rank in range(ranks)]
    assert found[1]["not a number"]["keys_sent"] == [512 * (other != 1) for other in range(ranks)]
    # key 700 lies in the second piece of rank 1, beside the one that rank 0 needs anyway
    near = neighbors(found, around=False)[1]
    assert found[1]["a far key"]["keys_sent"] == [
        (count + 128) * (other != 1) for other, count in enumerate(near)
    ]


def test_what_is_hidden_is_not_sent(found):
    """Masks come along: 129 bytes more a piece. Rows that see nothing at home look at all that can be seen."""
    border, shard = ([results[name] for results in found] for name in ("hidden border", "hidden shard"))
    assert border[0]["keys_sent"] == shard[0]["keys_sent"] == [0] * len(found)
    assert border[1]["keys_sent"][0] == 256 and border[1]["bytes_sent"] % (PIECE_BYTES + 128) == 0
    assert all(results["keys_sent"][0] == 512 for results in shard[1:])


def test_nothing_is_sent_where_distance_rules(found):
    for results in found:
        steep = results["steep"]
        assert (steep["blocks_sent"], steep["bytes_sent"], steep["backward_bytes_sent"]) == (0, 0, 0)


def test_rows_lose_at_most_eps(found):
    for results in found:
        for name in FRUGAL.keys() - {"not a number"}:
            eps = FRUGAL[name][1].get("eps", 1e-6)
            slack = {"float32": 1e-5, "bfloat16": 1e-2}.get(name, 1e-12)
            assert -1e-6 <= results[name]["lost"] <= eps + slack
            assert results[name]["difference"] <= 2 * eps / (1 - eps) + slack
            slack = {"float32": 1e-5, "bfloat16": 3e-2}.get(name, 1e-12)
            assert results[name]["gradients"] <= 10 * FRUGAL[name][1].get("eps", 1e-6) + slack
    assert math.isnan(found[0]["not a number"]["lost"])


def test_the_bound_is_nearly_attained(found):
    """Rank 0 loses almost all of eps to blocks that are just not sent, and nothing once they are just sent."""
    unsent, sent = ([results[f"nearly attained, {share}"] for results in found] for share in (1.0, 0.98))
    assert 0.8 < unsent[0]["lost"] <= 1.0 and sent[0]["lost"] < 1e-9
    assert all(results["keys_sent"][0] == 0 for results in unsent)
    assert sum(results["keys_sent"][0] for results in sent) == 1024


def test_gradients_of_some_tensors(found):
    for results in found:
        partial = results["partial gradients"]
        assert max(value for name, value in partial.items() if "bytes" not in name) < 1e-12
        # keys need no gradient, so none travels; the ring sends the keys again
        assert partial["all_gather bytes"] == 0 and partial["ring bytes"] == 300 // len(found) * 8 * 8 * 2 * (
            len(found) - 1
        )


def test_all_ranks_raise(found):
    """In place of waiting for each other; each knows what differs, the last one what it did wrong alone."""
    last = len(found) - 1
    op = "ValueError: context_parallel_attention: "
    differs = {
        "dim": ("dim", 4, 6),
        "batch": ("batch", 1, 2),
        "dtype": ("dtype", "torch.float32", "torch.float64"),
        "metric": ("metric", "l1", "l2"),
        "method": ("method", "ring", "all_gather"),
        "period": ("lattice[1]", 4, 3),
        "scale": ("scale", 0.5, 0.25),
        "mask": ("key_mask", 0, 1),
        "gradients": ("k.requires_grad", 0, 1),
    }
    for rank, results in enumerate(found):
        told = results["refusals"]
        for name, (fact, first, other) in differs.items():
            got = f"got {first} on rank 0, {other} on rank {last}"
            assert told[name] == f"{op}expected the same {fact} on all ranks, {got}"
        for name in ("own type", "own mask"):
            elsewhere = f"{op}rank {last} refused its arguments, its own message says why"
            assert (told[name] == elsewhere) == (rank < last)
        assert told["own method"] == f"{op}expected method to be one of ring, all_gather, got 'star'"
        outside = f"{op}expected a group that this process belongs to"
        assert told["outside"] == (outside if rank else "") and told["right"] == ""
    assert found[last]["refusals"]["own type"].startswith(
        "TypeError: toroidal_attention: expected k of the dtype"
    )
    assert "expected key_mask of shape [1, 8]" in found[last]["refusals"]["own mask"]


@pytest.mark.parametrize("method", ["ring", "all_gather"])
def test_one_process_is_the_op(device, method):
    tensors = problem((2, 4, 2, 70, 90, 8), torch.float32, device)
    mask = normal(2, 90, device=device) > 0
    options: dict[str, Any] = {"lattice": [9, 10], "causal": True, "query_offset": 20, "eps": 1e-3}
    result = context_parallel_attention(*tensors, key_mask=mask, method=method, **options)
    expected = ops.toroidal_attention_lse(*tensors, mask=mask[:, None, None], **options)
    assert all(torch.equal(a, b) for a, b in zip(result[:4], expected, strict=True))
    assert vars(result.traffic) == {
        "keys_sent": [0],
        "blocks_sent": 0,
        "bytes_sent": 0,
        "backward_bytes_sent": 0,
    }


def test_refuses_alone():
    tensors = problem((1, 2, 1, 8, 8, 4))
    with pytest.raises(TypeError, match="key_mask of dtype bool, got torch.float32"):
        context_parallel_attention(*tensors, lattice=8, key_mask=torch.ones(1, 8))
    with pytest.raises(ValueError, match=r"key_mask of shape \[1, 8\] on the device of k, got \[8\] on cpu"):
        context_parallel_attention(*tensors, lattice=8, key_mask=torch.ones(8).bool())
    with pytest.raises(ValueError, match="method to be one of ring, all_gather, got 'tree'"):
        context_parallel_attention(*tensors, lattice=8, method="tree")
    with pytest.raises(ValueError, match="expected lattice of 1 to 3 periods"):
        context_parallel_attention(*tensors, lattice=[])
