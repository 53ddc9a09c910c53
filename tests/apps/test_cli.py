"""The command line: what each command prints, the promised JSON keys, exit codes, and one clear message for bad input."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vrae.apps import cli
from vrae.apps.cli import main
from vrae.apps.parser import build_parser, configs

ROOT = Path(__file__).parents[2]
TINY = [
    *("--model.context_turns=2", "--model.latent_size=6", "--model.embedding_size=12", "--model.hidden_size=16"),
    *("--model.context_size=16", "--batches.tokens=512", "--batches.segment_turns=4", "--train.max_steps=6"),
    *("--train.validate_every=3", "--train.checkpoint_every=3", "--train.log_every=2", "--train.validation_turns=20"),
    *("--train.threads=1", "--quiet"),
]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and two runs, of a responder and of a language model, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("cli")
    source = str(ROOT / "data" / "smalltalk.txt")
    prepared = ["--out", str(folder / "corpus"), "--vocab_size", "400", "--validation_percent", "20", "--quiet"]
    assert main(["prepare", source, *prepared]) == 0
    assert main(["train", "--data", str(folder / "corpus"), "--out", str(folder / "run"), *TINY]) == 0
    alone = ["--model.context_turns=0", "--model.latent_size=0"]
    assert main(["train", "--data", str(folder / "corpus"), "--out", str(folder / "language"), *TINY, *alone]) == 0
    return folder


@pytest.fixture
def model(workspace: Path) -> list[str]:
    return ["--model", str(workspace / "run")]


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_prepare_reports_what_it_kept(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(ROOT / "data/smalltalk.txt"), "--out", str(workspace / "again"), "--vocab_size=400"]) == 0
    printed = capsys.readouterr()
    assert "12 rows" in printed.out
    assert "next: vrae train --config tiny" in printed.out
    assert "validation has" in printed.err
    assert "pieces for" not in printed.err


def test_a_vocabulary_that_is_too_large_for_the_text_is_said(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(ROOT / "data/smalltalk.txt"), "--out", str(workspace / "large"), "--vocab_size=600"]) == 0
    assert "most are hardly ever seen. --vocab_size 400 would suit this text" in capsys.readouterr().err


def test_data_check_writes_nothing_and_counts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", str(ROOT / "data/smalltalk.txt"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["dialogues"], report["turns"]) == (12, 77)
    assert list(tmp_path.iterdir()) == []


def test_respond_prints_the_promised_keys(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["respond", "hello", "hi, how are you?", "-n", "3", "--seed", "1", "--json", *model]) == 0
    (result,) = lines(capsys.readouterr().out)
    assert result["context"] == ["hello", "hi, how are you?"]
    replies = result["replies"]
    assert isinstance(replies, list)
    assert len(replies) == 3
    assert all(set(reply) == {"text", "log_prob", "score", "tokens"} for reply in replies)


def test_sample_reconstruct_and_interpolate_print_the_promised_keys(
    model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "-n", "2", "--json", *model]) == 0
    assert [set(line) for line in lines(capsys.readouterr().out)] == [{"text", "log_prob"}] * 2
    assert main(["reconstruct", "hello", "good morning", "--json", *model]) == 0
    results = lines(capsys.readouterr().out)
    assert [set(line) for line in results] == [{"text", "reconstruction", "exact", "rate", "distortion"}] * 2
    assert main(["interpolate", "hello", "good morning", "--steps", "4", "--json", *model]) == 0
    (path,) = lines(capsys.readouterr().out)
    steps = path["steps"]
    assert isinstance(steps, list)
    assert [set(step) for step in steps] == [{"t", "text", "log_prob", "cosine", "exact"}] * 4
    assert [steps[0]["t"], steps[-1]["t"]] == [0, 1]


def test_evaluate_prints_the_promised_keys_and_an_unweighted_bound(
    workspace: Path, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--data", str(workspace / "corpus"), "--k", "3", "--samples", "20", "--json", *model]) == 0
    (report,) = lines(capsys.readouterr().out)
    promised = {
        "split", "turns", "tokens", "elbo", "rate", "distortion", "nll_iw", "k", "perplexity", "bits_per_token",
        "mutual_information", "active_units", "latent_size", "collapse",
    }  # fmt: skip
    assert promised <= set(report)
    assert report["elbo"] == pytest.approx(-(report["rate"] + report["distortion"]))  # type: ignore[operator]


def test_score_adds_up_the_bits_of_a_turn_given_its_context(
    model: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["score", "how are you", "--context", "hi", "hello", "--k", "5", "--json", *model]) == 0
    (typed,) = lines(capsys.readouterr().out)
    promised = {"text", "bits_latent", "bits_text", "bits_total", "bits_iw", "bits_gap", "effective_samples", "tokens"}
    assert set(typed) == promised
    assert typed["bits_total"] == pytest.approx(typed["bits_latent"] + typed["bits_text"])  # type: ignore[operator]
    given = b'{"text": "how are you", "context": ["hi", "hello"]}\n"how are you"\n{"context": []}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    assert main(["score", "--k", "5", *model]) == 1
    piped, alone, bad = lines(capsys.readouterr().out)
    assert piped == {key: pytest.approx(value, rel=1e-5) if key != "text" else value for key, value in typed.items()}
    assert alone["bits_total"] != typed["bits_total"]
    assert "stdin:3" in str(bad["error"])


def test_respond_ranks_and_spreads_and_shows_latents(
    workspace: Path, model: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text('["hello"]\n{"context": ["hello", "hi"]}\n{"turns": "thanks"}\n')
    asked = ["respond", "--input", str(tmp_path / "in.jsonl"), "-n", "2", "--seed", "1", "--temperature", "1", *model]
    assert main([*asked, "--rank", "mmi", "--candidates", "3", "--latents", "spread", "--min_p", "0.01", "--z"]) == 0
    found = lines(capsys.readouterr().out)
    assert [line["context"] for line in found] == [["hello"], ["hello", "hi"], ["thanks"]]
    for line in found:
        assert isinstance(line["replies"], list)
        scores = [reply["score"] for reply in line["replies"]]
        assert scores == sorted(scores, reverse=True)
        assert all(len(reply["z"]) == 6 for reply in line["replies"])
    assert main([*asked, "--rank", "mmi", "--background", str(workspace / "language")]) == 0
    other = lines(capsys.readouterr().out)
    assert [line["context"] for line in other] == [line["context"] for line in found]
    assert other != found


def test_variations_and_analogies(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["variations", "hello", "thanks", "-n", "2", "--radius", "3", "--seed", "1", "--json", *model]) == 0
    found = lines(capsys.readouterr().out)
    assert [line["text"] for line in found] == ["hello", "thanks"]
    assert isinstance(found[0]["variations"], list)
    assert all(set(one) == {"text", "log_prob"} for line in found for one in line["variations"])  # type: ignore[attr-defined]
    assert main(["analogy", "hello", "thanks", "thanks", "--json", *model]) == 0
    (result,) = lines(capsys.readouterr().out)
    assert result["texts"] == ["hello", "thanks", "thanks"]
    assert main(["reconstruct", "hello", "--json", *model]) == 0
    (whole,) = lines(capsys.readouterr().out)
    assert result["text"] == whole["reconstruction"]


def test_reconstruct_gives_posterior_samples_where_they_are_asked_for(
    model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reconstruct", "hello", "-n", "3", "--seed", "1", "--json", *model]) == 0
    (result,) = lines(capsys.readouterr().out)
    assert isinstance(result["samples"], list)
    assert len(result["samples"]) == 3


def test_encode_gives_the_same_as_json_and_as_an_array(
    model: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text('"hello"\noops\n{"text": "thanks", "context": ["hi"]}\n')
    assert main(["encode", "--input", str(tmp_path / "in.jsonl"), *model]) == 1
    first, bad, second = lines(capsys.readouterr().out)
    assert "in.jsonl:2" in str(bad["error"])
    out = tmp_path / "latents.npy"
    assert main(["encode", "--input", str(tmp_path / "in.jsonl"), "--out", str(out), *model]) == 1
    printed = capsys.readouterr()
    assert "in.jsonl:2" in printed.err
    assert printed.out == ""
    means_NZ, log_vars_NZ = np.load(out)
    assert means_NZ.dtype == np.float32
    assert np.isnan(means_NZ[1]).all()
    for row, line in ((0, first), (2, second)):
        assert means_NZ[row] == pytest.approx(line["mean"])
        assert log_vars_NZ[row] == pytest.approx(line["log_var"])


def test_neighbours_are_built_and_queried(
    workspace: Path, model: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    near = str(tmp_path / "near")
    assert main(["neighbours", "build", "--out", near, "--json", "--quiet", *model]) == 0
    (counts,) = lines(capsys.readouterr().out)
    assert counts["turns"] <= counts["occurrences"]  # type: ignore[operator]
    assert main(["neighbours", "query", "hello", "--index", near, "-n", "3", "--json", *model]) == 0
    (result,) = lines(capsys.readouterr().out)
    assert isinstance(result["neighbours"], list)
    assert [set(one) for one in result["neighbours"]] == [{"text", "distance", "count", "dialogue", "turn"}] * 3
    assert main(["neighbours", "build", "--out", near, "--quiet", *model]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("labelled", [False, True])
def test_attributes_are_learnt_and_sentences_moved_along_them(
    model: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, labelled: bool
) -> None:
    sides = {"statement": ["hello you", "it is good", "thanks", "i am fine", "yes it is"]}
    sides["question"] = ["how are you", "what is it", "who is there", "when", "why not"]
    for label, texts in sides.items():
        (tmp_path / f"{label}.txt").write_text("\n".join(texts) + "\n")
    rows = [json.dumps({"text": text, "label": label}) for label, texts in sides.items() for text in texts]
    (tmp_path / "both.jsonl").write_text("\n".join(rows))
    files = ["both.jsonl"] if labelled else ["question.txt", "statement.txt"]
    learnt = str(tmp_path / "style.json")
    assert main(["attributes", "learn", *(str(tmp_path / file) for file in files), "--out", learnt, "--json", *model]) == 0
    (result,) = lines(capsys.readouterr().out)
    assert (result["name"], result["labels"], result["sentences"]) == ("style", ["question", "statement"], [5, 5])
    assert main(["attributes", "move", "hello", "--attribute", learnt, "--strength", "2", "--json", *model]) == 0
    (moved,) = lines(capsys.readouterr().out)
    assert set(moved) == {"text", "moved", "before", "after"}
    assert main(["attributes", "learn", "a", "b", "c", "--out", learnt, *model]) == 2
    assert "Got 3" in capsys.readouterr().err


def test_plot_draws(model: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "paths.png"
    assert main(["plot", "paths", "hello", "thanks", "--out", str(out), "--json", *model]) == 0
    assert lines(capsys.readouterr().out) == [{"picture": str(out)}]
    assert out.read_bytes().startswith(b"\x89PNG")


def test_chat_answers_lines(model: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\nhow are you\n"))
    assert main(["chat", "--seed", "1", "--json", *model]) == 0
    first, second = lines(capsys.readouterr().out)
    assert first["context"] == ["hello"]
    assert second["context"] == [first["reply"], "how are you"]


def test_compress_and_decompress_give_the_file_back(
    model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = b"hello\n\nhow are you\r\n  two  spaces\n\xff\nno newline"
    (tmp_path / "talk.txt").write_bytes(text)
    assert main(["compress", str(tmp_path / "talk.txt"), "--out", str(tmp_path / "talk.vrae"), "--json", *model]) == 0
    (account,) = lines(capsys.readouterr().out)
    assert account["container_bytes"] == len((tmp_path / "talk.vrae").read_bytes())
    assert main(["decompress", str(tmp_path / "talk.vrae"), "--out", str(tmp_path / "again.txt"), *model]) == 0
    assert (tmp_path / "again.txt").read_bytes() == text
    for arguments, message in (
        (["compress", "nowhere.txt"], "nowhere.txt: cannot read: No such file"),
        (["decompress", str(tmp_path / "talk.txt")], "talk.txt"),
        (["decompress", str(tmp_path / "talk.vrae"), "--out", str(tmp_path / "no" / "where")], "cannot write"),
    ):
        assert main([*arguments, *([] if "--out" in arguments else ["--out", str(tmp_path / "out")]), *model]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["respond", "sample", "reconstruct", "interpolate"])
def test_text_output_is_for_people(command: str, model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"respond": ["hi"], "sample": [], "reconstruct": ["hi"], "interpolate": ["hi", "good morning"]}[command]
    assert main([command, *texts, *model]) == 0
    printed = capsys.readouterr().out
    assert printed.strip()
    assert not printed.startswith("{")


def test_info_describes_machine_and_model(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json", *model]) == 0
    (report,) = lines(capsys.readouterr().out)
    assert {"vrae", "python", "packages", "devices", "configs", "model"} <= set(report)


def test_a_bad_line_of_stdin_is_answered_by_an_error_object_and_exit_code_1(
    model: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = b'{"context": ["hi"]}\nnot json\n{"other": 1}\n["hello", "you"]\n"just a turn"\n\xff\n{"context": [3]}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    assert main(["respond", "-n", "1", "--seed", "1", *model]) == 1
    results = lines(capsys.readouterr().out)
    assert ["error" in result for result in results] == [False, True, True, False, False, True, True]
    assert [result["line"] for result in results if "error" in result] == [2, 3, 6, 7]


BAD = {
    "no such model": (["sample", "--model", "nowhere"], "nowhere: no such folder"),
    "not a corpus": (["train", "--data", "nowhere", "--out", "x"], "nowhere: not a prepared corpus"),
    "no such config": (["train", "--config", "nope", "--data", "a", "--out", "b"], "--config nope: no such file"),
    "background without mmi": (
        ["respond", "hi", "--rank", "likelihood", "--background", "x", "--model", "RUN"],
        "--background x: is read by --rank mmi alone",
    ),
    "no such rank": (["respond", "hi", "--rank", "x", "--model", "RUN"], "rank must be one of likelihood"),
    "no such latents": (["chat", "--latents", "x", "--model", "RUN"], "latents must be one of stratified"),
    "too many beams": (["respond", "hi", "--beams", "65", "--model", "RUN"], "beams must be in [0, 64]. Got 65"),
    "no input": (["encode", "--input", "gone.jsonl", "--model", "RUN"], "--input gone.jsonl: cannot read"),
    "two turns for an analogy": (["analogy", "a", "b", "--model", "RUN"], "analogy takes three turns, a - b + c. Got 2"),
    "radius": (["variations", "a", "--radius", "-1", "--model", "RUN"], "radius must be above 0 and at most 10. Got -1.0"),
    "no index": (["neighbours", "query", "a", "--index", "gone", "--model", "RUN"], "--index gone: no index"),
    "no attribute": (["attributes", "move", "a", "--attribute", "gone", "--model", "RUN"], "gone"),
    "no such picture": (["plot", "x", "--model", "RUN"], "plot x: draws map, rate, paths or training"),
    "no such source": (["data", "check", "nowhere.txt"], "nowhere.txt"),
    "value out of range": (
        ["train", "--data", "a", "--out", "b", "--model.latent_size", "-3"],
        "latent_size must be in [0, 65536]. Got -3",
    ),
    "two lengths missing": (
        ["train", "--data", "a", "--out", "b", "--train.max_steps", "0"],
        "max_steps and train.max_minutes",
    ),
    "no device": (["sample", "--device", "cuda:7", "--model", "x"], "cuda:7"),
    "minutes": (["demo", "--minutes", "0", "--out", "x"], "vrae: --steps and --minutes are both 0: give one"),
    "steps": (["demo", "--steps", "-3", "--out", "x"], "vrae: --steps must be 0 or more. Got -3"),
    "steps by another name": (["demo", "--train.max_steps", "5"], "--train.max_steps: vrae demo takes --steps in its place"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_exit_code_2(
    case: str, workspace: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, expected = BAD[case]
    assert main([str(workspace / "run") if argument == "RUN" else argument for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.startswith("vrae: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["respond", "-n", "0"], "n must be a whole number from 1 to 256. Got 0"),
        (["respond", "-n", "200", "--candidates", "6"], "n * candidates must be at most 1024. Got 200 * 6"),
        (["respond", "--seed", "-1"], "seed must be a whole number from 0"),
        (["respond", "--temperature", ".nan"], "temperature must be in [0, 5]. Got nan"),
        (["respond", "--top_p", "0"], "top_p must be in (0, 1]. Got 0"),
        (["respond", "--rank_samples", "0"], "rank_samples must be in [1, 10000]. Got 0"),
        (["reconstruct", "-n", "257"], "n must be a whole number from 0 to 256. Got 257"),
        (["reconstruct", "--seed", "-1"], "seed must be a whole number from 0"),
        (["interpolate", "--steps", "1"], "steps must be a whole number from 2 to 200. Got 1"),
        (["interpolate", "--method", "x"], "method must be slerp or lerp. Got 'x'"),
        (["variations", "-n", "0"], "n must be a whole number from 1 to 256. Got 0"),
        (["variations", "--radius", ".nan"], "radius must be above 0 and at most 10. Got nan"),
        (["variations", "--seed", "-1"], "seed must be a whole number from 0"),
        (["score", "--k", "0"], "k must be a whole number from 1 to 100000. Got 0"),
        (["neighbours", "query", "--index", "INDEX", "-n", "0"], "n must be a whole number from 1 to 1000. Got 0"),
        (["neighbours", "query", "--index", "INDEX", "--measure", "x"], "measure must be one of euclidean, cosine. Got 'x'"),
        (
            ["attributes", "move", "--attribute", "ATTRIBUTE", "--strength", ".nan"],
            "strength must be a number from -10 to 10. Got nan",
        ),
        (["attributes", "move", "--attribute", "ATTRIBUTE", "--along", "x"], "along must be means or normal. Got 'x'"),
        (["respond", "--model", "LANGUAGE"], "this model reads no context"),
        (["interpolate", "--model", "LANGUAGE"], "this model has no latent"),
        (["reconstruct", "--model", "LANGUAGE"], "this model has no latent"),
        (["variations", "--model", "LANGUAGE"], "this model has no latent"),
        (["analogy", "--model", "LANGUAGE"], "this model has no latent"),
        (["encode", "--model", "LANGUAGE"], "this model has no latent"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_that_no_line_could_be_worked_with_is_refused_before_any_is_read(
    command: list[str], problem: str, workspace: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = str(workspace / "run")
    if "INDEX" in command:
        assert (
            main(["neighbours", "build", "--data", str(workspace / "corpus"), "--out", str(tmp_path / "i"), "--model", run])
            == 0
        )
    if "ATTRIBUTE" in command:
        for name, words in (("a.txt", "yes no ok hello see"), ("b.txt", "what why how who when")):
            (tmp_path / name).write_text("\n".join(words.split()))
        files = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), "--out", str(tmp_path / "x.json")]
        assert main(["attributes", "learn", *files, "--model", run]) == 0
    capsys.readouterr()
    names = {"INDEX": str(tmp_path / "i"), "ATTRIBUTE": str(tmp_path / "x.json"), "LANGUAGE": str(workspace / "language")}
    model = [] if "--model" in command else ["--model", run]
    # there is no such file: whoever reads before looking at the options says so
    assert main([*(names.get(word, word) for word in command), *model, "--input", str(tmp_path / "gone.jsonl")]) == 2
    printed, said = capsys.readouterr()
    assert printed == ""
    assert said.startswith(f"vrae: {problem}")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"\xff\xfe", "config"),
        (b"model: null\n", "x.yaml: model must hold settings by name. Got None"),
        (b"model: {dropout: null}\n", "x.yaml: model.dropout has no value"),
        (b"[" * 20_000, "config"),
        (b"train: {max_steps: " + b"9" * 5000 + b"}", "config"),
    ],
    ids=["bytes", "null", "null within", "deep", "huge"],
)
def test_a_hostile_yaml_is_refused(given: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.yaml").write_bytes(given)
    assert exit_code(["train", "--config", str(tmp_path / "x.yaml"), "--data", "a", "--out", "b"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.fixture(scope="session")
def audited() -> list[str]:
    """Files as they are opened, from now on: an audit hook cannot be taken away again."""
    seen: list[str] = []
    sys.addaudithook(lambda event, args: seen.append(str(args[0])) if event == "open" else None)
    return seen


@pytest.mark.parametrize(
    "key", ["model", "batches", "train", "model+", "config", "config+", '"config"', "model.latent_size", "out"]
)
@pytest.mark.parametrize("value", ["{}", "../{}", "[{}]", "{{class_path: {}}}", "{{config: {}}}", "!include {}", "${{{}}}"])
def test_a_file_of_settings_opens_no_other(
    key: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], audited: list[str]
) -> None:
    file = tmp_path / "in" / "x.yaml"
    file.parent.mkdir()
    for folder in (tmp_path, file.parent):
        (folder / "canary").write_text("latent_size: 7  # secret\n")
    file.write_text(f"{key}: {value.format('canary')}\n")
    audited.clear()
    assert exit_code(["train", "--config", str(file), "--data=a", "--out=b"]) == 2
    error = capsys.readouterr().err
    assert "secret" not in error
    assert "Traceback" not in error
    assert str(file) in audited
    assert not [name for name in audited if "canary" in name]
    plain = value in ("{}", "../{}")
    if plain and "config" in key:
        assert error == f"vrae: --config {file}: config is no setting; a file of settings opens no other file. Leave it out\n"
    elif plain and key in ("model", "batches", "train"):
        assert error == f"vrae: --config {file}: {key} must hold settings by name. Got '{value.format('canary')}'\n"


@pytest.mark.parametrize(("command", "option"), [("train", "--model"), ("train", "--batches"), ("prepare", "--cleaning")])
def test_a_group_of_settings_is_no_option(
    command: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], audited: list[str]
) -> None:
    (tmp_path / "canary").write_text("latent_size: 7\n")
    audited.clear()
    assert exit_code([command, option, str(tmp_path / "canary"), "--out", "b"]) == 2
    assert f"ambiguous option: {option} could match" in capsys.readouterr().err
    assert str(tmp_path / "canary") not in audited


def exit_code(arguments: list[str]) -> object:
    """Of the command, or of the parser's own refusal."""
    try:
        return main(arguments)
    except SystemExit as stop:
        return stop.code


