"""Places: folders on this machine, or in an object store that many machines share, by one kind of path.

An address is a folder, or whatever fsspec knows: s3://bucket/runs, gs://bucket/runs, file:///shared/runs. What is small
(the objects of a sweep) is read and written where it is; what is large and never changes (packs, features, weights,
photos) is brought to this machine's disk once, whoever comes first, and used from there.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast

from filelock import FileLock

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

AT_ONCE = 32
"""Requests to an object store that are on their way at a time: each takes some 20 ms, most of it waiting."""

FILES_AT_ONCE = 256
"""Photos that are brought in one go, before somebody is told how far it is."""

SETTINGS: dict[str, dict[str, Any]] = {"s3": {"config_kwargs": {"max_pool_connections": AT_ONCE}}}
"""What is told to a kind of store: botocore would otherwise keep ten connections, whoever asks at the same time."""

PULLED_AGAIN = 5

TRIES_WAIT = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds between two tries to reach a store that does not answer, or refuses: a hiccup of two minutes, or credentials
that are just being renewed, must not end what has been trained for hours."""

NEEDS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""The extra of this project that brings what an address of some kind needs."""


class AwayError(OSError):
    """An object store did not do what was asked of it, however often; the message says where, and what it said."""


def place(address: str | Path) -> Path:
    """The path at an address.

    To whoever uses it a place in an object store is a path like any other: it has `/`, `name`, `parent`, `glob`,
    `exists`, `iterdir` and `unlink`. What differs (renaming, whole folders, many files) has a function here.

    >>> place("file:///shared/runs"), place("runs")
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
        path = UPath(address, use_listings_cache=False, **SETTINGS.get(scheme, {}))
        path.fs  # noqa: B018  imports what the kind of address needs
    except ImportError as error:
        extra = f"pip install 'xfer[{NEEDS[scheme]}]'" if scheme in NEEDS else f"see fsspec's own list ({error})"
        raise ValueError(f"{address}: a package for {scheme}:// is missing. {extra}") from error
    except ValueError as error:
        raise ValueError(
            f"{address}: {scheme}:// is no kind of address that is known. A folder is, or s3://, gs://, file://"
        ) from error
    return cast(Path, path)


def is_far(path: Path) -> bool:
    """Whether a path leads beyond this machine's file systems."""
    return not isinstance(path, Path)


def absolute(path: Path) -> str:
    """The address of a path, as every machine that can see it understands it."""
    return str(path) if is_far(path) else str(path.resolve())


# --- single objects -------------------------------------------------------------------------------------------------


def read(path: Path) -> bytes:
    """What stands at a far path: one request. A `FileNotFoundError` where nothing does."""
    # By itself s3fs asks for the size first, to see whether it should read in parts.
    whole = {"max_concurrency": 1} if cast(Any, path).protocol == "s3" else {}
    found: bytes = _ask(path, "cat_file", _key(path), **whole)
    return found


def write(path: Path, content: bytes, anew: bool = False) -> None:
    """Put bytes at a far path in one step: readers see all of them or what was there before.

    Args:
        path: where.
        content: what.
        anew: whether it is a `FileExistsError` if something stands there, of whoever else was quicker too.
    """
    _ask(path, "pipe_file", _key(path), content, mode="create" if anew else "overwrite")


def exists(path: Path) -> bool:
    """Whether a file or a folder is there."""
    return bool(_ask(path, "exists", _key(path))) if is_far(path) else path.exists()


