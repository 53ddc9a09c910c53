"""What the command line accepts: every command, its flags, its help and an example.

Built from the dataclasses of `vrae.config` and their docstrings; imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_type_hints

from vrae import __version__
from vrae.apps.help import Command
from vrae.bundled import NAMES, Job
from vrae.config import (
    CHITCHAT_CLEANING,
    SEARCH,
    TALK,
    CleaningConfig,
    DecodingConfig,
    EvaluateConfig,
    PrepareConfig,
    ResponseConfig,
    RunConfig,
    SourceConfig,
)
from vrae.errors import UserError, meant

LogFormat = Literal["auto", "text", "json"]
_DEMO = "vrae-demo"
DEMO_TRAINING = {"minutes": "train.max_minutes", "steps": "train.max_steps", "seed": "train.seed"}  # options, and what they set
NESTED = ("data", "neighbours", "attributes")  # commands of two words


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
    first = ", ".join(name for name in known if "/" not in name)
    folders = sorted({f"{name.partition('/')[0]}/.." for name in known if "/" in name})
    raise UserError(
        f"--config {name}: no such file, and none that comes with vrae.{meant(short, known)} There are {first}, "
        f"{', '.join(folders)}; `vrae info` lists all"
    )


def build_parser(chitchat: bool = False) -> Command:
    """The parser of all commands. `chitchat`: the cleaning of that corpus is the default of `prepare`."""
    parser = Command(
        prog="vrae",
        description="Variational recurrent autoencoders of dialogue text. vrae COMMAND --help says more.",
        version=__version__,
        example='vrae respond "How was your weekend?" -n 5',
    )
    commands = parser.add_subcommands(title="commands", metavar="COMMAND", help="")

    def add(name: str, help: str, example: str, into: Any = commands) -> Command:
        command = Command(example=example, description=help)
        into.add_subcommand(name, command, help=help)
        return command

    demo = add("demo", "Prepare the embedded corpus, train on it, show what the model does.", "vrae demo --minutes 6")
    demo.default_config_files = [str(configs()["demo"])]
    _add_run_config(demo)
    demo.add_argument("--minutes", type=float, default=6.0, help="training ends after these; 0: --steps alone end it")
    demo.add_argument("--steps", type=int, default=0, help="or after these, the same on any machine; 0: --minutes alone end it")
    demo.add_argument("--out", type=str, default=_DEMO, help="folder for corpus, run and model; what is there is reused")
    demo.add_argument("--seed", type=int, default=1, help="of training and of what is shown")
    for option, setting in DEMO_TRAINING.items():
        demo.link_arguments(option, setting)

    prepare = add("prepare", "Turn dialogues into a prepared corpus.", "vrae prepare chitchat --out corpus --vocab_size 6000")
    _add_source(prepare, chitchat)
    prepare.add_argument("--out", type=str, required=True, help="folder to write")
    for name in ("vocab_size", "tokenizer", "tokenizer_turns", "validation_percent", "test_percent", "num_proc"):
        default = getattr(PrepareConfig(), name)
        prepare.add_argument(f"--{name}", type=type(default), default=default, help=_help(PrepareConfig, name))
    prepare.add_argument("--overwrite", action="store_true", help="replace --out if it is there")
    prepare.add_argument("--quiet", action="store_true", help="no progress bars and no advice")

    def group(name: str, help: str) -> Any:
        parent = Command(description=help)
        commands.add_subcommand(name, parent, help=help)
        return parent.add_subcommands(metavar="WHAT")

    kinds = group("data", "Inspect a source (data check SOURCE).")
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
    train.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint in --out")
    train.add_argument("--dry_run", action="store_true", help="two steps, a validation and a checkpoint, to see that it works")
    train.add_argument("--quiet", action="store_true", help="no bar and no lines but warnings")
    train.add_argument(
        "--log_format", type=LogFormat, default="auto", help="auto (text on a terminal, else JSON lines), text or json"
    )

    _add_text_jobs(add)
    _add_latent_jobs(add, group)
    evaluate = add(
        "evaluate",
        "Measure a model on held-out turns: bounds, information, reconstructions, samples, paths and replies, as one report.",
        "vrae evaluate run --split test --k 100 --out report",
    )
    evaluate.add_argument("run", nargs="?", type=str, default="", help="a run or a model; as --model")
    _add_model(evaluate, None)
    evaluate.add_argument("--data", type=str, default="", help="a prepared corpus; default: the one the run was trained on")
    for field in dataclasses.fields(EvaluateConfig):
        evaluate.add_argument(
            f"--{field.name}",
            **({"action": "store_true"} if field.type == "bool" else {"type": type(field.default), "default": field.default}),
            help=_help(EvaluateConfig, field.name),
        )
    evaluate.add_argument("--quiet", action="store_true", help="no bar")

    push = add("push", "Publish a model on the Hugging Face Hub, with a card.", "vrae push owner/name --model run --private")
    push.add_argument("id", type=str, help="owner/name of the repository; made where there is none")
    push.add_argument("--private", action="store_true", help="make the repository private")
    push.add_argument("--revision", type=str, default="", help="a branch; made where there is none; default: main")
    push.add_argument("--half", action="store_true", help="weights of 16 bits: half the size")
    push.add_argument("--report", type=str, default="", help="what evaluate --out wrote; default: report/ in the run's folder")
    push.add_argument("--license", type=str, default="", help="of the weights, as mit; default: the corpus's, if known")
    push.add_argument("--language", type=str, default="", help="of the corpus, as en; default: known of chitchat alone")
    push.add_argument("--card", action="store_true", help="print the card that would be written, and upload nothing")
    _add_model(push, None)

    export = add(
        "export",
        "A model as ONNX graphs for programs that have no torch, with an example that uses them.",
        "vrae export run --format onnx --out onnx",
    )
    export.add_argument("run", nargs="?", type=str, default=NAMES["dialogue"], help="a model or a run")
    export.add_argument("--format", type=str, default="onnx", help="onnx is the one there is")
    export.add_argument("--out", type=str, required=True, help="folder to write")
    export.add_argument("--overwrite", action="store_true", help="replace an export that is there")
    export.add_argument("--json", action="store_true", help="print one JSON object")

    bench = add(
        "bench",
        "Measure how fast training and writing are here: ratios to the machine's own rate of matrix products, and to GPT-2.",
        "vrae bench --json",
    )
    bench.add_argument("--data", type=str, default="", help="a prepared corpus; default: chitchat, prepared for the occasion")
    bench.add_argument("--model", type=str, default="", help="a model whose replies are timed; default: fresh weights")
    bench.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    bench.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as torch chooses")
    bench.add_argument("--json", action="store_true", help="print one JSON object")

    completion = add(
        "completion",
        "Print what makes the shell complete commands and options.",
        'eval "$(vrae completion bash)"  (in ~/.bashrc; zsh: vrae completion zsh > a folder of fpath/_vrae)',
    )
    completion.add_argument("shell", type=str, help="bash or zsh")

    info = add("info", "Versions, devices and settings for a bug report; with --model, what a model is.", "vrae info --json")
    info.add_argument("--model", type=str, default="", help="a model to describe")
    info.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_text_jobs(add: Callable[..., Command]) -> None:
    """Replies, and all that is done with sentences."""
    respond = add(
        "respond",
        "Several replies to a dialogue: its turns, oldest first.",
        'vrae respond "Hi!" "Hello, how was your weekend?" -n 5',
    )
    respond.add_argument("turns", nargs="*", type=str, help="the dialogue; none or -: JSON lines from --input or stdin")
    respond.add_argument("--z", action="store_true", help="with --json, the latent of each reply too")
    _add_input(respond, '[turn, ..] or {"context": [..]}')
    _add_responses(respond, "replies to each dialogue")
    chat = add("chat", "Talk with a model in the terminal; /help lists its commands.", "vrae chat --seed 1")
    _add_responses(chat, "replies are drawn to each line, of which the best is said and /n shows more")
    _add_serve(add("serve", "A page in the browser and a JSON API: talk, walk the latent space.", "vrae serve run --port 7860"))
    sample = add("sample", "Turns drawn from the prior.", "vrae sample -n 5 --seed 1")
    _add_generation(sample, "turns", "sentences")
    sample.set_defaults(dataclasses.asdict(SEARCH))
    reconstruct = add("reconstruct", "Encode a turn and decode it again.", 'vrae reconstruct "how are you today?" -n 3')
    reconstruct.add_argument("texts", nargs="*", type=str, help="turns; none or -: JSON lines from --input or stdin")
    reconstruct.add_argument("-n", "--n", type=int, default=0, help="draws of the posterior to decode, besides its mean")
    reconstruct.add_argument("--seed", type=int, default=None, help="the same seed, the same draws")
    _add_input(reconstruct, '"turn" or {"text": ..}')
    _add_model(reconstruct, "sentences")
    interpolate = add(
        "interpolate",
        "The path between two turns in the latent space. back: the cosine between a point and the mean of the posterior of its "
        "text, and = where that text comes back word for word.",
        'vrae interpolate "i am going home" "what?" --steps 7',
    )
    interpolate.add_argument("texts", nargs="*", type=str, help="two turns; none or -: JSON lines from --input or stdin")
    interpolate.add_argument("--steps", type=int, default=7, help="points on the path, both ends included")
    interpolate.add_argument("--method", type=str, default="slerp", help="slerp (great circle) or lerp (straight line)")
    _add_context(interpolate)
    _add_input(interpolate, '[a, b] or {"texts": [a, b], "context": [..]}')
    _add_model(interpolate, "sentences")
    variations = add("variations", "Texts from around a turn: more like this.", 'vrae variations "see you later" -n 5')
    variations.add_argument("texts", nargs="*", type=str, help="turns; none or -: JSON lines from --input or stdin")
    variations.add_argument("-n", "--n", type=int, default=5, help="how many for each turn")
    variations.add_argument("--radius", type=float, default=0.5, help="how far, in prior standard deviations, above 0 to 10")
    variations.add_argument("--seed", type=int, default=None, help="the same seed, the same texts")
    _add_context(variations)
    _add_input(variations, '"turn" or {"text": .., "context": [..]}')
    _add_model(variations, "sentences")
    analogy = add(
        "analogy",
        "The turn at a - b + c: as a is to b, it is to c.",
        'vrae analogy "are you going home?" "you are going home" "i like it"',
    )
    analogy.add_argument("texts", nargs="*", type=str, help="three turns; none or -: JSON lines from --input or stdin")
    _add_input(analogy, '[a, b, c] or {"texts": [a, b, c]}')
    _add_model(analogy, "sentences")
    score = add(
        "score",
        "What it takes to send a turn, in bits: its latent, the text given the latent, and the two bounds.",
        'vrae score "how are you today?" --k 100',
    )
    score.add_argument("texts", nargs="*", type=str, help="turns; none or -: JSON lines from --input or stdin")
    _add_context(score)
    score.add_argument("--k", type=int, default=100, help="draws of z for each turn")
    score.add_argument("--seed", type=int, default=0, help="of the draws")
    _add_input(score, '"turn" or {"text": .., "context": [..]}')
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


def _add_serve(serve: Command) -> None:
    serve.add_argument("name", nargs="?", type=str, default="", help="a model or a run; as --model")
    serve.add_argument("--host", type=str, default="127.0.0.1", help="the address to listen at; 0.0.0.0: all of this machine")
    serve.add_argument("--port", type=int, default=7860, help="of it")
    serve.add_argument(
        "--auth", type=str, default="", help="NAME:PASSWORD to ask for; default: what VRAE_AUTH holds, if anything"
    )
    serve.add_argument("--share", action="store_true", help="a public address too, through gradio's relay; only with --auth")
    serve.add_argument(
        "--data", type=str, default="", help="a prepared corpus for the map; default: the run's, else drawn turns"
    )
    serve.add_argument("--attributes", nargs="*", type=str, default=[], help="styles: files that vrae attributes learn wrote")
    serve.add_argument("--max_seconds", type=float, default=20.0, help="a request that takes longer is ended")
    _add_model(serve, None)


def _add_latent_jobs(add: Callable[..., Command], group: Callable[[str, str], Any]) -> None:
    """The latent space itself: vectors, neighbours, directions, pictures."""
    encode = add(
        "encode",
        "Means and log-variances of the posterior of each turn.",
        "vrae encode --input turns.jsonl --out latents.npy",
    )
    encode.add_argument("texts", nargs="*", type=str, help="turns; none or -: JSON lines from --input or stdin")
    encode.add_argument("--out", type=str, default="", help="a .npy of shape [2, turns, latent_size]: means, log-variances")
    _add_context(encode)
    _add_input(encode, '"turn" or {"text": .., "context": [..]}')
    _add_model(encode, "sentences")

    neighbours = group("neighbours", "The turns of a corpus nearest to a sentence (neighbours build, neighbours query).")
    build = add("build", "Index the turns of a corpus.", "vrae neighbours build --data corpus --out near", neighbours)
    build.add_argument("--data", type=str, default="", help="a prepared corpus; default: the one the run was trained on")
    build.add_argument("--split", type=str, default="train", help="train, validation or test")
    build.add_argument("--out", type=str, required=True, help="folder to write")
    build.add_argument("--overwrite", action="store_true", help="replace an index that is there")
    build.add_argument("--quiet", action="store_true", help="no bar")
    _add_model(build, "sentences")
    query = add("query", "The nearest turns.", 'vrae neighbours query "how are you?" --index near', neighbours)
    query.add_argument("texts", nargs="*", type=str, help="sentences; none or -: JSON lines from --input or stdin")
    query.add_argument("--index", type=str, required=True, help="folder that build wrote")
    query.add_argument("-n", "--n", type=int, default=5, help="how many for each sentence")
    query.add_argument("--measure", type=str, default="euclidean", help="euclidean or cosine")
    query.add_argument("--probes", type=int, default=0, help="search so many cells by faiss, not exact; 0: all turns")
    _add_input(query, '"sentence" or {"text": ..}')
    _add_model(query, "sentences")

    attributes = group("attributes", "Directions that change a sentence's style (attributes learn, attributes move).")
    learn = add(
        "learn",
        "A direction from two sets of sentences.",
        "vrae attributes learn statements.txt questions.txt --out question.json",
        attributes,
    )
    learn.add_argument("files", nargs="+", type=str, help="one labelled file, or two files of sentences, one a line")
    learn.add_argument("--out", type=str, required=True, help="the JSON file to write")
    learn.add_argument("--name", type=str, default="", help="of the attribute; default: that of --out")
    _add_model(learn, "sentences")
    move = add(
        "move",
        "Sentences moved along an attribute.",
        'vrae attributes move "you like tea" --attribute question.json',
        attributes,
    )
    move.add_argument("texts", nargs="*", type=str, help="sentences; none or -: JSON lines from --input or stdin")
    move.add_argument("--attribute", type=str, required=True, help="what learn wrote")
    move.add_argument("--strength", type=float, default=1.0, help="1: as far as from one label's mean to the other's")
    move.add_argument("--along", type=str, default="means", help="means (from mean to mean) or normal (straight at the border)")
    _add_input(move, '"sentence" or {"text": ..}')
    _add_model(move, "sentences")

    plot = add(
        "plot", "Draw a picture of the latent space or of training.", 'vrae plot map "hello" "see you tomorrow" --out map.png'
    )
    plot.add_argument("what", type=str, help="map, rate, paths or training")
    plot.add_argument("texts", nargs="*", type=str, help="map and paths: sentences, each two the ends of a path")
    plot.add_argument("--data", type=str, default="", help="a prepared corpus; default: the one the run was trained on")
    for name, default, help in (
        ("split", "test", "of the corpus"),
        ("out", "", "the PNG file; default: the picture's name, here"),
        ("by", "length", "what colours the map: length (in words) or kind (question or statement)"),
        ("turns", 2000, "map and rate: an even sample of so many"),
        ("steps", 7, "points on a path, both ends included"),
        ("method", "slerp", "slerp (great circle) or lerp (straight line)"),
        ("paths", 4, "without sentences, so many paths between turns of the corpus; map: 0 is none"),
        ("seed", 0, "of what is drawn"),
    ):
        plot.add_argument(f"--{name}", type=type(default), default=default, help=help)
    _add_model(plot, "sentences")


def _add_input(parser: Command, form: str) -> None:
    parser.add_argument("--input", type=str, default="", help=f"a file of JSON lines: {form}".replace("%", "%%"))


def _add_context(parser: Command) -> None:
    parser.add_argument("--context", nargs="*", type=str, default=[], help="the turns before, oldest first")


def _add_responses(parser: Command, what: str) -> None:
    _add_flat(parser, ResponseConfig, "ranking")
    parser.add_argument(
        "--background",
        type=str,
        default="",
        help="with --rank mmi: a model of context_turns 0 for log p(reply)",
    )
    _add_generation(parser, what)
    for settings in TALK:
        parser.set_defaults(dataclasses.asdict(settings))


def _add_flat(parser: Command, cls: type, topic: str) -> None:
    """The settings of a class without its name before them."""
    settings = []
    for field in dataclasses.fields(cls):
        default = getattr(cls(), field.name)
        settings.append(
            parser.add_argument(f"--{field.name}", type=type(default), default=default, help=_help(cls, field.name))
        )
    parser.topics[topic] = _title(cls), settings


def _add_group(parser: Command, cls: type, group: str) -> None:
    """The settings of a class as `--group.name`."""
    parser.topics[group] = (
        _title(cls),
        [
            parser.add_argument(f"--{group}.{name}", type=kind, default=getattr(cls(), name), help=_help(cls, name))
            for name, kind in get_type_hints(cls).items()
        ],
    )


def _title(cls: type) -> str:
    return (cls.__doc__ or "").splitlines()[0].rstrip(".")


def _add_source(parser: Command, chitchat: bool) -> None:
    parser.add_argument("source", type=str, help=_help(SourceConfig, "source"))
    parser.add_argument("--skip_bad_rows", action="store_true", help=_help(SourceConfig, "skip_bad_rows"))
    parser.topics["source"] = (
        _title(SourceConfig),
        [
            parser.add_argument(f"--{name}", type=kind, default=getattr(SourceConfig(), name), help=_help(SourceConfig, name))
            for name, kind in get_type_hints(SourceConfig).items()
            if name not in ("source", "skip_bad_rows")
        ],
    )
    _add_group(parser, CleaningConfig, "cleaning")
    if chitchat:
        parser.set_defaults({f"cleaning.{key}": value for key, value in dataclasses.asdict(CHITCHAT_CLEANING).items()})


def _add_run_config(parser: Command) -> None:
    parser.add_argument("--config", action="config", help="a file of settings, or one of vrae's by name, as tiny or base")
    for action in parser._actions:
        if "--print_config" in action.option_strings:
            action.help = "print all settings as they are after --config and options, as YAML, and do nothing"
    for field in dataclasses.fields(RunConfig):
        _add_group(parser, type(getattr(RunConfig(), field.name)), field.name)


def _add_model(parser: Command, job: Job | None = "dialogue") -> None:
    """`job`: whose bundled model is the default; None: there is none."""
    name = NAMES[job] if job else ""
    parser.add_argument("--model", type=str, default=name, help="model or run folder, a bundled model, or a Hub id")
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")


def _add_generation(parser: Command, what: str, job: Job = "dialogue") -> None:
    parser.add_argument("-n", "--n", type=int, default=5, help=f"how many {what}")
    parser.add_argument("--seed", type=int, default=None, help="the same seed, the same text")
    _add_flat(parser, DecodingConfig, "decoding")
    _add_model(parser, job)


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
