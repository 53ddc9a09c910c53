"""The command line: parsing, and one short function a command over `Pipeline`, `prepare`, `train` and `measure`.

Only this file and `vrae.config` are imported before a command runs: `vrae --help` must not wait for torch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from vrae import __version__
from vrae.config import (
    CHITCHAT_CLEANING,
    BatchConfig,
    CleaningConfig,
    DecodingConfig,
    PrepareConfig,
    RunConfig,
    SourceConfig,
)
from vrae.errors import ConfigError, UserError

if TYPE_CHECKING:
    from vrae.generation.pipeline import Pipeline

_DEMO = "vrae-demo"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0 done, 1 some inputs failed, 2 usage or configuration, 3 diverged, 130/143
    interrupted."""
    arguments = _spelled(sys.argv[1:] if argv is None else argv)
    try:
        parser = build_parser(chitchat="chitchat" in arguments)
        parsed = parser.parse_args(arguments)
        values = parsed[parsed.subcommand]
        command = parsed.subcommand if parsed.subcommand != "data" else f"data {values.subcommand}"
        return _COMMANDS[command](values if parsed.subcommand != "data" else values[values.subcommand])
    except UserError as error:
        print(f"vrae: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("vrae: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # whoever read our output has gone; keep Python from complaining when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


class _Formatter(DefaultHelpFormatter):
    """Keeps the line breaks of a description, for its example."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in text.splitlines())


def _spelled(arguments: Sequence[str]) -> list[str]:
    """`--dry-run` is `--dry_run`; `--config NAME` may name a configuration that comes with the package."""
    spelled = []
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            argument = name[:2] + name[2:].replace("-", "_") + equals + value
            if name == "--config" and equals:
                argument = f"--config={_config_path(value)}"
        elif spelled and spelled[-1] == "--config":
            argument = _config_path(argument)
        spelled.append(argument)
    return spelled


def configs() -> dict[str, Path]:
    """The configurations that come with the package, by name."""
    here = Path(__file__).resolve().parents[1]
    folder = here / "configs" if (here / "configs").is_dir() else here.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _config_path(name: str) -> str:
    if Path(name).exists():
        return name
    known = configs()
    stem = Path(name).stem
    if stem in known:
        return str(known[stem])
    raise UserError(f"--config {name}: no such file, and none that comes with vrae ({', '.join(known)})")


def build_parser(chitchat: bool = False) -> ArgumentParser:
    """The parser of all commands. `chitchat`: the cleaning of that corpus is the default of `prepare`."""
    parser = ArgumentParser(prog="vrae", description="Variational recurrent autoencoders of dialogue text.", version=__version__)
    commands = parser.add_subcommands(title="commands", metavar="COMMAND", help="")

    def add(name: str, help: str, example: str, into: Any = commands) -> ArgumentParser:
        command = ArgumentParser(description=f"{help}\n\nexample:\n  {example}", formatter_class=_Formatter)
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

    data = ArgumentParser(description="Look at a source of dialogues.")
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
        "interpolate", "The path between two turns in the latent space.", 'vrae interpolate "i am going home" "what?" --steps 7'
    )
    interpolate.add_argument("texts", nargs="*", type=str, help="two turns; none or -: JSON lines [a, b] from stdin")
    interpolate.add_argument("--steps", type=int, default=7, help="points on the path, both ends included")
    interpolate.add_argument("--method", type=str, default="slerp", help="slerp (great circle) or lerp (straight line)")
    _add_model(interpolate)

    evaluate = add("evaluate", "The bound on held-out turns.", "vrae evaluate --model run --data corpus --split test --k 100")
    _add_model(evaluate)
    evaluate.add_argument("--data", type=str, required=True, help="a prepared corpus")
    evaluate.add_argument("--split", type=str, default="validation", help="train, validation or test")
    evaluate.add_argument("--k", type=int, default=0, help="samples of the importance-weighted bound; 0: without")
    evaluate.add_argument("--max_turns", type=int, default=0, help="evaluate on an even sample of so many turns; 0: all")
    evaluate.add_argument("--max_turn_tokens", type=int, default=0, help="longest turn; 0: as in training")
    evaluate.add_argument("--seed", type=int, default=0, help="of the posterior samples")

    info = add("info", "Versions, devices and, with --model, what a model is.", "vrae info --json")
    info.add_argument("--model", type=str, default="", help="a model to describe")
    info.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_source(parser: ArgumentParser, chitchat: bool) -> None:
    parser.add_argument("source", type=str, help=_help(SourceConfig, "source"))
    parser.add_class_arguments(SourceConfig, skip={"source"})
    parser.add_class_arguments(CleaningConfig, "cleaning")
    if chitchat:
        parser.set_defaults({f"cleaning.{key}": value for key, value in dataclasses.asdict(CHITCHAT_CLEANING).items()})


def _add_run_config(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action="config", help=f"a YAML file, or one of: {', '.join(configs())}")
    for field in dataclasses.fields(RunConfig):
        parser.add_class_arguments(type(getattr(RunConfig(), field.name)), field.name)


def _add_model(parser: ArgumentParser) -> None:
    parser.add_argument("--model", type=str, default="", help="model or run folder, or Hub id; default: what vrae demo made here")
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")


def _add_generation(parser: ArgumentParser, what: str) -> None:
    parser.add_argument("-n", "--n", type=int, default=5, help=f"how many {what}")
    parser.add_argument("--seed", type=int, default=None, help="the same seed, the same text")
    for field in dataclasses.fields(DecodingConfig):
        default = getattr(DecodingConfig(), field.name)
        parser.add_argument(f"--{field.name}", type=type(default), default=default, help=_help(DecodingConfig, field.name))
    _add_model(parser)


def _prepare_config(values: Namespace) -> PrepareConfig:
    source = SourceConfig(**{field.name: values[field.name] for field in dataclasses.fields(SourceConfig)})
    cleaning = CleaningConfig(**values.cleaning.as_dict())
    options = {
        field.name: values[field.name]
        for field in dataclasses.fields(PrepareConfig)
        if field.name not in ("source", "cleaning") and field.name in values
    }
    return PrepareConfig(source=source, cleaning=cleaning, **options)


def _demo(values: Namespace) -> int:
    from vrae.apps.demo import demo

    config = _run_config(values)
    training = dataclasses.replace(config.train, max_minutes=values.minutes, max_steps=0, seed=values.seed)
    demo(dataclasses.replace(config, train=training), Path(values.out), values.seed)
    return 0


def _prepare(values: Namespace) -> int:
    from vrae.corpus.prepared import prepare

    corpus = prepare(_prepare_config(values), values.out, overwrite=values.overwrite, quiet=values.quiet)
    _print_counts(corpus.manifest)
    print(f"vocabulary   {corpus.manifest['vocab_size']} pieces")
    for split, counts in corpus.manifest["splits"].items():
        print(f"{split:<12} " + "  ".join(f"{counts[key]:>9,} {key}" for key in ("dialogues", "turns", "tokens")))
    print(f"next: vrae train --config chitchat-vrae --data {values.out} --out run")
    return 0


def _data_check(values: Namespace) -> int:
    from vrae.corpus.prepared import inspect

    report = inspect(_prepare_config(values), quiet=values.json)
    if values.json:
        _print_json(report)
        return 0
    _print_counts(report)
    for key in ("dialogues", "turns", "words", "words_in_longest_turn"):
        print(f"{key.replace('_', ' '):<28} {report[key]:>12,}")
    for example in report["examples"]:
        print(f"\n{example['id']}")
        for turn in example["turns"]:
            print(f"  - {turn}")
    return 0


def _print_counts(report: dict[str, Any]) -> None:
    source = report["source"]
    print(f"source       {source['name']}  (licence: {source['licence'] or 'not stated'})  {source['description']}".rstrip())
    print(f"read         {source['rows']:,} rows, layout {source['layout']}, {source['bad_rows']:,} bad rows skipped")
    for line in source["bad_examples"]:
        print(f"             {line}")
    for title in ("dropped", "changed"):
        for reason, count in report[title].items():
            print(f"{title:<12} {count:>9,}  {reason}")


def _train(values: Namespace) -> int:
    from vrae.corpus.prepared import Corpus
    from vrae.training.trainer import train

    config = _run_config(values)
    result = train(
        config, Corpus(values.data), values.out, resume=values.resume, dry_run=values.dry_run, quiet=values.quiet
    )
    bound = result.validation
    print(f"ended at {result.reason}. Validation: {-bound.elbo:.2f} nats/turn = {bound.distortion:.2f} + {bound.rate:.2f} (rate)")
    print(f"latent: {bound.collapse.words}")
    print(f"saved in {result.run}. Next: vrae sample --model {result.run}")
    return 0


def _run_config(values: Namespace) -> RunConfig:
    groups = {field.name: type(getattr(RunConfig(), field.name)) for field in dataclasses.fields(RunConfig)}
    return RunConfig(**{name: group(**values[name].as_dict()) for name, group in groups.items()})


def _respond(values: Namespace) -> int:
    pipeline, decoding = _load(values), _decoding(values)

    def job(context: Any) -> dict[str, Any]:
        context = _field(context, "context", "turns")
        turns = [context] if isinstance(context, str) else context
        if not isinstance(turns, list):
            raise UserError('expected a list of turns, or {"context": [..]}')
        replies = pipeline.respond(turns, values.n, seed=values.seed, decoding=decoding)
        return {"context": turns, "replies": [dataclasses.asdict(reply) for reply in replies]}

    def show(result: dict[str, Any]) -> str:
        return "\n".join(f"{reply['log_prob']:8.1f}  {reply['text']}" for reply in result["replies"])

    return _run([values.turns] if values.turns not in ([], ["-"]) else None, job, show, values.json)


def _sample(values: Namespace) -> int:
    for sample in _load(values).sample(values.n, seed=values.seed, decoding=_decoding(values)):
        if values.json:
            _print_json(dataclasses.asdict(sample))
        else:
            print(f"{sample.log_prob:8.1f}  {sample.text}")
    return 0


def _reconstruct(values: Namespace) -> int:
    pipeline = _load(values)

    def job(text: Any) -> dict[str, Any]:
        return dataclasses.asdict(pipeline.reconstruct([_field(text, "text")])[0])

    def show(result: dict[str, Any]) -> str:
        mark = "=" if result["exact"] else " "
        bits = f"rate {result['rate']:.1f} + distortion {result['distortion']:.1f} nats"
        return f"{mark} {result['reconstruction']}    ({bits})"

    return _run(values.texts if values.texts not in ([], ["-"]) else None, job, show, values.json)


def _interpolate(values: Namespace) -> int:
    pipeline = _load(values)

    def job(pair: Any) -> dict[str, Any]:
        pair = _field(pair, "texts")
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError(f"interpolate takes two turns. Got {len(pair) if isinstance(pair, list) else pair!r}")
        steps = pipeline.interpolate(*pair, steps=values.steps, method=values.method)
        return {"steps": [dataclasses.asdict(step) for step in steps]}

    def show(result: dict[str, Any]) -> str:
        return "\n".join(f"{step['t']:5.2f}  {step['text']}" for step in result["steps"])

    return _run([values.texts] if values.texts not in ([], ["-"]) else None, job, show, values.json)


def _evaluate(values: Namespace) -> int:
    from vrae.corpus.batches import Windows
    from vrae.corpus.prepared import Corpus
    from vrae.evaluation.likelihood import measure

    if values.k < 0 or values.max_turns < 0:
        raise ConfigError(f"--k and --max_turns must be 0 or more. Got {values.k} and {values.max_turns}")
    pipeline, corpus = _load(values), Corpus(values.data)
    trained = pipeline.info.get("run", {}).get("batches", {})
    limit = values.max_turn_tokens or trained.get("max_turn_tokens", BatchConfig().max_turn_tokens)
    if corpus.tokenizer.sha256 != pipeline.tokenizer.sha256:
        raise UserError(f"--data {values.data}: its tokenizer is not the model's. Prepare it with --tokenizer MODEL/tokenizer.model")
    config = BatchConfig(tokens=max(4096, 16 * (limit + 1)), max_turn_tokens=limit)
    windows = Windows(corpus[values.split], config, pipeline.model.config.context_turns)
    bound = measure(pipeline.model, (batch for _, batch in windows.in_order(values.max_turns)), k=values.k, seed=values.seed)
    report = {"split": values.split, "max_turn_tokens": limit, **dataclasses.asdict(bound), "collapse": bound.collapse.state}
    if values.json:
        _print_json(report)
        return 0
    del report["rate_per_dimension"]
    for key, value in report.items():
        print(f"{key:<20} {value:.4f}" if isinstance(value, float) else f"{key:<20} {value}")
    print(f"latent: {bound.collapse.words}\n(nats per turn unless the name says otherwise)")
    return 0


def _info(values: Namespace) -> int:
    import platform
    from importlib import metadata

    import torch

    packages = ("torch", "numpy", "sentencepiece", "datasets", "safetensors", "jsonargparse", "tqdm", "chitchat-dataset")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    report: dict[str, Any] = {
        "vrae": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": versions,
        "threads": torch.get_num_threads(),
        "devices": ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))],
        "configs": list(configs()),
    }
    if values.model:
        from vrae.generation.pipeline import load

        model = load(values.model)
        parameters = sum(p.numel() for p in model.model.parameters())
        report["model"] = {"folder": values.model, "parameters": parameters, **model.info}
    if values.json:
        _print_json(report)
    else:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    return 0


def _load(values: Namespace) -> Pipeline:
    from vrae.generation.pipeline import DEMO_MODEL, load
    from vrae.training.trainer import pick_device

    return load(values.model or DEMO_MODEL, str(pick_device(values.device)))


def _decoding(values: Namespace) -> DecodingConfig:
    return DecodingConfig(**{field.name: values[field.name] for field in dataclasses.fields(DecodingConfig)})


def _field(value: Any, *names: str) -> Any:
    """A JSON line may be the value itself or an object that holds it."""
    if isinstance(value, dict):
        for name in names:
            if name in value:
                return value[name]
        raise UserError(f"expected one of {', '.join(names)} in the object. Got {', '.join(map(str, value)) or 'nothing'}")
    return value


def _run(
    given: Iterable[Any] | None, job: Callable[[Any], dict[str, Any]], show: Callable[[dict[str, Any]], str], as_json: bool
) -> int:
    """Does `job` for what was given, or for every JSON line of stdin. A bad line gives an error object, and 1 at the end."""
    if given is not None:
        for value in given:
            result = job(value)
            _print_json(result) if as_json else print(show(result))
        return 0
    if sys.stdin.isatty():
        raise UserError("no text given, and stdin is a terminal. Pass the text, or pipe in JSON lines")
    failed = 0
    for number, line in _lines():
        try:
            _print_json(job(json.loads(line)))
        except (ValueError, RecursionError) as error:
            failed += 1
            _print_json({"error": f"stdin:{number}: expected a line of JSON: {error}", "line": number})
        except UserError as error:
            failed += 1
            _print_json({"error": f"stdin:{number}: {error}", "line": number})
    return 1 if failed else 0


def _lines() -> Iterator[tuple[int, str]]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        text = line.decode("utf-8", "replace").strip()
        if text:
            yield number, text


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)


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


_COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "demo": _demo,
    "prepare": _prepare,
    "data check": _data_check,
    "train": _train,
    "respond": _respond,
    "sample": _sample,
    "reconstruct": _reconstruct,
    "interpolate": _interpolate,
    "evaluate": _evaluate,
    "info": _info,
}
