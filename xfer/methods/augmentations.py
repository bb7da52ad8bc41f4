"""Augmentations: what happens to an image. uint8 [N, 3, H, W] in, the same out, drawn anew for every image.

Whatever is not `none` also mirrors each image with probability 1/2, first of all. The batch that comes in stays as it
is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from xfer.methods.boxes import crop_box, draw_boxes, draw_squares
from xfer.seeding import use_generator

Augmentation = Callable[[Tensor, Generator], Tensor]

CROP_ASPECT_RATIOS = (3 / 4, 4 / 3)  # Szegedy et al. 2015
ERASING_AREA_RANGE = (0.02, 0.4)  # Zhong et al. 2020
ERASING_ASPECT_RATIOS = (0.3, 1 / 0.3)  # Zhong et al. 2020
NUM_MAGNITUDE_BINS = 31  # RandAugment's scale goes from 0 to 30


def none() -> Augmentation:
    """Images as they are.

    The measure for all others, and right where every training image is seen only a few times, or where even a mirror
    makes another class of it.

    Measured: 81.6% ± 8.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return lambda images, generator: images


def flip() -> Augmentation:
    """Each image mirrored left to right with probability 1/2.

    Costs next to nothing and is safe wherever a mirrored picture could have been taken just as well. Wrong for digits,
    letters and whatever else has a left and a right. Krizhevsky et al. 2012.

    Measured: 78.1% ± 3.6% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """

    def augment(images: Tensor, generator: Generator) -> Tensor:
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        return torch.where(mirrored.to(images.device, non_blocking=True)[:, None, None, None], images.flip(-1), images)

    return augment


def randaugment(num_ops: int = 2, magnitude: int = 9) -> Augmentation:
    """`flip`, then `num_ops` random operations of strength `magnitude` of 30 on each image.

    For long trainings that would otherwise learn their images by heart. The operations bend shapes and colours alike:
    too much where training is short, images are small or a colour tells the classes apart. Cubuk et al. 2020.

    Measured: 75.7% ± 7.1% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    if not isinstance(num_ops, int) or num_ops < 1:
        raise ValueError(f"num_ops is how many operations an image goes through, 1 or more, not {num_ops}; 0 is flip")
    if not isinstance(magnitude, int) or not 0 <= magnitude < NUM_MAGNITUDE_BINS:
        raise ValueError(
            f"magnitude is a whole strength from 0 to {NUM_MAGNITUDE_BINS - 1}, not {magnitude}; 9 is what its authors used for "
            "a ResNet-50 on ImageNet"
        )
    return _one_by_one(v2.RandAugment(num_ops=num_ops, magnitude=magnitude, num_magnitude_bins=NUM_MAGNITUDE_BINS))


def autoaugment() -> Augmentation:
    """`flip`, then one of the 25 pairs of operations that a search found best for ImageNet.

    Nothing to tune, and its authors saw it carry over to other photos. It is mostly about colours, posterised,
    solarised and equalised: not for classes that differ in colour. Cubuk et al. 2019.

    Measured: 74.0% ± 3.6% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return _one_by_one(v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET))


def trivialaugment() -> Augmentation:
    """`flip`, then one random operation of random strength on each image.

    Nothing to tune; its authors found it on a par with the searched policies. Strengths are drawn from a wide range
    ("TrivialAugment Wide"): shifts go up to 32 pixels and turns up to 135 degrees whatever the image, so that little
    may be left of a small one. Müller & Hutter 2021.

    Measured: 79.5% ± 4.8% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return _one_by_one(v2.TrivialAugmentWide())


def random_resized_crop(min_area: float = 0.5) -> Augmentation:
    """`flip`, then a random part of each image, at least `min_area` of it, enlarged to the full size.

    Teaches that objects come in any size and place: the mainstay of training on photos. A small part may miss the
    object or the detail that counts, so fine-tuning starts at half the area rather than at the 0.08 that is usual for
    training from scratch. Of no use where every image is framed alike. Szegedy et al. 2015.

    The share of the area is uniform up to 1; the aspect ratio is changed by 3/4 to 4/3, as far as the part fits.

    Measured: 74.3% ± 4.9% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    if not 0 < min_area <= 1:
        raise ValueError(
            f"min_area is the smallest share of the image that a crop may keep, above 0 and at most 1, not {min_area}; "
            "0.5 is a mild crop, 0.08 a strong one"
        )
    mirror = flip()

    def augment(images: Tensor, generator: Generator) -> Tensor:
        images = mirror(images, generator)
        count, _, height, width = images.shape
        boxes = draw_boxes(count, height, width, (min_area, 1.0), CROP_ASPECT_RATIOS, generator)
        # One by one, because at 224 pixels one grid_sample for the batch took seven times as long. What only enlarges
        # cannot alias.
        return torch.stack(
            [
                functional.resized_crop(image, *box, size=[height, width], antialias=False)
                for image, box in zip(images, boxes, strict=True)
            ]
        )

    return augment


