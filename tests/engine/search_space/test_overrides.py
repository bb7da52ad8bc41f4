"""Overrides: every axis can be set by the user, and values without effect or meaning are refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sweeps.engine.search_space.defaults import AXES, LEARNING_RATE_RANGES
from sweeps.engine.search_space.overrides import space_for
from tests.engine.random_configs import (
    ALL_ENTRIES,
    ENTRY_PARAMETERS,
    WIDEST_CHOICES,
    random_configs,
    strategy_of,
    trained_configs,
)
from xfer.hyperparameters import PARAMETERS, Categorical, Range
from xfer.methods.optimizers import OPTIMIZERS
from xfer.methods.strategies import STRATEGIES
from xfer.recipe import CHOICE_TABLES

CLOSED_FORM = ("ridge_probe", "logistic_probe")
PRETRAINED = tuple(
    name for name in STRATEGIES if strategy_of({"strategy": name}).pretrained and name not in CLOSED_FORM
)
NEEDS: dict[tuple[str, str], dict[str, str]] = {
    ("batch_norm", "frozen"): {"strategy": ",".join(name for name in PRETRAINED if name not in CLOSED_FORM)}
}
"""Further edits that an entry needs because it contradicts the default space."""


# --- every axis can be set


@pytest.mark.parametrize(("kind", "name"), ALL_ENTRIES)
def test_every_entry_can_be_searched_alone(kind: str, name: str) -> None:
    space = space_for(["a"], 6, edits={**NEEDS.get((kind, name), {}), kind: name})
    configs = trained_configs(space, 20) or [config for config, _ in random_configs(space, 20)]
    assert {config[kind] for config in configs} == {name}


@pytest.mark.parametrize(("kind", "name", "parameter"), ENTRY_PARAMETERS)
def test_every_parameter_of_an_entry_can_be_fixed(kind: str, name: str, parameter: str) -> None:
    default = space_for(["a"], 6, edits={kind: name}).parameter(name, parameter)
    value = str(default.values[-1] if isinstance(default, Categorical) else default.high)
    space = space_for(["a"], 6, edits={kind: name, parameter: value})
    configs = trained_configs(space, 5) or [config for config, _ in random_configs(space, 5)]
    assert {str(config[parameter]) for config in configs} == {value}


def test_every_entry_can_be_searched_at_once() -> None:
    draws = [config for config, _ in random_configs(space_for(["a", "b"], 8, edits=WIDEST_CHOICES), 1_000)]
    for kind, table in CHOICE_TABLES.items():
        assert {config[kind] for config in draws} == set(table)
    assert {config["clip_value"] for config in draws} == {None, 0.5}
    assert {config["images_per_class"] for config in draws} == {None, 4}


def test_edits_apply_to_parameters_and_learning_rates_too() -> None:
    space = space_for(["a"], 9, edits={"freeze_epochs": "2..5", "learning_rate": "1e-4..1e-3"})
    assert space.parameter("freeze_then_unfreeze", "freeze_epochs") == Range(2, 5)
    assert set(space.learning_rates.values()) == {Range(1e-4, 1e-3, log=True)}
    assert set(space.learning_rates) == set(OPTIMIZERS)


def test_an_edit_of_a_parameter_holds_for_every_entry_that_has_it() -> None:
    space = space_for(["a"], 6, edits={"mixing": "cutmix,mixup", "alpha": "0.3..0.4"})
    assert space.parameter("cutmix", "alpha") == space.parameter("mixup", "alpha") == Range(0.3, 0.4)
    unedited = space_for(["a"], 6, edits={"mixing": "cutmix,mixup"})
    assert unedited.parameter("cutmix", "alpha") != unedited.parameter("mixup", "alpha")


def test_axes_that_are_not_edited_keep_their_defaults() -> None:
    space, default = space_for(["a"], 6, edits={"optimizer": "sgd,lamb"}), space_for(["a"], 6)
    assert {axis for axis in AXES if space.axes[axis] != default.axes[axis]} == {"optimizer"}
    assert (space.parameters, space.learning_rates) == (default.parameters, LEARNING_RATE_RANGES)


@pytest.mark.parametrize(
    ("edits", "name"),
    [
        ({"weight_decay": "0..1"}, "weight_decay"),
        ({"clip_norm": "1..5"}, "clip_norm"),
        ({"clip_value": "1..5"}, "clip_value"),
        ({"mixing": "cutmix", "alpha": "1..4"}, "alpha"),
        ({"learning_rate": "1..10"}, "learning_rate"),
    ],
)
def test_a_range_of_a_real_quantity_holds_values_between_integers(edits: dict[str, str], name: str) -> None:
    draws = random_configs(space_for(["a"], 6, ["naive"], edits), 30)
    assert not all(float(config[name]).is_integer() for config, _ in draws)  # type: ignore[arg-type]


def test_strategies_may_be_given_as_a_list_or_as_an_axis() -> None:
    assert space_for(["a"], 6, ["naive", "clip"]).strategies() == ("naive", "clip")
    assert space_for(["a"], 6, edits={"strategy": "naive,clip"}).strategies() == ("naive", "clip")


def test_naive_is_also_called_full_finetune() -> None:
    assert space_for(["a"], 6, ["full_finetune", "clip"]).strategies() == ("naive", "clip")
    assert space_for(["a"], 6, edits={"strategy": "full_finetune"}).strategies() == ("naive",)
    (params,) = space_for(["a"], 6).known_good([{"strategy": "full_finetune"}])
    assert params["strategy"] == "naive"


# --- refusals

REFUSED: list[tuple[Sequence[str], int, dict[str, str], str]] = [
    # unknown names: the closest known names are offered
    ((), 6, {"optimiser": "sgd"}, r"unknown axis 'optimiser': did you mean optimizer\? Known: strategy, clip_norm"),
    ((), 6, {"freeze_epoch": "2"}, r"unknown axis 'freeze_epoch': did you mean freeze_epochs"),
    ((), 6, {"lerning_rate": "2"}, r"unknown axis 'lerning_rate': did you mean learning_rate"),
    ((), 6, {"color": "grey"}, r"unknown axis 'color': did you mean colour"),
    ((), 6, {"image_per_class": "9"}, r"unknown axis 'image_per_class': did you mean images_per_class"),
    ((), 6, {"backbone": "resnet18"}, r"unknown axis 'backbone'"),
    (("clp",), 6, {}, r"unknown strategy 'clp': did you mean clip\?"),
    (("l2sp",), 6, {}, r"unknown strategy 'l2sp': did you mean l2_sp"),
    # values outside the limits
    ((), 6, {"freeze_epochs": "0"}, r"freeze_epochs must be at least 1, got 0"),
    ((), 6, {"mixing": "cutmix", "alpha": "-1"}, r"alpha"),
    ((), 6, {"smoothing": "5"}, r"smoothing"),
    ((), 6, {"magnitude": "100"}, r"magnitude"),
    ((), 6, {"num_ops": "1000000000"}, r"num_ops"),
    (("surgical",), 6, {"block": "5"}, r"block=5: must be between 1 and 4"),
    # no epoch would remain after unfreezing
    ((), 6, {"freeze_epochs": "1..6"}, r"with 6 epochs, freeze_epochs can be at most 5"),
    ((), 6, {"freeze_epochs": "1,9"}, r"with 6 epochs, freeze_epochs can be at most 5"),
    (
        ("gradual_unfreeze",),
        6,
        {"until": "0.5..0.9"},
        r"gradual_unfreeze needs .* 6 epochs, until .* most 0.833$",
    ),
    (("gradual_unfreeze",), 8, {"until": "0.5,0.9"}, r"with 8 epochs, until can be at most 0.875"),
    *(
        ((name,), 1, {}, rf"{name} needs an epoch after it unfreezes: with 1 epochs, that is too few")
        for name in ("freeze_then_unfreeze", "freeze_until_converged", "gradual_unfreeze")
    ),
    # parameters of entries that the sweep does not try
    (
        ("naive",),
        6,
        {"freeze_epochs": "2"},
        r"freeze_epochs belongs to freeze_then_unfreeze, which this sweep does not try: add it with --strategies",
    ),
    ((), 6, {"blocks": "2"}, r"blocks belongs to freeze_first, train_last and gradual_unfreeze, which this sweep"),
    ((), 6, {"augmentation": "flip", "magnitude": "3"}, r"magnitude belongs to randaugment, .* --vary augmentation"),
    ((), 6, {"mixing": "none", "alpha": "0.5"}, r"alpha belongs to cutmix and mixup, which this sweep does not try"),
    ((), 6, {"loss": "cross_entropy", "smoothing": "0.2"}, r"smoothing belongs to label_smoothing, which this"),
    ((), 6, {"weight": "0.2"}, r"weight belongs to contrastive, triplet and arcface, .* --vary embedding_loss"),
]


@pytest.mark.parametrize(
    ("strategies", "epochs", "edits", "message"), REFUSED, ids=[f"{','.join(case[0])}{case[1:3]}" for case in REFUSED]
)
def test_meaningless_edits_are_refused_with_the_reason(
    strategies: Sequence[str], epochs: int, edits: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        space_for(["a"], epochs, strategies, edits)


def test_the_refusal_of_an_unknown_axis_lists_all_axes() -> None:
    with pytest.raises(ValueError, match="Known: ") as refused:
        space_for(["a"], 6, edits={"nothing": "1"})
    assert set(str(refused.value).partition("Known: ")[2].split(", ")) == {
        *AXES,
        *PARAMETERS,
        "image_size",
        "learning_rate",
    }


@pytest.mark.parametrize("epochs", [2, 3, 4, 5, 7, 8, 30])
@pytest.mark.parametrize(
    ("strategy", "name", "late"),
    [("gradual_unfreeze", "until", "0.99"), ("freeze_then_unfreeze", "freeze_epochs", "30")],
)
def test_the_latest_unfreezing_named_by_a_refusal_is_accepted(strategy: str, name: str, late: str, epochs: int) -> None:
    with pytest.raises(ValueError, match=f"with {epochs} epochs, {name} can be at most") as refused:
        space_for(["a"], epochs, [strategy], {name: late})
    latest = str(refused.value).rpartition(" ")[2]
    assert space_for(["a"], epochs, [strategy], {name: latest}).strategies() == (strategy,)
