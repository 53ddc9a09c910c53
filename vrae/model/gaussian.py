"""Diagonal Gaussians: the distribution, the prior without parameters, and the network that reads one off a vector.

Shape legend: B examples, Z latent dimensions, X input features.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

LOG_VAR_RANGE = (-12.0, 8.0)  # standard deviations between 0.0025 and 55: exp() of it can neither overflow nor vanish


class Gaussian(NamedTuple):
    """N(mean, diag(exp(log_var))), one per example. Densities and divergences are in nats and per dimension."""

    mean_BZ: Tensor
    log_var_BZ: Tensor

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

    def repeat(self, times: int) -> Gaussian:
        """Each example `times` times in a row: [B * times, Z]."""
        return Gaussian(*(value.repeat_interleave(times, 0) for value in self))


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
    """

    def __init__(self, in_size: int, latent_size: int, hidden_size: int = 0) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(in_size, hidden_size), nn.Tanh()) if hidden_size else nn.Identity()
        self.out = nn.Linear(hidden_size or in_size, 2 * latent_size)

    def forward(self, features_BX: Tensor) -> Gaussian:
        mean_BZ, log_var_BZ = self.out(self.hidden(features_BX)).chunk(2, dim=-1)
        return Gaussian(mean_BZ, log_var_BZ.clamp(*LOG_VAR_RANGE))
