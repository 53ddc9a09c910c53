"""Help on one screen with an example, completion, and errors of one line that name what was meant."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vrae.apps.cli import _spelled, main
from vrae.apps.help import Command
from vrae.apps.parser import build_parser
from vrae.errors import meant

SCREEN = (45, 100)  # lines and columns


def commands(parser: Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """All that can be typed: the program, its commands, and theirs."""
    yield words
    for name, command in parser.commands().items():
        yield from commands(command, (*words, name))


ALL = list(commands(build_parser()))


def find(words: tuple[str, ...]) -> Command:
    parser = build_parser()
    for word in words:
        parser = parser.commands()[word]
    return parser


def help_of(words: tuple[str, ...], capsys: pytest.CaptureFixture[str], *more: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help", *more])
    assert stop.value.code == 0
    printed, said = capsys.readouterr()
    assert said == ""
    return printed


@pytest.mark.parametrize("words", ALL, ids=lambda words: " ".join(words) or "vrae")
def test_help_fits_a_screen_and_has_an_example(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = help_of(words, capsys).splitlines()
    assert len(lines) <= SCREEN[0]
    assert max(map(len, lines)) <= SCREEN[1]
    assert lines[0].startswith(" ".join(("usage: vrae", *words)))
    examples = [line for line in lines if line.startswith("example: ")]
    assert len(examples) == (0 if words and find(words).commands() else 1)
    for name, inner in find(words).commands().items():
        assert any(line.startswith(f"  {name} ") and inner.description.split()[0] in line for line in lines)


@pytest.mark.parametrize("words", [words for words in ALL if not find(words).commands()], ids=" ".join)
def test_the_example_is_a_command_line_that_is_understood(words: tuple[str, ...]) -> None:
    example = shlex.split(find(words).example.partition("  (")[0].replace('eval "$(', "").replace(')"', ""))
    assert example[: len(words) + 1] == ["vrae", *words]
    parser = build_parser(chitchat="chitchat" in example)
    assert parser.parse_args(_spelled(example[1:])).subcommand == words[0]


@pytest.mark.parametrize("words", [words for words in ALL if find(words).topics], ids=" ".join)
def test_every_option_is_explained_under_its_topic_and_under_all(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    command, short, everything = find(words), help_of(words, capsys), help_of(words, capsys, "all")
    inside = {action.dest for _, actions in command.topics.values() for action in actions}
    for name, (_, actions) in command.topics.items():
        told = help_of(words, capsys, name)
        for action in actions:
            first = (action.help or "").split()[0]
            named = re.compile(rf"{re.escape(action.option_strings[-1])}\s")
            assert named.search(short)
            for text in (told, everything):
                assert named.search(text)
                assert first in text
    for action in command.options():
        if action.option_strings and action.dest not in inside:
            assert action.option_strings[-1] in short


def test_defaults_are_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert "--temperature 0.3  --top_k 0  --top_p 0.9" in help_of(("respond",), capsys)
    told = help_of(("respond",), capsys, "decoding")
    assert "--temperature X         divides the logits before the draw; 0 is greedy [0.3]\n" in told
    assert "--model.speakers false" in help_of(("train",), capsys)
    assert "--model.prior auto|standard|gaussian|mixture\n" in help_of(("train",), capsys, "model")


def test_a_narrow_terminal_is_enough(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, help_of(("respond",), capsys).splitlines())) <= 60


# A command line that is wrong, and what the answer has to name: what is wrong, and what to do.
WRONG = {
    "": "vrae what? demo, prepare, data, train",
    "trian": "trian: no such command. Did you mean train? `vrae --help` lists them",
    "nothing": "nothing: no such command. `vrae --help`",
    "--versoin": "--versoin: vrae has no such option. Did you mean --version?",
    "data": "vrae data what? check",
    "data chek x": "chek: no such command. Did you mean check? `vrae data --help`",
    "neighbours": "vrae neighbours what? build, query",
    "attributes lern": "lern: no such command. Did you mean learn?",
    "train": "vrae train needs --data and --out. For example: vrae train --config",
    "prepare": "vrae prepare needs SOURCE and --out. For example: vrae prepare chitchat",
    "compress x": "vrae compress needs --out. For example: vrae compress talk.txt",
    "neighbours query a": "vrae neighbours query needs --index. For example: vrae neighbours query",
    "push": "vrae push needs ID. For example: vrae push owner/name",
    "train --data a --out b --hidden_size 3": "--hidden_size: vrae train has no such option. Did you mean --model.hidden",
    "train --data a --out b --modle.hidden_size=3": "--modle.hidden_size: vrae train has no such option. Did you mean --mo",
    "train --data a --out b --train.max-setps 3": "--train.max_setps: vrae train has no such option. Did you mean --train.m",
    "respond hi --temprature 3": "--temprature: vrae respond has no such option. Did you mean --temperature?",
    "respond hi --zzz": "--zzz: vrae respond has no such option. `vrae respond --help`",
    "sample extra": "extra: one argument too many for vrae sample. Quote what is one text",
    "sample -n": "--n needs a value. `vrae sample --help`",
    "sample -n abc": "--n must be a whole number. Got abc",
    "sample --seed=x": "--seed must be a whole number. Got x",
    "respond hi --temperature hot": "--temperature must be a number. Got hot",
    "train --data a --out b --train.max_steps": "--train.max_steps needs a value",
    "train --data a --out b --train.learning_rate fast": "--train.learning_rate must be a number. Got fast",
    "train --data a --out b --model.bidirectional 3": "--model.bidirectional must be true or false. Got 3",
    "train --data a --out b --train.precision fp8": "--train.precision must be one of auto, fp32, bf16. Got fp8",
    "train --data a --out b --model x": "ambiguous option: --model could match --model.vocab_size, --model.context_turns,",
    "train --config tinyy --data a --out b": "--config tinyy: no such file, and none that comes with vrae. Did you mean tiny?",
    "train --config key.yaml --data a --out b": "no such setting: model.hiddn_size. Did you mean model.hidden_size?",
    "train --config group.yaml --data a --out b": "no such setting: modell.hidden_size. Did you mean model.hidden_size?",
    "train --config word.yaml --data a --out b": "--model.hidden_size must be a whole number. Got abc",
    "train --config broken.yaml --data a --out b": "--config: no YAML: ",
    "train --help modle": "--help modle: no such topic. Did you mean model? There are model, batches",
    "prepare x --layout foo --out y": "--layout must be one of auto, turns, chat, pairs",
    "evaluate": "chitchat-vhred does not say which corpus it was trained on. Pass --data, a prepared corpus",
    "completion fish": "completion is for bash or zsh. Got fish",
}
FILES = {
    "key.yaml": "model:\n  hiddn_size: 3\n",
    "group.yaml": "modell:\n  hidden_size: 3\n",
    "word.yaml": "model:\n  hidden_size: abc\n",
    "broken.yaml": "model: [1\n",
}


@pytest.mark.parametrize("line", WRONG)
def test_what_is_wrong_gets_one_line_with_the_remedy_and_exit_code_2(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    assert main(line.split()) == 2
    printed, said = capsys.readouterr()
    assert printed == ""
    assert said.startswith("vrae: ")
    assert said.count("\n") == 1
    assert WRONG[line] in said


def test_what_was_meant_is_guessed_where_it_is_near() -> None:
    known = ["model.hidden_size", "model.latent_size", "train.max_steps", "train.max_minutes"]
    assert meant("model.hiden_size", known) == " Did you mean model.hidden_size?"
    assert meant("latent_size", known) == " Did you mean model.latent_size?"
    assert meant("objective.max_steps", known) == " Did you mean train.max_steps?"
    for far in ("zebra", "", "x" * 10_000):
        assert meant(far, known) == ""


class TestCompletion:
    @pytest.mark.parametrize("shell", ["bash", "zsh"])
    def test_knows_every_command_and_option(self, shell: str, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("shtab")
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        for words in ALL:
            assert all(word in script for word in words)
        for option in ("--model.latent_size", "--temperature", "--print_config", "--index"):
            assert option in script
        assert "steps -->" not in script  # how the parser writes that --steps gives train.max_steps

    def test_completes_in_bash(self, tmp_path: Path) -> None:
        pytest.importorskip("shtab")
        script = subprocess.run([sys.executable, "-m", "vrae", "completion", "bash"], capture_output=True, check=True).stdout
        (tmp_path / "vrae.bash").write_bytes(script)

        def complete(*words: str) -> list[str]:
            given = " ".join(map(shlex.quote, words))
            ask = f"COMP_WORDS=({given}); COMP_CWORD={len(words) - 1}; _shtab_vrae; echo ${{COMPREPLY[@]}}"
            done = subprocess.run(
                ["bash", "-c", f"source {tmp_path / 'vrae.bash'}; {ask}"], capture_output=True, text=True, check=False
            )
            return done.stdout.split()

        assert complete("vrae", "tra") == ["train"]
        assert complete("vrae", "neighbours", "") == ["build", "query"]
        assert complete("vrae", "train", "--train.max_") == ["--train.max_steps", "--train.max_minutes"]

    def test_without_shtab_names_the_remedy(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setitem(sys.modules, "shtab", None)
        assert main(["completion", "bash"]) == 2
        assert "pip install 'vrae[completion]'" in capsys.readouterr().err
