"""The model card says what the records say, in a form that the Hub reads, whatever strangers wrote into them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import prepare_config

from vrae.apps.cli import main
from vrae.config import ModelConfig, RunConfig, TrainConfig, from_dict
from vrae.corpus.prepared import Corpus, prepare
from vrae.errors import UserError
from vrae.generation.card import model_card, publishable, read_report
from vrae.generation.pipeline import Pipeline
from vrae.training.trainer import train

SIZES = {"context_turns": 1, "latent_size": 4, "embedding_size": 8, "hidden_size": 8, "context_size": 8}


@pytest.fixture(scope="module")
def run(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps on a corpus prepared from a file, with a report of `vrae evaluate` beside it."""
    folder = tmp_path_factory.mktemp("card")
    corpus = prepare(prepare_config(source), folder / "corpus", quiet=True)
    options = TrainConfig(max_steps=2, validate_every=2, checkpoint_every=2, validation_turns=20, threads=1)
    train(RunConfig(model=ModelConfig(**SIZES), train=options), corpus, folder / "run", quiet=True)
    measured = ["--k", "2", "--samples", "0", "--paths", "0", "--contexts", "0", "--max_turns", "20", "--quiet"]
    assert main(["evaluate", str(folder / "run"), *measured, "--out", str(folder / "run" / "report")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def pipeline(run: Path) -> Pipeline:
    return Pipeline.load(run)


def parts(card: str) -> tuple[dict[str, Any], str]:
    """The metadata and the text."""
    start, metadata, text = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(metadata), text


def test_it_tells_what_the_run_has_recorded(pipeline: Pipeline, corpus: Corpus) -> None:
    metadata, text = parts(pipeline.card("owner/name"))
    assert metadata == {
        "library_name": "vrae",
        "pipeline_tag": "text-generation",
        "tags": ["vrae", "dialogue", "gru", "cvae", "variational-autoencoder"],
    }
    counts = corpus.manifest["splits"]["train"]
    assert f"| `train` | {counts['dialogues']:,} | {counts['turns']:,} | {counts['tokens']:,} |" in text
    measured = pipeline.info["validation"]
    assert f"| elbo | {measured['elbo']:,.2f} |  | nats/turn |" in text
    assert f"| turns | {measured['turns']} |" in text
    parameters = sum(parameter.numel() for parameter in pipeline.model.parameters())
    assert "CVAE, a variational recurrent autoencoder of a dialogue turn given the turn before it, with a latent of 4 " in text
    assert f" {parameters:,} parameters." in text
    assert f"Seed 1, step 2; versions: vrae {pipeline.info['versions']['vrae']}, python" in text
    assert 'vrae.load("owner/name")' in text
    assert "It must not be used" in text


def test_its_commands_and_recipe_make_the_same_settings_again(pipeline: Pipeline, run: Path, tmp_path: Path) -> None:
    text = pipeline.card()
    assert "vrae prepare talk.txt --out corpus --vocab_size 400 --cleaning.max_repeats 0\n" in text
    recipe = text.split("```yaml\n")[1].split("```")[0]
    assert from_dict(RunConfig, yaml.safe_load(recipe), "recipe") == from_dict(RunConfig, pipeline.info["run"], "run")
    (tmp_path / "recipe.yaml").write_text(recipe)
    options = ["--config", str(tmp_path / "recipe.yaml"), "--data", str(run.parent / "corpus"), "--quiet", "--dry-run"]
    assert main(["train", *options, "--out", str(tmp_path / "again")]) == 0


def test_a_report_brings_its_figures_and_warnings(pipeline: Pipeline, run: Path, tmp_path: Path) -> None:
    report = json.loads((run / "report" / "report.json").read_bytes())
    pipeline.save_pretrained(tmp_path, report=run / "report")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    figure = report["sections"]["Bounds"]["figures"] if "Bounds" in report["sections"] else None
    figure = figure or next(s["figures"] for s in report["sections"].values() if "elbo" in s["figures"])
    assert f"| elbo | {figure['elbo']['value']:,.2f} | {figure['elbo']['error']:,.2f} | nats/turn |" in text
    assert "By `vrae evaluate` on the validation split, 2 draws a turn" in text
    for warning in report["warnings"]:
        assert warning.split(":")[0] in text
    assert (tmp_path / "report.json").read_bytes() == (run / "report" / "report.json").read_bytes()
    assert "report.json" in json.loads((tmp_path / "manifest.json").read_bytes())["files"]


def test_the_command_finds_the_report_in_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["push", "owner/name", "--model", str(run), "--card", "--license", "apache-2.0", "--language", "de"]
    assert main(given) == 0
    metadata, text = parts(capsys.readouterr().out)
    assert (metadata["license"], metadata["language"]) == ("apache-2.0", "de")
    assert "By `vrae evaluate` on the validation split" in text


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            {"provenance": {"step": 99, "corpus": "x"}},
            r"is about another model, at step 99; this one is at step 2\. Run vrae",
        ),
        ({"provenance": {}}, r"no report of vrae evaluate\. Make one with: vrae evaluate RUN --out FOLDER"),
        ({"sections": {"a": {}}}, "no report of vrae evaluate"),
        ({"warnings": 3}, "no report of vrae evaluate"),
    ],
)
def test_a_report_of_something_else_is_refused(
    pipeline: Pipeline, run: Path, tmp_path: Path, edit: dict[str, Any], message: str
) -> None:
    report = {**json.loads((run / "report" / "report.json").read_bytes()), **edit}
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match=message):
        read_report(tmp_path, pipeline.info)


