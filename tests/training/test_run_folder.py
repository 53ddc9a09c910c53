"""One process at a time trains in a folder, whatever became of those before; what is not a run is left alone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY

from vrae.config import BatchConfig, ModelConfig, RunConfig, TrainConfig
from vrae.corpus.prepared import Corpus
from vrae.errors import UserError
from vrae.training.run_folder import fit_to_corpus, open_run
from vrae.training.trainer import train

ENDLESS = 1_000_000


def run_config(max_steps: int) -> RunConfig:
    """Steps of a few milliseconds."""
    options = dict(max_steps=max_steps, validate_every=ENDLESS, checkpoint_every=5, validation_turns=8, log_every=1)
    return RunConfig(
        model=ModelConfig(**{**TINY, "vocab_size": 0}),
        batches=BatchConfig(tokens=128, max_turn_tokens=24),
        train=TrainConfig(**options, precision="fp32", device="cpu", threads=1),
    )


@contextlib.contextmanager
def training(corpus: Corpus, run: Path, before: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that trains in `run` and has saved; `before` is Python that it runs first."""
    config = run.with_name("config.yaml")
    config.write_text(json.dumps(dataclasses.asdict(run_config(ENDLESS))))  # JSON is YAML
    program = f"import sys\nfrom vrae.apps.cli import main\n{before}\nsys.exit(main(sys.argv[1:]))"
    arguments = ["train", "--config", str(config), "--data", str(corpus.path), "--out", str(run), "--quiet"]
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stderr=subprocess.PIPE, text=True)
    try:
        wait(lambda: (run / "checkpoints" / "last").is_file(), process)
        yield process
    finally:
        process.kill()
        process.communicate()


def wait(happened: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)


def last(run: Path) -> int:
    """The step of the newest checkpoint."""
    return int((run / "checkpoints" / "last").read_text().removeprefix("step-"))


