"""Random numbers with an address: each is a function of key, place and column, and all together they look random."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from vrae.corpus.noise import _WEYL, _mix, normal, uniform

Numbers = Callable[[Sequence[int], np.ndarray, int], np.ndarray]
BOTH = pytest.mark.parametrize("numbers", [uniform, normal])
KEY = (7, 1, 3)
PLACES = np.arange(500)


def test_the_mixing_function_is_that_of_splitmix64() -> None:
    """The outputs that Vigna's splitmix64.c gives for seed 1234567."""
    number = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * _WEYL
    _mix(number)
    assert number.tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def mixed(number: int) -> int:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        number = (number ^ number >> shift) * factor % 2**64
    return number


def test_a_number_is_its_address_mixed_with_both_halves_of_the_key() -> None:
    """With the integers of Python, one at a time."""
    before, between = np.random.SeedSequence(KEY).generate_state(2, np.uint64).tolist()
    places = [0, 1, 2**21, 2**32 - 1]
    found = uniform(KEY, np.array(places), 3)
    for row, place in zip(found.tolist(), places, strict=True):
        for column, number in enumerate(row):
            address = (place * 2**32 + column) * 0x9E3779B97F4A7C15
            assert number == (mixed(mixed((address + before) % 2**64) ^ between) >> 11) / 2**53


@BOTH
@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_place_is_given_the_same_whoever_else_asks(numbers: Numbers, count: int) -> None:
    whole = numbers(KEY, PLACES, 9)
    for part in range(count):
        assert (numbers(KEY, PLACES[part::count], 9) == whole[part::count]).all()


@BOTH
@pytest.mark.parametrize("width", [0, 1, 4, 9])
def test_the_first_numbers_do_not_depend_on_how_many_are_asked_for(numbers: Numbers, width: int) -> None:
    found = numbers(KEY, PLACES, width)
    assert found.shape == (500, width)
    assert (found == numbers(KEY, PLACES, 10)[:, :width]).all()


@BOTH
def test_kinds(numbers: Numbers) -> None:
    assert numbers(KEY, PLACES, 3).dtype == (np.float32 if numbers is normal else np.float64)


def test_no_two_addresses_and_keys_share_a_number() -> None:
    found = [uniform(key, PLACES, 40) for key in (KEY, (8, 1, 3), (7, 1, 4), (7, 1, 3, 1), (1, 7, 3))]
    assert len(np.unique(found)) == 5 * 500 * 40


def test_uniform_numbers_fill_the_interval_evenly() -> None:
    found = uniform(KEY, np.arange(2000), 100)
    assert found.min() >= 0
    assert found.max() < 1
    counts = np.histogram(found, bins=100, range=(0, 1))[0]
    chi2 = ((counts - 2000) ** 2 / 2000).sum()
    assert abs(chi2 - 99) < 4 * math.sqrt(2 * 99)


def test_normal_numbers_have_the_distribution_function_of_the_normal() -> None:
    found = np.sort(normal(KEY, np.arange(2000), 100).ravel().astype(np.float64))
    expected = np.array([math.erfc(-x / math.sqrt(2)) / 2 for x in found[::50].tolist()])
    distance = np.abs(expected - np.arange(0, len(found), 50) / len(found)).max()
    assert distance < 2 / math.sqrt(len(found))  # Kolmogorov: passed with probability 0.9993
    assert np.isfinite(found).all()


def test_normal_numbers_are_finite_at_the_ends_of_the_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = np.array([[0, 2**64 - 1, 2**32 - 1, 2**64 - 2**32]], np.uint64)
    monkeypatch.setattr("vrae.corpus.noise._bits", lambda *_: ends)
    found = normal(KEY, PLACES[:1], 8)
    assert np.isfinite(found).all()
    assert 6.7 < np.abs(found).max() < 6.8


def test_neighbours_are_not_correlated() -> None:
    """Columns, places, steps and seeds that follow each other; squares as well, as pairs of normals share a radius."""
    x = normal(KEY, np.arange(4000), 32).astype(np.float64)
    pairs = [(x[:, :-1], x[:, 1:]), (x[:-1], x[1:]), (x[:, ::2], x[:, 1::2])]
    pairs += [(x, normal(key, np.arange(4000), 32)) for key in ((7, 1, 4), (8, 1, 3), (7, 2, 3))]
    for one, other in pairs:
        for power in (1, 2):
            correlation = np.corrcoef(one.ravel() ** power, other.ravel().astype(np.float64) ** power)[0, 1]
            assert abs(correlation) < 4.5 / math.sqrt(one.size)
