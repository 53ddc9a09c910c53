"""Pictures: what happened over training, what each latent dimension carries, how turns lie in the latent space, and which
way a path between them takes.

Shape legend: N turns, Z latent, S points of a path; 2 is (x, y).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vrae.apps.picture import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    drawable,
    fit,
    measure,
    picture,
    place_labels,
)
from vrae.errors import UserError
from vrae.training.monitor import read_records

_NAMED_DIMENSIONS = 40  # with more, their numbers do not fit under the bars
MAX_PATHS, MAX_POINTS = 8, 24  # of a picture
_MAP_LABELS = 14  # so many at most, unless the ends of the paths alone are more


class LatentPath(NamedTuple):
    """A walk through the latent space, and what is decoded on it."""

    given: tuple[str, str]  # the two sentences it was to go between
    t_S: Sequence[float]  # 0 the first, 1 the second
    texts: Sequence[str]  # S
    points_SZ: np.ndarray


def plot_training(run: str | Path, out: str | Path) -> Path:
    """Draws distortion, rate and kl_weight over the steps of a run into the PNG file `out`.

    Raises:
        UserError: matplotlib is not installed, or the run has no metrics.
    """
    panels = {"distortion": "distortion, nats per turn", "rate": "rate, nats per turn", "kl_weight": "kl_weight"}
    with picture(out, (12, 3.8)) as figure:
        from matplotlib.ticker import MaxNLocator

        records = read_records(Path(run) / "metrics.jsonl")
        if not records:
            raise UserError(f"{run}: no metrics.jsonl with records in it, nothing to draw. Pass --model, the folder of a run")
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
    with picture(out, (10, 4.2)) as figure:
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


def plot_latent_map(
    means_NZ: np.ndarray,
    attributes: Mapping[str, Sequence[float] | Sequence[str]],
    out: str | Path,
    paths: Sequence[LatentPath] = (),
) -> Path:
    """Draws turns on the two axes of the latent space along which they differ most, into the PNG file `out`.

    Args:
        means_NZ: posterior means of two turns or more.
        attributes: what the points are coloured by, one panel each: [N] numbers (length in tokens) or [N] words (question,
            statement), under its name.
        out: the file.
        paths: up to 8 walks, drawn over every panel along the same two axes (which the turns alone determine), each point
            darker than the one before; the ends and some points between have their text beside them.

    Raises:
        UserError: matplotlib is not installed, there is no latent, fewer than two turns, or too many or too long paths.
    """
    width, height = (10, 8) if paths else (7, 5.6)
    with picture(out, (width * len(attributes), height)) as figure:
        check_paths(paths, least=0)
        components = principal_components(means_NZ)
        points_N2, shares = components.project(means_NZ), components.shares
        tracks = [components.project(path.points_SZ) for path in paths]
        reach = 1.05 * max(float(np.abs(np.concatenate([points_N2, *tracks])).max()), 1e-3)
        panels = figure.subplots(1, len(attributes), squeeze=False)[0]
        for axes, (name, values) in zip(panels, attributes.items(), strict=True):
            assert len(values) == len(points_N2), f"{name}: {len(values)} values for {len(points_N2)} turns"
            size = {"s": min(max(20_000 / len(points_N2), 4.0), 40.0), "linewidths": 0, "alpha": 0.45 if paths else 0.7}
            if all(isinstance(value, str) for value in values):
                _scatter_kinds(axes, points_N2, [str(value) for value in values], name, size)
            else:
                _scatter_numbers(figure, axes, points_N2, np.asarray(values, float), name, size)
            axes.set_title(f"{len(points_N2):,} turns by {name}" + "; paths go from white to black" * bool(paths))
            axes.set_xlabel(f"first principal component ({shares[0]:.1%} of the variance)")
            axes.set_ylabel(f"second ({shares[1]:.1%})")
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        if paths:
            figure.draw_without_rendering()  # the axes get the place they will have, which the labels need to know
            figure.set_layout_engine("none")
            for axes in panels:
                _draw_tracks(axes, tracks)
                _label_tracks(axes, tracks, paths)
    return Path(out)


def check_paths(paths: Sequence[LatentPath], least: int) -> None:
    if not least <= len(paths) <= MAX_PATHS:
        raise UserError(f"a picture holds {least} to {MAX_PATHS} paths. Got {len(paths)}")
    longest = max((len(path.texts) for path in paths), default=0)
    if longest > MAX_POINTS:
        raise UserError(f"a picture holds paths of {MAX_POINTS} points or fewer. Got {longest}")


def _draw_tracks(axes: Any, tracks: Sequence[np.ndarray]) -> None:
    from matplotlib.patheffects import Normal, Stroke

    for track_S2 in tracks:
        halo = [Stroke(linewidth=5, foreground="white"), Normal()]
        axes.plot(*track_S2.T, color=INK, lw=2, path_effects=halo, zorder=3)
        greys = [str(lightness) for lightness in np.linspace(1, 0, len(track_S2))]
        axes.scatter(*track_S2.T, c=greys, s=55, edgecolors=INK, zorder=4)


def _label_tracks(axes: Any, tracks: Sequence[np.ndarray], paths: Sequence[LatentPath]) -> None:
    """Writes what is decoded beside the points: the ends of every path first, then points between while there is place."""
    figure, pad, size = axes.figure, 4, 9.5
    area = axes.get_window_extent()
    between = max(min((_MAP_LABELS - 2 * len(paths)) // len(paths), 3), 0)
    chosen = [(p, point) for p, path in enumerate(paths) for point in (0, len(path.texts) - 1)]
    chosen += [(p, point) for p, path in enumerate(paths) for point in _turning_points(path.texts, between)]
    labels = []
    for p, point in chosen:
        end = point in (0, len(paths[p].texts) - 1)
        font = {"size": size, "weight": "bold" if end else "regular", "color": INK}
        lines = fit(drawable(paths[p].texts[point]), area.width * 72 / figure.dpi / 4.5, 2, measure(figure, **font))
        label = axes.text(0, 0, "\n".join(lines), parse_math=False, transform=axes.transAxes, zorder=6, **font)
        label.set_bbox({"boxstyle": f"square,pad={pad * 72 / figure.dpi / size}", "fc": "white", "ec": "none", "alpha": 0.85})
        labels.append(label)
    anchors_L2 = axes.transData.transform([tracks[p][point] for p, point in chosen])
    sizes_L2 = np.array([label.get_window_extent().size for label in labels]) + 2 * pad
    marks_M2 = axes.transData.transform(np.concatenate([_dense(track_S2) for track_S2 in tracks]))
    places = place_labels(anchors_L2, sizes_L2, (*area.min, *area.max), marks_M2)
    for label, anchor_2, size_2, place in zip(labels, anchors_L2, sizes_L2, places, strict=True):
        if place is None:
            label.remove()
            continue
        label.set_position(axes.transAxes.inverted().transform(np.add(place, pad)))
        nearest_2 = np.clip(anchor_2, place, np.add(place, size_2))
        line_22 = axes.transAxes.inverted().transform([anchor_2, nearest_2])
        axes.plot(*line_22.T, color=INK, lw=0.7, transform=axes.transAxes, zorder=2.9)


def _turning_points(texts: Sequence[str], count: int) -> list[int]:
    """`count` points spread over those between the ends at which the text is a new one; fewer where there are fewer."""
    new = [point for point in range(1, len(texts) - 1) if texts[point] not in (*texts[:point], texts[-1])]
    count = min(count, len(new))
    return [new[int((place + 0.5) * len(new) / count)] for place in range(count)]


def _dense(track_S2: np.ndarray) -> np.ndarray:
    """Points so close on the lines between the points of a track that no label fits between them."""
    places = np.linspace(0, len(track_S2) - 1, 12 * len(track_S2))
    return np.stack([np.interp(places, range(len(track_S2)), axis_S) for axis_S in track_S2.T], 1)


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
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    dark = ListedColormap(colormaps["viridis"](np.linspace(0, 0.92, 256)))  # its yellow end is faint on white
    low, high = np.percentile(values_N, (1, 99))
    drawn = axes.scatter(*points_N2.T, c=values_N, cmap=dark, vmin=low, vmax=high, **size)
    ends = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    extend = ends[bool(values_N.min() < low), bool(values_N.max() > high)]
    figure.colorbar(ScalarMappable(drawn.norm, dark), ax=axes, label=name, extend=extend)  # not as see-through as the points


class PrincipalComponents(NamedTuple):
    """The two directions of highest variance of a set of points."""

    mean_Z: np.ndarray
    axes_Z2: np.ndarray  # of length 1; the second is 0 where Z is 1
    shares: tuple[float, float]  # of the variance

    def project(self, points_NZ: np.ndarray) -> np.ndarray:
        """[N, 2], the coordinates about the mean of any points."""
        projected_N2: np.ndarray = (points_NZ.astype(np.float64) - self.mean_Z) @ self.axes_Z2
        return projected_N2


def principal_components(means_NZ: np.ndarray) -> PrincipalComponents:
    """The two directions of highest variance.

    Of the two signs a direction can have, the one is taken that makes its largest entry positive.
    """
    N, Z = means_NZ.shape
    if N < 2 or not Z:
        raise UserError(f"a map of the latent space needs two turns and a latent. Got {N} turns and {Z} dimensions")
    mean_Z = means_NZ.mean(0, dtype=np.float64)
    centred_NZ = means_NZ.astype(np.float64) - mean_Z
    directions_ZZ, variance_Z, _ = np.linalg.svd(centred_NZ.T @ centred_NZ)
    axes_Z2 = directions_ZZ[:, :2]
    axes_Z2 = axes_Z2 * np.sign(axes_Z2[np.abs(axes_Z2).argmax(0), range(axes_Z2.shape[1])])
    shares = np.pad(variance_Z, (0, 1))[:2] / max(variance_Z.sum(), np.finfo(float).tiny)
    return PrincipalComponents(mean_Z, np.pad(axes_Z2, ((0, 0), (0, 2 - min(Z, 2)))), (float(shares[0]), float(shares[1])))
