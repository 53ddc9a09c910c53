"""The loss with numbers worked by hand, what gets a gradient, and that the bound's terms stay as they are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, random_windows, tiny_model
from torch import Tensor

from vrae.config import ModelConfig, ObjectiveConfig
from vrae.corpus.batches import Batch, Window, collate
from vrae.corpus.tokenizer import EOS
from vrae.errors import ConfigError
from vrae.model.vrae import VRAE, ElboTerms
from vrae.training.objective import BagOfWords, importance_weighted, loss, objective

# Two turns, three dimensions. Rates: 1.5 and 2.5 in all; per dimension 1.25, 0.2, 0.55 in the mean.
DISTORTION = [10.0, 20.0]
RATE = [[0.5, 0.3, 0.7], [2.0, 0.1, 0.4]]

PLAIN = ObjectiveConfig()
PER_DIMENSION = ObjectiveConfig(free_bits=0.5)
PER_VALUE = ObjectiveConfig(free_bits=0.5, free_bits_per="value")
PER_BATCH = ObjectiveConfig(free_bits=2.1, free_bits_per="batch")
PER_TURN = ObjectiveConfig(free_bits=2.0, free_bits_per="turn")


def terms() -> tuple[ElboTerms, Tensor, Tensor]:
    distortion_B = torch.tensor(DISTORTION, dtype=torch.float64, requires_grad=True)
    rate_BZ = torch.tensor(RATE, dtype=torch.float64, requires_grad=True)
    return ElboTerms(distortion_B, rate_BZ), distortion_B, rate_BZ


@pytest.mark.parametrize(
    ("config", "rate"),
    [
        (PLAIN, 2.0),  # (1.5 + 2.5) / 2
        (PER_DIMENSION, 1.25 + 0.5 + 0.55),  # the batch mean of a dimension, not each turn's
        (ObjectiveConfig(free_bits=9.0), 27.0),
        (PER_TURN, (2.0 + 2.5) / 2),  # each turn's total, not the batch's
        (ObjectiveConfig(free_bits=9.0, free_bits_per="turn"), 9.0),
        (ObjectiveConfig(free_bits_per="turn"), 2.0),
        (PER_VALUE, (0.5 + 0.5 + 0.7 + 2.0 + 0.5 + 0.5) / 2),  # each turn's each dimension
        (PER_BATCH, 2.1),  # the batch's mean, 2.0
        (ObjectiveConfig(free_bits=1.9, free_bits_per="batch"), 2.0),
    ],
)
@pytest.mark.parametrize("kl_weight", [0.0, 0.25, 1.0, 3.0])
def test_loss_is_the_mean_distortion_and_the_weighted_rate_beyond_what_is_free(
    config: ObjectiveConfig, rate: float, kl_weight: float
) -> None:
    assert loss(terms()[0], kl_weight, config).item() == pytest.approx(15 + kl_weight * rate, abs=1e-12)


@pytest.mark.parametrize(
    ("config", "gradient"),
    [
        (PLAIN, [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]),
        (PER_DIMENSION, [[0.5, 0, 0.5], [0.5, 0, 0.5]]),  # the second dimension is below the floor
        (PER_TURN, [[0, 0, 0], [0.5, 0.5, 0.5]]),  # the first turn is
        (ObjectiveConfig(free_bits=0.45, free_bits_per="value"), [[0.5, 0, 0.5], [0.5, 0, 0]]),
        (PER_BATCH, [[0, 0, 0], [0, 0, 0]]),
        (ObjectiveConfig(free_bits=1.9, free_bits_per="batch"), [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]),
    ],
)
def test_what_is_free_gets_no_gradient(config: ObjectiveConfig, gradient: list[list[float]]) -> None:
    bound, distortion_B, rate_BZ = terms()
    loss(bound, 0.4, config).backward()
    assert distortion_B.grad is not None
    assert rate_BZ.grad is not None
    assert distortion_B.grad.tolist() == [0.5, 0.5]
    assert rate_BZ.grad.numpy() == pytest.approx(0.4 * torch.tensor(gradient).numpy())


@pytest.mark.parametrize("config", [PLAIN, PER_DIMENSION, PER_VALUE, PER_TURN, PER_BATCH])
def test_loss_never_changes_the_terms_of_the_bound(config: ObjectiveConfig) -> None:
    bound, _, _ = terms()
    loss(bound, 0.1, config).backward()
    assert bound.distortion_B.tolist() == DISTORTION
    assert bound.rate_BZ.tolist() == RATE
    assert bound.rate_B.tolist() == pytest.approx([1.5, 2.5])
    assert bound.elbo_B.tolist() == pytest.approx([-11.5, -22.5])


@pytest.mark.parametrize("config", [PLAIN, ObjectiveConfig(free_bits=0.5, free_bits_per="turn")])
def test_loss_without_latent_is_the_distortion(config: ObjectiveConfig) -> None:
    bound = ElboTerms(torch.tensor(DISTORTION), torch.zeros(2, 0))
    gap = 0.5 if config.free_bits else 0.0  # a constant: no gradient
    assert loss(bound, 1.0, config).item() == pytest.approx(15 + gap)


# The bound of several samples


def weighted(model: VRAE, batch: Batch, noise_SBZ: Tensor, weight: float, doubly: bool = False) -> tuple[Tensor, ElboTerms]:
    return importance_weighted(model, batch, model.infer(batch), noise_SBZ, weight, doubly)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("doubly", [False, True])
@pytest.mark.parametrize("context_turns", [0, 2])
@pytest.mark.parametrize(("samples", "weight"), [(1, 1.0), (3, 1.0), (4, 0.3)])
def test_the_weighted_bound_is_the_log_of_the_mean_weight_of_each_turn(
    samples: int, weight: float, context_turns: int, doubly: bool
) -> None:
    """Each term alone, with torch.distributions; the mean over samples within the logarithm, that over turns outside."""
    model, windows = tiny_model(context_turns=context_turns), random_windows(5, context_turns)
    noise_SBZ = normal(samples, 5, 4)
    found, terms = weighted(model, collate(windows, context_turns), noise_SBZ, weight, doubly)
    expected, distortions = [], []
    for b, window in enumerate(windows):
        one = collate([window], context_turns)
        posterior, prior, context_1C = model.infer(one)
        q, p = (torch.distributions.Normal(g.mean_BZ, (g.log_var_BZ / 2).exp()) for g in (posterior, prior))
        weights = []
        for noise_BZ in noise_SBZ:
            z_1Z = q.mean + q.stddev * noise_BZ[b : b + 1]
            log_prob = float(model.log_prob(one, z_1Z, context_1C).detach())
            ratio = float((p.log_prob(z_1Z) - q.log_prob(z_1Z)).sum().detach())
            weights.append(math.exp(log_prob + weight * ratio))
            distortions.append(-log_prob)
        expected.append(-math.log(sum(weights) / samples))
    assert float(found.detach()) == pytest.approx(sum(expected) / 5, abs=1e-9)
    assert float(terms.distortion_B.mean()) == pytest.approx(sum(distortions) / len(distortions), abs=1e-9)


def gradients(model: VRAE, batch: Batch, weight: float, doubly: bool, draws: int, samples: int = 2) -> Tensor:
    """[draws, P] gradients of the weighted bound by the posterior's layer, a turn for each draw of the noise."""
    layer = model.posterior.out
    found = []
    for seed in range(draws):
        model.zero_grad()
        weighted(model, batch, normal(samples, len(batch.target_B), model.config.latent_size, seed=seed), weight, doubly)[
            0
        ].backward()
        found.append(torch.cat([layer.weight.grad.flatten(), layer.bias.grad.flatten()]))  # type: ignore[union-attr, operator]
    return torch.stack(found)


