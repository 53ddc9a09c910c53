"""A prepared corpus: the same source gives the same bytes, the bytes give back the turns, and damage is named."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from conftest import VOCAB, make_dialogues, prepare_config, write_dialogues

from vrae.config import SPLITS, CleaningConfig, PrepareConfig
from vrae.corpus import prepared
from vrae.corpus.prepared import FORMAT, Corpus, Split, inspect, prepare
from vrae.corpus.tokenizer import Tokenizer, train_tokenizer
from vrae.errors import DataError, UserError

FILES = [
    "tokenizer.model",
    *(f"{split}.{array}.bin" for split in SPLITS for array in ("tokens", "turns", "dialogues", "speakers")),
]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def by_split(dialogues: list[list[str]], name: str = "talk.txt") -> dict[str, list[list[str]]]:
    """Which split each dialogue of a .txt belongs to: a hash of the file's name and the dialogue's first line, by hand."""
    splits: dict[str, list[list[str]]] = {split: [] for split in SPLITS}
    line = 1
    for turns in dialogues:
        percent = int(hashlib.sha256(f"vrae-v1:{name}:{line}".encode()).hexdigest()[:8], 16) % 100
        splits["test" if percent < 20 else "validation" if percent < 40 else "train"].append(turns)
        line += len(turns) + 1
    return splits


def decoded(corpus: Corpus, split: str) -> list[list[str]]:
    part = corpus[split]
    turns = [corpus.tokenizer.decode(part.turn(i)) for i in range(len(part.turns) - 1)]
    return [turns[start:end] for start, end in zip(part.dialogues[:-1], part.dialogues[1:], strict=True)]


@pytest.fixture
def copy(corpus: Corpus, tmp_path: Path) -> Path:
    """A copy of the corpus that may be damaged."""
    return Path(shutil.copytree(corpus.path, tmp_path / "copy"))


# What the arrays hold


@pytest.mark.parametrize("split", SPLITS)
def test_the_arrays_give_back_the_turns_in_their_order(corpus: Corpus, dialogues: list[list[str]], split: str) -> None:
    expected = by_split(dialogues)[split]
    assert expected
    assert decoded(corpus, split) == expected


@pytest.mark.parametrize("split", SPLITS)
def test_offsets_and_speakers_cover_the_tokens(corpus: Corpus, split: str) -> None:
    part = corpus[split]
    assert part.turns[0] == part.dialogues[0] == 0
    assert part.turns[-1] == len(part.tokens)
    assert part.dialogues[-1] == len(part.turns) - 1 == len(part.speakers)
    assert (np.diff(part.turns) > 0).all()
    assert (np.diff(part.dialogues) > 0).all()


def test_speakers_are_those_of_the_source(corpus: Corpus) -> None:
    part = corpus["train"]
    for start, end in zip(part.dialogues[:-1], part.dialogues[1:], strict=True):
        assert part.speakers[start:end].tolist() == [i % 2 for i in range(end - start)]


def test_the_arrays_are_mapped_and_cannot_be_written_to(corpus: Corpus) -> None:
    for array in (corpus["train"].tokens, corpus["train"].turns, corpus["train"].dialogues, corpus["train"].speakers):
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable


def test_the_manifest_counts_what_there_is(corpus: Corpus) -> None:
    for split, counts in corpus.manifest["splits"].items():
        part = corpus[split]
        assert counts == {
            "dialogues": len(part.dialogues) - 1,
            "turns": len(part.speakers),
            "tokens": len(part.tokens),
            "longest_turn": np.diff(part.turns).max(),
        }
    assert corpus.manifest["vocab_size"] == len(corpus.tokenizer) == VOCAB


def test_the_manifest_has_the_digest_of_every_file(corpus: Corpus) -> None:
    assert sorted(corpus.manifest["files"]) == sorted(FILES)
    for name, entry in corpus.manifest["files"].items():
        data = (corpus.path / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_dropped_dialogue_is_counted_and_not_stored(dialogues: list[list[str]], tmp_path: Path) -> None:
    source = write_dialogues(tmp_path / "talk.txt", [*dialogues, dialogues[0], dialogues[1]])
    corpus = prepare(prepare_config(source), tmp_path / "out", quiet=True)
    assert corpus.manifest["dropped"] == {"duplicate": 2}
    assert sum(counts["dialogues"] for counts in corpus.manifest["splits"].values()) == len(dialogues)


def test_sentences_go_to_the_training_split_alone_and_the_tokenizer_does_not_read_them(tmp_path: Path) -> None:
    talk = [
        ["hi there. how are you today?", "fine! thanks. and you?", "good"],
        ["yes. no. maybe", "bye"],
        ["ok. so what", "nothing"],
    ]
    source = tmp_path / "talk.jsonl"
    rows = [{"turns": turns * 12, "split": split} for turns, split in zip(talk, SPLITS, strict=True)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    made = {
        sentences: prepare(
            prepare_config(source, vocab_size=300, cleaning=CleaningConfig(sentences=sentences)),
            tmp_path / str(sentences),
            quiet=True,
        )
        for sentences in (False, True)
    }
    assert made[True].tokenizer.model == made[False].tokenizer.model
    for split in ("validation", "test"):
        assert decoded(made[True], split) == decoded(made[False], split)
    pieces = [["hi there."], ["how are you today?"], ["fine!"], ["thanks."], ["and you?"]]
    assert decoded(made[True], "train") == [*decoded(made[False], "train"), *pieces * 12]


def test_inspecting_counts_what_preparing_keeps(corpus: Corpus, source: Path, dialogues: list[list[str]]) -> None:
    found = inspect(prepare_config(source), quiet=True)
    counts = corpus.manifest["splits"].values()
    assert found["dialogues"] == sum(split["dialogues"] for split in counts)
    assert found["turns"] == sum(split["turns"] for split in counts)
    assert found["words"] == sum(len(turn.split()) for turns in dialogues for turn in turns)
    assert found["words_in_longest_turn"] == max(len(turn.split()) for turns in dialogues for turn in turns)


# The same bytes


@pytest.mark.parametrize("num_proc", [1, 2])
@pytest.mark.parametrize("chunk", [256, 7])
def test_neither_processes_nor_chunks_nor_place_change_a_byte(
    corpus: Corpus, dialogues: list[list[str]], num_proc: int, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "_CHUNK_DIALOGUES", chunk)
    source = write_dialogues(tmp_path / "talk.txt", dialogues)
    again = prepare(prepare_config(source, num_proc=num_proc), tmp_path / "other", quiet=True)
    assert content(again.path) == content(corpus.path)
    assert again.fingerprint == corpus.fingerprint


def test_the_fingerprint_changes_with_the_content(corpus: Corpus, dialogues: list[list[str]], tmp_path: Path) -> None:
    source = write_dialogues(tmp_path / "talk.txt", [*dialogues[:-1], [*dialogues[-1], "hello"]])
    assert prepare(prepare_config(source), tmp_path / "out", quiet=True).fingerprint != corpus.fingerprint


def test_more_dialogues_leave_the_others_in_their_split(dialogues: list[list[str]], tmp_path: Path) -> None:
    source = write_dialogues(tmp_path / "talk.txt", dialogues + make_dialogues(30, seed=1))
    corpus = prepare(prepare_config(source), tmp_path / "out", quiet=True)
    for split, expected in by_split(dialogues).items():
        assert decoded(corpus, split)[: len(expected)] == expected


def test_a_source_that_says_its_splits_keeps_them(dialogues: list[list[str]], tmp_path: Path) -> None:
    source = tmp_path / "talk.jsonl"
    rows = [{"turns": turns, "split": SPLITS[i % 3]} for i, turns in enumerate(dialogues)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    corpus = prepare(prepare_config(source, vocab_size=330), tmp_path / "out", quiet=True)
    for i, split in enumerate(SPLITS):
        assert decoded(corpus, split) == dialogues[i::3]


# The tokenizer


def changed(dialogues: list[list[str]], split: str) -> list[list[str]]:
    """The dialogues with a new word, many times, in a turn of one dialogue of a split; every line keeps its number."""
    target = by_split(dialogues)[split][0]
    return [["zyzzyva " * 9, *turns[1:]] if turns is target else turns for turns in dialogues]


@pytest.mark.parametrize("split", SPLITS)
def test_the_tokenizer_is_trained_on_the_training_split_alone(
    corpus: Corpus, dialogues: list[list[str]], split: str, tmp_path: Path
) -> None:
    source = write_dialogues(tmp_path / "talk.txt", changed(dialogues, split))
    other = prepare(prepare_config(source), tmp_path / "out", quiet=True)
    assert (other.tokenizer.model == corpus.tokenizer.model) == (split != "train")
    assert (tmp_path / "out" / f"{split}.tokens.bin").read_bytes() != (corpus.path / f"{split}.tokens.bin").read_bytes()


def test_the_tokenizer_is_trained_on_the_cleaned_turns(corpus: Corpus, dialogues: list[list[str]]) -> None:
    turns = [turn for dialogue in by_split(dialogues)["train"] for turn in dialogue]
    assert corpus.tokenizer.model == train_tokenizer(turns, VOCAB)


@pytest.mark.parametrize("limit", [30, 60])
def test_a_limited_tokenizer_sample_is_drawn_from_all_of_the_training_turns(
    dialogues: list[list[str]], limit: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def train(turns: list[str], vocab_size: int) -> bytes:
        seen.extend(turns)
        return train_tokenizer(turns, vocab_size)

    monkeypatch.setattr(prepared, "train_tokenizer", train)
    prepare(prepare_config(source, tokenizer_turns=limit, vocab_size=300), tmp_path / "out", quiet=True)
    turns = [turn for dialogue in by_split(dialogues)["train"] for turn in dialogue]
    assert len(seen) == limit
    assert set(seen) <= set(turns)
    places = [turns.index(turn) for turn in seen]
    assert min(places) < len(turns) / 4
    assert max(places) > 3 * len(turns) / 4


def test_a_given_tokenizer_is_used_as_it_is(corpus: Corpus, source: Path, tmp_path: Path) -> None:
    given = tmp_path / "given.model"
    given.write_bytes(train_tokenizer([turn for turns in make_dialogues(seed=5) for turn in turns], 350))
    other = prepare(prepare_config(source, tokenizer=str(given)), tmp_path / "out", quiet=True)
    assert other.tokenizer.model == given.read_bytes() != corpus.tokenizer.model
    for split in SPLITS:
        assert decoded(other, split) == decoded(corpus, split)


def test_a_tokenizer_of_more_pieces_than_the_arrays_can_hold_is_refused(corpus: Corpus, source: Path, tmp_path: Path) -> None:
    """A serialised message is extended by appending to it: here by pieces (field 1) that have just a text (field 1)."""
    given = tmp_path / "given.model"
    texts = (f"piece{i:05d}".encode() for i in range(65_537 - VOCAB))
    extra = b"".join(bytes([0x0A, len(text) + 2, 0x0A, len(text)]) + text for text in texts)
    given.write_bytes(corpus.tokenizer.model + extra)
    assert len(Tokenizer.load(given)) == 65_537
    with pytest.raises(DataError, match=r"--tokenizer .*given\.model: 65537 pieces, at most 65536"):
        prepare(prepare_config(source, tokenizer=str(given)), tmp_path / "out", quiet=True)


def test_a_given_tokenizer_may_have_pieces_that_reach_over_words(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "given.model"
    turns = ["how are you today", "see you later", "what do you like"] * 20
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(turns), model_writer=file, model_type="bpe", vocab_size=300, byte_fallback=True,
            pad_id=0, unk_id=1, bos_id=2, eos_id=3, split_by_whitespace=False, minloglevel=2, num_threads=1,
        )  # fmt: skip
    part = prepare(prepare_config(source, tokenizer=str(path)), tmp_path / "out", quiet=True)["train"]
    tokenizer = Tokenizer.load(path)
    texts = [tokenizer.decode(part.turn(i)) for i in range(len(part.speakers))]
    assert [part.turn(i).tolist() for i in range(len(texts))] == tokenizer.encode(texts)
    assert any("\u2581" in piece[1:] for text in texts for piece in tokenizer.pieces(tokenizer.encode([text])[0]))


# What stands in the way


@pytest.mark.parametrize(
    "make", [lambda out: out.write_bytes(b""), lambda out: (out / "kept").mkdir(parents=True)], ids=["file", "folder"]
)
def test_what_is_there_already_is_refused_and_kept(source: Path, tmp_path: Path, make: Callable[[Path], object]) -> None:
    out = tmp_path / "out"
    make(out)
    with pytest.raises(UserError, match=f"--out {re.escape(str(out))}: exists already"):
        prepare(prepare_config(source), out, quiet=True)
    assert out.is_file() or (out / "kept").is_dir()


def test_an_empty_folder_is_filled(corpus: Corpus, source: Path, tmp_path: Path) -> None:
    assert content(prepare(prepare_config(source), tmp_path, quiet=True).path) == content(corpus.path)


def test_an_older_corpus_is_replaced_where_asked(corpus: Corpus, copy: Path, source: Path) -> None:
    (copy / "extra").write_bytes(b"")
    prepare(prepare_config(source, vocab_size=350), copy, overwrite=True, quiet=True)
    assert len(Corpus(copy).tokenizer) == 350
    assert not (copy / "extra").exists()


@pytest.mark.parametrize("replaces", [False, True])
def test_a_corpus_is_on_disk_before_it_has_its_name(
    source: Path, tmp_path: Path, replaces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file whole, then the folder that holds their names; then it is renamed, and that is put on disk."""
    out, fsync, replace = tmp_path / "out", os.fsync, os.replace
    events: list[tuple[int | str, int]] = []
    if replaces:
        out.mkdir()
        (out / "old").write_bytes(b"")

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        found = os.fstat(descriptor)
        events.append((found.st_ino, found.st_size))

    def renamed(old: Path, new: Path) -> None:
        replace(old, new)
        events.append((old.name, 0))

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    prepare(prepare_config(source), out, overwrite=replaces, quiet=True)
    files = sorted((path.stat().st_ino, path.stat().st_size) for path in out.iterdir())
    assert len(files) == len(FILES) + 1
    assert sorted(events[: len(files)]) == files
    aside = ["out"] if replaces else []
    rest = [out.stat().st_ino, *aside, ".out.tmp", tmp_path.stat().st_ino]
    assert [event[0] for event in events[len(files) :]] == rest


