"""Every strategy of the table: frozen parameters do not move, and trained ones do."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from xfer.data.image_folder import folder
from xfer.data.pack import build_pack
from xfer.methods.strategies import STRATEGIES
from xfer.models.params import named_params
from xfer.recipe import recipe_from_dict
from xfer.run import Run
from xfer.training import networks

NETWORKS = ("test_resnet", "test_efficientnet", "test_vit")
EPOCHS = 4

# Which parameters move in which of four epochs, counted from 0, with default parameters: written from the docstrings,
# without using a Pace.
MOVES = {
    "scratch": lambda depth, height, kind, epoch: True,
    "small_cnn": lambda depth, height, kind, epoch: True,
    "linear_probe": lambda depth, height, kind, epoch: depth == 0,
    "ridge_probe": lambda depth, height, kind, epoch: depth == 0,
    "logistic_probe": lambda depth, height, kind, epoch: depth == 0,
    "freeze_then_unfreeze": lambda depth, height, kind, epoch: depth == 0 or epoch >= 2,
    "freeze_until_converged": lambda depth, height, kind, epoch: depth == 0 or epoch >= 2,  # half of the epochs
    "naive": lambda depth, height, kind, epoch: True,
    "clip": lambda depth, height, kind, epoch: True,
    "freeze_first": lambda depth, height, kind, epoch: depth == 0 or height not in (0, 1, 2),
    "train_last": lambda depth, height, kind, epoch: depth in (0, 1, 2, 3),
    "early_cut": lambda depth, height, kind, epoch: depth == 0,
    "drop_early": lambda depth, height, kind, epoch: depth == 0,
    "gradual_unfreeze": lambda depth, height, kind, epoch: depth == 0 or epoch >= 2 or (epoch == 1 and depth <= 3),
    "layer_decay": lambda depth, height, kind, epoch: True,
    "lp_ft": lambda depth, height, kind, epoch: True,
    "bitfit": lambda depth, height, kind, epoch: depth == 0 or kind in ("bias", "shift"),
    "lora": lambda depth, height, kind, epoch: depth == 0 or kind == "adapter",
    "l2_sp": lambda depth, height, kind, epoch: True,
    "surgical": lambda depth, height, kind, epoch: depth == 0 or height in (0, 1),  # a quarter of 5, 6 or 7 blocks
}
REFUSED = {
    ("lora", "test_resnet"): r"lora\(rank=8\) adapts linear layers, but this network has none",
    ("lora", "test_efficientnet"): r"lora\(rank=8\) adapts linear layers, but this network has none",
    ("drop_early", "test_resnet"): r"drop_early\(stage=1\): that stage is part of this network's stem",
    ("drop_early", "test_efficientnet"): r"drop_early\(stage=1\): the stages above do not accept the stem's output",
}
FITS = [
    ("small_cnn", "basic_cnn"),  # prescribes its own network
    *((s, n) for s in STRATEGIES for n in NETWORKS if s != "small_cnn" and (s, n) not in REFUSED),
]
RANDOM = ("scratch", "small_cnn")
CLOSED_FORM = ("ridge_probe", "logistic_probe")
PROBES = ("linear_probe", "early_cut", "drop_early", *CLOSED_FORM)


def snapshot(run):
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def head_of(model):
    """Names of the head's parameters, without using `named_params`, which is under test."""
    head = {id(parameter) for parameter in model.get_classifier().parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in head}


@pytest.fixture(scope="module", params=FITS, ids="-".join)
def trained(request, make_recipe, make_run):
    """A run of a strategy on a network that it fits, with observations after each of four epochs."""
    strategy, network = request.param
    recipe = make_recipe(
        strategy=strategy, backbone=network, epochs=EPOCHS, batch_size=12, learning_rate=0.05, weight_decay=0.1
    )
    run = make_run(recipe)
    params = named_params(run.model)
    start = before = snapshot(run)
    epochs = []
    for epoch in run:
        after = snapshot(run)
        expected_to_move = {
            name: MOVES[strategy](param.depth, param.height, param.kind, epoch.epoch - 1)
            for name, param in params.items()
        }
        grads = {name: None if p.grad is None else bool(p.grad.any()) for name, p in run.model.named_parameters()}
        requires_grad = {name: p.requires_grad for name, p in run.model.named_parameters()}
        epochs.append(
            SimpleNamespace(
                expected_to_move=expected_to_move, moved=moved(before, after), grads=grads, requires_grad=requires_grad
            )
        )
        before = after
    return SimpleNamespace(strategy=strategy, network=network, run=run, start=start, params=params, epochs=epochs)


