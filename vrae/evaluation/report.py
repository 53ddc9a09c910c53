"""The report of an evaluation: named figures in sections, as a table for the terminal, as JSON, as Markdown.

It knows no estimator and computes nothing, so that a figure reads the same in all three. The same report gives the same bytes:
there is no clock in it.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vrae.errors import UserError
from vrae.files import to_json, write_file

JSON, MARKDOWN = "report.json", "report.md"
_WIDTH = 100  # columns of the table
_NUMBER = 16  # of them, as many as a number may have
_ABSENT = "-"


@dataclass(frozen=True)
class Figure:
    """One result.

    Args:
        key: its name in JSON; with spaces for underscores, its name in the table.
        value: a number, a word, a list of numbers, or None where it was not measured or does not exist.
        unit: of the value and its error.
        error: standard error.
    """

    key: str
    value: float | int | str | bool | Sequence[float] | None
    unit: str = ""
    error: float | None = None


@dataclass(frozen=True)
class Section:
    """Figures that were measured together, and the lines that say how."""

    title: str
    figures: Sequence[Figure]
    protocol: Sequence[str] = ()


@dataclass(frozen=True)
class Report:
    """An evaluation as it is shown and stored.

    Args:
        title: one line.
        sections: in the order in which they are read.
        promised: keys of figures, or of `provenance`, that stand at the top of the JSON for scripts to find.
        warnings: what should not be overlooked, in words.
        provenance: what the figures are of and depend on: model, corpus, split, seed, versions, decoding. JSON values.
        pictures: caption of each picture, by its file's name; those that exist beside the Markdown are shown in it.
    """

    title: str
    sections: Sequence[Section]
    promised: Sequence[str] = ()
    warnings: Sequence[str] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for names in ([section.title for section in self.sections], *([f.key for f in s.figures] for s in self.sections)):
            assert len(set(names)) == len(names), f"a name stands twice: {names}"
        held = Counter(f.key for s in self.sections for f in s.figures) + Counter(self.provenance.keys())
        wrong = [key for key in self.promised if held[key] != 1]
        wrong += {"title", "warnings", "provenance", "sections"}.intersection(self.promised)
        assert not wrong, f"promised keys must occur once among figures and provenance: {wrong}"

    def table(self) -> str:
        """Plain text of at most 100 columns, but for long words; the warnings stand last, where they are seen."""
        shown = [[_cells(figure) for figure in section.figures] for section in self.sections]
        cells = [cell for section in shown for cell in section]
        name_width = max((len(name) for name, *_ in cells), default=0)
        # a list sticks out, and does not push all numbers to the right
        value_width = max((len(value) for _, value, *_ in cells if len(value) <= _NUMBER), default=0)
        error_width = max((len(error) for *_, error, _ in cells), default=0)
        lines = [self.title]
        for section, rows in zip(self.sections, shown, strict=True):
            lines += ["", section.title]
            for name, value, error, unit in rows:
                lines.append(f"  {name:<{name_width}}  {value:>{value_width}}  {error:<{error_width}}  {unit}".rstrip())
            for line in section.protocol:
                lines += _wrapped(line, "  . ")
        if self.provenance:
            width = max(map(len, self.provenance))
            lines += ["", "Provenance"]
            for key, value in self.provenance.items():
                lines += _wrapped(_words(value), f"  {_name(key):<{width}}  ")
        if self.warnings:
            lines += ["", "Warnings", *(line for warning in self.warnings for line in _wrapped(warning, "  ! "))]
        return "\n".join(lines) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """JSON values: the promised keys with their bare values, then title, warnings, provenance and sections.

        Numbers that are not finite become None.
        """
        figures = {figure.key: figure.value for section in self.sections for figure in section.figures}
        document = {
            **{key: figures[key] if key in figures else self.provenance[key] for key in self.promised},
            "title": self.title,
            "warnings": list(self.warnings),
            "provenance": self.provenance,
            "sections": {
                section.title: {
                    "figures": {
                        figure.key: {"value": figure.value, "unit": figure.unit, "error": figure.error}
                        for figure in section.figures
                    },
                    "protocol": list(section.protocol),
                }
                for section in self.sections
            },
        }
        plain: dict[str, Any] = _finite(document)
        return plain

    def to_json(self) -> str:
        """`as_dict` as readable JSON."""
        return to_json(self.as_dict()).decode()

    def to_markdown(self, folder: str | Path = ".") -> str:
        """GitHub's Markdown, with the pictures that exist in `folder`, where it will be stored."""
        blocks = [f"# {_escaped(self.title)}"]
        if self.warnings:
            blocks.append("\n".join(f"> **Warning:** {_escaped(warning)}\n>" for warning in self.warnings).removesuffix("\n>"))
        for section in self.sections:
            rows = ["| | value | standard error | unit |", "|---|---:|---:|---|"]
            for name, value, error, unit in map(_cells, section.figures):
                rows.append(f"| {_escaped(name)} | {_escaped(value)} | {error.removeprefix('± ')} | {_escaped(unit)} |")
            blocks += [f"## {_escaped(section.title)}", "\n".join(rows)]
            if section.protocol:
                blocks.append("\n".join(f"- {_escaped(line)}" for line in section.protocol))
        shown = {name: caption for name, caption in self.pictures.items() if (Path(folder) / name).is_file()}
        for name, caption in shown.items():
            blocks += [f"## {_escaped(caption)}", f"![{_escaped(caption)}]({quote(name)})"]
        if self.provenance:
            rows = [f"| {_escaped(_name(key))} | {_escaped(_words(value))} |" for key, value in self.provenance.items()]
            blocks += ["## Provenance", "\n".join(["| | |", "|---|---|", *rows])]
        return "\n\n".join(blocks) + "\n"

    def save(self, folder: str | Path) -> None:
        """Writes report.json and report.md. Draw the pictures first. Raises UserError where `folder` cannot be written."""
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_file(folder / JSON, self.to_json().encode())
            write_file(folder / MARKDOWN, self.to_markdown(folder).encode())
        except OSError as error:
            raise UserError(f"{folder}: cannot write the report: {error.strerror or error}") from None


