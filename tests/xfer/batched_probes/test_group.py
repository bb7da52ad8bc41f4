"""Probes trained as a batch have the results of single Runs, and do not affect each other."""

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
from xfer.feature_extraction.extract import extract_features
from xfer.linear_heads import fit_closed_form
from xfer.methods.losses import LOSSES
from xfer.methods.optimizers import OPTIMIZERS
from xfer.methods.schedules import SCHEDULES
from xfer.records import as_dict
from xfer.seeding import derive_seed
from xfer.training.networks import build_network, build_preprocessor

CPU = torch.device("cpu")
RATES = {"sgd": 0.01, "nesterov": 0.01, "lion": 0.001}
BATCHED = sorted(BATCHED_STEPS)


class RecordedEmbeddings:
    """Embeddings of the tiny network, with a record of all calls."""

    def __init__(self, pack, weights, make_recipe):
        self.calls = []
        model = build_network(make_recipe(strategy="linear_probe"), weights)
        prepare = build_preprocessor(make_recipe(), model, CPU)
        self.rows = torch.from_numpy(extract_features(model, pack, np.arange(len(pack.labels)), prepare)["late"])

    def __call__(self, recipe, view, indices):
        self.calls.append((recipe.augmentation.name, view, tuple(indices.tolist())))
        rows = self.rows[torch.from_numpy(indices)]
        return rows if view is None else rows * (1 + 0.1 * view)


@pytest.fixture
def embeddings(pack, weights, make_recipe):
    return RecordedEmbeddings(pack, weights, make_recipe)


@pytest.fixture
def probe(make_recipe):
    """A recipe of a linear probe with four epochs of three steps, two periods of Lookahead."""

    def recipe(**changes):
        rate = RATES.get(changes.get("optimizer", "adam"), 0.003)
        defaults = {"strategy": "linear_probe", "optimizer": "adam", "epochs": 4, "weight_decay": 0.01}
        return make_recipe(**{**defaults, "learning_rate": rate, **changes})

    return recipe


@pytest.fixture
def train(pack, weights, embeddings):
    """A fully trained group."""

    def trained(recipes, inits=None):
        group = ProbeGroup(recipes, pack, embeddings, inits or head_inits(recipes, weights), CPU)
        list(group)
        return group

    return trained


def values_by_path(value):
    """All values of a record, epoch or evaluation by path, without those measured on the machine."""
    if isinstance(value, dict):
        return {
            (name, *path): leaf
            for name, child in value.items()
            if name not in MEASURED_FIELDS
            for path, leaf in values_by_path(child).items()
        }
    if isinstance(value, list | tuple):
        return {
            (index, *path): leaf for index, child in enumerate(value) for path, leaf in values_by_path(child).items()
        }
    return {(): value}


def assert_close(actual, expected):
    """Floats are equal within 1e-4, everything else exactly."""
    actual, expected = values_by_path(as_dict(actual)), values_by_path(as_dict(expected))
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        close = pytest.approx(value, abs=1e-4, rel=1e-4) if isinstance(value, float) else value
        assert actual[path] == close, path


