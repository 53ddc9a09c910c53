"""The models that come with the package: they are what their cards say, small, and good for their jobs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

import vrae
from vrae import bundled
from vrae.apps.cli import main
from vrae.apps.parser import configs
from vrae.config import BatchConfig, RunConfig, from_dict
from vrae.corpus.batches import Windows
from vrae.errors import ModelError, UserError
from vrae.evaluation.likelihood import measure
from vrae.files import MANIFEST, check_folder
from vrae.generation.card import CARD, MARK, REPORT
from vrae.model.folder import CONFIG, TOKENIZER, WEIGHTS

NAMES = [*bundled.NAMES.values()]
FILES = (CONFIG, WEIGHTS, TOKENIZER, REPORT)
MEGABYTES = 12  # together, of 10^6 bytes


def place(name: str) -> Path:
    folder = bundled.folder(name)
    assert folder is not None
    return folder


def test_they_are_small_and_whole() -> None:
    files = [file for name in NAMES for file in place(name).iterdir()]
    assert sum(file.stat().st_size for file in files) <= MEGABYTES * 10**6
    for name in NAMES:
        assert {file.name for file in place(name).iterdir()} == {*FILES, CARD, MANIFEST}
        assert not check_folder(place(name), FILES)


@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_made_of_the_records_of_the_run(name: str) -> None:
    info, report = (json.loads((place(name) / file).read_bytes()) for file in (CONFIG, REPORT))
    card = (place(name) / CARD).read_text(encoding="utf-8")
    assert MARK in card
    assert card == vrae.load(name).card(name, report=place(name))
    assert (info["corpus"]["source"], info["corpus"]["licence"]) == ("chitchat", "MIT")
    assert report["split"] == "test"
    for said in (f"Seed {info['run']['train']['seed']}", info["versions"]["torch"], info["hardware"], "must not be used"):
        assert said in card


@pytest.mark.parametrize("name", NAMES)
def test_it_was_trained_by_the_configuration_of_its_name(name: str) -> None:
    expected = dataclasses.asdict(from_dict(RunConfig, yaml.safe_load(configs()[name].read_text()), name))
    found = json.loads((place(name) / CONFIG).read_bytes())["run"]
    for group, vary in (("model", {"vocab_size"}), ("batches", set()), ("objective", set()), ("train", {"threads"})):
        assert {key: found[group][key] for key in found[group].keys() - vary} == {
            key: value for key, value in expected[group].items() if key not in vary
        }


@pytest.mark.parametrize("name", NAMES)
def test_weights_have_16_bits(name: str) -> None:
    with safe_open(place(name) / WEIGHTS, "pt") as weights:
        assert {weights.get_slice(key).get_dtype() for key in weights.offset_keys()} == {"F16"}


def test_no_name_gives_the_one_for_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert vrae.load().model.config.context_turns >= 3
    assert vrae.load(job="sentences").model.config.context_turns == 0
    with pytest.raises(UserError, match=r"job must be dialogue or sentences\. Got talk"):
        vrae.load(job="talk")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"no model that comes with vrae \(chitchat-vhred, chitchat-vrae\)"):
        vrae.load("chitchat")
    with pytest.raises(ModelError, match="no such folder"):  # what comes with the package has no revisions
        vrae.load("chitchat-vrae@main")


def test_what_is_here_comes_before_what_is_bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAMES[0]).mkdir()
    with pytest.raises(ModelError, match="neither a model folder"):
        vrae.load(NAMES[0])


def test_replies_differ_and_are_text() -> None:
    model = vrae.load()
    for said in ("How was your weekend?", "hi", "What do you like to do for fun?"):
        replies = [reply.text for reply in model.respond(said, n=5, seed=1)]
        assert len(set(replies)) == 5
        assert all(reply.strip() and "<" not in reply for reply in replies)


def test_short_sentences_come_back_and_a_path_begins_and_ends_with_its_sentences() -> None:
    model = vrae.load(job="sentences")
    known = ["how are you today?", "i am going home", "what do you want to eat?", "see you tomorrow", "I love that song!"]
    assert sum(found.exact for found in model.reconstruct(known)) >= 4
    path = model.interpolate("i am going home", "see you tomorrow", steps=5)
    assert (path[0].text, path[-1].text) == ("i am going home", "see you tomorrow")


@pytest.mark.parametrize(
    "line", ['respond "hi" -n 2', "sample -n 2", 'reconstruct "hi"', 'interpolate "a" "b" --steps 3', 'score "hi"']
)
def test_commands_work_without_a_model_being_named(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 0
    assert capsys.readouterr().out


@pytest.mark.slow
def test_the_figures_of_the_report_are_measured_again(tmp_path: Path) -> None:
    """From the embedded corpus, prepared anew: the same pieces, the same turns, the same bound but for the draws."""
    for name in NAMES:
        model, report = vrae.load(name), json.loads((place(name) / REPORT).read_bytes())
        sentences = str(model.info["corpus"]["cleaning"].get("sentences", False)).lower()
        options = ["--cleaning.sentences", sentences, "--out", str(tmp_path / name), "--quiet"]
        assert main(["prepare", "chitchat", *options]) == 0
        corpus = vrae.Corpus(tmp_path / name)
        assert corpus.tokenizer.sha256 == model.tokenizer.sha256
        assert corpus.fingerprint == report["provenance"]["corpus"]
        batches = BatchConfig(tokens=4096, max_turn_tokens=report["provenance"]["max_turn_tokens"])
        windows = Windows(corpus["test"], batches, model.model.config.context_turns)
        bound = measure(model.model, windows, limit=report["turns"], k=1, seed=1)
        assert bound.elbo == pytest.approx(report["elbo"], abs=0.3)
