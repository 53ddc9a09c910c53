"""What is given to the commands and is not what it should be: data, checkpoints, models, tokenizers, settings.

Each through a process of its own, to its exit code: one line that says what and where, and nothing is left or lost.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from faults.processes import PREPARE, SMALLTALK, TRAIN, environment, forked, vrae
from torch import Tensor

from vrae.corpus.prepared import Corpus
from vrae.corpus.readers import MAX_LINE_BYTES
from vrae.files import check_folder

STEPS = [*TRAIN, "--train.max_steps=12", "--train.keep_last=3"]
NEWEST = "checkpoints/step-00000012"


@pytest.fixture
def said(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("said") / "said.txt"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus and a run of three checkpoints. Not to be written to."""
    folder = tmp_path_factory.mktemp("inputs")
    for arguments in (
        ["prepare", SMALLTALK, "--out", folder / "corpus", *PREPARE],
        ["train", "--data", folder / "corpus", "--out", folder / "run", *STEPS],
    ):
        code, words = forked(*arguments, said=folder / "said.txt")
        assert code == 0, words
    return folder


@pytest.fixture
def run(workspace: Path, tmp_path: Path) -> Path:
    """A copy of the run that may be damaged."""
    return Path(shutil.copytree(workspace / "run", tmp_path / "run"))


@pytest.fixture
def model(workspace: Path, tmp_path: Path) -> Path:
    """A model folder that may be damaged; without a manifest, which would tell the damage before anything is read."""
    copy = Path(shutil.copytree(workspace / "run" / NEWEST, tmp_path / "model"))
    (copy / "manifest.json").unlink()
    return copy


def refused(*arguments: str | Path, said: Path, code: int = 2) -> str:
    """The one line of a command that is refused as it should be."""
    found, words = forked(*arguments, said=said)
    assert found == code, words
    assert words.startswith("vrae: ")
    assert words.count("\n") == 1
    return words.removeprefix("vrae: ").rstrip("\n")


# Data. Of each file: what the message begins with after the file's name, or how many turns there are.