def names(folder: Path) -> list[str]:
    """The names of what stands in a folder, sorted; none where there is no folder."""
    if not is_far(folder):
        return sorted(entry.name for entry in os.scandir(folder)) if folder.is_dir() else []
    try:
        found = _ask(folder, "ls", _key(folder), detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    inside = (str(each).rstrip("/").rpartition("/")[2] for each in found if str(each).strip("/") != _key(folder))
    return sorted(set(inside))


def unlink(path: Path) -> None:
    """Remove a file, if it is there."""
    if not is_far(path):
        path.unlink(missing_ok=True)
    else:
        with suppress(FileNotFoundError):
            _ask(path, "rm_file", _key(path))


def rename(path: Path, to: Path) -> None:
    """Give a file another name, in the place of whatever has that name."""
    if is_far(path):
        _ask(path, "mv", _key(path), _key(to))
    else:
        path.replace(to)


def remove(folder: Path) -> None:
    """Remove a folder with everything in it, if it is there."""
    if not is_far(folder):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            _ask(folder, "rm", _key(folder), recursive=True)


def check_writable(folder: Path) -> None:
    """See whether a far folder can be written to, by writing and removing a file.

    Raises:
        ValueError: it cannot; the message says what the store said.
    """
    probe = folder / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        _fs(probe).pipe_file(_key(probe), b"")
        _fs(probe).rm_file(_key(probe))
    except Exception as error:  # of the store's own library, and each has its own
        raise ValueError(
            f"{folder} cannot be written to: {type(error).__name__}: {error}. Does the bucket exist, and does this "
            f"machine have credentials for it?"
        ) from error


def modified_ms(path: Path) -> int | None:
    """When a file that never changes was written, in ms since 1970; None where there is none.

    In an object store all files beside and below it are asked for at once, and remembered.
    """
    if not is_far(path):
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


def each(function: Callable[[Item], Result], items: Iterable[Item], far: bool) -> list[Result]:
    """A function's results for some items in their order; with `far`, where each is a request, many at a time."""
    listed = list(items)
    if not far or len(listed) < 2:
        return [function(item) for item in listed]
    with ThreadPoolExecutor(min(AT_ONCE, len(listed))) as threads:
        return list(threads.map(function, listed))


# --- folders on this machine that stand for far ones ------------------------------------------------------------------


def cache() -> Path:
    """Where this machine keeps what it has brought: $XFER_CACHE, or ~/.cache/xfer."""
    return Path(os.environ.get("XFER_CACHE") or Path.home() / ".cache" / "xfer")


def near(path: Path) -> Path:
    """The path on this machine that stands for a far one; the path itself where it is not far."""
    if not is_far(path):
        return path
    return cache() / str(cast(Any, path).protocol) / _key(path).strip("/")


def brought(folder: Path, whole: str, check: Callable[[Path], None] = lambda folder: None) -> Path:
    """A folder whose content never changes, on this machine: brought by whoever comes first, while others wait.

    Args:
        folder: where it is.
        whole: the file in it that `keep` wrote last.
        check: is shown the copy before it is used, and raises where that is not what was written.

    Raises:
        FileNotFoundError: it is not there, or not whole.
    """
    here = near(folder)
    if not is_far(folder) or (here / whole).exists():
        return here
    here.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(here.with_name(f".{here.name}.lock")):
        if not (here / whole).exists():
            fetch(folder, here, whole, check)
    return here


def fetch(folder: Path, here: Path, whole: str, check: Callable[[Path], None] = lambda folder: None) -> None:
    """What `brought` does the first time, for whoever sees to it that nobody else does the same meanwhile."""
    if not exists(folder / whole):
        raise FileNotFoundError(f"{folder} has no {whole}")
    temporary = here.with_name(f".{here.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        _get(folder, temporary, list(_listed(folder)))
        check(temporary)
        shutil.rmtree(here, ignore_errors=True)
        temporary.rename(here)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def keep(here: Path, folder: Path, whole: str) -> None:
    """Put a finished folder of this machine to where others find it, unless it is there.

    Args:
        here: the folder.
        folder: where to; nothing is done where that is on this machine, for then it is the same.
        whole: the file in it that is written last: with it the folder is whole.
    """
    if not is_far(folder) or exists(folder / whole):
        return
    files = [str(path.relative_to(here)) for path in sorted(here.rglob("*")) if path.is_file()]
    each(lambda name: _put(here / name, folder / name), (name for name in files if name != whole), far=True)
    _put(here / whole, folder / whole)


def kept_file(file: Path, folder: Path, name: str) -> Path:
    """A file of this machine in a folder that others see; what has this name there is taken for the same."""
    there = folder / name
    if not exists(there):
        if is_far(folder):
            _put(file, there)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            temporary = folder / f".{name}.{uuid.uuid4().hex[:8]}.tmp"
            shutil.copyfile(file, temporary)
            temporary.replace(there)
    return there


def brought_file(file: Path, anew: bool = False) -> Path:
    """A file, on this machine: as it was when it was first brought or, with `anew`, as it is now.

    Raises:
        FileNotFoundError: there is none.
    """
    here = near(file)
    if not is_far(file) or (here.exists() and not anew):
        return here
    here.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(here.with_name(f".{here.name}.lock")):
        if anew or not here.exists():
            temporary = here.with_name(f".{here.name}.{uuid.uuid4().hex[:8]}.tmp")
            _ask(file, "get_file", _key(file), str(temporary))
            temporary.replace(here)
    return here


def pull(folder: Path) -> Path:
    """A copy to work on of a folder that changes; the folder itself where it is not far.

    This process has one at a time, so that nothing piles up: pulling another one removes it, and what processes that
    are no more have left.
    """
    if not is_far(folder):
        return folder
    host, root = socket.gethostname(), cache() / "pulled"
    root.mkdir(parents=True, exist_ok=True)
    for old in root.glob(f"{host}~*"):  # others' too, of a disk that several machines share, are told by the name
        pid = int(old.name.split("~")[1])
        if pid == os.getpid() or not _runs(pid):
            shutil.rmtree(old, ignore_errors=True)
    here = root / f"{host}~{os.getpid()}~{uuid.uuid4().hex[:8]}"
    atexit.register(shutil.rmtree, here, ignore_errors=True)
    here.mkdir()
    for _ in range(PULLED_AGAIN):
        try:
            _get(folder, here, list(_listed(folder)))
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
    if not is_far(folder):
        return
    now = {path.name for path in here.iterdir() if path.is_file() and not path.name.startswith(".")}
    there = set(names(folder))
    for name in sorted(now - there):
        _put(here / name, folder / name)
    for name in sorted(there - now):
        if now and name < max(now):
            unlink(folder / name)


def copy(file: Path, to: Path) -> None:
    """Copy a file of this machine to where others find it, over what is there; nothing where that is the same."""
    if file != to and file.exists():
        _put(file, to)


@contextmanager
def written(folder: Path) -> Iterator[Path]:
    """A folder of this machine to write into; of a far one its files are sent there at the end, over what is there."""
    if not is_far(folder):
        yield folder
        return
    with TemporaryDirectory(prefix="xfer-") as temporary:
        here = Path(temporary)
        yield here
        for path in sorted(here.rglob("*")):
            if path.is_file():
                _put(path, folder / str(path.relative_to(here)))


def mirrored(address: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """A copy on this machine of a far folder of photos, brought up to date: only what is new or changed is fetched.

    Args:
        address: the folder; or a file, which is brought with the folder it stands in, for a table names photos there.
        progress: told how many files are here, of how many.

    Raises:
        ValueError: there is nothing.
    """
    if not is_far(address):
        return address
    here = near(address)
    if _ask(address, "isfile", _key(address)):
        return mirrored(address.parent, progress) / address.name
    there = _listed(address)
    if not there:
        raise ValueError(f"there is nothing at {address}")
    here.mkdir(parents=True, exist_ok=True)
    with FileLock(here.with_name(f".{here.name}.lock")):
        index = here.with_name(f".{here.name}.json")
        had: dict[str, str] = json.loads(index.read_text()) if index.exists() else {}
        for name in had.keys() - there.keys():
            _check_name(name, index)
            (here / name).unlink(missing_ok=True)
        missing = [name for name, mark in there.items() if had.get(name) != mark or not (here / name).exists()]
        for start in range(0, len(missing), FILES_AT_ONCE):
            progress(len(there) - len(missing) + start, len(there))
            _get(address, here, missing[start : start + FILES_AT_ONCE])
        temporary = index.with_suffix(".tmp")
        temporary.write_text(json.dumps(there))
        temporary.replace(index)
    return here


def _fs(path: Path) -> Any:
    return cast(Any, path).fs


def _key(path: Path) -> str:
    return str(cast(Any, path).path)


def _ask(path: Path, method: str, *arguments: Any, **settings: Any) -> Any:
    """A request to the store that a path is in, again and again while it does not answer.

    Raises:
        FileNotFoundError, FileExistsError, NotADirectoryError: so it says.
        AwayError: it could not be reached, or refused, to the end.
    """
    for wait in (*TRIES_WAIT, None):
        try:
            return getattr(_fs(path), method)(*arguments, **settings)
        except (FileNotFoundError, FileExistsError, NotADirectoryError):
            raise
        except Exception as error:  # of the store's own library, and each has its own
            if wait is None:
                raise AwayError(f"{path} could not be reached: {type(error).__name__}: {error}") from error
            log.warning("%s: %s: %s; tried again in %g s", path, type(error).__name__, error, wait)
        time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _found(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every file below a far folder, by its name from there, with what the store says of it."""
    root = _key(folder).rstrip("/") + "/"
    try:
        found = _ask(folder, "find", root, detail=True)
    except FileNotFoundError:
        return
    for key, said in sorted(found.items()):
        name = str(key).removeprefix(root)
        if name and not name.endswith("/"):  # a name with a slash at its end marks a folder
            _check_name(name, folder)
            yield name, said


def _check_name(name: str, where: Path) -> None:
    """See that a name leads to below the folder it is in.

    A store takes any name, and whoever may write to it could ask for files elsewhere on this machine.

    Raises:
        ValueError: it does not.
    """
    if name.startswith("/") or "\0" in name or ".." in name.split("/"):
        raise ValueError(f"{where} names {name!r}, which would lie outside of it: such a file is not brought")


def _listed(folder: Path) -> dict[str, str]:
    """Every file below a far folder, by its name from there, with what changes when its content does."""
    marks = ("ETag", "etag", "LastModified", "created")
    return {
        name: f"{said.get('size')} {next((said[mark] for mark in marks if said.get(mark)), '')}"
        for name, said in _found(folder)
    }


def _get(folder: Path, to: Path, names: list[str]) -> None:
    for name in names:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
    each(lambda name: _ask(folder, "get_file", _key(folder / name), str(to / name)), names, far=True)


def _put(file: Path, to: Path) -> None:
    if is_far(to):
        _ask(to, "put_file", str(file), _key(to))
    else:
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, to)
