"""The soak finds what grows, and takes nothing else for it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from faults import soak
from faults.processes import environment
from faults.soak import MOST_GROWTH, Line, disk, fit, grew, judge, last_line

HALF_HOUR = [10.0 * i for i in range(180)]


def test_a_line_has_the_slope_per_hour_and_no_error() -> None:
    assert fit([0, 1800, 3600], [1, 2, 3]) == Line(2.0, 0.0)


def test_the_standard_error_is_that_of_the_textbook() -> None:
    """By hand: Sxx = 5, Sxy = 3, residuals -0.1, 0.3, -0.3, 0.1, so s^2 = 0.2 / 2 and the error sqrt(0.1 / 5)."""
    line = fit([0, 3600, 7200, 10800], [0, 1, 1, 2])
    assert line.slope == pytest.approx(0.6)
    assert line.error == pytest.approx(0.02**0.5)
    assert line.least == pytest.approx(0.6 - 1.96 * 0.02**0.5)


@pytest.mark.parametrize("seconds", [[], [5], [0, 10], [7, 7, 7]])
def test_of_too_few_measurements_nothing_is_known(seconds: list[float]) -> None:
    assert fit(seconds, [100.0 * i for i in range(len(seconds))]).least == -float("inf")


def test_the_interval_holds_the_slope_nineteen_times_of_twenty() -> None:
    draw = np.random.default_rng(0)
    lines = [fit(HALF_HOUR, 30 * np.array(HALF_HOUR) / 3600 + draw.normal(0, 2, 180)) for _ in range(1000)]
    inside = sum(abs(line.slope - 30) < 1.96 * line.error for line in lines)
    assert 930 < inside < 970  # 950 +- 3 standard errors of 6.9


def measured(
    mib_an_hour: float = 0.0, files: int = 17, files_an_hour: float = 0.0, jump: float = 0.0
) -> list[dict[str, float]]:
    """An hour of a process of some 300 MiB that takes and gives back some, and warms up by 100 MiB in the first minutes."""
    draw, found = random.Random(1), []
    for seconds in range(10, 3601, 10):
        warm = min(seconds / 300, 1) * 100
        rss = 200 + warm + mib_an_hour * seconds / 3600 + draw.uniform(0, 4) + (jump if seconds > 600 else 0)
        open_files = files + int(files_an_hour * seconds / 3600) + draw.choice([0, 0, 1, 4])
        found.append({"seconds": seconds, "rss_mib": rss, "files": open_files, "threads": draw.choice([1, 1, 2])})
    return found


@pytest.mark.parametrize(
    ("given", "faults"),
    [
        ({}, []),
        ({"mib_an_hour": MOST_GROWTH - 5}, []),
        ({"mib_an_hour": MOST_GROWTH + 5}, ["memory grew by"]),
        ({"mib_an_hour": -MOST_GROWTH - 5}, []),
        ({"jump": 50.0}, []),  # once, in the first half: something was loaded late
        ({"files_an_hour": 6}, ["open files grew"]),
        ({"mib_an_hour": 200, "files_an_hour": 3600}, ["memory grew by", "open files grew"]),
    ],
)
def test_what_grows_is_named_and_nothing_else(given: dict[str, float], faults: list[str]) -> None:
    cells, found = judge("train", measured(**given))  # type: ignore[arg-type]
    assert [fault.startswith(f"train: {start}") for fault, start in zip(found, faults, strict=True)] == [True] * len(faults)
    assert cells[:2] == ["train", "60.0"]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([3] * 40, False),
        ([3, 9, 3, 3] * 10, False),  # opened for a moment
        ([3] * 10 + [5] * 30, False),  # on first use
        ([3] * 30 + [4] * 10, True),
        ([3 + i // 10 for i in range(40)], True),
        ([5] * 30 + [3] * 10, False),
        ([3, 4, 5], False),
        ([], False),
    ],
)
def test_counts_that_stay_up_have_grown(counts: list[float], expected: bool) -> None:
    assert grew(counts) is expected


def test_disk_is_counted_apart_for_checkpoints_and_records(tmp_path: Path) -> None:
    for step in (1, 2):
        folder = tmp_path / "checkpoints" / f"step-0000000{step}"
        folder.mkdir(parents=True)
        (folder / "model").write_bytes(bytes(100))
    (tmp_path / "checkpoints" / ".step-00000003.tmp-9").mkdir()
    (tmp_path / "checkpoints" / ".step-00000003.tmp-9" / "model").write_bytes(bytes(7))
    (tmp_path / "metrics.jsonl").write_bytes(bytes(11))
    assert disk(tmp_path) == {"checkpoints": 207, "records": 11, "kept": 2}
    assert disk(tmp_path / "nothing") == {"checkpoints": 0, "records": 0, "kept": 0}


@pytest.mark.parametrize(("text", "line"), [("", ""), ("a\nb\n", "b"), ("a\nb\nhal", "b"), ("half", ""), ("a\n", "a")])
def test_the_last_whole_line_of_a_file_is_read(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "file").write_text(text)
    assert last_line(tmp_path / "file") == line
    assert last_line(tmp_path / "nothing") == ""


@pytest.mark.slow
def test_a_minute_of_it_finds_a_planted_leak(tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = [sys.executable, soak.__file__, "--minutes", "1", "--every", "1", "--out", str(out)]
    done = subprocess.run(given, env=environment(SOAK_LEAK_KIB="64"), capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (1, ""), done.stdout
    title, train, serve, *rest = done.stdout.splitlines()
    assert [line.split()[:1] for line in (title, train, serve)] == [["process"], ["train"], ["serve"]]
    assert "0 failed" in rest[0]
    assert any(line.startswith("serve: memory grew by ") for line in rest)
    assert not any("ended by itself" in line or "open files" in line or "exit code" in line for line in rest), done.stdout
    records = [json.loads(line) for line in (out / "measurements.jsonl").read_text().splitlines()]
    assert {record.get("process") for record in records} == {"train", "serve", None}
    assert max(record.get("kept", 0) for record in records) in range(2, soak.KEEP_LAST + 3)
