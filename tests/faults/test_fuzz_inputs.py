"""Bytes from strangers, into every reader and loader: a value or one clear message, soon, in little memory, and nothing run.

The normal run takes the same few inputs each time; the long one (-m long) over 100,000, and prints how many.
"""

from __future__ import annotations

import gc
import resource
from random import Random

import pytest
from faults import targets
from faults.mutators import judge
from faults.targets import TARGETS, World
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from vrae.corpus.prepared import Corpus

MEMORY = 2**30  # bytes that the process may grow by, whatever the input
_done: dict[str, int] = {}


@pytest.fixture(scope="module")
def world(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> World:
    targets._use_corpus = corpus
    return World(tmp_path_factory.mktemp("fuzz"), corpus)


def fuzz(world: World, name: str, inputs: int, derandomize: bool) -> int:
    """How many inputs were judged."""
    judged = 0

    @settings(
        max_examples=inputs,
        derandomize=derandomize,
        database=None,
        deadline=None,  # `judge` has one
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        print_blob=True,
    )
    @given(rng=st.randoms(use_true_random=not derandomize))
    def one(rng: Random) -> None:
        nonlocal judged
        call = TARGETS[name].make(world, rng)
        judged += 1
        judge(call, world.folder)

    gc.collect()  # or files that earlier tests left open would be reported as this one's
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    one()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
    return judged


@pytest.mark.parametrize("name", TARGETS)
def test_a_few(world: World, name: str) -> None:
    assert fuzz(world, name, TARGETS[name].few, derandomize=True) >= TARGETS[name].few // 2


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_many(world: World, name: str) -> None:
    _done[name] = fuzz(world, name, TARGETS[name].many, derandomize=False)


@pytest.mark.long
def test_many_are_more_than_100_000(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print("", *(f"{count:>8,}  {name}" for name, count in _done.items()), f"{sum(_done.values()):>8,}  inputs", sep="\n")
    assert sum(_done.values()) >= 100_000
