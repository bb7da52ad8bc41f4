"""The command line of an experiment: flags to a checked plan, the sweep, and the summary at the end."""

from __future__ import annotations

import atexit
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from sweeps.engine.options import CliOptions, apply_options, default_storage, parse_args, parse_duration
from sweeps.engine.plan import Plan
from sweeps.engine.resources import cluster, scratch
from sweeps.engine.resources.cluster_address import check_named_host
from sweeps.engine.resources.open_files import raise_open_file_limit
from sweeps.engine.resources.prices import check_cost_budget, parse_prices
from sweeps.engine.storage.folders import (
    FULL_DISK_ERRORS,
    MachineFaultError,
    check_folder,
    check_local,
    disk_problem,
)
from sweeps.engine.storage.lease import LeaseHeldError, is_unused
from sweeps.engine.storage.store import Store
from sweeps.reporting.formatting import escape_control_characters, join_words, name_sets, pluralize
from xfer.data.uris import URI_FORMATS
from xfer.models.panel import AUTO, PanelSize, panel_size
from xfer.storage import local_cache, object_store
from xfer.storage.redaction import redact
from xfer.text_output import escape_unencodable, use_utf8

if TYPE_CHECKING:  # these imports take seconds, and `--help` should be immediate
    from collections.abc import Iterator

    from sweeps.engine.planning.prepared import Prepared
    from sweeps.engine.trials.run_options import RunOptions
    from sweeps.engine.trials.trainable import Resources
    from sweeps.reporting.results import Results

EXIT_OK, EXIT_NO_RESULT, EXIT_INVALID_INPUT, EXIT_MACHINE_FAULT, EXIT_INTERRUPTED = 0, 1, 2, 3, 130
"""Exit statuses. Invalid input is refused before any training, with one message that says what to do."""

DataFinder = Callable[[Plan, Any], Plan]
"""A page's function that finds its data: from the plan and the flags to a plan with `data`. Raises a ValueError that
says what is missing."""


def main(
    plan: Plan,
    description: str | None,
    flags: type[CliOptions] = CliOptions,
    find: DataFinder = lambda plan, options: plan,
) -> NoReturn:
    """Run an experiment from the command line and exit.

    Args:
        plan: the page's plan.
        description: the page's docstring, shown above the flags.
        flags: the page's subclass of `CliOptions`, if it has flags of its own.
        find: finds the page's data.
    """
    use_utf8()
    escape_unencodable()
    options: CliOptions | None = None
    try:
        requested, options = parse_args(plan, options_type=flags, description=description)
        status = run_experiment(find(requested, options), options)
    except KeyboardInterrupt:  # while no trials run; `_run_sweep` handles the others
        print("interrupted: the same command resumes from here", file=sys.stderr)
        status = EXIT_INTERRUPTED
    except (ValueError, LeaseHeldError) as error:
        print(*map(escape_control_characters, redact(f"error: {error}").splitlines()), sep="\n", file=sys.stderr)
        status = EXIT_INVALID_INPUT
    except MachineFaultError as error:
        print(escape_control_characters(redact(f"error: {error}")), file=sys.stderr)
        status = EXIT_MACHINE_FAULT
    except OSError as error:
        full = error.errno in FULL_DISK_ERRORS
        print(escape_control_characters(redact(f"error: {_describe_os_error(error, options)}")), file=sys.stderr)
        status = EXIT_MACHINE_FAULT if full else EXIT_INVALID_INPUT
    _exit(status)


def _describe_os_error(error: OSError, options: CliOptions | None) -> str:
    """Return what could not be read or written and, on a full disk, the free space and how to go on."""
    file, storage = error.filename, options.storage if options else None
    where = str(file or storage or "while reading or writing")
    text = f"{error.strerror or error}: {where}"
    if error.errno not in FULL_DISK_ERRORS:
        return text
    folder = Path(file).parent if file else local_cache.local_path(storage) if storage else None
    problem = disk_problem(folder) if folder else ""
    left = f" ({problem})" if problem else ""
    return f"{text}{left}. What was trained is kept: free some space, and the same command resumes"


