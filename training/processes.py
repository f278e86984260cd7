"""Which of the training's processes this is, and how they add up what each has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Given = TypeVar("Given")

PATIENCE = timedelta(hours=4)
"""How long processes wait for one another: the first one may have a large corpus to read and tokenize."""


@dataclass(frozen=True)
class World:
    """Stand among `size` processes as number `rank`, with `device` as one's own."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def add_up(self, tensor: Tensor) -> Tensor:
        """Return the sum of all processes' tensors, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, given: Given) -> list[Given]:
        """Return what each process gives, in the order of their ranks."""
        if self.size == 1:
            return [given]
        everyone: list[Given | None] = [None] * self.size
        dist.all_gather_object(everyone, given)
        return everyone  # type: ignore[return-value]

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self.add_up(torch.zeros(1, device=self.device)).item()


@contextmanager
def world(device: str) -> Iterator[World]:
    """Give this process's place: as `torchrun` says by the environment, or alone.

    `device` is the kind, "cpu" or "cuda"; each process of a machine has a GPU of its own.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    own = torch.device(device, int(os.environ.get("LOCAL_RANK", "0"))) if device == "cuda" else torch.device(device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    if size == 1:
        yield World(own)
        return
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("nccl" if own.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield World(own, rank, size)
    finally:
        if ours:
            dist.destroy_process_group()
