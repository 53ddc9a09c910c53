"""Replies to DailyDialog without a model: what its metric gives to those who do not read the context, or copy.

`random`: turns of the training dialogues, drawn evenly for each context; `random-1-9` and the like: those of so many words
alone. `random-longest-3`: the longest ten of 30 turns so drawn, as where a model's setting keeps the longest of 3.
`true-length`: turns as long as the true reply, which nobody knows beforehand. `frequent`: the most frequent training turn, ten
times. `constant`: ten times the training turn that scores best on a sample of the validation. `common-words`: ten times the 38
most frequent words of the training dialogues in the order of their frequency. `fixed`: ten training turns, the same in every
context, chosen one by one for the highest F1 on that sample. `nearest`: the turns that follow in the training dialogues
after the ten contexts most like this one.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from dailydialog_protocol import MOST_WORDS, REPLIES, Context, Dialogue, Turn, contexts_of, even_sample, text
from torch import Tensor

from vrae.evaluation.bleu import method7_bleu, words
from vrae.evaluation.dialogue import END_MARK

BANDS = ((1, 9), (10, 19), (20, 29), (30, MOST_WORDS))  # words of a turn
_LOOKED_AT = 600  # training turns that a fixed reply is chosen from
_REFERENCES = 400  # validation turns that it is chosen by
_READ = 2  # the last turns of a context, that likeness is judged by
_ROWS = 64


@dataclass(frozen=True)
class Material:
    """What a baseline may read: the training dialogues, and the contexts of the validation with their replies."""

    training: Sequence[Dialogue]
    validation: Sequence[Context]

    @cached_property
    def turns(self) -> list[Turn]:
        return [turn for dialogue in self.training for turn in dialogue if turn]

    @cached_property
    def by_length(self) -> dict[int, list[Turn]]:
        found: dict[int, list[Turn]] = {}
        for turn in self.turns:
            found.setdefault(len(turn), []).append(turn)
        return found

    def of_length(self, size: int) -> list[Turn]:
        """The training turns of so many words; where there are none, of the nearest number."""
        return self.by_length[min(self.by_length, key=lambda length: (abs(length - size), length))]

    @cached_property
    def candidates(self) -> list[Turn]:
        """Different training turns of all lengths, the same number of each as far as there are so many."""
        draw, each = random.Random(0), math.ceil(_LOOKED_AT / len(self.by_length))
        different = (sorted(set(some)) for _, some in sorted(self.by_length.items()))
        return [turn for some in different for turn in draw.sample(some, min(each, len(some)))]

    @cached_property
    def scores_RH(self) -> np.ndarray:
        """Legacy BLEU of each candidate, the replies of an even sample of the validation being the references."""
        references = [(*context.reply, END_MARK) for context in even_sample(self.validation, _REFERENCES)]
        return np.array([[method7_bleu(r, (*c, END_MARK), "legacy") for c in self.candidates] for r in references])


Draw = Callable[[Material, Sequence[Context], int], list[list[str]]]  # with a seed: the replies to each context


def drawn(least: int, most: int) -> Draw:
    """Training turns of so many words."""

    def draw(material: Material, contexts: Sequence[Context], seed: int) -> list[list[str]]:
        fit, rng = [text(turn) for turn in material.turns if least <= len(turn) <= most], random.Random(seed)
        return [rng.sample(fit, REPLIES) for _ in contexts]

    return draw


def longest_drawn(candidates: int) -> Draw:
    """Of so many training turns for each reply, the longest."""

    def draw(material: Material, contexts: Sequence[Context], seed: int) -> list[list[str]]:
        rng = random.Random(seed)
        many = (rng.sample(material.turns, min(REPLIES * candidates, len(material.turns))) for _ in contexts)
        return [[text(turn) for turn in longest(some, REPLIES)] for some in many]

    return draw


def true_length(material: Material, contexts: Sequence[Context], seed: int) -> list[list[str]]:
    rng = random.Random(seed)
    return [[text(turn) for turn in rng.choices(material.of_length(len(c.reply)), k=REPLIES)] for c in contexts]


def frequent(material: Material, contexts: Sequence[Context], seed: int) -> list[list[str]]:
    return _everywhere([Counter(material.turns).most_common(1)[0][0]] * REPLIES, contexts)


def common_words(material: Material, contexts: Sequence[Context], seed: int) -> list[list[str]]:
    found = Counter(word for turn in material.turns for word in turn).most_common(MOST_WORDS)
    return _everywhere([tuple(word for word, _ in found)] * REPLIES, contexts)


def constant(material: Material, contexts: Sequence[Context], seed: int) -> list[list[str]]:
    best = int(material.scores_RH.mean(0).argmax())
    return _everywhere([material.candidates[best]] * REPLIES, contexts)


def fixed(material: Material, contexts: Sequence[Context], seed: int) -> list[list[str]]:
    return _everywhere([material.candidates[place] for place in greedy_set(material.scores_RH, REPLIES)], contexts)


def nearest(material: Material, contexts: Sequence[Context], seed: int) -> list[list[str]]:
    """By the cosine of tf-idf vectors of the last two turns; without a context: openings of training dialogues, drawn."""
    rng = random.Random(seed)
    openings = [text(dialogue[0]) for dialogue in material.training if dialogue]
    known = [context for context in contexts_of(material.training, ()) if context.turns]
    columns = {word: place for place, word in enumerate({word: None for turn in material.turns for word in turn})}
    seen_in = Counter(word for context in known for word in _words(context))
    weight_V = torch.tensor([math.log(len(known) / seen_in[word]) if seen_in[word] else 0.0 for word in columns])
    known_NV = _vectors(known, columns, weight_V)
    asking = [context for context in contexts if context.turns]
    best: list[list[str]] = []
    for start in range(0, len(asking), _ROWS):
        asked_BV = _vectors(asking[start : start + _ROWS], columns, weight_V).to_dense()
        found_BJ = torch.sparse.mm(known_NV, asked_BV.T).T.topk(min(REPLIES, len(known))).indices
        best += [[text(known[place].reply) for place in row] for row in found_BJ.tolist()]
    replies = iter(best)
    return [next(replies) if context.turns else rng.sample(openings, min(REPLIES, len(openings))) for context in contexts]


def longest(replies: Sequence[Turn], count: int) -> list[Turn]:
    """The `count` that have most words, those that stand before others as long."""
    return sorted(replies, key=lambda reply: -len(reply))[:count]


def same_lengths(material: Material, replies: Sequence[Sequence[str]], seed: int) -> list[list[str]]:
    """A random training turn of as many words in the place of each reply; among those to a context, the same for the same.

    What a metric gives to these it gives to the lengths alone.
    """
    rng, found = random.Random(seed), []
    for some in replies:
        instead = {reply: text(rng.choice(material.of_length(len(words(reply))))) for reply in dict.fromkeys(some)}
        found.append([instead[reply] for reply in some])
    return found


def greedy_set(scores_RH: np.ndarray, count: int) -> list[int]:
    """`count` different columns, each of which raises F1 most beside those before it: of mean (precision) and best (recall)."""
    chosen: list[int] = []
    best_R, total = np.zeros(len(scores_RH)), 0.0
    for _ in range(count):
        recall_H = np.maximum(best_R[:, None], scores_RH).mean(0)
        precision_H = (total + scores_RH.mean(0)) / (len(chosen) + 1)
        f1_H = 2 * precision_H * recall_H / (precision_H + recall_H)
        f1_H[chosen] = -np.inf
        chosen.append(int(f1_H.argmax()))
        best_R, total = np.maximum(best_R, scores_RH[:, chosen[-1]]), total + float(scores_RH[:, chosen[-1]].mean())
    return chosen


def _everywhere(turns: Sequence[Turn], contexts: Sequence[Context]) -> list[list[str]]:
    return [[text(turn) for turn in turns] for _ in contexts]


def _words(context: Context) -> set[str]:
    return {word for turn in context.turns[-_READ:] for word in turn}


def _vectors(contexts: Sequence[Context], columns: dict[str, int], weight_V: Tensor) -> Tensor:
    """Unit rows of the words' weights, sparse; a word that is not among the columns has none."""
    places, values = [], []
    for row, context in enumerate(contexts):
        own = sorted(columns[word] for word in _words(context) if word in columns)
        weights = weight_V[own]
        places += [(row, column) for column in own]
        values += (weights / weights.norm().clamp(min=1e-9)).tolist()
    indices = torch.tensor(places).reshape(-1, 2).T
    return torch.sparse_coo_tensor(
        indices, torch.tensor(values), (len(contexts), len(columns)), check_invariants=True
    ).coalesce()


BASELINES: dict[str, Draw] = {
    "random": drawn(1, MOST_WORDS),
    **{f"random-{least}-{most}": drawn(least, most) for least, most in BANDS},
    **{f"random-longest-{candidates}": longest_drawn(candidates) for candidates in (2, 3)},
    "true-length": true_length,
    "frequent": frequent,
    "constant": constant,
    "common-words": common_words,
    "fixed": fixed,
    "nearest": nearest,
}
ONE_SEED = {"frequent", "constant", "common-words", "fixed"}  # in which nothing is drawn
