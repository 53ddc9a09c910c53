"""`vrae chat`: a conversation with a responder, in a terminal or through a pipe.

What the model says goes to `output`, a reply a line; help, figures and complaints go to `notes`. In a terminal the two are one.
The noise of a reply is a function of the seed, its place in the conversation and how often it was drawn before, so the same
lines give the same conversation.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from vrae.config import TALK, DecodingConfig, ResponseConfig, changed
from vrae.errors import ModelError, UserError
from vrae.evaluation.score import Score, score
from vrae.files import write_file
from vrae.generation.pipeline import Pipeline
from vrae.generation.responses import Reply
from vrae.generation.text_model import MAX_REPLIES, in_range, seed_of

_DRAWS = 100  # of z for each reply that /why scores
_ROUGH = 5  # with fewer effective samples a bound is not to be relied on
_REPLY, _NOTE = "36", "2"  # cyan and dim
# C0 and C1 controls and the bidirectional overrides, which a terminal would obey
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")


def chat(
    pipeline: Pipeline,
    *,
    input: TextIO,
    output: TextIO,
    notes: TextIO,
    n: int = 5,
    seed: int | None = None,
    decoding: DecodingConfig | None = None,
    responses: ResponseConfig | None = None,
    background: Pipeline | None = None,
    as_json: bool = False,
) -> int:
    """Talks until the input ends. Returns 0, or 130 after Ctrl-C, or 1 where lines failed and no person was there to see it.

    Args:
        pipeline: a model with context_turns >= 1.
        input: a person's lines, or a script's.
        output: what the model says.
        notes: everything else, unless `input` and `output` are a terminal, which then shows both.
        n: replies drawn to each line, the best of which is said.
        seed: of all replies; None: another one at each start.
        decoding: as for `Pipeline.respond`, and so are `responses` and `background`.
        as_json: print {"context", "reply", "replies"} for each reply and {"error", "line"} for each line that failed.

    Raises:
        ModelError: the model reads no context.
        UserError: n or seed is out of range.
    """
    if not pipeline.model.config.context_turns:
        raise ModelError("this model reads no context (model.context_turns is 0) and cannot converse: use vrae sample")
    in_range("n", n, 1, MAX_REPLIES)
    decoding, responses = decoding or TALK[0], responses or TALK[1]
    conversation = Conversation(pipeline, n, seed_of(seed), decoding, responses, background)
    return _Face(conversation, input, output, notes, as_json).run()


@dataclasses.dataclass
class Exchange:
    """A line and the replies drawn to it."""

    said: str
    replies: list[Reply]  # the best first
    draws: int  # how often replies were drawn
    chosen: int = 0

    @property
    def reply(self) -> Reply:
        return self.replies[self.chosen]


@dataclasses.dataclass
class Conversation:
    """What was said, and how the next reply is found."""

    pipeline: Pipeline
    n: int
    seed: int
    decoding: DecodingConfig
    responses: ResponseConfig
    background: Pipeline | None
    shown: int = 1  # replies to choose from
    exchanges: list[Exchange] = dataclasses.field(default_factory=list)

    @property
    def turns(self) -> list[str]:
        return [turn for exchange in self.exchanges for turn in (exchange.said, exchange.reply.text)]

    @property
    def last(self) -> Exchange:
        """Raises UserError where there is none."""
        if not self.exchanges:
            raise UserError("nothing has been said yet")
        return self.exchanges[-1]

    @property
    def context(self) -> list[str]:
        """What the model read before the last reply."""
        return self._read([*self.turns[:-2], self.last.said])

    def say(self, line: str) -> None:
        """Adds an exchange; none where drawing fails."""
        replies = self._draw(self._read([*self.turns, line]), len(self.exchanges), 0)
        self.exchanges.append(Exchange(line, replies, draws=1))

    def retry(self) -> None:
        """Replaces the last replies by others."""
        last = self.last
        replies = self._draw(self.context, len(self.exchanges) - 1, last.draws)
        self.exchanges[-1] = Exchange(last.said, replies, last.draws + 1)

    def why(self) -> tuple[list[Score], list[Score]]:
        """The bits of each of the last replies, given the context and without it."""
        texts = [reply.text for reply in self.last.replies]
        return score(self.pipeline, texts, [self.context] * len(texts), k=_DRAWS), score(self.pipeline, texts, k=_DRAWS)

    def _read(self, turns: list[str]) -> list[str]:
        return turns[-self.pipeline.model.config.context_turns :]

    def _draw(self, context: Sequence[str], place: int, draws: int) -> list[Reply]:
        (noise,) = np.random.SeedSequence([self.seed, place, draws]).generate_state(1, np.uint64)
        replies = self.pipeline.respond(
            context,
            max(self.n, self.shown),
            seed=int(noise) >> 1,
            decoding=self.decoding,
            responses=self.responses,
            background=self.background,
        )
        if not replies:
            raise UserError("the model has no reply to this")
        return [dataclasses.replace(reply, text=plain(reply.text)) for reply in replies]


def plain(text: str) -> str:
    """`text` on one line, without what a terminal would obey or UTF-8 cannot hold."""
    return _CONTROL.sub("", " ".join(text.encode("utf-8", "replace").decode().split())).strip()


def _is_number(text: str) -> bool:
    return re.fullmatch("[0-9]{1,9}", text) is not None


def _value(text: str) -> int | float | str:
    """A whole number, else a number, else the text."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