def assert_equals_single_runs(group, make_run):
    for member, recipe in enumerate(group.recipes):
        run = make_run(recipe)
        list(run)
        assert_close(group.record(member, "0007"), run.record("0007"))
        head, expected = group.head(member), run.model.get_classifier()
        torch.testing.assert_close(head.weight, expected.weight.detach(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(head.bias, expected.bias.detach(), atol=1e-4, rtol=1e-4)


def result_bits(group, member):
    """A probe's head and record as bytes and text, because NaN does not equal itself."""
    head = group.head(member)
    return (
        head.weight.numpy().tobytes() + head.bias.numpy().tobytes(),
        repr(values_by_path(as_dict(group.record(member)))),
    )


# Same result as a single run


@pytest.mark.parametrize("optimizer", BATCHED)
def test_probes_have_the_result_of_single_runs_with_every_optimizer(probe, train, make_run, optimizer):
    recipes = [probe(optimizer=optimizer), probe(optimizer=optimizer, weight_decay=1.0, clip_norm=0.5)]
    assert_equals_single_runs(train(recipes), make_run)


def test_probes_have_the_result_of_single_runs_with_every_loss_and_schedule(probe, train, make_run):
    recipes = [probe(loss=loss, schedule=schedule) for loss in LOSSES for schedule in SCHEDULES]
    assert_equals_single_runs(train(recipes), make_run)


def test_probes_may_differ_in_all_per_probe_fields(probe, train, make_run):
    recipes = [
        probe(seed=1, learning_rate=0.01, clip_norm=0.1),
        probe(seed=0, weight_decay=3.0, clip_value=0.01),
        probe(seed=1, loss={"name": "label_smoothing", "smoothing": 0.3}),
        probe(seed=2, loss={"name": "focal", "gamma": 1.5}, schedule="step"),
        probe(seed=0, loss={"name": "focal", "gamma": 0.5}, schedule="cosine_warmup", weight_decay=0.0),
    ]
    assert group_recipes(recipes) == [(0, 1, 2, 3, 4)]
    assert_equals_single_runs(train(recipes), make_run)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 23, "draw": 1},  # a last batch of a single image is left out
        {"images_per_class": 3, "batch_size": 4},
        {"strategy": "early_cut", "backbone": "test_resnet"},
    ],
)
def test_common_fields_have_the_same_effect_as_in_a_run(probe, make_run, pack, weights_of, changes):
    recipes = [probe(**changes), probe(**changes, learning_rate=0.01)]
    file = weights_of(recipes[0].backbone)
    run = make_run(recipes[0])

    def embeddings(recipe, view, indices):
        prepare = build_preprocessor(recipe, run.model, CPU)
        return torch.from_numpy(extract_features(run.model, pack, indices, prepare)["late"])

    group = ProbeGroup(recipes, pack, embeddings, head_inits(recipes, file), CPU)
    list(group)
    assert_equals_single_runs(group, make_run)


@pytest.mark.parametrize("how", ["ridge_probe", "logistic_probe"])
def test_heads_in_closed_form_have_the_result_of_single_runs(probe, train, make_run, how):
    penalties = (0.01, 1.0, 100.0)
    recipes = [probe(strategy={"name": how, "penalty": penalty}, seed=seed) for seed, penalty in enumerate(penalties)]
    assert group_recipes(recipes) == [(0, 1, 2)]
    group = train(recipes)
    assert_equals_single_runs(group, make_run)
    assert len({result_bits(group, member) for member in range(3)}) == 3


def test_several_ridge_penalties_need_one_decomposition(probe, train, monkeypatch):
    calls = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr("torch.linalg.eigh", lambda *args: calls.append(args) or eigh(*args))
    group = train([probe(strategy={"name": "ridge_probe", "penalty": 10.0**power}) for power in range(-2, 5)])
    assert len(calls) == 1
    single = train([group.recipes[3]])
    assert torch.equal(single.head(0).weight, group.head(3).weight)


def test_a_diverged_head_in_closed_form_does_not_affect_the_others(probe, train, monkeypatch):
    recipes = [probe(strategy={"name": "ridge_probe", "penalty": penalty}) for penalty in (1.0, 10.0, 100.0)]
    healthy = train(recipes)

    def diverged(how, features, labels, classes, penalties):
        heads = fit_closed_form(how, features, labels, classes, penalties)
        return [heads[0], (heads[1][0] * math.nan, heads[1][1]), heads[2]]

    monkeypatch.setattr("xfer.batched_probes.group.fit_closed_form", diverged)
    group = train(recipes)
    assert [result_bits(group, member) for member in (0, 2)] == [result_bits(healthy, member) for member in (0, 2)]
    assert (group.record(1).status, group.record(1).error) == (
        "failed",
        "the validation loss became nan after epoch 1",
    )


def test_two_hundred_probes_train_in_one_group(probe, train, make_run):
    generator = np.random.default_rng(0)
    recipes = [
        probe(
            learning_rate=10 ** generator.uniform(-5, -1), weight_decay=10 ** generator.uniform(-6, 0), seed=index % 3
        )
        for index in range(200)
    ]
    assert [len(group) for group in group_recipes(recipes)] == [200]
    group = train(recipes)
    assert len({result_bits(group, member) for member in range(200)}) == 200
    for member in (0, 77, 199):
        run = make_run(recipes[member])
        list(run)
        assert_close(group.record(member), run.record())


