"""Screening: which backbones are searched, and with which head `lp_ft` starts."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from rich.console import Console

from sweeps.engine.console.progress import ProgressView
from sweeps.engine.plan import Plan
from sweeps.engine.planning import screening
from sweeps.engine.planning.plan_file import describe_plan, plan_differences
from sweeps.engine.planning.prepare import prepare
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.samplers.ask_tell import AskTellSampler
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.sweep import Sweep
from sweeps.engine.trials.run_options import RunOptions
from tests.engine.conftest import a_record
from xfer.hyperparameters import Categorical
from xfer.objectives import OBJECTIVES
from xfer.recipe import Recipe
from xfer.records import Record

NETWORKS = ("test_resnet", "test_efficientnet", "test_vit")
STRATEGIES = ("lp_ft", "linear_probe", "clip")
PENALTIES = {"logistic_probe": (0.01, 0.1, 1.0, 10.0, 100.0), "ridge_probe": (1.0, 10.0, 100.0, 1e3, 1e4)}

Preparing = Callable[..., Prepared]


@pytest.fixture(scope="module")
def preparing(
    one_thread: None, make_plan: Callable[..., Plan], weights_of: Callable[[str], Path], storage: Path
) -> Preparing:
    """Prepares a plan over three backbones, of which two are kept."""

    def prepare_plan(*backbones: str, **changes: Any) -> Prepared:
        names = backbones or NETWORKS
        about = {"weights": {name: str(weights_of(name)) for name in names}, "keep_backbones": 2, "trials": 9}
        return prepare(make_plan(**{"backbones": names, "strategies": STRATEGIES, **about, **changes}), storage)

    return prepare_plan


@pytest.fixture(scope="module")
def three(preparing: Preparing) -> Prepared:
    return preparing()


def heads(prepared: Prepared, accuracies: Mapping[tuple[str, str, float], float], default: float = 0.3) -> list[Record]:
    """Return a record of every head, with validation accuracies by backbone, strategy and penalty."""
    records = []
    for trial in screening.screening_trials(prepared):
        strategy = trial.recipe["strategy"]
        accuracy = accuracies.get((str(trial.recipe["backbone"]), strategy["name"], strategy["penalty"]), default)
        records.append(replace(a_record(trial.name, (accuracy,), recipe=dict(trial.recipe)), phase="screen"))
    return records


# --- which sweeps screen ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbones", "changes", "drops", "selects"),
    [
        (NETWORKS, {}, True, True),
        (NETWORKS, {"strategies": ("clip", "linear_probe")}, True, False),
        (NETWORKS, {"keep_backbones": 3}, False, True),
        (NETWORKS, {"keep_backbones": 3, "strategies": ("clip",)}, False, False),
        (NETWORKS[:1], {}, False, True),
        (NETWORKS[:1], {"edits": {"penalty": "0.1..10"}}, False, False),
        (NETWORKS, {"edits": {"penalty": "1"}}, True, False),
        (
            NETWORKS,
            {"strategies": ("scratch",)},
            False,
            False,
        ),  # nothing is pretrained, so there are no frozen features
        (NETWORKS, {"sampler": "grid", "edits": {"optimizer": "sgd"}}, False, False),
        (NETWORKS, {"arms": ({"strategy": "lp_ft"}, {"strategy": "clip"})}, False, False),
    ],
)
def test_a_sweep_screens_if_it_has_backbones_to_drop_or_a_head_to_select(
    preparing: Preparing, backbones: Sequence[str], changes: Mapping[str, Any], drops: bool, selects: bool
) -> None:
    prepared = preparing(*backbones, **changes)
    assert (screening.drops_backbones(prepared), screening.selects_initial_head(prepared)) == (drops, selects)
    assert bool(screening.screening_trials(prepared)) == bool(screening.describe(prepared)) == (drops or selects)
    assert ("screening" in describe_plan(prepared)) == (drops or selects)


def test_a_screened_sweep_cannot_be_resumed_with_another_number_of_backbones_to_keep(preparing: Preparing) -> None:
    strategies = ("clip", "linear_probe")
    kept = {keep: preparing(*NETWORKS, "test_convnext", keep_backbones=keep, strategies=strategies) for keep in (2, 3)}
    assert plan_differences(describe_plan(kept[2]), describe_plan(kept[3])) == ["screening.keep: 2 -> 3"]


def test_a_number_to_keep_that_drops_no_backbone_is_not_part_of_the_plan(preparing: Preparing) -> None:
    assert describe_plan(preparing(keep_backbones=3)) == describe_plan(preparing(keep_backbones=5))


@pytest.mark.parametrize("keep", [-1, 0, 1])
def test_keeping_fewer_than_two_backbones_is_refused(make_plan: Callable[..., Plan], keep: int) -> None:
    with pytest.raises(ValueError, match=f"keep_backbones is {keep}; must be between 2 and 100"):
        make_plan(keep_backbones=keep)


# --- trials ----------------------------------------------------------------------------------------------------------


def test_every_head_is_tried_on_every_backbone_as_a_recipe_of_its_own(three: Prepared) -> None:
    trials = screening.screening_trials(three)
    tried = [
        (trial.recipe["backbone"], trial.recipe["strategy"]["name"], trial.recipe["strategy"]["penalty"])
        for trial in trials
    ]
    assert tried == [
        (name, strategy, penalty) for name in NETWORKS for strategy in PENALTIES for penalty in PENALTIES[strategy]
    ]
    assert [trial.name for trial in trials] == [f"screen-{number:02d}" for number in range(30)]
    assert {trial.phase for trial in trials} == {"screen"}
    assert {trial.recipe["epochs"] for trial in trials} == {1}


def test_heads_are_fitted_on_the_images_that_the_search_uses(preparing: Preparing) -> None:
    prepared = preparing(edits={"colour": "grey", "images_per_class": "4", "penalty": "7", "activation": "mish"})
    for trial in screening.screening_trials(prepared):
        recipe = trial.recipe
        assert (recipe["colour"]["name"], recipe["images_per_class"], recipe["activation"]["name"]) == (
            *("grey", 4),
            "mish",
        )
    assert {trial.recipe["strategy"]["penalty"] for trial in screening.screening_trials(prepared)} == {
        penalty for penalties in PENALTIES.values() for penalty in penalties
    }


# --- the decision ----------------------------------------------------------------------------------------------------


def test_the_backbones_with_the_best_heads_are_kept_best_first(three: Prepared) -> None:
    best = {("test_vit", "ridge_probe", 10.0): 0.9, ("test_efficientnet", "logistic_probe", 0.1): 0.8}
    decision = screening.screening_decision(three, heads(three, best))
    assert (decision["kept"], decision["dropped"]) == (["test_vit", "test_efficientnet"], ["test_resnet"])
    assert decision["by"] == "accuracy"
    assert screening.summary_line(decision) == (
        "frozen features speak for test_vit, test_efficientnet; test_resnet is left out"
    )


def test_of_equally_good_backbones_those_named_first_are_kept(three: Prepared) -> None:
    decision = screening.screening_decision(three, heads(three, {}))
    assert (decision["kept"], decision["dropped"]) == (["test_resnet", "test_efficientnet"], ["test_vit"])


def test_the_penalty_is_that_of_the_best_logistic_head_even_if_a_ridge_head_is_better(three: Prepared) -> None:
    best = {
        ("test_resnet", "ridge_probe", 1.0): 0.95,
        ("test_resnet", "logistic_probe", 10.0): 0.5,
        ("test_vit", "logistic_probe", 100.0): 0.7,
    }
    penalties = screening.screening_decision(three, heads(three, best))["penalties"]
    assert (penalties["test_resnet"], penalties["test_vit"]) == (10.0, 100.0)


def test_of_equally_good_heads_the_one_with_the_lowest_loss_is_selected(three: Prepared) -> None:
    records = heads(three, {})
    for index, record in enumerate(records):
        loss = 0.1 if record.recipe["strategy"]["penalty"] == 100.0 else 0.5
        records[index] = replace(record, epochs=(replace(record.epochs[0], val_loss=loss),))
    assert set(screening.screening_decision(three, records)["penalties"].values()) == {100.0}


def test_a_backbone_whose_heads_all_failed_comes_last_and_has_no_penalty(three: Prepared) -> None:
    records = [
        replace(record, status="failed", epochs=(), val=None) if record.recipe["backbone"] == "test_resnet" else record
        for record in heads(three, {})
    ]
    decision = screening.screening_decision(three, records)
    assert (decision["kept"], decision["dropped"]) == (["test_efficientnet", "test_vit"], ["test_resnet"])
    assert "test_resnet" not in decision["penalties"]
    assert screening.narrow_space(three, decision).space.strategies() == STRATEGIES


@pytest.mark.parametrize(
    ("objective", "measure"),
    [
        (("accuracy",), "accuracy"),
        (("balanced_accuracy", "seconds"), "balanced_accuracy"),
        (("noisy_accuracy",), "accuracy"),  # heads are not evaluated under noise, which needs the full network
        (("loss",), "accuracy"),
        (("seconds", "accuracy"), "accuracy"),
    ],
)
def test_backbones_are_compared_by_an_accuracy(objective: Sequence[str], measure: str) -> None:
    assert screening.screening_objective([OBJECTIVES[name] for name in objective]).name == measure


@pytest.fixture(scope="module")
def with_lora(preparing: Preparing) -> Prepared:
    """A plan with `lora`, which needs linear layers; only one of the networks has them."""
    return preparing(strategies=("clip", "lora"))


def test_for_a_strategy_that_none_of_the_best_backbones_supports_the_best_one_that_does_is_kept(
    with_lora: Prepared,
) -> None:
    best = {(name, "ridge_probe", 1.0): 0.9 for name in ("test_resnet", "test_efficientnet")}
    decision = screening.screening_decision(with_lora, heads(with_lora, best))
    assert (decision["kept"], decision["dropped"]) == ([*NETWORKS], [])
    space = screening.narrow_space(with_lora, decision).space
    good = [space.configured(params) for params in space.known_good()]
    assert ("lora", "test_vit") in {(config["strategy"], config["backbone"]) for config in good}


def test_only_logistic_heads_are_tried_if_only_a_head_has_to_be_selected(preparing: Preparing) -> None:
    trials = screening.screening_trials(preparing(keep_backbones=3))
    assert len(trials) == 15
    assert {trial.recipe["strategy"]["name"] for trial in trials} == {"logistic_probe"}


def test_a_backbone_that_supports_no_head_is_refused_and_one_that_supports_some_is_tried_with_those(
    preparing: Preparing, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = preparing(strategies=("clip",))

    def no_ridge(recipe: Recipe) -> None:
        if recipe.backbone == "test_vit" and recipe.strategy.name in refused:
            raise ValueError("it ends in NormLinear")

    monkeypatch.setattr("xfer.training.networks.check_network", no_ridge)
    refused = {"ridge_probe"}
    assert len(screening.screening_trials(prepared)) == 25
    refused = {"ridge_probe", "logistic_probe"}
    with pytest.raises(ValueError, match=r"backbone test_vit cannot be compared .*NormLinear.* --keep-backbones"):
        screening.screening_trials(prepared)


# --- the narrowed space ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow(three: Prepared) -> Prepared:
    best = {("test_vit", "logistic_probe", 10.0): 0.9, ("test_efficientnet", "logistic_probe", 0.1): 0.8}
    return screening.narrow_space(three, screening.screening_decision(three, heads(three, best)))


def test_only_kept_backbones_and_selected_penalties_are_proposed(narrow: Prepared) -> None:
    sampler, lp_ft_heads = AskTellSampler(narrow.space, "random", seed=0), set()
    for number in range(80):
        params, config = sampler.ask(f"{number:04d}", number)
        recipe = narrow.recipe(config)
        assert "penalty" not in {name.rpartition(".")[2] for name in params}
        if recipe.strategy.name == "lp_ft":
            lp_ft_heads.add((recipe.backbone, dict(recipe.strategy.values)["penalty"]))
        assert recipe.backbone in ("test_vit", "test_efficientnet")
    assert lp_ft_heads == {("test_vit", 10.0), ("test_efficientnet", 0.1)}


def test_known_good_recipes_are_tried_on_the_best_backbone(narrow: Prepared) -> None:
    good = [narrow.space.configured(params) for params in narrow.space.known_good()]
    assert [config["backbone"] for config in good] == ["test_vit", "test_efficientnet", *["test_vit"] * 2]


def test_a_logistic_probe_begins_with_the_selected_penalty_and_the_others_compete(preparing: Preparing) -> None:
    prepared = preparing("test_vit", strategies=("lp_ft", "logistic_probe"))
    best = {("test_vit", "logistic_probe", 10.0): 0.9}
    space = screening.narrow_space(prepared, screening.screening_decision(prepared, heads(prepared, best))).space
    configs = {config["strategy"]: config for config in map(space.configured, space.known_good())}
    assert (configs["logistic_probe"]["penalty"], configs["lp_ft"]["penalty"]) == (10.0, 10.0)
    competing = space.possible["test_vit"]["logistic_probe"]["penalty"]
    assert isinstance(competing, Categorical)
    assert sorted(competing.values, key=str) == sorted(PENALTIES["logistic_probe"], key=str)


def test_penalties_that_were_given_are_not_narrowed(preparing: Preparing) -> None:
    prepared = preparing(edits={"penalty": "0.5,5"})
    space = screening.narrow_space(prepared, screening.screening_decision(prepared, heads(prepared, {}))).space
    assert space.parameter("lp_ft", "penalty") == Categorical((0.5, 5))
    assert space.possible["test_resnet"]["lp_ft"]["penalty"] == Categorical((0.5, 5))


def test_a_warm_start_loses_the_recipes_of_dropped_backbones(three: Prepared, narrow: Prepared) -> None:
    warm_params = [
        {**params, "backbone": name, "lp_ft.penalty": 1.0}
        for params in three.space.known_good()[-2:]
        for name in NETWORKS
    ]
    remaining = screening.remaining_params(narrow.space, warm_params)
    assert [params["backbone"] for params in remaining] == ["test_efficientnet", "test_vit"] * 2
    sampler = AskTellSampler(narrow.space, "tpe", seed=0, warm=remaining)
    for number in range(6):
        sampler.ask(f"{number:04d}", number)
        sampler.tell(a_record(f"{number:04d}"))
    again = AskTellSampler(narrow.space, "tpe", seed=0, warm=remaining)
    again.replay({"0000": (remaining[0], a_record("0000"))})


# --- in a sweep that fits heads in this process ----------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path, three: Prepared) -> Store:
    store = Store(tmp_path / "colours")
    store.put_plan(describe_plan(three))
    return store


@pytest.fixture
def start(three: Prepared, store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Sweep]:
    """Starts the sweep. Its heads are not fitted to convergence, which took most of the time of these tests."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("xfer.linear_heads.MAX_STEPS", 2)
    return lambda: Sweep(
        three, store, RunOptions(tracking_uri=""), ProgressView(Console(file=io.StringIO()), "colours")
    )


