"""Completion of commands and options in a shell, by shtab."""

from __future__ import annotations

from vrae.apps.help import Command
from vrae.config import shown
from vrae.errors import UserError

SHELLS = ("bash", "zsh")


def script(parser: Command, shell: str) -> str:
    """What the shell is to run. Raises UserError where shtab is missing or the shell is another."""
    if shell not in SHELLS:
        raise UserError(f"completion is for {' or '.join(SHELLS)}. Got {shown(shell)}")
    try:
        import shtab
    except ImportError:
        raise UserError("completion: shtab is not installed. Run: pip install 'vrae[completion]'") from None
    found: str = shtab.complete(parser, shell)
    return found
