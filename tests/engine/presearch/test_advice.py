"""Advice: a new sweep first tries the strategies that suit its data, and keeps that order when it is resumed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeps.engine import launch
from sweeps.engine.launch import claim_plan
from sweeps.engine.plan import Plan
from sweeps.engine.planning.plan_file import PlanChangedError, default_name, describe_plan
from sweeps.engine.planning.prepare import prepare
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.planning.screening import screening_decision
from sweeps.engine.presearch import advice
from sweeps.engine.presearch.advice import recommend_strategies, recommended_strategies, summary_line
from sweeps.engine.samplers.ask_tell import AskTellSampler
from sweeps.engine.search_space.overrides import space_for
from sweeps.engine.storage.store import Store
from sweeps.engine.sweep import Sweep
from sweeps.engine.trials.run_options import RunOptions
from tests.conftest import BACKBONE
from tests.engine.conftest import write_noise_images
from xfer.hyperparameters import Categorical
from xfer.models import backbones

STRATEGIES = ("naive", "clip", "linear_probe")


class NoView:
    """A progress view that shows nothing."""


@pytest.fixture(scope="module")
def prepared(one_thread: None, image_folder: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    plan = Plan(
        experiment="folder",
        question="Which?",
        data=str(image_folder),
        backbones=("test_efficientnet",),
        weights={"test_efficientnet": str(weights)},
        image_size=32,
        trials=4,
        epochs=3,
        strategies=STRATEGIES,
    )
    return prepare(plan, tmp_path_factory.mktemp("storage"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "sweep")


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces the advisor with one that recommends the given strategies."""

    def recommend(*names: str, **changes: Any) -> None:
        monkeypatch.setattr(advice, "advise", lambda *args, **kwargs: FakeAdvice(names, changes))

    return recommend


@dataclasses.dataclass(frozen=True)
class FakeAdvice:
    """The part of an advice that a sweep uses."""

    names: tuple[str, ...]
    changes: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        recommended = [{"strategy": {"name": name}, "reason": "", "whose": ""} for name in self.names]
        return {"size": "small", "likeness": "similar", "clear": True, "recommended": recommended, **self.changes}


def changed(prepared: Prepared, **changes: Any) -> Prepared:
    return dataclasses.replace(prepared, plan=dataclasses.replace(prepared.plan, **changes))


def first_strategies(prepared: Prepared, store: Store, count: int = 3) -> list[str]:
    """The strategies that a sweep started now proposes first."""
    sampler = started_sampler(prepared, store)
    return [str(sampler.ask(f"{number:04d}", number)[1]["strategy"]) for number in range(count)]


def started_sampler(prepared: Prepared, store: Store) -> AskTellSampler:
    """The sampler of a sweep started now, after a screening that has found no difference between heads."""

    def start() -> AskTellSampler | None:
        return Sweep(prepared, store, RunOptions(tracking_uri=""), NoView()).sampler  # type: ignore[arg-type]

    if (sampler := start()) is None:
        store.decide("screening", screening_decision(prepared, ()))
        sampler = start()
    assert sampler is not None
    return sampler


# --- the advice ------------------------------------------------------------------------------------------------------


def test_a_sweep_is_advised_on_its_own_data_and_network(prepared: Prepared) -> None:
    advised = recommend_strategies(prepared)
    assert advised["measured"]["backbone"] == "test_efficientnet"
    assert advised["measured"]["images"] == len(prepared.split.train) == 24
    in_plan = json.loads(json.dumps(advised))
    assert recommended_strategies(in_plan) == recommended_strategies(advised)
    names = [item["strategy"]["name"] for item in advised["recommended"]]
    assert list(recommended_strategies(advised)) == [name for name in names if name in STRATEGIES]
    assert advised["added"] == []  # the user has listed the strategies
    assert "clip" in recommended_strategies(advised)


