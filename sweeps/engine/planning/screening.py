"""Screening: before a search, closed-form heads select the backbones to search, and the initial head of `lp_ft`.

The features of each frozen backbone are computed once, and a head on them takes a second. So every backbone is tried
with every penalty, and only the best few are fine-tuned. Each head is a trial with its own recipe and record, and the
decision is stored before the search begins. Accuracy on frozen features is only an indication of accuracy after
fine-tuning, so at least two backbones are kept. Of the panel of `--backbone auto`, the network with the highest
published accuracy on ImageNet is always among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sweeps.engine import selection
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.samplers.ask_tell import ENUMERATING_SAMPLERS
from sweeps.engine.search_space.defaults import PARAMETER_RANGES
from sweeps.engine.search_space.distributions import domain_values
from sweeps.engine.search_space.space import Space
from sweeps.engine.search_space.suggest import NearestTrial
from sweeps.engine.storage.store import Trial
from sweeps.reporting.screening import panel_line
from xfer.choices import Value
from xfer.hyperparameters import Categorical
from xfer.objectives import ACCURACY, OBJECTIVES, Objective
from xfer.recipe import Recipe
from xfer.records import Record
from xfer.training import networks

SCREENING_PENALTIES: dict[str, tuple[float, ...]] = {
    "logistic_probe": (0.01, 0.1, 1.0, 10.0, 100.0),
    "ridge_probe": (1.0, 10.0, 100.0, 1_000.0, 10_000.0),
}
"""Penalties that are tried, by strategy."""

HEAD_FIRST_STRATEGY, INITIAL_HEAD = "lp_ft", "logistic_probe"
"""Strategy that starts from the head of another one, and that other one."""


def drops_backbones(prepared: Prepared) -> bool:
    """Return whether a sweep has more backbones than it keeps."""
    return _samples_freely(prepared) and len(pretrained_backbones(prepared)) > prepared.plan.keep_backbones


def compares_backbones(prepared: Prepared) -> bool:
    """Return whether backbones are compared by heads: if some are dropped, or if they are a panel (`panel`)."""
    is_panel = bool(prepared.panel) and _samples_freely(prepared) and len(pretrained_backbones(prepared)) > 1
    return drops_backbones(prepared) or is_panel


def selects_initial_head(prepared: Prepared) -> bool:
    """Return whether the screening selects the head that `lp_ft` starts from; not if penalties were given."""
    penalties_given = "penalty" in prepared.plan.edits
    return _samples_freely(prepared) and HEAD_FIRST_STRATEGY in prepared.space.strategies() and not penalties_given


def pretrained_backbones(prepared: Prepared) -> list[str]:
    """Return the names of the backbones that compete and have pretrained weights."""
    names = domain_values(prepared.space.axes["backbone"])
    return [backbone.name for backbone in prepared.backbones if backbone.file is not None and backbone.name in names]


def initial_head_recipe(prepared: Prepared, backbone: str) -> Recipe:
    """Return the recipe of a `logistic_probe` on a backbone, whether or not the strategy competes.

    Raises:
        ValueError: the backbone does not support it.
    """
    space = _single_strategy_space(prepared.space, INITIAL_HEAD)
    recipe = prepared.recipe(space.configured({"backbone": backbone}))
    networks.check_network(recipe)
    return recipe


def describe(prepared: Prepared) -> dict[str, Any]:
    """Return the screening settings for plan.json; empty for a sweep without screening."""
    if compares_backbones(prepared):
        return {
            "keep": prepared.plan.keep_backbones,
            "heads": {strategy: list(penalties) for strategy, penalties in SCREENING_PENALTIES.items()},
        }
    if selects_initial_head(prepared):
        return {"heads": {INITIAL_HEAD: list(SCREENING_PENALTIES[INITIAL_HEAD])}}
    return {}


def screening_trials(prepared: Prepared) -> list[Trial]:
    """Return one trial per head and pretrained backbone that supports it, named `screen-00`, `screen-01`, ...

    Returns:
        The trials, backbone by backbone; none for a sweep without screening.

    Raises:
        ValueError: a backbone supports none of the heads, so it cannot be compared.
    """
    heads = describe(prepared).get("heads", {})
    recipes = [
        recipe
        for backbone in pretrained_backbones(prepared)
        if heads
        for recipe in _head_recipes(prepared, backbone, heads)
    ]
    return [Trial(f"screen-{number:02d}", "screen", {}, recipe.as_dict()) for number, recipe in enumerate(recipes)]


def screening_decision(prepared: Prepared, records: Iterable[Record]) -> dict[str, Any]:
    """Return the decision that follows from the records of all heads, as plain data.

    Returns:
        `by`: the objective. `kept` and `dropped`: backbones, ranked by their best head; those whose heads all failed
        come last. For a strategy that none of the best supports, the best backbone that does is kept as well.
        `penalties`: the penalty of the best `logistic_probe`, by backbone. For a panel, `best_frozen` and
        `best_on_imagenet`, which are both kept; the second is None if no accuracy on ImageNet is known.
    """
    objective = screening_objective(prepared.plan.objectives)
    finished = [record for record in records if record.phase == "screen" and record.status == "finished"]
    best = {
        backbone: sorted(
            (record for record in finished if record.recipe["backbone"] == backbone),
            key=lambda record: (-selection.final_score(record, objective), record.epochs[-1].val_loss),
        )
        for backbone in pretrained_backbones(prepared)
    }
    order = sorted(
        (name for name in best if best[name]), key=lambda name: -selection.final_score(best[name][0], objective)
    )
    order += [name for name in best if not best[name]]
    kept = _kept_backbones(prepared, order)
    panel_best = {"best_frozen": order[0], "best_on_imagenet": prepared.panel.get("best_on_imagenet")}
    return {
        "by": objective.name,
        **(panel_best if prepared.panel and len(order) > 1 else {}),
        "kept": kept,
        "dropped": [name for name in order if name not in kept],
        "penalties": {name: penalty for name in order if (penalty := _best_penalty(best[name])) is not None},
    }


def narrow_space(prepared: Prepared, decision: Mapping[str, Any]) -> Prepared:
    """Return the sweep with the space that a decision leaves: the kept backbones, best first, with their best heads."""
    space = prepared.space
    kept = tuple(str(name) for name in decision["kept"])
    possible = {name: dict(strategies) for name, strategies in space.possible.items()}
    if selects_initial_head(prepared):
        for name, penalty in decision["penalties"].items():
            if HEAD_FIRST_STRATEGY in possible.get(name, {}):
                possible[name][HEAD_FIRST_STRATEGY] = {"penalty": Categorical((penalty,))}
            if INITIAL_HEAD in possible.get(name, {}):  # begins with the best penalty; the others compete
                others = (other for other in SCREENING_PENALTIES[INITIAL_HEAD] if other != penalty)
                possible[name][INITIAL_HEAD] = {"penalty": Categorical((penalty, *others))}
    axes = {**space.axes, "backbone": Categorical(kept)}
    return replace(prepared, space=replace(space, axes=axes, possible=possible))


def remaining_params(space: Space, params: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Translate sampler parameters into a narrowed space.

    Args:
        space: the narrowed space.
        params: sampler parameters in the original space.

    Returns:
        The nearest parameters in the narrowed space, without duplicates and without those of dropped backbones.
    """
    remaining: list[dict[str, Any]] = []
    for choices in params:
        nearest = NearestTrial(choices)
        space.suggest(nearest)
        if nearest.suggested.get("backbone") == choices.get("backbone") and nearest.suggested not in remaining:
            remaining.append(nearest.suggested)
    return remaining


