"""The bound: its sides, its tightness, and that an example is worth the same in whatever batch it stands."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, VOCAB, random_windows, tiny_model
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import vrae.model.decoder
import vrae.model.encoder
from vrae.config import BatchConfig
from vrae.corpus.batches import Batch, Window, Windows, collate
from vrae.corpus.prepared import Corpus
from vrae.corpus.tokenizer import BOS, EOS
from vrae.model.recurrence import run_gru
from vrae.model.vocabulary import log_likelihood
from vrae.model.vrae import VRAE, ElboTerms

CONTEXTS = pytest.mark.parametrize("context_turns", [0, 1, 3])
LATENTS = pytest.mark.parametrize("latent_size", [0, 4])
TIED = pytest.mark.parametrize("tied_output", [True, False])


def noise(count: int, size: int = TINY["latent_size"], seed: int = 7) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same(found: ElboTerms, expected: ElboTerms) -> None:
    for name, value in found._asdict().items():
        torch.testing.assert_close(value, getattr(expected, name), rtol=1e-10, atol=1e-10, msg=f"{name} differs")


def differ(one: ElboTerms, other: ElboTerms) -> bool:
    return bool(((one.distortion_B - other.distortion_B).abs() > 1e-8).all())


def rows_of(terms: ElboTerms, rows: Any) -> ElboTerms:
    return ElboTerms(*(value[rows] for value in terms))


# The same example, whatever stands beside it


@pytest.fixture(params=[0, 1, 3], ids="K={}".format)
def windows(request: pytest.FixtureRequest, corpus: Corpus) -> Windows:
    return Windows(corpus["train"], BatchConfig(tokens=100, max_turn_tokens=10, segment_turns=4), request.param)


@CONTEXTS
@LATENTS
def test_an_example_alone_is_worth_what_it_is_in_a_batch(context_turns: int, latent_size: int) -> None:
    model = tiny_model(context_turns=context_turns, latent_size=latent_size, speakers=True)
    examples, noise_BZ = random_windows(9, context_turns), noise(9, latent_size)
    together = model(collate(examples, context_turns), noise_BZ)
    for b, example in enumerate(examples):
        alone = model(collate([example], context_turns), noise_BZ[b : b + 1])
        assert_same(alone, rows_of(together, slice(b, b + 1)))


@CONTEXTS
def test_the_order_of_the_examples_does_not_matter(context_turns: int) -> None:
    model = tiny_model(context_turns=context_turns)
    examples, noise_BZ = random_windows(9, context_turns), noise(9)
    order = np.random.default_rng(0).permutation(9)
    permuted = model(collate([examples[i] for i in order], context_turns), noise_BZ[order])
    assert_same(permuted, rows_of(model(collate(examples, context_turns), noise_BZ), order))


@CONTEXTS
def test_more_padding_of_any_content_does_not_matter(context_turns: int) -> None:
    model, noise_BZ = tiny_model(context_turns=context_turns), noise(9)
    batch = collate(random_windows(9, context_turns), context_turns)
    draw = torch.Generator().manual_seed(0)

    def padded(ids_NT: Tensor, lengths_N: Tensor) -> Tensor:
        wide_NT = torch.randint(TINY["vocab_size"], (len(ids_NT), 12), generator=draw)
        for row_T, ids_T, length in zip(wide_NT, ids_NT, lengths_N, strict=True):
            row_T[:length] = ids_T[:length]
        return wide_NT

    wider = batch._replace(
        turns_NT=padded(batch.turns_NT, batch.turn_lengths_N),
        inputs_BT=padded(batch.inputs_BT, batch.target_lengths_B),
    )
    assert_same(model(wider, noise_BZ), model(batch, noise_BZ))


def test_a_window_of_a_corpus_alone_is_worth_what_it_is_in_any_batch(windows: Windows) -> None:
    model = tiny_model(vocab_size=VOCAB, context_turns=windows.context_turns)
    noise_NZ = noise(len(windows))
    alone = [model(windows.batch(np.array([i])), noise_NZ[i : i + 1]) for i in range(len(windows))]
    for chosen in windows.plan(np.random.default_rng(0)):
        expected = ElboTerms(*(torch.cat(values) for values in zip(*(alone[i] for i in chosen), strict=True)))
        assert_same(model(windows.batch(chosen), noise_NZ[chosen]), expected)


def test_sharing_turns_between_windows_is_worth_what_free_standing_windows_are(windows: Windows) -> None:
    """`Windows.batch` encodes a turn once for all windows, `collate` once for each."""
    model = tiny_model(vocab_size=VOCAB, context_turns=windows.context_turns, speakers=True)
    shared = windows.batch(np.arange(40))
    turns = [ids_T[: length - 1].numpy() for ids_T, length in zip(shared.turns_NT, shared.turn_lengths_N, strict=True)]
    free = [
        Window([turns[n] for n in context_K[:count]], turns[target], same_K[:count].tolist())
        for target, context_K, count, same_K in zip(
            shared.target_B, shared.context_BK, shared.context_lengths_B, shared.same_speaker_BK, strict=True
        )
    ]
    assert_same(model(shared, noise(40)), model(collate(free, windows.context_turns), noise(40)))


@pytest.mark.parametrize("layers", [1, 2])
def test_the_networks_are_fed_real_tokens_and_no_padding(layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(context_turns=3, encoder_layers=layers, decoder_layers=layers)
    batch = collate(random_windows(9, 3), 3)
    fed: dict[str, int] = {}
    names = {model.turn_encoder.gru: "turns", model.context_encoder.gru: "context", model.decoder.gru: "decoder"}

    def run(gru: nn.GRU, packed: PackedSequence, state_LBH: Tensor | None = None) -> tuple[Tensor, Tensor]:
        fed[names[gru]] = len(packed.data)
        return run_gru(gru, packed, state_LBH)

    def score(features_PE: Tensor, *others: Tensor) -> Tensor:
        fed["logits"] = len(features_PE)
        return log_likelihood(features_PE, *others)

    monkeypatch.setattr(vrae.model.encoder, "run_gru", run)
    monkeypatch.setattr(vrae.model.decoder, "run_gru", run)
    monkeypatch.setattr(vrae.model.decoder, "log_likelihood", score)
    model(batch)
    assert fed == {
        "turns": batch.turn_lengths_N.sum(),
        "context": batch.context_lengths_B.sum(),
        "decoder": batch.tokens,
        "logits": batch.tokens,
    }


# What the context is to an example

CONTEXT = [np.array(ids) for ids in ([4, 5, 6], [7, 8], [9, 10, 11, 12])]
TARGET = np.array([13, 14, 15])
DISTINCT = [0, 1, 1]


def of_window(model: VRAE, context: list[np.ndarray], same_speaker: list[int] = DISTINCT) -> ElboTerms:
    terms: ElboTerms = model(collate([Window(context, TARGET, same_speaker)], model.config.context_turns), noise(1))
    return terms


@pytest.mark.parametrize("context_turns", [1, 2])
def test_a_turn_before_the_window_changes_nothing(context_turns: int) -> None:
    model = tiny_model(context_turns=context_turns, speakers=True)
    expected = of_window(model, CONTEXT)
    assert_same(of_window(model, [np.array([20]), *CONTEXT[1:]], [1 - DISTINCT[0], *DISTINCT[1:]]), expected)
    assert_same(of_window(model, CONTEXT[-context_turns:], DISTINCT[-context_turns:]), expected)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_turn_of_the_window_matters(place: int) -> None:
    model = tiny_model(context_turns=3)
    changed = [np.array([20]) if i == place else turn for i, turn in enumerate(CONTEXT)]
    assert differ(of_window(model, changed), of_window(model, CONTEXT))


def test_the_order_of_the_turns_of_the_window_matters() -> None:
    model = tiny_model(context_turns=3)
    assert differ(of_window(model, CONTEXT[::-1]), of_window(model, CONTEXT))


def test_without_context_turns_the_context_changes_nothing() -> None:
    model = tiny_model(context_turns=0)
    assert_same(of_window(model, CONTEXT), of_window(model, [], []))


@pytest.mark.parametrize("speakers", [True, False])
def test_who_spoke_matters_only_to_a_model_that_is_told(speakers: bool) -> None:
    model = tiny_model(context_turns=3, speakers=speakers)
    assert differ(of_window(model, CONTEXT, [1, 1, 1]), of_window(model, CONTEXT)) == speakers


@pytest.mark.parametrize("context_turns", [1, 3])
def test_a_batch_of_first_turns_alone_has_the_learnt_context(context_turns: int) -> None:
    model = tiny_model(context_turns=context_turns)
    batch = collate([Window([], TARGET, []), Window([], CONTEXT[0], [])], context_turns)
    assert torch.equal(model.infer(batch).context_BC, model.context_encoder.empty_C.expand(2, -1))
    assert torch.isfinite(model(batch).elbo_B).all()


@CONTEXTS
@torch.no_grad()
def test_what_generation_starts_from_does_not_depend_on_the_target(context_turns: int) -> None:
    model = tiny_model(context_turns=context_turns)
    examples = random_windows(6, context_turns)
    inferred = model.infer(collate(examples, context_turns))
    blind = [example._replace(target=TARGET) for example in examples]
    prior, context_BC = model.condition(collate(blind, context_turns))
    torch.testing.assert_close(context_BC, inferred.context_BC, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tuple(prior), tuple(inferred.prior), rtol=1e-12, atol=1e-12)


# The bound


@CONTEXTS
@LATENTS
def test_the_bound_is_minus_distortion_minus_rate(context_turns: int, latent_size: int) -> None:
    model = tiny_model(context_turns=context_turns, latent_size=latent_size)
    batch, noise_BZ = collate(random_windows(9, context_turns), context_turns), noise(9, latent_size)
    terms, inferred = model(batch, noise_BZ), model.infer(batch)
    z_BZ = inferred.posterior.mean_BZ + inferred.posterior.log_var_BZ.exp().sqrt() * noise_BZ
    torch.testing.assert_close(terms.distortion_B, -model.log_prob(batch, z_BZ, inferred.context_BC))
    torch.testing.assert_close(terms.rate_BZ, inferred.posterior.kl(inferred.prior))
    torch.testing.assert_close(terms.elbo_B, -(terms.distortion_B + terms.rate_BZ.sum(-1)))
    assert terms.rate_BZ.shape == (9, latent_size)


@CONTEXTS
def test_the_posterior_is_read_off_the_turn_and_its_context(context_turns: int) -> None:
    model = tiny_model(context_turns=context_turns)
    batch = collate(random_windows(9, context_turns), context_turns)
    inferred = model.infer(batch)
    turns_NH = model.turn_encoder(batch.turns_NT, batch.turn_lengths_N)
    both_BX = torch.cat([turns_NH[batch.target_B], inferred.context_BC], -1)
    expected_BX = both_BX @ model.posterior.out.weight.T + model.posterior.out.bias  # type: ignore[union-attr, operator]
    torch.testing.assert_close(torch.cat(tuple(inferred.posterior), -1), expected_BX)


@CONTEXTS
def test_the_prior_is_standard_without_context_and_read_off_it_otherwise(context_turns: int) -> None:
    inferred = (model := tiny_model(context_turns=context_turns)).infer(
        collate(random_windows(9, context_turns), context_turns)
    )
    standard = bool((inferred.prior.mean_BZ == 0).all() and (inferred.prior.log_var_BZ == 0).all())
    assert standard == (context_turns == 0)
    if context_turns:
        hidden_BC = torch.tanh(model.prior.hidden[0](inferred.context_BC))  # type: ignore[index, operator, union-attr]
        expected_BX = model.prior.out(hidden_BC)  # type: ignore[operator]
        torch.testing.assert_close(torch.cat(tuple(inferred.prior), -1), expected_BX)


@pytest.mark.parametrize("context_turns", [0, 1])
@torch.no_grad()
def test_the_bound_falls_short_of_log_p_by_the_divergence_from_the_true_posterior(context_turns: int) -> None:
    """log p(x|c) - ELBO = KL(q(z|x,c) || p(z|x,c)), all three by quadrature over one latent dimension."""
    model = tiny_model(context_turns=context_turns, latent_size=1)
    batch = collate([Window(CONTEXT[:context_turns], TARGET, [0] * context_turns)], context_turns)
    inferred = model.infer(batch)
    z_SZ = torch.linspace(-25, 25, 20_001, dtype=torch.float64)[:, None]
    width = 50 / 20_000
    rows = torch.zeros(len(z_SZ), dtype=torch.int64)
    state = model.decoder.start(z_SZ, inferred.context_BC[rows])
    log_likelihood_S = model.decoder.log_prob(
        batch.inputs_BT[rows], batch.turns_NT[batch.target_B][rows], batch.target_lengths_B[rows], state
    )
    joint_S = log_likelihood_S + inferred.prior.log_prob(z_SZ)[:, 0]
    log_evidence = torch.logsumexp(joint_S, 0) + math.log(width)
    log_q_S = inferred.posterior.log_prob(z_SZ)[:, 0]
    gap = ((log_q_S.exp() * (log_q_S - (joint_S - log_evidence))).sum() * width).item()
    distortion = -((log_q_S.exp() * log_likelihood_S).sum() * width).item()
    rate = inferred.posterior.kl(inferred.prior).item()
    assert gap > 1e-3
    assert -(distortion + rate) == pytest.approx(log_evidence.item() - gap, abs=1e-9)


@CONTEXTS
@torch.no_grad()
def test_without_a_latent_the_bound_is_the_log_likelihood(context_turns: int) -> None:
    model = tiny_model(context_turns=context_turns, latent_size=0)
    examples = random_windows(9, context_turns)
    terms = model(collate(examples, context_turns))
    assert terms.rate_BZ.shape == (9, 0)
    for example, elbo in zip(examples, terms.elbo_B, strict=True):
        _, context_1C = model.condition(collate([example], context_turns))
        state = model.decoder.start(torch.zeros(1, 0).double(), context_1C)
        expected = 0.0
        for read, written in zip([BOS, *example.target], [*example.target, EOS], strict=True):
            logits_1V, state = model.decoder.step(torch.tensor([read]), state)
            expected += float(logits_1V.softmax(-1)[0, written].log())
        assert float(elbo) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("decoder_layers", [1, 2])
@pytest.mark.parametrize("context_turns", [0, 1])
@LATENTS
@TIED
@torch.no_grad()
def test_the_probabilities_of_all_texts_sum_to_one(
    decoder_layers: int, context_turns: int, latent_size: int, tied_output: bool
) -> None:
    """All texts of at most 3 tokens, one by one, and the probability of a longer one, found by stepping."""
    model = tiny_model(
        vocab_size=6,
        decoder_layers=decoder_layers,
        context_turns=context_turns,
        latent_size=latent_size,
        tied_output=tied_output,
    )
    pieces, longest = [token for token in range(6) if token != EOS], 3
    context = [np.array([4, 5, 4])] * context_turns
    texts = [text for length in range(longest + 1) for text in product(pieces, repeat=length)]
    batch = collate([Window(context, np.array(text, np.int64), [0] * context_turns) for text in texts], context_turns)
    z_1Z = noise(1, latent_size)
    _, context_BC = model.condition(batch)
    short = model.log_prob(batch, z_1Z.expand(len(texts), -1), context_BC).exp().sum()

    going_B = torch.ones(1, dtype=torch.float64)
    state, ids_B = model.decoder.start(z_1Z, context_BC[:1]), model.decoder.first_tokens(1)
    for _ in range(longest + 1):
        logits_BV, state = model.decoder.step(ids_B, state)
        going_B = (going_B[:, None] * logits_BV.softmax(-1)[:, pieces]).flatten()
        state = state.select(torch.arange(len(ids_B)).repeat_interleave(len(pieces)))
        ids_B = torch.tensor(pieces).repeat(len(ids_B))
    longer = going_B.sum()

    assert 0.001 < float(longer) < 0.999
    assert float(short + longer) == pytest.approx(1.0, abs=1e-10)


# The parameters


@CONTEXTS
@LATENTS
@TIED
@pytest.mark.parametrize("speakers", [False, True])
def test_every_parameter_receives_a_gradient(context_turns: int, latent_size: int, tied_output: bool, speakers: bool) -> None:
    """Warnings are errors here, so building the model warns of nothing either."""
    model = tiny_model(
        context_turns=context_turns,
        latent_size=latent_size,
        tied_output=tied_output,
        speakers=speakers,
        encoder_layers=2,
        decoder_layers=2,
    )
    terms = model(collate(random_windows(9, context_turns), context_turns), noise(9, latent_size))
    terms.elbo_B.sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.numel():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().sum() > 0, name


@CONTEXTS
@LATENTS
def test_a_model_can_be_built_and_starts_finite_in_single_precision(context_turns: int, latent_size: int) -> None:
    model = VRAE(tiny_model(context_turns=context_turns, latent_size=latent_size).config)
    assert torch.isfinite(model(collate(random_windows(9, context_turns), context_turns)).elbo_B).all()


@LATENTS
def test_a_responder_and_a_vhred_have_the_same_parameters(latent_size: int) -> None:
    """So that the weights of one can start the other."""
    shapes = [
        {name: value.shape for name, value in tiny_model(context_turns=k, latent_size=latent_size).named_parameters()}
        for k in (1, 3)
    ]
    assert shapes[0] == shapes[1]


def test_the_same_seed_gives_the_same_sample_and_another_one_another() -> None:
    model, batch = tiny_model(), collate(random_windows(9, 0), 0)

    def drawn(seed: int) -> Batch:
        torch.manual_seed(seed)
        terms: ElboTerms = model(batch)
        return terms

    assert torch.equal(drawn(1).distortion_B, drawn(1).distortion_B)
    assert differ(drawn(1), drawn(2))


def test_dropout_acts_in_training_alone() -> None:
    model, batch = tiny_model(dropout=0.5), collate(random_windows(9, 0), 0)
    assert_same(model(batch, noise(9)), model(batch, noise(9)))
    model.train()
    assert differ(model(batch, noise(9)), model(batch, noise(9)))
