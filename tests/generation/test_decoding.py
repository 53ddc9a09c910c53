"""Writing text: frequencies are probabilities, a beam search finds what an enumeration finds, the reported log-probability is
the decoder's, and rows do not meet."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from conftest import tiny_model
from torch import Tensor

from vrae.config import GREEDY, DecodingConfig
from vrae.corpus.tokenizer import BOS, EOS, PAD, UNK
from vrae.generation.decoding import Decoded, beam_search, choose, decode
from vrae.model.decoder import Decoder, DecoderState

DRAWS = 20_000
# Quantiles 0.9999 of the chi-square distribution, by degrees of freedom.
CHI_SQUARE = {1: 15.14, 2: 18.42, 3: 21.11, 4: 23.51, 5: 25.74, 6: 27.86, 8: 31.83, 11: 37.37}
NEAR_ONE = 1 - 2**-24  # the largest float32 below 1
PLAIN = DecodingConfig(1.0, top_p=1.0)
MODES = [
    GREEDY,
    DecodingConfig(),
    DecodingConfig(1.3, top_k=5, top_p=1.0),
    DecodingConfig(1.5, top_p=1.0, min_p=0.1),
    DecodingConfig(1.0, repetition_penalty=1.7, no_repeat_ngram=2),
    DecodingConfig(beams=1),
    DecodingConfig(beams=3, repetition_penalty=1.4),
    DecodingConfig(beams=7, length_penalty=1.0, no_repeat_ngram=2),
]


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


def nothing(rows: int) -> Tensor:
    """The ids of texts of which nothing is written yet."""
    return torch.zeros(rows, 0, dtype=torch.long)


def teacher_forced(decoder: Decoder, state: DecoderState, text: Decoded) -> float:
    """log p(text) of one row by the decoder that is taught; the end mark counts where the text is finished."""
    targets = torch.tensor([[*text.ids, *([EOS] if text.finished else [])]])
    inputs = torch.cat([torch.tensor([[BOS]]), targets[:, :-1]], 1)
    with torch.inference_mode():
        return float(decoder.log_prob(inputs, targets, torch.tensor([targets.shape[1]]), state))


def penalised(logits: Sequence[float], written: Sequence[int], config: DecodingConfig) -> list[float]:
    penalty = config.repetition_penalty
    return [(x / penalty if x > 0 else x * penalty) if i in written else x for i, x in enumerate(logits)]


def repeats(ids: Sequence[int], n: int) -> bool:
    """Whether n pieces in a row occur twice."""
    ngrams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(set(ngrams)) < len(ngrams)


def truncated(logits: Sequence[float], config: DecodingConfig, written: Sequence[int] = ()) -> dict[int, float]:
    """The distribution that `config` means after the pieces `written`, worked out piece by piece."""
    weight = {
        i: math.exp(x / config.temperature)
        for i, x in enumerate(penalised(logits, written, config))
        if i not in (PAD, UNK, BOS)
        and (i != EOS or written)
        and not (config.no_repeat_ngram and repeats((*written, i), config.no_repeat_ngram))
    }
    ranked = sorted(weight, key=lambda i: -weight[i])[: config.top_k or None]
    total, kept, reached = sum(weight[i] for i in ranked), [], 0.0
    for i in ranked:
        if reached < config.top_p and weight[i] / weight[ranked[0]] >= config.min_p:
            kept.append(i)
        reached += weight[i] / total
    total = sum(weight[i] for i in kept)
    return {i: weight[i] / total for i in kept}


class Tree:
    """All texts of one row, by steps of the decoder that are made one text at a time and kept."""

    def __init__(self, decoder: Decoder, state: DecoderState, config: DecodingConfig) -> None:
        self.decoder, self.state, self.config = decoder, state, config
        self.after = cache(self._after)

    def _after(self, ids: tuple[int, ...]) -> tuple[list[float], DecoderState]:
        state = self.after(ids[:-1])[1] if ids else self.state
        with torch.inference_mode():
            logits_1V, state = self.decoder.step(torch.tensor([ids[-1] if ids else BOS]), state)
        return logits_1V[0].tolist(), state

    def may_follow(self, ids: tuple[int, ...]) -> list[int]:
        pieces = range(EOS if ids else EOS + 1, len(self.after(ids)[0]))  # no text is empty
        n = self.config.no_repeat_ngram
        return [i for i in pieces if not (n and repeats((*ids, i), n))]

    def probabilities(self, ids: tuple[int, ...] = ()) -> dict[tuple[int, ...], float]:
        """Of each text that may be drawn after `ids`; an end mark is part of it."""
        if len(ids) == self.config.max_tokens or ids[-1:] == (EOS,):
            return {ids: 1.0}
        pieces = truncated(self.after(ids)[0], self.config, ids)
        return {text: p * q for i, p in pieces.items() for text, q in self.probabilities((*ids, i)).items()}

    def log_prob(self, ids: tuple[int, ...], ranking: bool = False) -> float:
        """Of `ids`, an end mark being one of them, under the model; or what they are ranked by, before the length."""
        total = 0.0
        for t, i in enumerate(ids):
            logits = self.after(ids[:t])[0]
            logits = penalised(logits, ids[:t], self.config) if ranking else logits
            total += logits[i] - math.log(sum(map(math.exp, logits)))
        return total

    def best(self, texts: Sequence[tuple[int, ...]], n: int) -> list[tuple[int, ...]]:
        return sorted(texts, key=lambda ids: -self.log_prob(ids, True) / len(ids) ** self.config.length_penalty)[:n]

    def texts(self, ids: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
        """Everything that may be written."""
        if len(ids) == self.config.max_tokens or ids[-1:] == (EOS,):
            return [ids]
        return [text for i in self.may_follow(ids) for text in self.texts((*ids, i))]

    def searched(self) -> Iterator[tuple[list[tuple[int, ...]], list[tuple[int, ...]]]]:
        """The whole texts and the running ones after each step of a beam search that never stops early."""
        running: list[tuple[int, ...]] = [()]
        whole: list[tuple[int, ...]] = []
        for _ in range(self.config.max_tokens):
            options = [(*ids, i) for ids in running for i in self.may_follow(ids)]
            options.sort(key=lambda ids: -self.log_prob(ids, True))
            whole += [ids for ids in options[: self.config.beams] if ids[-1] == EOS]
            running = [ids for ids in options if ids[-1] != EOS][: self.config.beams]
            yield whole, running

    def search(self) -> list[tuple[int, ...]]:
        *_, (whole, running) = self.searched()
        return self.best(whole + running, self.config.beams)

    def steps(self) -> int:
        """After how many the list of whole texts is safe, should all that is still to come have probability 1."""
        beams, a = self.config.beams, self.config.length_penalty
        for step, (whole, running) in enumerate(self.searched(), 1):
            ranks = sorted((self.log_prob(ids, True) / len(ids) ** a for ids in whole), reverse=True)
            lengths = range(step, self.config.max_tokens + 1)
            hopes = [self.log_prob(ids, True) / length**a for ids in running for length in lengths]
            if len(ranks) >= beams and max(hopes) <= ranks[beams - 1]:
                break
        return step


def with_end(text: Decoded) -> tuple[int, ...]:
    return (*text.ids, *([EOS] if text.finished else []))


def row_of(state: DecoderState, row: int) -> DecoderState:
    return state.select(torch.tensor([row]))


class Watched:
    """Counts the texts in every step of a decoder."""

    def __init__(self, decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        step = decoder.step

        def watched(ids_B: Tensor, state: DecoderState) -> Any:
            self.sizes.append(len(ids_B))
            return step(ids_B, state)

        monkeypatch.setattr(decoder, "step", watched)


def chi_square(counts: Counter[Any], expected: dict[Any, float]) -> float:
    draws = sum(counts.values())
    return sum((counts[i] - draws * p) ** 2 / (draws * p) for i, p in expected.items())


class TestDistribution:
    @pytest.mark.parametrize(
        ("config", "pieces"),
        [
            (DecodingConfig(temperature=1.0, top_p=1.0), 6),
            (DecodingConfig(temperature=0.6, top_p=1.0), 6),
            (DecodingConfig(temperature=2.5, top_p=1.0), 6),
            (DecodingConfig(temperature=1.0, top_p=1.0, top_k=3), 3),
            (DecodingConfig(temperature=1.0, top_p=1.0, top_k=99), 6),
            (DecodingConfig(temperature=1.0, top_p=0.8), 3),
            (DecodingConfig(temperature=1.7, top_p=0.8, top_k=4), 3),
            (DecodingConfig(temperature=1.0, top_p=1.0, min_p=0.3), 3),
            (DecodingConfig(temperature=2.5, top_p=1.0, min_p=0.3), 6),
            (DecodingConfig(temperature=1.0, top_p=1.0, min_p=1.0), 1),
            (DecodingConfig(temperature=1.0, top_p=0.95, min_p=0.3), 3),
            (DecodingConfig(temperature=1.0, top_p=0.5, min_p=0.1), 2),
        ],
        ids=str,
    )
    def test_frequencies_are_the_truncated_probabilities(self, config: DecodingConfig, pieces: int) -> None:
        logits = [3.0, 2.0, 4.0, 0.3, -1.0, 1.1, 0.0, 0.7, -0.4, 1.6]  # the first three may never be drawn, the end not at once
        expected = truncated(logits, config)
        assert len(expected) == pieces
        drawn = choose(torch.tensor(logits).expand(DRAWS, -1), nothing(DRAWS), uniform(DRAWS, 1)[:, 0], config)
        counts = Counter(drawn.tolist())
        assert counts.keys() == expected.keys()
        assert chi_square(counts, expected) < CHI_SQUARE[max(pieces - 1, 1)]

    @pytest.mark.parametrize(
        ("config", "texts"),
        [
            (PLAIN, 12),
            (replace(PLAIN, temperature=1.6), 12),
            (replace(PLAIN, top_k=3), 9),
            (replace(PLAIN, top_p=0.9), 6),
            (replace(PLAIN, min_p=0.2), 4),
            (replace(PLAIN, repetition_penalty=2.0), 12),
            (replace(PLAIN, no_repeat_ngram=1), 9),
            (DecodingConfig(1.4, top_p=0.9, min_p=0.1, repetition_penalty=1.5, no_repeat_ngram=1), 7),
        ],
        ids=str,
    )
    def test_whole_texts_come_with_the_probability_that_is_meant_and_the_one_that_is_reported(
        self, config: DecodingConfig, texts: int
    ) -> None:
        # 3 pieces and the end mark, at most 2 tokens: 3 + 9 texts
        config = replace(config, max_tokens=2)
        model = decoder(7, pad=-1e4, unk=-1e4, bos=-1e4, eos=-1.0)
        with torch.no_grad():
            model.out.weight.mul_(0.3)  # so that no text is rare
        state = started(model, 1, seed=5)
        tree = Tree(model, state, config)
        expected, some = tree.probabilities(), 1 - math.exp(tree.log_prob((EOS,)))  # some: probability that a text is not empty
        assert len(expected) == texts
        assert sum(expected.values()) == pytest.approx(1, abs=1e-12)
        drawn = decode(model, state.select(torch.zeros(DRAWS, dtype=torch.long)), uniform(DRAWS, 2), config)
        counts = Counter(with_end(text) for text in drawn)
        assert chi_square(counts, expected) < CHI_SQUARE[texts - 1]
        own = {with_end(text): text for text in drawn}
        for ids, text in own.items():
            assert text.log_prob == pytest.approx(teacher_forced(model, state, text), abs=1e-9)
            if config == replace(PLAIN, max_tokens=2):
                assert math.exp(text.log_prob) == pytest.approx(some * expected[ids], rel=1e-9)

    @pytest.mark.parametrize("config", [DecodingConfig(1.0, top_p=0.75), DecodingConfig(1.0, top_k=5)], ids=str)
    def test_pieces_that_are_equally_probable_are_drawn_equally_often(self, config: DecodingConfig) -> None:
        logits = torch.tensor([0.0, 0.0, 0.0, -9.0, 1.0, -9.0, 1.0, 1.0, 2.0])
        expected = truncated(logits.tolist(), config)
        drawn = choose(logits.expand(DRAWS, -1), nothing(DRAWS), uniform(DRAWS, 1)[:, 0], config)
        counts = Counter(drawn.tolist())
        assert counts.keys() <= {4, 6, 7, 8}
        if config.top_k:
            assert chi_square(counts, {i: expected[i] for i in (4, 6, 7, 8)}) < CHI_SQUARE[4]
        else:
            assert len(counts) == 3  # two of the three that are equal reach it

    def test_a_text_whose_first_pieces_do_not_reach_top_p_is_drawn_among_all_and_the_others_stay(self) -> None:
        draw, config = torch.Generator().manual_seed(0), DecodingConfig(1.0, top_p=0.9)
        logits = torch.randn(6, 3000, generator=draw).double() * torch.tensor([[0.1], [6.0], [1.0], [0.0], [3.0], [0.5]])
        noise = torch.tensor([0.999, 0.5, 0.01, 0.7, 0.9, 0.3]).double()
        together = choose(logits, nothing(6), noise, config).tolist()
        assert together == [int(choose(logits[i : i + 1], nothing(1), noise[i : i + 1], config)) for i in range(6)]
        for i, piece in enumerate(together):
            if i == 3:  # all 2,997 are equally probable, and stand in the order of their numbers
                assert piece == 3 + int(0.7 * math.ceil(0.9 * 2997))
                continue
            below = 0.0
            for other, probability in truncated(logits[i].tolist(), config).items():
                if below + probability > noise[i]:
                    assert piece == other
                    break
                below += probability

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
        assert texts == decode(model, started(model, 20), None, GREEDY)

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


@pytest.mark.parametrize("config", MODES, ids=str)
class TestEveryMode:
    def test_log_prob_is_the_taught_decoders_with_the_end_mark_where_it_was_written(self, config: DecodingConfig) -> None:
        config = replace(config, max_tokens=9)
        model = decoder(eos=2.0)
        state = started(model, 60)
        texts = decode(model, state, uniform(60, 9), config)
        assert {text.finished for text in texts} == {True, False}
        for row, text in enumerate(texts):
            assert text.finished or len(text.ids) == 9
            taught = teacher_forced(model, row_of(state, row), text)
            assert text.log_prob == pytest.approx(taught, abs=1e-9)

    def test_a_text_does_not_depend_on_the_other_rows_or_their_end(self, config: DecodingConfig) -> None:
        model, config = decoder(eos=2.0), replace(config, max_tokens=20)
        state, noise = started(model, 40), uniform(40, 20)
        together = decode(model, state, noise, config)
        assert len({len(text.ids) for text in together}) > 3
        order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
        shuffled = decode(model, state.select(order), noise[order], config)
        alone = [decode(model, row_of(state, row), noise[row][None], config)[0] for row in range(40)]
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

    @pytest.mark.parametrize("config", MODES, ids=str)
    def test_no_text_is_empty_however_probable_its_end(self, config: DecodingConfig) -> None:
        model = decoder(eos=50.0)
        state = started(model, 8)
        for row, text in enumerate(decode(model, state, uniform(8, 3), replace(config, max_tokens=3))):
            assert text.finished
            assert len(text.ids) == 1
            assert text.log_prob == pytest.approx(teacher_forced(model, row_of(state, row), text), abs=1e-9)
            assert text.log_prob < -40

    @pytest.mark.parametrize("config", [GREEDY, PLAIN, DecodingConfig(beams=3)], ids=str)
    def test_memory_does_not_grow_with_the_rows(self, config: DecodingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        model, config = decoder(), replace(config, max_tokens=4)
        state, noise = started(model, 600), uniform(600, 4)
        watched = Watched(model, monkeypatch)
        texts = decode(model, state, noise, config)
        assert max(watched.sizes) <= 256
        order = torch.arange(599, -1, -1)
        assert [text.ids for text in decode(model, state.select(order), noise[order], config)] == [t.ids for t in texts[::-1]]

    @pytest.mark.parametrize("config", [GREEDY, DecodingConfig(beams=3)], ids=str)
    def test_of_no_rows_there_are_no_texts(self, config: DecodingConfig) -> None:
        model = decoder()
        assert decode(model, started(model, 1).select(torch.arange(0)), None, config) == []

    @pytest.mark.parametrize("noise", [0.0, NEAR_ONE, 1 - 2**-53])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(
        "config", [DecodingConfig(0.1), DecodingConfig(5.0, top_p=1.0), DecodingConfig(1.0, top_k=3)], ids=str
    )
    def test_extreme_noise_draws_the_first_or_the_last_piece_that_may_be(
        self, noise: float, dtype: torch.dtype, config: DecodingConfig
    ) -> None:
        logits = torch.randn(12, 6000, generator=torch.Generator().manual_seed(0)).to(dtype) * 3
        logits[:, 5000:] = -1e4  # probability zero: never, whatever the noise
        exact = torch.float32 if noise <= NEAR_ONE else torch.float64
        drawn = choose(logits, nothing(12), torch.full((12,), noise, dtype=exact), config).tolist()
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


class TestPenalties:
    @pytest.mark.parametrize(
        ("penalty", "written", "expected"),
        [
            (1.0, [4], 4),
            (1.3, [4], 4),  # 2.0 / 1.3 = 1.54 and above 1.5
            (1.4, [4], 5),  # 2.0 / 1.4 = 1.43
            (1.3, [4, 4, 4], 4),  # once is enough
            (1.4, [5, 4, 5], 4),  # 2.0 / 1.4 and 1.5 / 1.4
            (1.4, [6], 4),
        ],
    )
    def test_a_written_piece_has_its_logit_divided_where_positive(
        self, penalty: float, written: list[int], expected: int
    ) -> None:
        config = DecodingConfig(0.0, repetition_penalty=penalty)
        logits = torch.tensor([[9.0, 9.0, 9.0, 0.1, 2.0, 1.5, -1.0]])
        assert choose(logits, torch.tensor([written]), torch.zeros(1), config).tolist() == [expected]

    @pytest.mark.parametrize(("penalty", "expected"), [(1.0, 4), (1.05, 4), (1.2, 3)])  # -1.0 * 1.2 is below -1.1
    def test_and_multiplied_where_negative(self, penalty: float, expected: int) -> None:
        logits = torch.tensor([[9.0, 9.0, 9.0, -1.1, -1.0, -7.0]])
        config = DecodingConfig(0.0, repetition_penalty=penalty)
        assert choose(logits, torch.tensor([[4]]), torch.zeros(1), config).tolist() == [expected]

    @pytest.mark.parametrize("n", [1, 2, 3])
    @pytest.mark.parametrize("config", [GREEDY, PLAIN, DecodingConfig(beams=3)], ids=str)
    def test_no_n_pieces_in_a_row_occur_twice(self, config: DecodingConfig, n: int) -> None:
        model, config = decoder(7, eos=-4.0), replace(config, max_tokens=40)
        texts = decode(model, started(model, 30), uniform(30, 40), config)
        assert sum(repeats(text.ids, n) for text in texts) > 20
        barred = decode(model, started(model, 30), uniform(30, 40), replace(config, no_repeat_ngram=n))
        assert not any(repeats(text.ids, n) for text in barred)
        if n == 1:  # the 3 pieces there are, then nothing is left but the end mark
            assert all(text.finished and len(text.ids) <= 3 for text in barred)
        else:
            assert any(repeats(text.ids, n - 1) for text in barred)

    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_and_a_text_that_would_not_repeat_is_left_as_it_is(self, n: int) -> None:
        model, config = decoder(eos=2.0), replace(GREEDY, max_tokens=20)
        texts = decode(model, started(model, 60), None, config)
        barred = decode(model, started(model, 60), None, replace(config, no_repeat_ngram=n))
        same = [text.ids == other.ids for text, other in zip(texts, barred, strict=True)]
        assert same == [not repeats(text.ids, n) for text in texts]
        assert {True, False} == set(same)


class TestBeamSearch:
    @pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.5])
    @pytest.mark.parametrize(
        ("beams", "max_tokens", "texts"),
        [
            (64, 3, 39),  # 3 pieces and the end mark: 3 + 9 whole texts, and 27 that are cut: all of them
            (64, 4, 120),  # wide enough for the 27 hypotheses of 3 pieces, so the best 64 of all
            (27, 4, 120),
        ],
    )
    def test_finds_what_an_enumeration_of_all_texts_finds(
        self, beams: int, max_tokens: int, texts: int, length_penalty: float
    ) -> None:
        config = DecodingConfig(beams=beams, length_penalty=length_penalty, max_tokens=max_tokens)
        model = decoder(7)
        state = started(model, 3)
        for row, found in enumerate(beam_search(model, state, config)):
            tree = Tree(model, row_of(state, row), config)
            every = tree.texts()
            assert len(every) == texts
            assert [with_end(text) for text in found] == tree.best(every, beams)
            assert [text.log_prob for text in found] == pytest.approx([tree.log_prob(with_end(text)) for text in found])
            assert {text.finished for text in found} == {True, False}

    @pytest.mark.parametrize("length_penalty", [0.0, 1.0])
    @pytest.mark.parametrize(
        ("penalties", "texts"),
        [
            (dict(no_repeat_ngram=1, max_tokens=6), 15),  # 3 + 6 + 6: every hypothesis ends for want of pieces
            (dict(no_repeat_ngram=2, max_tokens=4), 96),
            (dict(repetition_penalty=1.8, max_tokens=3), 39),
            (dict(repetition_penalty=1.3, no_repeat_ngram=1, max_tokens=3), 15),
        ],
        ids=str,
    )
    def test_and_so_it_does_with_penalties(self, penalties: dict[str, Any], texts: int, length_penalty: float) -> None:
        config = DecodingConfig(beams=64, length_penalty=length_penalty, **penalties)
        model = decoder(7)
        state = started(model, 3)
        for row, found in enumerate(beam_search(model, state, config)):
            tree = Tree(model, row_of(state, row), config)
            every = tree.texts()
            assert len(every) == texts
            assert [with_end(text) for text in found] == tree.best(every, 64)
            for text in found:
                assert text.log_prob == pytest.approx(teacher_forced(model, row_of(state, row), text), abs=1e-9)

    @pytest.mark.parametrize(
        "config",
        [
            DecodingConfig(beams=2),
            DecodingConfig(beams=5),
            DecodingConfig(beams=3, length_penalty=0.8),
            DecodingConfig(beams=2, length_penalty=2.0),
            DecodingConfig(beams=4, length_penalty=0.5, repetition_penalty=1.6, no_repeat_ngram=2),
        ],
        ids=str,
    )
    def test_to_stop_early_loses_nothing(self, config: DecodingConfig) -> None:
        model, config = decoder(9, eos=1.5), replace(config, max_tokens=9)
        state = started(model, 12)
        for row, texts in enumerate(beam_search(model, state, config)):
            tree = Tree(model, row_of(state, row), config)
            assert [with_end(text) for text in texts] == tree.search()

    @pytest.mark.parametrize("length_penalty", [0.0, 1.0])
    def test_a_row_whose_best_texts_are_found_costs_no_more_steps(
        self, length_penalty: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = decoder(9, eos=3.0)
        state, config = started(model, 10), DecodingConfig(beams=3, length_penalty=length_penalty, max_tokens=12)
        watched = Watched(model, monkeypatch)
        steps = []
        for row in range(10):
            beam_search(model, row_of(state, row), config)
            steps.append(len(watched.sizes))
            watched.sizes.clear()
        beam_search(model, state, config)
        assert watched.sizes == [10, *(3 * sum(n > t for n in steps) for t in range(1, max(steps)))]
        assert steps == [Tree(model, row_of(state, row), config).steps() for row in range(10)]
        assert len(set(steps)) > 2

    @pytest.mark.parametrize("penalties", [{}, dict(repetition_penalty=1.6), dict(no_repeat_ngram=2)], ids=str)
    def test_one_beam_is_greedy(self, penalties: dict[str, Any]) -> None:
        model = decoder(eos=1.0)
        greedy = decode(model, started(model, 50), None, DecodingConfig(0.0, max_tokens=20, **penalties))
        beam = decode(model, started(model, 50), None, DecodingConfig(beams=1, max_tokens=20, **penalties))
        assert {text.finished for text in greedy} == {True, False}
        assert [(text.ids, text.finished) for text in beam] == [(text.ids, text.finished) for text in greedy]

    @pytest.mark.parametrize("length_penalty", [0.0, 1.0])
    def test_fewer_texts_are_the_first_of_more_in_fewer_steps(
        self, length_penalty: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, config = decoder(eos=2.0), DecodingConfig(beams=6, length_penalty=length_penalty, max_tokens=12)
        state = started(model, 30)
        watched = Watched(model, monkeypatch)
        texts = beam_search(model, state, config)
        steps = sum(watched.sizes)
        assert [len(row) for row in texts] == [6] * 30
        for n in (2, 1):
            watched.sizes.clear()
            fewer = beam_search(model, state, config, n)
            assert [[text.ids for text in row] for row in fewer] == [[text.ids for text in row[:n]] for row in texts]
            assert sum(watched.sizes) < steps
        assert [text.ids for text in decode(model, state, None, config)] == [row[0].ids for row in texts]

    @pytest.mark.parametrize("beams", [2, 5, 64])
    def test_a_row_alone_finds_what_it_finds_in_a_batch(self, beams: int) -> None:
        model, config = decoder(eos=2.0), DecodingConfig(beams=beams, length_penalty=0.7, max_tokens=12)
        state = started(model, 10)
        for row, together in enumerate(beam_search(model, state, config)):
            alone = beam_search(model, row_of(state, row), config)[0]
            assert [(text.ids, text.finished) for text in alone] == [(text.ids, text.finished) for text in together]
            assert [text.log_prob for text in alone] == pytest.approx([text.log_prob for text in together], abs=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("config", MODES, ids=str)
def test_a_gpu_writes_what_the_cpu_writes(config: DecodingConfig) -> None:
    model = decoder(eos=2.0)
    state, noise = started(model, 300), uniform(300, config.max_tokens)
    on_cpu = decode(model, state, noise, config)
    on_gpu = decode(model.cuda(), DecoderState(*(values.cuda() for values in state)), noise.cuda(), config)
    assert [(text.ids, text.finished) for text in on_gpu] == [(text.ids, text.finished) for text in on_cpu]
    assert [text.log_prob for text in on_gpu] == pytest.approx([text.log_prob for text in on_cpu], abs=1e-9)
