"""The canvas of all pictures, and text on it: characters that the font has, no longer than their place, labels apart.

Needs matplotlib (`pip install 'vrae[viz]'`). The same drawing gives the same bytes under one version of it: no pyplot, no
clock, and none of the reader's own matplotlib settings. The colours can be told apart with any kind of eyes.

Shape legend: L labels, M marks, C candidate places; 2 is (x, y), 4 is (left, bottom, right, top).
"""

from __future__ import annotations

import io
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vrae.errors import UserError
from vrae.files import write_file

# Okabe & Ito's palette, without its yellow, which is faint on white
BLUE, VERMILION, ORANGE, GREEN, PURPLE, SKY = "#0072b2", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#56b4e9"
GREY, INK = "#8a8a8a", "#202020"
_STYLE = {
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.15,
    "font.size": 12,
    "axes.titlelocation": "left",
    "axes.titlesize": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}
EMPTY = "(empty)"  # stands for a text of nothing that could be seen
_MISSING = "\N{WHITE SQUARE}"
_DISTANCES = (13, 22, 34, 50, 70, 95, 125, 165, 215, 280, 360)  # pixels from an anchor to its label, the nearest first
_DIRECTIONS = 16
_CLEARANCE = 11  # pixels between a label and the middle of a mark


@contextmanager
def picture(out: str | Path, size: tuple[float, float]) -> Iterator[Any]:
    """A figure of `size` inches, stored as PNG when the block ends well."""
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("pictures need matplotlib. Run: pip install 'vrae[viz]'") from None
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=size)
        yield figure
        stored = io.BytesIO()
        figure.savefig(stored, format="png", metadata={"Software": "vrae"})
    try:
        write_file(Path(out), stored.getvalue())
    except OSError as error:
        raise UserError(f"{out}: cannot write the picture: {error.strerror or error}") from None


def drawable(text: str) -> str:
    """`text` on one line, as the regular and the bold font can draw it.

    A box stands for a character that they lack, and what prints nothing (joiners, marks of direction, variation selectors) is
    left out: how such a text is written depends on the renderer, and a box for it would be a character too many.
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [get_font(findfont(FontProperties(weight=weight))) for weight in ("regular", "bold")]
    printing = "".join(c for c in text if unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f")
    line = " ".join(printing.split())
    return "".join(c if all(font.get_char_index(ord(c)) for font in fonts) else _MISSING for c in line) or EMPTY


def measure(figure: Any, **font: Any) -> Callable[[str], float]:
    """A function that gives the width of a line of text in points, drawn on `figure` with these text properties."""
    from matplotlib.text import Text

    probe = Text(parse_math=False, **font)
    probe.set_figure(figure)

    def width(text: str) -> float:
        probe.set_text(text)
        return float(probe.get_window_extent().width) * 72 / float(figure.dpi)

    return width


def fit(text: str, width: float, lines: int, measure: Callable[[str], float]) -> list[str]:
    """Breaks `text` at spaces into at most `lines` lines no wider than `width`. What has no place gives way to an ellipsis.

    Args:
        text: one line, not empty.
        width: in the unit of `measure`. One character stays on a line, however narrow.
        lines: 1 or more.
        measure: width of a line of text; a longer one is no narrower.
    """

    def fitting(text: str, end: str = "") -> int:
        """How many characters fit. Of a long text, which takes long to measure, only the first ones are looked at."""
        some = 32
        while some < len(text) and measure(text[:some].rstrip() + end) <= width:
            some *= 2
        counts = range(1, min(some, len(text)) + 1)
        return bisect_right(counts, width, key=lambda n: measure(text[:n].rstrip() + end))

    fitted: list[str] = []
    while (kept := fitting(text)) < len(text):
        if len(fitted) == lines - 1:
            return [*fitted, text[: fitting(text, "…")].rstrip() + "…"]
        kept = max(kept, 1)
        space = text.rfind(" ", 1, kept)
        fitted.append(text[: space if space > 0 else kept])
        text = text[len(fitted[-1]) :].lstrip()
    return [*fitted, text] if text else fitted


def place_labels(
    anchors_L2: np.ndarray, sizes_L2: np.ndarray, area_4: tuple[float, float, float, float], marks_M2: np.ndarray
) -> list[tuple[float, float] | None]:
    """Where to put labels: left and bottom of each, or None where no place is free. In pixels.

    One after the other takes the nearest place beside its anchor that lies within `area_4`, over no earlier label and clear
    of the marks; where none is clear of them, the nearest over no earlier label. Of places equally near, the one that points
    away from the middle of the marks comes first.
    """
    taken_L4 = np.zeros((0, 4))
    found: list[tuple[float, float] | None] = []
    middle_2 = marks_M2.mean(0) if len(marks_M2) else np.zeros(2)
    for anchor_2, size_2 in zip(anchors_L2, sizes_L2, strict=True):
        outward = np.arctan2(*(anchor_2 - middle_2)[::-1])
        turns = sorted(range(_DIRECTIONS), key=lambda turn: (min(turn, _DIRECTIONS - turn), turn))
        angles = [outward + 2 * np.pi * turn / _DIRECTIONS for turn in turns]
        around_2 = [np.clip((1.5 * np.cos(angle), 1.5 * np.sin(angle)), -1, 1) for angle in angles]  # on a square
        offsets_C2 = np.array([way_2 * (size_2 / 2 + away) - size_2 / 2 for away in _DISTANCES for way_2 in around_2])
        boxes_C4 = np.hstack([anchor_2 + offsets_C2, anchor_2 + offsets_C2 + size_2])
        free_C = (boxes_C4[:, :2] >= area_4[:2]).all(1) & (boxes_C4[:, 2:] <= area_4[2:]).all(1)
        low_C12, high_C12 = boxes_C4[:, None, :2], boxes_C4[:, None, 2:]
        over_CL = np.all((low_C12 < taken_L4[:, 2:]) & (high_C12 > taken_L4[:, :2]), axis=-1)
        near_CM = np.all((low_C12 - _CLEARANCE < marks_M2) & (high_C12 + _CLEARANCE > marks_M2), axis=-1)
        free_C &= ~np.any(over_CL, axis=1)
        near_C = np.any(near_CM, axis=1)
        best = next((int(np.argmax(choice_C)) for choice_C in (free_C & ~near_C, free_C) if choice_C.any()), None)
        if best is None:
            found.append(None)
            continue
        taken_L4 = np.vstack([taken_L4, boxes_C4[best]])
        found.append((float(boxes_C4[best, 0]), float(boxes_C4[best, 1])))
    return found
