"""Figures of several replies counted by hand, and their errors against a bootstrap that knows nothing of how they are made."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import sacrebleu

from vrae.errors import UserError
from vrae.evaluation.dialogue import Replies
from vrae.evaluation.replies import (
    MOST_FREQUENT,
    Point,
    at_equal_diversity,
    estimate,
    measure_replies,
    normalised,
    paired,
    sacre_sentence_chrf,
)

CAT = Replies(["the cat sat"], ["a dog", "the cat sat"])
YES = Replies(["yes"], ["no no", "Yes!", "no no"])


def numbered(counts: dict[str, int]) -> list[str]:
    return [text for text, count in counts.items() for _ in range(count)]


class TestFiguresOfEachContext:
    figures = measure_replies([CAT, YES])

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("replies_N", [2, 3]),
            ("words_N", [5 / 2, 6 / 3]),  # a dog, the cat sat; no no, yes !, no no
            ("distinct_1_N", [5 / 5, 3 / 6]),  # no, yes, !
            ("distinct_2_N", [3 / 3, 2 / 3]),  # no-no, yes-!
            ("self_bleu_N", [0, 2 / 3]),  # "no no" has its like, "Yes!" shares nothing
            ("oracle_chrf_N", [1, 46 / 59]),
            ("first_chrf_N", [sacrebleu.sentence_chrf("a dog", ["the cat sat"], beta=1).score / 100, 0]),
            ("mean_chrf_N", [(1 + sacrebleu.sentence_chrf("a dog", ["the cat sat"], beta=1).score / 100) / 2, 46 / 59 / 3]),
            ("oracle_bleu_N", [1, 0]),  # sacreBLEU minds the case of "Yes"
            ("mean_bleu_N", [1 / 2, 0]),
            ("first_bleu_N", [0, 0]),
            ("frequent_N", [1, 1]),  # there are not eleven
            ("frequent_first_N", [1, 1]),
        ],
    )
    def test_are_those_counted_by_hand(self, name: str, expected: list[float]) -> None:
        assert getattr(self.figures, name) == pytest.approx(expected, abs=1e-5)  # the constants of `distinct`

    def test_of_all_contexts_together_are_those_counted_by_hand(self) -> None:
        assert self.figures.corpus_distinct_1 == pytest.approx(8 / 11)
        assert self.figures.corpus_distinct_2 == pytest.approx(5 / 6)
        assert self.figures.corpus_self_bleu.scores[:2] == pytest.approx((2 / 5, 2 / 5))
        assert self.figures.corpus_self_bleu.texts == 5

    def test_are_summed_up_by_their_names(self) -> None:
        found = self.figures.estimates
        assert found["words"] == pytest.approx((2.25, 0.25))  # the difference over 2
        assert len(found) == 13

    def test_a_context_without_replies_counts_nothing_but_is_not_varied(self) -> None:
        figures = measure_replies([YES, Replies(["yes"], [])])
        values = {name: getattr(figures, f"{name}_N")[1] for name in figures.estimates}
        assert values == {**dict.fromkeys(values, 0.0), "self_bleu": 1.0}

    def test_one_reply_is_not_varied(self) -> None:
        assert measure_replies([YES, Replies(["yes"], ["yes we can"])]).self_bleu_N[1] == 1

    def test_copies_of_a_short_reply_are_not_varied(self) -> None:
        assert measure_replies([Replies(["yes"], ["Yes."] * 3)]).self_bleu_N == pytest.approx([1])

    def test_the_best_bleu_and_the_first_are_those_of_sacrebleu(self) -> None:
        said = ["I like the sea", "i like to swim in the sea", "We like to swim in a lake, you know"]
        reference = "I like to swim in the lake"
        scores = [sacrebleu.BLEU(effective_order=True).sentence_score(text, [reference]).score / 100 for text in said]
        figures = measure_replies([Replies([reference], said)])
        assert 0 < scores[0] < max(scores)
        assert figures.first_bleu_N == pytest.approx([scores[0]])
        assert figures.oracle_bleu_N == pytest.approx([max(scores)])
        assert figures.mean_bleu_N == pytest.approx([sum(scores) / 3])
        assert "smooth:exp" in figures.bleu_signature

    def test_refuses_what_cannot_be_compared(self) -> None:
        with pytest.raises(UserError, match=r"two replies or more to compare\. Got 1"):
            measure_replies([Replies(["a"], ["b"]), Replies(["a"], [])])
        with pytest.raises(UserError, match=r"context 1 must have one reference\. Got 2"):
            measure_replies([YES, Replies(["a", "b"], ["c"])])
        with pytest.raises(UserError, match="Got 0"):
            measure_replies([])


class TestMostFrequent:
    often = {f"word{i}": 3 for i in range(MOST_FREQUENT - 1)}  # with "other" the ten

    def test_share_counts_replies_that_say_the_same(self) -> None:
        contexts = [
            Replies(["a"], ["Other!", *numbered(self.often)]),
            Replies(["a"], ["rare one", "OTHER"]),
            Replies(["a"], ["seldom", "hardly ever", "once"]),
        ]
        figures = measure_replies(contexts)
        assert dict(figures.most_frequent) == {**self.often, "other": 2}
        assert figures.frequent_N.tolist() == [1, 0.5, 0]

    def test_share_of_first_replies_has_a_list_of_its_own(self) -> None:
        first = [*numbered(dict.fromkeys(self.often, 2)), "sure", "Sure", "rare", "seldom"]
        figures = measure_replies([Replies(["a"], [text, "late", "later", "latest"]) for text in first])
        assert dict(figures.most_frequent_first) == {**dict.fromkeys(self.often, 2), "sure": 2}
        assert figures.frequent_first_N.tolist() == [1.0] * 20 + [0.0] * 2
        assert [text for text, _ in figures.most_frequent[:3]] == ["late", "later", "latest"]

    @pytest.mark.parametrize(
        ("a", "b"),
        [("Yes!!", "yes"), ("I'm  fine.", "i'm fine :)"), ("ÄRGER?", "ärger"), ("?!", " ?!"), ("😀", "😀 "), ("", " ")],
    )
    def test_case_marks_and_spaces_make_no_other_reply(self, a: str, b: str) -> None:
        assert normalised(a) == normalised(b)

    @pytest.mark.parametrize(("a", "b"), [("no", "know"), ("?", "!"), ("😀", "🎉"), ("a way", "away"), ("", "?"), ("1", "2")])
    def test_words_do(self, a: str, b: str) -> None:
        assert normalised(a) != normalised(b)


class TestChrf:
    def test_is_that_worked_by_hand(self) -> None:
        # yes! has 4, 3, 2 n-grams of 1, 2, 3 characters, of which 3, 2, 1 are in yes; yes has no n-gram of 4
        precision, recall = (3 / 4 + 2 / 3 + 1 / 2) / 3, 1
        scores, signature = sacre_sentence_chrf(["yes", "abc"], ["Yes!", "xyz"])
        assert scores == pytest.approx([2 * precision * recall / (precision + recall), 0])
        assert scores[0] == pytest.approx(46 / 59)
        assert signature.startswith("chrF1|")
        assert "case:lc" in signature

    def test_a_long_reply_has_no_advantage(self) -> None:
        (long, short), _ = sacre_sentence_chrf(["abcdef", "abcdefghijkl"], ["abcdefghijkl", "abcdef"])
        assert long == pytest.approx(short)

    def test_without_sacrebleu_says_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sacrebleu.metrics.chrf", None)
        with pytest.raises(UserError, match=r"pip install 'vrae\[eval\]'"):
            sacre_sentence_chrf(["a"], ["b"])


class TestErrors:
    def test_of_a_mean(self) -> None:
        assert estimate(np.array([1.0, 3.0, 8.0])) == pytest.approx((4, math.sqrt(13 / 3)))  # variance (9 + 1 + 16) / 2
        assert estimate(np.array([2.0])) == (2, None)

    def test_of_a_difference_is_that_of_the_pairs(self) -> None:
        assert paired(np.array([11.0, 2.0, 106.0]), np.array([10.0, 0.0, 103.0])) == pytest.approx((2, 1 / math.sqrt(3)))


class TestAtEqualDiversity:
    draw = np.random.default_rng(4)
    hard_N = draw.normal(size=400)  # what a context does to all systems

    def point(self, diversity: float, similarity: float) -> Point:
        noise_2N = 0.1 * self.draw.normal(size=(2, len(self.hard_N)))
        return Point(diversity + 0.2 * self.hard_N + noise_2N[0], similarity + 0.3 * self.hard_N + noise_2N[1])

    def test_value_and_error_are_those_of_a_bootstrap(self) -> None:
        curve = [self.point(0.9, 1.5), self.point(0.1, 0.2), self.point(0.5, 0.9)]  # in no order
        other = self.point(0.62, 0.8)

        def difference(rows: np.ndarray) -> float:
            points = sorted((d[rows].mean(), s[rows].mean()) for d, s in curve)
            diversities, similarities = np.array(points).T
            return float(np.interp(other.diversity_N[rows].mean(), diversities, similarities) - other.similarity_N[rows].mean())

        found = at_equal_diversity(curve, other)
        resampled = [difference(self.draw.integers(400, size=400)) for _ in range(3000)]
        assert found is not None
        assert found.error is not None
        assert found.value == pytest.approx(difference(np.arange(400)))
        assert found.value == pytest.approx(1.08 - 0.8, abs=0.05)  # 0.3 of the way from 0.9 to 1.5
        assert found.error == pytest.approx(np.std(resampled), rel=0.06)

    def test_at_a_point_of_the_curve_is_the_paired_difference(self) -> None:
        curve = [self.point(0.1, 0.2), self.point(0.5, 0.9), self.point(0.9, 0.3)]
        other = replace_diversity(self.point(0.0, 0.7), curve[1])
        assert at_equal_diversity(curve, other) == pytest.approx(paired(curve[1].similarity_N, other.similarity_N))

    @pytest.mark.parametrize("diversity", [-5.0, 5.0])
    def test_beyond_the_curve_there_is_none(self, diversity: float) -> None:
        assert at_equal_diversity([self.point(0.1, 0.2), self.point(0.5, 0.9)], self.point(diversity, 0.5)) is None

    def test_a_curve_of_one_point_is_none(self) -> None:
        point = self.point(0.1, 0.2)
        assert at_equal_diversity([point], point) is None


def replace_diversity(point: Point, other: Point) -> Point:
    return point._replace(diversity_N=other.diversity_N)
