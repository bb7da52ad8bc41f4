"""The scratch folder of a driver: where it is created, and that only those of ended drivers are removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.engine.resources import scratch

HOLD = """
import sys, time
from pathlib import Path
from sweeps.engine.resources import scratch
held = scratch.create(Path(sys.argv[1]))
(held.folder / "session").mkdir()
print(held.folder, flush=True)
time.sleep(600)
"""


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path, as sockets need it."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="x") as folder:
        yield Path(folder)


def _start_driver(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    command = [sys.executable, "-c", HOLD, str(parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


# --- where ------------------------------------------------------------------------------------------------------------


def test_ray_tmpdir_comes_before_tmpdir(short: Path) -> None:
    for name in ("ray", "tmp"):
        (short / name).mkdir()
    environment = {"RAY_TMPDIR": str(short / "ray"), "TMPDIR": str(short / "tmp")}
    assert scratch.choose_parent(environment) == (short / "ray", "")
    assert scratch.choose_parent({"TMPDIR": str(short / "tmp")}) == (short / "tmp", "")
    assert scratch.choose_parent({}) == (Path("/tmp"), "")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a" * 60, "is too long for Ray's sockets"),
        ("é" * 25, "is too long for Ray's sockets"),
        ("two words", "has other characters than"),
        ("50%", "has other characters than"),
        ("#", "has other characters than"),
        ("蜂", "has other characters than"),
    ],
    ids=ascii,
)
@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_that_ray_cannot_use_gives_way_to_tmp_with_a_note(
    short: Path, variable: str, name: str, reason: str
) -> None:
    (short / name).mkdir()
    parent, note = scratch.choose_parent({variable: str(short / name)})
    assert parent == Path("/tmp")
    assert note.startswith(f"{variable}={short / name} {reason}")
    assert note.endswith("so temporary files go to /tmp")


def test_a_folder_that_is_missing_or_a_file_gives_way_to_tmp_with_a_note(short: Path) -> None:
    (short / "file").touch()
    for name in ("missing", "file"):
        parent, note = scratch.choose_parent({"TMPDIR": str(short / name)})
        assert parent == Path("/tmp")
        assert note == f"TMPDIR={short / name} is not a folder, so temporary files go to /tmp"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable_gives_way_to_tmp_with_a_note(short: Path) -> None:
    (short / "locked").mkdir(mode=0o500)
    parent, note = scratch.choose_parent({"TMPDIR": str(short / "locked")})
    assert parent == Path("/tmp")
    assert "cannot be written to (Permission denied)" in note


def test_without_any_usable_folder_all_reasons_are_given(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "DEFAULT_PARENTS", (str(short / "gone"),))
    with pytest.raises(ValueError, match="no folder for temporary files: ") as error:
        scratch.choose_parent({"TMPDIR": str(short / "missing")})
    assert f"TMPDIR={short / 'missing'} is not a folder; {short / 'gone'} is not a folder" in str(error.value)


# --- leftovers --------------------------------------------------------------------------------------------------------


def test_the_folder_of_a_killed_driver_is_removed_by_the_next_and_that_of_a_living_one_is_not(short: Path) -> None:
    killed, left = _start_driver(short)
    living, used = _start_driver(short)
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert (left / "session").is_dir()
        mine = scratch.create(short)
        assert not left.exists()
        assert (used / "session").is_dir()
        assert mine.folder.is_dir()
        mine.remove()
        assert sorted(short.iterdir()) == [used]
    finally:
        living.kill()
        living.wait()


def test_the_folder_of_a_living_process_is_kept_even_before_it_is_locked(short: Path) -> None:
    folder = short / f"xfer-{os.getppid()}"
    folder.mkdir()
    (folder / ".xfer-driver.lock").touch()
    scratch.remove_leftovers(short)
    assert folder.is_dir()


def test_a_process_id_that_was_used_before_gets_its_folder(short: Path) -> None:
    first = scratch.create(short)
    second = scratch.create(short)  # as in another container, where the first still runs
    assert [first.folder.name, second.folder.name] == [f"xfer-{os.getpid()}", f"xfer-{os.getpid()}-2"]
    first.remove()
    second.remove()
    (short / f"xfer-{os.getpid()}").mkdir()
    (short / f"xfer-{os.getpid()}" / ".xfer-driver.lock").touch()  # left by an ended process with this id
    third = scratch.create(short)
    assert third.folder.name == f"xfer-{os.getpid()}"
    assert third.folder.stat().st_mode & 0o777 == 0o700
    third.remove()
    assert list(short.iterdir()) == []


def test_a_lock_protects_a_folder_whose_process_id_means_nothing_here(short: Path) -> None:
    process, folder = _start_driver(short)
    try:
        foreign = folder.rename(short / "xfer-4194399")  # as from another container
        scratch.remove_leftovers(short)
        assert (foreign / "session").is_dir()
    finally:
        process.kill()
        process.wait()
    scratch.remove_leftovers(short)
    assert not foreign.exists()


def test_links_and_other_names_are_left_alone(short: Path) -> None:
    (short / "data").mkdir()
    (short / "data" / "photo.jpg").touch()
    (short / "xfer-4194399").symlink_to(short / "data")
    (short / "xfer-workers-1").mkdir()
    (short / "xfer-mine").mkdir()
    (short / "xfer-4194398").mkdir()
    (short / "xfer-4194398" / "results.txt").touch()  # a user's folder: it has no lock
    before = sorted(short.rglob("*"))
    scratch.remove_leftovers(short)
    assert sorted(short.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_the_folders_of_other_users_are_left_alone(short: Path) -> None:
    folder = short / "xfer-4194399"
    folder.mkdir()
    (folder / ".xfer-driver.lock").touch()
    os.chown(folder, 12345, -1)
    scratch.remove_leftovers(short)
    assert folder.is_dir()
    os.chown(folder, os.getuid(), -1)
    scratch.remove_leftovers(short)
    assert not folder.exists()
