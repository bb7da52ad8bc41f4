"""Conditions: nothing that contradicts itself is ever proposed, and nobody may ask for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from sweeps.engine.samplers.ask_tell import SAMPLERS, AskTellSampler, available_trials
from sweeps.engine.search_space.constraints import CONSTRAINTS
from sweeps.engine.search_space.overrides import space_for
from sweeps.engine.search_space.space import AXES, Config
from tests.engine.conftest import a_record
from tests.engine.random_configs import WIDEST_CHOICES, random_configs, recipe_of, strategy_of
from tests.engine.sampler_runs import NUM_TRIALS
from xfer.methods.strategies import STRATEGIES

EPOCHS = 8


@pytest.fixture(scope="module")
def draws() -> list[Config]:
    """From a space with everything in it."""
    return [config for config, _ in random_configs(space_for(["a", "b"], EPOCHS, edits=WIDEST_CHOICES), 2_000)]


def both(draws: list[Config], one: str, other: str) -> Iterator[tuple[Any, Any]]:
    return ((config[one], config[other]) for config in draws)


def test_an_axis_that_has_conditions_exists() -> None:
    assert set(CONSTRAINTS) <= set(AXES)


def test_an_embedding_loss_never_meets_a_batch_that_is_mixed(draws: list[Config]) -> None:
    met = set(both(draws, "embedding_loss", "mixing"))
    losses, mixings = (set(WIDEST_CHOICES[axis].split(",")) for axis in ("embedding_loss", "mixing"))
    assert met == {(loss, "none") for loss in losses} | {("none", mixing) for mixing in mixings}


def test_a_gradient_is_clipped_once(draws: list[Config]) -> None:
    met = set(both(draws, "clip_norm", "clip_value"))
    assert met == {(None, None), (None, 0.5), (0.5, None), (1.0, None), (5.0, None)}


def test_batch_norm_is_never_frozen_where_nothing_was_learned_before(draws: list[Config]) -> None:
    met = set(both(draws, "strategy", "batch_norm"))
    random, in_one_go = {"scratch", "small_cnn"}, {"ridge_probe", "logistic_probe"}
    assert met == {
        (strategy, batch_norm)
        for strategy in STRATEGIES
        for batch_norm in WIDEST_CHOICES["batch_norm"].split(",")
        if (batch_norm != "frozen" or strategy not in random)
        and not (strategy in in_one_go and batch_norm != "with_weights")
    }
    assert random == {name for name in STRATEGIES if not strategy_of({"strategy": name}).pretrained}


def test_the_preset_is_never_without_its_norm(draws: list[Config]) -> None:
    assert {norm for strategy, norm in both(draws, "strategy", "clip_norm") if strategy == "clip"} == {1.0}


def test_a_strategy_that_brings_a_network_has_that_one(draws: list[Config]) -> None:
    for strategy, backbone in both(draws, "strategy", "backbone"):
        assert backbone in ({"basic_cnn"} if strategy == "small_cnn" else {"a", "b"})


def test_thousands_of_draws_of_everything_there_is_become_recipes(draws: list[Config]) -> None:
    ids = {recipe_of(config, EPOCHS).id for config in draws}
    assert len(ids) > 0.99 * len(draws)


ODD: list[tuple[Sequence[str], dict[str, str]]] = [
    (("naive", "scratch"), {"clip_norm": "none", "clip_value": "0.1..0.5"}),
    (("naive", "lp_ft"), {"clip_value": "0.1,0.5"}),
    (("naive", "clip"), {"clip_value": "none,0.5"}),
    (("clip",), {"clip_norm": "0.5..5"}),
    ((), {"embedding_loss": "triplet"}),
    ((), {"embedding_loss": "none,triplet,arcface", "mixing": "none,mixup"}),
    (("naive", "scratch"), {"batch_norm": "frozen,always"}),
    (("small_cnn",), {"batch_norm": "with_weights,always"}),
]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("strategies", "edits"), ODD, ids=str)
def test_what_a_sampler_proposes_in_a_narrow_space_is_no_contradiction(
    sampler: str, strategies: Sequence[str], edits: dict[str, str]
) -> None:
    space = space_for(["a", "b"], EPOCHS, strategies, edits)
    proposer = AskTellSampler(space, sampler, seed=1)
    for number in range(available_trials(space, sampler, NUM_TRIALS.get(sampler, 40))):
        params, config = proposer.ask(f"{number:04d}", number)
        assert proposer._space.configured(params) == config
        recipe_of(config, EPOCHS)
        proposer.tell(a_record(f"{number:04d}", (0.1, (number % 7) / 7)))


REFUSED: list[tuple[Sequence[str], dict[str, str], str]] = [
    ((), {"clip_norm": "none"}, r"clip_norm=none takes from strategy clip what it is: name the others with --strat"),
    ((), {"clip_value": "0.5"}, r"clip_value=0.5 takes from strategy clip what it is: name the others with --strat"),
    (
        ("naive",),
        {"clip_norm": "1", "clip_value": "0.5"},
        r"clip_norm=1 and clip_value=0.5: a gradient is clipped on",
    ),
    (("naive",), {"clip_norm": "1..5", "clip_value": "0.1..0.5"}, r"clip_norm=1..5 and clip_value=0.1..0.5: a grad"),
    (("naive",), {"clip_norm": "1", "clip_value": "none,0.5"}, r"clip_value=0.5 .* tried: clip_norm=1 rules it out"),
    (("clip",), {"clip_value": "none,0.5"}, r"clip_value=0.5 would never be tried: clip_norm=1.0 rules it out"),
    ((), {"embedding_loss": "triplet", "mixing": "cutmix"}, r"embedding_loss=triplet needs one class .* mixing=cutmix"),
    ((), {"embedding_loss": "triplet,arcface", "mixing": "mixup"}, r"embedding_loss=triplet, arcface needs one class"),
    ((), {"embedding_loss": "none,triplet", "mixing": "cutmix,mixup"}, r"embedding_loss=triplet needs one class an"),
    ((), {"embedding_loss": "triplet", "mixing": "none,cutmix"}, r"mixing=cutmix .* embedding_loss=triplet rules it"),
    ((), {"batch_norm": "frozen"}, r"batch_norm=frozen needs pretrained statistics, and strategy scratch starts with"),
    (("small_cnn",), {"batch_norm": "frozen"}, r"strategy small_cnn starts without: name the others with --strat"),
    (("scratch",), {"batch_norm": "always,frozen"}, r"batch_norm=frozen needs pretrained statistics, and .* scratch"),
]


@pytest.mark.parametrize(("strategies", "edits", "message"), REFUSED, ids=str)
def test_contradictions_are_refused_with_their_reason(
    strategies: Sequence[str], edits: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        space_for(["a"], EPOCHS, strategies, edits)


def test_a_slower_body_is_never_proposed_where_the_head_alone_moves() -> None:
    space = space_for(["a"], 6, ["linear_probe", "naive", "early_cut"], {"body_rate": "0.1,0.3"})
    rates: dict[object, set[object]] = {}
    for config, _ in random_configs(space, 100):
        rates.setdefault(config["strategy"], set()).add(config["body_rate"])
    assert rates == {"linear_probe": {1.0}, "early_cut": {1.0}, "naive": {0.1, 0.3}}


def test_a_slower_body_for_a_head_alone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"body_rate=0.1 would never be tried: strategy=linear_probe rules it out"):
        space_for(["a"], 6, ["linear_probe"], {"body_rate": "0.1"})


def test_without_steps_only_the_penalty_and_what_shapes_the_network_is_searched() -> None:
    space = space_for(["a", "b"], 6, edits={**WIDEST_CHOICES, "strategy": "ridge_probe,logistic_probe,naive"})
    asked_for = {"backbone", "strategy", "penalty", "activation", "colour", "images_per_class"}
    for config, asked in random_configs(space, 200):
        assert config["epochs"] == (6 if config["strategy"] == "naive" else 1)
        if config["strategy"] != "naive":
            assert {name.rpartition(".")[2] for name in asked} == asked_for
            recipe_of(config, 6)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"loss": "focal"}, r"loss=focal would never be tried: strategy=ridge_probe rules it out"),
        ({"augmentation": "none,flip"}, r"augmentation=flip would never be tried: strategy=ridge_probe rules it out"),
        ({"batch_size": "16"}, r"batch_size=16 would never be tried: strategy=ridge_probe rules it out"),
        ({"learning_rate": "0.1"}, r"learning_rate=0.1 would never be tried: ridge_probe fits its head in one go"),
    ],
)
def test_what_takes_steps_to_matter_is_refused_where_nothing_takes_any(edits: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        space_for(["a"], 6, ["ridge_probe"], edits)
    space_for(["a"], 6, ["ridge_probe", "naive"], edits)
