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

from benchmarks import parted, sides
from benchmarks.curves import Outcome, Spread, images_per_second, ratios, scaled, seconds_to, speedup
from benchmarks.results import table
from benchmarks.settings import USUAL, tune, tuned
from benchmarks.sides import Setting, Task
from xfer.choices import Value

STRATEGIES = "clip,freeze_then_unfreeze,naive,linear_probe,scratch"
FIXED: dict[str, Value] = {
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
WITHIN = 0.01
"""A target lies so far below the best accuracy that either side found after any epoch of any trial."""
COLD, WARM, TOP_K = "ours cold", "ours warm", "ours warm, one_epoch_top_k"
BARS = {"Tune + ASHA + OptunaSearch": 3.0, "random search at full budget": 10.0}
"""How many times sooner than each way of the plain script ours is meant to reach the target."""
SMOKE = {"image_size": 32, "trials": 2, "epochs": 2}


def probes(asked: Namespace) -> tuple[str, list[str]]:
    """Row 1: seconds from the command to its end for linear probes: random sampler, no scheduler, no finals."""
    data = parted.as_split(asked.photos, asked.scratch)
    task = _task(asked, data, image_size=128, strategies="linear_probe", trials=64, epochs=10)
    task = dataclasses.replace(task, sampler="random", scheduler="none")
    short = dataclasses.replace(task, trials=4, epochs=min(3, task.epochs))
    setting = _setting(asked, "probes", short, (1, 2), lambda outcome: outcome.seconds)
    fewer = dataclasses.replace(task, trials=asked.plain_trials or task.trials)
    cold, warm, plain = [], [], []
    for repeat in range(1 if asked.smoke else asked.repeats):
        for side in _alternating(repeat):
            if side == "ours":
                first, second = _ours(asked, dataclasses.replace(task, seed=repeat))
                cold.append(first)
                warm.append(second)
            else:
                plain.append(_plain(asked, dataclasses.replace(fewer, seed=repeat), setting))
    seconds = [scaled(each, task.trials) for each in plain]
    rows = [
        (name, Spread(tuple(took)), ratios(seconds, took), *_accuracies(outcomes))
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
        *table(("side", "seconds", "times as fast", "best accuracy", "mean of all trials"), rows),
        "",
        *_commands(cold[-1], warm[-1], plain[-1]),
    ]
    return f"{task.trials} linear probes, from the command to its end", lines


def finetune(asked: Namespace) -> tuple[str, list[str]]:
    """Row 2: training images a second of full fine-tuning, one trial at a time and two side by side."""
    data = parted.as_split(asked.photos, asked.scratch)
    task = _task(asked, data, image_size=128, strategies=asked.strategy, trials=1, epochs=8)
    task = dataclasses.replace(task, fixed=FIXED, sampler="random", scheduler="none")
    rows: list[tuple[object, ...]] = []
    commands: list[str] = []
    manners = {1: "one trial at a time", 2: "two side by side"}
    for concurrent, what in list(manners.items())[: 1 if asked.smoke else 2]:
        beside = dataclasses.replace(task, trials=concurrent)
        short = dataclasses.replace(beside, epochs=min(3, task.epochs))
        given = asked.setting if asked.setting and asked.setting.concurrent == concurrent else None
        chosen = Namespace(**{**vars(asked), "setting": given})
        setting = _setting(
            chosen, f"finetune-{concurrent}", short, (concurrent,), lambda each: -images_per_second(each)
        )
        ours: list[Outcome] = []
        plain: dict[bool, list[Outcome]] = {False: [], True: []}
        for repeat in range(1 if asked.smoke else asked.repeats):
            seeded = dataclasses.replace(beside, seed=repeat)
            for side in _alternating(repeat):
                if side == "ours":
                    ours.append(_ours(asked, seeded, ["--concurrent", str(concurrent)], warm=False)[0])
                else:
                    for last, outcomes in plain.items():
                        outcomes.append(_plain(asked, seeded, dataclasses.replace(setting, channels_last=last)))
        speed = [images_per_second(each) for each in ours]
        rows.append((f"ours, {what}", Spread(tuple(speed)), "", _mean_accuracy(ours)))
        for last, outcomes in plain.items():
            name = f"plain script{', channels_last' * last}, {what} ({setting.workers} loader processes, "
            theirs = [images_per_second(each) for each in outcomes]
            rows.append(
                (
                    f"{name}{setting.threads} threads)",
                    Spread(tuple(theirs)),
                    ratios(speed, theirs),
                    _mean_accuracy(outcomes),
                )
            )
        commands += _commands(ours[-1], plain[False][-1])
    lines = [
        f"Training images a second from the second epoch on, validation not included, of `{task.strategies}` with "
        f"batches of {FIXED['batch_size']} and flips on {_sizes(data)}, {_network(task)}. Plain script: the "
        f"setting that served it best.",
        "",
        *table(("side", "images a second", "ours is times as fast", "accuracy"), rows),
        "",
        *commands,
    ]
    return "images a second of full fine-tuning", lines


def search(asked: Namespace) -> tuple[str, list[str]]:
    """Row 3: time until within a point of the best accuracy that either side found, for each data set and seed."""
    lines: list[str] = []
    train, val = (6, 6) if asked.smoke else asked.per_class
    for name, size, part in (
        ("quickdraw", 64, lambda seed: parted.drawn(asked.drawings, asked.scratch, seed, train, val)),
        ("cars", 128, lambda seed: parted.folds(asked.cars, asked.scratch, asked.car_classes, seed % 3)),
    ):
        if asked.only in (None, name):
            lines += _searched(asked, name, size, part)
    lines = [
        f"Strategies mixed. The target is the best validation accuracy that any side found on that seed, after any "
        f"epoch of as many trials on either side, less {WITHIN:.0%}; a side is there when the first of its trials has "
        f"reached it after any epoch. The plain script begins with draws of its sampler, ours with its known good "
        f"recipes, as always.",
        *lines,
    ]
    return "time until within a point of the best accuracy", lines


def _searched(asked: Namespace, name: str, image_size: int, part: Callable[[int], Path]) -> list[str]:
    task = _task(asked, part(0), image_size=image_size, strategies=STRATEGIES, trials=20, epochs=6)
    short = dataclasses.replace(task, trials=4, epochs=2)
    setting = _setting(asked, f"search-{name}", short, (1, 2), lambda outcome: outcome.seconds)
    seeds = range(1 if asked.smoke else asked.repeats)
    raced = [_raced(asked, dataclasses.replace(task, data=part(seed), seed=seed), setting) for seed in seeds]
    found = {side: [outcomes[side] for outcomes in raced] for side in raced[0]}
    # Of as many trials on either side: what the plain script goes on for is to find out when it gets there.
    bests = {side: [outcome.best_of(task.trials) for outcome in outcomes] for side, outcomes in found.items()}
    targets = [_target(each) for each in zip(*bests.values(), strict=True)]
    rows = []
    for side, outcomes in found.items():
        times = [seconds_to(each, target) for each, target in zip(outcomes, targets, strict=True)]
        reached = [seconds_to(each, best) or 0.0 for each, best in zip(outcomes, bests[side], strict=True)]
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
    images = [parted.images_in(part(seed), "val") for seed in seeds]
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
            f"{' or '.join(f'{bar:.0f}' for bar in BARS.values())} times as long as ours, whichever it is held against"
            if asked.until_decided
            else ""
        )
        + ". A ratio whose side never got there is a lower bound: its whole search, over the time that ours took. The "
        "last column has no bounds: it is about the best that the plain script itself came to.",
        "",
        *table(header, rows),
        "",
        *_commands(*raced[-1].values()),
    ]


