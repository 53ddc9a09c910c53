"""Writing text by p(x | z, c): greedy, by sampling, or by beam search; many texts at once.

The randomness of a text is given beforehand, one number in [0, 1) per token, so a text depends on its own condition and its
own numbers and not on what else is decoded beside it. However a text was chosen, the log-probability that comes with it is the
model's own: no temperature, no truncation, no penalty. No text is empty: its first piece is never the end mark.

Shape legend: B texts, R of them that are not at their end, T tokens, V vocabulary; in a beam search R texts that are searched
for, W beams, X = R W hypotheses, J continuations or probabilities looked at.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vrae.config import DecodingConfig
from vrae.corpus.tokenizer import BOS, EOS, PAD, UNK
from vrae.generation.deadline import check_time
from vrae.model.decoder import Decoder, DecoderState

ROWS = 256  # texts or hypotheses side by side, so that memory does not grow with their number
_NEVER_TEXT = [PAD, UNK, BOS]
_HEAD = 256  # most probable pieces that top-p looks among first
_COLDEST = 1e-6  # a temperature below it would divide by zero in single precision


class Decoded(NamedTuple):
    """One text as ids, without its end mark."""

    ids: list[int]
    log_prob: float  # nats, under the model as it is (no temperature, truncation or penalty), with the end mark if finished
    finished: bool  # False: cut at max_tokens


@torch.inference_mode()
def decode(decoder: Decoder, state: DecoderState, noise_BT: Tensor | None, config: DecodingConfig) -> list[Decoded]:
    """Writes one text for each row of `state`; with `config.beams`, the best that `beam_search` finds.

    Args:
        decoder: in eval mode.
        state: as `decoder.start` gave it.
        noise_BT: uniform in [0, 1), at least `config.max_tokens` wide. Greedy decoding and beam search do not read it; None
            will do for them.
        config: how to choose.
    """
    if config.beams:
        return [texts[0] for texts in beam_search(decoder, state, config, 1)]
    if noise_BT is None:
        assert config.temperature == 0, "sampling needs noise"
        noise_BT = state.condition_BE.new_zeros(len(state.condition_BE), config.max_tokens)
    return [text for rows in _parts(state, ROWS) for text in _write(decoder, state.select(rows), noise_BT[rows], config)]


def _write(decoder: Decoder, state: DecoderState, noise_RT: Tensor, config: DecodingConfig) -> list[Decoded]:
    rows = torch.arange(len(noise_RT), device=noise_RT.device)  # of the texts that have no end mark yet
    written_RT = torch.full((len(rows), config.max_tokens), EOS, device=rows.device)
    log_prob_R = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    texts_BT, log_prob_B = torch.empty_like(written_RT), torch.empty_like(log_prob_R)
    ids = decoder.first_tokens(len(rows))
    for t in range(config.max_tokens):
        check_time()
        logits_RV, state = decoder.step(ids, state)
        ids = choose(logits_RV, written_RT[:, :t], noise_RT[:, t], config)
        written_RT[:, t] = ids
        log_prob_R += logits_RV.log_softmax(-1).gather(1, ids[:, None])[:, 0]
        going = ids != EOS
        if not going.all() or t == config.max_tokens - 1:
            texts_BT[rows], log_prob_B[rows] = written_RT, log_prob_R
            rows, ids, state = rows[going], ids[going], state.select(going)
            written_RT, log_prob_R, noise_RT = written_RT[going], log_prob_R[going], noise_RT[going]
            if not len(rows):
                break
    texts = zip(texts_BT.tolist(), log_prob_B.tolist(), strict=True)
    return [Decoded(ids[: ids.index(EOS)], p, True) if EOS in ids else Decoded(ids, p, False) for ids, p in texts]


def choose(logits_BV: Tensor, written_BT: Tensor, noise_B: Tensor, config: DecodingConfig) -> Tensor:
    """One id for each row: the inverse of the cumulative distribution at `noise_B`, among the pieces that may be drawn.

    top-p keeps the fewest of the top-k pieces whose probability reaches p; min-p looks at the most probable piece alone, and
    what either leaves out is out.

    Args:
        logits_BV: as the decoder gave them.
        written_BT: the ids of each text so far; T may be 0.
        noise_B: uniform in [0, 1).
    """
    logits_BV = _penalised(logits_BV, written_BT, config.repetition_penalty)
    logits_BV = _barred(logits_BV / max(config.temperature or 1.0, _COLDEST), written_BT, config.no_repeat_ngram)
    if config.temperature == 0:
        return logits_BV.argmax(-1)
    if config.top_k:
        high_BJ, piece_at = _highest(logits_BV, config.top_k)
        return piece_at(_place(high_BJ.softmax(-1), noise_B, config))
    prob_BV = logits_BV.softmax(-1)
    if config.top_p < 1:
        return _nucleus(prob_BV, noise_B, config)
    if config.min_p:
        prob_BV = prob_BV.masked_fill(prob_BV < config.min_p * prob_BV.amax(-1, keepdim=True), 0.0)
    total_BV = prob_BV.cumsum(-1)
    return _drawn(total_BV, total_BV[:, -1:], noise_B)


def _nucleus(prob_BV: Tensor, noise_B: Tensor, config: DecodingConfig) -> Tensor:
    """Draws by top-p. The first pieces nearly always reach it; a text whose do not is looked at again, with all pieces."""
    high_BJ, piece_at = _highest(prob_BV, _HEAD)
    ids_B = piece_at(_place(high_BJ, noise_B, config))
    short_B = high_BJ.sum(-1) < config.top_p
    if high_BJ.shape[1] < prob_BV.shape[1] and short_B.any():
        high_BV, piece_at = _highest(prob_BV[short_B], prob_BV.shape[1])
        ids_B[short_B] = piece_at(_place(high_BV, noise_B[short_B], config))
    return ids_B


def _place(prob_BJ: Tensor, noise_B: Tensor, config: DecodingConfig) -> Tensor:
    """Draws by top-p and min-p among probabilities that stand the highest first: the place of one in each row."""
    total_BJ = prob_BJ.cumsum(-1)
    kept_B1 = (total_BJ < config.top_p).sum(-1, keepdim=True)  # the place of the last that is kept
    if config.min_p:
        kept_B1 = torch.minimum(kept_B1, (prob_BJ >= config.min_p * prob_BJ[:, :1]).sum(-1, keepdim=True) - 1)
    return _drawn(total_BJ, total_BJ.gather(1, kept_B1.clamp_(max=total_BJ.shape[1] - 1)), noise_B)


def _drawn(total_BJ: Tensor, whole_B1: Tensor, noise_B: Tensor) -> Tensor:
    """The first place of each row whose cumulative weight exceeds the noise's share of the whole; never one of weight zero."""
    below_B1 = torch.minimum(noise_B[:, None].to(whole_B1.dtype) * whole_B1, whole_B1.nextafter(torch.zeros_like(whole_B1)))
    return torch.searchsorted(total_BJ, below_B1, right=True)[:, 0]


