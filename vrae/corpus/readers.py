"""Files to rows, one at a time, in memory that does not grow with the file.

A reader yields `(number, row)`: the line or row number from 1, and a list of turns, a string or a record. A row that
cannot be read is yielded as the `DataError` that says why, so that the caller may count it and read on.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

from vrae.config import Layout, shown
from vrae.errors import DataError

MAX_LINE_BYTES = 1_000_000
MAX_TURNS = 100_000
TURN_END = "__eou__"
TextKind = Literal["eou", "turns", "transcript", "utterances"]
TEXT_KINDS: dict[TextKind, str] = {
    "eou": f"text, a dialogue a line, every turn ended by {TURN_END}",
    "turns": "text, a turn a line, a blank line between dialogues",
    "transcript": 'text, lines "Name: text", a blank line between dialogues',
    "utterances": "text, a plain list of utterances, each a dialogue of one turn",
}

Row = tuple[int, Any]
Rows = Generator[Row, None, None]  # to be closed where reading stops early, as the file is then


def problem(where: str, expected: str, got: str, remedy: str) -> DataError:
    """The error of one place in a corpus: `where: expected ..., got ...; remedy`."""
    return DataError(f"{shown(where, 500)}: expected {shown(expected, 300)}, got {shown(got, 300)}; {shown(remedy, 300)}")


def row_place(path: Path) -> str:
    """How the place of a row starts in a message, before its number: `file:`, or `file:row ` where it has no lines."""
    return f"{path}:row " if path.suffix.lower() == ".parquet" else f"{path}:"


def open_file(path: Path) -> BinaryIO:
    """Raises DataError when the file cannot be opened."""
    try:
        return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL or half of a character
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"{shown(str(path), 500)}: cannot be read: {why or error}") from error


class Lines:
    """The lines of a UTF-8 file, each ended by `end`; byte-order mark dropped, at most `MAX_LINE_BYTES` held.

    `next` raises DataError for a line that is not text and can be called again for the line after it.

    Attributes:
        number: of the line last read, from 1.
    """

    def __init__(self, file: BinaryIO, path: Path, end: str = "") -> None:
        self.number = 0
        self._end = end
        self._readline = file.readline
        self._path = path

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw = self._readline(MAX_LINE_BYTES + 2)
        if not raw:
            raise StopIteration
        self.number += 1
        line = raw.removesuffix(b"\n").removesuffix(b"\r")
        if len(line) > MAX_LINE_BYTES:
            while raw and not raw.endswith(b"\n"):
                raw = self._readline(MAX_LINE_BYTES)
            limit = f"a line of at most {MAX_LINE_BYTES:,} bytes"
            raise self._problem(limit, "a longer one", "put every turn or dialogue on a line of its own")
        if self.number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            got = f"byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line"
            raise self._problem("UTF-8 text", got, "convert the file, as with iconv -f latin1 -t utf-8") from error
        if "\0" in text:
            got = f"a NUL at character {text.index(chr(0)) + 1}"
            raise self._problem("text", got, "remove it, as with tr -d '\\000', or convert from UTF-16")
        return text + self._end

    def _problem(self, expected: str, got: str, remedy: str) -> DataError:
        return problem(f"{self._path}:{self.number}", expected, got, remedy)


def _attempts(items: Iterator[Any]) -> Iterator[Any]:
    """The items, with a DataError in the place of each one whose reading raised it."""
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except DataError as error:
            item = error
        yield item


def read_text(path: Path, layout: TextKind) -> Rows:
    """Rows of a .txt whose layout is known: see `text_layout`. A dialogue with an unreadable line is one bad row."""
    with open_file(path) as file:
        lines = Lines(file, path)
        block: list[str] = []
        first = 0
        broken: DataError | None = None
        for line in _attempts(lines):
            if layout in ("utterances", "eou"):
                if isinstance(line, DataError):
                    yield lines.number, line
                elif line.strip():
                    yield lines.number, _split_turns(line) if layout == "eou" else line
                continue
            if isinstance(line, DataError):
                broken = broken or line
            elif line.strip():
                block.append(line)
                if len(block) > MAX_TURNS:
                    limit = f"at most {MAX_TURNS:,} turns in a dialogue"
                    remedy = "put a blank line between dialogues, or pass --layout utterances"
                    broken = broken or problem(f"{path}:{lines.number}", limit, "more", remedy)
                    block.clear()
            else:
                if broken or block:
                    yield first, broken or ("\n".join(block) if layout == "transcript" else block)
                block, first, broken = [], 0, None
                continue
            first = first or lines.number
        if broken or block:
            yield first, broken or ("\n".join(block) if layout == "transcript" else block)


def _split_turns(line: str) -> list[str]:
    turns = [turn.strip() for turn in line.split(TURN_END)]
    return turns if turns[-1] else turns[:-1]


def text_layout(path: Path, layout: Layout) -> TextKind:
    """What a .txt holds: `eou` (a dialogue a line), `turns` (a dialogue a block), `transcript` or `utterances`.

    `auto` is `eou` where one of the first ten lines has the mark, `turns` where a blank line stands between two lines,
    else `utterances`. The file is read up to the first such blank line.

    Raises:
        DataError: a .txt cannot have that layout.
    """
    if layout not in ("auto", "turns", "utterances", "transcript"):
        possible = "layout auto, turns, utterances or transcript for a .txt"
        raise problem(str(path), possible, layout, "write a .jsonl or .csv")
    if layout == "utterances" or layout == "transcript":
        return layout
    with open_file(path) as file:
        lines = (line for line in _attempts(Lines(file, path)) if isinstance(line, DataError) or line.strip())
        if any(isinstance(line, str) and TURN_END in line for line in islice(lines, 10)):
            return "eou"
    if layout == "turns":
        return "turns"
    with open_file(path) as file:
        blank = started = False
        for line in _attempts(Lines(file, path)):
            text = isinstance(line, DataError) or bool(line.strip())
            if text and started and blank:
                return "turns"
            started, blank = started or text, not text
    return "utterances"


def read_jsonl(path: Path) -> Rows:
    """One JSON value a line; blank lines are passed over."""
    with open_file(path) as file:
        lines = Lines(file, path)
        for line in _attempts(lines):
            if isinstance(line, DataError):
                yield lines.number, line
            elif line.strip():
                try:
                    yield lines.number, json.loads(line)
                except (ValueError, RecursionError) as error:
                    why = str(error)
                    if isinstance(error, json.JSONDecodeError):
                        why = f"{error.msg} at character {error.pos + 1}"
                    remedy = "write each row on one line; was the file cut off?"
                    yield lines.number, problem(f"{path}:{lines.number}", "one JSON value", f"an error ({why})", remedy)


def read_table(path: Path) -> Rows:
    """Records of a .csv or .tsv, whose first line names the columns.

    In a .tsv a quotation mark is an ordinary character, unless the whole field is quoted with the inner marks doubled.
    """
    tabs = path.suffix.lower() == ".tsv"
    with open_file(path) as file:
        lines = Lines(file, path, end="\n")
        table = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines, strict=True)
        columns: list[str] = []
        while True:
            start = lines.number + 1
            try:
                fields = next(table, None)
            except (csv.Error, DataError) as error:
                if isinstance(error, csv.Error):
                    remedy = "close every quotation mark, and double those inside a field"
                    error = problem(f"{path}:{start}", "a row of comma-separated values", str(error), remedy)
                if not columns:  # without their names no row means anything
                    raise error from None
                yield start, error
                continue
            if fields is None:
                return
            if not any(field.strip() for field in fields):
                continue
            if tabs:
                fields = [_unquoted(field) for field in fields]
            if not columns:
                columns = [field.strip() for field in fields]
            elif len(fields) != len(columns):
                remedy = "leave no tab inside a field" if tabs else "quote fields that contain commas"
                wanted = f"{len(columns)} fields ({', '.join(columns)})"
                yield start, problem(f"{path}:{start}", wanted, str(len(fields)), remedy)
            else:
                yield start, dict(zip(columns, fields, strict=True))


def _unquoted(field: str) -> str:
    inner = field[1:-1].replace('""', "")
    whole = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner
    return field[1:-1].replace('""', '"') if whole else field


def read_parquet(path: Path) -> Rows:
    """Records of a .parquet, some hundred at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    remedy = "is it a whole Parquet file?"
    with open_file(path) as file:
        try:
            batches = pq.ParquetFile(file).iter_batches(batch_size=256)
            number = 0
            for batch in batches:
                try:
                    rows = batch.to_pylist()
                except Exception:  # a date out of range, a time zone that is none, bytes that are no text
                    places = (f"{row_place(path)}{number + index + 1}" for index in range(len(batch)))
                    rows = [_parquet_row(batch, index, place) for index, place in enumerate(places)]
                for row in rows:
                    number += 1
                    yield number, row
        except (pa.ArrowException, OSError, ValueError) as error:
            raise problem(str(path), "a Parquet file", str(error) or type(error).__name__, remedy) from error


def _parquet_row(batch: Any, index: int, where: str) -> Any:
    try:
        return batch.slice(index, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        return problem(where, "UTF-8 text", str(error), "write the file again")
    except Exception as error:  # whatever the class of a value raises
        return problem(where, "values that Python can hold", f"an error ({error})", "write the column as text or numbers")


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": read_jsonl,
    ".csv": read_table,
    ".tsv": read_table,
    ".parquet": read_parquet,
}
