"""Options: the command line of an experiment, parsed into its plan and the flags that are not part of a plan."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from sweeps.engine.flag_types import FlagError, StoragePath, vary_help
from sweeps.engine.plan import Plan
from sweeps.engine.search_space import image_sizes
from xfer.storage.object_store import as_path

SMOKE_IMAGE_SIZE = 64
"""Largest side of the images in pixels with `--smoke`. Several sizes are scaled to it in proportion."""


def default_storage() -> Path:
    """Return the default storage: $XFER_STORAGE, which cluster machines set, or `runs`."""
    return as_path(os.environ.get("XFER_STORAGE") or "runs")


RepeatableFlag = tyro.conf.UseAppendAction[tuple[str, ...]]


@dataclass(frozen=True)
class CliOptions:
    """The flags that are not fields of a plan: changes to its search space, and where and with what it runs."""

    images_per_class: int | None = None
    """Maximum number of training images per class. All by
    default; --vary images_per_class=10,50 compares several."""
    grey: bool = False
    """Remove the colour from all images, as --fix colour=grey
    does."""
    vary: Annotated[RepeatableFlag, tyro.conf.arg(help=vary_help())] = ()
    fix: RepeatableFlag = ()
    """AXIS=VALUE to hold fixed, once for each axis:
    optimizer=adam."""
    concurrent: int | None = None
    """Maximum number of concurrent trials; by default as many
    as fit."""
    gpus_per_trial: float | None = None
    """GPUs for each trial: 0.5 runs two trials on each GPU; 2,
    3, ... train each trial on that many GPUs of one node, which
    is experimental. By default two steps of each kind of trial
    are measured first to see how many fit on a GPU; 0 if there
    is no GPU."""
    cpus_per_trial: int | None = None
    """CPU cores for each trial. 1 by default, because on two
    cores two concurrent trials are faster than one; if
    --concurrent is smaller than the number of cores, trials
    share all cores."""
    time_budget: str = ""
    """When to stop searching, with time reserved for the
    finals: 90s, 30m, 2h. The same command with more time, or
    without a limit, resumes the sweep."""
    cost_budget: float | None = None
    """When to stop searching, in US dollars (or the currency of
    the prices), with money reserved for the finals. Counts
    all starts of the sweep; the same command with a larger
    budget resumes it."""
    prices: str = ""
    """Price of machines per hour: one for all, 0.40, or by node
    type, l4=0.35,a10g=0.50,head=0.192. By default the labels
    xfer/usd-per-hour of the cluster file."""
    storage: StoragePath = field(default_factory=default_storage)
    """Where everything is written: packs, trials, checkpoints.
    A folder, or s3://bucket/folder, gs://...; by default
    $XFER_STORAGE, or runs. All machines of a cluster must be
    able to reach it."""
    tracking_uri: str = ""
    """MLflow server to mirror to, as in http://host:5000; by
    default $MLFLOW_TRACKING_URI, or a database in the
    storage folder."""
    name: str = ""
    """Name of the sweep; by default experiment, data folder and
    a hash of the plan."""
    reports: Path = Path("reports")
    """Folder for the report."""
    smoke: bool = False
    """Run the same code on a small scale: 2 trials of 2 epochs
    at 64 px, one finalist on one seed."""
    fresh: bool = False
    """Start a new sweep next to an old one of the same name,
    never overwriting it."""

    @property
    def storage_source(self) -> str:
        """Where the storage folder was given, for messages."""
        return "XFER_STORAGE" if os.environ.get("XFER_STORAGE") and self.storage == default_storage() else "--storage"


def parse_args(
    page: Plan,
    args: Sequence[str] | None = None,
    options_type: type[CliOptions] = CliOptions,
    description: str | None = None,
) -> tuple[Plan, CliOptions]:
    """Parse a command line into a plan and the other flags; the defaults of the plan are the page's.

    Args:
        page: the plan of the experiment's page.
        args: the command line; that of this process if None.
        options_type: `CliOptions`, or a page's own subclass of it.
        description: the text above the flags in `--help`.

    Returns:
        The page's plan with the changes of the command line, except for those of `apply_options`; and the other flags.

    Raises:
        ValueError: a value that `Plan` refuses, or a malformed list of NAME=VALUE.
        SystemExit: `--help`, or a flag that cannot be parsed (status 2).
    """

    def pair(plan, options):  # type: ignore[no-untyped-def]
        return plan, options

    pair.__annotations__ = {
        "plan": Annotated[Plan, tyro.conf.arg(name="")],
        "options": Annotated[options_type, tyro.conf.arg(name="")],
    }
    pair.__defaults__ = (page, options_type())
    program = f"python -m sweeps.{page.experiment}"
    try:
        parsed: tuple[Plan, CliOptions] = tyro.cli(pair, args=args, prog=program, description=description)
    except FlagError as error:
        raise ValueError(str(error)) from error
    return parsed


def apply_options(plan: Plan, options: CliOptions) -> Plan:
    """Apply the flags that change the search space or the scale of a plan.

    Raises:
        ValueError: a flag that cannot be parsed, or two that contradict each other.
    """
    edits = parse_edits(options.vary, options.fix)
    if plan.strategies and "strategy" in edits:
        raise ValueError(
            f"--strategies {','.join(plan.strategies)} and strategy={edits['strategy']} both set the strategies: leave "
            f"out one of them"
        )
    for axis, flag, value in (
        ("images_per_class", f"--images-per-class {options.images_per_class}", options.images_per_class),
        ("colour", "--grey", "grey" if options.grey else None),
    ):
        if value is not None and axis in edits:
            raise ValueError(f"{flag} and {axis}={edits[axis]} both set {axis}: leave out one of them")
        if value is not None:
            edits[axis] = str(value)
    plan = dataclasses.replace(plan, edits={**plan.edits, **edits})
    if not options.smoke:
        return plan
    size: int | None = min(plan.image_size or SMOKE_IMAGE_SIZE, SMOKE_IMAGE_SIZE)
    edits = dict(plan.edits)
    if image_sizes.AXIS in edits:
        size, edits[image_sizes.AXIS] = None, image_sizes.shrink_image_sizes(edits[image_sizes.AXIS], SMOKE_IMAGE_SIZE)
    return dataclasses.replace(
        plan, trials=2, epochs=2, steps=None, image_size=size, edits=edits, finalists=1, seeds=1, arms=plan.arms[:2]
    )


def parse_edits(vary: Sequence[str], fix: Sequence[str]) -> dict[str, str]:
    """Parse the values of `--vary` and `--fix`, by axis.

    >>> parse_edits(["learning_rate=1e-4..1e-2"], ["optimizer=sgd"])
    {'learning_rate': '1e-4..1e-2', 'optimizer': 'sgd'}

    Raises:
        ValueError: a text has another form, fixes several values, or sets an axis for a second time.
    """
    edits: dict[str, str] = {}
    for flag, text in [("--vary", text) for text in vary] + [("--fix", text) for text in fix]:
        axis, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not axis or not values:
            raise ValueError(f"{flag} {text}: must be AXIS=VALUES, as in {flag} optimizer=sgd")
        if axis in edits:
            raise ValueError(f"{flag} {text}: {axis} is already set, to {axis}={edits[axis]}")
        if flag == "--fix" and ("," in values or ".." in values):
            raise ValueError(f"--fix {text}: must be a single value; --vary {text} searches several")
        edits[axis] = values
    return edits


def parse_duration(text: str) -> float | None:
    """Parse a duration into seconds; None for an empty text.

    >>> [parse_duration(text) for text in ("90s", "30m", "1h30m", "45", "")]
    [90.0, 1800.0, 5400.0, 45.0, None]

    Raises:
        ValueError: the text has another form, or is zero.
    """
    if not text:
        return None
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text.strip())
    if not match or not any(match.groups()):
        raise ValueError(f"--time-budget {text}: write it as 90s, 30m, 2h or 1h30m")
    hours, minutes, seconds = (int(group or 0) for group in match.groups())
    if not hours + minutes + seconds:
        raise ValueError(f"--time-budget {text}: must be longer than zero")
    return float(3600 * hours + 60 * minutes + seconds)
