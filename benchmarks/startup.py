"""How long does a user wait? From the command to the first results, ours and the plain script in turn.

    python -m benchmarks.startup --repeats 3 --write

Each side is a whole command on a terminal of its own, and is interrupted after its first epoch of fine-tuning. The
times are those at which the user could see something: when the plan is in the storage, when the first accuracy is on
the screen, and when the first epochs of a head and of fine-tuning are stored. Seconds of the processor count all
processes of the command. `--write` updates benchmarks/RESULTS.md.

Run nothing else at the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pty
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contestants import PAUSE_SECONDS, REMOVED_ENV_VARS, ROOT
from benchmarks.overhead import OUTPUT_FILE, replace_sections, section, table
from benchmarks.split_folders import write_split

DATA = Path("../shared/data")

PLAN, PRINTED, HEAD, FINE_TUNING = (
    "plan written",
    "first accuracy on the screen",
    "first epoch of a head",
    "first epoch of fine-tuning",
)
"""Events, in the order of the table."""

HEADS = frozenset({"linear_probe", "logistic_probe", "ridge_probe"})
"""Strategies that train only a head on frozen features."""

POLL_SECONDS, MAX_SECONDS, EXIT_SECONDS = 0.05, 600.0, 60.0
"""Seconds between two looks at the storage, before a side is given up, and for its exit after an interrupt."""

OURS_ACCURACY, PLAIN_ACCURACY = r"\d\.\d%", r"val_accuracy\W+0?\.\d"
"""Regular expressions of an accuracy on the screen of each side."""


@dataclass(frozen=True)
class Moment:
    """When something happened after the command was given."""

    wall: float
    """Seconds."""
    cpu: float
    """Processor seconds of all processes of the command until then."""


@dataclass(frozen=True)
class Side:
    """A command, and how to see in its storage what has happened."""

    command: list[str]
    accuracy: str
    """Regular expression of an accuracy on the screen."""
    stored_events: Callable[[], Iterator[str]]
    """Yields the events that the storage shows so far."""


def ours(args: argparse.Namespace, data: Path, storage: Path) -> Side:
    """Return a sweep with all defaults."""
    command = [
        *(sys.executable, "-m", "sweeps.folder", "--data", str(data), "--backbone", args.backbone),
        *("--weights", str(args.weights), "--image-size", str(args.image_size)),
        *("--storage", str(storage), "--reports", str(storage / "reports")),
    ]

    def stored_events() -> Iterator[str]:
        if any(storage.glob("*/plan.json")):
            yield PLAN
        for epoch in storage.glob("*/trials/*/epochs/0001.json"):
            recipe = _read_json(epoch.parent.parent / "config.json")["recipe"]
            yield _epoch_event(recipe["strategy"]["name"])

    return Side(command, OURS_ACCURACY, stored_events)


def plain(args: argparse.Namespace, data: Path, storage: Path) -> Side:
    """Return the plain script, which begins with random configurations."""
    command = [
        *(sys.executable, "-m", "benchmarks.plain", "--data", str(data), "--backbone", args.backbone),
        *("--weights", str(args.weights), "--image-size", str(args.image_size), "--storage", str(storage)),
    ]

    def stored_events() -> Iterator[str]:
        for results in storage.glob("plain/*/result.json"):
            with results.open(encoding="utf-8") as lines:
                if first := lines.readline():
                    yield _epoch_event(json.loads(first)["config"]["strategy"])

    return Side(command, PLAIN_ACCURACY, stored_events)


SIDES = {"ours": ours, "plain script": plain}


def run(side: Side) -> dict[str, Moment]:
    """Run a side until its first epoch of fine-tuning; return when what happened."""
    environment = {name: value for name, value in os.environ.items() if name not in REMOVED_ENV_VARS}
    terminal, screen = pty.openpty()
    started_at = time.perf_counter()
    process = subprocess.Popen(
        side.command,
        cwd=ROOT,
        env={**environment, "COLUMNS": "160", "LINES": "50"},
        stdin=subprocess.DEVNULL,
        stdout=screen,
        stderr=screen,
        start_new_session=True,
    )
    os.close(screen)
    events: dict[str, Moment] = {}

    def note(event: str) -> None:
        if event not in events:
            events[event] = Moment(time.perf_counter() - started_at, tree_cpu_seconds(process.pid))

    def read_screen() -> None:
        shown = ""
        with contextlib.suppress(OSError):  # the terminal is closed
            while data := os.read(terminal, 65536):
                shown = (shown + data.decode(errors="replace"))[-65536:]
                if PRINTED not in events and re.search(side.accuracy, shown):
                    note(PRINTED)

    reader = threading.Thread(target=read_screen, daemon=True)
    reader.start()
    try:
        while FINE_TUNING not in events and process.poll() is None and time.perf_counter() - started_at < MAX_SECONDS:
            for event in side.stored_events():
                note(event)
            time.sleep(POLL_SECONDS)
    finally:
        _end(process)
    reader.join(EXIT_SECONDS)
    os.close(terminal)
    if FINE_TUNING not in events:
        raise RuntimeError(f"{shlex.join(side.command)}: no epoch of fine-tuning in {MAX_SECONDS:.0f} s")
    return events


def tree_cpu_seconds(pid: int) -> float:
    """Return the processor seconds of a process and all of its descendants, those included that have ended."""
    tick = os.sysconf("SC_CLK_TCK")
    children: dict[int, list[int]] = {}
    seconds: dict[int, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has ended
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            number = int(stat.parent.name)
            children.setdefault(int(fields[1]), []).append(number)
            seconds[number] = sum(map(int, fields[11:15])) / tick
    total, pending = 0.0, [pid]
    while pending:
        number = pending.pop()
        total += seconds.get(number, 0.0)
        pending += children.get(number, [])
    return total


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a command, and kill what is left of it after a while."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(EXIT_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _epoch_event(strategy: str) -> str:
    return HEAD if strategy in HEADS else FINE_TUNING


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def rows(moments: dict[str, list[dict[str, Moment]]]) -> list[tuple[str, ...]]:
    """Return one row per event: medians of each side, with the smallest and the largest value.

    Args:
        moments: for each side, the events of each repeat.
    """
    return [
        (event, *(_cell([events[event] for events in repeats if event in events]) for repeats in moments.values()))
        for event in (PLAN, PRINTED, HEAD, FINE_TUNING)
    ]


def _cell(moments: list[Moment]) -> str:
    if not moments:
        return "-"
    walls = [moment.wall for moment in moments]
    cpu = statistics.median(moment.cpu for moment in moments)
    return f"{statistics.median(walls):.1f} s ({min(walls):.1f} to {max(walls):.1f}); processor {cpu:.1f} s"


def main() -> None:
    """Measure and print; with `--write`, update RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=DATA / "hymenoptera", help="one folder per class")
    parser.add_argument("--weights", type=Path, default=DATA / "weights" / "mobilenetv2_100.safetensors")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=SIDES, help="run one side")
    parser.add_argument("--write", action="store_true", help="update benchmarks/RESULTS.md")
    args = parser.parse_args()
    args.weights = args.weights.resolve()
    sides = {name: make for name, make in SIDES.items() if args.only in (None, name)}
    moments: dict[str, list[dict[str, Moment]]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory(prefix="xfer-startup-") as folder:
        data = write_split(args.photos, Path(folder))
        for repeat in range(args.repeats):
            for name, make in sides.items():
                moments[name].append(run(make(args, data, Path(folder) / f"{name.split()[0]}-{repeat}")))
                time.sleep(PAUSE_SECONDS)
    title = f"Start-up: from the command to the first results, {args.photos.name}, {args.backbone}"
    command = f"python -m benchmarks.startup --repeats {args.repeats}"
    note = f"{args.image_size} px, nothing cached; median of {args.repeats} (smallest to largest).\n\n"
    text = section(title, command, note + table(("", *sides), rows(moments)))
    print(text)
    if args.write:
        OUTPUT_FILE.write_text(replace_sections(OUTPUT_FILE.read_text(encoding="utf-8"), [text]), encoding="utf-8")


if __name__ == "__main__":
    main()
