"""The command line of an experiment: flags to a checked plan, the sweep, and what is said at the end."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table as Drawn
from rich.text import Text

from sweeps.engine import options
from sweeps.engine.options import Options
from sweeps.engine.plan import Plan
from sweeps.engine.resources import cluster, cost
from sweeps.engine.storage.lease import LeaseHeldError
from sweeps.engine.storage.store import Store
from sweeps.reporting.formatting import escape_control_characters
from xfer.data.uris import URI_FORMATS
from xfer.storage import local_cache, object_store

if TYPE_CHECKING:  # what a sweep stands on takes seconds to import, and `--help` should not
    from collections.abc import Iterator

    from sweeps.engine.planning.prepared import Prepared
    from sweeps.engine.run_options import RunOptions
    from sweeps.reporting.results import Results

EXIT_OK, EXIT_NO_RESULT, EXIT_INVALID_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130
"""Exit statuses. Wrong input is refused before any training, with one message that says what to do."""

DataFinder = Callable[[Any], Options]
"""What a page does to find its data: flags in, flags with `data` out; a ValueError says what is missing."""


def main(
    plan: Plan, about: str | None, flags: type[Options] = Options, find: DataFinder = lambda asked: asked
) -> NoReturn:
    """Run an experiment from the command line and exit.

    Args:
        plan: the page's.
        about: the page's docstring, shown above the flags.
        flags: the page's own flags, where it has more than the shared ones.
        find: what it does to find its data.
    """
    program = f"python -m sweeps.{plan.experiment}"
    asked = tyro.cli(flags, default=flags(**options.default_flags(plan)), description=about, prog=program)
    try:
        status = run_experiment(plan, find(asked), program)
    except KeyboardInterrupt:  # outside of the trials, whose own are seen to in `_sweep`
        print("interrupted: the same command goes on from here", file=sys.stderr)
        status = EXIT_INTERRUPTED
    except (ValueError, LeaseHeldError) as error:
        print(*map(escape_control_characters, f"error: {error}".splitlines()), sep="\n", file=sys.stderr)
        status = EXIT_INVALID_INPUT
    except OSError as error:
        where = error.filename or "while reading or writing"
        print(escape_control_characters(f"error: {error.strerror or error}: {where}"), file=sys.stderr)
        status = EXIT_INVALID_INPUT
    _leave(status)


def _leave(status: int) -> NoReturn:
    """End with this status: as a program at once, once all that asked to be told of the end has been.

    Python would take the libraries apart piece by piece first, for a second or two, and nothing of it is of any use.
    """
    program = getattr(sys.modules["__main__"], "__spec__", None)
    if program is None or not program.name.startswith("sweeps."):  # a test, or a notebook, which goes on
        sys.exit(status)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run_experiment(page: Plan, asked: Options, program: str) -> int:
    """Run a plan as the flags changed it; the exit status.

    Raises:
        ValueError: wrong input; the message is for the person who gave it.
        HeldError: another driver is at work on this sweep.
    """
    plan = options.build_plan(page, asked)
    budget = options.parse_duration(asked.time_budget)
    prices = cost.parse_prices(asked.prices)
    cost.check_cost_budget(prices, asked.cost_budget, joins=cluster.has_cluster_address())
    if not plan.data:
        raise ValueError(f"which images? {program} --data DIR, with DIR/<class>/*.jpg in it. {URI_FORMATS}")
    _writable(asked.storage)
    _writable(asked.reports)

    from sweeps.engine import launch, tracking
    from sweeps.engine.console.log_redirect import redirect_output
    from sweeps.engine.planning.prepare import prepare
    from sweeps.engine.run_options import RunOptions
    from xfer.devices.host_memory import retain_freed_memory

    retain_freed_memory()  # data are measured, and heads trained, in this process
    with _watched("reading images") as progress:
        prepared = prepare(plan, asked.storage, progress)
    share = _share(asked)
    means = RunOptions(
        resources=share,
        shares_gpus=asked.gpus_per_trial is None and share.gpus > 0,
        concurrent=asked.concurrent,
        seconds=budget,
        prices=prices,
        cost_budget=asked.cost_budget,
        tracking_uri=tracking.resolve_tracking_uri(asked.tracking_uri, asked.storage),
    )
    store = Store(asked.storage / _name(asked, prepared))
    with _interruptible(), launch.leased(store, on_wait=_print_line):
        with _watched("measuring the data") as progress:
            launch.claim_plan(prepared, store, progress)
        with redirect_output(store.near / "logs" / "driver.log") as console:
            status = _sweep(prepared, store, means, console)
            _say_end(store, asked, console, program, status)
    local_cache.upload_if_exists(store.near / "logs" / "driver.log", store.folder / "logs" / "driver.log")
    return status


def _sweep(prepared: Prepared, store: Store, run_options: RunOptions, console: Console) -> int:
    from sweeps.engine import launch
    from sweeps.engine.console.progress import ProgressView
    from sweeps.engine.presearch.advice import summary_line
    from sweeps.engine.presearch.warm_start import summary_line as taken

    split = prepared.split
    console.print(
        Text(
            f"{store.name}: {len(prepared.pack.classes)} classes, {len(split.train)} training, "
            f"{len(split.val)} validation and {len(split.test)} test images of {prepared.image_size} px"
        )
    )
    for note in prepared.notes:
        console.print(Text(escape_control_characters(f"note: {note}")))
    begun = store.plan() or {}
    if advised := summary_line(begun.get("advice", {})):
        console.print(Text(escape_control_characters(f"advice: {advised}")))
    if warm := taken(begun):
        console.print(Text(escape_control_characters(f"warm start: {warm}")))
    try:
        with ProgressView(console, store.name, prepared.plan.objectives[0]) as watch:
            mirrored = launch.run_sweep(prepared, store, run_options, watch)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    if not mirrored:
        console.print(Text(f"MLflow has not received everything yet (see {store.near}/logs/driver.log)"))
    searched = [record for record in store.records() if record.phase != "screen"]
    return EXIT_OK if any(record.status == "finished" for record in searched) else EXIT_NO_RESULT


def _print_line(line: str) -> None:
    Console().print(Text(escape_control_characters(line)))


def _say_end(store: Store, asked: Options, console: Console, program: str, status: int) -> None:
    from sweeps.engine.console.reports import load_results, render_report
    from sweeps.reporting.cost import describe_cost
    from sweeps.reporting.summary import headline

    results = load_results(store)
    page = render_report(store, asked.reports)
    if status == EXIT_INTERRUPTED:
        console.print(
            Text(
                f"interrupted: {len(results.records)} runs are done, {len(results.unfinished)} will go on "
                f"from their last epoch when you give the same command again"
            )
        )
        return
    if status == EXIT_NO_RESULT:
        console.print(Text("no trial finished:"))
        reasons = sorted({record.error or record.status for record in results.records})
        for reason in reasons or ["the time or the money was up before the first could"]:
            console.print(Text(escape_control_characters(f"  {reason}")))
    else:
        console.print(_ranking(results))
        console.print(Text(headline(results)))
    where = "" if asked.storage == options.default_storage() else f" --storage {asked.storage}"
    console.print()
    if spent := describe_cost(results.spending):
        console.print(Text(f"cost     {spent}"), soft_wrap=True)
    console.print(Text(f"report   {page}"), soft_wrap=True)
    if object_store.is_remote(store.folder):
        console.print(Text(f"kept     {store.folder / 'report'}"), soft_wrap=True)
    console.print(Text(f"browse   python -m sweeps ui{where}"), soft_wrap=True)
    console.print(Text(f"{_next(results, asked, program)}"))


def _next(results: Results, asked: Options, program: str) -> str:
    if program.endswith(".quickstart"):
        return "next     python -m sweeps.folder --data DIR     (your own images: DIR/<class>/*.jpg)"
    if results.unfinished or len(results.trials) < results.plan["trials"]:
        more = "" if asked.cost_budget is None else " with a larger --cost-budget"
        return f"next     the same command{more} goes on where this one ended"
    return f"next     the same command with --trials {2 * results.plan['trials']} searches on"


def _ranking(results: Results) -> Drawn:
    from sweeps.reporting.tables import summary_table

    found = summary_table(results)
    drawn = Drawn(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in found.header:
        drawn.add_column(Text(title), no_wrap=title != "strategy")
    for row in found.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn


def _name(asked: Options, prepared: Prepared) -> str:
    from sweeps.engine.planning.plan_file import default_name

    name = asked.name or default_name(prepared)
    if Path(name).name != name or name.startswith(".") or not name.isprintable() or len(name) > 100:
        raise ValueError(f"--name {name!r}: a plain name is wanted, without slashes, of at most 100 characters")
    if not asked.fresh:
        return name
    taken = (f"{name}-{number}" for number in range(2, 10_000))
    return next(each for each in (name, *taken) if not object_store.exists(asked.storage / each))


def _share(asked: Options) -> Any:
    from sweeps.engine.trials.trainable import Resources
    from xfer.run import default_device

    for flag, value, low, high in (
        ("--cpus-per-trial", asked.cpus_per_trial, 1, 4096),
        ("--gpus-per-trial", asked.gpus_per_trial, 0, 64),
        ("--concurrent", asked.concurrent, 1, 65_536),
    ):
        if value is not None and not low <= value <= high:
            raise ValueError(f"{flag} {value}: it must lie between {low} and {high}")
    if asked.gpus_per_trial is not None:
        if asked.gpus_per_trial > 1 and not asked.gpus_per_trial.is_integer():
            raise ValueError(
                f"--gpus-per-trial {asked.gpus_per_trial:g}: a trial gets a share of one GPU, as in 0.5, or whole "
                f"ones, as in 2"
            )
        if asked.gpus_per_trial > 0 and not cluster.has_cluster_address() and default_device().type != "cuda":
            raise ValueError(f"--gpus-per-trial {asked.gpus_per_trial:g}, but torch sees no GPU on this machine")
        return Resources(_cores(asked), asked.gpus_per_trial)
    return Resources(_cores(asked), 1.0 if _has_gpus() else 0.0)


def _has_gpus() -> bool:
    """Whether trials can have a GPU: here, or on machines that the cluster has or can start."""
    from xfer.run import default_device

    if cluster.has_cluster_address():
        from sweeps.engine.trials import ray_tune

        ray_tune.connect_ray()
        return ray_tune.max_cluster_resource("GPU") > 0
    return default_device().type == "cuda"


def _cores(asked: Options) -> int:
    if asked.cpus_per_trial is not None:
        return asked.cpus_per_trial
    if asked.concurrent is None or cluster.has_cluster_address():  # of a cluster's machines nothing is known here
        return 1
    return max(1, (os.cpu_count() or 1) // asked.concurrent)


def _writable(folder: Path) -> None:
    if object_store.is_remote(folder):
        object_store.check_writable(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{folder} cannot be written to")


@contextmanager
def _watched(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal, for something that says how far it is."""
    screen = Console()
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the sweep in order; a second one stops it at once."""

    def stop(number: int, frame: Any) -> NoReturn:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, lambda number, frame: os._exit(EXIT_INTERRUPTED))
        raise KeyboardInterrupt

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
