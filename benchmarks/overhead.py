"""What does a sweep cost beside its training?

    python -m benchmarks.overhead --trials 100 --trials 5000 --resume 200 --write
    python -m benchmarks.overhead --trials 2000 --concurrent 64 --write

Trials that train nothing go through the real launch path: the proposer, Ray Tune, the store, the MLflow mirror on
SQLite. Only what happens in a trial's process is another (`RunOptions.trainable`): a plausible epoch (more with
`--epochs`) is written down and reported, and then a record. The sampler is random, the network small, and two trials
run at a time.

Each sweep runs in a process of its own. What a trial costs is the time from the first trial's end until everything is
written and mirrored, less that of a sweep of 20 trials, over the number of trials that it has more: what is paid once
(Ray and the trials' processes, the winner's model, the report) is not among it. Memory is the driver's, from the
hundredth trial to the last. `--resume` gives a sweep of so many trials that has come to its end, finals and test part
too, again, as a person would. With `--concurrent` so many trials run at a time, whatever the machine has: each in a
process of its own, that Ray is told to have a core for. What a trial costs is then seen over the second half of them,
when all processes have started.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

OUTPUT_FILE = Path(__file__).with_name("RESULTS.md")
CONCURRENT_TRIALS = 2
BASELINE_TRIALS = 20
"""Trials of the sweep that others are held against."""
BACKBONE, SIZE = "test_efficientnet", 32
NUM_TIMED_ASKS = 30
"""How many proposals of TPE are timed."""


@dataclass(frozen=True)
class Cost:
    """What a sweep of trials that train nothing cost."""

    trials: int
    start: float
    """Seconds until the first trial had ended."""
    search: float
    """Seconds from then until the last had."""
    rest: float
    """Seconds from then until everything was written and mirrored."""
    processor: float
    """The driver's processor time from the first trial's end until then, all its threads: what a busy machine leaves
    as it is."""
    growth: float
    """Bytes by which the driver grew for each trial after the hundredth."""
    ask: float
    """TPE's median seconds for a proposal after so many trials, of processor time."""
    ask_most: float
    """The longest of them."""
    late: float
    """Seconds for each trial of the second half of them."""
    late_processor: float
    """The same of the driver's processor time."""
    memory: float
    """By how many bytes the memory that the machine has left had shrunk at the last trial's end."""


def no_op_trainable(config: dict[str, Any]) -> None:
    """In a trial's process: everything but the training."""
    from sweeps.engine.storage.store import Store
    from sweeps.engine.trials.trainable import report_to_tune
    from xfer.recipe import recipe_from_dict
    from xfer.records import Epoch, Evaluation, Record

    store, recipe = Store(Path(config["site"]["sweep"])), recipe_from_dict(config["recipe"])
    chance = random.Random(f"{recipe.id}")
    epochs: tuple[Epoch, ...] = ()
    for number in range(1, recipe.epochs + 1):
        epoch = Epoch(
            epoch=number,
            train_loss=chance.random(),
            train_accuracy=chance.random(),
            val_loss=chance.random(),
            val_accuracy=chance.random(),
            learning_rate=recipe.learning_rate,
            gradient_norm=chance.random(),
            seconds=1.0,
            images_per_second=50.0,
            cpu_percent=100.0,
            memory_mb=500.0,
            peak_memory_mb=500.0,
            val_balanced_accuracy=chance.random(),
            val_calibration_error=chance.random(),
            distance=chance.random(),
            gradient_norms=tuple(chance.random() for _ in range(20)) if number == 1 else (),
        )
        epochs = (*epochs, epoch)
        done = number == recipe.epochs
        record = Record(
            trial=config["trial"],
            phase=config["phase"],
            key=recipe.key,
            id=recipe.id,
            recipe=recipe.as_dict(),
            status="finished" if done else "pruned",
            epochs=epochs,
            parameters=100_000,
            trainable_parameters=100_000,
            seconds=float(number),
            val=Evaluation("val", 0.5, tuple(range(30)), (True, False) * 15) if done else None,
            start_accuracy=0.2,
            flops=10**6,
        )
        store.add_epoch(config["trial"], epoch)
        report_to_tune(record)
    store.add_record(record)


def sweep_flags(folder: Path, trials: int, finalists: int, epochs: int = 1) -> list[str]:
    """The sweep as a person would ask for it."""
    from sweeps.engine.quickstart_data import TARGET_CLASSES, TRAINING_IMAGES, pretrained_weights, write_digits

    data = write_digits(folder / "digits", TARGET_CLASSES, TRAINING_IMAGES)
    return [
        *("--data", str(data), "--backbone", BACKBONE, "--weights", str(pretrained_weights(folder, BACKBONE, SIZE))),
        *("--image-size", str(SIZE), "--trials", str(trials), "--epochs", str(epochs), "--sampler", "random"),
        *("--strategies", "clip,linear_probe,naive,scratch", "--no-advise", "--scheduler", "none"),
        *("--finalists", str(finalists), "--seeds", "1", "--name", f"no-op-{trials}-{epochs}"),
        *("--storage", str(folder / "runs"), "--reports", str(folder / "reports")),
    ]


