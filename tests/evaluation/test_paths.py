"""Paths between turns: against a pipeline whose every answer is written down, and the real one."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
from conftest import tiny_model

from vrae.corpus.prepared import Corpus
from vrae.errors import DataError, ModelError, UserError
from vrae.evaluation.paths import draw_pairs, interpolation, sentences, token_change
from vrae.evaluation.quality import perplexity
from vrae.generation.pipeline import Pipeline


def longest_by_enumeration(a: Sequence[int], b: Sequence[int]) -> int:
    def parts(values: Sequence[int]) -> set[tuple[int, ...]]:
        return {part for n in range(len(values) + 1) for part in itertools.combinations(values, n)}

    return max(len(part) for part in parts(a) & parts(b))


class TestTokenChange:
    @pytest.mark.parametrize(
        ("a", "b", "change"), [("", "", 0), ("", "ab", 1), ("abc", "abc", 0), ("abcd", "ad", 0.5), ("abc", "cba", 2 / 3)]
    )
    def test_is_worked_by_hand(self, a: str, b: str, change: float) -> None:
        assert token_change([*map(ord, a)], [*map(ord, b)]) == pytest.approx(change)
        assert token_change([*map(ord, b)], [*map(ord, a)]) == pytest.approx(change)

    def test_is_that_of_all_subsequences(self) -> None:
        rng = np.random.default_rng(0)
        for _ in range(60):
            a, b = (rng.integers(0, 4, rng.integers(1, 8)).tolist() for _ in range(2))
            assert token_change(a, b) == pytest.approx(1 - longest_by_enumeration(a, b) / max(len(a), len(b)))


class TestPairs:
    def test_are_of_different_turns_of_the_lengths_asked_for(self, corpus: Corpus) -> None:
        split, tokenizer = corpus["train"], corpus.tokenizer
        found = sentences(split, tokenizer, min_tokens=3, max_tokens=6)
        every = {tokenizer.decode(split.turn(i)) for i in range(len(split.turns) - 1) if 3 <= len(split.turn(i)) <= 6}
        assert found == sorted(every)
        pairs = draw_pairs(found, 50, seed=1)
        assert len(pairs) == 50
        assert all(a != b and {a, b} <= every for a, b in pairs)

    def test_are_drawn_by_the_seed_and_from_all(self) -> None:
        first, again, other = (draw_pairs("abcd", 600, seed=seed) for seed in (1, 1, 2))
        assert first == again != other
        counts = Counter(first)
        assert len(counts) == 12
        assert all(count == pytest.approx(50, abs=4 * math.sqrt(50)) for count in counts.values())

    def test_need_two_turns(self, corpus: Corpus) -> None:
        with pytest.raises(DataError, match=r"test: paths need two different turns of 500 to 600 tokens\. It has 0"):
            sentences(corpus["test"], corpus.tokenizer, min_tokens=500, max_tokens=600)


@dataclass
class Point:
    text: str


@dataclass
class Result:
    exact: bool


class Scripted:
    """Answers of a pipeline: paths by their ends, vectors by text, and which texts come back."""

    def __init__(self, tokenizer: Any, paths: list[list[str]], vectors: dict[str, tuple[float, float]], exact: str) -> None:
        self.tokenizer, self.vectors, self.exact = tokenizer, vectors, exact.split()
        self.paths = {(path[0], path[-1]): path for path in paths}

    def interpolate(self, a: str, b: str, steps: int, *, method: str) -> list[Point]:
        path = self.paths[a, b]
        assert len(path) == steps
        return [Point(text.upper() if i in (0, steps - 1) else text) for i, text in enumerate(path)]

    def reconstruct(self, texts: list[str]) -> list[Result]:
        return [Result(text in self.exact) for text in texts]

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        means = np.array([self.vectors[text] for text in texts], np.float32)
        return means, np.zeros_like(means)


class Letters:
    """A tokenizer to which each character is a token."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[*map(ord, text)] for text in texts]


