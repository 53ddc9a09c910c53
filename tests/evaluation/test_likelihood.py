"""The bound against the evidence itself, found by integrating over a latent of one dimension, and against sums by hand."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from conftest import random_windows, tiny_model
from torch import Tensor

from vrae.config import BatchConfig
from vrae.corpus.batches import Batch, Window, Windows, collate
from vrae.corpus.prepared import Corpus
from vrae.evaluation.likelihood import Bound, log_prob_iw, measure
from vrae.model.gaussian import Gaussian
from vrae.model.vrae import VRAE

VOCAB = 7
GRID = torch.linspace(-14, 14, 2801, dtype=torch.float64)  # z, in prior standard deviations from its mean


def one_dimensional(context_turns: int) -> VRAE:
    """A VAE of 7 pieces and one latent dimension. q is wider than p, so no importance weight can be extreme."""
    model = tiny_model(context_turns=context_turns, latent_size=1, vocab_size=VOCAB)
    with torch.no_grad():
        model.posterior.out.weight[1] *= 0.2  # type: ignore[union-attr, operator]
        model.posterior.out.bias[1] = 1.2  # type: ignore[union-attr, operator]
        if context_turns:
            model.prior.out.weight[1] *= 0.2  # type: ignore[union-attr, operator]
            model.prior.out.bias[1] = 0.3  # type: ignore[union-attr, operator]
    return model


class Exact(NamedTuple):
    """A window's figures in nats, by the trapezoidal rule over z."""

    log_prob: float  # log p(x | c)
    elbo: float
    gap: float  # KL(q(z | x, c) || p(z | x, c))


