"""Writing is all or nothing; a damaged folder is told from a sound one, by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vrae.files import MANIFEST, check_folder, first_sound, mend, remove_folder, sync_folder, to_json, write_file, write_folder

FILES = {"a.bin": bytes(range(256)), "b.txt": "naïve ☕".encode(), "empty": b""}


class CrashError(Exception):
    pass


def fail_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, but its call number `call`, counted from 1, raises."""
    calls = iter(range(1, 100))

    def failing(*arguments: Any) -> Any:
        if next(calls) == call:
            raise CrashError
        return function(*arguments)

    return failing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    write_folder(path, FILES)
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}


# A file


@pytest.mark.parametrize("before", [None, b"old, and longer than the new one"])
def test_a_file_is_written_and_replaced(tmp_path: Path, before: bytes | None) -> None:
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, function, fail_at(1, getattr(os, function)))
    with pytest.raises(CrashError):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, original=original: (events.append(name), original(*a)))
    write_file(tmp_path / "file", b"data")
    assert events == ["fsync", "replace", "fsync"]  # the data, the name, the folder that holds the name


# A folder


def test_a_folder_holds_its_files_and_is_sound(folder: Path) -> None:
    assert content(folder) == FILES
    assert check_folder(folder) == ""


def test_a_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    write_folder(tmp_path / "a" / "b" / "c", FILES)
    assert content(tmp_path / "a" / "b" / "c") == FILES


