"""What can be done with sweeps that ran or run: python -m sweeps ui | list | status RUN | report RUN | sync RUN."""

from __future__ import annotations

import sys
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

app = tyro.extras.SubcommandApp()

Run = Annotated[str, tyro.conf.Positional]
STORAGE = default_storage()


@app.command
def ui(storage: Place = STORAGE, tracking_uri: str = "", port: int = 5000) -> int:
    """Open the MLflow UI on 127.0.0.1.

    Args:
        storage: where the sweeps were written to: a folder, s3://..., gs://...
        tracking_uri: MLflow's address, where --tracking-uri was given to the sweep.
        port: where to listen; the next free one where it is taken.
    """
    from sweeps.engine.console.ui import serve_ui

    return serve_ui(storage, tracking_uri or None, port)


@app.command(name="list")
def list_(storage: Place = STORAGE) -> int:
    """What ran, and how far it came.

    Args:
        storage: where the sweeps were written to: a folder, s3://..., gs://...
    """
    name = Column("sweep", no_wrap=True, overflow="ignore")
    table = Table(name, "trials", "finals", "best on validation", "begun", box=None, pad_edge=False)
    for store in list_sweeps(storage):
        try:
            plan = store.plan() or {}
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            continue
        searched = [record for record in store.records() if record.phase == "search"]
        finals = sum(record.phase == "final" for record in store.records())
        values = [record.val_accuracy for record in searched if record.status == "finished" and record.val_accuracy]
        best = f"{max(values):.1%}" if values else "-"
        begun = plan["provenance"]["created"]
        table.add_row(Text(store.name), f"{len(searched)}/{plan['trials']}", str(finals), best, begun)
    if not table.row_count:
        print(f"nothing ran in {storage} yet: python -m sweeps.quickstart takes three minutes")
        return 0
    # A name is there to be copied: where nobody looks at a screen, nothing is cut off.
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)
    return 0


@app.command
def status(run: Run, storage: Place = STORAGE) -> int:
    """How far a sweep is, and whether somebody is at work on it.

    Args:
        run: its name, or its folder.
        storage: where it was written to, where only its name is given.
    """
    from sweeps.engine.console.reports import load_results
    from sweeps.reporting.cost import describe_cost
    from sweeps.reporting.summary import headline

    store = _found(run, storage)
    results = load_results(store)
    plan = results.plan
    print(f"{store.name}: {plan['question']}")
    heads = sum(trial.phase == "screen" for trial in store.trials())
    wanted_of = {"screen": heads, "search": plan["trials"], "final": plan["finalists"] * plan["seeds"]}
    for phase, wanted in list(wanted_of.items())[0 if heads else 1 :]:
        records = [record for record in results.records if record.phase == phase]
        states = sorted({record.status for record in records})
        counts = ", ".join(f"{sum(record.status == state for record in records)} {state}" for state in states)
        print(f"  {phase:<7} {len(records)} of {wanted} runs" + (f": {counts}" if counts else ""))
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
    """Render a sweep's report again, from what has been stored by now.

    Args:
        run: its name, or its folder.
        storage: where it was written to, where only its name is given.
        reports: folder for the report.
    """
    from sweeps.engine.console.reports import render_report as render

    print(render(_found(run, storage), reports))
    return 0


@app.command
def sync(run: Run, storage: Place = STORAGE, tracking_uri: str = "") -> int:
    """Bring MLflow to what has been stored, for instance after its server was away.

    Args:
        run: the sweep's name, or its folder.
        storage: where it was written to, where only its name is given.
        tracking_uri: MLflow's address; the database in the storage folder unless given.
    """
    from sweeps.engine.tracking import Mirror, resolve_tracking_uri

    store = _found(run, storage)
    if driver := lease.lease_holder(store.folder):
        raise ValueError("{name} is being run by process {pid} on {host}, which does this".format(name=run, **driver))
    uri = resolve_tracking_uri(tracking_uri, store.folder.parent)
    if not Mirror(store, uri).sync():
        print(f"MLflow could not be reached, or did not take everything: {uri}", file=sys.stderr)
        return 1
    print(f"MLflow has everything of {store.name}")
    return 0


def _found(run: str, storage: Path) -> Store:
    for folder in (storage / run, as_path(run)):
        if exists(folder / "plan.json"):
            return Store(folder if is_remote(folder) else folder.resolve())
    known = [store.name for store in list_sweeps(storage)]
    from xfer.choices import unknown_name_message

    raise ValueError(unknown_name_message("sweep", run, known))


def main() -> NoReturn:
    """Run the command that was asked for, and exit."""
    subcommands.run_command(app, "python -m sweeps", __doc__)


if __name__ == "__main__":
    main()
