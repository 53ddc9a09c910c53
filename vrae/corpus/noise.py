"""Random numbers with an address: what a place is given depends on a key and on the place, not on who else asks.

So each of many processes makes the numbers of its own part of a batch, and those are the numbers that one process alone would
make. A generator that runs from the first place to the last would have to be run by all of them, over the whole batch.

A number is the address, mixed by the function of SplitMix64 (Steele et al. 2014, section 4), twice, with a half of the key
before each: within a key no two addresses share one. It is not for secrets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_WEYL, _FIRST, _SECOND = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)
_30, _27, _31, _32, _11 = np.array([30, 27, 31, 32, 11], np.uint64)


def uniform(key: Sequence[int], places_B: np.ndarray, width: int) -> np.ndarray:
    """`width` numbers for each place, float64 [B, width] in [0, 1). The first ones do not depend on `width`."""
    numbers: np.ndarray = (_bits(key, places_B, width) >> _11) * 2.0**-53
    return numbers


def normal(key: Sequence[int], places_B: np.ndarray, width: int) -> np.ndarray:
    """`width` standard normal numbers for each place, float32 [B, width] (Box and Muller 1958), none beyond 6.8."""
    bits = _bits(key, places_B, -(-width // 2))
    radius, angle = (bits >> _32).astype(np.float32), bits.astype(np.uint32).astype(np.float32)
    radius = np.sqrt(-2 * np.log((radius + np.float32(0.5)) * np.float32(2.0**-32)))
    angle *= np.float32(2 * np.pi * 2.0**-32)
    pairs = np.empty((*bits.shape, 2), np.float32)
    pairs[..., 0], pairs[..., 1] = radius * np.cos(angle), radius * np.sin(angle)
    return pairs.reshape(len(bits), -1)[:, :width]


def _bits(key: Sequence[int], places_B: np.ndarray, width: int) -> np.ndarray:
    """uint64 [B, width]. An address is the place, below 2^32, and the column."""
    before, between = np.random.SeedSequence(key).generate_state(2, np.uint64)
    number: np.ndarray = (places_B.astype(np.uint64) << _32)[:, None] | np.arange(width, dtype=np.uint64)
    number *= _WEYL
    number += before
    _mix(number)
    number ^= between
    _mix(number)
    return number


def _mix(number: np.ndarray) -> None:
    """In place; one-to-one."""
    number ^= number >> _30
    number *= _FIRST
    number ^= number >> _27
    number *= _SECOND
    number ^= number >> _31
