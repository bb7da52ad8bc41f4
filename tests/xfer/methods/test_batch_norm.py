"""Every way of the table to treat batch norm: which running statistics follow the new images, exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from xfer.data.loader import iter_batches
from xfer.methods.batch_norm import BATCH_NORM_MODES
from xfer.models.params import named_params

LAST = 2  # how many blocks train_last trains here

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
    """A run of one epoch, and which of its tensors have moved in it; made once for each recipe."""
    known = {}

    def run_of(mode, strategy, network):
        if (mode, strategy, network) not in known:
            recipe = make_recipe(
                strategy=STRATEGIES[strategy], backbone=network, batch_norm=mode, epochs=1, learning_rate=0.05
            )
            run = make_run(recipe)
            before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
            list(run)
            after = run.model.state_dict()
            known[mode, strategy, network] = run, {name for name in after if not torch.equal(after[name], before[name])}
        return known[mode, strategy, network]

    return run_of


def layers_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


def following(model, strategy, mode):
    """The layers whose statistics should follow: by their weights, all, or none."""
    depths = {name: param.depth for name, param in named_params(model).items()}
    trained_up_to = {"naive": 99, "bitfit": 99, "linear_probe": 0, "train_last": LAST}[strategy]
    with_weights = {name for name in layers_of(model) if depths[f"{name}.weight"] <= trained_up_to}
    return {"with_weights": with_weights, "frozen": set(), "always": set(layers_of(model))}[mode]


@each_mode
@each_strategy
@each_network
def test_these_running_statistics_move_over_an_epoch_and_no_others(trained, mode, strategy, network):
    run, moved = trained(mode, strategy, network)
    expected = following(run.model, strategy, mode)
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert {name for name in moved if name.endswith(buffers)} == {
        f"{layer}.{buffer}" for layer in expected for buffer in buffers
    }


def test_training_the_last_blocks_lets_some_statistics_follow_and_not_all(trained):
    for network in ("test_resnet", "test_efficientnet"):
        run, _ = trained("with_weights", "train_last", network)
        assert 0 < len(following(run.model, "train_last", "with_weights")) < len(layers_of(run.model))


@each_mode
@each_strategy
@each_network
def test_batch_norm_has_no_say_in_which_weights_move(trained, mode, strategy, network):
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
def test_a_network_is_judged_by_its_running_statistics_whatever_it_was_trained_with(trained, mode):
    run, _ = trained(mode, "naive", "test_resnet")
    assert not any(layer.training for layer in layers_of(run.model).values())


@each_mode
def test_the_first_loss_is_that_of_evaluation_where_statistics_stand_still(make_recipe, make_run, mode):
    run = make_run(make_recipe(backbone="test_resnet", batch_norm=mode, epochs=1, batch_size=24))
    images, labels = next(iter_batches(run.pack, run.split.train, 24))
    with torch.no_grad():
        inputs = run.inputs.transform.prepare(images)
        expected = nn.functional.cross_entropy(run.model.eval()(inputs), labels).item()
    (epoch,) = run
    assert (epoch.train_loss == pytest.approx(expected, rel=1e-4)) is (mode == "frozen")


def test_statistics_that_follow_are_the_running_mean_of_the_batches(make_recipe, make_run):
    run = make_run(
        make_recipe(strategy="linear_probe", batch_norm="always", backbone="test_resnet", epochs=1, batch_size=24)
    )
    layer, stem = run.model.bn1, run.model.conv1
    images, _ = next(iter_batches(run.pack, run.split.train, 24))
    with torch.no_grad():
        features = stem(run.inputs.transform.prepare(images))
        expected = 0.9 * layer.running_mean + 0.1 * features.mean(dim=(0, 2, 3))
    list(run)
    torch.testing.assert_close(layer.running_mean, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", ["test_vit", "test_convnext"])
@each_strategy
def test_networks_without_batch_norm_are_indifferent(make_recipe, make_run, network, strategy):
    found = []
    for mode in BATCH_NORM_MODES:
        run = make_run(make_recipe(strategy=STRATEGIES[strategy], backbone=network, batch_norm=mode, epochs=1))
        assert not layers_of(run.model)
        list(run)
        found.append(run.model.state_dict())
    assert all(torch.equal(tensor, other[name]) for other in found[1:] for name, tensor in found[0].items())


@pytest.mark.parametrize("strategy", ["scratch", "small_cnn"])
def test_statistics_of_no_image_are_not_to_be_kept(make_recipe, strategy):
    message = f"strategy {strategy} starts from random weights, .* batch_norm frozen needs pretrained ones"
    with pytest.raises(ValueError, match=message):
        make_recipe(strategy=strategy, batch_norm="frozen")
    for mode in ("with_weights", "always"):
        assert make_recipe(strategy=strategy, batch_norm=mode).batch_norm.name == mode


def test_each_mode_says_when_statistics_follow():
    assert {name: [mode()(moves) for moves in (False, True)] for name, mode in BATCH_NORM_MODES.items()} == {
        "with_weights": [False, True],
        "frozen": [False, False],
        "always": [True, True],
    }


@each_strategy
def test_only_batch_norm_is_asked_about_and_other_modules_train_with_their_weights(make_recipe, make_run, strategy):
    found = []
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
        found.append([each for each in modes if each])  # a network may be asked in evaluation mode at any time
    assert found[0] == found[1] == found[2]
    training = next(modes for modes in found[0] if modes)
    assert ("layer1.0.act1" in training) is (strategy in ("naive", "bitfit"))
