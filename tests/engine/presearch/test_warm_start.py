"""Warm start: a new sweep begins with what served data that look alike, chosen on validation and never taken back."""

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
from sweeps.engine.presearch import advice, warm_start
from sweeps.engine.presearch.dataset_distance import MAX_DISTANCE, DatasetView
from sweeps.engine.presearch.warm_start import (
    MAX_TOTAL,
    Neighbour,
    PastSweep,
    nearest_sweeps,
    summary_line,
    transferred_configs,
    translate_recipe,
    warm_start_params,
)
from sweeps.engine.run_options import RunOptions
from sweeps.engine.samplers.ask_tell import AskTellSampler
from sweeps.engine.search_space.overrides import space_for
from sweeps.engine.search_space.space import Space
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.sweep import Sweep
from tests.conftest import BACKBONE
from tests.engine.conftest import a_plan, a_recipe, a_record, an_evaluation, write_noise_images
from tests.engine.presearch.test_dataset_distance import DOGS_VS_CATS, HYMENOPTERA, QUICKDRAW
from tests.sweep_commands import run
from xfer.data.layouts import folder
from xfer.data.pack import build_pack
from xfer.records import Record

WEIGHTS = {BACKBONE: "w" * 64}


@pytest.fixture
def space() -> Space:
    return space_for([BACKBONE], 6)


def earlier(name: str = "earlier", *best: Record, **changes: Any) -> PastSweep:
    plain = {"data": (name, 200), "seed": 0, "objective": ("accuracy",), "seen": DOGS_VS_CATS}
    return PastSweep(name=name, best=best or (a_record("0003"),), **{**plain, **changes})


MINE = dataclasses.replace(earlier("mine", seen=HYMENOPTERA), best=())


def rated(trial: str, rate: float, **changes: Any) -> Record:
    """A record whose recipe is told from others by its learning rate."""
    return a_record(trial, recipe=a_recipe(learning_rate=rate, **changes))


# --- which sweeps ----------------------------------------------------------------------------------------------------


def test_sweeps_are_asked_nearest_data_first_and_the_same_data_is_nearest() -> None:
    same = earlier("same", data=MINE.data, seen=None)
    near = nearest_sweeps(MINE, [earlier("sketches", seen=QUICKDRAW), earlier("dogs"), same])
    assert [each.sweep.name for each in near] == ["same", "dogs", "sketches"]
    assert near[0].distance == 0 < near[1].distance < MAX_DISTANCE < near[2].distance


@pytest.mark.parametrize(
    "other",
    [
        earlier(objective=("loss",)),
        earlier(objective=("accuracy", "seconds")),
        earlier(seen=None),
        dataclasses.replace(earlier(), best=()),
    ],
    ids=["another objective", "two objectives", "not measured", "nothing finished"],
)
def test_a_sweep_that_has_nothing_to_say_here_is_not_asked(other: PastSweep) -> None:
    assert nearest_sweeps(MINE, [other]) == []


# --- which recipes ---------------------------------------------------------------------------------------------------


def test_nearest_data_hand_on_first_and_no_recipe_twice(space: Space) -> None:
    near = [
        Neighbour(earlier("a", rated("0001", 1e-3), rated("0002", 2e-3)), 0.1),
        Neighbour(earlier("b", rated("0007", 2e-3), rated("0008", 3e-3)), 0.2),
        Neighbour(earlier("c", rated("0009", 1e-3)), 0.3),
    ]
    found = transferred_configs(near, space, WEIGHTS, most=MAX_TOTAL)
    assert [params["adam.learning_rate"] for params in found["params"]] == [1e-3, 2e-3, 3e-3]
    assert found["from"] == [
        {"sweep": "a", "distance": 0.1, "trials": ["0001", "0002"]},
        {"sweep": "b", "distance": 0.2, "trials": ["0008"]},
    ]
    assert len(transferred_configs(near, space, WEIGHTS, most=2)["params"]) == 2


