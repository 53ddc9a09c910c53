"""`vrae chat`: what is said in which context, every command, the same lines the same conversation, no terminal harmed."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import tiny_model

import vrae.apps.chat
from vrae.apps.chat import COMMANDS, chat, plain
from vrae.config import TALK, DecodingConfig, ResponseConfig
from vrae.corpus.batches import Window, collate
from vrae.corpus.prepared import Corpus
from vrae.corpus.sources import read_dialogues
from vrae.corpus.tokenizer import EOS
from vrae.errors import ModelError, UserError
from vrae.evaluation.score import Score, score
from vrae.files import write_folder
from vrae.generation.pipeline import Pipeline
from vrae.generation.responses import Reply
from vrae.model.folder import to_files

WILD = DecodingConfig(temperature=1.0, top_p=1.0, max_tokens=12)
ESCAPE = "\x1b]0;owned\x07a\x1b[31mb\x9b2Jc\u202ed\x7fe"
ESCAPED = "]0;owneda[31mb2Jcde"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Talk(NamedTuple):
    code: int
    output: list[str]
    notes: list[str]


class Call(NamedTuple):
    """What `Pipeline.respond` was asked and said."""

    context: list[str]
    n: int
    options: dict[str, Any]
    texts: list[str]


def responder(corpus: Corpus, context_turns: int = 3, latent_size: int = 8) -> Pipeline:
    model = tiny_model(context_turns=context_turns, latent_size=latent_size, vocab_size=len(corpus.tokenizer), speakers=True)
    with torch.no_grad():
        model.decoder.out.bias[EOS] = -1.0
    return Pipeline(model, corpus.tokenizer, {})


@pytest.fixture
def pipeline(corpus: Corpus) -> Pipeline:
    return responder(corpus)


@pytest.fixture
def calls(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Every call of the pipeline's `respond`."""
    seen: list[Call] = []
    real = pipeline.respond

    def spy(context: Any, n: int = 5, **options: Any) -> list[Reply]:
        replies = real(context, n, **options)
        seen.append(Call(list(context), n, options, [reply.text for reply in replies]))
        return replies

    monkeypatch.setattr(pipeline, "respond", spy)
    return seen


