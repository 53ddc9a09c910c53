"""Attributes: a direction of the latent space learnt from two sets of sentences, and sentences moved along it.

The posterior means of the two sets are taken for two Gaussians with means m0, m1 and one covariance S (linear discriminant
analysis; Fisher 1936). That is closed-form and deterministic, and it gives a reading and two ways to move. A sentence's
projection is linear in z, 0 at m0 and 1 at m1, and its log odds follow from it. A move by strength s adds s to the projection:

    means     along m1 - m0, the attribute vector of White 2016 and Larsen et al. 2016. Of all moves that add as much to the
              projection it is the shortest in standard deviations of S: what goes with the attribute moves too. At strength 1
              the one mean lands on the other.
    normal    along S^-1 (m1 - m0), the normal of the plane between the two. Of all such moves it is the shortest in z: what
              does not tell the two sets apart stays.

S is shrunk towards a multiple of the identity by the rule of Ledoit & Wolf 2004, so fewer sentences than dimensions will do.

Shape legend: N sentences, Z latent.
"""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from vrae.config import shown
from vrae.corpus.readers import READERS, problem, read_text, row_place
from vrae.errors import DataError, ModelError, UserError
from vrae.files import to_json, write_file
from vrae.generation.deadline import timed
from vrae.generation.pipeline import Pipeline
from vrae.generation.text_model import need_list
from vrae.generation.vector_search import LARGEST

FORMAT = 1
FOLDS = 5
MAX_STRENGTH = 10.0
_MAKE = "Make one with: vrae attributes learn"
_MAX_BYTES = 2**22  # of an attribute's file
Along = Literal["means", "normal"]
T = TypeVar("T")


