"""DailyDialog as the tables of 2018 and 2019 have it: which turns are predicted from what, and what ten replies to each score.

Words are lower-cased runs of letters and digits, and runs of other marks (NLTK's WordPunctTokenizer). A turn keeps its first
38: the papers' limit of 40 includes the two marks around it. Of a dialogue each turn is predicted but the last one, from the
nine before it at most, the first one from nothing: in the papers' programs a mark stands in its context, and the loop ends
one turn early.

The papers knew the 10,000 most frequent words of the training dialogues and wrote `<unk>` for others, 1.2 of 100 words of the
test, where it matched itself. Here every word stands as it is, in replies and references.

Many of the test's turns stand after the same turn in the training dialogues too, and some of its dialogues are there word for
word. So every figure is also given for the turns of which that is not so, `unseen`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from vrae.config import SPLITS, CleaningConfig
from vrae.corpus.cleaning import Cleaner
from vrae.corpus.sources import read_dialogues
from vrae.evaluation.bleu import words
from vrae.evaluation.dialogue import Protocol, Replies, score_replies
from vrae.files import to_json, write_file

MOST_WORDS = 38  # of a turn
CONTEXT_TURNS = 9
REPLIES = 10  # to each context
INTER_1, INTER_2 = 0.33, 0.60  # just above the highest of each in the published table
AS_IT_IS = CleaningConfig(mask_personal=False, max_repeats=0, drop_duplicates=False)
Turn = tuple[str, ...]  # its words
Dialogue = list[Turn]


@dataclass(frozen=True)
class Context:
    """A turn to be predicted, and what stands before it, oldest first."""

    turns: tuple[Turn, ...]
    reply: Turn
    seen: bool  # in the training dialogues the same reply follows the same turn, or begins a dialogue as here


def read_corpus(folder: Path) -> dict[str, list[Dialogue]]:
    """The dialogues of train.txt, validation.txt and test.txt. Curly quotes are made straight, as in every corpus of vrae."""
    clean = Cleaner(AS_IT_IS).text
    return {
        split: [
            [tuple(words(clean(turn))[:MOST_WORDS]) for turn in dialogue.turns]
            for dialogue in read_dialogues(str(folder / f"{split}.txt"))
        ]
        for split in SPLITS
    }


def contexts_of(dialogues: Sequence[Dialogue], training: Sequence[Dialogue]) -> list[Context]:
    """Every turn but the last of each dialogue, with at most nine turns before it."""
    nothing: Turn = ()
    known = {pair for dialogue in training for pair in pairwise([nothing, *dialogue])}
    return [
        Context(tuple(dialogue[max(i - CONTEXT_TURNS, 0) : i]), reply, (dialogue[i - 1] if i else nothing, reply) in known)
        for dialogue in dialogues
        for i, reply in enumerate(dialogue[:-1])
    ]


def even_sample(contexts: Sequence[Context], count: int) -> list[Context]:
    """`count` of them at even spacing, or all."""
    count = min(count, len(contexts))
    return [contexts[i * len(contexts) // count] for i in range(count)]


def text(turn: Turn) -> str:
    return " ".join(turn)


def score(
    contexts: Sequence[Context],
    replies: Sequence[Sequence[str]],
    decoding: str,
    protocols: Sequence[Protocol] = ("legacy", "standard"),
) -> dict[str, Any]:
    """The figures of the replies to each context as JSON values; of no unseen context, those of `unseen` are missing."""
    found = _scores(contexts, replies, decoding, protocols)
    unseen = [i for i, context in enumerate(contexts) if not context.seen]
    if unseen:
        found["unseen"] = _scores([contexts[i] for i in unseen], [replies[i] for i in unseen], decoding, protocols)
    return found


def _scores(
    contexts: Sequence[Context], replies: Sequence[Sequence[str]], decoding: str, protocols: Sequence[Protocol]
) -> dict[str, Any]:
    pairs = [Replies([text(context.reply)], some) for context, some in zip(contexts, replies, strict=True)]
    scores = {protocol: score_replies(pairs, protocol, decoding=decoding) for protocol in protocols}
    one = scores[protocols[0]]  # all but BLEU is the same in each
    return {
        "contexts": len(pairs),
        "reference_words": sum(len(context.reply) for context in contexts) / len(contexts),
        "bleu": {
            name: {"precision": s.bleu_precision, "recall": s.bleu_recall, "f1": s.bleu_f1, "statement": s.statement}
            for name, s in scores.items()
        },
        "inter_1": one.distinct_1.inter,
        "inter_2": one.distinct_2.inter,
        "intra_1": one.distinct_1.intra,
        "intra_2": one.distinct_2.intra,
        "corpus_1": one.distinct_1.corpus,
        "corpus_2": one.distinct_2.corpus,
        "words": one.words_per_reply,
    }


@dataclass(frozen=True)
class Records:
    """What has been found, a JSON file each, so that nothing is found twice."""

    folder: Path

    def get(self, name: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The record `name`; where there is none, what `find` gives, stored at once."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, to_json(find()))
        record: dict[str, Any] = json.loads(path.read_bytes())
        return record

    def all(self, kind: str) -> list[dict[str, Any]]:
        """The records in the folder `kind`, in the order of their names."""
        return [json.loads(path.read_bytes()) for path in sorted((self.folder / kind).glob("*.json"))]


def choose(validation: Sequence[dict[str, Any]], system: str) -> str:
    """The setting of a system with the highest F1 of those varied enough, all means over seeds; if none is, the most varied."""
    by_setting: dict[str, list[tuple[float, float, float]]] = {}
    for record in validation:
        if record["system"] == system:
            figures = (record["inter_1"], record["inter_2"], record["bleu"]["legacy"]["f1"])
            by_setting.setdefault(record["setting"], []).append(figures)
    means = {setting: [fmean(values) for values in zip(*some, strict=True)] for setting, some in by_setting.items()}
    varied = [setting for setting, (inter_1, inter_2, _) in means.items() if inter_1 >= INTER_1 and inter_2 >= INTER_2]
    if varied:
        return max(varied, key=lambda setting: means[setting][2])
    return max(means, key=lambda setting: means[setting][1])