def test_advice_uses_the_training_part_of_the_sweeps_own_seed(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def recording(*args: Any, **kwargs: Any) -> FakeAdvice:
        calls.append(args)
        return FakeAdvice(("clip",), {})

    monkeypatch.setattr(advice, "advise", recording)
    recommend_strategies(changed(prepared, seed=7))
    (backbone,) = prepared.backbones
    assert calls == [(prepared.pack, "test_efficientnet", backbone.file, backbone.args, 7)]


def nothing_pretrained(prepared: Prepared) -> Prepared:
    (backbone,) = prepared.backbones
    axes = {**prepared.space.axes, "strategy": Categorical(("scratch", "small_cnn"))}
    space = dataclasses.replace(prepared.space, axes=axes, possible={})
    return dataclasses.replace(prepared, space=space, backbones=(dataclasses.replace(backbone, file=None, sha256=""),))


def one_strategy(prepared: Prepared) -> Prepared:
    axes = {**prepared.space.axes, "strategy": Categorical(("naive",))}
    return dataclasses.replace(prepared, space=dataclasses.replace(prepared.space, axes=axes))


@pytest.mark.parametrize(
    "without",
    [
        lambda prepared: changed(prepared, advise=False),
        lambda prepared: changed(prepared, arms=({"strategy": "naive"}, {"strategy": "clip"})),
        nothing_pretrained,
        one_strategy,
    ],
    ids=["switched off", "arms", "nothing pretrained", "one strategy"],
)
def test_nothing_is_measured_if_there_is_nothing_to_order(
    prepared: Prepared, store: Store, monkeypatch: pytest.MonkeyPatch, without: Callable[[Prepared], Prepared]
) -> None:
    monkeypatch.setattr(advice, "advise", lambda *args, **kwargs: pytest.fail("measured"))
    claim_plan(without(prepared), store)
    assert (store.plan() or {})["advice"] == {}
    assert recommended_strategies({}) == {}
    assert summary_line({}) == ""


@pytest.mark.parametrize(
    ("advised_names", "changes", "line"),
    [
        (
            ("linear_probe", "lp_ft", "clip", "train_last"),
            {},
            "the data set is small and similar to the pretraining data: linear_probe (training only the new head, on "
            "frozen features), clip (full fine-tuning, gradients clipped) first; "
            "--strategies naive,clip,linear_probe,lp_ft,train_last adds lp_ft, train_last",
        ),
        (
            ("clip",),
            {"size": "large", "likeness": "different", "clear": False},
            "the data set is large and different from the pretraining data, a close call: clip (full fine-tuning, "
            "gradients clipped) first",
        ),
        (
            ("lp_ft",),
            {},
            "the data set is small and similar to the pretraining data: the default order; "
            "--strategies naive,clip,linear_probe,lp_ft adds lp_ft",
        ),
    ],
    ids=["some compete", "all compete", "none competes"],
)
def test_the_users_strategies_stand_and_the_summary_names_the_flag_that_adds_others(
    prepared: Prepared,
    advised: Callable[..., None],
    advised_names: tuple[str, ...],
    changes: dict[str, Any],
    line: str,
) -> None:
    advised(*advised_names, **changes)
    assert summary_line(recommend_strategies(prepared), prepared.space.strategies()) == line


# --- advised strategies compete --------------------------------------------------------------------------------------

DEFAULT = ("clip", "lp_ft", "freeze_then_unfreeze", "naive", "linear_probe", "logistic_probe", "scratch")


@pytest.fixture(scope="module")
def open_choice(make_plan: Callable[..., Plan], storage: Path) -> Prepared:
    """A sweep whose strategies are left to it."""
    return prepare(make_plan(trials=9), storage)


def test_advised_strategies_are_added_to_the_search_and_come_first(
    open_choice: Prepared, store: Store, advised: Callable[..., None]
) -> None:
    advised("train_last", "clip", "early_cut", "linear_probe")
    claim_plan(open_choice, store)
    plan = store.plan() or {}
    assert plan["advice"]["order"] == ["train_last", "clip", "early_cut", "linear_probe"]
    assert plan["advice"]["added"] == ["train_last", "early_cut"]
    assert plan["space"]["strategy"] == ", ".join((*DEFAULT, "train_last", "early_cut"))
    assert summary_line(plan["advice"], open_choice.space.strategies()) == (
        "the data set is small and similar to the pretraining data: train_last (fine-tuning only the head and the "
        "last blocks), clip (full fine-tuning, gradients clipped), early_cut (linear classifier on the frozen features "
        "of an early stage), linear_probe (training only the new head, on frozen features) first; train_last, "
        "early_cut added to the search"
    )
    assert first_strategies(open_choice, store, 9) == [
        *("train_last", "clip", "early_cut", "linear_probe", "lp_ft", "freeze_then_unfreeze", "logistic_probe"),
        *("naive", "scratch"),
    ]


def test_an_added_strategy_begins_with_the_advised_parameters(
    open_choice: Prepared, store: Store, advised: Callable[..., None]
) -> None:
    recommended = [{"strategy": {"name": "train_last", "blocks": 2}, "reason": "", "whose": ""}]
    advised(recommended=recommended)
    claim_plan(open_choice, store)
    _, config = started_sampler(open_choice, store).ask("0000", 0)
    assert (config["strategy"], config["blocks"]) == ("train_last", 2)


def test_a_resumed_sweep_has_the_strategies_that_were_added_and_the_same_plan(
    open_choice: Prepared, store: Store, advised: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    advised("lora", "layer_decay")
    claim_plan(open_choice, store)
    first = store.plan()
    order = first_strategies(open_choice, store, 8)
    monkeypatch.setattr(launch, "recommend_strategies", lambda prepared, progress: pytest.fail("measured again"))
    for again in (open_choice, changed(open_choice, advise=False)):
        claim_plan(again, store)
        assert store.plan() == first
        assert first_strategies(again, store, 8) == order
    claim_plan(changed(open_choice, trials=12), store)
    assert {**(store.plan() or {}), "trials": 9, "provenance": None} == {**(first or {}), "provenance": None}


def test_other_strategies_than_those_of_the_first_start_are_a_changed_plan(
    make_plan: Callable[..., Plan], open_choice: Prepared, storage: Path, store: Store, advised: Callable[..., None]
) -> None:
    advised("layer_decay")
    claim_plan(open_choice, store)
    with pytest.raises(PlanChangedError, match=r"space\.strategy: .*clip, .*scratch -> naive, clip"):
        claim_plan(prepare(make_plan(trials=9, strategies=("naive", "clip")), storage), store)


def test_a_default_search_begins_with_a_screening_of_the_heads_that_lp_ft_starts_from(
    open_choice: Prepared, store: Store, advised: Callable[..., None]
) -> None:
    advised("lp_ft")
    claim_plan(open_choice, store)
    assert "logistic_probe" in (store.plan() or {})["screening"]["heads"]
    sweep = Sweep(open_choice, store, RunOptions(tracking_uri=""), NoView())  # type: ignore[arg-type]
    assert sweep.sampler is None  # the screening comes first
    claim_plan(open_choice, store)


@pytest.mark.parametrize(
    "changes",
    [{"sampler": "grid"}, {"edits": {"strategy": "naive,clip"}}, {"strategies": ("naive", "clip")}],
    ids=["grid", "--vary strategy", "--strategies"],
)
def test_nothing_is_added_to_strategies_that_the_user_or_a_grid_has_fixed(
    make_plan: Callable[..., Plan], storage: Path, advised: Callable[..., None], changes: dict[str, Any]
) -> None:
    advised("train_last", "naive")
    advice_given = recommend_strategies(prepare(make_plan(trials=2, **changes), storage))
    assert (advice_given["order"], advice_given["added"]) == (["naive"], [])


def test_an_advised_strategy_that_the_network_cannot_do_is_not_added(
    open_choice: Prepared, advised: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeps.engine.planning import prepare as module

    def check(recipe: Any) -> None:
        if recipe.strategy.name == "drop_early":
            raise ValueError("it has a single stage")

    monkeypatch.setattr(module.networks, "check_network", check)
    advised("drop_early", "train_last")
    advice_given = recommend_strategies(open_choice)
    assert (advice_given["order"], advice_given["added"]) == (["train_last"], ["train_last"])


def test_a_sweep_of_an_earlier_version_keeps_its_strategies_and_its_order(
    open_choice: Prepared, store: Store, advised: Callable[..., None]
) -> None:
    advised("linear_probe", "train_last")
    claim_plan(changed(open_choice, advise=False), store)
    old = {**FakeAdvice(("linear_probe", "train_last"), {}).as_dict(), "order": ["linear_probe"]}
    store.put_plan({**(store.plan() or {}), "advice": old})
    claim_plan(open_choice, store)
    assert (store.plan() or {})["advice"] == old
    assert first_strategies(open_choice, store, 3) == ["linear_probe", "clip", "lp_ft"]
    assert recommended_strategies(old) == {"linear_probe": {}}


# --- what a sweep does with it ---------------------------------------------------------------------------------------


def test_a_new_sweep_starts_in_the_advised_order(
    prepared: Prepared, store: Store, advised: Callable[..., None]
) -> None:
    advised("linear_probe", "lp_ft", "naive")
    claim_plan(prepared, store)
    assert first_strategies(prepared, store) == ["linear_probe", "naive", "clip"]


def test_without_advice_it_starts_in_the_default_order(prepared: Prepared, store: Store) -> None:
    plain = changed(prepared, advise=False)
    claim_plan(plain, store)
    assert first_strategies(plain, store) == ["clip", "linear_probe", "naive"]


def test_a_resumed_sweep_keeps_its_advice_even_if_it_would_differ_now(
    prepared: Prepared, store: Store, advised: Callable[..., None]
) -> None:
    advised("linear_probe", "naive")
    claim_plan(prepared, store)
    first = store.plan()
    advised("clip")
    for again in (prepared, changed(prepared, advise=False)):
        claim_plan(again, store)
        assert store.plan() == first
        assert first_strategies(again, store) == ["linear_probe", "naive", "clip"]
    more = changed(prepared, trials=9)
    claim_plan(more, store)
    plan = store.plan() or {}
    assert (plan["trials"], plan["advice"]) == (9, (first or {})["advice"])
    assert first_strategies(more, store) == ["linear_probe", "naive", "clip"]


def test_resuming_measures_nothing(prepared: Prepared, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    claim_plan(changed(prepared, advise=False), store)
    monkeypatch.setattr(launch, "recommend_strategies", lambda prepared, progress: pytest.fail("measured again"))
    claim_plan(prepared, store)
    claim_plan(changed(prepared, trials=9), store)


def test_advice_does_not_affect_the_name_of_a_sweep_or_the_comparison_of_plans(
    prepared: Prepared, advised: Callable[..., None]
) -> None:
    advised("linear_probe")
    assert default_name(prepared) == default_name(changed(prepared, advise=False))
    assert "advice" not in describe_plan(prepared)


def test_a_network_whose_stages_are_unknown_is_reported_and_starts_in_the_default_order(
    prepared: Prepared, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = backbones.build

    def without_stages(*args: Any, **kwargs: Any) -> Any:
        model: Any = build(*args, **kwargs)
        model.feature_info = None
        return model

    monkeypatch.setattr(backbones, "build", without_stages)
    claim_plan(prepared, store)
    stored = (store.plan() or {})["advice"]
    assert list(stored) == ["why_none"]
    assert "timm does not define the stages of EfficientNet" in stored["why_none"]
    assert summary_line(stored) == f"none, so the default order: {stored['why_none']}"
    assert first_strategies(prepared, store) == ["clip", "linear_probe", "naive"]


def test_an_error_while_measuring_does_not_keep_a_sweep_from_starting(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise TypeError("forward() got an unexpected keyword argument")

    monkeypatch.setattr(advice, "advise", broken)
    assert recommend_strategies(prepared) == {"why_none": "TypeError: forward() got an unexpected keyword argument"}


def test_advice_measures_as_many_images_as_are_trained_on(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def recording(*args: Any, **kwargs: Any) -> FakeAdvice:
        calls.append(kwargs["images_per_class"])
        return FakeAdvice((), {})

    monkeypatch.setattr(advice, "advise", recording)
    for text, images_per_class in (("none", None), ("4", 4), ("2,4", None)):
        space = space_for([BACKBONE], 4, edits={"images_per_class": text})
        recommend_strategies(dataclasses.replace(prepared, space=space))
        assert calls.pop() == images_per_class


# --- imbalanced classes ----------------------------------------------------------------------------------------------

ALL_BALANCES = ["none", "class_weights", "balanced_sampler", "logit_adjustment"]


@pytest.fixture(scope="module")
def imbalanced_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """62 images of ants and 12 of bees: training parts of 44 and 8."""
    folder = tmp_path_factory.mktemp("imbalanced")
    write_noise_images(folder / "ants", 62, 0)
    write_noise_images(folder / "bees", 12, 1)
    return folder


@pytest.fixture(scope="module")
def imbalanced(make_plan: Callable[..., Plan], storage: Path, imbalanced_folder: Path) -> Prepared:
    return prepare(make_plan(data=str(imbalanced_folder), trials=9), storage)


def test_every_balance_competes_where_the_rarest_class_has_less_than_a_fifth_of_the_most_frequent(
    imbalanced: Prepared, store: Store, advised: Callable[..., None]
) -> None:
    advised("clip")
    claim_plan(imbalanced, store)
    plan = store.plan() or {}
    assert plan["advice"]["imbalance"] == {"rarest": ["bees"], "fewest": 8, "most_frequent": "ants", "most": 44}
    assert plan["advice"]["balances"] == ALL_BALANCES
    assert plan["space"]["balance"] == ", ".join(ALL_BALANCES)
    assert summary_line(plan["advice"]).endswith(
        "first; classes are imbalanced: balance none, class_weights, balanced_sampler, logit_adjustment compete"
    )
    sampler = started_sampler(imbalanced, store)
    first, second, third = (sampler.ask(f"{number:04d}", number)[1] for number in range(3))
    assert (first["strategy"], first["balance"]) == ("clip", "none")
    assert second == {**first, "balance": "logit_adjustment", "tau": 1.0}
    assert third["balance"] == "none"


def test_a_sweep_on_imbalanced_classes_says_so_and_suggests_an_objective(
    imbalanced: Prepared, make_plan: Callable[..., Plan], storage: Path, imbalanced_folder: Path
) -> None:
    said = "Classes are imbalanced: the most frequent class, ants, has 44 training images, and bees has 8."
    (note,) = (note for note in imbalanced.notes if "imbalanced" in note)
    assert note.startswith(said)
    assert "--objective balanced_accuracy" in note
    ranked = prepare(make_plan(data=str(imbalanced_folder), objective=("balanced_accuracy",)), storage)
    assert said in ranked.notes


def test_a_resumed_sweep_on_imbalanced_classes_has_the_same_plan(
    imbalanced: Prepared, store: Store, advised: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    advised("clip")
    claim_plan(imbalanced, store)
    first = store.plan()
    monkeypatch.setattr(launch, "recommend_strategies", lambda prepared, progress: pytest.fail("measured again"))
    for again in (imbalanced, changed(imbalanced, advise=False)):
        claim_plan(again, store)
        assert store.plan() == first


@pytest.mark.parametrize(
    "changes",
    [{"edits": {"balance": "none"}}, {"edits": {"balance": "class_weights"}}, {"sampler": "grid"}, {"advise": False}],
    ids=["--fix balance=none", "--fix balance=class_weights", "grid", "--no-advise"],
)
def test_a_balance_that_the_user_or_a_grid_has_fixed_stays(
    make_plan: Callable[..., Plan],
    storage: Path,
    imbalanced_folder: Path,
    store: Store,
    advised: Callable[..., None],
    changes: dict[str, Any],
) -> None:
    advised("clip")
    prepared = prepare(make_plan(data=str(imbalanced_folder), trials=2, **changes), storage)
    claim_plan(prepared, store)
    plan = store.plan() or {}
    assert "balances" not in plan["advice"]
    assert plan["space"]["balance"] == changes.get("edits", {}).get("balance", "none")


def test_balances_compete_even_if_there_is_no_strategy_to_order(
    make_plan: Callable[..., Plan], storage: Path, imbalanced_folder: Path, store: Store
) -> None:
    prepared = prepare(make_plan(data=str(imbalanced_folder), trials=2, strategies=("naive",)), storage)
    claim_plan(prepared, store)
    plan = store.plan() or {}
    assert plan["space"]["balance"] == ", ".join(ALL_BALANCES)
    assert summary_line(plan["advice"]) == (
        "classes are imbalanced: balance none, class_weights, balanced_sampler, logit_adjustment compete"
    )


def test_balances_do_not_compete_where_images_per_class_are_limited_to_equal_numbers(
    make_plan: Callable[..., Plan], storage: Path, imbalanced_folder: Path, advised: Callable[..., None]
) -> None:
    advised("clip")
    prepared = prepare(make_plan(data=str(imbalanced_folder), edits={"images_per_class": "8"}), storage)
    assert "balances" not in recommend_strategies(prepared)
    assert not any("imbalanced" in note for note in prepared.notes)
