"""Densities, divergences and samples of diagonal Gaussians, against torch.distributions, Monte Carlo and hand derivation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vrae.model.gaussian import (
    LOG_VAR_RANGE,
    DiagonalGaussian,
    Gaussian,
    ScaledBatchNorm,
    StandardPrior,
    divergence,
    each_tensor,
    join,
    repeat,
    select,
)


def random_gaussian(seed: int, dtype: torch.dtype = torch.float64) -> Gaussian:
    draw = torch.Generator().manual_seed(seed)
    return Gaussian(*(torch.randn(5, 3, generator=draw, dtype=dtype) * scale for scale in (2.0, 1.5)))


def as_normal(gaussian: Gaussian) -> Normal:
    return Normal(gaussian.mean_BZ, gaussian.log_var_BZ.exp().sqrt())


@pytest.mark.parametrize("seed", range(5))
def test_log_prob_is_that_of_a_normal(seed: int) -> None:
    gaussian, z_BZ = random_gaussian(seed), random_gaussian(seed + 100).mean_BZ
    torch.testing.assert_close(gaussian.log_prob(z_BZ), as_normal(gaussian).log_prob(z_BZ), rtol=1e-12, atol=1e-12)


def test_the_density_integrates_to_one() -> None:
    gaussian = Gaussian(torch.tensor([[0.7]]).double(), torch.tensor([[-1.3]]).double())
    z_SZ = torch.linspace(-10, 10, 4001, dtype=torch.float64)[:, None]
    assert float(gaussian.log_prob(z_SZ).exp().sum() * 20 / 4000) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_kl_is_that_of_two_normals(seed: int) -> None:
    q, p = random_gaussian(seed), random_gaussian(seed + 100)
    torch.testing.assert_close(q.kl(p), kl_divergence(as_normal(q), as_normal(p)), rtol=1e-12, atol=1e-12)


def test_kl_to_the_standard_prior_is_the_formula_of_kingma_and_welling() -> None:
    """Appendix B: -KL = 1/2 sum_d (1 + log s_d^2 - m_d^2 - s_d^2)."""
    q = random_gaussian(0)
    expected_BZ = -0.5 * (1 + q.log_var_BZ - q.mean_BZ**2 - q.log_var_BZ.exp())
    torch.testing.assert_close(q.kl(StandardPrior(3)(q.mean_BZ)), expected_BZ, rtol=1e-12, atol=1e-12)


def test_kl_is_the_mean_log_ratio_under_its_own_samples() -> None:
    q, p = Gaussian(*(v[:1] for v in random_gaussian(1))), Gaussian(*(v[:1] for v in random_gaussian(2)))
    samples = 200_000
    noise_SZ = torch.randn(samples, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z_SZ = q.sample(noise_SZ)
    ratio_SZ = q.log_prob(z_SZ) - p.log_prob(z_SZ)
    standard_error_Z = ratio_SZ.std(0) / math.sqrt(samples)
    assert ((ratio_SZ.mean(0) - q.kl(p)[0]).abs() < 4 * standard_error_Z).all()


def test_kl_is_zero_to_itself() -> None:
    q = random_gaussian(0)
    assert torch.equal(q.kl(q), torch.zeros(5, 3, dtype=torch.float64))


@pytest.mark.parametrize("field", Gaussian._fields)
@pytest.mark.parametrize("shift", [-1e-3, 1e-3, 1.0])
def test_kl_is_positive_to_any_other(field: str, shift: float) -> None:
    q = random_gaussian(0)
    assert (q.kl(q._replace(**{field: getattr(q, field) + shift})) > 0).all()


@pytest.mark.parametrize("scale", [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1.0])
def test_kl_is_never_negative_however_close_the_two_are_in_single_precision(scale: float) -> None:
    """A collapsed posterior is this close to the prior; rounding must not make its rate negative."""
    draw = torch.Generator().manual_seed(0)
    zeros_BZ = torch.zeros(2000, 4)
    q = Gaussian(zeros_BZ, scale * torch.randn(2000, 4, generator=draw))
    assert (q.kl(Gaussian(zeros_BZ, zeros_BZ)) >= 0).all()


def test_samples_have_the_mean_and_the_variance() -> None:
    q = Gaussian(torch.full((100_000, 1), 1.5).double(), torch.full((100_000, 1), math.log(0.49)).double())
    torch.manual_seed(0)
    z_BZ = q.sample()
    assert float(z_BZ.mean()) == pytest.approx(1.5, abs=4 * 0.7 / math.sqrt(100_000))
    assert float(z_BZ.var()) == pytest.approx(0.49, abs=4 * 0.49 * math.sqrt(2 / 100_000))


def test_a_sample_is_differentiable_in_mean_and_log_variance() -> None:
    """dz/dmean = 1 and dz/dlog_var = exp(log_var / 2) * noise / 2."""
    mean_BZ, log_var_BZ = (value.requires_grad_() for value in random_gaussian(0))
    noise_BZ = random_gaussian(3).mean_BZ
    z_BZ = Gaussian(mean_BZ, log_var_BZ).sample(noise_BZ)
    grads = torch.autograd.grad(z_BZ.sum(), (mean_BZ, log_var_BZ))
    torch.testing.assert_close(grads[0], torch.ones_like(mean_BZ), rtol=0, atol=0)
    torch.testing.assert_close(grads[1], 0.5 * log_var_BZ.exp().sqrt() * noise_BZ, rtol=1e-12, atol=1e-12)


def test_without_noise_given_the_global_generator_draws_it() -> None:
    q = random_gaussian(0)
    torch.manual_seed(5)
    drawn_BZ = q.sample()
    torch.manual_seed(5)
    torch.testing.assert_close(drawn_BZ, q.sample(torch.randn(5, 3, dtype=torch.float64)), rtol=0, atol=0)


def test_repeat_keeps_the_copies_of_an_example_together() -> None:
    q = Gaussian(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]]))
    assert repeat(q, 3).mean_BZ[:, 0].tolist() == [1, 1, 1, 2, 2, 2]
    assert repeat(q, 3).log_var_BZ[:, 0].tolist() == [3, 3, 3, 4, 4, 4]


def test_the_standard_prior_does_not_depend_on_the_features() -> None:
    prior = StandardPrior(3)(torch.randn(2, 7, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(prior.mean_BZ, torch.zeros(2, 3))
    assert torch.equal(prior.log_var_BZ, torch.zeros(2, 3))


def test_a_gaussian_of_no_dimensions_has_no_divergence() -> None:
    nothing = StandardPrior(0)(torch.zeros(2, 7))
    assert nothing.kl(nothing).shape == (2, 0)
    assert nothing.sample().shape == (2, 0)


def extreme(log_var: float, mean: float = 0.0) -> Gaussian:
    """What the network makes of a log-variance that has run away, in single precision."""
    network = DiagonalGaussian(in_size=1, latent_size=2)
    with torch.no_grad():
        network.out.weight.zero_()
        network.out.bias.copy_(torch.tensor([mean, mean, log_var, log_var]))
    gaussian: Gaussian = network(torch.zeros(1, 1))
    return gaussian


@pytest.mark.parametrize("log_var", [-1e4, -1.0, 1e4])
@pytest.mark.parametrize("other", [-1e4, -1.0, 1e4])
def test_runaway_log_variances_give_finite_numbers(log_var: float, other: float) -> None:
    q, p = extreme(log_var, mean=100.0), extreme(other, mean=-100.0)
    for value in (q.kl(p), q.log_prob(p.mean_BZ), q.sample(torch.full((1, 2), 5.0))):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("log_var", [LOG_VAR_RANGE[0], -3.7, 0.0, LOG_VAR_RANGE[1]])
def test_log_variances_within_the_range_are_left_as_they_are(log_var: float) -> None:
    assert torch.equal(extreme(log_var).log_var_BZ, torch.full((1, 2), log_var))


@pytest.mark.parametrize("hidden_size", [0, 6])
def test_the_network_is_linear_or_has_one_tanh_layer(hidden_size: int) -> None:
    torch.manual_seed(0)
    network = DiagonalGaussian(5, 3, hidden_size).double()
    features_BX = torch.randn(4, 5, dtype=torch.float64)
    hidden_BX: Tensor = features_BX
    if hidden_size:
        hidden_BX = torch.tanh(features_BX @ network.hidden[0].weight.T + network.hidden[0].bias)  # type: ignore[index]
    both_BX = hidden_BX @ network.out.weight.T + network.out.bias
    mean_BZ, log_var_BZ = network(features_BX)
    torch.testing.assert_close(mean_BZ, both_BX[:, :3], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_var_BZ, both_BX[:, 3:], rtol=1e-12, atol=1e-12)


def test_select_and_join_choose_and_gather_examples() -> None:
    q, rows = random_gaussian(0), torch.tensor([3, 0])
    assert torch.equal(select(q, rows).mean_BZ, q.mean_BZ[[3, 0]])
    assert torch.equal(select(q, rows).log_var_BZ, q.log_var_BZ[[3, 0]])
    parts = [select(q, torch.tensor([0, 1])), select(q, torch.tensor([2, 3, 4]))]
    assert all(torch.equal(a, b) for a, b in zip(join(parts), q, strict=True))
    assert not each_tensor(q._replace(mean_BZ=q.mean_BZ.requires_grad_()), Tensor.detach).mean_BZ.requires_grad


def test_divergence_between_gaussians_is_exact_whatever_the_sample() -> None:
    q, p = random_gaussian(0), random_gaussian(1)
    for z_BZ in (q.mean_BZ, q.mean_BZ + 7):
        assert torch.equal(divergence(q, p, z_BZ), q.kl(p))


def normalised(training: bool, values_BZ: Tensor) -> tuple[ScaledBatchNorm, Tensor]:
    layer = ScaledBatchNorm(values_BZ.shape[1], 0.6).double().train(training)
    with torch.no_grad():
        layer.shift_Z.copy_(torch.tensor([1.0, -2.0, 0.0]))
    return layer, layer(values_BZ)


def test_batch_normalisation_gives_each_dimension_the_learnt_mean_and_the_fixed_deviation() -> None:
    """By hand: of (1, 3) the mean is 2 and the deviation 1 (n below), so they become shift -+ 0.6."""
    _, by_hand_BZ = normalised(True, torch.tensor([[1.0, 10, 0], [3, 30, 8]]).double())
    torch.testing.assert_close(by_hand_BZ, torch.tensor([[0.4, -2.6, -0.6], [1.6, -1.4, 0.6]]).double(), rtol=0, atol=1e-4)
    _, found_BZ = normalised(True, 50 * random_gaussian(3).mean_BZ)
    torch.testing.assert_close(found_BZ.mean(0), torch.tensor([1.0, -2.0, 0.0]).double())
    torch.testing.assert_close(found_BZ.std(0, correction=0), torch.full((3,), 0.6).double(), rtol=1e-6, atol=0)


def test_batch_normalisation_bounds_the_rate_from_below() -> None:
    """Over a batch the mean rate is at least Z * scale^2 / 2, whatever the network says (Zhu et al. 2020, eq. 6)."""
    torch.manual_seed(0)
    network = DiagonalGaussian(7, 3, mean_scale=0.6).double().train()
    for size in (0.3, 1.0, 100.0):
        q = network(size * torch.randn(64, 7).double())
        assert float(q.kl(StandardPrior(3)(q.mean_BZ)).sum(-1).mean().detach()) >= 3 * 0.6**2 / 2 * 0.999
    log_var_BZ = torch.zeros(64, 3).double()  # and reaches it where the variances are the prior's
    q = Gaussian(network.normalise(torch.randn(64, 3).double()), log_var_BZ)
    assert float(q.kl(StandardPrior(3)(q.mean_BZ)).sum(-1).mean().detach()) == pytest.approx(3 * 0.6**2 / 2, rel=1e-3)


def test_in_eval_mode_batch_normalisation_uses_the_running_moments_of_training() -> None:
    values_BZ = random_gaussian(3).mean_BZ
    layer, _ = normalised(True, values_BZ)
    torch.testing.assert_close(layer.mean_Z, 0.1 * values_BZ.mean(0))
    torch.testing.assert_close(layer.variance_Z, 0.9 + 0.1 * values_BZ.var(0, correction=0))
    layer.eval()
    expected_BZ = 0.6 * (values_BZ - layer.mean_Z) / (layer.variance_Z + 1e-5).sqrt() + layer.shift_Z
    for b in range(5):
        torch.testing.assert_close(layer(values_BZ[b : b + 1])[0], expected_BZ[b])


def test_a_batch_of_one_is_normalised_by_the_running_moments_and_does_not_move_them() -> None:
    layer, found_BZ = normalised(True, random_gaussian(3).mean_BZ[:1])
    assert torch.equal(found_BZ, layer.eval()(random_gaussian(3).mean_BZ[:1]))
    assert layer.mean_Z.tolist() == [0, 0, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_batch_that_is_not_finite_does_not_move_the_running_moments(value: float) -> None:
    values_BZ = random_gaussian(3).mean_BZ.clone()
    values_BZ[2, 1] = value
    layer, _ = normalised(True, values_BZ)
    assert layer.mean_Z.tolist() == [0, 0, 0]
    assert layer.variance_Z.tolist() == [1, 1, 1]
