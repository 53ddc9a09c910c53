"""From the two sides of the bound to the number that is minimised. Nothing here reaches a reported figure."""

from __future__ import annotations

from torch import Tensor

from vrae.config import ObjectiveConfig
from vrae.model.vrae import ElboTerms


def loss(terms: ElboTerms, kl_weight: float, config: ObjectiveConfig) -> Tensor:
    """Mean over turns of distortion + kl_weight * rate, in weighted nats, with the first `free_bits` of the rate free.

    `free_bits_per` = `dimension`: sum_d max(mean_B rate_d, free_bits) (Kingma et al. 2016, appendix C.8);
    `total`: mean_B max(rate_B, free_bits).
    """
    if config.free_bits and config.free_bits_per == "dimension":
        rate = terms.rate_BZ.mean(0).clamp(min=config.free_bits).sum()
    elif config.free_bits:
        rate = terms.rate_B.clamp(min=config.free_bits).mean()
    else:
        rate = terms.rate_B.mean()
    return terms.distortion_B.mean() + kl_weight * rate