class _Face:
    """Reads lines, obeys commands, prints."""

    def __init__(self, conversation: Conversation, input: TextIO, output: TextIO, notes: TextIO, as_json: bool) -> None:
        self.conversation, self.input, self.output, self.as_json = conversation, input, output, as_json
        self.person = not as_json and input.isatty() and output.isatty()
        self.notes = output if self.person else notes
        self.width = min(shutil.get_terminal_size().columns, 80) if self.person else 0
        self.open = True
        self.choices = 0  # a line that is a number from 1 to this chooses a reply
        self.line = self.failed = 0
        for stream in (input, output):
            if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
                stream.reconfigure(errors="replace")

    def run(self) -> int:
        if self.person:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (with it, input() edits and remembers lines)
            count = self.conversation.pipeline.model.config.context_turns
            read = "the last turn" if count == 1 else f"the last {count} turns"
            self._note(f"The model reads {read}. /help lists the commands, Ctrl-D ends.")
            self._note(f"With --seed {self.conversation.seed} the same lines give the same conversation.")
        while self.open:
            try:
                line = self._read()
            except KeyboardInterrupt:
                self._end_line()
                return 130
            if line is None:
                self._end_line()
                break
            try:
                self._act(line)
            except UserError as error:
                self._complain(str(error))
            except KeyboardInterrupt:
                if not self.person:
                    return 130
                self._end_line()
                self._note("abandoned; the conversation is as it was before")
        return 1 if self.failed and not self.person else 0

    # Lines

    def _read(self) -> str | None:
        """The next line, or None at the end."""
        self.line += 1
        prompt = f"1-{self.choices}> " if self.choices else "> "
        if self.person and self.input is sys.stdin and self.output is sys.stdout:
            try:
                return plain(builtins.input(prompt))
            except EOFError:
                return None
        if self.person:
            print(prompt, end="", file=self.output, flush=True)
        line = self.input.readline()
        return plain(line) if line else None

    def _act(self, line: str) -> None:
        if line.startswith("/"):
            name, _, argument = line.partition(" ")
            if name not in COMMANDS:
                raise UserError(f"{name:.20}: no such command. There are {' '.join(COMMANDS)}")
            command = COMMANDS[name]
            if argument and " " not in command.usage:
                raise UserError(f"{name} takes nothing after it. Got {argument:.40}")
            command.act(self, argument)
        elif self.choices and _is_number(line):
            in_range("the number of a reply", int(line), 1, self.choices)
            self.conversation.last.chosen, self.choices = int(line) - 1, 0
            self._say()
        elif line:
            self.conversation.say(line)
            self._show()

    def n(self, argument: str) -> None:
        in_range("/n", int(argument) if _is_number(argument) else argument, 1, MAX_REPLIES)
        self.conversation.shown, self.choices = int(argument), 0
        if self.conversation.shown > 1:
            self._note(f"from now on {argument} replies: type the number of one, or go on with the first")
        else:
            self._note("from now on the best reply")

    def retry(self, argument: str) -> None:
        before = self.conversation.last.reply.text
        self.conversation.retry()
        self._show()
        if not self.choices and self.conversation.last.reply.text == before:
            self._note("drawn anew; the same reply came out best")

    def why(self, argument: str) -> None:
        last, latent = self.conversation.last, self.conversation.pipeline.model.config.latent_size > 0
        given, alone = self.conversation.why()
        columns = ("latent", "text", "total", "iw", "alone") if latent else ("text", "alone")
        self._note("   " + "".join(f"{name:>7}" for name in (*columns, "score")) + "  reply")
        for i, (reply, with_context, without) in enumerate(zip(last.replies, given, alone, strict=True)):
            parts = [with_context.bits_latent, with_context.bits_text, with_context.bits_total] if latent else []
            values = "".join(f"{value:7.1f}" for value in (*parts, with_context.bits_iw, without.bits_iw, reply.score))
            row = f"{'*' if i == last.chosen else ' '}{i + 1:2}{values}  {reply.text}"
            self._note(row if not self.width or len(row) <= self.width else f"{row[: self.width - 1]}…")
        chosen, free = given[last.chosen], alone[last.chosen]
        saved = free.bits_iw - chosen.bits_iw
        parts_of = "latent + text = total; iw: tighter bound; alone: iw" if latent else "the model has no latent; alone: text"
        self._note(f"bits: {parts_of} without the context")
        self._note("score: what the replies are ordered by, in nats")
        self._note(f"* is the reply: the context makes it {abs(saved):.1f} bits {'cheaper' if saved >= 0 else 'dearer'}")
        if latent and min(chosen.effective_samples, free.effective_samples) < _ROUGH:
            self._note(f"its iw or alone is rough: fewer than {_ROUGH} of {_DRAWS} draws of the latent count")

    def save(self, argument: str, replace: bool = False) -> None:
        turns, path = self.conversation.turns, Path(os.path.expanduser(argument))
        suffix = path.suffix.lower()
        if suffix not in (".jsonl", ".txt"):
            raise UserError(f"/save FILE: it must end in .jsonl or .txt. Got {argument or 'nothing':.80}")
        if not turns:
            raise UserError("nothing has been said yet")
        if os.path.lexists(path) and not replace:
            raise UserError(f"{argument} is there already: /save! {argument} replaces it")
        lines = turns if suffix == ".txt" else [json.dumps({"turns": turns}, ensure_ascii=False)]
        try:
            write_file(path, "".join(f"{line}\n" for line in lines).encode())
        except OSError as error:
            raise UserError(f"/save {argument:.80}: cannot write: {error.strerror or error}") from None
        layout = " --layout turns" if suffix == ".txt" else ""
        self._note(f"{len(turns)} turns saved; vrae prepare {shlex.quote(str(path))}{layout} reads them")

    def undo(self, argument: str) -> None:
        self._note(f"taken back: {self.conversation.last.said}")
        del self.conversation.exchanges[-1]
        self.choices = 0

    def reset(self, argument: str) -> None:
        self.conversation.exchanges.clear()
        self.choices = 0
        self._note("a new conversation")

    def set(self, argument: str) -> None:
        talk = self.conversation
        settings = {**dataclasses.asdict(talk.decoding), **dataclasses.asdict(talk.responses)}
        name, _, text = argument.partition(" ")
        if not name:
            for name, value in settings.items():
                self._note(f"{name:<21}{value}")
            return
        if name not in settings:
            raise UserError(f"/set {name:.20}: no such setting. There are {' '.join(settings)}")
        if not text:
            raise UserError(f"/set {name}: the value is missing; it is {settings[name]} now")
        value = _value(text)
        if hasattr(talk.decoding, name):
            talk.decoding = changed(talk.decoding, "/set", **{name: value})
        else:
            talk.responses = changed(talk.responses, "/set", **{name: value})
        self._note(f"{name}: {settings[name]} -> {value}")

    def help(self, argument: str) -> None:
        for command in COMMANDS.values():
            self._note(f"{command.usage:<17}{command.help}")

    def quit(self, argument: str) -> None:
        self.open = False

    # What is printed

    def _show(self) -> None:
        """The best reply, or those to choose from."""
        replies = self.conversation.last.replies[: self.conversation.shown]
        self.choices = len(replies) if self.conversation.shown > 1 else 0
        if self.as_json or not self.choices:
            self._say()
        else:
            for number, reply in enumerate(replies, 1):
                self._print(f"{number:3}  {reply.text}", _REPLY, self.output, indent=5)

    def _say(self) -> None:
        last = self.conversation.last
        if self.as_json:
            keys = ("text", "log_prob", "score", "tokens")
            replies = [{key: getattr(reply, key) for key in keys} for reply in last.replies]
            self._print_json({"context": self.conversation.context, "reply": last.reply.text, "replies": replies})
        else:
            self._print(last.reply.text, _REPLY, self.output)

    def _complain(self, problem: str) -> None:
        self.failed += 1
        if self.as_json:
            self._print_json({"error": f"line {self.line}: {problem}", "line": self.line})
        else:
            self._note(problem if self.person else f"line {self.line}: {problem}")

    def _note(self, text: str) -> None:
        self._print(text, _NOTE, self.notes)

    def _end_line(self) -> None:
        if self.person:
            print(file=self.output, flush=True)

    def _print_json(self, value: object) -> None:
        print(json.dumps(value, ensure_ascii=False), file=self.output, flush=True)

    def _print(self, text: str, colour: str, stream: TextIO, indent: int = 0) -> None:
        if self.width and len(text) > self.width:
            text = textwrap.fill(text, self.width, subsequent_indent=" " * indent, break_on_hyphens=False)
        if stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
            text = f"\x1b[{colour}m{text}\x1b[0m"
        print(text, file=stream, flush=True)


class Command(NamedTuple):
    usage: str
    help: str
    act: Callable[[_Face, str], None]


COMMANDS = {
    "/n": Command("/n 5", "show 5 replies to choose from by number; /n 1: say the best", _Face.n),
    "/retry": Command("/retry", "draw another reply to the same line", _Face.retry),
    "/why": Command("/why", "the bits of the replies, with and without the context", _Face.why),
    "/save": Command("/save FILE", "write the conversation to a new file, .jsonl or .txt", _Face.save),
    "/save!": Command(
        "/save! FILE", "the same, and replace a file that is there", lambda face, file: face.save(file, replace=True)
    ),
    "/undo": Command("/undo", "take back the last line and its reply", _Face.undo),
    "/reset": Command("/reset", "start a new conversation", _Face.reset),
    "/set": Command("/set NAME VALUE", "change how replies are drawn; /set alone: the settings", _Face.set),
    "/help": Command("/help", "this list", _Face.help),
    "/quit": Command("/quit", "end; so does Ctrl-D", _Face.quit),
}
