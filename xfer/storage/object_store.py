"""Places: folders on this machine, or in an object store that many machines share, by one kind of path.

An address is a folder, or whatever fsspec knows: s3://bucket/runs, gs://bucket/runs, file:///shared/runs. What is small
(the objects of a sweep) is read and written here, where it is; for what is large see `xfer.storage.local_cache`.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, cast

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_CONCURRENT_REQUESTS = 32
"""Requests to an object store that are on their way at a time: each takes some 20 ms, most of it waiting."""

FILESYSTEM_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"max_pool_connections": MAX_CONCURRENT_REQUESTS}}
}
"""What is told to a kind of store: botocore would otherwise keep ten connections, whoever asks at the same time."""

RETRY_DELAYS = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds between two tries to reach a store that does not answer, or refuses: a hiccup of two minutes, or credentials
that are just being renewed, must not end what has been trained for hours."""

EXTRA_FOR_SCHEME = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""The extra of this project that brings what an address of some kind needs."""


class StorageUnavailableError(OSError):
    """An object store did not do what was asked of it, however often; the message says where, and what it said."""


def as_path(address: str | Path) -> Path:
    """The path at an address.

    To whoever uses it a place in an object store is a path like any other: it has `/`, `name`, `parent`, `glob`,
    `exists`, `iterdir` and `unlink`. What differs (renaming, whole folders, many files) has a function here.

    >>> as_path("file:///shared/runs"), as_path("runs")
    (PosixPath('/shared/runs'), PosixPath('runs'))

    Raises:
        ValueError: fsspec knows no such kind of address, or a package for it is missing.
    """
    if isinstance(address, Path) or "://" not in str(address):
        return Path(address) if isinstance(address, str) else address
    from upath import UPath

    scheme = address.partition("://")[0]
    if scheme in ("file", "local"):
        return Path(address.partition("://")[2])
    try:
        # What others write meanwhile has to be seen: no listing is remembered.
        path = UPath(address, use_listings_cache=False, **FILESYSTEM_OPTIONS.get(scheme, {}))
        path.fs  # noqa: B018  imports what the kind of address needs
    except ImportError as error:
        extra = (
            f"pip install 'xfer[{EXTRA_FOR_SCHEME[scheme]}]'"
            if scheme in EXTRA_FOR_SCHEME
            else f"see fsspec's own list ({error})"
        )
        raise ValueError(f"{address}: a package for {scheme}:// is missing. {extra}") from error
    except ValueError as error:
        raise ValueError(
            f"{address}: {scheme}:// is no kind of address that is known. A folder is, or s3://, gs://, file://"
        ) from error
    return cast(Path, path)


def is_remote(path: Path) -> bool:
    """Whether a path leads beyond this machine's file systems."""
    return not isinstance(path, Path)


def absolute_uri(path: Path) -> str:
    """The address of a path, as every machine that can see it understands it."""
    return str(path) if is_remote(path) else str(path.resolve())


def read_bytes(path: Path) -> bytes:
    """What stands at a far path: one request. A `FileNotFoundError` where nothing does."""
    # By itself s3fs asks for the size first, to see whether it should read in parts.
    whole = {"max_concurrency": 1} if cast(Any, path).protocol == "s3" else {}
    found: bytes = _ask(path, "cat_file", object_key(path), **whole)
    return found


def write_bytes(path: Path, content: bytes, exclusive: bool = False) -> None:
    """Put bytes at a far path in one step: readers see all of them or what was there before.

    Args:
        path: where.
        content: what.
        exclusive: whether it is a `FileExistsError` if something stands there, of whoever else was quicker too.
    """
    _ask(path, "pipe_file", object_key(path), content, mode="create" if exclusive else "overwrite")


def exists(path: Path) -> bool:
    """Whether a file or a folder is there."""
    return bool(_ask(path, "exists", object_key(path))) if is_remote(path) else path.exists()


def is_file(path: Path) -> bool:
    """Whether a file is there, and no folder."""
    return bool(_ask(path, "isfile", object_key(path))) if is_remote(path) else path.is_file()