@pytest.mark.parametrize("weight", [1.0, 0.4, 0.0])
def test_doubly_reparameterised_gradients_are_the_plain_ones_on_average_with_less_noise(weight: float) -> None:
    """For every weight of the rate, not for the 1 of Tucker et al. alone; 4 standard errors of the paired difference."""
    model = tiny_model(latent_size=2)
    batch = collate([Window([], np.array([5, 9]), [])] * 40, 0)  # forty draws at once
    plain, doubly = (gradients(model, batch, weight, kind, draws=150) for kind in (False, True))
    difference = plain - doubly
    error_P = difference.std(0) / math.sqrt(len(difference))
    assert (difference.mean(0).abs() <= 4 * error_P + 1e-12).all()
    if weight == 1.0:
        assert doubly.var(0).sum() < 0.8 * plain.var(0).sum()


def test_one_sample_doubly_reparameterised_has_no_noise_where_the_posterior_is_the_prior_and_z_is_ignored() -> None:
    """log w is constant there: the path derivative sees it (Roeder et al. 2017), the plain gradient of log q does not."""
    model = tiny_model(latent_size=2)
    with torch.no_grad():
        for parameter in (*model.posterior.parameters(), model.decoder.start_state.weight, model.decoder.condition.weight):
            parameter.zero_()
    batch = collate(random_windows(6, 0), 0)
    assert gradients(model, batch, 1.0, True, draws=3, samples=1).abs().max() < 1e-12
    assert gradients(model, batch, 1.0, False, draws=3, samples=1).abs().max() > 1e-3


