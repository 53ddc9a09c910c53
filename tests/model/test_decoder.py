"""The decoder: its equations, step by step against all at once, and that it never sees what it is to predict."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from conftest import gru_by_hand, random_windows, tiny_model
from torch import Tensor

import vrae.model.vocabulary
from vrae.config import ModelConfig
from vrae.corpus.batches import Batch, collate
from vrae.corpus.tokenizer import BOS
from vrae.model.decoder import Decoder, DecoderState
from vrae.model.vrae import VRAE

GRID = [
    dict(decoder_layers=d, encoder_layers=e, bidirectional=b, tied_output=t, context_turns=k, latent_size=z)
    for d, e, b, t, k, z in product([1, 2], [1, 2], [True, False], [True, False], [0, 1, 3], [0, 4])
]


def name(options: dict[str, Any]) -> str:
    return "-".join(f"{key}={value:d}" for key, value in options.items())


over_grid = pytest.mark.parametrize("options", GRID, ids=name)


def started(model: VRAE, count: int = 6) -> tuple[Batch, DecoderState]:
    """A ragged batch and the state in which its texts begin."""
    batch = collate(random_windows(count, model.config.context_turns), model.config.context_turns)
    inferred = model.infer(batch)
    noise_BZ = torch.randn(inferred.posterior.mean_BZ.shape, generator=torch.Generator().manual_seed(1)).double()
    return batch, model.decoder.start(inferred.posterior.sample(noise_BZ), inferred.context_BC)


def log_prob(model: VRAE, batch: Batch, state: DecoderState) -> Tensor:
    targets_BT = batch.turns_NT[batch.target_B, : batch.inputs_BT.shape[1]]
    return model.decoder.log_prob(batch.inputs_BT, targets_BT, batch.target_lengths_B, state)


def step_distributions(decoder: Decoder, inputs_T: Tensor, state: DecoderState) -> Tensor:
    """[T, V], log p(. at t | inputs), found out from `log_prob` of whole texts alone.

    Exchanging only the target at t changes the sum by the difference of two entries of row t, and a row sums to one.
    """
    T, V = len(inputs_T), decoder.config.vocab_size
    targets_TVT = torch.full((T, V, T), 5)
    targets_TVT[torch.arange(T), :, torch.arange(T)] = torch.arange(V)
    rows = T * V
    total_P = decoder.log_prob(
        inputs_T.expand(rows, T),
        targets_TVT.view(rows, T),
        torch.full((rows,), T),
        state.select(torch.zeros(rows, dtype=torch.int64)),
    )
    return total_P.view(T, V).log_softmax(-1)


@over_grid
@torch.no_grad()
def test_stepping_equals_teacher_forcing(options: dict[str, Any]) -> None:
    model = tiny_model(**options)
    batch, state = started(model)
    forced_B = log_prob(model, batch, state)
    stepped_B = torch.zeros_like(forced_B)
    ids_B = model.decoder.first_tokens(len(forced_B))
    for t in range(batch.inputs_BT.shape[1]):
        logits_BV, state = model.decoder.step(ids_B, state)
        ids_B = batch.turns_NT[batch.target_B, t]
        chosen_B = logits_BV.log_softmax(-1)[torch.arange(len(ids_B)), ids_B]
        stepped_B += torch.where(t < batch.target_lengths_B, chosen_B, 0.0)
    torch.testing.assert_close(stepped_B, forced_B, rtol=1e-10, atol=1e-10)


@over_grid
@torch.no_grad()
def test_a_step_sees_the_inputs_up_to_its_own_and_none_after(options: dict[str, Any]) -> None:
    model = tiny_model(**options, vocab_size=9)
    state = model.decoder.start(
        torch.ones(1, model.config.latent_size).double(),
        torch.ones(1, model.config.context_size if model.config.context_turns else 0).double(),
    )
    inputs_T = torch.tensor([BOS, 4, 5, 6])
    before_TV = step_distributions(model.decoder, inputs_T, state)
    for t in range(1, len(inputs_T)):
        after_TV = step_distributions(model.decoder, inputs_T.index_fill(0, torch.tensor(t), 8), state)
        torch.testing.assert_close(after_TV[:t], before_TV[:t], rtol=1e-12, atol=1e-12)
        assert ((after_TV[t:] - before_TV[t:]).abs().amax(-1) > 1e-9).all()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_log_prob_is_the_equation_of_the_docstring(layers: int, tied: bool) -> None:
    """s_0 = tanh(A d + a), s_t = GRU(s_{t-1}, e(x_{t-1}) + W d + w), p = softmax(e(.)^T (P s_t + q) + b)."""
    decoder = tiny_model(decoder_layers=layers, tied_output=tied, context_turns=1).decoder
    draw = torch.Generator().manual_seed(0)
    z_BZ, context_BC = (torch.randn(1, size, generator=draw, dtype=torch.float64) for size in (4, 7))
    targets_T = torch.tensor([9, 4, 22, 3])
    inputs_T = torch.tensor([BOS, 9, 4, 22])

    d = torch.cat([z_BZ[0], context_BC[0]])
    start_LH = torch.tanh(decoder.start_state.weight @ d + decoder.start_state.bias).view(layers, -1)
    states_T = decoder.embedding.weight[inputs_T] + decoder.condition.weight @ d + decoder.condition.bias
    for layer in range(layers):
        states_T = gru_by_hand(decoder.gru, states_T, start_LH[layer], f"l{layer}")
    matrix_VE = decoder.embedding.weight if tied else decoder.out.weight
    logits_TV = (states_T @ decoder.project.weight.T + decoder.project.bias) @ matrix_VE.T + decoder.out.bias
    probability_TV = logits_TV.exp() / logits_TV.exp().sum(-1, keepdim=True)
    expected = probability_TV[torch.arange(4), targets_T].log().sum()

    found_B = decoder.log_prob(inputs_T[None], targets_T[None], torch.tensor([4]), decoder.start(z_BZ, context_BC))
    torch.testing.assert_close(found_B, expected[None], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("latent_size", [0, 1])
def test_appending_the_condition_to_every_input_comes_to_the_same(latent_size: int) -> None:
    """GRU input weights [U, U W] read [e; d] as U reads e + W d: the decoder is the one of Bowman et al. (2016)."""
    decoder = tiny_model(context_turns=1, latent_size=latent_size).decoder
    D = latent_size + decoder.config.context_size
    wide = torch.nn.GRU(decoder.config.embedding_size + D, decoder.config.hidden_size).double()
    with torch.no_grad():
        wide.weight_hh_l0.copy_(decoder.gru.weight_hh_l0)
        wide.bias_hh_l0.copy_(decoder.gru.bias_hh_l0)
        u = decoder.gru.weight_ih_l0
        wide.weight_ih_l0.copy_(torch.cat([u, u @ decoder.condition.weight], 1))
        wide.bias_ih_l0.copy_(decoder.gru.bias_ih_l0 + u @ decoder.condition.bias)
    d_BD = torch.randn(2, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    state = decoder.start(d_BD[:, :latent_size], d_BD[:, latent_size:])
    ids_B = torch.tensor([4, 5])
    wide_1BH, _ = wide(torch.cat([decoder.embedding(ids_B), d_BD], -1)[None], state.state_LBH)
    torch.testing.assert_close(
        decoder.logits(wide_1BH[0], state.skip_BE), decoder.step(ids_B, state)[0], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("chunk", [1, 3, 10_000])
def test_the_size_of_the_blocks_of_logits_does_not_matter(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    batch, state = started(model)
    expected_B = log_prob(model, batch, state)
    monkeypatch.setattr(vrae.model.vocabulary, "_CHUNK", {"cpu": chunk})
    torch.testing.assert_close(log_prob(model, batch, state), expected_B, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 2])
def test_selected_texts_go_on_as_they_would_have_beside_the_others(layers: int) -> None:
    model = tiny_model(decoder_layers=layers)
    _, state = started(model)
    ids_B = torch.arange(4, 10)
    rows = torch.tensor([4, 0, 0])
    logits_BV, after = model.decoder.step(ids_B, state)
    some_BV, some = model.decoder.step(ids_B[rows], state.select(rows))
    torch.testing.assert_close(some_BV, logits_BV[rows], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(some.state_LBH, after.state_LBH[:, rows], rtol=1e-12, atol=1e-12)


def test_texts_begin_with_bos() -> None:
    assert tiny_model().decoder.first_tokens(3).tolist() == [BOS, BOS, BOS]


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_matrix_is_the_embedding_only_where_tied(tied: bool) -> None:
    decoder = tiny_model(tied_output=tied).decoder
    assert (decoder.out.weight is decoder.embedding.weight) == tied


def test_without_latent_and_context_every_text_begins_in_the_same_learnt_state() -> None:
    decoder = tiny_model(latent_size=0).decoder
    state = decoder.start(torch.zeros(3, 0).double(), torch.zeros(3, 0).double())
    torch.testing.assert_close(state.state_LBH[0], torch.tanh(decoder.start_state.bias).expand(3, -1))
    torch.testing.assert_close(state.condition_BE, decoder.condition.bias.expand(3, -1))


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32)])
def test_probabilities_have_at_least_single_precision(dtype: torch.dtype, expected: torch.dtype) -> None:
    """Logits in bfloat16, as on a GPU: 8 bits of a logarithm would be lost in a sum over a text."""
    model = tiny_model().float()
    batch = collate(random_windows(6, 0), 0)
    noise_BZ = torch.zeros(6, 4)
    exact_B = model(batch, noise_BZ).distortion_B
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found_B = model(batch, noise_BZ).distortion_B
    assert found_B.dtype == expected
    torch.testing.assert_close(found_B, exact_B, rtol=0.05, atol=0)


@pytest.mark.parametrize("context_turns", [0, 1])
@torch.no_grad()
def test_before_training_a_latent_is_as_loud_as_a_token(context_turns: int) -> None:
    torch.manual_seed(0)
    model = VRAE(ModelConfig(vocab_size=400, embedding_size=64, context_turns=context_turns))
    decoder, size = model.decoder, 64**-0.5
    condition_BD = torch.randn(1000, decoder.condition.in_features)
    state = decoder.start(condition_BD[:, :32], condition_BD[:, 32:])
    heard = [
        decoder.embedding.weight,
        state.condition_BE - decoder.condition.bias,
        torch.atanh(state.state_LBH[0]) - decoder.start_state.bias,
    ]
    assert [float(value.std()) for value in heard] == pytest.approx([size] * 3, rel=0.04)
