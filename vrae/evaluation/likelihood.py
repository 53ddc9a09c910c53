"""The bound on held-out text: ELBO, rate and distortion, perplexity, bits; and the importance-weighted bound.

All sums run over whole turns and divide at the end, in double precision; nothing is weighted.

Shape legend: B windows, S importance samples, Z latent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vrae.corpus.batches import Batch
from vrae.evaluation.information import ActiveUnits, Verdict, mutual_information, offsets, verdict
from vrae.model.gaussian import Gaussian
from vrae.model.vrae import VRAE, Inferred


@dataclass(frozen=True)
class Bound:
    """Means over turns, in nats per turn unless the name says otherwise."""

    turns: int
    tokens: int  # predicted ones: end marks included
    elbo: float
    rate: float
    distortion: float
    nll_iw: float | None  # -log p(x | c) bounded with k samples; None where k is 0
    k: int
    perplexity: float  # exp(total nats / tokens), of nll_iw where there is one, else of -elbo
    bits_per_token: float  # the same, log 2
    mutual_information: float  # I_q(x; z)
    rate_per_dimension: list[float]
    active_units: int
    latent_size: int
    collapse: Verdict


@torch.no_grad()
def measure(model: VRAE, batches: Iterable[Batch], *, k: int = 0, seed: int = 0) -> Bound:
    """The bound over all windows of `batches`, with one posterior sample for the ELBO and `k` for the weighted one.

    The model is put in eval mode for the time, and global random state is left as it was.
    """
    training = model.training
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    active = ActiveUnits(model.config.latent_size)
    posteriors: list[Gaussian] = []
    turns = tokens = 0
    distortion = nll = 0.0
    rate_Z = torch.zeros(model.config.latent_size, dtype=torch.float64)
    try:
        for batch in batches:
            batch = batch.to(model.device)
            inferred = model.infer(batch)
            z_BZ = inferred.posterior.sample(_noise(inferred, generator))
            distortion += float(-model.log_prob(batch, z_BZ, inferred.context_BC).double().sum())
            rate_Z += inferred.posterior.kl(inferred.prior).double().sum(0).cpu()
            active.add(offsets(inferred.posterior, inferred.prior))
            posteriors.append(Gaussian(*(value.cpu() for value in inferred.posterior)))
            if k:
                nll -= float(log_prob_iw(model, batch, inferred, k, generator).sum())
            turns += len(batch.target_B)
            tokens += batch.tokens
    finally:
        model.train(training)
    assert turns, "no batch to measure"
    posterior = Gaussian(*(torch.cat(values) for values in zip(*posteriors, strict=True)))
    noise_NZ = torch.randn(posterior.mean_BZ.shape, generator=generator)
    rate_Z /= turns
    rate, distortion = float(rate_Z.sum()), distortion / turns
    nats = nll / turns if k else rate + distortion
    return Bound(
        turns=turns,
        tokens=tokens,
        elbo=-(rate + distortion),
        rate=rate,
        distortion=distortion,
        nll_iw=nll / turns if k else None,
        k=k,
        perplexity=math.exp(min(nats * turns / tokens, 700.0)),
        bits_per_token=nats * turns / tokens / math.log(2),
        mutual_information=mutual_information(posterior, noise_NZ),
        rate_per_dimension=rate_Z.tolist(),
        active_units=active.count,
        latent_size=model.config.latent_size,
        collapse=verdict(rate_Z, active.count),
    )


def log_prob_iw(model: VRAE, batch: Batch, inferred: Inferred, k: int, generator: torch.Generator) -> Tensor:
    """log 1/k sum_s p(x | z_s, c) p(z_s | c) / q(z_s | x, c) of each window, [B] nats in double precision.

    A lower bound of log p(x | c) in expectation, tighter with every sample (Burda et al. 2016, eq. 8 and theorem 1). The
    average is taken inside the log, per window, by log-sum-exp.
    """
    total_B = torch.full((len(batch.target_B),), -torch.inf, dtype=torch.float64, device=model.device)
    for _ in range(k):
        z_BZ = inferred.posterior.sample(_noise(inferred, generator))
        weight_B = model.log_prob(batch, z_BZ, inferred.context_BC).double()
        weight_B += (inferred.prior.log_prob(z_BZ) - inferred.posterior.log_prob(z_BZ)).double().sum(-1)
        total_B = torch.logaddexp(total_B, weight_B)
    return total_B - math.log(k)


def _noise(inferred: Inferred, generator: torch.Generator) -> Tensor:
    mean_BZ = inferred.posterior.mean_BZ
    return torch.randn(mean_BZ.shape, generator=generator, dtype=mean_BZ.dtype).to(mean_BZ.device)
