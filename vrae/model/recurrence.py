"""GRUs over packed sequences, fast on a CPU.

There torch runs a packed GRU step by step through autograd: a dozen small operations a step, each with its own backward, and a
small product a step for the gradient of the recurrent matrix. Here all that backward needs is worked out forward, while it
is in the cache, the gradient of a matrix is one product over all tokens, and only the products are made in the lower precision
of autocast. Elsewhere the layers run as torch has them.

Shape legend: P tokens of all sequences together (no padding), b sequences that reach a step, B all, X input, H state, L layers.
"""

from __future__ import annotations

from itertools import accumulate
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
_ROWS = 16  # a step's products are made for a multiple of so many rows


def _whole(rows: int) -> int:
    """The rows that are multiplied where `rows` are wanted; of the rest, whatever they hold, nothing is read.

    torch makes and keeps a program for every shape that it multiplies in bf16. Steps of every size from one to hundreds would
    take over a gigabyte, and often be made anew.
    """
    return -(-rows // _ROWS) * _ROWS


class _Recurrence(torch.autograd.Function):
    """One layer in one direction, given what its inputs add to the gates: a = inputs + (W h + b), where n's part comes later.

        r, u = sigmoid(a_r, a_u)      m = W_n h + b_n      n = tanh(inputs_n + r m)      h' = n + u (h - n)

    Backward, with g the gradient at h', everything but g is known when h' is. So forward keeps one block of factors, in the
    order m, r, u, n, and backward multiplies g by it: the first three are the gradient at W h + b, the last three that at the
    inputs. What a step reads is then in the cache, which what all steps read together would not be.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs_P3H: Tensor, w_3HH: Tensor, b_3H: Tensor, state_BH: Tensor, sizes: list[int], backwards: bool
    ) -> tuple[Tensor, Tensor]:
        P, H, dtype = len(inputs_P3H), w_3HH.shape[1], inputs_P3H.dtype
        learns = any(ctx.needs_input_grad)
        w_H3H, b_3H = w_3HH.to(dtype).t(), b_3H.to(dtype)
        h_BH = state_BH.to(w_3HH.dtype, copy=True)
        gates_B3H, m_BH = h_BH.new_empty(len(h_BH), 3 * H), torch.empty_like(h_BH)
        products_B3H = inputs_P3H.new_empty(_whole(len(h_BH)), 3 * H)
        states_PH, before_PH = h_BH.new_empty(P, H), inputs_P3H.new_empty(P + _ROWS, H)
        factors_P4H, update_PH = h_BH.new_empty(P if learns else 0, 4, H), h_BH.new_empty(P if learns else 0, H)
        by_step = inputs_P3H[:, : 2 * H], inputs_P3H[:, 2 * H :], states_PH
        steps = list(zip(sizes, *(torch.split(values, sizes) for values in by_step), accumulate(sizes), strict=True))
        for b, in_ru, in_n, states, end in reversed(steps) if backwards else steps:
            h, products, m = h_BH[:b], products_B3H[:b], m_BH[:b]
            ru, (r, u, n) = gates_B3H[:b, : 2 * H], gates_B3H[:b].chunk(3, 1)
            before_PH[end - b : end] = h
            torch.addmm(b_3H, before_PH[end - b : end - b + _whole(b)], w_H3H, out=products_B3H[: _whole(b)])
            torch.add(in_ru, products[:, : 2 * H], out=ru).sigmoid_()
            m.copy_(products[:, 2 * H :])
            torch.addcmul(in_n, r, m, out=n).mul_(2).sigmoid_().mul_(2).sub_(1)  # tanh, in a fifth of its time
            torch.lerp(n, h, u, out=states)
            if learns:
                _factors(r, u, n, m, h, factors_P4H[end - b : end])
                update_PH[end - b : end] = u
            h.copy_(states)
        ctx.save_for_backward(factors_P4H, update_PH, before_PH[:P], w_3HH)
        ctx.sizes, ctx.backwards = sizes, backwards
        return states_PH, h_BH

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_states_PH: Tensor, grad_last_BH: Tensor) -> tuple[Tensor | None, ...]:
        factors_P4H, update_PH, before_PH, w_3HH = ctx.saved_tensors
        sizes, dtype = ctx.sizes, before_PH.dtype
        P, H = before_PH.shape
        w_3HH_mru = torch.cat([w_3HH[2 * H :], w_3HH[: 2 * H]]).to(dtype)
        g_BH = grad_last_BH.clone()
        grads_P4H = before_PH.new_empty(P + _ROWS, 4, H)
        grads_P3H_mru = grads_P4H.flatten(1)[:, : 3 * H]
        products_BH = before_PH.new_empty(_whole(len(g_BH)), H)
        by_step = (grad_states_PH, factors_P4H, update_PH, grads_P4H[:P])
        steps = list(zip(sizes, *(torch.split(values, sizes) for values in by_step), accumulate(sizes), strict=True))
        for b, grad_states, factors, u, grads, end in steps if ctx.backwards else reversed(steps):
            g = g_BH[:b].add_(grad_states)
            torch.mul(g[:, None], factors, out=grads)
            torch.mm(grads_P3H_mru[end - b : end - b + _whole(b)], w_3HH_mru, out=products_BH[: _whole(b)])
            g.mul_(u).add_(products_BH[:b])
        grads_P4H = grads_P4H[:P].flatten(1)
        grad_w_mru = grads_P4H[:, : 3 * H].t() @ before_PH
        grad_b_mru = grads_P4H[:, : 3 * H].sum(0)  # adds in float32, whatever the precision
        grad_w, grad_b = (torch.cat([value[H:], value[:H]]).to(w_3HH.dtype) for value in (grad_w_mru, grad_b_mru))
        return grads_P4H[:, H:], grad_w, grad_b, g_BH, None, None


def _factors(r_bH: Tensor, u_bH: Tensor, n_bH: Tensor, m_bH: Tensor, h_bH: Tensor, factors_b4H: Tensor) -> None:
    """Fills in the derivatives of one step's h' by m, a_r, a_u and a_n."""
    by_m, by_r, by_u, by_n = factors_b4H.unbind(1)
    rest_bH = 1 - u_bH
    torch.addcmul(rest_bH, rest_bH * n_bH, n_bH, value=-1, out=by_n)
    torch.mul(by_n, r_bH, out=by_m)
    torch.addcmul(m_bH, m_bH, r_bH, value=-1, out=by_r).mul_(by_m)
    torch.sub(h_bH, n_bH, out=by_u).mul_(u_bH).mul_(rest_bH)
