"""What it takes to send a text: so many bits for its latent, so many for the text given the latent.

With bits-back coding a sender who has q spends the rate on z and the distortion on the text, together the negative ELBO
(Hinton & van Camp 1993; Townsend et al. 2019). One who had the true posterior would spend -log p(text | context) alone; the
difference is the price of using q, which the importance-weighted bound measures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vrae.generation.deadline import timed
from vrae.generation.pipeline import Pipeline
from vrae.generation.text_model import in_range

MAX_DRAWS = 100_000


@dataclass(frozen=True)
class Score:
    """The code length of one text given its context, end mark included, in bits."""

    text: str
    bits_latent: float  # KL(q(z | text, context) || p(z | context))
    bits_text: float  # -log2 p(text | z, context), mean over k draws of z from q
    bits_total: float  # the two together: -ELBO
    bits_iw: float  # -log2 p(text | context), bounded from above with the same k draws (Burda et al. 2016)
    bits_gap: (
        float  # bits_total - bits_iw: KL(q || true posterior), in as far as the k draws show it; a little noise may be < 0
    )
    effective_samples: float  # of k: where there are fewer than 5, bits_iw is too high and bits_gap too low
    tokens: int  # pieces, end mark included


@timed
def score(
    pipeline: Pipeline,
    texts: Sequence[str],
    contexts: Sequence[str | Sequence[str]] | None = None,
    *,
    k: int = 100,
    seed: int = 0,
) -> list[Score]:
    """The bits of each text, cleaned as the model's corpus was. A text's score does not depend on the others.

    Args:
        pipeline: with or without latent; without, bits_latent and bits_gap are 0.
        texts: any number.
        contexts: the turns before each text, oldest first, or none (an empty list), for a model that reads a context.
        k: draws of z for each text.
        seed: of the draws.

    Raises:
        UserError: a text or a context is too long or no text at all, or k or seed is out of range.
        ModelError: there are contexts, and the model reads none.
    """
    in_range("k", k, 1, MAX_DRAWS)
    in_range("seed", seed, 0, 2**63 - 1)
    windows = pipeline.windows(texts, contexts)
    given, scores = iter(texts), list[Score]()
    for batch, found in pipeline.draws(windows, k, seed):
        bits_BX = torch.stack([found.rate_BZ.sum(-1), found.distortion_B, -found.log_mean_B], 1) / math.log(2)
        figures = zip(bits_BX.tolist(), found.effective_B.tolist(), batch.target_lengths_B.tolist(), strict=True)
        for (latent, rest, weighted), effective, tokens in figures:
            total = latent + rest
            scores.append(Score(next(given), latent, rest, total, weighted, total - weighted, effective, tokens))
    return scores
