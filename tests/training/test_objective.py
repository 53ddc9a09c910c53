"""The loss with numbers worked by hand, what gets a gradient, and that the bound's terms stay as they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vrae.config import ObjectiveConfig
from vrae.model.vrae import ElboTerms
from vrae.training.objective import loss

# Two turns, three dimensions. Rates: 1.5 and 2.5 in all; per dimension 1.25, 0.2, 0.55 in the mean.
DISTORTION = [10.0, 20.0]
RATE = [[0.5, 0.3, 0.7], [2.0, 0.1, 0.4]]

PLAIN = ObjectiveConfig()
PER_DIMENSION = ObjectiveConfig(free_bits=0.5)
PER_TURN = ObjectiveConfig(free_bits=2.0, free_bits_per="total")


def terms() -> tuple[ElboTerms, Tensor, Tensor]:
    distortion_B = torch.tensor(DISTORTION, dtype=torch.float64, requires_grad=True)
    rate_BZ = torch.tensor(RATE, dtype=torch.float64, requires_grad=True)
    return ElboTerms(distortion_B, rate_BZ), distortion_B, rate_BZ


@pytest.mark.parametrize(
    ("config", "rate"),
    [
        (PLAIN, 2.0),  # (1.5 + 2.5) / 2
        (PER_DIMENSION, 1.25 + 0.5 + 0.55),  # the batch mean of a dimension, not each turn's
        (ObjectiveConfig(free_bits=9.0), 27.0),
        (PER_TURN, (2.0 + 2.5) / 2),  # each turn's total, not the batch's
        (ObjectiveConfig(free_bits=9.0, free_bits_per="total"), 9.0),
        (ObjectiveConfig(free_bits_per="total"), 2.0),
    ],
)
@pytest.mark.parametrize("kl_weight", [0.0, 0.25, 1.0, 3.0])
def test_loss_is_the_mean_distortion_and_the_weighted_rate_beyond_what_is_free(
    config: ObjectiveConfig, rate: float, kl_weight: float
) -> None:
    assert loss(terms()[0], kl_weight, config).item() == pytest.approx(15 + kl_weight * rate, abs=1e-12)


@pytest.mark.parametrize(
    ("config", "gradient"),
    [
        (PLAIN, [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]),
        (PER_DIMENSION, [[0.5, 0, 0.5], [0.5, 0, 0.5]]),  # the second dimension is below the floor
        (PER_TURN, [[0, 0, 0], [0.5, 0.5, 0.5]]),  # the first turn is
    ],
)
def test_what_is_free_gets_no_gradient(config: ObjectiveConfig, gradient: list[list[float]]) -> None:
    bound, distortion_B, rate_BZ = terms()
    loss(bound, 0.4, config).backward()
    assert distortion_B.grad is not None
    assert rate_BZ.grad is not None
    assert distortion_B.grad.tolist() == [0.5, 0.5]
    assert rate_BZ.grad.numpy() == pytest.approx(0.4 * torch.tensor(gradient).numpy())


@pytest.mark.parametrize("config", [PLAIN, PER_DIMENSION, PER_TURN])
def test_loss_never_changes_the_terms_of_the_bound(config: ObjectiveConfig) -> None:
    bound, _, _ = terms()
    loss(bound, 0.1, config).backward()
    assert bound.distortion_B.tolist() == DISTORTION
    assert bound.rate_BZ.tolist() == RATE
    assert bound.rate_B.tolist() == pytest.approx([1.5, 2.5])
    assert bound.elbo_B.tolist() == pytest.approx([-11.5, -22.5])


@pytest.mark.parametrize("config", [PLAIN, ObjectiveConfig(free_bits=0.5, free_bits_per="total")])
def test_loss_without_latent_is_the_distortion(config: ObjectiveConfig) -> None:
    bound = ElboTerms(torch.tensor(DISTORTION), torch.zeros(2, 0))
    gap = 0.5 if config.free_bits else 0.0  # a constant: no gradient
    assert loss(bound, 1.0, config).item() == pytest.approx(15 + gap)
