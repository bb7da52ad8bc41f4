"""The flags that every experiment shares, as typed dataclasses that become the command line."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sweeps.engine.plan import Plan
from xfer.objectives import parse_objectives
from xfer.storage.object_store import as_path

if TYPE_CHECKING:
    Place = Path
else:  # a place in an object store is no Path to those who ask (`xfer.storage.object_store`), and tyro asks
    Place = Annotated[
        Any,
        tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="PLACE",
            instance_from_str=lambda said: as_path(said[0]),
            is_instance=lambda value: hasattr(value, "joinpath"),
            str_from_instance=lambda value: [str(value)],
        ),
    ]
    """A folder here, or an address in an object store: as a Path its two slashes would become one."""


def default_storage() -> Path:
    """Where sweeps are kept unless told otherwise: what a cluster's machines have been told, or `runs`."""
    return as_path(os.environ.get("XFER_STORAGE") or "runs")


RepeatableFlag = tyro.conf.UseAppendAction[tuple[str, ...]]
SMOKE_IMAGE_SIZE = 64


@dataclass(frozen=True)
class Options:
    """What a person may say on the command line; the texts are what `--help` shows."""

    data: str = ""
    """Where the images are: a folder or a table's FILE.csv, here or at
    s3://bucket/..., gs://...; hf://owner/name, or
    torchvision://NAME?root=DIR."""
    classes: str = ""
    """Which of its classes are told apart: names separated by
    commas, or a number for the first so many. All unless given."""
    images_per_class: int | None = None
    """How many images of each class are trained on. All unless
    given; --vary images_per_class=10,50 compares several."""
    grey: bool = False
    """Take the colour from all images, as --fix colour=grey does."""
    backbone: str = "efficientnet_b0"
    """timm's name of the pretrained network; several, separated by commas, compete."""
    keep_backbones: int = 3
    """How many of them are fine-tuned. Where more are named, heads on
    frozen features of each are compared first, in seconds."""
    weights: str = ""
    """FILE with the backbone's weights (safetensors, or a torch state dict; s3://... too), or NAME=FILE[,NAME=FILE].
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
    """Which ways of transferring compete, separated by commas;
    those with * unless given. What stands in brackets is set
    with --fix, or searched with --vary.
    - from random weights: scratch*, small_cnn
    - a head on frozen features: linear_probe*,
      logistic_probe (penalty), ridge_probe (penalty),
      early_cut (stage), drop_early (stage)
    - the head first, then the rest:
      freeze_then_unfreeze* (freeze_epochs), lp_ft (penalty),
      freeze_until_converged (patience),
      gradual_unfreeze (blocks, until)
    - everything at once: naive*, clip*, layer_decay (decay),
      l2_sp (strength)
    - a part only: freeze_first (blocks), train_last (blocks),
      surgical (block), bitfit, lora (rank)
    """
    vary: RepeatableFlag = ()
    """AXIS=VALUES to search instead of the usual ones, once for
    each axis: learning_rate=1e-4..1e-2, optimizer=sgd,ranger,
    clip_norm=none,0.5, freeze_epochs=1..4, batch_size=16,32.
    Axes of numbers: learning_rate, body_rate, weight_decay,
    batch_size, clip_norm, clip_value, images_per_class, views.
    Axes of names, those with * unless given:
    - strategy: as in --strategies
    - optimizer: sgd*, nesterov, adam*, adamw, radam*, ranger*,
      lamb, lion
    - schedule: onecycle*, cosine*, cosine_warmup (warmup),
      flat_cosine (flat), step (drop_every, drop_to), constant
    - augmentation: none*, flip*, randaugment* (num_ops,
      magnitude), autoaugment, trivialaugment,
      random_resized_crop (min_area), cutout (cutout_size),
      random_erasing (erasing_probability),
      grey (grey_probability), colour_jitter (jitter)
    - mixing: none*, cutmix* (alpha), mixup (alpha)
    - loss: cross_entropy*, label_smoothing* (smoothing),
      focal (gamma)
    - embedding_loss: none*, contrastive (weight, pair_margin),
      triplet (weight, triplet_margin),
      arcface (weight, angular_margin, scale)
    - head: linear*, mlp (hidden), cosine (cosine_scale)
    - activation: keep*, mish, silu, leaky_relu
    - batch_norm: with_weights*, frozen, always
    - colour: rgb*, grey, grey_stem
    What stands in brackets is an axis too: alpha=0.2..1.0."""
    fix: RepeatableFlag = ()
    """AXIS=VALUE to hold fixed, once for each axis: optimizer=adam."""
    advise: bool = True
    """Begin with what the data call for: their size, and how well
    frozen features serve them, are measured once, in seconds.
    --no-advise begins with clip."""
    warm_start: bool = False
    """Begin with the best recipes of earlier sweeps in this
    storage whose data look alike: in classes, images per class
    and how frozen features serve. Chosen by their validation
    scores, never by a test part, and fixed by the first start;
    the known good recipes follow."""
    objective: str = "accuracy"
    """What recipes are searched for, ranked and stopped by, on the
    validation part: accuracy, balanced_accuracy, noisy_accuracy,
    loss. With a second one, as in accuracy,seconds, what no other
    recipe beats in both is searched for, and the first decides.
    noisy_accuracy costs another validation pass in every epoch."""
    sampler: str = "tpe"
    """Who proposes recipes after the known good ones: tpe, random,
    gp, grid. gp (a Gaussian process) takes half a second for each;
    grid goes through every combination, ranges at 3 points, the
    last axis fastest, and says so where that is more than --trials."""
    scheduler: str = "asha"
    """Who stops those that lag behind: asha, median, none,
    one_epoch_top_k. The last gives every trial one epoch, keeps
    its checkpoint, and lets the best eighth, at least 3, go on
    to the end. Nobody is judged while its network is still frozen."""
    concurrent: int | None = None
    """Trials at a time; as many as fit unless given."""
    gpus_per_trial: float | None = None
    """Share of a GPU for each trial, 0.5 for two on each; 2, 3, ... trains each on so many GPUs of one node together.
    Unless given, two steps of each kind of trial are tried first, to see how many fit side by side; none where there
    is no GPU."""
    cpus_per_trial: int | None = None
    """CPU cores for each trial. One unless given, for two trials side by side beat one on two cores; with --concurrent
    fewer trials than there are cores share them all."""
    time_budget: str = ""
    """When to stop searching, so that the finals still fit in: 90s, 30m, 2h. The same command, with more time or none,
    goes on from there."""
    cost_budget: float | None = None
    """When to stop searching, in US dollars (or whatever the
    prices are in), so that the finals still fit in. It counts all
    starts of the sweep; the same command with more goes on."""
    prices: str = ""
    """What machines cost an hour: one price for all, 0.40, or
    by node type, l4=0.35,a10g=0.50,head=0.192. Unless given, what
    the cluster file says under labels: xfer/usd-per-hour."""
    finalists: int = 3
    """How many of the best are run again on new seeds, and then judged on the test part. 0 leaves that closed."""
    seeds: int = 3
    """How many new seeds each finalist is run on."""
    seed: int = 0
    """Decides every draw of the search; finalists get the seeds after it."""
    storage: Place = field(default_factory=default_storage)
    """Where everything goes that is trained: packs, trials, checkpoints.
    A folder, or s3://bucket/folder, gs://...; $XFER_STORAGE, or runs,
    unless given. Machines of a cluster must all reach it."""
    tracking_uri: str = ""
    """MLflow server to mirror to, as in http://host:5000; unless given,
    $MLFLOW_TRACKING_URI, or a database in the storage folder."""
    name: str = ""
    """The sweep's name; experiment, data folder and a hash of the plan unless given."""
    reports: Path = Path("reports")
    """Folder for the report."""
    smoke: bool = False
    """The same path in small: 2 trials of 2 epochs on 64 px, one finalist on one seed."""
    fresh: bool = False
    """Start anew beside an old sweep of the same name, never over it."""


