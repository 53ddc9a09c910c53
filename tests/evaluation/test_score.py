"""Bits of single texts: against an integral over the latent, and by what they must not depend on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import tiny_model
from torch.distributions import Normal, kl_divergence

from vrae.corpus.batches import collate
from vrae.corpus.prepared import Corpus
from vrae.errors import ModelError, UserError
from vrae.evaluation.score import Score, score
from vrae.generation import text_model
from vrae.generation.pipeline import Pipeline
from vrae.generation.text_model import digest

TEXTS = ["hello how are you", "pizza is great 🎉", "", "see you tomorrow at the park"]
CONTEXT = ["i am fine thanks", "we should meet"]

Make = Callable[..., Pipeline]


def figures(found: Score) -> tuple[float, ...]:
    return dataclasses.astuple(found)[1:]


@pytest.fixture(scope="module")
def make(corpus: Corpus) -> Make:
    def make(lowercase: bool = False, **settings: Any) -> Pipeline:
        model = tiny_model(vocab_size=len(corpus.tokenizer), **settings)
        return Pipeline(model, corpus.tokenizer, {"corpus": {"cleaning": {"lowercase": lowercase}}})

    return make


@pytest.mark.parametrize("context_turns", [0, 2])
def test_bits_are_those_of_the_integral_over_the_latent(make: Make, context_turns: int) -> None:
    pipeline = make(context_turns=context_turns, latent_size=1)
    model = pipeline.model
    with torch.no_grad():  # a wide posterior, so that no weight is extreme
        model.posterior.out.weight[1] *= 0.2  # type: ignore[union-attr, operator]
        model.posterior.out.bias[1] = 1.2  # type: ignore[union-attr, operator]
        if context_turns:
            model.prior.out.weight[1] *= 0.2  # type: ignore[union-attr, operator]
            model.prior.out.bias[1] = 0.3  # type: ignore[union-attr, operator]
        contexts = [CONTEXT] if context_turns else None
        window = pipeline.windows(TEXTS[:1], [CONTEXT if context_turns else ()])[0]
        inferred = model.infer(collate([window], context_turns))
        q, p = (Normal(d.mean_BZ[0, 0], (d.log_var_BZ[0, 0] / 2).exp()) for d in (inferred.posterior, inferred.prior))
        z_G = torch.linspace(-25, 25, 2001, dtype=torch.float64)
        many = collate([window] * len(z_G), context_turns)
        log_text_G = model.log_prob(many, z_G[:, None], inferred.context_BC.expand(len(z_G), -1))
        log_joint_G, log_q_G = log_text_G + p.log_prob(z_G), q.log_prob(z_G)
        evidence = torch.trapezoid(log_joint_G.exp(), z_G).log()
        text = -torch.trapezoid(log_q_G.exp() * log_text_G, z_G)
        gap = torch.trapezoid(log_q_G.exp() * (log_q_G - log_joint_G + evidence), z_G)
    found = score(pipeline, TEXTS[:1], contexts, k=20_000, seed=1)[0]
    assert found.bits_latent == pytest.approx(float(kl_divergence(q, p)) / math.log(2), rel=1e-9)
    assert found.bits_text == pytest.approx(float(text) / math.log(2), rel=0.02)
    assert found.bits_iw == pytest.approx(-float(evidence) / math.log(2), abs=0.15)
    assert found.bits_gap == pytest.approx(float(gap) / math.log(2), rel=0.05)
    assert 4 / found.effective_samples**0.5 / math.log(2) < 0.15  # four standard errors of bits_iw


@pytest.mark.parametrize(
    "settings",
    [{}, {"flow_steps": 2}, {"context_turns": 2}, {"context_turns": 2, "prior": "mixture"}, {"latent_size": 0}],
    ids=["gaussian", "flow", "reply", "mixture", "no latent"],
)
class TestEveryKind:
    def test_adds_up(self, make: Make, settings: dict[str, Any]) -> None:
        for found in score(make(**settings), TEXTS, k=20):
            assert found.bits_total == found.bits_latent + found.bits_text
            assert found.bits_gap == found.bits_total - found.bits_iw
            assert found.bits_iw > 0
            assert 1 <= found.effective_samples <= 20 * (1 + 1e-9)

    def test_of_a_text_does_not_depend_on_the_others(
        self, make: Make, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pipeline = make(**settings)
        together = score(pipeline, [*TEXTS, TEXTS[1]], k=5, seed=2)
        assert figures(together[1]) == pytest.approx(figures(together[4]), rel=1e-9)
        monkeypatch.setattr(text_model, "_ROWS", 3)
        for texts, expected in (([text], [found]) for text, found in zip(TEXTS, together, strict=False)):
            for one, other in zip(score(pipeline, texts, k=5, seed=2), expected, strict=True):
                assert figures(one) == pytest.approx(figures(other), rel=1e-9)
        in_parts = score(pipeline, [*TEXTS, TEXTS[1]], k=5, seed=2)
        assert [found.bits_total for found in in_parts] == pytest.approx([found.bits_total for found in together], rel=1e-9)

    def test_counts_the_end_mark(self, make: Make, settings: dict[str, Any], corpus: Corpus) -> None:
        found = score(make(**settings), TEXTS, k=1)
        assert [one.tokens for one in found] == [len(ids) + 1 for ids in corpus.tokenizer.encode(TEXTS)]
        assert [one.text for one in found] == TEXTS


def test_draws_by_the_seed_and_by_the_text(make: Make) -> None:
    first, again, other = (score(make(), TEXTS, k=3, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert all(a.bits_text != b.bits_text for a, b in zip(first, other, strict=True))


def test_noise_is_a_function_of_the_text_and_its_context(make: Make) -> None:
    pipeline = make(context_turns=2)
    windows = pipeline.windows(["a b", "a b", "a", "c"], [["c"], ["c", "d"], ["c"], ["a b"]])
    assert len({digest(window) for window in windows}) == 4
    assert digest(pipeline.windows(["a b"], ["c"])[0]) == digest(windows[0])


def test_averages_over_draws(make: Make) -> None:
    def spread(k: int) -> float:
        bits = torch.tensor([score(make(), TEXTS[:1], k=k, seed=seed)[0].bits_text for seed in range(60)])
        return float(bits.std())

    assert spread(1) / spread(25) == pytest.approx(5, rel=0.4)


def test_without_latent_is_the_log_likelihood(make: Make) -> None:
    pipeline = make(latent_size=0, context_turns=2)
    for found, text in zip(score(pipeline, TEXTS, [CONTEXT] * 4, k=50), TEXTS, strict=True):
        batch = pipeline.batch(pipeline.windows([text], [CONTEXT]))
        with torch.no_grad():
            _, context_BC = pipeline.model.condition(batch)
            nats = -float(pipeline.model.log_prob(batch, context_BC.new_zeros(1, 0), context_BC))
        assert (found.bits_latent, found.effective_samples) == (0, pytest.approx(50))
        assert found.bits_text == pytest.approx(nats / math.log(2))
        assert found.bits_gap == pytest.approx(0, abs=1e-9)


class TestContexts:
    def test_are_read_as_far_as_the_model_reads(self, make: Make) -> None:
        pipeline = make(context_turns=2)
        plain, with_one, with_two, with_three = (
            score(pipeline, ["hello"], contexts, k=4)[0]
            for contexts in (None, [CONTEXT[-1:]], [CONTEXT], [["pizza", *CONTEXT]])
        )
        assert len({found.bits_total for found in (plain, with_one, with_two)}) == 3
        assert with_three == with_two
        assert score(pipeline, ["hello"], [CONTEXT[-1]], k=4)[0] == with_one  # a string is a context of one turn

    def test_may_be_empty(self, make: Make) -> None:
        pipeline = make(context_turns=2)
        plain, mixed = score(pipeline, ["hello", "hello"], k=4), score(pipeline, ["hello", "hello"], [[], CONTEXT], k=4)
        assert mixed[0].bits_total == pytest.approx(plain[0].bits_total)
        assert mixed[1].bits_total != plain[1].bits_total

    def test_are_refused_by_a_model_that_reads_none(self, make: Make) -> None:
        with pytest.raises(ModelError, match=r"reads no context \(model.context_turns is 0\)"):
            score(make(), ["hello"], [CONTEXT])

    def test_must_be_as_many_as_the_texts(self, make: Make) -> None:
        with pytest.raises(UserError, match=r"one entry for each of the 2 texts. Got 1"):
            score(make(context_turns=2), ["a", "b"], [CONTEXT])


def test_texts_are_cleaned_as_the_corpus_was(make: Make) -> None:
    shouted, quiet = score(make(lowercase=True), ["HELLO How are you", "hello how are you"], k=2)
    assert figures(shouted) == pytest.approx(figures(quiet))
    assert shouted.text == "HELLO How are you"


def test_of_nothing_is_nothing(make: Make) -> None:
    assert score(make(), []) == []


@pytest.mark.parametrize(
    ("texts", "settings", "words"),
    [
        ("hello", {}, "texts must be a list of strings. Got str"),
        ([3], {}, "a text must be a string. Got int"),
        (["x" * 2001], {}, "at most 2000 characters. Got 2001"),
        (["hello"], {"k": 0}, "k must be a whole number from 1 to 100000. Got 0"),
        (["hello"], {"k": True}, "k must be a whole number from 1 to 100000. Got True"),
        (["hello"], {"seed": -1}, "seed must be a whole number from 0 to 9223372036854775807. Got -1"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Make, texts: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        score(make(), texts, **settings)


def test_keys_are_those_that_scripts_rely_on(make: Make) -> None:
    promised = ["text", "bits_latent", "bits_text", "bits_total", "bits_iw", "tokens"]
    assert set(promised) <= {field.name for field in dataclasses.fields(Score)}
    assert isinstance(score(make(), ["hello"], k=1)[0], Score)
