"""Words put together are the ids of whole turns; processes neither change the order nor hide an error."""

from __future__ import annotations

import json
import multiprocessing
import random

import pytest
from conftest import VOCAB, WORDS

from vrae.corpus import encoding
from vrae.corpus.encoding import Encoder, encoders
from vrae.corpus.prepared import Corpus
from vrae.corpus.tokenizer import MASKS, Tokenizer, train_tokenizer


@pytest.mark.parametrize("kept", [0, 3, 1000])
def test_turns_put_together_of_their_words_have_the_ids_of_the_whole_turns(
    dialogues: list[list[str]], kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words that were met and not, before and after the table is emptied; masks, and characters that end or begin pieces."""
    monkeypatch.setattr(encoding, "_MAX_WORDS", kept)
    tokenizer = Tokenizer(train_tokenizer([turn for turns in dialogues for turn in turns], VOCAB))
    parts = [*WORDS, *MASKS, "<email>,", "(<url>)", "a<user>b<phone>", "</s>", "<0x41>", "<", "email>", "i'm", "...", "x" * 99]
    parts += ["\U0001f469\u200d\U0001f4bb", "e\u0301", "\u4f60\u597d", "\u00e9t\u00e9"]
    signs = ["\u2581", "a\u2581b", "\u2581\u2581", "\u2581a"]  # SentencePiece's own for a space
    draw = random.Random(0)
    encoder = Encoder(tokenizer, by_word=True)
    for _ in range(40):
        these = parts + signs if draw.random() < 0.3 else parts
        turns = [" ".join(draw.choices(these, k=draw.randint(1, 9))) for _ in range(draw.randint(1, 20))]
        ids, lengths = encoder(turns)
        whole, whole_lengths = Encoder(tokenizer, by_word=False)(turns)
        assert ids.tolist() == whole.tolist() == [token for turn in tokenizer.encode(turns) for token in turn]
        assert lengths.tolist() == whole_lengths.tolist() == [len(turn) for turn in tokenizer.encode(turns)]


def test_the_table_of_words_does_not_grow_without_end(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_MAX_WORDS", 10)
    encoder = Encoder(corpus.tokenizer, by_word=True)
    sizes = []
    for number in range(50):
        encoder([f"word{number}"])
        sizes.append(len(encoder._words))
    assert max(sizes) == 11


@pytest.mark.parametrize("count", [0, 1, 2, 3, 8])
def test_processes_keep_the_order_of_the_chunks(corpus: Corpus, count: int) -> None:
    """Of very different lengths, so that later ones are ready first."""
    sizes = [1 if i % 3 else 500 for i in range(count)]
    chunks = [[json.dumps([[f"see you in {i} days"] * size, [i] * size])] for i, size in enumerate(sizes)]
    with encoders(corpus.tokenizer, 2, by_word=False) as encode:
        found = list(encode(iter(chunks)))
    assert not multiprocessing.active_children()
    assert len(found) == count
    for i, (ids, lengths, turns, speakers) in enumerate(found):
        assert ids.tolist() == corpus.tokenizer.encode([f"see you in {i} days"])[0] * sizes[i]
        assert len(lengths) == turns == sizes[i]
        assert set(speakers) == {i}


def test_an_error_in_a_process_is_raised_here_and_ends_all(corpus: Corpus) -> None:
    with pytest.raises(json.JSONDecodeError), encoders(corpus.tokenizer, 2, by_word=True) as encode:
        list(encode([["[[], []]"], ["no JSON"], ["[[], []]"]]))
    assert not multiprocessing.active_children()
