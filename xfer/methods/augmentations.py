"""Augmentations: uint8 images [N, 3, H, W] to the same shape and dtype, with new random draws for every image.

Every augmentation except `none` first mirrors each image with probability 1/2. The input batch is not modified.
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
NUM_MAGNITUDE_BINS = 31  # magnitudes 0 to 30, Cubuk et al. 2020


def none() -> Augmentation:
    """Leaves every image unchanged.

    The baseline for all others. It is the right choice where each training image is seen only a few times, or where
    even a mirrored image belongs to another class.

    Measured: 81.6% ± 8.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return lambda images, generator: images


def flip() -> Augmentation:
    """Mirrors each image left to right with probability 1/2.

    Almost free, and safe wherever a mirrored picture could have been taken just as well. Wrong for digits, letters and
    other classes that depend on left and right. Krizhevsky et al. 2012, NeurIPS.

    Measured: 78.1% ± 3.6% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """

    def augment(images: Tensor, generator: Generator) -> Tensor:
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        return torch.where(mirrored.to(images.device, non_blocking=True)[:, None, None, None], images.flip(-1), images)

    return augment


def randaugment(num_ops: int = 2, magnitude: int = 9) -> Augmentation:
    """`flip`, then `num_ops` random operations of strength `magnitude` (of 30) on each image.

    For long training runs that would otherwise memorise their images. The operations distort shapes and colours: too
    strong where training is short, images are small or colour distinguishes the classes. Cubuk et al. 2020,
    arXiv:1909.13719.

    Measured: 75.7% ± 7.1% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Args:
        num_ops: number of operations per image, at least 1.
        magnitude: strength of each operation, an integer from 0 to 30.

    Raises:
        ValueError: If a value is outside its range.
    """
    if not isinstance(num_ops, int) or num_ops < 1:
        raise ValueError(
            f"num_ops must be an integer of at least 1, got {num_ops}; for no operation use augmentation flip"
        )
    if not isinstance(magnitude, int) or not 0 <= magnitude < NUM_MAGNITUDE_BINS:
        raise ValueError(
            f"magnitude must be an integer from 0 to {NUM_MAGNITUDE_BINS - 1}, got {magnitude}; its authors used 9 for "
            f"a ResNet-50 on ImageNet"
        )
    return _per_image(v2.RandAugment(num_ops=num_ops, magnitude=magnitude, num_magnitude_bins=NUM_MAGNITUDE_BINS))


