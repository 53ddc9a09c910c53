"""The optimiser: Muon for the matrices between hidden layers, AdamW for embeddings, output layer and biases.

A gradient of a matrix is often nearly of low rank: a few directions take all of the step. Muon (Jordan et al. 2024) steps along
the closest orthogonal matrix instead, in which every direction counts the same. A row of an embedding is not a direction of a
matrix but a token of its own, with a gradient in a few steps of many: there Adam's step per number is the right one.

Shape legend: G gates stacked in a matrix, M rows of one of them, N columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vrae.config import TrainConfig
from vrae.model.vrae import VRAE
from vrae.training.objective import BagOfWords

_NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315  # of Jordan et al. 2024: five steps bring all but tiny values into [0.68, 1.14]
_SIZE = 0.05  # root mean square of a step of a matrix over the learning rate


def orthogonalise(matrices_GMN: Tensor, dtype: torch.dtype) -> Tensor:
    """Each matrix with its singular values brought near 1, those far below its largest ones excepted.

    Newton-Schulz iterations X <- a X + (b A + c A^2) X with A = X X^T, which map a singular value s to a s + b s^3 + c s^5.

    Args:
        matrices_GMN: matrices of zeros stay as they are.
        dtype: of the products.
    """
    a, b, c = _NEWTON_SCHULZ
    wide_GMN = matrices_GMN if matrices_GMN.shape[1] <= matrices_GMN.shape[2] else matrices_GMN.mT
    x_GMN = (wide_GMN / wide_GMN.norm(dim=(1, 2), keepdim=True).clamp(min=1e-30)).to(dtype)
    for _ in range(5):
        square_GMM = x_GMN @ x_GMN.mT
        x_GMN = torch.baddbmm(x_GMN, torch.baddbmm(square_GMM, square_GMM, square_GMM, beta=b, alpha=c), x_GMN, beta=a)
    made_GMN: Tensor = x_GMN if wide_GMN is matrices_GMN else x_GMN.mT
    return made_GMN.to(matrices_GMN.dtype)


class MuonAdamW(torch.optim.AdamW):
    """AdamW, but for groups that name their `gates`: each parameter there is so many matrices, and is stepped by Muon.

    Muon: m <- mu m + (1 - mu) g, and a step along orthogonalise(mu m + (1 - mu) g), scaled by sqrt(max(M, N)) so that the mean
    square of its numbers does not hang on the shape (Liu et al. 2025, eq. 4). They give it the size of a step of Adam's, 0.2 of
    the learning rate. Here it is a quarter of that: the tables, whose rows have a gradient in few steps, want four times the
    learning rate of the matrices, and so one number serves both. The gradients of Muon's parameters are gone after a step.

    Args:
        groups: of named parameters, as for AdamW.
        lr, betas: of AdamW; the learning rate is Muon's too.
        momentum: mu.
        dtype: of Muon's products; None: that of the parameters.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        momentum: float = 0.95,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__([{"gates": 0, **group} for group in groups], lr=lr, betas=betas, fused=True)
        self.momentum, self.dtype = momentum, dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"] if group["gates"] else ():
                if parameter.grad is not None:
                    self._muon(parameter, parameter.grad, group)
                    parameter.grad = None  # AdamW would take it too
        super().step()

    def _muon(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"], state["exp_avg"] = parameter.new_zeros((), dtype=torch.float32), torch.zeros_like(parameter)
        state["step"] += 1
        mean = state["exp_avg"].lerp_(grad, 1 - self.momentum)
        ahead_GMN = grad.lerp(mean, self.momentum).reshape(group["gates"], -1, grad.shape[1])
        update = orthogonalise(ahead_GMN, self.dtype or grad.dtype).flatten(0, 1)
        size = _SIZE * math.sqrt(max(ahead_GMN.shape[1:]))
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * size)


def make_optimizer(model: VRAE, bag_of_words: BagOfWords | None, options: TrainConfig, precision: str) -> torch.optim.Optimizer:
    """Of all parameters, named as in the model, those of the second decoder after `bag_of_words.`.

    With Muon, embeddings are not decayed: where a step has no gradient for a rare token, decay would be all that moves it.

    Args:
        model: in the precision it is trained in.
        bag_of_words: the second decoder, where there is one.
        options: which optimiser, learning rate and weight decay.
        precision: `bf16` or `fp32`, that of the model's products.
    """
    outputs = [model.decoder.out, *([bag_of_words.out] if bag_of_words else [])]
    found: dict[int, list[tuple[str, nn.Parameter]]] = {3: [], 1: [], 0: []}
    for prefix, module in (("", model), ("bag_of_words", bag_of_words)):
        for path, layer in module.named_modules(prefix=prefix) if module else ():
            for name, parameter in layer.named_parameters(path, recurse=False):
                if not any(parameter is other for _, other in found[0]):  # the output layer's may be the embedding's
                    found[0 if layer in outputs else _gates(layer, parameter)].append((name, parameter))
    if options.optimizer == "adamw":
        named = [pair for pairs in found.values() for pair in pairs]
        groups: list[dict[str, Any]] = [
            {"params": [(n, p) for n, p in named if p.ndim >= 2], "weight_decay": options.weight_decay},
            {"params": [(n, p) for n, p in named if p.ndim < 2], "weight_decay": 0.0},
        ]
    else:
        groups = [
            {"params": named, "gates": gates, "weight_decay": options.weight_decay if gates else 0.0}
            for gates, named in found.items()
        ]
    dtype = torch.bfloat16 if precision == "bf16" else None
    return MuonAdamW(groups, options.learning_rate, betas=(0.9, 0.99), dtype=dtype)


def _gates(layer: nn.Module, parameter: nn.Parameter) -> int:
    """How many matrices between hidden layers a parameter holds: none, if it is a bias, empty, or its rows are a table."""
    if parameter.ndim < 2 or not parameter.numel() or isinstance(layer, nn.Embedding):
        return 0
    return 3 if isinstance(layer, nn.GRU) else 1
