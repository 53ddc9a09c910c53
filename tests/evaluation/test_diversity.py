"""Distinct n-grams by hand, and self-BLEU against an enumeration of all texts as references."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from vrae.errors import UserError
from vrae.evaluation.diversity import Distinct, SelfBleu, distinct, self_bleu


class TestDistinct:
    TEXTS = [[["a", "b", "a"], ["a", "b"]], [["c"], ["c", "a", "b", "c"]]]

    def test_words_worked_by_hand(self) -> None:
        ours = distinct(self.TEXTS, 1)
        assert ours.intra == pytest.approx((2 / 3 + 2 / 2 + 1 / 1 + 3 / 4) / 4, abs=1e-5)
        assert ours.inter == pytest.approx((2 / 5 + 3 / 5) / 2, abs=1e-5)
        assert ours.corpus == 3 / 10
        assert ours.n == 1

    def test_pairs_worked_by_hand(self) -> None:
        # ab ba | ab || none | ca ab bc
        ours = distinct(self.TEXTS, 2)
        assert ours.intra == pytest.approx((2 / 2 + 1 / 1 + 0 + 3 / 3) / 4, abs=1e-5)
        assert ours.inter == pytest.approx((2 / 3 + 3 / 3) / 2, abs=1e-5)
        assert ours.corpus == 4 / 6

    def test_has_the_constants_of_dialogwae(self) -> None:
        # (distinct + 1e-12) / (all + 1e-5): one word of three, and a text without pairs.
        assert distinct([[["a", "a", "a"]]], 1).intra == pytest.approx((1 + 1e-12) / (3 + 1e-5), rel=1e-15)
        assert distinct([[["a", "a", "a"]]], 1).inter == pytest.approx((1 + 1e-12) / (3 + 1e-5), rel=1e-15)
        assert distinct([[["a"]]], 2).intra == distinct([[["a"]]], 2).inter == pytest.approx(1e-7, rel=1e-12)

    def test_weighs_each_text_alike_within_and_each_context_alike_among(self) -> None:
        texts = [[["a", "a"]] * 3, [["b", "c"]]]
        assert distinct(texts, 1).intra == pytest.approx((3 * 1 / 2 + 1) / 4, abs=1e-5)
        assert distinct(texts, 1).inter == pytest.approx((1 / 6 + 1) / 2, abs=1e-5)

    def test_of_nothing_is_nothing(self) -> None:
        assert distinct([[]], 1) == Distinct(1, 0.0, 1e-12 / 1e-5, 0.0)
        assert distinct([[[]]], 1).corpus == 0


def naive_self_bleu(texts: list[list[str]], order: int) -> float:
    """Papineni et al. 2002 with several references, method1 of Chen & Cherry 2014; one text and all others at a time."""
    scores = []
    for i, text in enumerate(texts):
        others = texts[:i] + texts[i + 1 :]
        log_sum, score = 0.0, 1.0
        for n in range(1, order + 1):
            own, *counts = (Counter(tuple(t[j : j + n]) for j in range(len(t) - n + 1)) for t in (text, *others))
            matched = sum(min(count, max(other[gram] for other in counts)) for gram, count in own.items())
            if n == 1 and matched == 0:
                score = 0.0
            log_sum += math.log((matched or 0.1) / max(sum(own.values()), 1)) / order
        nearest = sorted((abs(len(other) - len(text)), len(other)) for other in others)[0][1]
        if score and len(text) < nearest:
            score = math.exp(1 - nearest / len(text))
        scores.append(score * math.exp(log_sum))
    return sum(scores) / len(scores)


class TestSelfBleu:
    @pytest.mark.parametrize("seed", range(40))
    def test_is_that_of_the_enumeration(self, seed: int) -> None:
        draw = random.Random(seed)
        letters = "abcdefgh"[: draw.randint(2, 8)]
        texts = [draw.choices(letters, k=draw.randint(0, 8)) for _ in range(draw.randint(2, 9))]
        ours = self_bleu(texts)
        assert ours.scores == pytest.approx([naive_self_bleu(texts, n) for n in (1, 2, 3, 4)], rel=1e-12)
        assert (ours.texts, ours.of) == (len(texts), len(texts))

    def test_of_equal_texts_is_one_and_of_texts_without_a_common_word_zero(self) -> None:
        assert self_bleu([list("abcd")] * 3).scores == pytest.approx([1, 1, 1, 1])
        assert self_bleu([list("abcd"), list("efgh"), []]).scores == (0, 0, 0, 0)

    def test_counts_an_order_without_match_as_a_tenth(self) -> None:
        # "a b" twice: no trigram and no 4-gram, so 0.1 of 1 each.
        assert self_bleu([["a", "b"]] * 2).scores == pytest.approx([1, 1, 0.1 ** (1 / 3), (0.1 * 0.1) ** (1 / 4)])

    def test_counts_a_word_as_often_as_the_other_text_that_has_it_most(self) -> None:
        # 3/3 can be matched in "a a a" only by 2 of "a a b", and 2/3 in that by 2 of the former; "a b b": a and one b.
        assert self_bleu([list("aaa"), list("aab"), list("abb")]).scores[0] == pytest.approx((2 / 3 + 3 / 3 + 2 / 3) / 3)

    def test_measures_brevity_by_the_nearest_length_the_shorter_of_two(self) -> None:
        # 3 words between 2 and 4: no penalty, else exp(1 - 4/3). 2 words: nearest is 3. 4 words: longer than all.
        texts = [list("aa"), list("aaa"), list("aaaa")]
        assert self_bleu(texts).scores[0] == pytest.approx((math.exp(1 - 3 / 2) + 1 + 3 / 4) / 3)

    def test_takes_an_even_sample_of_many(self) -> None:
        # Each pair of neighbours is one text twice: a sample of half, one of each pair, has nothing in common.
        texts = [[f"w{i // 2}"] * 5 for i in range(20)]
        assert self_bleu(texts).scores[0] == pytest.approx(1)
        assert {self_bleu(texts, most=10, seed=seed).scores[0] for seed in range(20)} == {0.0}
        # The first of each pair is always the same: all of them, or none, as the seed has it.
        texts = [list("abcde") if i % 2 == 0 else [f"w{i}"] * 5 for i in range(20)]
        chosen = [self_bleu(texts, most=10, seed=seed) for seed in range(20)]
        assert {round(score.scores[0], 12) for score in chosen} == {0.0, 1.0}
        assert chosen[3] == self_bleu(texts, most=10, seed=3)
        assert (chosen[0].texts, chosen[0].of) == (10, 20)

    def test_says_what_it_did(self) -> None:
        assert "all 2 texts" in self_bleu([["a"], ["b"]]).statement
        statement = SelfBleu((1.0,) * 4, 500, 2000).statement
        assert "500 texts, an even sample of 2000" in statement
        assert "BLEU-1 to BLEU-4" in statement
        assert "method1" in statement

    def test_reads_five_hundred_texts_at_most(self) -> None:
        assert self_bleu([["a"]] * 501).texts == 500

    @pytest.mark.parametrize(("texts", "most"), [([], 500), ([["a"]], 500), ([["a"], ["b"]], 1)])
    def test_needs_two_texts(self, texts: list[list[str]], most: int) -> None:
        with pytest.raises(UserError, match="at least 2"):
            self_bleu(texts, most=most)
