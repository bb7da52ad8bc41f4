"""Recipe: everything that determines one training run."""

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
from xfer.methods.balance import BALANCES
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
    "balance": BALANCES,
    "embedding_loss": EMBEDDING_LOSSES,
    "head": HEADS,
    "activation": ACTIVATIONS,
    "batch_norm": BATCH_NORM_MODES,
    "colour": INPUT_CHANNELS,
}
"""Tables that a recipe chooses from, by kind of choice, in display order."""

DEFAULT_CHOICES: dict[str, str] = {
    kind: default_choice(kind) for kind in ("balance", "embedding_loss", "head", "activation", "batch_norm", "colour")
}
"""Choices that a recipe may leave out, with their defaults: the data and the network as they are."""

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
    "balance": Choice("none"),
    "embedding_loss": Choice("none"),
    "head": Choice("linear"),
    "batch_norm": Choice("with_weights"),
    "learning_rate": 1.0,
    "weight_decay": 0.0,
    "batch_size": 64,
    "epochs": 1,
    "body_rate": 1.0,
    "drop_path": 0.0,
    "clip_norm": None,
    "clip_value": None,
    "views": None,
}
"""Required values for strategies that fit the head in closed form. They have no effect there, so they are the same
for all recipes: equal runs have equal recipes."""

SEED_FIELDS = ("seed", "draw")
"""Fields that repetitions change: part of a recipe's `id`, but not of its `key`."""


