"""Paths between turns: by hand, by enumeration, against a pipeline whose every answer is written down, and the real one."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import tiny_model

from vrae.corpus.prepared import Corpus
from vrae.errors import DataError, ModelError, UserError
from vrae.evaluation.paths import draw_pairs, interpolation, monotony, order_along, perplexity_ratio, sentences
from vrae.evaluation.quality import Perplexity, perplexity
from vrae.evaluation.replies import Estimate
from vrae.generation.latent import lerp, slerp
from vrae.generation.pipeline import Pipeline, Step


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


def by_squares(order: Sequence[int]) -> float:
    """Spearman's rho of an order without ties: 1 - 6 sum d^2 / (n (n^2 - 1))."""
    n = len(order)
    return 1 - 6 * sum((place - rank) ** 2 for place, rank in enumerate(order)) / (n * (n * n - 1))


class TestOrderAlong:
    def test_of_every_order_of_five_is_that_of_the_squared_differences(self) -> None:
        orders = np.array(list(itertools.permutations(range(5))))
        expected = [by_squares(order) for order in orders.tolist()]
        assert order_along(orders.astype(float)) == pytest.approx(expected, abs=1e-12)
        assert order_along(np.exp(orders)) == pytest.approx(expected, abs=1e-12)  # ranks alone count

    def test_with_ties_is_that_of_all_ways_to_break_them(self) -> None:
        # The covariance of mean ranks is the mean over the ways; their variance is (n^3 - n - sum (t^3 - t)) / 12 / n.
        for values in ((0, 0, 1, 2, 2), (2, 0, 2, 1, 2), (1, 1, 0, 0, 3)):
            ways = [
                tuple(sorted(range(5), key=order.__getitem__))
                for order in itertools.permutations(range(5))
                if list(np.array(values)[list(order)]) == sorted(values)
            ]
            assert len(ways) == math.prod(math.factorial(values.count(value)) for value in set(values))
            mean = sum(map(by_squares, ways)) / len(ways)
            ties = sum(values.count(value) ** 3 - values.count(value) for value in set(values))
            expected = mean / math.sqrt((125 - 5 - ties) / (125 - 5))
            assert order_along(np.array([values], float)) == pytest.approx([expected], abs=1e-12)

    def test_of_equal_values_is_nothing_and_each_row_is_by_itself(self) -> None:
        rows = np.array([[3.0, 3, 3], [1, 2, 3], [3, 2, 1], [1, 1, 2]])
        assert order_along(rows) == pytest.approx([0, 1, -1, math.sqrt(0.75)])


class TestMonotony:
    def test_is_worked_by_hand(self) -> None:
        # path 1: on, back to the start, still, nearer to the end alone, away from both; path 2: on, but for one step, still
        from_start = np.array([[0, 2, 1, 1, 1, 3], [0, 1, 1, 2, 4, 5]], float)
        to_end = np.array([[3, 1, 1, 1, 0.5, 0.75], [5, 4, 4, 3, 0, 0]], float)
        found = monotony(from_start, to_end)
        assert found.away == pytest.approx((0.9, 0.1))  # 4 of 5, 5 of 5
        assert found.closer == pytest.approx((0.9, 0.1))
        # 2 of 4, 4 of 4: 6 / 8, residuals -1 and 1, sqrt(2 * 2) / 8
        assert found.away_moving == pytest.approx((0.75, 0.25))
        # 2 of 4, 3 of 4: 5 / 8, residuals -0.5 and 0.5
        assert found.closer_moving == pytest.approx((0.625, 0.125))
        assert found.whole == pytest.approx((0.5, 0.5))
        # differences -3 1 0 0 0.5 2.25 have ranks 1 5 2.5 2.5 4 6, and -5 -3 -3 -1 4 5 have 1 2.5 2.5 4 5 6
        each = (11 / math.sqrt(17 * 17.5), 17 / math.sqrt(17 * 17.5))
        assert found.rank_correlation == pytest.approx((sum(each) / 2, (each[1] - each[0]) / 2))

    def test_backwards_all_that_moves_is_wrong(self) -> None:
        found = monotony(np.array([[3.0, 2, 2, 0]]), np.array([[0.0, 1, 1, 3]]))
        assert found.away == found.closer == Estimate(1 / 3, None)
        assert found.away_moving == found.closer_moving == Estimate(0, None)
        assert found.whole.value == 0
        assert found.rank_correlation.value == pytest.approx(-4.5 / math.sqrt(22.5))

    def test_of_paths_that_stand_still(self) -> None:
        found = monotony(np.ones((2, 4)), np.ones((2, 4)))
        assert found.away.value == found.closer.value == found.whole.value == 1
        assert found.rank_correlation.value == 0
        assert found.away_moving is found.closer_moving is None


