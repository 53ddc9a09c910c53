"""Replies against what was really said: BLEU precision, recall and F1, distinct n-grams, embedding scores.

The figures of two papers are comparable only under one protocol, so there are three by name, and the result states all that it
depends on (`DialogueScores.statement`). Two things differ from the programs of 2018 that `legacy` and `modern` restate. Their
vocabulary was limited and rarer words became `<unk>`; here every word is itself. And a reply cut off at the length limit had
no end mark; here every reply is taken to be finished.

Shape legend: R references, H hypotheses of one context.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from vrae.errors import UserError
from vrae.evaluation.bleu import method7_bleu, sacre_sentence_bleu, words
from vrae.evaluation.diversity import Distinct, distinct
from vrae.evaluation.vectors import RANDOM_DEVIATION, Oov, WordVectors, greedy, similarity

Protocol = Literal["legacy", "modern", "standard"]
END_MARK = "</s>"  # a token of its own: `words` never finds it in a text
_F1_EPSILON = 1e-11  # DialogWAE's; F1 is 0 where precision and recall are

_BLEU_OF = {
    "legacy": "BLEU-3 as NLTK <= 3.4.5 has it (method7, not bounded by 1)",
    "modern": "BLEU-3 as NLTK >= 3.6 has it (method7, not bounded by 1)",
    "standard": "sacreBLEU by sentence",
}


class Replies(NamedTuple):
    """What was really said in one context, once or more, and what the model says. Texts without end mark."""

    references: Sequence[str]
    hypotheses: Sequence[str]


@dataclass(frozen=True)
class EmbeddingScores:
    """Cosines by word vectors: of a reference and the best of its context's hypotheses, each by its own measure.

    Mean over the references of a context, then over contexts. A hypothesis without vectors counts 0, and so does a context
    without hypotheses. A reference without vectors is left out.
    """

    average: float
    extrema: float
    greedy: float  # of words alone
    greedy_end_mark: float  # the end mark is one more word of both, as in DialogWAE; where it has no vector, as `greedy`
    oov: Oov
    seed: int  # of the random vectors
    contexts: int  # that have a reference with vectors
    coverage: float  # the share of running words, of references and hypotheses, that have a vector


@dataclass(frozen=True)
class DialogueScores:
    """Means over contexts, unless the name says otherwise."""

    protocol: Protocol
    end_mark: bool  # counted as a word by BLEU
    decoding: str
    contexts: int
    references: tuple[int, int]  # of a context: fewest and most
    samples: tuple[int, int]  # hypotheses of a context: fewest and most
    signature: str | None  # sacreBLEU's, in `standard`
    bleu_recall: float
    bleu_precision: float
    bleu_f1: float  # of the two means
    distinct_1: Distinct
    distinct_2: Distinct
    words_per_reply: float  # mean over hypotheses, without end mark
    embedding: EmbeddingScores | None

    @property
    def statement(self) -> str:
        """The protocol in one line, to be printed beside the figures."""
        bleu = f"{_BLEU_OF[self.protocol]}, "
        bleu += self.signature or f"lower-cased words, end mark {'counted' if self.end_mark else 'not counted'}"
        parts = [
            f"{self.protocol}: {bleu}",
            f"contexts: {self.contexts}",
            f"samples per context: {_span(self.samples)}",
            f"references per context: {_span(self.references)}",
            f"decoding: {self.decoding}",
        ]
        if self.embedding:
            random = f"drawn from N(0, {RANDOM_DEVIATION}^2) with seed {self.embedding.seed}"
            fate = random if self.embedding.oov == "random" else "left out"
            share = f"{100 * (1 - self.embedding.coverage):.1f}%"
            parts.append(
                f"embeddings: best sample of each reference, words without vector ({share}) {fate}, "
                f"contexts with vectors: {self.embedding.contexts}"
            )
        return "; ".join(parts)


def needed_words(replies: Iterable[Replies]) -> set[str]:
    """The words whose vectors `score_replies` asks for."""
    return {END_MARK}.union(*(words(text) for context in replies for texts in context for text in texts))


def score_replies(
    replies: Sequence[Replies],
    protocol: Protocol,
    *,
    decoding: str,
    end_mark: bool | None = None,
    vectors: WordVectors | None = None,
    oov: Oov | None = None,
) -> DialogueScores:
    """Scores the replies to each context under a named protocol.

    With the BLEU b_rh of reference r and hypothesis h, recall is mean_r max_h b_rh and precision mean_h max_r b_rh (Zhao et
    al. 2017); with one reference, max_h and mean_h. A context without hypotheses counts 0 for both.

    Args:
        replies: one of each context. Their numbers of references and hypotheses may differ.
        protocol: `legacy` and `modern` are BLEU-3 of lower-cased words (`method7_bleu`), `standard` is sacreBLEU of the texts
            as they are. All else is of lower-cased words in all three.
        decoding: how the hypotheses were drawn, in words; it is part of the statement.
        end_mark: whether the end mark is a word for BLEU. Default: in `legacy`, as in DialogWAE.
        vectors: of `needed_words`, for the embedding scores.
        oov: words without vector are left out (`drop`) or given a random one (`random`). Default: random in `legacy`, as in
            DialogWAE, else drop.

    Raises:
        UserError: there is no context, one has no reference, or none a hypothesis; an end mark is asked of sacreBLEU;
            sacreBLEU is not installed; no reference has a word with a vector.
    """
    if protocol not in get_args(Protocol):
        raise UserError(f"protocol must be one of {', '.join(get_args(Protocol))}. Got {protocol!r:.40}")
    if oov not in (None, *get_args(Oov)):
        raise UserError(f"oov must be one of {', '.join(get_args(Oov))}. Got {oov!r:.40}")
    if not replies:
        raise UserError("no context to score replies to")
    for place, context in enumerate(replies):
        assert not any(isinstance(texts, str) for texts in context), "references and hypotheses are lists of texts"
        if not context.references:
            raise UserError(f"context {place} has no reference. Leave it out, or give at least one")
    if not any(context.hypotheses for context in replies):
        raise UserError("no context has a reply to score")
    end_mark = protocol == "legacy" if end_mark is None else end_mark
    oov = oov or ("random" if protocol == "legacy" else "drop")
    if end_mark and protocol == "standard":
        raise UserError("protocol standard counts no end mark: sacreBLEU reads whole texts. Use legacy or modern for that")

    scores, signature = _bleu(replies, protocol, end_mark)
    recall, precision = _mean(_recall(b) for b in scores), _mean(_recall(b.T) for b in scores)
    spoken = [[words(text) for text in context.hypotheses] for context in replies]
    references, samples = ([len(texts) for texts in side] for side in zip(*replies, strict=True))
    return DialogueScores(
        protocol=protocol,
        end_mark=end_mark,
        decoding=decoding,
        contexts=len(replies),
        references=(min(references), max(references)),
        samples=(min(samples), max(samples)),
        signature=signature,
        bleu_recall=recall,
        bleu_precision=precision,
        bleu_f1=2 * precision * recall / (precision + recall + _F1_EPSILON),
        distinct_1=distinct(spoken, 1),
        distinct_2=distinct(spoken, 2),
        words_per_reply=_mean(len(text) for context in spoken for text in context),
        embedding=_embedding(replies, vectors, oov) if vectors else None,
    )


def _bleu(replies: Sequence[Replies], protocol: Protocol, end_mark: bool) -> tuple[list[np.ndarray], str | None]:
    """BLEU of each context's pairs, [R, H], and sacreBLEU's signature."""
    pairs = [pair for context in replies for pair in itertools.product(*context)]
    signature = None
    if protocol == "standard":
        scores, signature = sacre_sentence_bleu(*zip(*pairs, strict=True))
    else:
        end = [END_MARK] * end_mark
        scores = [method7_bleu(words(reference) + end, words(hypothesis) + end, protocol) for reference, hypothesis in pairs]
    rest = iter(scores)
    shapes = [(len(context.references), len(context.hypotheses)) for context in replies]
    return [np.array(list(itertools.islice(rest, R * H))).reshape(R, H) for R, H in shapes], signature


def _recall(scores_RH: np.ndarray) -> float:
    """The best score of each reference, mean over references; of the transpose it is the precision."""
    return float(scores_RH.max(1).mean()) if scores_RH.size else 0.0


def _embedding(replies: Sequence[Replies], vectors: WordVectors, oov: Oov) -> EmbeddingScores:
    end_1E = vectors.rows([END_MARK], oov)
    scored: list[np.ndarray] = []
    running = known = 0
    for context in replies:
        spoken = [[words(text) for text in texts] for texts in context]
        for text in itertools.chain(*spoken):
            running += len(text)
            known += sum(word in vectors for word in text)
        references, hypotheses = ([vectors.rows(text, oov) for text in texts] for texts in spoken)
        best = [_best(reference, hypotheses, end_1E) for reference in references if len(reference)]
        if best:
            scored.append(np.mean(best, axis=0))
    if not scored:
        raise UserError("no reference has a word with a vector: nothing to compare replies with. Pass vectors of this language")
    average, extrema, greedy_words, greedy_end_mark = np.mean(scored, axis=0).tolist()
    coverage = known / running
    return EmbeddingScores(average, extrema, greedy_words, greedy_end_mark, oov, vectors.seed, len(scored), coverage)


def _best(reference_RE: np.ndarray, hypotheses: Sequence[np.ndarray], end_1E: np.ndarray) -> np.ndarray:
    """The highest average, extrema, greedy, and greedy with end marks that a hypothesis has, [4]."""
    marked = np.concatenate([reference_RE, end_1E])
    scores = [
        (*similarity(reference_RE, hypothesis_HE), greedy(marked, np.concatenate([hypothesis_HE, end_1E])))
        for hypothesis_HE in hypotheses
    ]
    return np.max(scores, axis=0) if scores else np.zeros(4)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _span(ends: tuple[int, int]) -> str:
    least, most = ends
    return str(most) if least == most else f"{least} to {most}"
