"""JSON lines in and out: order, errors in their place, answers as lines come, and processes that share a file."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from vrae.apps import bulk
from vrae.apps.bulk import Result, run
from vrae.errors import UserError


def parse(value: Any) -> int:
    if not isinstance(value, int):
        raise UserError(f"expected a number. Got {value!r}")
    return value


def job(values: list[int]) -> list[Result]:
    if any(value < 0 for value in values):
        raise UserError("negative")
    return [{"square": value * value} for value in values]


def answers(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def pipe(monkeypatch: pytest.MonkeyPatch, given: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))


def do(**options: Any) -> int:
    return run(None, parse, job, str, as_json=False, **options)


def test_lines_are_answered_in_order_with_errors_in_their_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, b'1\n\nnot json\n2\n-1\n"x"\n' + b"[" * 100_000 + b"\n3")
    assert do() == 1
    found = answers(capsys.readouterr().out)
    assert [answer.get("square") for answer in found] == [1, None, 4, None, None, None, 9]
    assert [answer.get("line") for answer in found] == [None, 3, None, 5, 6, 7, None]
    assert found[1]["error"].startswith("stdin:3: expected a line of JSON")
    assert found[3]["error"] == "stdin:5: negative"
    assert found[4]["error"] == "stdin:6: expected a number. Got 'x'"


def test_more_lines_than_fit_side_by_side_keep_their_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sizes = []

    def counted(values: list[int]) -> list[Result]:
        sizes.append(len(values))
        return job(values)

    (tmp_path / "lines").write_text("".join(f"{i}\n" for i in range(200)))
    assert run(None, parse, counted, str, as_json=False, source=str(tmp_path / "lines")) == 0
    assert [answer["square"] for answer in answers(capsys.readouterr().out)] == [i * i for i in range(200)]
    assert sizes == [64, 64, 64, 8]
    pipe(monkeypatch, (tmp_path / "lines").read_bytes())
    assert do() == 0
    assert [answer["square"] for answer in answers(capsys.readouterr().out)] == [i * i for i in range(200)]


def test_a_line_is_answered_before_the_next_one_comes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = os.pipe()
    answered = threading.Event()
    with open(ends[0], "rb") as reader, open(ends[1], "wb", buffering=0) as writer:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(reader))

        def talk() -> None:
            writer.write(b"5\n")
            assert answered.wait(20)
            writer.write(b"6\n")
            writer.close()

        talker = threading.Thread(target=talk)
        talker.start()
        found: list[Result] = []

        def emit(answer: Result) -> None:
            found.append(answer)
            answered.set()

        assert do(emit=emit) == 0
        talker.join()
    assert [answer["square"] for answer in found] == [25, 36]


def test_nothing_is_answered_by_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pipe(monkeypatch, b"\n \n")
    assert do() == 0
    assert capsys.readouterr().out == ""


def test_what_the_command_line_gives_is_shown_to_people_or_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    def show(result: Result) -> str:
        return f"<{result['square']}>"

    assert run([2, 3], parse, job, show, as_json=False) == 0
    assert run([2], parse, job, show, as_json=True) == 0
    assert capsys.readouterr().out == '<4>\n<9>\n{"square": 4}\n'
    with pytest.raises(UserError, match="expected a number"):
        run(["x"], parse, job, show, as_json=False)
    with pytest.raises(UserError, match="--input lines: there is text on the command line too"):
        run([2], parse, job, show, as_json=False, source="lines")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--input .*gone: cannot read: No such file"):
        do(source=str(tmp_path / "gone"))


def test_a_terminal_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, b"")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    with pytest.raises(UserError, match="no text given, and stdin is a terminal"):
        do()


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from test_bulk import job, parse
from vrae.apps.bulk import run
sys.exit(run(None, parse, job, str, as_json=False, source=sys.argv[2]))
"""


def test_processes_of_torchrun_share_a_file_and_one_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "_LINES", 64)
    lines = tmp_path / "lines"
    lines.write_text("".join("oops\n" if i == 70 else f"{i}\n" for i in range(150)))
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "program.py"), str(Path(__file__).parent), str(lines)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    found = answers(done.stdout)
    assert [answer.get("square", answer.get("line")) for answer in found] == [71 if i == 70 else i * i for i in range(150)]
