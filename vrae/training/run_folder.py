"""What is trained in which folder, and what may change when a run is resumed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from vrae.config import RunConfig, from_dict
from vrae.corpus.prepared import Corpus
from vrae.errors import ConfigError, UserError
from vrae.files import to_json, write_file

DRY_RUN = "dry-run"  # the folder within a run's folder
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


def open_run(config: RunConfig, corpus: Corpus, run: Path, *, resume: bool, overwrite: bool) -> None:
    """Checks that `run` is what the caller says, and records what is trained there."""
    record = run / "run.json"
    now = {"config": dataclasses.asdict(config), "corpus": corpus_info(corpus), "data": str(corpus.path.resolve())}
    if resume:
        try:
            then = json.loads(record.read_bytes())
            old = from_dict(RunConfig, then["config"], str(record))
            fingerprint, source = then["corpus"]["fingerprint"], then["corpus"]["source"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"--resume: {run} holds no run (run.json). Leave --resume out to start one") from None
        if fingerprint != corpus.fingerprint:
            raise UserError(
                f"--resume: {corpus.path} is not the corpus this run was trained on ({source}); its bytes "
                "differ. Pass the --data of that run"
            )
        changed = _changes(dataclasses.asdict(old), dataclasses.asdict(config))
        if changed:
            raise UserError(
                f"--resume: {', '.join(changed)}. A resumed run keeps its settings, but for its length, intervals and device; "
                "start a new run (--out) for others"
            )
    elif run.is_dir() and any(path.name != DRY_RUN for path in run.iterdir()) and not overwrite:
        raise UserError(f"--out {run}: not empty. Choose another folder, or pass --resume to go on with the run in it")
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_file(record, to_json(now))
    except OSError as error:
        raise UserError(f"--out {run}: cannot write: {error.strerror}") from None


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


def corpus_of(run: Path) -> str:
    """Where the corpus is that a run was trained on. Raises UserError where that is not known."""
    try:
        path: str = json.loads((run / "run.json").read_bytes())["data"]
        return path
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{run} does not say which corpus it was trained on. Pass --data, a prepared corpus") from None
