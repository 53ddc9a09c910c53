"""Reconstruction and samples: against hand-worked numbers, models whose distribution is known, and one-by-one replays."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_windows, tiny_model
from torch import Tensor

from vrae.config import BatchConfig, DecodingConfig
from vrae.corpus.batches import Batch, Window, Windows, collate
from vrae.corpus.prepared import Corpus
from vrae.corpus.tokenizer import EOS
from vrae.errors import ModelError, UserError
from vrae.evaluation import quality
from vrae.evaluation.quality import (
    ANCESTRAL,
    Ratio,
    draw_samples,
    perplexity,
    real_turns,
    reconstruction,
    text_quality,
)
from vrae.generation import decoding, text_model
from vrae.generation.decoding import Decoded
from vrae.generation.pipeline import Pipeline
from vrae.model.vrae import VRAE


def pipeline(corpus: Corpus, **overrides: Any) -> Pipeline:
    """An untrained model with the corpus's tokenizer."""
    return Pipeline(tiny_model(vocab_size=len(corpus.tokenizer), **overrides), corpus.tokenizer, {})


def unigram(corpus: Corpus, probability: dict[int, float], **overrides: Any) -> Pipeline:
    """A model that draws each token from the same distribution, whatever came before and whatever z is."""
    found = pipeline(corpus, **overrides)
    with torch.no_grad():
        found.model.decoder.project.weight.zero_()
        found.model.decoder.project.bias.zero_()
        found.model.decoder.out.bias.fill_(-60.0)
        for token, share in probability.items():
            found.model.decoder.out.bias[token] = math.log(share)
    return found


def tokens_of(corpus: Corpus, *words: str) -> list[int]:
    """The piece of each word, which must be one piece."""
    found = corpus.tokenizer.encode(words)
    assert all(len(ids) == 1 for ids in found)
    return [ids[0] for ids in found]


def windows_of(corpus: Corpus, context_turns: int, tokens: int = 2000, longest: int = 20) -> Windows:
    return Windows(corpus["validation"], BatchConfig(tokens=tokens, max_turn_tokens=longest, segment_turns=4), context_turns)


class TestRatio:
    def test_is_worked_by_hand(self) -> None:
        # 9 / 4 = 2.25; residuals -1.25, -0.25, 1.5 have squares that sum to 3.875; sqrt(3.875 * 3 / 2) / 4
        ratio = Ratio()
        for y, x in ((1, 1), (2, 1), (6, 2)):
            ratio.add(y, x)
        assert (ratio.value, ratio.units) == (2.25, 3)
        assert ratio.error == pytest.approx(math.sqrt(5.8125) / 4, rel=1e-12)

    def test_with_one_for_x_is_a_mean_and_its_standard_error(self) -> None:
        values = np.random.default_rng(0).normal(3, 2, 50)
        ratio = Ratio()
        for value in values.tolist():
            ratio.add(value)
        assert ratio.value == pytest.approx(values.mean(), rel=1e-12)
        assert ratio.error == pytest.approx(values.std(ddof=1) / math.sqrt(50), rel=1e-9)

    def test_error_is_the_spread_over_repetitions(self) -> None:
        rng = np.random.default_rng(0)
        values, errors = [], []
        for _ in range(400):
            ratio = Ratio()
            lengths = rng.integers(1, 20, 200)
            for length, noise in zip(lengths.tolist(), rng.normal(0, 1, 200).tolist(), strict=True):
                ratio.add(5 * length + noise * length, length)
            values.append(ratio.value)
            errors.append(ratio.error or 0.0)
        assert np.std(values) == pytest.approx(np.mean(errors), rel=0.1)

    def test_of_one_unit_has_no_error_and_of_equal_ones_none_to_speak_of(self) -> None:
        ratio = Ratio()
        ratio.add(1 / 3, 7)
        assert ratio.error is None
        ratio.add(1 / 3, 7)
        assert ratio.error == pytest.approx(0, abs=1e-8)


