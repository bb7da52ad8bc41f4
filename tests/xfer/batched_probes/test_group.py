"""Heads trained side by side: each comes to what it comes to alone in a Run, whatever becomes of the others."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from tests.xfer.conftest import MEASURED_FIELDS
from xfer.batched_probes.compatibility import can_batch, group_recipes, head_inits
from xfer.batched_probes.group import ProbeGroup
from xfer.batched_probes.heads import BATCHED_STEPS, Head
from xfer.data.loader import shuffle_indices
from xfer.features.extract import extract_features
from xfer.linear_heads import fit_closed_form
from xfer.methods.losses import LOSSES
from xfer.methods.optimizers import OPTIMIZERS
from xfer.methods.schedules import SCHEDULES
from xfer.records import as_dict
from xfer.seeding import derive_seed
from xfer.training.networks import build_network, build_preprocessor

CPU = torch.device("cpu")
RATES = {"sgd": 0.01, "nesterov": 0.01, "lion": 0.001}
TOGETHER = sorted(BATCHED_STEPS)


class Frozen:
    """Embeddings of the tiny network, and what was asked of them."""

    def __init__(self, pack, weights, make_recipe):
        self.asked = []
        model = build_network(make_recipe(strategy="linear_probe"), weights)
        prepare = build_preprocessor(make_recipe(), model, CPU)
        self.rows = torch.from_numpy(extract_features(model, pack, np.arange(len(pack.labels)), prepare)["late"])

    def __call__(self, recipe, view, places):
        self.asked.append((recipe.augmentation.name, view, tuple(places.tolist())))
        rows = self.rows[torch.from_numpy(places)]
        return rows if view is None else rows * (1 + 0.1 * view)


@pytest.fixture
def embeddings(pack, weights, make_recipe):
    return Frozen(pack, weights, make_recipe)


@pytest.fixture
def probe(make_recipe):
    """A recipe of a linear probe: four epochs of three steps, Lookahead's rhythm twice."""

    def recipe(**changes):
        rate = RATES.get(changes.get("optimizer", "adam"), 0.003)
        plain = {"strategy": "linear_probe", "optimizer": "adam", "epochs": 4, "weight_decay": 0.01}
        return make_recipe(**{**plain, "learning_rate": rate, **changes})

    return recipe


@pytest.fixture
def train(pack, weights, embeddings):
    """A group that has been trained to its end."""

    def trained(recipes, begin=None):
        group = ProbeGroup(recipes, pack, embeddings, begin or head_inits(recipes, weights), CPU)
        list(group)
        return group

    return trained


def numbers(value):
    """Every number of a record, epoch or evaluation by its place, without what was measured of the machine."""
    if isinstance(value, dict):
        return {
            (name, *at): one
            for name, each in value.items()
            if name not in MEASURED_FIELDS
            for at, one in numbers(each).items()
        }
    if isinstance(value, list | tuple):
        return {(place, *at): one for place, each in enumerate(value) for at, one in numbers(each).items()}
    return {(): value}


def assert_close(found, expected):
    """Equal within 1e-4 in every number, and otherwise equal."""
    found, expected = numbers(as_dict(found)), numbers(as_dict(expected))
    assert found.keys() == expected.keys()
    for place, value in expected.items():
        wanted = pytest.approx(value, abs=1e-4, rel=1e-4) if isinstance(value, float) else value
        assert found[place] == wanted, place


