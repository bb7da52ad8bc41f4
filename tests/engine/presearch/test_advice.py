"""Advice: a new sweep begins with the strategies that its data call for, and never changes its mind about that."""

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
from sweeps.engine.run_options import RunOptions
from sweeps.engine.search_space.distributions import Categorical
from sweeps.engine.search_space.overrides import space_for
from sweeps.engine.storage.store import Store
from sweeps.engine.sweep import Sweep
from tests.conftest import BACKBONE
from xfer.models import backbones

STRATEGIES = ("naive", "clip", "linear_probe")


class NoWatch:
    """Looks away."""


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
    """Decides what the advisor will say from now on."""

    def say(*names: str, **changes: Any) -> None:
        monkeypatch.setattr(advice, "advise", lambda *about, **how: Said(names, changes))

    return say


@dataclasses.dataclass(frozen=True)
class Said:
    """An advice as far as a sweep looks at it."""

    names: tuple[str, ...]
    changes: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        recommended = [{"strategy": {"name": name}, "reason": "", "whose": ""} for name in self.names]
        return {"size": "small", "likeness": "similar", "clear": True, "recommended": recommended, **self.changes}


def changed(prepared: Prepared, **changes: Any) -> Prepared:
    return dataclasses.replace(prepared, plan=dataclasses.replace(prepared.plan, **changes))


def begun(prepared: Prepared, store: Store, count: int = 3) -> list[str]:
    """The strategies that a sweep begins with, as a driver that starts now would propose them."""
    sweep = Sweep(prepared, store, RunOptions(tracking_uri=""), NoWatch())  # type: ignore[arg-type]
    return [str(sweep.sampler.ask(f"{number:04d}", number)[1]["strategy"]) for number in range(count)]


# --- what is said ----------------------------------------------------------------------------------------------------


def test_a_sweep_is_advised_on_its_own_data_and_network(prepared: Prepared) -> None:
    found = recommend_strategies(prepared)
    assert found["measured"]["backbone"] == "test_efficientnet"
    assert found["measured"]["images"] == len(prepared.split.train) == 24
    assert recommended_strategies(json.loads(json.dumps(found))) == recommended_strategies(
        found
    )  # as plan.json keeps it
    named = [each["strategy"]["name"] for each in found["recommended"]]
    assert list(recommended_strategies(found)) == [name for name in named if name in STRATEGIES]
    assert "clip" in recommended_strategies(found)


def test_advice_looks_at_the_training_part_of_the_sweeps_own_seed(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def noted(*about: Any, **how: Any) -> Said:
        asked.append(about)
        return Said(("clip",), {})

    monkeypatch.setattr(advice, "advise", noted)
    recommend_strategies(changed(prepared, seed=7))
    (backbone,) = prepared.backbones
    assert asked == [(prepared.pack, "test_efficientnet", backbone.file, backbone.args, 7)]


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
    ids=["unwanted", "arms", "nothing pretrained", "one strategy"],
)
def test_where_there_is_nothing_to_order_nothing_is_measured(
    prepared: Prepared, store: Store, monkeypatch: pytest.MonkeyPatch, without: Callable[[Prepared], Prepared]
) -> None:
    monkeypatch.setattr(advice, "advise", lambda *about, **how: pytest.fail("measured"))
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
            "the data set is small and like what the network has learned: linear_probe, clip come first "
            "(advised too, but not competing: lp_ft, train_last)",
        ),
        (
            ("clip",),
            {"size": "large", "likeness": "different", "clear": False},
            "the data set is large and unlike what the network has learned, a close call: clip comes first",
        ),
        (
            ("lp_ft",),
            {},
            "the data set is small and like what the network has learned: the usual order "
            "(advised too, but not competing: lp_ft)",
        ),
    ],
    ids=["some compete", "all compete", "none competes"],
)
def test_a_person_reads_what_comes_first_and_what_does_not_compete(
    prepared: Prepared,
    advised: Callable[..., None],
    advised_names: tuple[str, ...],
    changes: dict[str, Any],
    line: str,
) -> None:
    advised(*advised_names, **changes)
    assert summary_line(recommend_strategies(prepared)) == line


# --- what a sweep does with it ---------------------------------------------------------------------------------------


def test_a_new_sweep_begins_in_the_advised_order(
    prepared: Prepared, store: Store, advised: Callable[..., None]
) -> None:
    advised("linear_probe", "lp_ft", "naive")
    claim_plan(prepared, store)
    assert begun(prepared, store) == ["linear_probe", "naive", "clip"]


def test_without_advice_it_begins_in_the_usual_order(prepared: Prepared, store: Store) -> None:
    plain = changed(prepared, advise=False)
    claim_plan(plain, store)
    assert begun(plain, store) == ["clip", "linear_probe", "naive"]


def test_a_sweep_gone_on_with_keeps_its_advice_whatever_would_be_said_now(
    prepared: Prepared, store: Store, advised: Callable[..., None]
) -> None:
    advised("linear_probe", "naive")
    claim_plan(prepared, store)
    first = store.plan()
    advised("clip")
    for again in (prepared, changed(prepared, advise=False)):
        claim_plan(again, store)
        assert store.plan() == first
        assert begun(again, store) == ["linear_probe", "naive", "clip"]
    more = changed(prepared, trials=9)
    claim_plan(more, store)
    plan = store.plan() or {}
    assert (plan["trials"], plan["advice"]) == (9, (first or {})["advice"])
    assert begun(more, store) == ["linear_probe", "naive", "clip"]


def test_going_on_measures_nothing(prepared: Prepared, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    claim_plan(changed(prepared, advise=False), store)
    monkeypatch.setattr(launch, "recommend_strategies", lambda prepared, progress: pytest.fail("measured again"))
    claim_plan(prepared, store)
    claim_plan(changed(prepared, trials=9), store)


def test_advice_is_no_part_of_what_a_sweep_is_called_or_compared_by(
    prepared: Prepared, advised: Callable[..., None]
) -> None:
    advised("linear_probe")
    assert default_name(prepared) == default_name(changed(prepared, advise=False))
    assert "advice" not in describe_plan(prepared)


def test_a_network_whose_stages_are_unknown_is_said_and_begins_in_the_usual_order(
    prepared: Prepared, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = backbones.build

    def without_stages(*arguments: Any, **named: Any) -> Any:
        model: Any = build(*arguments, **named)
        model.feature_info = None
        return model

    monkeypatch.setattr(backbones, "build", without_stages)
    claim_plan(prepared, store)
    found = (store.plan() or {})["advice"]
    assert list(found) == ["why_none"]
    assert "timm does not say where the stages of EfficientNet end" in found["why_none"]
    assert summary_line(found) == f"none, so the usual order: {found['why_none']}"
    assert begun(prepared, store) == ["clip", "linear_probe", "naive"]


def test_whatever_goes_wrong_while_measuring_keeps_no_sweep_from_starting(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*about: Any, **how: Any) -> Any:
        raise TypeError("forward() got an unexpected keyword argument")

    monkeypatch.setattr(advice, "advise", broken)
    assert recommend_strategies(prepared) == {"why_none": "TypeError: forward() got an unexpected keyword argument"}


def test_advice_is_about_as_many_images_as_will_be_trained_on(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(advice, "advise", lambda *about, **how: asked.append(how["images_per_class"]) or Said((), {}))
    for text, wanted in (("none", None), ("4", 4), ("2,4", None)):
        space = space_for([BACKBONE], 4, edits={"images_per_class": text})
        recommend_strategies(dataclasses.replace(prepared, space=space))
        assert asked.pop() == wanted
