"""Keys and values of tokens seen so far, for decoding. Legend: B batch, G key heads, C new rows, E head size."""

from __future__ import annotations

import torch
from torch import Tensor


class ToroidalKVCache:
    """Keys and values of one layer in memory of fixed size, allocated at the first use.

    With a capacity it holds all tokens, and says so when full. With a window it is a ring of `window` + 1 tokens,
    mirrored: every token is written at two places that far apart, so that the last ones always lie in one piece and
    are read without a copy.

    Made by `ToroidalAttention.new_cache`; one a layer and batch. To begin anew, make a new one.

    Args:
        capacity: most tokens; or
        window: how many tokens back queries look, at least 0; older ones are overwritten.
        group: rows of a token, the depth of coupled slices.

    Raises:
        ValueError: not one of capacity and window, or a number that is too small.

    Cost: 2 B G E times `capacity`, or times 2 (window + 1), elements of the keys' dtype.
    """

    def __init__(self, *, capacity: int | None = None, window: int | None = None, group: int = 1) -> None:
        if (capacity is None) == (window is None):
            raise ValueError(f"cache: expected a capacity or a window, got {capacity} and {window}")
        if capacity is not None and capacity < 1:
            raise ValueError(f"capacity: expected at least 1 token, got {capacity}")
        if window is not None and window < 0:
            raise ValueError(f"window: expected at least 0 tokens, got {window}")
        self.capacity = capacity
        self.window = window
        self.group = group
        self._slots = group * (2 * (window + 1) if capacity is None else capacity)  # type: ignore[operator]
        self._rows = 0
        self._buffers: tuple[Tensor, Tensor] | None = None

    @property
    def length(self) -> int:
        """Tokens seen so far, also those that left the window."""
        return self._rows // self.group

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds rows and returns those that their queries may look at.

        Args:
            k: [B, G, C, E]; C a multiple of `group`.
            v: as k.

        Returns:
            keys and values [B, G, M, E], the last of all rows, the new ones included; M is all of them, or with a
            window at most `window` tokens before the new ones. Views of the cache, where it has them in one piece.

        Raises:
            ValueError: beyond the capacity, where a gradient is wanted, or another shape or dtype than before.
        """
        end = self._rows + k.shape[2]
        if self.capacity is not None and end > self.capacity * self.group:
            raise ValueError(
                f"cache: expected at most {self.capacity} tokens, got {end // self.group} in all"
            )
        if torch.is_grad_enabled() and (k.requires_grad or v.requires_grad):
            raise ValueError("cache: expected a call under torch.no_grad(), got keys that require grad")
        keys, values = self._allocated(k)
        if self.window is None:
            keys[:, :, self._rows : end] = k
            values[:, :, self._rows : end] = v
            self._rows = end
            return keys[:, :, :end], values[:, :, :end]
        kept = min(self._rows, self.window * self.group)
        found = self._ring(keys, k, kept), self._ring(values, v, kept)
        self._rows = end
        return found

    def _allocated(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, G, rows, E]."""
        batch, heads, _, dim = k.shape
        if self._buffers is None:
            shape = (batch, heads, self._slots, dim)
            self._buffers = k.new_empty(shape), k.new_empty(shape)
        held = self._buffers[0]
        if (held.shape[0], held.shape[1], held.shape[3]) != (batch, heads, dim) or held.dtype != k.dtype:
            raise ValueError(
                f"cache: expected {held.dtype} keys of shape [{held.shape[0]}, {held.shape[1]}, *, "
                f"{held.shape[3]}], got {k.dtype} {list(k.shape)}"
            )
        return self._buffers

    def _ring(self, buffer: Tensor, new: Tensor, kept: int) -> Tensor:
        """Writes new rows and returns them behind the `kept` ones before, in one piece."""
        size, count = buffer.shape[2] // 2, new.shape[2]
        first = (self._rows - kept) % size
        if count <= size - kept:
            self._write(buffer, new, self._rows)
            return buffer[:, :, first : first + kept + count]
        found = torch.cat((buffer[:, :, first : first + kept], new), 2)
        last = min(size, count)
        self._write(buffer, new[:, :, count - last :], self._rows + count - last)
        return found

    @staticmethod
    def _write(buffer: Tensor, new: Tensor, position: int) -> None:
        size, count = buffer.shape[2] // 2, new.shape[2]
        mirrored = buffer.unflatten(2, (2, size))
        slot = position % size
        fitting = min(count, size - slot)
        mirrored[:, :, :, slot : slot + fitting] = new[:, :, None, :fitting]
        mirrored[:, :, :, : count - fitting] = new[:, :, None, fitting:]
