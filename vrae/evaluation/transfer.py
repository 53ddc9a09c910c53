"""Style transfer: do sentences that were moved along an attribute carry the other label, and what do they keep?

Either is easy alone, so the two stand together as a curve over the strength of the move. Whether a text carries the label is
judged by rule and by a classifier that has only ever seen texts, never latents. What is kept is counted in content words. The
baseline is interpolation towards a sentence that has the other label, a random one or the one nearest in the latent space.

Shape legend: B sentences, F features of them all, H hash values, N sentences of a label, Z latent.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vrae.evaluation.bleu import ngrams, sacre_corpus_bleu, words
from vrae.evaluation.quality import Perplexity, Ratio, perplexity
from vrae.generation.latent import slerp
from vrae.generation.pipeline import Pipeline

HASH_BITS = 16
FUNCTION_WORDS = frozenset(
    """a an the this that these those i you he she it we they me him her us them my your his its our their mine yours ours
    myself yourself himself herself itself ourselves themselves who whom whose which what when where why how am is are was were
    be been being do does did doing done have has had having will would shall should can could may might must ought and or but
    nor so if then than because as while until although though since unless about above across after against along among around
    at before behind below beneath beside between beyond by down during except for from in inside into near of off on onto out
    outside over past through to toward towards under up upon with within without not no yes there here too very just also only
    even again ever never some any each every all both either neither one other another such own same more most much many few
    less least lot lots oh um uh ah well ok okay yeah yep yup nope hm hmm hey hi hello haha lol u ur im dont gonna wanna gotta
    s t m d re ve ll don didn doesn isn aren wasn weren won wouldn couldn shouldn hasn haven hadn ain didnt isnt""".split()
)


@dataclass(frozen=True)
class Rule:
    """A label that a text has by its form, so that a corpus needs no labelling."""

    name: str
    labels: tuple[str, str]
    label: Callable[[str], int | None]  # 0, 1, or None: neither clearly
    marks: frozenset[str] = frozenset()  # words that make the label, which are no content


def _question(text: str) -> int | None:
    """1: the one sentence of the turn ends in a question mark; 0: there is none; None: several sentences, or no word."""
    if not 3 <= len(text.split()) <= 12 or re.search(r"[.!?]\s", text):
        return None
    return 1 if text.endswith("?") else None if "?" in text else 0


def _length(text: str) -> int | None:
    """0: at most four words; 1: eight or more."""
    count = len(text.split())
    return 0 if 1 <= count <= 4 else 1 if count >= 8 else None


RULES = (
    Rule("question", ("statement", "question"), _question, frozenset("whats whos wheres right".split())),
    Rule("length", ("short", "long"), _length),
)


def content_words(text: str, marks: Collection[str] = ()) -> Counter[str]:
    """The words of `text`, lower-cased, with their counts, less punctuation, function words and the attribute's `marks`."""
    return Counter(word for word in words(text) if word[0].isalnum() and word not in FUNCTION_WORDS and word not in marks)


