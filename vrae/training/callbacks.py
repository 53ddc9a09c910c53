"""What others may be told of a run while it goes: the five moments at which a callback is called.

Of several processes the first one's callbacks are called. What they raise ends the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Callback:
    """A base class; each method does nothing until it is overridden. Records are JSON values, but for the array of `latents`.

    docs/logs.md has an example for trackers like wandb and trackio.
    """

    def start(self, run: Path, info: dict[str, Any], step: int) -> None:
        """Before the first step, or after `step` of a run that is resumed. info: its settings, its corpus, versions."""

    def metrics(self, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl: every `train.log_every` steps of the split train, and at each validation."""

    def samples(self, record: dict[str, Any]) -> None:
        """A line of samples.jsonl, {"step", "samples": {kind: [text or [text, text], ..]}}, at each validation."""

    def latents(self, record: dict[str, Any]) -> None:
        """{"step", "texts": [N], "mean_NZ"}: posterior means of validation turns, at the end, where there is a latent."""

    def end(self, reason: str) -> None:
        """The run is over: why, or an empty string where it was broken off."""
