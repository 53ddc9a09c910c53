"""Style transfer: the classifier against the condition of its minimum, every figure against examples worked by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
import torch
from conftest import tiny_model

from vrae.corpus.prepared import Corpus
from vrae.evaluation.quality import perplexity
from vrae.evaluation.transfer import RULES, Rule, TextClassifier, content_words, nearest, overlap_at, towards, transfer
from vrae.generation.latent import slerp
from vrae.generation.pipeline import Pipeline, Sample

QUESTION, LENGTH = RULES
ASKED = ["how are you?", "what do you eat?", "do you like pizza?", "where is the park?"]
SAID = ["i am fine", "i eat pizza.", "the park is there!", "we like pizza", "see you later", "great"]


class TestRules:
    @pytest.mark.parametrize(
        ("text", "label"),
        [
            ("where are you?", 1),
            ("i am here", 0),
            ("i am here.", 0),
            ("really?", None),  # too short
            ("i am here? yes", None),
            ("i am here. are you?", None),
            ("oh! where is it?", None),
            ("who asked this? me", None),
            ("is it 2.5 miles?", 1),
            (" ".join("abcdefghijklm") + "?", None),  # too long
        ],
    )
    def test_of_questions(self, text: str, label: int | None) -> None:
        assert QUESTION.label(text) == label

    @pytest.mark.parametrize(("words", "label"), [(0, None), (1, 0), (4, 0), (5, None), (7, None), (8, 1), (30, 1)])
    def test_of_length(self, words: int, label: int | None) -> None:
        assert LENGTH.label(" ".join(["word"] * words)) == label


class TestContentWords:
    def test_are_those_that_are_neither_function_words_nor_marks(self) -> None:
        found = content_words("What's the Pizza like? I don't like pizza... :) 😀", {"right"})
        assert found == {"pizza": 2, "like": 2}
        assert content_words("you go right home, right?", {"right"}) == {"go": 1, "home": 1}
        assert content_words("is it?") == {}


class TestTextClassifier:
    def test_rests_where_the_gradient_is_zero(self) -> None:
        classifier = TextClassifier(penalty=1e-2).fit(SAID, ASKED)
        rows = [(text, y, 0.5 / len(texts)) for y, texts in ((0, SAID), (1, ASKED)) for text in texts]
        gradient = 1e-2 * classifier.weight_H1[:, 0].numpy()
        bias_gradient = 0.0
        for text, y, weight in rows:
            values = classifier._features([text])[0].tolist()
            log_odds = sum(float(classifier.weight_H1[value, 0]) for value in values) + float(classifier.bias)
            assert classifier.log_odds([text]) == pytest.approx([log_odds])
            residual = weight * (1 / (1 + math.exp(-log_odds)) - y)
            gradient[values] += residual
            bias_gradient += residual
        assert np.abs(classifier.weight_H1.numpy()).max() > 0.1
        assert np.abs(gradient).max() < 1e-6
        assert abs(bias_gradient) < 1e-6

    def test_tells_apart_what_it_was_shown_and_gives_it_the_right_sign(self) -> None:
        classifier = TextClassifier().fit(SAID, ASKED)
        assert classifier.labels([*SAID, *ASKED]) == [0] * 6 + [1] * 4
        assert classifier.labels(["how are they?", "i am great"]) == [1, 0]

    def test_weighs_both_labels_alike_however_many_texts_they_have(self) -> None:
        classifier = TextClassifier().fit(["pizza"] * 30, ["pizza"] * 10)
        assert classifier.log_odds(["pizza"]) == pytest.approx([0], abs=1e-5)

    def test_that_is_bare_does_not_see_how_a_text_ends(self) -> None:
        bare, whole = (TextClassifier(bare=bare).fit(SAID, ASKED) for bare in (True, False))
        texts = ["how are you", "how are you?", "how are you ?!", "how are you_ "]
        assert len(set(bare.log_odds(texts))) == 1
        first, asked, *_ = whole.log_odds(texts)
        assert asked > first
        assert bare.log_odds(["so? yes"]) != bare.log_odds(["so yes"])

    def test_reads_each_text_alone(self) -> None:
        classifier = TextClassifier().fit(SAID, ASKED)
        texts = ["pizza?", "", "🎉", "you are in the park"]
        assert classifier.log_odds(texts) == pytest.approx([classifier.log_odds([text])[0] for text in texts], abs=1e-12)

    def test_counts_words_pairs_and_letters_once_each(self) -> None:
        # < no > : 3 words, 2 pairs, 2 runs of letters; said twice, the word is new in no way but the pair and the runs across
        names = set(TextClassifier()._names("No"))
        assert names == {"1 <", "1 no", "1 >", "2 < no", "2 no >", "3 <no", "3 no>"}
        assert set(TextClassifier()._names("no  no")) - names == {"2 no no", "3 no ", "3 o n", "3  no"}
        assert len(TextClassifier()._features(["no no"])[0]) == 11


class Sees:
    """A classifier that puts a text under 1 where it matches."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    def labels(self, texts: Sequence[str]) -> list[int]:
        return [int(bool(re.search(self.pattern, text))) for text in texts]