def test_no_report_there_names_the_remedy(pipeline: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"report.json: cannot read: No such file .* Make one with: vrae evaluate"):
        pipeline.card(report=tmp_path)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/home/someone/secret/talk.txt", "talk.txt"),
        ("chats/talk.jsonl", "talk.jsonl"),
        ("chitchat", "chitchat"),
        ("owner/data", "owner/data"),
        ("/home/someone/folder", "folder"),
    ],
)
def test_where_a_file_was_is_nobodys_business(source: str, shown: str) -> None:
    info = {"step": 1, "corpus": {"source": source, "licence": "MIT"}}
    assert publishable(info) == {"step": 1, "corpus": {"source": shown, "licence": "MIT"}}
    metadata, text = parts(model_card(info, ModelConfig(), 10))
    assert "someone" not in text
    assert f"Source: `{shown}`" in text
    assert metadata.get("datasets") == (["owner/data"] if source == "owner/data" else None)
    assert metadata["license"] == "mit"
    assert metadata.get("language") == ("en" if source == "chitchat" else None)


@pytest.mark.parametrize(
    ("turns", "latent", "name", "calls"),
    [
        (0, 32, "VRAE", ["interpolate"]),
        (1, 32, "CVAE", ["respond", "interpolate"]),
        (3, 32, "VHRED", ["respond", "interpolate"]),
        (0, 0, "RNN-LM", ["sample"]),
        (1, 0, "Seq2Seq", ["respond"]),
        (3, 0, "HRED", ["respond"]),
    ],
)
def test_each_architecture_has_its_name_and_what_it_can_do(turns: int, latent: int, name: str, calls: list[str]) -> None:
    metadata, text = parts(model_card({}, ModelConfig(context_turns=turns, latent_size=latent), 10))
    assert name.lower() in metadata["tags"]
    assert f"{name}, a " in text
    assert [call for call in ("respond", "interpolate", "sample") if f"model.{call}(" in text] == calls


def test_records_of_strangers_stay_text() -> None:
    evil = "x`\n---\n# Title [a](javascript:1) <script> | \x1b[2J"
    corpus = {"source": evil, "licence": evil, "fingerprint": evil, "splits": {evil: {"turns": evil}}, "cleaning": {evil: evil}}
    run = {evil: {}, "train": {evil: evil, "seed": evil, "device": evil}, "model": {"vocab_size": evil}}
    info = {"corpus": corpus, "run": run, "versions": {evil: evil}, "step": evil, "validation": {"elbo": evil, "turns": 3}}
    metadata, text = parts(model_card(info, ModelConfig(), 10))
    assert set(metadata) == {"library_name", "pipeline_tag", "tags"}
    assert "\x1b" not in text
    assert "\n# Title" not in text
    assert "\n---" not in text
    assert "vrae prepare 'x`" in text  # quoted: what is copied into a shell stays one word
    headings = [line for line in text.splitlines() if line.startswith("# ")]
    assert len(headings) == 2
    assert headings[0] == "# A model of vrae"
    assert headings[1].startswith("# not recorded: model.context_turns")


def test_a_model_that_remembers_nothing_has_a_card() -> None:
    text = parts(model_card({"run": 3, "corpus": []}, ModelConfig(), 10))[1]
    for said in ("does not say what it was trained on", "None are recorded", "does not say how it was trained"):
        assert said in text


def test_settings_that_an_older_version_did_not_record_are_named() -> None:
    run = dataclasses.asdict(RunConfig())
    del run["train"]["optimizer"]
    assert "# not recorded: train.optimizer\nmodel:" in model_card({"run": run}, ModelConfig(), 10)
