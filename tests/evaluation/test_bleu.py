"""BLEU in its three versions: golden values of NLTK, hand-worked fractions, and a BLEU of our own beside sacreBLEU's."""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from typing import Literal

import pytest
import sacrebleu

from vrae.errors import UserError
from vrae.evaluation.bleu import method7_bleu, ngrams, sacre_corpus_bleu, sacre_sentence_bleu, words

MAT = "the cat sat on the mat"
# reference, hypothesis; NLTK 3.4.5 and 3.8.1 on the bare words, then with </s> at the end of both
GOLDEN = [
    ("i do not know what you mean", "you know i do", 0.247651, 0.224431, 0.277921, 0.242380),
    ("what kind of music do you like ?", "i like it .", 0.115356, 0.073485, 0.163615, 0.102192),
    ("that is a good idea", "yes , i think so , that works", 0.323546, 0.157844, 0.353640, 0.177945),
    ("do you want some tea ?", "no thank you", 0.114826, 0.084990, 0.176132, 0.120760),
    ("yeah", "yeah i know", 0.312130, 0.231027, 0.372871, 0.255648),
    (MAT, MAT, 1.153888, 1.153888, 1.153888, 1.153888),
    ("okay", "okay", 0.0, 0.333333, 0.693629, 0.676604),
    ("hello there", "bye now", 0.0, 0.0, 0.312130, 0.231027),
]


class TestMethod7:
    @pytest.mark.parametrize("end", [[], ["</s>"]], ids=["bare", "end mark"])
    @pytest.mark.parametrize("version", ["legacy", "modern"])
    @pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden[1])
    def test_gives_the_values_of_nltk(
        self, golden: tuple[str, str, float, float, float, float], version: Literal["legacy", "modern"], end: list[str]
    ) -> None:
        reference, hypothesis, *values = golden
        expected = values[2 * bool(end) + (version == "modern")]
        assert method7_bleu(reference.split() + end, hypothesis.split() + end, version) == pytest.approx(expected, abs=6e-7)

    @pytest.mark.parametrize("version", ["legacy", "modern"])
    def test_of_identical_sentences_exceeds_one(self, version: Literal["legacy", "modern"]) -> None:
        # All precisions are 1: m = 2, then (2 + 1 + 1) / 3 = 4/3, (4/3 + 2) / 3 = 10/9, (10/9 + 2) / 3 = 28/27.
        assert method7_bleu(MAT.split(), MAT.split(), version) == pytest.approx(
            (4 / 3 * 10 / 9 * 28 / 27) ** (1 / 3), rel=1e-14
        )
        # Four words have no 5-gram: the last step is (10/9 + 1 + 0) / 3 = 19/27.
        four = "a b c d".split()
        assert method7_bleu(four, four, version) == pytest.approx((4 / 3 * 10 / 9 * 19 / 27) ** (1 / 3), rel=1e-14)

    @pytest.mark.parametrize("version", ["legacy", "modern"])
    def test_worked_by_hand(self, version: Literal["legacy", "modern"]) -> None:
        # "a b x" against "a b c d e": unigrams 2/3, bigrams 1/2, no trigram of 1, no 5-gram; 3 words against 5.
        p1, p2 = 2 / 3, 1 / 2
        p3 = 1 / (2 + 5 / math.log(3)) if version == "legacy" else math.log(3) / 10
        m1 = ((p1 + 1) + p1 + p2) / 3
        m2 = (m1 + p2 + p3) / 3
        m3 = (m2 + p3 + 0) / 3
        expected = math.exp(1 - 5 / 3) * (m1 * m2 * m3) ** (1 / 3)
        assert method7_bleu("a b c d e".split(), "a b x".split(), version) == pytest.approx(expected, rel=1e-14)

    @pytest.mark.parametrize("version", ["legacy", "modern"])
    def test_counts_a_repeated_word_as_often_as_the_reference_has_it(self, version: Literal["legacy", "modern"]) -> None:
        # "a a a a" against "a b a c": unigrams 2/4, no bigram of 3, no trigram of 2.
        p1 = 2 / 4
        ln = math.log(4)
        p2, p3 = (1 / (1 + 5 / ln), 1 / (2 + 5 / ln)) if version == "legacy" else (ln / 10 / 3, ln / 20 / 2)
        m1 = (2 * p1 + 1 + p2) / 3
        m2 = (m1 + p2 + p3) / 3
        m3 = (m2 + p3) / 3
        expected = (m1 * m2 * m3) ** (1 / 3)
        assert method7_bleu("a b a c".split(), "a a a a".split(), version) == pytest.approx(expected, rel=1e-14)

    @pytest.mark.parametrize("version", ["legacy", "modern"])
    @pytest.mark.parametrize(("reference", "hypothesis"), [("", ""), ("a b", ""), ("", "a b"), ("a b", "c d e f")])
    def test_is_zero_without_a_common_word(self, reference: str, hypothesis: str, version: Literal["legacy", "modern"]) -> None:
        assert method7_bleu(reference.split(), hypothesis.split(), version) == 0

    def test_of_one_word_is_zero_in_legacy_alone(self) -> None:
        # NLTK <= 3.4.5 divides by ln 1. Later, with p = (1, 0, 0, 0): m = 1, 1/3, 1/9; the reference has 2 words.
        assert method7_bleu(["okay", "then"], ["okay"], "legacy") == 0
        assert method7_bleu(["okay", "then"], ["okay"], "modern") == pytest.approx(math.exp(-1) / 3, rel=1e-14)


