"""Input channels: which colours reach the network, in training and in evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch
from torchvision.transforms import functional as torchvision_v1

from xfer.methods.input_channels import INPUT_CHANNELS
from xfer.models.backbones import InputStatistics, Preprocessor, build, input_statistics
from xfer.training.export import Classifier
from xfer.training.networks import build_network, build_preprocessor, check_network

STEMS = {"test_resnet": "conv1.0", "test_efficientnet": "conv_stem", "test_vit": "patch_embed.proj"}
CHANNELS = {"rgb": 3, "grey": 3, "grey_stem": 1}
CPU = torch.device("cpu")

each_colour = pytest.mark.parametrize("colour", INPUT_CHANNELS)
each_network = pytest.mark.parametrize("network", STEMS)


def images(count=4, seed=1):
    return torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def build_with_preprocessor(make_recipe, weights_of):
    """Builds the network and preprocessor of a recipe; random weights are the same in every call."""

    def build_both(network, colour):
        recipe = make_recipe(backbone=network, colour=colour)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model = build_network(recipe, weights_of(network)).eval()
        return model, build_preprocessor(recipe, model, CPU)

    return build_both


# Pixels


def test_rgb_changes_no_pixel():
    before = images()
    assert torch.equal(INPUT_CHANNELS["rgb"]().convert(before), before)


@pytest.mark.parametrize("colour", ["grey", "grey_stem"])
def test_grey_is_torchvisions_luminance_on_the_channels_of_the_stem(colour):
    before = images()
    copy = before.clone()
    choice = INPUT_CHANNELS[colour]()
    converted = choice.convert(before)
    assert (converted.dtype, converted.shape) == (torch.uint8, (4, CHANNELS[colour], 32, 32))
    assert choice.channels == CHANNELS[colour]
    assert torch.equal(before, copy)
    reference = torchvision_v1.rgb_to_grayscale(before, num_output_channels=1)
    assert all(torch.equal(converted[:, channel], reference[:, 0]) for channel in range(choice.channels))
    red, green, blue = before.double().unbind(dim=1)
    by_hand = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
    assert (converted[:, 0].double() - by_hand).abs().max() < 1.1


@each_network
@each_colour
def test_pixels_are_normalised_as_in_pretraining(build_with_preprocessor, network, colour):
    model, prepare = build_with_preprocessor(network, colour)
    statistics = input_statistics(model)
    assert len(statistics.mean) == len(statistics.std) == 3
    seen = INPUT_CHANNELS[colour]().convert(images()).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (statistics.mean, statistics.std))
    if colour == "grey_stem":
        mean, std = mean.mean(dim=1, keepdim=True), std.mean(dim=1, keepdim=True)
    torch.testing.assert_close(prepare(images()), (seen - mean) / std)
    assert prepare(images()).is_contiguous(memory_format=torch.channels_last)


# Networks


@each_network
def test_a_grey_stem_is_the_pretrained_stem_summed_over_the_colours(build_with_preprocessor, weights_of, network):
    model, _ = build_with_preprocessor(network, "grey_stem")
    pretrained = safetensors.torch.load_file(weights_of(network))
    stem = f"{STEMS[network]}.weight"
    torch.testing.assert_close(model.state_dict()[stem], pretrained[stem].sum(dim=1, keepdim=True))
    head = {id(tensor) for tensor in model.get_classifier().parameters()}
    others = {name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) not in head} - {stem}
    assert len(others) > 10
    assert all(torch.equal(model.state_dict()[name], pretrained[name]) for name in others)


@each_network
def test_grey_does_not_change_the_network(build_with_preprocessor, network):
    rgb, grey = (build_with_preprocessor(network, colour)[0].state_dict() for colour in ("rgb", "grey"))
    assert all(torch.equal(tensor, grey[name]) for name, tensor in rgb.items())


@each_network
def test_a_grey_stem_equals_three_grey_channels_with_equal_normalisation(build_with_preprocessor, network):
    equal = InputStatistics((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    embeddings = []  # not logits: a smaller stem draws fewer random numbers, so the new heads differ
    for colour in ("grey", "grey_stem"):
        model, _ = build_with_preprocessor(network, colour)
        with torch.no_grad():
            prepare = Preprocessor(equal, CPU, CHANNELS[colour], INPUT_CHANNELS[colour]().convert)
            embeddings.append(model.forward_head(model.forward_features(prepare(images())), pre_logits=True))
    torch.testing.assert_close(*embeddings, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(embeddings[0][0], embeddings[0][1], atol=1e-2)


def test_custom_and_randomly_initialised_networks_accept_one_channel_too(make_recipe):
    for changes in ({"strategy": "small_cnn"}, {"strategy": "scratch"}, {"strategy": "early_cut"}):
        recipe = make_recipe(**changes, colour="grey_stem")
        model = build_network(recipe, None).eval()
        assert model(build_preprocessor(recipe, model, CPU)(images())).shape == (4, 3)
        check_network(recipe)
    assert build("basic_cnn", 3, 32, channels=1).features[0].weight.shape[1] == 1


# Runs


@each_network
@each_colour
def test_training_and_evaluation_both_use_the_colours_of_the_recipe(make_recipe, make_run, network, colour):
    run = make_run(make_recipe(backbone=network, colour=colour, epochs=1))
    seen = {True: [], False: []}
    head = run.model.get_classifier()
    run.model.register_forward_pre_hook(lambda model, inputs: seen[head.training].append(inputs[0].detach()))
    list(run)
    run.evaluate("test")
    means, stds = (torch.tensor(values).view(1, 3, 1, 1) for values in vars(input_statistics(run.model)).values())
    for training in (True, False):
        assert len(seen[training]) > 1
        for inputs in seen[training]:
            assert inputs.shape[1] == CHANNELS[colour]
            if colour != "grey_stem":
                red, green, _ = (inputs * stds + means).unbind(dim=1)
                assert torch.allclose(red, green, atol=1e-5) is (colour == "grey")


@each_colour
def test_removing_the_colours_changes_predictions_only_if_the_network_sees_colours(make_recipe, make_run, colour):
    run = make_run(make_recipe(colour=colour))
    classifier = Classifier(run.model.eval(), run.pack.classes, run.recipe)
    with torch.no_grad():
        run.model.classifier.weight.mul_(100)  # a new head is uncertain about everything
    colourful = np.array(run.pack.images[:6])
    luminance = torchvision_v1.rgb_to_grayscale(torch.from_numpy(colourful).permute(0, 3, 1, 2), num_output_channels=3)
    # Taking the luminance of a grey pixel changes it by up to one value of 255.
    without_colour = luminance.permute(0, 2, 3, 1).numpy()
    probabilities = [classifier.probabilities(images) for images in (colourful, without_colour)]
    assert np.allclose(*probabilities, atol=0.01) is (colour != "rgb")
