"""The products that writing is made of, without a gradient.

Shape legend: B rows, X inputs, Y outputs, H state, L layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def linear(inputs_BX: Tensor, weight_YX: Tensor, bias_Y: Tensor) -> Tensor:
    """F.linear, [B, Y]; without a gradient, in single precision on a CPU, by oneDNN where torch has it.

    F.linear asks MKL for these products, which is slower on processors that are not Intel's.
    """
    suits = inputs_BX.dtype == torch.float32 and inputs_BX.device.type == "cpu" and inputs_BX.numel() > 0
    if not suits or not _HAS_ONEDNN or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return F.linear(inputs_BX, weight_YX, bias_Y)
    product_BY: Tensor = torch.ops.mkldnn._linear_pointwise(inputs_BX, weight_YX, bias_Y, "none", [], "")
    return product_BY


_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]


def step_gru(gru: nn.GRU, inputs_BX: Tensor, state_LBH: Tensor) -> tuple[Tensor, Tensor]:
    """One step of `gru`, of any depth, in one direction and in eval mode: what it gives, [B, H], and the state after it.

    r, u = sigmoid(a_r, a_u)      n = tanh(a_n + r m)      h' = n + u (h - n)      a = V x + b, and W h + b but for n's part m
    """
    states, sizes = [], [2 * gru.hidden_size, gru.hidden_size]
    for layer, h_BH in enumerate(state_LBH):
        w_in, w_state, b_in, b_state = (getattr(gru, f"{name}_l{layer}") for name in _PARAMETERS)
        a_ru, a_n = torch.split(linear(inputs_BX, w_in, b_in), sizes, 1)
        m_ru, m = torch.split(linear(h_BH, w_state, b_state), sizes, 1)
        r, u = torch.sigmoid(a_ru + m_ru).chunk(2, 1)
        n = torch.addcmul(a_n, r, m).mul_(2).sigmoid_().mul_(2).sub_(1)  # tanh, in less time
        inputs_BX = torch.lerp(n, h_BH, u)
        states.append(inputs_BX)
    return inputs_BX, torch.stack(states)


_PARAMETERS = "weight_ih", "weight_hh", "bias_ih", "bias_hh"
