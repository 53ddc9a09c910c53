"""Rows to dialogues: what the columns of a corpus mean."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from vrae.config import SourceConfig
from vrae.corpus.readers import MAX_TURNS, problem

# Usual names of columns, the first one present is taken; capitals do not matter.
TURNS = ("turns", "dialogue", "dialog", "utterances", "messages", "conversations", "conversation")
CHAT = ("messages", "conversations", "conversation", "turns", "dialogue", "dialog", "utterances")
PAIRS = ("context", "prompt", "source", "input", "question")
REPLIES = ("reply", "response", "target", "output", "answer")
DIALOGUE_IDS = ("dialogue_id", "dialog_id", "conversation_id", "conv_id")
TEXTS = ("text", "utterance", "content", "sentence", "message", "turn")
TRANSCRIPTS = ("transcript", "dialogue", "dialog", "conversation", "best generated conversation", "text")
SPEAKERS = ("speaker", "role", "user", "sender", "author", "from", "speaker_id", "speaker_idx")
ROLES = ("role", "from", "speaker", "sender", "user", "author")
CONTENTS = ("content", "value", "text", "utterance")

_SPLITS = {name: name for name in ("train", "validation", "test")}
_SPLITS |= {"training": "train", "valid": "validation", "dev": "validation", "val": "validation"}
_NAMED_LINE = re.compile(r"\s*([^\s:][^:]{0,39}?)\s*:(?!//)\s*(.*)", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Some people's turns, in order.

    Args:
        id: stable: the source's own, else "<file name>:<first line>" or "<name>:<row number>".
        turns: the messages; consecutive ones may be by the same speaker.
        speakers: a small int per turn; alternating 0 and 1 where the source does not say.
        split: "train", "validation" or "test" where the source says, else empty.
    """

    id: str
    turns: tuple[str, ...]
    speakers: tuple[int, ...]
    split: str = ""


class Group:
    """Consecutive rows of one dialogue in the `flat` layout.

    Attributes:
        key: the dialogue's id; None before the first row.
        broken: one of its rows was bad.
        gap: the last row was bad, and may belong to this dialogue or to the next.
    """

    def __init__(self, key: str | None = None, broken: bool = False) -> None:
        self.key = key
        self.broken = broken
        self.gap = False
        self._turns: list[str] = []
        self._speakers: list[str | None] = []
        self._split = ""

    def add(self, turn: str, speaker: str | None, split: str) -> None:
        """`speaker` is None where the row does not say. Once `broken`, nothing is kept."""
        self.gap = False
        if self.broken:
            self._turns.clear()
            self._speakers.clear()
            return
        self._turns.append(turn)
        self._speakers.append(speaker)
        self._split = self._split or split

    def __len__(self) -> int:
        return len(self._turns)

    def dialogue(self) -> Dialogue | None:
        """None when it is broken or empty."""
        if self.key is None or self.broken:
            return None
        speakers = alternating(len(self)) if None in self._speakers else numbered(self._speakers)
        return Dialogue(self.key, tuple(self._turns), speakers, self._split)


def split_name(name: str) -> str:
    """train, validation or test for the usual ways to write them, else empty."""
    return _SPLITS.get(name.strip().lower(), "")


def numbered(names: Iterable[object]) -> tuple[int, ...]:
    """0 for the first name, 1 for the next new one, and so on."""
    seen: dict[object, int] = {}
    return tuple(seen.setdefault(name, len(seen)) for name in names)


