"""The evidence of a turn, found by integrating over a latent of one dimension, and against sums by hand."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import random_windows, tiny_model
from torch import Tensor

from vrae.corpus.batches import Window, collate
from vrae.model import bound
from vrae.model.bound import Draws, Noise, draw
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
