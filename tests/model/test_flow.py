"""The flow: its density against the Jacobian of automatic differentiation and integration, its inverse, its moments."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from vrae.model.flow import Coupling, Flow, FlowPosterior
from vrae.model.gaussian import DiagonalGaussian, Gaussian, join, repeat, select

IN = 5


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def posterior(latent_size: int = 3, steps: int = 3, seed: int = 0, strength: float = 0.8) -> FlowPosterior:
    """With couplings that bend strongly."""
    torch.manual_seed(seed)
    network = FlowPosterior(DiagonalGaussian(IN, latent_size), IN, 7, latent_size, steps).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(strength * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("latent_size", [2, 3, 4])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_density_is_that_of_the_noise_over_the_jacobian(latent_size: int, steps: int) -> None:
    flow = posterior(latent_size, steps)(normal(4, IN))
    noise_BZ = normal(4, latent_size, seed=2)
    log_prob_B = flow.log_prob(flow.sample(noise_BZ)).sum(-1).detach()
    for b in range(4):
        one = select(flow, torch.tensor([b]))
        jacobian_ZZ = torch.autograd.functional.jacobian(lambda noise, one=one: one.sample(noise[None])[0], noise_BZ[b])
        log_noise = MultivariateNormal(torch.zeros(latent_size).double(), torch.eye(latent_size).double()).log_prob(noise_BZ[b])
        assert float(log_prob_B[b]) == pytest.approx(float(log_noise - jacobian_ZZ.det().abs().log()), abs=1e-10)


def test_the_density_integrates_to_one() -> None:
    flow = posterior(2, 4, strength=0.4)(normal(1, IN))
    centre_Z, side = flow.mean_BZ[0].detach(), 400
    width_Z = 9 * (flow.log_var_BZ[0] / 2).exp().detach()
    axes = [
        torch.linspace(float(c - w), float(c + w), side, dtype=torch.float64) for c, w in zip(centre_Z, width_Z, strict=True)
    ]
    z_SZ = torch.cartesian_prod(*axes)
    density_S = repeat(flow, len(z_SZ)).log_prob(z_SZ).sum(-1).exp().detach()
    assert float(density_S.sum() * (2 * width_Z / (side - 1)).prod()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("latent_size", [2, 5])
def test_a_coupling_is_undone_exactly_and_changes_the_other_half_only(latent_size: int) -> None:
    network = posterior(latent_size, 2)
    features_BX, values_BZ = normal(4, IN), normal(4, latent_size, seed=2)
    for coupling in network.couplings:
        changed_BZ = coupling(values_BZ, features_BX)
        assert isinstance(coupling, Coupling)
        assert torch.equal(changed_BZ[:, coupling.read], values_BZ[:, coupling.read])
        assert (changed_BZ[:, coupling.changed] != values_BZ[:, coupling.changed]).all()
        torch.testing.assert_close(coupling.undo(changed_BZ, features_BX)[0], values_BZ, rtol=1e-12, atol=1e-12)
    assert sorted(network.couplings[0].changed + network.couplings[1].changed) == list(range(latent_size))  # type: ignore[operator]


def test_a_new_flow_is_its_gaussian() -> None:
    torch.manual_seed(0)
    base = DiagonalGaussian(IN, 4)
    flow: Flow = FlowPosterior(base, IN, 7, 4, 3)(torch.randn(2, IN))
    gaussian = Gaussian(flow.base_mean_BZ, flow.base_log_var_BZ)
    z_BZ = torch.randn(2, 4)
    assert torch.equal(flow.sample(z_BZ), gaussian.sample(z_BZ))
    torch.testing.assert_close(flow.log_prob(z_BZ), gaussian.log_prob(z_BZ))


def test_moments_are_those_of_its_samples() -> None:
    flow = posterior(3, 2)(0.3 * normal(1, IN))
    z_SZ = repeat(flow, 100_000).sample(normal(100_000, 3))
    error_Z = z_SZ.std(0) / math.sqrt(64)
    assert ((flow.mean_BZ[0] - z_SZ.mean(0)).abs() < 4 * error_Z).all()
    assert ((flow.log_var_BZ[0].exp() / z_SZ.var(0)).log().abs() < math.log(3)).all()


def test_equal_features_have_equal_means_so_that_a_collapsed_flow_has_no_active_unit() -> None:
    flow = posterior()(normal(1, IN).expand(6, -1))
    torch.testing.assert_close(flow.mean_BZ, flow.mean_BZ[:1].expand(6, -1), rtol=1e-14, atol=1e-14)


def test_examples_do_not_touch_each_other() -> None:
    network, features_BX, noise_BZ = posterior(), normal(4, IN), normal(4, 3, seed=2)
    flow = network(features_BX)
    for b in range(4):
        alone = network(features_BX[b : b + 1])
        z_1Z = alone.sample(noise_BZ[b : b + 1])
        torch.testing.assert_close(flow.sample(noise_BZ)[b : b + 1], z_1Z, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            flow.log_prob(flow.sample(noise_BZ))[b : b + 1], alone.log_prob(z_1Z), rtol=1e-12, atol=1e-12
        )
    assert join([flow, flow]).features_BX.shape == (8, IN)


def test_samples_have_gradients_in_all_parameters() -> None:
    network = posterior()
    network(normal(4, IN)).sample(normal(4, 3)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_a_flow_fits_a_bent_posterior_that_no_gaussian_fits() -> None:
    """Fitted by the reparameterised gradient to z_2 ~ N(z_1^2, 0.2^2), z_1 ~ N(0, 1), whose log density is known."""

    def log_target(z_BZ: Tensor) -> Tensor:
        return -0.5 * (z_BZ[:, 0].square() + ((z_BZ[:, 1] - z_BZ[:, 0].square()) / 0.2).square()) - math.log(2 * math.pi * 0.2)

    fell_short = {}
    for steps in (0, 4):
        torch.manual_seed(0)
        base = DiagonalGaussian(1, 2)
        network = FlowPosterior(base, 1, 16, 2, steps)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        for _ in range(400):
            flow = network(torch.ones(128, 1))
            z_BZ = flow.sample()
            kl = (flow.log_prob(z_BZ).sum(-1) - log_target(z_BZ)).mean()
            optimizer.zero_grad()
            kl.backward()
            optimizer.step()
        with torch.no_grad():
            flow = network(torch.ones(4000, 1))
            z_BZ = flow.sample()
            fell_short[steps] = float((flow.log_prob(z_BZ).sum(-1) - log_target(z_BZ)).mean())
    assert fell_short[0] > 0.8
    assert fell_short[4] < 0.3