def run_experiment(requested: Plan, options: CliOptions) -> int:
    """Run a plan with the given flags.

    Args:
        requested: the plan with its data found.
        options: the flags that are not part of a plan.

    Returns:
        The exit status.

    Raises:
        ValueError: invalid input; the message is written for the user.
        LeaseHeldError: another driver runs this sweep.
    """
    plan = apply_options(requested, options)
    seconds = parse_duration(options.time_budget)
    prices = parse_prices(options.prices)
    check_cost_budget(prices, options.cost_budget, joins=cluster.has_cluster_address())
    name = options.name and check_name(options.name)
    if not plan.data:
        raise ValueError(f"which images? {_program(plan)} --data DIR, with DIR/<class>/*.jpg in it. {URI_FORMATS}")
    check_folder(options.storage, options.storage_source)
    check_local(options.reports, "--reports")
    check_folder(object_store.as_path(options.reports), "--reports")
    start_notes = _check_machine()

    from sweeps.engine.trials import preload  # noqa: F401, I001  (first, because it imports torch faster)

    from sweeps.engine import launch, tracking
    from sweeps.engine.console.log_redirect import redirect_output
    from sweeps.engine.planning.panel import PanelRequest
    from sweeps.engine.planning.plan_file import default_name
    from sweeps.engine.planning.prepare import prepare
    from sweeps.engine.trials import early_start
    from sweeps.engine.trials.run_options import RunOptions
    from xfer.devices.host_memory import retain_freed_memory

    tracking_uri = tracking.resolve_tracking_uri(options.tracking_uri, options.storage)
    if not tracking.answers(tracking_uri):
        start_notes.append(_unreachable_note(tracking_uri))
    retain_freed_memory()  # this process measures the data and trains probes
    panel_request = PanelRequest()
    if AUTO in plan.backbones:
        panel_request = PanelRequest(
            _panel_size(),
            lambda default: None if options.fresh else Store(options.storage / (name or default)).plan(),
            _print_line,
        )
    with _progress_bar("reading images") as progress:
        prepared = prepare(plan, options.storage, progress, panel_request)
    resources = resources_per_trial(options)
    run_options = RunOptions(
        resources=resources,
        shares_gpus=options.gpus_per_trial is None and resources.gpus > 0,
        concurrent=options.concurrent,
        seconds=seconds,
        prices=prices,
        cost_budget=options.cost_budget,
        tracking_uri=tracking_uri,
    )
    name = name or default_name(prepared)
    store = Store(options.storage / (unused_name(options.storage, name) if options.fresh else name))
    start_ray = early_start.start if early_start.needs_ray(prepared) else lambda: None
    with _interruptible(), launch.leased(store, on_wait=_print_line), early_start.stopped_at_end():
        with _progress_bar("measuring the data") as progress:
            similar = launch.claim_plan(prepared, store, progress, start_ray)
        notes = [*([] if options.fresh else similar), *prepared.notes, *start_notes]
        with redirect_output(store.local_folder / "logs" / "driver.log") as console:
            shown: list[Path] = []  # the report, once it is rendered before the evaluation under noise
            status = _run_sweep(
                prepared,
                store,
                run_options,
                console,
                notes,
                lambda: shown.append(_show_result(store, options, console)),
            )
            _print_summary(store, plan, options, console, status, already_shown=bool(shown))
    local_cache.upload_if_exists(store.local_folder / "logs" / "driver.log", store.folder / "logs" / "driver.log")
    return status


def check_name(name: str) -> str:
    """Return a sweep's name if it is a plain file name.

    Raises:
        ValueError: the name has slashes, is hidden or too long, or cannot be printed.
    """
    if Path(name).name != name or name.startswith(".") or not name.isprintable() or len(name) > 100:
        raise ValueError(f"--name {name!r}: must be a plain name without slashes, of at most 100 characters")
    return name


def unused_name(storage: Path, name: str) -> str:
    """Return the first of name, name-2, name-3, ... that no sweep in the storage has.

    What an interrupted first start has left, without a plan or a trial, is not a sweep.
    """
    candidates = (name, *(f"{name}-{number}" for number in range(2, 10_000)))
    return next(candidate for candidate in candidates if is_unused(storage / candidate))


