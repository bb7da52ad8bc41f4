"""The space: in step with the tables, conditional, and everything in it trains."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from sweeps.engine.samplers import Proposer
from sweeps.engine.spaces import (
    AXES,
    GOOD_RATES,
    KNOWN_GOOD,
    LEARNING_RATES,
    PARAMETERS,
    Config,
    Options,
    Range,
    Space,
    recipe_data,
    space_for,
)
from xfer.choices import Value, parameters
from xfer.methods.optimizers import OPTIMIZERS
from xfer.methods.strategies import STRATEGIES
from xfer.recipe import TABLES, Recipe, recipe_from

ENTRIES = [(kind, name) for kind, table in TABLES.items() for name in table]
OWN = [(kind, name, own) for kind, name in ENTRIES for own in parameters(TABLES[kind][name])]


class Dice:
    """An `Asked` that throws dice and remembers what it was asked for."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.asked: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Any:
        return self.note(name, self.chance.choice(list(choices)))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return float(self.note(name, self.chance.uniform(low, high)))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return int(self.note(name, self.chance.randint(low, high)))

    def note(self, name: str, value: Any) -> Any:
        assert name not in self.asked, f"{name} was asked for twice"
        self.asked[name] = value
        return value


def thrown(space: Space, count: int = 400) -> list[tuple[Config, dict[str, Any]]]:
    """Configurations, each with what was asked for on the way."""
    found = []
    for seed in range(count):
        dice = Dice(seed)
        found.append((space.suggest(dice), dice.asked))
    return found


def recipe_of(config: Mapping[str, Any], epochs: int) -> Recipe:
    pretrained = STRATEGIES[config["strategy"]]().pretrained
    about = {"data": "d", "classes": 3, "image_size": 32, "weights": "w" if pretrained else "", "epochs": epochs}
    return recipe_from({**recipe_data(dict(config)), **about})


# --- in step with the tables -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TABLES)
def test_every_entry_of_every_table_is_in_the_default_space_and_nothing_else(kind: str) -> None:
    domain = AXES[kind]
    assert isinstance(domain, Options)
    assert sorted(map(str, domain.values)) == sorted(TABLES[kind])


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_every_entry_can_be_asked_for_alone(kind: str, name: str) -> None:
    space = space_for(["a"], 6, edits={kind: name})
    assert {config[kind] for config, _ in thrown(space, 20)} == {name}


def test_parameters_have_ranges_and_every_range_belongs_to_a_parameter() -> None:
    assert sorted(own for _, _, own in OWN) == sorted(PARAMETERS)


def test_parameter_names_are_unique_across_tables_and_unlike_any_axis() -> None:
    counts = Counter(own for _, _, own in OWN)
    assert [name for name, count in counts.items() if count > 1] == []
    assert set(counts) & {*AXES, "learning_rate", "backbone"} == set()


@pytest.mark.parametrize("rates", [LEARNING_RATES, GOOD_RATES], ids=["ranges", "good rates"])
def test_every_optimizer_has_a_learning_rate_and_every_learning_rate_an_optimizer(rates: Mapping[str, Any]) -> None:
    assert sorted(rates) == sorted(OPTIMIZERS)


@pytest.mark.parametrize("optimizer", GOOD_RATES)
def test_good_rates_lie_within_their_ranges(optimizer: str) -> None:
    rates = LEARNING_RATES[optimizer]
    assert rates.low < GOOD_RATES[optimizer] < rates.high


@pytest.mark.parametrize(("kind", "name", "own"), OWN)
def test_an_entrys_default_lies_within_its_range(kind: str, name: str, own: str) -> None:
    domain, default = PARAMETERS[own], parameters(TABLES[kind][name])[own]
    assert default in domain.values if isinstance(domain, Options) else domain.low <= default <= domain.high  # type: ignore[operator]


# --- conditional -----------------------------------------------------------------------------------------------------


def test_a_parameter_exists_only_where_its_entry_is_chosen() -> None:
    space = space_for(["a", "b"], 6)
    for config, _ in thrown(space):
        own = {each for kind, table in TABLES.items() for each in parameters(table[str(config[kind])])}
        assert set(config) == {*AXES, "backbone", "learning_rate", *own}


