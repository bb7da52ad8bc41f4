"""Plan: one experiment, as its page defines it and the command line may change it.

Every field that a flag can change carries its help text here, and how it is written on the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from sweeps.engine import flag_types
from sweeps.engine.flag_types import Names
from sweeps.engine.search_space.image_sizes import SIZE_LIMITS, resolve_image_sizes
from xfer.choices import Value
from xfer.hyperparameters import DEFAULT_EPOCHS
from xfer.lengths import MIN_STEPS, RunLength
from xfer.models.panel import AUTO
from xfer.objectives import Objective, parse_objectives

LIMITS: dict[str, tuple[int, int]] = {
    "trials": (1, 100_000),
    "epochs": (1, 100_000),
    "steps": (1, 10_000_000),
    "image_size": SIZE_LIMITS,
    "keep_backbones": (2, 100),  # frozen features only hint at the best backbone, so at least two are fine-tuned
    "finalists": (0, 100),
    "seeds": (1, 100),
    "seed": (0, 2**31),
}
"""Smallest and largest accepted value."""

EPOCHS_HELP = f"""Maximum number of epochs of a trial. By default {DEFAULT_EPOCHS},
and on few images as many as {MIN_STEPS} steps take: a network
that is compared sooner is not trained yet."""


@dataclass(frozen=True)
class Plan:
    """One experiment: the data, the recipes to try, the budget, and how certain the answer has to be.

    A plan only states what is requested; `planning.prepare` checks whether it is possible.

    Raises:
        ValueError: a value outside its limits, or two that contradict each other.
    """

    experiment: tyro.conf.Suppress[tyro.conf.Fixed[str]]
    """The page's name, as in `python -m sweeps.<experiment>`."""
    question: tyro.conf.Suppress[tyro.conf.Fixed[str]]
    """The question that the experiment answers, in one
    sentence."""
    source: tyro.conf.Suppress[tyro.conf.Fixed[str]] = ""
    """Layout of the data, a name in
    `xfer.data.layouts.SOURCES`; detected from the data if
    empty."""
    data: str = ""
    """The images: a folder or a table FILE.csv, local or at
    s3://bucket/..., gs://...; hf://owner/name; or
    torchvision://NAME?root=DIR."""
    classes: Names = ()
    """Classes to tell apart: names separated by commas, or a
    number for the first N. All by default."""
    backbones: Annotated[Names, tyro.conf.arg(name="backbone")] = ("efficientnet_b0",)
    """timm's name of the pretrained network; several, separated
    by commas, compete. auto stands for a panel of about six
    that suit this machine (docs/backbones.md)."""
    keep_backbones: int = 3
    """Number of backbones to fine-tune. If more are given,
    heads on frozen features of each are compared first."""
    weights: Annotated[Mapping[str, str], flag_types.WEIGHTS] = field(default_factory=dict)
    """FILE with the backbone's weights (safetensors, or a torch
    state dict; s3://... too), NAME=FILE[,NAME=FILE], or DIR
    with a file NAME.safetensors for each. By default the
    weights come from the hub."""
    backbone_args: Annotated[Mapping[str, Value], flag_types.KEY_VALUES] = field(default_factory=dict)
    """Further arguments of the network: KEY=VALUE[,KEY=VALUE],
    for instance pad_type=same."""
    image_size: int | None = None
    """Side of the images in pixels; by default that of the
    backbone's pretraining. Smaller is faster. With
    --vary image_size=96,128,160 several compete; this one, or
    the first, is the one to begin with."""
    parts: Annotated[Mapping[str, str], flag_types.PARTS] = field(default_factory=dict)
    """Folders of the parts, or values of a table's part
    column: train=NAME[,val=NAME][,test=NAME], or none if
    every folder is a class. By default those with usual
    names."""
    group: str = ""
    """Column of a table that names the patient, camera, video,
    ... of each image: a group is never in two drawn parts. By
    default a column with a usual name; none ignores it."""
    follow_links: bool = False
    """Read images behind links that leave the data folder."""
    trials: int = 24
    """Number of recipes to try. The same command with a larger
    number adds the difference."""
    epochs: Annotated[int | None, tyro.conf.arg(help=EPOCHS_HELP)] = None
    steps: int | None = None
    """Maximum number of steps of a trial, instead of
    --epochs; rounded up to whole epochs."""
    strategies: Annotated[Names, tyro.conf.arg(help=flag_types.strategies_help())] = ()
    edits: tyro.conf.Suppress[tyro.conf.Fixed[Mapping[str, str]]] = field(default_factory=dict)
    """Axes with other values than the default, as --vary and
    --fix write them."""
    arms: tyro.conf.Suppress[tyro.conf.Fixed[tuple[Mapping[str, Value], ...]]] = ()
    """Configurations to compare instead of a search, one trial
    each. Axes that are not named get the values of
    `search_space.known_good`."""
    advise: bool = True
    """Begin with the strategies that the data call for, and let
    them compete unless --strategies lists others: size, and
    how well frozen features separate the classes, are
    measured once. --no-advise begins with clip."""
    zero_shot: str = ""
    """Image-text network whose zero-shot accuracy is measured
    before the search: NAME=FILE or NAME=TAG with a name and a
    tag of open_clip, hf-hub:OWNER/NAME, or local-dir:DIR. The
    class names must be words (pip install
    'xfer[zero-shot]')."""
    warm_start: bool = False
    """Begin with the best recipes of earlier sweeps in this
    storage on similar data: similar in classes, images per
    class and the accuracy of frozen features. They are
    chosen by validation scores, never on a test set, and
    stay fixed after the first start; the known good recipes
    follow."""
    objective: Names = ("accuracy",)
    """What the search optimizes and ranks and stops trials by,
    on the validation set: accuracy, balanced_accuracy,
    noisy_accuracy, loss. With a second one, as in
    accuracy,seconds, the search looks for recipes that no
    other beats in both; the first one decides.
    noisy_accuracy takes another validation pass per epoch."""
    sampler: str = "tpe"
    """Sampler that proposes recipes after the known good ones:
    tpe, random, gp, grid. gp (a Gaussian process) takes half
    a second per proposal; grid tries every combination,
    ranges at 3 points, with the last axis fastest, and says
    so if that exceeds --trials."""
    scheduler: str = "asha"
    """Scheduler that stops trials that fall behind: asha,
    median, none, one_epoch_top_k. The last one trains every
    trial for one epoch, keeps its checkpoint, and continues
    the best eighth, at least 3, to the end. No trial is
    stopped while its network is still frozen."""
    finalists: int = 3
    """Number of best recipes to repeat on new seeds and
    evaluate on the test set, and in addition the control and
    the best head on frozen features. 0 leaves the test set
    closed."""
    seeds: int = 3
    """Number of new seeds for each finalist."""
    margin: float = 0.01
    """Difference in accuracy that does not matter in practice:
    0.01 is one point. The report names the cheapest recipe
    within it. It changes no trial, and may be changed later."""
    noise: bool = True
    """Evaluate the finalists under seven kinds of noise too, on
    at most 500 test images, after the ranking and the report
    are there. Without --no-noise the same command adds it."""
    seed: int = 0
    """Seed of every random draw of the search; finalists get
    the seeds after it."""

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} is {value}; must be between {low} and {high}")
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin is {self.margin}; must be at least 0 and below 1, as in 0.01 for one point")
        image_size, edits = resolve_image_sizes(self.image_size, self.edits)
        object.__setattr__(self, "image_size", image_size)
        object.__setattr__(self, "edits", edits)
        if not self.backbones:
            raise ValueError("at least one backbone is needed: give timm's name with --backbone")
        names = tuple(AUTO if name.strip().lower() == AUTO else name for name in self.backbones)
        object.__setattr__(self, "backbones", names)
        object.__setattr__(self, "weights", flag_types.assign_weights(self.weights, names))
        for name in self.weights:
            if name not in self.backbones and AUTO not in self.backbones:
                raise ValueError(f"weights are given for {name}, which is not among the backbones: {self.backbones}")
        if self.warm_start and self.arms:
            raise ValueError("warm_start has no effect on a plan with explicit arms: leave out warm_start")
        parse_objectives(",".join(self.objective))
        RunLength(self.epochs, self.steps)  # raises if both are given

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives that `objective` names."""
        return parse_objectives(",".join(self.objective))
