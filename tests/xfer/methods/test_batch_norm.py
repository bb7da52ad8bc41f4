"""Batch norm modes: exactly which running statistics follow the new images."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from xfer.data.loader import iter_batches
from xfer.methods.batch_norm import BATCH_NORM_MODES
from xfer.models.params import named_params
from xfer.training.networks import build_preprocessor

CPU = torch.device("cpu")

LAST = 2  # number of blocks that train_last trains here

STRATEGIES = {
    "naive": {"name": "naive"},
    "linear_probe": {"name": "linear_probe"},
    "train_last": {"name": "train_last", "blocks": LAST},
    "bitfit": {"name": "bitfit"},
}

each_mode = pytest.mark.parametrize("mode", BATCH_NORM_MODES)
each_network = pytest.mark.parametrize("network", ["test_resnet", "test_efficientnet"])
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


@pytest.fixture(scope="module")
def trained(make_recipe, make_run):
    """Returns a run of one epoch and the names of the tensors that it changed; cached per recipe."""
    cache = {}

    def run_of(mode, strategy, network):
        if (mode, strategy, network) not in cache:
            recipe = make_recipe(
                strategy=STRATEGIES[strategy], backbone=network, batch_norm=mode, epochs=1, learning_rate=0.05
            )
            run = make_run(recipe)
            run.learner.average = None  # keep the last weights, even if the start is better on validation
            before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
            list(run)
            after = run.model.state_dict()
            cache[mode, strategy, network] = run, {name for name in after if not torch.equal(after[name], before[name])}
        return cache[mode, strategy, network]

    return run_of


def layers_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


def following(model, strategy, mode):
    """Returns the layers whose statistics should be updated."""
    depths = {name: param.depth for name, param in named_params(model).items()}
    trained_up_to = {"naive": 99, "bitfit": 99, "linear_probe": 0, "train_last": LAST}[strategy]
    with_weights = {name for name in layers_of(model) if depths[f"{name}.weight"] <= trained_up_to}
    return {"with_weights": with_weights, "frozen": set(), "always": set(layers_of(model))}[mode]


@each_mode
@each_strategy
@each_network
def test_an_epoch_updates_exactly_the_expected_running_statistics(trained, mode, strategy, network):
    run, moved = trained(mode, strategy, network)
    expected = following(run.model, strategy, mode)
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert {name for name in moved if name.endswith(buffers)} == {
        f"{layer}.{buffer}" for layer in expected for buffer in buffers
    }


def test_training_the_last_blocks_updates_some_statistics_but_not_all(trained):
    for network in ("test_resnet", "test_efficientnet"):
        run, _ = trained("with_weights", "train_last", network)
        assert 0 < len(following(run.model, "train_last", "with_weights")) < len(layers_of(run.model))


@each_mode
@each_strategy
@each_network
def test_the_batch_norm_mode_does_not_affect_which_weights_move(trained, mode, strategy, network):
    run, moved = trained(mode, strategy, network)
    depths = {name: param.depth for name, param in named_params(run.model).items()}
    kinds = {name: param.kind for name, param in named_params(run.model).items()}
    head = {name for name, depth in depths.items() if depth == 0}
    expected = {
        "naive": set(depths),
        "linear_probe": head,
        "train_last": {name for name, depth in depths.items() if depth <= LAST},
        "bitfit": head | {name for name, kind in kinds.items() if kind in ("bias", "shift")},
    }[strategy]
    assert moved & depths.keys() == expected


@each_mode
def test_evaluation_uses_running_statistics_in_every_mode(trained, mode):
    run, _ = trained(mode, "naive", "test_resnet")
    assert not any(layer.training for layer in layers_of(run.model).values())


@each_mode
def test_the_first_training_loss_equals_evaluation_only_in_mode_frozen(make_recipe, make_run, mode):
    run = make_run(make_recipe(backbone="test_resnet", batch_norm=mode, epochs=1, batch_size=24))
    images, labels = next(iter_batches(run.pack, run.split.train, 24))
    with torch.no_grad():
        inputs = build_preprocessor(run.recipe, run.model, CPU)(images)
        expected = nn.functional.cross_entropy(run.model.eval()(inputs), labels).item()
    (epoch,) = run
    assert (epoch.train_loss == pytest.approx(expected, rel=1e-4)) is (mode == "frozen")


def test_updated_statistics_are_the_running_mean_of_the_batches(make_recipe, make_run):
    run = make_run(
        make_recipe(strategy="linear_probe", batch_norm="always", backbone="test_resnet", epochs=1, batch_size=24)
    )
    layer, stem = run.model.bn1, run.model.conv1
    images, _ = next(iter_batches(run.pack, run.split.train, 24))
    with torch.no_grad():
        features = stem(build_preprocessor(run.recipe, run.model, CPU)(images))
        expected = 0.9 * layer.running_mean + 0.1 * features.mean(dim=(0, 2, 3))
    list(run)
    torch.testing.assert_close(layer.running_mean, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", ["test_vit", "test_convnext"])
@each_strategy
def test_networks_without_batch_norm_do_not_depend_on_the_mode(make_recipe, make_run, network, strategy):
    states = []
    for mode in BATCH_NORM_MODES:
        run = make_run(make_recipe(strategy=STRATEGIES[strategy], backbone=network, batch_norm=mode, epochs=1))
        assert not layers_of(run.model)
        list(run)
        states.append(run.model.state_dict())
    assert all(torch.equal(tensor, other[name]) for other in states[1:] for name, tensor in states[0].items())


@pytest.mark.parametrize("strategy", ["scratch", "small_cnn"])
def test_frozen_statistics_of_random_weights_are_refused(make_recipe, strategy):
    message = (
        f"strategy {strategy} starts from random weights, but batch_norm frozen needs the statistics of pretrained"
    )
    with pytest.raises(ValueError, match=message):
        make_recipe(strategy=strategy, batch_norm="frozen")
    for mode in ("with_weights", "always"):
        assert make_recipe(strategy=strategy, batch_norm=mode).batch_norm.name == mode


def test_each_mode_determines_when_statistics_are_updated():
    assert {name: [mode()(moves) for moves in (False, True)] for name, mode in BATCH_NORM_MODES.items()} == {
        "with_weights": [False, True],
        "frozen": [False, False],
        "always": [True, True],
    }


@each_strategy
def test_the_mode_affects_only_batch_norm_and_other_modules_follow_their_weights(make_recipe, make_run, strategy):
    results = []
    for mode in BATCH_NORM_MODES:
        run = make_run(make_recipe(strategy=STRATEGIES[strategy], backbone="test_resnet", batch_norm=mode, epochs=1))
        others = {name: module for name, module in run.model.named_modules() if not isinstance(module, _BatchNorm)}
        modes = []
        run.model.fc.register_forward_pre_hook(
            lambda head, _, modes=modes, others=others: modes.append(
                [name for name, module in others.items() if head.training and module.training]
            )
        )
        list(run)
        results.append([names for names in modes if names])  # the network is also run in evaluation mode
    assert results[0] == results[1] == results[2]
    training = next(modes for modes in results[0] if modes)
    assert ("layer1.0.act1" in training) is (strategy in ("naive", "bitfit"))
