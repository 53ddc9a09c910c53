"""Word vectors from a text file, and how near two texts are by them: average, extrema, greedy matching.

Shape legend: E vector size, W words, R words of the reference, H words of the hypothesis.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from vrae.corpus.readers import MAX_LINE_BYTES, open_file, problem
from vrae.errors import DataError

Oov = Literal["drop", "random"]  # what becomes of a word without vector: left out, or given a random one
_LARGEST = float(np.finfo(np.float32).max)
RANDOM_DEVIATION = 0.1  # standard deviation of each number of a random vector, as in DialogWAE (Gu et al. 2019)


class WordVectors:
    """The vectors of some words.

    Args:
        vectors: word -> [E]. At least one, all of one size.
        seed: of the random vectors. With one seed, a word always gets the same.
    """

    def __init__(self, vectors: Mapping[str, np.ndarray], seed: int = 0) -> None:
        self._vectors, self.seed = vectors, seed
        self.size = len(next(iter(vectors.values())))
        self._random: dict[str, np.ndarray] = {}

    @classmethod
    def read(cls, path: str | Path, words: Collection[str], seed: int = 0) -> WordVectors:
        """The vectors of `words` in a file of GloVe's or word2vec's text format: a word and its numbers a line, in UTF-8.

        A first line of two whole numbers is word2vec's: how many words, and how many numbers each has. The file is streamed;
        every line must have as many numbers, but only those of `words` are read and kept. Of a word that stands there twice,
        the first counts. Letter case matters.

        Raises:
            DataError: a line (named `file:line`) has too few or too many numbers, or something else in their place; or the
                file cannot be read, is cut off, or has none of the words.
        """
        path = Path(path)
        wanted = {word.encode("utf-8", "surrogatepass"): word for word in words}
        found: dict[bytes, np.ndarray] = {}
        size = number = 0
        announced: int | None = None
        with open_file(path) as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), 1):
                line = line.rstrip()
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                    if header := re.fullmatch(rb"(\d{1,15})\s+([1-9]\d{0,8})", line):
                        announced, size = int(header[1]), int(header[2])
                        continue
                    size = len(line.split()) - 1
                word, numbers = _split(line, size, f"{path}:{number}")
                if word not in found and (word in wanted or number <= 2):
                    found[word] = _vector(numbers, size, f"{path}:{number}")
        vectors = {wanted[word]: vector_E for word, vector_E in found.items() if word in wanted}
        if not number:
            raise problem(str(path), "word vectors", "an empty file", "pass a text file of GloVe or word2vec format")
        if announced is not None and announced != number - 1:
            raise DataError(f"{path}: the first line announces {announced} words. Got {number - 1}; was the file cut off?")
        if not vectors:
            raise DataError(f"{path}: has none of the {len(wanted)} words. Is it of their language, in lower case?")
        return cls(vectors, seed)

    def __contains__(self, word: str) -> bool:
        return word in self._vectors

    def rows(self, words: Sequence[str], oov: Oov) -> np.ndarray:
        """The vectors of `words` in order, [W, E] float64. `drop` leaves out those without one, so that W may be less."""
        if oov == "drop":
            rows = [self._vectors[word] for word in words if word in self._vectors]
        else:
            rows = [self._vectors[word] if word in self._vectors else self._draw(word) for word in words]
        return np.array(rows, np.float64).reshape(-1, self.size)

    def _draw(self, word: str) -> np.ndarray:
        if word not in self._random:
            rng = np.random.default_rng([self.seed, *word.encode("utf-8", "surrogatepass")])
            self._random[word] = rng.normal(0.0, RANDOM_DEVIATION, self.size)
        return self._random[word]


def _split(line: bytes, size: int, where: str) -> tuple[bytes, bytes]:
    """The word of a line, and its numbers. GloVe has words with spaces in them."""
    if size > 0 and line.count(b" ") == size:  # nearly every line
        word, _, numbers = line.partition(b" ")
        return word, numbers
    fields = line.split()
    extra = len(fields) - size - 1
    if size < 1 or extra < 0 or (extra and _is_number(fields[extra])):
        expected = f"a word and {size} numbers, as on the lines above" if size > 0 else "a word and its numbers"
        got = f"{len(fields)} field{'s' * (len(fields) > 1)}" if fields else "an empty line"
        raise problem(where, expected, got, "pass a text file of GloVe or word2vec format; was it cut off?")
    return b" ".join(fields[: extra + 1]), b" ".join(fields[extra + 1 :])


def _vector(numbers: bytes, size: int, where: str) -> np.ndarray:
    fields = numbers.split()
    if len(fields) != size:  # other white space than the spaces that `_split` has counted
        raise problem(where, f"{size} numbers, as on the lines above", str(len(fields)), "put one space between numbers")
    for field in fields:
        if not _is_number(field):
            raise problem(where, "a number", repr(field.decode("utf-8", "replace"))[:40], "pass a file in text format")
    return np.array([float(field) for field in fields], np.float32)


def _is_number(field: bytes) -> bool:
    try:
        return abs(float(field)) <= _LARGEST
    except ValueError:
        return False


class Similarity(NamedTuple):
    """Cosines, from -1 to 1."""

    average: float
    extrema: float
    greedy: float


def similarity(reference_RE: np.ndarray, hypothesis_HE: np.ndarray) -> Similarity:
    """How near two texts are by the vectors of their words (Liu et al. 2016); 0 where one of them has no vector.

    Average and extrema are the cosine of two vectors: means over words, or in each dimension the number furthest from 0, the
    positive one of two as far. DialogWAE's masked arrays give the same numbers: its padding is never furthest from 0 as long
    as its vector has no number under -1. For `greedy` see there.
    """
    if not len(reference_RE) or not len(hypothesis_HE):
        return Similarity(0.0, 0.0, 0.0)
    average = _cosine(reference_RE.mean(0, keepdims=True), hypothesis_HE.mean(0, keepdims=True))
    extrema = _cosine(_extrema(reference_RE), _extrema(hypothesis_HE))
    return Similarity(float(average[0, 0]), float(extrema[0, 0]), greedy(reference_RE, hypothesis_HE))


def greedy(reference_RE: np.ndarray, hypothesis_HE: np.ndarray) -> float:
    """The mean cosine of each word and the nearest of the other text, averaged over both directions (Rus & Lintean 2012).

    DialogWAE's is this over all positions of its arrays: the end marks, and whatever its decoder went on to write after them.
    """
    if not len(reference_RE) or not len(hypothesis_HE):
        return 0.0
    cosine_RH = _cosine(reference_RE, hypothesis_HE)
    return float(cosine_RH.max(1).mean() + cosine_RH.max(0).mean()) / 2


def _extrema(words_WE: np.ndarray) -> np.ndarray:
    high_1E, low_1E = words_WE.max(0, keepdims=True), words_WE.min(0, keepdims=True)
    extrema_1E: np.ndarray = np.where(high_1E >= -low_1E, high_1E, low_1E)
    return extrema_1E


def _cosine(a_AE: np.ndarray, b_BE: np.ndarray) -> np.ndarray:
    """Of each row of a and each of b, [A, B]; 0 where one is the zero vector."""
    norm_A, norm_B = (np.linalg.norm(x, axis=1) for x in (a_AE, b_BE))
    cosine_AB: np.ndarray = a_AE @ b_BE.T / np.maximum(np.outer(norm_A, norm_B), 1e-300)
    return cosine_AB