def log_normal(z_G: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return -0.5 * (math.log(2 * math.pi) + log_var + (z_G - mean) ** 2 / log_var.exp())


@torch.no_grad()
def integrate(model: VRAE, window: Window) -> Exact:
    inferred = model.infer(collate([window], model.config.context_turns))
    (q_mean, q_log_var), (p_mean, p_log_var) = ((g.mean_BZ[0, 0], g.log_var_BZ[0, 0]) for g in inferred[:2])
    z_G = p_mean + (p_log_var / 2).exp() * GRID
    many = collate([window] * len(z_G), model.config.context_turns)
    log_text_G = model.log_prob(many, z_G[:, None], inferred.context_BC.expand(len(z_G), -1))
    joint_G = log_text_G + log_normal(z_G, p_mean, p_log_var)
    log_prob = torch.trapezoid(joint_G.exp(), z_G).log()
    q_G = log_normal(z_G, q_mean, q_log_var)
    assert float(torch.trapezoid(q_G.exp(), z_G)) == pytest.approx(1, abs=1e-9)
    elbo = torch.trapezoid(q_G.exp() * (joint_G - q_G), z_G)
    gap = torch.trapezoid(q_G.exp() * (q_G - (joint_G - log_prob)), z_G)
    return Exact(float(log_prob), float(elbo), float(gap))


def importance_weighted(model: VRAE, window: Window, k: int, repetitions: int = 4000) -> Tensor:
    """Independent draws of the k-sample bound of one window."""
    batch = collate([window] * repetitions, model.config.context_turns)
    with torch.no_grad():
        return log_prob_iw(model, batch, model.infer(batch), k, torch.Generator().manual_seed(k))


def windows(context_turns: int, vocab_size: int = VOCAB) -> list[Window]:
    return random_windows(9, context_turns, vocab_size)


one_of_each = pytest.mark.parametrize(("context_turns", "which"), [(0, 0), (0, 4), (2, 1), (2, 5)])


class TestEvidence:
    @one_of_each
    def test_splits_into_the_bound_and_the_divergence_from_the_true_posterior(self, context_turns: int, which: int) -> None:
        exact = integrate(one_dimensional(context_turns), windows(context_turns)[which])
        assert exact.log_prob == pytest.approx(exact.elbo + exact.gap, abs=1e-8)
        assert exact.gap > 1e-3

    @pytest.mark.parametrize("k", [1, 5])
    @one_of_each
    def test_is_the_mean_of_the_weighted_estimate_whatever_k(self, context_turns: int, which: int, k: int) -> None:
        model, window = one_dimensional(context_turns), windows(context_turns)[which]
        ratio_R = (importance_weighted(model, window, k) - integrate(model, window).log_prob).exp()
        assert float(ratio_R.mean()) == pytest.approx(1, abs=5 * float(ratio_R.std()) / len(ratio_R) ** 0.5)

    @one_of_each
    def test_is_approached_from_below_with_every_sample(self, context_turns: int, which: int) -> None:
        model, window = one_dimensional(context_turns), windows(context_turns)[which]
        exact = integrate(model, window)
        draws = {k: importance_weighted(model, window, k, 2000) for k in (1, 3, 9, 81)}
        error = {k: 4 * float(draw.std()) / len(draw) ** 0.5 for k, draw in draws.items()}
        mean = {k: float(draw.mean()) for k, draw in draws.items()}
        assert mean[1] == pytest.approx(exact.elbo, abs=error[1])
        for k, more in ((1, 3), (3, 9), (9, 81)):
            assert mean[k] < mean[more] + error[k] + error[more]
            assert mean[k] < exact.log_prob + error[k]
        assert mean[81] == pytest.approx(exact.log_prob, abs=error[81] + 0.02 * exact.gap)
        assert exact.log_prob - mean[81] < 0.2 * (exact.log_prob - mean[1])

    def test_bounds_what_measure_reports(self) -> None:
        model, turns = one_dimensional(2), windows(2)
        exact = [integrate(model, window) for window in turns]
        bound = measure(model, [collate(turns * 300, 2)], k=40)
        assert bound.elbo == pytest.approx(sum(e.elbo for e in exact) / len(turns), abs=0.05)
        assert bound.nll_iw == pytest.approx(-sum(e.log_prob for e in exact) / len(turns), abs=0.03)
        assert bound.elbo < -bound.nll_iw < 0


class TestSums:
    @pytest.mark.parametrize("context_turns", [0, 2])
    def test_run_over_turns_and_count_end_marks(self, context_turns: int) -> None:
        model, turns = tiny_model(context_turns=context_turns), windows(context_turns, 23)
        rate_Z = torch.zeros(4, dtype=torch.float64)
        with torch.no_grad():
            for window in turns:
                posterior, prior, _ = model.infer(collate([window], context_turns))
                q, p = (torch.distributions.Normal(g.mean_BZ, (g.log_var_BZ / 2).exp()) for g in (posterior, prior))
                rate_Z += torch.distributions.kl_divergence(q, p)[0] / len(turns)
        bound = measure(model, [collate(turns[:2], context_turns), collate(turns[2:], context_turns)])
        assert (bound.turns, bound.tokens) == (9, sum(len(window.target) + 1 for window in turns))
        assert bound.rate_per_dimension == pytest.approx(rate_Z.tolist(), abs=1e-12)
        assert bound.rate == pytest.approx(float(rate_Z.sum()), abs=1e-12)
        assert bound.elbo == -(bound.rate + bound.distortion)
        assert (bound.k, bound.nll_iw, bound.latent_size) == (0, None, 4)

    def test_take_the_distortion_at_a_draw_of_the_posterior(self) -> None:
        # With a posterior that hardly varies every draw is its mean.
        model, turns = tiny_model(), windows(0, 23)
        with torch.no_grad():
            model.posterior.out.weight[4:] = 0  # type: ignore[union-attr, operator]
            model.posterior.out.bias[4:] = -99  # type: ignore[union-attr, operator]
            batch = collate(turns, 0)
            inferred = model.infer(batch)
            at_mean = -model.log_prob(batch, inferred.posterior.mean_BZ, inferred.context_BC)
        assert measure(model, [batch]).distortion == pytest.approx(float(at_mean.mean()), rel=0.01)
        assert measure(model, [batch]).distortion != float(at_mean.mean())

    @pytest.mark.parametrize("context_turns", [0, 2])
    @pytest.mark.parametrize("latent_size", [0, 4])
    def test_do_not_depend_on_the_batching(self, context_turns: int, latent_size: int) -> None:
        model = tiny_model(context_turns=context_turns, latent_size=latent_size)
        turns = windows(context_turns, 23)

        def split(*cuts: int) -> Bound:
            parts = [turns[a:b] for a, b in zip((0, *cuts), (*cuts, 9), strict=True)]
            return measure(model, [collate(part, context_turns) for part in parts])

        whole = split()
        for other in (split(1, 2, 3, 4, 5, 6, 7, 8), split(5), split(1, 8)):
            assert other.rate_per_dimension == pytest.approx(whole.rate_per_dimension, abs=1e-12)
            assert (other.active_units, other.turns, other.tokens) == (whole.active_units, 9, whole.tokens)
            if not latent_size:
                assert other.distortion == pytest.approx(whole.distortion, abs=1e-12)

    @pytest.mark.parametrize("context_turns", [0, 2])
    @pytest.mark.parametrize("k", [0, 7])
    def test_without_latent_are_the_log_likelihood_itself(self, context_turns: int, k: int) -> None:
        model, turns = tiny_model(context_turns=context_turns, latent_size=0), windows(context_turns, 23)
        nats = 0.0
        with torch.no_grad():
            for window in turns:
                batch = collate([window], context_turns)
                _, context_BC = model.condition(batch)
                nats -= float(model.log_prob(batch, torch.zeros(1, 0, dtype=torch.float64), context_BC))
        tokens = sum(len(window.target) + 1 for window in turns)
        bound = measure(model, [collate(turns, context_turns)], k=k)
        assert bound.elbo == pytest.approx(-nats / 9, abs=1e-12)
        assert bound.nll_iw is None if k == 0 else bound.nll_iw == pytest.approx(nats / 9, abs=1e-12)
        assert bound.rate == 0
        assert bound.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-12)
        assert bound.bits_per_token == pytest.approx(nats / tokens / math.log(2), rel=1e-12)
        assert bound.collapse.state == "no latent"

    def test_give_perplexity_and_bits_by_the_tighter_bound_where_there_is_one(self) -> None:
        batch = collate(windows(0, 23), 0)
        loose, tight = measure(tiny_model(), [batch]), measure(tiny_model(), [batch], k=5)
        per_token = 9 / batch.tokens
        assert tight.nll_iw is not None
        assert loose.perplexity == pytest.approx(math.exp(-loose.elbo * per_token))
        assert loose.bits_per_token == pytest.approx(-loose.elbo * per_token / math.log(2))
        assert tight.perplexity == pytest.approx(math.exp(tight.nll_iw * per_token))
        assert tight.bits_per_token == pytest.approx(tight.nll_iw * per_token / math.log(2))

    @pytest.mark.parametrize("context_turns", [0, 2])
    def test_over_a_corpus_are_over_each_turn_once(self, corpus: Corpus, context_turns: int) -> None:
        split = corpus["validation"]
        sizes = split.turns[1:] - split.turns[:-1]
        small, large = (
            Windows(split, BatchConfig(tokens=tokens, max_turn_tokens=20, segment_turns=4), context_turns)
            for tokens in (84, 2000)
        )
        model = tiny_model(context_turns=context_turns, vocab_size=len(corpus.tokenizer), latent_size=0)
        few, many = (measure(model, (batch for _, batch in windows.in_order())) for windows in (large, small))
        assert few.turns == many.turns == int((sizes <= 20).sum())
        assert few.tokens == many.tokens == int((sizes[sizes <= 20] + 1).sum())
        assert few.elbo == pytest.approx(many.elbo, abs=1e-10)


