"""Dropout by 16-bit draws: the rate, the scale, the seed, and when it is off."""

from __future__ import annotations

import pytest
import torch

from vrae.model.dropout import Dropout


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.5, 0.9])
def test_the_share_and_the_scale_are_those_of_the_rate(rate: float) -> None:
    torch.manual_seed(0)
    values = Dropout(rate)(torch.ones(1001, 1003))
    kept = (values != 0).float()
    assert abs(float(kept.mean()) - (1 - rate)) < 5 * (rate * (1 - rate) / values.numel()) ** 0.5 + 2**-17
    torch.testing.assert_close(values[values != 0].unique(), torch.tensor([1 / (1 - rate)]), rtol=2e-4, atol=0.0)
    for axis in (0, 1):  # neighbours, four of which share a draw, know nothing of each other
        pair = kept[1:] * kept[:-1] if axis == 0 else kept[:, 1:] * kept[:, :-1]
        assert abs(float(pair.mean()) - (1 - rate) ** 2) < 0.003


def test_the_gradient_is_the_mask() -> None:
    values = torch.full((50,), 3.0, requires_grad=True)
    dropped = Dropout(0.5)(values)
    (grad,) = torch.autograd.grad(dropped.sum(), values)
    torch.testing.assert_close(grad * 3.0, dropped.detach())


def test_the_seed_decides() -> None:
    layer, masks = Dropout(0.5), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(layer(torch.ones(100)))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("size", [0, 1, 5])
def test_any_number_of_values(size: int) -> None:
    assert Dropout(0.5)(torch.ones(size)).shape == (size,)


def test_off_in_evaluation_and_at_rate_zero_and_all_at_one() -> None:
    values = torch.randn(9)
    assert torch.equal(Dropout(0.5).eval()(values), values)
    assert torch.equal(Dropout(0.0)(values), values)
    assert not Dropout(1.0)(values).any()


def test_the_kind_of_number_stays() -> None:
    assert Dropout(0.5)(torch.ones(9, dtype=torch.bfloat16)).dtype == torch.bfloat16
