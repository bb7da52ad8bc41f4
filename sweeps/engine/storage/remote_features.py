"""Share computed features between the machines of a cluster through an object store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sweeps.engine.storage.lease import Lease, LeaseHeldError
from xfer.feature_extraction.feature_cache import METADATA_FILE
from xfer.storage import local_cache, object_store

POLL_SECONDS = 2.0
"""Seconds between two checks whether another machine has finished."""


class RemoteCache:
    """Arrays of features in an object store, for `xfer.feature_extraction.feature_cache.FeatureCache`.

    Args:
        folder: the remote folder; it holds one folder per array, named as in the local cache.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def exclusive_compute(self, folder: Path) -> Iterator[None]:
        """Let one machine compute and upload an array while the others wait and download it.

        A machine that is lost gives up its turn within a minute, when its lease expires.

        Args:
            folder: the local folder of the array. The body must compute it if it is missing.
        """
        remote = self._folder / folder.name
        while not object_store.exists(remote / METADATA_FILE):
            try:
                with Lease(self._folder / ".turns" / folder.name):
                    # Another machine may have finished between the check and the lease.
                    if not object_store.exists(remote / METADATA_FILE):
                        yield
                        local_cache.publish(folder, remote, METADATA_FILE)
                        return
            except LeaseHeldError:
                time.sleep(POLL_SECONDS)
        local_cache.fetch_folder(remote, folder, METADATA_FILE)
        yield
