"""What does a sweep cost in addition to its training?

    python -m benchmarks.overhead --trials 100 --trials 5000 --resume 200 --write
    python -m benchmarks.overhead --trials 2000 --concurrent 64 --write

Runs trials that train nothing through the real launch path: sampler, Ray Tune, store and an MLflow mirror on SQLite.
Only the code in the trial's process is replaced (`RunOptions.trainable`): it writes and reports a plausible epoch (more
with `--epochs`), and then a record. The sampler is random, the network is small, and two trials run at a time.

Each sweep runs in its own process. The cost per trial is the time from the end of the first trial until everything is
written and mirrored, minus that of a sweep of 20 trials, divided by the difference in trials. So it excludes one-time
costs (starting Ray and the trials' processes, the winner's model, the report). Memory is that of the driver, from the
hundredth trial to the last. `--resume` runs the command of a sweep again that is finished, including finals and test
part, as a user would. With `--concurrent`, that many trials run at a time on any machine, each in its own process, and
Ray is configured with one core for each. The cost per trial is then measured over the second half of the trials, when
all processes have started.
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
"""Number of trials of the sweep that others are compared with."""
BACKBONE, SIZE = "test_efficientnet", 32
NUM_TIMED_ASKS = 30
"""Number of TPE proposals that are timed."""


@dataclass(frozen=True)
class Cost:
    """The cost of a sweep of trials that train nothing."""

    trials: int
    start: float
    """Seconds until the end of the first trial."""
    search: float
    """Seconds from the end of the first trial to the end of the last."""
    rest: float
    """Seconds from the end of the last trial until everything was written and mirrored."""
    cpu_seconds: float
    """CPU seconds of the driver, all threads, over `search` and `rest`; independent of the machine's load."""
    growth: float
    """Growth of the driver's memory per trial after the hundredth, in bytes."""
    ask_median: float
    """Median CPU seconds of a TPE proposal after all trials."""
    ask_max: float
    """Maximum CPU seconds of a TPE proposal."""
    late_seconds: float
    """Seconds per trial, over the second half of the trials."""
    late_cpu_seconds: float
    """CPU seconds of the driver per trial, over the second half of the trials."""
    memory: float
    """Decrease of the machine's available memory until the end of the last trial, in bytes."""


def no_op_trainable(config: dict[str, Any]) -> None:
    """Run in a trial's process: does everything except the training."""
    from sweeps.engine.storage.store import Store
    from sweeps.engine.trials.trainable import report_to_tune
    from xfer.recipe import recipe_from_dict
    from xfer.records import Epoch, Evaluation, Record

    store, recipe = Store(Path(config["site"]["sweep"])), recipe_from_dict(config["recipe"])
    rng = random.Random(f"{recipe.id}")
    epochs: tuple[Epoch, ...] = ()
    for number in range(1, recipe.epochs + 1):
        epoch = Epoch(
            epoch=number,
            train_loss=rng.random(),
            train_accuracy=rng.random(),
            val_loss=rng.random(),
            val_accuracy=rng.random(),
            learning_rate=recipe.learning_rate,
            gradient_norm=rng.random(),
            seconds=1.0,
            images_per_second=50.0,
            cpu_percent=100.0,
            memory_mb=500.0,
            peak_memory_mb=500.0,
            val_balanced_accuracy=rng.random(),
            val_calibration_error=rng.random(),
            distance=rng.random(),
            gradient_norms=tuple(rng.random() for _ in range(20)) if number == 1 else (),
        )
        epochs = (*epochs, epoch)
        finished = number == recipe.epochs
        record = Record(
            trial=config["trial"],
            phase=config["phase"],
            key=recipe.key,
            id=recipe.id,
            recipe=recipe.as_dict(),
            status="finished" if finished else "pruned",
            epochs=epochs,
            parameters=100_000,
            trainable_parameters=100_000,
            seconds=float(number),
            val=Evaluation("val", 0.5, tuple(range(30)), (True, False) * 15) if finished else None,
            start_accuracy=0.2,
            flops=10**6,
        )
        store.add_epoch(config["trial"], epoch)
        report_to_tune(record)
    store.add_record(record)


def sweep_flags(folder: Path, trials: int, finalists: int, epochs: int = 1) -> list[str]:
    """The flags of the sweep, as a user would give them; writes its data and weights into `folder`."""
    from benchmarks.digits import source_weights, write_target

    data = write_target(folder / "digits")
    return [
        *("--data", str(data), "--backbone", BACKBONE, "--weights", str(source_weights(folder, BACKBONE, SIZE))),
        *("--image-size", str(SIZE), "--trials", str(trials), "--epochs", str(epochs), "--sampler", "random"),
        *("--strategies", "clip,linear_probe,naive,scratch", "--no-advise", "--scheduler", "none"),
        *("--finalists", str(finalists), "--seeds", "1", "--name", f"no-op-{trials}-{epochs}"),
        *("--storage", str(folder / "runs"), "--reports", str(folder / "reports")),
    ]