def test_a_recipe_comes_over_as_it_was_where_it_fits(space: Space) -> None:
    recipe = {**a_recipe(clip_norm=5.0), "strategy": {"name": "freeze_then_unfreeze", "freeze_epochs": 3}}
    config = space.configured(translate_recipe(recipe, space, WEIGHTS) or {})
    wanted = {"strategy": "freeze_then_unfreeze", "freeze_epochs": 3, "clip_norm": 5.0, "optimizer": "adam"}
    wanted |= {"learning_rate": 1e-3, "weight_decay": 1e-4, "batch_size": 32, "augmentation": "flip"}
    assert {name: config[name] for name in wanted} == wanted


def test_what_was_held_fixed_comes_over_too_though_no_sampler_was_asked_for_it(space: Space) -> None:
    recipe = a_recipe(schedule={"name": "cosine"}, mixing={"name": "cutmix", "alpha": 1.0})
    granted = translate_recipe(recipe, space, WEIGHTS) or {}
    assert (granted["schedule"], granted["mixing"]) == ("cosine", "cutmix")


def test_a_recipe_is_moved_into_a_narrower_space() -> None:
    narrow = space_for([BACKBONE], 2, edits={"learning_rate": "1e-5..1e-4", "batch_size": "8", "loss": "cross_entropy"})
    smoothed = a_recipe(loss={"name": "label_smoothing", "smoothing": 0.1})
    recipe = {**smoothed, "strategy": {"name": "freeze_then_unfreeze", "freeze_epochs": 3}}
    granted = translate_recipe(recipe, narrow, WEIGHTS)
    assert granted is not None
    config = narrow.configured(granted)
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
def test_what_does_not_compete_here_is_left_out(recipe: dict[str, Any], space: Space) -> None:
    assert translate_recipe(recipe, space, WEIGHTS) is None


def test_strategies_that_need_no_weights_come_over_whatever_the_weights(space: Space) -> None:
    assert translate_recipe(a_recipe("scratch"), space, {BACKBONE: "other"}) is not None
    assert translate_recipe(a_recipe("small_cnn", backbone="basic_cnn", weights=""), space, WEIGHTS) is None
    brings_its_own = space_for([BACKBONE], 6, ["small_cnn", "naive"])
    assert translate_recipe(a_recipe("small_cnn", backbone="small_cnn", weights=""), brings_its_own, {}) is None
    own = brings_its_own.configured({"strategy": "small_cnn"})["backbone"]
    assert translate_recipe(a_recipe("small_cnn", backbone=own, weights=""), brings_its_own, WEIGHTS) is not None


# --- what a sweep does with it ---------------------------------------------------------------------------------------


def test_what_was_taken_comes_first_and_then_every_known_good_recipe_once(space: Space) -> None:
    good = space.known_good()
    new = translate_recipe(a_recipe(learning_rate=2e-3), space, WEIGHTS) or {}
    proposer = AskTellSampler(space, "random", seed=0, warm=[new, good[2]])
    first = [proposer.ask(f"{number:04d}", number)[0] for number in range(len(good) + 1)]
    assert first == [new, good[2], *good[:2], *good[3:]]
    assert proposer.known_good == len(first)


def test_only_known_good_recipes_are_spared(space: Space) -> None:
    good = space.known_good()
    new = translate_recipe(a_recipe(learning_rate=2e-3), space, WEIGHTS) or {}
    proposer = AskTellSampler(space, "random", seed=0, warm=[new, good[2]])
    spared = [proposer.is_known_good(number) for number in range(len(good) + 3)]
    assert spared == [False, *[True] * len(good), False, False]
    plain = AskTellSampler(space, "random", seed=0)
    assert [plain.is_known_good(number) for number in (0, len(good) - 1, len(good))] == [True, True, False]


# --- from sweeps on disk ---------------------------------------------------------------------------------------------


