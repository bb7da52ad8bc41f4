"""Data for networks too small for photos: scikit-learn's handwritten digits, 0 to 4 as source, 5 to 9 as target.

The digits are centred scans of 8 x 8 pixels (Alpaydin & Kaynak 1998).
"""

from __future__ import annotations

from pathlib import Path

from sweeps.engine.quickstart_data import pretrain

SOURCE_CLASSES = range(5)
"""Digits of the pretraining data."""
TARGET_CLASSES = range(5, 10)
"""Digits of the transfer data."""
TRAINING_IMAGES = 30
"""Number of training images per target class; the others are test images."""
PRETRAINING_EPOCHS = 12
"""Number of epochs of pretraining."""


def write_target(folder: Path) -> Path:
    """Write the digits 5 to 9 to `folder`/<part>/<digit>, and return `folder`."""
    return _write_digits(folder, TARGET_CLASSES, TRAINING_IMAGES)


def source_weights(folder: Path, backbone: str, image_size: int) -> Path:
    """Return the weights of a backbone that was trained on the digits 0 to 4; trains it unless the file exists.

    Args:
        folder: folder for the weights and the images.
        backbone: name of a timm network.
        image_size: side of the images in pixels.

    Returns:
        The path of a safetensors file.
    """
    file = folder / f"{backbone}-digits-0-4-{image_size}px.safetensors"
    if not file.exists():
        images = _write_digits(folder / "digits-0-4", SOURCE_CLASSES)
        pretrain(backbone, image_size, images, PRETRAINING_EPOCHS, file)
    return file


def _write_digits(folder: Path, classes: range, training_images: int | None = None) -> Path:
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
    return folder
