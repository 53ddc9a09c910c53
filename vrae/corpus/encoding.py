"""Cleaned dialogues to arrays of token ids, in one process or several.

Both the arrays' types and the order of the dialogues are the same whatever the number of processes.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, cycle
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np

from vrae.corpus.tokenizer import Tokenizer
from vrae.errors import LostProcessError

ARRAYS: dict[str, np.dtype[Any]] = {
    "tokens": np.dtype("<u2"),
    "turns": np.dtype("<i8"),
    "dialogues": np.dtype("<i8"),
    "speakers": np.dtype("u1"),
}
_SPACE = "\u2581"  # SentencePiece's sign
_MAX_WORDS = 200_000  # whose ids are kept: about 40 MB

Encoded = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # ids, tokens per turn, turns per dialogue, speaker per turn


class Encoder:
    """Turns to ids.

    By word each word is encoded when it is first met, and a turn is put together of its words, which takes a fifth of the
    time. No piece of a tokenizer that `train_tokenizer` made reaches into the next word, so the ids are the same; only where
    the text itself has SentencePiece's sign for a space is more to it.

    Args:
        tokenizer: that encodes.
        by_word: for cleaned turns, whose words stand one space apart, and a tokenizer of `train_tokenizer`'s.
    """

    def __init__(self, tokenizer: Tokenizer, by_word: bool) -> None:
        self._tokenizer, self._by_word = tokenizer, by_word
        self._words: dict[str, bytes] = {}

    def __call__(self, turns: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all turns one after the other, and how many of them each turn has."""
        text = " ".join(turns)
        if not self._by_word or _SPACE in text:
            ids = self._tokenizer.encode(turns)
            return np.fromiter(chain.from_iterable(ids), ARRAYS["tokens"]), np.fromiter(map(len, ids), np.int64, len(ids))
        words = text.split(" ")
        if len(self._words) > _MAX_WORDS:
            self._words.clear()
        if new := list({*words}.difference(self._words)):
            self._words.update(
                (word, np.array(ids, ARRAYS["tokens"]).tobytes())
                for word, ids in zip(new, self._tokenizer.encode(new), strict=True)
            )
        ids_of_words = list(map(self._words.__getitem__, words))
        ends = np.cumsum(np.fromiter(map(len, ids_of_words), np.int64, len(words))) // ARRAYS["tokens"].itemsize
        last_words = np.cumsum([turn.count(" ") + 1 for turn in turns], dtype=np.int64) - 1
        return np.frombuffer(b"".join(ids_of_words), ARRAYS["tokens"]), np.diff(ends[last_words], prepend=0)


def _encode(encoder: Encoder, lines: list[str]) -> Encoded:
    """JSON lines of turns and speakers as (token ids, tokens per turn, turns per dialogue, speaker per turn)."""
    dialogues: list[tuple[list[str], list[int]]] = [json.loads(line) for line in lines]
    ids, lengths = encoder([turn for turns, _ in dialogues for turn in turns])
    sizes = np.array([len(turns) for turns, _ in dialogues], ARRAYS["dialogues"])
    speakers = np.fromiter(chain.from_iterable(speakers for _, speakers in dialogues), np.int64, len(lengths))
    return ids, lengths, sizes, speakers.astype(ARRAYS["speakers"])  # modulo 256


_Encode = Callable[[Iterable[list[str]]], Iterator[Encoded]]


@contextlib.contextmanager
def encoders(tokenizer: Tokenizer, num_proc: int, *, by_word: bool) -> Iterator[_Encode]:
    """Yields what encodes chunks in order, in this process or in several.

    Each process has a pipe of its own and one chunk at a time. So none waits for a lock that a killed one held, as in the pools
    of the standard library, and nothing has to be asked to end.
    """
    if num_proc == 1:
        encoder = Encoder(tokenizer, by_word)
        yield lambda chunks: (_encode(encoder, chunk) for chunk in chunks)
        return
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # which would unblock the signals below
    workers: list[tuple[SpawnProcess, Connection]] = []
    # Processes inherit that signals are blocked: Ctrl-C in a terminal goes to all of them, and the one that started them acts.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        for _ in range(num_proc):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, tokenizer.model, by_word))
            process.start()
            workers.append((process, ours))
            theirs.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield lambda chunks: _encode_in([pipe for _, pipe in workers], chunks)
    finally:
        for process, pipe in workers:
            pipe.close()
            process.kill()
            process.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _encode_in(pipes: list[Connection], chunks: Iterable[list[str]]) -> Iterator[Encoded]:
    busy: deque[Connection] = deque()
    try:
        for chunk, pipe in zip(chunks, cycle(pipes), strict=False):
            done = [_receive(busy.popleft())] if len(busy) == len(pipes) else []
            pipe.send(chunk)
            busy.append(pipe)
            yield from done
        yield from map(_receive, busy)
    except (EOFError, ConnectionError):
        problem = "a process that encodes text was killed, perhaps for lack of memory. Lower it, or leave it out"
        raise LostProcessError(f"--num_proc {len(pipes)}: {problem}") from None


def _receive(pipe: Connection) -> Encoded:
    result: Encoded | Exception = pipe.recv()
    if isinstance(result, Exception):
        raise result
    return result


def _work(pipe: Connection, model: bytes, by_word: bool) -> None:
    """A process that encodes chunks until there are no more."""
    encoder = Encoder(Tokenizer(model), by_word)
    with contextlib.suppress(EOFError, ConnectionError):  # the other end is closed
        while True:
            chunk = pipe.recv()
            try:
                pipe.send(_encode(encoder, chunk))
            except (MemoryError, ValueError) as error:
                pipe.send(error)
