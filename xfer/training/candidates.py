"""Candidates: the weights that a run may end with, and which of them are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xfer.recipe import Recipe
from xfer.records import Evaluation, Kept
from xfer.seeding import derive_seed
from xfer.training.networks import build_network

Weights = Mapping[str, Tensor]
"""Entries of a network's state by name."""


@dataclass(frozen=True)
class Selection:
    """The candidate that was kept, and the evaluations on the validation part that decided."""

    kept: Kept
    val: Evaluation
    """Of the weights that were kept."""
    last: Evaluation
    """Of the weights after the last step."""
    averaged: Evaluation | None
    """Of the averaged weights; None if there are none."""


def keep_best(
    model: nn.Module,
    names: Collection[str],
    last: Evaluation,
    evaluate: Callable[[], Evaluation],
    average: Callable[[], None] | None,
    start: Callable[[], Weights],
    start_accuracy: float,
) -> Selection:
    """Give a network the best of three candidates on validation: its last weights, their average, or its start.

    The best has the highest accuracy, then the lowest loss; in a tie the last weights come before the average, and the
    average before the start. So a run never ends below where it began. Accuracy decides whatever the objective of a
    sweep: the other metrics of a run are those of the weights that are kept. Single epochs are no candidates: the best
    of many validations is partly luck, and would favour long runs.

    Args:
        model: the network, with its last weights.
        names: entries of its state that training changes.
        last: evaluation of the last weights.
        evaluate: evaluates the network's current weights.
        average: replaces the network's weights by their average; None if there is none.
        start: returns the entries before the first step; called only if they may be the best.
        start_accuracy: their validation accuracy.
    """
    weights: dict[Kept, Weights] = {"last": _snapshot(model, names)}
    evaluations: dict[Kept, Evaluation] = {"last": last}
    if average is not None:
        average()
        weights["averaged"], evaluations["averaged"] = _snapshot(model, names), evaluate()
    if start_accuracy >= max(_score(evaluation)[0] for evaluation in evaluations.values()):
        weights["start"] = start()
        model.load_state_dict(weights["start"], strict=False)
        evaluations["start"] = evaluate()
    kept = max(evaluations, key=lambda name: _score(evaluations[name]))  # the first of equals
    model.load_state_dict(weights[kept], strict=False)
    return Selection(kept, evaluations[kept], last, evaluations.get("averaged"))


def start_weights(recipe: Recipe, file: Path | None, names: Collection[str], fitted_head: Weights) -> dict[str, Tensor]:
    """Build a run's network again as it was before the first step, which takes less memory than to hold a copy.

    Args:
        recipe: of the run.
        file: its weights.
        names: entries of the network's state to return.
        fitted_head: the head, if it was fitted before the first step; empty if not.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.seed, "weights"))
        state = build_network(recipe, file).state_dict()
    return {**{name: state[name] for name in names}, **fitted_head}


def head_weights(model: Any) -> dict[str, Tensor]:
    """Return copies of a network's head by their names in its state."""
    head = {id(parameter) for parameter in model.get_classifier().parameters()}
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters() if id(tensor) in head}


def _snapshot(model: nn.Module, names: Collection[str]) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items() if name in names}


def _score(evaluation: Evaluation) -> tuple[float, float]:
    """Higher is better; weights without a finite loss are worse than all others."""
    return (evaluation.accuracy, -evaluation.loss) if math.isfinite(evaluation.loss) else (-math.inf, -math.inf)