def figures(source: object, **units: str) -> list[Figure]:
    """The attributes of `source` that are named, each with its unit, and with `NAME_error` as its standard error."""
    return [Figure(key, getattr(source, key), unit, getattr(source, f"{key}_error", None)) for key, unit in units.items()]


def _cells(figure: Figure) -> tuple[str, str, str, str]:
    """Name, value, standard error and unit as they are shown."""
    value, error = figure.value, figure.error
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return _name(figure.key), _ABSENT, "", ""
    if isinstance(value, float) and error is not None and 0 < error < math.inf:
        # two digits of the error, and at least two places: figures of the same turns differ by less than their errors
        places = max(1 - math.floor(math.log10(error)), 2)
        return _name(figure.key), f"{value:,.{places}f}", f"± {error:,.{places}f}", figure.unit
    return _name(figure.key), _measured(value), "", figure.unit


def _measured(value: float | int | str | bool | Sequence[float]) -> str:
    """A value of a figure: four digits of a number that count, a long list as its range."""
    if isinstance(value, float):
        return _decimal(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"{len(value)} from {_measured(min(value))} to {_measured(max(value))}" if value else _ABSENT
    return _words(value)


def _words(value: Any) -> str:
    """A setting as it is."""
    if value is None:
        return _ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_name(key)} {_words(inner)}" for key, inner in value.items()) or _ABSENT
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_words, value)) or _ABSENT
    return " ".join(str(value).split())


def _decimal(value: float) -> str:
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:,.{max(3 - math.floor(math.log10(abs(value))), 0)}f}"


def _name(key: str) -> str:
    return key.replace("_", " ")


def _wrapped(text: str, start: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_long_words=False, break_on_hyphens=False
    ) or [start.rstrip()]


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\`*_[]|~#":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(inner) for inner in value]
    return value
