"""Atomic writes: readers see the complete new content or what was there before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xfer.storage.atomic import atomic_folder, atomic_write


def test_bytes_and_callbacks_replace_a_file_and_leave_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    atomic_write(path, b"first")
    assert path.read_bytes() == b"first"
    atomic_write(path, lambda temporary: temporary.write_bytes(b"second"))
    assert path.read_bytes() == b"second"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.bin"]


def test_the_temporary_file_is_in_the_same_folder_and_flushed_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fsync, existed = tmp_path / "a.bin", os.fsync, []

    def check(descriptor: int) -> None:
        existed.append(path.exists())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", check)
    folders: list[Path] = []
    atomic_write(path, lambda temporary: (folders.append(temporary.parent), temporary.write_bytes(b"1")))
    assert folders == [tmp_path]
    assert existed == [False]


def test_an_error_keeps_the_old_file_and_removes_the_temporary_one(tmp_path: Path) -> None:
    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    atomic_write(tmp_path / "a.bin", b"old")
    with pytest.raises(OSError, match="No space left"):
        atomic_write(tmp_path / "a.bin", fail)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("a.bin", b"old")]


def test_an_exclusive_write_never_replaces_a_file_even_one_created_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"

    def overtaken(temporary: Path) -> None:
        temporary.write_bytes(b"mine")
        path.write_bytes(b"theirs")

    with pytest.raises(FileExistsError):
        atomic_write(path, overtaken, exclusive=True)
    with pytest.raises(FileExistsError):
        atomic_write(path, b"mine", exclusive=True)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("a.bin", b"theirs")]


def test_a_folder_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "data" / "pack") as temporary:
        (temporary / "a").write_bytes(b"1")
        assert not (tmp_path / "data" / "pack").exists()
    assert [entry.name for entry in (tmp_path / "data" / "pack").iterdir()] == ["a"]
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "data" / "other"):
        raise KeyboardInterrupt
    with pytest.raises(OSError), atomic_folder(tmp_path / "data" / "pack") as temporary:
        (temporary / "b").write_bytes(b"2")
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == ["pack"]
    assert [entry.name for entry in (tmp_path / "data" / "pack").iterdir()] == ["a"]