@pytest.mark.parametrize("call", [1, 2])
def test_an_older_corpus_that_cannot_be_replaced_stays(
    copy: Path, source: Path, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, calls, replace = content(copy), iter(range(1, 9)), os.replace

    def failing(*arguments: Any) -> None:
        if next(calls) == call:
            raise OSError(errno.EIO, "Input/output error")
        replace(*arguments)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(UserError, match=r"cannot write: Input/output error"):
        prepare(prepare_config(source), copy, overwrite=True, quiet=True)
    assert content(copy) == before
    assert list(copy.parent.iterdir()) == [copy]


@pytest.mark.parametrize("stage", ["train_tokenizer", "encoders", "_write_split", "_describe"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(errno.ENOSPC, "No space left on device")])
def test_preparing_that_fails_leaves_all_as_it_was(
    copy: Path, source: Path, stage: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(copy)

    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(prepared, stage, failing)
    with pytest.raises(UserError if isinstance(error, OSError) else error):  # type: ignore[arg-type]
        prepare(prepare_config(source), copy, overwrite=True, quiet=True)
    assert content(copy) == before
    assert list(copy.parent.iterdir()) == [copy]


def test_a_full_disk_is_named(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepared, "_write_split", full)
    with pytest.raises(UserError, match=r"--out .*out: cannot write: No space left on device"):
        prepare(prepare_config(source), tmp_path / "out", quiet=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cleaning": CleaningConfig(min_turns=1000)}, r"talk\.txt: no dialogue is left after cleaning \(fewer turns .*: 60\)"),
        ({"vocab_size": 60_000}, r"--vocab_size 60000: this corpus allows at most \d+ pieces"),
    ],
)
def test_what_cannot_be_prepared_is_said_and_leaves_nothing(
    source: Path, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        prepare(prepare_config(source, **settings), tmp_path / "out", quiet=True)
    assert list(tmp_path.iterdir()) == []


def one_dialogue(tmp_path: Path, split: str) -> PrepareConfig:
    source = tmp_path / "talk.jsonl"
    source.write_text(json.dumps({"turns": ["hello", "you"], "split": split}) + "\n")
    return prepare_config(source, vocab_size=300)


def test_a_source_without_training_dialogues_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"talk\.jsonl: the training split is empty"):
        prepare(one_dialogue(tmp_path, "test"), tmp_path / "out", quiet=True)


def test_with_a_given_tokenizer_splits_may_be_empty(corpus: Corpus, tmp_path: Path) -> None:
    config = dataclasses.replace(one_dialogue(tmp_path, "test"), tokenizer=str(corpus.path / "tokenizer.model"))
    other = prepare(config, tmp_path / "out", quiet=True)
    assert decoded(other, "train") == []
    assert decoded(other, "test") == [["hello", "you"]]


# Opening


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named_with_both_sizes(copy: Path, name: str) -> None:
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[:-1])
    with pytest.raises(DataError, match=rf"{re.escape(name)}: {len(data) - 1} bytes where the manifest says {len(data)}"):
        Corpus(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(DataError, match=re.escape(str(copy / name))):
        Corpus(copy)


@pytest.mark.parametrize(
    "manifest",
    [None, "", "junk", "[]", "null", "{}", "[" * 100_000, f'{{"format": {FORMAT}}}', f'{{"format": {FORMAT}, "files": []}}',
     f'{{"format": {FORMAT}, "files": {{"train.tokens.bin": 3}}}}'],
    ids=lambda text: repr(text)[:40],
)  # fmt: skip
def test_a_folder_without_a_sound_manifest_is_no_corpus(copy: Path, manifest: str | None) -> None:
    path = copy / "manifest.json"
    path.unlink() if manifest is None else path.write_text(manifest)
    with pytest.raises(DataError, match=rf"{re.escape(str(copy))}: not a prepared corpus .* vrae prepare"):
        Corpus(copy)


def test_a_manifest_that_lacks_a_file_names_it(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_bytes())
    del manifest["files"]["test.turns.bin"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"test\.turns\.bin: \d+ bytes where the manifest says None"):
        Corpus(copy)


def test_another_format_is_refused_with_both_versions(copy: Path) -> None:
    (copy / "manifest.json").write_text(json.dumps({"format": FORMAT + 1}))
    with pytest.raises(DataError, match=f"corpus format {FORMAT + 1}, this vrae reads {FORMAT}"):
        Corpus(copy)


def test_a_split_that_is_none_is_refused_with_those_there_are(corpus: Corpus) -> None:
    with pytest.raises(DataError, match=r"--split dev: .* has train, validation, test"):
        corpus["dev"]


def test_a_turn_is_its_slice_of_the_tokens() -> None:
    split = Split("train", np.arange(10, 16), np.array([0, 2, 2, 6]), np.array([0, 3]), np.zeros(3))
    assert [split.turn(i).tolist() for i in range(3)] == [[10, 11], [], [12, 13, 14, 15]]


def rewritten(copy: Path, name: str, array: np.ndarray) -> None:
    """An array with other numbers, and a manifest of its size."""
    (copy / name).write_bytes(array.tobytes())
    manifest = json.loads((copy / "manifest.json").read_bytes())
    manifest["files"][name]["bytes"] = array.nbytes
    (copy / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["test.turns.bin", "test.dialogues.bin"])
@pytest.mark.parametrize(("place", "value"), [(0, 1), (-1, 2**40), (1, -1), (1, 2**62), (1, -(2**63))])
def test_offsets_that_lead_outside_are_refused(copy: Path, name: str, place: int, value: int) -> None:
    offsets = np.fromfile(copy / name, "<i8")
    offsets[place] = value
    rewritten(copy, name, offsets)
    with pytest.raises(DataError, match=r"split test: the offsets of (turns|dialogues) "):
        Corpus(copy)


def test_offsets_are_compared_across_the_blocks_they_are_read_in(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offsets = np.fromfile(copy / "train.turns.bin", "<i8")
    for size in (1, 2, 3):
        monkeypatch.setattr(prepared, "_BLOCK", size)
        Corpus(copy)
    monkeypatch.setattr(prepared, "_BLOCK", 4)
    rewritten(copy, "train.turns.bin", np.where(np.arange(len(offsets)) == 4, 1, offsets))
    with pytest.raises(DataError, match="the offsets of turns fall somewhere"):
        Corpus(copy)


def test_tokens_speakers_and_sizes_that_do_not_fit_are_refused(copy: Path, corpus: Corpus, tmp_path: Path) -> None:
    tokens = np.array(corpus["test"].tokens)
    tokens[-1] = len(corpus.tokenizer)
    rewritten(copy, "test.tokens.bin", tokens)
    with pytest.raises(DataError, match=f"a token is not among the {len(corpus.tokenizer)} of the tokenizer"):
        Corpus(copy)
    rewritten(copy, "test.tokens.bin", np.zeros(3, np.uint8))
    with pytest.raises(DataError, match="3 bytes are no whole number of uint16"):
        Corpus(copy)


@pytest.mark.parametrize(
    "change",
    [{"source": {}}, {"source": []}, {"settings": {"cleaning": {"x": 1}}}, {"settings": {}}, {"splits": {"train": {}}}],
    ids=str,
)
def test_a_manifest_that_lacks_what_is_read_later_is_refused(copy: Path, change: dict[str, Any]) -> None:
    manifest = json.loads((copy / "manifest.json").read_bytes())
    (copy / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(DataError, match="not a prepared corpus"):
        Corpus(copy)
