"""Run options: limits and settings of one start of a sweep."""

from __future__ import annotations

from dataclasses import dataclass, field

from sweeps.engine.resources.prices import UNKNOWN_PRICES, Prices
from sweeps.engine.trials.trainable import Resources, Trainable, train_trial


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Limits and settings of this start of a sweep. They do not change the recipes."""

    resources: Resources = field(default_factory=Resources)
    """Resources of each trial."""
    shares_gpus: bool = False
    """Whether trials share GPUs as far as memory probes allow (`gpu_sharing`), instead of each getting `resources`."""
    concurrent: int | None = None
    """Maximum number of concurrent trials; None for as many as fit."""
    seconds: float | None = None
    """Time budget; None for no limit."""
    prices: Prices = UNKNOWN_PRICES
    """Prices of machines, from `--prices`."""
    cost_budget: float | None = None
    """In US dollars, over all starts of the sweep; None for no limit."""
    tracking_uri: str
    """URI of MLflow: a database (`tracking.default_tracking_uri`) or a server."""
    trainable: Trainable = train_trial
    """Function that runs in a trial's process; replaced only to measure the overhead of everything else."""
