"""How long from a command to the first thing it says: help, a reply, a step of training on a prepared corpus.

    vrae prepare chitchat --out corpora/chitchat
    python benchmarks/cold_start.py --data corpora/chitchat

Medians of whole processes, started in turn: seconds of the clock, and of the CPU, which a busy machine disturbs less. `import
torch` and `python` stand beside them: the floor that the Python program and its library set. The model that replies has the
default size and is not trained.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

VRAE = (sys.executable, "-m", "vrae")
TARGETS = {"vrae --help": 0.5, "vrae respond": 4.0, "vrae train, to the first step": 8.0}  # seconds

Taken = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a prepared corpus")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="for temporary files")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = starts(Path(options.data), Path(folder), options.repeats)
    if options.json:
        print(json.dumps(found))
        return
    for name, taken in found.items():
        target = f"   target {TARGETS[name]:g} s" if name in TARGETS else ""
        print(f"{name:32}{taken['seconds']:7.2f} s, {taken['cpu_seconds']:6.2f} s of CPU time{target}")


def starts(corpus: Path, folder: Path, repeats: int) -> dict[str, Taken]:
    """The medians of each start."""
    model = folder / "model"
    run(*VRAE, "train", "--data", corpus, "--out", model, "--dry_run", "--quiet", "--model.context_turns", 1)
    commands: dict[str, Callable[[], Taken]] = {
        "python": lambda: run(sys.executable, "-c", "")[1],
        "import torch": lambda: run(sys.executable, "-c", "import torch")[1],
        "vrae --help": lambda: run(*VRAE, "--help")[1],
        "vrae respond": lambda: run(*VRAE, "respond", "Hello!", "--model", model / "dry-run")[1],
        "vrae train, to the first step": lambda: first_step(corpus, folder / "run"),
    }
    taken: dict[str, list[Taken]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, start in commands.items():
            taken[name].append(start())
    return {
        name: {key: statistics.median(one[key] for one in some) for key in ("seconds", "cpu_seconds")}
        for name, some in taken.items()
    }


def run(*command: object) -> tuple[str, Taken]:
    """The output of a process, and what it took: seconds of the clock and of the CPU, MB at its peak."""
    start = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    taken = _ended(process, start)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {process.returncode}")
    return output, taken


def first_step(corpus: Path, out: Path) -> Taken:
    """Until the first step is on record; then the process is ended."""
    command = [*VRAE, "train", "--data", corpus, "--out", out, "--quiet", "--train.log_every", "1", "--train.max_steps", "1000"]
    start = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    record = out / "metrics.jsonl"
    while not (record.exists() and record.stat().st_size):
        if process.poll() is not None:
            raise SystemExit(f"{' '.join(map(str, command))}: exit code {process.returncode}")
        time.sleep(0.005)
    seconds = time.perf_counter() - start
    process.kill()
    taken = _ended(process, start)
    shutil.rmtree(out)
    return {**taken, "seconds": seconds}


def _ended(process: subprocess.Popen[str] | subprocess.Popen[bytes], start: float) -> Taken:
    """What a process took that has ended, or is about to."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": peak,
    }


if __name__ == "__main__":
    main()
