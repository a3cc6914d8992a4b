"""The attention function by itself; in hosts: test_attention_hosts.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from stratcore import ops
from stratcore.huggingface import ToroidalBias, Torus, register_toroidal_attention
from stratcore.huggingface.attention import toroidal_attention_forward


class Bare(nn.Module):
    """An attention without projections."""

    is_causal = True

    def __init__(self, lattice: int | list[int] = 8) -> None:
        super().__init__()
        self.toroidal_bias = ToroidalBias(Torus(lattice=lattice), torch.tensor([0.5, 1.0]))


def qkv(queries: int = 4, keys: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(1, 2, queries, 8), torch.randn(1, 1, keys, 8), torch.randn(1, 1, keys, 8)


@pytest.mark.parametrize("least", [torch.finfo(torch.float32).min, -torch.inf, False])
def test_a_row_without_keys_is_0(least: float | bool) -> None:
    mask = torch.full((1, 1, 4, 4), True if least is False else 0.0)
    mask[:, :, 1] = least
    out, weights = toroidal_attention_forward(Bare(), *qkv(), mask)
    assert weights is None and out.shape == (1, 4, 2, 8) and out.is_contiguous()
    assert bool((out[:, 1] == 0).all()) and bool((out[:, [0, 2, 3]] != 0).all())


def test_masks_of_the_caller() -> None:
    q, k, v = qkv(2, 4)
    options = {"lattice": 8, "query_offset": 2, "scale": 0.25}
    added = torch.randn(1, 2, 2, 4)
    module = Bare()
    expected = ops.toroidal_attention(q, k, v, module.toroidal_bias(), mask=added, **options)
    out, _ = toroidal_attention_forward(module, q, k, v, added, scaling=0.25)
    torch.testing.assert_close(out.transpose(1, 2), expected)
    seen = torch.tensor([[1, 0, 1, 1]])
    out, _ = toroidal_attention_forward(module, q, k, v, seen, scaling=0.25)
    expected = ops.toroidal_attention(
        q, k, v, module.toroidal_bias(), mask=seen[:, None, None].bool(), causal=True, **options
    )
    torch.testing.assert_close(out.transpose(1, 2), expected)
    out, _ = toroidal_attention_forward(module, q, k, v, None, scaling=0.25, is_causal=False)
    torch.testing.assert_close(
        out.transpose(1, 2), ops.toroidal_attention(q, k, v, module.toroidal_bias(), **options)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"softcap": 30.0}, r"of Bare: cannot have a cap on the scores \(softcap\)"),
        ({"s_aux": torch.zeros(2)}, r"attention sinks \(s_aux\)"),
        ({"position_bias": torch.zeros(1, 2, 4, 4)}, "another bias"),
        ({"output_attentions": True}, "never in memory"),
        ({"cache": object()}, "a paged cache"),
        ({"dropout": 0.1}, "cannot drop weights, got dropout 0.1 in training"),
        ({"cu_seq_lens_q": torch.tensor([0, 4])}, "pass their position_ids"),
        ({"scaling": torch.tensor(1.0)}, "expected a number as scaling"),
    ],
)
def test_what_would_change_the_result_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toroidal_attention_forward(Bare(), *qkv(), None, **options)


def test_what_would_not_change_it_is_not() -> None:
    options = {
        "softcap": None,
        "output_attentions": False,
        "sliding_window": 9,
        "position_ids": torch.arange(4),
    }
    out, _ = toroidal_attention_forward(Bare(), *qkv(), None, **options)
    assert bool(out.isfinite().all())


def test_masks_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"2 or 4 dimensions for 4 keys, got \[1, 4, 4\]"):
        toroidal_attention_forward(Bare(), *qkv(), torch.ones(1, 4, 4))
    with pytest.raises(ValueError, match=r"for 4 keys, got \[1, 5\]"):
        toroidal_attention_forward(Bare(), *qkv(), torch.ones(1, 5))
    with pytest.raises(ValueError, match="for 4 keys, got str"):
        toroidal_attention_forward(Bare(), *qkv(), "causal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a key for each query, got 4 and 3"):
        toroidal_attention_forward(Bare(), *qkv(4, 3), None)
    with pytest.raises(TypeError, match="bool or floating point, got torch.int64"):
        toroidal_attention_forward(Bare(), *qkv(), torch.ones(1, 1, 4, 4, dtype=torch.int64))


def test_a_static_cache_on_several_axes_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    placed = torch.tensor([[[[3, 3, 3, -3]]]], dtype=torch.int32)
    q, k, v = qkv(1, 4)
    module = Bare(lattice=[2, 3])
    out, _ = toroidal_attention_forward(module, q, k, v, placed)
    expected = ops.toroidal_attention(
        q, k[:, :, :3], v[:, :, :3], module.toroidal_bias(), lattice=[2, 3], query_offset=2
    )
    torch.testing.assert_close(out.transpose(1, 2), expected)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(ValueError, match="disable_compile=True"):
        toroidal_attention_forward(module, q, k, v, placed)


def test_a_module_without_a_torus() -> None:
    with pytest.raises(ValueError, match="restore_toroidal_attention"):
        toroidal_attention_forward(nn.Identity(), *qkv(), None)


def test_registration_is_idempotent_and_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    register_toroidal_attention()
    register_toroidal_attention()
    assert AttentionInterface()["toroidal"] is toroidal_attention_forward
    for interface in (AttentionInterface, AttentionMaskInterface):
        with monkeypatch.context() as patch:
            patch.setitem(interface._global_mapping, "toroidal", print)
            with pytest.raises(
                ValueError, match=f"{interface.__name__}: 'toroidal' is registered by another"
            ):
                register_toroidal_attention()
