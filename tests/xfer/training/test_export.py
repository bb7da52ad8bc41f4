"""An exported network predicts the same as the run that trained it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch

from xfer.data.loader import iter_batches
from xfer.recipe import recipe_from_dict
from xfer.training.export import load_classifier, save_classifier

NETWORKS = ["test_resnet", "test_efficientnet", "test_vit"]

UNUSUAL = {
    "mlp": {"head": {"name": "mlp", "hidden": 9}},
    "cosine": {"head": {"name": "cosine", "cosine_scale": 5.0}},
    "mish": {"activation": "mish"},
    "leaky_relu": {"activation": "leaky_relu", "backbone": "test_resnet"},
    "early_cut": {"strategy": {"name": "early_cut", "stage": 2}},
    "early_cut of a transformer": {"strategy": "early_cut", "backbone": "test_vit"},
    "drop_early": {"strategy": "drop_early", "backbone": "test_vit"},
    "lora": {"strategy": {"name": "lora", "rank": 3}, "backbone": "test_vit"},
    "small_cnn": {"strategy": "small_cnn"},
    "scratch": {"strategy": "scratch"},
    "grey": {"colour": "grey"},
    "grey_stem": {"colour": "grey_stem"},
    "all at once": {
        "strategy": "lora",
        "backbone": "test_vit",
        "head": "mlp",
        "activation": "silu",
        "colour": "grey_stem",
        "batch_norm": "always",
    },
}
"""Choices that change the architecture or the input channels."""


def train(make_recipe, make_run, **changes):
    run = make_run(make_recipe(epochs=3, optimizer="adam", **changes))
    list(run)
    return run


def export(run, folder, classes):
    save_classifier(folder, run.model, run.recipe, classes)
    return load_classifier(folder)


def probabilities_of(run, indices):
    """Class probabilities from the run's own network."""
    run.model.eval()
    with torch.inference_mode():
        return torch.cat(
            [run.model(run.inputs.transform.prepare(images)) for images, _ in iter_batches(run.pack, indices, 64)]
        ).softmax(1)


@pytest.mark.parametrize("backbone", NETWORKS)
def test_a_classifier_predicts_the_same_as_the_run_that_trained_it(make_recipe, make_run, tmp_path, backbone):
    run = train(make_recipe, make_run, backbone=backbone)
    classifier = export(run, tmp_path, run.pack.classes)
    expected = probabilities_of(run, np.arange(36)).numpy()
    probabilities = classifier.probabilities(np.array(run.pack.images))
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    indices = run.split.test
    correct = probabilities[indices].argmax(axis=1) == run.pack.labels[indices]
    assert tuple(correct.tolist()) == run.evaluate("test").correct


@pytest.mark.parametrize("choice", UNUSUAL)
def test_a_classifier_has_the_architecture_of_the_trained_network(make_recipe, make_run, tmp_path, choice):
    run = make_run(make_recipe(epochs=1, **UNUSUAL[choice]))
    list(run)
    expected = probabilities_of(run, np.arange(36)).numpy()
    torch.manual_seed(99)  # random numbers drawn while loading have no effect
    classifier = export(run, tmp_path, run.pack.classes)
    assert classifier.model is not run.model
    probabilities = classifier.probabilities(np.array(run.pack.images))
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    assert np.ptp(probabilities, axis=0).max() > 1e-5
    assert (classifier.recipe, classifier.image_size) == (run.recipe, 32)
    module_types = [[type(module).__name__ for module in model.modules()] for model in (classifier.model, run.model)]
    assert module_types[0] == module_types[1]


@pytest.mark.parametrize("network", NETWORKS)
def test_timm_can_load_the_weights_of_an_unmodified_network(make_recipe, make_run, tmp_path, network):
    run = make_run(make_recipe(backbone=network))
    export(run, tmp_path, run.pack.classes)
    size = {"img_size": 32} if network == "test_vit" else {}
    model = timm.create_model(network, num_classes=3, checkpoint_path=str(tmp_path / "model.safetensors"), **size)
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_loading_does_not_change_torchs_random_state(make_recipe, make_run, tmp_path):
    run = make_run(make_recipe(strategy="scratch", head="mlp"))
    state = torch.get_rng_state()
    export(run, tmp_path, run.pack.classes)
    assert torch.equal(torch.get_rng_state(), state)


def test_backbone_arguments_are_exported(make_recipe, make_run, tmp_path):
    run = train(make_recipe, make_run, backbone_args={"pad_type": "same"})
    plain = train(make_recipe, make_run)
    probabilities = export(run, tmp_path / "same", run.pack.classes).probabilities(np.array(run.pack.images))
    np.testing.assert_allclose(probabilities, probabilities_of(run, np.arange(36)).numpy(), atol=1e-6)
    assert not np.allclose(probabilities, probabilities_of(plain, np.arange(36)).numpy(), atol=1e-3)


def test_the_card_is_plain_json_without_pickles(make_recipe, make_run, tmp_path):
    run = train(make_recipe, make_run)
    classes = ("日本", "naïve <b>", 'a "quote"\n')
    classifier = export(run, tmp_path / "new" / "model", classes)
    assert {path.name for path in (tmp_path / "new" / "model").iterdir()} == {"model.json", "model.safetensors"}
    card = json.loads((tmp_path / "new" / "model" / "model.json").read_text(encoding="utf-8"))
    assert card["classes"] == list(classes)
    assert (card["backbone"], card["image_size"]) == ("test_efficientnet", 32)
    assert card["resize"] == "squash to a square, then the middle 87.5% of each side"
    assert len(card["mean"]) == len(card["std"]) == 3
    assert recipe_from_dict(card["recipe"]) == run.recipe == classifier.recipe
    assert classifier.classes == classes
    assert classifier.image_size == 32


def test_exporting_does_not_change_the_run(make_recipe, make_run, tmp_path):
    run, unexported = train(make_recipe, make_run), train(make_recipe, make_run)
    export(run, tmp_path, run.pack.classes)
    for name, tensor in unexported.model.state_dict().items():
        assert torch.equal(run.model.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 16, 16, 3), np.uint8),
        ((2, 32, 32, 1), np.uint8),
        ((2, 3, 32, 32), np.uint8),
        ((32, 32, 3), np.uint8),
        ((2, 32, 32, 3), np.float32),
        ((2, 32, 32, 3), np.int64),
    ],
)
def test_images_of_another_shape_or_type_are_an_error(make_recipe, make_run, tmp_path, shape, dtype):
    run = make_run(make_recipe())
    classifier = export(run, tmp_path, run.pack.classes)
    with pytest.raises(ValueError, match=r"images must be uint8 \[N, 32, 32, 3\], not "):
        classifier.probabilities(np.zeros(shape, dtype=dtype))


def test_an_empty_batch_gives_empty_probabilities(make_recipe, make_run, tmp_path):
    run = make_run(make_recipe())
    assert export(run, tmp_path, run.pack.classes).probabilities(np.zeros((0, 32, 32, 3), np.uint8)).shape == (0, 3)