class TestPerplexityRatio:
    def test_error_is_the_spread_over_repetitions(self) -> None:
        rng = np.random.default_rng(0)
        a, b = rng.normal(30, 1.2, 4000), rng.normal(20, 0.5, 4000)
        found = perplexity_ratio(Perplexity(30, 1.2, 1, 1), Perplexity(20, 0.5, 1, 1))
        assert found.value == 1.5
        assert found.error == pytest.approx((a / b).std(), rel=0.05)

    def test_of_one_text_has_no_error(self) -> None:
        some = Perplexity(30, 1.2, 1, 1)
        assert (
            perplexity_ratio(some, replace(some, error=None)) == perplexity_ratio(replace(some, error=None), some) == (1, None)
        )


@dataclass
class Result:
    exact: bool


class Scripted:
    """Answers of a pipeline: paths by their ends, vectors and cosines by text, and which texts come back."""

    def __init__(self, tokenizer: Any, paths: list[list[str]], vectors: dict[str, tuple[float, float]], exact: str) -> None:
        self.tokenizer, self.vectors, self.exact = tokenizer, vectors, exact.split()
        self.paths = {(path[0], path[-1]): path for path in paths}

    def interpolate(self, a: str, b: str, steps: int, *, method: str) -> list[Step]:
        path = self.paths[a, b]
        assert len(path) == steps
        texts = [text.upper() if i in (0, steps - 1) else text for i, text in enumerate(path)]
        return [
            Step(i / (steps - 1), text, -1.0, self.vectors[text][0] / 100, text in self.exact) for i, text in enumerate(texts)
        ]

    def reconstruct(self, texts: list[str]) -> list[Result]:
        return [Result(text in self.exact) for text in texts]

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        means = np.array([self.vectors[text] for text in texts], np.float32)
        return means, np.zeros_like(means)