def assert_as_alone(group, make_run):
    for member, recipe in enumerate(group.recipes):
        run = make_run(recipe)
        list(run)
        assert_close(group.record(member, "0007"), run.record("0007"))
        ours, theirs = group.head(member), run.model.get_classifier()
        torch.testing.assert_close(ours.weight, theirs.weight.detach(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.bias, theirs.bias.detach(), atol=1e-4, rtol=1e-4)


def bits(group, member):
    """Everything that a member has come to, as text: NaN is not equal to itself."""
    head = group.head(member)
    return (
        head.weight.numpy().tobytes() + head.bias.numpy().tobytes(),
        repr(numbers(as_dict(group.record(member)))),
    )


# As alone


@pytest.mark.parametrize("optimizer", TOGETHER)
def test_members_come_to_what_they_come_to_alone_with_every_optimizer(probe, train, make_run, optimizer):
    recipes = [probe(optimizer=optimizer), probe(optimizer=optimizer, weight_decay=1.0, clip_norm=0.5)]
    assert_as_alone(train(recipes), make_run)


def test_members_come_to_what_they_come_to_alone_with_every_loss_and_schedule(probe, train, make_run):
    recipes = [probe(loss=loss, schedule=schedule) for loss in LOSSES for schedule in SCHEDULES]
    assert_as_alone(train(recipes), make_run)


def test_members_may_differ_in_everything_that_is_their_own(probe, train, make_run):
    recipes = [
        probe(seed=1, learning_rate=0.01, clip_norm=0.1),
        probe(seed=0, weight_decay=3.0, clip_value=0.01),
        probe(seed=1, loss={"name": "label_smoothing", "smoothing": 0.3}),
        probe(seed=2, loss={"name": "focal", "gamma": 1.5}, schedule="step"),
        probe(seed=0, loss={"name": "focal", "gamma": 0.5}, schedule="cosine_warmup", weight_decay=0.0),
    ]
    assert group_recipes(recipes) == [(0, 1, 2, 3, 4)]
    assert_as_alone(train(recipes), make_run)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 23, "draw": 1},  # the last batch would hold one image: it is left out
        {"images_per_class": 3, "batch_size": 4},
        {"strategy": "early_cut", "backbone": "test_resnet"},
    ],
)
def test_what_all_members_share_is_heeded(probe, make_run, pack, weights_of, changes):
    recipes = [probe(**changes), probe(**changes, learning_rate=0.01)]
    file = weights_of(recipes[0].backbone)
    run = make_run(recipes[0])

    def embeddings(recipe, view, places):
        prepare = build_preprocessor(recipe, run.model, CPU)
        return torch.from_numpy(extract_features(run.model, pack, places, prepare)["late"])

    group = ProbeGroup(recipes, pack, embeddings, head_inits(recipes, file), CPU)
    list(group)
    assert_as_alone(group, make_run)


@pytest.mark.parametrize("how", ["ridge_probe", "logistic_probe"])
def test_heads_in_closed_form_come_to_what_they_come_to_alone(probe, train, make_run, how):
    penalties = (0.01, 1.0, 100.0)
    recipes = [probe(strategy={"name": how, "penalty": penalty}, seed=place) for place, penalty in enumerate(penalties)]
    assert group_recipes(recipes) == [(0, 1, 2)]
    group = train(recipes)
    assert_as_alone(group, make_run)
    assert len({bits(group, member) for member in range(3)}) == 3


def test_a_path_of_ridge_penalties_takes_one_decomposition(probe, train, monkeypatch):
    taken = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr("torch.linalg.eigh", lambda *given: taken.append(given) or eigh(*given))
    group = train([probe(strategy={"name": "ridge_probe", "penalty": 10.0**power}) for power in range(-2, 5)])
    assert len(taken) == 1
    alone = train([group.recipes[3]])
    assert torch.equal(alone.head(0).weight, group.head(3).weight)


def test_a_head_in_closed_form_whose_losses_are_not_finite_leaves_the_others(probe, train, monkeypatch):
    recipes = [probe(strategy={"name": "ridge_probe", "penalty": penalty}) for penalty in (1.0, 10.0, 100.0)]
    healthy = train(recipes)

    def ill(how, features, labels, classes, penalties):
        found = fit_closed_form(how, features, labels, classes, penalties)
        return [found[0], (found[1][0] * math.nan, found[1][1]), found[2]]

    monkeypatch.setattr("xfer.batched_probes.group.fit_closed_form", ill)
    group = train(recipes)
    assert [bits(group, member) for member in (0, 2)] == [bits(healthy, member) for member in (0, 2)]
    assert (group.record(1).status, group.record(1).error) == (
        "failed",
        "the validation loss became nan after epoch 1",
    )


def test_a_group_of_two_hundred_is_one_task(probe, train, make_run):
    chance = np.random.default_rng(0)
    recipes = [
        probe(learning_rate=10 ** chance.uniform(-5, -1), weight_decay=10 ** chance.uniform(-6, 0), seed=place % 3)
        for place in range(200)
    ]
    assert [len(places) for places in group_recipes(recipes)] == [200]
    group = train(recipes)
    assert len({bits(group, member) for member in range(200)}) == 200
    for member in (0, 77, 199):
        run = make_run(recipes[member])
        list(run)
        assert_close(group.record(member), run.record())


# Whatever becomes of the others


def poisoned(begin, how):
    weight = begin.head.weight.clone()
    weight[0, 0] = how
    return dataclasses.replace(begin, head=Head(weight, begin.head.bias))


