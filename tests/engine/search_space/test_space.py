"""The space: in step with the tables, conditional, and every configuration in it trains."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from sweeps.engine.samplers.ask_tell import AskTellSampler
from sweeps.engine.search_space.defaults import AXES, LEARNING_RATE_RANGES
from sweeps.engine.search_space.distributions import Config
from sweeps.engine.search_space.known_good import known_good_recipes, rank_known_good
from sweeps.engine.search_space.overrides import space_for
from sweeps.engine.search_space.space import unfreeze_ranges
from tests.engine.random_configs import ENTRY_PARAMETERS, WIDEST_CHOICES, random_configs, recipe_of, strategy_of
from xfer.choices import default_parameters
from xfer.hyperparameters import OPTIMIZERS, Categorical
from xfer.methods.freezing import HeadFirst
from xfer.methods.strategies import STRATEGIES
from xfer.models.families import FAMILIES
from xfer.recipe import CHOICE_TABLES, DEFAULT_CHOICES, LIMITS

DEFAULT: dict[str, set[Any]] = {
    "strategy": {
        *("scratch", "linear_probe", "logistic_probe", "freeze_then_unfreeze", "lp_ft", "naive", "clip"),
        *("layer_decay", "freeze_first"),
    },
    "optimizer": {"sgd", "adam", "adamw", "radam", "ranger"},
    "schedule": {"onecycle", "cosine_warmup"},
    "augmentation": {"none", "flip", "random_resized_crop", "randaugment"},
    "mixing": {"none", "cutmix"},
    "loss": {"cross_entropy", "label_smoothing"},
    **{kind: {name} for kind, name in DEFAULT_CHOICES.items()},
    "batch_norm": {"with_weights", "frozen"},
    "clip_norm": {None, 0.5, 1.0, 5.0},
    "clip_value": {None},
    "batch_size": {16, 32, 64},
    "body_rate": {1.0},
    "drop_path": {0.0},
    "images_per_class": {None},
}
"""The default space for all networks, without ranges."""
EIGHT = DEFAULT["strategy"] - {"freeze_first"}
"""The strategies for a deep network with batch norm, which is what is assumed of an unknown one."""
HEADS = {"linear_probe", "logistic_probe"}
OTHERS = sorted(set(STRATEGIES) - EIGHT)

# --- in step with the tables


@pytest.mark.parametrize("axis", DEFAULT)
def test_the_default_space_stays_as_on_the_design_card(axis: str) -> None:
    distribution = AXES[axis]
    assert isinstance(distribution, Categorical)
    assert set(distribution.values) == DEFAULT[axis]
    assert len(distribution.values) == len(DEFAULT[axis])


def test_every_table_and_every_searched_number_of_a_recipe_is_an_axis() -> None:
    searched = {"learning_rate", *LIMITS} - {"epochs", "image_size", "eval_size", "classes"}
    assert {*AXES, "learning_rate"} == {*CHOICE_TABLES, *searched}


# --- conditional


@pytest.mark.parametrize("edits", [{}, WIDEST_CHOICES], ids=["default", "wide"])
def test_a_parameter_exists_only_where_its_entry_is_chosen(edits: Mapping[str, str]) -> None:
    for config, params in random_configs(space_for(["a", "b"], 6, edits=edits)):
        own = {name for kind, table in CHOICE_TABLES.items() for name in default_parameters(table[str(config[kind])])}
        assert set(config) == {*AXES, "backbone", "learning_rate", "epochs", *own}
        assert {name.rpartition(".")[2] for name in params} <= set(config)


def test_freeze_epochs_is_searched_only_with_freeze_then_unfreeze() -> None:
    draws = random_configs(space_for(["a"], 6))
    freezing = [("freeze_epochs" in params, config["strategy"] == "freeze_then_unfreeze") for config, params in draws]
    assert set(freezing) == {(True, True), (False, False)}


def test_a_parameter_that_entries_share_is_searched_separately_for_each() -> None:
    shared = {("alpha", "cutmix"), ("alpha", "mixup"), ("blocks", "freeze_first"), ("weight", "triplet")}
    edits = {**WIDEST_CHOICES, "alpha": "0.1..1.0"}
    seen = set()
    for config, params in random_configs(space_for(["a"], 6, edits=edits)):
        assert set(params) & {"alpha", "blocks", "weight"} == set()
        for own, entry in shared:
            if entry in (config["mixing"], config["strategy"], config["embedding_loss"]):
                assert params[f"{entry}.{own}"] == config[own]
                seen.add((own, entry))
    assert seen == shared


def test_the_learning_rate_is_searched_separately_for_each_optimizer_within_its_range() -> None:
    seen = set()
    for config, params in random_configs(space_for(["a"], 6, ["naive", "linear_probe"])):
        optimizer = str(config["optimizer"])
        name = f"head.{optimizer}" if config["strategy"] == "linear_probe" else optimizer
        assert [name for name in params if name.endswith("learning_rate")] == [f"{name}.learning_rate"]
        assert config["learning_rate"] == params[f"{name}.learning_rate"]
        rates = LEARNING_RATE_RANGES[name]
        assert rates.low <= config["learning_rate"] <= rates.high  # type: ignore[operator]
        seen.add(name)
    assert seen == {*DEFAULT["optimizer"], *(f"head.{name}" for name in DEFAULT["optimizer"])}


def test_clip_norm_composes_with_every_strategy_and_the_preset_brings_its_own() -> None:
    norms: dict[Any, set[Any]] = {}
    for config, params in random_configs(space_for(["a"], 6), 800):
        norms.setdefault(config["strategy"], set()).add(config["clip_norm"])
        assert ("clip_norm" in params) == (config["strategy"] not in ("clip", "logistic_probe"))
    assert norms.pop("clip") == {1.0}
    assert norms.pop("logistic_probe") == {None}
    assert norms == {name: {None, 0.5, 1.0, 5.0} for name in EIGHT - {"clip", "logistic_probe"}}


def test_the_preset_takes_another_norm_if_its_own_is_excluded() -> None:
    space = space_for(["a"], 6, ["clip"], {"clip_norm": "0.5,5"})
    assert {config["clip_norm"] for config, _ in random_configs(space, 30)} == {0.5, 5}


def test_a_sampler_is_not_asked_for_a_fixed_axis() -> None:
    space = space_for(["a"], 6, ["naive"], {"optimizer": "sgd", "learning_rate": "0.01", "clip_norm": "none"})
    config, params = random_configs(space, 1)[0]
    assert (config["optimizer"], config["learning_rate"], config["clip_norm"]) == ("sgd", 0.01, None)
    assert set(params) & {"backbone", "strategy", "optimizer", "clip_norm", "sgd.learning_rate"} == set()


@pytest.mark.parametrize(("epochs", "most"), [(2, 1), (3, 2), (4, 3), (8, 3), (20, 8)])
def test_at_least_one_epoch_remains_after_unfreezing(epochs: int, most: int) -> None:
    draws = random_configs(space_for(["a"], epochs, ["freeze_then_unfreeze"]), 60)
    assert {config["freeze_epochs"] for config, _ in draws} == set(range(1, most + 1))


def test_at_least_one_epoch_remains_after_gradual_unfreezing() -> None:
    for epochs in (2, 3, 7):
        for config, _ in random_configs(space_for(["a"], epochs, ["gradual_unfreeze"]), 60):
            assert recipe_of(config, epochs).last_unfreeze_epoch < epochs
    assert unfreeze_ranges(7) == {"freeze_epochs": 6, "until": 0.857}


def test_a_single_epoch_has_no_frozen_phase() -> None:
    space = space_for(["a"], 1)
    assert sorted(space.strategies()) == sorted(EIGHT - {"freeze_then_unfreeze"})
    assert all(params["strategy"] != "freeze_then_unfreeze" for params in space.known_good())


# --- known good


def test_the_first_recipe_trains_the_whole_network_from_the_start_with_the_norm_clipped_at_one() -> None:
    space = space_for(["a"], 8)
    config = space.configured(space.known_good()[0])
    recipe = recipe_of(config, 8)
    strategy = recipe.strategy.build(STRATEGIES)
    assert recipe.clip_norm == 1.0
    assert strategy.pretrained
    assert recipe.last_unfreeze_epoch == 0
    assert strategy.pace == STRATEGIES["naive"]().pace


def test_every_strategy_has_a_known_good_recipe_and_those_of_the_default_search_are_tried() -> None:
    for family in FAMILIES:
        assert {str(recipe["strategy"]) for recipe in known_good_recipes(family)} == set(STRATEGIES)
    assert {params["strategy"] for params in space_for(["a"], 8).known_good()} == EIGHT


@pytest.mark.parametrize("advised", [(), ("scratch", "naive"), ("clip",)], ids=",".join)
def test_every_strategy_is_tried_before_any_is_tried_again(advised: tuple[str, ...]) -> None:
    tried = [params["strategy"] for params in space_for(["a"], 8).known_good(advised={name: {} for name in advised})]
    assert tuple(tried[: len(advised)]) == advised
    assert set(tried[: len(EIGHT)]) == EIGHT
    assert tried[len(EIGHT) :] == ["clip"]


@pytest.mark.parametrize("strategies", [(), *((name,) for name in OTHERS), tuple(STRATEGIES)], ids=",".join)
def test_known_good_recipes_have_the_values_they_name_and_train(strategies: Sequence[str]) -> None:
    space = space_for(["a"], 8, strategies)
    recipes = rank_known_good(space.strategies())
    configs = [space.configured(params) for params in space.known_good()]
    for recipe, config in zip(recipes, configs, strict=True):
        optimizer = str(config["optimizer"])
        head_alone = strategy_of(recipe).pace == HeadFirst(freeze_epochs=None)
        default = OPTIMIZERS[optimizer].default_learning_rate * (10 if head_alone else 1)
        rate = recipe.get(f"{optimizer}.learning_rate", default)
        assert config["learning_rate"] == pytest.approx(rate if strategy_of(recipe).steps else 1.0)
        named = {name: value for name, value in recipe.items() if not name.endswith(".learning_rate")}
        assert {name: config[name] for name in named} == named
        recipe_of(config, 8)


def test_advised_strategies_come_first_in_order_and_the_first_of_them_on_every_backbone() -> None:
    space = space_for(["a", "b"], 8)
    default = [(params["strategy"], params["backbone"]) for params in space.known_good()]
    advised = [
        (params["strategy"], params["backbone"]) for params in space.known_good(advised={"scratch": {}, "naive": {}})
    ]
    assert advised[:4] == [("scratch", "a"), ("scratch", "b"), ("naive", "a"), ("clip", "a")]
    rest = [(strategy, backbone) for strategy, backbone in default if strategy not in ("scratch", "naive")]
    assert advised[3:] == [pair for pair in rest if pair != ("clip", "b")]


def test_advice_about_strategies_that_do_not_compete_changes_nothing() -> None:
    space = space_for(["a"], 8)
    assert space.known_good(advised={"lora": {}, "surgical": {}}) == space.known_good()


def test_the_first_recipe_is_tried_on_every_backbone_before_the_others_follow() -> None:
    space = space_for(["a", "b", "c"], 8)
    first = [(params["strategy"], params["backbone"]) for params in space.known_good()]
    assert first[:3] == [("clip", "a"), ("clip", "b"), ("clip", "c")]
    assert {backbone for _, backbone in first[3:]} == {"a"}


def test_known_good_recipes_that_become_equal_in_a_smaller_space_are_tried_once() -> None:
    edits = {"optimizer": "sgd", "loss": "cross_entropy", "augmentation": "none", "batch_norm": "with_weights"}
    assert len(space_for(["a"], 8, ["clip"], edits).known_good()) == 1


@pytest.mark.parametrize("edits", [{"optimizer": "sgd", "learning_rate": "1e-5..1e-4"}, {"freeze_epochs": "4..6"}])
def test_known_good_recipes_are_moved_into_a_space_that_excludes_them(edits: dict[str, str]) -> None:
    space = space_for(["a"], 8, edits=edits)
    for params in space.known_good():
        config = space.configured(params)
        moved = "learning_rate" in edits and strategy_of(config).steps
        assert not moved or config["learning_rate"] <= 1e-4  # type: ignore[operator]
        assert config.get("freeze_epochs", 4) in (4, 5, 6) or "freeze_epochs" not in edits


def test_an_arm_is_tried_unchanged() -> None:
    space = space_for(["a"], 8)
    arm: Config = {"strategy": "naive", "clip_norm": 5.0, "optimizer": "sgd", "learning_rate": 0.05}
    (params,) = space.known_good([arm])
    config = space.configured(params)
    assert {name: config[name] for name in arm} == arm
    assert config["batch_size"] == AXES["batch_size"].nearest(None)


def test_an_arm_may_name_the_rate_without_the_optimizer() -> None:
    space = space_for(["a"], 8)
    (params,) = space.known_good([{"strategy": "naive", "learning_rate": 2e-3}])
    assert space.configured(params)["learning_rate"] == 2e-3


@pytest.mark.parametrize(
    "arm",
    [
        {"strategy": "naive", "batch_size": 48},
        {"strategy": "linear_prob"},
        {"strategy": "naive", "freeze_epochs": 2},
        {"strategy": "clip", "clip_norm": 5.0},
        {"strategy": "naive", "optimizer": "sgd", "learning_rate": 50.0},
        {"optimiser": "sgd"},
    ],
    ids=str,
)
def test_an_arm_outside_the_space_is_refused(arm: Config) -> None:
    with pytest.raises(ValueError, match=r"an arm has \w+=.*, which lies outside the search space"):
        space_for(["a"], 8).known_good([arm])


# --- every configuration trains

SPACES: list[tuple[Sequence[str], int, dict[str, str]]] = [
    ((), 8, {}),
    ((), 1, {}),
    ((), 2, {}),
    ((), 8, {"clip_norm": "none,0.5,5"}),
    ((), 8, {"clip_norm": "0.5,5"}),
    ((), 8, {"clip_norm": "0.5..5"}),
    (("naive", "scratch"), 8, {"clip_norm": "none"}),
    (("clip",), 8, {"clip_norm": "none,1.0"}),
    ((), 8, {"body_rate": "0.01..1", "images_per_class": "none,5"}),
    (tuple(STRATEGIES), 8, {"blocks": "1..9", "stage": "2"}),
    (tuple(STRATEGIES), 2, {}),
    ((), 8, {"learning_rate": "1e-3"}),
    ((), 8, {"learning_rate": "1e-4,1e-3"}),
    ((), 8, {"learning_rate": "1e-9..1e2"}),
    ((), 8, {"freeze_epochs": "1,2,7"}),
    ((), 8, {"freeze_epochs": "7"}),
    ((), 8, {"batch_size": "2..64"}),
    ((), 8, {"weight_decay": "0"}),
    ((), 8, {"weight_decay": "0..10"}),
    ((), 8, {"mixing": "cutmix", "alpha": "0.2..1.0"}),
    ((), 8, {"loss": "label_smoothing", "smoothing": "0.05,0.1"}),
    ((), 8, {"augmentation": "randaugment", "num_ops": "1..3", "magnitude": "5..15"}),
    (("linear_probe",), 8, {"optimizer": "ranger"}),
]


@pytest.mark.parametrize(("strategies", "epochs", "edits"), SPACES, ids=[f"{case[1:]}{case[0]}" for case in SPACES])
def test_every_proposal_of_the_random_sampler_becomes_a_recipe(
    strategies: Sequence[str], epochs: int, edits: dict[str, str]
) -> None:
    ask_tell = AskTellSampler(space_for(["a", "b"], epochs, strategies, edits), "random", seed=1)
    ids = set()
    for number in range(40):
        _, config = ask_tell.ask(f"{number:04d}", number)
        ids.add(recipe_of(config, epochs).id)
    assert len(ids) > 5


def test_hundreds_of_random_proposals_from_the_default_space_become_recipes_and_cover_it() -> None:
    ask_tell = AskTellSampler(space_for(["a", "b"], 8), "random", seed=2)
    recipes = [recipe_of(ask_tell.ask(f"{number:04d}", number)[1], 8) for number in range(300)]
    assert {recipe.strategy.name for recipe in recipes} == EIGHT
    recipes = [recipe for recipe in recipes if recipe.uses_gradient_steps]
    for kind in CHOICE_TABLES.keys() - {"strategy"}:
        assert {getattr(recipe, kind).name for recipe in recipes} == DEFAULT[kind]


@pytest.mark.parametrize("edits", [{}, {"clip_norm": "none,2"}, {"learning_rate": "1e-4..1e-2"}], ids=str)
def test_a_space_is_described_as_json_by_axis_entry_and_optimizer(edits: dict[str, str]) -> None:
    described = space_for(["a", "b"], 8, edits=edits).described()
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    own = {f"{name}.{parameter}" for kind, name, parameter in ENTRY_PARAMETERS if name in DEFAULT[kind]}
    own -= {"freeze_first.blocks"}
    prefixes = ("",) if "learning_rate" in edits else ("", "head.")
    rates = {f"{prefix}{name}.learning_rate" for name in DEFAULT["optimizer"] for prefix in prefixes}
    assert set(described) == {"backbone", *AXES, *own, *rates}
    assert described["backbone"] == "a, b"


def test_the_description_includes_the_edits() -> None:
    edits = {"learning_rate": "1e-4..1e-2", "freeze_epochs": "2", "clip_norm": "none,0.5,1.0"}
    described = space_for(["a"], 8, ["clip", "freeze_then_unfreeze"], edits).described()
    assert described["adam.learning_rate"] == "0.0001..0.01 log"
    assert described["freeze_then_unfreeze.freeze_epochs"] == "2"
    assert described["clip_norm"] == "none, 0.5, 1.0"
    assert described["strategy"] == "clip, freeze_then_unfreeze"
    assert "randaugment.magnitude" in described