def scripted() -> Pipeline:
    paths = [["ab", "abc", "abc", "xy"], ["p", "q", "r", "s"]]
    unit = [(math.cos(angle), math.sin(angle)) for angle in np.deg2rad([0, 30, 60, 90])]
    # the first path's inner texts lead back to its points, at any length; the second's are 90 and 180 degrees off
    vectors = {"ab": unit[0], "abc": (unit[1][0] + unit[2][0], unit[1][1] + unit[2][1]), "xy": unit[3]}
    vectors |= {"p": unit[0], "s": unit[3], "q": (-unit[1][1], unit[1][0]), "r": (-unit[2][0], -unit[2][1])}
    return cast(Pipeline, Scripted(Letters(), paths, vectors, "ab xy p q"))


class TestInterpolation:
    def test_is_worked_by_hand(self) -> None:
        found = interpolation(scripted(), [("ab", "xy"), ("p", "s")], 4)
        assert found.paths == [["AB", "abc", "abc", "XY"], ["P", "q", "r", "S"]]
        assert found.exact_ends == 0.75  # both ends, one of two
        assert found.exact_ends_error == pytest.approx(0.25)
        assert found.distinct == 3.5  # 3 and 4
        assert found.distinct_error == pytest.approx(0.5)
        # AB -> abc all, abc -> abc none, abc -> XY all: 2/3; all of three steps
        assert found.step_change == pytest.approx((2 / 3 + 1) / 2)
        assert found.largest_step_change == 1
        assert found.inner_exact == 0.25  # none of two, one of two
        assert found.inner_exact_error == pytest.approx(0.25)
        # 15 degrees off both points of the circle; 90 and 180 degrees off
        by_path = (math.cos(math.radians(15)), (0 - 1) / 2)
        assert found.inner_cosine == pytest.approx(sum(by_path) / 2, abs=1e-6)
        assert found.inner_cosine_error == pytest.approx((by_path[0] - by_path[1]) / 2, abs=1e-6)
        assert found.forward is found.forward_given is None

    def test_follows_the_straight_line_too(self) -> None:
        # its points at a third and two thirds are at atan(1/2) and atan(2), the text in between at 45 degrees
        found = interpolation(scripted(), [("ab", "xy")], 4, method="lerp")
        assert found.inner_cosine == pytest.approx(math.cos(math.pi / 4 - math.atan(0.5)), abs=1e-6)
        assert found.inner_cosine_error is None

    def test_is_of_what_the_pipeline_does(self, corpus: Corpus) -> None:
        tokenizer = corpus.tokenizer
        pipeline = Pipeline(tiny_model(vocab_size=len(tokenizer)), tokenizer, {})
        judge = Pipeline(tiny_model(vocab_size=len(tokenizer), latent_size=0), tokenizer, {})
        pairs = draw_pairs(sentences(corpus["train"], tokenizer), 3)
        found = interpolation(pipeline, pairs, 5, judge=judge)
        assert found.paths == [[step.text for step in pipeline.interpolate(a, b, 5)] for a, b in pairs]
        inner = [text for path in found.paths for text in path[1:4]]
        assert found.forward == perplexity(judge, inner, group=3)
        assert found.forward_given == perplexity(judge, [end for pair in pairs for end in pair], group=2)
        exact = [result.exact for result in pipeline.reconstruct([end for pair in pairs for end in pair])]
        assert found.exact_ends == pytest.approx(sum(exact) / 6)

    def test_wants_inner_points_and_a_judge_that_is_a_language_model(self, corpus: Corpus) -> None:
        with pytest.raises(UserError, match="steps must be 3 or more"):
            interpolation(scripted(), [("p", "s")], 2)
        with pytest.raises(ModelError, match="the judge must be a language model"):
            interpolation(scripted(), [("p", "s")], 4, judge=Pipeline(tiny_model(), corpus.tokenizer, {}))
