"""BLEU as dialogue papers report it, in three versions, and the words that it counts.

`legacy` and `modern` are the sentence BLEU of the dialogue papers of 2018 (Zhao et al. 2017, Gu et al. 2019, and what follows
them): n-grams up to 3 with equal weights, smoothed by `method7` of NLTK (Chen & Cherry 2014), which has given other numbers
since NLTK 3.6. Both are restated here, without NLTK. Neither is bounded by 1. `standard` is sacreBLEU (Post 2018): n-grams up
to 4, its own tokenizer, a signature to report.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from vrae.errors import UserError

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU

_WORD = re.compile(r"\w+|[^\w\s]+")


def words(text: str) -> list[str]:
    """Lower-cased runs of letters, digits and underscores, and runs of other marks: the rule of NLTK's WordPunctTokenizer."""
    return _WORD.findall(text.lower())


def ngrams(tokens: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """The n-grams of `tokens` in order, as often as they occur."""
    return zip(*(tokens[i:] for i in range(n)), strict=False)


def method7_bleu(reference: Sequence[str], hypothesis: Sequence[str], version: Literal["legacy", "modern"]) -> float:
    """BLEU-3 of one hypothesis with `method7` smoothing: as NLTK up to 3.4.5 computes it (legacy), or from 3.6 on (modern).

    A precision without a match is first replaced by a small one (`method4`, the only step that differs). Then each is
    averaged with its two neighbours, where the one after the last is the raw precision of 5-grams (`method5`). Not bounded by
    1: identical sentences of six words score 1.1539. Where legacy NLTK fails, on a hypothesis of one word, the score is 0, as
    the papers' programs have it.
    """
    length = len(hypothesis)
    counts = [_matches(reference, hypothesis, n) for n in (1, 2, 3)]
    if not counts[0][0] or (length == 1 and version == "legacy"):
        return 0.0
    precisions, missing = [], 0
    for i, (matched, total) in enumerate(counts):
        if matched or length == 1:
            precisions.append(matched / total)
        elif version == "legacy":
            precisions.append(1 / (i + 5 / math.log(length)))
        else:
            missing += 1
            precisions.append(math.log(length) / (5 * 2**missing) / total)
    matched, total = _matches(reference, hypothesis, 5)
    precisions.append(matched / total)
    smoothed, log_sum = precisions[0] + 1, 0.0
    for precision, following in itertools.pairwise(precisions):
        smoothed = (smoothed + precision + following) / 3
        log_sum += math.log(smoothed)
    return math.exp(min(0.0, 1 - len(reference) / length) + log_sum / 3)


def _matches(reference: Sequence[str], hypothesis: Sequence[str], n: int) -> tuple[int, int]:
    """How many n-grams of the hypothesis the reference has too, each at most as often as there; and of how many, at least 1."""
    found = Counter(ngrams(hypothesis, n)) & Counter(ngrams(reference, n))
    return found.total(), max(len(hypothesis) - n + 1, 1)


def sacre_corpus_bleu(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[float, str]:
    """sacreBLEU of a corpus with one reference each, in [0, 1], and its signature.

    Raises:
        UserError: sacreBLEU is not installed, or there is no text.
    """
    if not hypotheses:
        raise UserError("BLEU needs at least one text")
    assert len(references) == len(hypotheses), f"{len(references)} references, {len(hypotheses)} hypotheses"
    metric = _sacrebleu()
    score = metric.corpus_score(hypotheses, [references]).score
    return min(score / 100, 1.0), str(metric.get_signature())


def sacre_sentence_bleu(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[list[float], str]:
    """sacreBLEU of each hypothesis against its one reference, in [0, 1], and the signature.

    Orders that the hypothesis is too short for are left out (`eff:yes`), and the k-th order without a match counts as 2^-k
    matches (`smooth:exp`).

    Raises:
        UserError: sacreBLEU is not installed, or there is no text.
    """
    if not hypotheses:
        raise UserError("BLEU needs at least one text")
    metric = _sacrebleu(effective_order=True)
    scores = [
        min(metric.sentence_score(hypothesis, [reference]).score / 100, 1.0)
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]
    return scores, str(metric.get_signature())


def _sacrebleu(effective_order: bool = False) -> BLEU:
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise UserError("standard BLEU needs sacreBLEU: pip install 'vrae[eval]'") from None
    return BLEU(effective_order=effective_order)
