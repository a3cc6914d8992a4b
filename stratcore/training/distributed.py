"""Ranks and devices: one process and many are the same path."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stratcore.training.random_state import request_deterministic_cublas


class Runtime:
    """Where this process runs, and its collectives; with one process every collective does nothing.

    Made by `Runtime.create`, which reads the variables that `torchrun` and `accelerate launch` set. Also a
    context manager that closes itself.
    """

    def __init__(self, *, rank: int, world_size: int, device: torch.device, owns_group: bool = False) -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = device
        self._owns_group = owns_group
        # Flags and objects travel over the hosts, so that they never wait for a GPU's queue.
        self._host_group = dist.new_group(backend="gloo") if world_size > 1 else None

    @classmethod
    def create(cls, device: str = "auto", timeout_seconds: float = 120.0) -> Runtime:
        """Find rank, world size and device, and join the process group if there are several processes.

        Args:
            device: `auto` (a GPU if there is one), `cpu` or `cuda`.
            timeout_seconds: After this long in one collective, a rank that waits in vain gives up.

        Returns:
            The runtime of this process.

        Raises:
            ValueError: The device is unknown or absent.
        """
        if device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device: expected auto, cpu or cuda, got {device!r}")
        request_deterministic_cublas()
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device: expected a CUDA GPU for 'cuda', but torch finds none; use auto or cpu")
        place = torch.device("cpu")
        if device != "cpu" and torch.cuda.is_available():
            place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            if place.index >= torch.cuda.device_count():
                count = torch.cuda.device_count()
                raise ValueError(f"device: expected a GPU for local rank {place.index}, got {count} GPU(s)")
            torch.cuda.set_device(place)
        owns_group = False
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
            dist.init_process_group(
                "nccl" if place.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout_seconds)
            )
            owns_group = True
        joined = dist.is_initialized()
        return cls(
            rank=dist.get_rank() if joined else 0,
            world_size=dist.get_world_size() if joined else 1,
            device=place,
            owns_group=owns_group,
        )

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the terminal."""
        return self.rank == 0

    def wrap(self, model: nn.Module, *, find_unused_parameters: bool = False) -> nn.Module:
        """Return the form of `model` (already on the device) whose backward pass averages over the ranks."""
        if self.world_size == 1:
            return model
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            model, device_ids=devices, find_unused_parameters=find_unused_parameters
        )

    def gradient_sync(self, model: nn.Module, *, final: bool) -> AbstractContextManager[Any]:
        """Return the context of one micro-step: only the final one of a step exchanges gradients."""
        if final or not isinstance(model, DistributedDataParallel):
            return nullcontext()
        return model.no_sync()

    def reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum a device tensor over the ranks, in place, and return it."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Tell whether any rank's flag is set; every rank gets the same answer."""
        if self.world_size == 1:
            return flag
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes, group=self._host_group)
        return bool(votes.item())

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's small host object, in the order of the ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._host_group)
        return values

    def broadcast(self, value: Any) -> Any:
        """Return the main process's small host object."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._host_group)
        return box[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier(group=self._host_group)

    def close(self) -> None:
        """Leave the process group, if `create` joined it."""
        if self._owns_group:
            dist.destroy_process_group()
            self._owns_group = False

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
