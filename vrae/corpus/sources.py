"""Where dialogues come from: the chitchat set, a file, or a data set on the Hub."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vrae.config import CleaningConfig, SourceConfig, shown
from vrae.corpus.layouts import Dialogue, Group, RowReader, numbered, split_name
from vrae.corpus.readers import READERS, TEXT_KINDS, Rows, open_file, problem, read_text, row_place, text_layout
from vrae.errors import DataError

__all__ = ["Dialogue", "Source", "SourceStats", "assign_split", "open_source", "read_dialogues"]

CHITCHAT_SHA256 = "d2a5d0bf6acf354fef51f3af39cbece2220d3b8f6086b658c3d335105798312a"
CHITCHAT_PACKAGE = "chitchat-dataset==0.9.0"
ACCEPTED = "`chitchat`, a .txt, .jsonl, .csv, .tsv or .parquet file, or the id owner/name of a data set on the Hub"
REVISION = "a branch, tag or commit (letters, digits and . _ - /)"
NOT_STATED = "not stated"
SUFFIXES = (".txt", *READERS)

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(?<![.-])", re.ASCII)
_REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
_LONGEST_HUB_NAME = 96  # characters of an id; no tag or branch of the Hub needs more
_NAMES_NO_FILE = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")  # surrogates besides these stand for bytes that are not UTF-8
_FILE_LIKE = re.compile(r"\.(txt|jsonl?|[ct]sv|parquet|gz|zip|zst|xz|bz2|md|xlsx?|ya?ml|arrow|pkl|db)$", re.IGNORECASE)


@dataclass
class SourceStats:
    """What the last pass over a source met.

    Args:
        description: how the source was read, for people.
        licence: the data's, as far as it is known.
        layout: of the rows; empty before the first one.
        rows: rows seen, bad ones included; a row is a line, a record, or a block of lines of a .txt.
        dialogues: dialogues handed out.
        bad_rows: rows that could not be read.
        bad_examples: the messages about the first five of them.
        broken_dialogues: `flat` dialogues left out because one of their rows was bad.
    """

    description: str = ""
    licence: str = NOT_STATED
    layout: str = ""
    rows: int = 0
    dialogues: int = 0
    bad_rows: int = 0
    bad_examples: list[str] = field(default_factory=list)
    broken_dialogues: int = 0


def assign_split(dialogue_id: str, validation_percent: int = 5, test_percent: int = 5) -> str:
    """The split of a dialogue whose source has none: a function of its id alone, whatever else is in the corpus."""
    bucket = int(hashlib.sha256(f"vrae-v1:{dialogue_id}".encode()).hexdigest()[:8], 16) % 100
    if bucket < test_percent:
        return "test"
    return "validation" if bucket < test_percent + validation_percent else "train"


class Source(ABC):
    """Dialogues in a fixed order, however often they are iterated over.

    Attributes:
        name: `chitchat`, the file's name or the Hub id.
        licence: the data's, as far as it is known.
        cleaning: what this source is best cleaned with.
        stats: of the last pass, or of the one under way.
    """

    def __init__(self, name: str, licence: str = NOT_STATED, cleaning: CleaningConfig | None = None) -> None:
        self.name = name
        self.licence = licence
        self.cleaning = cleaning or CleaningConfig()
        self.stats = SourceStats(licence=licence)

    @abstractmethod
    def fingerprint(self) -> str:
        """What changes when the data does."""

    @abstractmethod
    def __iter__(self) -> Iterator[Dialogue]:
        """Raises DataError for what cannot be read, and when nothing can be."""


class ChitchatSource(Source):
    """The Chit-Chat Challenge conversations, out of the installed package, which is not imported.

    A turn is one message as it was sent; a `Cleaner` joins those that one person sent in a row.
    """

    def __init__(self) -> None:
        super().__init__("chitchat", "MIT", CleaningConfig(min_turns=2, spam_messages=15, spam_distinct=0.7))

    def fingerprint(self) -> str:
        self._read()
        return CHITCHAT_SHA256

    def __iter__(self) -> Iterator[Dialogue]:
        conversations: dict[str, dict[str, list[list[dict[str, str]]]]] = json.loads(self._read())
        description = f"Chit-Chat Challenge conversations, package {CHITCHAT_PACKAGE}; a turn is one message"
        self.stats = stats = SourceStats(description, self.licence, "chat")
        for key, conversation in conversations.items():
            messages = [message for turn in conversation["messages"] for message in turn]
            stats.rows += 1
            stats.dialogues += 1
            speakers = numbered(message["sender"] for message in messages)
            yield Dialogue(key, tuple(message["text"] for message in messages), speakers)

    def _read(self) -> bytes:
        """The 40 MB of dataset.json, verified."""
        spec = importlib.util.find_spec("chitchat_dataset")
        folders = list(spec.submodule_search_locations or ()) if spec else []
        path = Path(folders[0], "dataset.json") if folders else None
        if path is None or not path.is_file():
            raise DataError(f"chitchat: the package with the conversations is missing; pip install {CHITCHAT_PACKAGE}")
        with open_file(path) as file:
            content = file.read()
        digest = hashlib.sha256(content).hexdigest()
        if digest != CHITCHAT_SHA256:
            remedy = f"pip install --force-reinstall {CHITCHAT_PACKAGE}"
            raise problem(str(path), f"sha256 {CHITCHAT_SHA256[:12]}...", f"{digest[:12]}...", remedy)
        return content


@dataclass(frozen=True)
class _Part:
    """Rows that are read alike.

    Args:
        place: how a row's place starts in a message, before its number.
        id: how the ids of dialogues without one of their own start, before ":number".
        split: of all its dialogues; empty: as the rows say.
        config: how to read the rows.
        rows: numbers and rows.
    """

    place: str
    id: str
    split: str
    config: SourceConfig
    rows: Rows


class RowSource(Source):
    """A source of rows in one of the layouts. Subclasses say where the rows are."""

    def __init__(self, name: str, config: SourceConfig) -> None:
        super().__init__(name)
        self.config = config

    @abstractmethod
    def _parts(self) -> Iterator[_Part]: ...

    def _nothing(self) -> str:
        """What was found instead of rows."""
        return "no rows"

    def __iter__(self) -> Iterator[Dialogue]:
        self.stats = stats = SourceStats(licence=self.licence)
        for part in self._parts():
            with closing(part.rows):
                for dialogue in self._dialogues(part):
                    stats.dialogues += 1
                    yield replace(dialogue, split=part.split) if part.split else dialogue
        if not stats.rows:
            raise problem(self.config.source, "dialogues", self._nothing(), f"accepted are {ACCEPTED}")
        if not stats.dialogues:
            got = f"{stats.bad_rows:,} bad ones of {stats.rows:,}"
            first = f"the first: {stats.bad_examples[0]}"
            raise problem(self.config.source, "at least one row that can be read", got, first)

    def _dialogues(self, part: _Part) -> Iterator[Dialogue]:
        reader: RowReader | None = None
        group = Group()
        for number, row in part.rows:
            self.stats.rows += 1
            where = f"{part.place}{number}"
            key: str | None = None
            try:
                if isinstance(row, DataError):
                    raise row
                if reader is None:
                    reader = RowReader(part.config, row, where)
                    self.stats.layout = reader.layout
                if reader.layout != "flat":
                    yield reader.dialogue(row, where, f"{part.id}:{number}")
                    continue
                key = reader.key(row, where)
                if key != group.key:
                    yield from self._finished(group)
                    group = Group(key, broken=group.gap)
                reader.turn(row, where, group)
            except DataError as error:
                self._bad(error)
                group.broken = True
                group.gap = key is None
        yield from self._finished(group)

    def _finished(self, group: Group) -> Iterator[Dialogue]:
        dialogue = group.dialogue()
        if dialogue is not None:
            yield dialogue
        elif group.key is not None:
            self.stats.broken_dialogues += 1

    def _bad(self, error: DataError) -> None:
        if not self.config.skip_bad_rows:
            raise error
        self.stats.bad_rows += 1
        if len(self.stats.bad_examples) < 5:
            self.stats.bad_examples.append(str(error))


class FileSource(RowSource):
    """A .txt, .jsonl, .csv, .tsv or .parquet file."""

    def __init__(self, config: SourceConfig) -> None:
        """Raises DataError when there is no such file, or none of an accepted kind."""
        # os.path leaves `~nobody` as it is, and says of a name that no file system would take that there is none; Path raises
        self.path = Path(os.path.expanduser(config.source) if _NAMES_NO_FILE.search(config.source) is None else config.source)
        super().__init__(self.path.name, config)
        self._suffix = self.path.suffix.lower()
        if not os.path.exists(self.path):
            raise DataError(f"{shown(config.source, 500)}: no such file; accepted are {ACCEPTED}")
        if not os.path.isfile(self.path):
            raise problem(config.source, "a file", "something else", f"accepted are {ACCEPTED}")
        if self._suffix not in SUFFIXES:
            got = self._suffix or "no ending"
            raise problem(config.source, f"a file that ends in {', '.join(SUFFIXES)}", got, "convert or rename it")

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        with open_file(self.path) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()

    def _parts(self) -> Iterator[_Part]:
        config = self.config
        if self._suffix == ".txt":
            kind = text_layout(self.path, config.layout)
            self.stats.description = TEXT_KINDS[kind]
            if kind == "utterances" and config.layout == "auto":
                self.stats.description += ": no blank line divides it (--layout turns reads it as one dialogue)"
            config = replace(config, layout="turns" if kind == "eou" else kind)
            rows = read_text(self.path, kind)
        else:
            self.stats.description = f"rows of a {self._suffix} file"
            rows = READERS[self._suffix](self.path)
        yield _Part(row_place(self.path), self.path.name, "", config, rows)

    def _nothing(self) -> str:
        if self.path.stat().st_size == 0:
            return "an empty file"
        return "only blank lines" if self._suffix in (".txt", ".jsonl") else "no rows below the names of the columns"


class HubSource(RowSource):
    """A data set on the Hugging Face Hub, streamed."""

    def __init__(self, config: SourceConfig) -> None:
        """Raises DataError where revision, configuration or split could not be the name of one."""
        super().__init__(config.source, config)
        if config.revision and not is_revision(config.revision):
            raise problem(config.source, f"--revision of {REVISION}", config.revision, "pass another, or none")
        for option, value in (("--name", config.name), ("--split", config.split)):
            if not value.isprintable() or re.search(r"[/\\]|\.\.", value) or len(value) > _LONGEST_HUB_NAME:
                raise problem(
                    config.source, f"{option} of the data set, a name without slashes", value, "pass another, or none"
                )

    def fingerprint(self) -> str:
        """The id with its revision, configuration and split; a commit as revision makes it exact."""
        config = self.config
        return f"{config.source}@{config.revision or 'main'}:{config.name}:{config.split}"

    def _parts(self) -> Iterator[_Part]:
        config = self.config
        opened = self._open()
        self.licence = self.stats.licence = self._find_licence()
        splits: dict[str, Any] = dict(opened) if isinstance(opened, dict) else {config.split: opened}
        self.stats.description = f"data set {config.source} on the Hub, splits {', '.join(splits)}"
        for name, rows in splits.items():
            # A set of one split says nothing about how to divide it.
            split = split_name(name) if len(splits) > 1 else ""
            yield _Part(f"{config.source}:{name} row ", f"{config.source}/{name}", split, config, self._rows(rows))

    def _open(self) -> Any:
        import datasets

        # its own account of retries would stand before our one message
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        config = self.config
        try:
            return datasets.load_dataset(
                config.source,
                config.name or None,
                split=config.split or None,
                revision=config.revision or None,
                streaming=True,
            )
        except Exception as error:  # whatever the library, the network or the set's owner does wrong
            raise _hub_error(config.source, error) from error

    def _rows(self, rows: Any) -> Rows:
        number = 0
        iterator = iter(rows)
        while True:
            try:
                row = next(iterator, None)
            except Exception as error:
                raise _hub_error(self.config.source, error) from error
            if row is None:
                return
            number += 1
            if not split_name(str(row.get("split"))):
                row = {key: value for key, value in row.items() if key != "split"}
            yield number, row

    def _find_licence(self) -> str:
        """What the set's card says, where it can be had."""
        from huggingface_hub import HfApi

        try:
            card = HfApi().dataset_info(self.config.source, timeout=10).card_data
        except Exception:  # a licence that cannot be looked up must not stop the reading
            return NOT_STATED
        found = card.get("license") if card is not None else None
        return ", ".join(map(str, found)) if isinstance(found, list) else str(found or NOT_STATED)


