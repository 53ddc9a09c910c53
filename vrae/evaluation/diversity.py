"""How varied texts are: the share of distinct n-grams, and self-BLEU.

Shape legend: O orders of n-grams, N texts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vrae.errors import UserError
from vrae.evaluation.bleu import ngrams

SELF_BLEU_ORDERS = 4
SELF_BLEU_EPSILON = 0.1  # matches of an order that has none: `method1` of Chen & Cherry 2014, with NLTK's constant
SELF_BLEU_TEXTS = 500  # as many as Texygen reads


@dataclass(frozen=True)
class Distinct:
    """Distinct n-grams over n-grams. `intra` and `inter` are those of Gu et al. 2019, `corpus` that of Li et al. 2016."""

    n: int
    intra: float  # within a text, mean over all texts
    inter: float  # among the texts of one context, mean over contexts
    corpus: float  # among all texts; falls as their number grows, so compare like numbers


def distinct(texts: Sequence[Sequence[Sequence[str]]], n: int) -> Distinct:
    """The shares of distinct n-grams among the texts of each context, given as words without end mark.

    Intra and inter have DialogWAE's constants, (distinct + 1e-12) / (all + 1e-5), by which a text too short to have an n-gram
    counts as 1e-7, and so does a context without texts.
    """
    intra, inter = [], []
    corpus: Counter[tuple[str, ...]] = Counter()
    for context in texts:
        together: Counter[tuple[str, ...]] = Counter()
        for text in context:
            counts = Counter(ngrams(text, n))
            intra.append(_share(counts))
            together.update(counts)
        inter.append(_share(together))
        corpus.update(together)
    return Distinct(n, _mean(intra), _mean(inter), len(corpus) / max(corpus.total(), 1))


def _share(counts: Counter[tuple[str, ...]]) -> float:
    return (len(counts) + 1e-12) / (counts.total() + 1e-5)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / max(len(values), 1)


@dataclass(frozen=True)
class SelfBleu:
    """The mean BLEU of texts, each against all others (Zhu et al. 2018, Texygen). High: the texts resemble each other."""

    scores: tuple[float, ...]  # BLEU-1, BLEU-2, BLEU-3, BLEU-4, in [0, 1]
    texts: int  # that were compared
    of: int  # that there were

    @property
    def statement(self) -> str:
        """The protocol in one line, to be printed beside the scores."""
        chosen = f"all {self.texts} texts" if self.texts == self.of else f"{self.texts} texts, an even sample of {self.of}"
        orders = f"BLEU-1 to BLEU-{SELF_BLEU_ORDERS} with equal weights"
        smoothing = f"an order without a match counts as {SELF_BLEU_EPSILON} matches (method1)"
        return f"self-BLEU: {orders}, each text against all others, {smoothing}; {chosen}"


def self_bleu(texts: Sequence[Sequence[str]], *, most: int = SELF_BLEU_TEXTS, seed: int = 0) -> SelfBleu:
    """Self-BLEU of texts, given as words without end mark.

    A text is the hypothesis and all others are its references: an n-gram counts as often as in the text that has it most, and
    the length that brevity is measured by is the one nearest to the text's own, the shorter of two as near. A text that
    shares no word with another scores 0. With more than `most` texts, every (number / most)-th is taken, starting where `seed`
    says.

    Time and memory are linear in the words: to leave a text out of its own references, it is enough to know for each n-gram
    the text that has it most often, how often, and how often the next one has it.

    Raises:
        UserError: there are fewer than two texts.
    """
    if len(texts) < 2 or most < 2:
        raise UserError(f"self-BLEU compares texts with each other and needs at least 2. Got {min(len(texts), most)}")
    of = len(texts)
    if of > most:
        start = int(np.random.default_rng(seed).integers(of))
        texts = [texts[(i * of + start) // most] for i in range(most)]
    orders = range(1, SELF_BLEU_ORDERS + 1)
    matched_ON = np.array([_matched([Counter(ngrams(text, n)) for text in texts]) for n in orders])
    total_ON = np.array([[max(len(text) - n + 1, 1) for text in texts] for n in orders])
    log_ON = np.log(np.where(matched_ON, matched_ON, SELF_BLEU_EPSILON) / total_ON)
    scores_ON = np.exp(log_ON.cumsum(0) / np.array(orders)[:, None] + _log_brevity([len(text) for text in texts]))
    scores_ON[:, matched_ON[0] == 0] = 0
    return SelfBleu(tuple(scores_ON.mean(1).tolist()), len(texts), of)


def _matched(counts: Sequence[Counter[tuple[str, ...]]]) -> list[int]:
    """How many n-grams of each text are matched, all others being its references."""
    most: dict[tuple[str, ...], tuple[int, int, int]] = {}  # n-gram -> whose count is highest, that count, the next one
    for i, own in enumerate(counts):
        for gram, count in own.items():
            holder, first, second = most.get(gram, (i, 0, 0))
            most[gram] = (i, count, first) if count > first else (holder, first, max(second, count))
    matched = [0] * len(counts)
    for i, own in enumerate(counts):
        for gram, count in own.items():
            holder, first, second = most[gram]
            matched[i] += min(count, second if holder == i else first)
    return matched


def _log_brevity(lengths: Sequence[int]) -> list[float]:
    """The log of the brevity penalty of texts of these lengths, each against the nearest of the others."""
    texts_of = Counter(lengths)
    penalty = {}
    for length, count in texts_of.items():
        others = texts_of if count > 1 else texts_of.keys() - {length}
        nearest = min(others, key=lambda other: (abs(other - length), other))
        penalty[length] = min(0.0, 1 - nearest / max(length, 1))
    return [penalty[length] for length in lengths]
