"""Seconds of a training step by the number of threads and how they wait for each other, alone and beside a busy program.

    vrae prepare chitchat --out corpora/chitchat
    python benchmarks/threads.py --data corpora/chitchat

Each line is a process of its own, since OpenMP reads its settings once; the busy program is a loop on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

WAYS: dict[str, tuple[int, dict[str, str]]] = {  # threads, environment
    "as OpenMP waits": (0, {}),
    "GOMP_SPINCOUNT=1000": (0, {"GOMP_SPINCOUNT": "1000"}),
    "OMP_WAIT_POLICY=passive": (0, {"OMP_WAIT_POLICY": "passive"}),
    "one thread": (1, {}),
}
SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a prepared corpus")
    parser.add_argument("--seconds", type=float, default=12, help="of each figure; two steps at least")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--measure", action="store_true", help="print the figure for this process and its environment")
    options = parser.parse_args()
    if options.measure:
        print(seconds_a_step(options.data, options.threads, options.seconds))
        return
    print("| | alone | beside another |\n|---|---:|---:|")
    for name, (threads, environment) in WAYS.items():
        found = []
        for beside in (contextlib.nullcontext(), busy()):
            with beside:
                found.append(measured(options.data, threads or options.threads, options.seconds, environment))
        print(f"| {name} | {found[0]:.2f} | {found[1]:.2f} |", flush=True)


def measured(data: str, threads: int, seconds: float, environment: dict[str, str]) -> float:
    arguments = ["--measure", "--data", data, "--threads", str(threads), "--seconds", str(seconds)]
    clean = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run(
        [sys.executable, __file__, *arguments], env={**clean, **environment}, check=True, capture_output=True, text=True
    )
    return float(done.stdout)


@contextlib.contextmanager
def busy() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def seconds_a_step(data: str, threads: int, seconds: float) -> float:
    """Wall-clock, mean over the steps of so many seconds, two at least."""
    import torch

    from vrae.apps.bench import Step
    from vrae.config import BatchConfig, ModelConfig, RunConfig
    from vrae.corpus.prepared import Corpus

    torch.set_num_threads(threads)
    sizes = ModelConfig(hidden_size=256, context_size=256, context_turns=3)
    step = Step(RunConfig(model=sizes, batches=BatchConfig(tokens=1024, max_turn_tokens=24)), Corpus(data))
    step.run(0)
    began, steps = time.perf_counter(), 0
    while steps < 2 or time.perf_counter() - began < seconds:
        steps += 1
        step.run(steps)
    return (time.perf_counter() - began) / steps


if __name__ == "__main__":
    main()
