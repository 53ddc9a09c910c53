"""A run's records: they read as if nothing had happened, whatever happened."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vrae.corpus.prepared import Corpus
from vrae.errors import DivergenceError
from vrae.training.monitor import LossLevel, Monitor, Watch, read_records

FILES = ("metrics.jsonl", "samples.jsonl", "incidents.jsonl")


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
        monitor.incident({"step": step, "event": "not finite", "turns": [step]})
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

    def test_of_warning_are_there_all_the_same(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        monitor = Monitor(tmp_path, 0, 0, quiet=True)
        monitor.warn("hello")
        monitor.close()
        assert capsys.readouterr() == ("", "vrae: warning: hello\n")


class TestLossLevel:
    def test_is_the_mean_and_variance_of_the_steps_until_there_are_a_hundred(self) -> None:
        losses = np.random.default_rng(0).normal(4, 0.5, 100)
        level = LossLevel()
        for n, loss in enumerate(losses, 1):
            assert level.add(float(loss)) is None
            assert level.mean == pytest.approx(losses[:n].mean())
            assert level.variance == pytest.approx(losses[:n].var(), abs=1e-12)

    def test_then_forgets_a_hundredth_with_each(self) -> None:
        losses = np.random.default_rng(1).normal(4, 0.5, 400)
        level = LossLevel()
        for loss in losses:
            level.add(float(loss))
        # The weight of each: the first hundred share what the later ones have left.
        weight = np.r_[np.full(100, 0.99**300 / 100), 0.01 * 0.99 ** np.arange(299, -1, -1)]
        assert weight.sum() == pytest.approx(1)
        mean = (weight * losses).sum()
        assert level.mean == pytest.approx(mean)
        assert level.variance == pytest.approx((weight * (losses - mean) ** 2).sum())

    def test_calls_what_is_six_deviations_above_a_spike(self) -> None:
        alternating = [3.0, 5.0] * 30  # mean 4, standard deviation 1
        for loss, deviations in ((9.9, None), (10.1, 6.1), (104.0, 100.0), (-20.0, None)):
            level = LossLevel()
            for value in alternating:
                assert level.add(value) is None
            assert level.add(loss) == (None if deviations is None else pytest.approx(deviations))

    def test_judges_no_step_before_the_fifty_first(self) -> None:
        for steps, judged in ((48, False), (50, True)):
            level = LossLevel()
            for value in [3.0, 5.0] * (steps // 2):
                level.add(value)
            assert (level.add(1000.0) is not None) == judged

    def test_takes_a_spike_in_as_the_highest_loss_that_is_none(self) -> None:
        one, other = LossLevel(60, 4.0, 1.0), LossLevel(60, 4.0, 1.0)
        assert one.add(1e9) == pytest.approx(1e9, rel=1e-6)
        assert other.add(10.0) is None
        assert one == other
        assert one.add(12.0) is not None  # the second is seen as well

    def test_gets_used_to_a_rise_that_lasts(self) -> None:
        level = LossLevel(500, 4.0, 0.01)
        spikes = [level.add(14.0) is not None for _ in range(200)]
        assert spikes[0]
        assert sum(spikes) < 40
        assert not any(spikes[40:])


class TestWatch:
    @pytest.fixture
    def watch(self, corpus: Corpus, tmp_path: Path) -> Iterator[Watch]:
        monitor = Monitor(tmp_path, 0, 100)
        yield Watch(tmp_path, monitor, corpus["train"], corpus.tokenizer, LossLevel(60, 4.0, 1.0))
        monitor.close()

    def test_puts_a_spike_on_record(self, watch: Watch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        watch.finite(7, 4.5, np.array([1]))
        watch.level = LossLevel(60, 4.0, 1.0)
        watch.finite(8, 12.0, np.array([5, 3]))
        [record] = read_records(tmp_path / "incidents.jsonl")
        assert record == {"step": 8, "event": "spike", "loss": 12.0, "mean": 4.0, "deviations": 8.0, "turns": [5, 3]}
        assert "step 8: loss 12.00 nats/token, 8 standard deviations above 4.00, its mean" in capsys.readouterr().err

    def test_ends_the_run_at_the_tenth_in_a_row_that_is_not_finite(self, watch: Watch, tmp_path: Path, corpus: Corpus) -> None:
        for step in range(1, 10):
            watch.not_finite(step, step, np.array([step]))
        watch.finite(10, 4.0, np.array([0]))
        for step in range(11, 20):
            watch.not_finite(step, step - 1, np.array([step]))
        assert not (tmp_path / "diverged.json").exists()
        with pytest.raises(DivergenceError, match=r"10 steps in a row up to step 20 .*diverged.json"):
            watch.not_finite(20, 19, np.array([4, 2]))
        dump = json.loads((tmp_path / "diverged.json").read_bytes())
        ids = [[int(i) for i in corpus["train"].turn(turn)] for turn in (4, 2)]
        texts = [corpus.tokenizer.decode(row) for row in ids]
        rows = [{"turn": turn, "ids": i, "text": text} for turn, i, text in zip((4, 2), ids, texts, strict=True)]
        assert dump == {"step": 20, "batch": rows}
        assert [record["step"] for record in read_records(tmp_path / "incidents.jsonl")] == [*range(1, 10), *range(11, 21)]
