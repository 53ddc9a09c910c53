"""How fast is text prepared, what memory does a large corpus take, and how long until something happens?

python benchmarks/preparation.py                          about ten minutes; 1.5 GB of disk in --folder, removed at the end
python benchmarks/preparation.py --large 0 --repeats 3    without the large corpus

Turns are drawn from the chitchat messages, in dialogues of 4 to 16, so words and lengths are real and order is not. CPU time is
of whole processes, start and imports included; peak memory is their resident set, mapped files included. A stage is what the
pipeline takes up to it less what it takes up to the one before.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from cold_start import VRAE, run, starts

from vrae.config import BatchConfig, CleaningConfig, PrepareConfig, SourceConfig
from vrae.corpus.cleaning import Cleaner
from vrae.corpus.sources import ChitchatSource, FileSource
from vrae.corpus.tokenizer import train_tokenizer

STAGES = ("start", "read", "layout", "clean", "tokenizer", "split, encode, write")
BATCHES = 1000  # of the large corpus, that are drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=400_000, help="of the corpus whose stages are timed")
    parser.add_argument("--large", type=int, default=10_000_000, help="turns of the corpus whose memory is measured; 0: none")
    parser.add_argument("--repeats", type=int, default=5, help="of each start")
    parser.add_argument("--folder", help="for temporary files")
    parser.add_argument("--json", help="write the figures there too")
    parser.add_argument("--draw", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.draw:
        print(json.dumps(draw(options.draw[0], int(options.draw[1]))))
        return

    figures: dict[str, Any] = {"turns": options.turns, "cpu": os.cpu_count()}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, small = Path(name), Path(name, "corpus")
        write(folder, options.turns, ".txt", ".jsonl")
        for suffix in (".txt", ".jsonl"):
            figures[suffix] = speed(folder / f"talk{suffix}", small)
        if options.large:
            needed = 150 * options.large
            if shutil.disk_usage(folder).free < needed:
                parser.error(f"--large {options.large}: needs {needed / 1e9:.1f} GB in {folder}")
            shutil.rmtree(small)
            write(folder, options.large, ".txt")
            _, prepared = run(*VRAE, "prepare", folder / "talk.txt", "--out", small, "--overwrite")
            (folder / "talk.txt").unlink()
            figures["large"] = {"turns": options.large, "prepare": prepared}
            for context_turns in (0, 3):
                output, process = run(sys.executable, __file__, "--draw", small, context_turns)
                figures["large"][f"epoch, K = {context_turns}"] = {**process, **json.loads(output)}
            print("\nlarge corpus", json.dumps(figures["large"], indent=2))
        figures["start"] = starts(small, folder, options.repeats)
    print("\nstarts, median:", json.dumps(figures["start"], indent=2))
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")


def write(folder: Path, turns: int, *suffixes: str) -> None:
    """talk.txt, talk.jsonl: that many turns, drawn from the messages of chitchat."""
    messages = [" ".join(message.split()) for dialogue in ChitchatSource() for message in dialogue.turns if message.strip()]
    rng = np.random.default_rng(0)
    files = {suffix: open(folder / f"talk{suffix}", "w", encoding="utf-8") for suffix in suffixes}  # noqa: SIM115
    while turns > 0:
        dialogue = [messages[i] for i in rng.integers(len(messages), size=min(int(rng.integers(4, 17)), turns))]
        turns -= len(dialogue)
        for suffix, file in files.items():
            row = json.dumps({"turns": dialogue}, ensure_ascii=False) if suffix == ".jsonl" else "\n".join((*dialogue, ""))
            file.write(row + "\n")
    for file in files.values():
        file.close()


def speed(source: Path, out: Path) -> dict[str, float]:
    """`vrae prepare` from end to end, and how its time divides."""
    _, whole = run(*VRAE, "prepare", source, "--out", out, "--overwrite")
    _, empty = run(sys.executable, "-c", "import vrae.apps.cli, vrae.corpus.prepared")
    turns = sum(split["turns"] for split in json.loads((out / "manifest.json").read_bytes())["splits"].values())
    config = PrepareConfig(source=SourceConfig(source=str(source)))
    kept: list[str] = []

    def clean() -> None:
        kept.clear()
        cleaner = Cleaner(CleaningConfig())
        for dialogue in FileSource(config.source):
            if cleaned := cleaner(dialogue):
                kept.extend(cleaned.turns)

    read = cpu_seconds(lambda: exhaust(next(FileSource(config.source)._parts()).rows))
    laid_out = cpu_seconds(lambda: exhaust(FileSource(config.source)))
    cleaned = cpu_seconds(clean)
    trained = cpu_seconds(lambda: train_tokenizer(kept[: config.tokenizer_turns], config.vocab_size), 1)
    stages = [empty["cpu_seconds"], read, laid_out - read, cleaned - laid_out, trained]
    stages.append(whole["cpu_seconds"] - sum(stages))
    rate = turns / whole["cpu_seconds"]
    print(f"\n{source.name}: {turns:,} turns in {whole['cpu_seconds']:.2f} s of CPU time, {rate:,.0f} turns/s/core")
    for name, seconds in zip(STAGES, stages, strict=True):
        print(f"  {name:22}{seconds:7.2f} s {seconds / whole['cpu_seconds']:6.1%} {1e6 * seconds / turns:7.2f} us a turn")
    return {"turns_per_second_and_core": rate, **whole, **dict(zip(STAGES, stages, strict=True))}


def exhaust(items: Iterable[object]) -> None:
    deque(items, maxlen=0)


def cpu_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The least of some runs."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def draw(folder: str, context_turns: int) -> dict[str, float]:
    """Opens a corpus, plans an epoch and draws batches of it; seconds of each. For a process of its own."""
    start = time.perf_counter()
    from vrae.corpus.batches import TrainingBatches
    from vrae.corpus.prepared import Corpus

    times = {"imports": start}
    times["open"] = time.perf_counter()
    corpus = Corpus(folder)
    times["windows"] = time.perf_counter()
    config = BatchConfig(tokens=4096, word_dropout=0.2, context_dropout=0.1, utterance_dropout=0.1)
    batches = TrainingBatches(corpus["train"], config, context_turns, seed=0, noise_size=32)
    times["plan"] = time.perf_counter()
    batches.windows_of(0)
    times["first batch"] = time.perf_counter()
    batches.parts(0)
    times["batches"] = time.perf_counter()
    for step in np.linspace(0, batches.batches_per_epoch - 1, BATCHES).astype(int).tolist():
        batches.parts(step)
    ends = [*list(times.values())[1:], time.perf_counter()]
    seconds = {name: end - begin for (name, begin), end in zip(times.items(), ends, strict=True)}
    return {"batches_per_epoch": batches.batches_per_epoch, **seconds, "ms_a_batch": 1000 * seconds["batches"] / BATCHES}


if __name__ == "__main__":
    main()
