"""The nearest vectors against sorting all distances, whatever the blocks; a bound that is one; faiss where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import vrae.generation.vector_search as module
from vrae.errors import UserError
from vrae.generation.vector_search import LARGEST, Measure, VectorSearch, distance, lower_bound, sound

MEASURES: list[Measure] = ["euclidean", "cosine"]


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def grid(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Few different vectors of small whole numbers, so that there are many exact ties."""
    return np.random.default_rng(seed).integers(-1, 2, (count, size)).astype(np.float32)


def by_sorting(vectors_NZ: np.ndarray, query_Z: np.ndarray, n: int, measure: Measure) -> list[tuple[int, float]]:
    """Every distance by its definition, one after the other, sorted with the row as the second key."""
    a_Z = query_Z.astype(np.float64)
    pairs = []
    for row, b_Z in enumerate(vectors_NZ.astype(np.float64)):
        if measure == "euclidean":
            far = sum((a - b) ** 2 for a, b in zip(a_Z, b_Z, strict=True)) ** 0.5
        else:
            norm = (sum(a * a for a in a_Z) * sum(b * b for b in b_Z)) ** 0.5
            far = 1 - sum(a * b for a, b in zip(a_Z, b_Z, strict=True)) / norm if norm else 1.0
        pairs.append((round(far, 9), row))
    return [(row, far) for far, row in sorted(pairs)[:n]]


def found(vectors_NZ: np.ndarray, queries_QZ: np.ndarray, n: int, measure: Measure) -> list[list[tuple[int, float]]]:
    return [
        list(zip(row_C.tolist(), distance_C.tolist(), strict=True))
        for row_C, distance_C in VectorSearch(vectors_NZ).nearest(queries_QZ, n, measure)
    ]


