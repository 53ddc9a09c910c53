"""The processes that torchrun starts: who they are, and how they share work."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist


@contextlib.contextmanager
def processes() -> Iterator[bool]:
    """Joins the processes that torchrun started, where it did; yields whether this one speaks for all."""
    together = "RANK" in os.environ and "WORLD_SIZE" in os.environ and not _together()
    if together:
        dist.init_process_group("gloo")
    try:
        yield first()
    finally:
        if together:
            dist.destroy_process_group()


def rank() -> int:
    """The number of this process, 0 where it is alone."""
    return dist.get_rank() if _together() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _together() else 1


def first() -> bool:
    """Whether this process speaks for all."""
    return rank() == 0


def gather(part: Any) -> list[Any]:
    """The parts of all processes, by rank, for the first one; the others get nothing."""
    if world() == 1:
        return [part]
    parts: list[Any] = [None] * world() if first() else []
    dist.gather_object(part, parts if first() else None)
    return parts


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
