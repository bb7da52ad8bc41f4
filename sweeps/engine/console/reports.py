"""From a store to a report."""

from __future__ import annotations

from pathlib import Path

from sweeps.engine.storage.store import Store
from sweeps.reporting.render import render
from sweeps.reporting.results import Results
from xfer.storage import local_cache, object_store


def load_results(store: Store) -> Results:
    """Everything that a sweep has left behind so far.

    Raises:
        ValueError: there is no sweep in this folder.
    """
    plan = store.plan()
    if plan is None:
        raise ValueError(f"there is no sweep in {store.folder}")
    records = store.records()
    ended = {record.trial for record in records}
    unfinished = [trial.name for trial in store.trials() if trial.name not in ended]
    screened = store.decisions("screening")
    decision = screened[-1] if screened else None
    return Results(plan, records, store.decisions("openings"), unfinished, decision, store.spending())


def render_report(store: Store, reports: Path) -> Path:
    """Render a sweep's report to `reports`/<name>/; says where report.html is.

    Where the sweep is kept in an object store, the report is put beside it: the machine it was made on may go.
    """
    page = render(load_results(store), reports / store.name)
    if object_store.is_remote(store.folder):
        for file in filter(Path.is_file, page.parent.rglob("*")):
            local_cache.upload_if_exists(file, store.folder / "report" / str(file.relative_to(page.parent)))
    return page
