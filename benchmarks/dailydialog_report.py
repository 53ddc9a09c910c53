"""README.md and a picture of the records of dailydialog.py: nothing in them is typed by hand but the published figures."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from dailydialog_baselines import BANDS, BASELINES
from dailydialog_protocol import INTER_1, INTER_2, Records, choose

from vrae.apps.picture import BLUE, GREY, ORANGE, VERMILION, picture, place_labels
from vrae.evaluation.bleu import method7_bleu

RESERVATION = (
    "*Published*: the DailyDialog table of Gu et al. 2019 (DialogWAE), recalled from the literature and not checked against "
    "the paper; their precision, recall and F1 fit together. Vocabulary, version of NLTK and decoding of each row are theirs."
)
METRIC = """\
## What the metric is worth

Legacy BLEU is that of n-grams up to 3 whose precisions are smoothed by `method7`, the end mark being a word. Three of its
properties decide such a table.

1. A reply that shares no word with the true one scores about a third, not 0: both end, which is one word shared, and an order
   without a match is given the precision 1 / (i + 5 / ln T), i = 1, 2, which grows with the length T:

{nothing}

2. That is more than most real matches are worth. One pair of words right in a reply of 20 is a precision of 1/20, where none
   right counts as 0.37: sharing a first pair of words *lowers* the score of a reply of five words or more. What is left to
   win are single words, which common words and marks give to any text.
3. The brevity penalty falls on replies shorter than the true one, and nothing falls on longer ones. Their only cost is in the
   precision of single words.

So the metric rewards length before all else, then common words; a context need not be read. Random turns of the training
dialogues, by their length:

{bands}

Of the {rows} published rows {below} have a lower F1 than random turns of their own mean length (between two bands on a straight
line). Those with the highest F1 have the longest replies: {long}; the true ones: {true}.

So beside a model stands what its lengths alone are worth (`lengths alone`): a random training turn of as many words in place of
each reply. Only what is above that comes from what the replies say. `standard` (sacreBLEU, bounded by 1) tells more, but is low
for all: of many replies that fit, one is the true one.
"""


@dataclass(frozen=True)
class Published:
    """A row of Gu et al. 2019."""

    name: str
    precision: float
    recall: float
    inter_1: float
    inter_2: float
    intra_1: float
    intra_2: float
    words: float

    @property
    def f1(self) -> float:
        return 2 * self.precision * self.recall / (self.precision + self.recall)


PUBLISHED = [
    Published("HRED", 0.232, 0.232, 0.093, 0.097, 0.935, 0.969, 10.1),
    Published("SeqGAN", 0.270, 0.270, 0.075, 0.081, 0.747, 0.806, 15.1),
    Published("CVAE", 0.222, 0.265, 0.177, 0.222, 0.938, 0.973, 10.0),
    Published("CVAE-BOW", 0.224, 0.256, 0.165, 0.206, 0.949, 0.976, 9.8),
    Published("CVAE-CO", 0.244, 0.259, 0.106, 0.126, 0.821, 0.911, 11.2),
    Published("VHRED", 0.260, 0.271, 0.071, 0.089, 0.633, 0.771, 12.7),
    Published("VHCR", 0.266, 0.289, 0.105, 0.129, 0.768, 0.814, 16.9),
    Published("DialogWAE", 0.278, 0.341, 0.327, 0.583, 0.830, 0.940, 18.5),
    Published("DialogWAE-GMP", 0.286, 0.372, 0.313, 0.597, 0.754, 0.892, 24.1),
]
GOAL = {"F1": 0.323, "recall": 0.372, "inter-1": INTER_1, "inter-2": INTER_2}


class Row(NamedTuple):
    """The records of one system under one rule, a record for each seed."""

    system: str
    rule: str  # papers, chosen, or empty for a baseline
    records: Sequence[dict[str, Any]]

    @property
    def setting(self) -> str:
        """In words."""
        return str(self.records[0]["setting"])

    def values(self, *path: str) -> list[float]:
        """One figure of each record; none where a record lacks it."""
        found: list[Any] = list(self.records)
        for key in path:
            found = [value[key] for value in found if key in value]
        return found

    def mean(self, *path: str) -> float:
        return statistics.fmean(self.values(*path))

    def cell(self, *path: str, factor: float = 1, decimals: int = 3) -> str:
        """Mean and standard deviation over seeds."""
        values = [factor * value for value in self.values(*path)]
        if not values:
            return "-"
        spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.{decimals}f}{spread}"


COLUMNS: dict[str, tuple[tuple[str, ...], int, int]] = {  # heading: where in a record, factor, decimals
    "precision": (("bleu", "legacy", "precision"), 1, 3),
    "recall": (("bleu", "legacy", "recall"), 1, 3),
    "F1": (("bleu", "legacy", "f1"), 1, 3),
    "inter-1": (("inter_1",), 1, 3),
    "inter-2": (("inter_2",), 1, 3),
    "intra-1": (("intra_1",), 1, 3),
    "intra-2": (("intra_2",), 1, 3),
    "words": (("words",), 1, 1),
    "standard P": (("bleu", "standard", "precision"), 100, 2),
    "standard R": (("bleu", "standard", "recall"), 100, 2),
    "standard F1": (("bleu", "standard", "f1"), 100, 2),
    "lengths alone F1": (("lengths_alone", "bleu", "legacy", "f1"), 1, 3),
    "lengths alone standard F1": (("lengths_alone", "bleu", "standard", "f1"), 100, 2),
    "unseen F1": (("unseen", "bleu", "legacy", "f1"), 1, 3),
    "unseen standard F1": (("unseen", "bleu", "standard", "f1"), 100, 2),
}


def rows_of(test: Sequence[dict[str, Any]], validation: Sequence[dict[str, Any]]) -> list[Row]:
    """Test records as rows: of a model the papers' setting and the chosen one, unless they are the same; then the baselines."""
    by_system: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for record in test:
        by_system.setdefault(record["system"], {}).setdefault(record["setting"], []).append(record)
    found: list[Row] = []
    for system, by_setting in by_system.items():
        if system not in BASELINES:
            chosen = choose(validation, system)
            rules = {"greedy": "papers", chosen: "chosen"}
            found += [Row(system, rule, by_setting[setting]) for setting, rule in rules.items() if setting in by_setting]
    return found + [Row(name, "", by_system[name][""]) for name in BASELINES if name in by_system]