class Letters:
    """A tokenizer to which each character is a token."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[*map(ord, text)] for text in texts]


PATHS = [["ab", "abc", "abc", "xy"], ["p", "q", "r", "s"]]


def scripted() -> Pipeline:
    # The first path goes on but for its end, which falls short; the second goes back to the start, and then beyond the end.
    vectors = {"ab": (0, 0), "AB": (1, 0), "abc": (5, 0), "XY": (4, 0), "xy": (9, 0)}
    vectors |= {"p": (0, 3), "P": (0, 3), "q": (0, 7), "r": (0, 3), "S": (0, 14), "s": (0, 13)}
    return cast(Pipeline, Scripted(Letters(), PATHS, cast(Any, vectors), "ab p q AB XY P S"))


class TestInterpolation:
    def test_is_worked_by_hand(self) -> None:
        found = interpolation(scripted(), [("ab", "xy"), ("p", "s")], 4)
        assert found.paths == [["AB", "abc", "abc", "XY"], ["P", "q", "r", "S"]]
        assert found.exact_ends == 0.5  # the first of either pair
        assert found.exact_ends_error == pytest.approx(0)
        assert found.distinct == 3.5  # 3 and 4
        assert found.distinct_error == pytest.approx(0.5)
        # AB -> abc all, abc -> abc none, abc -> XY all: 2/3; all of three steps
        assert found.step_change == pytest.approx((2 / 3 + 1) / 2)
        assert found.largest_step_change == 1
        assert found.inner_exact == 0.25  # none of two, one of two
        assert found.inner_exact_error == pytest.approx(0.25)
        assert found.inner_cosine == pytest.approx((0.05 + 0) / 2)
        assert found.inner_cosine_error == pytest.approx(0.025)
        assert found.forward is found.forward_given is None
        assert found.forward_by_point == ()

    def test_measures_distances_from_the_given_turns(self) -> None:
        # from ab: 1 5 5 4, to xy: 8 4 4 5; from p: 0 4 0 11, to s: 10 6 10 1
        found = interpolation(scripted(), [("ab", "xy"), ("p", "s")], 4)
        expected = monotony(np.array([[1.0, 5, 5, 4], [0, 4, 0, 11]]), np.array([[8.0, 4, 4, 5], [10, 6, 10, 1]]))
        assert found.monotony == expected
        assert expected.away.value == pytest.approx(2 / 3)

    def test_shuffles_what_is_between_the_ends_for_the_control(self) -> None:
        pairs = [("ab", "xy"), ("p", "s")] * 600
        found = interpolation(scripted(), pairs, 4, seed=5)
        assert found.shuffled == interpolation(scripted(), pairs, 4, seed=5).shuffled
        assert found.shuffled != interpolation(scripted(), pairs, 4, seed=6).shuffled
        # The first has two equal texts between its ends, and ranks 1 3.5 3.5 2 in any order. Those of the second are
        # 1.5 3 1.5 4, and half of the time 1.5 1.5 3 4.
        expected = (1.5 + (3.0 + 4.5) / 2) / 2 / math.sqrt(22.5)
        assert found.shuffled.rank_correlation.value == pytest.approx(expected, abs=0.02)
        assert found.shuffled.away.value == pytest.approx((2 / 3 + (1 + 2 / 3) / 2) / 2, abs=0.02)

    def test_is_of_what_the_pipeline_does(self, corpus: Corpus) -> None:
        tokenizer = corpus.tokenizer
        pipeline = Pipeline(tiny_model(vocab_size=len(tokenizer)), tokenizer, {})
        judge = Pipeline(tiny_model(vocab_size=len(tokenizer), latent_size=0), tokenizer, {})
        pairs = draw_pairs(sentences(corpus["train"], tokenizer), 3)
        found = interpolation(pipeline, pairs, 5, judge=judge)
        walks = [pipeline.interpolate(a, b, 5) for a, b in pairs]
        assert found.paths == [[step.text for step in walk] for walk in walks]
        inner = [text for path in found.paths for text in path[1:4]]
        assert found.forward == perplexity(judge, inner, group=3)
        assert found.forward_by_point == tuple(perplexity(judge, [path[i] for path in found.paths]) for i in range(5))
        assert found.forward_given == perplexity(judge, [end for pair in pairs for end in pair], group=2)
        exact = [result.exact for result in pipeline.reconstruct([end for pair in pairs for end in pair])]
        assert found.exact_ends == pytest.approx(sum(exact) / 6)
        assert found.inner_exact == pytest.approx(sum(step.exact for walk in walks for step in walk[1:4]) / 9)
        assert found.inner_cosine == pytest.approx(sum(step.cosine for walk in walks for step in walk[1:4]) / 9)

    @pytest.mark.parametrize("method", ["slerp", "lerp"])
    def test_walks_as_it_is_told_and_measures_among_posterior_means(self, corpus: Corpus, method: Any) -> None:
        tokenizer = corpus.tokenizer
        pipeline = Pipeline(tiny_model(vocab_size=len(tokenizer)), tokenizer, {})
        pairs = draw_pairs(sentences(corpus["train"], tokenizer), 4, seed=2)
        found = interpolation(pipeline, pairs, 6, method=method)
        from_start, to_end = [], []
        for (a, b), path in zip(pairs, found.paths, strict=True):
            start, end, *points = (pipeline.encode([text])[0][0] for text in (a, b, *path))
            t = torch.linspace(0, 1, 6)
            walked = (slerp if method == "slerp" else lerp)(torch.from_numpy(start), torch.from_numpy(end), t.double())
            assert path == [sample.text for sample in pipeline.decode_latents(walked.numpy())]
            from_start.append([math.dist(start, point) for point in points])
            to_end.append([math.dist(end, point) for point in points])
        expected = monotony(np.round(from_start, 5), np.round(to_end, 5))
        for name in ("rank_correlation", "away", "closer", "away_moving", "whole"):
            assert tuple(getattr(found.monotony, name)) == pytest.approx(tuple(getattr(expected, name)))

    def test_wants_inner_points_and_a_judge_that_is_a_language_model(self, corpus: Corpus) -> None:
        with pytest.raises(UserError, match="steps must be 3 or more"):
            interpolation(scripted(), [("p", "s")], 2)
        with pytest.raises(ModelError, match="the judge must be a language model"):
            interpolation(scripted(), [("p", "s")], 4, judge=Pipeline(tiny_model(), corpus.tokenizer, {}))