def _raced(asked: Namespace, task: Task, setting: Setting) -> dict[str, Outcome]:
    """All sides on one seed, by side: ours first where the plain script is to go on until it is there."""
    found: dict[str, Outcome] = {}
    goes_on: dict[str, Sequence[str]] = dict.fromkeys(BARS, ())
    for side in ("ours", "plain") if asked.until_decided else _alternating(task.seed):
        if side == "ours":
            found |= zip((COLD, WARM), _ours(asked, task, warm=not asked.cold_only), strict=False)
            if not asked.cold_only:
                found[TOP_K] = _ours_again(asked, dataclasses.replace(task, scheduler="one_epoch_top_k"))
            if asked.until_decided:
                target = _target([each.best for each in found.values()])
                took = seconds_to(found[COLD], target) or found[COLD].seconds
                goes_on = {
                    name: ["--goal", str(target), "--patience", f"{bar * took:.0f}"] for name, bar in BARS.items()
                }
        else:
            random = dataclasses.replace(task, sampler="random", scheduler="none")
            for name, each in zip(BARS, (task, random), strict=True):
                found[name] = _plain(asked, each, setting, goes_on[name])
    print(f"  seed {task.seed}: " + ", ".join(f"{side} {each.best:.3f}" for side, each in found.items()), flush=True)
    return {side: found[side] for side in sorted(found, key=lambda side: not side.startswith("ours"))}