def test_print_config_gives_a_yaml_that_is_accepted_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", "demo", "--model.latent_size", "7", "--data", "a", "--out", "b", "--print_config"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "latent_size: 7" in printed
    (tmp_path / "again.yaml").write_text(printed)
    assert main(["train", "--config", str(tmp_path / "again.yaml")]) == 2
    assert "a: not a prepared corpus" in capsys.readouterr().err


def test_the_demo_ends_as_its_own_options_say_not_as_a_configuration_does() -> None:
    parser = build_parser()
    small = ["demo", "--config", str(configs()["small"])]
    for given, steps, minutes in ([], 0, 6.0), (["--steps", "50", "--minutes", "0"], 50, 0.0):
        train = parser.parse_args([*small, *given]).demo.train
        assert (train.max_steps, train.max_minutes) == (steps, minutes)
        assert (
            train.learning_rate
            == parser.parse_args(["train", *small[1:], "--data", "a", "--out", "b"]).train.train.learning_rate
        )


@pytest.mark.parametrize("arguments", [[], ["train"], ["respond"], ["data", "check"]])
def test_help_does_not_wait_for_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from vrae.apps.cli import main\n"
        "try: main(sys.argv[1:] + ['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'datasets', 'numpy', 'sentencepiece'} & set(sys.modules), 'imported too much'"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: vrae" in done.stdout


