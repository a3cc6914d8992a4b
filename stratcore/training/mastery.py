"""Hard pairs across batches once a model masters those within one: a queue of past embeddings, and its controller.

Legend: B rows, O embedding size, N places of a queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stratcore.training.embedding_losses import batch_hard_margin, hard_pairs

RULES = ("fixed", "change", "level")
DRIFT_WINDOW = 5


class EmbeddingQueue:
    """First in, first out: the last rows with a label, on the device, written in place and without a wait for it.

    Args:
        capacity: N, places in use; the oldest rows make room.
        limit: most places ever, allocated at once.
        dim: O.
        device: of the rows.

    A place without a row has label -1; there is no random start.
    """

    def __init__(self, capacity: int, limit: int, dim: int, device: torch.device) -> None:
        self.capacity = capacity
        self._rows = torch.zeros(limit, dim, device=device)
        self._labels = torch.full((limit,), -1, dtype=torch.int64, device=device)
        self._head = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def rows(self) -> Tensor:
        """[N, O], in no order that matters."""
        return self._rows[: self.capacity]

    @property
    def labels(self) -> Tensor:
        """[N], -1 where there is no row."""
        return self._labels[: self.capacity]

    def in_order(self) -> tuple[Tensor, Tensor]:
        """Rows and labels, places without a row first, then oldest to newest."""
        place = (self._head + torch.arange(self.capacity, device=self._head.device)) % self.capacity
        return self._rows[place], self._labels[place]

    @torch.no_grad()
    def push(self, rows_BO: Tensor, labels_B: Tensor, wanted: Tensor) -> None:
        """Put rows in, where the scalar bool `wanted` on the device holds; else leave all as it is."""
        rows_BO, labels_B = rows_BO[-self.capacity :].detach(), labels_B[-self.capacity :]
        count = rows_BO.shape[0]
        place_B = (self._head + torch.arange(count, device=self._head.device)) % self.capacity
        kept_BO, kept_B = self._rows[place_B], self._labels[place_B]
        self._rows[place_B] = torch.where(wanted, rows_BO.to(kept_BO.dtype), kept_BO)
        self._labels[place_B] = torch.where(wanted, labels_B, kept_B)
        self._head.copy_((self._head + count * wanted.long()) % self.capacity)

    @torch.no_grad()
    def resize(self, capacity: int) -> None:
        """Go on with another number of places, keeping the newest rows."""
        rows_NO, labels_N = self.in_order()
        kept = min(capacity, self.capacity)
        self._rows.zero_()
        self._labels.fill_(-1)
        self._rows[capacity - kept : capacity] = rows_NO[-kept:]
        self._labels[capacity - kept : capacity] = labels_N[-kept:]
        self._head.zero_()
        self.capacity = capacity

    def state_dict(self) -> dict[str, Any]:
        """Rows, labels, where the next one goes."""
        return {
            "capacity": self.capacity,
            "rows": self.rows.clone(),
            "labels": self.labels.clone(),
            "head": self._head.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.capacity = state["capacity"]
        self._rows.zero_()
        self._labels.fill_(-1)
        self.rows.copy_(state["rows"])
        self.labels.copy_(state["labels"])
        self._head.copy_(state["head"])


@dataclass(frozen=True, kw_only=True)
class MasteryOptions:
    """When the queue of hard pairs starts, how hard it is, and how it grows.

    Args:
        trigger_accuracy: InfoNCE accuracy that counts as mastered.
        trigger_batches: so many batches in a row have it: the queue starts.
        capacity: places at the start.
        least: fewest places.
        most: most places.
        resize: places added or taken away at a time.
        rule: 'fixed': never resized. 'change': by the change of the gap, training less held-out accuracy in points,
            since the last evaluation, beyond +-`change` (the source documents' plan). 'level': by the gap itself,
            above `high` or below `low`, else by its change over five evaluations beyond +-`change` (their card).
        change: points.
        high: points.
        low: points.
        cooldown: evaluations after a resize without another.
        margin_start: margin of the loss when the queue starts.
        margin_end: margin in the end.
        margin_batches: over which it rises, linearly.
    """

    trigger_accuracy: float = 1.0
    trigger_batches: int = 50
    capacity: int = 4096
    least: int = 1024
    most: int = 16384
    resize: int = 2048
    rule: str = "change"
    change: float = 3.0
    high: float = 9.0
    low: float = 3.0
    cooldown: int = 5
    margin_start: float = 0.1
    margin_end: float = 0.3
    margin_batches: int = 5000

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"mastery.rule: expected one of {', '.join(RULES)}, got {self.rule!r}")
        if not 1 <= self.least <= self.capacity <= self.most:
            raise ValueError(
                f"mastery.capacity: expected a number in [least, most] = [{self.least}, {self.most}], "
                f"got {self.capacity}"
            )
        for name in ("trigger_batches", "resize", "margin_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"mastery.{name}: expected a number >= 1, got {getattr(self, name)}")
        if self.cooldown < 0 or not self.change >= 0 or not self.low <= self.high:
            raise ValueError(
                "mastery.cooldown, change, low: expected >= 0, >= 0 and at most high, got "
                f"{self.cooldown}, {self.change}, {self.low}"
            )
        if not 0 < self.trigger_accuracy <= 1:
            raise ValueError(
                f"mastery.trigger_accuracy: expected a share in (0, 1], got {self.trigger_accuracy}"
            )


class MasteryResult(NamedTuple):
    """loss: scalar, 0 before the start. negative, positive: mean hardest cosines. active: 1 once started, else 0."""

    loss: Tensor
    negative: Tensor
    positive: Tensor
    active: Tensor


class Mastery:
    """The queue of hard pairs with its state machine: waiting, then active for good; resized between steps.

        loss = mean relu(hardest negative - hardest positive + m),   over batch and queue

    m rises from `margin_start` to `margin_end`. All of a step stays on the device. The controller reads a held-out
    slice of the training rows: validation rows must not steer training.

    Args:
        options: thresholds and sizes.
        dim: size of an embedding.
        device: of the embeddings.
    """

    def __init__(self, options: MasteryOptions, dim: int, device: torch.device) -> None:
        self.options = options
        self.queue = EmbeddingQueue(options.capacity, options.most, dim, device)
        self._streak = torch.zeros((), dtype=torch.int64, device=device)
        self._age = torch.zeros((), dtype=torch.int64, device=device)
        self._gaps: list[float] = []
        self._wait = 0

    @property
    def active(self) -> Tensor:
        """Scalar bool on the device."""
        return self._age > 0

    @torch.no_grad()
    def observe(self, accuracy: Tensor) -> None:
        """Take the InfoNCE accuracy of a batch: count towards the start, or one more batch since it."""
        mastered = accuracy >= self.options.trigger_accuracy
        self._streak.copy_(torch.where(mastered, self._streak + 1, 0))
        started = self.active | (self._streak >= self.options.trigger_batches)
        self._age += started

    def margin(self) -> Tensor:
        """Margin of the present batch, scalar; that of the first active batch is `margin_start`."""
        options = self.options
        share = ((self._age - 1).clamp_min(0) / options.margin_batches).clamp_max(1.0)
        return options.margin_start + (options.margin_end - options.margin_start) * share

    def __call__(self, embeddings_BO: Tensor, labels_B: Tensor) -> MasteryResult:
        """Loss of a batch against itself and the queue; then the batch goes into the queue."""
        pairs = hard_pairs(embeddings_BO, labels_B, self.queue.rows, self.queue.labels)
        loss = batch_hard_margin(pairs, self.margin()) * self.active
        self.queue.push(embeddings_BO, labels_B, self.active)
        negative, positive = pairs.mean()
        return MasteryResult(loss, negative, positive, self.active.float())

    def control(self, train_accuracy: float, held_out_accuracy: float) -> int:
        """Resize by the gap between two accuracies in [0, 1]; returns the places then. Waits for the device.

        Args:
            train_accuracy: on rows that were learnt from.
            held_out_accuracy: on rows of the training split that were not.
        """
        if self.options.rule == "fixed" or not bool(self.active):
            return self.queue.capacity
        self._gaps = [*self._gaps, 100 * (train_accuracy - held_out_accuracy)][-DRIFT_WINDOW - 1 :]
        if self._wait:
            self._wait -= 1
            return self.queue.capacity
        options, size = self.options, self.queue.capacity
        wanted = min(options.most, max(options.least, size + options.resize * self._direction()))
        if wanted != size:
            self.queue.resize(wanted)
            self._wait = options.cooldown
        return wanted

    def _direction(self) -> int:
        """1 to grow, -1 to shrink, 0 to stay."""
        options, gaps = self.options, self._gaps
        if options.rule == "level" and not options.low <= gaps[-1] <= options.high:
            return 1 if gaps[-1] > options.high else -1
        back = DRIFT_WINDOW if options.rule == "level" else 1
        if len(gaps) <= back:
            return 0
        change = gaps[-1] - gaps[-1 - back]
        return int(change > options.change) - int(change < -options.change)

    def state_dict(self) -> dict[str, Any]:
        """Queue, counters, gaps and cooldown."""
        return {
            "queue": self.queue.state_dict(),
            "streak": self._streak.clone(),
            "age": self._age.clone(),
            "gaps": list(self._gaps),
            "wait": self._wait,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.queue.load_state_dict(state["queue"])
        self._streak.copy_(state["streak"])
        self._age.copy_(state["age"])
        self._gaps, self._wait = list(state["gaps"]), state["wait"]