def run_no_op_sweep(folder: Path, trials: int, finalists: int, concurrent: int, epochs: int) -> Cost:
    """Run a sweep of trials that train nothing, `concurrent` at a time, with its driver in this process."""
    import ray
    from rich.console import Console

    from sweeps import folder as page
    from sweeps.engine import launch, options, tracking
    from sweeps.engine.console.log_redirect import redirect_output
    from sweeps.engine.console.progress import ProgressView
    from sweeps.engine.planning.prepare import prepare
    from sweeps.engine.storage.store import Store
    from sweeps.engine.trials import ray_connection
    from sweeps.engine.trials.run_options import RunOptions

    end_times: list[float] = []
    cpu_times: list[float] = []
    driver_memory: list[int] = []
    free_memory: list[int] = []

    class TimedView(ProgressView):
        def on_trial_end(self, trial: str, status: str | None, value: float | None) -> None:
            super().on_trial_end(trial, status, value)
            if self.phase == "search":
                end_times.append(time.perf_counter())
                driver_memory.append(resident_memory())
                cpu_times.append(time.process_time())
                free_memory.append(available_memory())

    flags: options.CliOptions
    plan, flags = options.parse_args(page.plan, sweep_flags(folder, trials, finalists, epochs))
    prepared = prepare(options.apply_options(plan, flags), flags.storage)
    store = Store(flags.storage / flags.name)
    store.folder.mkdir(parents=True)
    free_memory_before = available_memory()
    if concurrent > CONCURRENT_TRIALS:
        os.environ.update(ray_connection.RAY_ENVIRONMENT)
        ray.init(num_cpus=concurrent, include_dashboard=False, log_to_driver=False, configure_logging=False)
    run_options = RunOptions(
        concurrent=concurrent, tracking_uri=tracking.default_tracking_uri(flags.storage), trainable=no_op_trainable
    )
    started_at = time.perf_counter()
    with (
        redirect_output(store.folder / "logs" / "driver.log") as console,
        TimedView(Console(quiet=True), store.name) as view,
        launch.leased(store, view.print_line),
    ):
        launch.claim_plan(prepared, store)
        if not launch.run_sweep(prepared, store, run_options, view):
            console.print("MLflow has not received everything")
    ended_at, cpu_seconds = time.perf_counter(), time.process_time() - cpu_times[0]
    assert len(end_times) == trials == sum(record.phase == "search" for record in store.records())
    ask_median, ask_max = time_asks(prepared.space, store)
    hundred, half = min(100, trials), trials // 2
    return Cost(
        trials=trials,
        start=end_times[0] - started_at,
        search=end_times[-1] - end_times[0],
        rest=ended_at - end_times[-1],
        cpu_seconds=cpu_seconds,
        growth=(driver_memory[-1] - driver_memory[hundred - 1]) / max(1, trials - hundred),
        ask_median=ask_median,
        ask_max=ask_max,
        late_seconds=(end_times[-1] - end_times[half]) / (trials - half),
        late_cpu_seconds=(cpu_times[-1] - cpu_times[half]) / (trials - half),
        memory=free_memory_before - free_memory[-1],
    )


