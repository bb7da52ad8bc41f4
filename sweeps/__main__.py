"""Start sweeps, follow them and read their results."""

from __future__ import annotations

import pkgutil
import runpy
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import tyro
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

import sweeps
from sweeps.engine.console.overview import overview_rows, overviews
from sweeps.engine.console.subcommands import program_name, run_command
from sweeps.engine.flag_types import StoragePath as Place
from sweeps.engine.options import default_storage
from sweeps.engine.storage import lease
from sweeps.engine.storage.store import Store, list_sweeps
from xfer.storage.object_store import as_path, exists, is_remote
from xfer.text_output import escape_unencodable, use_utf8

if TYPE_CHECKING:
    from sweeps.reporting.results import Results
    from xfer.records import Record

app = tyro.extras.SubcommandApp()

Run = Annotated[str, tyro.conf.Positional]
try:
    STORAGE = default_storage()
except ValueError as error:
    print(f"error: XFER_STORAGE: {error}", file=sys.stderr)
    sys.exit(2)

COMMANDS = ("status", "list", "report", "compare", "reproduce", "ui", "sync")
GUIDE = """\
Finds the best way to transfer a pretrained network to your own images.

Start a sweep, or continue an interrupted one with the same command:

    {program} quickstart              three minutes on two CPU cores, without any download
    {program} folder --data DIR       your own images: DIR/<class>/*.jpg
    {program} folder --help           all flags
{pages}
See what there is; RUN is the name or folder of a sweep, by default the latest:

    {program} status                  all sweeps of the storage, and how to continue them
    {program} status RUN              progress of one sweep
    {program} report [RUN]            render its report again
    {program} compare RUN RUN ...     which strategy is best across data sets
    {program} reproduce [RUN]         train its best recipe again, and compare
    {program} ui [RUN]                its trials in MLflow, best first
    {program} sync [RUN]              send MLflow what it missed

Sweeps are stored in ./runs, or in $XFER_STORAGE or --storage: a folder, s3://..., gs://...
Look at the data or train a single recipe without a sweep: python -m xfer
"""


@app.command
def ui(run: Run = "", storage: Place = STORAGE, tracking_uri: str = "", port: int = 5000) -> int:
    """Open the MLflow UI on 127.0.0.1.

    Args:
        run: name or folder of the sweep to show; the latest by default.
        storage: storage of the sweeps: a folder, s3://..., gs://...
        tracking_uri: MLflow address, if the sweeps were started with --tracking-uri.
        port: port to listen on; if it is taken, the next free one is used.
    """
    from sweeps.engine.console.ui import serve_ui

    store = find_sweep(run, storage) if run or any(list_sweeps(storage)) else None
    return serve_ui(store.folder.parent if run and store else storage, tracking_uri, port, store)


@app.command(name="list")
def list_(storage: Place = STORAGE) -> int:
    """List all sweeps of a storage, as `status` does without a name.

    Args:
        storage: storage of the sweeps: a folder, s3://..., gs://...
    """
    found = overviews(storage)
    program = program_name("sweeps")
    if not found:
        print(f"There are no sweeps in {storage} yet. To start one:")
        print(f"    {program} quickstart              three minutes, without any download")
        print(f"    {program} folder --data DIR       your own images: DIR/<class>/*.jpg")
        print("For sweeps in another place, give --storage or set XFER_STORAGE.")
        return 0
    header, *rows = overview_rows(found)
    table = Table(*(Column(title, no_wrap=True, overflow="ignore") for title in header), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(Text, row))
    # Names are meant to be copied: without a terminal, nothing is cut off.
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)
    flag = "" if storage == default_storage() else f" --storage {storage}"
    print()
    print(f"{program} status NAME{flag}    progress of one sweep; also: report, ui")
    for sweep in found:
        if sweep.state == "interrupted":
            print(f"{sweep.command}    continues {sweep.name}")
    return 0


