"""FeatureStore: features kept under the hash of all that they follow from, for every trial and every later sweep."""

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

METADATA_FILE = "features.json"
"""The file that is written last."""

Rows = NDArray[np.float32]
"""[N, ...]: what a network makes of N images."""

Compute = Callable[[], Iterator[Rows]]
"""Yields the rows in order, some at a time."""


class SharedCache(Protocol):
    """Where machines that share no disk find each other's arrays."""

    def exclusive_compute(self, folder: Path) -> AbstractContextManager[None]:
        """One machine at a time: inside, an array that others have is in `folder`, and what is made there is kept."""
        ...


class FeatureCache:
    """Arrays of features by what they are.

    In a folder they are shared: computed by whoever comes first while others wait, mapped into memory by all. A file
    gets its name when it is whole, and is checked against its hash before a process first reads it; a damaged one is
    named in the log and computed again.

    Args:
        root: the folder; None keeps arrays in this object alone.
        remote_cache: what is asked for arrays that the folder has not, before they are computed.
    """

    def __init__(self, root: Path | None = None, remote_cache: SharedCache | None = None) -> None:
        self.root = root
        self._shelf = remote_cache
        self._held: dict[str, Rows] = {}

    def get_or_compute(self, description: Mapping[str, Any], count: int, compute: Compute) -> Rows:
        """The array that `what` describes, computed unless it is there.

        Args:
            description: everything that the array follows from, as plain data.
            count: how many rows it has.
            compute: makes it.
        """
        name = hashing.sha256_json(dict(description))
        if name not in self._held:
            self._held[name] = (
                np.concatenate(list(compute()))
                if self.root is None
                else self._shared(self.root / name[:32], description, count, compute)
            )
        return self._held[name]

    def _shared(self, folder: Path, description: Mapping[str, Any], count: int, compute: Compute) -> Rows:
        if not _is_whole(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(f".{folder.name}.lock")):
                if not _is_whole(folder):  # another process may have been at it while we waited
                    if folder.exists():
                        log.warning("features %s are damaged: they are computed again", folder)
                        shutil.rmtree(folder)
                    with self._shelf.exclusive_compute(folder) if self._shelf is not None else nullcontext():
                        if not _is_whole(folder):
                            shutil.rmtree(folder, ignore_errors=True)
                            _write(folder, description, count, compute)
        rows: Rows = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
        return rows


def _write(folder: Path, description: Mapping[str, Any], count: int, compute: Compute) -> None:
    with atomic_folder(folder) as temporary:
        file, done = temporary / "features.npy", 0
        array: np.memmap[Any, np.dtype[np.float32]] | None = None
        for rows in compute():
            if array is None:
                array = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(count, *rows.shape[1:]))
            array[done : done + len(rows)] = rows
            done += len(rows)
        assert done == count, f"{done} of {count} rows were computed"
        assert array is not None, "features of no images were asked for"
        array.flush()
        (temporary / METADATA_FILE).write_text(json.dumps({**description, "sha256": hashing.sha256_file(file)}))


def _is_whole(folder: Path) -> bool:
    try:
        seen = (folder / "features.npy").stat()
        return _is_as_written(folder, seen.st_mtime_ns, seen.st_size)
    except (OSError, ValueError, KeyError):
        return False


@lru_cache(maxsize=1024)
def _is_as_written(folder: Path, mtime_ns: int, size: int) -> bool:
    # Once for each process: gigabytes take seconds to hash.
    said = json.loads((folder / METADATA_FILE).read_bytes())["sha256"]
    return bool(said == hashing.sha256_file(folder / "features.npy"))
