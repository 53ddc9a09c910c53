"""What several replies to one context are worth: how varied they are, how near the best of them is to what was really said.

Neither says much alone: one good reply ten times is not varied, and ten random sentences are. So a way of drawing replies is a
point in a plane, a grid of temperatures makes a curve, and ways are compared at the same variety (`at_equal_diversity`).

Every figure is kept for each context, because two ways of drawing that answer the same contexts are compared context by
context: what makes one context harder than another is then no part of the error (`paired`).

Shape legend: N contexts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from vrae.errors import UserError
from vrae.evaluation.bleu import sacre_sentence_bleu, words
from vrae.evaluation.dialogue import Replies
from vrae.evaluation.diversity import SelfBleu, distinct, self_bleu

MOST_FREQUENT = 10
# Of Texygen's orders. A reply of fewer words than the order shares no n-gram even with its own copy: at 4, ten times "Yes." is
# rated as varied, and such replies are many.
SELF_BLEU_ORDER = 2


class Estimate(NamedTuple):
    """A mean over contexts, which are taken for independent."""

    value: float
    error: float | None  # standard error; None for a single context


@dataclass(frozen=True)
class ReplyFigures:
    """The replies of one system. `_N`: a value for each context, its mean is the figure (`estimate`).

    BLEU is sacreBLEU by sentence. chrF is the F1 of character n-grams up to 6 (Popović 2015), lower-cased: it tells replies
    apart that share no words with the reference, and beta 1 in place of its usual 2 gives long replies no advantage. Both are
    in [0, 1]. A context without replies counts 0 in all but `self_bleu_N`.
    """

    replies_N: np.ndarray  # how many there are
    distinct_1_N: np.ndarray  # distinct words over words among the replies of a context (`Distinct.inter`), share
    distinct_2_N: np.ndarray  # the same of pairs of words
    self_bleu_N: np.ndarray  # self-BLEU-2 of a context's replies, 0 to 1; 1 where there are fewer than two
    words_N: np.ndarray  # mean length of a reply in words, marks counted as words
    oracle_bleu_N: np.ndarray  # of the reply that has the highest, against the true one
    mean_bleu_N: np.ndarray
    first_bleu_N: np.ndarray  # of the reply that is ranked first
    oracle_chrf_N: np.ndarray
    mean_chrf_N: np.ndarray
    first_chrf_N: np.ndarray
    frequent_N: np.ndarray  # share of a context's replies that are among the ten most frequent of all contexts
    frequent_first_N: np.ndarray  # 1 where the first reply is among the ten most frequent first replies, else 0
    most_frequent: tuple[tuple[str, int], ...]  # those ten of all replies, normalised, and how often they occur
    most_frequent_first: tuple[tuple[str, int], ...]
    corpus_distinct_1: float  # among the replies of all contexts; compare like numbers
    corpus_distinct_2: float
    corpus_self_bleu: SelfBleu  # of an even sample of the replies of all contexts
    bleu_signature: str
    chrf_signature: str

    @property
    def estimates(self) -> dict[str, Estimate]:
        """The figures that are means over contexts, by their names without `_N`."""
        names = [field.name for field in fields(self) if field.name.endswith("_N")]
        return {name.removesuffix("_N"): estimate(getattr(self, name)) for name in names}


def measure_replies(replies: Sequence[Replies]) -> ReplyFigures:
    """The figures of a system's replies.

    Args:
        replies: of each context the one true reply, and what the system says, what it would say first at the front.

    Raises:
        UserError: there is no context, fewer than two replies in all, or not one reference to each context; sacreBLEU is not
            installed.
    """
    for place, context in enumerate(replies):
        if len(context.references) != 1:
            raise UserError(f"context {place} must have one reference. Got {len(context.references)}")
    spoken = [[words(text) for text in context.hypotheses] for context in replies]
    sizes_N = np.array([len(context) for context in spoken])
    if sizes_N.sum() < 2:
        raise UserError(f"there must be two replies or more to compare. Got {sizes_N.sum()}")
    pairs = [(context.references[0], text) for context in replies for text in context.hypotheses]
    references, hypotheses = zip(*pairs, strict=True)
    bleu, bleu_signature = sacre_sentence_bleu(references, hypotheses)
    chrf, chrf_signature = sacre_sentence_chrf(references, hypotheses)
    ends = np.cumsum(sizes_N)[:-1]
    bleu_by_context, chrf_by_context = np.split(np.array(bleu), ends), np.split(np.array(chrf), ends)

    said = [[normalised(text) for text in context.hypotheses] for context in replies]
    frequent = Counter(text for context in said for text in context).most_common(MOST_FREQUENT)
    frequent_first = Counter(context[0] for context in said if context).most_common(MOST_FREQUENT)
    common, common_first = dict(frequent), dict(frequent_first)
    return ReplyFigures(
        replies_N=sizes_N.astype(float),
        distinct_1_N=np.array([distinct([context], 1).inter if context else 0.0 for context in spoken]),
        distinct_2_N=np.array([distinct([context], 2).inter if context else 0.0 for context in spoken]),
        self_bleu_N=np.array(
            [self_bleu(context).scores[SELF_BLEU_ORDER - 1] if len(context) > 1 else 1.0 for context in spoken]
        ),
        words_N=_mean_N([[len(text) for text in context] for context in spoken]),
        oracle_bleu_N=np.array([scores.max(initial=0.0) for scores in bleu_by_context]),
        mean_bleu_N=_mean_N(bleu_by_context),
        first_bleu_N=_mean_N([scores[:1] for scores in bleu_by_context]),
        oracle_chrf_N=np.array([scores.max(initial=0.0) for scores in chrf_by_context]),
        mean_chrf_N=_mean_N(chrf_by_context),
        first_chrf_N=_mean_N([scores[:1] for scores in chrf_by_context]),
        frequent_N=_mean_N([[text in common for text in context] for context in said]),
        frequent_first_N=_mean_N([[text in common_first for text in context[:1]] for context in said]),
        most_frequent=tuple(frequent),
        most_frequent_first=tuple(frequent_first),
        corpus_distinct_1=distinct(spoken, 1).corpus,
        corpus_distinct_2=distinct(spoken, 2).corpus,
        corpus_self_bleu=self_bleu([text for context in spoken for text in context]),
        bleu_signature=bleu_signature,
        chrf_signature=chrf_signature,
    )


def _mean_N(values: Sequence[Sequence[float] | np.ndarray]) -> np.ndarray:
    return np.array([float(np.mean(one)) if len(one) else 0.0 for one in values])


def normalised(text: str) -> str:
    """What two replies share that count as the same: their lower-cased words without other marks, or those where all are."""
    return " ".join(word for word in words(text) if word[0].isalnum()) or " ".join(words(text))


def sacre_sentence_chrf(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[list[float], str]:
    """chrF of each hypothesis against its one reference, lower-cased, beta 1, in [0, 1], and the signature.

    Raises:
        UserError: sacreBLEU is not installed.
    """
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise UserError("chrF needs sacreBLEU: pip install 'vrae[eval]'") from None
    metric = CHRF(beta=1, lowercase=True)
    scores = [
        metric.sentence_score(hypothesis, [reference]).score / 100
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]
    return scores, f"chrF1|{metric.get_signature()}"


def estimate(values_N: np.ndarray) -> Estimate:
    """The mean and its standard error."""
    N = len(values_N)
    return Estimate(float(values_N.mean()), float(values_N.std(ddof=1)) / math.sqrt(N) if N > 1 else None)


def paired(a_N: np.ndarray, b_N: np.ndarray) -> Estimate:
    """The mean of a - b over the same contexts, and its standard error: of the differences, not of two independent means."""
    assert a_N.shape == b_N.shape, f"{a_N.shape} and {b_N.shape}: not the same contexts"
    return estimate(a_N - b_N)


class Point(NamedTuple):
    """One way of drawing replies, as what it comes to in each context."""

    diversity_N: np.ndarray  # higher: more varied
    similarity_N: np.ndarray  # higher: nearer to the true reply


def at_equal_diversity(curve: Sequence[Point], point: Point) -> Estimate | None:
    """How much more similar than `point` a curve is where it is as varied; None where it nowhere is.

    The points of the curve are joined by straight lines in the order of their mean diversity. With w the place between two of
    them and m the line's slope, the difference is the mean over contexts of

        (1 - w) s0 + w s1 - s + m (d - (1 - w) d0 - w d1),

    whose bracket is 0 on average. w and m are figures of these contexts themselves; to the first order in their errors, that
    changes the difference by nothing but the bracket (delta method), so the standard error of this mean is that of the
    difference, paired. It holds where the line is not much shorter than the error of its ends.
    """
    ordered = sorted(curve, key=lambda other: float(other.diversity_N.mean()))
    wanted = float(point.diversity_N.mean())
    for low, high in pairwise(ordered):
        low_d, high_d = float(low.diversity_N.mean()), float(high.diversity_N.mean())
        if low_d <= wanted <= high_d and low_d < high_d:
            w = (wanted - low_d) / (high_d - low_d)
            slope = float((high.similarity_N - low.similarity_N).mean()) / (high_d - low_d)
            similarity_N = (1 - w) * low.similarity_N + w * high.similarity_N
            diversity_N = (1 - w) * low.diversity_N + w * high.diversity_N
            return paired(similarity_N + slope * (point.diversity_N - diversity_N), point.similarity_N)
    return None
