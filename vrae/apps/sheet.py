"""A sheet of interpolations, to be put on a slide.

Each path is a block: a line or two of text for each of its points, on a thread whose colour goes from one end's to the other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vrae.apps.picture import BLUE, GREY, INK, VERMILION, drawable, fit, measure, picture
from vrae.apps.plots import LatentPath, check_paths

_SHEETS = {1: (1, 20), 2: (2, 16), 3: (3, 13), 4: (2, 16), 5: (3, 13), 6: (3, 13), 7: (4, 11), 8: (4, 11)}  # columns, font size
_SHEET_WIDTH = 960.0  # points: a slide of 16:9


def plot_paths(paths: Sequence[LatentPath], out: str | Path) -> Path:
    """Draws walks as blocks of text, a line or two for each point, its t beside it, into the PNG file `out`: a slide.

    The ends are in bold. Where a block's end is not the sentence that was given, that stands beside it in grey. A text that is
    the one before it again is grey too. Of a long text, what does not fit on two lines gives way to an ellipsis.

    Args:
        paths: 1 to 8 of them, of 2 to 24 points.
        out: the file.

    Raises:
        UserError: matplotlib is not installed, or there are too few or too many paths or points.
    """
    with picture(out, (_SHEET_WIDTH / 72, 1)) as figure:
        check_paths(paths, least=1)
        figure.set_layout_engine("none")
        columns, size = _SHEETS[len(paths)]
        width = _SHEET_WIDTH / columns
        blocks = [_block(figure, path, width, size) for path in paths]
        rows = [blocks[start : start + columns] for start in range(0, len(blocks), columns)]
        heights = [max(block.height for block in row) + 1.5 * size for row in rows]
        bottom = sum(heights) - 1.5 * size
        figure.set_size_inches(_SHEET_WIDTH / 72, bottom / 72)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, _SHEET_WIDTH), ylim=(bottom, 0))  # in points, from the top
        axes.set_axis_off()
        for place, (path, block) in enumerate(zip(paths, blocks, strict=True)):
            left, top = width * (place % columns), sum(heights[: place // columns])
            x, colours = left + 3 * size, _ramp(path.t_S)
            for high, low, colour in zip(block.dots[:-1], block.dots[1:], colours[:-1], strict=True):
                axes.plot([x, x], [top + high, top + low], color=colour, lw=0.15 * size, solid_capstyle="butt")
            axes.scatter([x] * len(colours), np.add(block.dots, top), c=colours, s=(0.65 * size) ** 2, zorder=3)
            for line_x, line_y, text, font in block.lines:
                axes.text(left + line_x, top + line_y, text, parse_math=False, va="baseline", **font)
    return Path(out)


class _Block(NamedTuple):
    """One path of a sheet, in points from its upper left corner."""

    height: float
    dots: list[float]  # S, how far down
    lines: list[tuple[float, float, str, dict[str, Any]]]  # x, baseline, text, its font and colour


def _block(figure: Any, path: LatentPath, width: float, size: float) -> _Block:
    lines: list[tuple[float, float, str, dict[str, Any]]] = []
    dots: list[float] = []
    y, left, colours, last = 0.0, 4 * size, _ramp(path.t_S), len(path.texts) - 1

    def write(text: str, **font: Any) -> None:
        nonlocal y
        for line in fit(text, width - left - 1.5 * size, 2, measure(figure, **font)):
            lines.append((left, y + font["size"], line, font))
            y += 1.25 * font["size"]

    for point, (t, text) in enumerate(zip(path.t_S, path.texts, strict=True)):
        lines.append((2.3 * size, y + 0.91 * size, f"{t:.2f}", {"size": 0.75 * size, "color": GREY, "ha": "right"}))
        dots.append(y + 0.64 * size)  # the middle of a lower-case letter
        if point in (0, last):
            write(drawable(text), size=size, weight="bold", color=colours[point])
            given = drawable(path.given[point == last])
            if given != drawable(text):
                write(f"given: {given}", size=0.75 * size, color=GREY)
        else:
            write(drawable(text), size=size, color=GREY if text == path.texts[point - 1] else INK)
        y += 0.45 * size
    return _Block(y, dots, lines)


def _ramp(t_S: Sequence[float]) -> list[str]:
    """The colour of each point: from blue at t = 0 to vermilion at t = 1."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    ramp = LinearSegmentedColormap.from_list("path", [BLUE, "#7a5299", VERMILION])  # the middle of the two is a dull grey
    return [to_hex(ramp(float(t))) for t in t_S]
