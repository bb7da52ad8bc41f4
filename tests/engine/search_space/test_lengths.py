"""The length of a sweep's runs: epochs by batch size and number of images."""

from __future__ import annotations

import math

import pytest

from sweeps.engine.plan import Plan
from sweeps.engine.search_space.distributions import domain_values
from sweeps.engine.search_space.overrides import space_for
from tests.engine.random_configs import random_configs
from xfer.hyperparameters import DEFAULT_EPOCHS
from xfer.lengths import MIN_STEPS, RunLength

PHOTOS = RunLength(class_sizes=(200, 184))


def test_every_proposal_has_the_epochs_of_its_batch_size_and_images() -> None:
    space = space_for(["a"], PHOTOS, edits={"batch_size": "8,16,64", "images_per_class": "20,none"})
    seen = set()
    for config, _ in random_configs(space, 100):
        if config["strategy"] == "logistic_probe":
            continue
        images = 384 if config["images_per_class"] is None else 40
        steps_per_epoch = math.ceil(images / int(str(config["batch_size"])))
        assert config["epochs"] == max(DEFAULT_EPOCHS, math.ceil(MIN_STEPS / steps_per_epoch))
        seen.add((config["batch_size"], config["images_per_class"]))
    assert len(seen) == 6


def test_only_batch_sizes_with_ten_steps_per_epoch_compete_by_default() -> None:
    def sizes(images: int, **edits: str) -> tuple[object, ...]:
        return domain_values(space_for(["a"], RunLength(class_sizes=(images,)), edits=edits).axes["batch_size"])

    assert [sizes(images) for images in (30, 195, 384, 700)] == [(16,), (16,), (16, 32), (16, 32, 64)]
    assert sizes(30, batch_size="64") == (64,)
    assert domain_values(space_for(["a"], 8).axes["batch_size"]) == (16, 32, 64)


def test_frozen_epochs_are_the_same_fraction_of_longer_runs() -> None:
    space = space_for(["a"], PHOTOS, ["freeze_then_unfreeze"])
    assert space.shortest == 13  # 300 steps of 16 images
    frozen = {config["freeze_epochs"] for config, _ in random_configs(space, 200)}
    assert (min(frozen), max(frozen)) == (1, 5)
    assert space.configured(space.known_good()[0])["freeze_epochs"] == 3
    given = space_for(["a"], PHOTOS, ["freeze_then_unfreeze"], {"freeze_epochs": "2"})
    assert given.configured(given.known_good()[0])["freeze_epochs"] == 2


def test_lengths_are_described_by_batch_size() -> None:
    assert space_for(["a"], PHOTOS).described_lengths() == {
        "batch size 16": "13 epochs, 312 steps",
        "batch size 32": "25 epochs, 300 steps",
    }


def test_a_plan_refuses_epochs_and_steps_together() -> None:
    with pytest.raises(ValueError, match="--epochs 5 and --steps 100 both set the length of a run"):
        Plan("folder", "?", epochs=5, steps=100)


def test_too_few_steps_to_unfreeze_leave_the_strategy_out() -> None:
    length = RunLength(steps=10, class_sizes=(384,))
    assert "freeze_then_unfreeze" not in space_for(["a"], length).strategies()
    with pytest.raises(ValueError, match="freeze_then_unfreeze needs an epoch after it unfreezes: with 1 epochs"):
        space_for(["a"], length, ["freeze_then_unfreeze"])