@dataclass(frozen=True)
class Attribute:
    """What tells sentences of the second label from those of the first, in the latent space of one model."""

    name: str
    labels: tuple[str, str]  # strength > 0 moves towards the second, < 0 towards the first
    direction_Z: tuple[float, ...]  # mean of the second label less mean of the first
    normal_Z: tuple[float, ...]  # S^-1 direction, scaled so that its dot product with the direction is 1
    offset: float  # projection = normal . z - offset
    distance: float  # between the means, in standard deviations of S along the normal: sqrt(direction S^-1 direction)
    accuracy: float  # share of sentences read right, each left out of the fit that reads it; mean over the two labels
    sentences: tuple[int, int]  # different ones of each label
    model: str  # `TextModel.fingerprint` of the model whose latent space this is

    def project(self, z_NZ: np.ndarray) -> np.ndarray:
        """[N], 0 at the mean of the first label, 1 at that of the second, 1/2 on the plane between."""
        projection_N: np.ndarray = z_NZ.astype(np.float64) @ np.array(self.normal_Z) - self.offset
        return projection_N

    def log_odds(self, projection_N: np.ndarray) -> np.ndarray:
        """[N] nats, log p(second | z) / p(first | z) under the two Gaussians, both labels equally frequent beforehand."""
        return (projection_N - 0.5) * self.distance**2

    def step(self, along: Along = "means") -> np.ndarray:
        """[Z], what strength 1 adds to z. Raises UserError for another way than `means` and `normal`."""
        if along not in ("means", "normal"):
            raise UserError(f"along must be means or normal. Got {along!r:.40}")
        normal_Z = np.array(self.normal_Z)
        step_Z: np.ndarray = np.array(self.direction_Z) if along == "means" else normal_Z / (normal_Z @ normal_Z)
        return step_Z

    def check(self, pipeline: Pipeline) -> None:
        """Raises ModelError where the attribute was learnt in the latent space of another model."""
        if self.model != pipeline.fingerprint() or len(self.normal_Z) != pipeline.model.config.latent_size:
            raise ModelError(f"attribute {self.name!r}: was learnt with another model. Learn it again with this one")

    def save(self, path: str | Path) -> None:
        """Writes it as JSON. Raises UserError where that cannot be."""
        values = dataclasses.asdict(self)
        try:
            write_file(Path(path), to_json({"format": FORMAT, **values}))
        except OSError as error:
            raise UserError(f"{path}: cannot write: {error.strerror or error}") from None

    @classmethod
    def load(cls, path: str | Path) -> Attribute:
        """Reads what `save` wrote. Raises UserError where it is missing, damaged or of another format."""
        try:
            with open(path, "rb") as file:
                values = json.loads(file.read(_MAX_BYTES))
        except OSError as error:
            raise UserError(f"{path}: cannot read the attribute: {error.strerror or error}. {_MAKE}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not JSON ({error!s:.80}), and so no attribute. {_MAKE}") from None
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            version = values.get("format") if isinstance(values, dict) else None
            raise UserError(f"{path}: attribute format {reprlib.repr(version)}, this vrae reads {FORMAT}. {_MAKE}")
        try:
            attribute = cls(
                name=_text(values["name"]),
                labels=_two(values["labels"], _text),
                direction_Z=tuple(map(_number, values["direction_Z"])),
                normal_Z=tuple(map(_number, values["normal_Z"])),
                offset=_number(values["offset"]),
                distance=_number(values["distance"]),
                accuracy=_number(values["accuracy"]),
                sentences=_two(values["sentences"], lambda count: int(_number(count))),
                model=_text(values["model"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: damaged attribute ({type(error).__name__}: {shown(str(error))})") from None
        if len(attribute.direction_Z) != len(attribute.normal_Z):
            raise UserError(f"{path}: damaged attribute (direction_Z and normal_Z differ in length)")
        # by this a projection is 0 at the one mean and 1 at the other; no zero and no overflow can pass it
        if not math.isclose(np.dot(attribute.normal_Z, attribute.direction_Z), 1, abs_tol=1e-6):
            raise UserError(f"{path}: damaged attribute (direction_Z . normal_Z is not 1)")
        return attribute


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{reprlib.repr(value)} is no text")
    return shown(value, 1000)


def _number(value: object) -> float:
    # NaN is not within the bounds either
    if not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
        raise TypeError(f"{reprlib.repr(value)} is no number of at most {LARGEST:g}")
    return float(value)


def _two(values: Sequence[object], read: Callable[[object], T]) -> tuple[T, T]:
    first, second = values
    return read(first), read(second)


@dataclass(frozen=True)
class Move:
    """A sentence, and what it became."""

    text: str
    moved: str
    before: float  # projection of the text's posterior mean; the point that was decoded lies `strength` higher
    after: float  # projection of the posterior mean of `moved`: how far the text that came out has really gone


@timed
def learn(
    pipeline: Pipeline, first: Sequence[str], second: Sequence[str], *, name: str, labels: tuple[str, str] = ("first", "second")
) -> Attribute:
    """The attribute that tells `second` from `first`, from the posterior means of both without context.

    A few hundred sentences of each label make a steady direction. Repeated ones count once.

    Raises:
        UserError: fewer than five different sentences of a label, or the model encodes them all alike.
        ModelError: the model has no latent.
    """
    if labels[0] == labels[1]:
        raise UserError(f"an attribute needs two different labels. Got {labels[0]!r:.40} twice")
    sides = []
    for label, texts in zip(labels, (first, second), strict=True):
        need_list("sentences", texts)
        if wrong := next((type(text).__name__ for text in texts if not isinstance(text, str)), ""):
            raise UserError(f"a sentence must be a string. Got {wrong}")
        different = list(dict.fromkeys(texts))
        if len(different) < FOLDS:
            raise UserError(f"an attribute needs {FOLDS} different sentences of each label. {label!r:.40} has {len(different)}")
        sides.append(pipeline.encode(different)[0].astype(np.float64))
    z0_NZ, z1_NZ = sides
    direction_Z, normal_Z, offset, distance = discriminant(z0_NZ, z1_NZ)
    return Attribute(
        name=name,
        labels=labels,
        direction_Z=tuple(direction_Z.tolist()),
        normal_Z=tuple(normal_Z.tolist()),
        offset=offset,
        distance=distance,
        accuracy=held_out_accuracy(z0_NZ, z1_NZ),
        sentences=(len(z0_NZ), len(z1_NZ)),
        model=pipeline.fingerprint(),
    )


@timed
def move(
    pipeline: Pipeline, texts: Sequence[str], attribute: Attribute, strength: float = 1.0, *, along: Along = "means"
) -> list[Move]:
    """Each text at its posterior mean + strength * step: towards the second label, or, below 0, the first.

    Strength 0 is the reconstruction.

    Raises:
        UserError: the strength is not a number in [-10, 10], or `along` is unknown.
        ModelError: the attribute belongs to another model.
    """
    if not isinstance(strength, (int, float)) or isinstance(strength, bool) or not abs(strength) <= MAX_STRENGTH:
        raise UserError(f"strength must be a number from {-MAX_STRENGTH:g} to {MAX_STRENGTH:g}. Got {strength!r:.40}")
    step_Z = attribute.step(along)
    attribute.check(pipeline)
    need_list("texts", texts)
    if not texts:
        return []
    means_NZ = pipeline.encode(texts)[0]
    moved = [sample.text for sample in pipeline.decode_latents((means_NZ + strength * step_Z).astype(means_NZ.dtype))]
    before, after = (attribute.project(z_NZ).tolist() for z_NZ in (means_NZ, pipeline.encode(moved)[0]))
    return [Move(*fields) for fields in zip(texts, moved, before, after, strict=True)]


@timed
def projections(pipeline: Pipeline, texts: Sequence[str], attribute: Attribute) -> list[float]:
    """Where each text lies: 0 at the mean of the first label, 1 at that of the second. Raises ModelError as `move` does."""
    attribute.check(pipeline)
    values: list[float] = attribute.project(pipeline.encode(texts)[0]).tolist()
    return values


def discriminant(z0_NZ: np.ndarray, z1_NZ: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Linear discriminant analysis: (direction_Z, normal_Z, offset, distance) as `Attribute` has them.

    Raises:
        UserError: all points are the same.
    """
    m0_Z, m1_Z = z0_NZ.mean(0), z1_NZ.mean(0)
    direction_Z = m1_Z - m0_Z
    covariance_ZZ = shrunk_covariance(np.concatenate([z0_NZ - m0_Z, z1_NZ - m1_Z]), means=2)
    if not np.trace(covariance_ZZ) > 0 or not direction_Z.any():
        raise UserError("the model encodes the sentences of both labels alike: there is no direction between them")
    normal_Z = np.linalg.solve(covariance_ZZ, direction_Z)
    square = float(direction_Z @ normal_Z)
    normal_Z = normal_Z / square
    return direction_Z, normal_Z, float(normal_Z @ m0_Z), math.sqrt(square)


def shrunk_covariance(centred_NZ: np.ndarray, means: int) -> np.ndarray:
    """[Z, Z], (1 - a) S + a (trace S / Z) I with the a of Ledoit & Wolf 2004, section 3.

    a is the estimated squared error of S over its squared distance from the multiple of the identity, at most 1.

    Args:
        centred_NZ: points less their means.
        means: how many means were subtracted; S divides by N - means.
    """
    N, Z = centred_NZ.shape
    S_ZZ = centred_NZ.T @ centred_NZ / (N - means)
    target_ZZ = np.trace(S_ZZ) / Z * np.eye(Z)
    apart = np.square(S_ZZ - target_ZZ).sum()
    # sum over points of |x x' - S|^2, by the products x'x and x'S x alone
    length_N, inner_N = np.square(centred_NZ).sum(1), ((centred_NZ @ S_ZZ) * centred_NZ).sum(1)
    noise = (np.square(length_N) - 2 * inner_N + np.square(S_ZZ).sum()).sum() / N**2
    share = min(noise / apart, 1.0) if apart > 0 else 0.0
    shrunk_ZZ: np.ndarray = (1 - share) * S_ZZ + share * target_ZZ
    return shrunk_ZZ


def held_out_accuracy(z0_NZ: np.ndarray, z1_NZ: np.ndarray) -> float:
    """Share of points on their side of the plane that the other four fifths of the points give; mean over the two sides."""
    right = np.zeros(2)
    for fold in range(FOLDS):
        z0_out, z1_out = (np.arange(len(z_NZ)) % FOLDS == fold for z_NZ in (z0_NZ, z1_NZ))
        _, normal_Z, offset, _ = discriminant(z0_NZ[~z0_out], z1_NZ[~z1_out])
        right += (z0_NZ[z0_out] @ normal_Z - offset < 0.5).sum(), (z1_NZ[z1_out] @ normal_Z - offset > 0.5).sum()
    return float((right / (len(z0_NZ), len(z1_NZ))).mean())


def read_labelled(path: str | Path) -> tuple[tuple[str, str], tuple[list[str], list[str]]]:
    """Two labels in alphabetical order, and the sentences of each: a .jsonl, .csv, .tsv or .parquet of `text` and `label`.

    Raises:
        DataError: a row (named `file:line`) lacks one of them, or there are not exactly two labels.
    """
    path = Path(path)
    found: dict[str, list[str]] = {}
    for number, text, row in _texts(path):
        label = row.get("label") if isinstance(row, dict) else None
        if not isinstance(label, (str, int)) or label == "":
            got = reprlib.repr(label)
            raise problem(f"{row_place(path)}{number}", "a label, text or number", got, "give every sentence its label")
        found.setdefault(str(label), []).append(text)
    if len(found) != 2:
        names = shown(", ".join(sorted(found)[:5]), 120)
        raise DataError(f"{path}: an attribute is between two labels. Got {len(found)} ({names})")
    first, second = sorted(found)
    return (first, second), (found[first], found[second])


def read_sentences(path: str | Path) -> list[str]:
    """The sentences of one label: a .txt with one a line, or the `text` of a .jsonl (strings too), .csv, .tsv or .parquet.

    Raises:
        DataError: a row (named `file:line`) has no text, or the file cannot be read.
    """
    return [text for _, text, _ in _texts(Path(path))]


def _texts(path: Path) -> Iterator[tuple[int, str, Any]]:
    """(number, sentence, row) of each row."""
    suffix = path.suffix.lower()
    if suffix == ".txt":
        rows = read_text(path, "utterances")
    elif suffix in READERS:
        rows = READERS[suffix](path)
    else:
        raise DataError(f"{path}: sentences are read from .txt, {', '.join(READERS)}. Got {suffix or 'no suffix'}")
    with closing(rows):
        for number, row in rows:
            if isinstance(row, DataError):
                raise row
            text = row.get("text") if isinstance(row, dict) else row
            if not isinstance(text, str) or not text.strip():
                raise problem(f"{row_place(path)}{number}", "a text", reprlib.repr(text), 'name the column or key "text"')
            yield number, text.strip(), row