def resources_per_trial(options: CliOptions) -> Resources:
    """Return the CPU cores and GPUs of each trial.

    Raises:
        ValueError: a number outside the limits, or GPUs on a machine without any.
    """
    from sweeps.engine.trials.trainable import Resources
    from xfer.devices.device import default_device

    gpus = options.gpus_per_trial
    for flag, value, low, high in (
        ("--cpus-per-trial", options.cpus_per_trial, 1, 4096),
        ("--gpus-per-trial", gpus, 0, 64),
        ("--concurrent", options.concurrent, 1, 65_536),
    ):
        if value is not None and not low <= value <= high:
            raise ValueError(f"{flag} {value}: must be between {low} and {high}")
    if gpus is None:
        return Resources(_cores_per_trial(options), 1.0 if _has_gpus() else 0.0)
    if gpus > 1 and not gpus.is_integer():
        raise ValueError(f"--gpus-per-trial {gpus:g}: must be a fraction of one GPU, as in 0.5, or an integer, as in 2")
    if gpus > 0 and not cluster.has_cluster_address() and default_device().type != "cuda":
        raise ValueError(f"--gpus-per-trial {gpus:g}, but torch sees no GPU on this machine")
    return Resources(_cores_per_trial(options), gpus)


def _cores_per_trial(options: CliOptions) -> int:
    if options.cpus_per_trial is not None:
        return options.cpus_per_trial
    if options.concurrent is None or cluster.has_cluster_address():  # the cluster's machines are unknown here
        return 1
    return max(1, (os.cpu_count() or 1) // options.concurrent)


def _has_gpus() -> bool:
    """Whether trials can get a GPU: on this machine, or on machines that the cluster has or can start."""
    from xfer.devices.device import default_device

    if cluster.has_cluster_address():
        check_named_host(cluster.cluster_address())
        from sweeps.engine.trials import ray_connection, ray_tune

        ray_connection.connect_ray()
        return ray_tune.max_cluster_resource("GPU") > 0
    return default_device().type == "cuda"


def _panel_size() -> PanelSize:
    """Return the size of the panel of `--backbone auto` for the machines that run the trials."""
    import torch

    if not _has_gpus():
        return panel_size(None)
    if cluster.has_cluster_address():
        return panel_size(None, is_cluster=True)
    return panel_size(torch.cuda.get_device_properties(0).total_memory)


def _run_sweep(
    prepared: Prepared,
    store: Store,
    run_options: RunOptions,
    console: Console,
    notes: Sequence[str],
    on_ranking: Callable[[], None],
) -> int:
    from sweeps.engine import launch
    from sweeps.engine.console.progress import ProgressView
    from sweeps.engine.presearch import advice, warm_start

    split = prepared.split
    console.print(
        Text(
            f"{store.name}: {len(prepared.pack.classes)} classes, {len(split.train)} training, "
            f"{len(split.val)} validation and {len(split.test)} test images of "
            f"{join_words([str(pack.image_size) for pack in prepared.packs])} px"
        )
    )
    for note in notes:
        console.print(Text(escape_control_characters(f"note: {name_sets(note)}")))
    stored_plan = store.plan() or {}
    for line in stored_plan.get("defaults", ()):
        console.print(Text(escape_control_characters(f"default search: {line}")), soft_wrap=True)
    if advised := advice.summary_line(stored_plan.get("advice", {}), prepared.space.strategies()):
        console.print(Text(escape_control_characters(f"advice: {advised}")))
    if warm := warm_start.summary_line(stored_plan):
        console.print(Text(escape_control_characters(f"warm start: {warm}")))
    try:
        with ProgressView(console, store.name, prepared.plan.objectives[0]) as view:
            mirrored = launch.run_sweep(prepared, store, run_options, view, on_ranking)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    if not mirrored:
        console.print(Text(f"MLflow has not received everything yet (see {store.local_folder}/logs/driver.log)"))
    records = [record for record in store.records() if record.phase != "screen"]
    return EXIT_OK if any(record.status == "finished" for record in records) else EXIT_NO_RESULT


def _print_line(line: str) -> None:
    Console().print(Text(escape_control_characters(line)))


def _show_result(store: Store, options: CliOptions, console: Console) -> Path:
    """Render the report and print the ranking; return the path of the report."""
    from sweeps.engine.console.reports import load_results, render_report

    report = render_report(store, options.reports)
    _print_ranking(load_results(store), console)
    console.print(Text(f"report   {report}"), soft_wrap=True)
    return report


def _print_ranking(results: Results, console: Console) -> None:
    from sweeps.reporting.summary import accuracy_by_class, caveats, headline, strategy_comparison
    from sweeps.reporting.verdict import verdict

    console.print(_ranking_table(results))
    console.print(Text(headline(results)))
    sentences = (verdict(results), accuracy_by_class(results), strategy_comparison(results), *caveats(results))
    for sentence in filter(None, sentences):
        console.print(Text(f"- {sentence}"), soft_wrap=True)


def _print_summary(
    store: Store, plan: Plan, options: CliOptions, console: Console, status: int, already_shown: bool
) -> None:
    from sweeps.engine.console.provenance import command_line
    from sweeps.engine.console.reports import load_results, render_report
    from sweeps.reporting.cost import describe_cost

    results = load_results(store)
    report = render_report(store, options.reports)
    if status == EXIT_INTERRUPTED:
        console.print(
            Text(
                f"interrupted: {pluralize(len(results.records), 'run')} done; the same command will resume "
                f"{pluralize(len(results.unfinished), 'run')} from the last epoch"
            )
        )
        console.print(Text(f"report   {report}"), soft_wrap=True)
        console.print(Text(f"next     {command_line()}"), soft_wrap=True)
        return
    if status == EXIT_NO_RESULT:
        console.print(Text("no trial finished:"))
        reasons = sorted({record.error or record.status for record in results.records})
        reasons += sorted({reason for name in results.unfinished for reason in store.faults(name)[-1:]})
        for reason in reasons or ["the time or the money was used up before the first trial finished"]:
            console.print(Text(escape_control_characters(f"  {reason}")))
    elif not already_shown:
        _print_ranking(results, console)
    storage_flag = "" if options.storage == default_storage() else f" --storage {shlex.quote(str(options.storage))}"
    console.print()
    if spent := describe_cost(results.spending):
        console.print(Text(f"cost     {spent}"), soft_wrap=True)
    console.print(Text(f"report   {report}"), soft_wrap=True)
    if object_store.is_remote(store.folder):
        console.print(Text(f"kept     {store.folder / 'report'}"), soft_wrap=True)
    console.print(Text(f"browse   python -m sweeps ui{storage_flag}"), soft_wrap=True)
    console.print(Text(_next_step(results, plan, options)))


def _next_step(results: Results, plan: Plan, options: CliOptions) -> str:
    if plan.experiment == "quickstart":
        return "next     python -m sweeps.folder --data DIR     (your own images: DIR/<class>/*.jpg)"
    if results.unfinished or len(results.trials) < results.plan["trials"]:
        change = "" if options.cost_budget is None else " with a larger --cost-budget"
        return f"next     the same command{change} resumes where this one ended"
    return f"next     the same command with --trials {2 * results.plan['trials']} continues the search"


def _ranking_table(results: Results) -> Table:
    from sweeps.reporting.tables import summary_table

    summary = summary_table(results)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in summary.header:
        table.add_column(Text(title), no_wrap=title != "strategy")
    for number, row in enumerate(summary.rows):
        cells = [Text(cell) for cell in row]
        for cell, column in zip(cells, summary.header, strict=True):
            if note := summary.note(number, column):
                cell.append(f"\n{note}", style="dim")
        table.add_row(*cells)
    return table


def _program(plan: Plan) -> str:
    return f"python -m sweeps.{plan.experiment}"


def _check_machine() -> list[str]:
    """Check what Ray needs: a cluster that can be joined, or a folder for temporary files and enough open files here.

    Returns:
        Notes for the user.

    Raises:
        ValueError: a sweep could not start; the message says what to do.
    """
    if cluster.has_cluster_address():
        from sweeps.engine.trials import ray_connection

        ray_connection.connect_ray()
        return []
    raise_open_file_limit()
    _, note = scratch.choose_parent()
    return [note] if note else []


def _unreachable_note(tracking_uri: str) -> str:
    return (
        f"MLflow at {redact(tracking_uri)} does not answer. The sweep runs without it; once it answers, "
        f"`python -m sweeps sync` sends everything."
    )


@contextmanager
def _progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on the terminal, updated by calls with (done, total)."""
    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM stop the sweep in order, and a second one stop it at once."""

    def stop(number: int, frame: Any) -> NoReturn:
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signal_number, lambda number, frame: os._exit(EXIT_INTERRUPTED))
        raise KeyboardInterrupt

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _exit(status: int) -> NoReturn:
    """Exit with this status; as a program at once, after the registered exit functions.

    Python would first dismantle the libraries piece by piece, which takes a second or two and serves nothing.
    """
    program = getattr(sys.modules["__main__"], "__spec__", None)
    if program is None or not program.name.startswith("sweeps."):  # a test or a notebook, which continues
        sys.exit(status)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
