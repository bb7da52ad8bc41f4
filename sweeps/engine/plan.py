"""Plan: one experiment, as its page says it and the command line may change it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from xfer.choices import Value
from xfer.objectives import Objective, parse_objectives

LIMITS: dict[str, tuple[int, int]] = {
    "trials": (1, 100_000),
    "epochs": (1, 100_000),
    "image_size": (8, 2_048),
    "keep_backbones": (2, 100),  # no sign that frozen features give is always right
    "finalists": (0, 100),
    "seeds": (1, 100),
    "seed": (0, 2**31),
}
"""What is within reason, both ends included."""


@dataclass(frozen=True)
class Plan:
    """One experiment: which data, which recipes, how long, and how sure one wants to be of the answer.

    A plan is only what is asked for; whether it can be done is found out by `prepare.prepare`.

    Raises:
        ValueError: a value beyond reason.
    """

    experiment: str
    """The page's name: `python -m sweeps.<experiment>`."""
    question: str
    """What the experiment answers, in one sentence."""
    source: str = ""
    """How the data are laid out: a name in `xfer.data.layouts.SOURCES`, or what the data look like unless given."""
    data: str = ""
    """Where the images are: a folder, a table's file, hf://owner/name or torchvision://NAME?root=DIR."""
    classes: tuple[str, ...] = ()
    """Those of the data that are to be told apart, by name, or a single number for the first so many; all unless
    given."""
    backbones: tuple[str, ...] = ("efficientnet_b0",)
    """timm's names of the pretrained networks."""
    keep_backbones: int = 3
    """How many of them go on to the search, where there are more (`screening`)."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Files by backbone; the hub's weights for those that are not named."""
    backbone_args: Mapping[str, Value] = field(default_factory=dict)
    """Further arguments of the networks, such as pad_type."""
    image_size: int | None = None
    """Side in pixels; what the first backbone was pretrained at unless given."""
    trials: int = 24
    epochs: int = 8
    strategies: tuple[str, ...] = ()
    """Those that compete; the default space's unless given."""
    edits: Mapping[str, str] = field(default_factory=dict)
    """Axes with other values than usual, as on the command line."""
    arms: tuple[Mapping[str, Value], ...] = ()
    """Explicit configurations in the place of a search: one trial each, axes that are not named as in
    `spaces.KNOWN_GOOD`."""
    advise: bool = True
    """Whether the known good recipes start with what the measured data call for (`xfer.advice.advisor`)."""
    warm_start: bool = False
    """Whether it begins with the best recipes of earlier sweeps on data that look alike (`warm_start`)."""
    objective: tuple[str, ...] = ("accuracy",)
    """What is searched for, ranked by and stopped by: names in `xfer.objectives.OBJECTIVES`, the one that decides
    first."""
    sampler: str = "tpe"
    scheduler: str = "asha"
    finalists: int = 3
    """How many of the best are run again on new seeds; 0 leaves the test part closed."""
    seeds: int = 3
    """How many new seeds each finalist gets."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must lie between {low} and {high}")
        if not self.backbones:
            raise ValueError("at least one backbone is needed")
        for name in self.weights:
            if name not in self.backbones:
                raise ValueError(f"weights are given for {name}, which is not among the backbones: {self.backbones}")
        if self.warm_start and self.arms:
            raise ValueError("a plan of explicit arms has no search that could be started warm: leave out warm_start")
        parse_objectives(",".join(self.objective))

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What `objective` names."""
        return parse_objectives(",".join(self.objective))
