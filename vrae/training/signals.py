"""Signals while training: SIGINT and SIGTERM end it with its state saved, SIGUSR1 has it saved on the way.

The first SIGINT or SIGTERM is remembered until the step is done; a validation, which may take minutes, is broken off for it and
made again when the run is resumed. The second acts as if nothing were handled.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from vrae.errors import UserError


class InterruptedRunError(UserError):
    """Training was asked to stop and has saved its state. Exit code 130 (Ctrl-C) or 143 (SIGTERM)."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class _BrokenOffError(BaseException):
    """Raised by the handler. Like KeyboardInterrupt it is no Exception: only clean-up code sees it pass."""


class RunSignals:
    """Within this context signals are remembered: the first SIGINT or SIGTERM as `number`, SIGUSR1 as `save`."""

    def __init__(self) -> None:
        self.number = 0  # of the signal that asks to stop
        self.save = False  # whoever saves sets it back
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> RunSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._stop)
            self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._save)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore(*self._before)

    @contextlib.contextmanager
    def breaking_off(self) -> Iterator[None]:
        """Within this context what asks to stop does so at once: the context is left, and `number` says why."""
        try:
            self._at_once = True
            try:
                yield
            finally:
                self._at_once = False
        except _BrokenOffError:
            self._at_once = False

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore(signal.SIGINT, signal.SIGTERM)
        if self._at_once:
            raise _BrokenOffError

    def _save(self, number: int, frame: FrameType | None) -> None:
        self.save = True

    def _restore(self, *numbers: int) -> None:
        for number in numbers:
            if number in self._before:
                signal.signal(number, self._before.pop(number))
