"""A sheet of interpolations: every point is there, in its place, safe from what its text may hold."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_hex

from vrae.apps.picture import BLUE, GREY, INK, VERMILION
from vrae.apps.plots import LatentPath
from vrae.apps.sheet import plot_paths
from vrae.errors import UserError

LONG = "a sentence that goes on and on " * 20


def walk(*texts: str, given: tuple[str, str] | None = None) -> LatentPath:
    return LatentPath(
        given or (texts[0], texts[-1]), np.linspace(0, 1, len(texts)).tolist(), list(texts), np.zeros((len(texts), 2))
    )


PATH = walk("hello", "hello", "it is $x_1$", "so \\long", "bye")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that would be stored. Nothing is rendered."""
    from matplotlib.figure import Figure

    stored: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *arguments, **options: stored.append(self))
    return stored


def test_has_every_text_and_its_t_literally(tmp_path: Path, figures: list[Any]) -> None:
    plot_paths([PATH], tmp_path / "sheet.png")
    texts = figures[0].axes[0].texts
    assert [text.get_text() for text in texts] == [
        *("0.00", "hello", "0.25", "hello", "0.50", "it is $x_1$", "0.75", "so \\long", "1.00", "bye")
    ]
    assert not any(text.get_parse_math() for text in texts)
    weights = [text.get_fontweight() for text in texts[1::2]]
    assert weights == ["bold", "normal", "normal", "normal", "bold"]
    assert [text.get_color() for text in texts[1::2]] == [BLUE, GREY, INK, INK, VERMILION]


def test_colours_go_from_one_end_to_the_other(tmp_path: Path, figures: list[Any]) -> None:
    plot_paths([PATH], tmp_path / "sheet.png")
    (dots,) = figures[0].axes[0].collections
    colours = [to_hex(colour) for colour in dots.get_facecolors()]
    assert (colours[0], colours[-1]) == (BLUE, VERMILION)
    red, blue = dots.get_facecolors()[:, 0], dots.get_facecolors()[:, 2]
    assert (np.diff(red) > 0).all()
    assert (np.diff(blue) < 0).all()
    assert (np.diff(dots.get_offsets()[:, 1]) > 0).all()  # downwards: the axis is from the top


def test_says_what_was_given_where_the_end_is_another(tmp_path: Path, figures: list[Any]) -> None:
    plot_paths([walk("hi", "well", "bye", given=("hi", "goodbye"))], tmp_path / "sheet.png")
    texts = [text.get_text() for text in figures[0].axes[0].texts]
    assert texts == ["0.00", "hi", "0.50", "well", "1.00", "bye", "given: goodbye"]


@pytest.mark.parametrize("count", [1, 4, 8])
def test_holds_one_to_eight_paths_without_a_text_over_another(tmp_path: Path, figures: list[Any], count: int) -> None:
    paths = [walk(LONG, "short", LONG, "", "🎉 end", given=("another " * 40, "🎉 end"))] * (count - 1) + [PATH]
    plot_paths(paths, tmp_path / "sheet.png")
    figure = figures[0]
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 10 + (count - 1) * (10 + 2 + 2)  # long texts take two lines, and so does what was given
    for a, b in itertools.combinations(boxes, 2):
        assert not a.overlaps(b)
    for box in boxes:
        assert -1 <= box.x0 < box.x1 <= figure.bbox.x1 + 1
        assert -1 <= box.y0 < box.y1 <= figure.bbox.y1 + 1
    assert sum(text.get_text().endswith("…") for text in figure.axes[0].texts) == 3 * (count - 1)
    assert sum(text.get_text() == "(empty)" for text in figure.axes[0].texts) == count - 1


def test_of_long_paths_is_a_slide_wide(tmp_path: Path) -> None:
    path = plot_paths([walk(*[LONG] * 7)] * 2, tmp_path / "sheet.png")
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    assert 1900 <= width <= 2100
    assert 400 <= height <= 1200


def test_is_the_same_bytes_for_the_same_paths(tmp_path: Path) -> None:
    first, second = (plot_paths([PATH, walk("a", "b")], tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second
    assert first != plot_paths([PATH, walk("a", "c")], tmp_path / "c.png").read_bytes()


@pytest.mark.parametrize(
    ("paths", "message"),
    [([], "1 to 8 paths"), ([PATH] * 9, "Got 9"), ([walk(*["x"] * 25)], "24 points")],
)
def test_refuses_what_it_cannot_hold(tmp_path: Path, paths: list[LatentPath], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plot_paths(paths, tmp_path / "sheet.png")
    assert not list(tmp_path.iterdir())
