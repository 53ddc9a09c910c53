"""Drawing text from p(x | z, c): greedy, or sampling with temperature, top-k and top-p, many texts at once.

The randomness of a text is given beforehand, one number in [0, 1) per token, so a text depends on its own condition and its
own numbers and not on what else is decoded beside it.

Shape legend: B texts, T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vrae.config import DecodingConfig
from vrae.corpus.tokenizer import BOS, EOS, PAD, UNK
from vrae.model.decoder import Decoder, DecoderState

_NEVER_TEXT = [PAD, UNK, BOS]
_COLDEST = 1e-6  # a temperature below it would divide by zero in single precision


class Decoded(NamedTuple):
    """One text as ids, without its end mark."""

    ids: list[int]
    log_prob: float  # nats, under the model as it is (no temperature, no truncation), end mark included where one was drawn
    finished: bool  # False: cut at max_tokens


@torch.inference_mode()
def decode(decoder: Decoder, state: DecoderState, noise_BT: Tensor, config: DecodingConfig) -> list[Decoded]:
    """Writes one text for each row of `state`.

    Args:
        decoder: in eval mode.
        state: as `decoder.start` gave it.
        noise_BT: uniform in [0, 1), at least `config.max_tokens` wide. Greedy decoding does not read it.
        config: how to draw.
    """
    B = len(state.condition_BE)
    texts: list[list[int]] = [[] for _ in range(B)]
    log_prob_B = torch.zeros(B, dtype=torch.float64, device=noise_BT.device)
    finished = [False] * B
    rows = torch.arange(B, device=noise_BT.device)
    ids = decoder.first_tokens(B)
    for t in range(config.max_tokens):
        logits_BV, state = decoder.step(ids, state)
        ids = choose(logits_BV, noise_BT[rows, t], config)
        chosen_B1 = logits_BV.log_softmax(-1).gather(1, ids[:, None])
        log_prob_B.index_add_(0, rows, chosen_B1[:, 0].double())
        going = ids != EOS
        for row, token in zip(rows.tolist(), ids.tolist(), strict=True):
            if token == EOS:
                finished[row] = True
            else:
                texts[row].append(token)
        if not going.all():
            rows, ids, state = rows[going], ids[going], state.select(going)
            if not len(rows):
                break
    return [Decoded(*text) for text in zip(texts, log_prob_B.tolist(), finished, strict=True)]


def choose(logits_BV: Tensor, noise_B: Tensor, config: DecodingConfig) -> Tensor:
    """One id for each row: the inverse of the cumulative distribution at `noise_B`, among the pieces that may be drawn.

    pad, unk and bos are never chosen. top-p keeps the fewest pieces whose probability reaches p (Holtzman et al. 2020).
    """
    logits_BV = logits_BV.clone()
    logits_BV[:, _NEVER_TEXT] = -torch.inf
    if config.temperature == 0:
        return logits_BV.argmax(-1)
    if not config.top_k and config.top_p == 1:  # nothing is left out, so there is nothing to sort
        total_BV = (logits_BV / max(config.temperature, _COLDEST)).softmax(-1).cumsum(-1)
        whole_B1 = total_BV[:, -1:]
        below_B1 = torch.minimum(noise_B[:, None].to(total_BV.dtype) * whole_B1, whole_B1.nextafter(torch.zeros_like(whole_B1)))
        return torch.searchsorted(total_BV, below_B1, right=True)[:, 0]
    count = min(config.top_k or logits_BV.shape[1], logits_BV.shape[1])
    top_BV, ids_BV = logits_BV.topk(count, sorted=True)
    prob_BV = ((top_BV - top_BV[:, :1]) / max(config.temperature, _COLDEST)).softmax(-1)
    before_BV = prob_BV.cumsum(-1) - prob_BV
    prob_BV = prob_BV.masked_fill(before_BV >= config.top_p, 0.0)
    prob_BV[:, 0].clamp_(min=torch.finfo(prob_BV.dtype).tiny)
    total_BV = prob_BV.cumsum(-1)
    # the first place whose cumulative probability exceeds the noise; never one of probability zero
    place_B1 = torch.searchsorted(total_BV, noise_B[:, None].to(total_BV.dtype) * total_BV[:, -1:], right=True)
    last_B1 = (prob_BV > 0).sum(-1, keepdim=True) - 1
    return ids_BV.gather(1, torch.minimum(place_B1, last_B1))[:, 0]
