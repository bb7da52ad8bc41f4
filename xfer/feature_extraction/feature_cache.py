"""FeatureCache: arrays of features under the hash of everything they depend on, shared by trials and sweeps."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from xfer import hashing
from xfer.storage.atomic import atomic_folder

log = logging.getLogger(__name__)

ARRAY_FILE = "features.npy"

METADATA_FILE = "features.json"
"""Description and checksum of the array; written last."""

Rows = NDArray[np.float32]
"""Features [N, ...] of N images."""

Compute = Callable[[], Iterator[Rows]]
"""Yields all rows of an array in order, in chunks."""


class SharedCache(Protocol):
    """A cache shared by machines without a common disk."""

    def exclusive_compute(self, folder: Path) -> AbstractContextManager[None]:
        """Return a context that only one machine enters at a time.

        On entry an array that the shared cache has is fetched into `folder`; an array that is created inside is
        published on exit.
        """
        ...


class FeatureCache:
    """Arrays of features by their description.

    Arrays in a folder are shared by processes: one computes an array while the others wait, and all map it into memory.
    A file gets its final name when it is complete, and each process checks its hash before reading it for the first
    time. A damaged file is logged and computed again.

    Args:
        root: the folder; None keeps arrays in this object only.
        remote_cache: asked for arrays that are not in the folder before they are computed.
    """

    def __init__(self, root: Path | None = None, remote_cache: SharedCache | None = None) -> None:
        self.root = root
        self._remote_cache = remote_cache
        self._arrays: dict[str, Rows] = {}

    def get_or_compute(self, description: Mapping[str, Any], count: int, compute: Compute) -> Rows:
        """Return the array with a description; compute it if it is not cached.

        Args:
            description: everything that the array depends on, as plain data.
            count: number of rows.
            compute: yields the rows.
        """
        name = hashing.sha256_json(dict(description))
        if name not in self._arrays:
            self._arrays[name] = (
                np.concatenate(list(compute()))
                if self.root is None
                else self._load_or_compute(self.root / name[:32], description, count, compute)
            )
        return self._arrays[name]

    def _load_or_compute(self, folder: Path, description: Mapping[str, Any], count: int, compute: Compute) -> Rows:
        if not _is_complete(folder, count):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(f".{folder.name}.lock")):
                if not _is_complete(folder, count):  # another process may have written it in the meantime
                    if folder.exists():
                        log.warning("features in %s are damaged and will be computed again", folder)
                        shutil.rmtree(folder)
                    remote = self._remote_cache
                    with nullcontext() if remote is None else remote.exclusive_compute(folder):
                        if not _is_complete(folder, count):
                            shutil.rmtree(folder, ignore_errors=True)
                            _write(folder, description, count, compute)
        rows: Rows = np.load(folder / ARRAY_FILE, mmap_mode="r", allow_pickle=False)
        return rows


def _write(folder: Path, description: Mapping[str, Any], count: int, compute: Compute) -> None:
    with atomic_folder(folder) as temporary:
        file, done = temporary / ARRAY_FILE, 0
        array: np.memmap[Any, np.dtype[np.float32]] | None = None
        for rows in compute():
            if array is None:
                array = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(count, *rows.shape[1:]))
            array[done : done + len(rows)] = rows
            done += len(rows)
        assert done == count, f"{done} of {count} rows were computed"
        assert array is not None, "features need at least one image"
        array.flush()
        (temporary / METADATA_FILE).write_text(
            json.dumps({**description, "sha256": hashing.sha256_file(file)}), encoding="utf-8"
        )


def _is_complete(folder: Path, count: int) -> bool:
    """Return whether a folder has an array of `count` rows with the right description and checksum."""
    try:
        status = (folder / ARRAY_FILE).stat()
        return _num_rows(folder, status.st_mtime_ns, status.st_size) == count
    except (OSError, ValueError, LookupError, TypeError, EOFError):
        return False


@lru_cache(maxsize=1024)
def _num_rows(folder: Path, mtime_ns: int, size: int) -> int:
    """Return the number of rows of an array; cached per process, because hashing gigabytes takes seconds.

    Raises:
        OSError, ValueError, LookupError, TypeError, EOFError: the array is damaged, or its folder has another name.
    """
    description = json.loads((folder / METADATA_FILE).read_bytes())
    if not isinstance(description, dict):
        raise TypeError("it is not an object")
    checksum = description.pop("sha256")
    if hashing.sha256_json(description)[:32] != folder.name or checksum != hashing.sha256_file(folder / ARRAY_FILE):
        raise ValueError("its content is not what was written")
    return len(np.load(folder / ARRAY_FILE, mmap_mode="r", allow_pickle=False))
