"""Sections: parts of a report that are evidence for its answer, each with sentences, photos, a figure and a table."""

from __future__ import annotations

from dataclasses import dataclass

from sweeps.reporting.figures import ReportFigure
from sweeps.reporting.photos import PhotoRow
from sweeps.reporting.tables import Table

NO_TABLE = Table((), ())


@dataclass(frozen=True)
class Section:
    """One section of a report. Every part is optional; one without data to show has a sentence with the reason."""

    title: str
    sentences: tuple[str, ...] = ()
    photos: tuple[PhotoRow, ...] = ()
    figure: ReportFigure | None = None
    table: Table = NO_TABLE
    caption: str = ""
    """Explains the table."""
