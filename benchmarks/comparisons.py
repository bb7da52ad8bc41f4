"""Rows: the comparisons. Each runs both sides and says what came of it, as a title and lines of Markdown."""

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
"""The recipe whose speed is measured: an ordinary one."""
TARGET_MARGIN = 0.01
"""A target lies so far below the best accuracy that either side found after any epoch of any trial."""
COLD, WARM, TOP_K = "ours cold", "ours warm", "ours warm, one_epoch_top_k"
REQUIRED_SPEEDUPS = {"Tune + ASHA + OptunaSearch": 3.0, "random search at full budget": 10.0}
"""How many times sooner than each way of the plain script ours is meant to reach the target."""
SMOKE_OVERRIDES = {"image_size": 32, "trials": 2, "epochs": 2}


def probes(args: Namespace) -> tuple[str, list[str]]:
    """Row 1: seconds from the command to its end for linear probes: random sampler, no scheduler, no finals."""
    data = split_folders.write_split(args.photos, args.scratch)
    task = _task(args, data, image_size=128, strategies="linear_probe", trials=64, epochs=10)
    task = dataclasses.replace(task, sampler="random", scheduler="none")
    short = dataclasses.replace(task, trials=4, epochs=min(3, task.epochs))
    setting = _setting(args, "probes", short, (1, 2), lambda outcome: outcome.seconds)
    fewer = dataclasses.replace(task, trials=args.plain_trials or task.trials)
    cold, warm, plain = [], [], []
    for repeat in range(1 if args.smoke else args.repeats):
        for side in _alternating(repeat):
            if side == "ours":
                first, second = _ours(args, dataclasses.replace(task, seed=repeat))
                cold.append(first)
                warm.append(second)
            else:
                plain.append(_plain(args, dataclasses.replace(fewer, seed=repeat), setting))
    seconds = [extrapolate_seconds(each, task.trials) for each in plain]
    rows = [
        (name, MedianRange(tuple(took)), ratios(seconds, took), *_accuracies(outcomes))
        for name, outcomes, took in (
            ("ours, cold cache", cold, [each.seconds for each in cold]),
            ("ours, warm cache", warm, [each.seconds for each in warm]),
            ("plain script", plain, seconds),
        )
    ]
    lines = [
        f"{task.trials} linear probes of {task.epochs} epochs on {_sizes(data)}, {_network(task)}; random sampler, no "
        f"scheduler, no finals. Plain script: {setting}; `reuse_actors` as Ray has it, False."
        + ("" if fewer == task else f" It ran {fewer.trials} trials, scaled up to {task.trials}, start-up once."),
        "",
        *markdown_table(("side", "seconds", "times as fast", "best accuracy", "mean of all trials"), rows),
        "",
        *_commands(cold[-1], warm[-1], plain[-1]),
    ]
    return f"{task.trials} linear probes, from the command to its end", lines


def finetune(args: Namespace) -> tuple[str, list[str]]:
    """Row 2: training images a second of full fine-tuning, one trial at a time and two side by side."""
    data = split_folders.write_split(args.photos, args.scratch)
    task = _task(args, data, image_size=128, strategies=args.strategy, trials=1, epochs=8)
    task = dataclasses.replace(task, fixed=FIXED_RECIPE, sampler="random", scheduler="none")
    rows: list[tuple[object, ...]] = []
    commands: list[str] = []
    manners = {1: "one trial at a time", 2: "two side by side"}
    for concurrent, what in list(manners.items())[: 1 if args.smoke else 2]:
        beside = dataclasses.replace(task, trials=concurrent)
        short = dataclasses.replace(beside, epochs=min(3, task.epochs))
        given = args.setting if args.setting and args.setting.concurrent == concurrent else None
        chosen = Namespace(**{**vars(args), "setting": given})
        setting = _setting(
            chosen, f"finetune-{concurrent}", short, (concurrent,), lambda each: -images_per_second(each)
        )
        ours: list[RunOutcome] = []
        plain: dict[bool, list[RunOutcome]] = {False: [], True: []}
        for repeat in range(1 if args.smoke else args.repeats):
            seeded = dataclasses.replace(beside, seed=repeat)
            for side in _alternating(repeat):
                if side == "ours":
                    ours.append(_ours(args, seeded, ["--concurrent", str(concurrent)], warm=False)[0])
                else:
                    for last, outcomes in plain.items():
                        outcomes.append(_plain(args, seeded, dataclasses.replace(setting, channels_last=last)))
        speed = [images_per_second(each) for each in ours]
        rows.append((f"ours, {what}", MedianRange(tuple(speed)), "", _mean_accuracy(ours)))
        for last, outcomes in plain.items():
            name = f"plain script{', channels_last' * last}, {what} ({setting.workers} loader processes, "
            theirs = [images_per_second(each) for each in outcomes]
            rows.append(
                (
                    f"{name}{setting.threads} threads)",
                    MedianRange(tuple(theirs)),
                    ratios(speed, theirs),
                    _mean_accuracy(outcomes),
                )
            )
        commands += _commands(ours[-1], plain[False][-1])
    lines = [
        f"Training images a second from the second epoch on, validation not included, of `{task.strategies}` with "
        f"batches of {FIXED_RECIPE['batch_size']} and flips on {_sizes(data)}, {_network(task)}. Plain script: the "
        f"setting that served it best.",
        "",
        *markdown_table(("side", "images a second", "ours is times as fast", "accuracy"), rows),
        "",
        *commands,
    ]
    return "images a second of full fine-tuning", lines


