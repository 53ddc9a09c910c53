"""The jobs users have: what each returns against the model's own terms, what it does not depend on, what it refuses."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import vrae.generation.text_model
from vrae.config import GREEDY, SEARCH, TALK, CleaningConfig, DecodingConfig, ResponseConfig
from vrae.corpus.batches import Batch, Window, collate
from vrae.corpus.prepared import Corpus
from vrae.corpus.tokenizer import EOS, Tokenizer
from vrae.errors import ModelError, UserError, printable
from vrae.files import write_folder
from vrae.generation.decoding import Decoded
from vrae.generation.latent import lerp, slerp
from vrae.generation.neighbours import Index, Turn
from vrae.generation.pipeline import Pipeline, load, model_folder
from vrae.model.decoder import Decoder, DecoderState
from vrae.model.folder import to_files
from vrae.model.gaussian import Gaussian

WILD = DecodingConfig(temperature=1.0, top_p=1.0, max_tokens=12)
DIALOGUE = ["hello how are you", "i am fine thanks", "see you tomorrow at the park"]
TURNS = ["hello how are you", "pizza is great 🎉", "", "see you tomorrow at the park", "naïve"]
HOSTILE = ["\ud800", "a\x00b\x1b[31m", "\u202eabc", "😀" * 9, "", "   \n", "</s><s><unk>", "x" * 2000, "\u2028", "﷽"]
SHAPES = [(k, z) for k, z in product([0, 1, 3], [0, 8])]

Make = Callable[..., Pipeline]
Started = list[tuple[Tensor, Tensor]]


@pytest.fixture(scope="session")
def make(corpus: Corpus) -> Make:
    """Pipelines over the tiny corpus's tokenizer and float64 models of random weights, which end most texts early."""

    def make(context_turns: int = 0, latent_size: int = 8, cleaning: dict[str, Any] | None = None) -> Pipeline:
        model = tiny_model(
            context_turns=context_turns, latent_size=latent_size, vocab_size=len(corpus.tokenizer), speakers=True
        )
        with torch.no_grad():
            model.decoder.out.bias[EOS] = 6.0
        return Pipeline(model, corpus.tokenizer, {"corpus": {"cleaning": cleaning}} if cleaning is not None else {})

    return make


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """The latents and contexts of all texts that are begun during the test, as they go together."""
    seen: Started = []
    real = Decoder.start

    def spy(decoder: Decoder, z_BZ: Tensor, context_BC: Tensor) -> DecoderState:
        seen.append((z_BZ, context_BC))
        return real(decoder, z_BZ, context_BC)

    monkeypatch.setattr(Decoder, "start", spy)
    return seen


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Decoded]:
    """Every text that is decoded during the test, as ids."""
    seen: list[Decoded] = []
    real = vrae.generation.text_model.decode

    def spy(*arguments: Any) -> list[Decoded]:
        seen.extend(texts := real(*arguments))
        return texts

    monkeypatch.setattr(vrae.generation.text_model, "decode", spy)
    return seen


@pytest.fixture
def at_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """z is the mean of its distribution wherever noise would be added."""
    monkeypatch.setattr(Gaussian, "sample", lambda self, noise_BZ: self.mean_BZ)


def ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
    return np.array(tokenizer.encode([text])[0], np.int64)


def batch(pipeline: Pipeline, *targets: str | list[int], context: Sequence[str] = ()) -> Batch:
    """Windows with these targets and all the same context, whose last turn is the other's."""
    encoded = [ids(pipeline.tokenizer, t) if isinstance(t, str) else np.array(t, np.int64) for t in targets]
    turns = [ids(pipeline.tokenizer, turn) for turn in context]
    same = [0, 1, 0][3 - len(turns) :]
    return collate([Window(turns, target, same) for target in encoded], pipeline.model.config.context_turns)


def normal(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum()) or text


class TestJobs:
    """Which model does which job."""

    @pytest.mark.parametrize(("context_turns", "latent_size"), SHAPES)
    def test_every_model_samples(self, make: Make, context_turns: int, latent_size: int) -> None:
        samples = list(make(context_turns, latent_size).sample(4, seed=1, decoding=WILD))
        assert len(samples) == 4
        assert all(sample.log_prob < 0 for sample in samples)

    @pytest.mark.parametrize(("context_turns", "latent_size"), SHAPES)
    def test_a_model_with_context_responds(self, make: Make, context_turns: int, latent_size: int) -> None:
        pipeline = make(context_turns, latent_size)
        if context_turns:
            assert len(pipeline.respond(DIALOGUE, 3, seed=1, decoding=WILD)) == 3
        else:
            with pytest.raises(ModelError, match="context_turns is 0"):
                pipeline.respond(DIALOGUE)

    @pytest.mark.parametrize(("context_turns", "latent_size"), SHAPES)
    @pytest.mark.parametrize(
        ("job", "length"),
        [
            (lambda p: p.reconstruct(["hello", "thanks"]), 2),
            (lambda p: p.interpolate("hello", "thanks", 5), 5),
            (lambda p: p.encode(["hello", "thanks", ""])[0], 3),
        ],
        ids=["reconstruct", "interpolate", "encode"],
    )
    def test_a_model_with_latent_encodes(
        self, make: Make, context_turns: int, latent_size: int, job: Callable[[Pipeline], Any], length: int
    ) -> None:
        pipeline = make(context_turns, latent_size)
        if latent_size:
            assert len(job(pipeline)) == length
        else:
            with pytest.raises(ModelError, match="latent_size is 0"):
                job(pipeline)


