"""What a person sees of a training run: the bar, `metrics.jsonl`, samples, and TensorBoard where asked for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vrae.errors import UserError
from vrae.files import write_file


class Monitor:
    """Writes the run's records. Lines for people go to stderr, above the bar.

    Args:
        run: the run's folder.
        step: where training starts: records after it, left by an interrupted run, are removed, so that the files read as
            if nothing had happened.
        max_steps: of the bar.
        tensorboard: also write event files.
        quiet: no bar and no lines.
    """

    def __init__(self, run: Path, step: int, max_steps: int, *, tensorboard: bool = False, quiet: bool = False) -> None:
        self.quiet = quiet
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise UserError("--train.tensorboard: not installed. Run: pip install 'vrae[tensorboard]'") from None
            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step)
        self._metrics = _reopen(run / "metrics.jsonl", step)
        self._samples = _reopen(run / "samples.jsonl", step)
        self._bar = tqdm(
            total=max_steps or None, initial=step, unit="step", disable=True if quiet else None, dynamic_ncols=True
        )

    def say(self, line: str) -> None:
        """One line for people."""
        if not self.quiet:
            self._bar.write(line, file=sys.stderr)

    def expect(self, max_steps: int) -> None:
        """The bar's length is known now."""
        self._bar.total = max_steps
        self._bar.refresh()

    def advance(self) -> None:
        """One step is done."""
        self._bar.update()

    def metrics(self, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl, and the bar's figures."""
        _append(self._metrics, record)
        shown = {
            "epoch": f"{record['epoch']:.1f}",
            "distortion": f"{record['distortion']:.1f}",
            "rate": f"{record['rate']:.1f}",
            "active": record["active_units"],
            "tok/s": f"{record['tokens_per_second']:.0f}",
        }
        if record["split"] == "train":
            self._bar.set_postfix({key: value for key, value in shown.items() if value is not None}, refresh=False)
        else:
            self.say(
                f"step {record['step']:>6}  validation: -elbo {-record['elbo']:.2f} nats/turn = distortion "
                f"{record['distortion']:.2f} + rate {record['rate']:.2f}   active units {record['active_units']}"
            )
        if self._board:
            for key, value in record.items():
                if key not in ("step", "split") and isinstance(value, (int, float)):
                    self._board.add_scalar(f"{record['split']}/{key}", value, record["step"])

    def samples(self, record: dict[str, Any]) -> None:
        """A line of samples.jsonl: {"step", "samples": {kind: [text or [text, text], ..]}}; a few are shown."""
        _append(self._samples, record)
        for kind, rows in record["samples"].items():
            for row in rows[:3]:
                self.say(f"    {kind:<15} {row if isinstance(row, str) else '  ->  '.join(row)}")
            if self._board:
                text = "\n\n".join(row if isinstance(row, str) else " -> ".join(row) for row in rows)
                self._board.add_text(kind, text, record["step"])

    def close(self) -> None:
        self._bar.close()
        self._metrics.close()
        self._samples.close()
        if self._board:
            self._board.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file of a run; a last line cut off by a crash is left out."""
    records: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_bytes().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


def _reopen(path: Path, step: int) -> Any:
    kept = [record for record in read_records(path) if record["step"] <= step and step > 0]
    write_file(path, "".join(map(_line, kept)).encode())
    return open(path, "a", encoding="utf-8")


def _append(file: Any, record: dict[str, Any]) -> None:
    file.write(_line(record))
    file.flush()


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
