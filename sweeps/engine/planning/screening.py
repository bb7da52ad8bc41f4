"""Screening: before a search, heads in closed form say which backbones go on, and with which head `lp_ft` starts.

What a frozen network makes of the images is computed once, and a head on it takes a second: so every backbone is tried,
under every penalty, and only the best few are fine-tuned. Each head is a trial of its own, with recipe and record, and
what was decided is written down before the search begins. How a network serves frozen is only a sign of how it will
serve fine-tuned, so at least two go on.
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
"""The penalties that are tried, by strategy."""

HEAD_FIRST_STRATEGY, INITIAL_HEAD = "lp_ft", "logistic_probe"
"""The strategy that starts from another one's head, and that one."""


def drops_backbones(prepared: Prepared) -> bool:
    """Whether a sweep has more backbones than are to go on."""
    return _is_free(prepared) and len(_backbones(prepared)) > prepared.plan.keep_backbones


def selects_initial_head(prepared: Prepared) -> bool:
    """Whether a sweep has to find out which head `lp_ft` starts from: nobody said which penalties to try."""
    asked = "penalty" in prepared.plan.edits
    return _is_free(prepared) and HEAD_FIRST_STRATEGY in prepared.space.strategies() and not asked


def describe(prepared: Prepared) -> dict[str, Any]:
    """What plan.json says of it; empty for a sweep without screening."""
    if drops_backbones(prepared):
        return {
            "keep": prepared.plan.keep_backbones,
            "heads": {name: list(each) for name, each in SCREENING_PENALTIES.items()},
        }
    if selects_initial_head(prepared):
        return {"heads": {INITIAL_HEAD: list(SCREENING_PENALTIES[INITIAL_HEAD])}}
    return {}


def screening_trials(prepared: Prepared) -> list[Trial]:
    """Every head on every pretrained backbone that can have it, `screen-00` and on; none without screening.

    Raises:
        ValueError: a backbone can have none of them, so that nothing would be known of it.
    """
    tried = describe(prepared).get("heads", {})
    recipes = [recipe for backbone in _backbones(prepared) if tried for recipe in _heads(prepared, backbone, tried)]
    return [Trial(f"screen-{number:02d}", "screen", {}, recipe.as_dict()) for number, recipe in enumerate(recipes)]


def screening_decision(prepared: Prepared, records: Iterable[Record]) -> dict[str, Any]:
    """What follows from the records of all heads, as plain data.

    `kept` and `dropped` are backbones, the best first by the best of their heads, in the objective `by`; one whose
    heads all failed comes last. For a strategy that none of the best can do, the best one that can is kept too.
    `penalties` says by backbone which `logistic_probe` was the best.
    """
    objective = screening_objective(prepared.plan.objectives)
    finished = [record for record in records if record.phase == "screen" and record.status == "finished"]
    best = {
        backbone: sorted(
            (record for record in finished if record.recipe["backbone"] == backbone),
            key=lambda record: (-selection.final_score(record, objective), record.epochs[-1].val_loss),
        )
        for backbone in _backbones(prepared)
    }
    order = sorted(
        (name for name in best if best[name]), key=lambda name: -selection.final_score(best[name][0], objective)
    )
    order += [name for name in best if not best[name]]
    kept = _kept(prepared, order)
    return {
        "by": objective.name,
        "kept": kept,
        "dropped": [name for name in order if name not in kept],
        "penalties": {name: penalty for name in order if (penalty := _penalty(best[name])) is not None},
    }


def narrow_space(prepared: Prepared, decision: Mapping[str, Any]) -> Prepared:
    """The sweep with the space that a decision leaves: the kept backbones, the best first, each with its best head."""
    space = prepared.space
    kept = tuple(str(name) for name in decision["kept"])
    possible = {name: dict(strategies) for name, strategies in space.possible.items()}
    if selects_initial_head(prepared):
        for name, penalty in decision["penalties"].items():
            if HEAD_FIRST_STRATEGY in possible.get(name, {}):
                possible[name][HEAD_FIRST_STRATEGY] = {"penalty": Categorical((penalty,))}
    axes = {**space.axes, "backbone": Categorical(kept)}
    return replace(prepared, space=replace(space, axes=axes, possible=possible))


def remaining_params(space: Space, params: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Those of some free choices whose backbone is left, in terms of the space as it is now, each once."""
    found: list[dict[str, Any]] = []
    for choices in params:
        asked = NearestTrial(choices)
        space.suggest(asked)
        if asked.suggested.get("backbone") == choices.get("backbone") and asked.suggested not in found:
            found.append(asked.suggested)
    return found


def screening_objective(objectives: Sequence[Objective]) -> Objective:
    """What backbones are compared by: balanced accuracy where that is what decides, else accuracy.

    A head in closed form is no faster or slower than another, and the outputs of one kind are no log-probabilities.
    """
    return objectives[0] if objectives[0] == OBJECTIVES["balanced_accuracy"] else ACCURACY


def summary_line(decision: Mapping[str, Any]) -> str:
    """A decision in a line."""
    kept, dropped = ", ".join(decision["kept"]), ", ".join(decision["dropped"])
    heads = "; ".join(f"{name} {penalty:g}" for name, penalty in decision["penalties"].items())
    left_out = f"{dropped} {'is' if len(decision['dropped']) == 1 else 'are'} left out"
    return f"frozen features speak for {kept}; {left_out}" if dropped else f"penalty of the best head: {heads}"


def _is_free(prepared: Prepared) -> bool:
    # A list of configurations is gone through as it was asked for.
    return not prepared.plan.arms and prepared.plan.sampler not in ENUMERATING_SAMPLERS


def _backbones(prepared: Prepared) -> list[str]:
    tried = domain_values(prepared.space.axes["backbone"])
    return [each.name for each in prepared.backbones if each.file is not None and each.name in tried]


def _kept(prepared: Prepared, order: Sequence[str]) -> list[str]:
    possible, keep = prepared.space.possible, prepared.plan.keep_backbones
    kept = set(order[:keep])
    for strategy in prepared.space.strategies():
        able = [name for name in order if strategy in possible.get(name, {strategy: {}})]
        if able and kept.isdisjoint(able):
            kept.add(able[0])
    return [name for name in order if name in kept]


def _on(space: Space, how: str) -> Space:
    """The space of one strategy with its usual penalties, whether or not it competes."""
    return replace(
        space, axes={**space.axes, "strategy": Categorical((how,))}, parameters=PARAMETER_RANGES, possible={}
    )


def _heads(prepared: Prepared, backbone: str, tried: Mapping[str, Sequence[float]]) -> list[Recipe]:
    """The heads that a backbone can have; a ValueError where there is none."""
    found, refusals = [], []
    for how, penalties in tried.items():
        space = _on(prepared.space, how)
        heads = [prepared.recipe(space.configured({"backbone": backbone, "penalty": each})) for each in penalties]
        try:
            networks.check_network(heads[0])
            found += heads
        except ValueError as error:
            refusals.append(str(error))
    if not found:
        raise ValueError(
            f"backbone {backbone} cannot be compared with the others by heads on its frozen features ({refusals[0]}): "
            f"leave it out, or raise --keep-backbones"
        )
    return found


def _penalty(heads: Sequence[Record]) -> Value:
    """That of the first `logistic_probe`; None where there is none."""
    penalties = (
        head.recipe["strategy"]["penalty"] for head in heads if head.recipe["strategy"]["name"] == INITIAL_HEAD
    )
    return next(penalties, None)
