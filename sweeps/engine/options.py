"""The flags that every experiment shares, as typed dataclasses that become the command line."""

from __future__ import annotations

import ast
import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from sweeps.engine.plan import Plan

Many = tyro.conf.UseAppendAction[tuple[str, ...]]
SMOKE_SIZE = 64


@dataclass(frozen=True)
class Options:
    """What a person may say on the command line; the texts are what `--help` shows."""

    data: str = ""
    """Folder with the images."""
    backbone: str = "efficientnet_b0"
    """timm's name of the pretrained network; several, separated by commas, compete."""
    weights: str = ""
    """FILE with the backbone's weights (safetensors, or a torch state dict), or NAME=FILE[,NAME=FILE] for several.
    Without it the weights come from the hub."""
    backbone_args: str = ""
    """Further arguments of the network: KEY=VALUE[,KEY=VALUE], for instance pad_type=same."""
    image_size: int | None = None
    """Side of the images in pixels; what the backbone was pretrained at unless given. Smaller is faster."""
    trials: int = 24
    """How many recipes to try. Giving the same command again with more adds the difference."""
    epochs: int = 8
    """How long each is trained at most."""
    strategies: str = ""
    """Which ways of transferring compete, separated by commas: scratch, linear_probe, freeze_then_unfreeze, naive,
    clip. All of them unless given."""
    vary: Many = ()
    """AXIS=VALUES to search instead of the usual ones, once for each axis: learning_rate=1e-4..1e-2,
    clip_norm=none,0.5,1.0, freeze_epochs=1..4, optimizer=sgd,ranger, batch_size=16,32. Axes: strategy, clip_norm,
    optimizer, schedule, augmentation, mixing, loss, learning_rate, weight_decay, batch_size, and the parameters of
    single entries: freeze_epochs, num_ops, magnitude, alpha, smoothing."""
    fix: Many = ()
    """AXIS=VALUE to hold fixed, once for each axis: optimizer=adam."""
    sampler: str = "tpe"
    """Who proposes recipes after the known good ones: tpe, random."""
    scheduler: str = "asha"
    """Who stops those that lag behind: asha, median, none. Nobody is judged while its network is still frozen."""
    concurrent: int | None = None
    """Trials at a time; as many as fit unless given."""
    gpus_per_trial: float | None = None
    """Share of a GPU for each trial, 0.5 for two on each. One where there are GPUs unless given, else none."""
    cpus_per_trial: int = 1
    """CPU cores for each trial. One is usually best: two trials side by side beat one on two cores."""
    time_budget: str = ""
    """When to stop searching, so that the finals still fit in: 90s, 30m, 2h. The same command, with more time or none,
    goes on from there."""
    finalists: int = 3
    """How many of the best are run again on new seeds, and then judged on the test part. 0 leaves that closed."""
    seeds: int = 3
    """How many new seeds each finalist is run on."""
    seed: int = 0
    """Decides every draw of the search; finalists get the seeds after it."""
    storage: Path = Path("runs")
    """Folder for everything that is trained: packs, trials, checkpoints, MLflow's database."""
    tracking_uri: str = ""
    """MLflow server to mirror to, as in http://host:5000; a database in the storage folder unless given."""
    name: str = ""
    """The sweep's name; experiment, data folder and a hash of the plan unless given."""
    reports: Path = Path("reports")
    """Folder for the report."""
    smoke: bool = False
    """The same path in small: 2 trials of 2 epochs on 64 px, one finalist on one seed."""
    fresh: bool = False
    """Start anew beside an old sweep of the same name, never over it."""


