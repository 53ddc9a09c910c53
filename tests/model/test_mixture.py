"""The mixture of Gaussians: its density against torch.distributions and integration, its samples, its moments."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from vrae.model.gaussian import Gaussian, divergence, join, repeat, select
from vrae.model.mixture import FreeMixture, GaussianMixture, MixturePrior


def random_mixture(B: int = 4, M: int = 3, Z: int = 2, seed: int = 0) -> GaussianMixture:
    draw = torch.Generator().manual_seed(seed)
    log_weight_BM = torch.randn(B, M, generator=draw, dtype=torch.float64).log_softmax(-1)
    return GaussianMixture(log_weight_BM, *(torch.randn(B, M, Z, generator=draw, dtype=torch.float64) for _ in range(2)))


def as_torch(mixture: GaussianMixture) -> MixtureSameFamily:
    parts = Independent(Normal(mixture.means_BMZ, (mixture.log_vars_BMZ / 2).exp()), 1)
    return MixtureSameFamily(Categorical(logits=mixture.log_weight_BM), parts)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("components", [1, 2, 5])
def test_the_shares_of_the_dimensions_sum_to_the_log_density(components: int, seed: int) -> None:
    mixture, z_BZ = random_mixture(M=components, Z=3, seed=seed), 2 * normal(4, 3)
    torch.testing.assert_close(mixture.log_prob(z_BZ).sum(-1), as_torch(mixture).log_prob(z_BZ), rtol=1e-12, atol=1e-12)


def test_each_share_is_a_density_given_the_dimensions_before() -> None:
    """Integrated over its own dimension alone it is one, whatever the dimension before is."""
    grid_S = torch.linspace(-60, 60, 12001, dtype=torch.float64)
    for first in (-1.0, 0.3, 2.0):
        z_SZ = torch.stack([torch.full_like(grid_S, first), grid_S], -1)
        shares_SZ = repeat(select(random_mixture(), torch.tensor([0])), len(grid_S)).log_prob(z_SZ)
        assert float(shares_SZ[:, 1].exp().sum() * 120 / 12000) == pytest.approx(1, abs=1e-9)


def test_with_one_component_it_is_that_gaussian() -> None:
    mixture, z_BZ = random_mixture(M=1), normal(4, 2)
    gaussian = Gaussian(mixture.means_BMZ[:, 0], mixture.log_vars_BMZ[:, 0])
    torch.testing.assert_close(mixture.log_prob(z_BZ), gaussian.log_prob(z_BZ), rtol=1e-12, atol=1e-12)
    noise_BN = normal(4, 3)
    assert torch.equal(mixture.sample(noise_BN), gaussian.sample(noise_BN[:, 1:]))
    torch.testing.assert_close(mixture.mean_BZ, gaussian.mean_BZ)
    torch.testing.assert_close(mixture.log_var_BZ, gaussian.log_var_BZ)


def test_moments_are_those_of_the_mixture() -> None:
    mixture = random_mixture()
    torch.testing.assert_close(mixture.mean_BZ, as_torch(mixture).mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mixture.log_var_BZ.exp(), as_torch(mixture).variance, rtol=1e-12, atol=1e-12)


def test_samples_come_from_the_density() -> None:
    """With components far apart: each is drawn as often as it weighs, and has its mean and variance."""
    far = select(random_mixture(), torch.tensor([1]))._replace(
        means_BMZ=torch.tensor([[[-9.0, 0.0], [0.0, 9.0], [9.0, 0.0]]]).double()
    )
    samples = 100_000
    z_SZ = repeat(far, samples).sample(normal(samples, 3))
    nearest_S = torch.cdist(z_SZ, far.means_BMZ[0]).argmin(1)
    for component, weight in enumerate(far.log_weight_BM.exp()[0].tolist()):
        share = float((nearest_S == component).double().mean())
        assert abs(share - weight) < 4 * math.sqrt(weight * (1 - weight) / samples)
        within_SZ = z_SZ[nearest_S == component]
        variance_Z = far.log_vars_BMZ[0, component].exp()
        assert ((within_SZ.mean(0) - far.means_BMZ[0, component]).abs() < 4 * (variance_Z / len(within_SZ)).sqrt()).all()
        assert ((within_SZ.var(0) / variance_Z - 1).abs() < 4 * math.sqrt(2 / len(within_SZ))).all()


def test_extreme_noise_chooses_the_first_and_the_last_component() -> None:
    mixture = random_mixture()
    noise_BN = torch.tensor([[-40.0, 0, 0], [40.0, 0, 0], [-40.0, 0, 0], [40.0, 0, 0]]).double()
    expected_BZ = torch.stack([mixture.means_BMZ[b, 0 if b % 2 == 0 else -1] for b in range(4)])
    assert torch.equal(mixture.sample(noise_BN), expected_BZ)


def test_divergence_from_a_gaussian_is_the_log_ratio_at_the_sample_and_right_on_average() -> None:
    """Against the divergence integrated over a grid."""
    posterior, prior = Gaussian(torch.tensor([[0.4]]).double(), torch.tensor([[-0.5]]).double()), random_mixture(B=1, Z=1)
    grid_S1 = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    log_q_S = repeat(posterior, 4001).log_prob(grid_S1)[:, 0]
    log_p_S = as_torch(repeat(prior, 4001)).log_prob(grid_S1)
    exact = float((log_q_S.exp() * (log_q_S - log_p_S)).sum() * 24 / 4000)
    many, samples = repeat(posterior, 200_000), 200_000
    z_SZ = many.sample(normal(samples, 1))
    found_S = divergence(many, repeat(prior, samples), z_SZ)[:, 0]
    assert abs(float(found_S.mean()) - exact) < 4 * float(found_S.std()) / math.sqrt(samples)


def test_the_prior_reads_weights_means_and_variances_off_the_context() -> None:
    torch.manual_seed(0)
    prior = MixturePrior(5, 2, 7, components=3).double()
    mixture = prior(normal(4, 5))
    assert mixture.means_BMZ.shape == mixture.log_vars_BMZ.shape == (4, 3, 2)
    torch.testing.assert_close(mixture.log_weight_BM.exp().sum(-1), torch.ones(4).double())
    alone = prior(normal(4, 5)[2:3])
    torch.testing.assert_close(select(mixture, torch.tensor([2])), alone, rtol=1e-12, atol=1e-12)
    assert len(set(mixture.means_BMZ[0, :, 0].tolist())) == 3  # components differ from the start
    assert join([mixture, alone]).log_weight_BM.shape == (5, 3)


def test_the_density_has_gradients_in_all_parameters() -> None:
    torch.manual_seed(0)
    prior = MixturePrior(5, 2, 7, components=3)
    prior(torch.randn(4, 5)).log_prob(torch.randn(4, 2)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in prior.parameters())


def test_without_a_context_it_is_the_same_for_every_turn_and_learns_what_is_not_normal() -> None:
    """Fitted to two far clumps, of weight one to three, it finds their weights, means and variances."""
    torch.manual_seed(0)
    prior = FreeMixture(1, components=2).double()
    mixture = prior(torch.zeros(5, 0).double())
    assert all(torch.equal(part, part[:1].expand_as(part)) for part in mixture)
    draw_N = torch.rand(4000).double() < 0.25
    z_N1 = torch.where(draw_N, -3 + 0.5 * normal(4000), 2 + normal(4000, seed=2))[:, None]
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        loss = -prior(torch.zeros(len(z_N1), 0)).log_prob(z_N1).mean()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        mixture = prior(torch.zeros(1, 0))
    order = mixture.means_BMZ[0, :, 0].argsort()
    assert mixture.log_weight_BM[0].exp()[order].tolist() == pytest.approx([0.25, 0.75], abs=0.03)
    assert mixture.means_BMZ[0, order, 0].tolist() == pytest.approx([-3, 2], abs=0.1)
    assert mixture.log_vars_BMZ[0, order, 0].exp().tolist() == pytest.approx([0.25, 1], rel=0.15)


def test_before_training_a_mixture_without_context_is_not_far_from_standard() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        mixture = FreeMixture(16, components=20)(torch.zeros(1, 0))
        assert mixture.mean_BZ.abs().max() < 0.5
        assert 0.5 < float(mixture.log_var_BZ.exp().mean()) < 1.5