def run_no_op_sweep(folder: Path, trials: int, finalists: int, concurrent: int, epochs: int) -> Cost:
    """A sweep of trials that train nothing, so many at a time, with its driver in this process."""
    import ray
    from rich.console import Console

    from sweeps import folder as page
    from sweeps.engine import launch, options, tracking
    from sweeps.engine.console.log_redirect import redirect_output
    from sweeps.engine.console.progress import ProgressView
    from sweeps.engine.planning.prepare import prepare
    from sweeps.engine.storage.store import Store
    from sweeps.engine.trials import ray_tune
    from sweeps.engine.trials.run_options import RunOptions

    ends: list[float] = []
    memory: list[int] = []
    used: list[float] = []
    left: list[int] = []

    class Timed(ProgressView):
        def on_trial_end(self, trial: str, status: str | None, value: float | None) -> None:
            super().on_trial_end(trial, status, value)
            if self.phase == "search":
                ends.append(time.perf_counter())
                memory.append(resident_memory())
                used.append(time.process_time())
                left.append(available_memory())

    flags: options.CliOptions
    plan, flags = options.parse_args(page.plan, sweep_flags(folder, trials, finalists, epochs))
    prepared = prepare(options.apply_options(plan, flags), flags.storage)
    store = Store(flags.storage / flags.name)
    store.folder.mkdir(parents=True)
    before = available_memory()
    if concurrent > CONCURRENT_TRIALS:
        os.environ.update(ray_tune.RAY_ENVIRONMENT)
        ray.init(num_cpus=concurrent, include_dashboard=False, log_to_driver=False, configure_logging=False)
    run_options = RunOptions(
        concurrent=concurrent, tracking_uri=tracking.default_tracking_uri(flags.storage), trainable=no_op_trainable
    )
    began = time.perf_counter()
    with (
        redirect_output(store.folder / "logs" / "driver.log") as console,
        Timed(Console(quiet=True), store.name) as watch,
        launch.leased(store, watch.print_line),
    ):
        launch.claim_plan(prepared, store)
        if not launch.run_sweep(prepared, store, run_options, watch):
            console.print("MLflow has not received everything")
    ended, processor = time.perf_counter(), time.process_time() - used[0]
    assert len(ends) == trials == sum(record.phase == "search" for record in store.records())
    ask, ask_most = time_asks(prepared.space, store)
    hundred, half = min(100, trials), trials // 2
    return Cost(
        trials=trials,
        start=ends[0] - began,
        search=ends[-1] - ends[0],
        rest=ended - ends[-1],
        processor=processor,
        growth=(memory[-1] - memory[hundred - 1]) / max(1, trials - hundred),
        ask=ask,
        ask_most=ask_most,
        late=(ends[-1] - ends[half]) / (trials - half),
        late_processor=(used[-1] - used[half]) / (trials - half),
        memory=before - left[-1],
    )