@pytest.mark.parametrize("how", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("optimizer", TOGETHER)
def test_a_member_that_is_no_longer_finite_leaves_the_others_bit_for_bit_as_they_are(
    probe, train, weights, optimizer, how
):
    losses = ("cross_entropy", "cross_entropy", "focal", "label_smoothing")
    recipes = [
        probe(optimizer=optimizer, loss=loss, seed=place % 2, clip_norm=None if place else 1.0)
        for place, loss in enumerate(losses)
    ]
    begin = head_inits(recipes, weights)
    healthy = train(recipes, begin)
    ill = train(recipes, [begin[0], poisoned(begin[1], how), *begin[2:]])
    assert [bits(ill, member) for member in (0, 2, 3)] == [bits(healthy, member) for member in (0, 2, 3)]
    assert bits(ill, 1) != bits(healthy, 1)
    if how != 1e30:
        record = ill.record(1)
        assert (record.status, record.epochs, record.val) == ("failed", (), None)
        assert record.error == "the training loss became nan in epoch 1, step 1 of 3"


def test_a_member_whose_rate_makes_it_diverge_fails_as_alone_and_the_others_do_not(probe, train, make_run):
    recipes = [probe(optimizer="sgd", learning_rate=rate, weight_decay=10.0) for rate in (0.01, 100.0, 0.02)]
    group = train([dataclasses.replace(recipe, epochs=8) for recipe in recipes])
    run = make_run(group.recipes[1])
    with pytest.raises(ArithmeticError) as alone:
        list(run)
    assert str(group.errors[1]) == str(alone.value)
    assert_close(group.record(1), run.record(error=str(alone.value)))
    assert [group.record(member).status for member in (0, 1, 2)] == ["finished", "failed", "finished"]
    tame = train([group.recipes[0], dataclasses.replace(group.recipes[1], learning_rate=0.001), group.recipes[2]])
    assert [bits(tame, member) for member in (0, 2)] == [bits(group, member) for member in (0, 2)]


def test_a_member_that_is_stopped_has_no_further_epochs_and_the_others_do_not_notice(probe, pack, weights, embeddings):
    recipes = [probe(learning_rate=rate) for rate in (0.001, 0.003, 0.01)]
    groups = [ProbeGroup(recipes, pack, embeddings, head_inits(recipes, weights), CPU) for _ in range(2)]
    list(groups[0])
    for number, epochs in enumerate(groups[1]):
        assert [epoch is None for epoch in epochs] == [False, number >= 2, False]
        if number == 1:
            groups[1].stop(1)
    assert [bits(groups[1], member) for member in (0, 2)] == [bits(groups[0], member) for member in (0, 2)]
    record = groups[1].record(1)
    assert (record.status, len(record.epochs), record.val) == ("pruned", 2, None)


def test_a_group_without_members_left_ends(probe, train, weights):
    recipes = [probe(), probe(learning_rate=0.01)]
    group = train(recipes, [poisoned(each, math.nan) for each in head_inits(recipes, weights)])
    assert [group.record(member).status for member in (0, 1)] == ["failed", "failed"]


def test_seconds_are_a_members_share(probe, train):
    alone, many = train([probe()] * 1), train([probe()] * 40)
    shares = [epoch.seconds for epoch in many.epochs[0]]
    assert many.record(0).seconds == pytest.approx(sum(shares))
    assert [epoch.seconds for epoch in many.epochs[39]] == shares
    assert alone.epochs[0][0].images_per_second < many.epochs[0][0].images_per_second


# Which images


def test_every_epoch_sees_the_version_whose_turn_it_is_in_the_order_of_the_seed(probe, train, embeddings, pack):
    recipes = [probe(augmentation="flip", views=3, seed=5), probe(augmentation="none", views=2, seed=5)]
    group = train(recipes)
    orders = [
        tuple(shuffle_indices(group.split.train, 8, derive_seed(5, "order", epoch)).tolist()) for epoch in range(4)
    ]
    for name, views in (("flip", (0, 1, 2, 0)), ("none", (None,) * 4)):
        seen = [(view, places) for which, view, places in embeddings.asked if which == name and places in orders]
        assert seen == list(zip(views, orders, strict=True))
    assert {view for _, view, places in embeddings.asked if places == tuple(group.split.val.tolist())} == {None}
    assert set(group.split.test.tolist()).isdisjoint(place for _, _, places in embeddings.asked for place in places)


def test_members_with_the_same_versions_learn_from_the_same_images_and_others_do_not(probe, train):
    group = train([probe(augmentation="flip", views=2), probe(), probe(augmentation="flip", views=2), probe(views=7)])
    first, second, third, fourth = (group.head(member).weight for member in range(4))
    torch.testing.assert_close(first, third)  # not to the bit: a kernel may add up another column in another order
    torch.testing.assert_close(second, fourth)
    assert (first - second).abs().max() > 1e-3


# Who goes with whom


def test_every_optimizer_is_run_on_many_heads_or_refused(probe):
    assert OPTIMIZERS.keys() - BATCHED_STEPS.keys() == {"lamb"}
    assert {name for name in OPTIMIZERS if can_batch(probe(optimizer=name))} == BATCHED_STEPS.keys()


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "mlp"},
        {"head": "cosine"},
        {"mixing": "cutmix"},
        {"embedding_loss": "triplet"},
        {"batch_norm": "always"},
        {"augmentation": "flip"},
        {"backbone_args": {"drop_rate": 0.2}},
        {"strategy": "naive"},
        {"strategy": "lp_ft"},
        {"strategy": "freeze_then_unfreeze"},
        {"strategy": "train_last"},
        {"strategy": "scratch"},
    ],
)
def test_what_moves_more_than_a_linear_head_on_fixed_embeddings_runs_alone(probe, pack, embeddings, weights, changes):
    recipe = probe(**changes)
    assert not can_batch(recipe)
    assert group_recipes([recipe]) == []
    with pytest.raises(ValueError, match="trains more than a linear head on fixed embeddings, so it cannot be batched"):
        ProbeGroup([recipe], pack, embeddings, head_inits([probe()], weights), CPU)


