"""The fused log-likelihood against the plain formula, its gradient against differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vrae.model.vocabulary
from vrae.model.vocabulary import log_likelihood

P, E, V = 9, 4, 7


def setting(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    features_PE, weight_VE, bias_V = (torch.randn(*shape, dtype=dtype) for shape in ((P, E), (V, E), (V,)))
    return *(value.requires_grad_() for value in (features_PE, weight_VE, bias_V)), torch.randint(V, (P,))  # type: ignore[return-value]


def plain(features_PE: Tensor, weight_VE: Tensor, bias_V: Tensor, targets_P: Tensor) -> Tensor:
    return F.linear(features_PE, weight_VE, bias_V).log_softmax(-1).gather(1, targets_P[:, None])[:, 0]


@pytest.mark.parametrize("chunk", [1, 4, 9, 100])
def test_values_and_gradients_are_those_of_the_plain_formula(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vrae.model.vocabulary, "_CHUNK", {"cpu": chunk})
    *inputs, targets_P = setting()
    factors_P = torch.randn(P, dtype=torch.float64)
    found, expected = (function(*inputs, targets_P) for function in (log_likelihood, plain))  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad((value * factors_P).sum(), inputs) for value in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_gradients_are_the_slopes() -> None:
    *inputs, targets_P = setting()
    assert torch.autograd.gradcheck(lambda *values: log_likelihood(*values, targets_P), inputs)


def test_without_gradients_the_values_are_the_same_and_no_matrix_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vrae.model.vocabulary, "_CHUNK", {"cpu": 4})
    *inputs, targets_P = setting()
    expected = log_likelihood(*inputs, targets_P)  # type: ignore[arg-type]
    with torch.no_grad():
        found = log_likelihood(*inputs, targets_P)  # type: ignore[arg-type]
    assert found.grad_fn is None
    assert torch.equal(found, expected)


@pytest.mark.parametrize("nats", [50.0, 80.0, 100.0, 1000.0])
def test_tokens_of_hardly_any_probability_have_a_finite_logarithm(nats: float) -> None:
    """In float32 a probability below exp(-103) is zero; the gradient of such a token is that of any other."""
    features_PE, bias_V = torch.zeros(1, E, requires_grad=True), torch.tensor([0.0, -nats, -5.0], requires_grad=True)
    value = log_likelihood(features_PE, torch.ones(3, E), bias_V, torch.tensor([1]))
    assert value.item() == pytest.approx(-nats - 0.0067153, rel=1e-6)
    (grad_V,) = torch.autograd.grad(value.sum(), bias_V)
    torch.testing.assert_close(grad_V, torch.tensor([-0.9933071, 1.0, -0.0066929]), rtol=1e-5, atol=1e-7)


def test_under_autocast_a_token_that_is_nearly_certain_keeps_its_small_gradient() -> None:
    """1 - p is rounded to 8 bits, and not p, of which nothing would be left."""
    bias_V = torch.tensor([0.0, -9.0], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        value = log_likelihood(torch.zeros(1, E), torch.ones(2, E), bias_V, torch.tensor([0]))
    assert value.dtype == torch.float32
    (grad_V,) = torch.autograd.grad(value.sum(), bias_V)
    torch.testing.assert_close(grad_V, torch.tensor([0.0001234, -0.0001234]), rtol=0.005, atol=0.0)
