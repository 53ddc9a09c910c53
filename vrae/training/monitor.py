"""What a person sees of a training run: the bar, `metrics.jsonl`, samples; and what callbacks are told.

On a terminal there are a bar and lines of text; in the JSON format every line is an object, whose `kind` says what it is.

Steps to look at are in `incidents.jsonl`, a line for each: those skipped because something was not finite, and those whose loss
stood far out.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from vrae.config import DecodingConfig, ResponseConfig
from vrae.corpus.batches import Windows
from vrae.corpus.prepared import Split
from vrae.corpus.tokenizer import Tokenizer
from vrae.distributed import first
from vrae.errors import DivergenceError
from vrae.files import to_json, write_file
from vrae.generation.pipeline import Pipeline
from vrae.generation.text_model import MAX_CHARACTERS
from vrae.training.callbacks import Callback

LogFormat = Literal["auto", "text", "json"]
INCIDENTS = "incidents.jsonl"
_FAR = 6.0  # standard deviations
_MEMORY = 100  # steps
_FEWEST = 50  # steps before any is judged
_BAD_STEPS = 10  # not finite, in a row, that end a run


class Monitor:
    """Writes the run's records. Lines for people go to stderr, above the bar. Of several processes the first one does it alone.

    Args:
        run: the run's folder.
        step: where training starts: records after it, left by an interrupted run, are removed, so that the files read as
            if nothing had happened.
        max_steps: of the bar.
        callbacks: are told what is recorded.
        log_format: of the lines on stderr: `text`, `json`, or `auto`, text on a terminal and JSON elsewhere.
        quiet: no bar and no lines but warnings, and those as text, like errors.
    """

    def __init__(
        self,
        run: Path,
        step: int,
        max_steps: int,
        *,
        callbacks: Sequence[Callback] = (),
        log_format: LogFormat = "text",
        quiet: bool = False,
    ) -> None:
        self.quiet, self.callbacks = quiet or not first(), callbacks if first() else ()
        self.as_json = not quiet and (log_format == "json" or (log_format == "auto" and not sys.stderr.isatty()))
        self._metrics, self._samples, self._incidents = (
            _Records(run / name, step, self.warn) for name in ("metrics.jsonl", "samples.jsonl", INCIDENTS)
        )
        self._bar = tqdm(
            total=max_steps or None,
            initial=step,
            unit="step",
            disable=True if self.quiet or self.as_json else None,
            dynamic_ncols=True,
        )

    def say(self, line: str) -> None:
        """One line for people."""
        if not self.quiet:
            self._bar.write(_line({"kind": "note", "text": line.strip()}).rstrip() if self.as_json else line, file=sys.stderr)

    def warn(self, line: str) -> None:
        """One line for people, whether they asked for quiet or not."""
        if first():
            told = _line({"kind": "warning", "text": line}).rstrip() if self.as_json else f"vrae: warning: {line}"
            self._bar.write(told, file=sys.stderr)

    def _log(self, kind: str, record: dict[str, Any]) -> None:
        """One line for programs, where they are who reads."""
        if self.as_json and not self.quiet:  # quiet: of several processes, all but the first
            self._bar.write(_line({"kind": kind, **record}).rstrip(), file=sys.stderr)

    def expect(self, max_steps: int) -> None:
        """The bar's length is known now."""
        self._bar.total = max_steps
        self._bar.refresh()

    def advance(self) -> None:
        """One step is done."""
        self._bar.update()

    def metrics(self, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl, and the bar's figures."""
        self._metrics.append(record)
        self._log("metrics", record)
        shown = {
            "epoch": f"{record['epoch']:.1f}",
            "distortion": f"{record['distortion']:.1f}",
            "rate": f"{record['rate']:.1f}",
            "active": record["active_units"],
            "tok/s": f"{record['tokens_per_second']:.0f}",
        }
        if record["split"] == "train":
            self._bar.set_postfix({key: value for key, value in shown.items() if value is not None}, refresh=False)
        elif not self.as_json:
            self.say(
                f"step {record['step']:>6}  validation: -elbo {-record['elbo']:.2f} nats/turn = distortion "
                f"{record['distortion']:.2f} + rate {record['rate']:.2f}   active units {record['active_units']}"
            )
        for callback in self.callbacks:
            callback.metrics(record)

    def samples(self, record: dict[str, Any]) -> None:
        """A line of samples.jsonl: {"step", "samples": {kind: [text or [text, text], ..]}}; a few are shown."""
        self._samples.append(record)
        self._log("samples", record)
        for kind, rows in record["samples"].items() if not self.as_json else ():
            for row in rows[:3]:
                self.say(f"    {kind:<15} {row if isinstance(row, str) else '  ->  '.join(row)}")
        for callback in self.callbacks:
            callback.samples(record)

    def incident(self, record: dict[str, Any]) -> None:
        """A line of incidents.jsonl: {"step", "event", "turns": [number in the split, ..], ..}."""
        self._incidents.append(record)

    def close(self) -> None:
        self._bar.close()
        for records in (self._metrics, self._samples, self._incidents):
            records.close()


@dataclass
class LossLevel:
    """The running mean and variance of a run's loss, which tell a spike from noise.

    The newest step counts 1/n while n steps are known, so that these are the plain mean and variance, and 1/100 later. A spike
    enters them as the highest loss that is none: it does not hide the next one, and a rise that lasts is the level before long.
    """

    steps: int = 0
    mean: float = 0.0  # nats per token
    variance: float = 0.0  # their square

    def add(self, loss: float) -> float | None:
        """Takes in a step's loss; returns by how many standard deviations it exceeds the mean where that is a spike."""
        deviation = self.variance**0.5
        limit = self.mean + _FAR * deviation
        spike = (loss - self.mean) / deviation if self.steps >= _FEWEST and loss > limit and deviation else None
        self.steps += 1
        share = max(1 / self.steps, 1 / _MEMORY)
        off = (loss if spike is None else limit) - self.mean
        self.mean += share * off
        self.variance = (1 - share) * (self.variance + share * off**2)
        return spike


class Watch:
    """Looks at every step: puts those of note on record with the turns they learnt from, and ends a run that has diverged.

    Args:
        run: the run's folder.
        monitor: of the run.
        split: what is learnt from.
        tokenizer: its.
        level: of the loss before the first step that is looked at.
    """

    def __init__(self, run: Path, monitor: Monitor, split: Split, tokenizer: Tokenizer, level: LossLevel) -> None:
        self.run, self.monitor, self.split, self.tokenizer, self.level = run, monitor, split, tokenizer, level
        self._bad = 0  # steps in a row that were not finite

    def finite(self, step: int, loss: float, turns: np.ndarray) -> None:
        """After a step with this loss in nats per token, on the turns with these numbers in the split."""
        self._bad = 0
        mean = self.level.mean
        if spike := self.level.add(loss):
            self.monitor.say(
                f"step {step}: loss {loss:.2f} nats/token, {spike:.0f} standard deviations above {mean:.2f}, its mean"
            )
            record = {"step": step, "event": "spike", "loss": loss, "mean": mean, "deviations": spike}
            self.monitor.incident({**record, "turns": turns.tolist()})

    def not_finite(self, step: int, skipped: int, turns: np.ndarray) -> None:
        """After a step that was skipped, the `skipped`-th of the run.

        Raises:
            DivergenceError: it is the tenth in a row. Its batch is in diverged.json.
        """
        self._bad += 1
        self.monitor.say(f"step {step}: loss or gradient not finite, skipped ({skipped} so far)")
        self.monitor.incident({"step": step, "event": "not finite", "turns": turns.tolist()})
        if self._bad < _BAD_STEPS:
            return
        path, ids = self.run / "diverged.json", [self.split.turn(turn) for turn in turns.tolist()]
        batch = zip(turns.tolist(), ids, strict=True)
        texts = [{"turn": turn, "ids": [*map(int, row)], "text": self.tokenizer.decode(row)} for turn, row in batch]
        if first():
            write_file(path, to_json({"step": step, "batch": texts}))
        raise DivergenceError(
            f"{_BAD_STEPS} steps in a row up to step {step} were not finite. The last batch is in {path}, those before in "
            f"{INCIDENTS}. Start a new run (--out) with a lower train.learning_rate or train.clip_norm"
        )


def show(pipeline: Pipeline, windows: Windows) -> dict[str, list[Any]]:
    """A few things a model does with turns of a split, the same inputs and noise each time: samples for `Monitor.samples`."""
    config = pipeline.model.config
    chosen = windows.target_N[:: max(len(windows) // 5, 1)][:5].tolist()
    texts = [pipeline.tokenizer.decode(windows.split.turn(turn))[:MAX_CHARACTERS] for turn in chosen]
    shown: dict[str, list[Any]] = {}
    if config.latent_size:
        shown["reconstruction"] = [[r.text, r.reconstruction] for r in pipeline.reconstruct(texts)]
    if config.context_turns:
        asked = [[text] for text in texts]
        replies = pipeline.respond_many(asked, 2, seed=0, decoding=DecodingConfig(), responses=ResponseConfig())
        shown["reply"] = [[text, *(r.text for r in found)] for text, found in zip(texts, replies, strict=True)]
    shown["sample"] = [s.text for s in pipeline.sample(5, seed=0)]
    return shown


def latent_map(pipeline: Pipeline, windows: Windows, most: int = 1000) -> dict[str, Any]:
    """Texts of an even sample of a split's turns, and their posterior means: `texts` and `mean_NZ` for `Callback.latents`."""
    chosen = windows.target_N[:: max(-(-len(windows) // most), 1)].tolist()
    texts = [pipeline.tokenizer.decode(windows.split.turn(turn))[:MAX_CHARACTERS] for turn in chosen]
    return {"texts": texts, "mean_NZ": pipeline.encode(texts)[0]}


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file of a run; lines cut off by a crash or a full disk are left out."""
    records: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
    return records


class _Records:
    """A .jsonl file that a run appends to: without the lines after `step`. What the disk has no room for is lost, and said."""

    def __init__(self, path: Path, step: int, warn: Callable[[str], None]) -> None:
        self.path, self.warn = path, warn
        self._file: io.FileIO | None = None
        self._whole = True  # what was written so far ends with a line
        if first():
            kept = [record for record in read_records(path) if record["step"] <= step and step > 0]
            write_file(path, "".join(map(_line, kept)).encode())
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (`close` does)

    def append(self, record: dict[str, Any]) -> None:
        if self._file is None:
            return
        line = (b"" if self._whole else b"\n") + _line(record).encode()
        try:
            self._whole = self._file.write(line) == len(line)
            problem = "" if self._whole else "no room"
        except OSError as error:
            problem = error.strerror or str(error)
        if problem:
            self.warn(f"{self.path}: cannot write: {problem}; the line of step {record['step']} is lost")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
