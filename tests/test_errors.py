"""Messages: whatever is put into one, what comes out is printable, bounded, and a line for each argument."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrae.errors import ConfigError, DataError, DivergenceError, ModelError, UserError, printable


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("plain, naïve ☃ 🎉", "plain, naïve ☃ 🎉"),
        ("a\nb\r\tc\0", r"a\nb\r\tc\x00"),
        ("\x1b[2J\x07\x7f\x9b", r"\x1b[2J\x07\x7f\x9b"),
        ("\u202egnp\u2066\u200f\ufeff", r"\u202egnp\u2066\u200f\ufeff"),
        ("\ud800 \udcff", r"\ud800 \udcff"),
        ("\u2028\x85\u00a0", r"\u2028\x85\xa0"),
        ("C:\\new", r"C:\new"),
    ],
    ids=ascii,
)
@pytest.mark.parametrize("kind", [UserError, DataError, ConfigError, ModelError, DivergenceError])
def test_what_no_terminal_should_get_is_escaped(kind: type[UserError], given: str, said: str) -> None:
    assert str(kind(f"x.txt:3: {given}")) == f"x.txt:3: {said}"
    assert str(kind(str(kind(given)))) == said  # a message inside another one is not escaped again


def test_each_argument_is_a_line() -> None:
    assert str(UserError("one", "two\nthree", 4)) == "one\ntwo\\nthree\n4"
    assert str(UserError()) == ""


@pytest.mark.parametrize("length", [1999, 2000, 2001, 10_000_000])
@pytest.mark.parametrize(("character", "escaped"), [("a", 1), ("\0", 4), ("\ud800", 6)])
def test_a_line_is_cut_at_2000_characters(length: int, character: str, escaped: int) -> None:
    lines = str(UserError("short", character * length)).split("\n")
    assert lines[0] == "short"
    assert len(lines[1]) == (length if length * escaped <= 2000 else 2003)
    assert lines[1].endswith("...") == (length * escaped > 2000)


@given(st.text(st.characters()))
def test_any_text_can_be_printed(text: str) -> None:
    said = str(UserError(text))
    assert said.isprintable()
    assert said.encode("utf-8").decode() == said == printable(text)


def test_an_error_crosses_processes_whole() -> None:
    error = pickle.loads(pickle.dumps(DataError("a\0", "b")))
    assert (type(error), str(error), error.exit_code) == (DataError, "a\\x00\nb", 2)
