"""timm networks: built by name, loaded from a local file without running code from it, with a new head."""

from __future__ import annotations

import argparse
import dataclasses
import io
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from xfer.models.backbones import (
    CUSTOM_BACKBONES,
    Preprocessor,
    build,
    check_name,
    default_image_size,
    fetch_weights,
    input_statistics,
)
from xfer.models.timm_names import alias_note, resolve_name

NETWORKS = {"test_resnet": "fc", "test_efficientnet": "classifier", "test_vit": "head", "test_convnext": "head.fc"}


def body(model, head):
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(head + ".")}


# Local files


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("form", ["safetensors", "state dict", "nested state dict"])
def test_a_local_file_sets_all_weights_below_a_new_head(weights_of, tmp_path, name, form):
    path = weights_of(name)
    expected = safetensors.torch.load_file(path)
    if form != "safetensors":
        path = tmp_path / "weights.pth"
        torch.save({"state_dict": expected, "epoch": 3} if form.startswith("nested") else expected, path)
    model = build(name, 7, 32, path)
    loaded = body(model, NETWORKS[name])
    assert len(loaded) > 10
    assert all(torch.equal(tensor, expected[tensor_name]) for tensor_name, tensor in loaded.items())
    assert len(model.get_submodule(NETWORKS[name]).weight) == 7
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_a_file_without_a_head_sets_all_weights_below_it(weights, tmp_path):
    tensors = safetensors.torch.load_file(weights)
    headless = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}
    safetensors.torch.save_file(headless, tmp_path / "headless.safetensors")
    loaded = body(build("test_efficientnet", 3, 32, tmp_path / "headless.safetensors"), "classifier")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in loaded.items())


def test_the_new_head_is_random_even_if_the_file_has_one_of_its_width(weights):
    model = build("test_efficientnet", 5, 32, weights)
    assert not torch.equal(model.classifier.weight, safetensors.torch.load_file(weights)["classifier.weight"])


def test_without_a_file_the_weights_are_random_and_depend_on_torchs_seed():
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(build("test_efficientnet", 3, 32).conv_stem.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_networks_with_a_fixed_input_size_are_built_for_the_image_size():
    assert build("test_vit", 3, 64)(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    assert build("test_vit", 3, 48, args={"img_size": 32})(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_arguments_reach_the_network(weights):
    same = build("test_efficientnet", 3, 32, weights, {"pad_type": "same"})
    plain = build("test_efficientnet", 3, 32, weights)
    assert type(same.conv_stem) is not type(plain.conv_stem)


def test_real_weights_are_loaded(shared_data):
    path = shared_data / "weights" / "mobilenetv2_100.safetensors"
    model = build("mobilenetv2_100", 2, 128, path)
    expected = safetensors.torch.load_file(path)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in body(model, "classifier").items())
    same = shared_data / "weights" / "mobilenetv1_100.pad_same.safetensors"
    assert build("mobilenetv1_100", 2, 128, same, {"pad_type": "same"})


def save(tensors, path):
    torch.save(tensors, path)
    return path


WRAPPED = {
    "model_state_dict": lambda state: {"model_state_dict": state, "epoch": 3, "optimizer": {"state": {0: state}}},
    "model": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)},
    "averaged weights": lambda state: {"state_dict": prefixed("wrong.", state), "state_dict_ema": state},
    "a key of its own": lambda state: {"net_g": state, "epoch": 3, "loss": 0.4},
    "two levels": lambda state: {"checkpoint": {"model": state}, "best": torch.tensor(0.9)},
    "Lightning": lambda state: {
        "state_dict": {**prefixed("model.", state), "criterion.weight": torch.ones(5)},
        "hyper_parameters": {"lr": 0.1},
    },
    "data parallel": lambda state: prefixed("module.", state),
    "compiled": lambda state: {"model": prefixed("module._orig_mod.", state)},
    "backbone": lambda state: prefixed("backbone.", state),
    "backbone with a new head": lambda state: {**prefixed("backbone.", headless(state)), "fc.weight": torch.ones(2, 9)},
    "a prefix of its own": lambda state: {**prefixed("features.cnn.", state), "decoder.weight": torch.ones(2, 9)},
    "a head of several layers": lambda state: {**headless(state), "classifier.1.weight": torch.ones(2, 9)},
    "half precision": lambda state: {name: half(tensor) for name, tensor in state.items()},
}


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def headless(state):
    return {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}