def test_an_older_folder_is_replaced_whole(folder: Path) -> None:
    write_folder(folder, {"c.bin": b"new"})
    assert content(folder) == {"c.bin": b"new"}
    assert check_folder(folder) == ""
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize(("function", "call"), [("fsync", 1), ("fsync", 2), ("fsync", 3), ("replace", 1), ("replace", 2)])
def test_a_folder_that_cannot_be_replaced_stays_as_it_was(
    folder: Path, function: str, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, function, fail_at(call, getattr(os, function)))
    with pytest.raises(CrashError):
        write_folder(folder, {"c.bin": b"new"})
    assert content(folder) == FILES
    assert check_folder(folder) == ""
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize(("function", "call"), [("fsync", 1), ("replace", 1)])
def test_a_new_folder_that_cannot_be_written_does_not_appear(
    tmp_path: Path, function: str, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, function, fail_at(call, getattr(os, function)))
    with pytest.raises(CrashError):
        write_folder(tmp_path / "folder", FILES)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is put on disk and what gets a name, in order, each by its inode."""
    events: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        events.append(("synced", os.fstat(descriptor).st_ino))

    def renamed(old: Path, new: Path) -> None:
        replace(old, new)
        events.append(("renamed", new.stat().st_ino))

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    return events


def test_a_folder_is_on_disk_before_it_has_its_name(folder: Path, events: list[tuple[str, int]]) -> None:
    old = folder.stat().st_ino
    write_folder(folder, FILES)
    files = [("synced", (folder / name).stat().st_ino) for name in (*FILES, MANIFEST)]
    new = folder.stat().st_ino
    expected = [("synced", new), ("renamed", old), ("renamed", new), ("synced", folder.parent.stat().st_ino)]
    assert events == [*files, *expected]


def test_syncing_a_folder_syncs_its_files_and_then_itself(folder: Path, events: list[tuple[str, int]]) -> None:
    sync_folder(folder)
    assert sorted(events[:-1]) == sorted(("synced", path.stat().st_ino) for path in folder.iterdir())
    assert events[-1] == ("synced", folder.stat().st_ino)


def test_an_interrupt_after_the_new_folder_has_its_name_keeps_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(old: Path, new: Path) -> None:
        real(old, new)
        if new == folder:
            raise CrashError

    real = os.replace
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(CrashError):
        write_folder(folder, {"c.bin": b"new"})
    assert content(folder) == {"c.bin": b"new"}


# Damage


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("name", ["a.bin", "b.txt"])
@pytest.mark.parametrize(
    "damage",
    [flipped, lambda data: data[:-1], lambda data: data + b"\0", lambda data: b""],
    ids=["flipped bit", "truncated", "longer", "emptied"],
)
def test_a_damaged_file_is_named(folder: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    assert name in check_folder(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in check_folder(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "nothing") in check_folder(tmp_path / "nothing")


@pytest.mark.parametrize(
    "manifest",
    ["", "{", "[]", "{}", '{"files": []}', '{"files": {"a.bin": 3}}', '{"files": {"a.bin": {}}}', "[" * 100_000, "\ud800"],
    ids=lambda text: text[:30],
)
def test_a_damaged_manifest_is_named(folder: Path, manifest: str) -> None:
    (folder / MANIFEST).write_bytes(manifest.encode("utf-8", "surrogatepass"))
    assert MANIFEST in check_folder(folder)


def test_a_manifest_cannot_reach_beyond_its_folder(folder: Path) -> None:
    outside = folder.parent / "secret"
    outside.write_bytes(b"secret")
    (folder / MANIFEST).write_bytes(to_json({"files": {"../secret": {"bytes": 6, "sha256": ""}}}))
    assert str(folder / "secret") in check_folder(folder)


def test_json_is_readable_and_comes_back() -> None:
    value = {"text": "naïve ☕", "number": 0.1, "list": [1, None, True]}
    assert json.loads(to_json(value)) == value
    assert "naïve ☕" in to_json(value).decode()


@pytest.mark.parametrize("names", [["a.bin"], ["b.txt", "a.bin"]])
def test_a_damaged_file_that_is_not_asked_for_is_none(folder: Path, names: list[str]) -> None:
    (folder / "empty").write_bytes(b"no longer")
    assert check_folder(folder, names) == ""
    assert "empty" in check_folder(folder, [*names, "empty"])


def test_a_file_that_the_manifest_does_not_list_is_not_sound(folder: Path) -> None:
    (folder / "c.bin").write_bytes(b"")
    assert MANIFEST in check_folder(folder, ["c.bin"])


def test_the_first_sound_folder_is_found_and_those_before_are_named(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abcd"]
    for path in folders[1:]:
        write_folder(path, FILES)
    (folders[1] / "a.bin").write_bytes(b"damaged")
    found, damaged = first_sound(folders, FILES)
    assert found == folders[2]
    assert [line.split(":")[0] for line in damaged] == [str(path) for path in folders[:2]]
    assert "a.bin" in damaged[1]
    assert first_sound(folders[:2], FILES) == (None, damaged)


# What a killed process leaves


@pytest.mark.parametrize("call", [1, 2])
def test_a_kill_while_a_folder_is_replaced_is_mended(folder: Path, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill runs no clean-up code, so neither do the functions that would clean up here."""
    calls = iter(range(1, 9))

    def replace(*arguments: Any) -> None:
        real(*arguments)
        if next(calls) >= call:
            monkeypatch.setattr(os, "replace", lambda *_: None)
            monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
            raise CrashError

    real = os.replace
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(CrashError):
        write_folder(folder, {"c.bin": b"new"})
    monkeypatch.undo()
    assert len(list(folder.parent.iterdir())) == 2
    mend(folder.parent)
    assert content(folder) == (FILES if call == 1 else {"c.bin": b"new"})
    assert check_folder(folder) == ""
    assert list(folder.parent.iterdir()) == [folder]


def test_mending_takes_what_is_unfinished_and_nothing_else(tmp_path: Path) -> None:
    kept = [".hidden", ".tmp", "run.json.tmp-1", ".other.new-1", "file"]
    for name in (*kept, ".file.tmp-77"):
        (tmp_path / name).write_bytes(b"")
    write_folder(tmp_path / ".step-1.tmp-77", FILES)
    mend(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    mend(tmp_path / "nothing")


def test_a_folder_is_removed(folder: Path) -> None:
    remove_folder(folder)
    assert list(folder.parent.iterdir()) == []
