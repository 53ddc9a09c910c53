"""What a user can get wrong, as exceptions whose text is the whole message: what, where, the value, the remedy.

`ValueError` and `assert` stay for programmers. The command line prints a `UserError` as one line and exits with its code.
"""

import difflib
from collections.abc import Iterable

_LONGEST = 2000  # characters of a line


def printable(text: str) -> str:
    """`text` on one line, without what a terminal would obey or UTF-8 cannot hold: such characters as their escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def meant(word: str, known: Iterable[str]) -> str:
    """` Did you mean ..?` where something known looks like `word`, or what follows its last dot does; else nothing."""
    names = list(known)

    def likeness(name: str) -> float:
        whole = difflib.SequenceMatcher(None, word.strip("-"), name.strip("-")).ratio()
        last, its = word.strip("-").rpartition(".")[2], name.strip("-").rpartition(".")[2]
        return max(whole, difflib.SequenceMatcher(None, last, its).ratio() - 0.01)

    close = sorted(((likeness(name), name) for name in names), reverse=True)[:3] if len(word) <= 100 else []
    best = [name for found, name in close if found >= max(0.7, close[0][0] - 0.05)]
    return f" Did you mean {' or '.join(best)}?" if best else ""


class UserError(Exception):
    """Something outside the program is wrong: an argument, a file, a model folder. Exit code 2.

    Each argument is a line of the message. What strangers wrote may be in it, so it is made printable here, whatever it is.
    """

    exit_code = 2

    def __str__(self) -> str:
        lines = (printable(str(line)[: _LONGEST + 1]) for line in self.args)  # what may be megabytes is cut before it is read
        return "\n".join(line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..." for line in lines)


class DataError(UserError):
    """A corpus, or a row of one, is not what it should be. The message starts with `file:line:` where there is one."""


class ConfigError(UserError):
    """A setting, or a combination of settings, makes no sense."""


class ModelError(UserError):
    """A model folder or checkpoint is missing, damaged or of another format."""


class LostProcessError(UserError):
    """Another process has ended in the middle of common work. Exit code 1: torchrun may start all of them again."""

    exit_code = 1


class DivergenceError(UserError):
    """Training produced non-finite numbers several steps in a row. Exit code 3."""

    exit_code = 3


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the machine or of the GPU has run out: torch says so in several ways."""
    words = ("can't allocate memory", "bad_alloc")  # of a RuntimeError, on a CPU
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's, of a GPU; nothing here waits for torch
        or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))
    )