def alternating(count: int) -> tuple[int, ...]:
    return (0, 1) * (count // 2) + (0,) * (count % 2)


class RowReader:
    """Reads rows of one layout, which the first row decides where the configuration leaves it open.

    Attributes:
        layout: `turns`, `chat`, `pairs`, `flat`, `transcript` or `utterances`.
    """

    def __init__(self, config: SourceConfig, first: Any, where: str) -> None:
        """Raises DataError, naming the columns of `first`, when they do not say which layout it is."""
        self._names = {"text": config.text_column, "reply": config.reply_column, "id": config.id_column}
        self.layout = config.layout if config.layout != "auto" else self._decide(first, where)

    # Which layout

    def _decide(self, row: Any, where: str) -> str:
        if isinstance(row, list):
            return _list_layout(row)
        if isinstance(row, str):
            return "utterances"
        _require_record(row, where)
        if self._names["reply"]:
            return "pairs"
        if self._names["text"]:
            value = row.get(self._names["text"])
            if isinstance(value, list):
                return _list_layout(value)
            if self._names["id"] or (_find(row, DIALOGUE_IDS) and not _is_transcript(value)):
                return "flat"
            return "transcript" if _is_transcript(value) else "utterances"
        for name in TURNS:
            column = _find(row, (name,))
            if column is not None and isinstance(row[column], list):
                self._names["text"] = column
                return _list_layout(row[column])
        if _find(row, PAIRS) and _find(row, REPLIES):
            return "pairs"
        if _find(row, TEXTS) and (self._names["id"] or _find(row, DIALOGUE_IDS)):
            return "flat"
        column = _find(row, TRANSCRIPTS)
        if column and (column.lower() != "text" or _is_transcript(row[column])):
            return "transcript"
        if _find(row, TEXTS):
            return "utterances"
        remedy = "pass --layout, and --text_column (with pairs --reply_column, with flat --id_column)"
        raise problem(where, "columns that say what they hold", _columns(row), remedy)

    def _check_bare(self, row: list[Any] | str, where: str) -> None:
        """Raises DataError when a row without columns cannot have the layout."""
        fits = ("turns", "chat") if isinstance(row, list) else ("utterances", "transcript")
        if self.layout not in fits:
            remedy = f"write objects with columns, or --layout {fits[0]}"
            raise problem(where, f"columns (layout {self.layout})", f"{_kind(row)} alone", remedy)

    def _candidates(self, part: str) -> tuple[str, ...]:
        if part == "text":
            by_layout = {"turns": TURNS, "chat": CHAT, "pairs": PAIRS, "transcript": TRANSCRIPTS}
            return by_layout.get(self.layout, TEXTS)
        return REPLIES if part == "reply" else (*DIALOGUE_IDS, "id")

    def _column(self, row: dict[str, Any], part: str, where: str) -> str:
        """The column of a row that holds the text, the reply or the dialogue's id."""
        own = self._names[part]
        candidates = (own,) if own else self._candidates(part)
        column = _find(row, candidates)
        if column is None:
            wanted = f"a column {' or '.join(candidates)}"
            raise problem(where, f"{wanted} (layout {self.layout})", _columns(row), f"name it with --{part}_column")
        return column

    # A row

    def key(self, row: Any, where: str) -> str:
        """The id of the dialogue that a row of the `flat` layout belongs to."""
        _require_record(row, where)
        return _identifier(row[self._column(row, "id", where)], where)

    def turn(self, row: dict[str, Any], where: str, group: Group) -> None:
        """Adds a row of the `flat` layout to its group.

        Raises:
            DataError: the row holds no turn, or is one too many.
        """
        text = _string(row[self._column(row, "text", where)], where, "a string")
        if len(group) == MAX_TURNS:
            limit = f"at most {MAX_TURNS:,} turns in a dialogue"
            raise problem(where, limit, "more", "give every dialogue an id of its own")
        column = _find(row, SPEAKERS)
        speaker = None if column is None or row[column] is None else _name(row[column], where)
        group.add(text, speaker, _row_split(row, where))

    def dialogue(self, row: Any, where: str, default_id: str) -> Dialogue:
        """A row of any other layout; `default_id` where it has no id of its own.

        Raises:
            DataError: the row is not what the layout says.
        """
        if isinstance(row, (list, str)):
            self._check_bare(row, where)
            turns, speakers = self._turns(row, where)
            return Dialogue(default_id, turns, speakers)
        _require_record(row, where)
        if self.layout == "pairs":
            both = [row[self._column(row, part, where)] for part in ("text", "reply")]
            turns, speakers = tuple(_string(value, where, "a string") for value in both), (0, 1)
        else:
            turns, speakers = self._turns(row[self._column(row, "text", where)], where)
            names = row.get("speakers")
            if self.layout == "turns" and isinstance(names, list):
                if len(names) != len(turns):
                    got = f"{len(names)} for {len(turns)} turns"
                    raise problem(where, "one of the speakers for each turn", got, "correct the row or drop the column")
                speakers = numbered(_name(name, where) for name in names)
        if self._names["id"]:
            key = _identifier(row[self._column(row, "id", where)], where)
        else:
            column = _find(row, (*DIALOGUE_IDS, "id"))
            value = None if column is None else row[column]
            key = _identifier(value, where) if _is_identifier(value) else default_id
        return Dialogue(key, turns, speakers, _row_split(row, where))

    def _turns(self, value: Any, where: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
        if self.layout == "utterances":
            return (_string(value, where, "a string"),), (0,)
        if self.layout == "transcript":
            return _transcript(_string(value, where, "a string"), where)
        if not isinstance(value, list):
            raise problem(where, f"a list (layout {self.layout})", _kind(value), "pass --layout for the whole file")
        if not value:
            raise problem(where, "at least one turn", "an empty list", "remove the row")
        if self.layout == "chat":
            return _chat(value, where)
        if not all(map(_is_text, value)):
            for i, item in enumerate(value, 1):
                _string(item, where, "a list of strings", f" as item {i}")
        return tuple(value), alternating(len(value))


def _chat(messages: Sequence[Any], where: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    turns: list[str] = []
    roles: list[str] = []
    wanted = "a list of {role, content}"
    for i, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise problem(where, wanted, f"{_kind(message)} as item {i}", "correct or remove the row")
        role, content = _find(message, ROLES), _find(message, CONTENTS)
        if role is None or content is None:
            raise problem(where, wanted, f"{_columns(message)} in item {i}", "correct or remove the row")
        name = _string(message[role], where, "a string", f" as {role} of item {i}")
        if name != "system":
            turns.append(_string(message[content], where, "a string", f" as {content} of item {i}"))
            roles.append(name)
    if not turns:
        raise problem(where, "at least one message", "none besides the system's", "remove the row")
    return tuple(turns), numbered(roles)


def _transcript(text: str, where: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Lines "Name: text"; one without a name goes on with the turn before it."""
    turns: list[str] = []
    names: list[str] = []
    for line in text.splitlines():
        match = _NAMED_LINE.fullmatch(line)
        if match:
            names.append(match[1])
            turns.append(match[2])
        elif turns:
            turns[-1] += " " + line.strip()
        elif line.strip():
            raise problem(where, 'lines "Name: text"', repr(line[:40]), "pass another --layout or correct the row")
    if not turns:
        raise problem(where, 'lines "Name: text"', "blank text", "remove the row")
    return tuple(turns), numbered(names)


def _is_transcript(value: Any) -> bool:
    lines = [line for line in value.splitlines() if line.strip()] if isinstance(value, str) else []
    return len(lines) > 1 and all(_NAMED_LINE.fullmatch(line) for line in lines[:2])


def _list_layout(items: Sequence[Any]) -> str:
    return "chat" if items and isinstance(items[0], dict) else "turns"


def _find(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """The row's own spelling of the first of the names that it has."""
    return _found(tuple(row), names)


@lru_cache(maxsize=16)  # rows are alike, or each may have a hundred thousand columns
def _found(columns: tuple[str, ...], names: tuple[str, ...]) -> str | None:
    exact = next((name for name in names if name in columns), None)
    if exact is not None:
        return exact
    spelled = {column.lower(): column for column in columns}
    return next((spelled[name.lower()] for name in names if name.lower() in spelled), None)


def _require_record(row: Any, where: str) -> None:
    if not isinstance(row, dict):
        raise problem(where, "an object, a list of turns or a string", _kind(row), "correct or remove the row")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value and (value.isascii() or _SURROGATE.search(value) is None)


def _string(value: Any, where: str, expected: str, place: str = "") -> str:
    if _is_text(value):
        return str(value)
    if not isinstance(value, str):
        raise problem(where, expected, f"{_kind(value)}{place}", "correct or remove the row")
    if "\0" in value:
        raise problem(where, "text", f"a NUL{place}", "remove it")
    half = ord(_SURROGATE.findall(value)[0])
    raise problem(where, "text", f"half of a surrogate pair (U+{half:04X}){place}", "write the character in full")


def _name(value: Any, where: str) -> str:
    """Who speaks."""
    if isinstance(value, (list, dict)):
        raise problem(where, "a name or a number as speaker", _kind(value), "correct the row or drop the column")
    return str(value)


def _is_identifier(value: Any) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool) and value != ""


def _identifier(value: Any, where: str) -> str:
    if not _is_identifier(value):
        raise problem(where, "a string or a whole number as id", _kind(value), "correct the row, or pass --id_column")
    return _string(str(value), where, "an id")


def _row_split(row: dict[str, Any], where: str) -> str:
    column = _find(row, ("split",))
    value = None if column is None else row[column]
    if value is None or value == "":
        return ""
    name = split_name(value) if isinstance(value, str) else ""
    if not name:
        raise problem(where, "split train, validation or test", reprlib.repr(value), "correct it or leave it empty")
    return name


def _columns(row: dict[str, Any]) -> str:
    return "columns " + ", ".join(map(str, list(row)[:20])) if row else "no columns"


def _kind(value: Any) -> str:
    """A JSON value in words, for a message."""
    if value is None:
        return "null"
    if value == "":
        return "an empty string"
    names = {bool: "true or false", int: "a number", float: "a number"}
    names |= {str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
