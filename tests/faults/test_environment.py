"""What surrounds a process and goes wrong: signals, full disks, odd paths, missing variables, no network, no terminal.

Through the command line as a user starts it. What waits for torch is marked slow.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.processes import PREPARE, SMALLTALK, TRAIN, command, environment, start, vrae, wait_until

from vrae.files import check_folder
from vrae.training.monitor import read_records


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus and a run, made by the commands themselves. Not to be written to."""
    folder = tmp_path_factory.mktemp("environment")
    assert vrae("prepare", SMALLTALK, "--out", folder / "corpus", *PREPARE).returncode == 0
    done = vrae("train", "--data", folder / "corpus", "--out", folder / "run", *TRAIN, "--train.max_steps=4")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text on which a tokenizer trains for a second or more."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=5)) for _ in range(120_000)]
    path = tmp_path_factory.mktemp("large") / "talk.txt"
    path.write_text("".join(" ".join(words[i : i + 9]) + "\n" * (1 + (i % 45 == 36)) for i in range(0, len(words), 9)))
    return path


def one_line(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """The message of a command that failed as it should."""
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("vrae: ")
    return done.stderr.removeprefix("vrae: ").rstrip("\n")


def sound_checkpoints(run: Path) -> list[str]:
    found = sorted((run / "checkpoints").glob("step-*"))
    assert [check_folder(path) for path in found] == [""] * len(found)
    assert not list((run / "checkpoints").glob(".*"))
    return [path.name for path in found]


def limited(size: int) -> Callable[[], None]:
    """A disk on which no file can be larger than `size` bytes: writing more fails with EFBIG."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def can(*arguments: str) -> bool:
    return (
        shutil.which("unshare") is not None
        and subprocess.run(["unshare", *arguments, "true"], capture_output=True).returncode == 0
    )


class TestFullDisk:
    @pytest.mark.slow
    def test_while_a_checkpoint_is_saved_goes_on_and_keeps_the_one_before(self, workspace: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        shutil.copytree(workspace / "run", run)
        before = sound_checkpoints(run)
        again = ["train", "--data", workspace / "corpus", "--out", run, *TRAIN, "--train.max_steps=12", "--resume"]
        size = (run / "checkpoints" / before[-1] / "model.safetensors").stat().st_size
        done = vrae(*again, preexec_fn=limited(size))
        problem = f"--out {run}: cannot write a checkpoint: File too large\n"
        assert done.stderr == "".join(
            [*(f"vrae: warning: step {step}: {problem[:-1]}; going on without\n" for step in (4, 8)), f"vrae: {problem}"]
        )
        assert done.returncode == 2
        assert sound_checkpoints(run) == before
        assert vrae(*again).returncode == 0
        assert "step-00000012" in sound_checkpoints(run)

    @pytest.mark.slow
    def test_while_a_record_is_written_is_said_and_done_without(self, workspace: Path, tmp_path: Path) -> None:
        """The limit is above a checkpoint's size, and below that of the records of so many steps."""
        run = tmp_path / "run"
        often = ["--train.max_steps=500", "--train.log_every=1", "--train.checkpoint_every=500", "--train.validate_every=500"]
        often.append("--objective.bag_of_words=0")  # its optimiser's state would be larger than the records
        size = 3 * (workspace / "run" / "checkpoints" / "step-00000004" / "model.safetensors").stat().st_size
        done = vrae("train", "--data", workspace / "corpus", "--out", run, *TRAIN, *often, preexec_fn=limited(size))
        assert done.returncode == 0
        lines = done.stderr.splitlines()
        assert lines
        for line in lines:
            start = f"vrae: warning: {run / 'metrics.jsonl'}: cannot write: "
            assert re.fullmatch(re.escape(start) + r"(File too large|no room); the line of step \d+ is lost", line)
        kept = [record["step"] for record in read_records(run / "metrics.jsonl") if record["split"] == "train"]
        assert kept == list(range(1, len(kept) + 1))
        assert 0 < len(kept) < 500
        assert sound_checkpoints(run)[-1] == "step-00000500"

    def test_while_preparing_leaves_nothing(self, tmp_path: Path) -> None:
        out = tmp_path / "corpus"
        done = vrae("prepare", SMALLTALK, "--out", out, *PREPARE, preexec_fn=limited(1024))
        assert one_line(done) == f"--out {out}: cannot write: File too large"
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(not can("-rm"), reason="needs a mount namespace")
    def test_in_earnest_leaves_nothing(self, tmp_path: Path) -> None:
        mount = [
            "unshare",
            "-rm",
            "bash",
            "-c",
            'mount -t tmpfs -o size=16k none "$0" && "$@"; code=$?; ls -A "$0"; exit $code',
        ]
        done = vrae("prepare", SMALLTALK, "--out", tmp_path / "corpus", *PREPARE, before=[*mount, str(tmp_path)])
        assert one_line(done) == f"--out {tmp_path / 'corpus'}: cannot write: No space left on device"
        assert done.stdout == ""

    @pytest.mark.slow
    @pytest.mark.parametrize("count", [2, 200], ids=["at the end", "on the way"])
    def test_under_the_output_is_said_in_a_line(self, workspace: Path, tmp_path: Path, count: int) -> None:
        asked = ["sample", "-n", str(count), "--seed", "1", "--model", workspace / "run"]
        with open(tmp_path / "out.txt", "w") as out:
            options = dict(stdout=out, stderr=subprocess.PIPE, capture_output=False, preexec_fn=limited(10))
            assert one_line(vrae(*asked, **options)) == "cannot write the output: File too large"


class TestFolders:
    @pytest.mark.slow
    def test_that_cannot_be_made_are_refused_before_any_work(self, workspace: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        for out in (tmp_path / "file" / "run", Path("/proc/vrae/run")):
            began = ["train", "--data", workspace / "corpus", "--out", out, *TRAIN]
            assert one_line(vrae(*began)).startswith(f"--out {out}: cannot write: ")
            assert one_line(vrae("prepare", SMALLTALK, "--out", out, *PREPARE)).startswith(f"--out {out}: cannot write: ")
        assert (tmp_path / "file").read_text() == "mine"

    @pytest.mark.slow
    @pytest.mark.skipif(not can("-rm"), reason="needs a mount namespace")
    def test_that_are_read_only_are_refused_before_any_work(self, workspace: Path, tmp_path: Path) -> None:
        mount = ["unshare", "-rm", "bash", "-c", 'mount -t tmpfs -o ro none "$0" && exec "$@"', str(tmp_path)]
        for arguments in (
            ["train", "--data", workspace / "corpus", "--out", tmp_path / "run", *TRAIN],
            ["prepare", SMALLTALK, "--out", tmp_path / "run", *PREPARE],
        ):
            found = one_line(vrae(*arguments, before=mount))
            assert found == f"--out {tmp_path / 'run'}: cannot write: Read-only file system"

    @pytest.mark.slow
    def test_with_spaces_and_other_letters_in_their_names_work_in_any_locale(self, tmp_path: Path) -> None:
        """And without HOME; the text has letters beyond ASCII too."""
        folder = tmp_path / "mein naïver Ordner 😀 – здесь"
        folder.mkdir()
        source = folder / "ein gespräch.txt"
        source.write_text(SMALLTALK.read_text(encoding="utf-8") + "\n\nça va ?\ntrès bien 😀\n", encoding="utf-8")
        bare = environment(LANG="C", LC_ALL="C", HOME=None, PYTHONUTF8=None, PYTHONIOENCODING=None, PYTHONCOERCECLOCALE="0")
        made = vrae("prepare", source, "--out", folder / "corpus", *PREPARE, env=bare)
        assert (made.returncode, made.stderr) == (0, "")
        trained = vrae("train", "--data", folder / "corpus", "--out", folder / "run", *TRAIN, "--train.max_steps=4", env=bare)
        assert (trained.returncode, trained.stderr) == (0, "")
        asked = ["reconstruct", "très naïf 😀", "--json", "--model", folder / "run"]
        said = vrae(*asked, env=bare)
        assert (said.returncode, said.stderr) == (0, "")
        assert json.loads(said.stdout)["text"] == "très naïf 😀"

    @pytest.mark.slow
    @pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
    def test_output_that_the_terminal_has_no_letters_for_is_no_error(self, workspace: Path, encoding: str) -> None:
        poor = environment(PYTHONIOENCODING=encoding)
        asked = ["score", "très naïf 😀 – здесь", "--model", workspace / "run", "--k", "2"]
        said = vrae(*asked, env=poor, encoding=encoding)
        assert (said.returncode, said.stderr) == (0, "")
        assert "\\U0001f600" in said.stdout
        said = vrae(*asked, "--json", env=poor, encoding=encoding)
        assert json.loads(said.stdout)["text"] == "très naïf 😀 – здесь"


class TestSurroundings:
    @pytest.mark.slow
    @pytest.mark.skipif(not can("-rn"), reason="needs a network namespace")
    def test_without_network_the_main_jobs_work(self, tmp_path: Path) -> None:
        alone = ["unshare", "-rn"]
        online = environment(HF_HUB_OFFLINE=None)
        assert vrae("prepare", SMALLTALK, "--out", tmp_path / "corpus", *PREPARE, before=alone, env=online).returncode == 0
        begun = ["train", "--data", tmp_path / "corpus", "--out", tmp_path / "run", *TRAIN, "--train.max_steps=4"]
        assert vrae(*begun, before=alone, env=online).returncode == 0
        assert vrae("sample", "-n", "2", "--model", tmp_path / "run", before=alone, env=online).stdout.count("\n") == 2

    @pytest.mark.slow
    @pytest.mark.skipif(not can("-rn"), reason="needs a network namespace")
    def test_without_network_the_demo_works(self, tmp_path: Path) -> None:
        small = ["--model.hidden_size=16", "--model.embedding_size=16", "--train.threads=1", "--train.validation_turns=50"]
        given = ["demo", "--minutes", "0.02", "--out", tmp_path / "demo", *small]
        done = vrae(*given, before=["unshare", "-rn"], env=environment(HF_HUB_OFFLINE=None))
        assert done.returncode == 0, done.stderr
        assert "[3/3] what the model does" in done.stdout

    @pytest.mark.slow
    def test_without_a_terminal_there_is_no_bar_and_with_one_there_is(self, workspace: Path, tmp_path: Path) -> None:
        loud = [option for option in TRAIN if option != "--quiet"]
        begun = ["train", "--data", workspace / "corpus", *loud, "--train.max_steps=4", "--out"]
        plain = vrae(*begun, tmp_path / "plain")
        assert plain.returncode == 0
        assert "\r" not in plain.stderr
        assert "\x1b" not in plain.stderr
        lines = [json.loads(line) for line in plain.stderr.splitlines()]
        assert [line["step"] for line in lines if line.get("split") == "validation"] == [4]
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        process = subprocess.Popen(
            command(*begun, tmp_path / "shown"), env=environment(), stdout=subprocess.DEVNULL, stderr=slave
        )
        os.close(slave)
        shown = b""
        try:
            while part := os.read(master, 4096):
                shown += part
        except OSError:  # EIO: the other end is closed
            pass
        os.close(master)
        assert process.wait(60) == 0
        assert b"/4 [" in shown

    @pytest.mark.slow
    @pytest.mark.parametrize("arguments", [["sample", "-n", "3"], ["sample", "-n", "300", "--json"], ["info"]])
    def test_a_closed_pipe_ends_quietly(self, workspace: Path, arguments: list[str]) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        options = dict(stdout=writer, stderr=subprocess.PIPE, capture_output=False)
        done = vrae(*arguments, "--model", workspace / "run", **options)
        os.close(writer)
        assert (done.returncode, done.stderr) == (141, "")

    @pytest.mark.slow
    def test_a_gpu_that_is_not_there_is_refused_in_a_line(self, workspace: Path, tmp_path: Path) -> None:
        hidden = environment(CUDA_VISIBLE_DEVICES="")
        begun = ["train", "--data", workspace / "corpus", "--out", tmp_path / "run", *TRAIN, "--train.device=cuda"]
        assert one_line(vrae(*begun, env=hidden)) == "device 'cuda': torch sees 0 GPUs here"
        assert not (tmp_path / "run").exists()
        asked = ["sample", "--model", workspace / "run", "--device", "cuda"]
        assert one_line(vrae(*asked, env=hidden)) == "device 'cuda': torch sees 0 GPUs here"

    @pytest.mark.slow
    def test_a_clock_that_is_set_back_while_training_is_not_noticed(self, workspace: Path, tmp_path: Path) -> None:
        """The wall clock steps back a day with every look at it; only the monotonic one may count."""
        code = (
            "import sys, time\nnow = time.time()\n"
            "def back():\n    global now\n    now -= 86400\n    return now\n"
            "time.time = back\nfrom vrae.apps.cli import main\nsys.exit(main(sys.argv[1:]))"
        )
        run = tmp_path / "run"
        given = ["train", "--data", workspace / "corpus", "--out", run, *TRAIN, "--train.max_steps=4", "--train.max_minutes=1"]
        done = subprocess.run([sys.executable, "-c", code, *map(str, given)], env=environment(), capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        state = json.loads((run / "checkpoints" / "step-00000004" / "trainer.json").read_bytes())
        assert 0 < state["minutes"] < 1
        same = "checkpoints/step-00000004/model.safetensors"
        assert (run / same).read_bytes() == (workspace / "run" / same).read_bytes()


class TestSignals:
    def begin(self, workspace: Path, run: Path, *more: str) -> subprocess.Popen[str]:
        process = start("train", "--data", workspace / "corpus", "--out", run, *TRAIN, "--train.max_steps=100000", *more)
        assert wait_until(lambda: (run / "checkpoints" / "last").exists(), process)
        return process

    @pytest.mark.slow
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_the_first_saves(self, workspace: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
        process = self.begin(workspace, tmp_path / "run")
        process.send_signal(number)
        said = process.communicate(timeout=30)[1]
        assert process.returncode == code
        assert said.count("\n") == 1
        newest = sound_checkpoints(tmp_path / "run")[-1]
        assert f"stopped by signal {number:d}; saved {tmp_path / 'run' / 'checkpoints' / newest}" in said

    @pytest.mark.slow
    def test_one_in_a_validation_breaks_it_off_and_saves(self, large: Path, tmp_path: Path) -> None:
        """Of a model so wide that the validation takes many seconds."""
        corpus, run = tmp_path / "corpus", tmp_path / "run"
        assert vrae("prepare", large, "--out", corpus, *PREPARE).returncode == 0
        often = ["--model.hidden_size=512", "--train.log_every=1", "--train.validate_every=1", "--train.validation_turns=0"]
        process = start("train", "--data", corpus, "--out", run, *TRAIN, *often)
        assert wait_until(lambda: (run / "metrics.jsonl").exists() and b"\n" in (run / "metrics.jsonl").read_bytes(), process)
        time.sleep(1)  # step 1 is on record, its validation under way
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        said = process.communicate(timeout=60)[1]
        assert time.monotonic() - began < 10
        assert process.returncode == 143
        assert f"stopped by signal 15; saved {run / 'checkpoints' / 'step-00000001'}" in said
        assert b"validation" not in (run / "metrics.jsonl").read_bytes()
        assert sound_checkpoints(run) == ["step-00000001"]

    @pytest.mark.slow
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_the_second_leaves_at_once(self, large: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
        """In the middle of a step of many seconds, which is not finished."""
        corpus, run, loud = tmp_path / "corpus", tmp_path / "run", [option for option in TRAIN if option != "--quiet"]
        assert vrae("prepare", large, "--out", corpus, *PREPARE).returncode == 0
        slow = [*loud, "--batches.tokens=30000", "--model.hidden_size=256", "--train.accumulate=100"]
        assert vrae("train", "--data", corpus, "--out", run, *slow, "--train.max_steps=1").returncode == 0
        before = sound_checkpoints(run)
        process = start("train", "--data", corpus, "--out", run, *slow, "--resume")
        assert process.stderr is not None
        assert "parameters on cpu" in process.stderr.readline()  # the first step begins
        time.sleep(0.3)
        process.send_signal(number)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(number)
        began = time.monotonic()
        said = process.communicate(timeout=60)[1]
        assert time.monotonic() - began < 10
        assert (process.returncode, said) == (code, f"vrae: {'interrupted' if code == 130 else 'terminated'}\n")
        assert sound_checkpoints(run) == before

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    @pytest.mark.parametrize("processes", ["1", "2"])
    def test_end_preparing_at_once_and_leave_nothing(
        self, large: Path, tmp_path: Path, number: signal.Signals, code: int, processes: str
    ) -> None:
        """One process while SentencePiece trains, two while they encode; a terminal sends Ctrl-C to all of them."""
        process = start("prepare", large, "--out", tmp_path / "corpus", "--vocab_size=4000", "--num_proc", processes)
        begun = "train.jsonl" if processes == "1" else "train.tokens.bin"
        assert wait_until(lambda: (tmp_path / ".corpus.tmp" / begun).exists(), process)
        if processes == "1":
            time.sleep(0.3)  # the file is written, the training begun
        os.killpg(process.pid, number)
        began = time.monotonic()
        said = process.communicate(timeout=30)[1]
        assert time.monotonic() - began < 5
        assert (process.returncode, said) == (code, f"vrae: {'interrupted' if code == 130 else 'terminated'}\n")
        assert list(tmp_path.iterdir()) == []

    def test_that_kill_one_of_the_processes_that_encode_end_preparing(self, large: Path, tmp_path: Path) -> None:
        process = start("prepare", large, "--out", tmp_path / "corpus", *PREPARE, "--num_proc=2")
        assert wait_until(lambda: (tmp_path / ".corpus.tmp" / "train.tokens.bin").exists(), process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        encoding = "multiprocessing.spawn"
        assert wait_until(lambda: any(encoding in _command_line(child) for child in children.read_text().split()), process)
        child = next(child for child in children.read_text().split() if encoding in _command_line(child))
        os.kill(int(child), signal.SIGKILL)
        problem = "a process that encodes text was killed, perhaps for lack of memory. Lower it, or leave it out"
        assert process.communicate(timeout=30)[1] == f"vrae: --num_proc 2: {problem}\n"
        assert process.returncode == 1
        assert list(tmp_path.iterdir()) == []


def _command_line(process: str) -> str:
    return Path(f"/proc/{process}/cmdline").read_bytes().decode().replace("\0", " ")
