"""The table of hyperparameters: limits, default and search range of everything that a recipe can choose.

The command lines, the catalog, the checks of a recipe and the search space are generated from this module. It imports
neither torch nor timm, so `--help` is immediate. A new entry in a table of `xfer.methods` takes one row in `CHOICES`
(an optimizer: in `OPTIMIZERS`), and a new parameter one row in `PARAMETERS`. Tests keep tables and rows in step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from xfer.choices import Value


@dataclass(frozen=True)
class Categorical:
    """A distribution over a few values. A single value is fixed: no sampler is asked for it."""

    values: tuple[Value, ...]

    def __str__(self) -> str:
        return ", ".join("none" if value is None else str(value) for value in self.values)

    def nearest(self, value: Value) -> Value:
        """Return `value` if it is one of the values, else the first one."""
        return value if value in self.values else self.values[0]


@dataclass(frozen=True)
class Range:
    """A distribution over the numbers from `low` to `high`, both included; over integers if both are integers."""

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}" + (" log" if self.log else "")

    @property
    def is_integer(self) -> bool:
        """Whether the range holds integers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def nearest(self, value: Value) -> Value:
        """Clamp `value` into the range; return the (geometric, if `log`) middle if it is not a number."""
        if not isinstance(value, int | float):
            value = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
            value = round(value) if self.is_integer else value
        return min(max(value, self.low), self.high)


Distribution = Categorical | Range


@dataclass(frozen=True)
class Number:
    """A row of the table: one numeric hyperparameter."""

    search: Distribution | None = None
    """What a sweep tries by default; its first value, or its middle, is the default. None if a sweep never varies it,
    or if the range depends on the entry (`search_by_entry`)."""
    limits: tuple[float, float] | None = None
    """Smallest and largest accepted value. Integers mark an integer parameter. None if only the entry can check it."""
    log: bool = False
    """Whether the parameter spans orders of magnitude: ranges are searched on a log scale."""
    optional: bool = False
    """Whether none is accepted."""
    help: str = ""
    """Text for `--help`, without the default."""
    search_by_entry: Mapping[str, Distribution] = field(default_factory=dict)
    """The search range for each table entry, if entries that share the parameter differ."""

    @property
    def is_integer(self) -> bool:
        """Whether only integers make sense."""
        if self.limits is not None:
            return isinstance(self.limits[0], int)
        return isinstance(self.search, Range) and self.search.is_integer


@dataclass(frozen=True)
class ChoiceTable:
    """A row of the table: one kind of choice, such as the schedule, with the entries of its table in `xfer.methods`."""

    search: tuple[str, ...]
    """The entries that a sweep tries by default. The first one is the default of a single run."""
    entries: Mapping[str, tuple[str, ...]]
    """The parameters of every entry."""


@dataclass(frozen=True)
class Optimizer:
    """A row of the table: the learning rates of one optimizer."""

    learning_rates: Range
    """The range that a sweep tries to train a whole network. Families of networks may have their own
    (`xfer.models.families`)."""
    head_learning_rates: Range
    """The range that a sweep tries to train a head alone: ten times as high."""
    default_learning_rate: float
    """A good rate for training the whole network; a head alone takes ten times as much."""


STRATEGIES: dict[str, dict[str, tuple[str, ...]]] = {
    "from random weights": {
        "scratch": (),
        "small_cnn": (),
    },
    "a head on frozen features": {
        "linear_probe": (),
        "logistic_probe": ("penalty",),
        "ridge_probe": ("penalty",),
        "early_cut": ("stage",),
        "drop_early": ("stage",),
    },
    "the head first, then the rest": {
        "freeze_then_unfreeze": ("freeze_epochs",),
        "lp_ft": ("penalty",),
        "freeze_until_converged": ("patience",),
        "gradual_unfreeze": ("blocks", "until"),
    },
    "everything at once": {
        "naive": (),
        "clip": (),
        "layer_decay": ("decay",),
        "l2_sp": ("strength",),
    },
    "only a part": {
        "freeze_first": ("blocks",),
        "train_last": ("blocks",),
        "surgical": ("block",),
        "bitfit": (),
        "lora": ("rank",),
    },
}
"""The strategies with their parameters, in the groups of `--help`."""

