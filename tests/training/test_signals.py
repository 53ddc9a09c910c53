"""Ctrl-C and SIGTERM: the first is remembered, the second acts, and afterwards all is as it was."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from vrae.training.signals import InterruptedRunError, StopSignals

both = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(autouse=True)
def signals_raise() -> Iterator[None]:
    """Both end what runs, whatever the tests were started with: in the background SIGINT is ignored, and SIGTERM kills."""

    def ended(number: int, frame: object) -> None:
        raise SystemExit(number)

    before = {number: signal.signal(number, ended) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@both
def test_the_first_is_only_remembered(number: signal.Signals) -> None:
    with StopSignals() as signals:
        assert signals.number == 0
        signal.raise_signal(number)
        assert signals.number == number


@both
def test_the_second_acts_as_it_did_before(number: signal.Signals) -> None:
    with StopSignals() as signals:
        signal.raise_signal(number)
        with pytest.raises(SystemExit):
            signal.raise_signal(number)
        assert signals.number == number


@both
@pytest.mark.parametrize("received", [True, False])
def test_the_handlers_of_before_are_put_back(number: signal.Signals, received: bool) -> None:
    before = signal.getsignal(number)
    with StopSignals():
        assert signal.getsignal(number) != before
        if received:
            signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_the_handlers_of_before_are_put_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), StopSignals():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) == before


def test_in_another_thread_there_is_nothing_to_receive() -> None:
    numbers: list[int] = []

    def run() -> None:
        with StopSignals() as signals:
            numbers.append(signals.number)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert numbers == [0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_exit_code_is_128_and_the_signals_number(number: signal.Signals, code: int) -> None:
    assert InterruptedRunError("stopped", number).exit_code == code
