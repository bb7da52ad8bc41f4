"""Paces: how fast each parameter moves, and when a run unfreezes what it had frozen."""

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
SETTINGS = [  # every strategy, and other settings of those that unfreeze over time
    *({"name": name} for name in STRATEGIES),
    *({"name": "freeze_then_unfreeze", "freeze_epochs": epochs} for epochs in (1, 3, 7)),
    *({"name": "freeze_until_converged", "patience": epochs} for epochs in (2, 5)),
    *({"name": "gradual_unfreeze", "blocks": blocks, "until": until} for blocks in (1, 4, 99) for until in (0.2, 0.9)),
]
each_setting = pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: str(to_choice(setting)))


def to_choice(setting):
    return choose("strategy", STRATEGIES, **setting)


def pace_of(setting):
    return to_choice(setting).build(STRATEGIES).pace


def params(blocks):
    """Every parameter that a network with this number of blocks could have."""
    return [Param(depth, kind, blocks - depth) for depth in range(blocks + 1) for kind in KINDS]


def moving(pace, blocks, epoch, epochs, val_losses=()):
    return {param for param in params(blocks) if pace(param, TrainingProgress(epoch, epochs, val_losses)) > 0}


# Every pace


@each_setting
def test_the_head_always_moves_at_full_pace_and_nothing_moves_faster(setting):
    pace = pace_of(setting)
    for epoch in range(9):
        for param in params(8):
            assert 0 <= pace(param, TrainingProgress(epoch, 9)) <= 1
            assert param.depth > 0 or pace(param, TrainingProgress(epoch, 9)) == 1


@each_setting
@pytest.mark.parametrize("epochs", range(2, 13))
def test_unfreezing_ends_after_the_last_epoch_in_which_more_starts_to_move(setting, epochs):
    pace = pace_of(setting)
    for blocks in (5, 7, 48):
        sets = [moving(pace, blocks, epoch, epochs) for epoch in range(epochs)]
        changes = [epoch for epoch in range(1, epochs) if sets[epoch] != sets[epoch - 1]]
        last_change = pace.unfreezing_ends_after(epochs)
        if last_change < epochs:  # otherwise the recipe is refused
            assert last_change == max(changes, default=0)
        assert all(before <= after for before, after in pairwise(sets)), "something was frozen again"


@each_setting
@pytest.mark.parametrize("epochs", range(2, 13))
def test_a_recipe_accepts_exactly_the_strategies_that_unfreeze_before_its_last_epoch(make_recipe, setting, epochs):
    pace = pace_of(setting)
    last_change = pace.unfreezing_ends_after(epochs)
    if last_change < epochs:
        assert make_recipe(strategy=setting, epochs=epochs).last_unfreeze_epoch == last_change
    else:
        min_epochs = next(more for more in range(epochs, 99) if pace.unfreezing_ends_after(more) < more)
        message = f"{to_choice(setting)} would never unfreeze in {epochs} epochs: use at least {min_epochs} epochs, or"
        with pytest.raises(ValueError, match=re.escape(message)):
            make_recipe(strategy=setting, epochs=epochs)
        assert make_recipe(strategy=setting, epochs=min_epochs).last_unfreeze_epoch < min_epochs


def test_these_strategies_unfreeze_over_time():
    last_change = {name: STRATEGIES[name]().pace.unfreezing_ends_after(8) for name in STRATEGIES}
    assert {name: epochs for name, epochs in last_change.items() if epochs} == {
        "freeze_then_unfreeze": 2,
        "freeze_until_converged": 4,
        "gradual_unfreeze": 4,
    }


@pytest.mark.parametrize("name", ["freeze_until_converged", "gradual_unfreeze"])
def test_one_epoch_is_too_short_for_two_phases(make_recipe, name):
    with pytest.raises(ValueError, match="would never unfreeze in 1 epochs: use at least 2"):
        make_recipe(strategy=name, epochs=1)


# Until converged


@pytest.mark.parametrize(
    ("patience", "losses", "frozen_epochs"),
    [
        (1, (1.0, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2), 6),  # keeps falling: half of twelve epochs
        (1, (1.0, 1.0), 2),
        (1, (1.0, 0.9, 0.95), 3),
        (1, (1.0, 0.9, 0.8911), 3),  # less than 1%
        (1, (1.0, 0.9, 0.8909, 0.8909), 4),  # 1%, then nothing
        (2, (1.0, 1.1, 0.5, 0.6, 0.6), 5),  # a single bad epoch is tolerated
        (2, (1.0, 1.1, 1.0), 3),
        (3, (1.0, 1.0, 1.0, 1.0), 4),
        (9, (1.0,) * 8, 6),
    ],
)
def test_the_body_is_unfrozen_when_the_loss_stops_falling_or_after_half_of_the_epochs(patience, losses, frozen_epochs):
    pace = HeadUntilConverged(patience)
    after = (*losses, *losses[-1:] * 12)
    frozen = [epoch for epoch in range(12) if pace(Param(1), TrainingProgress(epoch, 12, after[:epoch])) == 0]
    assert frozen == list(range(frozen_epochs))


def test_the_body_stays_unfrozen_when_the_loss_falls_again():
    pace = HeadUntilConverged(patience=1)
    losses = (1.0, 1.0, 0.5, 0.2)
    assert [pace(Param(1), TrainingProgress(epoch, 12, losses[:epoch])) for epoch in range(5)] == [0, 0, 1, 1, 1]


