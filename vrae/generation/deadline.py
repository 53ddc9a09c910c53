"""A limit on the wall-clock time that a job may take, however deep in it the time goes.

A job runs within a `time_limit`, and whatever loops below it calls `check_time` once a round. Nothing is interrupted, so
nothing is left half-done: the job ends at the next round. A limit is that of the thread or task that set it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from time import monotonic
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from vrae.errors import UserError

_end: ContextVar[tuple[float, float]] = ContextVar("end", default=(math.inf, math.inf))  # when, and the limit it comes from


class Limited(Protocol):
    max_seconds: float | None


P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound=Limited)


@contextmanager
def time_limit(seconds: float | None, left: float | None = None) -> Iterator[None]:
    """Within it, `check_time` raises once `seconds` (None: no limit) have passed, or those that are `left` of them.

    Of several limits the first to end holds.
    """
    if seconds is None:
        yield
        return
    own = monotonic() + (seconds if left is None else left), seconds
    before = _end.set(min(_end.get(), own))
    try:
        yield
    finally:
        _end.reset(before)


def check_time() -> None:
    """Raises UserError where the time is over."""
    end, seconds = _end.get()
    if end < math.inf and monotonic() > end:
        raise UserError(f"took longer than max_seconds ({seconds:g}): ask for less at a time, or for shorter texts")


def timed(job: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]:
    """A job of a model, its method or a function of it, within the model's `max_seconds`."""

    @wraps(job)
    def within(model: T, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with time_limit(model.max_seconds):
            return job(model, *args, **kwargs)

    return within


def timed_steps(steps: Iterator[R], seconds: float | None) -> Iterator[R]:
    """The items of `steps`, all of which together may take so long. What the caller does between them is not counted."""
    if seconds is None:
        yield from steps
        return
    left, nothing = seconds, object()
    while True:
        began = monotonic()
        with time_limit(seconds, left):
            check_time()
            item: Any = next(steps, nothing)
        if item is nothing:
            return
        left -= monotonic() - began
        yield item


def check_limit(seconds: object) -> None:
    """Raises UserError where `seconds` is neither None nor a number above 0."""
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0):
        raise UserError(f"max_seconds must be a number above 0, or None for no limit. Got {seconds!r:.40}")
