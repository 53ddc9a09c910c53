"""Ctrl-C and SIGTERM: the first is remembered, the second acts, and afterwards all is as it was."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from vrae.training.signals import InterruptedRunError, RunSignals

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
    with RunSignals() as signals:
        assert signals.number == 0
        signal.raise_signal(number)
        assert signals.number == number


@both
def test_the_second_acts_as_it_did_before(number: signal.Signals) -> None:
    with RunSignals() as signals:
        signal.raise_signal(number)
        with pytest.raises(SystemExit):
            signal.raise_signal(number)
        assert signals.number == number


@both
@pytest.mark.parametrize("received", [True, False])
def test_the_handlers_of_before_are_put_back(number: signal.Signals, received: bool) -> None:
    before = signal.getsignal(number)
    with RunSignals():
        assert signal.getsignal(number) != before
        if received:
            signal.raise_signal(number)
    assert signal.getsignal(number) == before


@both
def test_what_is_broken_off_for_the_first_is_left_at_once(number: signal.Signals) -> None:
    done = []
    with RunSignals() as signals:
        with signals.breaking_off():
            done.append("first")
        with signals.breaking_off():
            signal.raise_signal(number)
            done.append("second")
        assert (signals.number, done) == (number, ["first"])
        with pytest.raises(SystemExit), signals.breaking_off():  # a second signal acts as it did before
            signal.raise_signal(number)


def test_other_errors_pass_through_what_can_be_broken_off() -> None:
    with RunSignals() as signals:
        with pytest.raises(ZeroDivisionError), signals.breaking_off():
            raise ZeroDivisionError
        signal.raise_signal(signal.SIGTERM)  # and it can no longer be
        assert signals.number == signal.SIGTERM


def test_usr1_asks_to_save_as_often_as_it_comes_and_after_the_first_too() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with RunSignals() as signals:
        for _ in range(2):
            with signals.breaking_off():
                signal.raise_signal(signal.SIGUSR1)
            assert (signals.save, signals.number) == (True, 0)
            signals.save = False
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)
        assert signals.save
    assert signal.getsignal(signal.SIGUSR1) == before


def test_the_handlers_of_before_are_put_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), RunSignals():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) == before


def test_in_another_thread_there_is_nothing_to_receive() -> None:
    numbers: list[int] = []

    def run() -> None:
        with RunSignals() as signals:
            numbers.append(signals.number)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert numbers == [0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_exit_code_is_128_and_the_signals_number(number: signal.Signals, code: int) -> None:
    assert InterruptedRunError("stopped", number).exit_code == code