def search(args: Namespace) -> tuple[str, list[str]]:
    """Row 3: time until within a point of the best accuracy that either side found, for each data set and seed."""
    lines: list[str] = []
    train, val = (6, 6) if args.smoke else args.per_class
    for name, size, part in (
        ("quickdraw", 64, lambda seed: split_folders.write_drawings(args.drawings, args.scratch, seed, train, val)),
        ("cars", 128, lambda seed: split_folders.write_fold(args.cars, args.scratch, args.car_classes, seed % 3)),
    ):
        if args.only in (None, name):
            lines += _searched(args, name, size, part)
    lines = [
        f"Strategies mixed. The target is the best validation accuracy that any side found on that seed, after any "
        f"epoch of as many trials on either side, less {TARGET_MARGIN:.0%}; a side is there when the first of its trials has "
        f"reached it after any epoch. The plain script begins with draws of its sampler, ours with its known good "
        f"recipes, as always.",
        *lines,
    ]
    return "time until within a point of the best accuracy", lines


def _searched(args: Namespace, name: str, image_size: int, part: Callable[[int], Path]) -> list[str]:
    task = _task(args, part(0), image_size=image_size, strategies=STRATEGIES, trials=20, epochs=6)
    short = dataclasses.replace(task, trials=4, epochs=2)
    setting = _setting(args, f"search-{name}", short, (1, 2), lambda outcome: outcome.seconds)
    seeds = range(1 if args.smoke else args.repeats)
    raced = [_raced(args, dataclasses.replace(task, data=part(seed), seed=seed), setting) for seed in seeds]
    found = {side: [outcomes[side] for outcomes in raced] for side in raced[0]}
    # Of as many trials on either side: what the plain script goes on for is to find out when it gets there.
    bests = {side: [outcome.best_of_first(task.trials) for outcome in outcomes] for side, outcomes in found.items()}
    targets = [_target(each) for each in zip(*bests.values(), strict=True)]
    rows = []
    for side, outcomes in found.items():
        times = [seconds_to_accuracy(each, target) for each, target in zip(outcomes, targets, strict=True)]
        reached = [seconds_to_accuracy(each, best) or 0.0 for each, best in zip(outcomes, bests[side], strict=True)]
        against = [
            *(_speedups(outcomes, found[ours], targets) for ours in (COLD, WARM) if ours in found),
            _speedups(outcomes, found[COLD], bests[side]),
        ]
        rows.append(
            (
                side,
                " / ".join("never" if time is None else f"{time:.0f}" for time in times),
                f"{median(each.seconds for each in outcomes):.0f}",
                " / ".join(f"{best:.3f}" for best in bests[side]),
                " / ".join(f"{time:.0f}" for time in reached),
                *([""] * len(against) if side.startswith("ours") else against),
            )
        )
    images = [split_folders.count_images(part(seed), "val") for seed in seeds]
    header = (
        *("side", "seconds, by seed", "seconds in all", "its best", "its best after"),
        *(f"{ours}, times as fast" for ours in (COLD, WARM) if ours in found),
        f"{COLD}, to the best of that side",
    )
    return [
        "",
        f"### {name}",
        "",
        f"{task.trials} trials of at most {task.epochs} epochs on {_sizes(part(0))}, {_network(task)}; {sum(images):,} "
        f"evaluation images over {len(seeds)} seeds. Targets: {' / '.join(f'{target:.3f}' for target in targets)}. "
        f"Plain script: {setting}"
        + (
            f"; after its {task.trials} trials it goes on until it is there or has taken "
            f"{' or '.join(f'{bar:.0f}' for bar in REQUIRED_SPEEDUPS.values())} times as long as ours, whichever it is held against"
            if args.until_decided
            else ""
        )
        + ". A ratio whose side never got there is a lower bound: its whole search, over the time that ours took. The "
        "last column has no bounds: it is about the best that the plain script itself came to.",
        "",
        *markdown_table(header, rows),
        "",
        *_commands(*raced[-1].values()),
    ]


