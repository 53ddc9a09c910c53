"""The turns of a corpus that are nearest to a sentence: the distance of posterior means, for up to millions of turns.

    FOLDER/index.json     format, sha256 of the model, what the turns come from
    FOLDER/vectors.npy    float32 [N, Z], the posterior mean of each distinct turn, in the order of first occurrence
    FOLDER/turns.npy      [N] records: where its text ends in texts.txt, how often the turn occurs, where it occurs first
    FOLDER/texts.txt      UTF-8, a turn a line
    FOLDER/manifest.json  size and sha256 of the others

The distance is Euclidean by default. The prior is N(0, I), so all directions share one scale, and for posteriors of equal
variances it is their 2-Wasserstein distance. The cosine leaves out how far from the prior's mean a turn lies, which is how much
the latent says of it: for turns that lie near the middle, the angle is mostly noise.

Shape legend: N distinct turns, Z latent, Q queries.
"""

from __future__ import annotations

import io
import json
import reprlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from tqdm import tqdm

from vrae.config import shown
from vrae.corpus.prepared import Corpus
from vrae.errors import DataError, ModelError, UserError
from vrae.files import check_folder, to_json, write_folder
from vrae.generation.deadline import time_limit
from vrae.generation.text_model import MAX_CHARACTERS, TextModel, in_range, need_numbers
from vrae.generation.vector_search import LARGEST, Measure, VectorSearch, sound

FORMAT = 1
INFO, VECTORS, TURNS, TEXTS = "index.json", "vectors.npy", "turns.npy", "texts.txt"
MAX_NEIGHBOURS = 1000
MAX_PROBES = 2**16

_RECORD = np.dtype([("end", "<i8"), ("count", "<i8"), ("dialogue", "<i8"), ("turn", "<i8")])
_ENCODED = 2**12  # texts that are encoded between two steps of the bar


class Turn(NamedTuple):
    """A turn to be indexed."""

    text: str
    dialogue: int  # where it stands: dialogues of the split, and turns of a dialogue, are counted from 0
    turn: int


@dataclass(frozen=True)
class Neighbour:
    """A turn of the corpus, near to what was asked for."""

    text: str
    distance: float  # Euclidean distance of posterior means, or 1 - their cosine
    count: int  # how often the turn occurs
    dialogue: int  # where it occurs first, counted from 0
    turn: int


