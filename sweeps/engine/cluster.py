"""Cluster: whether there is one to join. Asked by those who should not import Ray for it."""

from __future__ import annotations

import os


def is_named() -> bool:
    """Whether RAY_ADDRESS names a cluster; otherwise Ray is started on this machine, and only when it is needed."""
    return bool(os.environ.get("RAY_ADDRESS"))
