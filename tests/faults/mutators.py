"""What a stranger's bytes may look like, and what may come of them: a value or one clear `UserError`, and nothing run.

Every draw comes from the `random.Random` that hypothesis hands out, so that it can shrink a failure.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from vrae.errors import UserError

SECONDS = 60.0  # for one input, on a machine that does other things too
MESSAGE = 4000  # characters

_DEEP = "@deep-%d@"  # stands in a value for a list of so many levels
TOKENS = (
    *(b"\0", b"\n", b"\r", b"\r\n\r\n", b'"', b'""', b",", b"\t", b"\\", b"{", b"}", b"[", b"]", b":", b"'", b"\xff", b"\x80"),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", "\u202e".encode(), "\u2028".encode(), b"\x1b[2J", b"\x85", b"\x1c"),
    *(b"NaN", b"1e999", b"-1", b"0x10", b"1" * 5000, b"9" * 400, b"[" * 2000, b'{"a":' * 500, b"null", b"true", b"__eou__"),
    *(b"\\ud800", b"\\u0000", b"../../../../etc/passwd", b"/etc/passwd", b"a" * 10_000, b"\0" * 100, b"\xff" * 8),
    *(b"!!python/object/apply:os.system ['true']", b"&a [*a,*a]", b"*a", b"<<: ", b"cos\nsystem\n", b"\x80\x04\x95"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**53, -(2**63), 2**64, 10**300, 0.5, -0.0, 1e38, 1e300, 5e-324),
    *(float("nan"), float("inf"), -float("inf"), "", "x", "1", "\ud800", "\u202e", "\x1b[31m", "a\nb", "\0", "a" * 5000, "☃"),
    *("..", "/etc/passwd", "../../../../etc/passwd", [], [[]], {}, {"": 0}, [0] * 500, ["a", 1, None], [{"text": "a"}]),
    {"__class__": "os.system", "class_path": "os.system", "init_args": {"command": "true"}},
)


def mutated(rng: Random, data: bytes, tokens: Sequence[bytes] = TOKENS) -> bytes:
    """`data` with one to four faults in it."""
    for _ in range(rng.randint(1, 4)):
        at, kind = rng.randint(0, len(data)), rng.randint(0, 7)
        length = rng.choice((1, 2, 4, 16, 256))
        if kind <= 1 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << rng.randint(0, 7)]) + data[at + 1 :]
        elif kind == 2:
            data = data[:at] + bytes([rng.randint(0, 255)]) + data[at + 1 :]
        elif kind == 3:
            data = data[:at]
        elif kind == 4:
            data = data[:at] + data[at + length :]
        elif kind == 5:
            data = data[: at + length] + data[at:]
        else:
            token = rng.choice(tokens)
            data = data[:at] + token + data[at + (len(token) if kind == 6 else 0) :]
    return data


def hostile_json(rng: Random, value: Any) -> bytes:
    """JSON like `value`, with wrong types, missing, foreign and doubled keys, depth, or broken syntax."""
    for _ in range(rng.randint(1, 3)):
        value = _edited(rng, value)
    text = json.dumps(value)
    for level in (10, 100, 900, 940, 960, 970, 980, 990, 5000):
        if (mark := json.dumps(_DEEP % level)) in text:
            text = text.replace(mark, "[" * level + "]" * level)
    if text.startswith("{") and rng.randint(0, 9) == 0:
        text = text[:-1] + ("," if len(text) > 2 else "") + text[1:]  # every key twice
    data = text.encode()
    return mutated(rng, data) if rng.randint(0, 3) == 0 else data


def _edited(rng: Random, value: Any) -> Any:
    if isinstance(value, dict) and value and rng.randint(0, 4):
        key = rng.choice(list(value))
        kind = rng.randint(0, 5)
        if kind == 0:
            return {name: item for name, item in value.items() if name != key}
        if kind == 1:
            return {**value, rng.choice(("x", "", "\ud800", "\x1b[2J", "a" * 5000, "../x", "format")): hostile_value(rng)}
        return {**value, key: _edited(rng, value[key])}
    if isinstance(value, list) and value and rng.randint(0, 3):
        at = rng.randint(0, len(value) - 1)
        return [*value[:at], _edited(rng, value[at]), *value[at + 1 :]] if rng.randint(0, 3) else value[:at]
    return hostile_value(rng)


def hostile_value(rng: Random) -> Any:
    """A JSON value of any type; at times a mark that `hostile_json` makes many levels of."""
    if rng.randint(0, 9) == 0:
        return _DEEP % rng.choice((10, 100, 900, 940, 960, 970, 980, 990, 5000))
    return rng.choice(VALUES)


_ACTS = {"pickle.find_class", "os.system", "subprocess.Popen", "os.fork", "os.exec", "os.posix_spawn", "socket.connect"}
_ACTS |= {"socket.getaddrinfo", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}


class _Watch:
    """What the interpreter itself reports of running programs, unpickling, connecting, and opening files elsewhere."""

    def __init__(self) -> None:
        self.inside: str | None = None
        self.seen: list[str] = []
        # an audit hook cannot be taken away again: it does nothing while `inside` is None
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.inside is None:
            return
        if event == "open":
            path = args[0]
            path = path.decode("utf-8", "replace") if isinstance(path, bytes) else path
            if isinstance(path, str) and not self._allowed(path):
                self.seen.append(f"open {path!r:.200}")
        elif event in _ACTS:
            self.seen.append(f"{event} {args!r:.200}")

    def _allowed(self, path: str) -> bool:
        assert self.inside is not None
        # Python's own modules and tables, which it reads when they are first needed
        own = (self.inside, sys.prefix, sys.base_prefix, "/usr/share/zoneinfo", str(Path(__file__).parents[2] / "vrae"))
        return os.path.normpath(path).startswith(own)


_watch: _Watch | None = None


def judge(call: Callable[[], object], folder: Path) -> None:
    """Fails unless `call` gives a value, or a UserError of one readable message, soon, and touches nothing but `folder`."""
    global _watch
    _watch = _watch or _Watch()
    _watch.seen.clear()
    start = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _watch.inside = str(folder)
        try:
            call()
        except UserError as error:
            message = str(error)
            assert 0 < len(message) <= MESSAGE, f"a message of {len(message)} characters: {message[:200]}"
            odd = [character for character in message.replace("\n", "") if not character.isprintable()]
            assert not odd, f"a message with {odd[:5]}: {message[:300]!r}"
        finally:
            _watch.inside = None
    assert not caught, [f"{warning.category.__name__}: {warning.message}" for warning in caught]
    assert not _watch.seen, _watch.seen
    assert time.process_time() - start < SECONDS
