"""One job for many inputs: those of the command line, or JSON lines in and JSON lines out.

Lines are answered as they come and in their order, many side by side where many are waiting. A line that cannot be done is
answered by {"error", "line"}, and the exit code is then 1. The processes that torchrun starts share the lines of a file; the
first of them prints the answers of all.
"""

from __future__ import annotations

import itertools
import json
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

from vrae.distributed import first, gather, processes, rank, world
from vrae.errors import UserError

Result = dict[str, Any]
T = TypeVar("T")
_LINES = 64  # of a process, worked side by side


def run(
    given: Sequence[Any] | None,
    parse: Callable[[Any], T],
    job: Callable[[list[T]], list[Result]],
    show: Callable[[Result], str],
    *,
    as_json: bool,
    source: str = "",
    emit: Callable[[Result], None] | None = None,
) -> int:
    """Does `job` for what was given, or for every JSON line of `source`; returns the exit code.

    Args:
        given: JSON values from the command line; None: read lines.
        parse: checks a value. It and `job` raise UserError for what cannot be done.
        job: the results of some values, one of each.
        show: a result for people.
        as_json: print results of the command line as JSON too.
        source: a file of JSON lines; empty: stdin.
        emit: takes each answer, in order, instead of its being printed.
    """
    if given is not None:
        if source:
            raise UserError(f"--input {source}: there is text on the command line too. Leave one out")
        emit = emit or (print_json if as_json else lambda result: print(show(result), flush=True))
        for result in job([parse(value) for value in given]):
            emit(result)
        return 0
    emit = emit or print_json
    with processes():
        if not source and world() > 1:
            raise UserError("processes cannot share stdin. Pass the file with --input")
        failed = 0
        with tqdm(unit=" lines", disable=None if first() else True) as bar:
            for chunk in _file(source) if source else _stdin():
                parts = gather(_answers(chunk[rank() :: world()], parse, job, source or "stdin"))
                for place in range(len(chunk) if first() else 0):
                    answer = parts[place % world()][place // world()]
                    failed += "error" in answer
                    emit(answer)
                bar.update(len(chunk))
    return 1 if failed else 0


def print_json(value: Any) -> None:
    """A line of JSON; its letters are escaped where the output has an encoding that lacks some."""
    print(json.dumps(value, ensure_ascii=not _is_utf8(sys.stdout.encoding)), flush=True)


def _is_utf8(encoding: str | None) -> bool:
    return encoding is None or encoding.lower().replace("_", "-") in ("utf-8", "utf8")


def _answers(
    lines: Sequence[tuple[int, str]], parse: Callable[[Any], T], job: Callable[[list[T]], list[Result]], source: str
) -> list[Result]:
    """The answer to each line, in order."""
    answers: list[Result | None] = []
    values: list[T] = []
    numbers = [number for number, _ in lines]
    for number, line in lines:
        try:
            values.append(parse(json.loads(line)))
            answers.append(None)
        except UserError as error:
            answers.append(_error(source, number, str(error)))
        except (ValueError, RecursionError) as error:
            answers.append(_error(source, number, f"expected a line of JSON: {error}"))
    try:
        results = iter(job(values) if values else [])
        return [answer or next(results) for answer in answers]
    except UserError:  # one of them cannot be done: find out which
        rest = iter(values)
        return [answer or _one(next(rest), job, source, number) for answer, number in zip(answers, numbers, strict=True)]


def _one(value: T, job: Callable[[list[T]], list[Result]], source: str, number: int) -> Result:
    try:
        return job([value])[0]
    except UserError as error:
        return _error(source, number, str(error))


def _error(source: str, number: int, message: str) -> Result:
    return {"error": f"{source}:{number}: {message}", "line": number}


def _file(path: str) -> Iterator[list[tuple[int, str]]]:
    """The lines of a file with their numbers, as many at a time as all processes can work on."""
    try:
        with open(path, "rb") as file:
            lines = _numbered(file)
            while chunk := list(itertools.islice(lines, _LINES * world())):
                yield chunk
    except OSError as error:
        raise UserError(f"--input {path}: cannot read: {error.strerror or error}") from None


def _stdin() -> Iterator[list[tuple[int, str]]]:
    """The lines of stdin with their numbers, as many at a time as are waiting."""
    if sys.stdin.isatty():
        raise UserError("no text given, and stdin is a terminal. Pass the text, or pipe in JSON lines")
    waiting: queue.Queue[tuple[int, str] | None] = queue.Queue(4 * _LINES)

    def read() -> None:
        for line in _numbered(sys.stdin.buffer):
            waiting.put(line)
        waiting.put(None)

    threading.Thread(target=read, name="vrae stdin", daemon=True).start()
    ended = False
    while not ended:
        chunk = [waiting.get()]
        while len(chunk) < _LINES and chunk[-1] is not None:
            try:
                chunk.append(waiting.get_nowait())
            except queue.Empty:
                break
        ended = chunk[-1] is None
        if lines := [line for line in chunk if line is not None]:
            yield lines


def _numbered(file: Any) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file, 1):
        text = line.decode("utf-8", "replace").strip()
        if text:
            yield number, text
