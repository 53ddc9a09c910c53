"""A normalising flow as the posterior: a Gaussian bent by invertible steps (Rezende & Mohamed 2015).

The steps are affine couplings (Dinh et al. 2017): each shifts and stretches half of the dimensions by an amount that depends
on the other half and on the encoded turn. They are as cheap to undo as to do, so the density is exact at any point, not only at
the flow's own samples, as mutual information and the aggregated posterior need it.

Shape legend: B examples, Z latent dimensions, A the half of them that is read, X input features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vrae.model.gaussian import DiagonalGaussian, Gaussian, repeat

_MOMENT_PAIRS = 32  # pairs of opposite noises that mean and variance are averaged over


class Coupling(nn.Module):
    """z_b = u_b * exp(s) + t, with s and t functions of u_a = z_a and of the features; the identity when new.

    Args:
        read: the dimensions u_a that stay as they are; the others are changed.
        in_size: X.
        hidden_size: width of the tanh layer that s and t are read off.
        latent_size: Z.
    """

    def __init__(self, read: slice, in_size: int, hidden_size: int, latent_size: int) -> None:
        super().__init__()
        places = torch.arange(latent_size)
        self.read = places[read].tolist()
        self.changed = [place for place in places.tolist() if place not in self.read]
        self.hidden = nn.Linear(len(self.read) + in_size, hidden_size)
        self.out = nn.Linear(hidden_size, 2 * len(self.changed))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def terms(self, values_BZ: Tensor, features_BX: Tensor) -> tuple[Tensor, Tensor]:
        """log scale (between -2 and 2) and shift of the changed dimensions."""
        inputs_BX = torch.cat([values_BZ[:, self.read], features_BX], -1)
        log_scale_B, shift_B = self.out(torch.tanh(self.hidden(inputs_BX))).chunk(2, dim=-1)
        return 2 * torch.tanh(log_scale_B / 2), shift_B

    def forward(self, values_BZ: Tensor, features_BX: Tensor) -> Tensor:
        log_scale, shift = self.terms(values_BZ, features_BX)
        return self._with_changed(values_BZ, values_BZ[:, self.changed] * log_scale.exp() + shift)

    def undo(self, values_BZ: Tensor, features_BX: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` was given, and log |d forward / d values| as each dimension's share, [B, Z]."""
        log_scale, shift = self.terms(values_BZ, features_BX)
        before_BZ = self._with_changed(values_BZ, (values_BZ[:, self.changed] - shift) * (-log_scale).exp())
        return before_BZ, self._with_changed(torch.zeros_like(values_BZ), log_scale)

    def _with_changed(self, values_BZ: Tensor, changed: Tensor) -> Tensor:
        places = torch.tensor(self.changed, device=values_BZ.device)
        return values_BZ.index_copy(1, places, changed.to(values_BZ.dtype))


class Flow(NamedTuple):
    """f(u), u ~ N(mean, diag(var)), one per example, with f the couplings in order."""

    base_mean_BZ: Tensor
    base_log_var_BZ: Tensor
    features_BX: Tensor
    couplings: nn.ModuleList

    @property
    def noise_size(self) -> int:
        return self.base_mean_BZ.shape[1]

    @property
    def mean_BZ(self) -> Tensor:
        """Averaged over 64 fixed noises, the same for every example, so that equal posteriors have equal means."""
        return self._draws().mean(1)

    @property
    def log_var_BZ(self) -> Tensor:
        """Averaged likewise."""
        return self._draws().var(1, correction=0).log()

    def sample(self, noise_BN: Tensor | None = None) -> Tensor:
        z_BZ = Gaussian(self.base_mean_BZ, self.base_log_var_BZ).sample(noise_BN)
        for coupling in self.couplings:
            z_BZ = coupling(z_BZ, self.features_BX)
        return z_BZ

    def log_prob(self, z_BZ: Tensor) -> Tensor:
        """log q(z) = log N(u) - log |df/du| in nats, [B, Z], at any z (Rezende & Mohamed 2015, eq. 5)."""
        log_scale_BZ = torch.zeros_like(z_BZ)
        for coupling in reversed(self.couplings):
            z_BZ, stretched_BZ = coupling.undo(z_BZ, self.features_BX)  # type: ignore[operator]
            log_scale_BZ = log_scale_BZ + stretched_BZ
        return Gaussian(self.base_mean_BZ, self.base_log_var_BZ).log_prob(z_BZ) - log_scale_BZ

    def _draws(self) -> Tensor:
        """[B, 64, Z] samples."""
        generator = torch.Generator().manual_seed(0)
        half_SZ = torch.randn(_MOMENT_PAIRS, self.noise_size, generator=generator).to(self.base_mean_BZ)
        noise_SZ = torch.cat([half_SZ, -half_SZ])
        many = repeat(self, len(noise_SZ))
        z_XZ = many.sample(noise_SZ.repeat(len(self.base_mean_BZ), 1))
        return z_XZ.view(-1, len(noise_SZ), self.noise_size)


class FlowPosterior(nn.Module):
    """Parameterises q(z | x, c) by a vector of features.

    Args:
        base: of the Gaussian u.
        in_size: X.
        hidden_size: width within the couplings.
        latent_size: Z, 2 or more.
        steps: number of couplings; even and odd dimensions are changed in turn.
    """

    def __init__(self, base: DiagonalGaussian, in_size: int, hidden_size: int, latent_size: int, steps: int) -> None:
        super().__init__()
        self.base = base
        halves = (slice(0, None, 2), slice(1, None, 2))
        self.couplings = nn.ModuleList(Coupling(halves[i % 2], in_size, hidden_size, latent_size) for i in range(steps))

    def forward(self, features_BX: Tensor) -> Flow:
        base = self.base(features_BX)
        return Flow(base.mean_BZ, base.log_var_BZ, features_BX, self.couplings)