def half(tensor):
    return tensor.bfloat16() if tensor.is_floating_point() else tensor


@pytest.mark.parametrize("kind", WRAPPED)
def test_the_weights_in_a_training_scripts_checkpoint_are_found(weights, tmp_path, kind):
    tensors = safetensors.torch.load_file(weights)
    model = build("test_efficientnet", 7, 32, save(WRAPPED[kind](tensors), tmp_path / "checkpoint.pth"))
    tolerance = {"rtol": 0.01, "atol": 0.01} if kind == "half precision" else {"rtol": 0, "atol": 0}
    for name, tensor in body(model, "classifier").items():
        torch.testing.assert_close(tensor, tensors[name], **tolerance)
    assert "state_dict" not in model.pretrained_cfg


@pytest.mark.parametrize("name", ["weights.bin", "weights.pth", "weights", "weights.safetensors.download", "w.pt"])
def test_a_file_is_recognised_by_its_content(weights, tmp_path, name):
    tensors = safetensors.torch.load_file(weights)
    (tmp_path / name).write_bytes(weights.read_bytes())
    loaded = body(build("test_efficientnet", 3, 32, tmp_path / name), "classifier")
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in loaded.items())
    other = build("test_efficientnet", 3, 32, save(tensors, tmp_path / "torch.safetensors"))
    assert torch.equal(other.conv_stem.weight, tensors["conv_stem.weight"])


# Errors


def changed(change):
    """Return an edit that changes all tensors but counters."""

    def edit(tensors):
        tensors.update({name: change(tensor) for name, tensor in tensors.items() if tensor.ndim})

    return edit


UNTRAINED = {
    "int8": (changed(lambda tensor: tensor.to(torch.int8)), "holds int8 values in .* Quantized weights cannot be fine"),
    "float8": (changed(lambda tensor: tensor.to(torch.float8_e4m3fn)), "holds float8_e4m3fn values"),
    "uint8": (changed(lambda tensor: tensor.abs().to(torch.uint8)), "holds uint8 values"),
    "int64": (changed(lambda tensor: tensor.to(torch.int64)), "holds int64 values"),
    "one integer": (lambda tensors: tensors.update({"conv_stem.weight": tensors["conv_stem.weight"].int()}), "int32"),
    "zeros": (changed(torch.zeros_like), "holds no trained weights: .* constant .*the first is 0 throughout"),
    "ones": (changed(torch.ones_like), "holds no trained weights: .* constant .*the first is 1 throughout"),
    "NaN": (
        lambda tensors: tensors["conv_head.weight"].view(-1)[3:4].fill_(torch.nan),
        "not finite .*conv_head.weight",
    ),
    "infinity": (changed(lambda tensor: tensor + torch.inf), "not finite .* has diverged"),
}


@pytest.mark.parametrize("kind", UNTRAINED)
def test_weights_that_no_training_has_produced_are_refused(weights, tmp_path, kind):
    edit, message = UNTRAINED[kind]
    with pytest.raises(ValueError, match=message):
        build("test_efficientnet", 3, 32, edited(weights, tmp_path, edit))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "accuracy": 0.4}, "holds no state dict, but a dictionary of epoch, accuracy"),
        ([1, 2], "holds no state dict, but <class 'list'>"),
        ({"gan_a": {"w": torch.ones(2)}, "gan_b": {"w": torch.ones(2)}}, r"several state dicts \(gan_a, gan_b\)"),
    ],
)
def test_a_checkpoint_without_a_single_state_dict_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        build("test_efficientnet", 3, 32, save(content, tmp_path / "checkpoint.pth"))


def edited(weights, tmp_path, edit):
    tensors = safetensors.torch.load_file(weights)
    edit(tensors)
    safetensors.torch.save_file(tensors, tmp_path / "edited.safetensors")
    return tmp_path / "edited.safetensors"