TALK = "".join(f"how are you, number {i}?\nvery well, and you?\n\n" for i in range(100)).encode()
ROW = b'["how are you?", "very well"]\n'
REFUSED = {
    "empty.txt": (b"", ": expected dialogues, got an empty file; "),
    "empty.jsonl": (b"", ": expected dialogues, got an empty file; "),
    "blank.txt": (b"\n \r\n\t\n", ": expected dialogues, got only blank lines; "),
    "blank.jsonl": (b"\n\n", ": expected dialogues, got only blank lines; "),
    "mark.txt": (b"\xef\xbb\xbf", ": expected dialogues, got only blank lines; "),
    "one.txt": (b"hello\n", ": the training split is empty. Bring more dialogues"),
    "nul.txt": (TALK + b"a\0b\n", ":301: expected text, got a NUL at character 2; remove it"),
    "utf16.txt": ("hello\n".encode("utf-16"), ":1: expected UTF-8 text, got byte 0xff at byte 1 of the line; convert"),
    "latin.txt": (TALK + b"caf\xe9\n", ":301: expected UTF-8 text, got byte 0xe9 at byte 4 of the line; convert"),
    "long.txt": (TALK + b"x" * (MAX_LINE_BYTES + 1) + b"\n", ":301: expected a line of at most 1,000,000 bytes, got a longer"),
    "cut.jsonl": (ROW + ROW[:20], ":2: expected one JSON value, got an error (Unterminated string"),
    "nul.jsonl": (ROW + b'["a\\u0000"]\n', ":2: expected text, got a NUL as item 1; remove it"),
    "kinds.jsonl": (ROW + b'"just a string"\n', ":2: expected columns (layout turns), got a string alone; write"),
    "number.jsonl": (ROW + b"7\n", ":2: expected an object, a list of turns or a string, got a number; correct"),
    "mixed.jsonl": (ROW + b'["a", 3]\n', ":2: expected a list of strings, got a number as item 2; correct or remove"),
    "null.jsonl": (ROW + b'["a", null]\n', ":2: expected a list of strings, got null as item 2; correct or remove"),
    "none.jsonl": (ROW + b"null\n", ":2: expected an object, a list of turns or a string, got null; correct or remove"),
    "open.csv": (b'text\nhello\n"open\n', ":3: expected a row of comma-separated values, got "),
}
TAKEN = {
    "mark.txt": (b"\xef\xbb\xbf" + TALK, 200),
    "windows.txt": (TALK.replace(b"\n", b"\r\n"), 200),
    "long.txt": (TALK + b"word " * (MAX_LINE_BYTES // 5 - 1) + b"\nso long?\n", 202),
    "alone.jsonl": (b"".join(b'["what a day, number %d"]\n' % i for i in range(100)), 100),
}


@pytest.mark.parametrize("name", REFUSED)
def test_data_that_cannot_be_read_is_refused_with_file_and_line(name: str, tmp_path: Path, said: Path) -> None:
    data, message = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(data)
    assert refused("prepare", path, "--out", tmp_path / "corpus", *PREPARE, said=said).startswith(f"{path}{message}")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", TAKEN)
def test_data_that_only_looks_odd_is_read_to_its_end(name: str, tmp_path: Path, said: Path) -> None:
    data, turns = TAKEN[name]
    path = tmp_path / name
    path.write_bytes(data)
    code, words = forked("prepare", path, "--out", tmp_path / "corpus", *PREPARE, said=said)
    assert code == 0, words
    corpus = Corpus(tmp_path / "corpus")
    assert sum(len(split.speakers) for split in corpus.splits.values()) == turns
    texts = {corpus.tokenizer.decode(split.turn(i)) for split in corpus.splits.values() for i in range(len(split.speakers))}
    assert not any("\ufeff" in text or "\r" in text for text in texts)


def test_a_vocabulary_that_the_data_do_not_allow_is_refused_with_the_largest_they_do(tmp_path: Path, said: Path) -> None:
    path, out = tmp_path / "talk.txt", tmp_path / "corpus"
    path.write_bytes(TALK)
    told = refused("prepare", path, "--out", out, "--vocab_size=6000", "--quiet", said=said)
    most = int(told.split("at most ")[1].split()[0])
    assert told == (
        f"--vocab_size 6000: this corpus allows at most {most} pieces. Pass --vocab_size {most} or less, or bring more text"
    )
    assert not out.exists()
    assert forked("prepare", path, "--out", out, f"--vocab_size={most}", "--quiet", said=said)[0] == 0
    assert len(Corpus(out).tokenizer) == most


def test_a_model_with_context_trains_on_dialogues_of_one_turn(tmp_path: Path, said: Path) -> None:
    path, corpus = tmp_path / "alone.jsonl", tmp_path / "corpus"
    path.write_bytes(TAKEN["alone.jsonl"][0])
    assert forked("prepare", path, "--out", corpus, *PREPARE, said=said)[0] == 0
    code, words = forked("train", "--data", corpus, "--out", tmp_path / "run", *TRAIN, "--train.max_steps=4", said=said)
    assert code == 0, words


def test_a_corpus_without_validation_is_refused_by_training(tmp_path: Path, said: Path) -> None:
    path, corpus = tmp_path / "talk.txt", tmp_path / "corpus"
    path.write_bytes(TALK)
    none = ["--validation_percent=0", "--test_percent=0"]
    assert forked("prepare", path, "--out", corpus, *PREPARE, *none, said=said)[0] == 0
    told = refused("train", "--data", corpus, "--out", tmp_path / "run", *TRAIN, said=said)
    assert "validation" in told
    assert not (tmp_path / "run").exists()


def test_a_data_set_on_the_hub_that_cannot_be_reached_is_one_line(tmp_path: Path, said: Path) -> None:
    told = refused("prepare", "nobody/nothing", "--out", tmp_path / "corpus", *PREPARE, said=said)
    assert told.startswith("nobody/nothing: no such file, and the Hub cannot be reached ")
    assert "check the network and HF_HUB_OFFLINE, or give a local file" in told
    assert list(tmp_path.iterdir()) == []


# A tokenizer

TOKENIZERS = {
    "empty": (b"", "not a SentencePiece model"),
    "garbage": (bytes(range(256)) * 9, "not a SentencePiece model"),
    "text": (b"hello\n", "not a SentencePiece model"),
    "large": (bytes(32 * 2**20 + 1), "33554433 bytes is more than a tokenizer may have (33554432)"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_is_none_is_refused_by_name(name: str, tmp_path: Path, model: Path, said: Path) -> None:
    given = tmp_path / "tokenizer.model"
    for path in (given, model / "tokenizer.model"):
        path.write_bytes(TOKENIZERS[name][0])
    told = refused("prepare", SMALLTALK, "--out", tmp_path / "corpus", "--tokenizer", given, *PREPARE, said=said)
    assert told.startswith(f"{given}: {TOKENIZERS[name][1]}")
    assert not (tmp_path / "corpus").exists()
    told = refused("sample", "-n", "1", "--model", model, said=said)
    assert told.startswith(f"{model / 'tokenizer.model'}: {TOKENIZERS[name][1]}")


def test_a_tokenizer_of_another_size_than_the_model_is_refused(tmp_path: Path, model: Path, said: Path) -> None:
    forked("prepare", SMALLTALK, "--out", tmp_path / "corpus", *PREPARE, "--vocab_size=390", said=said)
    shutil.copy(tmp_path / "corpus" / "tokenizer.model", model)
    assert refused("sample", "--model", model, said=said) == f"{model}: the tokenizer has 390 pieces, the model 400"


# A model


EMBEDDING = "turn_encoder.embedding.weight"


def lacking(tensors: dict[str, Tensor]) -> None:
    del tensors[EMBEDDING]


def too_many(tensors: dict[str, Tensor]) -> None:
    tensors["extra"] = torch.zeros(1)


def flat(tensors: dict[str, Tensor]) -> None:
    tensors[EMBEDDING] = tensors[EMBEDDING].flatten()


def not_finite(tensors: dict[str, Tensor]) -> None:
    tensors[EMBEDDING][3, 3] = float("nan")


SPOILT = {
    lacking: f"lacks {EMBEDDING}",
    too_many: "has unknown extra",
    flat: f"{EMBEDDING} must have shape (400, 8). Got (3200,)",
    not_finite: f"{EMBEDDING} holds values that are not finite numbers",
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_tensors_that_are_not_the_models_are_refused_by_name(
    spoil: Callable[[dict[str, Tensor]], None], model: Path, said: Path
) -> None:
    path = model / "model.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    spoil(tensors)
    path.write_bytes(safetensors.torch.save(tensors))
    assert refused("sample", "--model", model, said=said) == f"{path}: {SPOILT[spoil]}"


class Payload:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.model"])
@pytest.mark.parametrize("save", [lambda x, path: path.write_bytes(pickle.dumps(x)), torch.save], ids=["pickle", "torch"])
def test_a_pickle_is_refused_and_not_run(
    save: Callable[[Any, Path], Any], name: str, tmp_path: Path, model: Path, said: Path
) -> None:
    save(Payload(tmp_path / "ran"), model / name)
    assert refused("sample", "--model", model, said=said).startswith(f"{model / name}: not ")
    assert not (tmp_path / "ran").exists()


def test_a_model_of_another_format_is_refused_with_both(model: Path, said: Path) -> None:
    config = json.loads((model / "config.json").read_bytes())
    (model / "config.json").write_text(json.dumps({**config, "format": 99}))
    assert refused("sample", "--model", model, said=said) == f"{model / 'config.json'}: model format 99, this vrae reads 1"


# A run


def cut(checkpoint: Path) -> None:
    os.truncate(checkpoint / "model.safetensors", 1000)


def flipped(checkpoint: Path) -> None:
    data = bytearray((checkpoint / "optimizer.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (checkpoint / "optimizer.safetensors").write_bytes(data)


def emptied(checkpoint: Path) -> None:
    os.truncate(checkpoint / "trainer.json", 0)


def without_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()


@pytest.mark.parametrize("damage", [cut, flipped, emptied, without_manifest])
def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(
    damage: Callable[[Path], None], workspace: Path, run: Path, said: Path
) -> None:
    damage(run / NEWEST)
    code, words = forked("train", "--data", workspace / "corpus", "--out", run, *STEPS, "--resume", said=said)
    assert code == 0, words
    warning = words.splitlines()[0]
    assert warning.startswith(f"vrae: warning: {run / NEWEST}: damaged (")
    assert warning.endswith("); going on from step 8")
    assert check_folder(run / NEWEST) == ""
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (run / NEWEST / name).read_bytes() == (workspace / "run" / NEWEST / name).read_bytes()


def test_where_all_checkpoints_are_damaged_each_is_named(workspace: Path, run: Path, said: Path) -> None:
    checkpoints = sorted((run / "checkpoints").glob("step-*"), reverse=True)
    assert len(checkpoints) == 3
    for path in checkpoints:
        cut(path)
    code, words = forked("train", "--data", workspace / "corpus", "--out", run, *STEPS, "--resume", said=said)
    *lines, last = words.removeprefix("vrae: ").splitlines()
    assert (code, last) == (2, f"{run / 'checkpoints'}: no sound checkpoint to resume from")
    assert [line.split(":")[0] for line in lines] == [str(path) for path in checkpoints]
    assert refused("sample", "--model", run / NEWEST, said=said).startswith(f"--model {run / NEWEST}: damaged (")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--model.latent_size=5", "--resume: model.latent_size was 4 and is 5. "),
        ("--train.learning_rate=0.5", "--resume: train.learning_rate was 0.02 and is 0.5. "),
        ("--batches.tokens=300", "--resume: batches.tokens was 256 and is 300. "),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(change: str, message: str, workspace: Path, run: Path, said: Path) -> None:
    before = (run / "run.json").read_bytes()
    told = refused("train", "--data", workspace / "corpus", "--out", run, *STEPS, "--resume", change, said=said)
    assert told.startswith(message)
    assert (run / "run.json").read_bytes() == before


def test_a_run_is_not_resumed_on_another_corpus(run: Path, tmp_path: Path, said: Path) -> None:
    other = tmp_path / "other"
    forked("prepare", SMALLTALK, "--out", other, *PREPARE, "--cleaning.lowercase=true", said=said)
    told = refused("train", "--data", other, "--out", run, *STEPS, "--resume", said=said)
    assert told.startswith(f"--resume: {other} is not the corpus this run was trained on (smalltalk.txt); ")


def test_a_folder_that_holds_a_run_is_no_place_for_another(workspace: Path, run: Path, said: Path) -> None:
    told = refused("train", "--data", workspace / "corpus", "--out", run, *STEPS, said=said)
    assert told.startswith(f"--out {run}: not empty. Choose another folder, or pass --resume ")
    assert check_folder(run / NEWEST) == ""


def test_a_run_that_diverges_ends_with_3_and_keeps_what_was_finite(workspace: Path, tmp_path: Path, said: Path) -> None:
    run = tmp_path / "run"
    wild = ["--train.learning_rate=1e30", "--train.warmup_steps=0", "--train.max_steps=100"]
    told = refused("train", "--data", workspace / "corpus", "--out", run, *TRAIN, *wild, said=said, code=3)
    assert told.startswith("10 steps in a row up to step 11 were not finite. ")
    assert json.loads((run / "diverged.json").read_bytes())
    assert [check_folder(path) for path in (run / "checkpoints").glob("step-*")] == ["", ""]


@pytest.mark.slow
def test_a_bad_line_among_many_is_answered_by_an_error_in_its_place(workspace: Path) -> None:
    lines = b'{"context": ["hi"]}\nnot json\n{"other": 1}\n["hello", "you"]\n\xff\n"just a turn"\n'
    asked = ["respond", "-n", "1", "--seed", "1", "--model", workspace / "run"]
    done = vrae(*asked, stdin=None, input=lines, text=False, encoding=None, env=environment())
    assert (done.returncode, done.stderr) == (1, b"")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["line"] for answer in answers if "error" in answer] == [2, 3, 5]
    assert len(answers) == 6
