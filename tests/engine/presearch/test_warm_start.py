"""Warm start: a new sweep first tries the best recipes from similar data, selected on validation and kept for good."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from sweeps.engine import selection
from sweeps.engine.launch import claim_plan
from sweeps.engine.plan import Plan
from sweeps.engine.planning.plan_file import PlanChangedError, default_name, describe_plan, plan_differences
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.presearch import advice
from sweeps.engine.presearch.dataset_distance import MAX_DISTANCE, DatasetView
from sweeps.engine.presearch.warm_start import (
    MAX_TOTAL,
    Neighbour,
    PastSweep,
    nearest_sweeps,
    read_sweep,
    summary_line,
    transferred_configs,
    translate_recipe,
    warm_start_params,
)
from sweeps.engine.samplers.ask_tell import AskTellSampler
from sweeps.engine.search_space.overrides import space_for
from sweeps.engine.search_space.space import Space
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.sweep import Sweep
from sweeps.engine.trials.run_options import RunOptions
from tests.conftest import BACKBONE
from tests.engine.conftest import a_plan, a_recipe, a_record, an_evaluation, write_noise_images
from tests.engine.presearch.test_dataset_distance import DOGS_VS_CATS, HYMENOPTERA, QUICKDRAW
from xfer.data.image_folder import folder
from xfer.data.pack import build_pack
from xfer.hyperparameters import Categorical
from xfer.records import Record

WEIGHTS = {BACKBONE: "w" * 64}


@pytest.fixture
def space() -> Space:
    return space_for([BACKBONE], 6)


def past_sweep(name: str = "earlier", *best: Record, **changes: Any) -> PastSweep:
    fields = {"data": (name, 200), "seed": 0, "objective": ("accuracy",), "view": DOGS_VS_CATS}
    return PastSweep(name=name, best=best or (a_record("0003"),), **{**fields, **changes})


CURRENT = dataclasses.replace(past_sweep("mine", view=HYMENOPTERA), best=())


def record_with_rate(trial: str, rate: float, **changes: Any) -> Record:
    """A record whose recipe is identified by its learning rate."""
    return a_record(trial, recipe=a_recipe(learning_rate=rate, **changes))


# --- which sweeps ----------------------------------------------------------------------------------------------------


def test_sweeps_are_ordered_by_distance_and_the_same_data_is_nearest() -> None:
    same = past_sweep("same", data=CURRENT.data, view=None)
    neighbours = nearest_sweeps(CURRENT, [past_sweep("sketches", view=QUICKDRAW), past_sweep("dogs"), same])
    assert [neighbour.sweep.name for neighbour in neighbours] == ["same", "dogs", "sketches"]
    distances = [neighbour.distance for neighbour in neighbours]
    assert distances[0] == 0 < distances[1] < MAX_DISTANCE < distances[2]


@pytest.mark.parametrize(
    "other",
    [
        past_sweep(objective=("loss",)),
        past_sweep(objective=("accuracy", "seconds")),
        past_sweep(view=None),
        dataclasses.replace(past_sweep(), best=()),
    ],
    ids=["another objective", "two objectives", "not measured", "nothing finished"],
)
def test_a_sweep_that_cannot_contribute_is_ignored(other: PastSweep) -> None:
    assert nearest_sweeps(CURRENT, [other]) == []


# --- which recipes ---------------------------------------------------------------------------------------------------


def test_recipes_come_from_the_nearest_data_first_and_only_once(space: Space) -> None:
    neighbours = [
        Neighbour(past_sweep("a", record_with_rate("0001", 1e-3), record_with_rate("0002", 2e-3)), 0.1),
        Neighbour(past_sweep("b", record_with_rate("0007", 2e-3), record_with_rate("0008", 3e-3)), 0.2),
        Neighbour(past_sweep("c", record_with_rate("0009", 1e-3)), 0.3),
    ]
    transferred = transferred_configs(neighbours, space, WEIGHTS, most=MAX_TOTAL)
    assert [params["adam.learning_rate"] for params in transferred["params"]] == [1e-3, 2e-3, 3e-3]
    assert transferred["from"] == [
        {"sweep": "a", "distance": 0.1, "trials": ["0001", "0002"]},
        {"sweep": "b", "distance": 0.2, "trials": ["0008"]},
    ]
    assert len(transferred_configs(neighbours, space, WEIGHTS, most=2)["params"]) == 2


def test_a_recipe_that_fits_is_transferred_unchanged(space: Space) -> None:
    recipe = {**a_recipe(clip_norm=5.0), "strategy": {"name": "freeze_then_unfreeze", "freeze_epochs": 3}}
    config = space.configured(translate_recipe(recipe, space, WEIGHTS) or {})
    expected = {"strategy": "freeze_then_unfreeze", "freeze_epochs": 3, "clip_norm": 5.0, "optimizer": "adam"}
    expected |= {"learning_rate": 1e-3, "weight_decay": 1e-4, "batch_size": 32, "augmentation": "flip"}
    assert {name: config[name] for name in expected} == expected


def test_settings_that_were_fixed_are_transferred_too(space: Space) -> None:
    recipe = a_recipe(schedule={"name": "cosine_warmup", "warmup": 0.1}, mixing={"name": "cutmix", "alpha": 1.0})
    translated = translate_recipe(recipe, space, WEIGHTS) or {}
    assert (translated["schedule"], translated["mixing"]) == ("cosine_warmup", "cutmix")


def test_a_recipe_is_moved_into_a_narrower_space() -> None:
    narrow = space_for([BACKBONE], 2, edits={"learning_rate": "1e-5..1e-4", "batch_size": "8", "loss": "cross_entropy"})
    smoothed = a_recipe(loss={"name": "label_smoothing", "smoothing": 0.1})
    recipe = {**smoothed, "strategy": {"name": "freeze_then_unfreeze", "freeze_epochs": 3}}
    translated = translate_recipe(recipe, narrow, WEIGHTS)
    assert translated is not None
    config = narrow.configured(translated)
    assert (config["freeze_epochs"], config["learning_rate"], config["batch_size"]) == (1, 1e-4, 8)
    assert config["loss"] == "cross_entropy"


@pytest.mark.parametrize(
    "recipe",
    [
        a_recipe("lora"),
        a_recipe(backbone="resnet18"),
        a_recipe(weights="x" * 64),
        a_recipe(optimizer={"name": "lion"}),
        a_recipe(schedule={"name": "of another version"}),
    ],
    ids=["strategy", "network", "weights", "optimizer", "unknown"],
)
def test_a_recipe_that_does_not_compete_is_omitted(recipe: dict[str, Any], space: Space) -> None:
    assert translate_recipe(recipe, space, WEIGHTS) is None


def test_strategies_without_pretrained_weights_are_transferred_with_any_weights(space: Space) -> None:
    assert translate_recipe(a_recipe("scratch"), space, {BACKBONE: "other"}) is not None
    assert translate_recipe(a_recipe("small_cnn", backbone="basic_cnn", weights=""), space, WEIGHTS) is None
    own_backbone_space = space_for([BACKBONE], 6, ["small_cnn", "naive"])
    assert translate_recipe(a_recipe("small_cnn", backbone="small_cnn", weights=""), own_backbone_space, {}) is None
    own = own_backbone_space.configured({"strategy": "small_cnn"})["backbone"]
    assert translate_recipe(a_recipe("small_cnn", backbone=own, weights=""), own_backbone_space, WEIGHTS) is not None


# --- what a sweep does with it ---------------------------------------------------------------------------------------


def test_transferred_recipes_come_first_then_every_known_good_recipe_once(space: Space) -> None:
    good = space.known_good()
    new = translate_recipe(a_recipe(learning_rate=2e-3), space, WEIGHTS) or {}
    sampler = AskTellSampler(space, "random", seed=0, warm=[new, good[2]])
    first = [sampler.ask(f"{number:04d}", number)[0] for number in range(len(good) + 1)]
    assert first == [new, good[2], *good[:2], *good[3:]]
    assert sampler.known_good == len(first)


def test_only_known_good_recipes_are_protected_from_early_stopping(space: Space) -> None:
    good = space.known_good()
    new = translate_recipe(a_recipe(learning_rate=2e-3), space, WEIGHTS) or {}
    sampler = AskTellSampler(space, "random", seed=0, warm=[new, good[2]])
    protected = [sampler.is_known_good(number) for number in range(len(good) + 3)]
    assert protected == [False, *[True] * len(good), False, False]
    plain = AskTellSampler(space, "random", seed=0)
    assert [plain.is_known_good(number) for number in (0, len(good) - 1, len(good))] == [True, True, False]


# --- from sweeps on disk ---------------------------------------------------------------------------------------------


@pytest.fixture
def warm(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """A plan with a warm start, whose data have the measurements of Hymenoptera. Without lp_ft nothing is screened."""
    monkeypatch.setattr(advice, "advise", lambda *args, **kwargs: FakeAdvice(HYMENOPTERA))
    plan = dataclasses.replace(prepared.plan, warm_start=True, trials=12)
    strategies = [name for name in prepared.space.strategies() if name != "lp_ft"]
    return dataclasses.replace(prepared, plan=plan, space=with_strategies(prepared.space, *strategies))


def with_strategies(space: Space, *names: str) -> Space:
    """The space with these strategies only."""
    return dataclasses.replace(space, axes={**space.axes, "strategy": Categorical(names)})


@dataclasses.dataclass(frozen=True)
class FakeAdvice:
    """The part of an advice that a warm start uses."""

    view: DatasetView

    def as_dict(self) -> dict[str, Any]:
        verdict = {"size": "small", "likeness": "similar", "clear": True, "recommended": []}
        return json.loads(json.dumps({"measured": asdict(self.view.measured), **verdict}))  # type: ignore[no-any-return]


@pytest.fixture
def other_pack(prepared: Prepared, tmp_path: Path) -> str:
    """Hash of a pack of other images in the storage."""
    for seed, name in enumerate(("ants", "bees")):
        write_noise_images(tmp_path / "others" / name, 8, seed)
    return build_pack(folder(tmp_path / "others"), 32, prepared.pack.folder.parent).hash


@pytest.fixture
def add_sweep(prepared: Prepared, tmp_path: Path, other_pack: str) -> Callable[..., Store]:
    """Writes an earlier sweep to the storage; its search trials have these accuracies and distinct learning rates."""

    def add(
        name: str, *accuracies: float, view: DatasetView = DOGS_VS_CATS, pack: str = other_pack, **changes: Any
    ) -> Store:
        (backbone,) = prepared.backbones
        store = Store(tmp_path / "storage" / name)
        described = a_plan(name=name)
        described["data"] |= {"pack": pack}
        described["backbones"][0]["weights"] = backbone.sha256
        store.put_plan({**described, "advice": FakeAdvice(view).as_dict(), **changes})
        for number, accuracy in enumerate(accuracies):
            recipe = a_recipe(weights=backbone.sha256, learning_rate=1e-3 + number * 1e-4)
            store.add_trial(Trial(f"{number:04d}", "search", {}, recipe))
            store.add_record(a_record(f"{number:04d}", (0.1, accuracy), recipe=recipe))
        return store

    return add


@pytest.fixture
def mine(tmp_path: Path) -> Store:
    return Store(tmp_path / "storage" / "mine")


def stored_warm_start(store: Store) -> dict[str, Any]:
    warm: dict[str, Any] = (store.plan() or {})["warm_start"]
    return warm


def test_the_best_quarter_on_validation_is_transferred_but_at_most_three(
    warm: Prepared, add_sweep: Callable[..., Store], mine: Store
) -> None:
    add_sweep("dogs", *(0.5, 0.9, 0.7, 0.8, 0.6))
    add_sweep("many", *(number / 100 for number in range(40)), view=HYMENOPTERA)
    claim_plan(warm, mine)
    stored = stored_warm_start(mine)
    assert [(source["sweep"], source["trials"]) for source in stored["from"]] == [
        ("many", ["0039", "0038", "0037"]),
        ("dogs", ["0001", "0003"]),
    ]
    assert stored["from"][0]["distance"] == 0
    rates = [params["adam.learning_rate"] for params in stored["params"]]
    assert rates == pytest.approx([4.9e-3, 4.8e-3, 4.7e-3, 1.1e-3, 1.3e-3])
    assert summary_line(mine.plan() or {}) == (
        "starts with recipes from similar data: 3 of many (distance 0.00; trials 0039, 0038, 0037), "
        "2 of dogs (distance 0.47; trials 0001, 0003)"
    )


def test_at_most_half_of_the_trials_are_transferred_recipes(
    warm: Prepared, add_sweep: Callable[..., Store], mine: Store
) -> None:
    add_sweep("many", *(number / 100 for number in range(40)))
    claim_plan(dataclasses.replace(warm, plan=dataclasses.replace(warm.plan, trials=3)), mine)
    assert len(warm_start_params(mine.plan() or {})) == 2


def test_test_results_of_an_earlier_sweep_have_no_effect(
    warm: Prepared, add_sweep: Callable[..., Store], mine: Store
) -> None:
    dogs = add_sweep("dogs", 0.6, 0.9, 0.7, 0.5)
    dogs.add_test("0003", an_evaluation("test", 10))
    dogs.add_test("0001", an_evaluation("test", 0))
    assert selection.select_best(dogs.records(), 1) == ["0001"]
    claim_plan(warm, mine)
    assert stored_warm_start(mine)["from"][0]["trials"] == ["0001"]


def test_pruned_failed_and_final_runs_are_not_transferred(
    warm: Prepared, add_sweep: Callable[..., Store], mine: Store
) -> None:
    dogs = add_sweep("dogs", 0.4)
    sha = warm.backbones[0].sha256
    for trial, curve, status in (
        ("0001", (0.9,), "pruned"),
        ("0002", (0.9,), "failed"),
        ("0000-s1", (0.9,), "finished"),
    ):
        dogs.add_record(a_record(trial, curve, status, recipe=a_recipe(weights=sha)))  # type: ignore[arg-type]
    claim_plan(warm, mine)
    assert [source["trials"] for source in stored_warm_start(mine)["from"]] == [["0000"]]


def test_a_resumed_sweep_keeps_its_recipes_when_sweeps_were_added_meanwhile(
    warm: Prepared, add_sweep: Callable[..., Store], mine: Store
) -> None:
    add_sweep("dogs", 0.6, 0.9)
    claim_plan(warm, mine)
    first = stored_warm_start(mine)
    add_sweep("nearer", 0.99, 0.98, view=HYMENOPTERA)
    claim_plan(warm, mine)
    assert stored_warm_start(mine) == first
    more = dataclasses.replace(warm, plan=dataclasses.replace(warm.plan, trials=40))
    claim_plan(more, mine)
    assert (stored_warm_start(mine), (mine.plan() or {})["trials"]) == (first, 40)
    sweep = Sweep(more, mine, RunOptions(tracking_uri=""), None)  # type: ignore[arg-type]
    params, config = sweep.sampler.ask("0000", 0)
    assert [params] == warm_start_params(mine.plan() or {})
    assert config["learning_rate"] == pytest.approx(1.1e-3)
    assert [sweep.sampler.is_known_good(number) for number in (0, 1)] == [False, True]


def test_a_warm_start_cannot_be_switched_on_or_off_later(
    prepared: Prepared, warm: Prepared, add_sweep: Callable[..., Store], mine: Store, tmp_path: Path
) -> None:
    add_sweep("dogs", 0.6)
    cold = dataclasses.replace(warm, plan=dataclasses.replace(warm.plan, warm_start=False))
    claim_plan(warm, mine)
    with pytest.raises(PlanChangedError, match=r"warm_start.asked: True -> absent"):
        claim_plan(cold, mine)
    other = Store(tmp_path / "storage" / "other")
    claim_plan(cold, other)
    assert "warm_start" not in (other.plan() or {})  # as in plans of earlier versions
    with pytest.raises(PlanChangedError, match=r"warm_start.asked: absent -> True"):
        claim_plan(warm, other)
    assert default_name(warm) != default_name(cold)
    assert plan_differences(mine.plan() or {}, {**describe_plan(warm), "trials": 12}) == []


def test_damaged_sweeps_are_skipped_and_named(warm: Prepared, add_sweep: Callable[..., Store], mine: Store) -> None:
    add_sweep("dogs", 0.6)
    (add_sweep("torn", 0.9).folder / "plan.json").write_text('{"trials": 3')
    add_sweep("strange", 0.9, advice={"measured": {"classes": 3}})
    add_sweep("older", 0.9, objective=["an objective of another version"])
    claim_plan(warm, mine)
    stored = stored_warm_start(mine)
    assert [source["sweep"] for source in stored["from"]] == ["dogs"]
    assert sorted(stored["passed_over"]) == ["older", "strange", "torn"]
    assert "torn was skipped: it cannot be read (ValueError: " in summary_line(mine.plan() or {})


def test_without_similar_data_the_nearest_sweep_is_named(
    warm: Prepared, add_sweep: Callable[..., Store], mine: Store
) -> None:
    claim_plan(warm, mine)
    assert stored_warm_start(mine)["why_none"] == (
        "no earlier sweep in this storage has the same objective, measured data and finished trials"
    )
    add_sweep("sketches", 0.9, view=QUICKDRAW)
    other = Store(mine.folder.with_name("second"))
    claim_plan(warm, other)
    assert warm_start_params(other.plan() or {}) == []
    assert summary_line(other.plan() or {}) == (
        "no recipes: no sweep in this storage has similar data: the nearest, sketches, has distance 1.37, above the "
        "limit of 0.75"
    )


def test_recipes_that_do_not_fit_the_space_are_reported(
    warm: Prepared, add_sweep: Callable[..., Store], mine: Store
) -> None:
    add_sweep("dogs", 0.6)
    axes = {**warm.space.axes, "strategy": space_for([BACKBONE], 4, ["clip", "scratch"]).axes["strategy"]}
    claim_plan(dataclasses.replace(warm, space=dataclasses.replace(warm.space, axes=axes)), mine)
    assert stored_warm_start(mine)["why_none"].startswith("the best recipes from similar data do not fit")


def test_a_sweep_that_saw_images_of_the_test_part_is_skipped(
    warm: Prepared, add_sweep: Callable[..., Store], mine: Store
) -> None:
    own = warm.pack.hash
    add_sweep("same", 0.9, pack=own)
    add_sweep("another_draw", 0.9, pack=own, seed=5)
    add_sweep("gone", 0.9, pack="0" * 64)
    claim_plan(warm, mine)
    stored = stored_warm_start(mine)
    assert [(source["sweep"], source["distance"]) for source in stored["from"]] == [("same", 0.0)]
    assert stored["passed_over"]["gone"].startswith("its images are gone")
    assert "images of this sweep's test set" in stored["passed_over"]["another_draw"]


def test_without_advice_the_data_are_measured_too_and_later_sweeps_find_the_measurement(
    warm: Prepared, add_sweep: Callable[..., Store], mine: Store
) -> None:
    add_sweep("dogs", 0.6)
    claim_plan(dataclasses.replace(warm, plan=dataclasses.replace(warm.plan, advise=False)), mine)
    assert (mine.plan() or {})["advice"] == {}
    assert stored_warm_start(mine)["measured"]["classes"] == 2
    assert [source["sweep"] for source in stored_warm_start(mine)["from"]] == ["dogs"]
    assert read_sweep(mine).view == DatasetView(HYMENOPTERA.measured, warm.backbones[0].sha256)


def test_data_that_cannot_be_measured_are_the_reason_for_no_recipes(
    warm: Prepared, add_sweep: Callable[..., Store], mine: Store
) -> None:
    add_sweep("dogs", 0.6)
    (backbone,) = warm.backbones
    random = with_strategies(warm.space, "scratch")
    backbones = (dataclasses.replace(backbone, file=None, sha256=""),)
    claim_plan(dataclasses.replace(warm, space=random, backbones=backbones), mine)
    assert stored_warm_start(mine)["why_none"] == "no pretrained network competes, so the data cannot be measured"


def test_explicit_arms_do_not_allow_a_warm_start() -> None:
    with pytest.raises(ValueError, match="warm_start has no effect on a plan with explicit arms"):
        Plan("folder", "Which?", arms=({"strategy": "naive"},), warm_start=True)
