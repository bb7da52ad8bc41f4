"""The embedded default: real images and a pretrained network that need no download.

scikit-learn ships 1,797 handwritten digits (Alpaydin & Kaynak 1998: scans of 43 people's writing, 8 x 8 pixels). A
small network is pretrained on the digits 0 to 4, and the digits 5 to 9 are what it is transferred to.
"""

from __future__ import annotations

from pathlib import Path

SOURCE_CLASSES = range(5)
TARGET_CLASSES = range(5, 10)
TRAINING_IMAGES = 30
"""Of each class; the others are the test part."""
PRETRAINING_EPOCHS = 12
"""How long the network is pretrained."""


def write_digits(folder: Path, classes: range, training_images: int | None = None) -> Path:
    """Write digits as PNG files, unless they are there: `folder`/<digit>/, or divided into train and test.

    Args:
        folder: where to.
        classes: which digits.
        training_images: how many of each go into `folder`/train, the others into `folder`/test; None for no division.
    """
    done = folder / ".done"
    if done.exists():
        return folder
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    scans = load_digits()
    for digit in classes:
        images = scans.images[scans.target == digit]
        # They come writer by writer: in that order, training and test part would be by different hands.
        for number, pixels in enumerate(np.random.default_rng(digit).permutation(images)):
            part = "" if training_images is None else "train" if number < training_images else "test"
            path = folder / part / str(digit) / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * (255 / 16)).astype("uint8")).save(path)
    done.touch()
    return folder


def pretrained_weights(folder: Path, backbone: str, image_size: int) -> Path:
    """A file with weights of `backbone`, trained on `SOURCE_CLASSES` unless it is there.

    Raises:
        ValueError: timm knows no such network, or it cannot take images of this size.
    """
    file = folder / f"{backbone}-digits-0-4-{image_size}px.safetensors"
    if file.exists():
        return file
    import safetensors.torch
    import torch

    from xfer.data.image_folder import folder as source
    from xfer.data.pack import build_pack
    from xfer.models import backbones
    from xfer.recipe import recipe_from_dict
    from xfer.run import Run
    from xfer.storage.atomic import atomic_write

    backbones.check_name(backbone)
    print(f"pretraining {backbone} on the digits 0 to 4, once", flush=True)
    pack = build_pack(source(write_digits(folder / "digits-0-4", SOURCE_CLASSES)), image_size, folder / "packs")
    recipe = recipe_from_dict(
        {
            "data": pack.hash,
            "classes": len(pack.classes),
            "image_size": image_size,
            "backbone": backbone,
            "weights": "",
            "strategy": {"name": "scratch"},
            "optimizer": {"name": "adam"},
            "schedule": {"name": "onecycle"},
            "augmentation": {"name": "none"},  # a mirrored digit is none
            "mixing": {"name": "none"},
            "loss": {"name": "cross_entropy"},
            "learning_rate": 3e-3,
            "weight_decay": 1e-4,
            "batch_size": 32,
            "epochs": PRETRAINING_EPOCHS,
        }
    )
    torch.set_num_threads(1)  # so small a network only loses by more
    run = Run(recipe, pack, device=torch.device("cpu"))
    for _ in run:
        pass
    state = {name: tensor.contiguous() for name, tensor in run.model.state_dict().items()}
    atomic_write(file, lambda temporary: safetensors.torch.save_file(state, temporary))
    return file
