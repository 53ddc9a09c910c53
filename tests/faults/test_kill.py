"""SIGKILL at any moment of training, saving and preparing: what comes after is bit for bit what an undisturbed run gives."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from faults.processes import PREPARE, SMALLTALK, TRAIN, fork, vrae, wait_until

from vrae.files import check_folder

KILLS = 50


def finish(process: BaseProcess) -> None:
    process.join(120)
    assert process.exitcode == 0


def killed(process: BaseProcess) -> bool:
    """Kills it; False where it had ended before."""
    process.kill()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def files(folder: Path) -> dict[str, bytes]:
    """All that must be the same, but for unfinished files of the killed.

    The clock is in trainer.json and so in its manifest, and in the speed of metrics.jsonl.
    """
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not path.name.startswith(".")
        and path.name not in ("trainer.json", "manifest.json", "metrics.jsonl", "run.json")
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small talk, prepared without a fault."""
    out = tmp_path_factory.mktemp("kill") / "corpus"
    finish(fork("prepare", SMALLTALK, "--out", out, *PREPARE))
    return out


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the run that nothing happened to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(train(corpus, run))
    found = files(run)
    assert {"checkpoints/last", "checkpoints/step-00000040/model.safetensors", "samples.jsonl"} <= set(found)
    assert "checkpoints/step-00000040/auxiliary.safetensors" in found
    return found


def train(corpus: Path, run: Path, kill_at: int = 0, number: signal.Signals = signal.SIGKILL) -> BaseProcess:
    """Trains as a user would: goes on where there is a checkpoint, and starts anew where there is none yet."""
    resume = any((run / "checkpoints").glob("step-*"))
    if not resume:
        shutil.rmtree(run, ignore_errors=True)
    begun = ["train", "--data", corpus, "--out", run, *TRAIN, *(["--resume"] if resume else [])]
    return fork(*begun, kill_at=kill_at, number=number)


def newest_is_whole(run: Path) -> bool:
    """An older one may have been half removed."""
    return all(check_folder(path) == "" for path in sorted((run / "checkpoints").glob("step-*"))[-1:])


def kill_in_training(corpus: Path, run: Path, draw: random.Random) -> bool:
    """At a random moment from the first sign of life on."""
    process = train(corpus, run)
    wait_until(lambda: (run / "metrics.jsonl").exists(), process)
    time.sleep(draw.uniform(0, 0.25))
    return killed(process)


def kill_in_saving(corpus: Path, run: Path, draw: random.Random) -> bool:
    """Within ten milliseconds of the beginning of a checkpoint, one of the next three."""
    process = train(corpus, run)
    for _ in range(draw.randint(1, 3)):
        wait_until(lambda: not any((run / "checkpoints").glob(".step-*")), process)
        wait_until(lambda: any((run / "checkpoints").glob(".step-*")), process)
    time.sleep(draw.uniform(0, 0.01))
    return killed(process)


def kill_runs(corpus: Path, folder: Path, whole: dict[str, bytes], moments: list[str], seed: int) -> int:
    """Kills one run after the other at the moments, five times a run at most; returns how many kills met a living process."""
    draw, hits, run = random.Random(seed), 0, folder / "0"
    for number, moment in enumerate(moments):
        kill = kill_in_saving if moment == "saving" else kill_in_training
        hits += kill(corpus, run, draw)
        assert newest_is_whole(run)
        if number % 5 == 4 or number == len(moments) - 1:
            finish(train(corpus, run))
            assert files(run) == whole
            run = folder / str(number + 1)
    return hits


def kill_preparing(corpus: Path, out: Path, seconds: float) -> bool:
    process = fork("prepare", SMALLTALK, "--out", out, *PREPARE, "--overwrite")
    wait_until(lambda: out.with_name(f".{out.name}.tmp").exists(), process)
    time.sleep(seconds)
    hit = killed(process)
    assert not out.exists() or files_of(out) == files_of(corpus)
    return hit


def files_of(corpus: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in corpus.iterdir()}


