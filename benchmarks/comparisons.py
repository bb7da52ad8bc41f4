"""The comparisons: each runs both sides and returns a title and lines of Markdown for RESULTS.md."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks import contestants, split_folders
from benchmarks.contestants import BenchmarkTask, ScriptSetting
from benchmarks.results_page import markdown_table
from benchmarks.run_outcomes import (
    MedianRange,
    RunOutcome,
    extrapolate_seconds,
    images_per_second,
    ratios,
    seconds_to_accuracy,
    speedup,
)
from benchmarks.script_tuning import DEFAULT_SETTINGS, load_tuned_setting, tune_setting
from xfer.choices import Value

STRATEGIES = "clip,freeze_then_unfreeze,naive,linear_probe,scratch"
FIXED_RECIPE: dict[str, Value] = {
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "schedule": "onecycle",
    "augmentation": "flip",
    "mixing": "none",
    "loss": "cross_entropy",
    "weight_decay": 1e-4,
    "batch_size": 32,
}
"""An ordinary recipe, whose training speed is measured."""
TARGET_MARGIN = 0.01
"""Distance of the target below the best accuracy of either side, after any epoch of any trial."""
COLD, WARM, TOP_K = "ours cold", "ours warm", "ours warm, one_epoch_top_k"
REQUIRED_SPEEDUPS = {"Tune + ASHA + OptunaSearch": 3.0, "random search at full budget": 10.0}
"""Required speedup in reaching the target, by search of the plain script."""
SMOKE_OVERRIDES = {"image_size": 32, "trials": 2, "epochs": 2}


def probes(args: Namespace) -> tuple[str, list[str]]:
    """Row 1: total seconds of a command that trains linear probes: random sampler, no scheduler, no finals."""
    data = split_folders.write_split(args.photos, args.scratch)
    task = build_task(args, data, image_size=128, strategies="linear_probe", trials=64, epochs=10)
    task = dataclasses.replace(task, sampler="random", scheduler="none")
    short_task = dataclasses.replace(task, trials=4, epochs=min(3, task.epochs))
    setting = _script_setting(args, "probes", short_task, (1, 2), lambda outcome: outcome.seconds)
    plain_task = dataclasses.replace(task, trials=args.plain_trials or task.trials)
    cold, warm, plain = [], [], []
    for repeat in range(1 if args.smoke else args.repeats):
        for side in _alternate(repeat):
            if side == "ours":
                first, second = _run_ours(args, dataclasses.replace(task, seed=repeat))
                cold.append(first)
                warm.append(second)
            else:
                plain.append(_run_plain(args, dataclasses.replace(plain_task, seed=repeat), setting))
    plain_seconds = [extrapolate_seconds(outcome, task.trials) for outcome in plain]
    rows = [
        (
            name,
            MedianRange(tuple(seconds)),
            ratios(plain_seconds, seconds),
            _best_accuracy(outcomes),
            _mean_accuracy(outcomes),
        )
        for name, outcomes, seconds in (
            ("ours, cold cache", cold, [outcome.seconds for outcome in cold]),
            ("ours, warm cache", warm, [outcome.seconds for outcome in warm]),
            ("plain script", plain, plain_seconds),
        )
    ]
    lines = [
        f"{task.trials} linear probes of {task.epochs} epochs on {_data_sizes(data)}, {_network(task)}; random "
        f"sampler, no scheduler, no finals. Plain script: {setting}; `reuse_actors` at Ray's default, False."
        + (
            ""
            if plain_task == task
            else f" It ran {plain_task.trials} trials, extrapolated to {task.trials} with one start-up."
        ),
        "",
        *markdown_table(("side", "seconds", "times as fast", "best accuracy", "mean of all trials"), rows),
        "",
        *_commands(cold[-1], warm[-1], plain[-1]),
    ]
    return f"{task.trials} linear probes, total time of the command", lines


def finetune(args: Namespace) -> tuple[str, list[str]]:
    """Row 2: training images per second of full fine-tuning, with one trial at a time and with two."""
    data = split_folders.write_split(args.photos, args.scratch)
    task = build_task(args, data, image_size=128, strategies=args.strategy, trials=1, epochs=8)
    task = dataclasses.replace(task, fixed=FIXED_RECIPE, sampler="random", scheduler="none")
    rows: list[tuple[object, ...]] = []
    commands: list[str] = []
    descriptions = {1: "one trial at a time", 2: "two side by side"}
    tuned = True
    for concurrent, description in list(descriptions.items())[: 1 if args.smoke else 2]:
        concurrent_task = dataclasses.replace(task, trials=concurrent)
        short_task = dataclasses.replace(concurrent_task, epochs=min(3, task.epochs))
        applicable = args.setting if args.setting and args.setting.concurrent == concurrent else None
        setting = _script_setting(
            Namespace(**{**vars(args), "setting": applicable}),
            f"finetune-{concurrent}",
            short_task,
            (concurrent,),
            lambda outcome: -images_per_second(outcome),
        )
        tuned &= load_tuned_setting(f"finetune-{concurrent}", args.scratch) == setting
        ours: list[RunOutcome] = []
        plain: dict[bool, list[RunOutcome]] = {False: [], True: []}
        for repeat in range(1 if args.smoke else args.repeats):
            seeded_task = dataclasses.replace(concurrent_task, seed=repeat)
            for side in _alternate(repeat):
                if side == "ours":
                    ours.append(_run_ours(args, seeded_task, ["--concurrent", str(concurrent)], warm=False)[0])
                else:
                    for channels_last, outcomes in plain.items():
                        plain_setting = dataclasses.replace(setting, channels_last=channels_last)
                        outcomes.append(_run_plain(args, seeded_task, plain_setting))
        our_speeds = [images_per_second(outcome) for outcome in ours]
        rows.append((f"ours, {description}", MedianRange(tuple(our_speeds)), "", _mean_accuracy(ours)))
        for channels_last, outcomes in plain.items():
            processes = f"{setting.workers} loader processes, {setting.threads} threads"
            speeds = [images_per_second(outcome) for outcome in outcomes]
            rows.append(
                (
                    f"plain script{', channels_last' * channels_last}, {description} ({processes})",
                    MedianRange(tuple(speeds)),
                    ratios(our_speeds, speeds),
                    _mean_accuracy(outcomes),
                )
            )
        commands += _commands(ours[-1], plain[False][-1])
    lines = [
        f"Training images per second from the second epoch on, validation excluded, of `{task.strategies}` with "
        f"batches of {FIXED_RECIPE['batch_size']} and flips on {_data_sizes(data)}, {_network(task)}. The plain script "
        f"ran with {'its fastest setting' if tuned else 'a setting that was not tuned on this machine'}.",
        "",
        *markdown_table(("side", "images a second", "ours is times as fast", "accuracy"), rows),
        "",
        *commands,
    ]
    return "images per second of full fine-tuning", lines


def search(args: Namespace) -> tuple[str, list[str]]:
    """Row 3: time until within a point of the best accuracy of either side, for each data set and seed."""
    sections: list[str] = []
    train, val = (6, 6) if args.smoke else args.per_class
    for name, size, data_for_seed in (
        ("quickdraw", 64, lambda seed: split_folders.write_drawings(args.drawings, args.scratch, seed, train, val)),
        ("cars", 128, lambda seed: split_folders.write_fold(args.cars, args.scratch, args.car_classes, seed % 3)),
    ):
        if args.only in (None, name):
            sections += _search_one_data_set(args, name, size, data_for_seed)
    lines = [
        f"All strategies mixed. The target of a seed is the best validation accuracy of any side, after any epoch of "
        f"the same number of trials, minus {TARGET_MARGIN:.0%}. A side reaches it when its first trial does, after any "
        f"epoch. The plain script starts with draws of its sampler, ours with its known good recipes, as always.",
        *sections,
    ]
    return "time until within a point of the best accuracy", lines


def _search_one_data_set(
    args: Namespace, name: str, image_size: int, data_for_seed: Callable[[int], Path]
) -> list[str]:
    task = build_task(args, data_for_seed(0), image_size=image_size, strategies=STRATEGIES, trials=20, epochs=6)
    short_task = dataclasses.replace(task, trials=4, epochs=2)
    setting = _script_setting(args, f"search-{name}", short_task, (1, 2), lambda outcome: outcome.seconds)
    seeds = range(1 if args.smoke else args.repeats)
    by_seed = [
        _run_all_sides(args, dataclasses.replace(task, data=data_for_seed(seed), seed=seed), setting) for seed in seeds
    ]
    by_side = {side: [outcomes[side] for outcomes in by_seed] for side in by_seed[0]}
    # The target counts the same number of trials of every side: additional trials of the plain script only show when
    # it gets there.
    bests = {side: [outcome.best_of_first(task.trials) for outcome in outcomes] for side, outcomes in by_side.items()}
    targets = [target_accuracy(side_bests) for side_bests in zip(*bests.values(), strict=True)]
    rows = []
    for side, outcomes in by_side.items():
        times = [seconds_to_accuracy(outcome, target) for outcome, target in zip(outcomes, targets, strict=True)]
        best_times = [
            seconds_to_accuracy(outcome, best) or 0.0 for outcome, best in zip(outcomes, bests[side], strict=True)
        ]
        speedups = [
            *(_speedups(outcomes, by_side[ours], targets) for ours in (COLD, WARM) if ours in by_side),
            _speedups(outcomes, by_side[COLD], bests[side]),
        ]
        rows.append(
            (
                side,
                " / ".join("never" if time is None else f"{time:.0f}" for time in times),
                f"{median(outcome.seconds for outcome in outcomes):.0f}",
                " / ".join(f"{best:.3f}" for best in bests[side]),
                " / ".join(f"{time:.0f}" for time in best_times),
                *([""] * len(speedups) if side.startswith("ours") else speedups),
            )
        )
    images = [split_folders.count_images(data_for_seed(seed), "val") for seed in seeds]
    header = (
        *("side", "seconds, by seed", "seconds in all", "its best", "its best after"),
        *(f"{ours}, times as fast" for ours in (COLD, WARM) if ours in by_side),
        f"{COLD}, to the best of that side",
    )
    patience = " or ".join(f"{required:.0f}" for required in REQUIRED_SPEEDUPS.values())
    return [
        "",
        f"### {name}",
        "",
        f"{task.trials} trials of at most {task.epochs} epochs on {_data_sizes(task.data)}, {_network(task)}; "
        f"{sum(images):,} evaluation images over {len(seeds)} seeds. Targets: "
        f"{' / '.join(f'{target:.3f}' for target in targets)}. Plain script: {setting}"
        + (
            f"; after its {task.trials} trials it continues until it reaches the target or has taken {patience} times "
            f"as long as ours, depending on the search"
            if args.until_decided
            else ""
        )
        + ". If a side never reached the target, the ratio is a lower bound: its total time over the time of ours. The "
        "last column has no lower bounds: its target is the best accuracy of the plain script itself.",
        "",
        *markdown_table(header, rows),
        "",
        *_commands(*by_seed[-1].values()),
    ]


def _run_all_sides(args: Namespace, task: BenchmarkTask, setting: ScriptSetting) -> dict[str, RunOutcome]:
    """Run all sides on one seed; ours first if the plain script has to continue until it reaches our accuracy.

    Returns:
        Outcomes by side, ours first.
    """
    outcomes: dict[str, RunOutcome] = {}
    goal_flags: dict[str, Sequence[str]] = dict.fromkeys(REQUIRED_SPEEDUPS, ())
    for side in ("ours", "plain") if args.until_decided else _alternate(task.seed):
        if side == "ours":
            outcomes |= zip((COLD, WARM), _run_ours(args, task, warm=not args.cold_only), strict=False)
            if not args.cold_only:
                outcomes[TOP_K] = _run_ours_again(args, dataclasses.replace(task, scheduler="one_epoch_top_k"))
            if args.until_decided:
                target = target_accuracy([outcome.best for outcome in outcomes.values()])
                seconds = seconds_to_accuracy(outcomes[COLD], target) or outcomes[COLD].seconds
                goal_flags = {
                    name: ["--goal", str(target), "--patience", f"{required * seconds:.0f}"]
                    for name, required in REQUIRED_SPEEDUPS.items()
                }
        else:
            random_task = dataclasses.replace(task, sampler="random", scheduler="none")
            for name, plain_task in zip(REQUIRED_SPEEDUPS, (task, random_task), strict=True):
                outcomes[name] = _run_plain(args, plain_task, setting, goal_flags[name])
    bests = ", ".join(f"{side} {outcome.best:.3f}" for side, outcome in outcomes.items())
    print(f"  seed {task.seed}: {bests}", flush=True)
    return {side: outcomes[side] for side in sorted(outcomes, key=lambda side: not side.startswith("ours"))}


def target_accuracy(bests: Sequence[float]) -> float:
    """The accuracy one point below the best; rounded, so that an accuracy exactly one point below is not missed."""
    return round(max(bests) - TARGET_MARGIN, 6)


def _speedups(theirs: Sequence[RunOutcome], ours: Sequence[RunOutcome], targets: Sequence[float]) -> MedianRange:
    return MedianRange(tuple(map(speedup, theirs, ours, targets)))


COMPARISONS: dict[str, Callable[[Namespace], tuple[str, list[str]]]] = {
    f.__name__: f for f in (probes, finetune, search)
}


def build_task(
    args: Namespace, data: Path, *, image_size: int, strategies: str, trials: int, epochs: int
) -> BenchmarkTask:
    """The task of a comparison: its defaults, overridden by flags and by `SMOKE_OVERRIDES` with `--smoke`."""
    sizes: dict[str, Any] = {"image_size": image_size, "trials": trials, "epochs": epochs}
    sizes |= {name: value for name in sizes if (value := getattr(args, name)) is not None}
    sizes |= {name: min(sizes[name], small) for name, small in SMOKE_OVERRIDES.items()} if args.smoke else {}
    return BenchmarkTask(data=data, backbone=args.backbone, weights=args.weights, strategies=strategies, **sizes)


def _alternate(repeat: int) -> Sequence[str]:
    return ("ours", "plain") if repeat % 2 == 0 else ("plain", "ours")


def _run_ours(
    args: Namespace, task: BenchmarkTask, extra_flags: Sequence[str] = (), warm: bool = True
) -> list[RunOutcome]:
    """Run ours in a new storage and, if `warm`, once more in the same one."""
    storage = args.scratch / "ours"
    shutil.rmtree(storage, ignore_errors=True)
    flags = [*extra_flags, *shlex.split(args.ours)]
    outcomes = [contestants.run_ours(task, storage, args.scratch / "ours.log", flags) for _ in range(1 + warm)]
    _print_outcomes("ours", outcomes)
    return outcomes


def _run_ours_again(args: Namespace, task: BenchmarkTask) -> RunOutcome:
    """Run ours in the storage that `_run_ours` left, with its caches."""
    outcome = contestants.run_ours(task, args.scratch / "ours", args.scratch / "ours.log", shlex.split(args.ours))
    _print_outcomes(f"ours, {task.scheduler}", [outcome])
    return outcome


def _run_plain(
    args: Namespace, task: BenchmarkTask, setting: ScriptSetting, extra_flags: Sequence[str] = ()
) -> RunOutcome:
    setting = dataclasses.replace(setting, channels_last=setting.channels_last or args.channels_last)
    outcome = contestants.run_plain(task, setting, args.scratch, args.again, extra_flags=extra_flags)
    _print_outcomes("plain", [outcome])
    return outcome


def _print_outcomes(side: str, outcomes: Sequence[RunOutcome]) -> None:
    for outcome in outcomes:
        print(f"  {side}: {outcome.seconds:.1f} s, best {outcome.best:.3f}, ended {outcome.at}", flush=True)


def _script_setting(
    args: Namespace,
    name: str,
    short_task: BenchmarkTask,
    concurrent: tuple[int, ...],
    cost: Callable[[RunOutcome], float],
) -> ScriptSetting:
    """The setting of `--setting`, else the tuned one (tuned now with `--tune`), else a default."""
    if args.setting:
        setting: ScriptSetting = args.setting
        return setting
    if args.tune:
        return tune_setting(name, short_task, args.scratch, concurrent, cost)
    return load_tuned_setting(name, args.scratch) or DEFAULT_SETTINGS[concurrent[-1]]


def _best_accuracy(outcomes: Sequence[RunOutcome]) -> str:
    return f"{fmean(outcome.best for outcome in outcomes):.3f}"


def _mean_accuracy(outcomes: Sequence[RunOutcome]) -> str:
    return f"{fmean(outcome.mean for outcome in outcomes):.3f}"


def _network(task: BenchmarkTask) -> str:
    return f"{task.backbone} at {task.image_size} px"


def _data_sizes(data: Path) -> str:
    train, val = (split_folders.count_images(data, part) for part in ("train", "val"))
    return f"{data.name} ({train:,} training and {val:,} validation images)"


def _commands(*outcomes: RunOutcome) -> list[str]:
    return [f"    {outcome.command}" for outcome in outcomes]