@app.command
def status(run: Run = "", storage: Place = STORAGE) -> int:
    """Show the progress of a sweep and the process that runs it; without a name, list all sweeps.

    Args:
        run: name or folder of the sweep.
        storage: storage of the sweeps: a folder, s3://..., gs://...
    """
    if not run:
        return list_(storage)

    from sweeps.engine.console.reports import load_results
    from sweeps.reporting.cost import describe_cost
    from sweeps.reporting.formatting import format_status
    from sweeps.reporting.summary import headline

    store = find_sweep(run, storage)
    results = load_results(store)
    plan = results.plan
    print(f"{store.name}: {plan['question']}")
    heads = sum(trial.phase == "screen" for trial in store.trials())
    decided = store.decisions("finals")
    finalists = len(decided[-1]["finalists"]) if decided else plan["finalists"]
    planned = {"screen": heads, "search": plan["trials"], "final": finalists * plan["seeds"]}
    if not heads:
        del planned["screen"]
    for phase, total in planned.items():
        counts = Counter(record.status for record in results.records if record.phase == phase)
        details = ", ".join(f"{count} {format_status(status)}" for status, count in sorted(counts.items()))
        print(f"  {phase:<7} {counts.total()} of {total} runs" + (f": {details}" if details else ""))
    for trial in store.trials():
        if trial.name in results.unfinished:
            print(f"  {trial.name:<7} {len(store.epochs(trial.name))} of {trial.recipe['epochs']} epochs")
    driver = lease.lease_holder(store.folder)
    print(f"  driver  {'process {pid} on {host}'.format(**driver) if driver else 'none'}")
    if driver and (left := _time_left(store, results)):
        print(f"  left    {left}")
    if cost := describe_cost(results.spending):
        print(f"  cost    {cost}")
    print(headline(results))
    return 0


@app.command
def report(run: Run = "", storage: Place = STORAGE, reports: Path = Path("reports")) -> int:
    """Render a sweep's report again from the stored results.

    Args:
        run: name or folder of the sweep; the latest by default.
        storage: storage of the sweep, if `run` is a name.
        reports: folder for the report.
    """
    from sweeps.engine.console.reports import render_report

    print(render_report(find_sweep(run, storage), reports))
    return 0


@app.command
def compare(
    runs: Annotated[list[str], tyro.conf.Positional],
    storage: Place = STORAGE,
    reports: Path = Path("reports"),
    name: str = "comparison",
) -> int:
    """Compare methods across the data sets of several sweeps: which strategy is best on average, and is it shown?

    Each sweep must be of other images. Methods that all of them tried are compared: strategies by their best search
    run, and classifiers on frozen features. Writes comparison.html, comparison.md and comparison.csv.

    Args:
        runs: names or folders of the sweeps, at least two.
        storage: storage of the sweeps that are given by name.
        reports: folder for the comparison.
        name: name of its folder there.
    """
    from sweeps.engine.cli import check_name
    from sweeps.engine.console.provenance import command_line
    from sweeps.engine.console.reports import load_results
    from sweeps.reporting.across_data_sets import conclusions
    from sweeps.reporting.comparison_page import methods_table, write_comparison

    stores = {str(store.folder): store for store in (find_sweep(run, storage) for run in runs)}
    if len(stores) < len(runs):
        raise ValueError(f"{' '.join(runs)} name only {len(stores)} different sweeps: name one for each data set")
    names = Counter(store.name for store in stores.values())
    results = {
        store.name if names[store.name] == 1 else f"{store.folder.parent.name}/{store.name}": load_results(store)
        for store in stores.values()
    }
    comparison, page = write_comparison(results, as_path(reports) / check_name(name), command_line())
    header, rows = (table := methods_table(comparison, results)).header[:4], table.rows
    shown = Table(*(Column(title, overflow="fold") for title in header), box=None, pad_edge=False)
    for row in rows:
        shown.add_row(*map(Text, row[:4]))
    console = Console()
    console.print(shown)
    for sentence in conclusions(comparison):
        console.print(Text(sentence))
    print(page)
    return 0