@pytest.fixture
def say(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the pipeline reply with these texts, whatever it is asked."""

    def say(*texts: str) -> None:
        replies = [Reply(text, -1.5 - i, -1.5 - i, 3, ()) for i, text in enumerate(texts)]
        monkeypatch.setattr(pipeline, "respond", lambda *_, **__: list(replies))

    return say


def talk(pipeline: Pipeline, *lines: str, **options: Any) -> Talk:
    """A script's conversation."""
    output, notes = io.StringIO(), io.StringIO()
    options = {"seed": 1, "decoding": WILD, **options}
    code = chat(pipeline, input=io.StringIO("".join(f"{line}\n" for line in lines)), output=output, notes=notes, **options)
    return Talk(code, output.getvalue().splitlines(), notes.getvalue().splitlines())


def talk_in_terminal(pipeline: Pipeline, *lines: str, input: Terminal | None = None) -> tuple[int, str]:
    """A person's conversation, and what the terminal shows but for what was typed."""
    screen, elsewhere = Terminal(), io.StringIO()
    typed = input or Terminal("".join(f"{line}\n" for line in lines))
    code = chat(pipeline, input=typed, output=screen, notes=elsewhere, seed=1, decoding=WILD)
    assert elsewhere.getvalue() == ""
    return code, screen.getvalue()


class TestConversation:
    @pytest.mark.parametrize("context_turns", [1, 2, 3])
    def test_each_line_is_answered_in_the_context_of_those_before(
        self, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, context_turns: int
    ) -> None:
        pipeline, contexts = responder(corpus, context_turns), []
        real = pipeline.respond
        monkeypatch.setattr(pipeline, "respond", lambda context, *a, **k: contexts.append(context) or real(context, *a, **k))
        a, b, c = talk(pipeline, "hello", "what do you eat", "yes").output
        spoken = ["hello", a, "what do you eat", b, "yes"]
        assert contexts == [spoken[:1], spoken[:3][-context_turns:], spoken[-context_turns:]]
        assert len({a, b, c}) == 3

    def test_the_best_of_n_is_said(self, pipeline: Pipeline, calls: list[Call]) -> None:
        result = talk(pipeline, "hello", "thanks", n=7)
        assert [call.n for call in calls] == [7, 7]
        assert result == Talk(0, [call.texts[0] for call in calls], [])

    def test_what_is_set_reaches_the_pipeline(self, pipeline: Pipeline, calls: list[Call]) -> None:
        responses, background = ResponseConfig(rank="mmi"), pipeline
        talk(pipeline, "hello", decoding=WILD, responses=responses, background=background)
        options = calls[0].options
        assert (options["decoding"], options["responses"], options["background"]) == (WILD, responses, background)

    def test_empty_lines_are_passed_over(self, pipeline: Pipeline) -> None:
        assert talk(pipeline, "", "hello", "  \t ", "thanks", "") == talk(pipeline, "hello", "thanks")

    def test_the_last_line_needs_no_end(self, pipeline: Pipeline) -> None:
        output = io.StringIO()
        assert chat(pipeline, input=io.StringIO("hello"), output=output, notes=io.StringIO(), seed=1, decoding=WILD) == 0
        assert output.getvalue().splitlines() == talk(pipeline, "hello").output

    def test_a_model_without_latent_converses(self, corpus: Corpus) -> None:
        assert len(talk(responder(corpus, latent_size=0), "hello", "thanks").output) == 2

    def test_a_model_without_context_is_refused_at_once(self, corpus: Corpus) -> None:
        with pytest.raises(ModelError, match="reads no context"):
            talk(responder(corpus, context_turns=0))

    @pytest.mark.parametrize(("option", "value"), [("n", 0), ("n", 257), ("seed", -1)])
    def test_n_and_seed_are_checked_at_once(self, pipeline: Pipeline, option: str, value: int) -> None:
        with pytest.raises(UserError, match=f"{option} must be a whole number .* Got {value}"):
            talk(pipeline, **{option: value})


class TestNoise:
    LINES = ("hello", "/retry", "what do you eat", "/retry", "/retry", "/n 3", "yes", "2", "no")

    def test_the_same_lines_give_the_same_conversation(self, pipeline: Pipeline) -> None:
        first = talk(pipeline, *self.LINES)
        assert first == talk(pipeline, *self.LINES)
        assert first.output != talk(pipeline, *self.LINES, seed=2).output

    def test_without_seed_there_is_another_one_each_time(self, pipeline: Pipeline, calls: list[Call]) -> None:
        talk(pipeline, "hello", seed=None)
        talk(pipeline, "hello", seed=None)
        assert calls[0].options["seed"] != calls[1].options["seed"]

    def test_is_a_function_of_place_and_draw_alone(self, pipeline: Pipeline, calls: list[Call]) -> None:
        talk(pipeline, "a", "/retry", "/retry", "b", "/retry", "c")
        seeds = [call.options["seed"] for call in calls]
        assert len(set(seeds)) == 6
        assert all(0 <= seed < 2**63 for seed in seeds)
        calls.clear()
        talk(pipeline, "x", "y", "/undo", "y", "/retry", "z", "/reset", "x", "/retry", n=2)
        assert [call.options["seed"] for call in calls] == [seeds[i] for i in (0, 3, 3, 4, 5, 0, 1)]


class TestRetry:
    def test_replaces_the_reply_by_another_to_the_same_context(self, pipeline: Pipeline, calls: list[Call]) -> None:
        result = talk(pipeline, "hello", "yes", "/retry", "/retry", "no")
        assert calls[1].context == calls[2].context == calls[3].context
        assert len(set(result.output)) == 5
        assert calls[4].context == ["yes", result.output[3], "no"]

    def test_that_draws_the_same_says_so(self, pipeline: Pipeline, say: Callable[..., None]) -> None:
        say("hi there")
        assert talk(pipeline, "hello", "/retry").notes == ["drawn anew; the same reply came out best"]
        assert len(talk(pipeline, "/n 2", "hello", "/retry").notes) == 1  # they are shown anyway


class TestUndo:
    def test_restores_the_context(self, pipeline: Pipeline, calls: list[Call]) -> None:
        undone = talk(pipeline, "hello", "/retry", "yes", "/retry", "no", "/undo", "/undo", "thanks")
        plainly = talk(pipeline, "hello", "/retry", "thanks")
        assert undone.output[-1] == plainly.output[-1]
        assert calls[-1] == calls[-4]
        assert undone.notes == ["taken back: no", "taken back: yes"]

    def test_keeps_the_count_of_draws_of_the_exchange_before(self, pipeline: Pipeline, calls: list[Call]) -> None:
        talk(pipeline, "hello", "/retry", "yes", "/undo", "/retry")
        assert calls[3].context == calls[0].context
        assert len({call.options["seed"] for call in calls}) == 4

    def test_ends_a_choice(self, pipeline: Pipeline, calls: list[Call]) -> None:
        talk(pipeline, "/n 2", "hello", "/undo", "1")
        assert calls[-1].context == ["1"]

    def test_of_all_leaves_an_empty_conversation(self, pipeline: Pipeline) -> None:
        result = talk(pipeline, "hello", "/undo", "/undo", "hello")
        assert result.notes == ["taken back: hello", "line 3: nothing has been said yet"]
        assert result.output[0] == result.output[1]


def test_reset_ends_a_choice(pipeline: Pipeline) -> None:
    assert talk(pipeline, "/n 2", "hello", "/reset", "1").code == 0


def test_reset_starts_anew(pipeline: Pipeline) -> None:
    output = talk(pipeline, "/n 2", "thanks", "/n 1", "hello", "/reset", "hello", "yes").output
    assert output[-2:] == talk(pipeline, "hello", "yes").output


class TestChoice:
    def test_shows_numbered_replies_and_says_the_one_chosen(self, pipeline: Pipeline, calls: list[Call]) -> None:
        result = talk(pipeline, "/n 3", "hello", "2", "yes")
        first, second = calls
        assert (first.n, len(first.texts)) == (5, 5)
        assert result.output == [
            *(f"  {i}  {text}" for i, text in enumerate(first.texts[:3], 1)),
            first.texts[1],
            *(f"  {i}  {text}" for i, text in enumerate(second.texts[:3], 1)),
        ]
        assert second.context == ["hello", first.texts[1], "yes"]

    def test_of_more_than_are_drawn_draws_more(self, pipeline: Pipeline, calls: list[Call]) -> None:
        assert len(talk(pipeline, "/n 9", "hello").output) == len(calls[0].texts) > 5
        assert calls[0].n == 9

    def test_may_be_left_open_for_the_first(self, pipeline: Pipeline, calls: list[Call]) -> None:
        talk(pipeline, "/n 3", "hello", "yes")
        assert calls[1].context == ["hello", calls[0].texts[0], "yes"]

    @pytest.mark.parametrize("number", ["0", "4", "999999999"])
    def test_out_of_range_stays_open(self, pipeline: Pipeline, calls: list[Call], number: str) -> None:
        result = talk(pipeline, "/n 3", "hello", number, "3")
        assert result.output[-1] == calls[0].texts[2]
        assert result.notes[1] == f"line 3: the number of a reply must be a whole number from 1 to 3. Got {number}"
        assert result.code == 1

    @pytest.mark.parametrize("text", ["9" * 5000, "-1", "1.5", "2 of them", "²"])
    def test_is_made_by_whole_numbers_alone(self, pipeline: Pipeline, text: str) -> None:
        if len(text) > 2000:
            assert "2000 characters" in talk(pipeline, "/n 3", "hello", text).notes[1]
        else:
            assert len(talk(pipeline, "/n 3", "hello", text).output) == 6

    def test_without_one_a_number_is_a_message(self, pipeline: Pipeline, calls: list[Call]) -> None:
        talk(pipeline, "1", "/n 3", "hello", "2", "2", "/n 1", "2")
        assert [call.context[-1] for call in calls] == ["1", "hello", "2", "2"]

    def test_among_fewer_than_asked_for_ends_with_the_last(self, pipeline: Pipeline, say: Callable[..., None]) -> None:
        say("hi", "hello")
        result = talk(pipeline, "/n 4", "hello", "3", "2")
        assert result.output == ["  1  hi", "  2  hello", "hello"]
        assert "from 1 to 2. Got 3" in result.notes[1]

    def test_after_retry_is_among_the_new_ones(self, pipeline: Pipeline, calls: list[Call]) -> None:
        result = talk(pipeline, "/n 2", "hello", "/retry", "2")
        assert result.output[-1] == calls[1].texts[1]

    @pytest.mark.parametrize("argument", ["", "0", "257", "x", "-1", "9" * 5000])
    def test_of_n_replies_needs_a_whole_number(self, pipeline: Pipeline, argument: str) -> None:
        result = talk(pipeline, f"/n {argument}", "hello")
        assert "/n must be a whole number from 1 to 256" in result.notes[0]
        assert len(result.output) == 1


class TestWhy:
    def test_gives_the_bits_of_each_reply_with_and_without_its_context(self, pipeline: Pipeline, calls: list[Call]) -> None:
        result = talk(pipeline, "hello", "/n 3", "what do you eat", "2", "/why")
        texts = calls[1].texts
        given, alone = score(pipeline, texts, [calls[1].context] * len(texts), k=100), score(pipeline, texts, k=100)
        header, *rows = result.notes[1 : len(texts) + 2]
        assert header.split() == ["latent", "text", "total", "iw", "alone", "score", "reply"]
        for i, row in enumerate(rows):
            shown = [float(value) for value in row[3:].split()[:6]]
            bits = [given[i].bits_latent, given[i].bits_text, given[i].bits_total, given[i].bits_iw, alone[i].bits_iw]
            assert shown[:5] == pytest.approx(bits, abs=0.051)
            assert row.startswith("* 2" if i == 1 else f"  {i + 1}")
            assert row.endswith(f"  {texts[i]}")
        saved = alone[1].bits_iw - given[1].bits_iw
        assert f"makes it {abs(saved):.1f} bits {'cheaper' if saved > 0 else 'dearer'}" in " ".join(result.notes)

    def test_without_latent_shows_the_exact_bits_of_the_text(self, corpus: Corpus) -> None:
        pipeline = responder(corpus, latent_size=0)
        result = talk(pipeline, "hello", "/why", n=1)
        encode = lambda text: torch.tensor(corpus.tokenizer.encode([text])[0]).numpy()  # noqa: E731
        windows = [Window(context, encode(result.output[0]), [0] * len(context)) for context in ([encode("hello")], [])]
        with torch.inference_mode():
            batch = collate(windows, 3)
            prior, context_BC = pipeline.model.condition(batch)
            nats = -pipeline.model.log_prob(batch, prior.mean_BZ, context_BC)
        bits = (nats / torch.log(torch.tensor(2.0))).tolist()
        assert result.notes[0].split() == ["text", "alone", "score", "reply"]
        assert result.notes[1].split()[2:4] == [f"{value:.1f}" for value in bits]
        assert result.notes[2] == "bits: the model has no latent; alone: text without the context"

    @pytest.mark.parametrize(
        ("alone", "effective", "last"),
        [
            (21.0, 50.0, ["* is the reply: the context makes it 1.5 bits cheaper"]),
            (18.0, 50.0, ["* is the reply: the context makes it 1.5 bits dearer"]),
            (
                21.0,
                4.9,
                [
                    "* is the reply: the context makes it 1.5 bits cheaper",
                    "its iw or alone is rough: fewer than 5 of 100 draws of the latent count",
                ],
            ),
        ],
    )
    def test_is_a_table_and_a_sentence(
        self,
        pipeline: Pipeline,
        say: Callable[..., None],
        monkeypatch: pytest.MonkeyPatch,
        alone: float,
        effective: float,
        last: list[str],
    ) -> None:
        def scores(_: Pipeline, texts: list[str], contexts: Any = None, **__: Any) -> list[Score]:
            weighted = 19.5 if contexts else alone
            return [Score(text, 8.25, 12.0, 20.25, weighted, 0.75, effective if contexts else 50.0, 4) for text in texts]

        say("hi", "how are you?")
        monkeypatch.setattr(vrae.apps.chat, "score", scores)
        assert talk(pipeline, "hello", "/why").notes == [
            "    latent   text  total     iw  alone  score  reply",
            f"* 1    8.2   12.0   20.2   19.5{alone:7.1f}   -1.5  hi",
            f"  2    8.2   12.0   20.2   19.5{alone:7.1f}   -2.5  how are you?",
            "bits: latent + text = total; iw: tighter bound; alone: iw without the context",
            "score: what the replies are ordered by, in nats",
            *last,
        ]

    def test_leaves_the_choice_open(self, pipeline: Pipeline, calls: list[Call]) -> None:
        assert talk(pipeline, "/n 2", "hello", "/why", "2").output[-1] == calls[0].texts[1]


class TestSave:
    @pytest.mark.parametrize(("name", "layout"), [("talk.jsonl", "auto"), ("talk.txt", "turns"), ("my talk.JSONL", "auto")])
    def test_writes_what_prepare_reads(self, pipeline: Pipeline, tmp_path: Path, name: str, layout: str) -> None:
        path = tmp_path / name
        lines = ["hello 😀", '"quoted" \\ {}', "\ufeffa\u2028b\x85c", "Name: x", ESCAPE, "/n 2", "yes", "2"]
        result = talk(pipeline, *lines, f"/save {path}")
        (dialogue,) = read_dialogues(str(path), layout=layout)
        said = ["hello 😀", '"quoted" \\ {}', "a b c", "Name: x", ESCAPED, "yes"]
        replies = [*result.output[:5], result.output[-1]]
        assert list(dialogue.turns) == [turn for pair in zip(said, replies, strict=True) for turn in pair]
        quoted = f"'{path}'" if " " in name else str(path)
        option = " --layout turns" if layout == "turns" else ""
        assert result.notes[-1] == f"12 turns saved; vrae prepare {quoted}{option} reads them"

    def test_keeps_an_older_file_unless_told(self, pipeline: Pipeline, tmp_path: Path) -> None:
        path = tmp_path / "talk.jsonl"
        path.write_text("precious")
        result = talk(pipeline, "hello", f"/save {path}")
        assert path.read_text() == "precious"
        assert result.notes == [f"line 2: {path} is there already: /save! {path} replaces it"]
        result = talk(pipeline, "hello", f"/save! {path}")
        assert json.loads(path.read_text()) == {"turns": ["hello", *result.output]}

    def test_knows_the_home_folder(self, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        talk(pipeline, "hello", "/save ~/talk.jsonl")
        assert (tmp_path / "talk.jsonl").is_file()

    @pytest.mark.parametrize(
        ("lines", "problem"),
        [
            (["hello", "/save"], "it must end in .jsonl or .txt. Got nothing"),
            (["hello", "/save talk.json"], "Got talk.json"),
            (["/save talk.jsonl"], "nothing has been said yet"),
            (["hello", "/save no/such/folder/talk.jsonl"], "cannot write: No such file or directory"),
            (["hello", f"/save {'x' * 300}.txt"], "cannot write: File name too long"),
            (["hello", "/save! folder.txt"], "cannot write: Is a directory"),
        ],
    )
    def test_that_fails_is_one_line_and_writes_nothing(
        self, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], problem: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "folder.txt").mkdir()
        (note,) = talk(pipeline, *lines).notes
        assert problem in note
        assert [path.name for path in tmp_path.rglob("*")] == ["folder.txt"]


class TestSet:
    @pytest.mark.parametrize(
        ("change", "config", "expected"),
        [
            ("temperature 0.8", "decoding", dataclasses.replace(WILD, temperature=0.8)),
            ("temperature 2", "decoding", dataclasses.replace(WILD, temperature=2.0)),
            ("top_k 7", "decoding", dataclasses.replace(WILD, top_k=7)),
            ("rank likelihood", "responses", dataclasses.replace(TALK[1], rank="likelihood")),
            ("min_change 0.7", "responses", dataclasses.replace(TALK[1], min_change=0.7)),
        ],
    )
    def test_changes_one_setting(self, pipeline: Pipeline, calls: list[Call], change: str, config: str, expected: Any) -> None:
        assert talk(pipeline, f"/set {change}", "hello").code == 0
        options = {"decoding": WILD, "responses": TALK[1], config: expected}
        assert {name: calls[0].options[name] for name in options} == options

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ("temperature 9", "temperature must be in [0, 5]. Got 9"),
            ("temperature nan", "Got nan"),
            ("temperature hot", "temperature must be float. Got 'hot'"),
            ("top_k 1.5", "top_k must be int. Got 1.5"),
            ("rank best", "rank must be one of"),
            ("warmth 1", "/set warmth: no such setting. There are temperature"),
            ("temperature", "/set temperature: the value is missing; it is 1.0 now"),
        ],
    )
    def test_refuses_what_makes_no_sense(self, pipeline: Pipeline, calls: list[Call], change: str, problem: str) -> None:
        result = talk(pipeline, f"/set {change}", "hello")
        assert len(result.notes) == 1
        assert problem in result.notes[0]
        assert calls[0].options["decoding"] == WILD

    def test_alone_lists_every_setting(self, pipeline: Pipeline) -> None:
        settings = {**dataclasses.asdict(WILD), **dataclasses.asdict(TALK[1])}
        listed = dict(line.split() for line in talk(pipeline, "/set").notes)
        assert listed == {name: str(value) for name, value in settings.items()}


