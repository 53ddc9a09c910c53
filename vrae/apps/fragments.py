"""The parts of the page that gradio has no component for, as HTML and SVG: whatever they are given to show is escaped.

They are static; `assets/page.js` brings them to life: what has `data-text` or `data-index` tells the server that it was chosen.

Shape legend: S points of a path; 2 is (x, y), each from -1 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from itertools import cycle
from typing import Any

from vrae.apps.latent_map import LatentMap
from vrae.generation.responses import Reply

Point = tuple[float, float]


def bits(log_prob: float) -> str:
    return f"{max(-log_prob, 0.0) / math.log(2):.1f} bits"  # not -0.0


def _signed(value: float) -> str:
    return f"{value:.1f}".replace("-", "\u2212")  # the minus sign


def note(text: str, kind: str = "note") -> str:
    """A quiet line; `kind` is note or empty."""
    return f'<p class="v-{kind}">{escape(text)}</p>'


def transcript(turns: Sequence[str]) -> str:
    """The turns of a dialogue, which the visitor began."""
    if not turns:
        return note("Nothing said yet. Write a line below, or choose one of the openings.", "empty")
    rows = (
        f'<li class="v-turn {side}"><span class="v-who">{who}</span><span>{escape(turn)}</span></li>'
        for (side, who), turn in zip(cycle((("v-you", "You"), ("v-model", "Model"))), turns, strict=False)
    )
    return f'<ol class="v-talk" aria-label="Conversation">{"".join(rows)}</ol>'


def replies(found: Sequence[Reply], chosen: int) -> str:
    """What could be said, as buttons, the best first; `chosen` is what was said."""
    if not found:
        return note("The replies that the model considers appear here.", "empty")
    rows = (
        f'<li><button type="button" class="v-choice" data-index="{i}" aria-pressed="{str(i == chosen).lower()}">'
        f"<span>{escape(reply.text)}</span>"
        f'<small>{bits(reply.log_prob)} <span class="v-dim">log-probability {_signed(reply.log_prob)}</span></small>'
        "</button></li>"
        for i, reply in enumerate(found)
    )
    return f'<ul class="v-list">{"".join(rows)}</ul>'


def dots(chart: LatentMap) -> str:
    """The sentences of a map, questions apart from the rest."""
    return "".join(
        f'<circle class="{"v-q" if text.rstrip().endswith("?") else "v-s"}" cx="{x:.3f}" cy="{-y:.3f}" r=".012" '
        f'data-text="{escape(text)}"/>'
        for text, (x, y) in zip(chart.texts, chart.points_N2.tolist(), strict=True)
    )


def map_to_explore(chart: LatentMap) -> str:
    """A map whose points can be read and chosen, by pointer and by keyboard."""
    label = "A map of sentences. Arrow keys go from point to point, Enter chooses one."
    return (
        f"{_svg(chart, dots(chart), 'v-map v-open', label, 0)}"
        f'<p class="v-caption" aria-live="polite">Point at a sentence to read it, click to choose it.</p>{_legend(chart)}'
    )


def path(chart: LatentMap, steps: Sequence[dict[str, Any]], points_S2: Sequence[Point], remark: str) -> str:
    """A path over a map with a slider along it. All of it is here: moving the slider asks nothing of the server."""
    line = " ".join(f"{x:.3f},{-y:.3f}" for x, y in points_S2)
    (x0, y0), (x1, y1) = points_S2[0], points_S2[-1]
    marks = (
        f'{dots(chart)}<polyline class="v-line" points="{line}"/><circle class="v-end" cx="{x0:.3f}" cy="{-y0:.3f}" r=".022"/>'
        f'<circle class="v-end" cx="{x1:.3f}" cy="{-y1:.3f}" r=".022"/>'
        f'<circle class="v-here" cx="{x0:.3f}" cy="{-y0:.3f}" r=".036"/>'
    )
    rows = "".join(
        f'<li data-x="{x:.3f}" data-y="{-y:.3f}"{" class=v-now" if i == 0 else ""}{" hidden" if _again(steps, i) else ""}>'
        f'<span class="v-share">{step["t"]:.0%}</span><span>{escape(step["text"]) or "(nothing)"}</span>'
        f"<small>{bits(step['log_prob'])}</small></li>"
        for i, (step, (x, y)) in enumerate(zip(steps, points_S2, strict=True))
    )
    return (
        f'<div class="v-path"><div><label class="v-label" for="v-slider">Where on the way</label>'
        f'<input id="v-slider" type="range" min="0" max="{len(steps) - 1}" value="0">'
        f'<output class="v-said" for="v-slider" aria-live="polite">{escape(steps[0]["text"])}</output>'
        f'<ol class="v-steps" aria-label="What is said on the way">{rows}</ol>{note(remark) if remark else ""}</div>'
        f"<div>{_svg(chart, marks, 'v-map', 'The way between the two sentences on the map', -1)}{_legend(chart)}</div></div>"
    )


def _again(steps: Sequence[dict[str, Any]], i: int) -> bool:
    """Whether a step says what the one before it said."""
    return i > 0 and steps[i]["text"] == steps[i - 1]["text"]


def sentences(title: str, rows: Iterable[tuple[str, str, Point]]) -> str:
    """Sentences with a figure each, to be chosen; `page.js` marks their places on the map."""
    items = "".join(
        f'<li><button type="button" class="v-choice" data-text="{escape(text)}" data-x="{x:.3f}" data-y="{-y:.3f}">'
        f"<span>{escape(text) or '(nothing)'}</span><small>{escape(figure)}</small></button></li>"
        for text, figure, (x, y) in rows
    )
    return f'<h3 class="v-label">{escape(title)}</h3><ul class="v-list">{items}</ul>'


def lines(rows: Iterable[tuple[str, str]]) -> str:
    """Sentences with a figure each, to be read."""
    items = (f"<li><span>{escape(text)}</span><small>{escape(figure)}</small></li>" for text, figure in rows)
    return f'<ul class="v-list v-lines">{"".join(items)}</ul>'


def table(title: str, rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows)
    return f'<h3 class="v-label">{escape(title)}</h3><table class="v-table">{cells}</table>'


def curve(title: str, values: Sequence[tuple[float, float]], unit: str) -> str:
    """(x, y) as a line, with its first and last values in words."""
    (x0, y0), (x1, y1) = values[0], values[-1]
    low, high = min(y for _, y in values), max(y for _, y in values)
    places = " ".join(
        f"{(x - x0) / max(x1 - x0, 1) * 100:.2f},{(high - y) / max(high - low, 1e-9) * 40:.2f}" for x, y in values
    )
    said = f"{title}: from {y0:.1f} at step {x0:,.0f} to {y1:.1f} {unit} at step {x1:,.0f}"
    return (
        '<figure class="v-curve"><svg viewBox="-1 -1 102 42" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(said)}"><polyline points="{places}"/></svg><figcaption>{escape(said)}</figcaption></figure>'
    )


def _svg(chart: LatentMap, marks: str, classes: str, label: str, tabindex: int) -> str:
    tall = chart.height + 0.04
    focus = f'tabindex="{tabindex}" role="application"' if tabindex >= 0 else 'role="img"'
    return (
        f'<svg class="{classes}" viewBox="-1.04 {-tall:.2f} 2.08 {2 * tall:.2f}" {focus} aria-label="{escape(label)}">'
        f'{marks}<g class="v-marks"></g></svg>'
    )


def _legend(chart: LatentMap) -> str:
    share = sum(chart.axes.shares)
    return (
        f'<p class="v-legend"><i class="v-key v-q"></i>questions <i class="v-key v-s"></i>the rest</p>'
        f'<p class="v-note">{len(chart.texts):,} {escape(chart.source)}. The map shows the two directions in which they differ '
        f"most: {share:.0%} of all difference.</p>"
    )
