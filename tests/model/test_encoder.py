"""Turns to vectors and turn vectors to a context state, against the GRU equations written out."""

from __future__ import annotations

import pytest
import torch
from conftest import TINY, gru_by_hand, tiny_model
from torch import Tensor

from vrae.model.encoder import ContextEncoder, TurnEncoder, like, pack
from vrae.model.vrae import VRAE

LENGTHS_N = torch.tensor([3, 6, 1, 6, 2])


def random_ids(seed: int = 0) -> Tensor:
    """[5, 6] ids; beyond LENGTHS_N too, where they must not matter."""
    return torch.randint(4, TINY["vocab_size"], (5, 6), generator=torch.Generator().manual_seed(seed))


def random_turns(turns: int = 3, seed: int = 0) -> Tensor:
    """[4, turns, H] turn vectors."""
    shape = (4, turns, TINY["hidden_size"])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turn_encoder(**overrides: object) -> TurnEncoder:
    return tiny_model(**overrides).turn_encoder


def context_encoder(**overrides: object) -> ContextEncoder:
    return tiny_model(context_turns=3, **overrides).context_encoder


def known(turns_BKH: Tensor) -> Tensor:
    """No turn is withheld."""
    return torch.zeros(turns_BKH.shape[:2], dtype=torch.bool)


def test_packed_values_are_the_real_ones_and_come_back_in_order() -> None:
    ids_NT = random_ids()
    packed = pack(ids_NT, LENGTHS_N)
    assert len(packed.data) == LENGTHS_N.sum()
    padded_NT, lengths_N = torch.nn.utils.rnn.pad_packed_sequence(like(packed, packed.data + 100), batch_first=True)
    assert torch.equal(lengths_N, LENGTHS_N)
    for row_T, expected_T, length in zip(padded_NT, ids_NT, LENGTHS_N, strict=True):
        assert torch.equal(row_T[:length], expected_T[:length] + 100)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_turn_vector_is_the_last_state_of_the_top_layer(layers: int, bidirectional: bool) -> None:
    encoder = turn_encoder(encoder_layers=layers, bidirectional=bidirectional)
    ids_NT = random_ids()
    for ids_T, length, vector_H in zip(ids_NT, LENGTHS_N, encoder(ids_NT, LENGTHS_N), strict=True):
        inputs_TX = encoder.embedding(ids_T[:length])
        start = vector_H.new_zeros(encoder.gru.hidden_size)
        for layer in range(layers):
            forward = gru_by_hand(encoder.gru, inputs_TX, start, f"l{layer}")
            last = [forward[-1]]
            inputs = [forward]
            if bidirectional:
                backward = gru_by_hand(encoder.gru, inputs_TX.flip(0), start, f"l{layer}_reverse")
                last.append(backward[-1])
                inputs.append(backward.flip(0))
            inputs_TX = torch.cat(inputs, -1)
        torch.testing.assert_close(vector_H, torch.cat(last), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_turn_vector_has_width_h_in_one_direction_and_in_two(bidirectional: bool) -> None:
    encoder = turn_encoder(bidirectional=bidirectional)
    assert encoder(random_ids(), LENGTHS_N).shape == (5, TINY["hidden_size"])


def test_what_stands_beyond_the_length_of_a_turn_changes_nothing() -> None:
    encoder, ids_NT = turn_encoder(encoder_layers=2), random_ids()
    beyond_NT = torch.arange(6) >= LENGTHS_N[:, None]
    other_NT = torch.where(beyond_NT, random_ids(seed=1), ids_NT)
    assert torch.equal(encoder(other_NT, LENGTHS_N), encoder(ids_NT, LENGTHS_N))


def test_every_token_and_its_place_matter_to_a_turn_vector() -> None:
    encoder = turn_encoder()
    ids_1T = torch.tensor([[4, 5, 6, 7]])
    length = torch.tensor([4])
    vectors = [encoder(ids_1T, length)]
    for place in range(4):
        vectors.append(encoder(ids_1T.index_fill(1, torch.tensor(place), 8), length))
    vectors.append(encoder(ids_1T[:, [0, 2, 1, 3]], length))
    assert (torch.pdist(torch.cat(vectors)) > 1e-6).all()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_context_runs_over_the_real_turns_from_the_learnt_state(count: int) -> None:
    encoder, turns_BKH = context_encoder(), random_turns()
    context_BC = encoder(turns_BKH, torch.full((4,), count), torch.zeros(4, 3, dtype=torch.int64), known(turns_BKH))
    for turns_KH, context_C in zip(turns_BKH, context_BC, strict=True):
        expected_C = gru_by_hand(encoder.gru, turns_KH[:count], encoder.empty_C)[-1]
        torch.testing.assert_close(context_C, expected_C, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lengths", [[0, 0, 0, 0], [0, 2, 0, 3]])
def test_a_window_without_context_has_exactly_the_learnt_state(lengths: list[int]) -> None:
    encoder = context_encoder()
    turns_BKH = random_turns()
    context_BC = encoder(turns_BKH, torch.tensor(lengths), torch.zeros(4, 3, dtype=torch.int64), known(turns_BKH))
    for context_C, length in zip(context_BC, lengths, strict=True):
        assert torch.equal(context_C, encoder.empty_C) == (length == 0)


def test_vectors_beyond_the_length_of_a_context_change_nothing() -> None:
    encoder, lengths_B = context_encoder(), torch.tensor([0, 1, 2, 3])
    beyond_BK1 = (torch.arange(3) >= lengths_B[:, None])[:, :, None]
    other_BKH = torch.where(beyond_BK1, random_turns(seed=1), random_turns())
    rest = lengths_B, torch.zeros(4, 3, dtype=torch.int64), known(other_BKH)
    assert torch.equal(encoder(other_BKH, *rest), encoder(random_turns(), *rest))


def test_a_withheld_turn_is_a_vector_of_zeros_in_its_place() -> None:
    encoder, turns_BKH, lengths_B = context_encoder(), random_turns(), torch.tensor([3, 3, 2, 1])
    unknown_BK = torch.tensor([[0, 1, 0], [1, 1, 1], [1, 0, 0], [0, 1, 1]], dtype=torch.bool)
    zeroed_BKH = turns_BKH * ~unknown_BK[:, :, None]
    same_BK = torch.zeros(4, 3, dtype=torch.int64)
    assert torch.equal(
        encoder(turns_BKH, lengths_B, same_BK, unknown_BK), encoder(zeroed_BKH, lengths_B, same_BK, known(turns_BKH))
    )


def test_the_speaker_bit_adds_its_vector_to_the_turn() -> None:
    encoder, turns_BKH = context_encoder(speakers=True), random_turns()
    same_BK = torch.tensor([[0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 0]])
    context_BC = encoder(turns_BKH, torch.full((4,), 3), same_BK, known(turns_BKH))
    for b in range(4):
        turns_KH = turns_BKH[b] + encoder.speaker.weight[same_BK[b]]  # type: ignore[union-attr]
        expected_C = gru_by_hand(encoder.gru, turns_KH, encoder.empty_C)[-1]
        torch.testing.assert_close(context_BC[b], expected_C, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("context_turns", [1, 3])
def test_turn_and_context_encoder_share_the_embeddings_of_the_decoder(context_turns: int) -> None:
    model: VRAE = tiny_model(context_turns=context_turns)
    assert model.turn_encoder.embedding is model.decoder.embedding
