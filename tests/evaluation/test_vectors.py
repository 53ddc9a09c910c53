"""Word vectors: both text formats and their faults, and the three scores by hand and against DialogWAE's padded arrays."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from vrae.errors import DataError
from vrae.evaluation.vectors import WordVectors, greedy, similarity


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "vectors.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


class TestFile:
    @pytest.mark.parametrize(
        "text",
        [
            "tea 1 -2.5 3e-1\ncup 4 5 6\n",
            "tea 1 -2.5 3e-1\ncup 4 5 6",
            "2 3\ntea 1 -2.5 3e-1 \ncup 4 5 6 \n",  # word2vec, fastText: a space at the end
            "tea\t1\t-2.5\t3e-1\r\ncup\t4\t5\t6\r\n",
            "\ufefftea 1 -2.5 3e-1\ncup 4 5 6\n",
            "tea 1 -2.5 3e-1\n. . name@domain.com 7 8 9\ntea 0 0 0\ncup 4 5 6\n",  # words with spaces; a word again
        ],
    )
    def test_is_read_in_both_formats(self, tmp_path: Path, text: str) -> None:
        vectors = WordVectors.read(write(tmp_path, text), {"tea", "cup", "pot"})
        assert vectors.size == 3
        cup, tea = vectors.rows(["cup", "pot", "tea"], "drop").tolist()
        assert (cup, tea) == ([4, 5, 6], pytest.approx([1, -2.5, 0.3], rel=1e-7))
        assert ("tea" in vectors, "pot" in vectors, "name@domain.com" in vectors) == (True, False, False)

    def test_words_of_all_scripts_are_found(self, tmp_path: Path) -> None:
        path = write(tmp_path, "größe 1\n\u00a0 2\nчай 3\nx 4\n".encode() + b"\xff\xfe 5\n")
        assert WordVectors.read(path, ["чай", "größe", "\ud800"]).rows(["größe", "чай"], "drop").tolist() == [[1], [3]]

    def test_keeps_only_the_words_that_are_needed(self, tmp_path: Path) -> None:
        vectors = WordVectors.read(write(tmp_path, "tea 1 2\ncup 3 4\npot 5 6\n"), ["cup"])
        assert [word in vectors for word in ("tea", "cup", "pot")] == [False, True, False]

    @pytest.mark.parametrize(
        ("text", "line", "message"),
        [
            ("tea 1 2\ncup 3\n", 2, "expected a word and 2 numbers.*got 2 fields"),
            ("tea 1 2\ncup 3 4 5\n", 2, "expected a word and 2 numbers.*got 4 fields"),
            ("tea 1 2\nx 3\ncup 3 4\n", 2, "got 2 fields"),  # of a word that is not needed too
            ("2 2\ntea 1 2 3\ncup 3 4 5\n", 2, "expected a word and 2 numbers"),
            ("tea 1 2\n\ncup 3 4\n", 2, "got an empty line"),
            ("\ntea 1 2\n", 1, "expected a word and its numbers, got an empty line"),
            ("tea\ncup\n", 1, "expected a word and its numbers, got 1 field;"),
            ("tea 1 2\ncup 3 four\n", 2, "expected a number, got 'four'"),
            ("tea 1 2\ncup 3 nan\n", 2, "expected a number, got 'nan'"),
            ("tea 1 2\ncup inf 3\n", 2, "expected a number, got 'inf'"),
            ("this is text\nand no vectors\n", 1, "expected a number, got 'is'"),
            (b"3 2\n\x00\x01\x02\x03 \x00\x01 \x02\n", 2, "expected a number"),  # word2vec's binary format
        ],
    )
    def test_names_the_line_that_is_wrong(self, tmp_path: Path, text: str | bytes, line: int, message: str) -> None:
        path = write(tmp_path, text)
        with pytest.raises(DataError, match=message) as caught:
            WordVectors.read(path, ["tea", "cup"])
        assert str(caught.value).startswith(f"{path}:{line}: ")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "expected word vectors, got an empty file"),
            ("pot 1 2\n", "none of the 2 words"),
            ("TEA 1 2\n", "none of the 2 words"),
            ("3 2\ntea 1 2\ncup 3 4\n", "announces 3 words. Got 2; was the file cut off"),
            ("1 2\ntea 1 2\ncup 3 4\n", "announces 1 words. Got 2"),
        ],
    )
    def test_says_what_is_missing(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            WordVectors.read(write(tmp_path, text), ["tea", "cup"])

    def test_that_is_not_there_is_a_data_error(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"none\.txt: cannot be read"):
            WordVectors.read(tmp_path / "none.txt", ["tea"])


class TestWordsWithoutVector:
    def test_are_dropped(self) -> None:
        vectors = WordVectors({"a": np.array([1.0, 0.0])})
        assert vectors.rows(["x", "a", "y", "a"], "drop").tolist() == [[1, 0], [1, 0]]
        assert vectors.rows(["x"], "drop").shape == vectors.rows([], "random").shape == (0, 2)

    def test_are_drawn_from_a_narrow_normal(self) -> None:
        rows = WordVectors({"a": np.zeros(2000)}).rows([f"w{i}" for i in range(50)], "random")
        assert rows.std() == pytest.approx(0.1, abs=4 * 0.1 / math.sqrt(2 * rows.size))
        assert rows.mean() == pytest.approx(0, abs=4 * 0.1 / math.sqrt(rows.size))
        assert np.abs(np.corrcoef(rows) - np.eye(50)).max() < 5 / math.sqrt(2000)

    def test_always_get_the_same_by_one_seed(self) -> None:
        known = {"a": np.array([1.0, 0.0])}
        one, again, other = (WordVectors(known, seed=seed) for seed in (1, 1, 2))
        x, a, y = one.rows(["x", "a", "y"], "random")
        assert a.tolist() == [1, 0]
        assert again.rows(["y", "x"], "random").tolist() == [y.tolist(), x.tolist()]
        assert not np.isclose(other.rows(["x"], "random"), x).any()


class TestSimilarity:
    def test_worked_by_hand(self) -> None:
        reference, hypothesis = np.array([[3.0, 0.0], [0.0, -4.0]]), np.array([[1.0, 1.0]])
        ours = similarity(reference, hypothesis)
        # means (1.5, -2) and (1, 1); extrema (3, -4) and (1, 1); cosines 1/sqrt 2 and -1/sqrt 2
        assert ours.average == pytest.approx(-0.5 / (2.5 * math.sqrt(2)))
        assert ours.extrema == pytest.approx(-1 / (5 * math.sqrt(2)))
        assert ours.greedy == pytest.approx(((1 - 1) / 2 + 1) / math.sqrt(2) / 2)

    def test_extrema_prefer_the_positive_of_two_as_far(self) -> None:
        assert similarity(np.array([[2.0, 1.0], [-2.0, 1.0]]), np.array([[1.0, 0.5]])).extrema == pytest.approx(1)

    def test_do_not_depend_on_the_length_of_vectors_or_texts(self) -> None:
        rng = np.random.default_rng(0)
        a, b = rng.normal(size=(3, 4)), rng.normal(size=(5, 4))
        assert similarity(a, b) == pytest.approx(similarity(7 * np.concatenate([a, a]), b))
        assert similarity(a, 3 * a) == pytest.approx((1, 1, 1))
        assert similarity(a, b) == pytest.approx(similarity(b, a))

    def test_with_nothing_is_nothing(self) -> None:
        a, none = np.ones((2, 3)), np.zeros((0, 3))
        assert similarity(a, none) == similarity(none, a) == similarity(a, np.zeros((1, 3))) == (0, 0, 0)
        assert greedy(a, none) == greedy(none, a) == 0

    @pytest.mark.parametrize("seed", range(20))
    def test_is_that_of_dialogwae_over_masked_arrays(self, seed: int) -> None:
        # The arrays as DialogWAE has them: the words, and after them positions that are masked.
        rng = np.random.default_rng(seed)
        arrays, real = rng.normal(0, 0.4, (2, 9, 6)).clip(-0.99, 0.99), rng.integers(1, 9, 2)
        means, extrema = [], []
        for array, length in zip(arrays, real, strict=True):
            mask = np.array([[1.0 if place < length else 0.0] for place in range(9)])
            means.append((array * mask).sum(0) / (length + 1e-8))
            high, low = (array * mask).max(0), (array + (1 - mask)).min(0)
            extrema.append([h if h >= abs(x) else x for h, x in zip(high, low, strict=True)])
        ours = similarity(*(array[:length] for array, length in zip(arrays, real, strict=True)))
        for one, (a, b) in ((ours.average, means), (ours.extrema, extrema)):
            assert one == pytest.approx(np.dot(a, b) / math.sqrt(np.dot(a, a) * np.dot(b, b)), abs=1e-9)

    @pytest.mark.parametrize("seed", range(10))
    def test_greedy_is_the_enumeration_of_pairs(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        a, b = rng.normal(size=(4, 3)), rng.normal(size=(6, 3))

        def one_way(texts: tuple[np.ndarray, np.ndarray]) -> float:
            nearest = [max(float(x @ y) / math.sqrt((x @ x) * (y @ y)) for y in texts[1]) for x in texts[0]]
            return sum(nearest) / len(nearest)

        assert greedy(a, b) == similarity(a, b).greedy == pytest.approx((one_way((a, b)) + one_way((b, a))) / 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tea 1e39 2\n", r":1: expected a number, got '1e39'"),  # larger than single precision holds
        ("tea 1\t2 3\ncup 4 5\n", r":2: expected "),
        ("tea 1 2\ncup 4\t5 6\n", r":2: expected 2 numbers, as on the lines above, got 3"),
        ("9" * 5000 + " 2\n", r":1: expected a number|:1: expected|announces|none of"),
    ],
)
def test_numbers_that_cannot_be_kept_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        WordVectors.read(write(tmp_path, text), ["tea", "cup"])