EDITS = {
    "missing tensor": lambda tensors: tensors.pop("conv_stem.weight"),
    "additional tensor": lambda tensors: tensors.update(another=torch.zeros(2)),
    "another shape": lambda tensors: tensors.update({"conv_stem.weight": torch.zeros(3, 3)}),
    "no tensors": lambda tensors: tensors.clear(),
    "folded batch norm": lambda tensors: [tensors.pop(name) for name in list(tensors) if "running" in name],
}


@pytest.mark.parametrize("edit", EDITS)
def test_weights_that_do_not_fit_are_refused(weights, tmp_path, edit):
    path = edited(weights, tmp_path, EDITS[edit])
    with pytest.raises(
        ValueError, match=r"edited\.safetensors does not fit test_efficientnet: .*Does it belong to another"
    ):
        build("test_efficientnet", 3, 32, path)


def test_weights_of_another_network_are_refused(weights_of):
    with pytest.raises(ValueError, match=r"test_vit\.safetensors does not fit test_efficientnet: .*--backbone-args"):
        build("test_efficientnet", 3, 32, weights_of("test_vit"))


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match=f"there are no weights at {re.escape(str(tmp_path / 'none.safetensors'))}"):
        build("test_efficientnet", 3, 32, tmp_path / "none.safetensors")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.bin", "a"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", bytes(100)])
def test_a_file_without_weights_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is neither a safetensors file nor a plain state dict"):
        build("test_efficientnet", 3, 32, tmp_path / name)


def test_truncated_weights_are_refused(weights, tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"cut\.safetensors is neither a safetensors file"):
        build("test_efficientnet", 3, 32, path)


def zip_bytes(name):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, "x")
    return stream.getvalue()


NO_WEIGHTS = {  # what the message says of a file: its content
    "it is empty": b"",
    "it is a pointer of Git LFS; fetch the file": b"version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 3\n",
    "it is a web page": b"\n<!DOCTYPE html><html>404</html>",
    "it is an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(99),
    "it is a safetensors file that is cut off": (999).to_bytes(8, "little") + b'{"a":',
    "it is a TorchScript archive": zip_bytes("model/constants.pkl"),
    "it is a zip archive of something else": zip_bytes("model.safetensors"),
    "it is cut off": zip_bytes("archive/data.pkl")[:40],
}


@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_the_message_says_what_a_file_without_weights_is(tmp_path, kind):
    (tmp_path / "a.pth").write_bytes(NO_WEIGHTS[kind])
    with pytest.raises(ValueError, match=rf"a\.pth is neither .* code from it: {kind}"):
        build("test_efficientnet", 3, 32, tmp_path / "a.pth")


BY_THE_WAY = {  # values that training scripts save next to the weights
    "numpy number": np.float64(0.9),
    "numpy integer": np.int64(3),
    "array": np.arange(3.0),
    "command line": argparse.Namespace(lr=0.1, output=Path("runs")),
    "set": {1, 2},
    "tensors": [torch.tensor(0.5), {"loss": torch.ones(3)}],
}


@pytest.mark.parametrize("kind", BY_THE_WAY)
def test_harmless_values_next_to_the_weights_are_accepted(weights, tmp_path, kind):
    expected = safetensors.torch.load_file(weights)
    torch.save({"state_dict": expected, "value": BY_THE_WAY[kind]}, tmp_path / "a.pth")
    loaded = body(build("test_efficientnet", 3, 32, tmp_path / "a.pth"), "classifier")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())


@pytest.mark.parametrize("value", [torch.ones(3), [torch.ones(3)], 3, "text"])
def test_a_file_that_holds_something_else_than_a_dictionary_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth holds no state dict, but <class"):
        build("test_efficientnet", 3, 32, tmp_path / "a.pth")