class TestCommands:
    def test_are_listed_a_line_each(self, pipeline: Pipeline) -> None:
        notes = talk(pipeline, "/help").notes
        assert [note.split()[0] for note in notes] == list(COMMANDS)
        assert max(map(len, notes)) <= 80

    @pytest.mark.parametrize("line", ["/foo", "/N 5", "/", "//", "/retry now", "/undo 2", "/quit now", "/" + "x" * 3000])
    def test_that_are_none_end_nothing(self, pipeline: Pipeline, line: str) -> None:
        result = talk(pipeline, "hello", line, "thanks")
        assert result.output == talk(pipeline, "hello", "thanks").output
        assert len(result.notes) == 1
        assert len(result.notes[0]) < 150
        assert result.code == 1

    @pytest.mark.parametrize("command", ["/retry", "/why", "/undo"])
    def test_that_need_a_reply_say_so(self, pipeline: Pipeline, command: str) -> None:
        assert talk(pipeline, command) == Talk(1, [], ["line 1: nothing has been said yet"])

    def test_quit_ends(self, pipeline: Pipeline) -> None:
        assert talk(pipeline, "/quit", "hello") == Talk(0, [], [])


class TestBadInput:
    def test_too_long_a_line_leaves_the_conversation_as_it_was(self, pipeline: Pipeline) -> None:
        result = talk(pipeline, "hello", "x" * 2001, "thanks")
        assert result == Talk(
            1, talk(pipeline, "hello", "thanks").output, ["line 2: a text must have at most 2000 characters. Got 2001"]
        )

    def test_no_reply_is_said_and_leaves_the_conversation_as_it_was(self, pipeline: Pipeline, say: Callable[..., None]) -> None:
        say()
        assert talk(pipeline, "hello", "/undo") == Talk(
            1, [], ["line 1: the model has no reply to this", "line 2: nothing has been said yet"]
        )

    @pytest.mark.parametrize("as_json", [False, True])
    def test_no_escape_sequence_gets_through(
        self, pipeline: Pipeline, say: Callable[..., None], tmp_path: Path, as_json: bool
    ) -> None:
        say(ESCAPE, f"b{ESCAPE}\n\r")
        path = tmp_path / "talk.jsonl"
        lines = [ESCAPE, "/undo", ESCAPE, "/n 2", ESCAPE, "2", "/why", f"/{ESCAPE}", f"/save {ESCAPE}", f"/set {ESCAPE}"]
        result = talk(pipeline, *lines, f"/save {path}", as_json=as_json)
        assert len(result.output) + len(result.notes) > 15
        for line in [*result.output, *result.notes, path.read_text().removesuffix("\n")]:
            assert line.isprintable(), repr(line)
        if not as_json:
            assert result.output == [ESCAPED, ESCAPED, f"  1  {ESCAPED}", f"  2  b{ESCAPED}", f"b{ESCAPED}"]

    @pytest.mark.parametrize("raw", [b"caf\xe9 \xff", b"\xed\xa0\x80", b"a\x00b", "naïve 😀".encode()])
    def test_any_bytes_are_read_and_answered_on_any_terminal(
        self, pipeline: Pipeline, say: Callable[..., None], raw: bytes, tmp_path: Path
    ) -> None:
        say("naïve 😀")
        written, path = io.BytesIO(), tmp_path / "talk.jsonl"
        input = io.TextIOWrapper(io.BytesIO(raw + f"\n/save {path}\n".encode()), "utf-8")
        output = io.TextIOWrapper(written, "ascii")
        assert chat(pipeline, input=input, output=output, notes=io.StringIO()) == 0
        assert written.getvalue() == b"na?ve ?\n"
        assert len(json.loads(path.read_text(encoding="utf-8"))["turns"]) == 2

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("\ud800a", "?a"),
            ("a\tb\u00a0 c\r\n", "a b c"),
            ("👨\u200d👩\u200d👧 می\u200cروم", "👨\u200d👩\u200d👧 می\u200cروم"),
            (ESCAPE, ESCAPED),
            (" \x00 ", ""),
        ],
    )
    def test_plain_text_stays_as_it_is(self, text: str, expected: str) -> None:
        assert plain(text) == expected