FROZEN_HEADS = frozenset(STRATEGIES["a head on frozen features"])
"""Strategies that train nothing but a head: the cheapest way of transfer, and the baseline of all others."""

CLOSED_FORM_HEADS = frozenset({"logistic_probe", "ridge_probe"})
"""Strategies that fit the head in closed form and take no gradient steps."""

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer(Range(1e-3, 1e-1, log=True), Range(1e-2, 1.0, log=True), 1e-2),
    "nesterov": Optimizer(Range(1e-3, 1e-1, log=True), Range(1e-2, 1.0, log=True), 1e-2),
    "adam": Optimizer(Range(3e-5, 1e-2, log=True), Range(3e-4, 1e-1, log=True), 5e-4),
    "adamw": Optimizer(Range(3e-5, 1e-2, log=True), Range(3e-4, 1e-1, log=True), 5e-4),
    "radam": Optimizer(Range(3e-5, 1e-2, log=True), Range(3e-4, 1e-1, log=True), 5e-4),
    "ranger": Optimizer(Range(1e-4, 3e-2, log=True), Range(1e-3, 3e-1, log=True), 1e-3),
    "lamb": Optimizer(Range(3e-4, 3e-2, log=True), Range(3e-3, 3e-1, log=True), 3e-3),
    "lion": Optimizer(Range(3e-6, 1e-3, log=True), Range(3e-5, 1e-2, log=True), 5e-5),
}
"""The optimizers with their learning rates."""

CHOICES: dict[str, ChoiceTable] = {
    "strategy": ChoiceTable(
        search=(
            *("clip", "lp_ft", "freeze_then_unfreeze", "naive", "layer_decay", "freeze_first"),
            *("linear_probe", "logistic_probe", "scratch"),
        ),
        entries={name: parameters for group in STRATEGIES.values() for name, parameters in group.items()},
    ),
    "optimizer": ChoiceTable(
        search=("sgd", "adam", "adamw", "radam", "ranger"),
        entries=dict.fromkeys(OPTIMIZERS, ()),
    ),
    "schedule": ChoiceTable(
        search=("onecycle", "cosine_warmup"),
        entries={
            "onecycle": (),
            "cosine": (),
            "cosine_warmup": ("warmup",),
            "flat_cosine": ("flat",),
            "step": ("drop_every", "drop_to"),
            "constant": (),
        },
    ),
    "augmentation": ChoiceTable(
        search=("flip", "random_resized_crop", "none", "randaugment"),
        entries={
            "none": (),
            "flip": (),
            "randaugment": ("num_ops", "magnitude"),
            "autoaugment": (),
            "trivialaugment": (),
            "random_resized_crop": ("min_area",),
            "cutout": ("cutout_size",),
            "random_erasing": ("erasing_probability",),
            "grey": ("grey_probability",),
            "colour_jitter": ("jitter",),
        },
    ),
    "mixing": ChoiceTable(
        search=("none", "cutmix"),
        entries={"none": (), "cutmix": ("alpha",), "mixup": ("alpha",)},
    ),
    "loss": ChoiceTable(
        search=("cross_entropy", "label_smoothing"),
        entries={"cross_entropy": (), "label_smoothing": ("smoothing",), "focal": ("gamma",)},
    ),
    "balance": ChoiceTable(
        search=("none",),
        entries={"none": (), "class_weights": (), "balanced_sampler": (), "logit_adjustment": ("tau",)},
    ),
    "embedding_loss": ChoiceTable(
        search=("none",),
        entries={
            "none": (),
            "contrastive": ("weight", "pair_margin"),
            "triplet": ("weight", "triplet_margin"),
            "arcface": ("weight", "angular_margin", "scale"),
        },
    ),
    "head": ChoiceTable(
        search=("linear",),
        entries={"linear": (), "mlp": ("hidden",), "cosine": ("cosine_scale",)},
    ),
    "activation": ChoiceTable(
        search=("keep",),
        entries={"keep": (), "mish": (), "silu": (), "leaky_relu": ()},
    ),
    "batch_norm": ChoiceTable(
        search=("with_weights", "frozen"),
        entries={"with_weights": (), "frozen": (), "always": ()},
    ),
    "colour": ChoiceTable(
        search=("rgb",),
        entries={"rgb": (), "grey": (), "grey_stem": ()},
    ),
}
"""Every kind of choice that a recipe makes from a table.

By default a sweep tries the few entries that the literature compares, where they suit network and data
(`sweeps.engine.search_space.constraints`); `--vary` reaches the others by name."""