def check_prepared_again(corpus: Path, out: Path) -> None:
    finish(fork("prepare", SMALLTALK, "--out", out, *PREPARE, "--overwrite"))
    assert files_of(out) == files_of(corpus)
    assert [path.name for path in out.parent.iterdir()] == [out.name]  # nothing is left of those that were killed


def test_a_kill_in_training_and_one_in_saving_change_nothing(corpus: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    assert kill_runs(corpus, tmp_path, whole, ["training", "saving"], seed=1) >= 1


def test_a_kill_in_preparing_changes_nothing(corpus: Path, tmp_path: Path) -> None:
    kill_preparing(corpus, tmp_path / "corpus", 0.005)
    check_prepared_again(corpus, tmp_path / "corpus")


def signal_in_saving(corpus: Path, run: Path, whole: dict[str, bytes], place: int, number: signal.Signals) -> None:
    """Before this operation on files. The checkpoint in hand is finished; after SIGUSR1 the run goes on by itself."""
    process = train(corpus, run, kill_at=place, number=number)
    process.join(60)
    assert process.exitcode == (0 if number == signal.SIGUSR1 else 128 + number)
    assert not list((run / "checkpoints").glob(".*"))
    assert all(check_folder(path) == "" for path in (run / "checkpoints").glob("step-*"))
    if number != signal.SIGUSR1:
        finish(train(corpus, run))
    assert files(run) == whole


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_saving_changes_nothing(
    corpus: Path, whole: dict[str, bytes], tmp_path: Path, number: signal.Signals
) -> None:
    signal_in_saving(corpus, tmp_path / "run", whole, 20, number)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_any_operation_on_files_changes_nothing(
    corpus: Path, whole: dict[str, bytes], tmp_path: Path, number: signal.Signals
) -> None:
    """From the tenth on: before, the run has not begun to listen."""
    for place in range(10, 40, 6):
        signal_in_saving(corpus, tmp_path / str(place), whole, place, number)


@pytest.mark.slow
def test_fifty_kills_change_nothing(corpus: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    draw, moments = random.Random(50), ["training"] * 20 + ["saving"] * 16
    draw.shuffle(moments)
    hits = kill_runs(corpus, tmp_path / "runs", whole, moments, seed=51)
    folder = tmp_path / "corpora"
    folder.mkdir()
    for _ in range(3 * KILLS):
        if hits >= KILLS:  # a kill that came after the end is none
            break
        hits += kill_preparing(corpus, folder / "corpus", draw.uniform(0, 0.03))
    check_prepared_again(corpus, folder / "corpus")
    assert hits >= KILLS


@pytest.mark.slow
def test_a_kill_before_any_operation_on_files_changes_nothing(corpus: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """Not at random: before each file of the first run's first saves is opened, renamed or removed, one after the other."""
    run = tmp_path / "run"
    for number in range(1, 36, 2):
        shutil.rmtree(run, ignore_errors=True)
        process = train(corpus, run, kill_at=number)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert newest_is_whole(run)
        finish(train(corpus, run))
        assert files(run) == whole, number


@pytest.mark.slow
def test_preparing_killed_before_any_operation_on_files_leaves_a_whole_corpus_or_none(corpus: Path, tmp_path: Path) -> None:
    out, number, code = tmp_path / "corpus", 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        number += 1
        process = fork("prepare", SMALLTALK, "--out", out, *PREPARE, "--overwrite", kill_at=number)
        process.join(60)
        code = process.exitcode
        assert not out.exists() or files_of(out) == files_of(corpus)
    assert code == 0
    assert number > 20
    check_prepared_again(corpus, out)


def test_two_processes_do_not_prepare_one_folder_at_once(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    first = fork("prepare", SMALLTALK, "--out", out, *PREPARE)
    assert wait_until(lambda: (tmp_path / ".corpus.tmp" / "train.jsonl").exists(), first)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGSTOP)  # as slow as can be
    second = vrae("prepare", SMALLTALK, "--out", out, *PREPARE)
    os.kill(first.pid, signal.SIGCONT)
    finish(first)
    assert (second.returncode, second.stdout) == (2, "")
    assert second.stderr == f"vrae: --out {out}: another process is preparing it. Wait for it, or choose another folder\n"
    assert files_of(out) == files_of(corpus)
