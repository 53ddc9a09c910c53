"""Does the cost of a step, of replies and of a corpus grow as what is counted does?

    vrae prepare chitchat --out corpora/chitchat --vocab_size 6000
    python benchmarks/growth.py --data corpora/chitchat --picture docs/growth.png

One size grows while the others stay. Beside time and memory stands a count: the operations of a training step's matrix products
(`vrae.training.cost`), the bytes that are kept for the gradient and of the gradient itself, replies, or turns. A slope is that
of a straight line through the logarithms of the last three points, 1 being growth in proportion; an excess is the measured
slope less that of the count. Above 0, time or memory grows faster than it should. Below, there is a part that stays the same,
or that large products are made at a better rate.

Time is of the CPU in one thread, the median of repeats in turn over the sizes of a curve. Memory is the rise of the resident
set to its peak (Linux). Turns are of random tokens, with the lengths of the corpus, and 4,096 target tokens are learnt from at
once.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from vrae.config import BatchConfig, CleaningConfig, DecodingConfig, ModelConfig, PrepareConfig, ResponseConfig, SourceConfig
from vrae.corpus.batches import TrainingBatches, Window, Windows
from vrae.corpus.prepared import Corpus, Split, prepare
from vrae.generation.responses import respond
from vrae.generation.text_model import TextModel
from vrae.model.vrae import VRAE
from vrae.training.cost import Layer, layers
from vrae.training.hardware import pick_precision

BASE = ModelConfig(vocab_size=6000, embedding_size=256, hidden_size=256, context_size=256, latent_size=32)


class Job(NamedTuple):
    """One point of a curve before it is measured."""

    size: int
    operations: float  # what time should grow with
    numbers: float  # what memory should grow with
    work: Callable[[], object]


class Curve(NamedTuple):
    name: str
    sizes: list[int]
    seconds: list[float]
    operations: list[float]
    mb: list[float]
    numbers: list[float]

    def excess(self, measured: list[float], counted: list[float]) -> float:
        """By how much the slope of what is measured is above that of the count."""
        return slope(self.sizes, measured) - slope(self.sizes, counted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a prepared corpus, for lengths and a tokenizer")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of the training step")
    parser.add_argument("--only", nargs="+", help="some of the curves, by their first word")
    parser.add_argument("--picture", help="a .png to draw")
    parser.add_argument("--json", help="write the figures there too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    corpus = Corpus(options.data)
    bf16 = pick_precision(options.precision, torch.device("cpu")) == "bf16"
    real = np.minimum(np.diff(corpus["train"].turns), 48)

    def step(size: int, lengths: np.ndarray | None = None, tokens: int = 4096, **model: int) -> Job:
        return training_step(size, ModelConfig(**{**vars(BASE), **model}), real if lengths is None else lengths, tokens, bf16)

    with tempfile.TemporaryDirectory() as folder:
        jobs: dict[str, Callable[[], list[Job]]] = {
            "hidden size": lambda: [step(n, hidden_size=n, context_size=n) for n in (128, 256, 512, 1024)],
            "vocabulary": lambda: [step(n, vocab_size=n) for n in (1500, 3000, 6000, 12000, 24000)],
            "length of a turn, of 128 turns": lambda: [step(n, np.full(128, n - 1), 128 * n) for n in (6, 12, 24, 48)],
            "context turns K": lambda: [step(n, context_turns=n) for n in (1, 2, 4, 8, 16)],
            "replies to a context": lambda: [replies(n, corpus) for n in (4, 16, 64, 256)],
            "turns of an epoch, planned": lambda: [plan(n, real) for n in (2**18, 2**20, 2**22)],
            "turns of a text, prepared": lambda: [text(n, corpus, Path(folder)) for n in (10_000, 30_000, 90_000)],
        }
        curves = [measure(name, make(), options.repeats) for name, make in jobs.items() if wanted(name, options.only)]
    for curve in curves:
        print(f"\n{curve.name:>32}{'CPU s':>10}{'count':>10}{'MB':>10}{'count':>10}   (counts relative to the first)")
        for size, seconds, operations, mb, numbers in zip(*curve[1:], strict=True):
            print(
                f"{size:32,}{seconds:10.4g}{operations / curve.operations[0]:10.4g}{mb:10.4g}{numbers / curve.numbers[0]:10.4g}"
            )
        excess = curve.excess(curve.seconds, curve.operations), curve.excess(curve.mb, curve.numbers)
        print(f"{'excess of the slope':>32}{excess[0]:+10.2f}{'':10}{excess[1]:+10.2f}")
    if options.picture:
        draw(curves, Path(options.picture))
    if options.json:
        Path(options.json).write_text(json.dumps([curve._asdict() for curve in curves], indent=2) + "\n")


def wanted(name: str, only: list[str] | None) -> bool:
    return not only or name.split()[0] in only


def slope(sizes: list[int], values: list[float]) -> float:
    """Of the logarithms, over the last three points."""
    return float(np.polyfit(np.log(sizes[-3:]), np.log(np.maximum(values[-3:], 1e-9)), 1)[0])


def measure(name: str, jobs: list[Job], repeats: int) -> Curve:
    """Each job in turn, as often as `repeats`; the first round, which warms up, shows the memory."""
    mb = [peak_mb(job.work) for job in jobs]
    seconds: list[list[float]] = [[] for _ in jobs]
    for _ in range(repeats):
        for times, job in zip(seconds, jobs, strict=True):
            began = time.process_time()
            job.work()
            times.append(time.process_time() - began)
    sizes, operations, numbers = ([job[i] for job in jobs] for i in range(3))
    return Curve(name, sizes, [statistics.median(times) for times in seconds], operations, mb, numbers)


def peak_mb(work: Callable[[], object]) -> float:
    """How far the resident set of this process rises above where it stands."""
    work()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back
    before = resident("VmRSS")
    work()
    return (resident("VmHWM") - before) / 1024


def resident(what: str) -> int:
    """KiB."""
    return int(Path("/proc/self/status").read_text().split(f"{what}:")[1].split()[0])


def training_step(size: int, config: ModelConfig, lengths: np.ndarray, tokens: int, bf16: bool) -> Job:
    """Forward and backward of one batch: the gradient, without the update."""
    torch.manual_seed(0)
    model, K = VRAE(config).train(), config.context_turns
    rng = np.random.default_rng(0)
    drawn = rng.permutation(lengths) if len(lengths) < 1000 else rng.choice(lengths, 20_000)
    turns = np.concatenate([[0], np.cumsum(drawn)])
    ids = rng.integers(4, config.vocab_size, turns[-1]).astype(np.uint16)
    starts = np.arange(0, len(turns), 32).clip(max=len(drawn))
    split = Split("train", ids, turns, np.append(starts[starts < len(drawn)], len(drawn)), np.zeros(len(drawn), np.uint8))
    [(batch, noise_BZ)] = TrainingBatches(split, BatchConfig(tokens=tokens), K, 0, config.latent_size).parts(0)
    found = layers(model, batch)

    def work() -> None:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = -model(batch, noise_BZ).elbo_B.mean()
        loss.backward()  # type: ignore[no-untyped-call]

    parameters = sum(parameter.numel() for parameter in model.parameters())
    kept = sum(bytes_kept(layer, 2 if bf16 else 4) for layer in found)
    return Job(size, sum(layer.operations for layer in found), kept + 4 * parameters, work)


def bytes_kept(layer: Layer, itemsize: int) -> float:
    """For the gradient, of each token: its errors at the output layer, and at a GRU of size H the gates (3 H), the new state
    before its reset, the state after the step, and in the lower precision the one before."""
    if layer.name == "output":
        return itemsize * layer.outputs * sum(layer.rows)
    return (5 * 4 + itemsize) * layer.inputs * sum(layer.rows) if layer.name.endswith(", state") else 0.0


def replies(n: int, corpus: Corpus) -> Job:
    """So many different replies, each scored, by a model without training, whose texts are as long as may be."""
    torch.manual_seed(0)
    config = ModelConfig(**{**vars(BASE), "vocab_size": len(corpus.tokenizer), "context_turns": 1})
    model = TextModel(VRAE(config), corpus.tokenizer, {})
    window = [Window([np.arange(10, 20)], np.zeros(0, np.int64), [0])]
    decoding, responses = DecodingConfig(temperature=1.0, max_tokens=24), ResponseConfig()
    return Job(n, n, n, lambda: respond(model, window, n, seed=1, decoding=decoding, responses=responses))


def plan(turns: int, lengths: np.ndarray) -> Job:
    """From an open corpus to the first batch of an epoch."""
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.choice(lengths, turns))])
    dialogues = np.append(np.arange(0, turns, 16), turns)
    split = Split("train", np.zeros(48, np.uint16), offsets, dialogues, np.zeros(turns, np.uint8))
    return Job(turns, turns, turns, lambda: Windows(split, BatchConfig(tokens=4096), 0).plan(np.random.default_rng(0)))


def text(turns: int, corpus: Corpus, folder: Path) -> Job:
    """`vrae prepare` of a text of the corpus's turns over and over, with the corpus's tokenizer."""
    split, path, out = corpus["train"], folder / f"{turns}.txt", folder / "out"
    dialogues = []
    for start in range(0, turns, 16):
        some = (corpus.tokenizer.decode(split.turn(i % len(split.speakers))) for i in range(start, start + 16))
        dialogues.append("\n".join(line.replace("\n", " ").strip() or "ok" for line in some))
    path.write_text("\n\n".join(dialogues) + "\n", encoding="utf-8")
    tokenizer = str(corpus.path / "tokenizer.model")
    cleaning = CleaningConfig(drop_duplicates=False)
    config = PrepareConfig(source=SourceConfig(source=str(path), layout="turns"), tokenizer=tokenizer, cleaning=cleaning)

    def work() -> None:
        prepare(config, out, quiet=True)
        shutil.rmtree(out)

    return Job(turns, turns, turns, work)


def draw(curves: list[Curve], path: Path) -> None:
    """Time and memory of each curve over the line of its count, which is laid through the last point."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator

    figure, axes = pyplot.subplots(2, len(curves), figsize=(2.5 * len(curves), 5), sharex="col", squeeze=False)
    for column, curve in enumerate(curves):
        rows = (("CPU seconds", curve.seconds, curve.operations), ("MB", curve.mb, curve.numbers))
        for axis, (name, measured, counted) in zip(axes[:, column], rows, strict=True):
            axis.plot(curve.sizes, [value * measured[-1] / counted[-1] for value in counted], "--", color="grey", label="count")
            axis.plot(curve.sizes, measured, "o-", markersize=4, label="measured")
            axis.set(xscale="log", yscale="log", ylabel=name if column == 0 else "")
            axis.text(0.05, 0.9, f"excess {curve.excess(measured, counted):+.2f}", transform=axis.transAxes, fontsize=8)
            axis.tick_params(labelsize=7)
            axis.set_xticks(curve.sizes, [short(size) for size in curve.sizes])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_yticks([measured[0], measured[-1]], [f"{value:.3g}" for value in (measured[0], measured[-1])])
            axis.yaxis.set_minor_locator(NullLocator())
        axes[1, column].set_xlabel(curve.name.replace(", ", ",\n"), fontsize=8)
    axes[0, 0].legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def short(size: int) -> str:
    return f"{size / 1e6:.2g}M" if size >= 1e6 else f"{size / 1e3:.3g}k" if size >= 10_000 else str(size)


if __name__ == "__main__":
    main()
