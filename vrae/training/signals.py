"""SIGINT and SIGTERM while training: finish the step, save, leave with 128 + the signal's number."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from vrae.errors import UserError


class InterruptedRunError(UserError):
    """Training was asked to stop and has saved its state. Exit code 130 (Ctrl-C) or 143 (SIGTERM)."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopSignals:
    """Within this context the first SIGINT or SIGTERM sets `number`; a second one acts as it did before."""

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
