"""`vrae evaluate` from the command line: its sections, its files, its messages; the same bytes for the same seed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vrae.apps.cli import main

TINY = ["--model.embedding_size=8", "--model.hidden_size=8", "--model.context_size=8", "--model.latent_size=3"]
TINY += ["--batches.tokens=512", "--batches.segment_turns=4", "--train.max_steps=4", "--train.validate_every=4"]
TINY += ["--train.checkpoint_every=4", "--train.log_every=2", "--train.threads=1", "--quiet"]
FAST = ["--split", "train", "--k", "2", "--max_turns", "20", "--samples", "30", "--paths", "3", "--contexts", "4", "--quiet"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus and three runs on it: replies, autoencoder, language model."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "talk.txt").write_text(
        "\n\n".join("\n".join(f"{word} is good" for word in ("tea", "it", "the sun", "pizza", "what")) for _ in range(30))
        + "\n"
    )
    options = ["--vocab_size", "300", "--validation_percent", "20", "--cleaning.drop_duplicates", "false", "--quiet"]
    assert main(["prepare", str(folder / "talk.txt"), "--out", str(folder / "corpus"), *options]) == 0
    for name, settings in (
        ("replies", ["--model.context_turns=2"]),
        ("autoencoder", []),
        ("language", ["--model.latent_size=0"]),
    ):
        assert main(["train", "--data", str(folder / "corpus"), "--out", str(folder / name), *TINY, *settings]) == 0
    return folder


def report(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", *FAST, *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_replies_are_scored_in_three_protocols_each_with_its_statement(
    runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("tea 1 0\ngood 0 1\nis 1 1\n")
    sections = report([str(runs / "replies"), "--vectors", str(vectors)], capsys)["sections"]
    for protocol in ("legacy", "modern", "standard"):
        section = sections[f"Replies, {protocol} protocol"]
        (statement,) = section["protocol"]
        assert statement.startswith(f"{protocol}: ")
        assert "contexts: 4" in statement
        assert "temperature 0.5" in statement
        assert {f"{protocol}_bleu_recall", f"{protocol}_distinct_1_corpus", f"{protocol}_average"} <= set(section["figures"])


def test_a_model_without_latent_has_its_bound_and_its_samples(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report([str(runs / "language"), "--judge", str(runs / "language")], capsys)
    assert set(found["sections"]) == {"Bound", "Units", "Latent", "Samples"}
    assert found["rate"] == 0
    assert found["nll_iw"] == pytest.approx(-found["elbo"])
    assert found["sections"]["Samples"]["figures"]["real_forward_perplexity"]["value"] > 1


def test_units_are_nats_over_log_2_and_turns_over_tokens(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report([str(runs / "replies")], capsys)
    units = {key: figure["value"] for key, figure in found["sections"]["Units"]["figures"].items()}
    for name in ("elbo", "rate", "distortion", "nll_iw"):
        assert units[f"{name}_bits_per_turn"] == pytest.approx(found[name] / math.log(2))
        assert units[f"{name}_nats_per_token"] == pytest.approx(found[name] * found["turns"] / found["tokens"])
        assert units[f"{name}_bits_per_token"] == pytest.approx(units[f"{name}_nats_per_token"] / math.log(2))


def test_the_report_is_written_with_its_pictures_and_is_the_same_bytes_again(
    runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        assert main(["evaluate", "--model", str(runs / "autoencoder"), *FAST, "--out", str(tmp_path / name)]) == 0
    printed = capsys.readouterr().out
    assert "Interpolation" in printed
    assert f"written to {tmp_path / 'b'}" in printed
    files = {"report.json", "report.md", "training.png", "rate_per_dimension.png", "latent_map.png"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == files
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert "![" in (tmp_path / "a" / "report.md").read_text()


def test_two_processes_of_torchrun_give_the_report_of_one(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = report([str(runs / "autoencoder")], capsys)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "vrae", "evaluate"]
    done = subprocess.run(
        [sys.executable, *command, str(runs / "autoencoder"), *FAST, "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == alone


def test_without_draws_there_is_no_weighted_bound(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report([str(runs / "autoencoder"), "--k", "0", "--samples", "0", "--paths", "0"], capsys)
    assert found["nll_iw"] is None
    assert found["elbo"] == pytest.approx(-found["rate"] - found["distortion"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--data", "x"], "x: "),
        (["nowhere"], "--model nowhere: no such folder"),
        (["--model", "a", "b"], "a run is given twice"),
        (["RUN", "--k", "-1"], "--k must be 0 or more. Got -1"),
        (["RUN", "--split", "dev"], "--split must be one of"),
        (["RUN", "--judge", "AUTOENCODER"], "latent"),
        (["RUN", "--vectors", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    runs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    names = {"RUN": str(runs / "replies"), "AUTOENCODER": str(runs / "autoencoder")}
    assert main(["evaluate", *FAST, *(names.get(a, a) for a in arguments)]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.startswith("vrae: ")
    assert printed.count("\n") == 1
