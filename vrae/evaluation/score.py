"""What it takes to send a text: so many bits for its latent, so many for the text given the latent.

With bits-back coding a sender who has q spends the rate on z and the distortion on the text, together the negative ELBO
(Hinton & van Camp 1993; Townsend et al. 2019). One who had the true posterior would spend -log p(text | context) alone; the
difference is the price of using q, which the importance-weighted bound measures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vrae.errors import UserError
from vrae.generation.pipeline import Pipeline
from vrae.generation.text_model import digest
from vrae.model.bound import Noise, draw

MAX_DRAWS = 100_000
_ROWS = 256  # texts scored side by side


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
    for name, value, low, high in (("k", k, 1, MAX_DRAWS), ("seed", seed, 0, 2**63 - 1)):
        if type(value) is not int or not low <= value <= high:
            raise UserError(f"{name} must be a whole number from {low} to {high}. Got {value!r:.40}")
    windows = pipeline.windows(texts, contexts)
    scores: list[Score] = []
    for start in range(0, len(windows), _ROWS):
        some = windows[start : start + _ROWS]
        batch = pipeline.batch(some)
        noise = Noise([seed, 0], np.array([digest(window) for window in some]))
        with torch.inference_mode():
            inferred = pipeline.model.infer(batch)
            found = draw(pipeline.model, batch, inferred, inferred.posterior, k, noise)
        bits_BX = torch.stack([found.rate_BZ.sum(-1), found.distortion_B, -found.log_mean_B], 1) / math.log(2)
        for text, (latent, rest, weighted), effective, tokens in zip(
            texts[start : start + _ROWS],
            bits_BX.tolist(),
            found.effective_B.tolist(),
            batch.target_lengths_B.tolist(),
            strict=True,
        ):
            total = latent + rest
            scores.append(Score(text, latent, rest, total, weighted, total - weighted, effective, tokens))
    return scores
