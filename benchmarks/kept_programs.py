"""What oneDNN keeps: processor seconds of a training step, and the memory of the process, by how many programs it may keep.

    vrae prepare chitchat --out corpora/chitchat
    python benchmarks/kept_programs.py --data corpora/chitchat

For each shape of a product in bf16 oneDNN writes a program, and keeps the last so many, with their working memory; `vrae` says
128 (`vrae/apps/cli.py`), oneDNN and torch 1,024 each. Each line is a process of its own; the median of the second half of the
steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from vrae.apps.cli import KEPT_PROGRAMS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a prepared corpus")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--context_turns", type=int, default=0)
    parser.add_argument("--kept", type=int, nargs="+", default=[1024, 256, 128, 64])
    parser.add_argument("--measure", action="store_true", help="print the figures of this process")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.data, options.steps, options.context_turns)))
        return
    print("| kept | seconds | MB |\n|---|---:|---:|")
    arguments = ["--measure", "--data", options.data, "--steps", str(options.steps)]
    arguments += ["--context_turns", str(options.context_turns)]
    for kept in options.kept:
        environment = {**os.environ, **dict.fromkeys(KEPT_PROGRAMS, str(kept))}
        done = subprocess.run(
            [sys.executable, __file__, *arguments], env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        seconds, megabytes = json.loads(done.stdout)
        print(f"| {kept:,} | {seconds:.3f} | {megabytes:,} |", flush=True)


def measure(data: str, steps: int, context_turns: int) -> tuple[float, int]:
    """Processor seconds of a step on one thread, and the resident MB of the process after the last."""
    import torch

    from vrae.apps.bench import Step
    from vrae.config import BatchConfig, ModelConfig, RunConfig
    from vrae.corpus.prepared import Corpus

    torch.set_num_threads(1)
    sizes = ModelConfig(context_turns=context_turns)
    step = Step(RunConfig(model=sizes, batches=BatchConfig(max_turn_tokens=32)), Corpus(data))
    seconds = []
    for number in range(steps):
        began = time.process_time()
        step.run(number)
        seconds.append(time.process_time() - began)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return statistics.median(seconds[steps // 2 :]), pages * os.sysconf("SC_PAGE_SIZE") // 2**20


if __name__ == "__main__":
    main()
