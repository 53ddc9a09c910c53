"""The figures of each turn: distortion, rate, and the evidence estimated with k draws of z.

The noise of a turn is a function of the seed and of a number of its own, its place in the split. So its figures do not depend
on the batch it stands in, on how many turns are measured, or on how many processes share the work.

Shape legend: N turns, B turns of a batch, Z latent.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from vrae.corpus.batches import Batch
from vrae.evaluation.information import offsets
from vrae.model.bound import Noise, draw
from vrae.model.vrae import VRAE


class Turns(NamedTuple):
    """What was measured of each turn, in nats and double precision. Where k is 0, what needs k is NaN."""

    window_N: np.ndarray  # int64, its place in the split
    tokens_N: np.ndarray  # int64, end mark included
    distortion_N: np.ndarray  # -E_q log p(x | z, c)
    rate_NZ: np.ndarray  # KL(q(z | x, c) || p(z | c)), exact or its estimate (`divergence`)
    offsets_NZ: np.ndarray  # of the posterior mean (`offsets`)
    nll_iw_N: np.ndarray  # -log 1/k sum_s w_s, w = p(x | z, c) p(z | c) / q(z | x, c), z from q
    effective_N: np.ndarray  # (sum w)^2 / sum w^2, between 1 and k (Kong 1992)
    nll_prior_N: np.ndarray  # -log 1/k sum_s p(x | z_s, c), z from p(z | c)
    distortion_prior_N: np.ndarray  # -E_p log p(x | z, c)

    @property
    def elbo_N(self) -> np.ndarray:
        return np.asarray(-(self.distortion_N + self.rate_NZ.sum(-1)))


@torch.no_grad()
def measure_batch(model: VRAE, windows_B: np.ndarray, batch: Batch, *, k: int, seed: int) -> Turns:
    """The figures of each turn of a batch, which is encoded once.

    Args:
        model: in eval mode.
        windows_B: a number >= 0 for each turn; with the seed it makes its noise.
        batch: on the model's device.
        k: draws of z from the posterior, and as many from the prior. 0: one from the posterior.
        seed: 0 or more.
    """
    inferred = model.infer(batch)
    found = draw(model, batch, inferred, inferred.posterior, k or 1, Noise([seed, 0], windows_B))
    values = [found.distortion_B, found.rate_BZ, offsets(inferred.posterior, inferred.prior).double()]
    if k:
        naive = draw(model, batch, inferred, inferred.prior, k, Noise([seed, 1], windows_B))
        values += [-found.log_mean_B, found.effective_B, -naive.log_mean_B, naive.distortion_B]
    else:
        values += [torch.full_like(found.distortion_B, torch.nan)] * 4
    return Turns(windows_B, batch.target_lengths_B.numpy(), *(value.cpu().numpy() for value in values))


def join_turns(parts: list[Turns], latent_size: int) -> Turns:
    """All turns of the parts, of which there may be none, in the order of the split."""
    none, none_Z, whole = np.zeros(0), np.zeros((0, latent_size)), np.zeros(0, np.int64)
    parts = [Turns(whole, whole, none, none_Z, none_Z, none, none, none, none), *parts]
    joined = Turns(*(np.concatenate(values) for values in zip(*parts, strict=True)))
    order_N = np.argsort(joined.window_N)
    return Turns(*(values[order_N] for values in joined))