class TestManners:
    @pytest.mark.parametrize("training", [True, False])
    def test_leave_mode_and_random_state_as_they_were(self, training: bool) -> None:
        model, batch = tiny_model(dropout=0.5).train(training), collate(windows(0, 23), 0)
        torch.manual_seed(5)
        before = torch.get_rng_state()
        measured = [measure(model, [batch], k=2) for _ in range(2)]
        assert torch.equal(torch.get_rng_state(), before)
        assert all(module.training is training for module in model.modules())
        assert measured[0] == measured[1] == measure(tiny_model(), [batch], k=2)  # without dropout, the same noise

    def test_leave_the_mode_as_it_was_when_a_batch_fails(self) -> None:
        def broken() -> list[Batch]:
            raise OSError

        model = tiny_model().train()
        with pytest.raises(OSError):  # noqa: PT011
            measure(model, (batch for batch in [collate(windows(0), 0)] for _ in broken()))
        assert model.training

    def test_draw_by_the_seed(self) -> None:
        batch = collate(windows(0, 23), 0)
        first, second, other = (measure(tiny_model(), [batch], seed=seed) for seed in (1, 1, 2))
        assert first == second
        assert first.distortion != other.distortion
        assert first.rate == other.rate

    def test_need_no_gradient(self) -> None:
        model = tiny_model()
        measure(model, [collate(windows(0, 23), 0)], k=2)
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_the_verdict_is_that_of_the_measured_rate() -> None:
    model, batch = one_dimensional(0), collate(windows(0), 0)
    assert measure(model, [batch]).collapse.state == "healthy"
    with torch.no_grad():
        model.posterior.out.weight.zero_()  # type: ignore[union-attr, operator]
        model.posterior.out.bias.zero_()  # type: ignore[union-attr, operator]
    collapsed = measure(model, [batch])
    assert (collapsed.collapse.state, collapsed.rate, collapsed.active_units) == ("collapsed", 0, 0)


def test_the_prior_of_a_model_with_context_is_part_of_the_weight() -> None:
    # If q equals p the weight is p(x | z, c) alone, and moving p away from q must change it by log p(z) - log q(z).
    model, window = one_dimensional(2), windows(2)[1]
    batch = collate([window], 2)
    with torch.no_grad():
        inferred = model.infer(batch)
        prior = inferred.prior
        same = inferred._replace(posterior=prior)
        moved = same._replace(prior=Gaussian(prior.mean_BZ + 0.5, prior.log_var_BZ))
        noise = torch.randn(1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        near, far = (float(log_prob_iw(model, batch, terms, 1, torch.Generator().manual_seed(0))) for terms in (same, moved))
        z_BZ = prior.sample(noise)
        assert near == pytest.approx(float(model.log_prob(batch, z_BZ, inferred.context_BC)), abs=1e-12)
        weight = (log_normal(z_BZ, prior.mean_BZ + 0.5, prior.log_var_BZ) - log_normal(z_BZ, *prior)).item()
        assert far - near == pytest.approx(weight, abs=1e-12)