def test_generative_gradients_do_not_depend_on_double_reparameterisation() -> None:
    model, batch = tiny_model(context_turns=2), collate(random_windows(5, 2), 2)
    found = []
    for doubly in (False, True):
        model.zero_grad()
        weighted(model, batch, normal(3, 5, 4), 1.0, doubly)[0].backward()
        layers = (model.decoder.gru.weight_hh_l0, model.decoder.out.bias, model.prior.out.weight)
        found.append([layer.grad.clone() for layer in layers])  # type: ignore[union-attr, operator]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


# Bag of words


def test_the_bag_of_words_sums_the_log_probability_of_each_token_and_of_the_end_mark() -> None:
    """By enumeration of the tokens, with the network's equations written out; padding costs nothing."""
    windows = random_windows(6, 2)
    bag = BagOfWords(ModelConfig(**{**TINY, "context_turns": 2}), hidden_size=9).double()
    z_BZ, context_BC = normal(6, 4), normal(6, 7, seed=1)
    found_B = bag(collate(windows, 2), z_BZ, context_BC)
    for b, window in enumerate(windows):
        hidden = torch.tanh(bag.hidden.weight @ torch.cat([z_BZ[b], context_BC[b]]) + bag.hidden.bias)
        prob_V = (bag.out.weight @ hidden + bag.out.bias).softmax(-1)
        expected = sum(math.log(float(prob_V[token].detach())) for token in [*window.target.tolist(), EOS])
        assert float(found_B[b].detach()) == pytest.approx(expected, abs=1e-10)


# All together


def test_the_objective_is_the_loss_of_the_models_own_bound() -> None:
    model, batch, noise_1BZ = tiny_model(context_turns=2), collate(random_windows(5, 2), 2), normal(1, 5, 4)
    config = ObjectiveConfig(free_bits=0.2)
    value, terms, inferred = objective(model, None, batch, noise_1BZ, 0.3, config)
    expected = model(batch, noise_1BZ[0])
    torch.testing.assert_close(terms.elbo_B, expected.elbo_B)
    torch.testing.assert_close(value, loss(expected, 0.3, config))
    assert torch.equal(inferred.context_BC, model.infer(batch).context_BC)


@pytest.mark.parametrize("settings", [{}, {"importance_samples": 3}])
def test_the_bag_of_words_is_added_by_its_weight_and_stays_out_of_the_terms(settings: dict[str, Any]) -> None:
    model, batch = tiny_model(), collate(random_windows(5, 0), 0)
    torch.manual_seed(0)
    bag = BagOfWords(model.config).double()
    noise_SBZ = normal(settings.get("importance_samples", 1), 5, 4)
    without = objective(model, None, batch, noise_SBZ, 0.3, ObjectiveConfig(**settings))
    beside = objective(model, bag, batch, noise_SBZ, 0.3, ObjectiveConfig(bag_of_words=0.7, **settings))
    z_BZ = beside[2].posterior.sample(noise_SBZ[0])
    expected = without[0] - 0.7 * bag(batch, z_BZ, beside[2].context_BC).mean()
    torch.testing.assert_close(beside[0], expected)
    assert torch.equal(beside[1].elbo_B, without[1].elbo_B)


def test_without_noise_the_objective_takes_the_posterior_mean() -> None:
    model, batch = tiny_model(), collate(random_windows(5, 0), 0)
    _, terms, inferred = objective(model, None, batch, torch.zeros(1, 5, 4).double(), 0.0, ObjectiveConfig())
    at_mean_B = -model.log_prob(batch, inferred.posterior.mean_BZ, inferred.context_BC)
    torch.testing.assert_close(terms.distortion_B, at_mean_B)


@pytest.mark.parametrize("settings", [{"importance_samples": 2}, {"doubly_reparameterised": True}])
def test_free_bits_within_the_logarithm_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="free_bits has no meaning"):
        ObjectiveConfig(free_bits=0.1, **settings)
