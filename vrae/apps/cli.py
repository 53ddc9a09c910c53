"""The command line: one short function a command over `Pipeline`, `prepare`, `train` and `measure`.

Only this file, the parser and `vrae.config` are imported before a command runs: `vrae --help` must not wait for torch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from vrae import __version__
from vrae.apps.parser import build_parser, config_path, configs
from vrae.config import (
    CleaningConfig,
    DecodingConfig,
    EvaluateConfig,
    PrepareConfig,
    RunConfig,
    SourceConfig,
)
from vrae.errors import UserError

if TYPE_CHECKING:
    from vrae.generation.pipeline import Pipeline


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0 done, 1 some inputs failed, 2 usage or configuration, 3 diverged, 130/143
    interrupted."""
    try:
        arguments = _spelled(sys.argv[1:] if argv is None else argv)
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


def _spelled(arguments: Sequence[str]) -> list[str]:
    """`--dry-run` is `--dry_run`; `--config NAME` may name a configuration that comes with the package."""
    spelled: list[str] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            argument = name[:2] + name[2:].replace("-", "_") + equals + value
            if name == "--config" and equals:
                argument = f"--config={config_path(value)}"
        elif spelled and spelled[-1] == "--config":
            argument = config_path(argument)
        spelled.append(argument)
    return spelled


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
    result = train(config, Corpus(values.data), values.out, resume=values.resume, dry_run=values.dry_run, quiet=values.quiet)
    bound = result.validation
    print(
        f"ended at {result.reason}. Validation: {-bound.elbo:.2f} nats/turn = {bound.distortion:.2f} + {bound.rate:.2f} (rate)"
    )
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
        steps = pipeline.interpolate(pair[0], pair[1], values.steps, method=values.method)
        return {"steps": [dataclasses.asdict(step) for step in steps]}

    def show(result: dict[str, Any]) -> str:
        return "\n".join(f"{step['t']:5.2f}  {step['text']}" for step in result["steps"])

    return _run([values.texts] if values.texts not in ([], ["-"]) else None, job, show, values.json)


def _score(values: Namespace) -> int:
    from vrae.evaluation.score import score

    pipeline = _load(values)

    def job(given: Any) -> dict[str, Any]:
        context = given.get("context", []) if isinstance(given, dict) else values.context
        text = _field(given, "text")
        return dataclasses.asdict(score(pipeline, [text], [context] if context else None, k=values.k, seed=values.seed)[0])

    def show(result: dict[str, Any]) -> str:
        parts = f"{result['bits_latent']:.1f} latent + {result['bits_text']:.1f} text = {result['bits_total']:.1f} bits"
        return f"{parts}; importance-weighted {result['bits_iw']:.1f}; {result['tokens']} tokens    {result['text']}"

    return _run(values.texts if values.texts not in ([], ["-"]) else None, job, show, values.json)


def _compress(values: Namespace) -> int:
    from vrae.evaluation.compression import compress

    text = _read(values.file)
    container, account = compress(_load(values), text, quiet=values.quiet)
    _write(values.out, container)
    if values.json:
        _print_json({**dataclasses.asdict(account), "bits_turns": account.bits_turns, "bits_net": account.bits_net})
    else:
        each = account.bits_turns / max(account.turns, 1)
        print(f"{account.text_bytes:,} bytes -> {account.container_bytes:,}")
        print(f"{account.turns:,} turns in {account.bits_turns:,.0f} bits ({each:.1f} each)")
        print(f"{account.raw_lines:,} lines as they are")
    return 0


def _decompress(values: Namespace) -> int:
    from vrae.evaluation.compression import decompress

    _write(values.out, decompress(_load(values), _read(values.file), name=values.file, quiet=values.quiet))
    return 0


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read: {getattr(error, 'strerror', None) or error}") from None


def _write(path: str, content: bytes) -> None:
    from vrae.files import write_file

    try:
        write_file(Path(path), content)
    except (OSError, ValueError) as error:
        raise UserError(f"--out {path}: cannot write: {getattr(error, 'strerror', None) or error}") from None


def _evaluate(values: Namespace) -> int:
    from vrae.apps.evaluate import evaluate, processes
    from vrae.corpus.prepared import Corpus
    from vrae.training.run_folder import corpus_of

    config = EvaluateConfig(**{field.name: values[field.name] for field in dataclasses.fields(EvaluateConfig)})
    if values.run and values.model:
        raise UserError(f"a run is given twice: {values.run} and --model {values.model}. Leave one out")
    values.model = values.model or values.run
    run = Path(values.model)
    corpus = Corpus(values.data or corpus_of(run))
    with processes() as first:
        report = evaluate(_load(values), corpus, config, run=run, quiet=values.quiet or not first)
        if first:
            _print_json(report.as_dict()) if values.json else print(report.table())
            if config.out and not values.json:
                print(f"written to {config.out}")
    return 0


def _info(values: Namespace) -> int:
    import platform
    from importlib import metadata

    import torch

    packages = (
        "torch",
        "numpy",
        "sentencepiece",
        "datasets",
        "safetensors",
        "jsonargparse",
        "tqdm",
        "chitchat-dataset",
    )
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
    from vrae.training.hardware import pick_device

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
    given: Iterable[Any] | None,
    job: Callable[[Any], dict[str, Any]],
    show: Callable[[dict[str, Any]], str],
    as_json: bool,
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


_COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "demo": _demo,
    "prepare": _prepare,
    "data check": _data_check,
    "train": _train,
    "respond": _respond,
    "sample": _sample,
    "reconstruct": _reconstruct,
    "interpolate": _interpolate,
    "score": _score,
    "compress": _compress,
    "decompress": _decompress,
    "evaluate": _evaluate,
    "info": _info,
}
