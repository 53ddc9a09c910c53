"""What the command line accepts: every command, its flags, its help and an example.

Built from the dataclasses of `vrae.config` and their docstrings; imports no torch.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from vrae import __version__
from vrae.config import (
    CHITCHAT_CLEANING,
    CleaningConfig,
    DecodingConfig,
    EvaluateConfig,
    PrepareConfig,
    RunConfig,
    SourceConfig,
)
from vrae.errors import UserError

_DEMO = "vrae-demo"


def configs() -> dict[str, Path]:
    """The configurations that come with the package, by name."""
    here = Path(__file__).resolve().parents[1]
    folder = here / "configs" if (here / "configs").is_dir() else here.parent / "configs"
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def config_path(name: str) -> str:
    if Path(name).exists():
        return name
    known = configs()
    short = name.removeprefix("configs/").removesuffix(".yaml")
    if short in known:
        return str(known[short])
    raise UserError(f"--config {name}: no such file, and none that comes with vrae ({', '.join(known)})")


def build_parser(chitchat: bool = False) -> ArgumentParser:
    """The parser of all commands. `chitchat`: the cleaning of that corpus is the default of `prepare`."""
    parser = ArgumentParser(
        prog="vrae",
        description="Variational recurrent autoencoders of dialogue text.",
        version=__version__,
    )
    commands = parser.add_subcommands(title="commands", metavar="COMMAND", help="")
    parser.usage = "vrae COMMAND ..."

    def add(name: str, help: str, example: str, into: Any = commands) -> ArgumentParser:
        command = ArgumentParser(usage=example, description=help)
        into.add_subcommand(name, command, help=help)
        return command

    demo = add("demo", "Prepare the embedded corpus, train on it, show what the model does.", "vrae demo --minutes 6")
    demo.default_config_files = [str(configs()["demo"])]
    _add_run_config(demo)
    demo.add_argument("--minutes", type=float, default=6.0, help="training time")
    demo.add_argument("--out", type=str, default=_DEMO, help="folder for corpus, run and model; what is there is reused")
    demo.add_argument("--seed", type=int, default=1, help="of training and of what is shown")

    prepare = add("prepare", "Turn dialogues into a prepared corpus.", "vrae prepare chitchat --out corpus --vocab_size 6000")
    _add_source(prepare, chitchat)
    prepare.add_argument("--out", type=str, required=True, help="folder to write")
    for name in ("vocab_size", "tokenizer", "tokenizer_turns", "validation_percent", "test_percent", "num_proc"):
        default = getattr(PrepareConfig(), name)
        prepare.add_argument(f"--{name}", type=type(default), default=default, help=_help(PrepareConfig, name))
    prepare.add_argument("--overwrite", action="store_true", help="replace --out if it is there")
    prepare.add_argument("--quiet", action="store_true", help="no progress bars")

    data = ArgumentParser(usage="vrae data check SOURCE", description="Look at a source of dialogues.")
    commands.add_subcommand("data", data, help="Inspect a source (data check SOURCE).")
    kinds = data.add_subcommands(metavar="WHAT")
    check = add("check", "Read a source and report what would be kept, without writing.", "vrae data check chats.jsonl", kinds)
    _add_source(check, chitchat)
    check.add_argument("--json", action="store_true", help="print one JSON object")

    train = add(
        "train",
        "Train a model on a prepared corpus.",
        "vrae train --config chitchat-vrae --data corpus --out run --train.max_minutes 60",
    )
    _add_run_config(train)
    train.add_argument("--data", type=str, required=True, help="a prepared corpus")
    train.add_argument("--out", type=str, required=True, help="the run's folder")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    train.add_argument("--dry_run", action="store_true", help="two steps, a validation and a checkpoint, to see that it works")
    train.add_argument("--quiet", action="store_true", help="no bar and no lines")

    respond = add(
        "respond",
        "Several replies to a dialogue: its turns, oldest first.",
        'vrae respond "Hi!" "Hello, how was your weekend?" -n 5',
    )
    respond.add_argument("turns", nargs="*", type=str, help="the dialogue; none or -: JSON lines from stdin")
    _add_generation(respond, "replies to each dialogue")
    sample = add("sample", "Turns drawn from the prior.", "vrae sample -n 5 --seed 1")
    _add_generation(sample, "turns")
    reconstruct = add("reconstruct", "Encode a turn and decode it again.", 'vrae reconstruct "how are you today?"')
    reconstruct.add_argument("texts", nargs="*", type=str, help="turns; none or -: JSON lines from stdin")
    _add_model(reconstruct)
    interpolate = add(
        "interpolate",
        "The path between two turns in the latent space.",
        'vrae interpolate "i am going home" "what?" --steps 7',
    )
    interpolate.add_argument("texts", nargs="*", type=str, help="two turns; none or -: JSON lines [a, b] from stdin")
    interpolate.add_argument("--steps", type=int, default=7, help="points on the path, both ends included")
    interpolate.add_argument("--method", type=str, default="slerp", help="slerp (great circle) or lerp (straight line)")
    _add_model(interpolate)

    score = add(
        "score",
        "What it takes to send a turn, in bits: its latent, the text given the latent, and the two bounds.",
        'vrae score "how are you today?" --k 100',
    )
    score.add_argument("texts", nargs="*", type=str, help='turns; none or -: JSON lines {"text", "context": [..]} from stdin')
    score.add_argument("--context", nargs="*", type=str, default=[], help="the turns before, oldest first")
    score.add_argument("--k", type=int, default=100, help="draws of z for each turn")
    score.add_argument("--seed", type=int, default=0, help="of the draws")
    _add_model(score)
    for name, help, example in (
        ("compress", "Code a file of turns with bits-back, losslessly.", "vrae compress talk.txt --out talk.vrae"),
        ("decompress", "Give back the file that was compressed.", "vrae decompress talk.vrae --out talk.txt"),
    ):
        coder = add(name, help, example)
        coder.add_argument("file", type=str, help="the file to read")
        coder.add_argument("--out", type=str, required=True, help="the file to write")
        coder.add_argument("--quiet", action="store_true", help="no bar")
        _add_model(coder)

    evaluate = add(
        "evaluate",
        "Bounds, information, reconstructions, samples, paths and replies on held-out turns, as one report.",
        "vrae evaluate run --split test --k 100 --out report",
    )
    evaluate.add_argument("run", nargs="?", type=str, default="", help="a run or a model; as --model")
    _add_model(evaluate)
    evaluate.add_argument("--data", type=str, default="", help="a prepared corpus; default: the one the run was trained on")
    for field in dataclasses.fields(EvaluateConfig):
        evaluate.add_argument(
            f"--{field.name}",
            **({"action": "store_true"} if field.type == "bool" else {"type": type(field.default), "default": field.default}),
            help=_help(EvaluateConfig, field.name),
        )
    evaluate.add_argument("--quiet", action="store_true", help="no bar")

    info = add("info", "Versions, devices and, with --model, what a model is.", "vrae info --json")
    info.add_argument("--model", type=str, default="", help="a model to describe")
    info.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_source(parser: ArgumentParser, chitchat: bool) -> None:
    parser.add_argument("source", type=str, help=_help(SourceConfig, "source"))
    parser.add_class_arguments(SourceConfig, skip={"source", "skip_bad_rows"})
    parser.add_argument("--skip_bad_rows", action="store_true", help=_help(SourceConfig, "skip_bad_rows"))
    parser.add_class_arguments(CleaningConfig, "cleaning")
    if chitchat:
        parser.set_defaults({f"cleaning.{key}": value for key, value in dataclasses.asdict(CHITCHAT_CLEANING).items()})


def _add_run_config(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action="config", help=f"a YAML file, or one of: {', '.join(configs())}")
    for field in dataclasses.fields(RunConfig):
        parser.add_class_arguments(type(getattr(RunConfig(), field.name)), field.name)


def _add_model(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=str, default="", help="model or run folder, or Hub id; default: what vrae demo made here"
    )
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")


def _add_generation(parser: ArgumentParser, what: str) -> None:
    parser.add_argument("-n", "--n", type=int, default=5, help=f"how many {what}")
    parser.add_argument("--seed", type=int, default=None, help="the same seed, the same text")
    for field in dataclasses.fields(DecodingConfig):
        default = getattr(DecodingConfig(), field.name)
        parser.add_argument(f"--{field.name}", type=type(default), default=default, help=_help(DecodingConfig, field.name))
    _add_model(parser)


def _help(cls: type, name: str) -> str:
    """What the class's docstring says of a setting."""
    lines = (cls.__doc__ or "").splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(f"{name}: "))
    text = [lines[start].strip()[len(name) + 2 :]]
    for line in lines[start + 1 :]:
        if not line.startswith(" " * 12):
            break
        text.append(line.strip())
    return " ".join(text).replace("%", "%%")