class TestNearest:
    @pytest.mark.parametrize("measure", MEASURES)
    @pytest.mark.parametrize(("count", "size", "n"), [(1, 3, 1), (1, 3, 5), (7, 1, 3), (40, 5, 40), (40, 5, 99), (700, 6, 10)])
    def test_are_those_of_sorting_all_distances(self, count: int, size: int, n: int, measure: Measure) -> None:
        vectors_NZ, queries_QZ = draw(count, size), draw(9, size, seed=1)
        expected = [by_sorting(vectors_NZ, query_Z, n, measure) for query_Z in queries_QZ]
        for one, wanted in zip(found(vectors_NZ, queries_QZ, n, measure), expected, strict=True):
            assert len(one) == min(n, count)
            assert [far for _, far in one] == pytest.approx([far for _, far in wanted], abs=1e-8)
            if size > 1:  # on a line all cosines are 1 or -1, but for rounding
                assert [row for row, _ in one] == [row for row, _ in wanted]

    @pytest.mark.parametrize("n", [1, 2, 10, 60, 200])
    def test_that_are_equally_near_stand_in_order(self, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_FIRST_BLOCK", 8)
        monkeypatch.setattr(module, "_BLOCK", 32)
        vectors_NZ, queries_QZ = grid(200, 3), grid(5, 3, seed=1)
        for query_Z, one in zip(queries_QZ, found(vectors_NZ, queries_QZ, n, "euclidean"), strict=True):
            assert [row for row, _ in one] == [row for row, _ in by_sorting(vectors_NZ, query_Z, n, "euclidean")]

    @pytest.mark.parametrize("measure", MEASURES)
    def test_of_equal_vectors_the_first_are_found(self, measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_FIRST_BLOCK", 4)
        rows = found(np.repeat(draw(1, 8), 300, 0), draw(2, 8, seed=1), 7, measure)
        assert [[row for row, _ in one] for one in rows] == [list(range(7))] * 2

    @pytest.mark.parametrize("measure", MEASURES)
    def test_do_not_depend_on_blocks_or_on_other_queries(self, measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
        vectors_NZ = np.concatenate([draw(100, 7), grid(100, 7), 1e3 + draw(100, 7, seed=2)])
        queries_QZ = np.concatenate([draw(20, 7, seed=1), vectors_NZ[::30]])
        whole = found(vectors_NZ, queries_QZ, 11, measure)
        for first, block, together in [(1, 1, 3), (2, 64, 1), (7, 13, 7), (128, 299, 128), (10**6, 10**6, 20)]:
            monkeypatch.setattr(module, "_FIRST_BLOCK", first)
            monkeypatch.setattr(module, "_BLOCK", block)
            monkeypatch.setattr(module, "_QUERIES", together)
            assert found(vectors_NZ, queries_QZ, 11, measure) == whole

    @pytest.mark.parametrize("offset", [0.0, 1e4, 1e12])
    @pytest.mark.parametrize("scale", [1.0, 1e-12, 1e-30])
    def test_are_right_where_single_precision_is_not(
        self, offset: float, scale: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_FIRST_BLOCK", 8)
        vectors_NZ = (offset + scale * draw(600, 4).astype(np.float64)).astype(np.float32)
        queries_QZ = (offset + scale * draw(5, 4, seed=1).astype(np.float64)).astype(np.float32)
        for query_Z, one in zip(queries_QZ, found(vectors_NZ, queries_QZ, 9, "euclidean"), strict=True):
            exact_N = np.sqrt(((vectors_NZ.astype(np.float64) - query_Z.astype(np.float64)) ** 2).sum(1))
            assert [row for row, _ in one] == np.argsort(exact_N, kind="stable")[:9].tolist()

    def test_come_from_an_array_on_disk(self, tmp_path: Path) -> None:
        np.save(tmp_path / "v.npy", draw(50, 4))
        mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
        assert found(mapped, draw(3, 4, seed=1), 5, "euclidean") == found(draw(50, 4), draw(3, 4, seed=1), 5, "euclidean")

    def test_of_no_query_are_none(self) -> None:
        assert found(draw(5, 3), draw(0, 3), 2, "euclidean") == []

    def test_few_distances_are_measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The bound is tight enough to be of use: after the first blocks, little more than what is found is measured."""
        measured: list[int] = []

        def spy(query_Z: np.ndarray, vectors_CZ: np.ndarray, measure: Measure) -> np.ndarray:
            measured.append(len(vectors_CZ))
            return distance(query_Z, vectors_CZ, measure)

        monkeypatch.setattr(module, "distance", spy)
        for measure in MEASURES:
            measured.clear()
            found(draw(20_000, 16), draw(1, 16, seed=1), 10, measure)
            assert sum(measured) < 700


class TestDistance:
    def test_is_what_its_name_says(self) -> None:
        vectors = np.array([[3, 4], [4, 3], [-3, -4], [0, 0], [6, 8]], np.float32)
        query = np.array([3, 4], np.float32)
        assert distance(query, vectors, "euclidean").tolist() == pytest.approx([0, 2**0.5, 10, 5, 5], abs=1e-15)
        assert distance(query, vectors, "cosine").tolist() == pytest.approx([0, 1 / 25, 2, 1, 0], abs=1e-15)
        assert distance(np.zeros(2, np.float32), vectors, "cosine").tolist() == [1] * 5

    def test_is_never_negative(self) -> None:
        vectors = draw(2000, 5)
        assert min(distance(v, v[None], "cosine")[0] for v in vectors) == 0


class TestLowerBound:
    @pytest.mark.parametrize("size", [1, 8, 300])
    @pytest.mark.parametrize("offset", [0.0, 3.0, 1e5])
    @pytest.mark.parametrize("measure", MEASURES)
    def test_is_below_and_near(self, size: int, offset: float, measure: Measure) -> None:
        queries, vectors = offset + draw(40, size), offset + draw(500, size, seed=1)
        vectors[:40] = queries
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1).astype(np.float32)
        bound = lower_bound(queries, vectors, norms, measure)
        assert bound.dtype == np.float32
        exact = np.array([distance(q, vectors, measure) for q in queries])
        if measure == "euclidean":
            exact = exact**2
        scale = 4 * (norms.max() + 1.0) ** 2 if measure == "euclidean" else 1.0
        assert (bound <= exact).all()
        assert (exact - bound).max() < 4 * (size + 8) * 2**-23 * scale


class TestSound:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2e15, -2e15])
    def test_is_not_what_holds_such_a_number(self, value: float) -> None:
        vectors = draw(5, 3)
        assert sound(vectors)
        assert sound(np.full((2, 2), -LARGEST))
        assert sound(vectors[:0])
        vectors[3, 1] = value
        assert not sound(vectors)

    def test_vectors_as_large_as_can_be_are_compared_without_overflow(self) -> None:
        vectors = np.full((4, 64), LARGEST, np.float32)
        vectors[1] *= -1
        for measure in MEASURES:
            assert [row for row, _ in found(vectors, vectors[1:2], 2, measure)[0]] == [1, 0]


class TestProbes:
    def test_without_faiss_say_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "faiss", None)
        with pytest.raises(UserError, match=r"needs faiss.* pip install 'vrae\[faiss\]'"):
            list(VectorSearch(draw(5, 3)).nearest(draw(1, 3), 2, "euclidean", probes=1))

    @pytest.mark.parametrize("measure", MEASURES)
    def test_of_all_cells_find_what_an_exact_search_finds(self, measure: Measure) -> None:
        pytest.importorskip("faiss")
        vectors_NZ, queries_QZ = draw(3000, 6) + 1, draw(20, 6, seed=1)
        search = VectorSearch(vectors_NZ)
        exact = [(a.tolist(), b.tolist()) for a, b in search.nearest(queries_QZ, 10, measure)]
        assert [(a.tolist(), b.tolist()) for a, b in search.nearest(queries_QZ, 10, measure, probes=10**4)] == exact

    @pytest.mark.parametrize("measure", MEASURES)
    def test_of_some_cells_find_most_and_measure_exactly(self, measure: Measure) -> None:
        pytest.importorskip("faiss")
        vectors_NZ, queries_QZ = draw(8000, 6), draw(50, 6, seed=1)
        search = VectorSearch(vectors_NZ)
        shared = 0
        exact = list(search.nearest(queries_QZ, 10, measure))
        for query_Z, some, all_ in zip(queries_QZ, search.nearest(queries_QZ, 10, measure, probes=4), exact, strict=True):
            assert some.distance_C.tolist() == distance(query_Z, vectors_NZ[some.row_C], measure).tolist()
            assert (np.diff(some.distance_C) >= 0).all()
            shared += len({*some.row_C.tolist()} & {*all_.row_C.tolist()})
        assert 250 < shared < 500

    def test_of_few_vectors_find_them(self) -> None:
        pytest.importorskip("faiss")
        rows = [one.row_C.tolist() for one in VectorSearch(draw(3, 4)).nearest(draw(3, 4), 5, "euclidean", probes=1)]
        assert [one[0] for one in rows] == [0, 1, 2]
        assert [sorted(one) for one in rows] == [[0, 1, 2]] * 3