class TestWords:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("I'm fine, thanks...", ["i", "'", "m", "fine", ",", "thanks", "..."]),
            ("  Ünï\t—ok?!\n a_b 3.14", ["ünï", "—", "ok", "?!", "a_b", "3", ".", "14"]),
            ("see </s> <url>", ["see", "</", "s", ">", "<", "url", ">"]),
            ("", []),
        ],
    )
    def test_are_runs_of_letters_or_of_marks(self, text: str, expected: list[str]) -> None:
        assert words(text) == expected

    def test_ngrams_stand_in_order_as_often_as_they_occur(self) -> None:
        assert list(ngrams("a b a b".split(), 2)) == [("a", "b"), ("b", "a"), ("a", "b")]
        assert list(ngrams("a b".split(), 3)) == []


def plain_bleu(pairs: list[tuple[str, str]], *, effective_order: bool) -> float:
    """BLEU-4 of references and hypotheses (Papineni et al. 2002) whose k-th order without a match counts as 2^-k matches."""
    lengths = [[len(text.split()) for text in side] for side in zip(*pairs, strict=True)]
    logs, missing = [], 0
    for n in (1, 2, 3, 4):
        matched = total = 0
        for reference, hypothesis in pairs:
            grams = [Counter(zip(*(text.split()[i:] for i in range(n)), strict=False)) for text in (reference, hypothesis)]
            total += sum(grams[1].values())
            matched += sum(min(count, grams[0][gram]) for gram, count in grams[1].items())
        if n == 1 and not matched:
            return 0.0
        if not total:
            if effective_order:
                break
            return 0.0
        missing += not matched
        logs.append(math.log((matched or 2**-missing) / total))
    return math.exp(sum(logs) / len(logs) + min(0, 1 - sum(lengths[0]) / sum(lengths[1])))


def some_pairs(count: int) -> list[tuple[str, str]]:
    draw = random.Random(1)
    texts = [" ".join(draw.choices("abcde", k=draw.randint(1, 9))) for _ in range(2 * count)]
    return list(zip(texts[:count], texts[count:], strict=True))


class TestStandard:
    def test_sentences_are_scored_as_by_sacrebleu_and_by_hand(self) -> None:
        pairs = [*some_pairs(200), (MAT, "the cat sat on a mat"), (MAT, MAT), ("a", "a"), ("a b", "b c"), ("a b", "c d")]
        scores, signature = sacre_sentence_bleu(*zip(*pairs, strict=True))
        assert scores == pytest.approx([sacrebleu.sentence_bleu(h, [r]).score / 100 for r, h in pairs], rel=1e-12)
        assert scores == pytest.approx([plain_bleu([pair], effective_order=True) for pair in pairs], rel=1e-9)
        assert signature == f"nrefs:1|case:mixed|eff:yes|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
        assert max(scores) == 1 == scores[pairs.index((MAT, MAT))]

    def test_a_corpus_is_scored_as_by_sacrebleu_and_by_hand(self) -> None:
        for pairs in (some_pairs(50), [(MAT, "the cat sat on a mat"), ("a b c", "c b a")], [("a b", "a b")]):
            references, hypotheses = (list(side) for side in zip(*pairs, strict=True))
            score, signature = sacre_corpus_bleu(references, hypotheses)
            assert score == pytest.approx(sacrebleu.corpus_bleu(hypotheses, [references]).score / 100, rel=1e-12)
            assert score == pytest.approx(plain_bleu(pairs, effective_order=False), rel=1e-9)
            assert signature == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
        assert sacre_corpus_bleu([MAT] * 3, [MAT] * 3)[0] == 1

    def test_texts_are_read_as_they_are(self) -> None:
        # "Fine, thanks." is four words to sacreBLEU, which minds the case: 3, 2, 1 matches of 4, 3, 2, and none of 1.
        (same, cased), _ = sacre_sentence_bleu(["Fine, thanks.", "fine, thanks."], ["Fine, thanks."] * 2)
        assert same == 1
        assert cased == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25, rel=1e-9)

    @pytest.mark.parametrize("score", [sacre_corpus_bleu, sacre_sentence_bleu])
    def test_what_cannot_be_scored_is_said(self, score: object, monkeypatch: pytest.MonkeyPatch) -> None:
        assert callable(score)
        with pytest.raises(UserError, match="at least one text"):
            score([], [])
        monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
        with pytest.raises(UserError, match=r"pip install 'vrae\[eval\]'"):
            score(["a"], ["a"])