def test_help_is_quick() -> None:
    """Under half a second of processor time; the best of five, for the machine may be busy."""
    seconds = []
    for _ in range(5):
        before = os.times()
        subprocess.run([sys.executable, "-m", "vrae", "--help"], capture_output=True, check=True)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(seconds) < 0.5


def test_a_closed_pipe_ends_quietly(workspace: Path) -> None:
    command = f"{sys.executable} -m vrae sample -n 300 --model {workspace / 'run'} | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 141)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1


def test_configs_are_found_by_name() -> None:
    assert {"demo", "chitchat-vrae"} <= set(configs())


@pytest.mark.parametrize(("policy", "spins"), [(None, "1000"), ("active", None)])
def test_threads_do_not_wait_for_long_unless_told_to(
    monkeypatch: pytest.MonkeyPatch, policy: str | None, spins: str | None
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # to be put back as it was
        monkeypatch.delenv(name)
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    monkeypatch.setattr(cli, "main", lambda _: 0)
    with pytest.raises(SystemExit):
        cli.console([])
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_programs_for_products_are_not_kept_for_ever_unless_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = cli.KEPT_PROGRAMS
    for name in cli.KEPT_PROGRAMS:
        monkeypatch.setenv(name, "7")
    monkeypatch.delenv(second)
    monkeypatch.setattr(cli, "main", lambda _: 0)
    with pytest.raises(SystemExit):
        cli.console([])
    assert (os.environ[first], os.environ[second]) == ("7", "128")