@app.command
def reproduce(
    run: Run = "",
    rank: int = 1,
    trial: str = "",
    weights: Path | None = None,
    threads: int = 1,
    storage: Place = STORAGE,
) -> int:
    """Train a finished run again from its stored recipe, and compare: equal bit for bit, or within the tolerance?

    On the same machine with the same versions, everything is expected to be equal bit for bit. Elsewhere, accuracies
    must lie within the 95% intervals of the stored ones. The exit status is 1 if they do not.

    Args:
        run: name or folder of the sweep; the latest by default.
        rank: position in the report's ranking; the first of its final runs is trained.
        trial: name of any other finished run, as in the report: 0007, or 0007-s2 for a final run.
        weights: file of the pretrained weights, if the sweep's command does not lead to it any more.
        threads: number of CPU threads; the sweep's --cpus-per-trial.
        storage: storage of the sweep, if `run` is a name.
    """
    from sweeps.engine.console.provenance import describe_changes, provenance
    from sweeps.engine.console.reports import load_results
    from sweeps.engine.trials.reproduction import compare, train_again
    from sweeps.reporting.formatting import describe_recipe, format_duration, pluralize

    store = find_sweep(run, storage)
    stored = find_run(load_results(store), rank, trial)
    print(f"{store.name}, run {stored.trial}: {describe_recipe(stored.recipe)}")
    console = Console()
    with console.status("") as line:
        show = lambda epoch, epochs: line.update(f"epoch {epoch} of {epochs}")  # noqa: E731
        again = train_again(store, stored, weights, threads, show)
    print(f"trained again in {format_duration(again.seconds)} (then {format_duration(stored.seconds)})")
    comparison = compare(stored, again)
    if not comparison.differences:
        titles = (("validation", stored.val), ("test", stored.test))
        sets = [f"{len(each.correct)} {title} images" for title, each in titles if each is not None]
        print(f"equal bit for bit: {pluralize(len(stored.epochs), 'epoch')} and the answers for {' and '.join(sets)}")
        return 0
    print(f"not equal bit for bit; first difference in {comparison.differences[0]}")
    for difference in comparison.differences[1:]:
        if not difference.startswith("epoch"):
            print(f"  {difference}")
    for change in describe_changes((store.plan() or {})["provenance"], provenance()):
        print(f"  {change}")
    for reason in comparison.outside:
        print(f"  {reason}")
    print("outside the tolerance" if comparison.outside else "within the tolerance (95% intervals of the stored run)")
    return 1 if comparison.outside else 0


def find_run(results: Results, rank: int, trial: str) -> Record:
    """Return the record of a finished run, by name or by the position of its recipe in the ranking.

    Raises:
        ValueError: there is no such run, or it has not finished.
    """
    from sweeps.reporting.ranking import ranked_finalists, ranked_trials

    finished = {record.trial: record for record in results.records if record.status == "finished"}
    if trial:
        if trial in finished:
            return finished[trial]
        raise ValueError(f"--trial {trial}: no finished run has this name; there are {', '.join(sorted(finished))}")
    ranked = ranked_finalists(results) or ranked_trials(results)
    if not 1 <= rank <= len(ranked):
        raise ValueError(f"--rank {rank}: the ranking has {len(ranked)} recipes")
    best = ranked[rank - 1]
    return next(iter(best.finals), best.search)


@app.command
def sync(run: Run = "", storage: Place = STORAGE, tracking_uri: str = "") -> int:
    """Copy a sweep's stored results to MLflow, for instance after its server was unavailable.

    Args:
        run: name or folder of the sweep; the latest by default.
        storage: storage of the sweep, if `run` is a name.
        tracking_uri: MLflow address (default: the database in the storage folder).
    """
    from sweeps.engine.tracking import Mirror, resolve_tracking_uri

    store = find_sweep(run, storage)
    if driver := lease.lease_holder(store.folder):
        process = "process {pid} on {host}".format(**driver)
        raise ValueError(f"{store.name} is being run by {process}, which also updates MLflow: wait until it has ended")
    uri = resolve_tracking_uri(tracking_uri, store.folder.parent)
    if not Mirror(store, uri).sync():
        print(f"MLflow is unavailable or did not accept all results: {uri}", file=sys.stderr)
        return 1
    print(f"MLflow has all results of {store.name}")
    return 0