@given(st.lists(st.floats(0.01, 9), max_size=12), st.integers(1, 4))
def test_an_unfrozen_body_is_never_frozen_again(losses, patience):
    pace = HeadUntilConverged(patience)
    paces = [pace(Param(3), TrainingProgress(epoch, 14, tuple(losses[:epoch]))) for epoch in range(len(losses) + 1)]
    assert paces == sorted(paces)


def first_epoch_that_moves(run):
    """Trains until the body first differs from its start; returns the number of that epoch."""
    start = {name: tensor.clone() for name, tensor in run.model.named_parameters() if "classifier" not in name}
    for epoch in run:
        now = dict(run.model.named_parameters())
        if any(not torch.equal(now[name], tensor) for name, tensor in start.items()):
            return epoch.epoch
    return None


@pytest.mark.parametrize(("learning_rate", "frozen_epochs"), [(1e-6, 2), (0.03, 4)])
def test_a_run_unfreezes_the_body_by_its_own_validation_losses(make_recipe, make_run, learning_rate, frozen_epochs):
    # At the smaller rate the head learns nothing, so it counts as converged; at the larger it still learns halfway.
    changes = {"optimizer": "adam", "learning_rate": learning_rate, "schedule": "constant", "epochs": 8}
    run = make_run(make_recipe(strategy="freeze_until_converged", **changes))
    assert first_epoch_that_moves(run) == frozen_epochs + 1
    losses = [epoch.val_loss for epoch in run.epochs]
    falls = [after < 0.99 * before for before, after in pairwise(losses[:frozen_epochs])]
    assert falls == ([False] if frozen_epochs == 2 else [True] * 3)


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_resumed_run_remembers_that_the_head_has_converged(make_recipe, make_run, tmp_path, stop_after):
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
    first, second = (a_run.model.state_dict() for a_run in (uninterrupted, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


# From the top


def test_gradual_unfreezing_proceeds_downwards_in_equal_steps():
    pace = GradualUnfreeze(blocks=2, until=0.5)
    deepest = [max(param.depth for param in moving(pace, 6, epoch, 12)) for epoch in range(12)]
    assert deepest == [0, 0, 2, 2, 4, 4, 6, 6, 6, 6, 6, 6]


@given(st.integers(1, 9), st.integers(1, 99), st.integers(4, 60), st.integers(2, 120))
def test_gradual_unfreezing_is_complete_at_its_fraction_of_the_epochs_and_not_before(steps, percent, blocks, epochs):
    pace = GradualUnfreeze(steps, percent / 100)
    last_change = math.ceil(percent * epochs / 100 - 1e-9)
    assert pace.unfreezing_ends_after(epochs) == last_change
    lowest = Param(blocks, "weight", 0)
    assert pace(lowest, TrainingProgress(last_change, epochs)) == 1
    assert pace(lowest, TrainingProgress(last_change - 1, epochs)) == 0


def test_a_run_unfreezes_step_by_step(make_recipe, make_run):
    strategy = {"name": "gradual_unfreeze", "blocks": 2, "until": 0.75}
    run = make_run(make_recipe(strategy=strategy, epochs=4, batch_size=24))  # six blocks: three steps
    body = ["classifier", "blocks.3", "blocks.1", "conv_stem"]
    seen = []
    for _ in run:
        names = [name for name, parameter in run.model.named_parameters() if parameter.grad is not None]
        seen.append([prefix for prefix in body if any(name.startswith(prefix) for name in names)])
    assert seen == [body[:1], body[:2], body[:3], body]


# Which part


@pytest.mark.parametrize("blocks", [4, 5, 6, 7, 16, 18, 50])
def test_the_quarters_divide_the_blocks_evenly_and_without_overlap(blocks):
    quarters = [moving(TrainOneQuarter(quarter), blocks, 0, 4) for quarter in (1, 2, 3, 4)]
    heights = [{param.height for param in quarter if param.depth > 0} for quarter in quarters]
    assert sorted(height for quarter in heights for height in quarter) == list(range(blocks))
    assert max(map(len, heights)) - min(map(len, heights)) <= 1
    assert [max(one) < min(other) for one, other in pairwise(heights)] == [True] * 3


def test_a_network_with_fewer_than_four_blocks_has_no_quarters():
    with pytest.raises(ValueError, match="surgical .* needs a network with at least 4; this one has 3"):
        TrainOneQuarter(1).check(3)
    TrainOneQuarter(1).check(4)


def test_freezing_the_first_blocks_equals_training_the_remaining_ones():
    lower, upper = (STRATEGIES[name](blocks).pace for name, blocks in (("freeze_first", 3), ("train_last", 5)))
    assert moving(lower, 8, 0, 4) == moving(upper, 8, 0, 4)


def test_layer_decay_multiplies_the_rate_per_block(make_recipe, make_run):
    pace = SlowerWithDepth(0.5)
    assert [pace(Param(depth), TrainingProgress(0, 4)) for depth in range(4)] == [1, 0.5, 0.25, 0.125]
    run = make_run(make_recipe(strategy={"name": "layer_decay", "decay": 0.5}, learning_rate=0.08, schedule="constant"))
    next(iter(run))
    groups = run.state_dict()["optimizer"]["param_groups"]
    assert {group["depth"]: group["lr"] for group in groups} == pytest.approx({d: 0.08 / 2**d for d in range(7)})
