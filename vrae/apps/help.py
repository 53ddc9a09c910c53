"""A parser that helps: `--help` on one screen, with an example, and errors of one line that name what was probably meant.

Settings by the dozen are listed with their values; `--help TOPIC` explains those of a topic, `--help all` everything.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace, get_loader

from vrae.config import shown
from vrae.errors import UserError, meant

_WIDEST = 100  # columns
_NAMES = 26  # of them, for the options
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


class Command(ArgumentParser):
    """A command whose files of settings open no other file.

    Left to itself, jsonargparse follows a path where it stands in the place of a group (`model: PATH`) or under `config`. The
    groups are therefore made of plain arguments, and a path in their place, as `--model PATH` too, is refused.

    Args:
        example: a command line that does something.
    """

    def __init__(self, *args: Any, example: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example
        self.topics: dict[str, tuple[str, list[argparse.Action]]] = {}  # title and settings, by name
        self.given: Sequence[str] = ()  # the command line that is parsed

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Raises UserError where the file names another one."""
        values: Any = None
        with contextlib.suppress(Exception):  # what is no YAML is refused below
            values = get_loader("yaml")(Path(path).read_text(encoding="utf-8"))
        if isinstance(values, dict) and any(str(key).rstrip("+") == "config" for key in values):
            raise UserError(f"--config {path}: config is no setting; a file of settings opens no other file. Leave it out")
        parsed: Namespace = super().parse_path(path, *args, **kwargs)
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises UserError: the message of the parser, in one line for people."""
        raise UserError(explained(message, self.chosen()))

    def chosen(self) -> Command:
        """The command that the command line names, or this one."""
        command = self
        for word in self.given:
            found = command.commands().get(word)
            if found is None:
                if not word.startswith("-"):
                    break
                continue
            command = found
        return command

    def link_arguments(self, source: Any, target: str, *args: Any, **kwargs: Any) -> None:
        """The option `source` gives the setting `target`, which --help no longer lists: given itself it is refused."""
        super().link_arguments(source, target, *args, **kwargs)
        for action in self._actions:
            if action.dest == target:
                action.help = argparse.SUPPRESS
        for _, actions in self.topics.values():
            actions[:] = [action for action in actions if action.dest != target]

    def commands(self) -> dict[str, Command]:
        """Its commands by name; the parser of one that has none has none."""
        found: dict[str, Command] = self._subcommands_action._name_parser_map if self._subcommands_action else {}
        return found

    def name(self) -> str:
        """As it is typed."""
        return re.sub(r" \[options\]", "", self.prog)

    def form(self) -> str:
        """What follows its name: COMMAND .., or its arguments and options."""
        if self.commands():
            return "COMMAND .."
        around = {"?": "[{}]", "*": "[{} ..]", "+": "{} .."}
        arguments = [action for action in self.options() if not action.option_strings]
        words = [around.get(str(action.nargs), "{}").format(_left(action)) for action in arguments]
        words += [f"{_short(action)} {_kind(action)}" for action in self.options() if action.option_strings and action.required]
        return " ".join([*words, "[options]"])

    def options(self) -> list[argparse.Action]:
        return [action for action in self._actions if action.help != argparse.SUPPRESS and not _is_help(action)]

    def settings(self) -> list[str]:
        """The names of its options as they stand in a file, `model.dropout`."""
        return [action.dest for action in self.options() if action.option_strings]

    def format_help(self, formatter: Any = None) -> str:
        """As `help_on` without a topic."""
        return self.help_on("")

    def help_on(self, topic: str) -> str:
        """The text of --help, at most 100 columns wide. Raises UserError where there is no such topic."""
        width = min(shutil.get_terminal_size().columns, _WIDEST)
        if topic not in ("", "all", *self.topics):
            topics = ", ".join((*self.topics, "all"))
            raise UserError(f"--help {shown(topic)}: no such topic.{meant(topic, self.topics)} There are {topics}")
        if topic in self.topics:
            title, actions = self.topics[topic]
            return "\n".join([*_wrapped(f"{title}:", width), *_explained_options(actions, width)]) + "\n"
        lines = [*_wrapped(f"usage: {self.name()} {self.form()}", width, " " * 7, ""), *_wrapped(self.description or "", width)]
        if self.commands():
            choices = {name: command.description or "" for name, command in self.commands().items()}
            lines += ["", "commands:", *_columns(choices, width, whole=len(choices) < 5)]
        if self.example:
            lines += ["", *_wrapped(f"example: {self.example}", width, " " * 9, "")]
        inside = {id(action) for _, actions in self.topics.values() for action in actions}
        plain = [action for action in self.options() if id(action) not in inside]
        for title, actions in (
            ("arguments", [action for action in plain if not action.option_strings and not _is_choice(action)]),
            ("options", [action for action in plain if action.option_strings]),
        ):
            if actions:
                lines += ["", f"{title}:", *_explained_options(actions, width)]
        for name, (title, actions) in self.topics.items():
            if topic == "all":
                lines += ["", *_wrapped(f"{title}:", width), *_explained_options(actions, width)]
            else:
                # with a sign for the space between a name and its value, that no line be broken there
                values = "  ".join(f"{_short(action)}\0{_value(action.default)}".rstrip("\0") for action in actions)
                lines += ["", *_wrapped(f"{_first_sentence(title)} (--help {name}):", width)]
                lines += [line.replace("\0", " ") for line in _wrapped(values, width, "  ")]
        return "\n".join(lines) + "\n"


def asks_for_help(parser: Command, arguments: Sequence[str]) -> str | None:
    """The help that a command line asks for; None: it asks for none."""
    for place, word in enumerate(arguments):
        if word == "--":
            break
        if word in ("-h", "--help") or word.startswith("--help="):
            following = arguments[place + 1 : place + 2]
            topic = word.partition("=")[2] or "".join(word for word in following if not word.startswith("-"))
            parser.given = arguments[:place]
            return parser.chosen().help_on(topic)
    return None


def explained(message: str, command: Command) -> str:
    """What jsonargparse complains about, said so that one knows what to do."""
    help = f"`{command.name()} --help`"
    flags = [flag for action in command._actions for flag in action.option_strings if flag.startswith("--")]
    if found := re.match(r"argument \w+: invalid choice: '(.*?)' \(choose", message):
        word = found[1]
        return f"{shown(word)}: no such command.{meant(word, command.commands())} {help} lists them"
    if re.match(r"expected \"[\w.]*subcommand\"", message):
        return f"{command.name()} what? {', '.join(command.commands())}. {help} says what each does"
    if found := re.match(r"the following arguments are required: (.*)", message):
        actions = {action.dest: action for action in command.options()}
        missing = [name.strip().rpartition(".")[2] for name in found[1].split(",")]
        needed = [f"--{name}" if name in actions and actions[name].option_strings else name.upper() for name in missing]
        return f"{command.name()} needs {' and '.join(needed)}. For example: {command.example}"
    if found := re.match(r"unrecognized arguments: (.*)", message, re.DOTALL):
        word = found[1].split()[0] if found[1].split() else ""
        if not word.startswith("-"):
            return f"{shown(word)}: one argument too many for {command.name()}. Quote what is one text; {help} shows the others"
        flag = word.partition("=")[0]
        return f"{shown(flag)}: {command.name()} has no such option.{meant(flag, flags)} {help} lists them"
    if found := re.search(r"does not accept (?:option|nested key|key) '(.*?)'", message):
        key = found[1]
        return f"--config: no such setting: {shown(key)}.{meant(key, command.settings())} {help} lists them"
    if found := re.match(r"(?:Parser|Key) (?:key )?\"(.*?)\":\s*(.*)", message, re.DOTALL):
        return _wrong_value(found[1], found[2], command)
    if found := re.match(r"argument (?:-\w/)?(\S+): expected (?:one|at least one) argument", message):
        return f"{found[1]} needs a value. {help} says which"
    if found := re.match(r"Problems parsing config:?\s*(.*)", message, re.DOTALL):
        problem = shown(" ".join(found[1].split()), 200)
        return f"--config: no YAML: {problem}. Mend the file; --print_config prints one as it should be"
    if found := re.match(r"Linked \"(.*?)\" must be given via \"(.*?)\"", message):
        return f"--{found[1]}: {command.name()} takes --{found[2]} in its place"
    if message.startswith("ambiguous option: "):
        start, _, listed = message.partition(" could match ")
        several = listed.split(", ")
        more = f" and {len(several) - 4} more" if len(several) > 4 else ""
        return f"{start} could match {', '.join(several[:4])}{more}. Give the whole name"
    return f"{shown(' '.join(message.split()), 400)}. {help} lists what there is"


def _wrong_value(key: str, words: str, command: Command) -> str:
    """`--train.max_steps must be a whole number. Got abc`."""
    name = next((name for name in command.settings() if key == name or key.endswith(f".{name}")), key)
    value = words.partition("Got value: ")[2]
    if kind := re.search(r"Expected an? <class '(\w+)'>", words):
        must = _KINDS.get(kind[1], kind[1])
    elif choices := re.search(r"Literal\[(.*?)\]", words):
        must = f"one of {choices[1]}".replace("'", "")
    else:
        return f"--{name}: {shown(' '.join(words.split()), 300)}. `{command.name()} --help` says what it may be"
    return f"--{name} must be {must}. Got {shown(value.strip() or 'nothing', 60)}"


def _explained_options(actions: Sequence[argparse.Action], width: int) -> list[str]:
    return _columns({_left(action): _right(action) for action in actions}, width, whole=True)


def _columns(rows: dict[str, str], width: int, *, whole: bool) -> list[str]:
    """Names, and beside them what they are: all that is said of them, or the first sentence alone."""
    lines, indent = [], " " * (min(max(map(len, rows), default=0), _NAMES) + 4)
    for name, text in rows.items():
        start = f"  {name}"
        if len(start) > len(indent) - 2:
            lines.append(start)
            start = ""
        lines += _wrapped(text if whole else _first_sentence(text), width, indent, f"{start:<{len(indent)}}")
    return lines


def _left(action: argparse.Action) -> str:
    if not action.option_strings:
        return action.dest.upper()
    names = ", ".join(action.option_strings)
    return f"{names} {_kind(action)}" if _takes_value(action) else names


def _right(action: argparse.Action) -> str:
    text = (action.help or "").replace("%%", "%").rstrip(".")
    default = _value(action.default)
    return f"{text} [{default}]" if _takes_value(action) and default and action.option_strings and not action.required else text


def _kind(action: argparse.Action) -> str:
    """What a value looks like."""
    kind = str(getattr(action, "_typehint", getattr(action, "type", "")))
    if choices := re.search(r"Literal\[(.*)\]", kind):
        return "|".join(choices[1].replace("'", "").split(", "))
    names = {"int": "N", "float": "X", "bool": "true|false"}
    return next((short for name, short in names.items() if name in kind), "TEXT" if action.nargs != "*" else "TEXT ..")


def _short(action: argparse.Action) -> str:
    return next(flag for flag in reversed(action.option_strings) if flag.startswith("--"))


def _value(default: Any) -> str:
    if default is None or default == argparse.SUPPRESS or default in ("", []):
        return ""
    return str(default).lower() if isinstance(default, bool) else str(default)


def _takes_value(action: argparse.Action) -> bool:
    return action.nargs != 0 and "print_config" not in action.dest and "--print_config" not in action.option_strings


def _is_help(action: argparse.Action) -> bool:
    return isinstance(action, (argparse._HelpAction, argparse._VersionAction))


def _is_choice(action: argparse.Action) -> bool:
    return isinstance(action, argparse._SubParsersAction)


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.;:]) ", text)[0].rstrip(".;:")


def _wrapped(text: str, width: int, indent: str = "", start: str | None = None) -> list[str]:
    start = indent if start is None else start
    lines = textwrap.wrap(text, width, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False)
    return lines or [start.rstrip()]
