"""Reading: a turn into a vector, turn vectors into a context state.

Sequences are packed, so a GRU does no work on padding and an example gives the same result in whatever batch it stands.

Shape legend: N turns, B windows, T tokens, K context turns, E embedding, H turn vector, C context state, L layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from vrae.config import ModelConfig
from vrae.model.dropout import Dropout
from vrae.model.recurrence import run_gru


def pack(values_BT: Tensor, lengths_B: Tensor) -> PackedSequence:
    """`pack_padded_sequence`, batch first, in any order of lengths (on the CPU, each >= 1)."""
    return pack_padded_sequence(values_BT, lengths_B, batch_first=True, enforce_sorted=False)


def like(packed: PackedSequence, data: Tensor) -> PackedSequence:
    """`data` in the order of `packed`."""
    return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)


class TurnEncoder(nn.Module):
    """h = GRU(x_1 .. x_T): the state after the last token, both directions side by side if it reads both ways.

    GRU: Cho et al. 2014. Each direction has hidden_size / 2 when there are two, so a turn vector has width H either way.
    """

    def __init__(self, embedding: nn.Embedding, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = embedding
        self.dropout = Dropout(config.dropout)
        directions = 2 if config.bidirectional else 1
        self.gru = nn.GRU(
            config.embedding_size,
            config.hidden_size // directions,
            config.encoder_layers,
            bidirectional=config.bidirectional,
            dropout=config.dropout if config.encoder_layers > 1 else 0.0,
        )
        self.directions = directions

    def forward(self, turns_NT: Tensor, lengths_N: Tensor) -> Tensor:
        """[N, T] ids and their lengths to [N, H]."""
        ids = pack(turns_NT, lengths_N)
        _, state_LNH = run_gru(self.gru, like(ids, self.dropout(self.embedding(ids.data))))
        return torch.cat(tuple(state_LNH[-self.directions :]), -1)


class ContextEncoder(nn.Module):
    """c = GRU(h_1 .. h_K) over the vectors of the context turns, oldest first (Serban et al. 2016, section 2).

    The GRU starts from a learnt state, and a window without context has just that state: p(. | nothing) is learnt like any
    other condition.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.empty_C = nn.Parameter(torch.zeros(config.context_size))
        self.speaker = nn.Embedding(2, config.hidden_size) if config.speakers else None
        self.gru = nn.GRU(config.hidden_size, config.context_size)

    def forward(self, turns_BKH: Tensor, lengths_B: Tensor, same_speaker_BK: Tensor, unknown_BK: Tensor) -> Tensor:
        """[B, K, H] turn vectors, how many of the K are real (on the CPU), who spoke them, and which are withheld, to [B, C].

        A withheld turn is a vector of zeros in its place (utterance drop of Park et al. 2018, section 4.2).
        """
        turns_BKH = turns_BKH.masked_fill(unknown_BK[:, :, None], 0.0)
        if self.speaker is not None:
            turns_BKH = turns_BKH + self.speaker(same_speaker_BK)
        context_BC = self.empty_C.to(turns_BKH.dtype).expand(len(lengths_B), -1)
        some_S = lengths_B.nonzero()[:, 0]
        if not len(some_S):
            return context_BC
        where_S = some_S.to(turns_BKH.device, non_blocking=True)
        packed = pack(turns_BKH[where_S], lengths_B[some_S])
        _, state_1SC = run_gru(self.gru, packed, context_BC[where_S][None])
        return context_BC.index_copy(0, where_S, state_1SC[0].to(context_BC.dtype))