def _raced(args: Namespace, task: BenchmarkTask, setting: ScriptSetting) -> dict[str, RunOutcome]:
    """All sides on one seed, by side: ours first where the plain script is to go on until it is there."""
    found: dict[str, RunOutcome] = {}
    goes_on: dict[str, Sequence[str]] = dict.fromkeys(REQUIRED_SPEEDUPS, ())
    for side in ("ours", "plain") if args.until_decided else _alternating(task.seed):
        if side == "ours":
            found |= zip((COLD, WARM), _ours(args, task, warm=not args.cold_only), strict=False)
            if not args.cold_only:
                found[TOP_K] = _ours_again(args, dataclasses.replace(task, scheduler="one_epoch_top_k"))
            if args.until_decided:
                target = _target([each.best for each in found.values()])
                took = seconds_to_accuracy(found[COLD], target) or found[COLD].seconds
                goes_on = {
                    name: ["--goal", str(target), "--patience", f"{bar * took:.0f}"]
                    for name, bar in REQUIRED_SPEEDUPS.items()
                }
        else:
            random = dataclasses.replace(task, sampler="random", scheduler="none")
            for name, each in zip(REQUIRED_SPEEDUPS, (task, random), strict=True):
                found[name] = _plain(args, each, setting, goes_on[name])
    print(f"  seed {task.seed}: " + ", ".join(f"{side} {each.best:.3f}" for side, each in found.items()), flush=True)
    return {side: found[side] for side in sorted(found, key=lambda side: not side.startswith("ours"))}


def _target(bests: Sequence[float]) -> float:
    """What lies within a point of the best; rounded, or an accuracy just a point below might not be equal to it."""
    return round(max(bests) - TARGET_MARGIN, 6)


def _speedups(theirs: Sequence[RunOutcome], ours: Sequence[RunOutcome], targets: Sequence[float]) -> MedianRange:
    return MedianRange(tuple(map(speedup, theirs, ours, targets)))


COMPARISONS: dict[str, Callable[[Namespace], tuple[str, list[str]]]] = {
    f.__name__: f for f in (probes, finetune, search)
}


def _task(args: Namespace, data: Path, *, image_size: int, strategies: str, trials: int, epochs: int) -> BenchmarkTask:
    sizes: dict[str, Any] = {"image_size": image_size, "trials": trials, "epochs": epochs}
    sizes |= {name: value for name in sizes if (value := getattr(args, name)) is not None}
    sizes |= {name: min(sizes[name], small) for name, small in SMOKE_OVERRIDES.items()} if args.smoke else {}
    return BenchmarkTask(data=data, backbone=args.backbone, weights=args.weights, strategies=strategies, **sizes)


def _alternating(repeat: int) -> Sequence[str]:
    return ("ours", "plain") if repeat % 2 == 0 else ("plain", "ours")


def _ours(args: Namespace, task: BenchmarkTask, extra_flags: Sequence[str] = (), warm: bool = True) -> list[RunOutcome]:
    """Ours in a new storage, then once more in the same one."""
    storage = args.scratch / "ours"
    shutil.rmtree(storage, ignore_errors=True)
    flags = [*extra_flags, *shlex.split(args.ours)]
    found = [contestants.run_ours(task, storage, args.scratch / "ours.log", flags) for _ in range(1 + warm)]
    _say("ours", found)
    return found


def _ours_again(args: Namespace, task: BenchmarkTask) -> RunOutcome:
    """Ours in the storage that `_ours` has left, on what is cached there."""
    found = contestants.run_ours(task, args.scratch / "ours", args.scratch / "ours.log", shlex.split(args.ours))
    _say(f"ours, {task.scheduler}", [found])
    return found


def _plain(args: Namespace, task: BenchmarkTask, setting: ScriptSetting, extra_flags: Sequence[str] = ()) -> RunOutcome:
    last = setting.channels_last or args.channels_last
    setting = dataclasses.replace(setting, channels_last=last)
    found = contestants.run_plain(task, setting, args.scratch, args.again, extra_flags=extra_flags)
    _say("plain", [found])
    return found


def _say(side: str, outcomes: Sequence[RunOutcome]) -> None:
    for each in outcomes:
        print(f"  {side}: {each.seconds:.1f} s, best {each.best:.3f}, ended {each.at}", flush=True)


def _setting(
    args: Namespace, name: str, short: BenchmarkTask, concurrent: tuple[int, ...], cost: Callable[[RunOutcome], float]
) -> ScriptSetting:
    """The one that was asked for, else the best that was or is found, else a usual one."""
    if args.setting:
        chosen: ScriptSetting = args.setting
        return chosen
    if args.tune:
        return tune_setting(name, short, args.scratch, concurrent, cost)
    return load_tuned_setting(name, args.scratch) or DEFAULT_SETTINGS[concurrent[-1]]


def _accuracies(outcomes: Sequence[RunOutcome]) -> tuple[str, str]:
    return f"{fmean(each.best for each in outcomes):.3f}", _mean_accuracy(outcomes)


def _mean_accuracy(outcomes: Sequence[RunOutcome]) -> str:
    return f"{fmean(each.mean for each in outcomes):.3f}"


def _network(task: BenchmarkTask) -> str:
    return f"{task.backbone} at {task.image_size} px"


def _sizes(data: Path) -> str:
    train, val = (split_folders.count_images(data, part) for part in ("train", "val"))
    return f"{data.name} ({train:,} training and {val:,} validation images)"


def _commands(*outcomes: RunOutcome) -> list[str]:
    return [f"    {each.command}" for each in outcomes]
