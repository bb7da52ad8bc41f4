"""Inspect sweeps: python -m sweeps ui | list | status RUN | report RUN | sync RUN."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, NoReturn

import tyro
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from sweeps.engine.console import subcommands
from sweeps.engine.flag_types import StoragePath as Place
from sweeps.engine.options import default_storage
from sweeps.engine.storage import lease
from sweeps.engine.storage.store import Store, list_sweeps
from xfer.storage.object_store import as_path, exists, is_remote
from xfer.text_output import escape_unencodable, use_utf8

app = tyro.extras.SubcommandApp()

Run = Annotated[str, tyro.conf.Positional]
try:
    STORAGE = default_storage()
except ValueError as error:
    print(f"error: XFER_STORAGE: {error}", file=sys.stderr)
    sys.exit(2)


@app.command
def ui(storage: Place = STORAGE, tracking_uri: str = "", port: int = 5000) -> int:
    """Open the MLflow UI on 127.0.0.1.

    Args:
        storage: storage of the sweeps: a folder, s3://..., gs://...
        tracking_uri: MLflow address, if the sweeps were started with --tracking-uri.
        port: port to listen on; if it is taken, the next free one is used.
    """
    from sweeps.engine.console.ui import serve_ui

    return serve_ui(storage, tracking_uri or None, port)


@app.command(name="list")
def list_(storage: Place = STORAGE) -> int:
    """List all sweeps and their progress.

    Args:
        storage: storage of the sweeps: a folder, s3://..., gs://...
    """
    name = Column("sweep", no_wrap=True, overflow="ignore")
    table = Table(name, "trials", "finals", "best validation accuracy", "started", box=None, pad_edge=False)
    for store in list_sweeps(storage):
        try:
            plan = store.plan() or {}
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            continue
        search = [record for record in store.records() if record.phase == "search"]
        finals = sum(record.phase == "final" for record in store.records())
        accuracies = [record.val_accuracy for record in search if record.status == "finished" and record.val_accuracy]
        best = f"{max(accuracies):.1%}" if accuracies else "-"
        started = plan["provenance"]["created"]
        table.add_row(Text(store.name), f"{len(search)}/{plan['trials']}", str(finals), best, started)
    if not table.row_count:
        print(f"There are no sweeps in {storage} yet. To start one (three minutes): python -m sweeps.quickstart")
        return 0
    # Names are meant to be copied: without a terminal, nothing is cut off.
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)
    return 0


@app.command
def status(run: Run, storage: Place = STORAGE) -> int:
    """Show the progress of a sweep, and the process that runs it.

    Args:
        run: name or folder of the sweep.
        storage: storage of the sweep, if `run` is a name.
    """
    from sweeps.engine.console.reports import load_results
    from sweeps.reporting.cost import describe_cost
    from sweeps.reporting.formatting import format_status
    from sweeps.reporting.summary import headline

    store = _find_sweep(run, storage)
    results = load_results(store)
    plan = results.plan
    print(f"{store.name}: {plan['question']}")
    heads = sum(trial.phase == "screen" for trial in store.trials())
    planned = {"screen": heads, "search": plan["trials"], "final": plan["finalists"] * plan["seeds"]}
    if not heads:
        del planned["screen"]
    for phase, total in planned.items():
        counts = Counter(record.status for record in results.records if record.phase == phase)
        details = ", ".join(f"{count} {format_status(status)}" for status, count in sorted(counts.items()))
        print(f"  {phase:<7} {counts.total()} of {total} runs" + (f": {details}" if details else ""))
    for name in results.unfinished:
        print(f"  {name:<7} {len(store.epochs(name))} of {plan['epochs']} epochs")
    driver = lease.lease_holder(store.folder)
    print(f"  driver  {'process {pid} on {host}'.format(**driver) if driver else 'none'}")
    if cost := describe_cost(results.spending):
        print(f"  cost    {cost}")
    print(headline(results))
    return 0


@app.command
def report(run: Run, storage: Place = STORAGE, reports: Path = Path("reports")) -> int:
    """Render a sweep's report again from the stored results.

    Args:
        run: name or folder of the sweep.
        storage: storage of the sweep, if `run` is a name.
        reports: folder for the report.
    """
    from sweeps.engine.console.reports import render_report

    print(render_report(_find_sweep(run, storage), reports))
    return 0


@app.command
def sync(run: Run, storage: Place = STORAGE, tracking_uri: str = "") -> int:
    """Copy a sweep's stored results to MLflow, for instance after its server was unavailable.

    Args:
        run: name or folder of the sweep.
        storage: storage of the sweep, if `run` is a name.
        tracking_uri: MLflow address (default: the database in the storage folder).
    """
    from sweeps.engine.tracking import Mirror, resolve_tracking_uri

    store = _find_sweep(run, storage)
    if driver := lease.lease_holder(store.folder):
        process = "process {pid} on {host}".format(**driver)
        raise ValueError(f"{run} is being run by {process}, which also updates MLflow: wait until it has ended")
    uri = resolve_tracking_uri(tracking_uri, store.folder.parent)
    if not Mirror(store, uri).sync():
        print(f"MLflow is unavailable or did not accept all results: {uri}", file=sys.stderr)
        return 1
    print(f"MLflow has all results of {store.name}")
    return 0


def _find_sweep(run: str, storage: Path) -> Store:
    for folder in (storage / run, as_path(run)):
        if exists(folder / "plan.json"):
            return Store(folder if is_remote(folder) else folder.resolve())
    from xfer.choices import unknown_name_message

    raise ValueError(unknown_name_message("sweep", run, [store.name for store in list_sweeps(storage)]))


def main() -> NoReturn:
    """Run the command named on the command line and exit."""
    use_utf8()
    escape_unencodable()
    subcommands.run_command(app, "python -m sweeps", __doc__)


if __name__ == "__main__":
    main()
