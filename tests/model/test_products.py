"""The products of writing against torch's own, in every precision and whatever the number of rows."""

from __future__ import annotations

import pytest
import torch
from conftest import gru_by_hand
from torch import nn
from torch.nn import functional as F

from vrae.model import products
from vrae.model.products import linear, step_gru


@pytest.mark.parametrize("rows", [0, 1, 7, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inputs", [0, 5, 256])
def test_linear_is_that_of_torch(rows: int, dtype: torch.dtype, inputs: int) -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=draw).to(dtype) for shape in ((rows, inputs), (40, inputs), (40,)))
    with torch.inference_mode():
        found = linear(x, weight, bias)
    exact = (x.double() @ weight.double().t() + bias.double()).to(dtype)
    torch.testing.assert_close(found, exact, atol=1e-4 if dtype == torch.float32 else 1e-12, rtol=0)


def test_linear_of_rows_that_are_not_side_by_side_in_memory() -> None:
    x, weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), torch.eye(4)
    with torch.inference_mode():
        assert linear(x[::2, ::2], weight, torch.ones(4)).equal(x[::2, ::2] + 1)


def test_linear_has_gradients_and_follows_autocast() -> None:
    x, weight, bias = torch.ones(2, 3), torch.ones(4, 3, requires_grad=True), torch.zeros(4)
    linear(x, weight, bias).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert weight.grad.equal(torch.full((4, 3), 2.0))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16


def test_linear_does_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_HAS_ONEDNN", False)
    x, weight, bias = torch.randn(5, 3), torch.randn(4, 3), torch.randn(4)
    with torch.inference_mode():
        assert linear(x, weight, bias).equal(F.linear(x, weight, bias))


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_step_of_a_gru_is_that_of_torch_and_of_the_equations(layers: int, rows: int) -> None:
    torch.manual_seed(0)
    gru = nn.GRU(5, 6, layers).double()
    inputs_BX, state_LBH = torch.randn(rows, 5).double(), torch.randn(layers, rows, 6).double()
    with torch.inference_mode():
        found_BH, after_LBH = step_gru(gru, inputs_BX, state_LBH)
        own_1BH, own_LBH = gru(inputs_BX[None], state_LBH)
        first_TH = gru_by_hand(gru, inputs_BX[:1], state_LBH[0, 0])
    torch.testing.assert_close(found_BH, own_1BH[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(after_LBH, own_LBH, atol=1e-12, rtol=0)
    torch.testing.assert_close(after_LBH[0, 0], first_TH[0], atol=1e-12, rtol=0)
