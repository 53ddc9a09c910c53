"""The processes that torchrun starts: who they are, how they share work, and how they come to the same numbers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import DistError
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from vrae.errors import ConfigError, LostProcessError, UserError


@contextlib.contextmanager
def processes() -> Iterator[bool]:
    """Joins the processes that torchrun started, where it did; yields whether this one speaks for all.

    Raises:
        LostProcessError: another one has ended too soon.
    """
    together = "RANK" in os.environ and "WORLD_SIZE" in os.environ and not _together()
    if not together:
        yield first()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    try:
        _join()
        yield first()
    except RuntimeError as error:
        if isinstance(error, DistError) or "gloo" in str(error):
            raise LostProcessError("another process has ended or cannot be reached, so this one cannot go on") from None
        raise
    finally:
        if _together():
            dist.destroy_process_group()


def _join() -> None:
    """As `init_process_group` does, but with keys of their own for each start of the processes.

    The agent of torchrun keeps its store when it starts them again, and a process that finds there where a dead one listened
    waits for it (https://github.com/pytorch/pytorch/issues/135712). The agents of several machines count starts differently:
    there the store has to be a new one each time, see docs/reliability.md.
    """
    store, number, size = next(rendezvous("env://"))
    alone = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if alone else "0"
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=PrefixStore(f"start {start}", store), rank=number, world_size=size)


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


def add_up(tensors: Sequence[Tensor]) -> None:
    """Each of these tensors, of one type, becomes its sum over the processes, in one message; all get the same bits."""
    if world() == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    sums = torch.split(flat, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, sums, strict=True):
        tensor.copy_(part.view_as(tensor))


def same(what: str, value: Any) -> None:
    """Raises ConfigError in all processes where they do not have the same `value`."""
    if world() > 1:
        values: list[Any] = [None] * world()
        dist.all_gather_object(values, value)
        for other, theirs in enumerate(values):
            if theirs != values[0]:
                raise ConfigError(f"process {other} has another {what} than process 0: all must be started alike")


@contextlib.contextmanager
def by_first(context: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    """`context`, entered by the first process alone. Where that fails all processes end, and the first says why."""
    with contextlib.ExitStack() as stack:
        error, code = None, [0]
        if first():
            try:
                stack.enter_context(context)
            except UserError as caught:
                error, code = caught, [caught.exit_code]
        if world() > 1:
            dist.broadcast_object_list(code)
        if code[0]:
            raise error or SystemExit(code[0])
        yield


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