def autoaugment() -> Augmentation:
    """`flip`, then one of the 25 pairs of operations that a search found best for ImageNet.

    Nothing to tune, and its authors saw it transfer to other photos. Most operations change colours (posterize,
    solarize, equalize), so it does not suit classes that differ in colour. Cubuk et al. 2019, arXiv:1805.09501.

    Measured: 74.0% ± 3.6% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return _per_image(v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET))


def trivialaugment() -> Augmentation:
    """`flip`, then one random operation of random strength on each image.

    Nothing to tune; its authors found it on a par with the searched policies. Strengths are drawn from a wide range
    ("TrivialAugment Wide"): shifts of up to 32 pixels and rotations of up to 135 degrees regardless of the image size,
    which can remove most of a small image. Müller & Hutter 2021, arXiv:2103.10158.

    Measured: 79.5% ± 4.8% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).
    """
    return _per_image(v2.TrivialAugmentWide())


def random_resized_crop(min_area: float = 0.5) -> Augmentation:
    """`flip`, then a random crop of each image, at least `min_area` of it, resized to the full size.

    Teaches that objects appear at any size and position: the standard augmentation for photos. A small crop may miss
    the object or the relevant detail, so fine-tuning starts at half the area rather than at the 0.08 that is usual for
    training from scratch. Useless where every image is framed alike. Szegedy et al. 2015, arXiv:1409.4842.

    The crop's area fraction is uniform up to 1; the aspect ratio changes by a factor between 3/4 and 4/3, as far as the
    crop fits.

    Measured: 74.3% ± 4.9% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Args:
        min_area: smallest area of a crop as a fraction of the image, in (0, 1].

    Raises:
        ValueError: If `min_area` is outside its range.
    """
    if not 0 < min_area <= 1:
        raise ValueError(
            f"min_area must be a fraction of the image above 0 and at most 1, got {min_area}; 0.5 is a mild crop, 0.08 "
            f"a strong one"
        )
    mirror = flip()

    def augment(images: Tensor, generator: Generator) -> Tensor:
        images = mirror(images, generator)
        count, _, height, width = images.shape
        boxes = draw_boxes(count, height, width, (min_area, 1.0), CROP_ASPECT_RATIOS, generator)
        # Image by image: at 224 pixels one grid_sample for the whole batch took seven times as long. No antialiasing,
        # because a crop is only ever enlarged.
        return torch.stack(
            [
                functional.resized_crop(image, *box, size=[height, width], antialias=False)
                for image, box in zip(images, boxes, strict=True)
            ]
        )

    return augment


def cutout(cutout_size: float = 0.5) -> Augmentation:
    """`flip`, then a square of each image filled with the image's mean colour.

    Forces the network to use more than the most distinctive part. Unsuitable for small objects, which disappear
    completely, and for classes that a single detail distinguishes. The square is centred on any pixel and may extend
    beyond the border. DeVries & Taylor 2017, arXiv:1708.04552.

    Measured: 74.3% ± 6.1% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Args:
        cutout_size: side of the square as a fraction of the image's shorter side, in (0, 1].

    Raises:
        ValueError: If `cutout_size` is outside its range.
    """
    if not 0 < cutout_size <= 1:
        raise ValueError(
            f"cutout_size must be a fraction of the image's side above 0 and at most 1, got {cutout_size}; 0.5 hides "
            f"up to a quarter of the image; for no square use augmentation flip"
        )
    mirror = flip()

    def augment(images: Tensor, generator: Generator) -> Tensor:
        images = mirror(images, generator)  # a copy, so it can be modified in place
        count, _, height, width = images.shape
        side = max(1, round(cutout_size * min(height, width)))
        means = images.mean(dim=(2, 3), keepdim=True, dtype=torch.float32).round().to(images.dtype)
        boxes = draw_squares(count, height, width, side, generator)
        for image, mean, box in zip(images, means, boxes, strict=True):
            crop_box(image, box)[:] = mean
        return images

    return augment


def random_erasing(erasing_probability: float = 0.25) -> Augmentation:
    """`flip`, then replaces a box of the image by noise with probability `erasing_probability`.

    Like `cutout`, with boxes of all sizes and shapes: 2 to 40 percent of the area, up to about three times as long as
    wide. The other images stay intact, which is gentler on small objects. Zhong et al. 2020, arXiv:1708.04896.

    Measured: 78.1% ± 4.8% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Args:
        erasing_probability: probability that an image gets a box, in [0, 1].

    Raises:
        ValueError: If `erasing_probability` is outside its range.
    """
    if not 0 <= erasing_probability <= 1:
        raise ValueError(f"erasing_probability must be in [0, 1], got {erasing_probability}")
    mirror = flip()

    def augment(images: Tensor, generator: Generator) -> Tensor:
        images = mirror(images, generator)  # a copy, so it can be modified in place
        count, channels, height, width = images.shape
        erased = (torch.rand(count, generator=generator) < erasing_probability).nonzero().flatten().tolist()
        boxes = draw_boxes(len(erased), height, width, ERASING_AREA_RANGE, ERASING_ASPECT_RATIOS, generator)
        for index, box in zip(erased, boxes, strict=True):
            noise = torch.randint(256, (channels, *box[2:]), dtype=images.dtype, generator=generator)
            crop_box(images[index], box).copy_(noise, non_blocking=True)
        return images

    return augment


def grey(grey_probability: float = 0.2) -> Augmentation:
    """`flip`, then converts the image to greyscale with probability `grey_probability`.

    For colours that differ between training and deployment but do not depend on the class, such as another camera or a
    car's paint. Unsuitable where colour distinguishes the classes, and without effect on images that are already grey.
    One component of the augmentation of Chen et al. 2020 (SimCLR), arXiv:2002.05709.

    Measured: 75.0% ± 8.3% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Args:
        grey_probability: probability that an image is converted, in [0, 1].

    Raises:
        ValueError: If `grey_probability` is outside its range.
    """
    if not 0 <= grey_probability <= 1:
        raise ValueError(f"grey_probability must be in [0, 1], got {grey_probability}")
    mirror = flip()

    def augment(images: Tensor, generator: Generator) -> Tensor:
        images = mirror(images, generator)
        converted = torch.rand(len(images), generator=generator) < grey_probability
        greys = functional.rgb_to_grayscale(images, num_output_channels=3)
        return torch.where(converted.to(images.device, non_blocking=True)[:, None, None, None], greys, images)

    return augment


def colour_jitter(jitter: float = 0.4) -> Augmentation:
    """`flip`, then scales brightness, contrast and saturation by random factors, in random order.

    For photos taken under different light than those seen in deployment. It does not change the hue, so it is milder
    than `grey` on classes that differ in colour; where the light is always the same it has nothing to teach. Howard
    2013, arXiv:1312.5402.

    Measured: 81.2% ± 4.5% on simpsons, mobilenetv2_100 (3 seeds; benchmarks/CARDS.md).

    Args:
        jitter: each factor is drawn from [1 - jitter, 1 + jitter]; in [0, 1].

    Raises:
        ValueError: If `jitter` is outside its range.
    """
    if not 0 <= jitter <= 1:
        raise ValueError(f"jitter must be in [0, 1], got {jitter}; 0.4 is the usual value")
    return _per_image(v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter))


def _per_image(transform: Callable[[Tensor], Tensor]) -> Augmentation:
    """`flip`, then applies torchvision's transform to each image separately, because it draws only once per call."""
    mirror = flip()

    def augment(images: Tensor, generator: Generator) -> Tensor:
        images = mirror(images, generator)
        with use_generator(generator):
            return torch.stack([transform(image) for image in images])

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
"""Augmentations that run on whatever device holds the images: a few operations on the whole batch, or on views of
it, without synchronisation. Random numbers come from the generator in main memory, so they are the same on every
device. The other augmentations go through torchvision image by image, which would be hundreds of tiny kernels per
batch on a GPU: they run in main memory and prepare the next batch while the GPU processes the current one."""
