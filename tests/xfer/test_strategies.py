"""What every strategy of the table does to a network: what must not move does not, what must move does."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from xfer import digest
from xfer.data.pack import build_pack
from xfer.data.sources import folder
from xfer.methods.freezing import Moment
from xfer.methods.strategies import STRATEGIES
from xfer.params import Param, params_of
from xfer.recipe import recipe_from
from xfer.run import Run

NETWORKS = ("test_resnet", "test_efficientnet", "test_vit")
EPOCHS = 3  # freeze_then_unfreeze freezes for 2 of them
HEADS = {"test_resnet": "fc.", "test_efficientnet": "classifier.", "test_vit": "head."}

each_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
each_network = pytest.mark.parametrize("network", NETWORKS)


def snapshot(run):
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def frozen_epochs(strategy, epochs=EPOCHS):
    """In how many epochs, counted from the first, everything below the head stands still."""
    pace = STRATEGIES[strategy]().pace
    return sum(pace(Param(depth=1), Moment(epoch, epochs)) == 0 for epoch in range(epochs))


@each_strategy
@each_network
def test_what_is_frozen_stays_bit_for_bit_and_what_is_not_moves(make_recipe, make_run, strategy, network):
    run = make_run(make_recipe(strategy=strategy, backbone=network, epochs=EPOCHS, learning_rate=0.05))
    head = {name for name in run.model.state_dict() if name.startswith(HEADS[network])}
    parameters = {name for name, _ in run.model.named_parameters()}
    running = {name for name in run.model.state_dict() if name.endswith(("running_mean", "running_var"))}
    assert bool(running) == (network != "test_vit")
    before = snapshot(run)
    for epoch in run:
        after = snapshot(run)
        if epoch.epoch <= frozen_epochs(strategy):
            assert moved(before, after) == head
        else:
            assert moved(before, after) >= parameters | running
        before = after


@each_strategy
@each_network
def test_a_frozen_parameter_needs_no_gradient_and_has_none(make_recipe, make_run, strategy, network):
    run = make_run(make_recipe(strategy=strategy, backbone=network, epochs=EPOCHS))
    params = params_of(run.model)
    for epoch in run:
        for name, parameter in run.model.named_parameters():
            frozen = params[name].depth > 0 and epoch.epoch <= frozen_epochs(strategy)
            assert parameter.requires_grad is not frozen, name
            assert (parameter.grad is None) is frozen, name


def test_the_table_freezes_as_its_names_say():
    assert {name: frozen_epochs(name) for name in STRATEGIES} == {
        "scratch": 0,
        "linear_probe": EPOCHS,
        "freeze_then_unfreeze": 2,
        "naive": 0,
        "clip": 0,
    }


@pytest.mark.parametrize("freeze_epochs", [1, 3])
def test_freeze_epochs_says_how_long_the_body_stands_still(make_recipe, make_run, freeze_epochs):
    strategy = {"name": "freeze_then_unfreeze", "freeze_epochs": freeze_epochs}
    run = make_run(make_recipe(strategy=strategy, epochs=4))
    start = snapshot(run)
    first_moves = []
    for epoch in run:
        if any(not name.startswith("classifier.") for name in moved(start, snapshot(run))):
            first_moves.append(epoch.epoch)
    assert first_moves[0] == freeze_epochs + 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_settled_after_is_the_number_of_epochs_before_everything_moves(strategy):
    built = STRATEGIES[strategy]()
    frozen = frozen_epochs(strategy, epochs=10)
    assert built.settled_after == (frozen if frozen < 10 else 0)


@each_strategy
@each_network
def test_a_run_starts_from_the_file_below_the_head_unless_it_starts_from_scratch(
    make_recipe, make_run, weights_of, strategy, network
):
    run = make_run(make_recipe(strategy=strategy, backbone=network, epochs=EPOCHS))
    file = safetensors.torch.load_file(weights_of(network))
    start = run.model.state_dict()
    assert start.keys() == file.keys()
    body = {name for name in start if not name.startswith(HEADS[network]) and start[name].is_floating_point()}
    equal = {name for name in body if torch.equal(start[name], file[name])}
    if strategy == "scratch":
        matrices = {name for name in body if start[name].ndim > 1}
        assert not equal & matrices
    else:
        assert equal == body
    assert all(len(start[name]) == 3 for name in start if name.startswith(HEADS[network]))


def test_scratch_starts_elsewhere_with_every_seed_and_pretrained_strategies_only_in_the_head(make_recipe, make_run):
    def differing(strategy):
        runs = [make_run(make_recipe(strategy=strategy, seed=seed)) for seed in (0, 1)]
        return moved(*(snapshot(run) for run in runs))

    assert "conv_stem.weight" in differing("scratch")
    assert differing("naive") == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_trainable_parameters_are_those_that_move_at_any_time(make_recipe, make_run, strategy):
    run = make_run(make_recipe(strategy=strategy, epochs=EPOCHS))
    head = sum(parameter.numel() for parameter in run.model.classifier.parameters())
    everything = sum(parameter.numel() for parameter in run.model.parameters())
    record = run.record()
    assert record.parameters == everything > head
    assert record.trainable_parameters == (head if strategy == "linear_probe" else everything)


@pytest.fixture(scope="module")
def handful(tmp_path_factory):
    """Six pictures of noise under arbitrary labels: nothing to generalise from, only to be learned by heart."""
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


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("strategy", ["scratch", "naive", "clip", "freeze_then_unfreeze"])
def test_a_handful_of_images_can_be_learned_by_heart(make_recipe, weights_of, handful, strategy, network):
    plain = make_recipe(
        strategy=strategy, backbone=network, optimizer="adam", learning_rate=0.003, weight_decay=0.0, epochs=40
    ).as_dict()
    recipe = recipe_from({**plain, "data": handful.hash, "batch_size": 6})
    file = weights_of(network) if recipe.weights else None
    assert not recipe.weights or digest.of_file(file) == recipe.weights
    run = Run(recipe, handful, file, torch.device("cpu"))
    assert any(epoch.train_accuracy == 1.0 for epoch in run)
