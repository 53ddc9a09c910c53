"""Pictures: what happened over training. Needs matplotlib (`pip install 'vrae[viz]'`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vrae.errors import UserError
from vrae.training.monitor import read_records

_COLOURS = {"train": "#8aa2b8", "validation": "#b3392f"}


def plot_training(run: str | Path, out: str | Path) -> Path:
    """Draws distortion, rate and kl_weight over the steps of a run into the PNG file `out`.

    Raises:
        UserError: matplotlib is not installed, or the run has no metrics.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("pictures need matplotlib. Run: pip install 'vrae[viz]'") from None
    records = read_records(Path(run) / "metrics.jsonl")
    if not records:
        raise UserError(f"{run}: no metrics.jsonl with records in it, nothing to draw")
    figure = Figure(figsize=(11, 3.4), layout="constrained", dpi=150)
    panels = (
        ("distortion", "distortion, nats per turn"),
        ("rate", "rate, nats per turn"),
        ("kl_weight", "kl_weight"),
    )
    for axes, (key, title) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for split, colour in _COLOURS.items():
            steps, values = _series(records, split, key)
            if key == "kl_weight" and split == "validation":
                continue
            axes.plot(steps, values, color=colour, label=split, marker="o" if split == "validation" else None, ms=3, lw=1.4)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
    figure.axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(out)
    return Path(out)


def _series(records: list[dict[str, Any]], split: str, key: str) -> tuple[list[int], list[float]]:
    chosen = [record for record in records if record["split"] == split]
    return [record["step"] for record in chosen], [record[key] for record in chosen]