# Independence


def with_weight(init, value):
    weight = init.head.weight.clone()
    weight[0, 0] = value
    return dataclasses.replace(init, head=Head(weight, init.head.bias))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("optimizer", BATCHED)
def test_a_diverged_probe_leaves_the_others_unchanged_bit_for_bit(probe, train, weights, optimizer, value):
    losses = ("cross_entropy", "cross_entropy", "focal", "label_smoothing")
    recipes = [
        probe(optimizer=optimizer, loss=loss, seed=index % 2, clip_norm=None if index else 1.0)
        for index, loss in enumerate(losses)
    ]
    inits = head_inits(recipes, weights)
    healthy = train(recipes, inits)
    diverged = train(recipes, [inits[0], with_weight(inits[1], value), *inits[2:]])
    assert [result_bits(diverged, member) for member in (0, 2, 3)] == [
        result_bits(healthy, member) for member in (0, 2, 3)
    ]
    assert result_bits(diverged, 1) != result_bits(healthy, 1)
    if value != 1e30:
        record = diverged.record(1)
        assert (record.status, record.epochs, record.val) == ("failed", (), None)
        assert record.error == "the training loss became nan in epoch 1, step 1 of 3"


def test_a_learning_rate_that_diverges_fails_like_a_single_run_and_the_others_do_not(probe, train, make_run):
    recipes = [probe(optimizer="sgd", learning_rate=rate, weight_decay=10.0) for rate in (0.01, 100.0, 0.02)]
    group = train([dataclasses.replace(recipe, epochs=8) for recipe in recipes])
    run = make_run(group.recipes[1])
    with pytest.raises(ArithmeticError) as caught:
        list(run)
    assert str(group.errors[1]) == str(caught.value)
    assert_close(group.record(1), run.record(error=str(caught.value)))
    assert [group.record(member).status for member in (0, 1, 2)] == ["finished", "failed", "finished"]
    stable = train([group.recipes[0], dataclasses.replace(group.recipes[1], learning_rate=0.001), group.recipes[2]])
    assert [result_bits(stable, member) for member in (0, 2)] == [result_bits(group, member) for member in (0, 2)]


def test_a_stopped_probe_has_no_further_epochs_and_the_others_are_unchanged(probe, pack, weights, embeddings):
    recipes = [probe(learning_rate=rate) for rate in (0.001, 0.003, 0.01)]
    groups = [ProbeGroup(recipes, pack, embeddings, head_inits(recipes, weights), CPU) for _ in range(2)]
    list(groups[0])
    for number, epochs in enumerate(groups[1]):
        assert [epoch is None for epoch in epochs] == [False, number >= 2, False]
        if number == 1:
            groups[1].stop(1)
    assert [result_bits(groups[1], member) for member in (0, 2)] == [
        result_bits(groups[0], member) for member in (0, 2)
    ]
    record = groups[1].record(1)
    assert (record.status, len(record.epochs), record.val) == ("pruned", 2, None)


def test_a_group_ends_when_no_probe_is_left(probe, train, weights):
    recipes = [probe(), probe(learning_rate=0.01)]
    group = train(recipes, [with_weight(init, math.nan) for init in head_inits(recipes, weights)])
    assert [group.record(member).status for member in (0, 1)] == ["failed", "failed"]


def test_seconds_are_divided_between_probes(probe, train):
    single, many = train([probe()] * 1), train([probe()] * 40)
    shares = [epoch.seconds for epoch in many.epochs[0]]
    assert many.record(0).seconds == pytest.approx(sum(shares))
    assert [epoch.seconds for epoch in many.epochs[39]] == shares
    assert single.epochs[0][0].images_per_second < many.epochs[0][0].images_per_second


# Images and views


