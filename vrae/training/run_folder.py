"""What is trained in which folder, by one process at a time, and what may change when a run is resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vrae import __version__
from vrae.config import RunConfig, from_dict
from vrae.corpus.prepared import Corpus
from vrae.errors import ConfigError, UserError
from vrae.files import mend, to_json, write_file

DRY_RUN = "dry-run"  # the folder within a run's folder
CHECKPOINTS = "checkpoints"  # another
_RECORD, _LOCK = "run.json", "lock"
_LOOSE = {"max_steps", "max_minutes", "log_every", "validate_every", "checkpoint_every", "keep_last", "patience"}
_LOOSE |= {"validation_turns", "device", "threads", "tensorboard", "precision", "accumulate"}


def fit_to_corpus(config: RunConfig, corpus: Corpus) -> RunConfig:
    """The configuration with the corpus's vocabulary size in it. Raises ConfigError where it says another."""
    size = len(corpus.tokenizer)
    if config.model.vocab_size not in (0, size):
        raise ConfigError(
            f"--model.vocab_size {config.model.vocab_size}: the tokenizer of {corpus.path} has {size} pieces. Leave it at 0"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


@contextlib.contextmanager
def open_run(config: RunConfig, corpus: Corpus, run: Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Checks that `run` is what the caller says, and records what is trained there. Within this context it is locked.

    Raises:
        UserError: it holds another run, or something else; another process trains there; or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            run.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(run))
            begun = (run / _RECORD).is_file()
            if resume and begun:
                _compare(config, corpus, run)
            elif not overwrite and any(not _ours(path.name) for path in run.iterdir()):
                remedy = ", or pass --resume to go on with the run in it" if begun else f": it holds no run ({_RECORD})"
                raise UserError(f"--out {run}: not empty. Choose another folder{remedy}")
            mend(run)
            mend(run / CHECKPOINTS)
            now = {"config": dataclasses.asdict(config), "corpus": corpus_info(corpus), "data": str(corpus.path.resolve())}
            write_file(run / _RECORD, to_json(now))
        except OSError as error:
            raise UserError(f"--out {run}: cannot write: {error.strerror}") from None
        yield


def _ours(name: str) -> bool:
    """Whether a file may be in a folder where no run was begun: what a process killed early left counts as nothing."""
    return name in (DRY_RUN, _LOCK) or name.startswith(f".{_RECORD}.tmp-")


@contextlib.contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Keeps other processes from training in `run`. Raises UserError where one does.

    The lock dies with its holder, however that ends, so the file of a killed one is no obstacle: what is written in it is for
    the message alone. Where the system (Windows) or the file system knows no such locks, nothing is locked.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = run / _LOCK
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 200).decode(errors="replace") or "another process"
            os.close(file)
            raise UserError(
                f"--out {run}: {holder} is training in it. Wait until it ends or stop it, or choose another folder"
            ) from None
        except OSError:
            break
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            break
        os.close(file)  # its holder has removed it since it was opened
    try:
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {platform.node()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _compare(config: RunConfig, corpus: Corpus, run: Path) -> None:
    """Raises UserError where the run recorded in `run` is not this one."""
    record = run / _RECORD
    try:
        then = json.loads(record.read_bytes())
        old = from_dict(RunConfig, then["config"], str(record))
        fingerprint, source = then["corpus"]["fingerprint"], then["corpus"]["source"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"--resume: {run} holds no run ({_RECORD}). Leave --resume out to start one") from None
    if fingerprint != corpus.fingerprint:
        raise UserError(
            f"--resume: {corpus.path} is not the corpus this run was trained on ({source}); its bytes "
            "differ. Pass the --data of that run"
        )
    settings = dataclasses.asdict(old)
    unknown = [f"{group}.{name}" for group in settings for name in settings[group] if name not in then["config"].get(group, {})]
    if unknown:  # today's defaults may not be what was done then
        raise UserError(
            f"--resume: {record} was written by another version of vrae: it does not tell {', '.join(unknown)}. Go on with "
            "that version, or start a new run (--out)"
        )
    changed = _changes(settings, dataclasses.asdict(config))
    if changed:
        raise UserError(
            f"--resume: {', '.join(changed)}. A resumed run keeps its settings, but for its length, intervals and device; "
            "start a new run (--out) for others"
        )


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [
        f"{group}.{name} was {old[group][name]} and is {new[group][name]}"
        for group in old
        for name in old[group]
        if old[group][name] != new[group][name] and not (group == "train" and name in _LOOSE)
    ]


def corpus_info(corpus: Corpus) -> dict[str, Any]:
    """What a run and its models remember of the corpus."""
    manifest = corpus.manifest
    return {
        "source": manifest["source"]["name"],
        "licence": manifest["source"]["licence"],
        "fingerprint": corpus.fingerprint,
        "cleaning": manifest["settings"]["cleaning"],
        "splits": manifest["splits"],
    }


def versions() -> dict[str, str]:
    """What a model remembers of the programs that made it."""
    return {"vrae": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}


def corpus_of(run: Path) -> str:
    """Where the corpus is that a run was trained on. Raises UserError where that is not known."""
    try:
        path: str = json.loads((run / _RECORD).read_bytes())["data"]
        return path
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{run} does not say which corpus it was trained on. Pass --data, a prepared corpus") from None
