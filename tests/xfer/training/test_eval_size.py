"""Images of another size in evaluation than in training."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from xfer.batched_probes.compatibility import can_batch
from xfer.data.image_folder import folder
from xfer.data.loader import iter_batches
from xfer.data.pack import build_pack
from xfer.data.source import select_classes
from xfer.run import Run
from xfer.training.export import load_classifier, save_classifier
from xfer.training.networks import check_network

EVAL_SIZE = 48
RECIPES = {
    "all layers": {},
    "augmented": {"augmentation": "flip"},
    "a head on cached features": {"strategy": "linear_probe"},
    "a head on cached views": {"strategy": "linear_probe", "augmentation": "flip", "views": 2},
    "a head in closed form": {"strategy": "logistic_probe"},
    "frozen below": {"strategy": {"name": "train_last", "blocks": 2}},
    "another network": {"backbone": "test_resnet"},
    "a transformer": {"backbone": "test_vit"},
}


@pytest.fixture(scope="module")
def eval_pack(image_folder, tmp_path_factory):
    return build_pack(folder(image_folder), EVAL_SIZE, tmp_path_factory.mktemp("packs"))


@pytest.fixture(scope="module")
def open_run(one_thread, pack, eval_pack, weights_of):
    def run(recipe, checkpoints=None, eval_pack=eval_pack):
        file = weights_of(recipe.backbone)
        return Run(recipe, pack, file, torch.device("cpu"), checkpoints, eval_pack=eval_pack)

    return run


def correct_in(run, pack, indices):
    """Whether the network of a run classifies images of a pack correctly, computed from the pixels."""
    run.model.eval()
    [(images, labels)] = iter_batches(pack, indices, len(indices))
    with torch.inference_mode():
        return tuple((run.model(run.inputs.transform.prepare(images)).argmax(1) == labels).tolist())


@pytest.mark.parametrize("changes", RECIPES.values(), ids=RECIPES)
def test_every_part_is_evaluated_in_the_size_of_evaluation(make_recipe, open_run, pack, eval_pack, changes):
    run = open_run(make_recipe(**changes, eval_size=EVAL_SIZE))
    list(run)
    for part in ("train", "val", "test"):
        indices = run.split.of(part)
        assert run.evaluate(part).correct == correct_in(run, eval_pack, indices)
    logits = [
        run.model(run.inputs.transform.prepare(torch.from_numpy(np.array(images[:1])).permute(0, 3, 1, 2)))
        for images in (pack.images, eval_pack.images)
    ]
    assert not torch.allclose(*logits, atol=1e-3)  # the size matters, so the comparison above says something


@pytest.mark.parametrize("changes", RECIPES.values(), ids=RECIPES)
def test_training_does_not_depend_on_the_size_of_evaluation(make_recipe, make_run, open_run, changes):
    runs = [make_run(make_recipe(**changes)), open_run(make_recipe(**changes, eval_size=EVAL_SIZE))]
    epochs = [list(run) for run in runs]
    if changes.get("strategy") != "logistic_probe":  # its training loss is evaluated after the fit
        assert [epoch.train_loss for epoch in epochs[0]] == [epoch.train_loss for epoch in epochs[1]]
    # After the last epoch, the weights that are kept depend on the validation part.
    assert [epoch.distance for epoch in epochs[0][:-1]] == [epoch.distance for epoch in epochs[1][:-1]]
    assert epochs[0][-1].val_loss != epochs[1][-1].val_loss
    flops = [run.record().flops for run in runs]
    assert 2 < flops[1] / flops[0] < 2.5  # (48 / 32)², and the head


def test_a_resumed_run_equals_the_uninterrupted_one(make_recipe, open_run, tmp_path):
    recipe = make_recipe(epochs=3, eval_size=EVAL_SIZE)
    whole = open_run(recipe)
    list(whole)
    next(iter(open_run(recipe, tmp_path)))
    resumed = open_run(recipe, tmp_path)
    list(resumed)
    assert [epoch.val_loss for epoch in resumed.epochs] == [epoch.val_loss for epoch in whole.epochs]
    assert resumed.evaluate("test") == whole.evaluate("test")


def test_an_exported_network_takes_images_in_the_size_of_evaluation(make_recipe, open_run, eval_pack, tmp_path):
    run = open_run(make_recipe(eval_size=EVAL_SIZE))
    list(run)
    save_classifier(tmp_path, run.model, run.recipe, run.pack.classes)
    classifier = load_classifier(tmp_path)
    assert (classifier.image_size, classifier.recipe) == (EVAL_SIZE, run.recipe)
    probabilities = classifier.probabilities(np.array(eval_pack.images[run.split.test]))
    correct = probabilities.argmax(axis=1) == eval_pack.labels[run.split.test]
    assert tuple(correct.tolist()) == run.evaluate("test").correct


def test_a_probe_with_another_size_of_evaluation_is_trained_alone(make_recipe):
    probe = {"strategy": "linear_probe"}
    assert can_batch(make_recipe(**probe))
    assert not can_batch(make_recipe(**probe, eval_size=EVAL_SIZE))


# Errors


def test_the_pack_must_have_the_size_that_the_recipe_evaluates(make_recipe, open_run):
    for recipe, other, size in ((make_recipe(eval_size=EVAL_SIZE), None, 48), (make_recipe(eval_size=64), ..., 64)):
        with pytest.raises(
            ValueError, match=rf"evaluates images of {size} px, got images of (32|48) px: pass eval_pack"
        ):
            open_run(recipe) if other is ... else open_run(recipe, eval_pack=other)
    with pytest.raises(ValueError, match=r"evaluates images of 32 px, got images of 48 px"):
        open_run(make_recipe())


def test_the_packs_must_hold_the_same_images(make_recipe, open_run, image_folder, tmp_path):
    fewer = build_pack(select_classes(folder(image_folder), ("2",)), EVAL_SIZE, tmp_path)
    with pytest.raises(ValueError, match=re.escape("packs of 32 px and 48 px must hold the same images")):
        open_run(make_recipe(eval_size=EVAL_SIZE), eval_pack=fewer)


def test_a_network_for_one_size_is_refused_before_training(make_recipe):
    vit = {"backbone": "test_vit", "eval_size": EVAL_SIZE, "backbone_args": {"dynamic_img_size": False}}
    with pytest.raises(ValueError, match=r"test_vit, which is built for 32 px, cannot take images of 48 px: .*dynamic"):
        check_network(make_recipe(**vit))
    check_network(make_recipe(**{**vit, "backbone_args": {"dynamic_img_size": True}}))
    check_network(make_recipe(**{**vit, "eval_size": None}))
