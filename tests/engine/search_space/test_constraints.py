"""Constraints: contradictions are never proposed, and refused if requested."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from sweeps.engine.samplers.ask_tell import SAMPLERS, AskTellSampler, available_trials
from sweeps.engine.search_space.constraints import CONSTRAINTS
from sweeps.engine.search_space.defaults import AXES
from sweeps.engine.search_space.distributions import Config
from sweeps.engine.search_space.overrides import space_for
from tests.engine.conftest import a_record
from tests.engine.random_configs import WIDEST_CHOICES, random_configs, recipe_of, strategy_of
from tests.engine.sampler_runs import NUM_TRIALS
from xfer.methods.strategies import STRATEGIES

EPOCHS = 8


@pytest.fixture(scope="module")
def draws() -> list[Config]:
    """Configurations of a space that holds every entry of every table."""
    return [config for config, _ in random_configs(space_for(["a", "b"], EPOCHS, edits=WIDEST_CHOICES), 2_000)]


def pairs(draws: list[Config], axis: str, other: str) -> set[tuple[Any, Any]]:
    """The values of two axes that occur together."""
    return {(config[axis], config[other]) for config in draws}


def test_every_constrained_axis_exists() -> None:
    assert set(CONSTRAINTS) <= set(AXES)


def test_an_embedding_loss_is_never_combined_with_mixing(draws: list[Config]) -> None:
    losses, mixings = (set(WIDEST_CHOICES[axis].split(",")) for axis in ("embedding_loss", "mixing"))
    assert pairs(draws, "embedding_loss", "mixing") == {(loss, "none") for loss in losses} | {
        ("none", mixing) for mixing in mixings
    }


def test_a_gradient_is_clipped_by_norm_or_by_value_but_not_both(draws: list[Config]) -> None:
    assert pairs(draws, "clip_norm", "clip_value") == {(None, None), (None, 0.5), (0.5, None), (1.0, None), (5.0, None)}


def test_batch_norm_is_never_frozen_without_pretrained_statistics(draws: list[Config]) -> None:
    from_scratch, closed_form = {"scratch", "small_cnn"}, {"ridge_probe", "logistic_probe"}
    assert pairs(draws, "strategy", "batch_norm") == {
        (strategy, batch_norm)
        for strategy in STRATEGIES
        for batch_norm in WIDEST_CHOICES["batch_norm"].split(",")
        if (batch_norm != "frozen" or strategy not in from_scratch)
        and not (strategy in closed_form and batch_norm != "with_weights")
    }
    assert from_scratch == {name for name in STRATEGIES if not strategy_of({"strategy": name}).pretrained}


def test_the_clip_preset_always_has_its_norm(draws: list[Config]) -> None:
    assert {norm for strategy, norm in pairs(draws, "strategy", "clip_norm") if strategy == "clip"} == {1.0}


def test_a_strategy_with_its_own_network_always_gets_it(draws: list[Config]) -> None:
    for strategy, backbone in pairs(draws, "strategy", "backbone"):
        assert backbone in ({"basic_cnn"} if strategy == "small_cnn" else {"a", "b"})


def test_thousands_of_draws_from_the_widest_space_become_recipes(draws: list[Config]) -> None:
    ids = {recipe_of(config, EPOCHS).id for config in draws}
    assert len(ids) > 0.98 * len(draws)  # heads in closed form have few parameters


NARROW_SPACES: list[tuple[Sequence[str], dict[str, str]]] = [
    (("naive", "scratch"), {"clip_norm": "none", "clip_value": "0.1..0.5"}),
    (("naive", "lp_ft"), {"clip_value": "0.1,0.5"}),
    (("naive", "clip"), {"clip_value": "none,0.5"}),
    (("clip",), {"clip_norm": "0.5..5"}),
    ((), {"embedding_loss": "triplet"}),
    ((), {"embedding_loss": "none,triplet,arcface", "mixing": "none,mixup"}),
    (("naive", "scratch"), {"batch_norm": "frozen,always"}),
    (("small_cnn",), {"batch_norm": "with_weights,always"}),
]


@pytest.mark.parametrize(
    "sampler",
    [pytest.param(name, marks=[pytest.mark.slow, pytest.mark.nightly] if name == "gp" else []) for name in SAMPLERS],
)
@pytest.mark.parametrize(("strategies", "edits"), NARROW_SPACES, ids=str)
def test_no_sampler_proposes_a_contradiction_in_a_narrow_space(
    sampler: str, strategies: Sequence[str], edits: dict[str, str]
) -> None:
    space = space_for(["a", "b"], EPOCHS, strategies, edits)
    ask_tell = AskTellSampler(space, sampler, seed=1)
    for number in range(available_trials(space, sampler, NUM_TRIALS.get(sampler, 40))):
        params, config = ask_tell.ask(f"{number:04d}", number)
        assert space.configured(params) == config
        recipe_of(config, EPOCHS)
        ask_tell.tell(a_record(f"{number:04d}", (0.1, (number % 7) / 7)))


REFUSED: list[tuple[Sequence[str], dict[str, str], str]] = [
    (
        (),
        {"clip_norm": "none"},
        r"clip_norm=none contradicts strategy clip, .*: list the other strategies with",
    ),
    (
        (),
        {"clip_value": "0.5"},
        r"clip_value=0.5 contradicts strategy clip, .*: list the other strategies with",
    ),
    (
        ("naive",),
        {"clip_norm": "1", "clip_value": "0.5"},
        r"clip_norm=1 and clip_value=0.5 exclude each other",
    ),
    (("naive",), {"clip_norm": "1..5", "clip_value": "0.1..0.5"}, r"clip_norm=1..5 and clip_value=0.1..0.5 exclude"),
    (("naive",), {"clip_norm": "1", "clip_value": "none,0.5"}, r"clip_value=0.5 .* tried: clip_norm=1 rules it out"),
    (("clip",), {"clip_value": "none,0.5"}, r"clip_value=0.5 would never be tried: clip_norm=1.0 rules it out"),
    (
        (),
        {"embedding_loss": "triplet", "mixing": "cutmix"},
        r"embedding_loss=triplet needs one class per.* mixing=cutmix",
    ),
    ((), {"embedding_loss": "triplet,arcface", "mixing": "mixup"}, r"embedding_loss=triplet, arcface needs one class"),
    ((), {"embedding_loss": "none,triplet", "mixing": "cutmix,mixup"}, r"embedding_loss=triplet needs one class per"),
    ((), {"embedding_loss": "triplet", "mixing": "none,cutmix"}, r"mixing=cutmix .* embedding_loss=triplet rules it"),
    ((), {"batch_norm": "frozen"}, r"batch_norm=frozen needs pretrained statistics, but strategy scratch starts from"),
    (("small_cnn",), {"batch_norm": "frozen"}, r"small_cnn starts from random weights: list the other strategies with"),
    (("scratch",), {"batch_norm": "always,frozen"}, r"batch_norm=frozen needs pretrained statistics, but .* scratch"),
]


@pytest.mark.parametrize(("strategies", "edits", "message"), REFUSED, ids=str)
def test_contradictions_are_refused_with_their_reason(
    strategies: Sequence[str], edits: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        space_for(["a"], EPOCHS, strategies, edits)


def test_a_lower_body_rate_is_never_proposed_if_only_the_head_moves() -> None:
    space = space_for(["a"], 6, ["linear_probe", "naive", "early_cut"], {"body_rate": "0.1,0.3"})
    rates: dict[object, set[object]] = {}
    for config, _ in random_configs(space, 100):
        rates.setdefault(config["strategy"], set()).add(config["body_rate"])
    assert rates == {"linear_probe": {1.0}, "early_cut": {1.0}, "naive": {0.1, 0.3}}


def test_a_lower_body_rate_is_refused_if_only_the_head_moves() -> None:
    with pytest.raises(ValueError, match=r"body_rate=0.1 would never be tried: strategy=linear_probe rules it out"):
        space_for(["a"], 6, ["linear_probe"], {"body_rate": "0.1"})


def test_without_gradient_steps_only_the_penalty_and_the_network_are_searched() -> None:
    space = space_for(["a", "b"], 6, edits={**WIDEST_CHOICES, "strategy": "ridge_probe,logistic_probe,naive"})
    searched = {"backbone", "strategy", "penalty", "activation", "colour", "images_per_class"}
    for config, params in random_configs(space, 200):
        assert config["epochs"] == (6 if config["strategy"] == "naive" else 1)
        if config["strategy"] != "naive":
            assert {name.rpartition(".")[2] for name in params} == searched
            recipe_of(config, 6)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"loss": "focal"}, r"loss=focal would never be tried: strategy=ridge_probe rules it out"),
        ({"augmentation": "none,flip"}, r"augmentation=flip would never be tried: strategy=ridge_probe rules it out"),
        ({"batch_size": "16"}, r"batch_size=16 would never be tried: strategy=ridge_probe rules it out"),
        ({"learning_rate": "0.1"}, r"learning_rate=0.1 would never be tried: ridge_probe fits its head in closed form"),
    ],
)
def test_axes_of_gradient_steps_are_refused_if_no_strategy_takes_any(edits: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        space_for(["a"], 6, ["ridge_probe"], edits)
    space_for(["a"], 6, ["ridge_probe", "naive"], edits)
