"""The evidence of a turn, log p(x | c), bounded with k draws of z: for reports, for code lengths, and to rank replies by.

Shape legend: B turns of a batch, S draws of z taken side by side, P = B * S, Z latent, X noise numbers of a draw.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vrae.corpus.batches import Batch
from vrae.model.gaussian import Density, divergence, repeat
from vrae.model.vrae import VRAE, Inferred

_TOKENS = {"cpu": 4096, "cuda": 65_536}  # tokens decoded side by side: so many draws of z as fit are taken at once


class Noise:
    """Standard normal numbers. The s-th draw of a turn depends on (key, window, s) alone, not on how many are taken at once."""

    def __init__(self, key: list[int], windows_B: np.ndarray) -> None:
        self.rngs = [np.random.default_rng([*key, window]) for window in windows_B.tolist()]

    def draw(self, times: int, size: int) -> Tensor:
        """The next `times` draws of each turn, [P, X], those of one turn in a row."""
        return torch.from_numpy(np.concatenate([rng.standard_normal((times, size), np.float32) for rng in self.rngs]))


class Draws(NamedTuple):
    """Over draws of z from one distribution r(z), in double precision."""

    distortion_B: Tensor  # mean of -log p(x | z, c)
    rate_BZ: Tensor  # KL(r || p), or the mean of its estimates
    log_mean_B: Tensor  # log of the mean of w = p(x | z, c) p(z | c) / r(z)
    effective_B: Tensor  # (sum w)^2 / sum w^2


def draw(model: VRAE, batch: Batch, inferred: Inferred, source: Density, draws: int, noise: Noise) -> Draws:
    """`draws` draws of z from `source`, which is the posterior or the prior of `inferred`; some of them side by side.

    E log_mean <= log p(x | c), and it is tighter with every draw (Burda et al. 2016, eq. 8 and theorem 1). The mean is taken
    inside the log, for each turn, by log-sum-exp.
    """
    B, Z = len(batch.target_B), model.config.latent_size
    asked, draws = draws, draws if Z else 1  # without a latent all draws are the same
    at_once = max(_TOKENS.get(model.device.type, _TOKENS["cpu"]) // batch.tokens, 1)
    distortion_B = inferred.context_BC.new_zeros(B, dtype=torch.float64)
    rate_BZ = distortion_B.new_zeros(B, Z)
    log_sum_B, log_squares_B = (torch.full_like(distortion_B, -torch.inf) for _ in range(2))
    for start in range(0, draws, at_once):
        S = min(at_once, draws - start)
        source_P, prior_P = repeat(source, S), repeat(inferred.prior, S)
        z_PZ = source_P.sample(noise.draw(S, source.noise_size).to(inferred.context_BC))
        log_prob_P = model.log_prob(_repeat(batch, S), z_PZ, inferred.context_BC.repeat_interleave(S, 0)).double()
        log_weight_P = log_prob_P + (prior_P.log_prob(z_PZ) - source_P.log_prob(z_PZ)).double().sum(-1)
        log_weight_BS = log_weight_P.view(B, S)
        distortion_B -= log_prob_P.view(B, S).sum(1)
        rate_BZ += divergence(source_P, prior_P, z_PZ).double().view(B, S, Z).sum(1)
        log_sum_B = torch.logaddexp(log_sum_B, log_weight_BS.logsumexp(1))
        log_squares_B = torch.logaddexp(log_squares_B, (2 * log_weight_BS).logsumexp(1))
    effective_B = (2 * log_sum_B - log_squares_B).exp() * (asked / draws)
    return Draws(distortion_B / draws, rate_BZ / draws, log_sum_B - math.log(draws), effective_B)


def _repeat(batch: Batch, times: int) -> Batch:
    """Each target `times` times in a row, for `log_prob`: it reads no contexts."""
    return batch._replace(
        target_B=batch.target_B.repeat_interleave(times),
        inputs_BT=batch.inputs_BT.repeat_interleave(times, 0),
        target_lengths_B=batch.target_lengths_B.repeat_interleave(times),
    )
