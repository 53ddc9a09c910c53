"""GRUs over packed sequences, fast on a CPU.

There torch runs a packed GRU step by step through autograd: a dozen small operations a step, each with its own backward, and a
small product a step for the gradient of the recurrent matrix. Here a step is seven operations forward and four or five
backward, the gradient of a matrix is one product over all tokens, and only the products are made in the lower precision of
autocast. Elsewhere the layers run as torch has them.

Shape legend: P tokens of all sequences together (no padding), b sequences that reach a step, B all, X input, H state, L layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence


def run_gru(gru: nn.GRU, packed: PackedSequence, state_LBH: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What `gru` gives for a packed sequence: the data of its states, [P, H] (directions side by side), and the last states.

    Args:
        gru: of any depth, in one direction or both; with biases.
        packed: the inputs.
        state_LBH: before the first step, in the order of the unpacked sequences, L counting both directions; None: zeros.
    """
    if packed.data.device.type != "cpu":
        states, last_LBH = gru(packed, state_LBH)
        return states.data, last_LBH
    directions = 2 if gru.bidirectional else 1
    sizes = packed.batch_sizes.tolist()
    if state_LBH is None:
        state_LBH = packed.data.new_zeros(directions * gru.num_layers, sizes[0], gru.hidden_size)
    if packed.sorted_indices is not None:
        state_LBH = state_LBH[:, packed.sorted_indices]
    data_PX, last = packed.data, []
    for layer in range(gru.num_layers):
        if layer and gru.training and gru.dropout:
            data_PX = F.dropout(data_PX, gru.dropout)
        states = []
        for backwards in range(directions):
            name = f"l{layer}_reverse" if backwards else f"l{layer}"
            w_in, w_state, b_in, b_state = (getattr(gru, f"{n}_{name}") for n in _PARAMETERS)
            inputs_P3H = F.linear(data_PX, w_in, b_in)
            state_BH = state_LBH[layer * directions + backwards]
            states_PH, last_BH = _Recurrence.apply(  # type: ignore[no-untyped-call]
                inputs_P3H, w_state, b_state, state_BH, sizes, bool(backwards)
            )
            states.append(states_PH)
            last.append(last_BH)
        data_PX = torch.cat(states, -1) if directions > 1 else states[0]
    last_LBH = torch.stack(last)
    return data_PX, last_LBH if packed.unsorted_indices is None else last_LBH[:, packed.unsorted_indices]


_PARAMETERS = "weight_ih", "weight_hh", "bias_ih", "bias_hh"


class _Recurrence(torch.autograd.Function):
    """One layer in one direction, given what its inputs add to the gates: a = inputs + (W h + b), where n's part comes later.

        r, u = sigmoid(a_r, a_u)      m = W_n h + b_n      n = tanh(inputs_n + r m)      h' = n + u (h - n)

    Backward, with g the gradient at h', everything but g is known before the first step, so that each step multiplies g by one
    block of factors, in the order m, r, u, n: the first three are the gradient at W h + b, the last three that at the inputs.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs_P3H: Tensor, w_3HH: Tensor, b_3H: Tensor, state_BH: Tensor, sizes: list[int], backwards: bool
    ) -> tuple[Tensor, Tensor]:
        P, H, dtype = len(inputs_P3H), w_3HH.shape[1], inputs_P3H.dtype
        w_H3H, b_3H = w_3HH.to(dtype).t(), b_3H.to(dtype)
        h_BH = state_BH.to(w_3HH.dtype, copy=True)
        gates_P3H, new_state_PH = h_BH.new_empty(P, 3 * H), h_BH.new_empty(P, H)
        states_PH, before_PH = h_BH.new_empty(P, H), inputs_P3H.new_empty(P, H)
        products_B3H = inputs_P3H.new_empty(len(state_BH), 3 * H)
        by_step = (
            inputs_P3H[:, : 2 * H], inputs_P3H[:, 2 * H :], gates_P3H[:, : 2 * H], gates_P3H[:, 2 * H :],
            new_state_PH, states_PH, before_PH,
        )  # fmt: skip
        steps = list(zip(sizes, *(torch.split(values, sizes) for values in by_step), strict=True))
        for b, in_ru, in_n, ru, n, m, states, before in reversed(steps) if backwards else steps:
            h, products = h_BH[:b], products_B3H[:b]
            before.copy_(h)
            torch.addmm(b_3H, before, w_H3H, out=products)
            torch.add(in_ru, products[:, : 2 * H], out=ru).sigmoid_()
            m.copy_(products[:, 2 * H :])
            torch.addcmul(in_n, ru[:, :H], m, out=n).mul_(2).sigmoid_().mul_(2).sub_(1)  # tanh, in a fifth of its time
            torch.lerp(n, h, ru[:, H:], out=states)
            h.copy_(states)
        ctx.save_for_backward(gates_P3H, new_state_PH, before_PH, w_3HH)
        ctx.sizes, ctx.backwards = sizes, backwards
        return states_PH, h_BH

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_states_PH: Tensor, grad_last_BH: Tensor) -> tuple[Tensor | None, ...]:
        gates_P3H, m_PH, before_PH, w_3HH = ctx.saved_tensors
        sizes, dtype = ctx.sizes, before_PH.dtype
        P, H = before_PH.shape
        r_PH, u_PH, n_PH = gates_P3H.chunk(3, 1)
        factors_P4H = torch.empty(P, 4, H, dtype=w_3HH.dtype)
        m, r, u, n = factors_P4H.unbind(1)
        torch.mul(1 - u_PH, 1 - n_PH.square(), out=n)
        torch.mul(n, r_PH, out=m)
        torch.mul(m, m_PH, out=r).mul_(1 - r_PH)
        torch.sub(before_PH, n_PH, out=u).mul_(u_PH).mul_(1 - u_PH)
        w_3HH_mru = torch.cat([w_3HH[2 * H :], w_3HH[: 2 * H]]).to(dtype)
        g_BH = grad_last_BH.clone()
        grads_P4H = before_PH.new_empty(P, 4, H)
        products_BH = before_PH.new_empty(len(g_BH), H)
        by_step = (grad_states_PH, factors_P4H, u_PH, grads_P4H, grads_P4H.flatten(1)[:, : 3 * H])
        steps = list(zip(sizes, *(torch.split(values, sizes) for values in by_step), strict=True))
        for b, grad_states, factors, u, grads, grads_mru in steps if ctx.backwards else reversed(steps):
            g = g_BH[:b].add_(grad_states)
            torch.mul(g[:, None], factors, out=grads)
            g.mul_(u).add_(torch.mm(grads_mru, w_3HH_mru, out=products_BH[:b]))
        grads_P4H = grads_P4H.flatten(1)
        grad_w_mru = grads_P4H[:, : 3 * H].t() @ before_PH
        grad_b_mru = grads_P4H[:, : 3 * H].sum(0, dtype=w_3HH.dtype)
        grad_w, grad_b = (torch.cat([value[H:], value[:H]]).to(w_3HH.dtype) for value in (grad_w_mru, grad_b_mru))
        return grads_P4H[:, H:], grad_w, grad_b, g_BH, None, None
