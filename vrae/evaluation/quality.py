"""What a model's text is worth: reconstructions, and samples from the prior.

Reconstruction says what the latent keeps. Samples are read by a judge, a recurrent language model that was trained on real
text alone (`vrae.training.judge`): forward perplexity is low for text that looks real, but also for text that is always the
same, so it stands beside the diversity of the samples and beside the reverse perplexity, of real text under a language model
trained on the samples (both: Zhao et al. 2018, adversarially regularized autoencoders).

The end mark of a turn counts as a token, so an empty turn has one. Standard errors take turns for independent.

Shape legend: B windows, T tokens, N noise numbers, Z latent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vrae.config import GREEDY, DecodingConfig
from vrae.corpus.batches import Batch, Window, Windows, collate
from vrae.corpus.tokenizer import EOS, Tokenizer
from vrae.errors import ModelError, UserError
from vrae.evaluation.bleu import sacre_corpus_bleu, words
from vrae.evaluation.diversity import SelfBleu, distinct, self_bleu
from vrae.generation.decoding import Decoded
from vrae.generation.pipeline import Pipeline

ANCESTRAL = DecodingConfig(temperature=1.0, top_k=0, top_p=1.0, max_tokens=128)  # the model's own, of texts that are not empty
_ROWS = 256  # texts decoded or judged side by side


class Ratio:
    """sum y / sum x over independent units, with its standard error; with x = 1, the mean of y. Memory is constant."""

    def __init__(self) -> None:
        self.units = 0
        self.y = self.x = self._yy = self._xy = self._xx = 0.0

    def add(self, y: float, x: float = 1.0) -> None:
        self.units += 1
        self.y, self.x = self.y + y, self.x + x
        self._yy, self._xy, self._xx = self._yy + y * y, self._xy + x * y, self._xx + x * x

    @property
    def value(self) -> float:
        return self.y / self.x

    @property
    def error(self) -> float | None:
        """sqrt(n / (n - 1) sum (y - value x)^2) / sum x (Cochran 1977, chapter 6); None for a single unit."""
        if self.units < 2:
            return None
        square = self._yy - 2 * self.value * self._xy + self.value**2 * self._xx
        return math.sqrt(max(square, 0.0) * self.units / (self.units - 1)) / self.x


@dataclass(frozen=True)
class Perplexity:
    """exp(nats / tokens) of some texts under a language model."""

    value: float
    error: float | None  # standard error, by the delta method
    texts: int
    tokens: int  # end marks included


def perplexity(judge: Pipeline, texts: Iterable[str], *, group: int = 1, empty: float = 0.0) -> Perplexity:
    """The perplexity of `texts`, encoded by the judge's tokenizer and not cleaned, an end mark after each.

    Args:
        judge: a model with neither latent nor context, whose log p(x) is exact.
        texts: at least one.
        group: so many texts in a row are one unit of the standard error.
        empty: share of empty texts among those that the judge stands for, where it was taught the others alone: a text is
            then drawn empty with this probability, and else from the judge.

    Raises:
        ModelError: the judge has a latent or reads a context.
    """
    check_judge(judge)
    ratio, count = Ratio(), 0
    nats = _nats(judge, texts)
    while unit := list(itertools.islice(nats, group)):
        count += len(unit)
        ratio.add(sum(_mixed(nats, tokens, empty) for nats, tokens in unit), sum(tokens for _, tokens in unit))
    assert count, "no text to judge"
    value = math.exp(min(ratio.value, 700.0))
    return Perplexity(value, None if ratio.error is None else value * ratio.error, count, int(ratio.x))


def check_judge(judge: Pipeline) -> None:
    """Raises ModelError where `judge` is not a language model."""
    config = judge.model.config
    if config.latent_size or config.context_turns:
        raise ModelError(
            "the judge must be a language model (model.latent_size 0, model.context_turns 0). "
            f"Got latent_size {config.latent_size}, context_turns {config.context_turns}"
        )


def _mixed(nats: float, tokens: int, empty: float) -> float:
    """-log of the mixture of `empty` for the empty text, which is its end mark alone, and the rest for the judge."""
    if tokens > 1 or not empty:
        return nats - math.log1p(-empty)
    return -math.log(empty + (1 - empty) * math.exp(-nats))


@torch.inference_mode()
def _nats(judge: Pipeline, texts: Iterable[str]) -> Iterator[tuple[float, int]]:
    """(-log p(text), tokens), both with the end mark, of each text."""
    texts = iter(texts)
    while chunk := list(itertools.islice(texts, _ROWS)):
        windows = [Window([], np.asarray(ids, np.int64), []) for ids in judge.tokenizer.encode(chunk)]
        batch = collate(windows, 0).to(judge.model.device)
        nothing_B0 = judge.model.decoder.out.bias.new_zeros(len(chunk), 0)
        log_prob_B = judge.model.log_prob(batch, nothing_B0, nothing_B0).double()
        yield from zip((-log_prob_B).tolist(), batch.target_lengths_B.tolist(), strict=True)


@dataclass(frozen=True)
class ReconstructionQuality:
    """How well turns come back from the mean of their posterior."""

    turns: int
    tokens: int  # of the turns, end marks included
    exact: float  # share of turns whose ids come back, all of them and no more
    exact_error: float | None
    token_accuracy: float  # share of the turns' tokens that stand at their place; the end mark is one, what is missing is wrong
    token_accuracy_error: float | None  # over turns
    bleu: float | None  # corpus BLEU-4 of sacreBLEU, in [0, 1]; None: it is not installed
    bleu_signature: str


@torch.inference_mode()
def reconstruction(pipeline: Pipeline, batches: Iterable[Batch], decoding: DecodingConfig = GREEDY) -> ReconstructionQuality:
    """Encodes the target of each window and decodes it from the posterior mean, given the context that the batch has.

    The decoder reads its own output, not the turn. Ids are compared as they were prepared: nothing is cleaned or encoded anew.

    Raises:
        ModelError: the model has no latent.
    """
    model, written, references = pipeline.model, list[str](), list[str]()
    if not model.config.latent_size:
        raise ModelError("this model has no latent (model.latent_size is 0): there is nothing to reconstruct from")
    exact, tokens = Ratio(), Ratio()
    for batch in batches:
        batch = batch.to(model.device)
        inferred = model.infer(batch)
        decoded = pipeline.decode(inferred.posterior.mean_BZ, inferred.context_BC, None, decoding)
        for turn_T, length, text in zip(batch.turns_NT[batch.target_B], batch.target_lengths_B.tolist(), decoded, strict=True):
            target = turn_T[:length].tolist()
            ids = [*text.ids, EOS] if text.finished else text.ids
            exact.add(ids == target)
            tokens.add(sum(a == b for a, b in zip(ids, target, strict=False)), length)
            written.append(pipeline.tokenizer.decode(text.ids))
            references.append(pipeline.tokenizer.decode(target))
    assert references, "no batch to reconstruct"
    bleu, signature = _bleu(references, written)
    return ReconstructionQuality(
        turns=exact.units,
        tokens=int(tokens.x),
        exact=exact.value,
        exact_error=exact.error,
        token_accuracy=tokens.value,
        token_accuracy_error=tokens.error,
        bleu=bleu,
        bleu_signature=signature,
    )


@dataclass(frozen=True)
class Samples:
    """Turns drawn from a model, in the order of the windows that they were drawn for."""

    texts: list[str]
    cut: int  # of them, so many were cut at the longest length, and stand as if they ended there


@torch.inference_mode()
def draw_samples(
    pipeline: Pipeline, windows: Windows, count: int, *, seed: int = 0, decoding: DecodingConfig = ANCESTRAL
) -> Samples:
    """`count` turns, each with a latent of its own: z from p(z | c), then the text from p(x | z, c), c the context of a window.

    The windows are an even sample of all, or, where there are fewer than `count`, all of them again and again; at K = 0 they
    make no difference. A sample depends on the seed and on its window, not on what is drawn beside it.
    """
    model, found = pipeline.model, list[tuple[int, Decoded]]()
    for start in range(0, count, len(windows)):
        for windows_B, batch in windows.in_order(min(count - start, len(windows))):
            places = [start + window for window in windows_B.tolist()]
            prior, context_BC = model.condition(batch.to(model.device))
            rngs = [np.random.default_rng([seed, place]) for place in places]
            normal_BN = np.stack([rng.standard_normal(prior.noise_size, np.float32) for rng in rngs])
            uniform_BT = np.stack([rng.random(decoding.max_tokens, np.float32) for rng in rngs])
            z_BZ = prior.sample(torch.from_numpy(normal_BN).to(context_BC))
            drawn = pipeline.decode(z_BZ, context_BC, torch.from_numpy(uniform_BT).to(model.device), decoding)
            found += zip(places, drawn, strict=True)
    found.sort()
    texts = [pipeline.tokenizer.decode(text.ids) for _, text in found]
    return Samples(texts, sum(not text.finished for _, text in found))


def real_turns(windows: Windows, tokenizer: Tokenizer, limit: int = 0) -> list[str]:
    """The targets of the windows, or of an even sample of `limit` of them, in their order: what samples are compared with."""
    count = min(limit or len(windows), len(windows))
    chosen = windows.target_N[np.linspace(0, len(windows) - 1, count).astype(np.int64)]
    return [tokenizer.decode(windows.split.turn(turn)) for turn in chosen.tolist()]


@dataclass(frozen=True)
class TextQuality:
    """Texts by themselves and to a judge: samples of a model, and real turns as the yardstick beside them."""

    texts: int
    empty: float  # share without a visible character
    distinct: tuple[float, ...]  # share of distinct n-grams among all texts, n = 1, 2, 3; compare like numbers of texts
    self_bleu: SelfBleu
    forward: Perplexity | None  # None: no judge


def text_quality(texts: Sequence[str], judge: Pipeline | None = None, *, seed: int = 0) -> TextQuality:
    """How varied the texts are, and how real they look to the judge. `vrae.training.judge` has the reverse perplexity.

    Args:
        texts: two or more.
        judge: a language model.
        seed: of the texts that self-BLEU compares.

    Raises:
        UserError: fewer than two texts.
        ModelError: the judge is no language model.
    """
    forward = perplexity(judge, texts) if judge and texts else None
    tokens = [words(text) for text in texts]
    return TextQuality(
        texts=len(texts),
        empty=sum(not text for text in texts) / max(len(texts), 1),
        distinct=tuple(distinct([tokens], n).corpus for n in (1, 2, 3)),
        self_bleu=self_bleu(tokens, seed=seed),
        forward=forward,
    )


def _bleu(references: list[str], written: list[str]) -> tuple[float | None, str]:
    """Without sacreBLEU: None, and in place of the signature how to get it."""
    try:
        return sacre_corpus_bleu(references, written)
    except UserError as error:
        return None, str(error)
