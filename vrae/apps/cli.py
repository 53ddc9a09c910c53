"""The command line: one short function a command over `Pipeline`, `prepare`, `train` and `measure`.

Only this file, the parser and `vrae.config` are imported before a command runs: `vrae --help` must not wait for torch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from vrae import __version__
from vrae.apps.parser import NESTED, build_parser, config_path, configs
from vrae.config import (
    CleaningConfig,
    PrepareConfig,
    RunConfig,
    SourceConfig,
)
from vrae.errors import UserError

if TYPE_CHECKING:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0 done, 1 some inputs failed, 2 usage or configuration, 3 diverged, 130/143
    interrupted."""
    try:
        arguments = _spelled(sys.argv[1:] if argv is None else argv)
        parser = build_parser(chitchat="chitchat" in arguments)
        parsed = parser.parse_args(arguments)
        command, values = parsed.subcommand, parsed[parsed.subcommand]
        if command in NESTED:
            command, values = f"{command} {values.subcommand}", values[values.subcommand]
        return _COMMANDS[command](values)
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


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)


def _job(name: str) -> Callable[[Namespace], int]:
    """A command of `vrae.apps.jobs`, which is imported when it runs."""

    def command(values: Namespace) -> int:
        from vrae.apps import jobs

        code: int = getattr(jobs, name.replace(" ", "_"))(values)
        return code

    return command


JOBS = (
    *("respond", "chat", "sample", "reconstruct", "interpolate", "variations", "analogy", "encode", "score"),
    *("neighbours build", "neighbours query", "attributes learn", "attributes move", "plot"),
    *("compress", "decompress", "evaluate"),
)
_COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "demo": _demo,
    "prepare": _prepare,
    "data check": _data_check,
    "train": _train,
    **{name: _job(name) for name in JOBS},
    "info": _info,
}