NUMBERS: dict[str, Number] = {
    "clip_norm": Number(
        Categorical((None, 0.5, 1.0, 5.0)),
        limits=(1e-6, 1e6),
        optional=True,
        help="largest L2 norm of the gradient",
    ),
    "clip_value": Number(
        Categorical((None,)),
        limits=(1e-9, 1e6),
        optional=True,
        help="largest absolute value of any element of the gradient",
    ),
    "learning_rate": Number(limits=(1e-9, 1e2), log=True, help="peak learning rate"),
    "body_rate": Number(
        Categorical((1.0,)),
        limits=(1e-6, 1.0),
        log=True,
        help="learning rate below the head, as a fraction of the head's",
    ),
    "drop_path": Number(
        Categorical((0.0,)),
        limits=(0.0, 0.9),
        help="stochastic depth: probability of skipping the highest block, falling to 0 at the lowest",
    ),
    "weight_decay": Number(
        Range(1e-6, 1e-2, log=True),
        limits=(0.0, 10.0),
        log=True,
        help="weight decay",
    ),
    "batch_size": Number(Categorical((16, 32, 64)), limits=(2, 65_536), help="images per step"),
    "epochs": Number(limits=(1, 100_000), help="epochs"),
    "image_size": Number(limits=(8, 2_048), help="side of the square images, in pixels"),
    "eval_size": Number(
        limits=(8, 2_048),
        optional=True,
        help="side of the images in evaluation and prediction, if it differs from that in training",
    ),
    "classes": Number(limits=(2, 1_000_000), help="number of classes"),
    "images_per_class": Number(
        Categorical((None,)),
        limits=(1, 1_000_000_000),
        optional=True,
        help="maximum number of training images per class",
    ),
    "views": Number(
        Categorical((4,)),
        limits=(1, 1_000),
        optional=True,
        help="fixed augmented views per training image while the lowest block is frozen",
    ),
}
"""The numbers of a recipe. A value outside the limits is taken for a typing error."""

