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

from vrae.apps import plots  # noqa: E402
from vrae.apps.plots import (  # noqa: E402
    plot_latent_map,
    plot_rate_per_dimension,
    plot_training,
    principal_components,
)

RATES, ACTIVE = [0.5, 0.0, 1.25, 0.25], [True, False, True, False]
MEANS = np.random.default_rng(0).normal(size=(60, 5)) * (3, 1, 2, 0.5, 0.1)
LENGTHS = list(range(1, 61))
KINDS = ["question" if i % 3 == 0 else "statement" for i in range(60)]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are stored."""
    from matplotlib.figure import Figure

    stored: list[Any] = []
    real = Figure.savefig

    def savefig(self: Any, *arguments: Any, **options: Any) -> None:
        stored.append(self)
        real(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
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


def draw_all(folder: Path) -> list[bytes]:
    """The bytes of one picture of each kind."""
    folder.mkdir()
    return [
        plot_training(run_folder(folder / "run"), folder / "training.png").read_bytes(),
        plot_rate_per_dimension(RATES, ACTIVE, folder / "rates.png").read_bytes(),
        plot_latent_map(MEANS, {"length": LENGTHS, "kind": KINDS}, folder / "map.png").read_bytes(),
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
        points, shares = principal_components(means)
        np.testing.assert_allclose(points, [[5, 0], [-5, 0], [0, 2], [0, -2]], atol=1e-12)
        assert shares == pytest.approx((25 / 29, 4 / 29))

    def test_shares_are_of_the_whole_variance(self) -> None:
        points, shares = principal_components(MEANS.astype(np.float32))
        total = MEANS.astype(np.float32).astype(float).var(0).sum()
        assert shares == pytest.approx(tuple(points.var(0) / total), rel=1e-6)
        assert shares[0] > shares[1] > 0
        np.testing.assert_allclose(points.mean(0), 0, atol=1e-6)

    def test_of_one_dimension_lies_on_a_line(self) -> None:
        points, shares = principal_components(np.array([[1.0], [3.0], [5.0]]))
        np.testing.assert_allclose(points, [[-2, 0], [0, 0], [2, 0]])
        assert shares == (1, 0)

    def test_of_equal_turns_is_drawn(self, tmp_path: Path) -> None:
        plot_latent_map(np.zeros((3, 4)), {"length": [2, 2, 2]}, tmp_path / "map.png")

    @pytest.mark.parametrize("shape", [(1, 4), (3, 0)])
    def test_needs_turns_and_a_latent(self, tmp_path: Path, shape: tuple[int, int]) -> None:
        with pytest.raises(UserError, match="needs two turns and a latent"):
            plot_latent_map(np.zeros(shape), {"length": [1] * shape[0]}, tmp_path / "map.png")

    def test_colours_each_point_by_its_own_value(self, tmp_path: Path, figures: list[Any]) -> None:
        plot_latent_map(MEANS, {"length": LENGTHS, "kind": KINDS}, tmp_path / "map.png")
        points, shares = principal_components(MEANS)
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