def time_asks(space: Any, store: Any) -> tuple[float, float]:
    """Median and maximum CPU seconds of a TPE proposal after all trials of a sweep."""
    from sweeps.engine.samplers.ask_tell import AskTellSampler

    sampler = AskTellSampler(space, "tpe", seed=0)
    trials = {trial.name: trial for trial in store.trials()}
    records = [record for record in store.records() if record.phase == "search"]
    sampler.replay({record.trial: (trials[record.trial].params, record) for record in records})
    seconds = []
    for number in range(len(trials), len(trials) + NUM_TIMED_ASKS):
        started_at = time.process_time()
        sampler.ask(f"{number:04d}", number)
        seconds.append(time.process_time() - started_at)
    return sorted(seconds)[len(seconds) // 2], max(seconds)


def time_resume(folder: Path, trials: int) -> tuple[float, float]:
    """Seconds and CPU seconds of running the command of a finished sweep again, up to its report."""
    command = [sys.executable, "-m", "sweeps.folder", *sweep_flags(folder, trials, finalists=3)]
    started_at, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - started_at, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def resident_memory() -> int:
    """Resident memory of this process, in bytes."""
    match = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return 1024 * int(match[1])


def available_memory() -> int:
    """Available memory of this machine, in bytes."""
    match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert match is not None
    return 1024 * int(match[1])


def run_in_subprocess(*arguments: object) -> Any:
    """Run this module with arguments in its own process and parse the JSON that it prints."""
    command = [sys.executable, "-m", "benchmarks.overhead", *map(str, arguments)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(next(line for line in reversed(output.splitlines()) if line.startswith(("{", "["))))


HEADER = (
    *("trials", "start", "search", "rest", "a trial", "of the driver's processor"),
    *("driver's growth, a trial", "TPE asks, longest"),
)


def cost_rows(base: Cost, costs: Sequence[Cost]) -> str:
    """Format row 4 as a table."""
    return table(HEADER, [_cost_cells(base, cost) for cost in (base, *costs)])


def _cost_cells(base: Cost, cost: Cost) -> tuple[str, ...]:
    additional = cost.trials - base.trials
    seconds_per_trial = (cost.search + cost.rest - base.search - base.rest) / max(1, additional)
    cpu_seconds_per_trial = (cost.cpu_seconds - base.cpu_seconds) / max(1, additional)
    return (
        str(cost.trials),
        *(f"{seconds:.1f} s" for seconds in (cost.start, cost.search, cost.rest)),
        *(f"{1e3 * seconds:.0f} ms" if additional else "-" for seconds in (seconds_per_trial, cpu_seconds_per_trial)),
        f"{cost.growth / 1e3:.0f} KB" if cost.trials > 100 else "-",
        f"{1e3 * cost.ask_median:.0f} ms, {1e3 * cost.ask_max:.0f} ms",
    )


CONCURRENCY_HEADER = (
    "at a time",
    "trials",
    "start",
    "a trial, of the second half",
    "of the driver's processor",
    "memory taken",
)


def _concurrency_cells(concurrent: int, cost: Cost) -> tuple[str, ...]:
    return (
        *(str(concurrent), str(cost.trials), f"{cost.start:.0f} s"),
        *(f"{1e3 * seconds:.0f} ms" for seconds in (cost.late_seconds, cost.late_cpu_seconds)),
        f"{cost.memory / 1e9:.1f} GB",
    )


def table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Format cells as a Markdown table."""
    lines = [header, ["---:"] * len(header), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def section(title: str, command: str, body: str) -> str:
    """Format a section of RESULTS.md."""
    load = os.getloadavg()[0]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    return f"## {title}\n\n{date.today()}, {machine}, load {load:.1f} at the end. `{command}`\n\n{body}"


def replace_sections(text: str, sections: Sequence[str]) -> str:
    """Replace the sections of RESULTS.md with the same titles; append new ones."""
    for new in sections:
        title = new.partition("\n")[0]
        old = re.search(rf"^{re.escape(title)}\n.*?(?=^## |\Z)", text, re.M | re.S)
        text = text[: old.start()] + new + "\n" + text[old.end() :] if old else f"{text.rstrip()}\n\n{new}\n"
    return text.strip() + "\n"


def main() -> None:
    """Measure and print; with `--write`, update RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--trials", type=int, action="append", default=[], help="number of trials of a sweep; can be repeated"
    )
    parser.add_argument(
        "--concurrent", type=int, default=CONCURRENT_TRIALS, help="number of concurrent trials (default: 2)"
    )
    parser.add_argument("--epochs", type=int, default=1, help="with --concurrent: epochs per trial")
    parser.add_argument(
        "--resume", type=int, help="run the command of a finished sweep with this number of trials again"
    )
    parser.add_argument("--write", action="store_true", help="update benchmarks/RESULTS.md")
    parser.add_argument("--alone", nargs=3, metavar=("FOLDER", "TRIALS", "FINALISTS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        folder, trials, finalists = args.alone
        print(
            json.dumps(asdict(run_no_op_sweep(Path(folder), int(trials), int(finalists), args.concurrent, args.epochs)))
        )
        return
    command = "python -m benchmarks.overhead " + " ".join(f"--trials {number}" for number in args.trials)
    sections = []
    with tempfile.TemporaryDirectory(prefix="xfer-overhead-") as scratch:
        sweep_flags(Path(scratch), 1, 0)  # writes data and weights before anything is timed
        if args.concurrent > CONCURRENT_TRIALS:
            flags = ("--concurrent", args.concurrent, "--epochs", args.epochs)
            costs = [Cost(**run_in_subprocess("--alone", scratch, trials, 0, *flags)) for trials in args.trials]
            title = f"Trials that train nothing, {args.concurrent} at a time, {args.epochs} epochs each"
            body = table(CONCURRENCY_HEADER, [_concurrency_cells(args.concurrent, cost) for cost in costs])
            sections.append(section(title, f"{command} --concurrent {args.concurrent} --epochs {args.epochs}", body))
        elif args.trials:
            base, *costs = (
                Cost(**run_in_subprocess("--alone", scratch, trials, 0)) for trials in (BASELINE_TRIALS, *args.trials)
            )
            title = "Row 4: trials that train nothing, through the launch path, random sampler"
            sections.append(section(title, command, cost_rows(base, costs)))
        if args.resume:
            run_in_subprocess("--alone", scratch, args.resume, 3)
            seconds = [time_resume(Path(scratch), args.resume) for _ in range(3)]
            cells = [str(args.resume), *(f"{wall:.1f} s ({busy:.1f} s)" for wall, busy in seconds)]
            body = table(("trials", "first (processor)", "second", "third"), [cells])
            title = "Row 5: running the command of a finished sweep again, total time"
            sections.append(section(title, f"python -m benchmarks.overhead --resume {args.resume}", body))
    print(*sections, sep="\n")
    if args.write:
        before = OUTPUT_FILE.read_text() if OUTPUT_FILE.exists() else "# Results\n"
        OUTPUT_FILE.write_text(replace_sections(before, sections))


if __name__ == "__main__":
    main()