class TestJson:
    def test_prints_an_object_for_each_reply(self, pipeline: Pipeline, calls: list[Call]) -> None:
        result = talk(pipeline, "hello", "/retry", "/n 2", "yes", "2", "x" * 2001, "/help", as_json=True)
        *objects, failure = [json.loads(line) for line in result.output]
        assert [set(value) for value in objects] == [{"context", "reply", "replies"}] * 4
        assert [value["context"] for value in objects] == [call.context for call in (*calls, calls[-1])]
        assert [[reply["text"] for reply in value["replies"]] for value in objects] == [c.texts for c in (*calls, calls[-1])]
        assert [value["reply"] for value in objects] == [*(call.texts[0] for call in calls), calls[-1].texts[1]]
        assert set(objects[0]["replies"][0]) == {"text", "log_prob", "score", "tokens"}
        assert failure == {"error": "line 6: a text must have at most 2000 characters. Got 2001", "line": 6}
        assert (result.code, len(result.notes)) == (1, len(COMMANDS) + 1)

    def test_says_what_the_plain_conversation_says(self, pipeline: Pipeline) -> None:
        lines = ["hello", "/retry", "yes"]
        said = [json.loads(line)["reply"] for line in talk(pipeline, *lines, as_json=True).output]
        assert said == talk(pipeline, *lines).output

    def test_prompts_nobody(self, pipeline: Pipeline) -> None:
        screen, notes = Terminal(), io.StringIO()
        assert chat(pipeline, input=Terminal("hello\n"), output=screen, notes=notes, as_json=True) == 0
        assert json.loads(screen.getvalue())["context"] == ["hello"]
        assert notes.getvalue() == ""