def reaches(row: Row) -> bool:
    """Whether the means over seeds are above all of GOAL."""
    return all(row.mean(*COLUMNS[name][0]) > least for name, least in GOAL.items())


def write_report(records: Records, picture: Path) -> None:
    """README.md in the folder of the records, and where there is a row, the picture that it shows."""
    rows = rows_of(records.all("test"), records.all("validation"))
    models, baselines = [row for row in rows if row.rule], [row for row in rows if not row.rule]
    best = [f"{row.system} ({row.setting})" if row.rule else row.system for row in rows if reaches(row)]
    lines = ["# DailyDialog", "", *_protocols(rows), RESERVATION, "", *_header("system", "setting", "seeds", *COLUMNS)]
    for p in PUBLISHED:
        figures = (p.precision, p.recall, p.f1, p.inter_1, p.inter_2, p.intra_1, p.intra_2)
        lines.append(_line(f"*{p.name}, published*", "", "", *(f"{v:.3f}" for v in figures), f"{p.words:.1f}", *["-"] * 7))
    for row in [*models, *baselines]:
        cells = (row.cell(*path, factor=factor, decimals=decimals) for path, factor, decimals in COLUMNS.values())
        setting = f"{row.rule}: {row.setting}" if row.rule else "no model"
        lines.append(_line(row.system, setting, str(len(row.records)), *cells))
    goal = ", ".join(f"{name} {least:g}" for name, least in GOAL.items())
    lines += [
        "",
        f"Above {goal} at once: {', '.join(best) or 'none'}.",
        "",
        f"![legacy and standard F1 by length]({os.path.relpath(picture, records.folder)})",
        "",
    ]
    worth = {"rows": len(PUBLISHED), "below": below_random(baselines), "long": _long(), "true": _true(rows)}
    lines += [METRIC.format(nothing="\n".join(_nothing()), bands="\n".join(_bands(baselines)), **worth)]
    lines += [*_training(records.all("training")), "", *_grid(records.all("validation")), "", *_examples(models)]
    records.folder.mkdir(parents=True, exist_ok=True)
    (records.folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if rows:
        _draw(models, baselines, picture)


def summary(records: Records) -> str:
    """Markdown: the columns that decide, of the published rows, the models, and the baselines."""
    names = ("precision", "recall", "F1", "inter-1", "inter-2", "words", "standard F1", "lengths alone F1")
    lines = _header("", "seeds", *names)
    for p in PUBLISHED:
        figures = (*(f"{v:.3f}" for v in (p.precision, p.recall, p.f1, p.inter_1, p.inter_2)), f"{p.words:.1f}", "-", "-")
        lines.append(_line(f"*{p.name}, published*", "", *figures))
    for row in rows_of(records.all("test"), records.all("validation")):
        cells = (row.cell(*path, factor=factor, decimals=d) for path, factor, d in (COLUMNS[name] for name in names))
        lines.append(
            _line(f"{row.system}, {row.rule}" if row.rule else f"no model: {row.system}", str(len(row.records)), *cells)
        )
    return "\n".join(lines)


def _protocols(rows: Sequence[Row]) -> list[str]:
    """What each protocol is, and on how many contexts."""
    records = [record for row in rows for record in row.records]
    if not records:
        return []
    contexts = sorted({(r["contexts"], r.get("unseen", {}).get("contexts", 0)) for r in records})
    of = "; ".join(f"{all_:,} contexts, {unseen:,} of them unseen" for all_, unseen in contexts)
    stated = [figures["statement"].split("; contexts:")[0] for figures in records[0]["bleu"].values()]
    text = "Mean ± standard deviation over seeds. `unseen`: where the reply does not follow the same turn in training too."
    return [f"Ten replies to each of {of}. Standard BLEU in percent. {text}", "", *(f"- {one}" for one in stated), ""]


def _nothing() -> list[str]:
    """What a reply scores that shares nothing with a true reply that is not longer."""
    lengths = (3, 6, 11, 16, 21, 26, 31, 39)  # with the end mark
    scores = [method7_bleu(["a", "/"], [*["b"] * (T - 1), "/"], "legacy") for T in lengths]
    heading = _header("words of a reply that shares none", *(str(T - 1) for T in lengths))
    return [f"   {line}" for line in (*heading, _line("legacy BLEU", *(f"{score:.3f}" for score in scores)))]


def _bands(baselines: Sequence[Row]) -> list[str]:
    """The random replies by their length."""
    names = ("precision", "recall", "F1", "inter-1", "inter-2", "standard F1")
    lines = _header("words", *names)
    found = {row.system: row for row in baselines}
    for least, most in BANDS:
        if row := found.get(f"random-{least}-{most}"):
            cells = (row.cell(*path, factor=factor, decimals=d) for path, factor, d in (COLUMNS[name] for name in names))
            lines.append(_line(f"{least} to {most}", *cells))
    return lines


def _by_length(baselines: Sequence[Row], *path: str) -> list[tuple[float, float]]:
    """Mean length of random turns of the same length or so, and a figure of theirs."""
    bands = {f"random-{least}-{most}" for least, most in BANDS}
    return sorted((row.mean("words"), row.mean(*path)) for row in baselines if row.system in bands)


def below_random(baselines: Sequence[Row]) -> int:
    """How many published rows have a lower F1 than random turns of their mean length, between two bands on a straight line."""
    line = _by_length(baselines, *COLUMNS["F1"][0])
    return sum(p.f1 < np.interp(p.words, *zip(*line, strict=True)) for p in PUBLISHED) if line else 0


def _long() -> str:
    best = sorted(PUBLISHED, key=lambda p: -p.f1)[:2]
    return ", ".join(f"{p.name}: {p.words:g} words" for p in best)


def _true(rows: Sequence[Row]) -> str:
    return f"{rows[0].mean('reference_words'):.1f} words" if rows else "-"


def _training(records: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "## Training",
        "",
        "Validation, nats per turn.",
        "",
        *_header("system", "seed", "steps", "minutes", "-elbo", "rate", "active units"),
    ]
    for r in records:
        active = f"{r['active_units']} of {r['config']['model']['latent_size']}"
        lines.append(
            _line(
                r["system"],
                str(r["seed"]),
                str(r["steps"]),
                f"{r['minutes']:.0f}",
                f"{-r['elbo']:.2f}",
                f"{r['rate']:.2f}",
                active,
            )
        )
    return lines


def _grid(records: Sequence[dict[str, Any]]) -> list[str]:
    """What the settings were chosen by."""
    names = ("precision", "recall", "F1", "inter-1", "inter-2", "words")
    lines = ["## Settings tried on the validation", "", *_header("system", "setting", "seeds", *names)]
    together: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        together.setdefault((record["system"], record["setting"]), []).append(record)
    for (system, setting), some in together.items():
        row = Row(system, "", some)
        cells = (row.cell(*path, factor=factor, decimals=d) for path, factor, d in (COLUMNS[name] for name in names))
        lines.append(_line(system, setting, str(len(some)), *cells))
    return lines


def _examples(models: Sequence[Row]) -> list[str]:
    """Three replies of each model to one context, so that nobody reads figures alone; those without a model are the data's."""
    lines = ["## Three of the ten replies to one context", ""]
    for row in models:
        lines += [f"- {row.system}, {row.setting}", *(f"  - {reply}" for reply in row.records[0]["examples"][:3])]
    return lines


class Mark(NamedTuple):
    """A system in a picture."""

    x: float
    y: float
    label: str
    colour: str
    shape: str


def _draw(models: Sequence[Row], baselines: Sequence[Row], out: Path) -> None:
    """F1 over the length of the replies, legacy and standard; a line through random turns of rising length.

    Systems decoded as was chosen stand too close to each other to be named.
    """
    kinds = (
        (VERMILION, "no model"), (BLUE, "each system, setting chosen on the validation"), (ORANGE, "papers' decoding"),
        (GREY, "published"),
    )  # fmt: skip
    with picture(out, (16, 7)) as figure:
        panels = []
        for axes, name in zip(figure.subplots(1, 2), ("F1", "standard F1"), strict=True):
            path, factor, _ = COLUMNS[name]
            marks = [
                Mark(row.mean("words"), factor * row.mean(*path), "" if row.rule == "chosen" else row.system, *kind)
                for kind, rows in (
                    ((BLUE, "o"), [row for row in models if row.rule == "chosen"]),
                    ((ORANGE, "o"), [row for row in models if row.rule == "papers"]),
                    ((VERMILION, "s"), baselines),
                )
                for row in rows
            ]
            line = _by_length(baselines, *path)
            axes.plot([x for x, _ in line], [factor * y for _, y in line], color=VERMILION, lw=1)
            marks += [Mark(p.words, p.f1, p.name, GREY, "D") for p in PUBLISHED if name == "F1"]
            for mark in marks:
                axes.plot(mark.x, mark.y, mark.shape, color=mark.colour, ms=6)
            axes.margins(0.1)
            axes.set_title("legacy F1" if name == "F1" else "standard F1, percent")
            axes.set_xlabel("words per reply")
            panels.append((axes, marks))
        handles = [figure.axes[0].plot([], [], "o", color=colour, label=label)[0] for colour, label in kinds]
        figure.axes[0].legend(handles=handles, loc="upper left", fontsize=9)
        figure.draw_without_rendering()  # only now is it known where everything stands
        for axes, marks in panels:
            _label(axes, marks)


def _label(axes: Any, marks: Sequence[Mark]) -> None:
    """Writes their names beside the marks, none over another; a name without a place is left out."""
    named = [mark for mark in marks if mark.label]
    texts = [axes.text(0, 0, mark.label, fontsize=8, color=mark.colour, transform=axes.transAxes) for mark in named]
    marks_M2, anchors_L2 = (axes.transData.transform([(mark.x, mark.y) for mark in some]) for some in (marks, named))
    sizes_L2 = np.array([text.get_window_extent().size for text in texts])
    area = axes.get_window_extent()
    for text, place in zip(texts, place_labels(anchors_L2, sizes_L2, (*area.min, *area.max), marks_M2), strict=True):
        if place is None:
            text.remove()
        else:
            text.set_position(axes.transAxes.inverted().transform(place))


def _header(*names: str) -> list[str]:
    return [_line(*names), _line(*("---" for _ in names))]


def _line(*values: str) -> str:
    return f"| {' | '.join(values)} |"
