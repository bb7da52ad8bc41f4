"""Folders that nothing can be written to are refused with one reason, before anything is computed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweeps.engine.storage.folders import check_folder, check_local
from xfer.storage.object_store import as_path


def _problem(folder: Path) -> str:
    with pytest.raises(ValueError, match=r"^--storage .* cannot be used: .*\. Give another folder$") as error:
        check_folder(folder, "--storage")
    assert str(error.value).isprintable()
    return str(error.value).partition("cannot be used: ")[2]


@pytest.mark.parametrize(
    "name",
    ["plain", "a/b/c", "two words", "#1", "50%", "what?", "it's", "蜜蜂", "🐝", "line\nbreak", "~", ".hidden"],
    ids=ascii,
)
def test_a_folder_of_any_name_is_created_and_left_empty(tmp_path: Path, name: str) -> None:
    check_folder(tmp_path / name, "--storage")
    check_folder(tmp_path / name, "--storage")
    assert list((tmp_path / name).iterdir()) == []


def test_a_link_to_a_folder_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    check_folder(tmp_path / "runs", "--storage")


def test_a_file_in_its_place_and_a_link_that_leads_nowhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert _problem(tmp_path / "file").startswith("there is a file of this name, or a link that leads nowhere")
    assert _problem(tmp_path / "link").startswith("there is a file of this name, or a link that leads nowhere")
    assert _problem(tmp_path / "file" / "runs").startswith("a part of this path is a file")
    assert "link" in _problem(tmp_path / "circle")


def test_names_that_no_file_can_have_are_refused(tmp_path: Path) -> None:
    assert _problem(tmp_path / ("a" * 300)).startswith("the name is too long")
    assert _problem(tmp_path / "a\0b").startswith("its name has a null byte")
    assert _problem(tmp_path / os.fsdecode(b"caf\xe9")).startswith("its name is not UTF-8")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert _problem(tmp_path / "locked").startswith("permission denied")
    assert _problem(tmp_path / "locked" / "runs").startswith("permission denied")


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5 * 2**20))
    assert _problem(tmp_path).startswith("its disk has only 5 MB left, and even a small sweep needs 32 MB")


def test_a_file_system_without_hard_links_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert _problem(tmp_path).startswith("its file system has no hard links")
    assert list(tmp_path.iterdir()) == []


def test_a_report_stays_on_this_machine(tmp_path: Path) -> None:
    check_local(tmp_path, "--reports")
    check_local(Path("reports"), "--reports")
    with pytest.raises(ValueError, match=r"--reports s3://\.\.\.: must be a folder on this machine"):
        check_local(Path("s3://bucket/reports"), "--reports")


def test_a_leading_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("~/runs") == as_path(Path("~/runs")) == tmp_path / "runs"
    assert as_path("~no-such-user/runs") == Path("~no-such-user/runs")
    assert as_path("runs/~") == Path("runs/~")