class TestPerplexity:
    def test_of_the_uniform_judge_is_the_vocabulary(self, corpus: Corpus) -> None:
        judge = unigram(corpus, {}, latent_size=0)
        texts = ["", "hello how are you", "see you tomorrow at the park"]
        found = perplexity(judge, texts)
        tokens = sum(len(ids) + 1 for ids in corpus.tokenizer.encode(texts))
        assert found.value == pytest.approx(len(corpus.tokenizer), rel=1e-9)
        assert (found.texts, found.tokens) == (3, tokens)
        assert found.error == pytest.approx(0, abs=1e-4)

    def test_is_worked_by_hand_end_marks_and_empty_texts_included(self, corpus: Corpus) -> None:
        yes, no = tokens_of(corpus, "yes", "no")
        judge = unigram(corpus, {yes: 0.5, no: 0.2, EOS: 0.3}, latent_size=0)
        found = perplexity(judge, ["yes", "", "no yes", ""])
        nats = -math.log(0.5 * 0.3 * 0.3 * 0.2 * 0.5 * 0.3 * 0.3)
        assert found.value == pytest.approx(math.exp(nats / 7), rel=1e-9)
        assert found.tokens == 7
        # units: -log .15 of 2, -log .3 of 1, -log .03 of 3, -log .3 of 1
        rest = [-math.log(p) - nats / 7 * n for p, n in ((0.15, 2), (0.3, 1), (0.03, 3), (0.3, 1))]
        assert found.error == pytest.approx(found.value * math.sqrt(sum(r * r for r in rest) * 4 / 3) / 7, rel=1e-6)

    def test_is_that_of_the_tokens_one_after_the_other(self, corpus: Corpus) -> None:
        judge = pipeline(corpus, latent_size=0)
        texts = ["hello how are you", "yes", "", "i love this song", "café 😀"]
        nats = tokens = 0.0
        decoder = judge.model.decoder
        for ids in corpus.tokenizer.encode(texts):
            state, last = decoder.start(torch.zeros(1, 0).double(), torch.zeros(1, 0).double()), decoder.first_tokens(1)
            for token in (*ids, EOS):
                logits_1V, state = decoder.step(last, state)
                nats -= float(logits_1V.detach().log_softmax(-1)[0, token])
                tokens += 1
                last = torch.tensor([token])
        assert perplexity(judge, texts).value == pytest.approx(math.exp(nats / tokens), rel=1e-10)

    def test_does_not_depend_on_how_many_are_read_at_once(self, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
        judge, texts = pipeline(corpus, latent_size=0), [f"{word} you" for word in "hello yes no maybe see café".split()]
        whole = perplexity(judge, texts)
        monkeypatch.setattr(quality, "_ROWS", 4)
        parts = perplexity(judge, (text for text in texts))
        assert parts.value == pytest.approx(whole.value, rel=1e-12)
        assert (parts.texts, parts.tokens) == (whole.texts, whole.tokens)

    def test_error_takes_texts_of_a_group_for_one_unit(self, corpus: Corpus) -> None:
        judge, texts = pipeline(corpus, latent_size=0), ["hello", "how are you", "no", "yes yes yes", "maybe"]
        single = [perplexity(judge, [text]) for text in texts]
        nats = [math.log(one.value) * one.tokens for one in single]
        ratio = Ratio()
        for rows in (slice(0, 2), slice(2, 4), slice(4, 5)):
            ratio.add(sum(nats[rows]), sum(one.tokens for one in single[rows]))
        found = perplexity(judge, texts, group=2)
        assert ratio.error is not None
        assert found.error == pytest.approx(found.value * ratio.error, rel=1e-6)
        assert found.value == pytest.approx(perplexity(judge, texts).value, rel=1e-12)
        assert found.texts == 5
        assert single[0].error is None

    def test_mixes_empty_texts_in(self, corpus: Corpus) -> None:
        yes, no = tokens_of(corpus, "yes", "no")
        judge = unigram(corpus, {yes: 0.5, no: 0.2, EOS: 0.3}, latent_size=0)
        assert perplexity(judge, ["yes"], empty=0.1).value == pytest.approx((0.9 * 0.5 * 0.3) ** -0.5, rel=1e-9)
        assert perplexity(judge, [""], empty=0.1).value == pytest.approx(1 / (0.1 + 0.9 * 0.3), rel=1e-9)
        assert perplexity(judge, [""]).value == pytest.approx(1 / 0.3, rel=1e-9)

    @pytest.mark.parametrize("overrides", [dict(latent_size=2), dict(latent_size=0, context_turns=1)])
    def test_wants_a_language_model(self, corpus: Corpus, overrides: dict[str, int]) -> None:
        with pytest.raises(ModelError, match="the judge must be a language model"):
            perplexity(pipeline(corpus, **overrides), ["yes"])


def fixed(monkeypatch: pytest.MonkeyPatch, decoded: list[Decoded]) -> None:
    """What the decoder writes, one text after the other."""
    left = iter(decoded)
    monkeypatch.setattr(text_model, "decode", lambda decoder, state, noise, config: [next(left) for _ in state.condition_BE])


class TestReconstruction:
    def test_is_worked_by_hand(self, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
        yes, no, see = tokens_of(corpus, "yes", "no", "see")
        cases = [
            ([yes, no], Decoded([yes, no], 0.0, True), 3, True),
            ([yes, no], Decoded([yes, no], 0.0, False), 2, False),  # the end mark is missing
            ([yes, no, see], Decoded([yes, see, see], 0.0, True), 3, False),
            ([yes, no, see], Decoded([yes], 0.0, True), 1, False),  # an end mark where there is none yet
            ([yes], Decoded([yes, no, see], 0.0, True), 1, False),  # a token where the end mark should be
            ([], Decoded([], 0.0, True), 1, True),
            ([], Decoded([yes], 0.0, True), 0, False),
        ]
        fixed(monkeypatch, [decoded for _, decoded, _, _ in cases])
        batch = collate([Window([], np.array(target, np.int64), []) for target, *_ in cases], 0)
        found = reconstruction(pipeline(corpus), [batch])
        right, tokens = sum(case[2] for case in cases), sum(len(case[0]) + 1 for case in cases)
        assert (found.turns, found.tokens) == (7, tokens) == (7, 18)
        assert found.exact == pytest.approx(2 / 7)
        assert found.exact_error == pytest.approx(math.sqrt(2 / 7 * 5 / 7 / 6))
        assert found.token_accuracy == pytest.approx(right / tokens)
        rest = [case[2] - right / tokens * (len(case[0]) + 1) for case in cases]
        assert found.token_accuracy_error == pytest.approx(math.sqrt(sum(r * r for r in rest) * 7 / 6) / tokens)

    def test_bleu_is_that_of_the_texts(self, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("sacrebleu")
        # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples, and none of 3 quadruples, which counts as half a match
        reference, written = "see you at park later", "see you at the park later"
        ids = corpus.tokenizer.encode([reference, written])
        fixed(monkeypatch, [Decoded(ids[1], 0.0, True)])
        found = reconstruction(pipeline(corpus), [collate([Window([], np.array(ids[0]), [])], 0)])
        assert found.bleu == pytest.approx((5 / 6 * 3 / 5 * 1 / 4 * 0.5 / 3) ** 0.25)
        assert "|tok:13a|" in found.bleu_signature

    def test_without_sacrebleu_says_how_to_get_it(self, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "sacrebleu.metrics.bleu", None)
        found = reconstruction(pipeline(corpus), [collate(random_windows(2, 0, len(corpus.tokenizer)), 0)])
        assert found.bleu is None
        assert "vrae[eval]" in found.bleu_signature

    @pytest.mark.parametrize("context_turns", [0, 2])
    def test_starts_from_the_posterior_mean_and_the_context(
        self, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, context_turns: int
    ) -> None:
        found, windows = pipeline(corpus, context_turns=context_turns), random_windows(7, context_turns, len(corpus.tokenizer))
        states: list[Tensor] = []

        def spy(decoder: Any, state: Any, noise: Tensor, config: DecodingConfig) -> list[Decoded]:
            assert config.temperature == 0
            states.extend(state.condition_BE)
            return [Decoded([], 0.0, True)] * len(state.condition_BE)

        monkeypatch.setattr(text_model, "decode", spy)
        reconstruction(found, [collate(windows[:5], context_turns), collate(windows[5:], context_turns)])
        with torch.no_grad():
            for window, state in zip(windows, states, strict=True):
                inferred = found.model.infer(collate([window], context_turns))
                start = found.model.decoder.start(inferred.posterior.mean_BZ, inferred.context_BC)
                torch.testing.assert_close(state, start.condition_BE[0])

    def test_decodes_as_it_is_told(self, corpus: Corpus) -> None:
        """Of two tokens, with end marks unlikely: greedily nothing ends, and a search finds what ends as soon as it may."""
        a, b = tokens_of(corpus, "hello", "yes")
        model = unigram(corpus, {a: 0.5, b: 0.3, EOS: 0.2}, latent_size=2)
        batch = collate([Window([], np.array([a], np.int64), [])], 0)
        assert reconstruction(model, [batch]).exact == 0
        assert reconstruction(model, [batch], DecodingConfig(temperature=0, beams=4)).exact == 1

    def test_takes_the_turns_of_a_corpus(self, corpus: Corpus) -> None:
        windows = windows_of(corpus, 2)
        found = reconstruction(pipeline(corpus, context_turns=2), (batch for _, batch in windows.in_order()))
        assert (found.turns, found.tokens) == (len(windows), windows.tokens)

    def test_wants_a_latent(self, corpus: Corpus) -> None:
        with pytest.raises(ModelError, match="no latent"):
            reconstruction(pipeline(corpus, latent_size=0), [])


class TestSamples:
    def test_follow_the_models_distribution(self, corpus: Corpus) -> None:
        # lengths are geometric and tokens independent; the rare ones are not left out, empty texts are
        yes, no, see = tokens_of(corpus, "yes", "no", "see")
        shares = {yes: 0.5, no: 0.15, see: 0.05, EOS: 0.3}
        texts = draw_samples(unigram(corpus, shares), windows_of(corpus, 0), 3000, seed=3).texts
        counts = Counter(word for text in texts for word in text.split())
        total = sum(counts.values())
        assert sum(" " not in text for text in texts) / 3000 == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 3000))
        assert "" not in texts
        assert total / 3000 == pytest.approx(1 / 0.3, abs=4 * math.sqrt(0.7 / 0.09 / 3000))
        for word, share in (("yes", 5 / 7), ("no", 1.5 / 7), ("see", 0.5 / 7)):
            assert counts[word] / total == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / total))

    @pytest.mark.parametrize("context_turns", [0, 2])
    def test_have_a_latent_of_the_prior_given_the_windows_context(
        self, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, context_turns: int
    ) -> None:
        found, windows = pipeline(corpus, context_turns=context_turns), windows_of(corpus, context_turns, 84)
        latents: dict[int, tuple[Tensor, Tensor]] = {}
        order: list[int] = []
        in_order, start = windows.in_order, found.model.decoder.start

        def watched(limit: int = 0) -> Any:
            for rows, batch in in_order(limit):
                order.extend(rows.tolist())
                yield rows, batch

        def spy(z_BZ: Tensor, context_BC: Tensor) -> Any:
            rows = order[len(latents) :]
            latents.update(zip(rows, zip(z_BZ, context_BC, strict=True), strict=False))
            return start(z_BZ, context_BC)

        monkeypatch.setattr(windows, "in_order", watched)
        monkeypatch.setattr(found.model.decoder, "start", spy)
        draw_samples(found, windows, len(windows), decoding=DecodingConfig(max_tokens=1))
        assert sorted(latents) == list(range(len(windows)))
        noises = []
        with torch.no_grad():
            for row, (z_Z, context_C) in latents.items():
                prior, context_1C = found.model.condition(windows.batch(np.array([row])))
                torch.testing.assert_close(context_C, context_1C[0])
                noises.append((z_Z - prior.mean_BZ[0]) / (0.5 * prior.log_var_BZ[0]).exp())
        noise_NZ = torch.stack(noises)
        few = 4 / math.sqrt(noise_NZ.numel())
        assert float(noise_NZ.mean()) == pytest.approx(0, abs=few)
        assert float(noise_NZ.var()) == pytest.approx(1, abs=2 * few)
        assert len(set(noise_NZ.flatten().tolist())) == noise_NZ.numel()

    @pytest.mark.parametrize("context_turns", [0, 2])
    def test_do_not_depend_on_the_batches(self, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, context_turns: int) -> None:
        found = pipeline(corpus, context_turns=context_turns)
        few, many = (windows_of(corpus, context_turns, tokens) for tokens in (2000, 84))
        expected = draw_samples(found, few, 30, seed=5)
        monkeypatch.setattr(decoding, "ROWS", 4)
        assert draw_samples(found, many, 30, seed=5) == expected
        assert draw_samples(found, many, 30, seed=6) != expected

    def test_stand_in_the_order_of_the_windows(self, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
        found, windows = pipeline(corpus, context_turns=2), windows_of(corpus, 2, 84)
        expected, batches = draw_samples(found, windows, len(windows)).texts, [*windows.in_order(len(windows))]
        assert len(batches) > 1
        monkeypatch.setattr(windows, "in_order", lambda limit: reversed(batches))
        assert draw_samples(found, windows, len(windows)).texts == expected

    def test_go_round_the_windows_as_often_as_needed(self, corpus: Corpus) -> None:
        found, windows = pipeline(corpus, context_turns=2), windows_of(corpus, 2)
        once = draw_samples(found, windows, len(windows)).texts
        more = draw_samples(found, windows, 2 * len(windows) + 3).texts
        assert len(more) == 2 * len(windows) + 3
        assert more[: len(windows)] == once
        assert more[len(windows) : 2 * len(windows)] != once

    def test_say_how_many_were_cut(self, corpus: Corpus) -> None:
        (yes,) = tokens_of(corpus, "yes")
        half = unigram(corpus, {yes: 0.5, EOS: 0.5})
        samples = draw_samples(half, windows_of(corpus, 0), 200, decoding=DecodingConfig(1.0, top_p=1.0, max_tokens=2))
        assert samples.cut == samples.texts.count("yes yes")
        assert set(samples.texts) == {"yes", "yes yes"}

    def test_are_the_models_own_distribution_unless_said_otherwise(self) -> None:
        assert (ANCESTRAL.temperature, ANCESTRAL.top_k, ANCESTRAL.top_p) == (1.0, 0, 1.0)


class TestTextQuality:
    def test_is_worked_by_hand(self, corpus: Corpus) -> None:
        found = text_quality(["yes no", "yes yes", "", "no"])
        # yes no yes yes no: 2 of 5; pairs (yes no), (yes yes): 2 of 2; no triple
        assert (found.texts, found.empty, found.distinct) == (4, 0.25, (0.4, 1.0, 0.0))
        assert found.forward is None

    def test_of_equal_texts_has_the_highest_self_bleu(self, corpus: Corpus) -> None:
        assert text_quality(["see you at the park"] * 3).self_bleu.scores == pytest.approx((1, 1, 1, 1))

    def test_has_the_judges_perplexity(self, corpus: Corpus) -> None:
        judge, texts = pipeline(corpus, latent_size=0), ["yes", "", "see you"]
        assert text_quality(texts, judge).forward == perplexity(judge, texts)

    def test_wants_two_texts(self, corpus: Corpus) -> None:
        for texts in ([], ["yes"]):
            with pytest.raises(UserError, match="at least 2"):
                text_quality(texts, pipeline(corpus, latent_size=0))


def test_real_turns_are_those_of_the_windows(corpus: Corpus) -> None:
    windows, tokenizer = windows_of(corpus, 0, longest=7), corpus.tokenizer
    assert windows.left_out

    def targets(batch: Batch) -> list[str]:
        return [tokenizer.decode(batch.turns_NT[target].tolist()) for target in batch.target_B]

    for limit in (0, 1, 7, len(windows), len(windows) + 5):
        expected = [pair for rows, batch in windows.in_order(limit) for pair in zip(rows.tolist(), targets(batch), strict=True)]
        assert real_turns(windows, tokenizer, limit) == [text for _, text in sorted(expected)]


def test_global_random_state_and_mode_are_left_alone(corpus: Corpus) -> None:
    found = pipeline(corpus)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    draw_samples(found, windows_of(corpus, 0), 3)
    reconstruction(found, [collate(random_windows(2, 0, len(corpus.tokenizer)), 0)])
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(found.model, VRAE)
    assert not found.model.training
