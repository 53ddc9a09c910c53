"""A corpus on disk: what `vrae prepare` writes and all that training reads.

    DIR/manifest.json            source, licence, settings, counts of what was kept and dropped, sha256 of every file
    DIR/tokenizer.model          SentencePiece
    DIR/{split}.tokens.bin       uint16, the ids of all turns one after the other
    DIR/{split}.turns.bin        int64, where each turn starts in tokens, and the end
    DIR/{split}.dialogues.bin    int64, where each dialogue starts in turns, and the end
    DIR/{split}.speakers.bin     uint8, who speaks each turn, counted within its dialogue

The arrays are memory-mapped. Opening reads them through once, in blocks, to see that no offset or id leads outside. Preparing
keeps one chunk of dialogues in memory, one 16-byte digest per dialogue (to find duplicates) and the tokenizer's sample. The
same source and settings give the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import random
import reprlib
import shutil
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vrae.config import SPLITS, CleaningConfig, PrepareConfig, from_dict, shown
from vrae.corpus.cleaning import Cleaner
from vrae.corpus.encoding import ARRAYS, Encoded, encoders
from vrae.corpus.sources import Source, assign_split, open_source
from vrae.corpus.tokenizer import Tokenizer, train_tokenizer
from vrae.errors import ConfigError, DataError, UserError
from vrae.files import replace_folder, sync_folder

FORMAT = 1
_MAX_PIECES = int(np.iinfo(ARRAYS["tokens"]).max) + 1
_CHUNK_DIALOGUES = 256
_BLOCK = 2**20  # values that are checked at once
_COUNTS = ("dialogues", "turns", "tokens", "longest_turn")


@dataclass(frozen=True)
class Split:
    """One split of a prepared corpus. Arrays are read-only memory maps.

    tokens: [tokens] ids without bos and eos; turns: [N + 1] offsets into tokens; dialogues: [D + 1] offsets into turns;
    speakers: [N].
    """

    name: str
    tokens: np.ndarray
    turns: np.ndarray
    dialogues: np.ndarray
    speakers: np.ndarray

    def turn(self, index: int) -> np.ndarray:
        """Ids of turn `index`."""
        return self.tokens[self.turns[index] : self.turns[index + 1]]


class Corpus:
    """A prepared corpus, opened for reading.

    Raises:
        DataError: `path` is no prepared corpus, a file of it is missing or has another size than the manifest says, or its
            offsets and ids do not fit together.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        manifest_path = self.path / "manifest.json"
        try:
            self.manifest: dict[str, Any] = json.loads(manifest_path.read_bytes())
            version = self.manifest["format"]
            sizes = _check_manifest(self.manifest) if version == FORMAT else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigError) as error:
            raise DataError(
                f"{shown(str(path), 500)}: not a prepared corpus ({type(error).__name__} on manifest.json). "
                f"Make one with: vrae prepare SOURCE --out {shown(str(path), 500)}"
            ) from None
        if version != FORMAT:
            raise DataError(f"{path}: corpus format {reprlib.repr(version)}, this vrae reads {FORMAT}. Prepare it again")
        for name in ("tokenizer.model", *(f"{split}.{array}.bin" for split in SPLITS for array in ARRAYS)):
            file = self.path / name
            size = file.stat().st_size if file.is_file() else None
            if size is None or size != sizes.get(name):
                raise DataError(
                    f"{file}: {size} bytes where the manifest says {reprlib.repr(sizes.get(name))}. Prepare the corpus again"
                )
        self.tokenizer = Tokenizer.load(self.path / "tokenizer.model")
        self.splits = {name: self._open(name) for name in SPLITS}

    @property
    def fingerprint(self) -> str:
        """sha256 over the digests of all files: two corpora with the same fingerprint hold the same bytes."""
        return hashlib.sha256(json.dumps(self.manifest["files"], sort_keys=True).encode()).hexdigest()

    def __getitem__(self, split: str) -> Split:
        if split not in self.splits:
            raise DataError(f"--split {split}: {self.path} has {', '.join(SPLITS)}")
        return self.splits[split]

    def _open(self, split: str) -> Split:
        arrays = {}
        for array, dtype in ARRAYS.items():
            file = self.path / f"{split}.{array}.bin"
            if (size := file.stat().st_size) % dtype.itemsize:
                raise DataError(f"{file}: {size} bytes are no whole number of {dtype}. Prepare the corpus again")
            arrays[array] = np.memmap(file, dtype, "r") if size else np.zeros(0, dtype)
        opened = Split(split, **arrays)
        if fault := _fault(opened, len(self.tokenizer)):
            raise DataError(f"{self.path}: split {split}: {fault}. Prepare the corpus again")
        return opened


