"""How fast each parameter moves, and when: the paces themselves, and when a run frees what it had frozen."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xfer.choices import choose
from xfer.methods.freezing import (
    GradualUnfreeze,
    HeadUntilConverged,
    SlowerWithDepth,
    TrainingProgress,
    TrainOneQuarter,
)
from xfer.methods.strategies import STRATEGIES
from xfer.models.params import Param

KINDS = ("weight", "bias", "scale", "shift", "adapter")
SETTINGS = [  # every strategy, and those that take their time at other settings too
    *({"name": name} for name in STRATEGIES),
    *({"name": "freeze_then_unfreeze", "freeze_epochs": epochs} for epochs in (1, 3, 7)),
    *({"name": "freeze_until_converged", "patience": epochs} for epochs in (2, 5)),
    *({"name": "gradual_unfreeze", "blocks": blocks, "until": until} for blocks in (1, 4, 99) for until in (0.2, 0.9)),
]
each_setting = pytest.mark.parametrize("setting", SETTINGS, ids=lambda each: str(spelled_out(each)))


def spelled_out(setting):
    return choose("strategy", STRATEGIES, **setting)


def pace_of(setting):
    return spelled_out(setting).build(STRATEGIES).pace


def params(blocks):
    """Every parameter that a network of so many blocks could have."""
    return [Param(depth, kind, blocks - depth) for depth in range(blocks + 1) for kind in KINDS]


def moving(pace, blocks, epoch, epochs, val_losses=()):
    return {param for param in params(blocks) if pace(param, TrainingProgress(epoch, epochs, val_losses)) > 0}


# Every pace


@each_setting
def test_the_head_moves_at_full_pace_whatever_else_does_and_nothing_moves_faster(setting):
    pace = pace_of(setting)
    for epoch in range(9):
        for param in params(8):
            assert 0 <= pace(param, TrainingProgress(epoch, 9)) <= 1
            assert param.depth > 0 or pace(param, TrainingProgress(epoch, 9)) == 1


@each_setting
@pytest.mark.parametrize("epochs", range(2, 13))
def test_settles_after_is_the_last_epoch_at_which_more_begins_to_move(setting, epochs):
    pace = pace_of(setting)
    for blocks in (5, 7, 48):
        sets = [moving(pace, blocks, epoch, epochs) for epoch in range(epochs)]
        changes = [epoch for epoch in range(1, epochs) if sets[epoch] != sets[epoch - 1]]
        settled = pace.unfreezing_ends_after(epochs)
        if settled < epochs:  # otherwise a recipe refuses it
            assert settled == max(changes, default=0)
        assert all(before <= after for before, after in pairwise(sets)), "nothing freezes again"


@each_setting
@pytest.mark.parametrize("epochs", range(2, 13))
def test_a_recipe_takes_a_strategy_that_settles_before_its_last_epoch_and_no_other(make_recipe, setting, epochs):
    pace = pace_of(setting)
    settled = pace.unfreezing_ends_after(epochs)
    if settled < epochs:
        assert make_recipe(strategy=setting, epochs=epochs).last_unfreeze_epoch == settled
    else:
        enough = next(more for more in range(epochs, 99) if pace.unfreezing_ends_after(more) < more)
        message = f"{spelled_out(setting)} would never unfreeze in {epochs} epochs: it needs at least {enough}, or"
        with pytest.raises(ValueError, match=re.escape(message)):
            make_recipe(strategy=setting, epochs=epochs)
        assert make_recipe(strategy=setting, epochs=enough).last_unfreeze_epoch < enough


def test_which_strategies_take_their_time():
    settled = {name: STRATEGIES[name]().pace.unfreezing_ends_after(8) for name in STRATEGIES}
    assert {name: epochs for name, epochs in settled.items() if epochs} == {
        "freeze_then_unfreeze": 2,
        "freeze_until_converged": 4,
        "gradual_unfreeze": 4,
    }


@pytest.mark.parametrize("name", ["freeze_until_converged", "gradual_unfreeze"])
def test_one_epoch_is_too_short_for_two_phases(make_recipe, name):
    with pytest.raises(ValueError, match="would never unfreeze in 1 epochs: it needs at least 2"):
        make_recipe(strategy=name, epochs=1)


# Until converged


@pytest.mark.parametrize(
    ("patience", "losses", "thaws"),
    [
        (1, (1.0, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2), 6),  # it goes on falling: half of twelve epochs
        (1, (1.0, 1.0), 2),
        (1, (1.0, 0.9, 0.95), 3),
        (1, (1.0, 0.9, 0.8911), 3),  # less than a hundredth
        (1, (1.0, 0.9, 0.8909, 0.8909), 4),  # a hundredth, and then nothing
        (2, (1.0, 1.1, 0.5, 0.6, 0.6), 5),  # a single bad epoch is forgiven
        (2, (1.0, 1.1, 1.0), 3),
        (3, (1.0, 1.0, 1.0, 1.0), 4),
        (9, (1.0,) * 8, 6),
    ],
)
def test_the_body_is_freed_once_the_loss_no_longer_falls_and_at_half_of_the_epochs(patience, losses, thaws):
    pace = HeadUntilConverged(patience)
    after = (*losses, *losses[-1:] * 12)
    frozen = [epoch for epoch in range(12) if pace(Param(1), TrainingProgress(epoch, 12, after[:epoch])) == 0]
    assert frozen == list(range(thaws))


def test_what_was_freed_stays_free_when_the_loss_falls_again():
    pace = HeadUntilConverged(patience=1)
    losses = (1.0, 1.0, 0.5, 0.2)
    assert [pace(Param(1), TrainingProgress(epoch, 12, losses[:epoch])) for epoch in range(5)] == [0, 0, 1, 1, 1]


@given(st.lists(st.floats(0.01, 9), max_size=12), st.integers(1, 4))
def test_a_body_once_free_is_never_frozen_again(losses, patience):
    pace = HeadUntilConverged(patience)
    paces = [pace(Param(3), TrainingProgress(epoch, 14, tuple(losses[:epoch]))) for epoch in range(len(losses) + 1)]
    assert paces == sorted(paces)


def first_moves(run):
    """After how many epochs the body first differs from its start; the loop is left then."""
    start = {name: tensor.clone() for name, tensor in run.model.named_parameters() if "classifier" not in name}
    for epoch in run:
        now = dict(run.model.named_parameters())
        if any(not torch.equal(now[name], tensor) for name, tensor in start.items()):
            return epoch.epoch
    return None


@pytest.mark.parametrize(("learning_rate", "thaws"), [(1e-6, 2), (0.03, 4)])
def test_a_run_frees_the_body_by_the_validation_losses_that_it_sees(make_recipe, make_run, learning_rate, thaws):
    # At the smaller rate the head learns nothing, so it has converged; at the larger it is not done at half-time.
    changes = {"optimizer": "adam", "learning_rate": learning_rate, "schedule": "constant", "epochs": 8}
    run = make_run(make_recipe(strategy="freeze_until_converged", **changes))
    assert first_moves(run) == thaws + 1
    losses = [epoch.val_loss for epoch in run.epochs]
    falls = [after < 0.99 * before for before, after in pairwise(losses[:thaws])]
    assert falls == ([False] if thaws == 2 else [True] * 3)


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_resumed_run_remembers_that_the_head_had_converged(make_recipe, make_run, tmp_path, stop_after):
    recipe = make_recipe(strategy="freeze_until_converged", epochs=8, learning_rate=1e-6, schedule="constant")
    uninterrupted = make_run(recipe)
    for epoch in uninterrupted:
        if epoch.epoch == 5:
            break
    run = make_run(recipe, tmp_path)
    for epoch in run:
        if epoch.epoch == stop_after:
            break
    resumed = make_run(recipe, tmp_path)
    for epoch in resumed:
        if epoch.epoch == 5:
            break
    assert [epoch.distance > 0 for epoch in resumed.epochs] == [False, False, True, True, True]
    first, second = (each.model.state_dict() for each in (uninterrupted, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


# From the top


def test_gradual_unfreezing_comes_down_in_equal_steps():
    pace = GradualUnfreeze(blocks=2, until=0.5)
    freed = [max(param.depth for param in moving(pace, 6, epoch, 12)) for epoch in range(12)]
    assert freed == [0, 0, 2, 2, 4, 4, 6, 6, 6, 6, 6, 6]


@given(st.integers(1, 9), st.integers(1, 99), st.integers(4, 60), st.integers(2, 120))
def test_gradual_unfreezing_has_freed_all_at_its_share_of_the_epochs_and_not_before(steps, percent, blocks, epochs):
    pace = GradualUnfreeze(steps, percent / 100)
    settled = math.ceil(percent * epochs / 100 - 1e-9)
    assert pace.unfreezing_ends_after(epochs) == settled
    lowest = Param(blocks, "weight", 0)
    assert pace(lowest, TrainingProgress(settled, epochs)) == 1
    assert pace(lowest, TrainingProgress(settled - 1, epochs)) == 0


def test_a_run_comes_down_step_by_step(make_recipe, make_run):
    strategy = {"name": "gradual_unfreeze", "blocks": 2, "until": 0.75}
    run = make_run(make_recipe(strategy=strategy, epochs=4, batch_size=24))  # six blocks: three steps
    body = ["classifier", "blocks.3", "blocks.1", "conv_stem"]
    seen = []
    for _ in run:
        names = [name for name, parameter in run.model.named_parameters() if parameter.grad is not None]
        seen.append([place for place in body if any(name.startswith(place) for name in names)])
    assert seen == [body[:1], body[:2], body[:3], body]


# Which part


@pytest.mark.parametrize("blocks", [4, 5, 6, 7, 16, 18, 50])
def test_the_quarters_divide_the_blocks_without_overlap_and_as_evenly_as_can_be(blocks):
    quarters = [moving(TrainOneQuarter(quarter), blocks, 0, 4) for quarter in (1, 2, 3, 4)]
    heights = [{param.height for param in quarter if param.depth > 0} for quarter in quarters]
    assert sorted(height for quarter in heights for height in quarter) == list(range(blocks))
    assert max(map(len, heights)) - min(map(len, heights)) <= 1
    assert [max(one) < min(other) for one, other in pairwise(heights)] == [True] * 3


def test_a_network_without_four_blocks_has_no_quarters():
    with pytest.raises(
        ValueError, match="a quarter of 3 blocks is less than one: surgical needs a network of at least 4"
    ):
        TrainOneQuarter(1).check(3)
    TrainOneQuarter(1).check(4)


def test_freeze_first_and_train_last_are_two_ways_to_say_one_thing():
    lower, upper = (STRATEGIES[name](blocks).pace for name, blocks in (("freeze_first", 3), ("train_last", 5)))
    assert moving(lower, 8, 0, 4) == moving(upper, 8, 0, 4)


def test_layer_decay_multiplies_from_block_to_block(make_recipe, make_run):
    pace = SlowerWithDepth(0.5)
    assert [pace(Param(depth), TrainingProgress(0, 4)) for depth in range(4)] == [1, 0.5, 0.25, 0.125]
    run = make_run(make_recipe(strategy={"name": "layer_decay", "decay": 0.5}, learning_rate=0.08, schedule="constant"))
    next(iter(run))
    groups = run.state_dict()["optimizer"]["param_groups"]
    assert {group["depth"]: group["lr"] for group in groups} == pytest.approx({d: 0.08 / 2**d for d in range(7)})