# The table


def test_every_strategy_has_an_expectation_above():
    assert MOVES.keys() == STRATEGIES.keys()


def test_exactly_the_strategies_that_do_not_fit_a_network_are_refused_with_the_reason(make_recipe):
    for strategy in STRATEGIES:
        for network in NETWORKS:
            recipe = make_recipe(strategy=strategy, backbone=network, epochs=EPOCHS)
            if (strategy, network) in REFUSED:
                with pytest.raises(ValueError, match=REFUSED[strategy, network]):
                    networks.check_network(recipe)
            else:
                networks.check_network(recipe)


@pytest.mark.parametrize(
    ("strategy", "network", "reason"),
    [
        ({"name": "train_last", "blocks": 5}, "test_resnet", "trains the last 5 blocks, but this network has 5.*naive"),
        (
            {"name": "freeze_first", "blocks": 6},
            "test_efficientnet",
            "freezes the first 6 .* at most 5, or strategy linear",
        ),
        ({"name": "freeze_first", "blocks": 7}, "test_vit", "this network has 7 below its head: use at most 6"),
        ({"name": "train_last", "blocks": 4}, "test_resnet", None),
        ({"name": "freeze_first", "blocks": 4}, "test_resnet", None),
        ({"name": "gradual_unfreeze", "blocks": 9}, "test_resnet", None),  # all blocks in one step
    ],
)
def test_more_blocks_than_a_network_has_are_refused(make_recipe, strategy, network, reason):
    recipe = make_recipe(strategy=strategy, backbone=network, epochs=EPOCHS)
    if reason is None:
        networks.check_network(recipe)
    else:
        with pytest.raises(ValueError, match=reason):
            networks.check_network(recipe)


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        ({"name": "freeze_until_converged", "patience": 0}, "patience must be at least 1 epoch, got 0"),
        ({"name": "freeze_first", "blocks": 0}, "blocks must be at least 1, got 0; for 0 use strategy naive"),
        ({"name": "train_last", "blocks": 0}, "blocks must be at least 1, got 0; for 0 use strategy linear_probe"),
        ({"name": "gradual_unfreeze", "blocks": 0}, "blocks must be at least 1, got 0"),
        ({"name": "gradual_unfreeze", "until": 0.0}, "until must be above 0 and below 1, got 0.0"),
        ({"name": "gradual_unfreeze", "until": 1.0}, "until .* got 1.0"),
        ({"name": "layer_decay", "decay": 0.0}, "decay must be above 0 and at most 1, got 0.0"),
        ({"name": "layer_decay", "decay": 1.1}, "decay .* got 1.1"),
        ({"name": "lora", "rank": 0}, "rank must be at least 1, got 0"),
        ({"name": "l2_sp", "strength": 0.0}, "strength must be above 0, got 0.0; for 0 use strategy naive"),
        ({"name": "ridge_probe", "penalty": 0.0}, "penalty must be above 0 and finite, got 0.0"),
        ({"name": "logistic_probe", "penalty": -1.0}, "penalty .* got -1.0"),
        ({"name": "lp_ft", "penalty": float("inf")}, "penalty .* got inf"),
        ({"name": "surgical", "block": 0}, "block must be a quarter of the network from 1 .* got 0"),
        ({"name": "surgical", "block": 5}, "block .* got 5"),
    ],
)
def test_a_parameter_out_of_range_is_refused_with_an_alternative(make_recipe, strategy, reason):
    with pytest.raises(ValueError, match=reason):
        make_recipe(strategy=strategy, epochs=EPOCHS)