def parse_weights(text: str, backbones: tuple[str, ...]) -> dict[str, str]:
    """What `--weights` says, by backbone.

    >>> parse_weights("a.safetensors", ("resnet18",))
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


def parse_duration(text: str) -> float | None:
    """A span of time as a person writes it; None for an empty text.

    >>> [parse_duration(text) for text in ("90s", "30m", "1h30m", "45", "")]
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


def parse_names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def default_flags(plan: Plan) -> dict[str, Any]:
    """The flags' defaults on the page of an experiment: what its plan says."""
    return {
        "data": plan.data,
        "classes": ",".join(plan.classes),
        "backbone": ",".join(plan.backbones),
        "keep_backbones": plan.keep_backbones,
        "image_size": plan.image_size,
        "trials": plan.trials,
        "epochs": plan.epochs,
        "strategies": ",".join(plan.strategies),
        "advise": plan.advise,
        "warm_start": plan.warm_start,
        "objective": ",".join(plan.objective),
        "sampler": plan.sampler,
        "scheduler": plan.scheduler,
        "finalists": plan.finalists,
        "seeds": plan.seeds,
        "seed": plan.seed,
    }


def build_plan(page: Plan, options: Options) -> Plan:
    """The experiment's plan as the command line changed it.

    Raises:
        ValueError: a flag that cannot be read, or a value beyond reason.
    """
    backbones = parse_names(options.backbone)
    if not backbones:
        raise ValueError(f"--backbone {options.backbone!r}: at least one backbone is needed")
    asked = edits(options.vary, options.fix)
    if options.strategies and "strategy" in asked:
        raise ValueError(f"--strategies {options.strategies} and strategy={asked['strategy']} say the same thing twice")
    for axis, flag, value in (
        ("images_per_class", f"--images-per-class {options.images_per_class}", options.images_per_class),
        ("colour", "--grey", "grey" if options.grey else None),
    ):
        if value is not None and axis in asked:
            raise ValueError(f"{flag} and {axis}={asked[axis]} say two things of one axis: leave one of them out")
        if value is not None:
            asked[axis] = str(value)
    plan = dataclasses.replace(
        page,
        data=options.data,
        classes=parse_names(options.classes),
        backbones=backbones,
        keep_backbones=options.keep_backbones,
        weights=parse_weights(options.weights, backbones) if options.weights else page.weights,
        backbone_args=backbone_args(options.backbone_args) if options.backbone_args else page.backbone_args,
        image_size=options.image_size,
        trials=options.trials,
        epochs=options.epochs,
        strategies=parse_names(options.strategies),
        edits={**page.edits, **asked},
        advise=options.advise,
        warm_start=options.warm_start,
        objective=tuple(each.name for each in parse_objectives(options.objective)),
        sampler=options.sampler,
        scheduler=options.scheduler,
        finalists=options.finalists,
        seeds=options.seeds,
        seed=options.seed,
    )
    if options.smoke:
        size = min(plan.image_size or SMOKE_IMAGE_SIZE, SMOKE_IMAGE_SIZE)
        return dataclasses.replace(plan, trials=2, epochs=2, image_size=size, finalists=1, seeds=1, arms=plan.arms[:2])
    return plan


def _pairs(flag: str, text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    if not parse_names(text):
        raise ValueError(f"{flag} {text}: NAME=VALUE[,NAME=VALUE] is wanted")
    for part in parse_names(text):
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
