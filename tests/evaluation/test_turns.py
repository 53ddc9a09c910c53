"""The figures of a turn against the evidence, found by integrating over a latent of one dimension, and against sums by hand."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import random_windows, tiny_model
from torch import Tensor

from vrae.corpus.batches import Window, collate
from vrae.evaluation.turns import Turns, join_turns, measure_batch
from vrae.model import bound
from vrae.model.bound import Draws, Noise, draw
from vrae.model.gaussian import Gaussian
from vrae.model.vrae import VRAE

VOCAB = 7
GRID = torch.linspace(-14, 14, 2801, dtype=torch.float64)  # z, in prior standard deviations from its mean
KINDS: dict[str, dict[str, Any]] = {
    "autoencoder": {"context_turns": 0},
    "reply": {"context_turns": 2},
    "mixture prior": {"context_turns": 2, "prior": "mixture", "prior_components": 3},
    "flow posterior": {"context_turns": 0, "flow_steps": 2},
    "flow and mixture": {"context_turns": 2, "prior": "mixture", "flow_steps": 3},
    "no latent": {"context_turns": 2, "latent_size": 0},
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


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
    distortion: float
    distortion_prior: float  # with z from the prior


def log_normal(z_G: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return -0.5 * (math.log(2 * math.pi) + log_var + (z_G - mean) ** 2 / log_var.exp())


@torch.no_grad()
def integrate(model: VRAE, window: Window) -> Exact:
    inferred = model.infer(collate([window], model.config.context_turns))
    (q_mean, q_log_var), (p_mean, p_log_var) = ((g.mean_BZ[0, 0], g.log_var_BZ[0, 0]) for g in inferred[:2])
    z_G = p_mean + (p_log_var / 2).exp() * GRID
    many = collate([window] * len(z_G), model.config.context_turns)
    log_text_G = model.log_prob(many, z_G[:, None], inferred.context_BC.expand(len(z_G), -1))
    log_prior_G, q_G = log_normal(z_G, p_mean, p_log_var), log_normal(z_G, q_mean, q_log_var)
    joint_G = log_text_G + log_prior_G
    log_prob = torch.trapezoid(joint_G.exp(), z_G).log()
    assert float(torch.trapezoid(q_G.exp(), z_G)) == pytest.approx(1, abs=1e-9)
    elbo = torch.trapezoid(q_G.exp() * (joint_G - q_G), z_G)
    gap = torch.trapezoid(q_G.exp() * (q_G - (joint_G - log_prob)), z_G)
    distortion, naive = (-torch.trapezoid(log_G.exp() * log_text_G, z_G) for log_G in (q_G, log_prior_G))
    return Exact(*map(float, (log_prob, elbo, gap, distortion, naive)))


def windows(context_turns: int, vocab_size: int = VOCAB) -> list[Window]:
    return random_windows(9, context_turns, vocab_size)


@torch.no_grad()
def drawn(model: VRAE, window: Window, k: int, repetitions: int = 2000, source: str = "posterior") -> Draws:
    """Independent repetitions of k draws of one window."""
    batch = collate([window] * repetitions, model.config.context_turns)
    inferred = model.infer(batch)
    return draw(model, batch, inferred, getattr(inferred, source), k, Noise([k], np.arange(repetitions)))


def error(values: Tensor, errors: float = 4) -> float:
    return errors * float(values.std()) / len(values) ** 0.5


one_of_each = pytest.mark.parametrize(("context_turns", "which"), [(0, 0), (0, 4), (2, 1), (2, 5)])


class TestEvidence:
    @one_of_each
    def test_splits_into_the_bound_and_the_divergence_from_the_true_posterior(self, context_turns: int, which: int) -> None:
        exact = integrate(one_dimensional(context_turns), windows(context_turns)[which])
        assert exact.log_prob == pytest.approx(exact.elbo + exact.gap, abs=1e-8)
        assert exact.gap > 1e-3

    @pytest.mark.parametrize("source", ["posterior", "prior"])
    @pytest.mark.parametrize("k", [1, 5])
    @one_of_each
    def test_is_the_mean_of_the_weighted_estimate_whatever_k(self, context_turns: int, which: int, k: int, source: str) -> None:
        model, window = one_dimensional(context_turns), windows(context_turns)[which]
        ratio_R = (drawn(model, window, k, source=source).log_mean_B - integrate(model, window).log_prob).exp()
        assert float(ratio_R.mean()) == pytest.approx(1, abs=error(ratio_R, 5))

    @one_of_each
    def test_is_approached_from_below_with_every_draw(self, context_turns: int, which: int) -> None:
        model, window = one_dimensional(context_turns), windows(context_turns)[which]
        exact = integrate(model, window)
        draws = {k: drawn(model, window, k, 700).log_mean_B for k in (1, 3, 9, 60)}
        mean = {k: float(draw.mean()) for k, draw in draws.items()}
        assert mean[1] == pytest.approx(exact.elbo, abs=error(draws[1]))
        for k, more in ((1, 3), (3, 9), (9, 60)):
            assert mean[k] < mean[more] + error(draws[k]) + error(draws[more])
            assert mean[k] < exact.log_prob + error(draws[k])
        assert mean[60] == pytest.approx(exact.log_prob, abs=error(draws[60]) + 0.02 * exact.gap)
        assert exact.log_prob - mean[60] < 0.2 * (exact.log_prob - mean[1])

    @one_of_each
    def test_falls_short_by_what_the_effective_samples_say(self, context_turns: int, which: int) -> None:
        model, window = one_dimensional(context_turns), windows(context_turns)[which]
        found = drawn(model, window, 60, 500)
        short = integrate(model, window).log_prob - found.log_mean_B
        expected = float((0.5 / found.effective_B - 0.5 / 60).mean())
        assert float(short.mean()) == pytest.approx(expected, abs=error(short) + 0.1 * expected)


class TestDistortion:
    @pytest.mark.parametrize("k", [1, 6])
    @one_of_each
    def test_is_the_mean_over_the_latents_drawn(self, context_turns: int, which: int, k: int) -> None:
        model, window = one_dimensional(context_turns), windows(context_turns)[which]
        exact = integrate(model, window)
        ours, naive = (drawn(model, window, k, source=source).distortion_B for source in ("posterior", "prior"))
        assert float(ours.mean()) == pytest.approx(exact.distortion, abs=error(ours))
        assert float(naive.mean()) == pytest.approx(exact.distortion_prior, abs=error(naive))

    def test_averages_over_more_draws_to_less_noise(self) -> None:
        model, window = one_dimensional(0), windows(0)[4]
        one, ten = (float(drawn(model, window, k).distortion_B.std()) for k in (1, 10))
        assert one / ten == pytest.approx(10**0.5, rel=0.1)


class Stub:
    """As much of a model as `draw` needs: log p(x | z) is -z_0 of each latent."""

    class config:  # noqa: N801
        latent_size = 1

    device = torch.device("cpu")

    def log_prob(self, batch: Any, z_PZ: Tensor, context_PC: Tensor) -> Tensor:
        return -z_PZ[:, 0]


def test_figures_of_three_draws_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # q = N(1, 1), p = N(0, 1); noise 0, 1, -1 makes z = 1, 2, 0. log w = -z + log p(z) - log q(z) = -z + 1/2 - z.
    class Given(Noise):
        def draw(self, times: int, size: int) -> Tensor:
            return torch.tensor([[0.0], [1.0], [-1.0]], dtype=torch.float64)

    batch = collate(windows(0)[:1], 0)
    zeros_BZ, nothing_BC = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, 0, dtype=torch.float64)
    posterior, prior = Gaussian(zeros_BZ + 1, zeros_BZ), Gaussian(zeros_BZ, zeros_BZ)
    inferred = bound.Inferred(posterior, prior, nothing_BC)
    found = draw(Stub(), batch, inferred, posterior, 3, Given([0], np.zeros(1, np.int64)))  # type: ignore[arg-type]
    weights = [math.exp(-1.5), math.exp(-3.5), math.exp(0.5)]
    assert found.distortion_B.tolist() == pytest.approx([1.0])
    assert found.rate_BZ.tolist() == [pytest.approx([0.5])]
    assert found.log_mean_B.tolist() == pytest.approx([math.log(sum(weights) / 3)])
    assert found.effective_B.tolist() == pytest.approx([sum(weights) ** 2 / sum(w * w for w in weights)])


class TestNoise:
    def test_of_a_draw_does_not_depend_on_how_many_are_taken_at_once(self) -> None:
        windows_B = np.array([3, 0, 70_000_000_000])
        whole = Noise([5, 1], windows_B).draw(9, 3).view(3, 9, 3)
        parts = Noise([5, 1], windows_B)
        assert torch.equal(whole, torch.cat([parts.draw(times, 3).view(3, times, 3) for times in (2, 1, 6)], 1))

    def test_of_a_turn_does_not_depend_on_the_others(self) -> None:
        together = Noise([5, 1], np.array([3, 8, 0])).draw(4, 2).view(3, 4, 2)
        for i, window in enumerate((3, 8, 0)):
            assert torch.equal(together[i], Noise([5, 1], np.array([window])).draw(4, 2))

    def test_differs_by_key_and_turn_and_draw(self) -> None:
        drawn = [Noise(key, np.array([0, 1])).draw(50, 2) for key in ([0, 0], [0, 1], [1, 0])]
        assert len(torch.cat(drawn).unique()) == 3 * 2 * 50 * 2

    def test_is_standard_normal(self) -> None:
        values = Noise([0], np.arange(1000)).draw(10, 5).double()
        assert float(values.mean()) == pytest.approx(0, abs=4 / 50_000**0.5)
        assert float(values.var()) == pytest.approx(1, abs=4 * (2 / 50_000) ** 0.5)


def same(one: Turns, other: Turns, tolerance: float = 1e-11) -> bool:
    return all(np.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True) for a, b in zip(one, other, strict=True))


class TestBatched:
    @pytest.mark.parametrize("k", [0, 3])
    @each_kind
    def test_is_alone(self, kind: dict[str, Any], k: int) -> None:
        model, turns = tiny_model(**kind), windows(kind["context_turns"], 23)
        numbers_B = np.array([40, 3, 77, 1, 2, 9, 1000, 8, 500])
        together = measure_batch(model, numbers_B, collate(turns, kind["context_turns"]), k=k, seed=4)
        for i in range(9):
            alone = measure_batch(model, numbers_B[i : i + 1], collate(turns[i : i + 1], kind["context_turns"]), k=k, seed=4)
            assert same(alone, Turns(*(value[i : i + 1] for value in together)))

    @each_kind
    def test_is_the_same_however_many_draws_are_side_by_side(
        self, kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, batch = tiny_model(**kind), collate(windows(kind["context_turns"], 23), kind["context_turns"])
        whole = measure_batch(model, np.arange(9), batch, k=7, seed=4)
        for at_once in (1, 2, 3, 6):
            monkeypatch.setattr(bound, "_TOKENS", {"cpu": at_once * batch.tokens})
            assert same(measure_batch(model, np.arange(9), batch, k=7, seed=4), whole)

    def test_draws_nothing_twice(self) -> None:
        # From the same draws the weighted estimate would be the same for posterior = prior; here the streams differ.
        model, batch = tiny_model(), collate(windows(0, 23), 0)
        with torch.no_grad():
            model.posterior.out.weight.zero_()  # type: ignore[union-attr, operator]
            model.posterior.out.bias.zero_()  # type: ignore[union-attr, operator]
        found = measure_batch(model, np.arange(9), batch, k=2, seed=0)
        assert (found.nll_iw_N != found.nll_prior_N).all()
        assert (found.distortion_N != found.distortion_prior_N).all()
        assert (found.nll_iw_N < found.distortion_N).all()  # two draws differ: log of mean > mean of log

    @each_kind
    def test_weighted_estimate_of_one_draw_is_the_bound_at_it(self, kind: dict[str, Any]) -> None:
        model, batch = tiny_model(**kind), collate(windows(kind["context_turns"], 23), kind["context_turns"])
        with torch.no_grad():
            inferred = model.infer(batch)
            noise = Noise([6, 0], np.arange(9)).draw(1, inferred.posterior.noise_size).double()
            z_BZ = inferred.posterior.sample(noise)
            distortion_B = -model.log_prob(batch, z_BZ, inferred.context_BC)
            ratio_B = (inferred.posterior.log_prob(z_BZ) - inferred.prior.log_prob(z_BZ)).sum(-1)
        found = measure_batch(model, np.arange(9), batch, k=1, seed=6)
        assert found.distortion_N == pytest.approx(distortion_B.numpy(), abs=1e-12)
        assert found.nll_iw_N == pytest.approx((distortion_B + ratio_B).numpy(), abs=1e-11)
        assert found.effective_N == pytest.approx(np.ones(9))
        if not isinstance(inferred.posterior, Gaussian) or not isinstance(inferred.prior, Gaussian):
            assert found.rate_NZ.sum(-1) == pytest.approx(ratio_B.numpy(), abs=1e-11)

    def test_rate_between_gaussians_is_exact(self) -> None:
        model, turns = tiny_model(context_turns=2), windows(2, 23)
        batch = collate(turns, 2)
        with torch.no_grad():
            q, p = (
                torch.distributions.Normal(g.mean_BZ, (g.log_var_BZ / 2).exp())
                for g in (model.infer(batch).posterior, model.infer(batch).prior)
            )
            rate_BZ = torch.distributions.kl_divergence(q, p)
        for k in (0, 5):
            found = measure_batch(model, np.arange(9), batch, k=k, seed=0)
            assert found.rate_NZ == pytest.approx(rate_BZ.numpy(), abs=1e-12)

    @pytest.mark.parametrize("k", [1, 50])
    def test_without_latent_every_estimate_is_the_log_likelihood(self, k: int) -> None:
        model, batch = tiny_model(context_turns=2, latent_size=0), collate(windows(2, 23), 2)
        with torch.no_grad():
            nats_B = -model.log_prob(batch, torch.zeros(9, 0, dtype=torch.float64), model.condition(batch)[1])
        found = measure_batch(model, np.arange(9), batch, k=k, seed=0)
        for nats_N in (found.distortion_N, found.nll_iw_N, found.nll_prior_N, found.distortion_prior_N, -found.elbo_N):
            assert nats_N == pytest.approx(nats_B.numpy(), abs=1e-12)
        assert found.effective_N == pytest.approx(np.full(9, k))
        assert found.rate_NZ.shape == found.offsets_NZ.shape == (9, 0)

    def test_offsets_are_those_from_the_prior_of_the_context(self) -> None:
        model, batch = tiny_model(context_turns=2), collate(windows(2, 23), 2)
        with torch.no_grad():
            q, p, _ = model.infer(batch)
        found = measure_batch(model, np.arange(9), batch, k=0, seed=0)
        assert found.offsets_NZ == pytest.approx(((q.mean_BZ - p.mean_BZ) / (p.log_var_BZ / 2).exp()).numpy(), abs=1e-12)

    def test_counts_end_marks(self) -> None:
        turns = windows(0, 23)
        found = measure_batch(tiny_model(), np.arange(9), collate(turns, 0), k=0, seed=0)
        assert found.tokens_N.tolist() == [len(window.target) + 1 for window in turns]
        assert all(np.isnan(values).all() for values in found[5:])


def test_the_prior_of_a_model_with_context_is_part_of_the_weight() -> None:
    # If q equals p the weight is p(x | z, c) alone, and moving p away from q must change it by log p(z) - log q(z).
    model, window = one_dimensional(2), windows(2)[1]
    batch = collate([window], 2)
    with torch.no_grad():
        inferred = model.infer(batch)
        prior = inferred.prior
        same = inferred._replace(posterior=prior)
        moved = same._replace(prior=Gaussian(prior.mean_BZ + 0.5, prior.log_var_BZ))
        first = np.zeros(1, np.int64)
        near, far = (
            float(draw(model, batch, terms, terms.posterior, 1, Noise([0], first)).log_mean_B) for terms in (same, moved)
        )
        z_BZ = prior.sample(Noise([0], first).draw(1, 1).double())
        assert near == pytest.approx(float(model.log_prob(batch, z_BZ, inferred.context_BC)), abs=1e-12)
        weight = log_normal(z_BZ, prior.mean_BZ + 0.5, prior.log_var_BZ) - log_normal(z_BZ, prior.mean_BZ, prior.log_var_BZ)
        assert far - near == pytest.approx(weight.item(), abs=1e-12)


class TestJoining:
    def test_puts_turns_in_the_order_of_the_split(self) -> None:
        model, turns = tiny_model(), windows(0, 23)
        numbers_B = np.array([5, 2, 8, 0, 1, 7, 3, 6, 4])
        whole = measure_batch(model, numbers_B, collate(turns, 0), k=2, seed=0)
        parts = [Turns(*(value[rows] for value in whole)) for rows in (slice(6, 9), slice(0, 2), slice(2, 6))]
        joined = join_turns(parts, 4)
        assert joined.window_N.tolist() == list(range(9))
        assert all(np.array_equal(a, b[np.argsort(numbers_B)]) for a, b in zip(joined, whole, strict=True))

    def test_of_nothing_has_the_right_widths(self) -> None:
        nothing = join_turns([], 3)
        assert nothing.rate_NZ.shape == nothing.offsets_NZ.shape == (0, 3)
        assert nothing.elbo_N.shape == nothing.window_N.shape == (0,)
