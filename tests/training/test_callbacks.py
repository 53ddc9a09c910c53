"""What is told of a run: to callbacks, to TensorBoard (read back from its files), and line by line to programs."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from vrae.apps.cli import main
from vrae.config import ModelConfig, RunConfig, TrainConfig
from vrae.corpus.prepared import Corpus
from vrae.errors import UserError
from vrae.training.board import TensorBoard
from vrae.training.callbacks import Callback
from vrae.training.monitor import Monitor, read_records
from vrae.training.trainer import train

ROOT = Path(__file__).parents[2]
MODEL = ModelConfig(context_turns=1, latent_size=4, embedding_size=8, hidden_size=8, context_size=8)
CONFIG = RunConfig(
    model=MODEL,
    train=TrainConfig(max_steps=4, validate_every=2, checkpoint_every=2, log_every=1, validation_turns=20, threads=1),
)


class Recorder(Callback):
    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def start(self, run: Path, info: dict[str, Any], step: int) -> None:
        self.seen.append(("start", run, info, step))

    def metrics(self, record: dict[str, Any]) -> None:
        self.seen.append(("metrics", record))

    def samples(self, record: dict[str, Any]) -> None:
        self.seen.append(("samples", record))

    def latents(self, record: dict[str, Any]) -> None:
        self.seen.append(("latents", record))

    def end(self, reason: str) -> None:
        self.seen.append(("end", reason))


def told(recorder: Recorder, kind: str) -> list[Any]:
    return [rest[0] for name, *rest in recorder.seen if name == kind]


class TestCallback:
    def test_is_told_what_is_written_and_the_latents_at_the_end(self, corpus: Corpus, tmp_path: Path) -> None:
        recorder = Recorder()
        result = train(CONFIG, corpus, tmp_path, quiet=True, callbacks=[recorder, Callback()])
        kinds = [name for name, *_ in recorder.seen]
        assert kinds[0] == "start"
        assert kinds[-2:] == ["latents", "end"]
        assert recorder.seen[0][1:] == (tmp_path, {**recorder.seen[0][2]}, 0)
        assert recorder.seen[0][2]["run"]["model"]["latent_size"] == 4
        assert told(recorder, "metrics") == read_records(tmp_path / "metrics.jsonl")
        assert told(recorder, "samples") == read_records(tmp_path / "samples.jsonl")
        assert told(recorder, "end") == [result.reason]
        (latents,) = told(recorder, "latents")
        count = len(latents["texts"])
        assert latents["step"] == 4
        assert latents["mean_NZ"].shape == (count, 4)
        assert 0 < count <= 1000
        assert np.isfinite(latents["mean_NZ"]).all()
        validated = [record for record in told(recorder, "metrics") if record["split"] == "validation"]
        assert [len(record["rate_per_dimension"]) for record in validated] == [4, 4]
        for record in validated:
            assert sum(record["rate_per_dimension"]) == pytest.approx(record["rate"], rel=1e-5)

    def test_is_told_where_a_run_goes_on_and_that_it_was_broken_off(self, corpus: Corpus, tmp_path: Path) -> None:
        class Stop(Recorder):
            def samples(self, record: dict[str, Any]) -> None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(CONFIG, corpus, tmp_path, quiet=True, callbacks=[first := Stop()])
        assert told(first, "end") == [""]
        assert not told(first, "latents")
        train(CONFIG, corpus, tmp_path, quiet=True, resume=True)
        longer = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, max_steps=6))
        train(longer, corpus, tmp_path, quiet=True, resume=True, callbacks=[second := Recorder()])
        assert second.seen[0][3] == 4
        assert [record["step"] for record in told(second, "metrics") if record["split"] == "train"] == [5, 6]

    def test_a_model_without_a_latent_shows_none(self, corpus: Corpus, tmp_path: Path) -> None:
        plain = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, latent_size=0))
        train(plain, corpus, tmp_path, quiet=True, callbacks=[recorder := Recorder()])
        assert not told(recorder, "latents")
        assert told(recorder, "end")


class TestTensorBoard:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("tensorboard")

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_its_files_hold_scalars_histograms_texts_and_the_latent_map(self, corpus: Corpus, tmp_path: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, tensorboard=True))
        train(config, corpus, tmp_path, quiet=True)
        events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
        events.Reload()
        records = read_records(tmp_path / "metrics.jsonl")
        for split, name in (("train", "elbo"), ("validation", "rate"), ("train", "lr"), ("validation", "bits_per_token")):
            written = [(record["step"], record[name]) for record in records if record["split"] == split]
            found = [(event.step, event.value) for event in events.Scalars(f"{split}/{name}")]
            assert found == [(step, pytest.approx(value)) for step, value in written]
        histograms = events.Histograms("rate_per_dimension")
        rates = [record["rate_per_dimension"] for record in records if record["split"] == "validation"]
        assert [event.step for event in histograms] == [2, 4]
        for event, values in zip(histograms, rates, strict=True):
            assert event.histogram_value.num == 4
            assert event.histogram_value.sum == pytest.approx(sum(values))
            assert event.histogram_value.max == pytest.approx(max(values))
        assert {f"{kind}/text_summary" for kind in ("reconstruction", "reply", "sample")} <= set(events.Tags()["tensors"])
        folder = next((tmp_path / "tensorboard").glob("*/latent"))
        means = np.loadtxt(folder / "tensors.tsv", delimiter="\t", ndmin=2)
        header, *rows = (folder / "metadata.tsv").read_text(encoding="utf-8").splitlines()
        assert header == "text\twords\tkind"
        assert means.shape == (len(rows), 4)
        assert all(row.count("\t") == 2 for row in rows)
        assert "latent" in (tmp_path / "tensorboard" / "projector_config.pbtxt").read_text()

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_texts_of_strangers_break_neither_markdown_nor_the_table(self, tmp_path: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        board = TensorBoard()
        board.start(tmp_path, {}, 0)
        board.samples({"step": 1, "samples": {"reply": [["<script>", "*a*"], "plain"]}})
        texts = ["tab\there", "line\nbreak?", "", "naïve 🎉"]
        board.latents({"step": 1, "texts": texts, "mean_NZ": np.zeros((4, 2), np.float32)})
        board.end("done")
        rows = next(tmp_path.glob("tensorboard/*/latent/metadata.tsv")).read_text(encoding="utf-8").splitlines()[1:]
        assert rows == ["tab here\t2\tstatement", "line break?\t2\tquestion", "(empty)\t1\tstatement", "naïve 🎉\t2\tstatement"]
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        (event,) = events.Tensors("reply/text_summary")
        assert event.tensor_proto.string_val[0].decode() == "&lt;script> -> \\*a\\*\n\nplain"

    def test_without_it_the_remedy_is_named_and_nothing_is_written(
        self, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, tensorboard=True))
        with pytest.raises(UserError, match=r"pip install 'vrae\[tensorboard\]'"):
            train(config, corpus, tmp_path / "run", quiet=True)
        assert not (tmp_path / "run" / "metrics.jsonl").exists()


class TestLinesForPrograms:
    def test_are_objects_each_with_its_kind(self, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        options = ["--model.latent_size=4", "--model.hidden_size=8", "--model.embedding_size=8", "--train.threads=1"]
        options += ["--train.max_steps=2", "--train.validate_every=2", "--train.log_every=1", "--train.validation_turns=20"]
        assert main(["train", "--data", str(corpus.path), "--out", str(tmp_path), *options]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        assert {line["kind"] for line in lines} == {"note", "metrics", "samples"}
        told = [{key: value for key, value in line.items() if key != "kind"} for line in lines if line["kind"] == "metrics"]
        assert told == read_records(tmp_path / "metrics.jsonl")

    @pytest.mark.parametrize(
        ("log_format", "terminal", "as_json"),
        [("auto", False, True), ("auto", True, False), ("json", True, True), ("text", False, False)],
    )
    def test_are_chosen_by_the_format_or_the_terminal(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        log_format: Any,
        terminal: bool,
        as_json: bool,
    ) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
        monitor = Monitor(tmp_path, 0, 0, log_format=log_format)
        monitor.say("    hello")
        monitor.warn("beware")
        monitor.close()
        said = capsys.readouterr().err
        if as_json:
            assert [json.loads(line) for line in said.splitlines()] == [
                {"kind": "note", "text": "hello"},
                {"kind": "warning", "text": "beware"},
            ]
        else:
            assert "    hello" in said
            assert "vrae: warning: beware" in said

    def test_are_no_more_when_quiet_and_warnings_text_like_errors(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monitor = Monitor(tmp_path, 0, 0, log_format="json", quiet=True)
        monitor.say("hello")
        monitor.samples({"step": 1, "samples": {"sample": ["x"]}})
        monitor.warn("beware")
        monitor.close()
        assert capsys.readouterr().err == "vrae: warning: beware\n"


def test_the_example_of_the_documentation_tells_a_tracker(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"<!-- callback -->\n```python\n(.*?)```", page, re.DOTALL)
    assert len(example.splitlines()) <= 36
    calls: list[tuple[str, Any]] = []
    tracker = ModuleType("trackio")
    tracker.init = lambda **options: calls.append(("init", options))  # type: ignore[attr-defined]
    tracker.log = lambda values, step: calls.append(("log", (step, values)))  # type: ignore[attr-defined]
    tracker.finish = lambda: calls.append(("finish", None))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", tracker)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").symlink_to(corpus.path)
    exec(compile(example, "docs/logs.md", "exec"), {})
    assert calls[0][0] == "init"
    assert calls[0][1]["project"] == "small-talk"
    assert calls[0][1]["config"]["model"]["hidden_size"] == 96
    assert calls[-1] == ("finish", None)
    logged = [values for kind, values in calls if kind == "log"]
    names = {name for _, values in logged for name in values}
    assert {"train/elbo", "validation/rate", "samples/reply"} <= names
    assert {step for step, _ in logged} == {2, 4}
