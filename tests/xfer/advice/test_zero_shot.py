"""Zero-shot rows of an image-text network with random weights: open_clip's own code, tokenizer and file formats."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xfer.advice.prompts import PROMPTS
from xfer.advice.zero_shot import check_network, zero_shot_rows

CPU = torch.device("cpu")
PREPROCESSING = {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.1], "interpolation": "bicubic", "resize_mode": "shortest"}


@pytest.fixture(scope="module")
def network(image_text_network: Path) -> str:
    """The tiny network, with a normalization of its own."""
    settings = json.loads((image_text_network / "open_clip_config.json").read_text(encoding="utf-8"))
    assert settings["preprocess_cfg"] == PREPROCESSING
    return f"local-dir:{image_text_network}"


@pytest.fixture(scope="module")
def named_pack(pack):
    """The pack with classes of real words."""
    return replace(pack, classes=("red_square", "green triangle", "blue circle")[: len(pack.classes)])


def test_the_rows_equal_a_direct_computation_with_open_clip(network, named_pack):
    import open_clip

    indices = np.arange(12)
    rows = list(zero_shot_rows(network, named_pack, indices, CPU))
    assert [(row["method"], row["prompts"], row["images"], row["train_images"]) for row in rows] == [
        ("zero_shot", 1, 12, 0),
        ("zero_shot", 7, 12, 0),
    ]
    model, _, preprocess = open_clip.create_model_and_transforms(network)
    tokenizer = open_clip.get_tokenizer(network)
    pictures = [Image.fromarray(named_pack.images[index]) for index in indices]
    with torch.no_grad():
        images = model.eval().encode_image(torch.stack([preprocess(picture) for picture in pictures]), normalize=True)
        for row, prompts in zip(rows, PROMPTS, strict=True):
            words = [name.replace("_", " ") for name in named_pack.classes]
            texts = [
                model.encode_text(tokenizer([prompt.format(text) for prompt in prompts]), normalize=True).mean(dim=0)
                for text in words
            ]
            scores = images @ torch.nn.functional.normalize(torch.stack(texts)).T
            predicted = scores.argmax(dim=1).numpy()
            assert row["correct"] == int((predicted == named_pack.labels[indices]).sum())


def test_the_inputs_are_those_of_open_clip(network, named_pack):
    import open_clip

    from xfer.advice.zero_shot import _prepare

    model, _, preprocess = open_clip.create_model_and_transforms(network)
    picture = named_pack.images[3]
    ours = _prepare(open_clip, model, torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None])
    # Pillow rounds resized pixels to integers.
    torch.testing.assert_close(ours[0], preprocess(Image.fromarray(picture)), rtol=0, atol=1.01 / 255 / 0.1)


def test_class_names_that_are_no_words_are_refused_before_the_network_is_loaded(pack):
    with pytest.raises(ValueError, match="class names that are words, got '0'"):
        next(zero_shot_rows("hf-hub:never/asked", replace(pack, classes=("0", "1", "2")), np.arange(2), CPU))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ViT-B-32", "give NAME=FILE or NAME=TAG"),
        ("ViT-B-32=nothing", "nothing is neither a file nor one of the tags of ViT-B-32: openai, "),
        ("vit-b-32=openai", "open_clip has no network vit-b-32; similar ones: .*ViT-B-32"),
        ("local-dir:nowhere", "nowhere has no open_clip_config.json"),
    ],
)
def test_a_network_that_does_not_exist_is_refused_with_what_exists(text, message):
    with pytest.raises(ValueError, match=message):
        check_network(text)


def test_known_tags_and_the_hub_are_accepted_without_a_download(network):
    for text in ("ViT-B-32=openai", "hf-hub:owner/name", network):
        check_network(text)


def test_a_name_of_open_clip_takes_a_file_of_weights(image_text_network, named_pack, tmp_path):
    """A network of the registry is read with CLIP's own normalization."""
    import open_clip

    settings = json.loads((image_text_network / "open_clip_config.json").read_text(encoding="utf-8"))
    (tmp_path / "tiny-of-a-test.json").write_text(json.dumps(settings["model_cfg"]), encoding="utf-8")
    open_clip.add_model_config(tmp_path / "tiny-of-a-test.json")
    text = f"tiny-of-a-test={image_text_network / 'open_clip_model.safetensors'}"
    check_network(text)
    assert [row["images"] for row in zero_shot_rows(text, named_pack, np.arange(4), CPU)] == [4, 4]
    file = tmp_path / "other.pt"
    torch.save({"other": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match=r"other.pt: the network cannot be loaded: .*Missing key"):
        next(zero_shot_rows(f"tiny-of-a-test={file}", named_pack, np.arange(2), CPU))


def test_without_open_clip_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match=r"which is not installed: pip install 'xfer\[zero-shot\]'"):
        check_network("ViT-B-32=openai")
