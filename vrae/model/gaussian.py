"""Diagonal Gaussians: the distribution, the prior without parameters, and the network that reads one off a vector.

`Density` is what posteriors and priors have in common; `mixture.py` and `flow.py` have the two that are not Gaussian.

Shape legend: B examples, Z latent dimensions, N noise numbers per example, X input features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

LOG_VAR_RANGE = (-12.0, 8.0)  # standard deviations between 0.0025 and 55: exp() of it can neither overflow nor vanish


class Density(Protocol):
    """A distribution over z for each of B examples: a named tuple whose tensors have the examples first.

    `log_prob` is split over the dimensions by the chain rule, and its sum over them is the exact log density.
    """

    @property
    def mean_BZ(self) -> Tensor: ...

    @property
    def log_var_BZ(self) -> Tensor:
        """Logarithm of the variance of each dimension."""

    @property
    def noise_size(self) -> int:
        """N: standard normal numbers that `sample` wants for each example."""

    def sample(self, noise_BN: Tensor | None = None) -> Tensor:
        """z, [B, Z]."""

    def log_prob(self, z_BZ: Tensor) -> Tensor:
        """[B, Z] nats."""


D = TypeVar("D", bound=Density)


def each_tensor(density: D, change: Callable[[Tensor], Tensor]) -> D:
    """The density with `change` applied to each of its tensors: to detach or move them, or to take other examples."""
    named: Any = density
    changed = {name: change(value) for name, value in named._asdict().items() if isinstance(value, Tensor)}
    return cast(D, named._replace(**changed))


def select(density: D, rows: Tensor) -> D:
    """Some of the examples."""
    return each_tensor(density, lambda value: value[rows])


def repeat(density: D, times: int) -> D:
    """Each example `times` times in a row."""
    return each_tensor(density, lambda value: value.repeat_interleave(times, 0))


def join(densities: Sequence[D]) -> D:
    """The examples of all, one after the other."""
    first: Any = densities[0]
    names = [name for name, value in first._asdict().items() if isinstance(value, Tensor)]
    return cast(D, first._replace(**{name: torch.cat([getattr(density, name) for density in densities]) for name in names}))


def divergence(posterior: Density, prior: Density, z_BZ: Tensor) -> Tensor:
    """KL(posterior || prior) in nats, [B, Z]; the sum over Z is the rate.

    Between two Gaussians it is exact. Else it is the estimate log q(z) - log p(z) at the sample `z_BZ` of the posterior:
    without bias, but noisy and now and then negative.
    """
    if isinstance(posterior, Gaussian) and isinstance(prior, Gaussian):
        return posterior.kl(prior)
    return posterior.log_prob(z_BZ) - prior.log_prob(z_BZ)


class Gaussian(NamedTuple):
    """N(mean, diag(exp(log_var))), one per example. Densities and divergences are in nats and per dimension."""

    mean_BZ: Tensor
    log_var_BZ: Tensor

    @property
    def noise_size(self) -> int:
        return self.mean_BZ.shape[1]

    def sample(self, noise_BZ: Tensor | None = None) -> Tensor:
        """z = mean + exp(log_var / 2) * noise, differentiable in both (Kingma & Welling 2014, section 2.4)."""
        if noise_BZ is None:
            noise_BZ = torch.randn_like(self.mean_BZ)
        return self.mean_BZ + (0.5 * self.log_var_BZ).exp() * noise_BZ

    def log_prob(self, z_BZ: Tensor) -> Tensor:
        """log N(z_d; mean_d, var_d) in nats, [B, Z]."""
        square_BZ = (z_BZ - self.mean_BZ).square() / self.log_var_BZ.exp()
        return -0.5 * (math.log(2 * math.pi) + self.log_var_BZ + square_BZ)

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self || other) in nats, [B, Z]; the sum over Z is the rate (Kingma & Welling 2014, appendix B)."""
        log_ratio_BZ = self.log_var_BZ - other.log_var_BZ
        square_BZ = (self.mean_BZ - other.mean_BZ).square() / other.log_var_BZ.exp()
        return 0.5 * (square_BZ + log_ratio_BZ.expm1() - log_ratio_BZ)


class StandardPrior(nn.Module):
    """p(z) = N(0, I), whatever the context. With latent_size 0 it is the Gaussian of no dimensions."""

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.latent_size = latent_size

    def forward(self, features_BX: Tensor) -> Gaussian:
        zeros_BZ = features_BX.new_zeros(features_BX.shape[0], self.latent_size)
        return Gaussian(zeros_BZ, zeros_BZ)


class DiagonalGaussian(nn.Module):
    """Parameterises a diagonal Gaussian by a vector of features: the posterior q(z | x, c), or the prior p(z | c).

    Args:
        in_size: X.
        latent_size: Z.
        hidden_size: width of a tanh layer in between; 0: none.
        mean_scale: batch-normalise the mean to this standard deviation (`ScaledBatchNorm`); 0: leave it as it is.
    """

    def __init__(self, in_size: int, latent_size: int, hidden_size: int = 0, mean_scale: float = 0.0) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(in_size, hidden_size), nn.Tanh()) if hidden_size else nn.Identity()
        self.out = nn.Linear(hidden_size or in_size, 2 * latent_size)
        self.normalise = ScaledBatchNorm(latent_size, mean_scale) if mean_scale else nn.Identity()

    def forward(self, features_BX: Tensor) -> Gaussian:
        out_BX = self.out(self.hidden(features_BX)).to(self.out.weight.dtype)  # densities need more than bf16
        mean_BZ, log_var_BZ = out_BX.chunk(2, dim=-1)
        return Gaussian(self.normalise(mean_BZ), log_var_BZ.clamp(*LOG_VAR_RANGE))


class ScaledBatchNorm(nn.Module):
    """Each dimension of a batch brought to a fixed standard deviation `scale` and a learnt mean (Zhu et al. 2020, section 4).

    Applied to the posterior mean under the prior N(0, I), it keeps the rate away from zero: over a batch the expected rate is
    at least latent_size * scale^2 / 2 nats, whatever the decoder prefers. In eval mode, and for a batch of one, the running
    moments take the place of the batch's.
    """

    def __init__(self, size: int, scale: float, momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.scale, self.momentum, self.epsilon = scale, momentum, epsilon
        self.shift_Z = nn.Parameter(torch.zeros(size))
        self.register_buffer("mean_Z", torch.zeros(size))
        self.register_buffer("variance_Z", torch.ones(size))
        self.mean_Z: Tensor
        self.variance_Z: Tensor

    def forward(self, values_BZ: Tensor) -> Tensor:
        if self.training and len(values_BZ) > 1:
            variance_Z, mean_Z = torch.var_mean(values_BZ, 0, correction=0)
            self._remember(mean_Z.detach(), variance_Z.detach())
        else:
            variance_Z, mean_Z = self.variance_Z, self.mean_Z
        return self.scale * (values_BZ - mean_Z) * (variance_Z + self.epsilon).rsqrt() + self.shift_Z

    @torch.no_grad()
    def _remember(self, mean_Z: Tensor, variance_Z: Tensor) -> None:
        """Moves the running moments, unless the batch's are not finite (the step will be skipped)."""
        sound = torch.isfinite(mean_Z + variance_Z).all()
        for running_Z, now_Z in ((self.mean_Z, mean_Z), (self.variance_Z, variance_Z)):
            running_Z.copy_(torch.where(sound, running_Z.lerp(now_Z, self.momentum), running_Z))