@dataclass(frozen=True)
class Recipe:
    """Everything that determines one training run: the same recipe on the same machine gives the same weights.

    Raises:
        ValueError: If a value is outside its range, or two values contradict each other.
    """

    data: str
    """Content hash of the pack."""
    classes: int
    image_size: int
    """Side of the square images, in pixels."""
    backbone: str
    """timm's name of the network."""
    weights: str
    """SHA-256 of the weights file; empty if the run starts from random weights."""
    strategy: Choice
    optimizer: Choice
    schedule: Choice
    augmentation: Choice
    mixing: Choice
    loss: Choice
    balance: Choice
    embedding_loss: Choice
    head: Choice
    activation: Choice
    batch_norm: Choice
    colour: Choice
    learning_rate: float
    """Peak learning rate; schedule and strategy only lower it."""
    weight_decay: float
    batch_size: int
    epochs: int
    body_rate: float = 1.0
    """Learning rate of everything below the head, as a fraction of the head's."""
    drop_path: float = 0.0
    """Probability of skipping the highest block in training (stochastic depth), falling linearly to 0 at the lowest."""
    clip_norm: float | None = None
    """Maximum global L2 norm of the gradient; None for no clipping."""
    clip_value: float | None = None
    """Maximum absolute value of each gradient entry; None for no clipping."""
    images_per_class: int | None = None
    """Maximum number of training images per class; None for all of them."""
    views: int | None = None
    """Number of fixed augmented views of each training image that are used while the lowest block is frozen; None
    draws new augmentations in every epoch. The views are the same for every recipe on these data, so the features of
    a frozen network are computed only once."""
    eval_size: int | None = None
    """Side of the images in evaluation and prediction, in pixels; None for `image_size`. Random crops make objects look
    larger in training than in evaluation, and a larger evaluation size makes up for it: FixRes (Touvron et al. 2019,
    https://arxiv.org/abs/1906.06423), without its fine-tuning at the second size."""
    backbone_args: tuple[tuple[str, Value], ...] = ()
    split_seed: int = 0
    """Determines the test part, if that is drawn at random."""
    seed: int = 0
    """Determines the new head's weights, the order of the images and all augmentations."""
    draw: int = 0
    """Determines the validation part, if that is drawn at random."""

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value, kind = getattr(self, name), int if name in INTEGER_FIELDS else float
            if value is None and name in OPTIONAL_FIELDS:
                continue
            if value is None or not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name} must be between {low:g} and {high:g}, got {value}")
            if kind(value) != value:
                raise ValueError(f"{name} must be an integer, got {value}")
            object.__setattr__(self, name, kind(value))  # 1 and 1.0 are the same recipe, so they need the same hash
        if self.eval_size == self.image_size:
            object.__setattr__(self, "eval_size", None)  # the same recipe, so it needs the same hash
        self._check_strategy()
        if self.clip_norm is not None and self.clip_value is not None:
            raise ValueError(
                f"clip_norm and clip_value cannot be combined, got {self.clip_norm:g} and {self.clip_value:g}: set one "
                f"of them to none"
            )
        if self.embedding_loss.name != "none" and self.mixing.name != "none":
            raise ValueError(
                f"embedding_loss {self.embedding_loss.name} needs one class per image, but mixing {self.mixing.name} "
                f"gives it two: use mixing none or embedding_loss none"
            )
        if self.views is not None and self.mixing.name != "none":
            raise ValueError(
                f"views is {self.views}, but mixing {self.mixing.name} creates new images in every batch, so there are "
                f"no fixed views: use mixing none or views none"
            )

    @property
    def evaluation_size(self) -> int:
        """Side of the images in evaluation and prediction, in pixels."""
        return self.eval_size or self.image_size

    @property
    def last_unfreeze_epoch(self) -> int:
        """Number of epochs after which every parameter that will ever move does.

        No run is compared with others before the epoch that follows.
        """
        epoch: int = self._strategy.pace.unfreezing_ends_after(self.epochs)
        return epoch

    @property
    def uses_gradient_steps(self) -> bool:
        """Whether gradient steps are taken; if not, fitting the head is the whole run."""
        return self._strategy.steps

    @property
    def key(self) -> str:
        """Content hash without seed and draw, shared by repetitions of the recipe."""
        return hashing.sha256_json({name: value for name, value in self.as_dict().items() if name not in SEED_FIELDS})

    @property
    def id(self) -> str:
        """Content hash of all fields."""
        return hashing.sha256_json(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON, the inverse of `recipe_from_dict`."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        choices = {kind: plain[kind].as_dict() for kind in CHOICE_TABLES}
        if plain["eval_size"] is None:
            del plain["eval_size"]  # so that recipes from before this field keep their hashes
        return {**plain, **choices, "backbone_args": dict(self.backbone_args)}

    def with_seeds(self, seed: int, draw: int) -> Recipe:
        """Returns the same recipe with another seed and another draw of the validation part."""
        return dataclasses.replace(self, seed=seed, draw=draw)

    @property
    def _strategy(self) -> Strategy:
        built: Strategy = self.strategy.build(STRATEGIES)
        return built

    def _check_strategy(self) -> None:
        strategy = self._strategy
        if strategy.pretrained != bool(self.weights):
            raise ValueError(
                f"strategy {self.strategy} needs pretrained weights, but the recipe names none"
                if strategy.pretrained
                else f"strategy {self.strategy} starts from random weights, but the recipe names pretrained ones: "
                f"leave weights empty"
            )
        if strategy.backbone not in (None, self.backbone):
            raise ValueError(f"strategy {self.strategy} needs backbone {strategy.backbone}, got {self.backbone}")
        if strategy.clip_norm is not None and self.clip_norm is None:
            raise ValueError(f"strategy {self.strategy} clips the gradient norm, so clip_norm must not be none")
        if self.last_unfreeze_epoch >= self.epochs:
            longer = range(self.epochs + 1, int(LIMITS["epochs"][1]) + 1)
            min_epochs = next(
                (epochs for epochs in longer if strategy.pace.unfreezing_ends_after(epochs) < epochs), longer.stop
            )
            raise ValueError(
                f"strategy {self.strategy} would never unfreeze in {self.epochs} epochs: use at least {min_epochs} "
                f"epochs, or strategy linear_probe"
            )
        if self.body_rate != 1 and strategy.pace == HeadFirst(freeze_epochs=None):
            raise ValueError(
                f"body_rate is {self.body_rate:g}, but strategy {self.strategy} trains nothing below the head: leave "
                f"body_rate at 1"
            )
        if self.drop_path and strategy.pace == HeadFirst(freeze_epochs=None):
            raise ValueError(
                f"drop_path is {self.drop_path:g}, but strategy {self.strategy} trains nothing below the head: leave "
                f"drop_path at 0"
            )
        if self.drop_path and "drop_path_rate" in dict(self.backbone_args):
            raise ValueError(
                f"drop_path is {self.drop_path:g}, but the arguments of the network set drop_path_rate too: leave out "
                f"one of them"
            )
        for name, value in CLOSED_FORM_VALUES.items():
            if not strategy.steps and getattr(self, name) != value:
                raise ValueError(
                    f"strategy {self.strategy} fits a linear head in closed form and takes no gradient steps: leave "
                    f"{name} at {value}, got {getattr(self, name)}"
                )
        if self.batch_norm.name == "frozen" and not strategy.pretrained:
            raise ValueError(
                f"strategy {self.strategy} starts from random weights, but batch_norm frozen needs the statistics of "
                f"pretrained ones: use batch_norm with_weights"
            )


def closed_form_values() -> dict[str, Any]:
    """Returns `CLOSED_FORM_VALUES` as plain data, for `recipe_from_dict`."""
    return {name: value.as_dict() if isinstance(value, Choice) else value for name, value in CLOSED_FORM_VALUES.items()}


def recipe_from_dict(plain: Mapping[str, Any]) -> Recipe:
    """Builds a Recipe from plain data.

    Args:
        plain: the fields of a Recipe. Choices are dicts with `name` and some of the parameters; the others get their
            defaults. Choices in `DEFAULT_CHOICES` may be omitted.

    Raises:
        ValueError: If a name is unknown (the nearest known ones are suggested), or `Recipe` rejects the values.
    """
    defaults = {kind: {"name": name} for kind, name in DEFAULT_CHOICES.items()}
    choices = {kind: choose(kind, table, **{**defaults, **plain}[kind]) for kind, table in CHOICE_TABLES.items()}
    args = tuple(sorted(plain.get("backbone_args", {}).items()))
    return Recipe(**{**plain, **choices, "backbone_args": args})
