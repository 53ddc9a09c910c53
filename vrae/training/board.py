"""TensorBoard: scalars, the rate of each latent dimension as a histogram, samples as text, the latent map in the projector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vrae.errors import UserError
from vrae.training.callbacks import Callback

FOLDER = "tensorboard"  # in the run's folder


class TensorBoard(Callback):
    """Event files in `run`/tensorboard. Raises UserError where tensorboard is not installed."""

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("--train.tensorboard: not installed. Run: pip install 'vrae[tensorboard]'") from None
        self._writer_of: Any = SummaryWriter
        self._board: Any = None

    def start(self, run: Path, info: dict[str, Any], step: int) -> None:
        self._board = self._writer_of(str(run / FOLDER), purge_step=step + 1 if step else None)

    def metrics(self, record: dict[str, Any]) -> None:
        for key, value in record.items():
            if key not in ("step", "split") and isinstance(value, (int, float)):
                self._board.add_scalar(f"{record['split']}/{key}", value, record["step"])
        if rates := record.get("rate_per_dimension"):
            self._board.add_histogram("rate_per_dimension", np.array(rates), record["step"])

    def samples(self, record: dict[str, Any]) -> None:
        for kind, rows in record["samples"].items():
            texts = [row if isinstance(row, str) else " -> ".join(row) for row in rows]
            self._board.add_text(kind, "\n\n".join(map(_plain, texts)), record["step"])

    def latents(self, record: dict[str, Any]) -> None:
        texts = [" ".join(text.split()) or "(empty)" for text in record["texts"]]
        rows = [[text, str(len(text.split())), "question" if "?" in text else "statement"] for text in texts]
        header = ["text", "words", "kind"]
        self._board.add_embedding(record["mean_NZ"], rows, global_step=record["step"], tag="latent", metadata_header=header)

    def end(self, reason: str) -> None:
        self._board.close()


def _plain(text: str) -> str:
    """Text that Markdown, in which TensorBoard shows it, leaves as it is."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]#|" else letter for letter in text.replace("<", "&lt;"))
