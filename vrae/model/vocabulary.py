"""The log-likelihood of tokens under a softmax over the vocabulary, which is most of the work of a step.

Shape legend: P tokens, C tokens of a chunk, E features, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CHUNK = {"cpu": 128, "cuda": 8192}  # tokens whose logits are in memory at once: on a CPU, in its cache
_SMALLEST = 1e-30  # probabilities below are nearly out of float32's range, and their logarithm is taken another way


def log_likelihood(features_PE: Tensor, weight_VE: Tensor, bias_V: Tensor, targets_P: Tensor) -> Tensor:
    """log softmax(weight features + bias)[target] in nats, [P].

    Under autocast the products, and the differences between probability and truth that backward keeps, are in its precision;
    the softmax is in that of the weights.
    """
    kind = features_PE.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_VE.dtype
    learns = torch.is_grad_enabled() and any(value.requires_grad for value in (features_PE, weight_VE, bias_V))
    with torch.autocast(kind, enabled=False):
        log_prob_P: Tensor = _LogLikelihood.apply(  # type: ignore[no-untyped-call]
            features_PE.to(dtype), weight_VE, bias_V, targets_P, learns
        )
    return log_prob_P


class _LogLikelihood(torch.autograd.Function):
    """Forward leaves one matrix, softmax - onehot(target), [P, V]: the gradient at the logits, but for sign and a factor per
    token. So backward is three products with it, and no logits, log-probabilities or their gradients are kept besides."""

    @staticmethod
    def forward(ctx: Any, features_PE: Tensor, weight_VE: Tensor, bias_V: Tensor, targets_P: Tensor, learns: bool) -> Tensor:
        (P, _), V, dtype = features_PE.shape, len(weight_VE), features_PE.dtype
        C = _CHUNK[features_PE.device.type]
        w_EV, b_V = weight_VE.to(dtype).t(), bias_V.to(dtype)
        log_prob_P = bias_V.new_empty(P)
        errors_PV = features_PE.new_empty(P if learns else min(P, C), V)
        for start in range(0, P, C):
            targets_C1 = targets_P[start : start + C, None]
            errors_CV = errors_PV[start : start + C] if learns else errors_PV[: len(targets_C1)]
            logits_CV = torch.addmm(b_V, features_PE[start : start + C], w_EV, out=errors_CV)
            probabilities_CV = torch.softmax(logits_CV, -1, dtype=bias_V.dtype)
            probability_C1 = probabilities_CV.gather(1, targets_C1)
            log_prob_C1 = probability_C1.log()
            small_C1 = probability_C1 < _SMALLEST
            if small_C1.is_cuda or small_C1.any():  # a GPU would have to be waited for
                logits = logits_CV.to(bias_V.dtype)
                log_prob_C1 = torch.where(small_C1, logits.gather(1, targets_C1) - logits.logsumexp(-1, True), log_prob_C1)
            log_prob_P[start : start + C] = log_prob_C1[:, 0]
            if learns:
                errors_CV.copy_(probabilities_CV.scatter_(1, targets_C1, probability_C1 - 1))
        if learns:
            ctx.save_for_backward(features_PE, weight_VE)
            ctx.errors_PV = errors_PV
        return log_prob_P

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor | None, ...]:
        (features_PE, weight_VE), errors_PV, dtype = ctx.saved_tensors, ctx.errors_PV, ctx.errors_PV.dtype
        factor_P1 = -grad_P[:, None]
        grad_features = (errors_PV @ weight_VE.to(dtype)) * factor_P1 if ctx.needs_input_grad[0] else None
        grad_weight = errors_PV.t() @ (features_PE * factor_P1).to(dtype)
        grad_bias = (factor_P1.to(dtype).t().expand(2, -1) @ errors_PV)[0]  # of one row, torch makes it slowly in bf16
        return grad_features, grad_weight.to(weight_VE.dtype), grad_bias.to(weight_VE.dtype), None, None