class Exploit:
    """Creates a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["model.pth", "model.bin", "model.safetensors", "model"])
@pytest.mark.parametrize("form", ["pickle", "torch", "torch, old format", "a whole model"])
def test_a_pickled_file_that_would_run_code_is_refused_and_does_not_run(weights, tmp_path, name, form):
    created, path = tmp_path / "created", tmp_path / name
    state = {**safetensors.torch.load_file(weights), "extra": Exploit(created)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(Exploit(created), protocol=2))
    elif form == "a whole model":
        torch.save(build("test_efficientnet", 3, 32), path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(ValueError, match=r"plain state dict that can be loaded without running code from it"):
        build("test_efficientnet", 3, 32, path)
    assert not created.exists()


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("test_efficientnet", {"no_such_argument": 3}),
        ("test_vit", {"patch_size": "wide"}),
        ("test_vit", {"depth": "x"}),
    ],
)
@pytest.mark.parametrize("pretrained", [False, True])
def test_unsupported_arguments_are_refused(weights_of, name, args, pretrained):
    with pytest.raises(ValueError, match=f"{name} cannot be built with these arguments: "):
        build(name, 3, 32, weights_of(name) if pretrained else None, args)


# Names


@pytest.mark.parametrize("name", ["resnet50", "mobilenetv2_100", "test_resnet.r160_in1k", "test_resnet"])
def test_a_name_of_timm_is_accepted_with_and_without_a_tag(name):
    check_name(name)


@pytest.mark.parametrize(
    ("typo", "suggestion"),
    [
        ("resnet5O", "resnet50"),
        ("RESNET5O", "resnet50"),
        ("mobilnetv2_100", "mobilenetv2_100"),
        ("convnext_ato", "convnext_atto"),
    ],
)
def test_a_typo_is_refused_with_the_closest_name(typo, suggestion):
    with pytest.raises(ValueError, match=rf"unknown backbone '{typo}': did you mean .*{suggestion}.*timm\.list_models"):
        check_name(typo)


def test_an_unknown_tag_is_refused_with_the_known_tags():
    with pytest.raises(ValueError, match=r"unknown backbone 'test_resnet\.r16': did you mean test_resnet\.r160_in1k\?"):
        check_name("test_resnet.r16")


@pytest.mark.parametrize("name", ["", "...", "../../etc/passwd", "hf-hub:", "hf-hub:../x", "timm/zzz", "zzzzzz"])
def test_a_string_that_is_not_a_name_is_refused(name):
    with pytest.raises(ValueError, match="unknown backbone"):
        check_name(name)


@pytest.mark.parametrize(
    ("name", "current"),
    [
        ("xception", "legacy_xception"),
        ("tf_efficientnet_b0_ns", "tf_efficientnet_b0.ns_jft_in1k"),
        ("convnext_tiny_in22k", "convnext_tiny.fb_in22k"),
        ("vit_base_patch16_224_in21k", "vit_base_patch16_224.augreg_in21k"),
        ("vit_base_patch16_224_sam", "vit_base_patch16_224.sam_in1k"),
        ("xception.tf_in1k", "legacy_xception.tf_in1k"),
        ("timm/resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("hf_hub:timm/resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("HF-hub:timm/xception", "legacy_xception"),
        ("hf-hub:resnet50", "resnet50"),
        ("ResNet50", "resnet50"),
        ("TIMM/RESNET50.A1_IN1K", "resnet50.a1_in1k"),
        ("https://huggingface.co/timm/resnet50.a1_in1k", "resnet50.a1_in1k"),
        (" resnet50 ", "resnet50"),
    ],
)
def test_deprecated_names_and_prefixes_are_resolved(name, current):
    assert resolve_name(name) == current
    assert alias_note(name) == (
        "" if name.strip() == current else f"backbone {name} is timm's {current}; that name is used."
    )
    check_name(name)
    assert default_image_size(name) == default_image_size(current)


def test_every_deprecated_name_of_timm_is_resolved_to_a_known_network():
    for name in timm.models.get_deprecated_models():
        check_name(name)


def test_a_deprecated_name_of_a_network_with_a_fixed_input_size_is_built_for_the_image_size():
    with torch.device("meta"):
        assert build("vit_tiny_patch16_224_in21k", 3, 64)(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize(
    "name", ["hf_hub:someone/birds", "hf-hub:someone/birds@v2", "hf-hub:timm/resnet50.newer", "hf-hub:timm/resnet50@v2"]
)
def test_a_repository_of_the_hub_keeps_its_prefix(name):
    assert resolve_name(name) == name.replace("hf_hub", "hf-hub")


def test_a_repository_of_the_hub_is_built_from_its_configuration(monkeypatch, weights):
    config = dataclasses.asdict(timm.get_pretrained_cfg("test_efficientnet"))
    config.update(source="hf-hub", hf_hub_id="someone/birds", mean=(0.1, 0.2, 0.3), input_size=(3, 48, 48))

    def load(repository):
        assert repository == "someone/birds@v2"
        return config, "test_efficientnet", {"pad_type": "same"}

    monkeypatch.setattr("xfer.models.timm_names.load_model_config_from_hf", load)
    name = "hf_hub:someone/birds@v2"
    check_name(name)
    assert default_image_size(name) == 48
    model = build(name, 3, 32, weights)
    assert type(model.conv_stem) is not type(build("test_efficientnet", 3, 32).conv_stem)
    assert torch.equal(model.conv_head.weight, safetensors.torch.load_file(weights)["conv_head.weight"])
    assert input_statistics(model).mean == (0.1, 0.2, 0.3)


def test_the_weights_of_a_repository_of_the_hub_are_those_of_its_revision(monkeypatch, weights):
    requests = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args, **kw: requests.append((args, kw)) or weights)
    assert fetch_weights("hf_hub:someone/birds@v2") == weights
    assert requests == [(("someone/birds", "model.safetensors"), {"revision": "v2"})]


@pytest.mark.parametrize("error", [OSError, RuntimeError])
def test_a_repository_of_the_hub_that_cannot_be_read_is_refused(monkeypatch, error):
    def load(repository):
        raise error

    monkeypatch.setattr("xfer.models.timm_names.load_model_config_from_hf", load)
    with pytest.raises(ValueError, match=f"hf-hub:someone/{error.__name__}: config.json of this repository could not"):
        check_name(f"hf-hub:someone/{error.__name__}")


# Custom networks


@pytest.mark.parametrize("name", CUSTOM_BACKBONES)
def test_a_custom_network_is_built_by_name_and_is_not_pretrained(weights, name):
    check_name(name)
    assert build(name, 3, 32)(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert build(name, 3, 32, channels=1)(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    with pytest.raises(ValueError, match=f"{name} is not a pretrained network: it takes no weights"):
        build(name, 3, 32, weights)
    with pytest.raises(ValueError, match=f"{name} is not a pretrained network: use strategy scratch"):
        fetch_weights(name)
    with pytest.raises(ValueError, match=f"{name} cannot be built with these arguments: .*pad_type"):
        build(name, 3, 32, args={"pad_type": "same"})


def test_a_typo_in_the_name_of_a_custom_network_is_refused_with_that_name():
    count = len(timm.list_models())
    with pytest.raises(
        ValueError, match=f"unknown backbone 'basic_cn': did you mean basic_cnn.* timm knows {count} net"
    ):
        check_name("basic_cn")


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_built_for_any_number_of_channels(weights_of, name, channels):
    model = build(name, 3, 32, weights_of(name), channels=channels)
    assert model(torch.zeros(2, channels, 32, 32)).shape == (2, 3)
    first = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d)).weight
    pretrained = next(
        tensor for tensor in safetensors.torch.load_file(weights_of(name)).values() if tensor.shape[1:2] == (3,)
    )
    # The weights are repeated over the channels, and scaled so that their sum stays the same.
    expected = pretrained.repeat(1, 2, 1, 1)[:, :channels] * 3 / channels
    torch.testing.assert_close(first, pretrained.sum(dim=1, keepdim=True) if channels == 1 else expected)


# Pixels


def test_the_default_image_size_is_that_of_pretraining():
    assert default_image_size("mobilenetv2_100") == 224
    assert default_image_size("test_resnet") == 160
    assert default_image_size("basic_cnn") == 64


def test_pixels_are_normalized_as_in_pretraining():
    model = timm.create_model("mobilenetv2_100")
    statistics = input_statistics(model)
    assert statistics.mean == pytest.approx((0.485, 0.456, 0.406))
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    before = images.clone()
    inputs = Preprocessor(statistics, torch.device("cpu"))(images)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (statistics.mean, statistics.std))
    torch.testing.assert_close(inputs, (images / 255 - mean) / std)
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)
    assert input_statistics(timm.create_model("test_resnet")).mean == (0.5, 0.5, 0.5)
