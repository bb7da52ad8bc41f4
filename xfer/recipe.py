"""Recipe: everything that decides one training run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xfer import hashing
from xfer.choices import Choice, Value, choose
from xfer.hyperparameters import NUMBERS, default_choice
from xfer.methods.activations import ACTIVATIONS
from xfer.methods.augmentations import AUGMENTATIONS
from xfer.methods.batch_norm import BATCH_NORM_MODES
from xfer.methods.embedding_losses import EMBEDDING_LOSSES
from xfer.methods.freezing import HeadFirst
from xfer.methods.heads import HEADS
from xfer.methods.input_channels import INPUT_CHANNELS
from xfer.methods.losses import LOSSES
from xfer.methods.mixing import MIXINGS
from xfer.methods.optimizers import OPTIMIZERS
from xfer.methods.schedules import SCHEDULES
from xfer.methods.strategies import STRATEGIES, Strategy

CHOICE_TABLES: dict[str, Mapping[str, Callable[..., Any]]] = {
    "strategy": STRATEGIES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "augmentation": AUGMENTATIONS,
    "mixing": MIXINGS,
    "loss": LOSSES,
    "embedding_loss": EMBEDDING_LOSSES,
    "head": HEADS,
    "activation": ACTIVATIONS,
    "batch_norm": BATCH_NORM_MODES,
    "colour": INPUT_CHANNELS,
}
"""Every kind of choice that a recipe makes from a table, in the order in which people speak of them."""

DEFAULT_CHOICES: dict[str, str] = {
    kind: default_choice(kind) for kind in ("embedding_loss", "head", "activation", "batch_norm", "colour")
}
"""Choices that a recipe may leave out, with their defaults: the network as it was pretrained."""

LIMITS: dict[str, tuple[float, float]] = {name: row.limits for name, row in NUMBERS.items() if row.limits}
"""Smallest and largest accepted value of every number of a recipe."""

INTEGER_FIELDS = tuple(name for name, row in NUMBERS.items() if row.is_integer)
"""The numbers that must be integers."""

OPTIONAL_FIELDS = tuple(name for name, row in NUMBERS.items() if row.optional)
"""The numbers that may be None."""

CLOSED_FORM_VALUES: dict[str, Any] = {
    "optimizer": Choice("sgd"),
    "schedule": Choice("constant"),
    "augmentation": Choice("none"),
    "mixing": Choice("none"),
    "loss": Choice("cross_entropy"),
    "embedding_loss": Choice("none"),
    "head": Choice("linear"),
    "batch_norm": Choice("with_weights"),
    "learning_rate": 1.0,
    "weight_decay": 0.0,
    "batch_size": 64,
    "epochs": 1,
    "body_rate": 1.0,
    "clip_norm": None,
    "clip_value": None,
    "views": None,
}
"""What a recipe says whose strategy fits the head in one go: nothing of it has a say there, so it is the same for all,
and equal runs have equal recipes."""

SEED_FIELDS = ("seed", "draw")
"""The fields that a repetition changes: part of a recipe's `id`, not of its `key`."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides one training run: the same recipe on the same machine gives the same weights.

    Raises:
        ValueError: a value beyond reason, or two that contradict each other.
    """

    data: str
    """The pack's content hash."""
    classes: int
    image_size: int
    """Side of the square images, in pixels."""
    backbone: str
    """timm's name."""
    weights: str
    """The SHA-256 of the weights file; empty where the run starts from random weights."""
    strategy: Choice
    optimizer: Choice
    schedule: Choice
    augmentation: Choice
    mixing: Choice
    loss: Choice
    embedding_loss: Choice
    head: Choice
    activation: Choice
    batch_norm: Choice
    colour: Choice
    learning_rate: float
    """The peak rate: schedule and strategy only lower it."""
    weight_decay: float
    batch_size: int
    epochs: int
    body_rate: float = 1.0
    """The learning rate of everything below the head, as a share of the head's."""
    clip_norm: float | None = None
    """The largest global L2 norm of the gradient; None leaves it alone."""
    clip_value: float | None = None
    """The largest absolute value of any number of the gradient; None leaves it alone."""
    images_per_class: int | None = None
    """How many images of each class are trained on, at most; None takes all of the training part."""
    views: int | None = None
    """In how many versions each augmented training image is seen while the lowest block is frozen; None draws it anew
    in every epoch. Versions are the same for every recipe on these data, so what a frozen network makes of them is
    computed once."""
    backbone_args: tuple[tuple[str, Value], ...] = ()
    split_seed: int = 0
    """Decides the test part, where that is drawn."""
    seed: int = 0
    """Decides the new head's weights, the order of images and every augmentation."""
    draw: int = 0
    """Decides the validation part, where that is drawn."""

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value, kind = getattr(self, name), int if name in INTEGER_FIELDS else float
            if value is None and name in OPTIONAL_FIELDS:
                continue
            if value is None or not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name} is {value}; it must lie between {low:g} and {high:g}")
            if kind(value) != value:
                raise ValueError(f"{name} is {value}; a whole number is wanted")
            object.__setattr__(self, name, kind(value))  # 1 and 1.0 are one recipe, and must hash as one
        self._check_strategy()
        if self.clip_norm is not None and self.clip_value is not None:
            raise ValueError(
                f"the gradient is clipped by its norm ({self.clip_norm:g}) or by value ({self.clip_value:g}), not both"
            )
        if self.embedding_loss.name != "none" and self.mixing.name != "none":
            raise ValueError(
                f"embedding_loss {self.embedding_loss.name} needs one class an image, and mixing {self.mixing.name} "
                f"gives it two: take mixing none, or embedding_loss none"
            )
        if self.views is not None and self.mixing.name != "none":
            raise ValueError(
                f"views is {self.views}, but mixing {self.mixing.name} makes another image in every batch, of which "
                f"there are no fixed versions: take mixing none, or views none"
            )

    @property
    def last_unfreeze_epoch(self) -> int:
        """After how many epochs all that will ever move does: no run is judged before the epoch that follows."""
        after: int = self._strategy.pace.unfreezing_ends_after(self.epochs)
        return after

    @property
    def uses_gradient_steps(self) -> bool:
        """Whether anything is trained; where not, the head is fitted in one go and the run is over."""
        return self._strategy.steps

    @property
    def key(self) -> str:
        """The content hash without seed and draw: what repetitions of one recipe share."""
        return hashing.sha256_json({name: value for name, value in self.as_dict().items() if name not in SEED_FIELDS})

    @property
    def id(self) -> str:
        """The content hash of everything."""
        return hashing.sha256_json(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the inverse of `recipe_from_dict`."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        choices = {kind: plain[kind].as_dict() for kind in CHOICE_TABLES}
        return {**plain, **choices, "backbone_args": dict(self.backbone_args)}

    def with_seeds(self, seed: int, draw: int) -> Recipe:
        """The same recipe on another seed and another draw of the validation part."""
        return dataclasses.replace(self, seed=seed, draw=draw)

    @property
    def _strategy(self) -> Strategy:
        built: Strategy = self.strategy.build(STRATEGIES)
        return built

    def _check_strategy(self) -> None:
        strategy = self._strategy
        if strategy.pretrained != bool(self.weights):
            raise ValueError(
                f"strategy {self.strategy} starts from {'pretrained' if strategy.pretrained else 'random'} weights, "
                f"but the recipe names {'none' if strategy.pretrained else 'some'}"
            )
        if strategy.backbone not in (None, self.backbone):
            raise ValueError(f"strategy {self.strategy} brings {strategy.backbone}; the recipe says {self.backbone}")
        if strategy.clip_norm is not None and self.clip_norm is None:
            raise ValueError(f"strategy {self.strategy} clips the gradient's norm, but clip_norm is none")
        if self.last_unfreeze_epoch >= self.epochs:
            more = range(self.epochs + 1, int(LIMITS["epochs"][1]) + 1)
            enough = next(
                (epochs for epochs in more if strategy.pace.unfreezing_ends_after(epochs) < epochs), more.stop
            )
            raise ValueError(
                f"strategy {self.strategy} would never unfreeze in {self.epochs} epochs: it needs at least {enough}, "
                f"or else linear_probe is meant"
            )
        if self.body_rate != 1 and strategy.pace == HeadFirst(freeze_epochs=None):
            raise ValueError(
                f"body_rate is {self.body_rate:g}, but strategy {self.strategy} trains nothing below the head: leave "
                f"it at 1"
            )
        for name, value in CLOSED_FORM_VALUES.items():
            if not strategy.steps and getattr(self, name) != value:
                raise ValueError(
                    f"strategy {self.strategy} fits a linear head in one go and takes no steps: leave {name} at "
                    f"{value}, not {getattr(self, name)}"
                )
        if self.batch_norm.name == "frozen" and not strategy.pretrained:
            raise ValueError(
                f"strategy {self.strategy} starts from random weights, whose batch norm statistics are those of no "
                f"image: batch_norm frozen needs pretrained ones"
            )


def closed_form_values() -> dict[str, Any]:
    """`CLOSED_FORM_VALUES` as plain data, for `recipe_from_dict`."""
    return {name: value.as_dict() if isinstance(value, Choice) else value for name, value in CLOSED_FORM_VALUES.items()}


def recipe_from_dict(plain: Mapping[str, Any]) -> Recipe:
    """A Recipe from plain data: choices as dicts with `name` and parameters, which are completed and checked.

    Choices in `DEFAULT_CHOICES` may be left out.

    Raises:
        ValueError: an unknown name, with the nearest known ones, or what `Recipe` refuses.
    """
    usual = {kind: {"name": name} for kind, name in DEFAULT_CHOICES.items()}
    choices = {kind: choose(kind, table, **{**usual, **plain}[kind]) for kind, table in CHOICE_TABLES.items()}
    args = tuple(sorted(plain.get("backbone_args", {}).items()))
    return Recipe(**{**plain, **choices, "backbone_args": args})