def list_names(folder: Path) -> list[str]:
    """The names of what stands in a folder, sorted; none where there is no folder."""
    if not is_remote(folder):
        return sorted(entry.name for entry in os.scandir(folder)) if folder.is_dir() else []
    try:
        found = _ask(folder, "ls", object_key(folder), detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    inside = (str(each).rstrip("/").rpartition("/")[2] for each in found if str(each).strip("/") != object_key(folder))
    return sorted(set(inside))


def unlink(path: Path) -> None:
    """Remove a file, if it is there."""
    if not is_remote(path):
        path.unlink(missing_ok=True)
    else:
        with suppress(FileNotFoundError):
            _ask(path, "rm_file", object_key(path))


def rename(path: Path, to: Path) -> None:
    """Give a file another name, in the place of whatever has that name."""
    if is_remote(path):
        _ask(path, "mv", object_key(path), object_key(to))
    else:
        path.replace(to)


def remove_tree(folder: Path) -> None:
    """Remove a folder with everything in it, if it is there."""
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            _ask(folder, "rm", object_key(folder), recursive=True)


def check_writable(folder: Path) -> None:
    """See whether a far folder can be written to, by writing and removing a file.

    Raises:
        ValueError: it cannot; the message says what the store said.
    """
    probe = folder / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        _fs(probe).pipe_file(object_key(probe), b"")
        _fs(probe).rm_file(object_key(probe))
    except Exception as error:  # of the store's own library, and each has its own
        raise ValueError(
            f"{folder} cannot be written to: {type(error).__name__}: {error}. Does the bucket exist, and does this "
            f"machine have credentials for it?"
        ) from error


def modified_ms(path: Path) -> int | None:
    """When a file that never changes was written, in ms since 1970; None where there is none.

    In an object store all files beside and below it are asked for at once, and remembered.
    """
    if not is_remote(path):
        return path.stat().st_mtime_ns // 10**6 if path.exists() else None
    if str(path) not in _written_at:
        for name, said in _found(path.parent):
            at = next((said[key] for key in ("LastModified", "mtime", "updated", "created") if said.get(key)), None)
            _written_at[f"{path.parent}/{name}"] = int(_seconds(at) * 1000)
    return _written_at.get(str(path))


_written_at: dict[str, int] = {}


def _seconds(at: Any) -> float:
    """A moment as stores say it: a datetime, a text, or seconds."""
    if isinstance(at, str):
        at = datetime.fromisoformat(at)
    return at.timestamp() if isinstance(at, datetime) else float(at or 0)


def map_concurrently(function: Callable[[Item], Result], items: Iterable[Item], concurrent: bool) -> list[Result]:
    """A function's results for some items in their order; with `far`, where each is a request, many at a time."""
    all_of_them = list(items)
    if not concurrent or len(all_of_them) < 2:
        return [function(item) for item in all_of_them]
    with ThreadPoolExecutor(min(MAX_CONCURRENT_REQUESTS, len(all_of_them))) as threads:
        return list(threads.map(function, all_of_them))


def list_objects(folder: Path) -> dict[str, str]:
    """Every file below a far folder, by its name from there, with what changes when its content does."""
    marks = ("ETag", "etag", "LastModified", "created")
    return {
        name: f"{said.get('size')} {next((said[mark] for mark in marks if said.get(mark)), '')}"
        for name, said in _found(folder)
    }


def download(file: Path, to: Path) -> None:
    """Copy a far file to this machine."""
    _ask(file, "get_file", object_key(file), str(to))


def upload(file: Path, to: Path) -> None:
    """Copy a file of this machine to a place, over what is there."""
    if is_remote(to):
        _ask(to, "put_file", str(file), object_key(to))
    else:
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, to)


def check_relative_name(name: str, where: Path) -> None:
    """See that a name leads to below the folder it is in.

    A store takes any name, and whoever may write to it could ask for files elsewhere on this machine.

    Raises:
        ValueError: it does not.
    """
    if name.startswith("/") or "\0" in name or ".." in name.split("/"):
        raise ValueError(f"{where} names {name!r}, which would lie outside of it: such a file is not brought")


def object_key(path: Path) -> str:
    """What the store calls a far path, its bucket included."""
    return str(cast(Any, path).path)


def _fs(path: Path) -> Any:
    return cast(Any, path).fs


def _ask(path: Path, method: str, *arguments: Any, **settings: Any) -> Any:
    """A request to the store that a path is in, again and again while it does not answer.

    Raises:
        FileNotFoundError, FileExistsError, NotADirectoryError: so it says.
        AwayError: it could not be reached, or refused, to the end.
    """
    for wait in (*RETRY_DELAYS, None):
        try:
            return getattr(_fs(path), method)(*arguments, **settings)
        except (FileNotFoundError, FileExistsError, NotADirectoryError):
            raise
        except Exception as error:  # of the store's own library, and each has its own
            if wait is None:
                raise StorageUnavailableError(
                    f"{path} could not be reached: {type(error).__name__}: {error}"
                ) from error
            log.warning("%s: %s: %s; tried again in %g s", path, type(error).__name__, error, wait)
        time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _found(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every file below a far folder, by its name from there, with what the store says of it."""
    root = object_key(folder).rstrip("/") + "/"
    try:
        found = _ask(folder, "find", root, detail=True)
    except FileNotFoundError:
        return
    for key, said in sorted(found.items()):
        name = str(key).removeprefix(root)
        if name and not name.endswith("/"):  # a name with a slash at its end marks a folder
            check_relative_name(name, folder)
            yield name, said
