"""The command line: one short function a command over `Pipeline`, `prepare`, `train` and `measure`.

Only this file, the parser and `vrae.config` are imported before a command runs: `vrae --help` must not wait for torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from jsonargparse import Namespace

from vrae.apps.help import Command, asks_for_help
from vrae.apps.parser import DEMO_TRAINING, NESTED, build_parser, config_path
from vrae.config import (
    CleaningConfig,
    PrepareConfig,
    RunConfig,
    SourceConfig,
    shown,
)
from vrae.errors import ConfigError, UserError, is_out_of_memory

_TOKENS_A_PIECE = 20  # of the training split; with fewer most pieces are met too seldom to be learnt
_LITTLE_TEXT = 100_000  # tokens: the smallest of the presets holds as much
_FEW_TURNS = 50
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _TerminatedError(BaseException):
    """SIGTERM came. Like KeyboardInterrupt it is no Exception: only clean-up code sees it pass."""


# How many programs oneDNN, and torch for it, keep: one for each shape of a product in bf16, with its working memory. At their
# 1,024 training, which meets new shapes all the time, would fill gigabytes with them. Read at the first product.
KEPT_PROGRAMS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def console(argv: Sequence[str] | None = None) -> NoReturn:
    """`vrae`, as a process of its own."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # Threads wait for each other by spinning. Beside another busy program that makes a step tens of times slower, for what
        # is waited for stands in the queue; so they soon sleep instead. GNU's OpenMP reads it when torch is loaded.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    for name in KEPT_PROGRAMS:
        os.environ.setdefault(name, "128")
    code = main(argv)
    if any(thread.name.startswith("vrae ") for thread in threading.enumerate()):
        # It is inside a library or waits for input; to tear it down with the interpreter would abort the process.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0 done, 1 some inputs failed, 2 usage or configuration, 3 diverged, 130/143
    interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does with what a terminal has no letters for
    try:
        with _sigterm_raises():
            code = _run(sys.argv[1:] if argv is None else argv)
            sys.stdout.flush()  # what it raises belongs below, not into the interpreter's exit
            return code
    except UserError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except _TerminatedError:
        _complain("terminated")
        return 143
    except BrokenPipeError:
        _drop_output()  # whoever read it has gone
        return 141
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _complain("out of memory. Ask for less at once, or use a smaller model")
        return 2
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _drop_output()
        _complain(f"cannot write {error.filename or 'the output'}: {error.strerror}")
        return 2


def _run(argv: Sequence[str]) -> int:
    arguments = _spelled(argv)
    parsed = parse(build_parser(chitchat="chitchat" in arguments), arguments)
    command, values = parsed.subcommand, parsed[parsed.subcommand]
    if command in NESTED:
        command, values = f"{command} {values.subcommand}", values[values.subcommand]
    return _COMMANDS[command](values)


def parse(parser: Command, arguments: list[str]) -> Namespace:
    """The settings of a command line. Raises UserError where it makes none, SystemExit where it asks for help alone."""
    if help := asks_for_help(parser, arguments):
        print(help, end="")
        raise SystemExit(0)
    parser.given = arguments
    try:
        parsed: Namespace = parser.parse_args(arguments)
        return parsed
    except (ValueError, RecursionError) as error:
        raise UserError(f"--config: cannot be read: {shown(str(error), 200)}") from None


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Within this context SIGTERM unwinds the program, so that half-written files are removed, unless it is handled already."""

    def receive(number: int, frame: FrameType | None) -> None:
        raise _TerminatedError

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, receive)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _complain(message: str) -> None:
    with contextlib.suppress(OSError):  # stderr may be gone or full as well
        who = f"process {rank}: " if (rank := os.environ.get("RANK", "0")) != "0" else ""  # of several that torchrun started
        print(f"vrae: {who}{message}", file=sys.stderr)


def _drop_output() -> None:
    """Sends what is left of the output nowhere; otherwise Python would fail again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    cleaning = _group(values, "cleaning", CleaningConfig)
    options = {
        field.name: values[field.name]
        for field in dataclasses.fields(PrepareConfig)
        if field.name not in ("source", "cleaning") and field.name in values
    }
    return PrepareConfig(source=source, cleaning=cleaning, **options)


def _demo(values: Namespace) -> int:
    from vrae.apps.demo import demo

    try:
        config = _run_config(values)
    except ConfigError as error:
        message = str(error)
        for option, setting in DEMO_TRAINING.items():
            message = message.replace(setting, f"--{option}")
        raise ConfigError(message) from None
    demo(config, Path(values.out), values.seed)
    return 0