PARAMETERS: dict[str, Number] = {
    "penalty": Number(
        limits=(1e-9, 1e9),
        log=True,
        search_by_entry={
            "ridge_probe": Range(1.0, 1e4, log=True),  # on squared errors; the others are on log-likelihoods
            "logistic_probe": Categorical((1.0, 0.01, 0.1, 10.0, 100.0)),  # those that the screening tries
            "lp_ft": Range(1e-2, 1e2, log=True),
        },
    ),
    "freeze_epochs": Number(Range(1, 3)),  # the number of epochs of the run limits it
    "patience": Number(Range(1, 3), limits=(1, 1_000)),
    "blocks": Number(Range(1, 8), limits=(1, 1_000)),
    "stage": Number(Range(1, 4), limits=(1, 1_000)),
    "block": Number(Range(1, 4), limits=(1, 4)),  # quarters of a network
    "until": Number(Range(0.25, 0.75), limits=(0.01, 0.99)),
    "decay": Number(Range(0.65, 0.95), limits=(0.01, 1.0)),  # from MAE and BEiT to AutoGluon; `xfer.models.families`
    "rank": Number(Categorical((8, 4, 16)), limits=(1, 4_096)),
    "strength": Number(Range(1e-4, 1e-1, log=True), limits=(1e-9, 1e3), log=True),
    "num_ops": Number(Categorical((2,)), limits=(1, 14)),  # as published for ImageNet; RandAugment has 14 operations
    "magnitude": Number(Categorical((9,)), limits=(0, 30)),  # as published for ImageNet
    "min_area": Number(Range(0.25, 0.9), limits=(0.01, 1.0)),
    "cutout_size": Number(Range(0.2, 0.6), limits=(0.01, 1.0)),
    "erasing_probability": Number(Range(0.1, 0.5), limits=(0.0, 1.0)),
    "grey_probability": Number(Range(0.1, 0.5), limits=(0.0, 1.0)),
    "jitter": Number(Range(0.1, 0.5), limits=(0.0, 1.0)),
    "alpha": Number(
        limits=(1e-3, 1e3),
        search_by_entry={
            "cutmix": Categorical((1.0,)),  # as published: every fraction of the image is equally likely
            "mixup": Categorical((0.2,)),  # as published for ImageNet
        },
    ),
    "smoothing": Number(Categorical((0.1,)), limits=(0.0, 0.99)),
    "gamma": Number(Range(0.5, 3.0), limits=(0.0, 10.0)),
    "tau": Number(Range(0.5, 2.0), limits=(1e-3, 1e2)),
    "weight": Number(Range(0.1, 2.0, log=True), limits=(1e-6, 1e3), log=True),
    "pair_margin": Number(Range(0.5, 1.5), limits=(1e-3, 2.0)),  # distances of normalised embeddings are at most 2
    "triplet_margin": Number(Range(0.05, 0.5), limits=(1e-3, 4.0)),  # and their squares at most 4
    "angular_margin": Number(Range(0.1, 0.6), limits=(1e-3, 1.5)),  # in radians; a right angle is 1.57
    "scale": Number(Range(16.0, 64.0), limits=(1.0, 1e3)),
    "hidden": Number(Categorical((512, 256, 1024)), limits=(1, 65_536)),
    "cosine_scale": Number(Range(8.0, 32.0), limits=(1e-2, 1e3)),
    "warmup": Number(Range(0.05, 0.3), limits=(0.01, 0.99)),
    "flat": Number(Range(0.5, 0.9), limits=(0.01, 0.99)),
    "drop_every": Number(Range(0.3, 0.7), limits=(0.01, 0.99)),
    "drop_to": Number(Categorical((0.1,)), limits=(1e-4, 0.99)),
}
"""The parameters of table entries. Names are unique across kinds of choice, so `--fix freeze_epochs=2` is unambiguous;
entries of one kind may share a parameter."""

DEFAULT_EPOCHS = 8
"""Number of epochs of a run, by default, where these are enough steps (see `xfer.lengths`)."""

COUNTED_IN_EPOCHS = frozenset({"freeze_epochs", "patience"})
"""Parameters that count epochs. Their ranges above are for `DEFAULT_EPOCHS`, and stretch with longer runs."""


def search_range(entry: str, parameter: str) -> Distribution:
    """Return what a sweep tries for a parameter of a table entry.

    >>> str(search_range("mixup", "alpha")), str(search_range("layer_decay", "decay"))
    ('0.2', '0.65..0.95')
    """
    row = PARAMETERS[parameter]
    distribution = row.search_by_entry.get(entry, row.search)
    assert distribution is not None, f"{entry} has no {parameter}"
    return distribution


def default_choice(kind: str) -> str:
    """Return the entry that a run takes by default.

    >>> default_choice("optimizer")
    'sgd'
    """
    return CHOICES[kind].search[0]


def default_number(name: str) -> float | None:
    """Return the default of a number of a recipe, for SGD where it depends on the optimizer.

    >>> default_number("weight_decay"), default_number("learning_rate"), default_number("clip_norm")
    (0.0001, 0.01, None)
    """
    if name == "learning_rate":
        return OPTIMIZERS[default_choice("optimizer")].default_learning_rate
    if name == "epochs":
        return DEFAULT_EPOCHS
    distribution = NUMBERS[name].search
    assert distribution is not None, f"{name} has no default"
    value = distribution.values[0] if isinstance(distribution, Categorical) else distribution.nearest(None)
    assert value is None or isinstance(value, int | float)
    return value