class TextClassifier:
    """Logistic regression on which words, pairs of words and runs of three characters a text has, hashed to 2^16 places.

    Args:
        bare: drop what is not a letter or digit at the end of a text, such as the question mark, before anything is read.
        penalty: of half the squared weights, beside the mean cross-entropy in nats.
    """

    def __init__(self, *, bare: bool = False, penalty: float = 1e-5) -> None:
        self.bare, self.penalty = bare, penalty
        self.weight_H1 = torch.zeros(2**HASH_BITS, 1, dtype=torch.float64)
        self.bias = torch.zeros(1, dtype=torch.float64)

    def fit(self, first: Sequence[str], second: Sequence[str], max_steps: int = 200) -> TextClassifier:
        """Full-batch L-BFGS to the minimum, the same every time; both labels weigh the same."""
        features, starts_B = self._features([*first, *second])
        label_B = torch.cat([torch.zeros(len(first)), torch.ones(len(second))]).double()
        weight_B = torch.where(label_B == 0, 0.5 / len(first), 0.5 / len(second))
        parameters = [self.weight_H1.requires_grad_(), self.bias.requires_grad_()]
        optimizer = torch.optim.LBFGS(
            parameters, max_iter=max_steps, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            log_odds_B = self._log_odds(features, starts_B)
            entropy = F.binary_cross_entropy_with_logits(log_odds_B, label_B, weight_B, reduction="sum")
            total = entropy + self.penalty / 2 * self.weight_H1.square().sum()
            total.backward()  # type: ignore[no-untyped-call]
            return total

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        self.weight_H1, self.bias = self.weight_H1.detach(), self.bias.detach()
        return self

    def log_odds(self, texts: Sequence[str]) -> list[float]:
        """Nats, log p(second | text) / p(first | text) of each text."""
        values: list[float] = self._log_odds(*self._features(texts)).tolist()
        return values

    def labels(self, texts: Sequence[str]) -> list[int]:
        """0 or 1 for each text."""
        return [int(value > 0) for value in self.log_odds(texts)]

    def _log_odds(self, features_F: Tensor, starts_B: Tensor) -> Tensor:
        return F.embedding_bag(features_F, self.weight_H1, starts_B, mode="sum")[:, 0] + self.bias

    def _features(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """[F] hash values of all texts one after the other, each value once a text, and [B] where each text starts."""
        rows = [sorted({zlib.crc32(name.encode()) % 2**HASH_BITS for name in self._names(text)}) for text in texts]
        lengths_B = torch.tensor([len(row) for row in rows])
        return torch.tensor([value for row in rows for value in row], dtype=torch.int64), lengths_B.cumsum(0) - lengths_B

    def _names(self, text: str) -> list[str]:
        if self.bare:
            text = re.sub(r"[\W_]+$", "", text)
        tokens = ["<", *words(text), ">"]
        letters = f"<{' '.join(text.lower().split())}>"
        return [
            *(f"1 {token}" for token in tokens),
            *(f"2 {' '.join(pair)}" for pair in ngrams(tokens, 2)),
            *(f"3 {letters[i : i + 3]}" for i in range(len(letters) - 2)),
        ]


@dataclass(frozen=True)
class Transfer:
    """What became of sentences on their way to the other label; `.._error` are standard errors over sentences."""

    texts: int
    accuracy: float  # share that the classifier of bare texts puts under the label aimed at
    accuracy_error: float | None
    accuracy_marked: float  # the same by the classifier that sees the end marks too
    by_rule: float  # share that the rule puts there
    kept: float  # share of the sources' content words that the moved texts still have
    kept_error: float | None
    overlap: float  # 2 shared / (source + moved) content words: what was added counts against it too
    overlap_error: float | None
    bleu: float  # corpus BLEU-4 of sacreBLEU to the sources, [0, 1]
    same: float  # share that are the source word for word
    forward: Perplexity | None  # of the moved texts; None: no judge


def transfer(
    sources: Sequence[str],
    moved: Sequence[str],
    aims: Sequence[int],
    rule: Rule,
    bare: TextClassifier,
    marked: TextClassifier,
    judge: Pipeline | None = None,
) -> Transfer:
    """Compares moved texts with their sources.

    Args:
        sources: at least one.
        moved: as many.
        aims: the label each was to get, 0 or 1.
        rule: says what by_rule counts, and which words are marks of the attribute.
        bare: trained on texts without end marks.
        marked: trained on whole texts.
        judge: a language model, for the perplexity.

    Raises:
        UserError: sacreBLEU is not installed.
        ModelError: the judge is no language model.
    """
    assert len(sources) == len(moved) == len(aims) > 0
    accuracy, whole, ruled, kept, overlap, same = (Ratio() for _ in range(6))
    found = zip(sources, moved, aims, bare.labels(moved), marked.labels(moved), strict=True)
    for source, text, aim, bare_label, label in found:
        accuracy.add(bare_label == aim)
        whole.add(label == aim)
        ruled.add(rule.label(text) == aim)
        old, new = content_words(source, rule.marks), content_words(text, rule.marks)
        shared = (old & new).total()
        kept.add(shared, old.total())
        overlap.add(2 * shared, old.total() + new.total())
        same.add(text == source)
    return Transfer(
        texts=len(sources),
        accuracy=accuracy.value,
        accuracy_error=accuracy.error,
        accuracy_marked=whole.value,
        by_rule=ruled.value,
        kept=kept.value,
        kept_error=kept.error,
        overlap=overlap.value,
        overlap_error=overlap.error,
        bleu=sacre_corpus_bleu(sources, moved)[0],
        same=same.value,
        forward=perplexity(judge, moved) if judge else None,
    )


def nearest(z_BZ: np.ndarray, pool_NZ: np.ndarray) -> np.ndarray:
    """[B], the row of `pool_NZ` that is nearest to each row of `z_BZ`."""
    square_BN = np.square(z_BZ).sum(1)[:, None] - 2 * z_BZ @ pool_NZ.T + np.square(pool_NZ).sum(1)
    rows_B: np.ndarray = square_BN.argmin(1)
    return rows_B


def towards(pipeline: Pipeline, z_BZ: np.ndarray, goals_BZ: np.ndarray, share: float) -> list[str]:
    """The baseline: each sentence `share` of the way along the great circle to its goal."""
    t_1 = torch.tensor([share])
    path_BZ = torch.cat([slerp(a_Z, b_Z, t_1) for a_Z, b_Z in zip(*map(torch.from_numpy, (z_BZ, goals_BZ)), strict=True)])
    return [sample.text for sample in pipeline.decode_latents(path_BZ.numpy())]


def overlap_at(curve: Sequence[tuple[float, float]], accuracy: float) -> float | None:
    """The greatest overlap on a curve of (accuracy, overlap) at that accuracy or a higher one; None: it is never reached.

    Between neighbouring points of the curve a straight line is drawn: what a mixture of the two would give.
    """
    reached = [overlap for point, overlap in curve if point >= accuracy]
    for (a, overlap_a), (b, overlap_b) in pairwise(curve):
        if min(a, b) < accuracy <= max(a, b):
            reached.append(overlap_a + (overlap_b - overlap_a) * (accuracy - a) / (b - a))
    return max(reached, default=None)