def _prepare(values: Namespace) -> int:
    from vrae.corpus.prepared import prepare

    corpus = prepare(_prepare_config(values), values.out, overwrite=values.overwrite, quiet=values.quiet)
    _print_counts(corpus.manifest)
    print(f"vocabulary   {corpus.manifest['vocab_size']} pieces")
    for split, counts in corpus.manifest["splits"].items():
        print(f"{split:<12} " + "  ".join(f"{counts[key]:>9,} {key}" for key in ("dialogues", "turns", "tokens")))
    splits, pieces = corpus.manifest["splits"], corpus.manifest["vocab_size"]
    tokens, validation = splits["train"]["tokens"], splits["validation"]["turns"]
    suits = max(tokens // _TOKENS_A_PIECE // 100 * 100, 400)
    if pieces > suits and not (values.tokenizer or values.quiet):
        _warn(f"{pieces:,} pieces for {tokens:,} tokens: most are hardly ever seen. --vocab_size {suits} would suit this text")
    if validation < _FEW_TURNS and not values.quiet:
        _warn(f"validation has {validation} turns, too few to judge a model by. Raise --validation_percent")
    print(f"next: vrae train --config {'tiny' if tokens < _LITTLE_TEXT else 'small'} --data {values.out} --out run")
    return 0


def _warn(line: str) -> None:
    print(f"vrae: warning: {line}", file=sys.stderr)


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
    from vrae.distributed import processes
    from vrae.training.trainer import train

    config, corpus = _run_config(values), Corpus(values.data)
    with processes() as first:
        options = {"resume": values.resume, "dry_run": values.dry_run, "quiet": values.quiet}
        result = train(config, corpus, values.out, **options, log_format=values.log_format)
    if not first:
        return 0
    bound = result.validation
    print(
        f"ended at {result.reason}. Validation: {-bound.elbo:.2f} nats/turn = {bound.distortion:.2f} + {bound.rate:.2f} (rate)"
    )
    if result.best < -bound.elbo:
        print(
            f"best at step {result.best_step}, {result.best:.2f}: that model is the one that is used. What came after was "
            "learnt of the training turns alone (--train.patience 3 stops there)"
        )
    print(f"latent: {bound.collapse.words}")
    print(f"saved in {result.run}. Next: vrae sample --model {result.run}")
    return 0


def _run_config(values: Namespace) -> RunConfig:
    kinds = {field.name: type(getattr(RunConfig(), field.name)) for field in dataclasses.fields(RunConfig)}
    return RunConfig(**{name: _group(values, name, kind) for name, kind in kinds.items()})


def _group(values: Namespace, name: str, kind: type[Any]) -> Any:
    """A group of settings, from a file where there is one and from the command line."""
    where = f"--config {', '.join(map(str, values.get('config') or ()))}"
    if not isinstance(values[name], Namespace):
        raise UserError(f"{where}: {name} must hold settings by name. Got {shown(repr(values[name]))}")
    settings = values[name].as_dict()
    for key, value in settings.items():
        if value is None:  # which jsonargparse takes for any type
            raise UserError(f"{where}: {name}.{key} has no value. Give one, or leave it out")
    return kind(**settings)


def _bench(values: Namespace) -> int:
    import torch

    from vrae.apps.bench import bench

    if values.threads < 0:
        raise UserError(f"--threads must be 0 or more. Got {values.threads}")
    if values.threads:
        torch.set_num_threads(values.threads)
    found = bench(values.data, values.model, values.device)
    if values.json:
        _print_json(found)
    else:
        for name, value in found.items():
            print(f"{name:<20} {value:.3g}" if isinstance(value, float) else f"{name:<20} {value}")
    return 0


def _info(values: Namespace) -> int:
    from vrae.apps.info import describe, lines

    report = describe(values.model)
    if values.json:
        _print_json(report)
    else:
        print("\n".join(lines(report)))
    return 0


def _completion(values: Namespace) -> int:
    from vrae.apps.completion import script

    print(script(build_parser(), values.shell), end="")
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
    *("respond", "chat", "serve", "sample", "reconstruct", "interpolate", "variations", "analogy", "encode", "score"),
    *("neighbours build", "neighbours query", "attributes learn", "attributes move", "plot"),
    *("compress", "decompress", "evaluate", "push", "export"),
)
_COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "demo": _demo,
    "prepare": _prepare,
    "data check": _data_check,
    "train": _train,
    **{name: _job(name) for name in JOBS},
    "bench": _bench,
    "completion": _completion,
    "info": _info,
}
