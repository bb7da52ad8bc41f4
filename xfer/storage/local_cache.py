"""Local copies of remote files and folders.

Large files that never change (packs, features, weights, images) are downloaded once per machine and read from its disk.
For a path that is local already, every function here returns or uses the path itself.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from filelock import FileLock

from xfer.storage import object_store
from xfer.storage.atomic import atomic_folder, atomic_write

DOWNLOAD_BATCH = 256
"""Number of files downloaded between two reports of progress."""

PULL_ATTEMPTS = 5
"""Number of attempts to copy a folder while another process changes it."""


def cache_dir() -> Path:
    """Return the folder of this machine's downloads: $XFER_CACHE, or ~/.cache/xfer."""
    return Path(os.environ.get("XFER_CACHE") or Path.home() / ".cache" / "xfer")


def local_path(path: Path) -> Path:
    """Return the path of the local copy; the path itself if it is local."""
    if not object_store.is_remote(path):
        return path
    return cache_dir() / str(cast(Any, path).protocol) / object_store.object_key(path).strip("/")


def fetch_cached(folder: Path, marker_file: str, check: Callable[[Path], None] = lambda folder: None) -> Path:
    """Return the local copy of an immutable folder, downloaded once per machine; concurrent callers wait on a lock.

    Args:
        folder: a remote or local folder.
        marker_file: the file that `publish` writes last; without it the folder is incomplete.
        check: called with the downloaded folder before it is used; raises if the content is not as written.

    Raises:
        FileNotFoundError: the folder does not exist or is incomplete.
    """
    local = local_path(folder)
    if object_store.is_remote(folder) and not (local / marker_file).exists():
        with _locked(local):
            if not (local / marker_file).exists():
                fetch_folder(folder, local, marker_file, check)
    return local


def fetch_folder(
    folder: Path, local: Path, marker_file: str, check: Callable[[Path], None] = lambda folder: None
) -> None:
    """Download an immutable folder like `fetch_cached`, for callers that hold a lock of their own."""
    if not object_store.exists(folder / marker_file):
        raise FileNotFoundError(f"{folder} has no {marker_file}")
    with atomic_folder(local) as temporary:
        _download(folder, temporary, object_store.list_objects(folder))
        check(temporary)
        shutil.rmtree(local, ignore_errors=True)


def fetch_file(file: Path, refresh: bool = False) -> Path:
    """Return the local copy of a file, downloaded if it is missing or `refresh` is set.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    local = local_path(file)
    if object_store.is_remote(file) and (refresh or not local.exists()):
        with _locked(local):
            if refresh or not local.exists():
                atomic_write(local, lambda temporary: object_store.download(file, temporary))
    return local


def publish(local: Path, folder: Path, marker_file: str) -> None:
    """Upload a finished local folder unless the remote one is complete; `marker_file` is uploaded last."""
    if object_store.is_remote(folder) and not object_store.exists(folder / marker_file):
        _upload(local, folder, [name for name in _file_names(local) if name != marker_file])
        _upload(local, folder, [marker_file])


def publish_file(file: Path, folder: Path, name: str) -> Path:
    """Copy a local file to `folder / name` unless that exists, and return that path."""
    if not object_store.exists(folder / name):
        object_store.upload(file, folder / name)
    return folder / name


def upload_if_exists(file: Path, to: Path) -> None:
    """Copy a local file, replacing the target; do nothing if it does not exist or both paths are equal."""
    if file != to and file.exists():
        object_store.upload(file, to)


@contextmanager
def staged_upload(folder: Path) -> Iterator[Path]:
    """Yield a local folder to write to; if `folder` is remote, the files are uploaded to it at the end."""
    if not object_store.is_remote(folder):
        yield folder
        return
    with TemporaryDirectory(prefix="xfer-") as temporary:
        yield Path(temporary)
        _upload(Path(temporary), folder, _file_names(Path(temporary)))


def pull(folder: Path) -> Path:
    """Return a working copy of a remote folder that changes; write changes back with `push`.

    A process has one working copy at a time: pulling another removes it, and those that ended processes left.
    """
    if not object_store.is_remote(folder):
        return folder
    host, root = socket.gethostname(), cache_dir() / "pulled"
    root.mkdir(parents=True, exist_ok=True)
    for old in root.glob(f"{host}~*"):  # the name keeps hosts apart that share a disk
        pid = int(old.name.split("~")[1])
        if pid == os.getpid() or not process_exists(pid):
            shutil.rmtree(old, ignore_errors=True)
    local = root / f"{host}~{os.getpid()}~{uuid.uuid4().hex[:8]}"
    atexit.register(shutil.rmtree, local, ignore_errors=True)
    local.mkdir()
    for _ in range(PULL_ATTEMPTS):
        with suppress(FileNotFoundError):  # its last owner is still running, and removed a file after it was listed
            _download(folder, local, object_store.list_objects(folder))
            break
    return local


def push(local: Path, folder: Path) -> None:
    """Upload the new files of a working copy, then remove the remote files that it no longer has.

    File names must sort by age. Remote files newer than all local ones are kept: they belong to another machine, which
    took over the work while this one was unreachable.
    """
    if not object_store.is_remote(folder):
        return
    names = {path.name for path in local.iterdir() if path.is_file() and not path.name.startswith(".")}
    remote_names = set(object_store.list_names(folder))
    for name in sorted(names - remote_names):
        object_store.upload(local / name, folder / name)
    for name in sorted(remote_names - names):
        if names and name < max(names):
            object_store.unlink(folder / name)


def sync_down(remote: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Return a local copy of a remote folder of images, downloading only new and changed files.

    Args:
        remote: a folder, or a file (a table of images), which is downloaded with the folder that contains it.
        progress: called with the number of files present and in total.

    Raises:
        ValueError: there are no files.
    """
    if not object_store.is_remote(remote):
        return remote
    if object_store.is_file(remote):
        return sync_down(remote.parent, progress) / remote.name
    fingerprints = object_store.list_objects(remote)
    if not fingerprints:
        raise ValueError(f"there are no files at {remote}")
    local = local_path(remote)
    with _locked(local):
        index = local.with_name(f".{local.name}.json")
        old: dict[str, str] = json.loads(index.read_text(encoding="utf-8")) if index.exists() else {}
        for name in old.keys() - fingerprints.keys():
            object_store.check_relative_name(name, index)
            (local / name).unlink(missing_ok=True)
        missing = [name for name, mark in fingerprints.items() if old.get(name) != mark or not (local / name).exists()]
        for start in range(0, len(missing), DOWNLOAD_BATCH):
            progress(len(fingerprints) - len(missing) + start, len(fingerprints))
            _download(remote, local, missing[start : start + DOWNLOAD_BATCH])
        atomic_write(index, json.dumps(fingerprints).encode())
    return local


def process_exists(pid: int) -> bool:
    """Return whether a process runs on this machine, under any user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs as another user
        pass
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


def _file_names(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]


def _upload(local: Path, folder: Path, names: Collection[str]) -> None:
    object_store.map_concurrently(lambda name: object_store.upload(local / name, folder / name), names, concurrent=True)


def _download(folder: Path, local: Path, names: Collection[str]) -> None:
    for name in names:
        (local / name).parent.mkdir(parents=True, exist_ok=True)
    object_store.map_concurrently(
        lambda name: object_store.download(folder / name, local / name), names, concurrent=True
    )