def _time_left(store: Store, results: Results) -> str:
    """Return the time left of a sweep that is running, as its own progress view would, from what it has stored."""
    from sweeps.engine import selection
    from sweeps.engine.console.time_left import format_time_left, run_pace, time_left
    from xfer.records import NOISE_KINDS

    plan, machine = results.plan, results.plan["provenance"]["machine"]
    unfinished = [trial for trial in store.trials() if trial.name in results.unfinished]
    runs = [(each.trial, each.phase, each.recipe, each.epochs, True) for each in results.records]
    runs += [(trial.name, trial.phase, trial.recipe, store.epochs(trial.name), False) for trial in unfinished]
    tested = [record for record in results.records if record.test is not None]
    noise = (
        len(NOISE_KINDS) if record.test and record.test.noisy else len(store.noise_kinds(record.trial))
        for record in tested
    )
    return format_time_left(
        time_left(
            plan,
            [run_pace(name, phase, recipe, epochs, plan["data"], ended) for name, phase, recipe, epochs, ended in runs],
            selection.select_finalists(
                results.records, plan["finalists"], results.objectives, plan.get("control", {}).get("key")
            ),
            concurrent=len(unfinished) or len(machine["gpus"]) or machine["cpus"],
            tested=len(tested),
            noise_scores=sum(noise),
        )
    )


def find_sweep(run: str, storage: Path) -> Store:
    """Return the store of a sweep.

    Args:
        run: its name or folder; empty for the sweep of the storage that was started last, which is named on stderr.
        storage: storage of the sweep, if `run` is a name or empty.

    Raises:
        ValueError: there is no such sweep.
    """
    if not run:
        stores = list(list_sweeps(storage))
        if not stores:
            program = program_name("sweeps")
            raise ValueError(f"there are no sweeps in {storage} yet: start one, for example with {program} quickstart")
        which = "the only sweep" if len(stores) == 1 else f"the latest of {len(stores)} sweeps"
        print(f"{stores[-1].name}: {which} in {storage}", file=sys.stderr)
        return stores[-1]
    for folder in (storage / run, as_path(run)):
        if exists(folder / "plan.json"):
            return Store(folder if is_remote(folder) else folder.resolve())
    from xfer.choices import unknown_name_message

    raise ValueError(unknown_name_message("sweep", run, [store.name for store in list_sweeps(storage)]))


def experiments() -> list[str]:
    """Return the names of the experiment pages, the modules of this package."""
    names = [module.name for module in pkgutil.iter_modules(sweeps.__path__) if not module.ispkg]
    return [name for name in names if name != "__main__"]


def guide() -> str:
    """Return what the program can do, for a call without a command."""
    program, others = program_name("sweeps"), [name for name in experiments() if name not in ("folder", "quickstart")]
    pages = "".join(f"    {program} {name:<23} a named experiment\n" for name in others)
    return GUIDE.format(program=program, pages=pages)


def main() -> NoReturn:
    """Run the command named on the command line and exit.

    The name of an experiment page is a command too: `sweeps folder` is `python -m sweeps.folder`.
    """
    use_utf8()
    escape_unencodable()
    if not sys.argv[1:]:
        print(guide(), end="")
        sys.exit(0)
    if sys.argv[1] in experiments():
        page = sys.argv.pop(1)
        runpy.run_module(f"sweeps.{page}", run_name="__main__", alter_sys=True)
        sys.exit(0)  # a page exits by itself
    known = [*COMMANDS, *experiments()]
    if not sys.argv[1].startswith("-") and sys.argv[1] not in known:
        from xfer.choices import unknown_name_message

        print(f"error: {unknown_name_message('command', sys.argv[1], known)}", file=sys.stderr)
        sys.exit(2)
    run_command(app, program_name("sweeps"), __doc__)


if __name__ == "__main__":
    main()