def _highest(values_BV: Tensor, count: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The so many highest of each row, the highest first, and what tells which piece stands at a place, one of each row.

    On a CPU numpy sorts the values alone, in a fraction of the time that torch takes to sort them with their places, and the
    piece is looked up by its value.
    """
    count = min(count, values_BV.shape[1])
    if values_BV.device.type != "cpu":
        high_BJ, ids_BJ = values_BV.topk(count)
        return high_BJ, lambda place_B: ids_BJ.gather(1, place_B[:, None])[:, 0]
    values = values_BV.numpy()
    high = np.partition(values, -count)[:, -count:] if count < values.shape[1] else values.copy()
    high.sort()
    high = high[:, ::-1].copy()

    def piece_at(place_B: Tensor) -> Tensor:
        rows, places = np.arange(len(high)), place_B.numpy()
        chosen = high[rows, places]
        found = values == chosen[:, None]
        ids = found.argmax(1)
        for row in np.flatnonzero((places > 0) & (chosen == high[rows, places - 1])):  # one of several that are equal
            ids[row] = np.flatnonzero(found[row])[places[row] - (high[row] > chosen[row]).sum()]
        return torch.from_numpy(ids)

    return torch.from_numpy(high), piece_at


@torch.inference_mode()
def beam_search(decoder: Decoder, state: DecoderState, config: DecodingConfig, n: int | None = None) -> list[list[Decoded]]:
    """The best texts of each row of `state` that a search with `config.beams` hypotheses finds, the best one first.

    Every step keeps the `beams` best continuations of a row's hypotheses; one among them that is an end mark completes a text.
    So one beam is greedy decoding (where length_penalty is 0), and nothing is missed where there are no more texts than beams.

    Texts are ranked by log_prob / length ** length_penalty, an end mark being part of the length; one that is cut at max_tokens
    ranks by what there is of it. What may not be written (`no_repeat_ngram`) is passed over, and its probability goes to no
    other text. With a repetition_penalty, what ranks is the log-probability under the penalised logits.

    A row ends as soon as no hypothesis can get among the best n. With every piece the log-probability falls and the length
    grows, to max_tokens at most, so log_prob / max_tokens ** length_penalty is the best rank that a hypothesis can reach.

    Args:
        decoder: in eval mode.
        state: as `decoder.start` gave it.
        config: how to search.
        n: texts wanted of each row, at most `config.beams`; None: so many. To ask for fewer saves time and changes none.

    Returns:
        for each row 1 to n texts, fewer only where no more were found.
    """
    n = n or config.beams
    assert 1 <= n <= config.beams, "more texts than beams"
    parts = _parts(state, max(ROWS // config.beams, 1))
    return [texts for rows in parts for texts in _search(decoder, state.select(rows), config, n)]


def _search(decoder: Decoder, state: DecoderState, config: DecodingConfig, n: int) -> list[list[Decoded]]:
    found: list[list[tuple[float, Decoded]]] = [[] for _ in state.condition_BE]  # rank and text, the best first

    def enter(row: int, rank: float, text: Decoded) -> None:
        insort(found[row], (rank, text), key=lambda entry: -entry[0])
        del found[row][n:]

    rows = list(range(len(found)))  # in which the search goes on
    written_XT = decoder.first_tokens(len(rows))[:, None]  # bos and the ids so far
    score_X = log_prob_X = torch.zeros(len(rows), dtype=torch.float64, device=written_XT.device)
    longest = config.max_tokens**config.length_penalty
    for length in range(1, config.max_tokens + 1):
        check_time()
        logits_XV, state = decoder.step(written_XT[:, -1], state)
        score_RJ, log_prob_RJ, parent_RJ, id_RJ = _continue(
            logits_XV, written_XT[:, 1:], score_X, log_prob_X, len(rows), config
        )
        end_RJ = id_RJ == EOS

        whole_RJ = end_RJ & (score_RJ > -torch.inf)
        whole_RJ[:, config.beams :] = False
        of_P = whole_RJ.nonzero()[:, 0].tolist()
        texts = _texts(written_XT[parent_RJ[whole_RJ]], log_prob_RJ[whole_RJ], finished=True)
        for r, score, text in zip(of_P, score_RJ[whole_RJ].tolist(), texts, strict=True):
            enter(rows[r], score / length**config.length_penalty, text)

        score_RW, place_RW = score_RJ.masked_fill(end_RJ, -torch.inf).topk(min(config.beams, score_RJ.shape[1]))
        reach_R = (score_RW[:, 0] / longest).tolist()
        lowest = [found[row][-1][0] if len(found[row]) == n else -math.inf for row in rows]
        going = [r for r in range(len(rows)) if reach_R[r] > lowest[r]]
        if not going:
            break
        rows, going_R = [rows[r] for r in going], torch.tensor(going, device=score_RW.device)
        score_X = score_RW[going_R].flatten()
        log_prob_X, parent_X, id_X = (
            values_RJ.gather(1, place_RW)[going_R].flatten() for values_RJ in (log_prob_RJ, parent_RJ, id_RJ)
        )
        written_XT, state = torch.cat([written_XT[parent_X], id_X[:, None]], 1), state.select(parent_X)
    else:  # cut
        texts = _texts(written_XT, log_prob_X, finished=False)
        for x, (score, text) in enumerate(zip(score_X.tolist(), texts, strict=True)):
            if score > -math.inf:
                enter(rows[x * len(rows) // len(texts)], score / longest, text)
    return [[text for _, text in best] for best in found]


def _continue(
    logits_XV: Tensor, written_XT: Tensor, score_X: Tensor, log_prob_X: Tensor, R: int, config: DecodingConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best continuations of each row's hypotheses, best first: score, log_prob, hypothesis and next id, each [R, J].

    J is 2 W: each hypothesis can end in one way only, so at least W of them do not end. A score of -inf is no continuation.
    """
    rank_XV = own_XV = logits_XV.log_softmax(-1)
    if config.repetition_penalty > 1:
        rank_XV = _penalised(logits_XV, written_XT, config.repetition_penalty).log_softmax(-1)
    total_XV = _barred(score_X[:, None] + rank_XV, written_XT, config.no_repeat_ngram)
    X, V = total_XV.shape
    score_RJ, place_RJ = total_XV.view(R, -1).topk(min(2 * config.beams, X // R * V))
    first_R1 = torch.arange(0, X, X // R, device=score_X.device)[:, None]
    parent_RJ, id_RJ = first_R1 + place_RJ // V, place_RJ % V
    return score_RJ, log_prob_X[parent_RJ] + own_XV[parent_RJ, id_RJ], parent_RJ, id_RJ


def _penalised(logits_BV: Tensor, written_BT: Tensor, penalty: float) -> Tensor:
    """Logits of pieces that stand in the text made smaller (Keskar et al. 2019, section 4.1)."""
    if penalty == 1:
        return logits_BV
    seen_BT = logits_BV.gather(1, written_BT)
    return logits_BV.scatter(1, written_BT, torch.where(seen_BT > 0, seen_BT / penalty, seen_BT * penalty))


def _barred(values_BV: Tensor, written_BT: Tensor, ngram: int) -> Tensor:
    """Writes -inf at pad, unk and bos, at the end mark of an empty text, and where an n-gram of the text would be repeated."""
    values_BV[:, _NEVER_TEXT] = -torch.inf
    T = written_BT.shape[1]
    if T == 0:  # no turn of a corpus is empty, yet that may be the one most probable text, which a search would find
        values_BV[:, EOS] = -torch.inf
    if 0 < ngram <= T:
        ngrams_BSN = written_BT.unfold(1, ngram, 1)  # S places where one starts
        last_B1N = written_BT[:, None, T - ngram + 1 :]
        again_BS = (ngrams_BSN[:, :, :-1] == last_B1N).all(-1)
        values_BV.scatter_(1, torch.where(again_BS, ngrams_BSN[:, :, -1], PAD), -torch.inf)  # pad is barred in any case
    return values_BV


def _texts(written_XT: Tensor, log_prob_X: Tensor, finished: bool) -> list[Decoded]:
    """Decoded hypotheses, without their bos."""
    return [Decoded(ids[1:], p, finished) for ids, p in zip(written_XT.tolist(), log_prob_X.tolist(), strict=True)]


def _parts(state: DecoderState, rows: int) -> list[Tensor]:
    """The rows of `state`, so many at a time."""
    B, device = len(state.condition_BE), state.condition_BE.device
    return [torch.arange(start, min(start + rows, B), device=device) for start in range(0, B, rows)]
