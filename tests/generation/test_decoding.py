"""Drawing text: frequencies are probabilities, the reported log-probability is the decoder's, and rows do not meet."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import product

import pytest
import torch
from conftest import tiny_model
from torch import Tensor

from vrae.config import GREEDY, DecodingConfig
from vrae.corpus.tokenizer import BOS, EOS, PAD, UNK
from vrae.generation.decoding import Decoded, choose, decode
from vrae.model.decoder import Decoder, DecoderState

DRAWS = 20_000
# Quantiles 0.9999 of the chi-square distribution, by degrees of freedom.
CHI_SQUARE = {1: 15.14, 2: 18.42, 3: 21.11, 4: 23.51, 5: 25.74, 6: 27.86, 12: 39.13}
NEAR_ONE = 1 - 2**-24  # the largest float32 below 1


def decoder(vocab_size: int = 12, **bias: float) -> Decoder:
    """A float64 decoder; the output bias of `pad`, `unk`, `bos`, `eos` can be set."""
    decoder = tiny_model(vocab_size=vocab_size).decoder
    with torch.no_grad():
        for name, value in bias.items():
            decoder.out.bias[{"pad": PAD, "unk": UNK, "bos": BOS, "eos": EOS}[name]] = value
    return decoder


def started(decoder: Decoder, count: int, seed: int = 0) -> DecoderState:
    """The state before the first token at `count` different latents."""
    z_BZ = torch.randn(count, decoder.config.latent_size, generator=torch.Generator().manual_seed(seed)).double()
    with torch.inference_mode():
        return decoder.start(z_BZ, z_BZ[:, :0])


def uniform(rows: int, tokens: int, seed: int = 0) -> Tensor:
    return torch.rand(rows, tokens, generator=torch.Generator().manual_seed(seed))


def teacher_forced(decoder: Decoder, state: DecoderState, text: Decoded) -> float:
    """log p(text) of one row by the decoder that is taught; the end mark counts where the text is finished."""
    targets = torch.tensor([[*text.ids, *([EOS] if text.finished else [])]])
    inputs = torch.cat([torch.tensor([[BOS]]), targets[:, :-1]], 1)
    with torch.inference_mode():
        return float(decoder.log_prob(inputs, targets, torch.tensor([targets.shape[1]]), state))


def truncated(logits: Sequence[float], config: DecodingConfig) -> dict[int, float]:
    """The distribution that `config` means, worked out piece by piece."""
    weight = {i: math.exp(x / config.temperature) for i, x in enumerate(logits) if i not in (PAD, UNK, BOS)}
    ranked = sorted(weight, key=lambda i: -weight[i])[: config.top_k or None]
    total, kept, reached = sum(weight[i] for i in ranked), [], 0.0
    for i in ranked:
        if reached < config.top_p:
            kept.append(i)
        reached += weight[i] / total
    total = sum(weight[i] for i in kept)
    return {i: weight[i] / total for i in kept}


def chi_square(counts: Counter[int], expected: dict[int, float]) -> float:
    draws = sum(counts.values())
    return sum((counts[i] - draws * p) ** 2 / (draws * p) for i, p in expected.items())


class TestDistribution:
    @pytest.mark.parametrize(
        ("config", "pieces"),
        [
            (DecodingConfig(temperature=1.0, top_p=1.0), 7),
            (DecodingConfig(temperature=0.6, top_p=1.0), 7),
            (DecodingConfig(temperature=2.5, top_p=1.0), 7),
            (DecodingConfig(temperature=1.0, top_p=1.0, top_k=3), 3),
            (DecodingConfig(temperature=1.0, top_p=1.0, top_k=99), 7),
            (DecodingConfig(temperature=1.0, top_p=0.8), 4),
            (DecodingConfig(temperature=1.7, top_p=0.8, top_k=4), 3),
        ],
        ids=str,
    )
    def test_frequencies_are_the_truncated_probabilities(self, config: DecodingConfig, pieces: int) -> None:
        logits = [3.0, 2.0, 4.0, 0.3, -1.0, 1.1, 0.0, 0.7, -0.4, 1.6]  # the first three may never be drawn
        expected = truncated(logits, config)
        assert len(expected) == pieces
        drawn = choose(torch.tensor(logits).expand(DRAWS, -1), uniform(DRAWS, 1)[:, 0], config)
        counts = Counter(drawn.tolist())
        assert counts.keys() == expected.keys()
        assert chi_square(counts, expected) < CHI_SQUARE[pieces - 1]

    def test_whole_texts_come_with_the_probability_that_is_reported(self) -> None:
        # 3 pieces and the end mark, at most 2 tokens: 1 + 3 + 9 outcomes, and nothing else has probability.
        model = decoder(7, pad=-1e4, unk=-1e4, bos=-1e4)
        state = started(model, 1)
        outcomes = [
            Decoded([], 0.0, True),
            *(Decoded([i], 0.0, True) for i in (4, 5, 6)),
            *(Decoded(list(pair), 0.0, False) for pair in product((4, 5, 6), repeat=2)),
        ]
        expected = {tuple(text.ids): math.exp(teacher_forced(model, state, text)) for text in outcomes}
        assert sum(expected.values()) == pytest.approx(1, abs=1e-12)
        rows = torch.zeros(DRAWS, dtype=torch.long)
        drawn = decode(model, state.select(rows), uniform(DRAWS, 2), DecodingConfig(1.0, top_p=1.0, max_tokens=2))
        counts = Counter(tuple(text.ids) for text in drawn)
        assert chi_square(counts, expected) < CHI_SQUARE[12]  # type: ignore[arg-type]
        assert all(math.exp(text.log_prob) == pytest.approx(expected[tuple(text.ids)], rel=1e-9) for text in drawn)

    @pytest.mark.parametrize("config", [GREEDY, DecodingConfig(1.0, top_p=1.0), DecodingConfig(1.0, top_k=2)], ids=str)
    def test_pad_unk_and_bos_are_never_drawn_however_probable(self, config: DecodingConfig) -> None:
        model = decoder(pad=30.0, unk=30.0, bos=30.0)
        state = started(model, 200)
        for row, text in enumerate(decode(model, state, uniform(200, config.max_tokens), config)):
            assert min(text.ids, default=EOS) >= EOS
            # The log-probability is the model's own, so what may not be drawn still weighs on it.
            assert text.log_prob < -20 * (len(text.ids) + text.finished)
            if row < 5:
                alone = teacher_forced(model, state.select(torch.tensor([row])), text)
                assert text.log_prob == pytest.approx(alone, abs=1e-9)


class TestGreedy:
    def test_takes_the_most_probable_piece_at_every_step(self) -> None:
        model, row = decoder(), torch.tensor([3])
        text = decode(model, started(model, 5).select(row), uniform(1, GREEDY.max_tokens), GREEDY)[0]
        state, previous = started(model, 5).select(row), BOS
        for token in [*text.ids, EOS][: GREEDY.max_tokens]:
            with torch.inference_mode():
                logits, state = model.step(torch.tensor([previous]), state)
            assert token == 3 + max(range(9), key=lambda i: float(logits[0, 3 + i]))
            previous = token
        assert len(text.ids) > 2

    def test_does_not_read_the_noise(self) -> None:
        model, noise_BT = decoder(), uniform(20, GREEDY.max_tokens)
        texts = decode(model, started(model, 20), noise_BT, GREEDY)
        assert texts == decode(model, started(model, 20), noise_BT * torch.nan, GREEDY)

    @pytest.mark.parametrize(
        "config",
        [
            *(DecodingConfig(t) for t in (1e-5, 1e-30, 5e-324)),
            *(DecodingConfig(1.0, top_p=p) for p in (1e-6, 1e-300)),
            DecodingConfig(1.0, top_k=1),
        ],
        ids=str,
    )
    def test_is_the_limit_of_narrow_sampling(self, config: DecodingConfig) -> None:
        model = decoder()
        greedy = DecodingConfig(temperature=0.0, max_tokens=config.max_tokens)
        narrow, noise = decode(model, started(model, 50), uniform(50, 48), config), uniform(50, 48, seed=1)
        assert narrow == decode(model, started(model, 50), noise, greedy)


@pytest.mark.parametrize("config", [GREEDY, DecodingConfig(), DecodingConfig(1.3, top_k=5, top_p=1.0)], ids=str)
class TestLogProb:
    def test_equals_the_taught_decoders_with_the_end_mark_where_it_was_drawn(self, config: DecodingConfig) -> None:
        config = DecodingConfig(config.temperature, config.top_k, config.top_p, max_tokens=9)
        model = decoder(eos=2.0)
        state = started(model, 60)
        texts = decode(model, state, uniform(60, 9), config)
        assert {text.finished for text in texts} == {True, False}
        for row, text in enumerate(texts):
            assert text.finished or len(text.ids) == 9
            taught = teacher_forced(model, state.select(torch.tensor([row])), text)
            assert text.log_prob == pytest.approx(taught, abs=1e-9)

    def test_and_text_do_not_depend_on_the_other_rows_or_their_end(self, config: DecodingConfig) -> None:
        model = decoder(eos=2.0)
        state, noise = started(model, 24), uniform(24, config.max_tokens)
        together = decode(model, state, noise, config)
        assert len({len(text.ids) for text in together}) > 3
        order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
        shuffled = decode(model, state.select(order), noise[order], config)
        alone = [decode(model, state.select(row[None]), noise[row][None], config)[0] for row in torch.arange(24)]
        for row, text in enumerate(together):
            for other in (alone[row], shuffled[order.tolist().index(row)]):
                assert (text.ids, text.finished) == (other.ids, other.finished)
                assert text.log_prob == pytest.approx(other.log_prob, abs=1e-9)


class TestLimits:
    @pytest.mark.parametrize("max_tokens", [1, 5, 128])
    def test_a_text_cut_at_max_tokens_is_flagged_unfinished(self, max_tokens: int) -> None:
        model = decoder(eos=-1e4)
        config = DecodingConfig(1.0, max_tokens=max_tokens)
        for text in decode(model, started(model, 8), uniform(8, 128), config):
            assert len(text.ids) == max_tokens
            assert not text.finished

    def test_a_text_of_nothing_but_the_end_mark_is_finished(self) -> None:
        model = decoder(eos=1e4)
        for text in decode(model, started(model, 8), uniform(8, 1), DecodingConfig(max_tokens=1)):
            assert text == Decoded([], pytest.approx(0, abs=1e-12), True)

    @pytest.mark.parametrize("noise", [0.0, NEAR_ONE, 1 - 2**-53])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(
        "config", [DecodingConfig(0.1), DecodingConfig(5.0, top_p=1.0), DecodingConfig(1.0, top_k=3)], ids=str
    )
    def test_extreme_noise_draws_the_first_or_the_last_piece_that_may_be(
        self, noise: float, dtype: torch.dtype, config: DecodingConfig
    ) -> None:
        logits = torch.randn(50, 6000, generator=torch.Generator().manual_seed(0)).to(dtype) * 3
        logits[:, 5000:] = -1e4  # probability zero: never, whatever the noise
        exact = torch.float32 if noise <= NEAR_ONE else torch.float64
        drawn = choose(logits, torch.full((50,), noise, dtype=exact), config).tolist()
        for row, piece in zip(logits.tolist(), drawn, strict=True):
            allowed = truncated(row, config)
            order = allowed if config.top_k or config.top_p < 1 else sorted(allowed)  # by probability, or as they are numbered
            likely = [i for i in order if allowed[i] > 1e-6]  # beyond float32's resolution either neighbour will do
            assert piece in allowed
            assert allowed[piece] > 0
            if noise == 0.0:
                assert piece == likely[0] or (piece < likely[0] and order is not allowed)
            else:
                assert allowed[piece] <= allowed[likely[-1]] or order is not allowed
