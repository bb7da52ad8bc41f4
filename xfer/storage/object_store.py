"""File operations on paths that are local or in an object store, with retries for object stores.

A path is a `pathlib.Path`, or a `UPath` for any URI that fsspec supports: s3://bucket/runs, gs://bucket/runs. Use this
module for small objects that are read and written in place, and `xfer.storage.local_cache` for large files.
"""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, cast

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_chain, wait_fixed

from xfer.storage.atomic import atomic_write

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_CONCURRENT_REQUESTS = 32
"""Maximum number of concurrent requests to an object store. One takes about 20 ms, most of it waiting."""

FILESYSTEM_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"max_pool_connections": MAX_CONCURRENT_REQUESTS}}
}
"""Filesystem options by scheme. By default botocore keeps only ten connections."""

RETRY_DELAYS = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds between attempts of a failed request. An outage of two minutes, or credentials that are being renewed, must
not end a run that has trained for hours."""

FINAL_ERRORS = (FileNotFoundError, FileExistsError, NotADirectoryError)
"""Errors that answer the request and are never retried."""

EXTRA_FOR_SCHEME = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""Extra of this project that installs the package for a scheme."""


class StorageUnavailableError(OSError):
    """An object store did not complete a request after all retries; the message holds the path and the last error."""


def as_path(uri: str | Path) -> Path:
    """Return the path of a folder name or URI; one in an object store supports the methods of `pathlib.Path`.

    A leading `~` is the user's home folder, as in a shell, which does not replace it after `--storage=`.

    >>> as_path("file:///shared/runs"), as_path("runs")
    (PosixPath('/shared/runs'), PosixPath('runs'))

    Raises:
        ValueError: fsspec does not know the scheme, or a package for it is missing.
    """
    if isinstance(uri, Path) or "://" not in str(uri):
        return _expand_home(Path(uri)) if isinstance(uri, str | Path) else uri
    from upath import UPath

    scheme, _, rest = uri.partition("://")
    if scheme in ("file", "local"):
        return Path(rest)
    try:
        # Without a listings cache, files that other machines write are visible at once.
        path = UPath(uri, use_listings_cache=False, **FILESYSTEM_OPTIONS.get(scheme, {}))
        path.fs  # noqa: B018  imports the package that the scheme needs
    except ImportError as error:
        extra = EXTRA_FOR_SCHEME.get(scheme)
        hint = f"pip install 'xfer[{extra}]'" if extra else f"see fsspec's list of filesystems ({error})"
        raise ValueError(f"{uri}: a package for {scheme}:// is missing. {hint}") from error
    except ValueError as error:
        raise ValueError(f"{uri}: unknown scheme {scheme}://. Give a folder, s3://, gs:// or file://") from error
    return cast(Path, path)


def _expand_home(path: Path) -> Path:
    with suppress(RuntimeError):  # there is no such user, so it is an ordinary name
        return path.expanduser()
    return path


def is_remote(path: Path) -> bool:
    """Return whether a path is in an object store."""
    return not isinstance(path, Path)


def absolute_uri(path: Path) -> str:
    """Return the URI or absolute path under which every machine with access finds a path."""
    return str(path) if is_remote(path) else str(path.resolve())


def object_key(path: Path) -> str:
    """Return the key of a remote path in its store, including the bucket."""
    return str(cast(Any, path).path)


def check_relative_name(name: str, folder: Path) -> None:
    """Check that a name listed in `folder` stays below it.

    Stores accept any name, so without this check a writer of the store could have files placed outside the folder.

    Raises:
        ValueError: the name is absolute, or contains `..` or a null byte.
    """
    if name.startswith("/") or "\0" in name or ".." in name.split("/"):
        raise ValueError(f"{folder} lists {name!r}, which is outside of it: refusing to download it")


def read_bytes(path: Path) -> bytes:
    """Return the content of a file. A remote one takes a single request."""
    if not is_remote(path):
        return path.read_bytes()
    # By default s3fs requests the size first, to decide whether to read in parts.
    options = {"max_concurrency": 1} if cast(Any, path).protocol == "s3" else {}
    content: bytes = _request(path, "cat_file", object_key(path), **options)
    return content


def write_bytes(path: Path, content: bytes, exclusive: bool = False) -> None:
    """Write a file atomically: readers see the complete new content or what was there before.

    Args:
        path: the file to write.
        content: its bytes.
        exclusive: fail if `path` exists, even if another process creates it in the meantime.

    Raises:
        FileExistsError: `exclusive` is set and `path` exists.
    """
    if is_remote(path):
        _request(path, "pipe_file", object_key(path), content, mode="create" if exclusive else "overwrite")
    else:
        atomic_write(path, content, exclusive)


def download(file: Path, to: Path) -> None:
    """Copy a remote file to a local path."""
    _request(file, "get_file", object_key(file), str(to))


def upload(file: Path, to: Path) -> None:
    """Copy a local file to a remote or local path, replacing what is there."""
    if is_remote(to):
        _request(to, "put_file", str(file), object_key(to))
    else:
        atomic_write(to, lambda temporary: shutil.copyfile(file, temporary))


def exists(path: Path) -> bool:
    """Return whether a file or folder exists."""
    return bool(_request(path, "exists", object_key(path))) if is_remote(path) else path.exists()


def is_file(path: Path) -> bool:
    """Return whether a path is an existing file, not a folder."""
    return bool(_request(path, "isfile", object_key(path))) if is_remote(path) else path.is_file()