def time_asks(space: Any, store: Any) -> tuple[float, float]:
    """What TPE takes for a proposal after all of a sweep's trials: the median and the longest, of processor time."""
    from sweeps.engine.samplers.ask_tell import AskTellSampler

    proposer = AskTellSampler(space, "tpe", seed=0)
    trials = {trial.name: trial for trial in store.trials()}
    proposer.replay({one.trial: (trials[one.trial].params, one) for one in store.records() if one.phase == "search"})
    taken = []
    for number in range(len(trials), len(trials) + NUM_TIMED_ASKS):
        began = time.process_time()
        proposer.ask(f"{number:04d}", number)
        taken.append(time.process_time() - began)
    return sorted(taken)[len(taken) // 2], max(taken)


def time_resume(folder: Path, trials: int) -> tuple[float, float]:
    """Seconds from giving a finished sweep again to its report, as the command line does it; and of processor time."""
    command = [sys.executable, "-m", "sweeps.folder", *sweep_flags(folder, trials, finalists=3)]
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def resident_memory() -> int:
    """The memory of this process, in bytes."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def available_memory() -> int:
    """The memory that this machine has left, in bytes."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert found is not None
    return 1024 * int(found[1])


def run_in_subprocess(*arguments: object) -> Any:
    """What this module says when it is started with these arguments, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.overhead", *map(str, arguments)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(next(line for line in reversed(said.splitlines()) if line.startswith(("{", "["))))


HEADER = (
    *("trials", "start", "search", "rest", "a trial", "of the driver's processor"),
    *("driver's growth, a trial", "TPE asks, longest"),
)


def cost_rows(base: Cost, costs: Sequence[Cost]) -> str:
    """Row 4 as a table."""
    return table(HEADER, [_cells(base, cost) for cost in (base, *costs)])


def _cells(base: Cost, cost: Cost) -> tuple[str, ...]:
    more = cost.trials - base.trials
    each = (cost.search + cost.rest - base.search - base.rest) / max(1, more)
    busy = (cost.processor - base.processor) / max(1, more)
    return (
        str(cost.trials),
        *(f"{seconds:.1f} s" for seconds in (cost.start, cost.search, cost.rest)),
        *(f"{1e3 * seconds:.0f} ms" if more else "-" for seconds in (each, busy)),
        f"{cost.growth / 1e3:.0f} KB" if cost.trials > 100 else "-",
        f"{1e3 * cost.ask:.0f} ms, {1e3 * cost.ask_most:.0f} ms",
    )


CONCURRENCY_HEADER = (
    "at a time",
    "trials",
    "start",
    "a trial, of the second half",
    "of the driver's processor",
    "memory taken",
)


def _crowded(concurrent: int, cost: Cost) -> tuple[str, ...]:
    return (
        *(str(concurrent), str(cost.trials), f"{cost.start:.0f} s"),
        *(f"{1e3 * seconds:.0f} ms" for seconds in (cost.late, cost.late_processor)),
        f"{cost.memory / 1e9:.1f} GB",
    )


def table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Cells as Markdown."""
    lines = [header, ["---:"] * len(header), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def section(title: str, command: str, found: str) -> str:
    """A section of RESULTS.md."""
    load = os.getloadavg()[0]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    return f"## {title}\n\n{date.today()}, {machine}, load {load:.1f} at the end. `{command}`\n\n{found}"


def replace_sections(text: str, sections: Sequence[str]) -> str:
    """RESULTS.md with sections in the place of those of the same title, or behind all others."""
    for new in sections:
        title = new.partition("\n")[0]
        old = re.search(rf"^{re.escape(title)}\n.*?(?=^## |\Z)", text, re.M | re.S)
        text = text[: old.start()] + new + "\n" + text[old.end() :] if old else f"{text.rstrip()}\n\n{new}\n"
    return text.strip() + "\n"


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, action="append", default=[], help="sweeps of so many trials")
    parser.add_argument(
        "--concurrent", type=int, default=CONCURRENT_TRIALS, help="so many trials at a time (default: 2)"
    )
    parser.add_argument("--epochs", type=int, default=1, help="with --concurrent: of each trial, a report each")
    parser.add_argument("--resume", type=int, help="give a finished sweep of so many trials again")
    parser.add_argument("--write", action="store_true", help="put the numbers into benchmarks/RESULTS.md")
    parser.add_argument("--alone", nargs=3, metavar=("FOLDER", "TRIALS", "FINALISTS"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.alone:
        folder, trials, finalists = asked.alone
        print(
            json.dumps(
                asdict(run_no_op_sweep(Path(folder), int(trials), int(finalists), asked.concurrent, asked.epochs))
            )
        )
        return
    command = "python -m benchmarks.overhead " + " ".join(f"--trials {number}" for number in asked.trials)
    sections = []
    with tempfile.TemporaryDirectory(prefix="xfer-overhead-") as scratch:
        sweep_flags(Path(scratch), 1, 0)  # data and weights, before anything is timed
        if asked.concurrent > CONCURRENT_TRIALS:
            again = ("--concurrent", asked.concurrent, "--epochs", asked.epochs)
            costs = [Cost(**run_in_subprocess("--alone", scratch, trials, 0, *again)) for trials in asked.trials]
            title = f"Trials that train nothing, {asked.concurrent} at a time, {asked.epochs} reports each"
            found = table(CONCURRENCY_HEADER, [_crowded(asked.concurrent, cost) for cost in costs])
            sections.append(section(title, f"{command} --concurrent {asked.concurrent} --epochs {asked.epochs}", found))
        elif asked.trials:
            base, *costs = (
                Cost(**run_in_subprocess("--alone", scratch, trials, 0)) for trials in (BASELINE_TRIALS, *asked.trials)
            )
            title = "Row 4: trials that train nothing, through the launch path, random sampler"
            sections.append(section(title, command, cost_rows(base, costs)))
        if asked.resume:
            run_in_subprocess("--alone", scratch, asked.resume, 3)
            seconds = [time_resume(Path(scratch), asked.resume) for _ in range(3)]
            cells = [str(asked.resume), *(f"{wall:.1f} s ({busy:.1f} s)" for wall, busy in seconds)]
            found = table(("trials", "first (processor)", "second", "third"), [cells])
            title = "Row 5: a finished sweep given again, from the command to the report"
            sections.append(section(title, f"python -m benchmarks.overhead --resume {asked.resume}", found))
    print(*sections, sep="\n")
    if asked.write:
        before = OUTPUT_FILE.read_text() if OUTPUT_FILE.exists() else "# Results\n"
        OUTPUT_FILE.write_text(replace_sections(before, sections))


if __name__ == "__main__":
    main()
