"""The report: each figure reads the same in table, JSON and Markdown, and nothing else gets in."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vrae.errors import UserError
from vrae.evaluation.report import Figure, Report, Section, figures

BOUND = Section(
    "Bound",
    [
        Figure("turns", 5082),
        Figure("elbo", -54.3712, "nats per turn", 0.3123),
        Figure("nll_iw", None, "nats per turn"),
        Figure("collapse", "healthy"),
        Figure("rates", [0.5, 1.25, math.nan], "nats per turn"),
    ],
    ["one sample a turn"],
)
SAMPLES = Section("Samples", [Figure("forward", math.inf, "per token", 2.0), Figure("elbo_again", 0.5)])
REPORT = Report(
    "a model on the test split",
    [BOUND, SAMPLES],
    promised=("split", "elbo", "nll_iw", "collapse"),
    warnings=("k is too low",),
    provenance={"model": "runs/a_b", "split": "test", "seed": 20261, "decoding": {"top_p": 1.0}, "devices": []},
    pictures={"rates.png": "Rates", "map of turns.png": "Map"},
)


def cells(value: Any, error: float | None = None) -> list[str]:
    """What the table shows of a figure."""
    report = Report("", [Section("", [Figure("x", value, "unit", error)])])
    return [cell for cell in report.table().splitlines()[3].removeprefix("  x").split("  ") if cell]


class TestNumbers:
    @pytest.mark.parametrize(
        ("value", "error", "shown"),
        [
            (-54.3712, 0.3123, ["-54.37", "± 0.31", "unit"]),
            (16.08, 0.0512, ["16.080", "± 0.051", "unit"]),
            (0.154, 0.0114, ["0.154", "± 0.011", "unit"]),
            (86.89, 3.17, ["86.89", "± 3.17", "unit"]),
            (8123.4, 21.7, ["8,123.40", "± 21.70", "unit"]),
            (8123.4, 1234.5, ["8,123.40", "± 1,234.50", "unit"]),
            (1.0, 0.0, ["1.000", "unit"]),
        ],
    )
    def test_go_as_far_as_their_error(self, value: float, error: float, shown: list[str]) -> None:
        assert cells(value, error) == shown

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (8.3702, "8.370"),
            (0.14103, "0.1410"),
            (123.45, "123.5"),
            (1234567.8, "1,234,568"),
            (0.0000123, "1.23e-05"),
            (-0.25, "-0.2500"),
            (0.0, "0"),
            (5082, "5,082"),
            (math.inf, "inf"),
            (True, "yes"),
            ("healthy", "healthy"),
            ([0.5, 1.25, 3], "3 from 0.5000 to 3"),
            ([], "-"),
        ],
    )
    def test_without_one_have_four_digits(self, value: Any, shown: str) -> None:
        assert cells(value) == [shown, "unit"]

    @pytest.mark.parametrize("value", [None, math.nan])
    def test_that_are_not_there_are_a_dash(self, value: float | None) -> None:
        assert cells(value, 1.0) == ["-"]


class TestTable:
    def test_is_this(self) -> None:
        section = Section("Bound", BOUND.figures[:4], BOUND.protocol)
        report = dataclasses.replace(REPORT, sections=[section, SAMPLES])
        assert report.table() == (
            "a model on the test split\n"
            "\n"
            "Bound\n"
            "  turns         5,082\n"
            "  elbo         -54.37  ± 0.31  nats per turn\n"
            "  nll iw            -\n"
            "  collapse    healthy\n"
            "  . one sample a turn\n"
            "\n"
            "Samples\n"
            "  forward         inf  ± 2.00  per token\n"
            "  elbo again   0.5000\n"
            "\n"
            "Provenance\n"
            "  model     runs/a_b\n"
            "  split     test\n"
            "  seed      20261\n"
            "  decoding  top p 1\n"
            "  devices   -\n"
            "\n"
            "Warnings\n"
            "  ! k is too low\n"
        )

    def test_keeps_numbers_near_their_names_beside_a_list(self) -> None:
        section = Section("s", [Figure("x", 1), Figure("list", [0.12345, 0.54321, 0.3], "nats")])
        assert Report("t", [section]).table() == "t\n\ns\n  x     1\n  list  3 from 0.1235 to 0.5432    nats\n"

    def test_wraps_what_is_long(self) -> None:
        long = "word " * 60
        report = Report("t", [Section("s", [Figure("x", 1)], [long])], warnings=[long], provenance={"note": long})
        assert max(map(len, report.table().splitlines())) <= 100
        assert report.table().count("word") == 180


class TestJson:
    def test_is_this(self) -> None:
        found = json.loads(REPORT.to_json())
        assert list(found) == ["split", "elbo", "nll_iw", "collapse", "title", "warnings", "provenance", "sections"]
        assert (found["split"], found["elbo"], found["nll_iw"], found["collapse"]) == ("test", -54.3712, None, "healthy")
        assert found["sections"]["Bound"]["figures"]["elbo"] == {"value": -54.3712, "unit": "nats per turn", "error": 0.3123}
        assert found["sections"]["Bound"]["protocol"] == ["one sample a turn"]
        assert found["warnings"] == ["k is too low"]
        assert found["provenance"] == dict(REPORT.provenance)
        assert found == REPORT.as_dict()

    def test_has_no_number_that_json_does_not_know(self) -> None:
        def refuse(name: str) -> None:
            raise AssertionError(name)

        provenance = {"deep": [{"x": math.inf}], "nan": math.nan}
        report = dataclasses.replace(REPORT, provenance={**REPORT.provenance, **provenance})
        found = json.loads(report.to_json(), parse_constant=refuse)
        assert found["sections"]["Bound"]["figures"]["rates"]["value"] == [0.5, 1.25, None]
        assert found["sections"]["Samples"]["figures"]["forward"]["value"] is None
        assert found["provenance"]["deep"] == [{"x": None}]
        assert found["provenance"]["nan"] is None

    def test_keeps_all_digits(self) -> None:
        report = Report("", [Section("", [Figure("x", 0.1 + 0.2, error=1 / 3)])], promised=["x"])
        found = json.loads(report.to_json())
        assert (found["x"], found["sections"][""]["figures"]["x"]["error"]) == (0.1 + 0.2, 1 / 3)


class TestMarkdown:
    def test_is_this(self, tmp_path: Path) -> None:
        section = Section("Bound", BOUND.figures[1:4], BOUND.protocol)
        (tmp_path / "map of turns.png").touch()
        report = dataclasses.replace(REPORT, sections=[section], provenance={"model": "a_b|c", "split": "<test>"})
        assert report.to_markdown(tmp_path) == (
            "# a model on the test split\n\n"
            "> **Warning:** k is too low\n\n"
            "## Bound\n\n"
            "| | value | standard error | unit |\n"
            "|---|---:|---:|---|\n"
            "| elbo | -54.37 | 0.31 | nats per turn |\n"
            "| nll iw | - |  |  |\n"
            "| collapse | healthy |  |  |\n\n"
            "- one sample a turn\n\n"
            "## Map\n\n"
            "![Map](map%20of%20turns.png)\n\n"
            "## Provenance\n\n"
            "| | |\n"
            "|---|---|\n"
            "| model | a\\_b\\|c |\n"
            "| split | &lt;test&gt; |\n"
        )

    def test_keeps_warnings_apart(self) -> None:
        report = Report("t", [], warnings=["one", "two\nlines"])
        assert report.to_markdown() == "# t\n\n> **Warning:** one\n>\n> **Warning:** two lines\n"


class TestReport:
    def test_is_the_same_bytes_again_and_saved(self, tmp_path: Path) -> None:
        again = Report(**{field.name: getattr(REPORT, field.name) for field in dataclasses.fields(REPORT)})
        REPORT.save(tmp_path / "a")
        os.utime(tmp_path / "a" / "report.json", (0, 0))
        again.save(tmp_path / "b")
        for name in ("report.json", "report.md"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / "report.json").read_text() == REPORT.to_json()
        assert (tmp_path / "a" / "report.md").read_text() == REPORT.to_markdown(tmp_path / "a")
        assert REPORT.table() == again.table()

    def test_that_cannot_be_saved_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match="cannot write the report"):
            REPORT.save(tmp_path / "file")

    @pytest.mark.parametrize("promised", [("nothing",), ("warnings",)])
    def test_keeps_its_promises(self, promised: tuple[str]) -> None:
        with pytest.raises(AssertionError, match="promised keys"):
            dataclasses.replace(REPORT, promised=promised)

    def test_refuses_a_promise_that_could_mean_two_figures(self) -> None:
        other = Section("Other", [Figure("elbo", 1.0)])
        with pytest.raises(AssertionError, match=r"promised keys .*elbo"):
            dataclasses.replace(REPORT, sections=[BOUND, other])

    def test_refuses_a_name_twice(self) -> None:
        for sections in ([BOUND, BOUND], [Section("s", [Figure("x", 1), Figure("x", 2)])]):
            with pytest.raises(AssertionError, match="stands twice"):
                Report("t", sections)

    def test_takes_named_attributes_with_their_errors(self) -> None:
        source = SimpleNamespace(elbo=-5.0, elbo_error=0.5, rate=2.0, rate_error=None, turns=3)
        assert figures(source, turns="", rate="nats", elbo="nats per turn") == [
            Figure("turns", 3),
            Figure("rate", 2.0, "nats"),
            Figure("elbo", -5.0, "nats per turn", 0.5),
        ]