def list_names(folder: Path) -> list[str]:
    """Return the sorted names of the files and folders in a folder; empty if it does not exist."""
    if not is_remote(folder):
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    key = object_key(folder)
    try:
        keys = [str(entry).rstrip("/") for entry in _request(folder, "ls", key, detail=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted({entry.rpartition("/")[2] for entry in keys if entry.strip("/") != key})


def list_objects(folder: Path) -> dict[str, str]:
    """Return every file below a remote folder: relative name to a fingerprint that changes with its content."""
    marks = ("ETag", "etag", "LastModified", "created")
    return {
        name: f"{info.get('size')} {next((info[mark] for mark in marks if info.get(mark)), '')}"
        for name, info in _find(folder)
    }


def unlink(path: Path) -> None:
    """Remove a file if it exists."""
    if not is_remote(path):
        path.unlink(missing_ok=True)
    else:
        with suppress(FileNotFoundError):
            _request(path, "rm_file", object_key(path))


def rename(path: Path, to: Path) -> None:
    """Rename a file, replacing an existing one, or a folder.

    Raises:
        FileNotFoundError: it does not exist.
    """
    if is_remote(path):
        _request(path, "mv", object_key(path), object_key(to), recursive=True)
    else:
        path.replace(to)


def remove_tree(folder: Path) -> None:
    """Remove a folder and its content if it exists."""
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            _request(folder, "rm", object_key(folder), recursive=True)


def check_writable(folder: Path) -> None:
    """Check that a remote folder is writable, by writing and removing a file without retries.

    Raises:
        ValueError: it is not; the message holds the store's error.
    """
    probe = folder / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        filesystem = cast(Any, probe).fs
        filesystem.pipe_file(object_key(probe), b"")
        filesystem.rm_file(object_key(probe))
    except Exception as error:  # every store's library has its own error types
        raise ValueError(
            f"{folder} cannot be written to: {type(error).__name__}: {error}. Does the bucket exist, and does this "
            f"machine have credentials for it?"
        ) from error


def modified_ms(path: Path) -> int | None:
    """Return when an immutable file was written, in ms since 1970; None if it does not exist.

    In an object store, the times of all files in and below the same folder are listed at once and cached.
    """
    if not is_remote(path):
        return path.stat().st_mtime_ns // 10**6 if path.exists() else None
    if str(path) not in _modified_cache:
        for name, info in _find(path.parent):
            _modified_cache[f"{path.parent}/{name}"] = _written_ms(info)
    return _modified_cache.get(str(path))


def last_written_ms(path: Path) -> int | None:
    """Return when a file was last written, in ms since 1970, uncached; None if it does not exist."""
    if not is_remote(path):
        return path.stat().st_mtime_ns // 10**6 if path.exists() else None
    return next((_written_ms(info) for name, info in _find(path.parent) if name == path.name), None)


def _written_ms(info: dict[str, Any]) -> int:
    written = next((info[key] for key in ("LastModified", "mtime", "updated", "created") if info.get(key)), 0)
    if isinstance(written, str):
        written = datetime.fromisoformat(written)
    seconds = written.timestamp() if isinstance(written, datetime) else float(written)
    return int(seconds * 1000)


_modified_cache: dict[str, int] = {}


def map_concurrently(function: Callable[[Item], Result], items: Iterable[Item], concurrent: bool) -> list[Result]:
    """Apply a function to items and return the results in order; use threads if `concurrent` (one request each)."""
    items = list(items)
    if not concurrent or len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(MAX_CONCURRENT_REQUESTS, len(items))) as threads:
        return list(threads.map(function, items))


def _request(path: Path, method: str, *args: Any, **options: Any) -> Any:
    """Call a method of the filesystem of a remote path, with retries.

    Raises:
        FileNotFoundError, FileExistsError, NotADirectoryError: the store's answer.
        StorageUnavailableError: every attempt failed otherwise.
    """

    def warn(attempt: RetryCallState) -> None:
        assert attempt.outcome is not None, "an attempt has an outcome before the next one"
        error = attempt.outcome.exception()
        log.warning("%s: %s: %s; retrying in %g s", path, type(error).__name__, error, attempt.upcoming_sleep)

    attempts = Retrying(
        wait=wait_chain(*map(wait_fixed, RETRY_DELAYS)),
        stop=stop_after_attempt(1 + len(RETRY_DELAYS)),
        retry=retry_if_exception(lambda error: isinstance(error, Exception) and not isinstance(error, FINAL_ERRORS)),
        before_sleep=warn,
        sleep=lambda seconds: time.sleep(seconds),
        reraise=True,
    )
    try:
        return attempts(getattr(cast(Any, path).fs, method), *args, **options)
    except FINAL_ERRORS:
        raise
    except Exception as error:  # every store's library has its own error types
        raise StorageUnavailableError(f"{path} could not be reached: {type(error).__name__}: {error}") from error


def _find(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the relative name and the store's metadata of every file below a remote folder."""
    root = object_key(folder).rstrip("/") + "/"
    try:
        objects = _request(folder, "find", root, detail=True)
    except FileNotFoundError:
        return
    for key, info in sorted(objects.items()):
        name = str(key).removeprefix(root)
        if name and not name.endswith("/"):  # a key that ends in a slash marks a folder
            check_relative_name(name, folder)
            yield name, info
