"""Whatever a command is given that it cannot work with: one line that names what, where, the value and the remedy.

`test_help.py` has the command lines that are wrong by themselves; here they meet models, corpora and files.
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from conftest import tiny_model

from vrae.apps.cli import main
from vrae.corpus.prepared import Corpus
from vrae.files import write_folder
from vrae.model.folder import to_files

NO_MODEL = "no such folder, and no model that comes with vrae (chitchat-vhred, chitchat-vrae)"
NO_CORPUS = "not a prepared corpus (FileNotFoundError on manifest.json). Make one with: vrae prepare SOURCE --out"
NO_RUN = "neither a model folder (config.json) nor a run folder (checkpoints/best)"
UNREPORTED = "Make one with: vrae evaluate RUN --out FOLDER"
NO_INDEX = "no index, or a damaged one"
PATHS = "sentences are read from .txt, .jsonl, .csv, .tsv, .parquet. Got no suffix"

# CORPUS is a prepared corpus, `model` reads two turns, `alone` none, `flat` has no latent; `folder` is empty.
WRONG = {
    "serve nothere": f"--model nothere: {NO_MODEL}",
    "serve folder": f"--model folder: {NO_RUN}",
    "serve a.txt": f"--model a.txt: {NO_RUN}",
    "serve model --port abc": "--port must be a whole number. Got abc",
    "serve model --port 99999": "--port must be a whole number from 1 to 65535. Got 99999",
    "serve model --host a..b": "--host a..b: no such address",
    "serve model --auth justname": "--auth must be NAME:PASSWORD, both not empty",
    "serve model --share": "--share puts the page on the internet: say who may use it with --auth NAME:PASSWORD",
    "serve model --attributes nothere.json": "nothere.json: cannot read the attribute: No such file or directory. Make",
    "serve model --data folder": f"folder: {NO_CORPUS} folder",
    "serve model --max_seconds -1": "max_seconds must be a number above 0, or None for no limit. Got -1.0",
    "serve model --device tpu": "device 'tpu': expected auto, cpu, cuda or cuda:N",
    "export model": "vrae export needs --out. For example: vrae export",
    "export nothere --out onnx": f"--model nothere: {NO_MODEL}",
    "export model --format pt2 --out onnx": "--format must be onnx. Got 'pt2'",
    "export model --out a.txt": "--out a.txt: exists already. Choose another folder, or replace an export by --overwrite",
    "export model --out model --overwrite": "--out model: exists already. Choose another folder",
    "push owner/name": "vrae push needs --model: the run or model folder to publish",
    "push noslash --model model": "noslash: the id of a repository must be owner/name, of letters, digits and . _ -",
    "push owner/name --model model --report nothere": f"--report nothere: cannot read: No such file or directory. {UNREPORTED}",
    "push owner/name --model model --report list.json": f"--report list.json: no report of vrae evaluate. {UNREPORTED}",
    "push owner/name --model model --report folder": "--report folder/report.json: cannot read: No such file or directory.",
    "push owner/name --model model --revision ..": "--revision ..: must be a branch, tag or commit",
    "evaluate model": "model does not say which corpus it was trained on. Pass --data, a prepared corpus",
    "evaluate model --data folder": f"folder: {NO_CORPUS} folder",
    "evaluate model --model model": "a run is given twice: model and --model model. Leave one out",
    "evaluate model --data CORPUS --split nothing": "--split must be one of train, validation, test. Got 'nothing'",
    "plot nothing --model model --out a.png": "plot nothing: draws map, rate, paths or training",
    "plot map --model model": "model does not say which corpus it was trained on. Pass --data, a prepared corpus",
    "plot map --model flat --data CORPUS --out a.png": "this model has no latent (model.latent_size is 0)",
    "attributes learn --model model --out a.json": "vrae attributes learn needs FILES. For example: vrae attributes learn",
    "attributes learn folder --model model --out a.json": f"folder: {PATHS}",
    "attributes learn a.txt a.txt a.txt --model model --out a.json": "takes one labelled file, or two files of sentences. Got",
    "attributes learn a.txt --model model --out a.json": "a.txt:1: expected a label, text or number, got None; give every",
    "attributes learn empty.txt a.txt --model model --out a.json": "an attribute needs 5 different sentences of each label. 'e",
    "attributes move hi --model model --attribute folder": "folder: cannot read the attribute: Is a directory. Make one with:",
    "attributes move hi --model model --attribute list.json": "list.json: attribute format None, this vrae reads 1. Make one w",
    "attributes move hi --model model --attribute a.txt": "a.txt: not JSON (Expecting value: line 1 column 1 (char 0)), and so",
    "neighbours build --model model --data nothere --out index": f"nothere: {NO_CORPUS} nothere",
    "neighbours build --model model --data CORPUS --split foo --out index": "corpus has train, validation, test",
    "neighbours build --model model --data CORPUS --out a.txt": "--out a.txt: exists already. Choose another folder, or replac",
    "neighbours query hi --model model --index nothere": f"--index nothere: {NO_INDEX}: No such file or directory",
    "neighbours query hi --model model --index a.txt": f"--index a.txt: {NO_INDEX}: Not a directory",
    "compress nothere --model model --out b": "nothere: cannot read: No such file or directory",
    "compress folder --model model --out b": "folder: cannot read: Is a directory",
    "decompress a.txt --model model --out b": "a.txt: not a file that `vrae compress` has written",
    "decompress empty.txt --model model --out b": "empty.txt: not a file that `vrae compress` has written",
    "sample --model alone --temperature 1": "--temperature 1: for drawing words, and --beams 4 draws none. Add --beams 0",
    "sample --model alone --top_k 9 --min_p 0.1": "--top_k 9 --min_p 0.1: for drawing words, and --beams 4 draws none. Add --b",
    "sample --model alone --top_p 0.5 --beams 0": "--top_p 0.5: for drawing words, and --temperature 0 draws none. Add",
    "sample --model flat --max_tokens 9": "n 5: this model has no latent (model.latent_size is 0), and without drawing words",
    "chat --model alone": "this model reads no context (model.context_turns is 0) and cannot converse: use vrae sample",
    "chat --model model -n 0": "n must be a whole number from 1 to 256. Got 0",
    "chat --model model --temperature -1": "temperature must be in [0, 5]. Got -1.0",
    "chat --model model --rank best": "rank must be one of likelihood, importance_weighted, mmi. Got 'best'",
    "interpolate one --model model": "interpolate takes two turns. Got 1",
    "interpolate a b --model model --steps 1": "steps must be a whole number from 2 to 200. Got 1",
}


@pytest.fixture(scope="module")
def place(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("messages")
    shapes: dict[str, dict[str, int]] = {
        "model": dict(context_turns=2, latent_size=6),
        "alone": dict(latent_size=6),
        "flat": dict(context_turns=2, latent_size=0),
    }
    for name, shape in shapes.items():
        model = tiny_model(vocab_size=len(corpus.tokenizer), **shape).float()
        write_folder(place / name, to_files(model, corpus.tokenizer, {}))
    (place / "folder").mkdir()
    for name, text in {"a.txt": "one\ntwo\n", "empty.txt": "", "list.json": "[]"}.items():
        (place / name).write_text(text)
    return place


@pytest.mark.parametrize("line", WRONG)
def test_one_line_says_what_where_and_what_to_do(
    line: str, place: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    words = line.replace("CORPUS", str(corpus.path)).split()
    free = ["--port", str(port)] if words[0] == "serve" and "--port" not in words else []
    before = sorted(place.iterdir())
    assert main([*words, *free]) == 2
    printed, said = capsys.readouterr()
    assert printed == ""
    assert said.startswith("vrae: ")
    assert said.count("\n") == 1
    assert WRONG[line] in said
    assert sorted(place.iterdir()) == before