def test_fixed_versions_and_backbones_that_draw_nothing_may_go_together(probe):
    for changes in ({"augmentation": "randaugment", "views": 4}, {"batch_norm": "frozen"}, {"colour": "grey_stem"}):
        assert can_batch(probe(**changes))
    assert can_batch(probe(backbone="test_vit", strategy="drop_early"))
    assert can_batch(probe(backbone="test_vit", backbone_args={"drop_path_rate": 0.3}))  # in the frozen body


def test_groups_hold_what_takes_the_same_steps_and_no_more_than_asked(probe):
    recipes = [
        probe(),
        probe(batch_size=12),
        probe(strategy="naive"),
        probe(optimizer="sgd"),
        probe(seed=3, augmentation="flip", views=2),
        probe(draw=1),
        probe(learning_rate=0.5),
        probe(strategy="early_cut", backbone="test_resnet"),
    ]
    assert group_recipes(recipes) == [(0, 4, 6), (1,), (3,), (5,), (7,)]
    assert group_recipes(recipes, largest=2) == [(0, 4), (6,), (1,), (3,), (5,), (7,)]
    assert group_recipes([]) == []


def test_recipes_of_two_groups_or_of_other_data_are_refused(probe, pack, embeddings, weights):
    begin = head_inits([probe()] * 2, weights)
    with pytest.raises(ValueError, match="do not form one group: use group_recipes to form groups"):
        ProbeGroup([probe(), probe(batch_size=12)], pack, embeddings, begin, CPU)
    with pytest.raises(ValueError, match="the recipes were made for data ffff"):
        ProbeGroup([probe(data="f" * 64)], pack, embeddings, begin[:1], CPU)


# Where each begins


@pytest.mark.parametrize("changes", [{}, {"seed": 7}, {"strategy": "early_cut", "backbone": "test_resnet"}])
def test_a_head_begins_as_in_a_run(probe, make_run, weights_of, changes):
    recipe = probe(**changes)
    state = torch.get_rng_state()
    (begin,) = head_inits([recipe], weights_of(recipe.backbone))
    assert torch.equal(torch.get_rng_state(), state)
    run = make_run(recipe)
    head, record = run.model.get_classifier(), run.record()
    assert torch.equal(begin.head.weight, head.weight)
    assert torch.equal(begin.head.bias, head.bias)
    assert (begin.parameters, begin.flops) == (record.parameters, record.flops)


def test_each_network_is_built_once(probe, weights, monkeypatch):
    built = []
    monkeypatch.setattr(
        "xfer.batched_probes.compatibility.build_network", lambda *args: built.append(args) or build_network(*args)
    )
    found = head_inits([probe(seed=1000 + place % 2, learning_rate=0.1 / (place + 1)) for place in range(10)], weights)
    assert len(built) == 2
    assert [begin is found[place % 2] for place, begin in enumerate(found)] == [True] * 10
    assert not torch.equal(found[0].head.weight, found[1].head.weight)