def sees(pattern: str) -> TextClassifier:
    return cast(TextClassifier, Sees(pattern))


RULE = Rule("x", ("a", "b"), lambda text: 1 if text.endswith("?") else 0, frozenset(["right"]))


class TestTransfer:
    def test_is_worked_by_hand(self) -> None:
        sources = ["red cats run red right", "blue dogs?", "you and me"]
        moved = ["red cats and red dogs?", "blue dogs?", "what?"]
        found = transfer(sources, moved, [1, 0, 1], RULE, sees("what|cats"), sees("dogs"))
        assert found.texts == 3
        assert found.accuracy == 1  # 1, 0, 1
        assert found.accuracy_error == 0
        assert found.accuracy_marked == pytest.approx(1 / 3)  # 1 right; 1 for 0, 0 for 1 wrong
        assert found.by_rule == pytest.approx(2 / 3)
        # shared: red, red and cats of red cats run red and red cats red dogs; both of blue dogs; nothing of nothing
        assert found.kept == pytest.approx((3 + 2) / (4 + 2))
        assert found.overlap == pytest.approx((6 + 4) / (8 + 4))
        assert found.same == pytest.approx(1 / 3)
        assert found.forward is None
        # residuals of kept: 3 - 5/6 * 4, 2 - 5/6 * 2, 0; of overlap: 6 - 5/6 * 8, 4 - 5/6 * 4, 0
        assert found.kept_error == pytest.approx(math.sqrt(3 / 2 * 2 / 9) / 6)
        assert found.overlap_error == pytest.approx(math.sqrt(3 / 2 * 8 / 9) / 12)

    def test_of_no_change_keeps_everything(self) -> None:
        found = transfer(SAID, SAID, [0] * 6, RULE, sees("x"), sees("x"))
        assert (found.accuracy, found.kept, found.overlap, found.same) == (1, 1, 1, 1)
        assert found.bleu == pytest.approx(1)

    def test_asks_the_judge_about_what_was_written(self, corpus: Corpus) -> None:
        judge = Pipeline(tiny_model(vocab_size=len(corpus.tokenizer), latent_size=0), corpus.tokenizer, {})
        moved = ["hello you", "how is the weather"]
        found = transfer(["hello", "great weather"], moved, [1, 1], RULE, sees("x"), sees("x"), judge)
        assert found.forward == perplexity(judge, moved)


class TestBaseline:
    def test_nearest_is_that_of_all_distances(self) -> None:
        rng = np.random.default_rng(0)
        z_BZ, pool_NZ = rng.standard_normal((20, 6)), rng.standard_normal((50, 6)) * rng.uniform(0.3, 3, (50, 1))
        expected = [min(range(50), key=lambda n: float(((z_Z - pool_NZ[n]) ** 2).sum())) for z_Z in z_BZ]
        assert nearest(z_BZ, pool_NZ).tolist() == expected

    def test_goes_so_far_along_the_great_circle(self, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
        pipeline = Pipeline(tiny_model(vocab_size=len(corpus.tokenizer)), corpus.tokenizer, {})
        seen: list[np.ndarray] = []

        def spy(z_NZ: np.ndarray) -> list[Sample]:
            seen.append(z_NZ)
            return [Sample(str(i), 0.0) for i in range(len(z_NZ))]

        monkeypatch.setattr(pipeline, "decode_latents", spy, raising=False)
        rng = np.random.default_rng(0)
        z_BZ, goals_BZ = rng.standard_normal((2, 3, 4)).astype(np.float32)
        assert towards(pipeline, z_BZ, goals_BZ, 0.25) == ["0", "1", "2"]
        for point, a, b in zip(seen[0], z_BZ, goals_BZ, strict=True):
            expected = slerp(torch.from_numpy(a), torch.from_numpy(b), torch.tensor([0.25]))[0]
            assert point == pytest.approx(expected.numpy(), abs=1e-6)
        for share, ends in ((0.0, z_BZ), (1.0, goals_BZ)):
            towards(pipeline, z_BZ, goals_BZ, share)
            assert seen[-1] == pytest.approx(ends, abs=1e-6)


@pytest.mark.parametrize(
    ("accuracy", "overlap"),
    [(0.0, 0.9), (0.2, 0.9), (0.3, 0.8), (0.4, 0.7), (0.5, 0.65), (0.8, 0.5), (0.85, 0.25), (0.9, 0.0), (0.91, None)],
)
def test_overlap_is_the_best_of_a_curve_at_that_accuracy_or_above(accuracy: float, overlap: float | None) -> None:
    curve = [(0.2, 0.9), (0.4, 0.7), (0.6, 0.6), (0.5, 0.3), (0.8, 0.5), (0.9, 0.0)]
    found = overlap_at(curve, accuracy)
    assert found is None if overlap is None else found == pytest.approx(overlap)
