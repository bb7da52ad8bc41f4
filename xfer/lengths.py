"""Lengths: how long a run is, in epochs or in steps, from the number of its training images.

A recipe counts epochs. On a few hundred photos an epoch is a handful of steps, so a fixed number of epochs compares
recipes before they are trained; the default is therefore never less than a number of steps. Imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from xfer.hyperparameters import DEFAULT_EPOCHS

MIN_STEPS = 300
"""Number of steps that the default length does not go below.

Measured in benchmarks/STEPS.md. BiT-HyperRule (Kolesnikov et al. 2020, arXiv 1912.11370) takes 500 steps of 512 images
below 20,000 images. More images need no other number here, because `DEFAULT_EPOCHS` of them are longer: 600 images in
batches of 16 already are.
"""

MIN_STEPS_PER_EPOCH = 10
"""Number of steps that an epoch has with each batch size that competes by default. With fewer, a run of `MIN_STEPS`
would see every image so often that it costs several times as much as one with small batches."""


@dataclass(frozen=True)
class RunLength:
    """How long runs on some images are: a number of epochs, a number of steps, or the default.

    Raises:
        ValueError: both are given.
    """

    epochs: int | None = None
    """Number of epochs; None if not given."""
    steps: int | None = None
    """Number of steps, rounded up to whole epochs; None if not given."""
    class_sizes: tuple[int, ...] = ()
    """Number of training images of each class; empty if the data have not been read yet."""

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"--epochs {self.epochs} and --steps {self.steps} both set the length of a run: leave out one of them"
            )

    def images(self, images_per_class: int | None = None) -> int:
        """Return the number of training images, at most `images_per_class` of each class."""
        return sum(size if images_per_class is None else min(size, images_per_class) for size in self.class_sizes)

    def epochs_for(self, batch_size: int, images_per_class: int | None = None) -> int:
        """Return the number of epochs of a run; `DEFAULT_EPOCHS` for steps on images that have not been read yet.

        >>> photos = RunLength(class_sizes=(100, 95))
        >>> photos.epochs_for(batch_size=16), photos.epochs_for(batch_size=64)
        (24, 75)
        >>> RunLength(class_sizes=(5000, 5000)).epochs_for(batch_size=32)
        8
        """
        if self.epochs is not None:
            return self.epochs
        images = self.images(images_per_class)
        if not images:
            return DEFAULT_EPOCHS
        epochs = math.ceil((self.steps or MIN_STEPS) / steps_per_epoch(images, batch_size))
        return max(1, epochs) if self.steps else max(DEFAULT_EPOCHS, epochs)

    def allows_batch_size(self, batch_size: int) -> bool:
        """Return whether a batch size competes by default: `MIN_STEPS_PER_EPOCH`, unless epochs are given."""
        images = self.images()
        return self.epochs is not None or not images or steps_per_epoch(images, batch_size) >= MIN_STEPS_PER_EPOCH


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return the number of steps in which a run sees every image once.

    >>> steps_per_epoch(195, 16)
    13
    """
    return math.ceil(images / batch_size)
