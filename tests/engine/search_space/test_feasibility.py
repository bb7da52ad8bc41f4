"""Feasibility: what a network cannot do is never proposed for it, and refused with the reason if requested."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sweeps.engine.plan import Plan
from sweeps.engine.planning.prepare import prepare
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.samplers.ask_tell import AskTellSampler
from sweeps.engine.search_space.overrides import space_for
from sweeps.engine.search_space.space import Space
from tests.engine.conftest import a_record
from tests.engine.random_configs import WIDEST_CHOICES, random_configs
from xfer.choices import Value
from xfer.hyperparameters import Categorical, Range
from xfer.methods.strategies import STRATEGIES
from xfer.training import networks

BLOCKS = {"tall": 9, "short": 3}


def check_fits(backbone: str, strategy: str, values: Mapping[str, Value]) -> None:
    """Two networks of different depth; lora can be inserted into the tall one only."""
    blocks = values.get("blocks")
    if isinstance(blocks, int) and strategy != "gradual_unfreeze" and blocks >= BLOCKS[backbone]:
        raise ValueError(f"{strategy} of {blocks} blocks, but there are {BLOCKS[backbone]}")
    if strategy == "lora" and (backbone == "short" or values["rank"] == 16):
        raise ValueError("there is no layer for it")
    if strategy == "early_cut" and values["stage"] not in (1, 2, 4):
        raise ValueError(f"there is no stage {values['stage']}")


# --- invented networks


def test_the_feasible_values_of_a_parameter_are_found_for_each_network() -> None:
    space = space_for(["short", "tall"], 6, ["freeze_first", "early_cut", "lora", "naive"], is_compatible=check_fits)
    assert space.possible == {
        "short": {
            "freeze_first": {"blocks": Range(1, 2)},
            "early_cut": {"stage": Categorical((1, 2, 4))},
            "naive": {},
        },
        "tall": {
            "freeze_first": {"blocks": Range(1, 8)},
            "early_cut": {"stage": Categorical((1, 2, 4))},
            "lora": {"rank": Categorical((8, 4))},
            "naive": {},
        },
    }


def test_only_feasible_values_are_drawn() -> None:
    space = space_for(["short", "tall"], 6, list(STRATEGIES), is_compatible=check_fits)
    for config, params in random_configs(space, 1_500):
        backbone, strategy = str(config["backbone"]), str(config["strategy"])
        if backbone != "basic_cnn":
            check_fits(backbone, strategy, config)
        # to a sampler, a parameter with other values is another parameter
        assert ("short.freeze_first.blocks" in params) == ((backbone, strategy) == ("short", "freeze_first"))
        assert ("freeze_first.blocks" in params) == ((backbone, strategy) == ("tall", "freeze_first"))


def first_trials(space: Space, advised: Sequence[str] = ()) -> list[tuple[Value, Value]]:
    configs = [space.configured(params) for params in space.known_good(advised={name: {} for name in advised})]
    return [(config["strategy"], config["backbone"]) for config in configs]


def test_a_known_good_recipe_is_tried_on_the_first_able_network() -> None:
    space = space_for(["short", "tall"], 6, ["naive", "lora", "freeze_first"], is_compatible=check_fits)
    assert first_trials(space) == [("naive", "short"), ("naive", "tall"), ("freeze_first", "short"), ("lora", "tall")]
    assert [space.configured(params).get("blocks") for params in space.known_good()] == [None, None, 2, None]


def test_the_first_known_good_recipe_is_tried_on_all_able_networks() -> None:
    space = space_for(["short", "tall"], 6, ["lora", "naive"], is_compatible=check_fits)
    assert first_trials(space, ["lora"]) == [("lora", "tall"), ("naive", "short")]


@pytest.mark.parametrize(
    ("backbones", "strategies", "edits", "message"),
    [
        (["short"], ["lora"], {}, r"strategy lora cannot be tried. short: there is no layer for it"),
        (["short"], ["naive", "lora"], {}, r"strategy lora cannot be tried. short: there is no layer for it"),
        (["tall"], ["lora"], {"rank": "16"}, r"strategy lora cannot be tried. tall: there is no layer for it"),
        (["tall"], ["lora"], {"rank": "4,16"}, r"rank=16 cannot be tried with lora. tall: there is no layer for it"),
        (["short", "tall"], ["lora"], {}, r"backbone short can do none of lora: there is no layer for it"),
        (["short"], ["freeze_first"], {"blocks": "1..8"}, r"blocks=3 .* freeze_first. short: .* but there are 3"),
        (["short", "tall"], ["train_last"], {"blocks": "2,12"}, r"blocks=12 cannot be tried with train_last. short: "),
        (["tall"], ["early_cut"], {"stage": "7"}, r"strategy early_cut cannot be tried. tall: there is no stage 7"),
    ],
    ids=str,
)
def test_what_no_network_can_do_is_refused_with_the_reason(
    backbones: Sequence[str], strategies: Sequence[str], edits: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        space_for(backbones, 6, strategies, edits, check_fits)


def test_a_requested_value_that_one_network_can_do_is_accepted() -> None:
    space = space_for(["short", "tall"], 6, ["train_last"], {"blocks": "2,8"}, check_fits)
    assert space.possible["short"]["train_last"] == {"blocks": Categorical((2,))}
    assert space.possible["tall"]["train_last"] == {"blocks": Categorical((2, 8))}


# --- with real networks

NETWORKS = ("test_resnet", "test_vit")


@pytest.fixture(scope="module")
def plan_for(make_plan: Callable[..., Plan], weights_of: Callable[[str], Path]) -> Callable[..., Plan]:
    def plan(*backbones: str, **changes: Any) -> Plan:
        weights = {backbone: str(weights_of(backbone)) for backbone in backbones}
        return make_plan(backbones=backbones, weights=weights, epochs=8, **changes)

    return plan


@pytest.fixture(scope="module")
def wide(one_thread: None, plan_for: Callable[..., Plan], storage: Path) -> Prepared:
    """The widest space, on two networks."""
    return prepare(plan_for(*NETWORKS, edits=WIDEST_CHOICES), storage)


@pytest.mark.slow
def test_only_lora_is_restricted_to_transformers(wide: Prepared) -> None:
    assert set(wide.space.possible["test_vit"]) == set(STRATEGIES)
    assert set(wide.space.possible["test_resnet"]) == set(STRATEGIES) - {"lora"}


@pytest.mark.slow
def test_block_and_stage_counts_stay_within_the_network(wide: Prepared) -> None:
    resnet, vit = (wide.space.possible[name] for name in NETWORKS)
    assert resnet["early_cut"] == vit["early_cut"] == {"stage": Range(1, 4)}
    assert resnet["drop_early"] == {"stage": Range(2, 2)}  # its second and third stage have the same width
    assert vit["drop_early"] == {"stage": Range(1, 4)}
    assert resnet["freeze_first"] == resnet["train_last"] == {"blocks": Range(1, 4)}
    assert vit["freeze_first"] == vit["train_last"] == {"blocks": Range(1, 6)}


@pytest.mark.parametrize(
    "sampler", [pytest.param("tpe", marks=pytest.mark.slow), "random"]
)  # the others would take too long to propose every strategy
@pytest.mark.slow
def test_every_proposal_from_the_widest_space_becomes_a_network(wide: Prepared, sampler: str) -> None:
    """Optuna refuses a parameter whose choices change from one trial to the next."""
    ask_tell, proposed = AskTellSampler(wide.space, sampler, seed=1), set()
    for number in range(150):
        params, config = ask_tell.ask(f"{number:04d}", number)
        recipe = wide.recipe(config)
        assert wide.space.configured(params) == config
        proposed.add((recipe.strategy.name, recipe.backbone))
        if number % 5 == 0:
            networks.check_network(recipe)
        status = ("finished", "finished", "pruned", "failed")[number % 4]
        curve = (0.1,) if status == "failed" else (0.1, (number % 11) / 11)
        ask_tell.tell(a_record(f"{number:04d}", curve, status, error="lost" if status == "failed" else None))  # type: ignore[arg-type]
    assert {strategy for strategy, _ in proposed} == set(STRATEGIES)
    assert {backbone for strategy, backbone in proposed if strategy == "lora"} == {"test_vit"}
    assert {backbone for strategy, backbone in proposed if strategy == "small_cnn"} == {"basic_cnn"}


def test_every_head_activation_and_colour_works_with_every_strategy_that_changes_a_network(
    one_thread: None, plan_for: Callable[..., Plan], tmp_path: Path
) -> None:
    strategies = ("naive", "small_cnn", "early_cut", "drop_early")
    edits = {kind: WIDEST_CHOICES[kind] for kind in ("head", "activation", "colour")}
    prepared = prepare(plan_for("test_efficientnet", strategies=strategies, edits=edits), tmp_path)
    for config, _ in random_configs(prepared.space, 40):
        networks.check_network(prepared.recipe(config))


@pytest.mark.parametrize(
    ("backbones", "changes", "message"),
    [
        (
            ["test_resnet"],
            {"strategies": ("lora",)},
            r"strategy lora cannot be tried. test_resnet: .* use a transform",
        ),
        (
            ["test_resnet", "test_vit"],
            {"strategies": ("early_cut",), "edits": {"stage": "9"}},
            r"strategy early_cut cannot be tried. test_resnet: early_cut\(stage=9\): .*; test_vit: .*must be from 1 to",
        ),
        (["test_resnet"], {"strategies": ("drop_early",), "edits": {"stage": "4"}}, r"or strategy early_cut"),
        (["test_vit"], {"strategies": ("freeze_first",), "edits": {"blocks": "2..7"}}, r"blocks=7 .* use at most 6"),
        (["test_vit", "test_resnet"], {"strategies": ("lora",)}, r"backbone test_resnet can do none of lora"),
    ],
    ids=str,
)
def test_what_real_networks_cannot_do_is_refused_with_the_network_and_the_reason(
    plan_for: Callable[..., Plan], tmp_path: Path, backbones: Sequence[str], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(plan_for(*backbones, **changes), tmp_path)
    assert list(tmp_path.rglob("*")) == []
