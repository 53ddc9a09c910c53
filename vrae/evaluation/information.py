"""What the latent carries: active units, mutual information, the aggregated posterior, and the verdict on posterior collapse.

Shape legend: N turns, R turns at whose latents densities are taken, Z latent, X noise numbers of a posterior sample.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vrae.model.gaussian import Density, Gaussian, each_tensor, select

ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, appendix C
COLLAPSED_NATS = 0.1  # per turn: less is nothing
_PAIRS = 2**18  # pairs of a latent and a density taken where these are not Gaussian
_ROWS = 512  # latents worked side by side where they are


def offsets(posterior: Density, prior: Density) -> Tensor:
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
        mean_Z = offsets_NZ.mean(0)
        self._add(len(offsets_NZ), mean_Z, (offsets_NZ - mean_Z).square().sum(0))

    def add_state(self, state: dict[str, Any]) -> None:
        """Adds all that another one was given."""
        other = ActiveUnits(len(self._mean_Z), state)
        self._add(other._n, other._mean_Z, other._square_Z)

    def _add(self, n: int, mean_Z: Tensor, square_Z: Tensor) -> None:
        if n:
            step_Z = mean_Z - self._mean_Z
            self._square_Z += square_Z + step_Z.square() * self._n * n / (self._n + n)
            self._mean_Z += step_Z * n / (self._n + n)
            self._n += n

    @property
    def variance_Z(self) -> Tensor:
        return self._square_Z / max(self._n - 1, 1)

    @property
    def active_Z(self) -> Tensor:
        """Which dimensions are active, bool."""
        return self.variance_Z >= ACTIVE_VARIANCE

    @property
    def count(self) -> int:
        return int(self.active_Z.sum())


class Information(NamedTuple):
    """What the latents of N turns carry together, in nats per turn.

    The errors are standard errors over the latents drawn, with the N turns held fixed. For the corpus that the turns were
    taken from, the mutual information is too low and the aggregated KL too high by the order of e^I / N, as q(z) holds the
    posterior of each turn itself; that grows to everything as I comes near log N (`saturated`).
    """

    turns: int  # N
    mutual_information: float  # I_q(x; z), at most log N; at K >= 1 it is z's information on turn and context together
    mutual_information_error: float | None
    aggregated_kl: float  # KL(q(z) || p(z))
    aggregated_kl_error: float | None

    @property
    def most(self) -> float:
        """log N: to tell N turns apart takes no more."""
        return math.log(self.turns)

    @property
    def saturated(self) -> bool:
        """Whether the mutual information is within 1 nat of log N, and so says how many turns there were, not what z carries.

        With more turns it would be higher, and the aggregated KL lower by as much.
        """
        return self.mutual_information > self.most - 1


def information(posterior: Density, prior: Density, noise_NX: Tensor) -> Information:
    """Mutual information and aggregated-posterior KL of N turns, at one z per turn (Hoffman & Johnson 2016).

        I_q(x; z)         = E_x E_q(z|x) [log q(z|x) - log q(z)],    q(z) = 1/N sum_n q(z | x_n, c_n)
        KL(q(z) || p(z))  = E_q(z) [log q(z) - log p(z)],            p(z) = 1/N sum_n p(z | c_n)

    Their sum is E log q(z|x) - log p(z): under the standard prior the rate. Under a prior of the context it is the rate and
    what the prior itself knows, E log p(z|c) - log p(z).

    Every z meets every density. Where one of them is not Gaussian that is slow, and an even sample of the z is used, such
    that there are at most 2^18 pairs; q(z) and p(z) are still those of all N turns. Memory grows with N, not with its square.

    Args:
        posterior: q(z | x, c) of the N turns.
        prior: p(z | c) of the same; or of one of them, where it is the same for all.
        noise_NX: standard normal, what the z are made of.
    """
    N = len(noise_NX)
    posterior, prior = (each_tensor(d, Tensor.double) if isinstance(d, Gaussian) else d for d in (posterior, prior))
    all_gaussian = isinstance(posterior, Gaussian) and isinstance(prior, Gaussian)
    R = N if all_gaussian else min(N, max(_PAIRS // N, 1))
    rows_R = torch.linspace(0, N - 1, R, dtype=torch.float64).round().long().to(noise_NX.device)
    own = select(posterior, rows_R)
    z_RZ = own.sample(noise_NX[rows_R])
    log_own_R = own.log_prob(z_RZ).double().sum(-1)
    log_aggregated_R, log_prior_R = log_mean_density(posterior, z_RZ, N), log_mean_density(prior, z_RZ, len(prior.mean_BZ))
    return Information(N, *_mean(log_own_R - log_aggregated_R), *_mean(log_aggregated_R - log_prior_R))


def log_mean_density(density: Density, z_RZ: Tensor, count: int) -> Tensor:
    """log 1/N sum_n density_n(z) at each z, [R] nats in double precision; N is `count`."""
    if isinstance(density, Gaussian):
        density = each_tensor(density, Tensor.double)
        log_sums = [_gaussian_pairs(density, some_RZ).logsumexp(-1) for some_RZ in torch.split(z_RZ.double(), _ROWS)]
        return torch.cat(log_sums) - math.log(count)
    log_sums = [density.log_prob(z_Z.expand(count, -1)).double().sum(-1).logsumexp(0) for z_Z in z_RZ]
    return torch.stack(log_sums) - math.log(count)


def _gaussian_pairs(density: Gaussian, z_RZ: Tensor) -> Tensor:
    """log density_n(z_r), [R, N]. The square is taken apart, so that [R, N, Z] is never in memory."""
    mean_NZ, log_var_NZ = density
    precision_NZ = (-log_var_NZ).exp()
    constant_N = (math.log(2 * math.pi) + log_var_NZ + mean_NZ.square() * precision_NZ).sum(-1)
    square_RN = z_RZ.square() @ precision_NZ.T - 2 * z_RZ @ (mean_NZ * precision_NZ).T
    return -0.5 * (constant_N + square_RN)


def _mean(values_R: Tensor) -> tuple[float, float | None]:
    """With its standard error; None of a single value."""
    error = float(values_R.std()) / math.sqrt(len(values_R)) if len(values_R) > 1 else None
    return float(values_R.mean()), error


class Verdict(NamedTuple):
    """Whether the latent is used."""

    state: str  # "no latent", "healthy", "partially collapsed", "collapsed"
    words: str  # one sentence for people, with the remedy where there is something to mend


def verdict(rate_Z: Tensor, active_Z: Tensor, gain: float | None = None) -> Verdict:
    """Judges how the latent is used.

    Collapsed: under 0.1 nats per turn in all, or no active unit; or the decoder gains under 0.1 nats per turn from knowing z.
    Partially collapsed: some units inactive.

    Args:
        rate_Z: mean rate of each dimension, nats per turn.
        active_Z: which of them are active.
        gain: how much lower the distortion is, in nats per turn, than with z drawn from the prior; None where not measured.
    """
    Z, rate, active = len(rate_Z), float(rate_Z.sum()), int(active_Z.sum())
    remedies = (
        "set objective.free_bits (0.2 to 0.5 nats per dimension) or objective.target_rate, add objective.bag_of_words, or "
        "raise batches.word_dropout"
    )
    if Z == 0:
        return Verdict("no latent", "latent_size is 0: a deterministic baseline")
    if rate < COLLAPSED_NATS or active == 0:
        return Verdict(
            "collapsed",
            f"the posterior has collapsed onto the prior: the rate is {rate:.2f} nats per turn, {active} of {Z} units "
            f"are active, and the decoder ignores z. To mend it, {remedies}",
        )
    if gain is not None and gain < COLLAPSED_NATS:
        return Verdict(
            "collapsed",
            f"the posterior holds {rate:.2f} nats per turn, but the decoder makes nothing of them: it gains {gain:.2f} nats "
            "over a z drawn from the prior. To mend it, raise batches.word_dropout, or add objective.bag_of_words",
        )
    if active < Z:
        idle = [dimension for dimension, used in enumerate(active_Z.tolist()) if not used]
        return Verdict(
            "partially collapsed",
            f"{Z - active} of {Z} latent dimensions carry nothing ({_ranges(idle)}, counted from 0). Lower model.latent_size "
            f"to {active}, or {remedies}",
        )
    return Verdict("healthy", f"all {Z} latent dimensions are in use, at {rate:.1f} nats per turn")


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] as 0-2, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)
