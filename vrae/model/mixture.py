"""A mixture of Gaussians as the prior: one context, several kinds of answer (Gu et al. 2019, section 3.2).

Without a context it is one mixture for all turns, which can come nearer than N(0, I) to what the posteriors of many turns make
together (the Gaussian mixture that Tomczak & Welling 2018, section 4, hold against theirs).

Shape legend: B examples, M components, Z latent dimensions, X input features.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vrae.model.gaussian import LOG_VAR_RANGE, Gaussian


class GaussianMixture(NamedTuple):
    """sum_m w_m N(mean_m, diag(var_m)), one per example."""

    log_weight_BM: Tensor
    means_BMZ: Tensor
    log_vars_BMZ: Tensor

    @property
    def noise_size(self) -> int:
        """One number for the choice of the component, and Z for the draw from it."""
        return 1 + self.means_BMZ.shape[2]

    @property
    def mean_BZ(self) -> Tensor:
        return (self.log_weight_BM.exp()[:, :, None] * self.means_BMZ).sum(1)

    @property
    def log_var_BZ(self) -> Tensor:
        """Of the mixture as a whole: the mean variance within components and the variance between them."""
        between_BMZ = (self.means_BMZ - self.mean_BZ[:, None]).square()
        return (self.log_weight_BM.exp()[:, :, None] * (self.log_vars_BMZ.exp() + between_BMZ)).sum(1).log()

    def sample(self, noise_BN: Tensor | None = None) -> Tensor:
        """z from the component that Phi(noise_1) falls into; differentiable in its mean and variance, not in the weights."""
        if noise_BN is None:
            noise_BN = torch.randn_like(self.means_BMZ[:, 0, :1].expand(-1, self.noise_size))
        reached_BM = self.log_weight_BM.exp().cumsum(1)
        uniform_B1 = torch.special.ndtr(noise_BN[:, :1]) * reached_BM[:, -1:]
        chosen_B = torch.searchsorted(reached_BM, uniform_B1, right=True)[:, 0].clamp(max=reached_BM.shape[1] - 1)
        rows_B = torch.arange(len(chosen_B), device=chosen_B.device)
        return Gaussian(self.means_BMZ[rows_B, chosen_B], self.log_vars_BMZ[rows_B, chosen_B]).sample(noise_BN[:, 1:])

    def log_prob(self, z_BZ: Tensor) -> Tensor:
        """log p(z_d | z_1 .. z_{d-1}) in nats, [B, Z]: the share of each dimension, by the chain rule, in the log density.

        log p(z_1 .. z_d) = log sum_m w_m prod_{e <= d} N(z_e; ..), and a dimension's share is the difference of two of these.
        """
        parts_BMZ = Gaussian(self.means_BMZ, self.log_vars_BMZ).log_prob(z_BZ[:, None])
        joint_BMZ = self.log_weight_BM[:, :, None] + parts_BMZ.cumsum(2)
        before_B1 = self.log_weight_BM.logsumexp(1, keepdim=True)
        return torch.diff(joint_BMZ.logsumexp(1), dim=1, prepend=before_B1)


class MixturePrior(nn.Module):
    """Parameterises p(z | c) by the context's vector, through a tanh layer.

    Args:
        in_size: X.
        latent_size: Z.
        hidden_size: width of the layer in between.
        components: M.
    """

    def __init__(self, in_size: int, latent_size: int, hidden_size: int, components: int) -> None:
        super().__init__()
        self.components = components
        self.hidden = nn.Sequential(nn.Linear(in_size, hidden_size), nn.Tanh())
        self.weight = nn.Linear(hidden_size, components)
        self.out = nn.Linear(hidden_size, 2 * components * latent_size)

    def forward(self, features_BX: Tensor) -> GaussianMixture:
        hidden_BX = self.hidden(features_BX)
        out_BX = self.out(hidden_BX).to(self.out.weight.dtype)  # densities need more than bf16
        means_BMZ, log_vars_BMZ = out_BX.unflatten(1, (self.components, -1)).chunk(2, dim=-1)
        log_weight_BM = self.weight(hidden_BX).to(self.out.weight.dtype).log_softmax(-1)
        return GaussianMixture(log_weight_BM, means_BMZ, log_vars_BMZ.clamp(*LOG_VAR_RANGE))


class FreeMixture(nn.Module):
    """p(z), the same for every turn: each component's weight, mean and log variance are learnt as they are.

    Args:
        latent_size: Z.
        components: M.
    """

    def __init__(self, latent_size: int, components: int) -> None:
        super().__init__()
        self.weight = nn.Embedding(components, 1)  # logarithms, to within a constant
        self.mean = nn.Embedding(components, latent_size)
        self.log_var = nn.Embedding(components, latent_size)
        nn.init.zeros_(self.weight.weight)
        nn.init.normal_(self.mean.weight, std=0.5)  # as a whole, not far from N(0, I)
        nn.init.constant_(self.log_var.weight, math.log(0.75))

    def forward(self, features_BX: Tensor) -> GaussianMixture:
        rows = len(features_BX)
        log_weight_M = self.weight.weight[:, 0].log_softmax(0)
        means_MZ, log_vars_MZ = self.mean.weight, self.log_var.weight.clamp(*LOG_VAR_RANGE)
        return GaussianMixture(*(part.expand(rows, *part.shape) for part in (log_weight_M, means_MZ, log_vars_MZ)))