class TestLock:
    def test_refuses_a_second_process_and_dies_with_the_first(self, corpus: Corpus, tmp_path: Path) -> None:
        run = tmp_path / "run"
        with training(corpus, run) as process:
            message = f"--out {run}: process {process.pid} on {platform.node()} is training in it. Wait until it ends"
            for resume in (False, True):
                with pytest.raises(UserError) as caught:
                    train(run_config(ENDLESS), corpus, run, resume=resume, quiet=True)
                assert str(caught.value).startswith(message)
                assert "\n" not in str(caught.value)
            process.send_signal(signal.SIGSTOP)  # asleep is not dead
            with pytest.raises(UserError, match="is training in it"):
                train(run_config(ENDLESS), corpus, run, resume=True, quiet=True)
            process.kill()
            process.wait()
        assert (run / "lock").read_text() == f"process {process.pid} on {platform.node()}"
        steps = last(run) + 3
        assert train(run_config(steps), corpus, run, resume=True, quiet=True).step == steps
        assert not (run / "lock").exists()

    @pytest.mark.parametrize("fault", [ZeroDivisionError, KeyboardInterrupt, None])
    def test_ends_with_the_run(self, corpus: Corpus, tmp_path: Path, fault: type[BaseException] | None) -> None:
        config = fit_to_corpus(run_config(1), corpus)
        with contextlib.suppress(ZeroDivisionError, KeyboardInterrupt), open_run(config, corpus, tmp_path, **NEW):
            assert (tmp_path / "lock").is_file()
            with pytest.raises(UserError, match=f"process {os.getpid()} on"), open_run(config, corpus, tmp_path, **RESUMED):
                pass
            if fault:
                raise fault
        assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
        with open_run(config, corpus, tmp_path, **RESUMED):
            pass

    def test_that_its_holder_removes_at_that_moment_is_taken_anew(
        self, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between opening and locking: the file that is locked then has no name, and would stop nobody."""
        import fcntl

        config, real, calls = fit_to_corpus(run_config(1), corpus), fcntl.flock, []

        def flock(file: int, how: int) -> None:
            if not calls:
                (tmp_path / "lock").unlink()
            calls.append(file)
            real(file, how)

        monkeypatch.setattr(fcntl, "flock", flock)
        with open_run(config, corpus, tmp_path, **NEW):
            assert len(calls) == 2
            with pytest.raises(UserError, match="is training in it"), open_run(config, corpus, tmp_path, **RESUMED):
                pass

    def test_is_left_out_where_the_file_system_has_none(
        self, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def flock(file: int, how: int) -> None:
            raise OSError(37, "No locks available")

        monkeypatch.setattr("fcntl.flock", flock)
        assert train(run_config(1), corpus, tmp_path / "run", quiet=True).step == 1

    def test_is_left_out_where_the_system_has_none(
        self, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "fcntl", None)
        with open_run(fit_to_corpus(run_config(1), corpus), corpus, tmp_path, **NEW):
            assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


NEW: dict[str, bool] = dict(resume=False, overwrite=False)
RESUMED: dict[str, bool] = dict(resume=True, overwrite=False)


class TestFolder:
    def test_of_a_process_killed_before_it_began_counts_as_empty(self, corpus: Corpus, tmp_path: Path) -> None:
        for name in ("lock", ".run.json.tmp-77"):
            (tmp_path / name).write_text("half")
        assert train(run_config(1), corpus, tmp_path, quiet=True).step == 1
        assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "lock"))]

    def test_is_rid_of_what_a_killed_process_left(self, corpus: Corpus, tmp_path: Path) -> None:
        train(run_config(2), corpus, tmp_path, quiet=True)
        checkpoints = tmp_path / "checkpoints"
        for path in (tmp_path / ".metrics.jsonl.tmp-77", checkpoints / ".last.tmp-77"):
            path.write_bytes(b"half")
        (checkpoints / "step-00000002").rename(checkpoints / ".step-00000002.old-77")  # killed while it was replaced
        (checkpoints / ".step-00000002.tmp-77").mkdir()
        assert train(run_config(3), corpus, tmp_path, resume=True, quiet=True).step == 3
        assert not list(tmp_path.rglob(".*"))

    def test_of_others_is_left_as_it_is(self, corpus: Corpus, tmp_path: Path) -> None:
        for name in ("precious", ".precious.tmp-77"):
            (tmp_path / name).write_bytes(b"mine")
        with pytest.raises(UserError, match="not empty"):
            train(run_config(1), corpus, tmp_path, quiet=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == [".precious.tmp-77", "precious"]

    @pytest.mark.parametrize("missing", ["train.optimizer", "objective.beta"])
    def test_of_a_version_that_knew_fewer_settings_is_not_taken_for_one_of_todays_defaults(
        self, corpus: Corpus, tmp_path: Path, missing: str
    ) -> None:
        train(run_config(2), corpus, tmp_path, quiet=True)
        record = json.loads((tmp_path / "run.json").read_bytes())
        group, name = missing.split(".")
        del record["config"][group][name]
        (tmp_path / "run.json").write_text(json.dumps(record))
        with pytest.raises(UserError, match=rf"another version of vrae: it does not tell {missing}\. Go on with that version"):
            train(run_config(3), corpus, tmp_path, resume=True, quiet=True)

    def test_of_a_record_nested_a_hundred_thousand_deep_is_refused(self, corpus: Corpus, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_text("[" * 100_000)
        with pytest.raises(UserError, match="holds no run"):
            train(run_config(1), corpus, tmp_path, resume=True, quiet=True)


class TestSignals:
    def test_usr1_saves_and_the_process_goes_on(self, corpus: Corpus, tmp_path: Path) -> None:
        run = tmp_path / "run"
        with training(corpus, run) as process:
            seen: set[int] = set()
            deadline = time.monotonic() + 60
            while not any(step % 5 for step in seen):  # the others are due by themselves
                assert time.monotonic() < deadline
                process.send_signal(signal.SIGUSR1)
                time.sleep(0.005)
                with contextlib.suppress(ValueError):
                    seen.add(last(run))
            then = last(run)
            wait(lambda: last(run) > then + 10, process)
            process.send_signal(signal.SIGTERM)
            assert "stopped by signal 15; saved" in process.communicate(timeout=60)[1]
            assert process.returncode == 143

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_second_one_while_it_saves_leaves_at_once(
        self, corpus: Corpus, tmp_path: Path, number: signal.Signals, code: int
    ) -> None:
        """On a disk that takes an hour to sync from the sixth checkpoint on."""
        slow = (
            "import os, pathlib, time\nreal = os.fsync\n"
            "def fsync(file):\n"
            "    here = os.readlink(f'/proc/self/fd/{file}')\n"
            "    time.sleep(3600 if '.step-00000030.' in here else 0)\n"
            "    real(file)\n"
            "os.fsync = fsync"
        )
        run = tmp_path / "run"
        with training(corpus, run, slow) as process:
            wait(lambda: any((run / "checkpoints").glob(".step-00000030.tmp-*")), process)
            process.send_signal(number)
            time.sleep(0.2)
            assert process.poll() is None
            process.send_signal(number)
            said = process.communicate(timeout=20)[1]
        assert (process.returncode, said) == (code, f"vrae: {'interrupted' if code == 130 else 'terminated'}\n")
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["last", "step-00000020", "step-00000025"]
        assert not (run / "lock").exists()
        assert train(run_config(26), corpus, run, resume=True, quiet=True).step == 26