def screening_objective(objectives: Sequence[Objective]) -> Objective:
    """Return the objective that backbones are compared by: balanced accuracy if it ranks the sweep, else accuracy.

    Closed-form heads do not differ in speed, and the outputs of `ridge_probe` are not log-probabilities, so the other
    objectives do not apply.
    """
    return objectives[0] if objectives[0] == OBJECTIVES["balanced_accuracy"] else ACCURACY


def summary_line(decision: Mapping[str, Any]) -> str:
    """Return a decision as one line of text."""
    kept, dropped = ", ".join(decision["kept"]), ", ".join(decision["dropped"])
    if "best_frozen" in decision:
        return f"{panel_line(decision)}; fine-tuned: {kept}; left out: {dropped or 'none'}"
    heads = "; ".join(f"{name} {penalty:g}" for name, penalty in decision["penalties"].items())
    left_out = f"{dropped} {'is' if len(decision['dropped']) == 1 else 'are'} left out"
    return f"frozen features speak for {kept}; {left_out}" if dropped else f"penalty of the best head: {heads}"


def _samples_freely(prepared: Prepared) -> bool:
    # Explicit arms and grids are run as they are.
    return not prepared.plan.arms and prepared.plan.sampler not in ENUMERATING_SAMPLERS


def _kept_backbones(prepared: Prepared, order: Sequence[str]) -> list[str]:
    possible, keep = prepared.space.possible, prepared.plan.keep_backbones
    kept = set(order[:keep])
    best_on_imagenet = str(prepared.panel.get("best_on_imagenet"))
    if best_on_imagenet in order and best_on_imagenet not in kept:  # heads favour networks made for frozen features
        kept = {*order[: keep - 1], best_on_imagenet}
    for strategy in prepared.space.strategies():
        able = [name for name in order if strategy in possible.get(name, {strategy: {}})]
        if able and kept.isdisjoint(able):
            kept.add(able[0])
    return [name for name in order if name in kept]


def _single_strategy_space(space: Space, strategy: str) -> Space:
    """Return the space of one strategy with its default penalties, whether or not it competes."""
    axes = {**space.axes, "strategy": Categorical((strategy,))}
    return replace(space, axes=axes, parameters=PARAMETER_RANGES, possible={})


def _head_recipes(prepared: Prepared, backbone: str, heads: Mapping[str, Sequence[float]]) -> list[Recipe]:
    """Return the recipes of the heads that a backbone supports; a ValueError if it supports none."""
    supported, refusals = [], []
    for strategy, penalties in heads.items():
        space = _single_strategy_space(prepared.space, strategy)
        recipes = [
            prepared.recipe(space.configured({"backbone": backbone, "penalty": penalty})) for penalty in penalties
        ]
        try:
            networks.check_network(recipes[0])
            supported += recipes
        except ValueError as error:
            refusals.append(str(error))
    if not supported:
        raise ValueError(
            f"backbone {backbone} cannot be compared with the others by heads on its frozen features ({refusals[0]}): "
            f"leave it out, or raise --keep-backbones"
        )
    return supported


def _best_penalty(records: Sequence[Record]) -> Value:
    """Return the penalty of the first `logistic_probe`; None if there is none."""
    penalties = (
        record.recipe["strategy"]["penalty"] for record in records if record.recipe["strategy"]["name"] == INITIAL_HEAD
    )
    return next(penalties, None)