def weights_by_backbone(text: str, backbones: tuple[str, ...]) -> dict[str, str]:
    """What `--weights` says, by backbone.

    >>> weights_by_backbone("a.safetensors", ("resnet18",))
    {'resnet18': 'a.safetensors'}
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if len(parts) == 1 and "=" not in parts[0]:
        if len(backbones) > 1:
            raise ValueError(f"--weights {text}: with several backbones say whose: NAME=FILE[,NAME=FILE]")
        return {backbones[0]: parts[0]}
    return _pairs("--weights", text)


def backbone_args(text: str) -> dict[str, Any]:
    """What `--backbone-args` says.

    >>> backbone_args("pad_type=same,drop_rate=0.1,scriptable=False")
    {'pad_type': 'same', 'drop_rate': 0.1, 'scriptable': False}
    """
    return {name: _literal(value) for name, value in _pairs("--backbone-args", text).items()}


def edits(vary: tuple[str, ...], fix: tuple[str, ...]) -> dict[str, str]:
    """What `--vary` and `--fix` say, by axis.

    >>> edits(("learning_rate=1e-4..1e-2",), ("optimizer=sgd",))
    {'learning_rate': '1e-4..1e-2', 'optimizer': 'sgd'}
    """
    found: dict[str, str] = {}
    for flag, text in [("--vary", each) for each in vary] + [("--fix", each) for each in fix]:
        axis, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not axis or not values:
            raise ValueError(f"{flag} {text}: AXIS=VALUES is wanted, as in {flag} optimizer=sgd")
        if axis in found:
            raise ValueError(f"{flag} {text}: {axis} was given before, as {axis}={found[axis]}")
        if flag == "--fix" and ("," in values or ".." in values):
            raise ValueError(f"--fix {text}: one value fixes an axis; --vary {text} searches several")
        found[axis] = values
    return found


def seconds(text: str) -> float | None:
    """A span of time as a person writes it; None for an empty text.

    >>> [seconds(text) for text in ("90s", "30m", "1h30m", "45", "")]
    [90.0, 1800.0, 5400.0, 45.0, None]
    """
    if not text:
        return None
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text.strip())
    if not match or not any(match.groups()):
        raise ValueError(f"--time-budget {text}: write it as 90s, 30m, 2h or 1h30m")
    hours, minutes, rest = (int(group or 0) for group in match.groups())
    if not hours + minutes + rest:
        raise ValueError(f"--time-budget {text}: there is no time in it")
    return float(3600 * hours + 60 * minutes + rest)


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def defaults_of(plan: Plan) -> dict[str, Any]:
    """The flags' defaults on the page of an experiment: what its plan says."""
    return {
        "data": plan.data,
        "backbone": ",".join(plan.backbones),
        "image_size": plan.image_size,
        "trials": plan.trials,
        "epochs": plan.epochs,
        "strategies": ",".join(plan.strategies),
        "sampler": plan.sampler,
        "scheduler": plan.scheduler,
        "finalists": plan.finalists,
        "seeds": plan.seeds,
        "seed": plan.seed,
    }


def plan_from(page: Plan, options: Options) -> Plan:
    """The experiment's plan as the command line changed it.

    Raises:
        ValueError: a flag that cannot be read, or a value beyond reason.
    """
    backbones = names(options.backbone)
    if not backbones:
        raise ValueError(f"--backbone {options.backbone!r}: at least one backbone is needed")
    asked = edits(options.vary, options.fix)
    if options.strategies and "strategy" in asked:
        raise ValueError(f"--strategies {options.strategies} and strategy={asked['strategy']} say the same thing twice")
    plan = dataclasses.replace(
        page,
        data=options.data,
        backbones=backbones,
        weights=weights_by_backbone(options.weights, backbones) if options.weights else page.weights,
        backbone_args=backbone_args(options.backbone_args) if options.backbone_args else page.backbone_args,
        image_size=options.image_size,
        trials=options.trials,
        epochs=options.epochs,
        strategies=names(options.strategies),
        edits={**page.edits, **asked},
        sampler=options.sampler,
        scheduler=options.scheduler,
        finalists=options.finalists,
        seeds=options.seeds,
        seed=options.seed,
    )
    if options.smoke:
        size = min(plan.image_size or SMOKE_SIZE, SMOKE_SIZE)
        return dataclasses.replace(plan, trials=2, epochs=2, image_size=size, finalists=1, seeds=1, arms=plan.arms[:2])
    return plan


def _pairs(flag: str, text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    if not names(text):
        raise ValueError(f"{flag} {text}: NAME=VALUE[,NAME=VALUE] is wanted")
    for part in names(text):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name or not value:
            raise ValueError(f"{flag} {text}: NAME=VALUE[,NAME=VALUE] is wanted, {part!r} is none")
        if name in pairs:
            raise ValueError(f"{flag} {text}: {name} is given twice")
        pairs[name] = value
    return pairs


def _literal(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return value if value is None or isinstance(value, str | int | float | bool) else text