def test_epochs_cycle_through_the_views_in_the_order_of_the_seed(probe, train, embeddings, pack):
    recipes = [probe(augmentation="flip", views=3, seed=5), probe(augmentation="none", views=2, seed=5)]
    group = train(recipes)
    orders = [
        tuple(shuffle_indices(group.split.train, 8, derive_seed(5, "order", epoch)).tolist()) for epoch in range(4)
    ]
    for name, views in (("flip", (0, 1, 2, 0)), ("none", (None,) * 4)):
        seen = [
            (view, order) for augmentation, view, order in embeddings.calls if augmentation == name and order in orders
        ]
        assert seen == list(zip(views, orders, strict=True))
    assert {view for _, view, indices in embeddings.calls if indices == tuple(group.split.val.tolist())} == {None}
    assert set(group.split.test.tolist()).isdisjoint(index for _, _, indices in embeddings.calls for index in indices)


def test_probes_with_the_same_views_train_on_the_same_images(probe, train):
    group = train([probe(augmentation="flip", views=2), probe(), probe(augmentation="flip", views=2), probe(views=7)])
    first, second, third, fourth = (group.head(member).weight for member in range(4))
    torch.testing.assert_close(first, third)  # not bit for bit: kernels may sum columns in a different order
    torch.testing.assert_close(second, fourth)
    assert (first - second).abs().max() > 1e-3


# Grouping


def test_all_optimizers_but_lamb_can_be_batched(probe):
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
def test_recipes_that_train_more_than_a_head_on_fixed_embeddings_cannot_be_batched(
    probe, pack, embeddings, weights, changes
):
    recipe = probe(**changes)
    assert not can_batch(recipe)
    assert group_recipes([recipe]) == []
    with pytest.raises(ValueError, match="trains more than a linear head on fixed embeddings, so it cannot be batched"):
        ProbeGroup([recipe], pack, embeddings, head_inits([probe()], weights), CPU)


def test_views_and_deterministic_backbones_can_be_batched(probe):
    for changes in ({"augmentation": "randaugment", "views": 4}, {"batch_norm": "frozen"}, {"colour": "grey_stem"}):
        assert can_batch(probe(**changes))
    assert can_batch(probe(backbone="test_vit", strategy="drop_early"))
    assert can_batch(probe(backbone="test_vit", backbone_args={"drop_path_rate": 0.3}))  # in the frozen body


def test_recipes_are_grouped_by_common_fields_up_to_the_maximum_size(probe):
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


def test_recipes_of_two_groups_or_of_other_data_are_an_error(probe, pack, embeddings, weights):
    inits = head_inits([probe()] * 2, weights)
    with pytest.raises(ValueError, match="do not form one group: use group_recipes to form groups"):
        ProbeGroup([probe(), probe(batch_size=12)], pack, embeddings, inits, CPU)
    with pytest.raises(ValueError, match="the recipes were made for data ffff"):
        ProbeGroup([probe(data="f" * 64)], pack, embeddings, inits[:1], CPU)


# Initial heads


@pytest.mark.parametrize("changes", [{}, {"seed": 7}, {"strategy": "early_cut", "backbone": "test_resnet"}])
def test_the_initial_head_is_that_of_a_run(probe, make_run, weights_of, changes):
    recipe = probe(**changes)
    state = torch.get_rng_state()
    (init,) = head_inits([recipe], weights_of(recipe.backbone))
    assert torch.equal(torch.get_rng_state(), state)
    run = make_run(recipe)
    head, record = run.model.get_classifier(), run.record()
    assert torch.equal(init.head.weight, head.weight)
    assert torch.equal(init.head.bias, head.bias)
    assert (init.parameters, init.flops) == (record.parameters, record.flops)


def test_each_network_is_built_once(probe, weights, monkeypatch):
    built = []
    monkeypatch.setattr(
        "xfer.batched_probes.compatibility.build_network", lambda *args: built.append(args) or build_network(*args)
    )
    recipes = [probe(seed=1000 + index % 2, learning_rate=0.1 / (index + 1)) for index in range(10)]
    inits = head_inits(recipes, weights)
    assert len(built) == 2
    assert all(init is inits[index % 2] for index, init in enumerate(inits))
    assert not torch.equal(inits[0].head.weight, inits[1].head.weight)