def cutout(cutout_size: float = 0.5) -> Augmentation:
    """`flip`, then a square of each image filled with its mean colour; the side is `cutout_size` of the shorter side.

    Makes the network look at more than the most telling part. Not for small objects, which vanish as a whole, nor for
    classes that a single detail tells apart. The square is centred anywhere and may reach over the border.
    DeVries & Taylor 2017.

    Measured: 74.3% ± 6.1% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    if not 0 < cutout_size <= 1:
        raise ValueError(
            f"cutout_size is the side of the hole as a share of the image's, above 0 and at most 1, not {cutout_size}; "
            "0.5 hides up to a quarter, and for no hole there is flip"
        )
    mirror = flip()

    def augment(images: Tensor, generator: Generator) -> Tensor:
        images = mirror(images, generator)  # a copy, to be changed in place
        count, _, height, width = images.shape
        side = max(1, round(cutout_size * min(height, width)))
        means = images.mean(dim=(2, 3), keepdim=True, dtype=torch.float32).round().to(images.dtype)
        boxes = draw_squares(count, height, width, side, generator)
        for image, mean, box in zip(images, means, boxes, strict=True):
            crop_box(image, box)[:] = mean
        return images

    return augment


def random_erasing(erasing_probability: float = 0.25) -> Augmentation:
    """`flip`, then with `erasing_probability` a box of the image replaced by noise.

    Like `cutout`, with holes of all sizes and shapes: 2 to 40 percent of the area, up to about three times as long as
    wide. The rest of the images stays whole, which is gentler on small objects. Zhong et al. 2020.

    Measured: 78.1% ± 4.8% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    if not 0 <= erasing_probability <= 1:
        raise ValueError(
            f"erasing_probability is the share of the images that get a hole, in [0, 1], not {erasing_probability}"
        )
    mirror = flip()

    def augment(images: Tensor, generator: Generator) -> Tensor:
        images = mirror(images, generator)  # a copy, to be changed in place
        count, channels, height, width = images.shape
        erased = (torch.rand(count, generator=generator) < erasing_probability).nonzero().flatten().tolist()
        boxes = draw_boxes(len(erased), height, width, ERASING_AREA_RANGE, ERASING_ASPECT_RATIOS, generator)
        for place, box in zip(erased, boxes, strict=True):
            noise = torch.randint(256, (channels, *box[2:]), dtype=images.dtype, generator=generator)
            crop_box(images[place], box).copy_(noise, non_blocking=True)
        return images

    return augment


def grey(grey_probability: float = 0.2) -> Augmentation:
    """`flip`, then with `grey_probability` the image without its colours.

    For colours that differ between training and use but say nothing about the class, as with another camera or a
    car's paint. Not where colour is what tells the classes apart, and nothing new for images that are grey already.
    A part of the augmentation of Chen et al. 2020 (SimCLR).

    Measured: 75.0% ± 8.3% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    if not 0 <= grey_probability <= 1:
        raise ValueError(f"grey_probability is the share of the images made grey, in [0, 1], not {grey_probability}")
    mirror = flip()

    def augment(images: Tensor, generator: Generator) -> Tensor:
        images = mirror(images, generator)
        drained = torch.rand(len(images), generator=generator) < grey_probability
        greys = functional.rgb_to_grayscale(images, num_output_channels=3)
        return torch.where(drained.to(images.device, non_blocking=True)[:, None, None, None], greys, images)

    return augment


def colour_jitter(jitter: float = 0.4) -> Augmentation:
    """`flip`, then brightness, contrast and saturation times a factor in [1 - jitter, 1 + jitter] each, in any order.

    For photos under other light than those that the network will meet. It leaves the hue alone, and so is milder than
    `grey` on classes that differ in colour; where the light is always the same it has nothing to teach. Howard 2013.

    Measured: 81.2% ± 4.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    if not 0 <= jitter <= 1:
        raise ValueError(f"jitter is how far a factor may be from 1, in [0, 1], not {jitter}; 0.4 is the usual one")
    return _one_by_one(v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter))


def _one_by_one(distort: Callable[[Tensor], Tensor]) -> Augmentation:
    """`flip`, then torchvision's transform on one image after another: it draws only once for a whole batch."""
    mirror = flip()

    def augment(images: Tensor, generator: Generator) -> Tensor:
        images = mirror(images, generator)
        with use_generator(generator):
            return torch.stack([distort(image) for image in images])

    return augment


AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {
    f.__name__: f
    for f in (
        none,
        flip,
        randaugment,
        autoaugment,
        trivialaugment,
        random_resized_crop,
        cutout,
        random_erasing,
        grey,
        colour_jitter,
    )
}

GPU_AUGMENTATIONS = frozenset({"none", "flip", "cutout", "random_erasing", "grey"})
"""Those that work wherever the images are: a few operations on the whole batch, or on views of it, with nothing to wait
for. What is drawn comes from the generator in main memory, so it is the same on every device. The others go through
torchvision image by image, which a GPU would get as hundreds of tiny tasks a batch: they stay in main memory, where
they work on the next batch while the GPU is busy with the last one."""
