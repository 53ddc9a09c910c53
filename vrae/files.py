"""Writing that survives a crash: everything or nothing, synced to disk before it gets its name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from vrae.errors import printable

MANIFEST = "manifest.json"


def write_file(path: Path, data: bytes) -> None:
    """Replaces `path` by `data` in one step."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        _write_synced(temporary, data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Makes folder `path` of `files`, with a manifest of their sizes and sha256, in one step. An older one is replaced."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    older = path.with_name(f".{path.name}.old-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for name, data in files.items():
            _write_synced(temporary / name, data)
        _write_synced(temporary / MANIFEST, manifest(files))
        _sync(temporary)
        replace_folder(path, temporary, older)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def manifest(files: Mapping[str, bytes]) -> bytes:
    """manifest.json of these files: their sizes and sha256."""
    return to_json(
        {"files": {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}}
    )


def replace_folder(path: Path, new: Path, older: Path) -> None:
    """Gives folder `new` the name `path`, and on disk too. One that has it moves to `older` meanwhile, and then goes.

    At no moment is a part of a folder there under the name of the whole. What is in `new` must be on disk already.
    """
    shutil.rmtree(older, ignore_errors=True)
    try:
        if path.exists():
            os.replace(path, older)
        os.replace(new, path)
    except BaseException:
        if older.exists() and not path.exists():
            os.replace(older, path)
        raise
    _sync(path.parent)
    shutil.rmtree(older, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Waits until the files in a folder are on disk, and then their names."""
    for file in sorted(path.iterdir()):
        _sync(file)
    _sync(path)


def remove_folder(path: Path) -> None:
    """Removes a folder; at no moment has a part of it the name of the whole."""
    removed = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    os.replace(path, removed)
    shutil.rmtree(removed, ignore_errors=True)


def mend(folder: Path) -> None:
    """Removes what killed processes left half-written in `folder`, and puts back what one was just replacing.

    For a folder that no other process writes to.
    """
    for left in folder.glob(".*.*-*"):
        name, _, kind = left.name[1:].rpartition(".")
        if kind.startswith("old-") and not (folder / name).exists():
            os.replace(left, folder / name)
        elif not kind.startswith(("old-", "tmp-")):
            continue
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def check_folder(path: Path, names: Collection[str] = ()) -> str:
    """Compares a folder with its manifest: files `names`, or without any all that are listed.

    Returns what is wrong, or an empty string.
    """
    try:
        listed = json.loads((path / MANIFEST).read_bytes())["files"]
        for name in names or listed.keys():
            expected, data = listed[name], (path / Path(name).name).read_bytes()
            if len(data) != expected["bytes"]:
                return f"{name} has {len(data)} bytes, not {expected['bytes']}"
            if hashlib.sha256(data).hexdigest() != expected["sha256"]:
                return f"{name} has another sha256 than the manifest says"
    except OSError as error:
        return f"{error.strerror}: {error.filename}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is damaged"
    return ""


def first_sound(folders: Iterable[Path], names: Collection[str]) -> tuple[Path | None, list[str]]:
    """The first of `folders` in which files `names` are as its manifest says, and a line about each before it."""
    damaged: list[str] = []
    for folder in folders:
        if not (problem := check_folder(folder, names)):
            return folder, damaged
        damaged.append(f"{folder}: damaged ({printable(problem)[:300]})")
    return None, damaged


def to_json(value: Any) -> bytes:
    """Readable JSON as bytes."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
