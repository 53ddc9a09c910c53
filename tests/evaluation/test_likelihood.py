"""What is reported of a split: means and errors by hand, the same in every order, in every batching and for every number of
processes."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import random_windows, tiny_model

from vrae.config import BatchConfig
from vrae.corpus.batches import Batch, Windows, collate
from vrae.corpus.prepared import Corpus
from vrae.evaluation import likelihood
from vrae.evaluation.information import Information, information
from vrae.evaluation.likelihood import Bound, measure, measure_information, measure_turns, summarise
from vrae.evaluation.turns import Turns
from vrae.model.bound import Noise
from vrae.model.gaussian import join

KINDS: dict[str, dict[str, Any]] = {
    "autoencoder": {"context_turns": 0},
    "reply": {"context_turns": 2},
    "mixture prior": {"context_turns": 2, "prior": "mixture", "prior_components": 3},
    "mixture without context": {"context_turns": 0, "prior": "mixture", "prior_components": 3},
    "flow posterior": {"context_turns": 0, "flow_steps": 2},
    "no latent": {"context_turns": 2, "latent_size": 0},
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


class Few:
    """Nine windows as `measure` reads them, in batches that are cut where one likes; dialogues of 2, 3 and 4 turns."""

    def __init__(self, context_turns: int, *cuts: int, order: list[int] | None = None) -> None:
        self.windows, self.context_turns, self.cuts = random_windows(9, context_turns), context_turns, cuts
        self.order = np.array(order or range(9))
        self.split, self.target_N = SimpleNamespace(dialogues=np.array([0, 2, 5, 9])), np.arange(9)

    def __len__(self) -> int:
        return len(self.windows)

    def in_order(self, limit: int = 0, part: int = 0, count: int = 1) -> Iterator[tuple[np.ndarray, Batch]]:
        for rows in np.split(self.order, self.cuts)[part::count]:
            yield rows, collate([self.windows[i] for i in rows], self.context_turns)


def bound_of(few: Few, model: Any = None, **settings: Any) -> Bound:
    return measure(model or tiny_model(context_turns=few.context_turns), few, **settings)  # type: ignore[arg-type]


# Two dialogues measured whole (turns 0-1 and 2-4), one of which a turn is missing (5-8, without 7).
BY_HAND = Turns(
    window_N=np.array([0, 1, 2, 3, 4, 5, 6, 8]),
    tokens_N=np.array([1, 2, 3, 4, 5, 6, 7, 8]),
    distortion_N=np.array([1.0, 2, 3, 4, 5, 6, 7, 8]),
    rate_NZ=np.array([[0.5, 1.5]] * 4 + [[0.25, 0.25]] * 4),
    offsets_NZ=np.array([[-1.0, 0.01]] * 4 + [[1.0, 0.0]] * 4),
    nll_iw_N=np.array([2.0, 3, 4, 5, 5, 6, 7, 8]),
    effective_N=np.array([1.0, 4, 4.999, 5, 6, 7, 8, 9]),
    nll_prior_N=np.array([12.0, 13, 14, 15, 15, 16, 17, 18]),
    distortion_prior_N=np.array([21.0, 22, 23, 24, 25, 26, 27, 28]),
)
CARRIED = Information(100, 2.0, 0.1, 0.5, 0.2)


class TestByHand:
    @pytest.fixture
    def bound(self) -> Bound:
        return summarise(BY_HAND, CARRIED, Few(0), 10)  # type: ignore[arg-type]

    def test_means_over_turns(self, bound: Bound) -> None:
        assert (bound.turns, bound.tokens, bound.k, bound.latent_size) == (8, 36, 10, 2)
        assert bound.rate_per_dimension == [0.375, 0.875]
        assert (bound.rate, bound.distortion, bound.elbo) == (1.25, 4.5, -5.75)
        assert (bound.nll_iw, bound.nll_prior, bound.distortion_prior) == (5.0, 15.0, 24.5)
        assert bound.effective_samples == 5.5  # between 5 and 6
        assert bound.poor_turns == 3 / 8
        assert bound.active_units == 1

    def test_standard_errors_over_turns(self, bound: Bound) -> None:
        # squares about the means: distortion 42, rate 8 * 0.75^2 = 4.5, elbo (3 4 5 6 5.5 6.5 7.5 8.5) 22.5, iw 28
        assert bound.distortion_error == pytest.approx(math.sqrt(42 / 7 / 8))
        assert bound.rate_error == pytest.approx(math.sqrt(4.5 / 7 / 8))
        assert bound.elbo_error == pytest.approx(math.sqrt(22.5 / 7 / 8))
        assert bound.nll_iw_error == bound.nll_prior_error == pytest.approx(math.sqrt(28 / 7 / 8))

    def test_perplexity_and_bits_are_per_token(self, bound: Bound) -> None:
        # 40 nats over 36 tokens; the error is that of a ratio: residuals nll - 40 / 36 tokens
        assert bound.perplexity == pytest.approx(math.exp(40 / 36))
        assert bound.bits_per_token == pytest.approx(40 / 36 / math.log(2))
        residuals = [nll - 40 / 36 * tokens for nll, tokens in zip(BY_HAND.nll_iw_N, range(1, 9), strict=True)]
        error = math.sqrt(8 / 7 * sum(value**2 for value in residuals)) / 36
        assert bound.bits_per_token_error == pytest.approx(error / math.log(2))
        assert bound.perplexity_error == pytest.approx(error * math.exp(40 / 36))

    def test_units(self, bound: Bound) -> None:
        per_turn = {"nats_per_turn": 1.25, "bits_per_turn": 1.25 / math.log(2)}
        per_token = {"nats_per_token": 10 / 36, "bits_per_token": 10 / 36 / math.log(2)}
        assert bound.units("rate") == pytest.approx({**per_turn, **per_token})
        assert bound.units("nll_iw")["bits_per_token"] == pytest.approx(bound.bits_per_token)

    def test_dialogues_are_summed_and_only_whole_ones_count(self, bound: Bound) -> None:
        # -elbo is 3 4 | 5 6 5.5 | ..
        assert bound.dialogues == 2
        assert bound.nats_per_dialogue == pytest.approx((7 + 16.5) / 2)
        assert bound.nats_per_dialogue_error == pytest.approx((16.5 - 7) / 2)  # of two values: half their distance

    def test_dialogues_are_none_where_none_is_whole(self) -> None:
        some = Turns(*(value[[0, 2, 7]] for value in BY_HAND))
        bound = summarise(some, CARRIED, Few(0), 10)  # type: ignore[arg-type]
        assert (bound.dialogues, bound.nats_per_dialogue, bound.nats_per_dialogue_error) == (0, None, None)

    def test_without_k_nothing_is_weighted(self) -> None:
        nan_N = np.full(8, np.nan)
        turns = BY_HAND._replace(nll_iw_N=nan_N, effective_N=nan_N, nll_prior_N=nan_N, distortion_prior_N=nan_N)
        bound = summarise(turns, CARRIED, Few(0), 0)  # type: ignore[arg-type]
        for name in ("nll_iw", "nll_prior", "effective_samples", "poor_turns", "distortion_prior"):
            assert getattr(bound, name) is None
        assert (bound.nll_iw_error, bound.nll_prior_error, bound.warnings) == (None, None, [])
        assert bound.perplexity == pytest.approx(math.exp(46 / 36))

    def test_one_turn_has_no_errors(self) -> None:
        bound = summarise(Turns(*(value[:1] for value in BY_HAND)), CARRIED, Few(0), 10)  # type: ignore[arg-type]
        assert {getattr(bound, field.name) for field in dataclasses.fields(bound) if field.name.endswith("_error")} == {
            None, CARRIED.mutual_information_error, CARRIED.aggregated_kl_error,
        }  # fmt: skip

    def test_information_is_passed_on(self, bound: Bound) -> None:
        assert bound.mutual_information == 2.0
        assert bound.mutual_information_most == pytest.approx(math.log(100))
        assert (bound.mutual_information_error, bound.aggregated_kl, bound.aggregated_kl_error) == (0.1, 0.5, 0.2)
        assert bound.information_turns == 100

    def test_verdict_is_that_of_the_rates_the_units_and_the_gain(self, bound: Bound) -> None:
        assert bound.collapse.state == "partially collapsed"
        idle = BY_HAND._replace(distortion_prior_N=BY_HAND.distortion_N + 0.05)
        assert summarise(idle, CARRIED, Few(0), 10).collapse.state == "collapsed"  # type: ignore[arg-type]
        none = BY_HAND._replace(rate_NZ=BY_HAND.rate_NZ * 0)
        assert summarise(none, CARRIED, Few(0), 10).collapse.state == "collapsed"  # type: ignore[arg-type]


class TestWarnings:
    def test_of_a_poor_estimate(self) -> None:
        words = summarise(BY_HAND, CARRIED, Few(0), 10).warnings  # type: ignore[arg-type]
        assert len(words) == 1
        assert "for 38% of the turns it rests on fewer than 5 effective samples of 10" in words[0]
        assert "Raise k" in words[0]

    @pytest.mark.parametrize(("poor", "warned"), [(10, False), (11, True)])
    def test_of_more_than_a_tenth_of_poor_turns(self, poor: int, warned: bool) -> None:
        turns = Turns(*(np.repeat(value[:1], 100, 0) for value in BY_HAND))
        effective_N = np.where(np.arange(100) < poor, 2.0, 50.0)
        found = summarise(turns._replace(effective_N=effective_N), CARRIED, Few(0), 100)  # type: ignore[arg-type]
        assert (found.warnings != []) == warned

    @pytest.mark.parametrize(("nats", "warned"), [(3.60, False), (3.61, True), (4.6, True)])  # log 100 = 4.605
    def test_of_an_information_that_cannot_show_more(self, nats: float, warned: bool) -> None:
        good = BY_HAND._replace(effective_N=np.full(8, 9.0))
        found = summarise(good, CARRIED._replace(mutual_information=nats), Few(0), 10)  # type: ignore[arg-type]
        assert [word.startswith("mutual_information") for word in found.warnings] == [True] * warned


class TestEveryTurnOnce:
    @each_kind
    def test_whatever_the_batches_and_their_order(self, kind: dict[str, Any]) -> None:
        model, K = tiny_model(**kind), kind["context_turns"]
        whole = bound_of(Few(K), model, k=3, seed=2)
        for few in (Few(K, *range(1, 9)), Few(K, 5), Few(K, 1, 8), Few(K, 4, order=[8, 2, 0, 1, 7, 3, 5, 4, 6])):
            other = bound_of(few, model, k=3, seed=2)
            for field in dataclasses.fields(Bound):
                one, another = getattr(whole, field.name), getattr(other, field.name)
                assert one == (
                    another if isinstance(another, str | tuple) or field.name == "warnings" else pytest.approx(another)
                )

    @pytest.mark.parametrize("context_turns", [0, 2])
    def test_of_a_corpus(self, corpus: Corpus, context_turns: int) -> None:
        split = corpus["validation"]
        sizes = split.turns[1:] - split.turns[:-1]
        small, large = (
            Windows(split, BatchConfig(tokens=tokens, max_turn_tokens=12, segment_turns=4), context_turns)
            for tokens in (84, 2000)
        )
        model = tiny_model(context_turns=context_turns, vocab_size=len(corpus.tokenizer))
        few, many = measure(model, large), measure(model, small)
        assert few.turns == many.turns == int((sizes <= 12).sum())
        assert few.tokens == many.tokens == int((sizes[sizes <= 12] + 1).sum())
        assert few.elbo == pytest.approx(many.elbo, abs=1e-10)
        assert few.mutual_information == pytest.approx(many.mutual_information, abs=1e-10)
        whole = [a for a, b in zip(split.dialogues[:-1], split.dialogues[1:], strict=True) if (sizes[a:b] <= 12).all()]
        assert few.dialogues == many.dialogues == len(whole) < len(split.dialogues) - 1

    def test_a_turn_has_the_same_figures_in_a_sample_of_the_turns(self, corpus: Corpus) -> None:
        windows = Windows(corpus["validation"], BatchConfig(tokens=300, max_turn_tokens=20, segment_turns=4), 2)
        model = tiny_model(context_turns=2, vocab_size=len(corpus.tokenizer))
        every, some = measure_turns(model, windows, k=2, seed=3), measure_turns(model, windows, k=2, seed=3, limit=7)
        assert len(some.window_N) == 7
        for all_N, some_N in zip(every, some, strict=True):
            assert np.allclose(all_N[some.window_N], some_N, rtol=0, atol=1e-11)

    def test_windows_made_without_context_are_measured_without(self, corpus: Corpus) -> None:
        split, config = corpus["validation"], BatchConfig(tokens=300, max_turn_tokens=20, segment_turns=4)
        model = tiny_model(context_turns=2, vocab_size=len(corpus.tokenizer))
        with_context, without = Windows(split, config, 2), Windows(split, config, 0)
        found = measure_turns(model, without, seed=3)
        for windows_B, batch in with_context.in_order():
            model_alone = Few(0)
            model_alone.in_order = lambda *_, w=windows_B, b=batch: iter([(w, b.without_context())])  # type: ignore[method-assign, misc]
            expected = measure_turns(model, model_alone, seed=3)  # type: ignore[arg-type]
            assert found.distortion_N[expected.window_N] == pytest.approx(expected.distortion_N, abs=1e-11)
            assert found.rate_NZ[expected.window_N] == pytest.approx(expected.rate_NZ, abs=1e-11)


class TestInformation:
    @pytest.mark.parametrize("kind", ["autoencoder", "reply", "mixture prior", "mixture without context", "flow posterior"])
    def test_is_that_of_the_posteriors_at_the_first_draw(self, kind: str) -> None:
        model, few = tiny_model(**KINDS[kind]), Few(KINDS[kind]["context_turns"], 4, order=[8, 2, 0, 1, 7, 3, 5, 4, 6])
        with torch.no_grad():
            inferred = [model.infer(collate([window], few.context_turns)) for window in few.windows]
            posteriors, priors = join([one.posterior for one in inferred]), join([one.prior for one in inferred])
            noise_NX = Noise([3, 0], np.arange(9)).draw(1, posteriors.noise_size).double()
            expected = information(posteriors, priors, noise_NX)
        assert measure_information(model, few, seed=3) == pytest.approx(expected, abs=1e-11)  # type: ignore[arg-type]

    @pytest.mark.parametrize(("limit", "taken"), [(0, 30), (10, 10), (30, 30), (40, 30)])
    def test_is_that_of_an_even_sample_of_limited_size(
        self, corpus: Corpus, limit: int, taken: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(likelihood, "_INFORMATION_TURNS", 30)
        windows = Windows(corpus["train"], BatchConfig(tokens=300, max_turn_tokens=20), 0)
        model = tiny_model(vocab_size=len(corpus.tokenizer))
        found, bound = measure_information(model, windows, limit=limit), measure(model, windows, limit=limit)
        assert found.turns == bound.information_turns == taken
        assert bound.turns == (limit or len(windows))

    def test_of_no_latent_is_nothing(self) -> None:
        model = tiny_model(context_turns=2, latent_size=0)
        assert measure_information(model, Few(2)) == Information(9, 0.0, None, 0.0, None)  # type: ignore[arg-type]


class TestBounds:
    def test_without_latent_are_the_log_likelihood_itself(self) -> None:
        model, few = tiny_model(context_turns=2, latent_size=0), Few(2, 4)
        with torch.no_grad():
            batches = [batch for _, batch in few.in_order()]
            nothing = [torch.zeros(len(batch.target_B), 0, dtype=torch.float64) for batch in batches]
            nats = -sum(float(model.log_prob(b, z, model.condition(b)[1]).sum()) for b, z in zip(batches, nothing, strict=True))
        for k in (0, 7):
            bound = bound_of(few, model, k=k)
            tokens = sum(len(window.target) + 1 for window in few.windows)
            assert bound.elbo == pytest.approx(-nats / 9, abs=1e-12)
            assert bound.nll_iw is None if k == 0 else bound.nll_iw == pytest.approx(nats / 9, abs=1e-12)
            assert (bound.rate, bound.mutual_information, bound.aggregated_kl, bound.warnings) == (0, 0, 0, [])
            assert bound.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-12)
            assert bound.nats_per_dialogue == pytest.approx(nats / 3, abs=1e-11)
            assert bound.collapse.state == "no latent"

    @pytest.mark.parametrize("kind", ["autoencoder", "reply", "mixture prior", "mixture without context", "flow posterior"])
    def test_are_in_their_order(self, kind: str) -> None:
        bound = bound_of(Few(KINDS[kind]["context_turns"]), tiny_model(**KINDS[kind]), k=200)
        assert bound.nll_iw is not None
        assert bound.nll_iw < -bound.elbo
        assert bound.elbo == -(bound.rate + bound.distortion)

    def test_verdict_is_collapsed_where_the_posterior_is_the_prior(self) -> None:
        model = tiny_model()
        with torch.no_grad():
            model.posterior.out.weight.zero_()  # type: ignore[union-attr, operator]
            model.posterior.out.bias.zero_()  # type: ignore[union-attr, operator]
        bound = bound_of(Few(0), model, k=2)
        assert (bound.collapse.state, bound.rate, bound.active_units) == ("collapsed", 0, 0)
        assert bound.mutual_information == pytest.approx(0, abs=1e-12)

    def test_verdict_is_collapsed_where_the_decoder_does_not_read_the_latent(self) -> None:
        model = tiny_model()
        with torch.no_grad():
            model.decoder.start_state.weight.zero_()
            model.decoder.condition.weight.zero_()
        bound = bound_of(Few(0), model, k=5)
        assert (bound.rate > 1, bound.active_units > 0, bound.collapse.state) == (True, True, "collapsed")
        assert bound.distortion_prior == pytest.approx(bound.distortion, abs=1e-12)
        assert bound_of(Few(0), model).collapse.state != "collapsed"  # without k it is not seen


class TestManners:
    @pytest.mark.parametrize("training", [True, False])
    def test_leave_mode_and_random_state_as_they_were(self, training: bool) -> None:
        model, few = tiny_model(dropout=0.5).train(training), Few(0)
        torch.manual_seed(5)
        before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]
        measured = [bound_of(few, model, k=2) for _ in range(2)]
        assert torch.equal(torch.get_rng_state(), before)
        assert np.random.get_state()[1].tolist() == numpy_before  # type: ignore[union-attr]
        assert all(module.training is training for module in model.modules())
        assert measured[0] == measured[1] == bound_of(few, tiny_model(), k=2)  # without dropout, the same noise

    def test_leave_the_mode_as_it_was_when_a_batch_fails(self) -> None:
        class Broken(Few):
            def in_order(self, limit: int = 0, part: int = 0, count: int = 1) -> Iterator[tuple[np.ndarray, Batch]]:
                raise OSError

        model = tiny_model().train()
        with pytest.raises(OSError):  # noqa: PT011
            bound_of(Broken(0), model)
        assert model.training

    def test_draw_by_the_seed(self) -> None:
        first, second, other = (bound_of(Few(0), seed=seed) for seed in (1, 1, 2))
        assert first == second
        assert first.distortion != other.distortion
        assert first.mutual_information != other.mutual_information
        assert first.rate == other.rate

    def test_need_no_gradient(self) -> None:
        model = tiny_model()
        bound_of(Few(0), model, k=2)
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())

    @pytest.mark.parametrize("progress", [False, True])
    def test_show_a_bar_of_turns_when_asked(self, progress: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        bars: list[Any] = []
        monkeypatch.setattr(likelihood, "tqdm", lambda **settings: bars.append(_Bar(settings)) or bars[-1])
        bound_of(Few(0, 3), progress=progress)
        bound_of(Few(0, 3), progress=progress, limit=9)
        for bar in bars:
            assert bar.settings["disable"] is (None if progress else True)  # None: where there is a terminal
            assert bar.settings["total"] == bar.turns == 9


class _Bar(contextlib.AbstractContextManager["_Bar"]):
    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings, self.turns = settings, 0

    def __exit__(self, *_: object) -> None: ...

    def update(self, turns: int) -> None:
        self.turns += turns


def _measure_in_a_process(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    found = [bound_of(Few(2, 2, 5), k=3, seed=1), bound_of(Few(2), k=3, seed=1)]  # of the second, one process has no batch
    (folder / str(rank)).write_text(repr(found))
    dist.destroy_process_group()


def test_two_processes_find_what_one_does_bit_for_bit(tmp_path: Path) -> None:
    mp.spawn(_measure_in_a_process, args=(2, tmp_path), nprocs=2)  # type: ignore[no-untyped-call]
    alone = repr([bound_of(Few(2, 2, 5), k=3, seed=1), bound_of(Few(2), k=3, seed=1)])
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() == alone
