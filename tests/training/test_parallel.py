"""Two processes of torchrun train as one does, and end together, whatever ends one of them."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from conftest import TINY

from vrae.config import BatchConfig, ModelConfig, ObjectiveConfig, RunConfig, TrainConfig
from vrae.corpus.prepared import Corpus
from vrae.files import check_folder
from vrae.training.monitor import read_records
from vrae.training.trainer import train

K0 = dict(model=dict(dropout=0.0), objective=dict(kl_schedule="constant"))
K2 = dict(
    model=dict(context_turns=2, dropout=0.3),
    batches=dict(word_dropout=0.2, context_dropout=0.2, utterance_dropout=0.2),
    objective=dict(target_rate=2.0, bag_of_words=0.5, importance_samples=2),
)


def run_config(groups: dict[str, dict[str, Any]], **options: Any) -> RunConfig:
    settings = dict(max_steps=50, validate_every=20, checkpoint_every=10, log_every=4, validation_turns=16, threads=1)
    return RunConfig(
        model=ModelConfig(**{**TINY, "vocab_size": 0, **groups["model"]}),
        batches=BatchConfig(**{"tokens": 160, "max_turn_tokens": 24, "segment_turns": 4, **groups.get("batches", {})}),
        objective=ObjectiveConfig(**groups["objective"]),
        train=TrainConfig(**{**settings, "precision": "fp32", "device": "cpu", "learning_rate": 0.01, **options}),
    )


def arguments(config: RunConfig, corpus: Corpus, run: Path) -> list[str]:
    path = run.with_name(f"{run.name}.yaml")
    path.write_text(json.dumps(dataclasses.asdict(config)))  # JSON is YAML
    return ["train", "--config", str(path), "--data", str(corpus.path), "--out", str(run), "--quiet"]


def _process(rank: int, port: int, said: str, arguments: list[str]) -> None:
    """What torchrun would start; it can be killed as soon as it is there."""
    where = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(where)
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    from vrae.apps.cli import console

    console(arguments)


class Two:
    """Two processes that have torch already."""

    def __init__(self, *commands: list[str], said: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["vrae.apps.cli", "vrae.training.trainer", "torch._dynamo"])
        self.said = [said.with_name(f"{said.name}.{rank}") for rank in range(2)]
        self.all: list[BaseProcess] = [
            context.Process(target=_process, args=(rank, port, str(self.said[rank]), commands[rank % len(commands)]))
            for rank in range(2)
        ]
        for process in self.all:
            process.start()

    def end(self, seconds: float = 60) -> list[int | None]:
        """Their exit codes."""
        deadline = time.monotonic() + seconds
        for process in self.all:
            process.join(max(deadline - time.monotonic(), 0))
        codes = [process.exitcode for process in self.all]
        for process in self.all:
            process.kill()
        return codes

    def words(self) -> list[str]:
        return [path.read_text() for path in self.said]

    def wait_for(self, path: Path) -> None:
        deadline = time.monotonic() + 60
        while not path.exists():
            assert all(process.is_alive() for process in self.all), self.words()
            assert time.monotonic() < deadline
            time.sleep(0.001)


def last(run: Path) -> Path:
    return run / "checkpoints" / (run / "checkpoints" / "last").read_text()


def assert_same_end(one: Path, two: Path, tolerance: float) -> None:
    assert last(one).name == last(two).name
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = (safetensors.torch.load_file(last(run) / name) for run in (one, two))
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert (value - theirs[key]).abs().max() <= tolerance, key


def figures(run: Path) -> list[list[float]]:
    keys = ("step", "epoch", "elbo", "rate", "distortion", "kl_weight", "active_units", "lr")
    return [[record[key] for key in keys] for record in read_records(run / "metrics.jsonl")]


@pytest.mark.parametrize(
    ("groups", "parts"),
    [(K0, 1), (K2, 2), (dict(K0, batches=dict(tokens=25)), 1)],
    ids=["plain, against the whole batch", "everything, against two parts", "some steps of one turn"],
)
def test_two_are_one(corpus: Corpus, tmp_path: Path, groups: dict[str, Any], parts: int) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    train(run_config(groups, accumulate=parts), corpus, one, quiet=True)
    both = Two(arguments(run_config(groups), corpus, two), said=tmp_path / "said")
    assert both.end() == [0, 0], both.words()
    assert_same_end(one, two, 1e-5)
    found = figures(two)
    assert len(found) == 12 + 3
    for ours, theirs in zip(figures(one), found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    kept, others = (json.loads((last(run) / "trainer.json").read_bytes())["active"] for run in (two, one))
    assert kept["turns"] == others["turns"] > 0  # of the steps since the last line
    assert kept["mean"] == pytest.approx(others["mean"], rel=1e-4, abs=1e-5)
    assert kept["square"] == pytest.approx(others["square"], rel=1e-3)
    assert both.words()[0].startswith("ended at step 50 of 50. Validation: ")
    assert both.words()[1] == ""
    assert check_folder(last(two)) == ""
    assert not (two / "lock").exists()


@pytest.mark.parametrize(("number", "code", "rank"), [(signal.SIGTERM, 143, 1), (signal.SIGINT, 130, 0)])
def test_a_signal_to_one_stops_both_at_the_same_step(
    corpus: Corpus, tmp_path: Path, number: signal.Signals, code: int, rank: int
) -> None:
    """What one alone then makes of it is what it would have made of all."""
    run = tmp_path / "run"
    both = Two(arguments(run_config(K2, max_steps=100_000), corpus, run), said=tmp_path / "said")
    both.wait_for(run / "checkpoints" / "last")
    pid = both.all[rank].pid
    assert pid
    os.kill(pid, number)
    assert both.end() == [code, code], both.words()
    assert f"stopped by signal {number:d}; saved {last(run)}." in both.words()[0]
    assert both.words()[1] == ""
    steps = int(last(run).name.removeprefix("step-")) + 20
    train(run_config(K2, max_steps=steps, accumulate=2), corpus, tmp_path / "one", quiet=True)
    train(run_config(K2, max_steps=steps, accumulate=2), corpus, run, resume=True, quiet=True)
    assert_same_end(tmp_path / "one", run, 1e-4)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_is_killed_ends_the_other_and_spoils_nothing(corpus: Corpus, tmp_path: Path, rank: int) -> None:
    run = tmp_path / "run"
    both = Two(arguments(run_config(K2, max_steps=100_000), corpus, run), said=tmp_path / "said")
    both.wait_for(run / "checkpoints" / "last")
    both.all[rank].kill()
    assert both.end() == ([-9, 1] if rank == 0 else [1, -9]), both.words()
    who = "process 1: " if rank == 0 else ""
    assert both.words()[1 - rank] == f"vrae: {who}another process has ended or cannot be reached, so this one cannot go on\n"
    assert check_folder(last(run)) == ""
    steps = int(last(run).name.removeprefix("step-")) + 1
    assert train(run_config(K2, max_steps=steps), corpus, run, resume=True, quiet=True).step == steps


def test_running_moments_are_the_mean_of_both(corpus: Corpus, tmp_path: Path) -> None:
    """Of one process they are those of its parts one after the other: near, not the same. All else is."""
    groups = dict(K0, model=dict(dropout=0.0, batch_norm_scale=0.5))
    train(run_config(groups, accumulate=2, max_steps=80), corpus, tmp_path / "one", quiet=True)
    both = Two(arguments(run_config(groups, max_steps=80), corpus, tmp_path / "two"), said=tmp_path / "said")
    assert both.end() == [0, 0], both.words()
    ours, theirs = (safetensors.torch.load_file(last(tmp_path / name) / "model.safetensors") for name in ("one", "two"))
    for key, value in ours.items():
        if key.endswith((".mean_Z", ".variance_Z")):
            assert 0 < (value - theirs[key]).abs().max() < 0.3 * value.abs().max(), key
        else:
            assert (value - theirs[key]).abs().max() <= 1e-5, key


def test_what_the_first_refuses_is_said_once(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("chapter 1")
    both = Two(arguments(run_config(K0), corpus, tmp_path / "run"), said=tmp_path / "said")
    assert both.end() == [2, 2]
    assert both.words()[0].startswith(f"vrae: --out {tmp_path / 'run'}: not empty.")
    assert both.words()[1] == ""


def test_processes_that_were_started_with_different_settings_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    commands = [arguments(run_config(K0, seed=seed), corpus, tmp_path / "run") for seed in (1, 1)]
    both = Two(commands[0], [*commands[1], "--train.seed=2"], said=tmp_path / "said")
    assert both.end() == [2, 2]
    assert "process 1 has another configuration than process 0" in both.words()[0]


@pytest.mark.slow
def test_torchrun_starts_all_again_where_one_is_killed(corpus: Corpus, tmp_path: Path) -> None:
    """Three times, and what comes of it is what comes of a run that nobody disturbs, bit for bit."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max_restarts=3"]
    config = run_config(K2, max_steps=300)
    process = subprocess.Popen(
        [*launch, "-m", "vrae", *arguments(config, corpus, run), "--resume"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        reached, gone = "", set[int]()
        for rank in (0, 1, 0):
            deadline = time.monotonic() + 120
            while not (run / "checkpoints" / "last").exists() or last(run).name == reached:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.001)
            reached = last(run).name
            children = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
            workers = sorted(set(children) - gone)
            assert len(workers) == 2
            gone.update(workers)
            os.kill(workers[rank], signal.SIGKILL)
        said = process.communicate(timeout=200)[0]
    finally:
        process.terminate()  # its workers too
        process.communicate()
    assert process.returncode == 0, said
    assert said.count("exitcode: -9") == 3
    both = Two(arguments(config, corpus, whole), said=tmp_path / "said")
    assert both.end() == [0, 0], both.words()
    assert_same_end(whole, run, 0.0)
    assert figures(whole) == figures(run)