@pytest.mark.parametrize(
    "overrides",
    [{"flow_steps": 2}, {"flow_steps": 2, "context_turns": 2, "prior": "mixture"}],
    ids=["flow", "flow and mixture"],
)
def test_a_model_with_a_flow_does_all_jobs(corpus: Corpus, overrides: dict[str, Any]) -> None:
    pipeline = Pipeline(tiny_model(vocab_size=len(corpus.tokenizer), **overrides), corpus.tokenizer, {})
    assert len(list(pipeline.sample(3, seed=1))) == 3
    assert len(pipeline.reconstruct(TURNS, 2, seed=1)) == len(TURNS)
    assert len(pipeline.interpolate("hello", "thanks", 4)) == 4
    assert all(sample.text for sample in pipeline.variations("hello", 3, seed=1, radius=3))
    assert isinstance(pipeline.analogy("hello", "yes", "no").text, str)
    assert np.isfinite(pipeline.encode(TURNS)).all()
    index = Index.build(pipeline, [Turn(text, 0, place) for place, text in enumerate(["hello", "yes", "no"])])
    assert index.query(["yes"], 1)[0][0].text == "yes"
    if "context_turns" in overrides:
        settings = ResponseConfig(rank="mmi", candidates=2)
        assert pipeline.respond(DIALOGUE, 2, seed=1, decoding=WILD, responses=settings)


class TestSeed:
    @pytest.mark.parametrize(("context_turns", "latent_size"), SHAPES)
    def test_the_same_seed_gives_the_same_and_another_another(self, make: Make, context_turns: int, latent_size: int) -> None:
        pipeline = make(context_turns, latent_size)

        def draw(seed: int | None) -> list[Any]:
            drawn: list[Any] = list(pipeline.sample(5, seed=seed, decoding=WILD))
            return drawn + (pipeline.respond(DIALOGUE, 3, seed=seed, decoding=WILD) if context_turns else [])

        assert draw(7) == draw(7)
        assert draw(7) != draw(8)
        assert draw(None) != draw(None)

    def test_no_job_touches_the_global_random_state(self, make: Make) -> None:
        pipeline = make(1)
        before = torch.get_rng_state()
        pipeline.respond("hello")
        list(pipeline.sample(3))
        pipeline.interpolate("hello", "thanks")
        assert torch.equal(before, torch.get_rng_state())


