"""What the latent carries: active units, mutual information, and the verdict on posterior collapse.

Shape legend: N turns, Z latent.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

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

    Args:
        latent_size: Z.
        state: of an earlier one, which this one goes on from.
    """

    def __init__(self, latent_size: int, state: dict[str, Any] | None = None) -> None:
        zeros = [0.0] * latent_size
        state = state or {"turns": 0, "mean": zeros, "square": zeros}
        self._n: int = state["turns"]
        self._mean_Z = torch.tensor(state["mean"], dtype=torch.float64)
        self._square_Z = torch.tensor(state["square"], dtype=torch.float64)

    @property
    def state(self) -> dict[str, Any]:
        """All that was added, as JSON values."""
        return {"turns": self._n, "mean": self._mean_Z.tolist(), "square": self._square_Z.tolist()}

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


def mutual_information(posterior: Gaussian, noise_NZ: Tensor, most: int = 5000) -> float:
    """I_q(x; z) = E_x E_q(z|x) [log q(z|x) - log q(z)] in nats, with q(z) the average posterior of the turns given.

    Both logs are taken at one z per turn (Hoffman & Johnson 2016; Dieng et al. 2019, section 5).
    At most log N; with more than `most` turns, an even sample of them is used. At K >= 1 it is the information of z on
    turn and context together.
    """
    N = len(posterior.mean_BZ)
    chosen = torch.linspace(0, N - 1, min(N, most)).long()
    mean_NZ, log_var_NZ, noise_NZ = (value[chosen].double() for value in (*posterior, noise_NZ))
    z_NZ = Gaussian(mean_NZ, log_var_NZ).sample(noise_NZ)
    precision_NZ = (-log_var_NZ).exp()
    # log q(z_i | x_j) but for its square, which is taken apart so that [N, N, Z] is never in memory
    constant_N = -0.5 * (math.log(2 * math.pi) + log_var_NZ + mean_NZ.square() * precision_NZ).sum(-1)
    gain_N = Gaussian(mean_NZ, log_var_NZ).log_prob(z_NZ).sum(-1)
    for rows in torch.split(torch.arange(len(chosen)), 512):
        square_RN = z_NZ[rows].square() @ precision_NZ.T - 2 * z_NZ[rows] @ (mean_NZ * precision_NZ).T
        gain_N[rows] -= (constant_N - 0.5 * square_RN).logsumexp(-1) - math.log(len(chosen))
    return float(gain_N.mean())


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