def test_the_recipe_names_the_network_that_a_strategy_prescribes(make_recipe):
    assert make_recipe(strategy="small_cnn").backbone == "basic_cnn"
    with pytest.raises(ValueError, match="strategy small_cnn needs backbone basic_cnn, got test_resnet"):
        recipe_from_dict({**make_recipe(strategy="small_cnn").as_dict(), "backbone": "test_resnet"})


# What moves


def test_frozen_parameters_do_not_change_by_a_single_bit(trained):
    for epoch in trained.epochs:
        assert {name for name in epoch.moved if not epoch.expected_to_move.get(name, True)} == set()


def test_trained_parameters_change(trained):
    for epoch in trained.epochs:
        assert {name for name, expected_to_move in epoch.expected_to_move.items() if expected_to_move} <= epoch.moved


def test_exactly_the_trained_parameters_require_and_have_a_gradient(trained):
    for epoch in trained.epochs:
        assert epoch.requires_grad == epoch.expected_to_move
        taken = trained.strategy not in CLOSED_FORM  # without steps there are no gradients
        assert epoch.grads == {
            name: True if expected_to_move and taken else None
            for name, expected_to_move in epoch.expected_to_move.items()
        }


def test_running_statistics_change_exactly_where_the_layer_itself_is_trained(trained):
    norms = [name for name, module in trained.run.model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert bool(norms) == (trained.network in ("test_resnet", "test_efficientnet"))
    for epoch in trained.epochs:
        for name in norms:
            follows = epoch.expected_to_move[f"{name}.weight"] or epoch.expected_to_move[f"{name}.bias"]
            statistics = {f"{name}.{buffer}" for buffer in ("running_mean", "running_var", "num_batches_tracked")}
            assert epoch.moved & statistics == (statistics if follows else set()), name


def test_the_head_changes_in_every_epoch(trained):
    head = head_of(trained.run.model)
    assert head
    assert {name for name, param in trained.params.items() if param.depth == 0} == head
    assert all(head <= epoch.moved for epoch in trained.epochs)


def test_the_record_counts_the_parameters_that_are_ever_trained(trained):
    record = trained.run.record()
    sizes = {name: parameter.numel() for name, parameter in trained.run.model.named_parameters()}
    moving = {
        name
        for epoch in trained.epochs
        for name, expected_to_move in epoch.expected_to_move.items()
        if expected_to_move
    }
    assert record.parameters == sum(sizes.values())
    assert record.trainable_parameters == sum(sizes[name] for name in moving)


def test_the_distance_is_the_relative_change_of_the_body(trained):
    distance = trained.run.epochs[-1].distance
    if trained.strategy in PROBES:
        assert distance == 0.0
    elif trained.strategy == "lora":  # its distance is that of the merged weights: see test_adapters
        assert distance > 0
    else:
        body = sorted(trained.params.keys() - head_of(trained.run.model))
        end = trained.run.model.state_dict()
        before, after = (torch.cat([state[name].flatten().double() for name in body]) for state in (trained.start, end))
        assert distance == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-4)
        assert distance > 0 or trained.run.epochs[-1].kept == "start"


def test_the_body_starts_from_the_weights_file_unless_weights_are_random(trained, weights_of):
    body = {name for name in trained.start if name not in head_of(trained.run.model)}
    matrices = {name for name in body if trained.start[name].ndim > 1}
    if trained.strategy == "small_cnn":
        return  # it has no weights file
    file = safetensors.torch.load_file(weights_of(trained.network))

    def there(name):
        return file[name.removeprefix("body.").replace("parametrizations.weight.original", "weight")]

    added = {name for name in body if trained.params.get(name) and trained.params[name].kind == "adapter"}
    assert bool(added) == (trained.strategy == "lora")
    equal = {name for name in body - added if torch.equal(trained.start[name], there(name))}
    assert not equal & matrices if trained.strategy in RANDOM else equal == body - added
    complete = trained.strategy not in ("early_cut", "drop_early")
    assert len(trained.start) - len(added) == len(file) if complete else len(trained.start) < len(file)
    assert all(len(trained.start[name]) == 3 for name in head_of(trained.run.model))


