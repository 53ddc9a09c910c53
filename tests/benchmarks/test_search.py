"""The search for the bundled models: what its table says of a run is what was run."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import dailydialog
import pytest
import results
import search
import yaml
from conftest import prepare_config
from dailydialog_protocol import Records
from dailydialog_report import summary

from vrae.apps.parser import configs
from vrae.config import RunConfig, from_dict
from vrae.corpus.prepared import Corpus, prepare
from vrae.errors import UserError
from vrae.generation.pipeline import Pipeline

RUNS = yaml.safe_load((search.FOLDER / "runs.yaml").read_text(encoding="utf-8"))
RECORDS = {path.stem: json.loads(path.read_text()) for path in sorted(search.FOLDER.glob("*.json"))}


def test_a_base_gives_what_a_run_does_not_say() -> None:
    runs = {
        "a": {"model.latent_size": 0, "train.max_steps": 10},
        "b": {"base": "a", "corpus": "sentences", "train.max_steps": 20},
        "c": {"base": "b"},
    }
    config, corpus = search.config_of("c", runs)
    assert (config.model.latent_size, config.train.max_steps, corpus) == (0, 20, "sentences")
    config, corpus = search.config_of("a", runs)
    assert (config.train.max_steps, corpus) == (10, "chitchat")


@pytest.mark.parametrize("name", sorted(RUNS.keys() & configs().keys()))
def test_a_run_that_is_a_configuration_too_is_the_same(name: str) -> None:
    config: RunConfig = from_dict(RunConfig, yaml.safe_load(configs()[name].read_text()), name)
    assert search.config_of(name, RUNS)[0] == config


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_of_the_run_of_its_name(name: str) -> None:
    expected = dataclasses.asdict(search.config_of(name, RUNS)[0])
    found = RECORDS[name]["config"]
    found["train"]["threads"] = expected["train"]["threads"]  # the program's own
    assert found == expected


def test_the_table_is_that_of_the_records() -> None:
    page = (search.FOLDER / "README.md").read_text(encoding="utf-8")
    for name, record in RECORDS.items():
        assert f"| {name} | " in page
        assert f"{record['nll_iw']:.2f} ({record['nll_iw_error']:.2f})" in page


def test_an_ablation_is_told_in_pairs_of_turns() -> None:
    """By hand: 3 and 5 nats more on two turns are 4 (1) more."""
    common = {"step": 1000, "elbo": -2.0, "rate": 0.0, "active_units": 0, "latent_size": 0, "distortion": 2.0}
    records = {
        "a": {**common, "nll_iw": 15.0, "nll_iw_N": [10.0, 20.0]},
        "b": {**common, "nll_iw": 19.0, "nll_iw_N": [13.0, 25.0]},
        "old": {**common, "nll_iw": 17.0},
    }
    lines = search.ablation({"a": "all", "b": "less", "old": "older", "none": "not run"}, records).splitlines()[2:]
    assert [line.split(" | ")[:4] for line in lines] == [
        ["| all", "1,000", "15.00", "-"],
        ["| less", "1,000", "19.00", "+4.00 (1.00)"],
        ["| older", "1,000", "17.00", "-"],
    ]


def test_a_corpus_is_that_of_the_nearest_run_that_names_one() -> None:
    runs = {"a": {"corpus": "sentences"}, "b": {"base": "a", "corpus": "chitchat"}, "c": {"base": "b"}}
    assert [search.config_of(name, runs)[1] for name in runs] == ["sentences", "chitchat", "chitchat"]


def test_the_pages_tables_are_those_of_the_records() -> None:
    """README.md and docs/results.md stand as `results.py --tables` writes them."""
    made = results.tables(results.stored()) | {"dailydialog": summary(Records(dailydialog.RECORDS))}
    made |= {name: search.ablation(runs, search.stored(runs)) for name, runs in search.ABLATIONS.items()}
    for page in results.PAGES:
        text = (results.ROOT / page).read_text(encoding="utf-8")
        names = re.findall(r"<!-- (\w+) -->\n\|", text)
        assert names
        for name in names:
            assert results.fill(text, name, made[name]) == text, f"{page}: {name}"


def test_results_name_the_runs_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "chitchat-vrae").mkdir()
    monkeypatch.setattr("sys.argv", ["x", "--data", "corpus", "--runs", str(tmp_path), "chitchat-vrae", "chitchat-hred"])
    with pytest.raises(SystemExit, match="2"):
        results.main()
    assert f"--runs {tmp_path}: no run of chitchat-rnnlm, chitchat-hred there" in capsys.readouterr().err


@pytest.mark.parametrize("program", [search, results])
def test_without_a_corpus_nothing_is_made(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, place = ("vhred-8", "--out") if program is search else ("chitchat-rnnlm", "--runs")
    (tmp_path / "runs" / "chitchat-rnnlm").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("sys.argv", ["x", "--data", str(tmp_path / "none"), place, str(tmp_path / "runs"), name])
    with pytest.raises(SystemExit, match="2"):
        program.main()
    assert re.search(rf"error: {tmp_path / 'none'}.*: not a prepared corpus", capsys.readouterr().err)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("context_turns", [0, 2])
def test_the_turns_that_are_measured_are_the_same_in_pieces_of_any_size(
    corpus: Corpus, source: Path, tmp_path: Path, context_turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MAX_TURN_TOKENS", 6)  # so that some turns are too long
    small = prepare(prepare_config(source, vocab_size=corpus.manifest["vocab_size"] - 20), tmp_path / "small", quiet=True)

    def texts(prepared: Corpus) -> list[str]:
        windows = search.validation_turns(prepared, corpus, context_turns)
        batches = [batch for _, batch in windows.in_order()]
        assert windows.tokens == sum(batch.tokens for batch in batches)
        return [prepared.tokenizer.decode(ids.tolist()) for batch in batches for ids in batch.turns_NT[batch.target_B]]

    assert sorted(texts(small)) == sorted(texts(corpus))
    assert 0 < len(texts(corpus)) < len(corpus["validation"].turns) - 1

    other = prepare(prepare_config(source, validation_percent=30), tmp_path / "other", quiet=True)
    with pytest.raises(UserError, match=r"other: not the turns of .*Prepare both from the same source"):
        search.validation_turns(other, corpus, context_turns)


def test_a_run_with_a_record_is_made_again_and_not_measured(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who follows the page has its runs, and the records that it was written from."""
    tiny = {"model.latent_size": 2, "model.embedding_size": 4, "model.hidden_size": 6, "train.max_steps": 2}
    (tmp_path / "runs.yaml").write_text(yaml.safe_dump({"tiny": tiny}))
    (tmp_path / "chitchat").symlink_to(corpus.path)
    monkeypatch.setattr(search, "FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", ["x", "--data", str(tmp_path), "--out", str(tmp_path / "runs"), "tiny"])
    search.main()
    record = (tmp_path / "tiny.json").read_bytes()
    assert json.loads(record)["step"] == 2
    shutil.rmtree(tmp_path / "runs")
    monkeypatch.setattr(search, "measure_turns", lambda *_, **__: pytest.fail("measured again"))
    search.main()
    assert Pipeline.load(tmp_path / "runs" / "tiny").info["step"] == 2
    assert (tmp_path / "tiny.json").read_bytes() == record


def test_search_says_when_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["x"])
    with pytest.raises(SystemExit, match="2"):
        search.main()
    assert "nothing to do: name runs, or give --table" in capsys.readouterr().err
