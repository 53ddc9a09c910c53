"""Several replies to a context: where their latents lie, which count as alike, and what they are ranked by."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from hypothesis import given
from hypothesis import strategies as st

import vrae.generation.responses as responses_module
from vrae.config import DecodingConfig, ResponseConfig
from vrae.corpus.batches import Window
from vrae.corpus.prepared import Corpus
from vrae.corpus.tokenizer import EOS
from vrae.errors import ConfigError, UserError
from vrae.generation.decoding import Decoded, beam_search
from vrae.generation.pipeline import Pipeline
from vrae.generation.responses import alike, share_changed, words
from vrae.model.decoder import Decoder, DecoderState

WILD = DecodingConfig(temperature=1.0, top_p=1.0, max_tokens=12)
DIALOGUE = ["hello how are you", "i am fine thanks"]
LATENTS = ["independent", "stratified", "spread"]

Make = Callable[..., Pipeline]


@pytest.fixture(scope="module")
def make(corpus: Corpus) -> Make:
    def make(context_turns: int = 2, latent_size: int = 8, seed: int = 0, **overrides: Any) -> Pipeline:
        settings = dict(context_turns=context_turns, latent_size=latent_size, vocab_size=len(corpus.tokenizer), **overrides)
        model = tiny_model(seed, **settings)
        with torch.no_grad():
            model.decoder.out.bias[EOS] = 4.0
        return Pipeline(model, corpus.tokenizer, {})

    return make


TEXTS = ["see you tomorrow", "pizza is great", "yes", "no i do not know really", "thanks"]


def writes(monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline, texts: Sequence[str]) -> None:
    """What the decoder writes, one text after the other, each a nat less probable than the one before."""
    ids = pipeline.tokenizer.encode(list(texts))
    left = iter([Decoded(list(one), -1.0 - i, True) for i, one in enumerate(ids)])

    def decode(decoder: Decoder, state: DecoderState, *rest: Any) -> list[Decoded]:
        return [next(left) for _ in state.condition_BE]

    monkeypatch.setattr("vrae.generation.text_model.decode", decode)


def latents_of(pipeline: Pipeline, n: int, how: str, seed: int = 0) -> np.ndarray:
    """[n, Z], of replies of which none is left out, in units of the prior."""
    window = pipeline.windows([""], [DIALOGUE])
    prior, context_BC = pipeline.condition(window)
    drawn = responses_module.draw_texts(pipeline, prior, context_BC, n, [[seed, 0, 1]], WILD, how)
    z_NZ = np.array([z for _, z in drawn[0]])
    mean_Z, deviation_Z = prior.mean_BZ[0].numpy(), (0.5 * prior.log_var_BZ[0]).exp().numpy()
    scaled: np.ndarray = (z_NZ - mean_Z) / deviation_Z
    return scaled


class TestLatents:
    def test_are_drawn_from_the_prior_of_the_context(self, make: Make) -> None:
        z_NZ = latents_of(make(), 1000, "independent")
        assert np.abs(z_NZ.mean(0)).max() < 4 / 1000**0.5
        assert np.abs(z_NZ.var(0) - 1).max() < 5 * (2 / 1000) ** 0.5

    def test_stratified_have_one_in_each_part_of_each_dimension(self, make: Make) -> None:
        z_NZ = latents_of(make(), 20, "stratified")
        shares_NZ = torch.special.ndtr(torch.from_numpy(z_NZ)).numpy()
        assert (np.sort((shares_NZ * 20).astype(int), axis=0) == np.arange(20)[:, None]).all()
        likeness_ZZ = np.corrcoef(z_NZ.T) - np.eye(8)
        assert np.abs(likeness_ZZ).max() < 0.9  # the dimensions are not sorted alike

    @pytest.mark.parametrize("how", LATENTS[:2])
    def test_of_a_reply_by_itself_are_distributed_as_the_prior(self, make: Make, how: str) -> None:
        """Over seeds, the first latent of five."""
        first_SZ = np.stack([latents_of(make(), 5, how, seed)[0] for seed in range(300)])
        assert np.abs(first_SZ.mean(0)).max() < 4 / 300**0.5
        assert np.abs(first_SZ.var(0) - 1).max() < 5 * (2 / 300) ** 0.5

    def test_spread_lie_farther_from_each_other(self, make: Make) -> None:
        def nearest(how: str) -> float:
            z_NZ = latents_of(make(), 12, how)
            return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(z_NZ, 2))

        assert nearest("spread") > 1.5 * nearest("independent")

    @pytest.mark.parametrize("how", LATENTS)
    @pytest.mark.parametrize("prior", ["gaussian", "mixture"])
    def test_of_a_context_do_not_depend_on_the_other_contexts(self, make: Make, how: Any, prior: str) -> None:
        pipeline = make(prior=prior)
        contexts, settings = [DIALOGUE, ["yes"], ["no", "maybe"]], ResponseConfig(latents=how)
        together = pipeline.respond_many(contexts, 4, seed=3, decoding=WILD, responses=settings)
        for context, replies in zip(contexts, together, strict=True):
            alone = pipeline.respond(context, 4, seed=3, decoding=WILD, responses=settings)
            assert [reply.text for reply in alone] == [reply.text for reply in replies]
            assert [reply.z for reply in alone] == [pytest.approx(reply.z, abs=1e-9) for reply in replies]

    def test_of_a_reply_give_it_back(self, make: Make) -> None:
        pipeline = make()
        with torch.no_grad():
            pipeline.model.decoder.out.bias[EOS] = 1.0
        greedy = DecodingConfig(temperature=0.0, max_tokens=12)
        _, context_1C = pipeline.condition(pipeline.windows([""], [DIALOGUE]))
        for reply in pipeline.respond(DIALOGUE, 4, seed=1, decoding=greedy):
            again = pipeline.decode(torch.tensor([reply.z], dtype=torch.float64), context_1C, None, greedy)[0]
            assert pipeline.tokenizer.decode(again.ids) == reply.text
            assert again.log_prob == pytest.approx(reply.log_prob, abs=1e-9)


class TestAlike:
    @pytest.mark.parametrize(
        ("a", "b", "share"),
        [
            ("a b c d e", "a b c d e", 0),
            ("a b c d e", "a b x d e", 0.2),
            ("a b c", "a b c d e", 0.4),
            ("a b", "c d", 1),
            ("", "", 0),
            ("a", "", 1),
        ],
    )
    def test_share_of_words_that_change_by_hand(self, a: str, b: str, share: float) -> None:
        assert share_changed(a.split(), b.split()) == pytest.approx(share)

    @given(st.lists(st.sampled_from("abc"), max_size=6), st.lists(st.sampled_from("abc"), max_size=6))
    def test_share_is_that_of_the_longest_common_subsequence(self, a: list[str], b: list[str]) -> None:
        common = max(
            size for size in range(len(a) + 1) if set(itertools.combinations(a, size)) & set(itertools.combinations(b, size))
        )
        expected = 1 - common / max(len(a), len(b)) if a or b else 0
        assert share_changed(a, b) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("a", "b", "min_change", "same"),
        [
            ("Yes!", "yes", 0.0, True),
            ("don't", "dont", 0.0, True),
            ("ice cream", "icecream", 0.0, True),
            ("?", "!!", 0.0, False),
            ("i like tea a lot", "i like it a lot", 0.2, False),
            ("i like tea a lot", "i like it a lot", 0.21, True),
            ("i like tea", "no", 1.0, False),
        ],
    )
    def test_texts(self, a: str, b: str, min_change: float, same: bool) -> None:
        assert alike(words(a), words(b), min_change) is same

    def test_replies_are_left_out_and_drawn_again(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        pipeline = make()
        texts = ["i like tea a lot", "I like it a lot!", "no", "i like tea a lot", "No.", "maybe", *["never"] * 20]
        writes(monkeypatch, pipeline, texts)
        strict = ResponseConfig(min_change=0.3)
        assert [r.text for r in pipeline.respond("hello", 3, seed=0, responses=strict)] == ["i like tea a lot", "no", "maybe"]


class TestRank:
    @pytest.mark.parametrize("latent_size", [0, 8])
    def test_by_likelihood_is_that_at_the_latent(self, make: Make, latent_size: int) -> None:
        for reply in make(latent_size=latent_size).respond(DIALOGUE, 6, seed=1, decoding=WILD, responses=ResponseConfig()):
            assert reply.score == reply.log_prob

    def test_without_latent_the_weighted_score_is_the_log_likelihood(self, make: Make) -> None:
        pipeline = make(latent_size=0)
        with torch.no_grad():
            pipeline.model.decoder.out.bias[EOS] = 6.0  # all end before they are cut
        settings = ResponseConfig(rank="importance_weighted")
        replies = pipeline.respond(DIALOGUE, 6, seed=1, decoding=DecodingConfig(1.0, top_p=1.0), responses=settings)
        assert [r.score for r in replies] == [pytest.approx(r.log_prob, abs=1e-9) for r in replies]

    def test_by_weights_is_the_evidence_with_many_draws(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """The integral over a latent of one dimension, by the trapezoidal rule."""
        pipeline = make(latent_size=1)
        with torch.no_grad():  # a wide posterior, so that no weight is extreme
            pipeline.model.posterior.out.weight[1] *= 0.2  # type: ignore[union-attr, operator]
            pipeline.model.posterior.out.bias[1] = 1.2  # type: ignore[union-attr, operator]
        writes(monkeypatch, pipeline, TEXTS)
        settings = ResponseConfig(rank="importance_weighted", rank_samples=4000)
        replies = pipeline.respond(DIALOGUE, 5, seed=2, decoding=WILD, responses=settings)
        assert sorted(reply.text for reply in replies) == sorted(TEXTS)
        assert [r.score for r in replies] == sorted((r.score for r in replies), reverse=True)
        z_G = torch.linspace(-30, 30, 3001, dtype=torch.float64)
        for reply in replies:
            (window,) = pipeline.windows([reply.text], [DIALOGUE])
            prior, context_1C = pipeline.condition([window])
            with torch.inference_mode():
                log_G = pipeline.model.log_prob(
                    pipeline.batch([window] * len(z_G)), z_G[:, None], context_1C.expand(len(z_G), -1)
                )
                log_G = log_G + prior.log_prob(z_G[:, None])[:, 0]
            assert reply.score == pytest.approx(float(torch.trapezoid(log_G.exp(), z_G).log()), abs=0.1)

    @pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("apart", [False, True], ids=["empty context", "a model of its own"])
    def test_by_mmi_subtracts_what_the_reply_is_worth_anywhere(
        self, make: Make, monkeypatch: pytest.MonkeyPatch, weight: float, apart: bool
    ) -> None:
        pipeline, background = make(latent_size=0), make(context_turns=0, latent_size=0, seed=5)
        writes(monkeypatch, pipeline, TEXTS)
        replies = pipeline.respond(
            DIALOGUE,
            5,
            decoding=WILD,
            responses=ResponseConfig(rank="mmi", mmi_weight=weight),
            background=background if apart else None,
        )
        other = background if apart else pipeline
        expected = {}
        for text in TEXTS:
            log_probs = []
            for model, context in ((pipeline, DIALOGUE), (other, ())):
                windows = model.windows([text], [context])
                with torch.inference_mode():
                    _, context_1C = model.model.condition(model.batch(windows))
                    log_probs.append(
                        float(model.model.log_prob(model.batch(windows), torch.zeros(1, 0, dtype=torch.float64), context_1C))
                    )
            expected[text] = log_probs[0] - weight * log_probs[1]
        assert {reply.text: reply.score for reply in replies} == pytest.approx(expected, abs=1e-9)
        assert [reply.text for reply in replies] == sorted(TEXTS, key=lambda text: -expected[text])

    def test_takes_the_best_of_all_candidates(self, make: Make) -> None:
        pipeline = make()
        few, all_of_them = (
            pipeline.respond(DIALOGUE, n, seed=1, decoding=WILD, responses=ResponseConfig(candidates=candidates))
            for n, candidates in ((3, 4), (12, 1))
        )
        assert few == all_of_them[:3]

    def test_does_not_depend_on_the_other_contexts(self, make: Make) -> None:
        pipeline, settings = make(), ResponseConfig(rank="mmi", candidates=2)
        contexts = [DIALOGUE, ["yes"], ["no", "maybe"]]
        together = pipeline.respond_many(contexts, 3, seed=3, decoding=WILD, responses=settings)
        for context, replies in zip(contexts, together, strict=True):
            alone = pipeline.respond(context, 3, seed=3, decoding=WILD, responses=settings)
            assert [reply.text for reply in alone] == [reply.text for reply in replies]
            assert [reply.score for reply in alone] == pytest.approx([reply.score for reply in replies], abs=1e-9)


class TestBeams:
    def test_without_latent_the_replies_are_those_of_one_search(self, make: Make) -> None:
        pipeline = make(latent_size=0)
        search = DecodingConfig(beams=8, max_tokens=12)
        replies = pipeline.respond(DIALOGUE, 6, decoding=search, responses=ResponseConfig(min_change=0.0))
        _, context_1C = pipeline.condition(pipeline.windows([""], [DIALOGUE]))
        decoder = pipeline.model.decoder
        (found,) = beam_search(decoder, decoder.start(context_1C.new_zeros(1, 0), context_1C), search, 6)
        texts = {"".join(words(text)): text for text in map(pipeline.tokenizer.decode, (one.ids for one in reversed(found)))}
        assert {reply.text for reply in replies} == set(filter(None, texts.values()))
        assert replies == pipeline.respond(DIALOGUE, 6, decoding=search, responses=ResponseConfig(min_change=0.0), seed=9)

    def test_with_a_latent_each_has_a_search_of_its_own(self, make: Make) -> None:
        pipeline, search = make(), DecodingConfig(beams=3, max_tokens=12)
        _, context_1C = pipeline.condition(pipeline.windows([""], [DIALOGUE]))
        for reply in pipeline.respond(DIALOGUE, 3, seed=1, decoding=search):
            z_1Z = torch.tensor([reply.z], dtype=torch.float64)
            assert pipeline.decode(z_1Z, context_1C, None, search)[0].log_prob == pytest.approx(reply.log_prob, abs=1e-9)


class TestLimits:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"latents": "odd"}, "latents must be one of stratified, independent, spread. Got 'odd'"),
            ({"rank": "odd"}, "rank must be one of likelihood, importance_weighted, mmi. Got 'odd'"),
            ({"mmi_weight": 1.5}, r"mmi_weight must be in \[0, 1\]. Got 1.5"),
            ({"min_change": -0.1}, r"min_change must be in \[0, 1\]. Got -0.1"),
            ({"rank_samples": 0}, r"rank_samples must be in \[1, 10000\]. Got 0"),
            ({"candidates": 0}, r"candidates must be in \[1, 100\]. Got 0"),
        ],
    )
    def test_of_settings(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            ResponseConfig(**settings)

    def test_of_candidates_in_all(self, make: Make) -> None:
        with pytest.raises(UserError, match=r"n \* candidates must be at most 1024. Got 256 \* 5"):
            make().respond(DIALOGUE, 256, responses=ResponseConfig(candidates=5))


def test_the_windows_that_are_ranked_hold_the_ids_that_were_drawn(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, seen = make(), []

    def evidence(windows: list[Window], k: int, seed: int) -> list[float]:
        seen.extend(windows)
        return [0.0] * len(windows)

    monkeypatch.setattr(pipeline, "evidence", evidence)
    settings = ResponseConfig(rank="mmi")
    replies = pipeline.respond(DIALOGUE, 4, seed=1, decoding=WILD, responses=settings)
    given, alone = seen[: len(replies)], seen[len(replies) :]
    assert sorted(len(window.target) for window in given) == sorted(reply.tokens for reply in replies)
    assert all(len(window.context) == 2 for window in given)
    assert [window.target.tolist() for window in alone] == [window.target.tolist() for window in given]
    assert all(not window.context for window in alone)
