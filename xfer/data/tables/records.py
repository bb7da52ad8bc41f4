"""Rows of a table that name an image and a label."""

from __future__ import annotations

from dataclasses import dataclass

from xfer.records import Part


@dataclass(frozen=True)
class Record:
    """One row."""

    line: int
    path: str
    label: str
    part: Part | None
    group: str | None = None
    """Value of the group column; None if it is empty or there is none."""
