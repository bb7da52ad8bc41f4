"""Local: files and folders of this machine that stand for far ones.

What is large and never changes (packs, features, weights, photos) is brought to this machine's disk once, whoever comes
first, and used from there; what is written here is sent to where others find it.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from filelock import FileLock

from xfer.storage import object_store

DOWNLOAD_BATCH = 256
"""Photos that are brought in one go, before somebody is told how far it is."""

PULL_ATTEMPTS = 5
"""Tries to copy a folder that somebody else is still at."""


def cache_dir() -> Path:
    """Where this machine keeps what it has brought: $XFER_CACHE, or ~/.cache/xfer."""
    return Path(os.environ.get("XFER_CACHE") or Path.home() / ".cache" / "xfer")


def local_path(path: Path) -> Path:
    """The path on this machine that stands for a far one; the path itself where it is not far."""
    if not object_store.is_remote(path):
        return path
    return cache_dir() / str(cast(Any, path).protocol) / object_store.object_key(path).strip("/")


def fetch_cached(folder: Path, marker_file: str, check: Callable[[Path], None] = lambda folder: None) -> Path:
    """A folder whose content never changes, on this machine: brought by whoever comes first, while others wait.

    Args:
        folder: where it is.
        marker_file: the file in it that `publish` wrote last.
        check: is shown the copy before it is used, and raises where that is not what was written.

    Raises:
        FileNotFoundError: it is not there, or not whole.
    """
    here = local_path(folder)
    if not object_store.is_remote(folder) or (here / marker_file).exists():
        return here
    here.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(here.with_name(f".{here.name}.lock")):
        if not (here / marker_file).exists():
            fetch_folder(folder, here, marker_file, check)
    return here


def fetch_folder(
    folder: Path, here: Path, marker_file: str, check: Callable[[Path], None] = lambda folder: None
) -> None:
    """What `fetch_cached` does the first time, for whoever sees to it that nobody else does the same meanwhile."""
    if not object_store.exists(folder / marker_file):
        raise FileNotFoundError(f"{folder} has no {marker_file}")
    temporary = here.with_name(f".{here.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        _get(folder, temporary, list(object_store.list_objects(folder)))
        check(temporary)
        shutil.rmtree(here, ignore_errors=True)
        temporary.rename(here)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(here: Path, folder: Path, marker_file: str) -> None:
    """Put a finished folder of this machine to where others find it, unless it is there.

    Args:
        here: the folder.
        folder: where to; nothing is done where that is on this machine, for then it is the same.
        marker_file: the file in it that is written last: with it the folder is whole.
    """
    if not object_store.is_remote(folder) or object_store.exists(folder / marker_file):
        return
    files = [str(path.relative_to(here)) for path in sorted(here.rglob("*")) if path.is_file()]
    others = [name for name in files if name != marker_file]
    object_store.map_concurrently(lambda name: object_store.upload(here / name, folder / name), others, concurrent=True)
    object_store.upload(here / marker_file, folder / marker_file)


def publish_file(file: Path, folder: Path, name: str) -> Path:
    """A file of this machine in a folder that others see; what has this name there is taken for the same."""
    there = folder / name
    if not object_store.exists(there):
        if object_store.is_remote(folder):
            object_store.upload(file, there)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            temporary = folder / f".{name}.{uuid.uuid4().hex[:8]}.tmp"
            shutil.copyfile(file, temporary)
            temporary.replace(there)
    return there


def fetch_file(file: Path, refresh: bool = False) -> Path:
    """A file, on this machine: as it was when it was first brought or, with `anew`, as it is now.

    Raises:
        FileNotFoundError: there is none.
    """
    here = local_path(file)
    if not object_store.is_remote(file) or (here.exists() and not refresh):
        return here
    here.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(here.with_name(f".{here.name}.lock")):
        if refresh or not here.exists():
            temporary = here.with_name(f".{here.name}.{uuid.uuid4().hex[:8]}.tmp")
            object_store.download(file, temporary)
            temporary.replace(here)
    return here


def pull(folder: Path) -> Path:
    """A copy to work on of a folder that changes; the folder itself where it is not far.

    This process has one at a time, so that nothing piles up: pulling another one removes it, and what processes that
    are no more have left.
    """
    if not object_store.is_remote(folder):
        return folder
    host, root = socket.gethostname(), cache_dir() / "pulled"
    root.mkdir(parents=True, exist_ok=True)
    for old in root.glob(f"{host}~*"):  # others' too, of a disk that several machines share, are told by the name
        pid = int(old.name.split("~")[1])
        if pid == os.getpid() or not _runs(pid):
            shutil.rmtree(old, ignore_errors=True)
    here = root / f"{host}~{os.getpid()}~{uuid.uuid4().hex[:8]}"
    atexit.register(shutil.rmtree, here, ignore_errors=True)
    here.mkdir()
    for _ in range(PULL_ATTEMPTS):
        try:
            _get(folder, here, list(object_store.list_objects(folder)))
            break
        except FileNotFoundError:  # whoever had it before is still at it, and removed one after we had listed it
            continue
    return here


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def push(here: Path, folder: Path) -> None:
    """Bring a far folder to what a copy of it is by now: first what is new, then without what is older and gone.

    Names are taken to sort by age. What is newer than all of ours is another machine's, which was given our work when
    we could not be reached.
    """
    if not object_store.is_remote(folder):
        return
    now = {path.name for path in here.iterdir() if path.is_file() and not path.name.startswith(".")}
    there = set(object_store.list_names(folder))
    for name in sorted(now - there):
        object_store.upload(here / name, folder / name)
    for name in sorted(there - now):
        if now and name < max(now):
            object_store.unlink(folder / name)


def upload_if_exists(file: Path, to: Path) -> None:
    """Copy a file of this machine to where others find it, over what is there; nothing where that is the same."""
    if file != to and file.exists():
        object_store.upload(file, to)


@contextmanager
def staged_upload(folder: Path) -> Iterator[Path]:
    """A folder of this machine to write into; of a far one its files are sent there at the end, over what is there."""
    if not object_store.is_remote(folder):
        yield folder
        return
    with TemporaryDirectory(prefix="xfer-") as temporary:
        here = Path(temporary)
        yield here
        for path in sorted(here.rglob("*")):
            if path.is_file():
                object_store.upload(path, folder / str(path.relative_to(here)))


def sync_down(address: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """A copy on this machine of a far folder of photos, brought up to date: only what is new or changed is fetched.

    Args:
        address: the folder; or a file, which is brought with the folder it stands in, for a table names photos there.
        progress: told how many files are here, of how many.

    Raises:
        ValueError: there is nothing.
    """
    if not object_store.is_remote(address):
        return address
    here = local_path(address)
    if object_store.is_file(address):
        return sync_down(address.parent, progress) / address.name
    there = object_store.list_objects(address)
    if not there:
        raise ValueError(f"there is nothing at {address}")
    here.mkdir(parents=True, exist_ok=True)
    with FileLock(here.with_name(f".{here.name}.lock")):
        index = here.with_name(f".{here.name}.json")
        had: dict[str, str] = json.loads(index.read_text()) if index.exists() else {}
        for name in had.keys() - there.keys():
            object_store.check_relative_name(name, index)
            (here / name).unlink(missing_ok=True)
        missing = [name for name, mark in there.items() if had.get(name) != mark or not (here / name).exists()]
        for start in range(0, len(missing), DOWNLOAD_BATCH):
            progress(len(there) - len(missing) + start, len(there))
            _get(address, here, missing[start : start + DOWNLOAD_BATCH])
        temporary = index.with_suffix(".tmp")
        temporary.write_text(json.dumps(there))
        temporary.replace(index)
    return here


def _get(folder: Path, to: Path, names: list[str]) -> None:
    for name in names:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
    object_store.map_concurrently(lambda name: object_store.download(folder / name, to / name), names, concurrent=True)