class Index:
    """The distinct turns of a corpus with their posterior means, to be searched.

    Made by `build` or `of_corpus`, or read by `load`.

    Args:
        model: the one whose posterior means the vectors are.
        vectors_NZ: float32.
        records_N: `end` (of the text, in bytes), `count`, `dialogue`, `turn`.
        texts: UTF-8 bytes as uint8, every text ended by a newline.
        source: JSON values that say where the turns come from.
        name: where the index comes from, for messages.

    Raises:
        DataError: the arrays are not of such a form, or do not fit together.

    Examples:
        >>> import tempfile, vrae
        >>> from vrae.generation.neighbours import Index
        >>> model, folder = vrae.load("vrae-demo/model"), tempfile.mkdtemp()
        >>> Index.of_corpus(model, vrae.Corpus("vrae-demo/corpus"), "test").save(folder)
        >>> near = Index.load(folder, model).query(["how are you?"], 5)[0]
        >>> len(near), near[0].distance <= near[-1].distance
        (5, True)
    """

    def __init__(
        self,
        model: TextModel,
        vectors_NZ: np.ndarray,
        records_N: np.ndarray,
        texts: np.ndarray,
        source: Mapping[str, Any],
        name: str = "index",
    ) -> None:
        if records_N.dtype != _RECORD or records_N.ndim != 1 or not records_N.size:
            raise DataError(f"{name}: {TURNS} must hold records of {_RECORD.names}. Got {records_N.dtype} {records_N.shape}")
        N, Z = len(records_N), model.model.config.latent_size
        if vectors_NZ.dtype != np.dtype("<f4") or vectors_NZ.shape != (N, Z):
            got = f"{vectors_NZ.dtype} {vectors_NZ.shape}"
            raise DataError(
                f"{name}: {VECTORS} must hold float32 {(N, Z)}, one for each of {TURNS}, of the latent size. Got {got}"
            )
        ends_N = records_N["end"]
        if ends_N[0] < 1 or (ends_N[1:] <= ends_N[:-1]).any() or ends_N[-1] != len(texts):
            raise DataError(f"{name}: the places of texts in {TURNS} do not fit the {len(texts)} bytes of {TEXTS}")
        if not sound(vectors_NZ):
            raise DataError(f"{name}: {VECTORS} holds something else than numbers of at most {LARGEST:g}")
        self.model, self.source = model, dict(source)
        self._search, self._records_N, self._texts = VectorSearch(vectors_NZ), records_N, texts

    @classmethod
    @torch.inference_mode()  # with a flow, means are computed where they are asked for
    def build(
        cls, model: TextModel, turns: Iterable[Turn], source: Mapping[str, Any] | None = None, *, quiet: bool = True
    ) -> Index:
        """Encodes each distinct text once, without context.

        Raises:
            DataError: there is no turn.
            ModelError: the model has no latent.
            UserError: a text is too long for the model's limits.
        """
        model.need_latent()
        places: dict[str, list[int]] = {}
        for turn in turns:
            places.setdefault(turn.text, [0, turn.dialogue, turn.turn])[0] += 1
        if not places:
            raise DataError("there is no turn to build an index of")
        texts = list(places)
        encoded = [text.encode("utf-8", "replace") + b"\n" for text in texts]
        records_N = np.empty(len(texts), _RECORD)
        records_N["end"] = np.cumsum([len(text) for text in encoded])
        for column, values in zip(("count", "dialogue", "turn"), zip(*places.values(), strict=True), strict=True):
            records_N[column] = values
        vectors_NZ = np.empty((len(texts), model.model.config.latent_size), np.float32)
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # a batch is as long as its longest turn
        with tqdm(total=len(texts), desc="encoding", unit=" turns", disable=True if quiet else None) as bar:
            for start in range(0, len(texts), _ENCODED):
                rows = by_length[start : start + _ENCODED]
                posterior = model.infer(model.windows([texts[row] for row in rows])).posterior
                vectors_NZ[rows] = posterior.mean_BZ.float().cpu().numpy()
                bar.update(len(rows))
        return cls(model, vectors_NZ, records_N, np.frombuffer(b"".join(encoded), np.uint8), source or {})

    @classmethod
    def of_corpus(cls, model: TextModel, corpus: Corpus, split: str = "train", *, quiet: bool = True) -> Index:
        """The turns of a split but those longer than any the model was trained on. `source["turns"]` counts them too.

        The corpus may have another tokenizer than the model: what is encoded is text.
        """
        limit = model.longest_turn
        turns = len(corpus[split].speakers)
        source = {"corpus": corpus.fingerprint, "split": split, "turns": turns, "max_turn_tokens": limit}
        return cls.build(model, corpus_turns(corpus, split, limit), source, quiet=quiet)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Writes the index, all or nothing.

        Raises:
            UserError: the folder holds something and `overwrite` is false, or it cannot be written.
        """
        folder = Path(folder)
        info = {"format": FORMAT, "model": self.model.fingerprint(), "source": self.source}
        try:
            replaced = overwrite and (folder / INFO).is_file()  # anything but an index is never replaced
            if folder.exists() and not replaced and not (folder.is_dir() and not any(folder.iterdir())):
                raise UserError(f"--out {folder}: exists already. Choose another folder, or replace an index by --overwrite")
            files = {INFO: to_json(info), VECTORS: _npy(self._search.vectors_NZ), TURNS: _npy(self._records_N)}
            write_folder(folder, {**files, TEXTS: self._texts.tobytes()})
        except OSError as error:
            raise UserError(f"--out {folder}: cannot write: {error.strerror or error}") from None

    @classmethod
    def load(cls, folder: str | Path, model: TextModel) -> Index:
        """Opens an index; its arrays are memory-mapped.

        Raises:
            DataError: there is none, or it is damaged; the message names the file.
            ModelError: it was built with another model.
        """
        folder = Path(folder)
        remedy = "Build one with `vrae neighbours build`"
        if problem := check_folder(folder):
            raise DataError(f"--index {folder}: no index, or a damaged one: {shown(problem, 300)}. {remedy}")
        name = INFO
        try:
            info = json.loads((folder / INFO).read_bytes())
            version, built_with, source = info["format"], info["model"], dict(info["source"])
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # Python's parser warns of what a damaged header may hold
                # unlike np.load, opens arrays alone: neither archives nor pickles
                name = VECTORS
                vectors_NZ = np.lib.format.open_memmap(folder / VECTORS, mode="r")
                name = TURNS
                records_N = np.lib.format.open_memmap(folder / TURNS, mode="r")
            name = TEXTS
            texts = np.memmap(folder / TEXTS, np.uint8, "r")
        except Exception as error:  # a damaged header makes numpy raise whatever its parser does
            what = shown(f"{type(error).__name__}: {error}", 120)
            raise DataError(f"--index {folder}: cannot read {name} ({what}). {remedy}") from None
        if version != FORMAT:
            raise DataError(f"--index {folder}: index format {reprlib.repr(version)}, this vrae reads {FORMAT}. {remedy}")
        if built_with != model.fingerprint():
            raise ModelError(f"--index {folder}: was built with another model. Pass that one, or build an index of this one")
        return cls(model, vectors_NZ, records_N, texts, source, f"--index {folder}")

    def __len__(self) -> int:
        """N, distinct turns."""
        return len(self._records_N)

    @property
    def occurrences(self) -> int:
        """Turns, each counted as often as it occurs."""
        return int(self._records_N["count"].sum())

    @torch.inference_mode()
    def query(
        self, texts: Sequence[str], n: int = 5, *, measure: Measure = "euclidean", probes: int = 0
    ) -> list[list[Neighbour]]:
        """For each text its `n` nearest turns (all, where there are fewer), nearest first.

        A text that was indexed finds itself, at a distance of 0 but for rounding in the encoder.

        Args:
            texts: what is looked for; cleaned and encoded as the turns were.
            n: 1 to 1000.
            measure: `euclidean`, or `cosine` for 1 - the cosine.
            probes: 0: exact. Else faiss looks into so many of some 4 sqrt(N) cells and misses what is in the others, for many
                queries of more than a million turns.

        Raises:
            UserError: a text is no string or too long, something is out of range, or faiss is asked for and not installed.
        """
        _check(n, measure, probes)
        with time_limit(self.model.max_seconds):
            if not (windows := self.model.windows(texts)):
                return []
            means_QZ = self.model.infer(windows).posterior.mean_BZ.float().cpu().numpy()
        return self.query_vectors(means_QZ, n, measure=measure, probes=probes)

    def query_vectors(
        self, vectors_QZ: np.ndarray, n: int = 5, *, measure: Measure = "euclidean", probes: int = 0
    ) -> list[list[Neighbour]]:
        """`query` for points of the latent space."""
        _check(n, measure, probes)
        need_numbers("vectors", vectors_QZ, LARGEST, self.model.model.config.latent_size)
        found = self._search.nearest(vectors_QZ.astype(np.float32), n, measure, probes)
        pairs = (zip(row_C.tolist(), distance_C.tolist(), strict=True) for row_C, distance_C in found)
        return [[self._neighbour(row, distance) for row, distance in some] for some in pairs]

    def _neighbour(self, row: int, distance: float) -> Neighbour:
        start = int(self._records_N["end"][row - 1]) if row else 0
        end, count, dialogue, turn = self._records_N[row].tolist()
        text = self._texts[start : end - 1].tobytes().decode("utf-8", "replace")
        return Neighbour(text, distance, count, dialogue, turn)


def _check(n: object, measure: object, probes: object) -> None:
    in_range("n", n, 1, MAX_NEIGHBOURS)
    in_range("probes", probes, 0, MAX_PROBES)
    if measure not in get_args(Measure):
        raise UserError(f"measure must be one of {', '.join(get_args(Measure))}. Got {measure!r:.40}")


def corpus_turns(corpus: Corpus, split: str, max_tokens: int) -> Iterator[Turn]:
    """The turns of a split with at most so many tokens, as text."""
    chosen = corpus[split]
    for dialogue, (start, end) in enumerate(pairwise(chosen.dialogues.tolist())):
        for place in range(start, end):
            ids = chosen.turn(place)
            if len(ids) <= max_tokens and len(text := corpus.tokenizer.decode(ids)) <= MAX_CHARACTERS:
                yield Turn(text, dialogue, place - start)


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=False)
    return file.getvalue()