class TestTerminal:
    @pytest.fixture(autouse=True)
    def no_colour(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "100")

    def test_has_prompts_and_ends_its_last_line(self, pipeline: Pipeline, say: Callable[..., None]) -> None:
        say("hi", "hey")
        code, screen = talk_in_terminal(pipeline, "hello", "/n 2", "yes", "2")
        welcome, seed, *rest = screen.splitlines()
        assert "reads the last 3 turns. /help" in welcome
        assert "--seed 1 " in seed
        choices = "from now on 2 replies: type the number of one, or go on with the first"
        assert rest == ["> hi", f"> {choices}", ">   1  hi", "  2  hey", "1-2> hey", "> "]
        assert (code, screen[-1]) == (0, "\n")

    def test_names_the_one_turn_that_is_read(self, corpus: Corpus) -> None:
        assert "reads the last turn." in talk_in_terminal(responder(corpus, context_turns=1))[1]

    def test_complains_without_line_number_and_ends_well(self, pipeline: Pipeline) -> None:
        code, screen = talk_in_terminal(pipeline, "/foo")
        assert "\n> /foo: no such command" in screen
        assert code == 0

    def test_wraps_at_80_columns(self, pipeline: Pipeline, say: Callable[..., None]) -> None:
        say("word " * 40, "other " * 40)
        _, screen = talk_in_terminal(pipeline, "/n 2", "hello", "/why", "/help", "/foo", "/set", "/n 1", "hello")
        lines = [re.sub("^(1-2)?> ", "", line) for line in screen.splitlines()]
        assert max(map(len, lines)) <= 80
        assert sum(line.startswith("     word word") for line in lines) >= 2
        assert sum(line.endswith("…") for line in lines) == 2

    @pytest.mark.parametrize(
        ("environment", "coloured"),
        [({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
    )
    def test_has_colours_unless_told_otherwise(
        self, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], coloured: bool
    ) -> None:
        monkeypatch.delenv("NO_COLOR")
        monkeypatch.setenv("TERM", "xterm")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        (reply,) = talk(pipeline, "hello").output
        assert (f"\x1b[36m{reply}\x1b[0m" in talk_in_terminal(pipeline, "hello")[1]) is coloured
        assert ("\x1b" in talk_in_terminal(pipeline, "/help")[1]) is coloured

    @pytest.mark.parametrize("ends", [(Terminal, io.StringIO), (io.StringIO, Terminal)])
    def test_needs_both_ends(self, pipeline: Pipeline, ends: tuple[type[io.StringIO], type[io.StringIO]]) -> None:
        output, notes = ends[1](), io.StringIO()
        assert chat(pipeline, input=ends[0]("hello\n/help\n"), output=output, notes=notes, seed=1, decoding=WILD) == 0
        assert output.getvalue().splitlines() == talk(pipeline, "hello").output
        assert len(notes.getvalue().splitlines()) == len(COMMANDS)


class TestInterrupt:
    def test_at_the_prompt_ends_with_130(self, pipeline: Pipeline) -> None:
        class Impatient(Terminal):
            def readline(self, size: int | None = -1, /) -> str:
                raise KeyboardInterrupt

        code, screen = talk_in_terminal(pipeline, input=Impatient())
        assert code == 130
        assert screen.endswith("> \n")

    @pytest.fixture
    def interrupted(self, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """Ctrl-C comes while the second reply is drawn."""
        contexts: list[list[str]] = []
        real = pipeline.respond

        def respond(context: Any, *arguments: Any, **options: Any) -> list[Reply]:
            contexts.append(list(context))
            if len(contexts) == 2:
                raise KeyboardInterrupt
            return real(context, *arguments, **options)

        monkeypatch.setattr(pipeline, "respond", respond)
        return contexts

    @pytest.mark.parametrize("line", ["yes", "/retry"])
    def test_while_drawing_abandons_that_reply_alone(self, pipeline: Pipeline, interrupted: list[list[str]], line: str) -> None:
        code, screen = talk_in_terminal(pipeline, "hello", line, "thanks")
        assert "abandoned; the conversation is as it was before" in screen
        assert interrupted[2][::2] == ["hello", "thanks"]
        assert code == 0
        for reply in talk(pipeline, "hello", "thanks").output:
            assert reply in screen

    def test_while_drawing_for_a_script_ends_with_130(self, pipeline: Pipeline, interrupted: list[list[str]]) -> None:
        result = talk(pipeline, "hello", "yes", "thanks")
        assert (result.code, len(result.output), len(interrupted)) == (130, 1, 2)


CHILD = """
import fcntl, signal, sys, termios, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have turned it off
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C typed there is a signal here
import vrae
from vrae.apps.chat import chat
pipeline = vrae.load(sys.argv[1])
real = pipeline.respond
def respond(context, *arguments, **options):
    if context[-1] == "sleep":
        print("asleep", flush=True)
        time.sleep(60)
    return real(context, *arguments, **options)
pipeline.respond = respond
sys.exit(chat(pipeline, input=sys.stdin, output=sys.stdout, notes=sys.stderr, seed=1))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
def test_in_a_real_terminal(corpus: Corpus, tmp_path: Path) -> None:
    """Prompt, colour, line editing with memory where there is readline, Ctrl-C while drawing, Ctrl-C at the prompt."""
    import pty

    pipeline = responder(corpus)
    write_folder(tmp_path / "model", to_files(pipeline.model.float(), corpus.tokenizer, {}))
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "model")],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    screen = ""

    def wait_for(text: str) -> str:
        """What is printed from here on up to `text`."""
        nonlocal screen
        end = time.monotonic() + 60
        while text not in screen:
            assert time.monotonic() < end, repr(screen)
            if select.select([ours], [], [], 1)[0]:
                screen += os.read(ours, 4096).decode()
        before, _, screen = screen.partition(text)
        return before

    try:
        assert "\x1b[2mThe model reads the last 3 turns." in wait_for("> ")
        os.write(ours, b"zebra\n")
        assert "\x1b[36m" in wait_for("> ")
        os.write(ours, b"\x1b[A\n")  # arrow up
        again = wait_for("> ")
        assert "zebra" in again or not importlib.util.find_spec("readline")
        os.write(ours, b"sleep\n")
        wait_for("asleep")
        os.write(ours, b"\x03")
        wait_for("abandoned")  # typed ahead: what a terminal was about to show when Ctrl-C came, it may drop
        os.write(ours, b"/undo\n")
        wait_for("taken back: ")
        for _ in range(20):  # one that comes while the terminal is being set up is lost
            os.write(ours, b"\x03")
            with contextlib.suppress(subprocess.TimeoutExpired):
                assert child.wait(3) == 130
                break
        assert child.poll() == 130
    finally:
        child.kill()
        child.wait()
        os.close(ours)