def test_freeze_epochs_is_asked_for_only_with_freeze_then_unfreeze() -> None:
    draws = thrown(space_for(["a"], 6))
    freezing = [("freeze_epochs" in asked, config["strategy"] == "freeze_then_unfreeze") for config, asked in draws]
    assert set(freezing) == {(True, True), (False, False)}


def test_the_learning_rate_is_asked_for_as_the_optimizers_own_and_within_its_range() -> None:
    seen = set()
    for config, asked in thrown(space_for(["a"], 6)):
        optimizer = str(config["optimizer"])
        assert [name for name in asked if name.endswith("learning_rate")] == [f"{optimizer}.learning_rate"]
        assert config["learning_rate"] == asked[f"{optimizer}.learning_rate"]
        rates = LEARNING_RATES[optimizer]
        assert rates.low <= config["learning_rate"] <= rates.high  # type: ignore[operator]
        seen.add(optimizer)
    assert seen == set(OPTIMIZERS)


def test_clip_norm_composes_with_every_strategy_and_the_preset_brings_its_own() -> None:
    norms: dict[Any, set[Any]] = {}
    for config, asked in thrown(space_for(["a"], 6), 800):
        norms.setdefault(config["strategy"], set()).add(config["clip_norm"])
        assert ("clip_norm" in asked) == (config["strategy"] != "clip")
    assert norms.pop("clip") == {1.0}
    assert norms == {name: {None, 0.5, 1.0, 5.0} for name in STRATEGIES if name != "clip"}


def test_the_preset_takes_another_norm_where_its_own_is_not_among_them() -> None:
    space = space_for(["a"], 6, ["clip"], {"clip_norm": "0.5,5"})
    assert {config["clip_norm"] for config, _ in thrown(space, 30)} == {0.5, 5}


def test_a_fixed_axis_is_nobodys_choice() -> None:
    space = space_for(["a"], 6, ["naive"], {"optimizer": "sgd", "learning_rate": "0.01", "clip_norm": "none"})
    config, asked = thrown(space, 1)[0]
    assert (config["optimizer"], config["learning_rate"], config["clip_norm"]) == ("sgd", 0.01, None)
    assert set(asked) & {"backbone", "strategy", "optimizer", "clip_norm", "sgd.learning_rate"} == set()


@pytest.mark.parametrize(("epochs", "most"), [(2, 1), (3, 2), (4, 3), (20, 3)])
def test_at_least_one_epoch_is_left_after_unfreezing(epochs: int, most: int) -> None:
    draws = thrown(space_for(["a"], epochs, ["freeze_then_unfreeze"]), 60)
    assert {config["freeze_epochs"] for config, _ in draws} == set(range(1, most + 1))


def test_in_a_single_epoch_nothing_is_frozen_first() -> None:
    space = space_for(["a"], 1)
    assert sorted(space.strategies()) == sorted(set(STRATEGIES) - {"freeze_then_unfreeze"})
    assert all(params["strategy"] != "freeze_then_unfreeze" for params in space.known_good())


# --- edits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "text", "domain"),
    [
        ("optimizer", "sgd,ranger", Options(("sgd", "ranger"))),
        ("optimizer", " sgd , sgd ", Options(("sgd",))),
        ("clip_norm", "none,0.5,1.0", Options((None, 0.5, 1.0))),
        ("clip_norm", "NONE,2", Options((None, 2))),
        ("batch_size", "16..64", Range(16, 64)),
        ("weight_decay", "1e-6..1e-3", Range(1e-6, 1e-3, log=True)),
        ("weight_decay", "0..0.1", Range(0, 0.1)),
    ],
)
def test_an_edit_is_read_as_a_person_means_it(axis: str, text: str, domain: Options | Range) -> None:
    assert space_for(["a"], 6, edits={axis: text}).axes[axis] == domain


def test_edits_reach_parameters_and_learning_rates_too() -> None:
    space = space_for(["a"], 9, edits={"freeze_epochs": "2..5", "learning_rate": "1e-4..1e-3"})
    assert space.parameter("freeze_epochs") == Range(2, 5)
    assert set(space.learning_rates.values()) == {Range(1e-4, 1e-3, log=True)}
    assert set(space.learning_rates) == set(OPTIMIZERS)


