"""Balance: what each entry does to loss, logits and sampling, compared with torch and with the formulas."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from tests.xfer.conftest import MEASURED_FIELDS
from xfer.choices import Choice
from xfer.data.image_folder import folder
from xfer.data.pack import build_pack
from xfer.methods.balance import BALANCES, balanced_indices
from xfer.records import as_dict
from xfer.run import Run
from xfer.training.learner import Learner

COUNTS = torch.tensor([60.0, 30.0, 10.0])

each_balance = pytest.mark.parametrize("balance", BALANCES)


@pytest.fixture(scope="module")
def unequal_pack(tmp_path_factory):
    """96 images of a common class and 8 of a rare, redder one that overlaps with it; the other parts are equal."""
    root, rng = tmp_path_factory.mktemp("unequal"), np.random.default_rng(0)
    for part, sizes in {"train": (96, 8), "val": (24, 24), "test": (4, 4)}.items():
        for label, (name, size) in enumerate(zip(("common", "rare"), sizes, strict=True)):
            (root / part / name).mkdir(parents=True)
            for number in range(size):
                colour = (110 + 30 * label + rng.normal(0, 15), 120, 120)
                pixels = np.clip(rng.normal(colour, 10, size=(32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    return build_pack(folder(root), 32, tmp_path_factory.mktemp("packs"))


@pytest.fixture(scope="module")
def run_of(one_thread, make_recipe, weights_of, unequal_pack):
    """Returns a function that creates runs on `unequal_pack`."""

    def run(folder=None, **changes):
        recipe = make_recipe(data=unequal_pack.hash, classes=2, batch_size=16, **changes)
        file = weights_of(recipe.backbone) if recipe.weights else None
        return Run(recipe, unequal_pack, file, device=torch.device("cpu"), folder=folder)

    return run


def learner_of(recipe, class_counts=COUNTS):
    torch.manual_seed(0)
    return Learner(recipe, None, torch.device("cpu"), class_counts=class_counts)


def step_loss(learner, labels):
    """Returns the loss of one step on random images, and the logits before it."""
    images = torch.randn(len(labels), 3, 32, 32, generator=torch.Generator().manual_seed(1))
    learner.model.eval()
    with torch.no_grad():
        logits = learner.model(images)
    targets = functional.one_hot(labels, 3).float()
    return float(learner.step(images, targets, learning_rate=0.0)[0]), logits


@pytest.fixture
def scratch_recipe(make_recipe):
    """Returns a function that builds recipes whose network is the same in training and evaluation mode."""
    return lambda balance: make_recipe(strategy="scratch", backbone="test_vit", balance=balance)


def test_none_is_the_mean_cross_entropy(scratch_recipe):
    labels = torch.tensor([0, 1, 2, 2])
    loss, logits = step_loss(learner_of(scratch_recipe("none")), labels)
    assert loss == pytest.approx(float(functional.cross_entropy(logits, labels)), rel=1e-5)


def test_class_weights_weigh_images_by_the_inverse_frequency_of_their_class(scratch_recipe):
    labels = torch.tensor([0, 1, 2, 2])
    loss, logits = step_loss(learner_of(scratch_recipe("class_weights")), labels)
    weights = COUNTS.sum() / (3 * COUNTS)
    expected = functional.cross_entropy(logits, labels, weight=weights, reduction="sum") / len(labels)
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_class_weights_have_a_mean_of_one_over_all_training_images():
    weights = BALANCES["class_weights"]().loss_weights(COUNTS)
    assert float((weights * COUNTS).sum() / COUNTS.sum()) == pytest.approx(1.0)
    torch.testing.assert_close(weights * COUNTS, torch.full((3,), 100 / 3))  # every class has the same total


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_logit_adjustment_adds_the_log_frequency_in_the_loss_only(scratch_recipe, tau):
    labels = torch.tensor([0, 1, 2, 2])
    learner = learner_of(scratch_recipe({"name": "logit_adjustment", "tau": tau}))
    loss, logits = step_loss(learner, labels)
    expected = functional.cross_entropy(logits + tau * (COUNTS / 100).log(), labels)
    assert loss == pytest.approx(float(expected), rel=1e-5)
    plain = learner_of(scratch_recipe("none"))
    assert {name: value.shape for name, value in learner.model.state_dict().items()} == {
        name: value.shape for name, value in plain.model.state_dict().items()
    }


@given(sizes=st.lists(st.integers(1, 40), min_size=2, max_size=6), seed=st.integers(0, 9))
def test_balanced_indices_repeat_evenly(sizes, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    indices = np.arange(len(labels)) * 3
    drawn = balanced_indices(indices, labels, seed)
    assert len(drawn) == len(indices)
    assert (np.diff(drawn) >= 0).all()
    repeats = np.array([(drawn == index).sum() for index in indices])
    by_class = [repeats[labels == label] for label in range(len(sizes))]
    totals = [int(of_class.sum()) for of_class in by_class]
    assert max(totals) - min(totals) <= 1
    assert all(of_class.max() - of_class.min() <= 1 for of_class in by_class)


def test_another_seed_leaves_out_other_images():
    labels = np.array([0] * 50 + [1] * 5)
    first, again, other = (balanced_indices(np.arange(55), labels, seed).tolist() for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.slow
def test_rare_classes_gain_from_every_entry(run_of, unequal_pack):
    """With 96 images against 8, the plain loss still predicts the common class for every image."""

    def recall(name):
        run = run_of(strategy="small_cnn", balance=name, epochs=8, learning_rate=0.02, schedule="constant")
        list(run)
        correct = np.array(run.evaluate("val").correct)
        return correct[unequal_pack.labels[run.split.val] == 1].mean()

    recalls = {name: recall(name) for name in BALANCES}
    assert recalls.pop("none") == 0
    assert min(recalls.values()) > 0.2


@each_balance
def test_a_run_that_stops_after_every_epoch_equals_an_uninterrupted_one(run_of, tmp_path, balance):
    uninterrupted = list(run_of(balance=balance, epochs=3))
    resumed = [next(iter(run_of(tmp_path, balance=balance, epochs=3))) for _ in range(3)]

    def plain(epochs):
        return [{k: v for k, v in as_dict(epoch).items() if k not in MEASURED_FIELDS} for epoch in epochs]

    assert plain(resumed) == plain(uninterrupted)


def test_an_invalid_strength_is_refused():
    for tau in (0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="tau must be above 0 and finite"):
            BALANCES["logit_adjustment"](tau)


def test_closed_form_heads_take_no_balance(make_recipe):
    with pytest.raises(ValueError, match="takes no gradient steps: leave balance at none, got class_weights"):
        dataclasses.replace(make_recipe(strategy="ridge_probe"), balance=Choice("class_weights"))