def _check_manifest(manifest: dict[str, Any]) -> dict[str, int]:
    """Sizes of the files. Raises what `Corpus` catches where something that is read later is not there, or of another type."""
    for values, names in ((manifest["source"], ("name", "licence")), (manifest["settings"], ("cleaning",))):
        missing = [name for name in names if name not in values]
        if missing:
            raise KeyError(missing[0])
    from_dict(CleaningConfig, manifest["settings"]["cleaning"], "settings.cleaning")
    for name in SPLITS:
        if not all(type(manifest["splits"][name][count]) is int for count in _COUNTS):
            raise TypeError(name)
    for file in manifest["files"].values():
        if not isinstance(file["sha256"], str):
            raise TypeError("sha256")
    return {name: file["bytes"] for name, file in manifest["files"].items()}


def _fault(split: Split, pieces: int) -> str:
    """Why offsets or ids of a split would lead outside of its arrays; empty where none does."""
    for name, offsets, within in (("turns", split.turns, split.tokens), ("dialogues", split.dialogues, split.speakers)):
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(within):
            return f"the offsets of {name} do not run from 0 to {len(within)}"
        if any((part[1:] < part[:-1]).any() for part in blocks(offsets)):
            return f"the offsets of {name} fall somewhere"
    if len(split.turns) != len(split.speakers) + 1:
        return f"{len(split.turns) - 1} turns and {len(split.speakers)} speakers"
    if any(part.max() >= pieces for part in blocks(split.tokens)):
        return f"a token is not among the {pieces} of the tokenizer"
    return ""


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Pieces of a large array, each of which begins with the last value of the one before."""
    return (array[start : start + _BLOCK + 1] for start in range(0, len(array), _BLOCK))


def prepare(config: PrepareConfig, out: str | Path, *, overwrite: bool = False, quiet: bool = False) -> Corpus:
    """Reads, cleans, splits and encodes a source into the folder `out`, which appears only when complete and on disk.

    Raises:
        DataError: a row cannot be read, nothing is left after cleaning, or the vocabulary does not fit the text.
        UserError: `out` exists and `overwrite` is false, or cannot be written, or another process is preparing it.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())) and not overwrite:
        raise UserError(f"--out {out}: exists already. Choose another folder, or pass --overwrite")
    source = open_source(config.source)
    try:
        with _workplace(out) as work:
            manifest = _write(config, source, work, quiet)
            (work / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            sync_folder(work)
            replace_folder(out, work, out.with_name(f".{out.name}.old"))
    except OSError as error:
        raise UserError(f"--out {out}: cannot write: {error.strerror or error}") from None
    return Corpus(out)


@contextlib.contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """An empty folder beside `out` for this process alone; it goes if the work fails.

    What a killed process left there is removed. The lock is the folder's own and dies with its holder, so nothing hangs on
    process numbers, which containers use again.
    """
    work = out.with_name(f".{out.name}.tmp")
    work.mkdir(parents=True, exist_ok=True)
    folder = os.open(work, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--out {out}: another process is preparing it. Wait for it, or choose another folder") from None
        for left in work.iterdir():
            left.unlink()
        try:
            yield work
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    finally:
        os.close(folder)


def inspect(config: PrepareConfig, *, quiet: bool = False) -> dict[str, Any]:
    """What `prepare` would keep and drop, without training a tokenizer or writing anything: counts and a few dialogues."""
    source = open_source(config.source)
    cleaner = Cleaner(config.cleaning)
    turns = words = kept = 0
    longest = 0
    examples: list[dict[str, Any]] = []
    for dialogue in tqdm(source, desc="reading", unit=" dialogues", disable=True if quiet else None):
        cleaned = cleaner(dialogue)
        if cleaned is None:
            continue
        kept += 1
        turns += len(cleaned.turns)
        lengths = [len(turn.split()) for turn in cleaned.turns]
        words += sum(lengths)
        longest = max(longest, *lengths)
        if len(examples) < 2:
            examples.append({"id": cleaned.id, "turns": [turn[:120] for turn in cleaned.turns[:4]]})
    if not kept:
        raise DataError(f"{config.source.source}: no dialogue is left after cleaning ({_counts(cleaner.dropped)})")
    return {
        "source": _describe(source),
        "dropped": dict(sorted(cleaner.dropped.items())),
        "changed": dict(sorted(cleaner.changed.items())),
        "dialogues": kept,
        "turns": turns,
        "words": words,
        "words_in_longest_turn": longest,
        "examples": examples,
    }


def _write(config: PrepareConfig, source: Source, work: Path, quiet: bool) -> dict[str, Any]:
    cleaner = Cleaner(config.cleaning)
    sample = _spool(config, source, cleaner, work, quiet)
    if config.tokenizer:
        tokenizer = Tokenizer.load(config.tokenizer)
        if len(tokenizer) > _MAX_PIECES:
            raise DataError(f"--tokenizer {config.tokenizer}: {len(tokenizer)} pieces, at most {_MAX_PIECES} can be stored")
    else:
        if not sample:
            raise DataError(f"{config.source.source}: the training split is empty. Bring more dialogues")
        tokenizer = Tokenizer(_train_tokenizer(sample, config.vocab_size))
    (work / "tokenizer.model").write_bytes(tokenizer.model)
    counts = {}
    del sample
    with encoders(tokenizer, config.num_proc, by_word=not config.tokenizer) as encode:
        for split in SPLITS:
            spool = work / f"{split}.jsonl"
            with open(spool, encoding="utf-8") as lines:
                chunks = encode(_chunks(lines, _CHUNK_DIALOGUES))
                counts[split] = _write_split(work, split, tqdm(chunks, f"encoding {split}", disable=True if quiet else None))
            spool.unlink()
    files = {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(work.iterdir())}
    settings = dataclasses.asdict(config)
    del settings["num_proc"], settings["source"]["source"]
    return {
        "format": FORMAT,
        "source": _describe(source),
        "settings": settings,
        "vocab_size": len(tokenizer),
        "splits": counts,
        "dropped": dict(sorted(cleaner.dropped.items())),
        "changed": dict(sorted(cleaner.changed.items())),
        "files": files,
    }


def _spool(config: PrepareConfig, source: Source, cleaner: Cleaner, work: Path, quiet: bool) -> list[str]:
    """Writes the cleaned dialogues of each split to a file; returns a uniform sample of the training turns."""
    sample: list[str] = []
    to_line = json.JSONEncoder(ensure_ascii=False).encode
    seen = kept = 0
    draw = random.Random(0)
    spools = {split: open(work / f"{split}.jsonl", "w", encoding="utf-8") for split in SPLITS}  # noqa: SIM115
    try:
        for dialogue in tqdm(source, desc="reading", unit=" dialogues", disable=True if quiet else None):
            cleaned = cleaner(dialogue)
            if cleaned is None:
                continue
            kept += 1
            split = cleaned.split or assign_split(cleaned.id, config.validation_percent, config.test_percent)
            spools[split].write(to_line((cleaned.turns, cleaned.speakers)) + "\n")
            if split == "train":
                spools[split].writelines(to_line(([sentence], [0])) + "\n" for sentence in cleaner.sentences)
            if split != "train" or config.tokenizer:
                continue
            for turn in cleaned.turns:
                seen += 1
                if seen <= config.tokenizer_turns:
                    sample.append(turn)
                elif (place := draw.randrange(seen)) < config.tokenizer_turns:
                    sample[place] = turn
    finally:
        for spool in spools.values():
            spool.close()
    if not kept:
        raise DataError(f"{config.source.source}: no dialogue is left after cleaning ({_counts(cleaner.dropped)})")
    return sample


def _train_tokenizer(sample: list[str], vocab_size: int) -> bytes:
    """`train_tokenizer` in a thread: in this one, signals would wait until SentencePiece is done, which may take minutes."""
    results: list[bytes | BaseException] = []

    def work() -> None:
        try:
            results.append(train_tokenizer(sample, vocab_size))
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=work, name="vrae tokenizer", daemon=True)
    thread.start()
    thread.join()
    (result,) = results
    if isinstance(result, BaseException):
        raise result
    return result


def _chunks(lines: Iterable[str], size: int) -> Iterator[list[str]]:
    lines = iter(lines)
    while chunk := list(islice(lines, size)):
        yield chunk


def _write_split(work: Path, split: str, chunks: Iterable[Encoded]) -> dict[str, int]:
    files = {array: open(work / f"{split}.{array}.bin", "wb") for array in ARRAYS}  # noqa: SIM115
    try:
        files["turns"].write(np.zeros(1, ARRAYS["turns"]).tobytes())
        files["dialogues"].write(np.zeros(1, ARRAYS["dialogues"]).tobytes())
        tokens = turns = dialogues = longest = 0
        for ids, lengths, sizes, speakers in chunks:
            files["tokens"].write(ids.tobytes())
            files["turns"].write((tokens + np.cumsum(lengths)).tobytes())
            files["dialogues"].write((turns + np.cumsum(sizes)).tobytes())
            files["speakers"].write(speakers.tobytes())
            tokens += len(ids)
            turns += len(lengths)
            dialogues += len(sizes)
            longest = max(longest, int(lengths.max(initial=0)))
    finally:
        for file in files.values():
            file.close()
    return {"dialogues": dialogues, "turns": turns, "tokens": tokens, "longest_turn": longest}


def _describe(source: Source) -> dict[str, Any]:
    return {
        "name": source.name,
        "licence": source.licence,
        "fingerprint": source.fingerprint(),
        **dataclasses.asdict(source.stats),
    }


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in sorted(counts.items())) or "the source is empty"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()