@pytest.mark.parametrize(
    ("edits", "name"),
    [
        ({"weight_decay": "0..1"}, "weight_decay"),
        ({"clip_norm": "1..5"}, "clip_norm"),
        ({"mixing": "cutmix", "alpha": "1..4"}, "alpha"),
        ({"learning_rate": "1..10"}, "learning_rate"),
    ],
)
def test_a_range_of_a_real_quantity_holds_what_lies_between_whole_numbers(edits: dict[str, str], name: str) -> None:
    draws = thrown(space_for(["a"], 6, ["naive"], edits), 30)
    assert not all(float(config[name]).is_integer() for config, _ in draws)  # type: ignore[arg-type]


def test_strategies_may_be_named_either_way() -> None:
    assert space_for(["a"], 6, ["naive", "clip"]).strategies() == ("naive", "clip")
    assert space_for(["a"], 6, edits={"strategy": "naive,clip"}).strategies() == ("naive", "clip")


REFUSED: list[tuple[Sequence[str], int, dict[str, str], str]] = [
    # unknown names, the nearest offered
    ((), 6, {"optimiser": "sgd"}, r"unknown axis 'optimiser': did you mean optimizer\? Known: strategy, clip_norm"),
    ((), 6, {"freeze_epoch": "2"}, r"unknown axis 'freeze_epoch': did you mean freeze_epochs"),
    ((), 6, {"lerning_rate": "2"}, r"unknown axis 'lerning_rate': did you mean learning_rate"),
    ((), 6, {"backbone": "resnet18"}, r"unknown axis 'backbone'"),
    (("clp",), 6, {}, r"unknown strategy 'clp': did you mean clip\?"),
    ((), 6, {"optimizer": "adan"}, r"unknown optimizer 'adan': did you mean adam"),
    ((), 6, {"loss": "label_smoothin"}, r"unknown loss 'label_smoothin': did you mean label_smoothing"),
    # how values are written
    ((), 6, {"learning_rate": "1e-2..1e-4"}, r"learning_rate=1e-2..1e-4 is no range: give two numbers, the lower"),
    ((), 6, {"learning_rate": "1e-4..1e-3..1e-2"}, r"is no range: .* as in 1e-4..1e-2"),
    ((), 6, {"learning_rate": "1e-4..nan"}, r"is no range"),
    ((), 6, {"clip_norm": "none..1"}, r"clip_norm=none..1 is no range"),
    ((), 6, {"optimizer": "sgd..adam"}, r"optimizer=sgd..adam is no range"),
    ((), 6, {"learning_rate": "fast"}, r"learning_rate=fast: a number was expected$"),
    ((), 6, {"clip_norm": "off"}, r"clip_norm=off: a number was expected, or none"),
    ((), 6, {"learning_rate": "1e-4.."}, r"learning_rate= needs a value"),
    ((), 6, {"batch_size": "16,,32"}, r"batch_size= needs a value"),
    # whole numbers
    ((), 6, {"batch_size": "16.5"}, r"batch_size=16.5: a whole number is wanted"),
    ((), 6, {"batch_size": "16..32.5"}, r"batch_size=32.5: a whole number is wanted"),
    ((), 6, {"batch_size": "none"}, r"batch_size=None: a whole number is wanted"),
    ((), 6, {"freeze_epochs": "1.5"}, r"freeze_epochs=1.5: a whole number is wanted"),
    ((), 6, {"num_ops": "1.5"}, r"num_ops"),
    ((), 6, {"magnitude": "8.5"}, r"magnitude"),
    # beyond reason
    ((), 6, {"learning_rate": "0"}, r"learning_rate=0: it must lie between 1e-09 and 100"),
    ((), 6, {"learning_rate": "nan"}, r"learning_rate=nan: it must lie between"),
    ((), 6, {"learning_rate": "inf"}, r"learning_rate=inf: it must lie between"),
    ((), 6, {"learning_rate": "none"}, r"learning_rate=None: it must lie between"),
    ((), 6, {"learning_rate": "1e-4..1e3"}, r"learning_rate=1000.0: it must lie between"),
    ((), 6, {"batch_size": "1"}, r"batch_size=1: it must lie between 2 and 65536"),
    ((), 6, {"batch_size": "1000000000"}, r"batch_size=1000000000: it must lie between"),
    ((), 6, {"weight_decay": "-1e-4"}, r"weight_decay=-0.0001: it must lie between 0 and 10"),
    ((), 6, {"clip_norm": "none,0"}, r"clip_norm=0: it must lie between"),
    ((), 6, {"clip_norm": "-1..1"}, r"clip_norm=-1(\.0)?: it must lie between"),
    ((), 6, {"mixing": "cutmix", "alpha": "nan"}, r"alpha"),
    ((), 6, {"mixing": "cutmix", "alpha": "-1"}, r"alpha"),
    ((), 6, {"smoothing": "5"}, r"smoothing"),
    ((), 6, {"smoothing": "none"}, r"smoothing"),
    ((), 6, {"magnitude": "100"}, r"magnitude"),
    ((), 6, {"num_ops": "1000000000"}, r"num_ops"),
    # what makes no sense together
    ((), 6, {"freeze_epochs": "0"}, r"freeze_epochs is 0; at least 1 is needed"),
    ((), 6, {"freeze_epochs": "1..6"}, r"with 6 epochs, freeze_epochs can be at most 5"),
    ((), 6, {"freeze_epochs": "1,9"}, r"with 6 epochs, freeze_epochs can be at most 5"),
    (("freeze_then_unfreeze",), 1, {}, r"freeze_then_unfreeze needs an epoch after it unfreezes"),
    ((), 6, {"clip_norm": "none"}, r"clip_norm=none takes from strategy clip what it is: .* --strategies"),
    (
        ("naive",),
        6,
        {"freeze_epochs": "2"},
        r"freeze_epochs belongs to freeze_then_unfreeze, which this sweep does not",
    ),
    ((), 6, {"augmentation": "flip", "magnitude": "3"}, r"magnitude belongs to randaugment, which this sweep"),
    ((), 6, {"mixing": "none", "alpha": "0.5"}, r"alpha belongs to cutmix, which this sweep does not try"),
    ((), 6, {"loss": "cross_entropy", "smoothing": "0.2"}, r"smoothing belongs to label_smoothing, which this"),
]