def _hub_error(source: str, error: Exception) -> DataError:
    """What went wrong with a data set on the Hub, in one line with a remedy."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = shown(" ".join(lines[:2]), 300)
    if "scripts are no longer supported" in text:
        return DataError(f"{source}: needs a loading script, which is never run; try --revision refs/convert/parquet")
    if "gated dataset" in text:
        remedy = "accept its terms on the Hub, then log in with `hf auth login`"
        return DataError(f"{source}: a gated data set, open only to those who accepted its terms; {remedy}")
    if text.startswith("Revision"):
        return DataError(f"{source}: the data set has no such revision; pass another --revision, or none")
    if type(error).__name__ == "DatasetNotFoundError":
        remedy = "check the spelling, or log in with `hf auth login`"
        return DataError(f"{source}: no such file, and no data set on the Hub, or a private one; {remedy}")
    if isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.startswith("http"):
        remedy = "check the network and HF_HUB_OFFLINE, or give a local file"
        return DataError(f"{source}: no such file, and the Hub cannot be reached ({text}); {remedy}")
    if "onfig" in text and "vailable" in text:
        return DataError(f"{source}: {text}; choose one with --name")
    if "Bad split" in text:
        return DataError(f"{source}: {text}; choose one with --split")
    return DataError(f"{source}: cannot be read as a data set of text: {type(error).__name__} ({text or 'no message'})")


def is_hub_id(name: str) -> bool:
    """Whether it could be `owner/name` on the Hub. Both become parts of paths and addresses: nothing else is let through."""
    return _HUB_ID.fullmatch(name) is not None and _is_harmless(name)


def is_revision(name: str) -> bool:
    """Whether it could be a branch, tag or commit on the Hub."""
    return _REVISION.fullmatch(name) is not None and _is_harmless(name)


def _is_harmless(name: str) -> bool:
    return len(name) <= _LONGEST_HUB_NAME and ".." not in name


def open_source(config: SourceConfig) -> Source:
    """The source that `config.source` names. A file goes before a data set on the Hub of the same name.

    Raises:
        DataError: it is neither a file nor anything that could be on the Hub, nor could its revision.
            The Hub is not asked before iteration.
    """
    if config.source == "chitchat":
        return ChitchatSource()
    could_be_hub = is_hub_id(config.source) and not _FILE_LIKE.search(config.source)
    if could_be_hub and not os.path.exists(config.source):
        return HubSource(config)
    return FileSource(config)


def read_dialogues(source: str, **settings: Any) -> Iterator[Dialogue]:
    """The dialogues of a source as they are, not cleaned; `settings` are those of `SourceConfig`."""
    return iter(open_source(SourceConfig(source=source, **settings)))