class TestRespond:
    @pytest.mark.parametrize(("context_turns", "latent_size"), [(1, 8), (3, 8), (3, 0)])
    @pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
    def test_of_a_context_does_not_depend_on_the_others(
        self, make: Make, context_turns: int, latent_size: int, order: tuple[int, ...]
    ) -> None:
        pipeline = make(context_turns, latent_size)
        contexts = [DIALOGUE, ["yes"], ["", "no", "maybe"], ["thanks", "see you"]]
        together = pipeline.respond_many([contexts[i] for i in order], 4, seed=3, decoding=WILD)
        for i, replies in zip(order, together, strict=True):
            alone = pipeline.respond(contexts[i], 4, seed=3, decoding=WILD)
            assert [reply.text for reply in alone] == [reply.text for reply in replies]
            assert [r.log_prob for r in alone] == pytest.approx([r.log_prob for r in replies], abs=1e-9)

    @pytest.mark.parametrize("decoding", [WILD, DecodingConfig(0.3, max_tokens=12), DecodingConfig(0.0)], ids=str)
    def test_gives_distinct_texts_the_most_probable_first(self, make: Make, decoding: DecodingConfig) -> None:
        replies = make(3).respond(DIALOGUE, 20, seed=0, decoding=decoding, responses=ResponseConfig())
        assert 1 <= len(replies) <= 20
        assert all(reply.text for reply in replies)
        assert len({normal(reply.text) for reply in replies}) == len(replies)
        assert [r.log_prob for r in replies] == sorted((r.log_prob for r in replies), reverse=True)
        assert all(reply.score == reply.log_prob for reply in replies)

    def test_counts_texts_that_differ_in_case_and_punctuation_as_one(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        pipeline = make(1)
        texts = ["Yes!", "yes", "", "?", "YES...", "no", "!!", "No.", *["never"] * 99]
        count = iter(range(99))

        def decode(decoder: Decoder, state: DecoderState, *rest: Any) -> list[Decoded]:
            return [Decoded([next(count)], -1.0, True) for _ in state.condition_BE]

        monkeypatch.setattr(vrae.generation.text_model, "decode", decode)
        monkeypatch.setattr(pipeline.tokenizer, "decode", lambda ids: texts[ids[0]])
        replies = pipeline.respond("hello", 5, seed=0, responses=ResponseConfig())
        assert [reply.text for reply in replies] == ["Yes!", "?", "no", "!!", "never"]

    def test_unless_told_replies_as_the_command_does(self, make: Make) -> None:
        pipeline = make(3)
        decoding, responses = TALK
        replies = pipeline.respond(DIALOGUE, 3, seed=1)
        assert replies == pipeline.respond(DIALOGUE, 3, seed=1, decoding=decoding, responses=responses)
        assert replies != pipeline.respond(DIALOGUE, 3, seed=1, decoding=decoding, responses=ResponseConfig())
        assert replies != pipeline.respond(DIALOGUE, 3, seed=1, decoding=DecodingConfig(), responses=responses)

    def test_gives_fewer_where_the_model_knows_no_more(self, make: Make, at_the_mean: None) -> None:
        pipeline = make(1)
        with torch.no_grad():
            pipeline.model.decoder.out.bias[EOS] = 0.0  # no empty reply
        assert len(pipeline.respond("hello", 5, decoding=DecodingConfig(temperature=0.0))) == 1

    def test_takes_one_string_for_a_dialogue_of_one_turn(self, make: Make) -> None:
        pipeline = make(3)
        listed = pipeline.respond(["hello"], 3, seed=1)
        assert pipeline.respond("hello", 3, seed=1) == listed
        assert pipeline.respond_many(["hello", ["yes", "no"]], 3, seed=1)[0] == [
            dataclasses.replace(
                reply, log_prob=pytest.approx(reply.log_prob), score=pytest.approx(reply.score), z=pytest.approx(reply.z)
            )
            for reply in listed
        ]

    def test_of_no_contexts_is_nothing(self, make: Make) -> None:
        assert make(1).respond_many([]) == []

    @pytest.mark.parametrize("context_turns", [1, 3])
    def test_reads_the_last_turns_only(self, make: Make, context_turns: int) -> None:
        pipeline = make(context_turns)
        longer = ["something else", "x" * 5000, *DIALOGUE]
        assert pipeline.respond(longer, 3, seed=1) == pipeline.respond(longer[-context_turns:], 3, seed=1)
        assert pipeline.respond(longer, 3, seed=1) != pipeline.respond([*longer[:-1], "no"], 3, seed=1)

    @pytest.mark.parametrize(("context_turns", "latent_size"), [(1, 0), (1, 8), (3, 0), (3, 8)])
    def test_reports_the_log_prob_of_the_reply_at_its_latent(
        self, make: Make, context_turns: int, latent_size: int, decoded: list[Decoded], at_the_mean: None
    ) -> None:
        pipeline = make(context_turns, latent_size)
        replies = pipeline.respond(DIALOGUE, 20, seed=1, decoding=WILD)
        written = {pipeline.tokenizer.decode(text.ids): text for text in reversed(decoded) if text.finished}
        checked = [reply for reply in replies if reply.text in written]
        assert len(checked) > 2
        for reply in checked:
            window = batch(pipeline, written[reply.text].ids, context=DIALOGUE[-context_turns:])
            with torch.inference_mode():
                prior, context_BC = pipeline.model.condition(window)
                log_prob = float(pipeline.model.log_prob(window, prior.mean_BZ, context_BC))
            assert reply.log_prob == pytest.approx(log_prob, abs=1e-9)
            assert reply.tokens == len(written[reply.text].ids)


class TestSample:
    @pytest.mark.parametrize(("context_turns", "latent_size"), SHAPES)
    def test_reports_the_log_prob_of_the_text_at_its_latent_without_context(
        self, make: Make, context_turns: int, latent_size: int, decoded: list[Decoded], at_the_mean: None
    ) -> None:
        pipeline = make(context_turns, latent_size)
        samples = list(pipeline.sample(12, seed=1, decoding=WILD))
        assert [sample.text for sample in samples] == [pipeline.tokenizer.decode(text.ids) for text in decoded]
        finished = [i for i, text in enumerate(decoded) if text.finished]
        window = batch(pipeline, *(decoded[i].ids for i in finished))
        with torch.inference_mode():
            prior, context_BC = pipeline.model.condition(window)
            log_prob = pipeline.model.log_prob(window, prior.mean_BZ, context_BC)
        assert len(finished) > 4
        assert [samples[i].log_prob for i in finished] == pytest.approx(log_prob.tolist(), abs=1e-9)

    def test_draws_its_latents_from_the_prior(self, make: Make, started: Started) -> None:
        pipeline = make(0, 8)
        list(pipeline.sample(4000, seed=0, decoding=DecodingConfig(max_tokens=1)))
        z_SZ = torch.cat([z_BZ for z_BZ, _ in started])
        assert z_SZ.mean(0).abs().max() < 4 / 4000**0.5
        assert (z_SZ.var(0) - 1).abs().max() < 4 * (2 / 4000) ** 0.5

    def test_of_many_is_decoded_in_chunks(self, make: Make, started: Started) -> None:
        pipeline = make(0, 8)
        samples = list(pipeline.sample(300, seed=0, decoding=DecodingConfig(1.0, top_p=1.0, max_tokens=8)))
        assert len(samples) == 300
        assert [len(z_BZ) for z_BZ, _ in started] == [256, 44]
        assert len(set(samples)) > 250

    def test_unless_told_searches_for_the_text_of_each_latent(self, make: Make, started: Started) -> None:
        pipeline = make(0, 8)
        samples = list(pipeline.sample(5, seed=1))
        assert samples == pipeline.decode_latents(started[0][0].numpy(), decoding=SEARCH)
        assert samples == list(pipeline.sample(5, seed=1, decoding=SEARCH))
        assert len(set(samples)) > 1

    @pytest.mark.parametrize("context_turns", [0, 2])
    def test_without_a_latent_draws_the_words_unless_told(self, make: Make, context_turns: int) -> None:
        pipeline = make(context_turns, 0)
        samples = list(pipeline.sample(5, seed=1))
        assert samples == list(pipeline.sample(5, seed=1, decoding=DecodingConfig()))
        assert len(set(samples)) > 1

    @pytest.mark.parametrize("decoding", [SEARCH, DecodingConfig(temperature=0.0), DecodingConfig(beams=2)])
    def test_without_a_latent_and_without_drawing_words_is_one_text(self, make: Make, decoding: DecodingConfig) -> None:
        assert len(list(make(0, 0).sample(1, decoding=decoding))) == 1
        with pytest.raises(UserError, match=r"^n 2: this model has no latent .*all its texts are the same. Set beams to 0"):
            make(0, 0).sample(2, decoding=decoding)


class TestReconstruct:
    @pytest.mark.parametrize("context_turns", [0, 3])
    def test_reports_the_two_sides_of_the_bound_at_the_posterior_mean(self, make: Make, context_turns: int) -> None:
        pipeline = make(context_turns)
        with torch.inference_mode():
            alone = [batch(pipeline, text) for text in TURNS]
            inferred = [pipeline.model.infer(one) for one in alone]
            distortion = [
                -float(pipeline.model.log_prob(one, terms.posterior.mean_BZ, terms.context_BC))
                for one, terms in zip(alone, inferred, strict=True)
            ]
        results = pipeline.reconstruct(TURNS)
        assert [result.text for result in results] == TURNS
        assert [result.distortion for result in results] == pytest.approx(distortion, abs=1e-9)
        for result, terms in zip(results, inferred, strict=True):
            q, p = (Normal(g.mean_BZ, (g.log_var_BZ / 2).exp()) for g in (terms.posterior, terms.prior))
            assert result.rate == pytest.approx(float(kl_divergence(q, p).sum()), abs=1e-9)

    def test_does_not_depend_on_the_other_texts(self, make: Make) -> None:
        pipeline = make()
        with torch.no_grad():
            pipeline.model.decoder.out.bias[EOS] = 0.0  # texts run to the limit
        texts = [*TURNS, "hello " * 60]
        together = pipeline.reconstruct(texts)
        assert max(len(result.reconstruction) for result in together) > 60
        for text, result in zip(texts, together, strict=True):
            alone = pipeline.reconstruct([text])[0]
            assert (alone.reconstruction, alone.exact) == (result.reconstruction, result.exact)

    @pytest.mark.parametrize("decoding", [None, GREEDY], ids=["default", "greedy"])
    def test_is_written_as_it_is_told(self, make: Make, decoding: DecodingConfig | None) -> None:
        """The default search finds texts that are at least as probable as greedy ones, and here other ones."""
        pipeline = make()
        with torch.no_grad():
            pipeline.model.decoder.out.bias[EOS] = -2.0  # neither empty nor endless
        given = {} if decoding is None else {"decoding": decoding}
        with torch.inference_mode():
            inferred = pipeline.model.infer(batch(pipeline, *TURNS))
            best = pipeline.decode(inferred.posterior.mean_BZ, inferred.context_BC, None, decoding or SEARCH)
            greedy = pipeline.decode(inferred.posterior.mean_BZ, inferred.context_BC, None, GREEDY)
        found = [result.reconstruction for result in pipeline.reconstruct(TURNS, **given)]
        assert found == [pipeline.tokenizer.decode(text.ids) for text in best]
        if decoding is None:
            assert [text.ids for text in best] != [text.ids for text in greedy]
            assert sum(text.log_prob for text in best) > sum(text.log_prob for text in greedy)

    def test_of_more_texts_than_fit_a_batch_keeps_their_order(self, make: Make) -> None:
        texts = [f"hello {i}" for i in range(260)]
        pipeline = make()
        results = pipeline.reconstruct(texts)
        assert [result.text for result in results] == texts
        for i in (0, 255, 256, 259):
            assert results[i].distortion == pytest.approx(pipeline.reconstruct([texts[i]])[0].distortion, abs=1e-9)

    @pytest.mark.parametrize(
        ("change", "finished", "exact"),
        [
            (lambda ids: ids, True, True),
            (lambda ids: ids, False, False),
            (lambda ids: ids[:-1], True, False),
            (lambda ids: [*ids, 5], True, False),
        ],
    )
    def test_is_exact_where_all_ids_are_the_same_and_the_text_ended(
        self,
        make: Make,
        monkeypatch: pytest.MonkeyPatch,
        change: Callable[[list[int]], list[int]],
        finished: bool,
        exact: bool,
    ) -> None:
        pipeline = make()
        written = change(ids(pipeline.tokenizer, TURNS[0]).tolist())
        monkeypatch.setattr(vrae.generation.text_model, "decode", lambda *_: [Decoded(written, -1.0, finished)])
        assert pipeline.reconstruct(TURNS[:1])[0].exact is exact

    def test_is_never_empty_not_even_of_the_empty_text(self, make: Make) -> None:
        pipeline = make()
        with torch.no_grad():
            pipeline.model.decoder.out.bias[EOS] = 1e3
        for result in pipeline.reconstruct(["", "hello"]):
            assert result.reconstruction
            assert not result.exact


class TestInterpolate:
    @pytest.mark.parametrize("method", ["slerp", "lerp"])
    @pytest.mark.parametrize("context_turns", [0, 1])
    def test_ends_where_the_two_texts_are_reconstructed(self, make: Make, context_turns: int, method: Any) -> None:
        pipeline = make(context_turns)
        with torch.no_grad():
            pipeline.model.decoder.out.bias[EOS] = 0.0
        a, b = "hello how are you", "see you tomorrow at the park " * 9
        steps = pipeline.interpolate(a, b, 5, method=method)
        assert [step.t for step in steps] == [0, 0.25, 0.5, 0.75, 1]
        ends = [result.reconstruction for result in pipeline.reconstruct([a, b])]
        assert [steps[0].text, steps[-1].text] == ends

    def test_of_a_text_with_itself_stands_still(self, make: Make) -> None:
        assert len({step.text for step in make().interpolate("hello", "hello", 4)}) == 1

    @pytest.mark.parametrize("method", ["slerp", "lerp"])
    def test_between_replies_is_walked_in_their_context(self, make: Make, method: Any) -> None:
        """Every figure of every step against the model's own terms."""
        pipeline = make(3)
        a, b = "i am fine thanks", "pizza is great"
        steps = pipeline.interpolate(a, b, 4, method=method, context=DIALOGUE)
        with torch.inference_mode():
            posterior, _, context_BC = pipeline.model.infer(batch(pipeline, a, b, context=DIALOGUE))
            path_SZ = (slerp if method == "slerp" else lerp)(*posterior.mean_BZ, torch.tensor([s.t for s in steps]))
            best = pipeline.decode(path_SZ, context_BC[:1].expand(4, -1), None, SEARCH)
            back = pipeline.model.infer(batch(pipeline, *(text.ids for text in best), context=DIALOGUE)).posterior.mean_BZ
            again = pipeline.decode(back, context_BC[:1].expand(4, -1), None, SEARCH)
        assert [step.text for step in steps] == [pipeline.tokenizer.decode(text.ids) for text in best]
        assert [step.log_prob for step in steps] == pytest.approx([text.log_prob for text in best], abs=1e-9)
        for step, z_Z, back_Z, text, second in zip(steps, path_SZ, back, best, again, strict=True):
            assert step.cosine == pytest.approx(float(z_Z @ back_Z / z_Z.norm() / back_Z.norm()), abs=1e-9)
            assert step.exact == (text.ids == second.ids and second.finished)
        alone = pipeline.interpolate(a, b, 4, method=method)
        assert [step.log_prob for step in steps] != [step.log_prob for step in alone]


class TestPosteriorSamples:
    def test_are_the_mean_where_nothing_is_drawn(self, make: Make, at_the_mean: None) -> None:
        for result in self.long(make).reconstruct(TURNS, 3, seed=1):
            assert result.samples == (result.reconstruction,) * 3

    def test_of_a_text_do_not_depend_on_the_others(self, make: Make) -> None:
        pipeline = self.long(make)
        together = pipeline.reconstruct(TURNS, 3, seed=1)
        alone = [pipeline.reconstruct([text], 3, seed=1)[0] for text in TURNS]
        assert [result.samples for result in together] == [result.samples for result in alone]
        assert [result.samples for result in together] != [r.samples for r in pipeline.reconstruct(TURNS, 3, seed=2)]
        assert any(len(set(result.samples)) > 1 for result in together)

    def long(self, make: Make) -> Pipeline:
        """A model whose texts are not empty."""
        pipeline = make()
        with torch.no_grad():
            pipeline.model.decoder.out.bias[EOS] = 0.0
            pipeline.model.posterior.out.bias[8:] = 2.0  # type: ignore[union-attr, operator]
        return pipeline

    def test_are_none_where_none_are_asked_for(self, make: Make) -> None:
        assert make().reconstruct(["hello"])[0].samples == ()


class TestVariations:
    @pytest.mark.parametrize("context_turns", [0, 3])
    def test_lie_around_the_text_at_the_radius(self, make: Make, started: Started, context_turns: int) -> None:
        pipeline = make(context_turns)
        context = DIALOGUE if context_turns else []
        pipeline.variations("hello how are you", 6, radius=0.8, seed=1, context=context)
        with torch.inference_mode():
            inferred = pipeline.model.infer(batch(pipeline, "hello how are you", context=context))
        for z_BZ, context_BC in started:
            offsets = (z_BZ - inferred.posterior.mean_BZ) / (0.5 * inferred.prior.log_var_BZ).exp()
            assert offsets.square().mean(1).sqrt().tolist() == pytest.approx([0.8] * len(z_BZ))
            assert torch.equal(context_BC, inferred.context_BC.expand(len(z_BZ), -1))

    def test_differ_from_the_text_and_each_other(self, make: Make) -> None:
        pipeline = make()
        with torch.no_grad():
            pipeline.model.decoder.out.bias[EOS] = -5.0  # the most probable text is not the empty one
        found = pipeline.variations("hello how are you", 6, radius=3, seed=1)
        texts = [normal(sample.text) for sample in found]
        assert len(set(texts)) == len(texts) > 1
        assert normal("hello how are you") not in texts
        assert all(texts)
        assert [s.log_prob for s in found] == sorted((s.log_prob for s in found), reverse=True)
        assert found == pipeline.variations("hello how are you", 6, radius=3, seed=1)
        assert found != pipeline.variations("hello how are you", 6, radius=3, seed=2)


class TestArithmetic:
    def test_of_an_analogy_is_a_minus_b_plus_c(self, make: Make) -> None:
        pipeline = make()
        mean_3Z = pipeline.encode([*TURNS[:2], "naïve"])[0]
        expected = pipeline.decode_latents((mean_3Z[0] - mean_3Z[1] + mean_3Z[2])[None])[0]
        assert pipeline.analogy(TURNS[0], TURNS[1], "naïve") == expected
        assert pipeline.analogy(TURNS[0], TURNS[0], TURNS[1]).text == pipeline.reconstruct([TURNS[1]])[0].reconstruction

    @pytest.mark.parametrize("context_turns", [0, 3])
    def test_of_latents_is_what_the_decoder_writes_without_context(self, make: Make, context_turns: int) -> None:
        pipeline = make(context_turns)
        found = pipeline.decode_latents(pipeline.encode(TURNS)[0])
        assert [sample.text for sample in found] == [r.reconstruction for r in pipeline.reconstruct(TURNS)]

    @pytest.mark.parametrize(
        ("z", "message"),
        [
            (np.zeros((2, 7)), r"must have shape \[N, 8\]"),
            (np.zeros(8), r"must have shape \[N, 8\]"),
            (np.full((1, 8), np.nan), "must hold finite numbers"),
            (np.zeros((10_001, 8)), "at most 10000"),
        ],
        ids=str,
    )
    def test_of_what_is_no_latent_is_refused(self, make: Make, z: np.ndarray, message: str) -> None:
        with pytest.raises(UserError, match=message):
            make().decode_latents(z)

    def test_of_nothing_is_nothing(self, make: Make) -> None:
        assert make().decode_latents(np.zeros((0, 8))) == []


class TestEncode:
    @pytest.mark.parametrize("context_turns", [0, 3])
    def test_gives_the_posterior_of_each_text_alone(self, make: Make, context_turns: int) -> None:
        pipeline = make(context_turns)
        mean, log_var = pipeline.encode(TURNS)
        for i, text in enumerate(TURNS):
            with torch.inference_mode():
                posterior = pipeline.model.infer(batch(pipeline, text)).posterior
            assert mean[i] == pytest.approx(posterior.mean_BZ[0].numpy(), abs=1e-12)
            assert log_var[i] == pytest.approx(posterior.log_var_BZ[0].numpy(), abs=1e-12)

    def test_with_contexts_gives_the_posterior_given_them(self, make: Make) -> None:
        pipeline = make(3)
        mean, log_var = pipeline.encode(["hello", "yes", "no"], [DIALOGUE, [], "thanks"])
        for i, (text, context) in enumerate((("hello", DIALOGUE), ("yes", []), ("no", ["thanks"]))):
            with torch.inference_mode():
                posterior = pipeline.model.infer(batch(pipeline, text, context=context)).posterior
            assert mean[i] == pytest.approx(posterior.mean_BZ[0].numpy(), abs=1e-12)
            assert log_var[i] == pytest.approx(posterior.log_var_BZ[0].numpy(), abs=1e-12)

    @pytest.mark.parametrize(
        ("cleaning", "text", "as_if"),
        [
            ({"lowercase": True}, "HELLO There", "hello there"),
            ({"restore_apostrophes": True}, "dont", "don't"),
            ({"max_repeats": 2}, "sooooo", "soo"),
            ({}, "mail me@here.com now", "mail <email> now"),
            (None, "  two\twords ", "two words"),
        ],
    )
    def test_cleans_text_as_the_corpus_was(self, make: Make, cleaning: dict[str, Any] | None, text: str, as_if: str) -> None:
        pipeline = make(cleaning=cleaning)
        assert np.array_equal(pipeline.encode([text])[0], pipeline.encode([as_if])[0])
        assert not np.array_equal(pipeline.encode([text])[0], pipeline.encode(["yes"])[0])

    @pytest.mark.parametrize("setting", ["lowercase", "mask_personal"])
    def test_leaves_alone_what_the_corpus_kept(self, make: Make, setting: str) -> None:
        pipeline = make(cleaning={**dataclasses.asdict(CleaningConfig()), setting: False})
        text, other = {"lowercase": ("HELLO", "hello"), "mask_personal": ("a@b.com", "<email>")}[setting]
        assert not np.array_equal(pipeline.encode([text])[0], pipeline.encode([other])[0])


class TestRefusals:
    @pytest.mark.parametrize(
        ("job", "names", "value"),
        [
            (lambda p: p.respond("hello", 0), "n", "0"),
            (lambda p: p.respond("hello", 257), "n must be a whole number from 1 to 256", "257"),
            (lambda p: p.respond("hello", "5"), "n", "'5'"),
            (lambda p: p.respond("hello", 2.0), "n", "2.0"),
            (lambda p: p.respond("hello", True), "n", "True"),
            (lambda p: p.respond([]), "number of turns must be a whole number from 1 to 1000", "0"),
            (lambda p: p.respond(["x"] * 1001), "number of turns", "1001"),
            (lambda p: p.respond(5), "context must be a list of turns", "int"),
            (lambda p: p.respond(None), "context must be a list of turns", "NoneType"),
            (lambda p: p.respond([5]), "text must be a string", "int"),
            (lambda p: p.respond(["hello", None]), "text must be a string", "NoneType"),
            (lambda p: p.respond([["hello"]]), "text must be a string", "list"),
            (lambda p: p.respond(b"hello"), "text must be a string", "int"),
            (lambda p: p.respond("x" * 2001), "text must have at most 2000 characters", "2001"),
            (lambda p: p.respond("hello", seed=-1), "seed", "-1"),
            (lambda p: p.respond("hello", seed=2**63), "seed", str(2**63)),
            (lambda p: p.respond("hello", seed="x"), "seed", "'x'"),
            (lambda p: p.sample(0), "n", "0"),
            (lambda p: p.sample(10_001), "n must be a whole number from 1 to 10000", "10001"),
            (lambda p: p.sample(5, seed=1.5), "seed", "1.5"),
            (lambda p: p.reconstruct([]), "no text", ""),
            (lambda p: p.reconstruct("hello"), "texts must be a list of strings", "str"),
            (lambda p: p.reconstruct(["hello", 5]), "text must be a string", "int"),
            (lambda p: p.reconstruct(["x" * 2001]), "2000 characters", "2001"),
            (lambda p: p.encode(None), "texts must be a list of strings", "NoneType"),
            (lambda p: p.interpolate("hello", 5), "text must be a string", "int"),
            (lambda p: p.interpolate("hello", "yes", 1), "steps must be a whole number from 2 to 200", "1"),
            (lambda p: p.interpolate("hello", "yes", 201), "steps", "201"),
            (lambda p: p.interpolate("hello", "yes", 7, method="x"), "method must be slerp or lerp", "'x'"),
            (lambda p: p.interpolate("hello", "yes", context=5), "context must be a list of turns", "int"),
            (lambda p: p.reconstruct(["hello"], decoding=DecodingConfig()), "decoding must not draw", "temperature 0.5"),
            (lambda p: p.interpolate("hello", "yes", decoding=DecodingConfig()), "decoding must not draw", "temperature 0.5"),
            (lambda p: p.reconstruct(["hello"], 257), "n must be a whole number from 0 to 256", "257"),
            (lambda p: p.variations("hello", 0), "n must be a whole number from 1 to 256", "0"),
            (lambda p: p.variations("hello", radius=0), "radius must be above 0 and at most 10", "0"),
            (lambda p: p.variations("hello", radius=float("nan")), "radius", "nan"),
            (lambda p: p.analogy("hello", "yes", None), "text must be a string", "NoneType"),
            (lambda p: p.encode(["hello"], [["a"], ["b"]]), "one entry for each of the 1 texts", "2"),
            (lambda p: p.encode(["hello"], "abc"), "contexts must be a list of strings", "str"),
        ],
    )
    def test_name_the_argument_and_its_value_before_any_work(
        self, make: Make, job: Callable[[Pipeline], Any], names: str, value: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(vrae.generation.text_model, "decode", None)
        with pytest.raises(UserError) as caught:
            job(make(1))
        message = str(caught.value)
        assert names in message
        assert not value or message.endswith(f"Got {value}")
        assert "\n" not in message

    @pytest.mark.parametrize("text", HOSTILE, ids=ascii)
    def test_are_not_needed_for_strange_text(self, make: Make, text: str) -> None:
        pipeline = make(3)
        written = [
            *(reply.text for reply in pipeline.respond([text, text], 2, seed=0, decoding=WILD)),
            *(result.reconstruction for result in pipeline.reconstruct([text])),
            *(step.text for step in pipeline.interpolate(text, "hello", 3)),
        ]
        assert all(answer.isprintable() for answer in written)
        assert np.isfinite(pipeline.encode([text])[0]).all()


def flip(path: Path) -> None:
    """Changes a bit of the last number, which leaves the file as readable as it was."""
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)


class TestFolder:
    @pytest.fixture
    def files(self, corpus: Corpus) -> dict[str, bytes]:
        model = tiny_model(vocab_size=len(corpus.tokenizer), context_turns=1).float()
        return to_files(model, corpus.tokenizer, {"corpus": {"cleaning": {"lowercase": True}}})

    def test_a_model_from_disk_does_what_the_one_in_memory_does(
        self, corpus: Corpus, files: dict[str, bytes], tmp_path: Path
    ) -> None:
        write_folder(tmp_path / "model", files)
        model = tiny_model(vocab_size=len(corpus.tokenizer), context_turns=1).float().train()
        memory = Pipeline(model, corpus.tokenizer, {"corpus": {"cleaning": {"lowercase": True}}})
        disk = load(tmp_path / "model")
        assert disk.respond("HELLO", 3, seed=0) == memory.respond("HELLO", 3, seed=0)
        assert disk.reconstruct(TURNS) == memory.reconstruct(TURNS)

    @pytest.mark.parametrize(
        ("pointers", "expected"),
        [
            ({"best": "step-1", "last": "step-2"}, "step-1"),
            ({"last": "step-2"}, "step-2"),
            ({"best": "gone", "last": "step-2"}, "step-2"),
            ({"best": "step-1\n"}, "step-1"),
            ({"best": "/elsewhere/../step-1"}, "step-1"),
            ({"best": "", "last": "step-2"}, "step-2"),
            ({"best": "\0", "last": "x" * 5000}, "step-3"),
            ({}, "step-3"),
        ],
        ids=lambda value: str(value)[:50],
    )
    def test_of_a_run_is_its_best_checkpoint_else_its_last(
        self, files: dict[str, bytes], tmp_path: Path, pointers: dict[str, str], expected: str
    ) -> None:
        checkpoints = tmp_path / "run" / "checkpoints"
        for name in ("step-1", "step-2", "step-3"):
            write_folder(checkpoints / name, files)
        for name, target in pointers.items():
            (checkpoints / name).write_text(target)
        assert model_folder(tmp_path / "run") == checkpoints / expected
        assert model_folder(checkpoints / "step-2") == checkpoints / "step-2"

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.model", "manifest.json"])
    @pytest.mark.parametrize(("damaged", "expected"), [([2], 3), ([2, 3], 4), ([2, 3, 4], 1)], ids=str)
    def test_of_a_run_that_is_damaged_is_named_and_passed_over(
        self,
        files: dict[str, bytes],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        name: str,
        damaged: list[int],
        expected: int,
    ) -> None:
        folders = [tmp_path / "checkpoints" / f"step-{number}" for number in range(5)]
        for folder in folders[1:]:
            write_folder(folder, {**files, "optimizer.safetensors": b"not read"})
        (tmp_path / "checkpoints" / "best").write_text("step-2")
        (tmp_path / "checkpoints" / "last").write_text("step-3")
        (folders[expected] / "optimizer.safetensors").write_bytes(b"other")  # no part of the model
        for number in damaged:
            (folders[number] / name).write_bytes((folders[number] / name).read_bytes()[:-9])
        assert model_folder(tmp_path) == folders[expected]
        said = capsys.readouterr().err.splitlines()
        assert len(said) == len(damaged)
        for line, number in zip(said, damaged, strict=True):
            assert line.startswith(f"vrae: warning: {folders[number]}: damaged ({name}")
            assert line.endswith(f"; using {folders[expected]}")

    def test_of_a_run_without_a_whole_one_is_refused_and_names_each(self, files: dict[str, bytes], tmp_path: Path) -> None:
        for folder in ("step-1", "step-2"):
            write_folder(tmp_path / "checkpoints" / folder, files)
            flip(tmp_path / "checkpoints" / folder / "model.safetensors")
        with pytest.raises(ModelError, match=r"step-2: damaged \(model.safetensors .*step-1: damaged \(model.safetensors"):
            load(tmp_path)

    def test_that_is_not_what_its_manifest_says_is_refused(self, files: dict[str, bytes], tmp_path: Path) -> None:
        write_folder(tmp_path / "model", files)
        flip(tmp_path / "model" / "model.safetensors")
        with pytest.raises(ModelError, match=r"model: damaged \(model.safetensors has another sha256"):
            load(tmp_path / "model")
        (tmp_path / "model" / "manifest.json").unlink()  # one from the Hub has none
        load(tmp_path / "model")

    def test_is_refused_where_there_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="gone: no such folder"):
            load(tmp_path / "gone")
        with pytest.raises(ModelError, match=r"neither a model folder .* nor a run folder"):
            load(tmp_path)
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "best").write_bytes(b"\xff\xfe")
        with pytest.raises(ModelError, match="neither a model folder"):
            load(tmp_path)

    @pytest.mark.parametrize("name", ["no/such-model", "no/such-model@v1", "x" * 300, "no/" + "x" * 300, "a\0b"])
    def test_that_is_nowhere_is_one_line_offline(self, name: str) -> None:
        with pytest.raises(ModelError) as caught:
            load(name)
        assert "\n" not in str(caught.value)
        assert printable(name[:20]) in str(caught.value)

    def test_without_a_file_names_the_file(self, files: dict[str, bytes], tmp_path: Path) -> None:
        write_folder(tmp_path / "model", files)
        for name in ("model.safetensors", "tokenizer.model"):
            shutil.copytree(tmp_path / "model", tmp_path / name)
            (tmp_path / name / name).unlink()
            with pytest.raises(ModelError, match=name):
                load(tmp_path / name)

    @pytest.mark.parametrize(
        "name",
        [
            *(
                "../x",
                "../../x",
                "a/..",
                "../..",
                "/etc/no",
                "a/b/c",
                "a/b\0",
                "a/b\n",
                "\x1b[2J/a",
                "\u202ea/b",
                "\ud800/b",
                "ä/b",
            ),
            *("a/" + "b" * 100, "a/b@..", "a/b@../../x", "a/b@/etc", "a/b@", "a/b@c@d", "a/b@c\0", "a/b@c\n", "a/b@\ud800"),
            *("a/b@" + "c" * 100, "https://huggingface.co/a/b", "hf://a/b", "a/b?x=1", "~/a"),
        ],
        ids=ascii,
    )
    def test_that_could_lead_elsewhere_is_not_looked_for_on_the_hub(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        def refuse(*arguments: Any, **options: Any) -> None:
            raise AssertionError("the Hub was asked")

        (tmp_path / "x" / "y").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "x" / "y")
        monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
        with pytest.raises(ModelError, match=r"no such folder|neither a model folder") as caught:
            load(name)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(("name", "asked"), [("a/b", ("a/b", None)), ("a/b@refs/pr/1", ("a/b", "refs/pr/1"))])
    def test_on_the_hub_is_asked_for_by_name_and_revision(
        self, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, asked: tuple[str, str | None]
    ) -> None:
        def download(name: str, revision: str | None, allow_patterns: list[str], **options: Any) -> str:
            assert (name, revision) == asked
            assert allow_patterns == ["config.json", "model.safetensors", "tokenizer.model", "manifest.json"]
            write_folder(tmp_path / "model", files)
            return str(tmp_path / "model")

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        assert load(name).model.config.context_turns == 1
