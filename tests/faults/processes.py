"""Real processes to kill: the command line as a user starts it, and, where many are needed, forked from one warm server."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SMALLTALK = ROOT / "data" / "smalltalk.txt"
PREPARE = ["--vocab_size=400", "--validation_percent=20", "--quiet"]
# Steps of milliseconds, with everything in them that could go another way: dropout, dropped words and contexts, noise.
TRAIN = [
    *("--model.context_turns=2", "--model.latent_size=4", "--model.embedding_size=8", "--model.hidden_size=12"),
    *("--model.context_size=8", "--model.dropout=0.2", "--batches.tokens=256", "--batches.segment_turns=4"),
    *("--batches.word_dropout=0.2", "--batches.context_dropout=0.2", "--objective.bag_of_words=0.5"),
    *("--train.max_steps=40", "--train.validate_every=20", "--train.checkpoint_every=4", "--train.log_every=3"),
    *("--train.validation_turns=8", "--train.precision=fp32", "--train.device=cpu", "--train.threads=1", "--quiet"),
]

_WARM = ["vrae.apps.cli", "vrae.corpus.prepared", "vrae.training.trainer", "torch._dynamo"]
_started: list[subprocess.Popen[str]] = []
_FILE_WORK = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def environment(**changes: str | None) -> dict[str, str]:
    """This process's, with this package in reach of any folder; a change of None takes a variable away."""
    here = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **changes}
    return {name: value for name, value in here.items() if value is not None}


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "vrae", *map(str, arguments)]


def vrae(*arguments: str | Path, before: list[str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the command line to its end; `before` is what starts it, such as `unshare`."""
    settings: dict[str, Any] = dict(
        capture_output=True, text=True, encoding="utf-8", env=environment(), stdin=subprocess.DEVNULL
    )
    return subprocess.run([*(before or []), *command(*arguments)], check=False, timeout=120, **{**settings, **options})


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Starts the command line in a process group of its own."""
    pipes: dict[str, Any] = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(command(*arguments), env=environment(), start_new_session=True, **pipes)
    _started.append(process)
    return process


def end_started() -> None:
    """Kills what `start` started and a failed test left behind, or a later test would be blamed for it."""
    while _started:
        process = _started.pop()
        with process:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def fork(
    *arguments: str | Path, kill_at: int = 0, number: signal.Signals = signal.SIGKILL, said: Path | None = None
) -> BaseProcess:
    """The same in milliseconds: `main` in a process of its own that has torch already.

    Args:
        kill_at: the process sends itself a signal before this operation on files (opening one to write, a rename, a
            removal, a new folder), counted from 1; 0: never.
        number: which signal.
        said: a file for its output and errors; None: they are thrown away.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_WARM)
    process = context.Process(target=_main, args=([*map(str, arguments)], kill_at, number, said))
    process.start()
    return process


def forked(*arguments: str | Path, said: Path) -> tuple[int | None, str]:
    """Runs it so to its end; returns the exit code and all that it wrote, output and errors, in a file `said`."""
    process = fork(*arguments, said=said)
    process.join(120)
    return process.exitcode, said.read_text(encoding="utf-8")


def _main(arguments: list[str], kill_at: int, number: signal.Signals, said: Path | None) -> None:
    from vrae.apps.cli import console

    out = os.open(said or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(out, 1)
    os.dup2(out, 2)
    count = 0

    def audit(event: str, details: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in _FILE_WORK:
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), number)

    if kill_at:
        sys.addaudithook(audit)
    console(arguments)


def wait_until(happened: Callable[[], bool], process: BaseProcess | subprocess.Popen[str], seconds: float = 60) -> bool:
    """Waits, looking every tenth of a millisecond. Returns False where the process ended before it happened."""
    deadline = time.monotonic() + seconds
    while not happened():
        ended = process.poll() is not None if isinstance(process, subprocess.Popen) else not process.is_alive()
        if ended:
            return happened()
        assert time.monotonic() < deadline
        time.sleep(0.0001)
    return True