def _target(bests: Sequence[float]) -> float:
    """What lies within a point of the best; rounded, or an accuracy just a point below might not be equal to it."""
    return round(max(bests) - WITHIN, 6)


def _speedups(theirs: Sequence[Outcome], ours: Sequence[Outcome], targets: Sequence[float]) -> Spread:
    return Spread(tuple(map(speedup, theirs, ours, targets)))


ROWS: dict[str, Callable[[Namespace], tuple[str, list[str]]]] = {f.__name__: f for f in (probes, finetune, search)}


def _task(asked: Namespace, data: Path, *, image_size: int, strategies: str, trials: int, epochs: int) -> Task:
    sizes: dict[str, Any] = {"image_size": image_size, "trials": trials, "epochs": epochs}
    sizes |= {name: value for name in sizes if (value := getattr(asked, name)) is not None}
    sizes |= {name: min(sizes[name], small) for name, small in SMOKE.items()} if asked.smoke else {}
    return Task(data=data, backbone=asked.backbone, weights=asked.weights, strategies=strategies, **sizes)


def _alternating(repeat: int) -> Sequence[str]:
    return ("ours", "plain") if repeat % 2 == 0 else ("plain", "ours")


def _ours(asked: Namespace, task: Task, more: Sequence[str] = (), warm: bool = True) -> list[Outcome]:
    """Ours in a new storage, then once more in the same one."""
    storage = asked.scratch / "ours"
    shutil.rmtree(storage, ignore_errors=True)
    flags = [*more, *shlex.split(asked.ours)]
    found = [sides.ours(task, storage, asked.scratch / "ours.log", flags) for _ in range(1 + warm)]
    _say("ours", found)
    return found


def _ours_again(asked: Namespace, task: Task) -> Outcome:
    """Ours in the storage that `_ours` has left, on what is cached there."""
    found = sides.ours(task, asked.scratch / "ours", asked.scratch / "ours.log", shlex.split(asked.ours))
    _say(f"ours, {task.scheduler}", [found])
    return found


def _plain(asked: Namespace, task: Task, setting: Setting, more: Sequence[str] = ()) -> Outcome:
    last = setting.channels_last or asked.channels_last
    setting = dataclasses.replace(setting, channels_last=last)
    found = sides.plain(task, setting, asked.scratch, asked.again, more=more)
    _say("plain", [found])
    return found


def _say(side: str, outcomes: Sequence[Outcome]) -> None:
    for each in outcomes:
        print(f"  {side}: {each.seconds:.1f} s, best {each.best:.3f}, ended {each.at}", flush=True)


def _setting(
    asked: Namespace, name: str, short: Task, concurrent: tuple[int, ...], cost: Callable[[Outcome], float]
) -> Setting:
    """The one that was asked for, else the best that was or is found, else a usual one."""
    if asked.setting:
        chosen: Setting = asked.setting
        return chosen
    if asked.tune:
        return tune(name, short, asked.scratch, concurrent, cost)
    return tuned(name, asked.scratch) or USUAL[concurrent[-1]]


def _accuracies(outcomes: Sequence[Outcome]) -> tuple[str, str]:
    return f"{fmean(each.best for each in outcomes):.3f}", _mean_accuracy(outcomes)


def _mean_accuracy(outcomes: Sequence[Outcome]) -> str:
    return f"{fmean(each.mean for each in outcomes):.3f}"


def _network(task: Task) -> str:
    return f"{task.backbone} at {task.image_size} px"


def _sizes(data: Path) -> str:
    train, val = (parted.images_in(data, part) for part in ("train", "val"))
    return f"{data.name} ({train:,} training and {val:,} validation images)"


def _commands(*outcomes: Outcome) -> list[str]:
    return [f"    {each.command}" for each in outcomes]
