"""Text in pictures: what the font can draw, in its place."""

from __future__ import annotations

import io
import itertools
import warnings

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from vrae.apps.picture import EMPTY, drawable, fit, measure, place_labels

AREA = (0.0, 0.0, 400.0, 300.0)
HOSTILE = ["\ud800", "a\x00b\x1b[31m", "\u202eabc", "🎉🎉", "", " \n", "中文", "﷽", "\u2028", "שלום", "مرحبا"]
HOSTILE += ["$x_1$ \\a^{", "👩\u200d💻\ufe0f", "\u0301 \ue000"]


class TestDrawable:
    @pytest.mark.parametrize(
        ("text", "drawn"),
        [
            ("it's 5$ \\frac{a}_b^2 & %", "it's 5$ \\frac{a}_b^2 & %"),
            ("naïve café…", "naïve café…"),
            ("party 🎉", "party □"),
            ("a\tb\nc\u2028d  e ", "a b c d e"),
            ("\u202eabc\u200f", "abc"),
            ("a\x00b\x1b[31m", "a□b□[31m"),
            ("❤\ufe0f", "❤"),
            ("\ud800", "□"),
            ("", EMPTY),
            ("\u200b \n", EMPTY),
        ],
    )
    def test_keeps_what_the_font_has(self, text: str, drawn: str) -> None:
        assert drawable(text) == drawn

    @pytest.mark.parametrize("weight", ["regular", "bold"])
    def test_nothing_of_it_makes_the_renderer_complain(self, weight: str) -> None:
        figure = Figure()
        for text in HOSTILE:
            figure.text(0.5, 0.5, drawable(text), weight=weight, parse_math=False)
        with warnings.catch_warnings(record=True) as complaints:
            figure.savefig(io.BytesIO(), format="png")
        assert not complaints


class TestFit:
    """With a width of 1 for each character."""

    @pytest.mark.parametrize(
        ("text", "width", "lines", "fitted"),
        [
            ("one two three", 13, 1, ["one two three"]),
            ("one two three", 12, 1, ["one two thr…"]),
            ("one two three", 8, 1, ["one two…"]),
            ("one two three", 9, 1, ["one two…"]),
            ("one two three", 7, 2, ["one two", "three"]),
            ("one two three", 6, 2, ["one", "two t…"]),
            ("one two three", 6, 3, ["one", "two", "three"]),
            ("abcdefgh ij", 4, 2, ["abcd", "efg…"]),
            ("abcdefgh ij", 4, 3, ["abcd", "efgh", "ij"]),
            ("abc", 0.5, 2, ["a", "…"]),
            ("a" * 100, 70, 1, ["a" * 69 + "…"]),
            ("a" * 100, 40, 3, ["a" * 40, "a" * 40, "a" * 20]),
        ],
    )
    def test_breaks_at_spaces_and_shortens(self, text: str, width: float, lines: int, fitted: list[str]) -> None:
        assert fit(text, width, lines, len) == fitted

    def test_by_the_width_that_is_drawn(self) -> None:
        figure = Figure(dpi=150)
        narrow, wide = measure(figure, size=12), measure(figure, size=12, weight="bold")
        drawn = figure.text(0, 0, "hello there", size=12)
        assert narrow("hello there") == pytest.approx(drawn.get_window_extent().width * 72 / 150)
        assert narrow("hello") < wide("hello") < 3 * narrow("hello")
        assert narrow("$x$") > narrow("x$")
        lines = fit("hello there " * 5, 100, 2, narrow)
        assert len(lines) == 2
        assert max(map(narrow, lines)) <= 100 < narrow(lines[0] + " hello")


def box(place: tuple[float, float] | None, size: tuple[float, float]) -> tuple[float, float, float, float]:
    assert place is not None
    return (*place, place[0] + size[0], place[1] + size[1])


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


class TestLabels:
    def test_are_apart_inside_and_clear_of_the_marks(self) -> None:
        draw = np.random.default_rng(3)
        anchors, sizes = draw.uniform((0, 0), AREA[2:], (8, 2)), draw.uniform((20, 8), (60, 16), (8, 2))
        boxes = [box(place, size) for place, size in zip(place_labels(anchors, sizes, AREA, anchors), sizes, strict=True)]
        assert not any(overlap(a, b) for a, b in itertools.combinations(boxes, 2))
        for left, bottom, right, top in boxes:
            assert 0 <= left < right <= AREA[2]
            assert 0 <= bottom < top <= AREA[3]
            assert not any(overlap((left - 11, bottom - 11, right + 11, top + 11), (x, y, x, y)) for x, y in anchors)

    def test_point_away_from_the_middle_and_are_near(self) -> None:
        anchors = np.array([[100.0, 150.0], [300.0, 150.0]])
        left, right = place_labels(anchors, np.array([[40.0, 10.0]] * 2), AREA, anchors)
        assert left == pytest.approx((100 - 13 - 40, 145))
        assert right == pytest.approx((300 + 13, 145))

    def test_of_one_point_are_apart(self) -> None:
        anchors, sizes = np.array([[200.0, 150.0]] * 12), np.array([[60.0, 14.0]] * 12)
        boxes = [box(place, (60.0, 14.0)) for place in place_labels(anchors, sizes, AREA, anchors)]
        assert not any(overlap(a, b) for a, b in itertools.combinations(boxes, 2))

    def test_go_over_marks_before_they_are_left_out(self) -> None:
        everywhere = np.stack(np.meshgrid(np.arange(0, 400, 5.0), np.arange(0, 300, 5.0)), -1).reshape(-1, 2)
        anchor, size = np.array([[200.0, 150.0]]), np.array([[40.0, 10.0]])
        assert place_labels(anchor, size, AREA, everywhere)[0] is not None

    def test_without_a_free_place_are_left_out(self) -> None:
        anchors, sizes = np.array([[50.0, 30.0]] * 4), np.array([[90.0, 10.0]] * 4)
        places = place_labels(anchors, sizes, (0, 0, 100, 60), anchors)
        assert None in places
        kept = [box(place, (90.0, 10.0)) for place in places if place]
        assert kept
        assert not any(overlap(a, b) for a, b in itertools.combinations(kept, 2))
