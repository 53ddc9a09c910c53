"""Pictures: what is drawn is what was given, the same bytes every time, whatever matplotlib is set to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vrae.errors import UserError

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.text import Text  # noqa: E402

from vrae.apps import plots  # noqa: E402
from vrae.apps.plots import (  # noqa: E402
    LatentPath,
    plot_latent_map,
    plot_rate_per_dimension,
    plot_training,
    principal_components,
)

RATES, ACTIVE = [0.5, 0.0, 1.25, 0.25], [True, False, True, False]
MEANS = np.random.default_rng(0).normal(size=(60, 5)) * (3, 1, 2, 0.5, 0.1)
LENGTHS = list(range(1, 61))
TEXTS = [
    "the first",
    "a $x_1$ b",
    "a $x_1$ b",
    "\\frac{1}{2}",
    "the last one, which is far too long to be written beside a point",
]
KINDS = ["question" if i % 3 == 0 else "statement" for i in range(60)]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that would be stored. Nothing is rendered."""
    from matplotlib.figure import Figure

    stored: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *arguments, **options: stored.append(self))
    return stored


def run_folder(folder: Path) -> Path:
    """Metrics of 3 training lines and 2 validations."""
    folder.mkdir()
    records = [
        {"step": step, "split": split, "distortion": 70 - step, "rate": step / 2, "kl_weight": step / 40}
        for split, steps in (("train", (10, 20, 30)), ("validation", (15, 30)))
        for step in steps
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def path_between(a: np.ndarray, b: np.ndarray, texts: list[str] = TEXTS) -> LatentPath:
    """The straight line between two points, with these texts."""
    t = np.linspace(0, 1, len(texts))
    return LatentPath((texts[0], texts[-1]), t.tolist(), texts, (1 - t)[:, None] * a + t[:, None] * b)


def labels_of(figure: Any, panel: int = 0) -> list[tuple[str, Any]]:
    """Texts that are drawn in a panel, and their boxes in pixels."""
    figure.draw_without_rendering()
    return [(text.get_text(), Text.get_window_extent(text)) for text in figure.axes[panel].texts]


def draw_all(folder: Path) -> list[bytes]:
    """The bytes of one picture of each kind."""
    folder.mkdir()
    path = path_between(MEANS[0], MEANS[1])
    return [
        plot_training(run_folder(folder / "run"), folder / "training.png").read_bytes(),
        plot_rate_per_dimension(RATES, ACTIVE, folder / "rates.png").read_bytes(),
        plot_latent_map(MEANS, {"length": LENGTHS, "kind": KINDS}, folder / "map.png", [path]).read_bytes(),
    ]


class TestPictures:
    def test_are_the_same_bytes_whatever_the_reader_has_set(self, tmp_path: Path) -> None:
        first = draw_all(tmp_path / "a")
        with matplotlib.rc_context({"figure.facecolor": "black", "savefig.dpi": 40, "font.size": 30, "lines.linewidth": 9}):
            second = draw_all(tmp_path / "b")
        assert first == second
        assert all(picture.startswith(b"\x89PNG") and b"matplotlib" not in picture for picture in first)

    def test_leave_the_settings_as_they_were_and_need_no_pyplot(self, tmp_path: Path) -> None:
        before = dict(matplotlib.rcParams)
        plot_rate_per_dimension(RATES, ACTIVE, tmp_path / "rates.png")
        assert dict(matplotlib.rcParams) == before
        check = (
            "import sys; from vrae.apps.plots import plot_rate_per_dimension; assert 'matplotlib' not in sys.modules; "
            f"plot_rate_per_dimension([1.0], [True], {str(tmp_path / 'x.png')!r}); "
            "assert 'matplotlib.pyplot' not in sys.modules"
        )
        subprocess.run([sys.executable, "-W", "error", "-c", check], check=True, cwd=Path(plots.__file__).parents[2])

    def test_are_legible_and_light(self, tmp_path: Path, figures: list[Any]) -> None:
        draw_all(tmp_path / "a")
        for figure in figures:
            width, _ = figure.get_size_inches()
            assert width * figure.dpi >= 1400
            assert figure.get_facecolor() == (1, 1, 1, 1)

    def test_without_matplotlib_say_what_to_install(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(UserError, match=r"pip install 'vrae\[viz\]'"):
            plot_rate_per_dimension(RATES, ACTIVE, tmp_path / "rates.png")

    def test_that_cannot_be_written_say_so(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="cannot write the picture"):
            plot_rate_per_dimension(RATES, ACTIVE, tmp_path / "none" / "rates.png")


class TestTraining:
    def test_has_the_records_of_each_split(self, tmp_path: Path, figures: list[Any]) -> None:
        plot_training(run_folder(tmp_path / "run"), tmp_path / "training.png")
        drawn = [[line.get_xydata().tolist() for line in axes.lines] for axes in figures[0].axes]
        assert drawn == [
            [[[10, 60], [20, 50], [30, 40]], [[15, 55], [30, 40]]],
            [[[10, 5], [20, 10], [30, 15]], [[15, 7.5], [30, 15]]],
            [[[10, 0.25], [20, 0.5], [30, 0.75]]],
        ]

    def test_needs_records(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no metrics\.jsonl"):
            plot_training(tmp_path, tmp_path / "training.png")
        assert not (tmp_path / "training.png").exists()


class TestRates:
    def test_stand_from_high_to_low_with_the_inactive_ones_crossed(self, tmp_path: Path, figures: list[Any]) -> None:
        plot_rate_per_dimension(RATES, ACTIVE, tmp_path / "rates.png")
        (axes,) = figures[0].axes
        bars = {round(bar.get_x() + bar.get_width() / 2): bar for container in axes.containers for bar in container}
        assert [bars[place].get_height() for place in range(4)] == [1.25, 0.5, 0.25, 0.0]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "0", "3", "1"]
        colours = [matplotlib.colors.to_hex(bars[place].get_facecolor()) for place in range(4)]
        assert colours == [plots.BLUE, plots.BLUE, plots.VERMILION, plots.VERMILION]
        crosses = axes.collections[0].get_offsets()
        assert crosses[:, 0].tolist() == [2, 3]
        assert (crosses[:, 1] > [0.25, 0.0]).all()
        assert {text.get_text() for text in axes.get_legend().get_texts()} == {"active: 2", "inactive: 2"}
        assert "2.0 nats per turn" in axes.get_title(loc="left")

    def test_of_any_number_are_drawn(self, tmp_path: Path, figures: list[Any]) -> None:
        for count in (1, 200):
            plot_rate_per_dimension([0.1] * count, [False] * count, tmp_path / "rates.png")
        plot_rate_per_dimension([1.0, -0.5], [True, True], tmp_path / "rates.png")
        assert figures[-1].axes[0].get_ylim()[0] < -0.5
        with pytest.raises(UserError, match="no latent"):
            plot_rate_per_dimension([], [], tmp_path / "rates.png")


class TestLatentMap:
    def test_axes_are_the_directions_of_highest_variance(self) -> None:
        # two orthogonal directions by hand: (3, 4) / 5 with variance 25 and (4, -3) / 5 with variance 4
        along, across = np.array([0.6, 0.8]), np.array([0.8, -0.6])
        means = np.array([5 * along, -5 * along, 2 * across, -2 * across]) + np.array([7, -2])
        found = principal_components(means)
        np.testing.assert_allclose(found.project(means), [[5, 0], [-5, 0], [0, 2], [0, -2]], atol=1e-12)
        assert found.shares == pytest.approx((25 / 29, 4 / 29))
        # other points, on the same axes about the same middle
        others = np.array([[7.0, -2.0], [7 + 3 * 0.6 + 2 * 0.8, -2 + 3 * 0.8 - 2 * 0.6]])
        np.testing.assert_allclose(found.project(others), [[0, 0], [3, 2]], atol=1e-12)

    def test_shares_are_of_the_whole_variance(self) -> None:
        found = principal_components(MEANS.astype(np.float32))
        points, shares = found.project(MEANS.astype(np.float32)), found.shares
        total = MEANS.astype(np.float32).astype(float).var(0).sum()
        assert shares == pytest.approx(tuple(points.var(0) / total), rel=1e-6)
        assert shares[0] > shares[1] > 0
        np.testing.assert_allclose(points.mean(0), 0, atol=1e-6)

    def test_of_one_dimension_lies_on_a_line(self) -> None:
        found = principal_components(np.array([[1.0], [3.0], [5.0]]))
        np.testing.assert_allclose(found.project(np.array([[1.0], [3.0], [5.0]])), [[-2, 0], [0, 0], [2, 0]])
        assert found.shares == (1, 0)

    def test_of_equal_turns_is_one_place_in_the_middle(self, tmp_path: Path, figures: list[Any]) -> None:
        plot_latent_map(np.full((3, 4), 7.0), {"length": [2, 2, 2]}, tmp_path / "map.png")
        axes = figures[0].axes[0]
        assert axes.collections[0].get_offsets().tolist() == [[0, 0]] * 3
        assert axes.get_xlim()[0] < 0 < axes.get_xlim()[1]
        assert "(0.0% of the variance)" in axes.get_xlabel()

    @pytest.mark.parametrize("shape", [(1, 4), (3, 0)])
    def test_needs_turns_and_a_latent(self, tmp_path: Path, shape: tuple[int, int]) -> None:
        with pytest.raises(UserError, match="needs two turns and a latent"):
            plot_latent_map(np.zeros(shape), {"length": [1] * shape[0]}, tmp_path / "map.png")

    def test_colours_each_point_by_its_own_value(self, tmp_path: Path, figures: list[Any]) -> None:
        plot_latent_map(MEANS, {"length": LENGTHS, "kind": KINDS}, tmp_path / "map.png")
        found = principal_components(MEANS)
        points, shares = found.project(MEANS), found.shares
        length, kind = figures[0].axes[:2]
        for axes in (length, kind):
            np.testing.assert_allclose(axes.collections[0].get_offsets(), points)
            assert f"{100 * shares[0]:.1f}%" in axes.get_xlabel()
            assert f"{100 * shares[1]:.1f}%" in axes.get_ylabel()
        assert length.collections[0].get_array().tolist() == LENGTHS
        drawn = [matplotlib.colors.to_hex(colour) for colour in kind.collections[0].get_facecolors()]
        assert drawn == [plots.ORANGE if value == "question" else plots.BLUE for value in KINDS]
        assert [text.get_text() for text in kind.get_legend().get_texts()] == ["statement (40)", "question (20)"]

    def test_puts_rare_kinds_together(self, tmp_path: Path, figures: list[Any]) -> None:
        kinds = [f"kind {min(i % 12, 7)}" for i in range(60)]
        plot_latent_map(MEANS, {"kind": kinds}, tmp_path / "map.png")
        texts = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
        assert texts == ["kind 7 (25)", *(f"kind {i} (5)" for i in range(5)), "other (10)"]


class TestPathsOverTheMap:
    def test_lie_where_their_points_are_projected_and_move_no_turn(self, tmp_path: Path, figures: list[Any]) -> None:
        means = np.array([[3.0, 4.0], [-3.0, -4.0], [1.6, -1.2], [-1.6, 1.2]]) + np.array([7, -2])
        far = path_between(np.array([7.0, -2.0]), np.array([7 + 20 * 0.6, -2 + 20 * 0.8]))
        near = path_between(np.array([7 + 0.8, -2 - 0.6]), np.array([7 - 0.8, -2 + 0.6]))
        plot_latent_map(means, {"length": [1, 2, 3, 4]}, tmp_path / "map.png", [far, near])
        axes = figures[0].axes[0]
        turns, *tracks = [np.asarray(drawn.get_offsets()) for drawn in axes.collections]
        np.testing.assert_allclose(turns, [[5, 0], [-5, 0], [0, 2], [0, -2]], atol=1e-12)
        np.testing.assert_allclose(tracks[0], [[0, 0], [5, 0], [10, 0], [15, 0], [20, 0]], atol=1e-12)
        np.testing.assert_allclose(tracks[1], [[0, 1], [0, 0.5], [0, 0], [0, -0.5], [0, -1]], atol=1e-12)
        np.testing.assert_allclose(axes.lines[0].get_xydata(), tracks[0])
        assert axes.get_xlim()[1] > 20
        lightness = axes.collections[1].get_facecolors()[:, 0]
        assert (lightness[0], lightness[-1]) == (1, 0)
        assert (np.diff(lightness) < 0).all()

    def test_have_their_ends_and_new_texts_between_written_beside_them(self, tmp_path: Path, figures: list[Any]) -> None:
        plot_latent_map(MEANS, {"kind": KINDS}, tmp_path / "map.png", [path_between(MEANS[0], MEANS[1])])
        drawn = [text for text, _ in labels_of(figures[0])]
        assert drawn[0] == "the first"
        assert drawn[1].startswith("the last one,")
        assert drawn[1].endswith("…")
        assert drawn[2:] == ["a $x_1$ b", "\\frac{1}{2}"]
        assert not any(text.get_parse_math() for text in figures[0].axes[0].texts)
        assert "white to black" in figures[0].axes[0].get_title(loc="left")

    @pytest.mark.parametrize(("count", "seed"), [(1, 0), (8, 1)])
    def test_have_labels_apart_from_each_other_and_inside(
        self, tmp_path: Path, figures: list[Any], count: int, seed: int
    ) -> None:
        ends = np.random.default_rng(seed).choice(MEANS, (count, 2))
        plot_latent_map(MEANS, {"length": LENGTHS, "kind": KINDS}, tmp_path / "m.png", [path_between(*pair) for pair in ends])
        for panel in (0, 1):
            labels, area = labels_of(figures[0], panel), figures[0].axes[panel].get_window_extent()
            assert 2 * count <= len(labels) <= max(14, 2 * count)
            for i, (_, box) in enumerate(labels):
                assert area.x0 <= box.x0 < box.x1 <= area.x1
                assert area.y0 <= box.y0 < box.y1 <= area.y1
                assert not any(box.overlaps(other) for _, other in labels[:i])

    def test_labels_stand_beside_their_points(self, tmp_path: Path, figures: list[Any]) -> None:
        path = path_between(MEANS[0], MEANS[1], ["start", "end"])
        plot_latent_map(MEANS, {"kind": KINDS}, tmp_path / "map.png", [path])
        axes = figures[0].axes[0]
        for (_, box), point in zip(labels_of(figures[0]), principal_components(MEANS).project(path.points_SZ), strict=True):
            x, y = axes.transData.transform(point)
            away = max(box.x0 - x, x - box.x1, box.y0 - y, y - box.y1)
            assert 5 < away < 30

    def test_cannot_be_more_than_fit(self, tmp_path: Path) -> None:
        path = path_between(MEANS[0], MEANS[1])
        with pytest.raises(UserError, match="0 to 8 paths"):
            plot_latent_map(MEANS, {"kind": KINDS}, tmp_path / "map.png", [path] * 9)
        with pytest.raises(UserError, match="24 points or fewer"):
            plot_latent_map(MEANS, {"kind": KINDS}, tmp_path / "map.png", [path_between(MEANS[0], MEANS[1], ["x"] * 25)])
        assert not list(tmp_path.iterdir())
