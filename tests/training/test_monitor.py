"""A run's records: they read as if nothing had happened, whatever happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vrae.errors import UserError
from vrae.training.monitor import Monitor, read_records

FILES = ("metrics.jsonl", "samples.jsonl")


def metrics(step: int, split: str = "train", **values: Any) -> dict[str, Any]:
    record = {"step": step, "epoch": 0.5, "split": split, "elbo": -30.5, "rate": 2.25, "distortion": 28.25}
    return {**record, "kl_weight": 0.1, "active_units": 3, "tokens_per_second": 999.4, "lr": 0.001, **values}


def samples(step: int) -> dict[str, Any]:
    return {"step": step, "samples": {"sample": ["naïve 🎉", "line\u2028separator"], "reply": [["hi", "yes", "no"]]}}


def write(run: Path, *steps: int) -> None:
    monitor = Monitor(run, 0, 100, quiet=True)
    for step in steps:
        monitor.metrics(metrics(step))
        monitor.samples(samples(step))
    monitor.close()


def steps(run: Path, name: str) -> list[int]:
    return [record["step"] for record in read_records(run / name)]


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    assert read_records(tmp_path / "metrics.jsonl") == [metrics(1), metrics(2)]
    assert read_records(tmp_path / "samples.jsonl") == [samples(1), samples(2)]


def test_a_record_is_on_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, 0, 100, quiet=True)
    monitor.metrics(metrics(1))
    assert steps(tmp_path, "metrics.jsonl") == [1]
    monitor.close()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("resume", "kept"), [(0, []), (1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (99, [1, 2, 3])])
def test_records_after_the_step_of_resuming_are_dropped(tmp_path: Path, name: str, resume: int, kept: list[int]) -> None:
    write(tmp_path, 1, 2, 3)
    lines = (tmp_path / name).read_bytes().splitlines(keepends=True)
    Monitor(tmp_path, resume, 100, quiet=True).close()
    assert steps(tmp_path, name) == kept
    assert (tmp_path / name).read_bytes() == b"".join(lines[: len(kept)])


def test_new_records_follow_the_kept_ones(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3)
    monitor = Monitor(tmp_path, 2, 100, quiet=True)
    monitor.metrics(metrics(4))
    monitor.close()
    assert steps(tmp_path, "metrics.jsonl") == [1, 2, 4]


@pytest.mark.parametrize("name", FILES)
def test_a_last_line_cut_anywhere_is_survived(tmp_path: Path, name: str) -> None:
    write(tmp_path, 1, 2)
    whole = (tmp_path / name).read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole) - 1):  # in the middle of a character too
        (tmp_path / name).write_bytes(whole[:cut])
        assert steps(tmp_path, name) == [1]
    Monitor(tmp_path, 5, 100, quiet=True).close()
    assert (tmp_path / name).read_bytes() == whole[:first]


def test_a_crash_while_reopening_loses_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1, 2)

    def crash(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(KeyboardInterrupt):
        Monitor(tmp_path, 2, 100, quiet=True)
    assert steps(tmp_path, "metrics.jsonl") == [1, 2]


def test_a_run_without_records_has_none(tmp_path: Path) -> None:
    assert read_records(tmp_path / "metrics.jsonl") == []


class TestLines:
    def test_for_people_name_the_step_and_both_sides_of_the_bound(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monitor = Monitor(tmp_path, 0, 100)
        monitor.metrics(metrics(7))
        assert capsys.readouterr().err == ""  # a training record only moves the bar
        monitor.metrics(metrics(8, "validation"))
        monitor.samples(samples(8))
        monitor.close()
        captured = capsys.readouterr()
        assert "step      8  validation: -elbo 30.50 nats/turn = distortion 28.25 + rate 2.25   active units 3" in captured.err
        assert "naïve 🎉" in captured.err
        assert "hi  ->  yes  ->  no" in captured.err
        assert captured.out == ""

    def test_are_not_there_when_quiet(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        monitor = Monitor(tmp_path, 0, 0, quiet=True)
        monitor.expect(10)
        monitor.advance()
        monitor.say("hello")
        monitor.metrics(metrics(8, "validation"))
        monitor.close()
        assert capsys.readouterr() == ("", "")


def test_without_tensorboard_the_remedy_is_named_and_nothing_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1)
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'vrae\[tensorboard\]'"):
        Monitor(tmp_path, 0, 100, tensorboard=True, quiet=True)
    assert steps(tmp_path, "metrics.jsonl") == [1]


def test_tensorboard_gets_the_numbers_and_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            seen.append((Path(folder).name, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            seen.append((name, value, step))

        def add_text(self, name: str, text: str, step: int) -> None:
            seen.append((name, text, step))

        def close(self) -> None:
            seen.append(("close",))

    module = type(json)("tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", module)
    monitor = Monitor(tmp_path, 4, 100, tensorboard=True, quiet=True)
    monitor.metrics(metrics(5))
    monitor.samples(samples(5))
    monitor.close()
    assert ("tensorboard", 4) in seen
    assert ("train/elbo", -30.5, 5) in seen
    assert ("reply", "hi -> yes -> no", 5) in seen
    assert seen[-1] == ("close",)
    assert not any(name in ("train/step", "train/split") for name, *_ in seen)
