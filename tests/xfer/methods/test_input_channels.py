"""Every way of the table to see colours: what reaches the network, in training as in evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch
from torchvision.transforms import functional as first_version

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
def network_and_preparation(make_recipe, weights_of):
    """What a recipe trains; its random weights are the same in every call."""

    def made(network, colour):
        recipe = make_recipe(backbone=network, colour=colour)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model = build_network(recipe, weights_of(network)).eval()
        return model, build_preprocessor(recipe, model, CPU)

    return made


# Pixels


def test_rgb_leaves_every_pixel_as_it_is():
    before = images()
    assert torch.equal(INPUT_CHANNELS["rgb"]().convert(before), before)


@pytest.mark.parametrize("colour", ["grey", "grey_stem"])
def test_grey_is_torchvisions_luminance_on_as_many_channels_as_the_stem_takes(colour):
    before = images()
    kept = before.clone()
    built = INPUT_CHANNELS[colour]()
    found = built.convert(before)
    assert (found.dtype, found.shape) == (torch.uint8, (4, CHANNELS[colour], 32, 32))
    assert built.channels == CHANNELS[colour]
    assert torch.equal(before, kept)
    reference = first_version.rgb_to_grayscale(before, num_output_channels=1)
    assert all(torch.equal(found[:, channel], reference[:, 0]) for channel in range(built.channels))
    red, green, blue = before.double().unbind(dim=1)
    by_hand = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
    assert (found[:, 0].double() - by_hand).abs().max() < 1.1


@each_network
@each_colour
def test_pixels_are_scaled_as_the_network_was_pretrained(network_and_preparation, network, colour):
    model, prepare = network_and_preparation(network, colour)
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
def test_a_grey_stem_is_the_pretrained_one_summed_over_the_colours(network_and_preparation, weights_of, network):
    model, _ = network_and_preparation(network, "grey_stem")
    pretrained = safetensors.torch.load_file(weights_of(network))
    stem = f"{STEMS[network]}.weight"
    torch.testing.assert_close(model.state_dict()[stem], pretrained[stem].sum(dim=1, keepdim=True))
    head = {id(tensor) for tensor in model.get_classifier().parameters()}
    others = {name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) not in head} - {stem}
    assert len(others) > 10
    assert all(torch.equal(model.state_dict()[name], pretrained[name]) for name in others)


@each_network
def test_grey_leaves_the_network_as_it_was(network_and_preparation, network):
    usual, grey = (network_and_preparation(network, colour)[0].state_dict() for colour in ("rgb", "grey"))
    assert all(torch.equal(tensor, grey[name]) for name, tensor in usual.items())


@each_network
def test_a_grey_stem_sees_what_three_grey_channels_show_where_all_were_scaled_alike(network_and_preparation, network):
    alike = InputStatistics((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    found = []  # not the logits: a smaller stem draws fewer random numbers, so the new heads differ
    for colour in ("grey", "grey_stem"):
        model, _ = network_and_preparation(network, colour)
        with torch.no_grad():
            prepare = Preprocessor(alike, CPU, CHANNELS[colour], INPUT_CHANNELS[colour]().convert)
            found.append(model.forward_head(model.forward_features(prepare(images())), pre_logits=True))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found[0][0], found[0][1], atol=1e-2)


def test_a_network_of_ours_and_one_from_random_weights_take_one_channel_too(make_recipe):
    for changes in ({"strategy": "small_cnn"}, {"strategy": "scratch"}, {"strategy": "early_cut"}):
        recipe = make_recipe(**changes, colour="grey_stem")
        model = build_network(recipe, None).eval()
        assert model(build_preprocessor(recipe, model, CPU)(images())).shape == (4, 3)
        check_network(recipe)
    assert build("basic_cnn", 3, 32, channels=1).features[0].weight.shape[1] == 1


# Runs


@each_network
@each_colour
def test_training_and_evaluation_both_see_the_colours_of_the_recipe(make_recipe, make_run, network, colour):
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
def test_an_image_without_its_colours_is_the_same_image_unless_colours_are_seen(make_recipe, make_run, colour):
    run = make_run(make_recipe(colour=colour))
    classifier = Classifier(run.model.eval(), run.pack.classes, run.recipe)
    with torch.no_grad():
        run.model.classifier.weight.mul_(100)  # new heads are unsure of everything
    colourful = np.array(run.pack.images[:6])
    luminance = first_version.rgb_to_grayscale(torch.from_numpy(colourful).permute(0, 3, 1, 2), num_output_channels=3)
    # A grey pixel loses up to one value of 255 when its luminance is taken again.
    drained = luminance.permute(0, 2, 3, 1).numpy()
    found = [classifier.probabilities(each) for each in (colourful, drained)]
    assert np.allclose(*found, atol=0.01) is (colour != "rgb")
