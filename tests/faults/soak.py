"""Real processes at work for an hour, watched from outside: memory, open files, threads and disk must not grow.

    python tests/faults/soak.py --minutes 60 --out DIR

Side by side, each on one thread:

    train   one `vrae train` of tiny steps, with frequent checkpoints, validations and samples
    serve   one process that loads a model once and then answers requests of every kind through the Python interface
    read    the command line again and again, on the run that `train` is just writing

DIR/measurements.jsonl has a line per process every few seconds. At the end a line is fitted to the memory of the second half,
and a table is printed. The exit code is 1 where memory or open files grew, a command failed, or a process ended by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import count, cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

if not __package__:  # run as a program
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from faults.processes import PREPARE, SMALLTALK, TRAIN, command, environment, vrae

KEEP_LAST = 2
LONG = [
    *(*TRAIN, "--model.context_turns=1", "--train.max_steps=1000000000", "--train.log_every=50"),
    *("--train.checkpoint_every=50", "--train.validate_every=200", f"--train.keep_last={KEEP_LAST}"),
]
READS = (
    ["sample", "-n", "3"],
    ["respond", "Morning! You look tired.", "-n", "2"],
    ["reconstruct", "Oh no. Coffee?"],
    ["interpolate", "Oh no. Coffee?", "Milk and sugar?"],
    ["score", "Yes please.", "--k", "5"],
    ["encode", "Yes please."],
    ["info"],
)
WARM_SECONDS = 120  # at most, before the clock is started
READ_SECONDS = 30  # between two commands
MOST_GROWTH = 20.0  # MiB an hour


class Line(NamedTuple):
    """A straight line through measurements."""

    slope: float  # per hour
    error: float  # standard error of the slope

    @property
    def least(self) -> float:
        """The lower end of the 95% interval of the slope."""
        return self.slope - 1.96 * self.error


def fit(seconds: Sequence[float], values: Sequence[float]) -> Line:
    """Least squares. The standard error takes the residuals for independent, with n - 2 degrees of freedom.

    Where there are fewer than three different times nothing is known: slope 0, with an infinite error.
    """
    hours, heights = np.asarray(seconds, float) / 3600, np.asarray(values, float)
    if len(set(hours)) < 3:
        return Line(0.0, float("inf"))
    away = hours - hours.mean()
    slope = float(away @ heights / (away @ away))
    residuals = heights - heights.mean() - slope * away
    return Line(slope, float(np.sqrt(residuals @ residuals / (len(hours) - 2) / (away @ away))))


def grew(counts: Sequence[float]) -> bool:
    """Whether the lowest count of the last quarter is above that of the second one; what is open for a moment is not counted.

    The first quarter is left out: a library opens some of its files when it is first used.
    """
    quarter = len(counts) // 4
    return bool(quarter) and min(counts[-quarter:]) > min(counts[quarter : 2 * quarter])


class Process:
    """One process and what was measured of it."""

    def __init__(self, name: str, arguments: list[str], folder: Path) -> None:
        self.name = name
        self.said = folder / f"{name}.log"
        with open(self.said, "wb") as said:
            pipes: dict[str, Any] = dict(stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)
            self._process = subprocess.Popen(arguments, env=environment(), **pipes)
        self.measured: list[dict[str, float]] = []

    def measure(self, seconds: float) -> dict[str, float]:
        """Adds a measurement; raises OSError where the process is no more."""
        proc = Path(f"/proc/{self._process.pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        found = {
            "seconds": round(seconds, 1),
            "rss_mib": int(status["VmRSS"].split()[0]) / 1024,
            "files": len(os.listdir(proc / "fd")),
            "threads": int(status["Threads"]),
        }
        self.measured.append(found)
        return found

    def alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> int:
        """Asks it to end; returns its exit code."""
        self._process.terminate()
        try:
            return self._process.wait(60)
        finally:
            self._process.kill()


def judge(name: str, measured: Sequence[dict[str, float]]) -> tuple[list[str], list[str]]:
    """A process's row of the table, and what is wrong with it."""
    half = measured[len(measured) // 2 :]
    line = fit([found["seconds"] for found in half], [found["rss_mib"] for found in half])
    rss, files, threads = ([found[key] for found in measured] for key in ("rss_mib", "files", "threads"))
    faults = []
    if line.least > MOST_GROWTH:
        faults.append(f"{name}: memory grew by {line.slope:.1f} MiB an hour")
    faults += [f"{name}: {what} grew" for what, counts in (("open files", files), ("threads", threads)) if grew(counts)]
    cells = [
        name,
        f"{measured[-1]['seconds'] / 60:.1f}",
        f"{rss[0]:.1f} / {max(rss):.1f} / {rss[-1]:.1f}",
        f"{line.slope:+.2f} ({line.error:.2f})",
        *(f"{counts[0]} / {max(counts)} / {counts[-1]}" for counts in (files, threads)),
    ]
    return cells, faults


def disk(run: Path) -> dict[str, int]:
    """Bytes below `run`, and how many checkpoints have a name; files may vanish meanwhile."""
    sizes = {"checkpoints": 0, "records": 0, "kept": 0}
    for folder, folders, files in os.walk(run):  # which passes over what it cannot open
        sizes["kept"] += sum(name.startswith("step-") for name in folders)
        for name in files:
            with suppress(OSError):
                sizes["records" if folder == str(run) else "checkpoints"] += (Path(folder) / name).stat().st_size
    return sizes


def last_line(path: Path) -> str:
    """Of a file that another process is writing; empty where it has none."""
    with suppress(OSError), open(path, "rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - 65536, 0))
        whole = file.read().rpartition(b"\n")[0]
        return whole.rpartition(b"\n")[2].decode()
    return ""


def soak(minutes: float, folder: Path, every: float) -> int:
    """Runs it all; returns the exit code."""
    folder.mkdir(parents=True)
    corpus, served, run = folder / "corpus", folder / "served", folder / "run"
    begun = ["train", "--data", corpus, *LONG, "--out"]
    for arguments in (["prepare", SMALLTALK, "--out", corpus, *PREPARE], [*begun, served, "--train.max_steps=200"]):
        done = vrae(*arguments)
        assert done.returncode == 0, done.stderr
    train = Process("train", command(*begun, run), folder)
    serve = Process("serve", [sys.executable, __file__, "--serve", str(served)], folder)
    processes, faults = [train, serve], []
    try:
        deadline = time.monotonic() + WARM_SECONDS
        while not ((run / "checkpoints" / "best").exists() and last_line(serve.said)) and time.monotonic() < deadline:
            time.sleep(0.1)  # until both are at work
        disks, reads, failed = watch(processes, run, minutes * 60, every, folder)
        steps, requests = json.loads(last_line(run / "metrics.jsonl") or "{}").get("step", 0), last_line(serve.said) or "0"
        faults += [f"{process.name}: ended by itself, see {process.said}" for process in processes if not process.alive()]
    finally:
        codes = [process.end() for process in processes]
    faults += [f"train: exit code {codes[0]} after SIGTERM, not 143"] if codes[0] != 143 and not faults else []
    rows = [["process", "minutes", "RSS MiB first/max/last", "MiB an hour (s.e.)", "open files", "threads"]]
    for process in processes:
        cells, wrong = judge(process.name, process.measured)
        rows.append(cells)
        faults += wrong
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    print(f"{steps:,} steps, {requests} rounds of requests; {reads} commands on the run being written, {len(failed)} failed")
    kept = max(found["kept"] for found in disks)
    sizes = [[f"{found[name] / 2**20:.2f}" for found in (disks[0], disks[len(disks) // 2], disks[-1])] for name in disks[0]]
    print(
        f"checkpoints {' / '.join(sizes[0])} MiB at the beginning, half-way and the end, at most {kept} of them at once;",
        end=" ",
    )
    print(f"records of the run {' / '.join(sizes[1])} MiB")
    if kept > KEEP_LAST + 2:  # those, the best, and a new one before the oldest goes
        faults.append(f"{kept} checkpoints at once, of {KEEP_LAST} and the best")
    faults += failed
    print("\n".join(faults) or "nothing grew, nothing failed", flush=True)
    return 1 if faults else 0


def watch(
    processes: list[Process], run: Path, seconds: float, every: float, folder: Path
) -> tuple[list[dict[str, int]], int, list[str]]:
    """Measures until the time is over or a process ends: disk over time, how many commands were run, what failed of them."""
    began, disks, reads, failed = time.monotonic(), [], 0, []
    jobs, measure_at, read_at = cycle(READS), every, min(READ_SECONDS, seconds / 4)
    with open(folder / "measurements.jsonl", "w", encoding="utf-8") as records:
        while (now := time.monotonic() - began) < seconds and all(process.alive() for process in processes):
            if now >= measure_at:
                measure_at += every
                with suppress(OSError):
                    for process in processes:
                        records.write(json.dumps({"process": process.name, **process.measure(now)}) + "\n")
                disks.append(disk(run))
                records.write(json.dumps({"seconds": round(now, 1), **disks[-1]}) + "\n")
                records.flush()
            if now >= read_at:
                read_at, job = now + READ_SECONDS, next(jobs)
                reads += 1
                try:
                    done = vrae(*job, "--model", run)
                except subprocess.TimeoutExpired as error:
                    failed.append(f"vrae {' '.join(job)}: not done after {error.timeout:g} seconds")
                    continue
                if done.returncode or done.stderr:
                    failed.append(f"vrae {' '.join(job)}: exit code {done.returncode}: {done.stderr.strip()}")
            time.sleep(0.1)
    return disks, reads, failed


def serve(model: str) -> None:
    """Answers requests of every kind until it is killed, and prints how many rounds it has done."""
    import torch

    from vrae import load

    torch.set_num_threads(1)
    pipeline, draw = load(model), random.Random(0)
    turns = [line for line in SMALLTALK.read_text(encoding="utf-8").splitlines() if line]
    leak = int(os.environ.get("SOAK_LEAK_KIB", "0")) * 1024  # planted, to see that it is found
    leaked: list[bytes] = []
    for number in count(1):
        a, b, *context = draw.sample(turns, draw.randint(3, 5))
        pipeline.respond(context, draw.randint(1, 4), seed=number)
        list(pipeline.sample(draw.randint(1, 8), seed=number))
        pipeline.interpolate(a, b, draw.randint(2, 7), context=context)
        pipeline.variations(a, 2, seed=number)
        pipeline.reconstruct([a, b], 1, seed=number)
        pipeline.evidence(pipeline.windows([a, b], [context, [b]]), 5, number)
        pipeline.encode([a, b])
        if leak:
            leaked.append(draw.randbytes(leak))
        if number % 10 == 0:
            print(number, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Watches real processes at work for growing memory, files and disk.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, help="a new folder")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two measurements")
    parser.add_argument("--serve", metavar="MODEL", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes end with this one
    return soak(given.minutes, given.out.resolve(), given.every)


if __name__ == "__main__":
    sys.exit(main())