def test_the_seed_changes_all_random_weights_but_only_the_new_part_of_pretrained_networks(make_recipe, make_run):
    def differing(strategy, network):
        recipes = [make_recipe(strategy=strategy, backbone=network, seed=seed, epochs=EPOCHS) for seed in (0, 1)]
        runs = [make_run(recipe) for recipe in recipes]
        return moved(*(snapshot(run) for run in runs)), head_of(runs[0].model)

    for strategy in STRATEGIES:
        differing_names, head = differing(strategy, "test_vit")
        down = {name for name in differing_names if name.endswith(".down")}
        if strategy in RANDOM:
            assert differing_names > {name for name in head if name.endswith("weight")}
        else:
            assert differing_names == head | down
            assert bool(down) == (strategy == "lora")


# What is learned


@pytest.fixture(scope="module")
def six_images(tmp_path_factory):
    """Six images of noise with arbitrary labels: nothing generalises, so they can only be memorised."""
    root = tmp_path_factory.mktemp("handful")
    chance = np.random.default_rng(5)
    for part, per_class in (("train", 2), ("val", 1), ("test", 1)):
        for name in ("a", "b", "c"):
            (root / part / name).mkdir(parents=True)
            for number in range(per_class):
                pixels = chance.integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
                image = Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST)
                image.save(root / part / name / f"{number}.png")
    return build_pack(folder(root), 32, tmp_path_factory.mktemp("handful_pack"))


@pytest.fixture
def run_on_six_images(make_recipe, weights_of, six_images):
    """Builds a Run of a strategy on the six images, with one batch per epoch."""

    def run(strategy, network, learning_rate):
        recipe = make_recipe(
            strategy=strategy,
            backbone=network,
            optimizer="adam",
            learning_rate=learning_rate,
            weight_decay=0.0,
            epochs=40,
        )
        batch = {"batch_size": 6} if recipe.epochs > 1 else {}
        recipe = recipe_from_dict({**recipe.as_dict(), "data": six_images.hash, **batch})
        return Run(recipe, six_images, weights_of(network) if recipe.weights else None, torch.device("cpu"))

    return run


@pytest.mark.parametrize(
    ("strategy", "network"),
    [
        # lora and drop_early fit no other network.
        pytest.param(*pair, marks=[pytest.mark.slow, pytest.mark.nightly])
        if pair[1] == "test_vit" and pair[0] not in ("lora", "drop_early")
        else pair
        for pair in FITS
        if pair[0] not in PROBES
    ],
)
def test_a_few_images_can_be_memorised(run_on_six_images, strategy, network):
    # Training only the biases of a transformer with random frozen attention tolerates no larger rate.
    rate = 0.002 if (strategy, network) == ("bitfit", "test_vit") else 0.003
    epochs = run_on_six_images(strategy, network, rate)
    assert any(epoch.train_accuracy == 1.0 and epoch.train_loss < 0.4 for epoch in epochs), (
        "a guess has loss log 3 = 1.1"
    )


@pytest.mark.parametrize(("strategy", "network"), [pair for pair in FITS if pair[0] in CLOSED_FORM])
def test_a_closed_form_head_memorises_a_few_images_at_once(run_on_six_images, strategy, network):
    run = run_on_six_images({"name": strategy, "penalty": 1e-6}, network, 1.0)
    (epoch,) = run
    assert epoch.train_accuracy == 1.0
    assert (epoch.learning_rate, epoch.gradient_norm, epoch.gradient_norms) == (0.0, 0.0, ())


@pytest.mark.parametrize(("strategy", "network"), [pair for pair in FITS if pair[0] in set(PROBES) - set(CLOSED_FORM)])
def test_the_loss_of_a_head_on_frozen_features_keeps_falling(run_on_six_images, strategy, network):
    losses = [epoch.train_loss for epoch in run_on_six_images(strategy, network, 0.01)]
    assert losses[-1] < losses[20] < losses[10] < losses[0] - 0.02
