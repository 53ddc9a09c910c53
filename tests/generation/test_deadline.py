"""The limit on time, by a clock that the tests turn: no job outlives it, none is harmed by it, and the next one is as ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model

import vrae.generation.deadline
from vrae.config import DecodingConfig, ResponseConfig
from vrae.corpus.prepared import Corpus
from vrae.corpus.tokenizer import EOS
from vrae.errors import UserError
from vrae.evaluation.score import score
from vrae.generation.attributes import learn, move
from vrae.generation.deadline import check_time, time_limit, timed, timed_steps
from vrae.generation.neighbours import Index, Turn
from vrae.generation.pipeline import Pipeline, load

LONG = DecodingConfig(temperature=1.0, top_p=1.0, max_tokens=40)
SEARCH = DecodingConfig(beams=3, max_tokens=40)
FIRST, SECOND = ["yes", "no", "thanks", "hello", "see you"], ["what", "how are you", "do you", "are you", "what is"]


class Clock:
    """Every look at it takes `step` seconds."""

    def __init__(self) -> None:
        self.now, self.step, self.looks = 0.0, 0.0, 0

    def __call__(self) -> float:
        self.looks += 1
        self.now += self.step
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(vrae.generation.deadline, "monotonic", clock)
    return clock


@pytest.fixture(scope="module")
def pipeline(corpus: Corpus) -> Pipeline:
    """A model that ends no text by itself."""
    model = tiny_model(vocab_size=len(corpus.tokenizer), context_turns=2)
    with torch.no_grad():
        model.decoder.out.bias[EOS] = -30.0
    return Pipeline(model, corpus.tokenizer, {})


class TestLimit:
    def test_ends_when_the_time_is_over_and_not_before(self, clock: Clock) -> None:
        with time_limit(5.0):
            clock.now = 5.0
            check_time()
            clock.now = 5.001
            with pytest.raises(UserError, match=r"^took longer than max_seconds \(5\): ask for less"):
                check_time()
        check_time()

    def test_is_none_by_default(self, clock: Clock) -> None:
        with time_limit(None):
            clock.now = 1e9
            check_time()
        assert clock.looks == 0

    @pytest.mark.parametrize(("outer", "inner", "ends"), [(5.0, 9.0, 5.0), (9.0, 5.0, 5.0), (None, 5.0, 5.0), (5.0, None, 5.0)])
    def test_of_several_is_the_first_to_end(self, clock: Clock, outer: float | None, inner: float | None, ends: float) -> None:
        with time_limit(outer), time_limit(inner):
            clock.now = ends
            check_time()
            clock.now = ends + 0.1
            with pytest.raises(UserError, match=rf"max_seconds \({ends:g}\)"):
                check_time()

    def test_of_an_inner_job_ends_with_it(self, clock: Clock) -> None:
        with time_limit(9.0):
            with time_limit(1.0):
                pass
            clock.now = 8.0
            check_time()

    def test_is_lifted_after_an_error(self, clock: Clock) -> None:
        with pytest.raises(KeyError), time_limit(1.0):
            raise KeyError
        clock.now = 2.0
        check_time()

    def test_of_one_thread_is_not_that_of_another(self, clock: Clock) -> None:
        with time_limit(1.0):
            clock.now = 2.0
            thread = threading.Thread(target=check_time)  # an error would be a warning, which is an error
            thread.start()
            thread.join()

    def test_of_steps_counts_the_time_within_them_alone(self, clock: Clock) -> None:
        def work() -> Iterator[int]:
            for number in count():
                check_time()
                clock.now += 1.0
                yield number

        steps = timed_steps(work(), 3.5)
        done = []
        for _ in range(4):
            done.append(next(steps))
            clock.now += 100.0  # the caller's
            check_time()
        assert done == [0, 1, 2, 3]
        with pytest.raises(UserError, match=r"max_seconds \(3.5\)"):
            next(steps)
        assert list(timed_steps(iter("abc"), None)) == ["a", "b", "c"]

    def test_keeps_the_name_and_the_words_of_a_job(self) -> None:
        assert Pipeline.encode.__name__ == "encode"
        assert "log-variances" in (Pipeline.encode.__doc__ or "")
        assert timed(lambda model: 3)(type("Model", (), {"max_seconds": None})()) == 3

    @pytest.mark.parametrize("seconds", [0, -1, 0.0, float("nan"), True, "5", [], -float("inf")], ids=repr)
    def test_is_a_number_above_0(self, pipeline: Pipeline, seconds: Any) -> None:
        with pytest.raises(UserError, match="max_seconds must be a number above 0, or None"):
            Pipeline(pipeline.model, pipeline.tokenizer, {}, max_seconds=seconds)


def many(pipeline: Pipeline) -> list[str]:
    return [f"hello {number}" for number in range(600)]


JOBS: dict[str, Callable[[Pipeline], Any]] = {
    "respond": lambda p: p.respond("hello", 2, seed=1, decoding=LONG),
    "respond by a search": lambda p: p.respond("hello", 2, seed=1, decoding=SEARCH),
    "respond to many": lambda p: p.respond_many(
        [[text] for text in many(p)[:100]], 1, seed=1, decoding=DecodingConfig(max_tokens=1)
    ),
    "respond by evidence": lambda p: p.respond(
        "hello", 2, seed=1, decoding=DecodingConfig(max_tokens=2), responses=ResponseConfig(rank="mmi", rank_samples=5000)
    ),
    "respond in many ways": lambda p: p.respond(
        "hello", 40, seed=1, decoding=DecodingConfig(temperature=5, top_p=1, max_tokens=2)
    ),
    "sample": lambda p: list(p.sample(3, seed=1, decoding=LONG)),
    "sample many": lambda p: list(p.sample(9000, seed=1, decoding=DecodingConfig(max_tokens=1))),
    "reconstruct": lambda p: p.reconstruct(["hello", "yes"], 1, seed=1),
    "interpolate": lambda p: p.interpolate("hello", "yes", 3),
    "variations": lambda p: p.variations("hello", 2, seed=1),
    "analogy": lambda p: p.analogy("hello", "yes", "no"),
    "encode many": lambda p: p.encode(many(p))[0].tolist(),
    "decode": lambda p: p.decode_latents(np.zeros((2, 4))),
    "score": lambda p: score(p, ["hello"], k=20_000),
    "score many": lambda p: score(p, many(p) * 5, k=1),
    "evidence": lambda p: p.evidence(p.windows(["hello"]), 20_000, 1),
    "learn": lambda p: learn(p, FIRST, SECOND, name="x").accuracy,
    "move": lambda p: move(p, ["hello"], _attribute(p)),
    "query": lambda p: Index.build(p, [Turn("hello", 0, 0)]).query(many(p), 1),
}


def _attribute(pipeline: Pipeline) -> Any:
    limit, pipeline.max_seconds = pipeline.max_seconds, None
    try:
        return learn(pipeline, FIRST, SECOND, name="x")
    finally:
        pipeline.max_seconds = limit


class TestJobs:
    @pytest.mark.parametrize("name", JOBS)
    def test_ends_soon_after_the_limit_and_the_next_is_as_ever(self, pipeline: Pipeline, clock: Clock, name: str) -> None:
        job = JOBS[name]
        unlimited = job(pipeline)
        assert clock.looks == 0
        limited = Pipeline(pipeline.model, pipeline.tokenizer, {}, max_seconds=10.0)
        assert job(limited) == unlimited  # in no time
        assert clock.looks >= 10
        clock.looks, clock.step = 0, 1.0
        with pytest.raises(UserError, match=r"took longer than max_seconds \(10\)"):
            job(limited)
        assert clock.looks <= 25, "it went on long after"
        clock.step = 0.0
        assert job(limited) == unlimited

    def test_samples_that_were_in_time_are_handed_out(self, pipeline: Pipeline, clock: Clock) -> None:
        limited = Pipeline(pipeline.model, pipeline.tokenizer, {}, max_seconds=10.0)
        given = limited.sample(600, seed=1, decoding=DecodingConfig(max_tokens=4))
        first = [next(given) for _ in range(256)]
        clock.now += 1000.0  # they are read at leisure
        clock.step = 6.0
        with pytest.raises(UserError, match="max_seconds"):
            next(given)
        clock.step = 0.0
        assert first == list(pipeline.sample(600, seed=1, decoding=DecodingConfig(max_tokens=4)))[:256]

    def test_is_passed_on_by_load(self, tmp_path: Any, corpus: Corpus) -> None:
        from vrae.files import write_folder
        from vrae.model.folder import to_files

        model = tiny_model(vocab_size=len(corpus.tokenizer)).float()
        write_folder(tmp_path / "model", to_files(model, corpus.tokenizer, {}))
        assert load(tmp_path / "model").max_seconds is None
        assert load(tmp_path / "model", max_seconds=3).max_seconds == 3
