"""What the latent carries: active units, and the verdict on posterior collapse.

Shape legend: N turns, Z latent.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vrae.model.gaussian import Gaussian

ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, appendix C


def offsets(posterior: Gaussian, prior: Gaussian) -> Tensor:
    """(posterior mean - prior mean) / prior standard deviation, [N, Z]. With the standard prior: the posterior mean.

    At K >= 1 this leaves out what the prior knows already: a dimension that carries the context alone is not active.
    """
    return (posterior.mean_BZ - prior.mean_BZ) * (-0.5 * prior.log_var_BZ).exp()


class ActiveUnits:
    """Counts the dimensions whose offset varies over turns: Var_x(E_q[z_d]) >= 0.01 (Burda et al. 2016), n - 1 below.

    Turns are added batch by batch; memory is constant.
    """

    def __init__(self, latent_size: int) -> None:
        self._n = 0
        self._mean_Z = torch.zeros(latent_size, dtype=torch.float64)
        self._square_Z = torch.zeros(latent_size, dtype=torch.float64)

    def add(self, offsets_NZ: Tensor) -> None:
        offsets_NZ = offsets_NZ.detach().cpu().double()
        n = len(offsets_NZ)
        mean_Z = offsets_NZ.mean(0)
        step_Z = mean_Z - self._mean_Z
        self._square_Z += (offsets_NZ - mean_Z).square().sum(0) + step_Z.square() * self._n * n / (self._n + n)
        self._mean_Z += step_Z * n / (self._n + n)
        self._n += n

    @property
    def variance_Z(self) -> Tensor:
        return self._square_Z / max(self._n - 1, 1)

    @property
    def count(self) -> int:
        return int((self.variance_Z >= ACTIVE_VARIANCE).sum())


class Verdict(NamedTuple):
    """Whether the latent is used."""

    state: str  # "no latent", "healthy", "partially collapsed", "collapsed"
    words: str  # one sentence for people, with the remedy where there is something to mend


def verdict(rate_Z: Tensor, active_units: int) -> Verdict:
    """Judges by the mean rate of each dimension (nats) and the number of active units.

    Collapsed: under 0.1 nats in all, or no active unit. Partially collapsed: some units inactive.
    """
    Z, rate = len(rate_Z), float(rate_Z.sum())
    remedies = "set objective.free_bits (0.2 to 0.5 nats per dimension) or objective.target_rate, or raise batches.word_dropout"
    if Z == 0:
        return Verdict("no latent", "latent_size is 0: a deterministic baseline")
    if rate < 0.1 or active_units == 0:
        return Verdict(
            "collapsed",
            f"the posterior has collapsed onto the prior: the rate is {rate:.2f} nats per turn, {active_units} of {Z} units "
            f"are active, and the decoder ignores z. To mend it, {remedies}",
        )
    if active_units < Z:
        return Verdict(
            "partially collapsed",
            f"{Z - active_units} of {Z} latent dimensions carry nothing. Lower model.latent_size to {active_units}, or "
            f"{remedies}",
        )
    return Verdict("healthy", f"all {Z} latent dimensions are in use, at {rate:.1f} nats per turn")
