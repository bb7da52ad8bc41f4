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
from sweeps.engine.planning.plan_file import default_name, describe_plan
from sweeps.engine.planning.prepare import prepare
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.presearch import advice
from sweeps.engine.presearch.advice import recommend_strategies, recommended_strategies, summary_line
from sweeps.engine.search_space.overrides import space_for
from sweeps.engine.storage.store import Store
from sweeps.engine.sweep import Sweep
from sweeps.engine.trials.run_options import RunOptions
from tests.conftest import BACKBONE
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
    sweep = Sweep(prepared, store, RunOptions(tracking_uri=""), NoView())  # type: ignore[arg-type]
    return [str(sweep.sampler.ask(f"{number:04d}", number)[1]["strategy"]) for number in range(count)]


# --- the advice ------------------------------------------------------------------------------------------------------


def test_a_sweep_is_advised_on_its_own_data_and_network(prepared: Prepared) -> None:
    advised = recommend_strategies(prepared)
    assert advised["measured"]["backbone"] == "test_efficientnet"
    assert advised["measured"]["images"] == len(prepared.split.train) == 24
    in_plan = json.loads(json.dumps(advised))
    assert recommended_strategies(in_plan) == recommended_strategies(advised)
    names = [item["strategy"]["name"] for item in advised["recommended"]]
    assert list(recommended_strategies(advised)) == [name for name in names if name in STRATEGIES]
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
    return dataclasses.replace(prepared, backbones=(dataclasses.replace(backbone, file=None, sha256=""),))


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
    assert recommended_strategies({}) == ()
    assert summary_line({}) == ""


@pytest.mark.parametrize(
    ("advised_names", "changes", "line"),
    [
        (
            ("linear_probe", "lp_ft", "clip", "train_last"),
            {},
            "the data set is small and similar to the pretraining data: linear_probe (training only the new head, on "
            "frozen features), clip (full fine-tuning, gradients clipped) first "
            "(also recommended, but not competing: lp_ft, train_last)",
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
            "the data set is small and similar to the pretraining data: the default order "
            "(also recommended, but not competing: lp_ft)",
        ),
    ],
    ids=["some compete", "all compete", "none competes"],
)
def test_the_summary_names_what_comes_first_and_what_does_not_compete(
    prepared: Prepared,
    advised: Callable[..., None],
    advised_names: tuple[str, ...],
    changes: dict[str, Any],
    line: str,
) -> None:
    advised(*advised_names, **changes)
    assert summary_line(recommend_strategies(prepared)) == line


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
