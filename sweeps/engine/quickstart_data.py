"""Images and pretrained weights for the quickstart, without a download.

scikit-learn ships 1,797 handwritten digits (Alpaydin & Kaynak 1998: scans of 43 people's handwriting, 8 x 8 pixels). A
small network is pretrained on the digits 0 to 4 and then transferred to the digits 5 to 9.
"""

from __future__ import annotations

from pathlib import Path

SOURCE_CLASSES = range(5)
"""Digits of the pretraining data."""
TARGET_CLASSES = range(5, 10)
"""Digits of the transfer data."""
TRAINING_IMAGES = 30
"""Number of training images per target class; the others are test images."""
PRETRAINING_EPOCHS = 12
"""Number of epochs of pretraining."""


def write_digits(folder: Path, classes: range, training_images: int | None = None) -> Path:
    """Write digits as PNG files, unless they exist.

    Args:
        folder: the target folder; the files go to `folder`/<digit>/, or to `folder`/<split>/<digit>/ with a split.
        classes: the digits to write.
        training_images: number of images per digit in `folder`/train, while the others go to `folder`/test; None for
            no split.

    Returns:
        `folder`.
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
        # The scans are sorted by writer: without shuffling, training and test set would have different writers.
        for index, pixels in enumerate(np.random.default_rng(digit).permutation(images)):
            split = "" if training_images is None else "train" if index < training_images else "test"
            path = folder / split / str(digit) / f"{index:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * (255 / 16)).astype("uint8")).save(path)
    done.touch()
    return folder


def pretrained_weights(folder: Path, backbone: str, image_size: int) -> Path:
    """Pretrain a backbone on `SOURCE_CLASSES`, unless its weights exist.

    Args:
        folder: folder for the weights and the pretraining images.
        backbone: name of a timm network.
        image_size: side of the images in pixels.

    Returns:
        The path of a safetensors file.

    Raises:
        ValueError: timm has no such network, or the network does not accept this image size.
    """
    file = folder / f"{backbone.replace('/', '-')}-digits-0-4-{image_size}px.safetensors"
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
    print(f"pretraining {backbone} on the digits 0 to 4 (only once)", flush=True)
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
            "augmentation": {"name": "none"},  # a mirrored digit is not a digit
            "mixing": {"name": "none"},
            "loss": {"name": "cross_entropy"},
            "learning_rate": 3e-3,
            "weight_decay": 1e-4,
            "batch_size": 32,
            "epochs": PRETRAINING_EPOCHS,
        }
    )
    torch.set_num_threads(1)  # more threads slow down such a small network
    run = Run(recipe, pack, device=torch.device("cpu"))
    for _ in run:
        pass
    state = {name: tensor.contiguous() for name, tensor in run.model.state_dict().items()}
    atomic_write(file, lambda temporary: safetensors.torch.save_file(state, temporary))
    return file
