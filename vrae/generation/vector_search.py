"""Which of many vectors are nearest to a few: exact, in blocks, on arrays that may be memory-mapped.

A matrix product in single precision bounds every distance from below, and only what may be among the nearest is measured, in
double precision. So neither the size of the blocks nor the other queries can change an answer, and of vectors that are equally
near the earlier comes first.

Shape legend: N vectors, Z their size, Q queries, B rows of a block, C candidates of one query.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from vrae.errors import UserError

Measure = Literal["euclidean", "cosine"]
LARGEST = 1e15  # of the numbers of a vector, so that sums of their squares are finite in single precision

_FIRST_BLOCK, _BLOCK = 2**9, 2**14  # vectors that are compared at once; the first few give a limit to prune the others by
_QUERIES = 128  # queries that are compared at once
_PER_CELL = 40  # vectors for each cell of an inverted file, at least: what faiss's k-means asks for
_TINY = np.finfo(np.float32).tiny


class Found(NamedTuple):
    """The nearest of one query, nearest first."""

    row_C: np.ndarray  # int64, places in the vectors
    distance_C: np.ndarray  # float64


class VectorSearch:
    """Vectors to be searched.

    Args:
        vectors_NZ: float32, at least one, all `sound`. They are neither copied nor changed.
    """

    def __init__(self, vectors_NZ: np.ndarray) -> None:
        assert vectors_NZ.ndim == 2
        assert len(vectors_NZ)
        self.vectors_NZ = vectors_NZ
        norms = [np.linalg.norm(vectors_NZ[rows].astype(np.float64), axis=1) for rows in _blocks(len(vectors_NZ))]
        self._norm_N = np.concatenate(norms).astype(np.float32)
        self._inverted_files: dict[Measure, Any] = {}

    def nearest(self, queries_QZ: np.ndarray, n: int, measure: Measure, probes: int = 0) -> Iterator[Found]:
        """The `n` nearest of each query, or all where there are fewer.

        Args:
            queries_QZ: float32, `sound`.
            n: 1 or more.
            measure: see `distance`.
            probes: 0 for the exact answer. Else only so many cells of an inverted file are looked at, those whose centres are
                nearest, and neighbours in the others are missed.

        Raises:
            UserError: `probes` is given and faiss is not installed.
        """
        for start in range(0, len(queries_QZ), _QUERIES):
            some_QZ = queries_QZ[start : start + _QUERIES]
            yield from self._probe(some_QZ, n, measure, probes) if probes else self._scan(some_QZ, n, measure)

    def _scan(self, queries_QZ: np.ndarray, n: int, measure: Measure) -> list[Found]:
        best = [Found(np.zeros(0, np.int64), np.zeros(0)) for _ in queries_QZ]
        limit_Q = np.full(len(queries_QZ), np.inf)  # distance of the n-th nearest so far
        for rows in _blocks(len(self.vectors_NZ)):
            vectors_BZ = self.vectors_NZ[rows]
            bound_QB = lower_bound(queries_QZ, vectors_BZ, self._norm_N[rows], measure)
            near_QB = bound_QB <= limit_Q.astype(np.float32)[:, None]
            for q in np.flatnonzero(near_QB.any(1)):
                row_C = np.flatnonzero(near_QB[q])
                distance_C = distance(queries_QZ[q], vectors_BZ[row_C], measure)
                row_C, distance_C = np.append(best[q].row_C, row_C + rows.start), np.append(best[q].distance_C, distance_C)
                best[q] = _first(row_C, distance_C, n)
                if len(best[q].row_C) == n:
                    limit_Q[q] = best[q].distance_C[-1] ** (2 if measure == "euclidean" else 1)
        return best

    def _probe(self, queries_QZ: np.ndarray, n: int, measure: Measure, probes: int) -> list[Found]:
        file = self._inverted_file(measure)
        file.nprobe = min(probes, file.nlist)
        _, rows_QC = file.search(_scaled(queries_QZ, measure), n)
        rows = [np.sort(row_C[row_C >= 0]) for row_C in rows_QC]  # -1 where the cells hold fewer than n
        vectors_NZ = self.vectors_NZ
        return [_first(row_C, distance(q, vectors_NZ[row_C], measure), n) for q, row_C in zip(queries_QZ, rows, strict=True)]

    def _inverted_file(self, measure: Measure) -> Any:
        """The vectors in cells around some 4 sqrt(N) centres, made when first asked for. Never read from a file: reading
        faiss's format is not safe."""
        if measure not in self._inverted_files:
            try:
                import faiss
            except ImportError:
                raise UserError("a search with probes needs faiss. Install it with: pip install 'vrae[faiss]'") from None
            N, Z = self.vectors_NZ.shape
            cells = max(1, min(int(4 * N**0.5), N // _PER_CELL))
            file = faiss.IndexIVFFlat(faiss.IndexFlatL2(Z), Z, cells)
            file.train(_scaled(self.vectors_NZ[np.linspace(0, N - 1, min(N, cells * _PER_CELL)).astype(np.int64)], measure))
            for rows in _blocks(N):
                file.add(_scaled(self.vectors_NZ[rows], measure))
            self._inverted_files[measure] = file
        return self._inverted_files[measure]


def distance(query_Z: np.ndarray, vectors_CZ: np.ndarray, measure: Measure) -> np.ndarray:
    """[C] float64: the Euclidean distance; or 1 - the cosine, 0 to 2, where the zero vector is at 1 from all others."""
    query_Z, vectors_CZ = query_Z.astype(np.float64), vectors_CZ.astype(np.float64)
    distance_C: np.ndarray
    if measure == "euclidean":
        distance_C = np.linalg.norm(vectors_CZ - query_Z, axis=1)
        return distance_C
    norm_C = np.linalg.norm(vectors_CZ, axis=1) * np.linalg.norm(query_Z)
    cosine_C = (vectors_CZ * query_Z).sum(1) / np.maximum(norm_C, _TINY)
    distance_C = np.maximum(1 - cosine_C, 0.0)
    return distance_C


def lower_bound(queries_QZ: np.ndarray, vectors_BZ: np.ndarray, norm_B: np.ndarray, measure: Measure) -> np.ndarray:
    """[Q, B] float32, at most the square of the Euclidean distance, or 1 - the cosine.

    A product of Z terms in single precision is off by at most Z u |a| |b|, u being half of epsilon (Higham 2002, section 3.1);
    doubling that, and more, covers the roundings of what is made of it and of the limit that it is compared with.
    """
    slack = np.float32((queries_QZ.shape[1] + 8) * np.finfo(np.float32).eps)
    bound_QB: np.ndarray
    if measure == "cosine":
        bound_QB = (1 - slack) - _scaled(queries_QZ, measure) @ vectors_BZ.T / np.maximum(norm_B, _TINY)
        return bound_QB
    norm_Q1 = np.linalg.norm(queries_QZ, axis=1, keepdims=True)
    bound_QB = norm_B**2 - 2 * (queries_QZ @ vectors_BZ.T) + (norm_Q1**2 - slack * (norm_Q1 + norm_B.max()) ** 2)
    return bound_QB


def sound(vectors: np.ndarray) -> bool:
    """Whether all numbers are finite and none exceeds LARGEST."""
    return bool(vectors.min(initial=0) >= -LARGEST and vectors.max(initial=0) <= LARGEST)  # false for nan


def _scaled(vectors_BZ: np.ndarray, measure: Measure) -> np.ndarray:
    """Of norm 1 for the cosine: the nearest by angle are then the nearest by distance."""
    if measure == "euclidean":
        return vectors_BZ
    scaled_BZ: np.ndarray = vectors_BZ / np.maximum(np.linalg.norm(vectors_BZ, axis=1, keepdims=True), _TINY)
    return scaled_BZ


def _first(row_C: np.ndarray, distance_C: np.ndarray, n: int) -> Found:
    """The `n` nearest. Rows that are equally near keep the order they have."""
    kept = np.argsort(distance_C, kind="stable")[:n]
    return Found(row_C[kept], distance_C[kept])


def _blocks(count: int) -> Iterator[slice]:
    """Consecutive parts of `count` rows, each twice as long as the one before until they are of full size."""
    start, size = 0, min(_FIRST_BLOCK, _BLOCK)
    while start < count:
        yield slice(start, min(start + size, count))
        start, size = start + size, min(2 * size, _BLOCK)