@pytest.mark.parametrize(
    ("strategies", "epochs", "edits", "message"), REFUSED, ids=[f"{','.join(case[0])}{case[2]}" for case in REFUSED]
)
def test_what_makes_no_sense_is_refused_with_its_reason(
    strategies: Sequence[str], epochs: int, edits: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        space_for(["a"], epochs, strategies, edits)


# --- known good ------------------------------------------------------------------------------------------------------


def test_the_very_first_recipe_trains_everything_from_the_start_with_the_norm_clipped_at_one() -> None:
    space = space_for(["a"], 8)
    config = space.configured(space.known_good()[0])
    recipe = recipe_of(config, 8)
    strategy = recipe.strategy.build(STRATEGIES)
    assert recipe.clip_norm == 1.0
    assert strategy.pretrained
    assert strategy.settled_after == 0
    assert strategy.pace == STRATEGIES["naive"]().pace


def test_all_strategies_stand_among_the_known_good_recipes() -> None:
    space = space_for(["a"], 8)
    assert {params["strategy"] for params in space.known_good()} == set(STRATEGIES)
    assert {wish["strategy"] for wish in KNOWN_GOOD} == set(STRATEGIES)


def test_known_good_recipes_are_what_they_say_and_train() -> None:
    space = space_for(["a"], 8)
    configs = [space.configured(params) for params in space.known_good()]
    assert len(configs) == len(KNOWN_GOOD)
    for wish, config in zip(KNOWN_GOOD, configs, strict=True):
        optimizer = str(config["optimizer"])
        rate = wish.get(f"{optimizer}.learning_rate", GOOD_RATES[optimizer])
        head_alone = wish["strategy"] == "linear_probe"
        assert config["learning_rate"] == pytest.approx(rate * (10 if head_alone else 1))
        named = {name: value for name, value in wish.items() if not name.endswith(".learning_rate")}
        assert {name: config[name] for name in named} == named
        recipe_of(config, 8)


def test_every_backbone_gets_the_first_recipe_before_the_others_follow() -> None:
    space = space_for(["a", "b", "c"], 8)
    first = [(params["strategy"], params["backbone"]) for params in space.known_good()]
    assert first[:3] == [("clip", "a"), ("clip", "b"), ("clip", "c")]
    assert {backbone for _, backbone in first[3:]} == {"a"}


def test_known_good_recipes_that_a_smaller_space_makes_equal_are_tried_once() -> None:
    edits = {"optimizer": "sgd", "loss": "cross_entropy", "augmentation": "none"}
    found = space_for(["a"], 8, ["clip"], edits).known_good()
    assert len(found) == 1


@pytest.mark.parametrize("edits", [{"optimizer": "sgd", "learning_rate": "1e-5..1e-4"}, {"freeze_epochs": "4..6"}])
def test_known_good_recipes_are_moved_into_a_space_that_does_not_hold_them(edits: dict[str, str]) -> None:
    space = space_for(["a"], 8, edits=edits)
    for params in space.known_good():
        config = space.configured(params)
        assert config["learning_rate"] <= 1e-4 or "learning_rate" not in edits  # type: ignore[operator]
        assert config.get("freeze_epochs", 4) in (4, 5, 6) or "freeze_epochs" not in edits


def test_an_arm_is_taken_as_it_is() -> None:
    space = space_for(["a"], 8)
    arm: Config = {"strategy": "naive", "clip_norm": 5.0, "optimizer": "sgd", "learning_rate": 0.05}
    (params,) = space.known_good([arm])
    config = space.configured(params)
    assert {name: config[name] for name in arm} == arm
    assert config["batch_size"] == AXES["batch_size"].nearest(None)


def test_an_arm_may_leave_the_optimizer_to_the_space_and_name_the_rate() -> None:
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
    with pytest.raises(ValueError, match=r"an arm wants \w+=.*, which this space does not have"):
        space_for(["a"], 8).known_good([arm])


# --- whatever is drawn trains ----------------------------------------------------------------------------------------

ODD: list[tuple[Sequence[str], int, dict[str, str]]] = [
    ((), 8, {}),
    ((), 1, {}),
    ((), 2, {}),
    ((), 8, {"clip_norm": "none,0.5,5"}),
    ((), 8, {"clip_norm": "0.5,5"}),
    ((), 8, {"clip_norm": "0.5..5"}),
    (("naive", "scratch"), 8, {"clip_norm": "none"}),
    (("clip",), 8, {"clip_norm": "none,1.0"}),
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


@pytest.mark.parametrize(("strategies", "epochs", "edits"), ODD, ids=[f"{case[1:]}{case[0]}" for case in ODD])
def test_everything_that_a_random_sampler_proposes_becomes_a_recipe(
    strategies: Sequence[str], epochs: int, edits: dict[str, str]
) -> None:
    proposer = Proposer(space_for(["a", "b"], epochs, strategies, edits), "random", seed=1)
    ids = set()
    for number in range(40):
        _, config = proposer.propose(f"{number:04d}", number)
        ids.add(recipe_of(config, epochs).id)
    assert len(ids) > 5


def test_a_few_hundred_random_proposals_of_the_default_space_become_recipes() -> None:
    proposer = Proposer(space_for(["a", "b"], 8), "random", seed=2)
    recipes = [recipe_of(proposer.propose(f"{number:04d}", number)[1], 8) for number in range(300)]
    for kind, table in TABLES.items():
        assert {getattr(recipe, kind).name for recipe in recipes} == set(table)


@pytest.mark.parametrize("edits", [{}, {"clip_norm": "none,2"}, {"learning_rate": "1e-4..1e-2"}], ids=str)
def test_a_space_is_described_as_json_text_by_axis_entry_and_optimizer(edits: dict[str, str]) -> None:
    described = space_for(["a", "b"], 8, edits=edits).described()
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    own = {f"{name}.{parameter}" for _, name, parameter in OWN}
    rates = {f"{name}.learning_rate" for name in OPTIMIZERS}
    assert set(described) == {"backbone", *AXES, *own, *rates}
    assert described["backbone"] == "a, b"


def test_the_description_says_what_was_edited() -> None:
    edits = {"learning_rate": "1e-4..1e-2", "freeze_epochs": "2", "clip_norm": "none,0.5,1.0"}
    described = space_for(["a"], 8, ["clip", "freeze_then_unfreeze"], edits).described()
    assert described["adam.learning_rate"] == "0.0001..0.01 log"
    assert described["freeze_then_unfreeze.freeze_epochs"] == "2"
    assert described["clip_norm"] == "none, 0.5, 1.0"
    assert described["strategy"] == "clip, freeze_then_unfreeze"
    assert "randaugment.magnitude" in described
