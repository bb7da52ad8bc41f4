"""Shelf: features that one machine of a cluster has computed, for all the others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sweeps.engine.storage.lease import HeldError, Lease
from xfer.features.feature_cache import WHOLE
from xfer.storage import local_cache, object_store

LOOKED_EVERY = 2.0
"""Seconds between two looks at whether another machine is done."""


class FarShelf:
    """Arrays in an object store (`feature_store.Shelf`).

    Args:
        folder: the far folder that holds one for each array, by the same name as on every machine.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def turn(self, folder: Path) -> Iterator[None]:
        """See `feature_store.Shelf`. A machine that is lost gives up its turn within a minute."""
        there = self._folder / folder.name
        while not object_store.exists(there / WHOLE):
            try:
                with Lease(self._folder / ".turns" / folder.name):
                    if not object_store.exists(there / WHOLE):  # it may have come between the look and the lease
                        yield
                        local_cache.keep(folder, there, WHOLE)
                        return
            except HeldError:
                time.sleep(LOOKED_EVERY)
        local_cache.fetch(there, folder, WHOLE)
        yield
