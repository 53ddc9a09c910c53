"""Scores of replies under the three protocols, against golden values, enumeration and hand-worked vectors."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sacrebleu

import vrae
from vrae.errors import UserError
from vrae.evaluation.bleu import method7_bleu, sacre_sentence_bleu
from vrae.evaluation.dialogue import DialogueScores, Protocol, Replies, needed_words, score_replies
from vrae.evaluation.diversity import distinct
from vrae.evaluation.vectors import WordVectors, greedy, similarity

PROTOCOLS: list[Protocol] = ["legacy", "modern", "standard"]


def some_replies(contexts: int, references: int, samples: int) -> list[Replies]:
    draw = random.Random(3)

    def texts(count: int) -> list[str]:
        return [" ".join(draw.choices("abcd", k=draw.randint(1, 7))) for _ in range(count)]

    return [Replies(texts(references), texts(samples)) for _ in range(contexts)]


def bleu(reference: str, hypothesis: str, protocol: Protocol) -> float:
    if protocol == "standard":
        return sacrebleu.sentence_bleu(hypothesis, [reference]).score / 100
    end = ["</s>"] if protocol == "legacy" else []
    return method7_bleu(reference.split() + end, hypothesis.split() + end, protocol)


class TestBleu:
    @pytest.mark.parametrize(
        ("protocol", "end_mark", "expected"),
        [
            ("legacy", None, 0.277921),
            ("legacy", True, 0.277921),
            ("legacy", False, 0.247651),
            ("modern", None, 0.224431),
            ("modern", False, 0.224431),
            ("modern", True, 0.242380),
        ],
    )
    def test_counts_the_end_mark_as_the_protocol_has_it(
        self, protocol: Protocol, end_mark: bool | None, expected: float
    ) -> None:
        replies = [Replies(["I do NOT know what you mean"], ["You know I do"])]
        scores = score_replies(replies, protocol, decoding="greedy", end_mark=end_mark)
        assert scores.bleu_recall == scores.bleu_precision == pytest.approx(expected, abs=6e-7)
        assert scores.end_mark is (protocol == "legacy" if end_mark is None else end_mark)

    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_with_one_reference_is_the_best_and_the_mean_sample(self, protocol: Protocol) -> None:
        replies = some_replies(contexts=6, references=1, samples=5)
        best = mean = 0.0
        for context in replies:
            scores = [bleu(context.references[0], hypothesis, protocol) for hypothesis in context.hypotheses]
            best += max(scores) / 6
            mean += sum(scores) / 5 / 6
        ours = score_replies(replies, protocol, decoding="greedy")
        assert ours.bleu_recall == pytest.approx(best, rel=1e-12)
        assert ours.bleu_precision == pytest.approx(mean, rel=1e-12)
        assert ours.bleu_f1 == pytest.approx(2 * best * mean / (best + mean), rel=1e-9)

    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_with_several_references_finds_each_reference_and_each_sample(self, protocol: Protocol) -> None:
        replies = some_replies(contexts=4, references=3, samples=5)
        recall = precision = 0.0
        for references, hypotheses in replies:
            recall += sum(max(bleu(r, h, protocol) for h in hypotheses) for r in references) / 3 / 4
            precision += sum(max(bleu(r, h, protocol) for r in references) for h in hypotheses) / 5 / 4
        ours = score_replies(replies, protocol, decoding="greedy")
        assert (ours.bleu_recall, ours.bleu_precision) == pytest.approx((recall, precision), rel=1e-12)

    def test_standard_has_the_signature(self) -> None:
        replies = some_replies(contexts=2, references=1, samples=2)
        ours = score_replies(replies, "standard", decoding="greedy")
        assert ours.signature == sacre_sentence_bleu(["a"], ["a"])[1]
        assert (ours.signature or "") in ours.statement
        assert score_replies(replies, "modern", decoding="greedy").signature is None

    def test_standard_reads_the_texts_as_they_are(self) -> None:
        ours = score_replies([Replies(["So it is."], ["so it is.", "So it is."])], "standard", decoding="greedy")
        assert ours.bleu_recall == 1
        assert ours.bleu_precision == pytest.approx((1 + sacrebleu.sentence_bleu("so it is.", ["So it is."]).score / 100) / 2)
        assert ours.bleu_precision < 1

    def test_f1_is_zero_where_nothing_is_alike(self) -> None:
        ours = score_replies([Replies(["a b"], ["c d"])], "modern", decoding="greedy")
        assert (ours.bleu_recall, ours.bleu_precision, ours.bleu_f1) == (0, 0, 0)

    def test_each_context_weighs_alike_whatever_its_numbers(self) -> None:
        same, other = "a b c d e f", "x"
        replies = [Replies([same], [same]), Replies([same, same], [same, other, other, other]), Replies([same], [])]
        ours = score_replies(replies, "standard", decoding="greedy")
        assert ours.bleu_recall == pytest.approx((1 + 1 + 0) / 3)
        assert ours.bleu_precision == pytest.approx((1 + 1 / 4 + 0) / 3)
        assert (ours.references, ours.samples, ours.contexts) == ((1, 2), (0, 4), 3)


def test_distinct_and_length_are_of_lower_cased_words_without_end_mark() -> None:
    replies = [Replies(["x"], ["A b, a", "a"]), Replies(["x"], ["b B b b"])]
    texts = [[["a", "b", ",", "a"], ["a"]], [["b", "b", "b", "b"]]]
    for protocol in PROTOCOLS:
        ours = score_replies(replies, protocol, decoding="greedy")
        assert (ours.distinct_1, ours.distinct_2) == (distinct(texts, 1), distinct(texts, 2))
        assert ours.words_per_reply == pytest.approx((4 + 1 + 4) / 3)


class TestEmbedding:
    VECTORS = WordVectors({"tea": np.array([1.0, 0.0]), "cup": np.array([0.0, 1.0]), "mud": np.array([-1.0, 0.0])}, seed=5)

    def scores(self, *replies: Replies, protocol: Protocol = "modern", **options: object) -> DialogueScores:
        return score_replies(replies, protocol, decoding="greedy", vectors=self.VECTORS, **options)  # type: ignore[arg-type]

    def test_is_the_best_of_each_context_and_the_mean_of_contexts(self) -> None:
        # First: "tea cup" is half right, cos 45 degrees; greedy (1 + (1 + 0) / 2) / 2. Second: nothing but the opposite.
        ours = self.scores(Replies(["Tea"], ["mud", "tea cup"]), Replies(["tea"], ["mud"])).embedding
        assert ours
        assert ours.average == ours.extrema == pytest.approx((0.5**0.5 - 1) / 2)
        assert ours.greedy == ours.greedy_end_mark == pytest.approx((0.75 - 1) / 2)
        assert (ours.oov, ours.contexts, ours.coverage) == ("drop", 2, 1)

    def test_takes_the_best_sample_by_each_measure_and_averages_references_within_contexts(self) -> None:
        draw = np.random.default_rng(0)
        vectors = WordVectors({letter: draw.normal(size=3) for letter in "abcd"})
        replies = some_replies(contexts=3, references=2, samples=4)
        replies[0] = Replies(replies[0].references[:1], replies[0].hypotheses)
        expected = np.zeros(3)
        for references, hypotheses in replies:
            for r in references:
                pairs = [similarity(*(vectors.rows(text.split(), "drop") for text in (r, h))) for h in hypotheses]
                expected += np.max(pairs, axis=0) / len(references) / 3
        ours = score_replies(replies, "modern", decoding="greedy", vectors=vectors).embedding
        assert ours
        assert (ours.average, ours.extrema, ours.greedy) == pytest.approx(expected.tolist())

    def test_leaves_out_what_cannot_be_compared_and_says_how_much(self) -> None:
        replies = [Replies(["tea please"], ["tea tea now", "what"]), Replies(["what"], ["tea"]), Replies(["mud"], [])]
        ours = self.scores(*replies)
        assert ours.embedding
        assert ours.embedding.average == pytest.approx((1 + 0) / 2)
        assert ours.embedding.contexts == 2
        assert ours.embedding.coverage == pytest.approx(5 / 9)
        assert (
            "embeddings: best sample of each reference, words without vector (44.4%) left out, contexts with vectors: 2"
            in ours.statement
        )
        with pytest.raises(UserError, match="no reference has a word with a vector"):
            self.scores(replies[1])

    def test_a_sample_without_vectors_counts_zero_and_is_better_than_the_opposite(self) -> None:
        ours = self.scores(Replies(["tea"], ["mud", "what"])).embedding
        assert ours
        assert ours.average == 0

    @pytest.mark.parametrize(("protocol", "oov"), [("legacy", None), ("modern", "random"), ("standard", "random")])
    def test_draws_vectors_as_dialogwae_does(self, protocol: Protocol, oov: str | None) -> None:
        ours = self.scores(Replies(["tea what"], ["what now"]), protocol=protocol, oov=oov)
        rows = [self.VECTORS.rows(text.split(), "random") for text in ("tea what", "what now")]
        marked = [self.VECTORS.rows(text.split(), "random") for text in ("tea what </s>", "what now </s>")]
        assert ours.embedding
        assert (ours.embedding.average, ours.embedding.extrema, ours.embedding.greedy) == pytest.approx(similarity(*rows))
        assert ours.embedding.greedy_end_mark == pytest.approx(greedy(*marked))
        assert ours.embedding.greedy_end_mark != pytest.approx(ours.embedding.greedy)
        assert "words without vector (75.0%) drawn from N(0, 0.1^2) with seed 5" in ours.statement

    def test_legacy_can_drop_too(self) -> None:
        ours = self.scores(Replies(["tea what"], ["now cup"]), protocol="legacy", oov="drop").embedding
        assert ours
        assert (ours.oov, ours.average) == ("drop", 0)

    def test_asks_for_the_words_it_needs(self) -> None:
        replies = [Replies(["Tea, please"], ["no tea"]), Replies(["why", "how"], [])]
        assert needed_words(replies) == {"tea", ",", "please", "no", "why", "how", "</s>"}


class TestStatement:
    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_says_all_that_the_figures_depend_on(self, protocol: Protocol) -> None:
        replies = [Replies(["a b"], ["a", "b", "c"]), Replies(["a b"], ["a b"])]
        statement = score_replies(replies, protocol, decoding="sampling, top-p 0.9").statement
        assert statement.startswith(f"{protocol}: ")
        assert "contexts: 2; samples per context: 1 to 3; references per context: 1;" in statement
        assert "decoding: sampling, top-p 0.9" in statement
        assert "\n" not in statement

    def test_names_the_version_and_the_end_mark(self) -> None:
        replies = [Replies(["a b"], ["a b"])]
        legacy, modern = (score_replies(replies, name, decoding="greedy").statement for name in PROTOCOLS[:2])
        assert "NLTK <= 3.4.5" in legacy
        assert "end mark counted" in legacy
        assert "NLTK >= 3.6" in modern
        assert "end mark not counted" in modern
        assert "end mark counted" in score_replies(replies, "modern", decoding="greedy", end_mark=True).statement

    def test_the_scores_are_json(self) -> None:
        ours = score_replies(some_replies(2, 1, 2), "legacy", decoding="greedy")
        found = json.loads(json.dumps(dataclasses.asdict(ours)))
        assert found["protocol"] == "legacy"
        assert found["distinct_2"]["corpus"] == ours.distinct_2.corpus
        with pytest.raises(dataclasses.FrozenInstanceError):
            ours.contexts = 3  # type: ignore[misc]


class TestFaults:
    @pytest.mark.parametrize(
        ("replies", "message"),
        [
            ([], "no context"),
            ([Replies(["a"], ["a"]), Replies([], ["a"])], "context 1 has no reference"),
            ([Replies(["a"], [])], "no context has a reply"),
        ],
    )
    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_are_told(self, replies: list[Replies], message: str, protocol: Protocol) -> None:
        with pytest.raises(UserError, match=message):
            score_replies(replies, protocol, decoding="greedy")

    def test_of_unknown_names_tell_the_known_ones(self) -> None:
        replies = [Replies(["a"], ["a"])]
        with pytest.raises(UserError, match=r"legacy, modern, standard\. Got 'nltk'"):
            score_replies(replies, "nltk", decoding="greedy")  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"drop, random\. Got 'zero'"):
            score_replies(replies, "modern", decoding="greedy", oov="zero")  # type: ignore[arg-type]

    def test_standard_counts_no_end_mark(self) -> None:
        with pytest.raises(UserError, match="standard counts no end mark"):
            score_replies([Replies(["a"], ["a"])], "standard", decoding="greedy", end_mark=True)

    def test_a_text_for_a_list_of_texts_is_a_mistake_of_the_program(self) -> None:
        with pytest.raises(AssertionError, match="lists of texts"):
            score_replies([Replies("a", ["a"])], "modern", decoding="greedy")


def test_texts_are_scored_without_torch_and_sacrebleu() -> None:
    check = (
        "import sys; sys.modules['torch'] = sys.modules['sacrebleu'] = None\n"
        "from vrae.evaluation.dialogue import Replies, score_replies\n"
        "print(score_replies([Replies(['a b'], ['a b'])], 'legacy', decoding='greedy').bleu_recall > 0)"
    )
    root = Path(vrae.__file__).parent.parent
    done = subprocess.run([sys.executable, "-W", "error", "-c", check], capture_output=True, text=True, cwd=root)
    assert re.sub(r"\s", "", done.stdout) == "True", done.stderr