def test_a_screening_that_runs_out_of_budget_is_undecided_and_resumed_by_the_next_start(
    store: Store, start: Callable[[], Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = start()
    monkeypatch.setattr(sweep.budget, "exceeded", lambda: len(store.records()) >= 10)
    sweep.screen()
    sweep.search()
    first = {record.trial: record for record in store.records()}
    assert sorted(first) == [f"screen-{number:02d}" for number in range(10)]
    assert {record.recipe["backbone"] for record in first.values()} == {NETWORKS[0]}
    assert store.decisions("screening") == []
    assert {trial.phase for trial in store.trials()} == {"screen"}
    start().screen()
    assert len(store.records()) == 30
    assert {name: store.record(name) for name in first} == first
    assert len(store.decisions("screening")) == 1


def test_a_lost_decision_is_made_again_and_the_sampler_still_knows_the_trials_of_the_search(
    store: Store, start: Callable[[], Sweep]
) -> None:
    sweep = start()
    sweep.screen()
    [decision] = store.decisions("screening")
    assert sweep.sampler is not None
    for number in range(6):
        name = f"{number:04d}"
        params, config = sweep.sampler.ask(name, number)
        recipe = sweep.prepared.recipe(config)
        store.add_trial(Trial(name, "search", params, recipe.as_dict()))
        store.add_record(a_record(name, key=recipe.key, recipe=recipe.as_dict()))
    assert "lp_ft" in {trial.recipe["strategy"]["name"] for trial in store.trials() if trial.phase == "search"}
    (store.folder / "screening" / "0001.json").write_text("{")
    again = start()
    again.screen()
    assert [{**stored, "at": ""} for stored in store.decisions("screening")] == [{**decision, "at": ""}]
    again.export_study()
    study = optuna.load_study(study_name=store.name, storage=f"sqlite:///{store.local_folder / 'study.sqlite3'}")
    assert len(study.trials) == 6
