"""Pictures: what happened over training, what each latent dimension carries, and how turns lie in the latent space.

Needs matplotlib (`pip install 'vrae[viz]'`). The same figures give the same bytes under one version of it: no pyplot, no clock,
and none of the reader's own matplotlib settings. The colours can be told apart with any kind of eyes.

Shape legend: N turns, Z latent.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vrae.errors import UserError
from vrae.files import write_file
from vrae.training.monitor import read_records

# Okabe & Ito's palette, without its yellow, which is faint on white
BLUE, VERMILION, ORANGE, GREEN, PURPLE, SKY = "#0072b2", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#56b4e9"
GREY = "#8a8a8a"
_STYLE = {
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.15,
    "font.size": 12,
    "axes.titlelocation": "left",
    "axes.titlesize": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}
_NAMED_DIMENSIONS = 40  # with more, their numbers do not fit under the bars


def plot_training(run: str | Path, out: str | Path) -> Path:
    """Draws distortion, rate and kl_weight over the steps of a run into the PNG file `out`.

    Raises:
        UserError: matplotlib is not installed, or the run has no metrics.
    """
    panels = {"distortion": "distortion, nats per turn", "rate": "rate, nats per turn", "kl_weight": "kl_weight"}
    with _picture(out, (12, 3.8)) as figure:
        from matplotlib.ticker import MaxNLocator

        records = read_records(Path(run) / "metrics.jsonl")
        if not records:
            raise UserError(f"{run}: no metrics.jsonl with records in it, nothing to draw")
        for axes, (key, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
            axes.plot(*_series(records, "train", key), color=SKY, lw=1, alpha=0.7, label="training")
            if key != "kl_weight":
                axes.plot(*_series(records, "validation", key), color=VERMILION, marker="o", ms=4, lw=1.8, label="validation")
            axes.set_title(title)
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.set_ylim(bottom=0)
        figure.axes[0].legend()
    return Path(out)


def _series(records: list[dict[str, Any]], split: str, key: str) -> tuple[list[int], list[float]]:
    chosen = [record for record in records if record["split"] == split]
    return [record["step"] for record in chosen], [record[key] for record in chosen]


def plot_rate_per_dimension(rates: Sequence[float], active: Sequence[bool], out: str | Path) -> Path:
    """Draws the rate of each latent dimension, the highest first, into the PNG file `out`; inactive ones are crossed.

    Args:
        rates: [Z] nats per turn.
        active: [Z] whether the dimension counts as active.
        out: the file.

    Raises:
        UserError: matplotlib is not installed, or there is no latent.
    """
    with _picture(out, (10, 4.2)) as figure:
        if not len(rates):
            raise UserError("the model has no latent (model.latent_size is 0): no rate per dimension to draw")
        order = sorted(range(len(rates)), key=lambda dimension: (-rates[dimension], dimension))
        used = [place for place, dimension in enumerate(order) if active[dimension]]
        unused = [place for place, dimension in enumerate(order) if not active[dimension]]
        axes, highest = figure.subplots(), max(*rates, 1e-3)
        axes.bar(used, [rates[order[place]] for place in used], color=BLUE, label=f"active: {len(used)}")
        axes.bar(unused, [rates[order[place]] for place in unused], color=VERMILION)
        crosses = [rates[order[place]] + 0.025 * highest for place in unused]  # bars of no height could not be seen
        axes.scatter(unused, crosses, marker="x", color=VERMILION, label=f"inactive: {len(unused)}")
        axes.set_title(f"rate of each latent dimension: {sum(rates):.1f} nats per turn in all")
        axes.set_ylabel("nats per turn")
        axes.set_xlabel("latent dimension, the highest rate first")
        axes.set_xlim(-0.8, len(order) - 0.2)
        axes.set_ylim(1.08 * min(*rates, 0), 1.08 * highest)  # an estimate of a rate may be below 0
        axes.grid(axis="x", visible=False)
        if len(order) <= _NAMED_DIMENSIONS:
            axes.set_xticks(range(len(order)), [str(dimension) for dimension in order], fontsize=9)
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
    return Path(out)


def plot_latent_map(means_NZ: np.ndarray, attributes: Mapping[str, Sequence[float] | Sequence[str]], out: str | Path) -> Path:
    """Draws turns on the two axes of the latent space along which they differ most, into the PNG file `out`.

    Args:
        means_NZ: posterior means of two turns or more.
        attributes: what the points are coloured by, one panel each: [N] numbers (length in tokens) or [N] words (question,
            statement), under its name.
        out: the file.

    Raises:
        UserError: matplotlib is not installed, there is no latent, or fewer than two turns.
    """
    with _picture(out, (7 * len(attributes), 5.6)) as figure:
        points_N2, shares = principal_components(means_NZ)
        reach = 1.05 * max(float(np.abs(points_N2).max()), 1e-3)
        for axes, (name, values) in zip(figure.subplots(1, len(attributes), squeeze=False)[0], attributes.items(), strict=True):
            assert len(values) == len(points_N2), f"{name}: {len(values)} values for {len(points_N2)} turns"
            size = {"s": min(max(20_000 / len(points_N2), 4.0), 40.0), "linewidths": 0, "alpha": 0.7}
            if all(isinstance(value, str) for value in values):
                _scatter_kinds(axes, points_N2, [str(value) for value in values], name, size)
            else:
                _scatter_numbers(figure, axes, points_N2, np.asarray(values, float), name, size)
            axes.set_title(f"{len(points_N2):,} turns by {name}")
            axes.set_xlabel(f"first principal component ({shares[0]:.1%} of the variance)")
            axes.set_ylabel(f"second ({shares[1]:.1%})")
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    return Path(out)


def _scatter_kinds(axes: Any, points_N2: np.ndarray, kinds: list[str], name: str, size: dict[str, float]) -> None:
    colours = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION)
    common = [kind for kind, _ in sorted(Counter(kinds).items(), key=lambda item: (-item[1], item[0]))]
    colour = dict(zip(common, colours, strict=False))
    axes.scatter(*points_N2.T, c=[colour.get(kind, GREY) for kind in kinds], **size)
    for kind, shown in {**colour, **({"other": GREY} if len(common) > len(colours) else {})}.items():
        count = kinds.count(kind) if kind in colour else sum(k not in colour for k in kinds)
        axes.scatter([], [], c=shown, s=40, label=f"{kind} ({count:,})")
    axes.legend(title=name, loc="upper left", bbox_to_anchor=(1, 1), handletextpad=0.1)


def _scatter_numbers(
    figure: Any, axes: Any, points_N2: np.ndarray, values_N: np.ndarray, name: str, size: dict[str, float]
) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    dark = ListedColormap(colormaps["viridis"](np.linspace(0, 0.92, 256)))  # its yellow end is faint on white
    low, high = np.percentile(values_N, (1, 99))
    drawn = axes.scatter(*points_N2.T, c=values_N, cmap=dark, vmin=low, vmax=high, **size)
    ends = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    bar = figure.colorbar(drawn, ax=axes, label=name, extend=ends[bool(values_N.min() < low), bool(values_N.max() > high)])
    bar.solids.set_alpha(1)


def principal_components(means_NZ: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """The two directions of highest variance: coordinates [N, 2] about the mean, and their shares of the variance.

    Of the two signs a direction can have, the one is taken that makes its largest entry positive.
    """
    N, Z = means_NZ.shape
    if N < 2 or not Z:
        raise UserError(f"a map of the latent space needs two turns and a latent. Got {N} turns and {Z} dimensions")
    centred_NZ = means_NZ.astype(np.float64) - means_NZ.mean(0, dtype=np.float64)
    directions_ZZ, variance_Z, _ = np.linalg.svd(centred_NZ.T @ centred_NZ)
    axes_Z2 = directions_ZZ[:, :2]
    axes_Z2 = axes_Z2 * np.sign(axes_Z2[np.abs(axes_Z2).argmax(0), range(axes_Z2.shape[1])])
    points_N2 = np.pad(centred_NZ @ axes_Z2, ((0, 0), (0, 2 - min(Z, 2))))
    shares = np.pad(variance_Z, (0, 1))[:2] / max(variance_Z.sum(), np.finfo(float).tiny)
    return points_N2, (float(shares[0]), float(shares[1]))


@contextmanager
def _picture(out: str | Path, size: tuple[float, float]) -> Iterator[Any]:
    """A figure of `size` inches, stored as PNG when the block ends well."""
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("pictures need matplotlib. Run: pip install 'vrae[viz]'") from None
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=size)
        yield figure
        picture = io.BytesIO()
        figure.savefig(picture, format="png", metadata={"Software": "vrae"})
    try:
        write_file(Path(out), picture.getvalue())
    except OSError as error:
        raise UserError(f"{out}: cannot write the picture: {error.strerror or error}") from None