@pytest.fixture
def warm(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """A plan with a warm start, whose data measure like Hymenoptera."""
    monkeypatch.setattr(advice, "advise", lambda *about, **how: Measured(HYMENOPTERA))
    return dataclasses.replace(prepared, plan=dataclasses.replace(prepared.plan, warm_start=True, trials=12))


@dataclasses.dataclass(frozen=True)
class Measured:
    """What an advisor would say, as far as a sweep looks at it."""

    seen: DatasetView

    def as_dict(self) -> dict[str, Any]:
        found = {"size": "small", "likeness": "similar", "clear": True, "recommended": []}
        return json.loads(json.dumps({"measured": asdict(self.seen.measured), **found}))  # type: ignore[no-any-return]


@pytest.fixture
def elsewhere(prepared: Prepared, tmp_path: Path) -> str:
    """The hash of a pack of other images, among the packs of the storage."""
    for seed, name in enumerate(("ants", "bees")):
        write_noise_images(tmp_path / "others" / name, 8, seed)
    return build_pack(folder(tmp_path / "others"), 32, prepared.pack.folder.parent).hash


@pytest.fixture
def left(prepared: Prepared, tmp_path: Path, elsewhere: str) -> Callable[..., Store]:
    """Leaves a sweep behind: search trials that came to these accuracies, told apart by their learning rates."""

    def leave(
        name: str, *accuracies: float, seen: DatasetView = DOGS_VS_CATS, pack: str = elsewhere, **changes: Any
    ) -> Store:
        (backbone,) = prepared.backbones
        store = Store(tmp_path / "storage" / name)
        described = a_plan(name=name)
        described["data"] |= {"pack": pack}
        described["backbones"][0]["weights"] = backbone.sha256
        store.put_plan({**described, "advice": Measured(seen).as_dict(), **changes})
        for number, accuracy in enumerate(accuracies):
            recipe = a_recipe(weights=backbone.sha256, learning_rate=1e-3 + number * 1e-4)
            store.add_trial(Trial(f"{number:04d}", "search", {}, recipe))
            store.add_record(a_record(f"{number:04d}", (0.1, accuracy), recipe=recipe))
        return store

    return leave


@pytest.fixture
def mine(tmp_path: Path) -> Store:
    return Store(tmp_path / "storage" / "mine")


def begun(store: Store) -> dict[str, Any]:
    found: dict[str, Any] = (store.plan() or {})["warm_start"]
    return found


def test_the_best_quarter_on_validation_is_taken_and_no_more_than_three(
    warm: Prepared, left: Callable[..., Store], mine: Store
) -> None:
    left("dogs", *(0.5, 0.9, 0.7, 0.8, 0.6))
    left("many", *(number / 100 for number in range(40)), seen=HYMENOPTERA)
    claim_plan(warm, mine)
    found = begun(mine)
    assert [(each["sweep"], each["trials"]) for each in found["from"]] == [
        ("many", ["0039", "0038", "0037"]),
        ("dogs", ["0001", "0003"]),
    ]
    assert found["from"][0]["distance"] == 0
    rates = [params["adam.learning_rate"] for params in found["params"]]
    assert rates == pytest.approx([4.9e-3, 4.8e-3, 4.7e-3, 1.1e-3, 1.3e-3])
    assert summary_line(mine.plan() or {}) == (
        "begins with recipes of data that look alike: 3 of many (distance 0.00; trials 0039, 0038, 0037), "
        "2 of dogs (distance 0.47; trials 0001, 0003)"
    )


def test_with_no_more_than_half_of_its_trials_does_a_sweep_begin_warm(
    warm: Prepared, left: Callable[..., Store], mine: Store
) -> None:
    left("many", *(number / 100 for number in range(40)))
    claim_plan(dataclasses.replace(warm, plan=dataclasses.replace(warm.plan, trials=3)), mine)
    assert len(warm_start_params(mine.plan() or {})) == 2


def test_the_test_part_of_an_earlier_sweep_changes_nothing(
    warm: Prepared, left: Callable[..., Store], mine: Store
) -> None:
    dogs = left("dogs", 0.6, 0.9, 0.7, 0.5)
    dogs.add_test("0003", an_evaluation("test", 10))
    dogs.add_test("0001", an_evaluation("test", 0))
    assert selection.select_finalists(dogs.records(), 1) == ["0001"]
    claim_plan(warm, mine)
    assert begun(mine)["from"][0]["trials"] == ["0001"]


def test_pruned_failed_and_final_runs_are_not_taken(warm: Prepared, left: Callable[..., Store], mine: Store) -> None:
    dogs = left("dogs", 0.4)
    sha = warm.backbones[0].sha256
    for trial, curve, status in (
        ("0001", (0.9,), "pruned"),
        ("0002", (0.9,), "failed"),
        ("0000-s1", (0.9,), "finished"),
    ):
        dogs.add_record(a_record(trial, curve, status, recipe=a_recipe(weights=sha)))  # type: ignore[arg-type]
    claim_plan(warm, mine)
    assert [each["trials"] for each in begun(mine)["from"]] == [["0000"]]


def test_a_sweep_gone_on_with_takes_the_same_whatever_was_added_since(
    warm: Prepared, left: Callable[..., Store], mine: Store
) -> None:
    left("dogs", 0.6, 0.9)
    claim_plan(warm, mine)
    first = begun(mine)
    left("nearer", 0.99, 0.98, seen=HYMENOPTERA)
    claim_plan(warm, mine)
    assert begun(mine) == first
    more = dataclasses.replace(warm, plan=dataclasses.replace(warm.plan, trials=40))
    claim_plan(more, mine)
    assert (begun(mine), (mine.plan() or {})["trials"]) == (first, 40)
    sweep = Sweep(more, mine, RunOptions(tracking_uri=""), None)  # type: ignore[arg-type]
    params, config = sweep.sampler.ask("0000", 0)
    assert [params] == warm_start_params(mine.plan() or {})
    assert config["learning_rate"] == pytest.approx(1.1e-3)
    assert [sweep.sampler.is_known_good(number) for number in (0, 1)] == [False, True]


def test_whether_to_begin_warm_cannot_be_changed_later(
    prepared: Prepared, warm: Prepared, left: Callable[..., Store], mine: Store, tmp_path: Path
) -> None:
    left("dogs", 0.6)
    cold = dataclasses.replace(warm, plan=dataclasses.replace(warm.plan, warm_start=False))
    claim_plan(warm, mine)
    with pytest.raises(PlanChangedError, match=r"warm_start.asked: True -> absent"):
        claim_plan(cold, mine)
    other = Store(tmp_path / "storage" / "other")
    claim_plan(cold, other)
    assert "warm_start" not in (other.plan() or {})  # as in plans from before there was a choice
    with pytest.raises(PlanChangedError, match=r"warm_start.asked: absent -> True"):
        claim_plan(warm, other)
    assert default_name(warm) != default_name(cold)
    assert plan_differences(mine.plan() or {}, {**describe_plan(warm), "trials": 12}) == []


def test_damaged_sweeps_are_passed_over_and_named(warm: Prepared, left: Callable[..., Store], mine: Store) -> None:
    left("dogs", 0.6)
    (left("torn", 0.9).folder / "plan.json").write_text('{"trials": 3')
    left("strange", 0.9, advice={"measured": {"classes": 3}})
    left("older", 0.9, objective=["an objective of another version"])
    claim_plan(warm, mine)
    found = begun(mine)
    assert [each["sweep"] for each in found["from"]] == ["dogs"]
    assert sorted(found["passed_over"]) == ["older", "strange", "torn"]
    assert "torn was passed over: it cannot be read (ValueError: " in summary_line(mine.plan() or {})


def test_that_nothing_looks_alike_is_said_with_the_nearest(
    warm: Prepared, left: Callable[..., Store], mine: Store
) -> None:
    claim_plan(warm, mine)
    assert begun(mine)["why_none"] == (
        "no earlier sweep in this storage has finished trials on measured data, searched for the same"
    )
    left("sketches", 0.9, seen=QUICKDRAW)
    other = Store(mine.folder.with_name("second"))
    claim_plan(warm, other)
    assert warm_start_params(other.plan() or {}) == []
    assert summary_line(other.plan() or {}) == (
        "nothing was taken: nothing in this storage looks alike: sketches comes nearest, at distance 1.37, and 0.75 is "
        "the limit"
    )


def test_recipes_that_cannot_be_had_here_are_said_to_be_so(
    warm: Prepared, left: Callable[..., Store], mine: Store
) -> None:
    left("dogs", 0.6)
    axes = {**warm.space.axes, "strategy": space_for([BACKBONE], 4, ["clip", "scratch"]).axes["strategy"]}
    claim_plan(dataclasses.replace(warm, space=dataclasses.replace(warm.space, axes=axes)), mine)
    assert begun(mine)["why_none"].startswith("the best recipes of data that look alike cannot be had here")


def test_a_sweep_that_saw_images_of_this_test_part_is_passed_over(
    warm: Prepared, left: Callable[..., Store], mine: Store
) -> None:
    own = warm.pack.hash
    left("same", 0.9, pack=own)
    left("another_draw", 0.9, pack=own, seed=5)
    left("gone", 0.9, pack="0" * 64)
    claim_plan(warm, mine)
    found = begun(mine)
    assert [(each["sweep"], each["distance"]) for each in found["from"]] == [("same", 0.0)]
    assert found["passed_over"]["gone"].startswith("its images are gone")
    assert "of the images that this sweep is to be tested on" in found["passed_over"]["another_draw"]


def test_without_advice_the_data_are_measured_all_the_same_and_later_sweeps_find_it(
    warm: Prepared, left: Callable[..., Store], mine: Store
) -> None:
    left("dogs", 0.6)
    claim_plan(dataclasses.replace(warm, plan=dataclasses.replace(warm.plan, advise=False)), mine)
    assert (mine.plan() or {})["advice"] == {}
    assert begun(mine)["measured"]["classes"] == 2
    assert [each["sweep"] for each in begun(mine)["from"]] == ["dogs"]
    assert warm_start._read(mine).seen == DatasetView(HYMENOPTERA.measured, warm.backbones[0].sha256)


def test_where_nothing_can_be_measured_that_is_why(warm: Prepared, left: Callable[..., Store], mine: Store) -> None:
    left("dogs", 0.6)
    (backbone,) = warm.backbones
    claim_plan(dataclasses.replace(warm, backbones=(dataclasses.replace(backbone, file=None, sha256=""),)), mine)
    assert begun(mine)["why_none"] == "nothing pretrained competes, so the data cannot be measured"


def test_a_list_of_arms_cannot_be_started_warm() -> None:
    with pytest.raises(ValueError, match="explicit arms has no search that could be started warm"):
        Plan("folder", "Which?", arms=({"strategy": "naive"},), warm_start=True)


# --- the whole way ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_sweep_begins_with_the_first_ones_best_recipe(tmp_path: Path) -> None:
    flags = ("--trials", 4, "--epochs", 2, "--finalists", 0, "--strategies", "clip,naive,linear_probe")
    places = ("--storage", tmp_path / "runs", "--reports", tmp_path / "reports")
    first = run("quickstart", (*flags, *places, "--name", "first"), tmp_path / "logs")
    assert first.status == 0, first.err
    second = run("quickstart", (*flags, *places, "--name", "second", "--warm-start"), tmp_path / "logs")
    assert second.status == 0, second.err
    assert "warm start: begins with recipes of data that look alike: 1 of first (distance 0.00; trial" in " ".join(
        second.out.split()
    )
    stores = {name: Store(tmp_path / "runs" / name) for name in ("first", "second")}
    (best,) = selection.select_finalists(stores["first"].records(), 1)
    recipes = {name: {trial.name: trial.recipe for trial in store.trials()} for name, store in stores.items()}
    assert recipes["second"]["0000"] == recipes["first"][best]
    assert (
        "The search began with 1 recipe taken from first" in (tmp_path / "reports" / "second" / "report.md").read_text()
    )
    kept = stores["second"].plan()
    again = run("quickstart", (*flags, *places, "--name", "second", "--warm-start"), tmp_path / "logs")
    assert again.status == 0, again.err
    assert stores["second"].plan() == kept
