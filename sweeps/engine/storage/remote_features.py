"""Shelf: features that one machine of a cluster has computed, for all the others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sweeps.engine.storage.lease import Lease, LeaseHeldError
from xfer.features.feature_cache import METADATA_FILE
from xfer.storage import local_cache, object_store

POLL_SECONDS = 2.0
"""Seconds between two looks at whether another machine is done."""


class RemoteCache:
    """Arrays in an object store (`feature_store.Shelf`).

    Args:
        folder: the far folder that holds one for each array, by the same name as on every machine.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def exclusive_compute(self, folder: Path) -> Iterator[None]:
        """See `feature_store.Shelf`. A machine that is lost gives up its turn within a minute."""
        there = self._folder / folder.name
        while not object_store.exists(there / METADATA_FILE):
            try:
                with Lease(self._folder / ".turns" / folder.name):
                    if not object_store.exists(
                        there / METADATA_FILE
                    ):  # it may have come between the look and the lease
                        yield
                        local_cache.publish(folder, there, METADATA_FILE)
                        return
            except LeaseHeldError:
                time.sleep(POLL_SECONDS)
        local_cache.fetch_folder(there, folder, METADATA_FILE)
        yield
