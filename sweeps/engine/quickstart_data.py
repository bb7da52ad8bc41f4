"""Images and pretrained weights for the quickstart, without a download.

The target data are scikit-learn's 1,797 handwritten digits (Alpaydin & Kaynak 1998: scans of 43 people's handwriting,
8 x 8 pixels). The source data are the printed letters A to Z in 16 fonts that come with matplotlib. Every digit and
letter is placed in an image of 28 x 28 pixels, at a random position, size and angle.

Centred digits would hide what transfer is for: with 5 images of each of the digits 5 to 9, a network trained from
scratch recognized 88% of others (3 seeds, 100 steps). In random positions, a network has to learn from many examples
that position does not matter, and the letters provide them. Measured with one seed on scans outside the test part, in
300 steps of test_resnet: with 8 training images of each digit, logistic regression on the frozen features reached 74%,
training from scratch 60%; with 10, they reached 75% and 68%, and `lp_ft` 78%.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

IMAGE_SIZE = 28
"""Side of the images in pixels, as in MNIST. From 32 pixels on, near copies are looked for, which takes long among
thousands of images that look alike."""
TRAINING_IMAGES = 8
"""Number of training images of each digit: 80 are five full batches of 16."""
VALIDATION_IMAGES = 20
"""Number of validation images of each digit."""
LEFT_OUT = 32
"""Number of scans of each digit in no part: number, size and placement of the images were chosen with them. The others
are the test part."""
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
)
"""Names of matplotlib's font files, for the letters."""
IMAGES_PER_GLYPH = 8
"""Number of images of each letter in each font."""
PRETRAINING_EPOCHS = 5
"""Number of epochs of pretraining."""


def write_digits(folder: Path) -> Path:
    """Write the target images as PNG files `folder`/<part>/<digit>/<number>.png, unless they exist.

    Returns:
        `folder`.
    """
    done = _done_file(folder)
    if done.exists():
        return folder
    import numpy as np
    from sklearn.datasets import load_digits

    scans = load_digits()
    for digit in range(10):
        rng = np.random.default_rng(digit)
        # The scans are sorted by writer: without shuffling, the parts would have different writers.
        for index, pixels in enumerate(rng.permutation(scans.images[scans.target == digit])):
            if part := _part(index):
                _save(place(pixels / 16, rng), folder / part / str(digit) / f"{index:03d}.png")
    done.touch()
    return folder


def write_letters(folder: Path) -> Path:
    """Write the source images as PNG files `folder`/<letter>/<number>.png, unless they exist.

    Returns:
        `folder`.
    """
    done = _done_file(folder)
    if done.exists():
        return folder
    import numpy as np

    for letter in string.ascii_uppercase:
        rng = np.random.default_rng(ord(letter))
        glyphs = [draw_letter(letter, font) for font in FONTS for _ in range(IMAGES_PER_GLYPH)]
        for index, glyph in enumerate(glyphs):
            _save(place(glyph, rng), folder / letter / f"{index:03d}.png")
    done.touch()
    return folder


def draw_letter(letter: str, font: str) -> NDArray[np.float64]:
    """Draw a printed letter at the resolution of the scanned digits.

    Args:
        letter: the letter.
        font: one of `FONTS`.

    Returns:
        8 x 8 brightnesses from 0 (paper) to 1 (ink).
    """
    import matplotlib
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    type_face = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf", 64)
    left, top, right, bottom = type_face.getbbox(letter)
    side = round(max(right - left, bottom - top)) + 8
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).text((side / 2, side / 2), letter, 255, type_face, anchor="mm")
    return np.asarray(canvas.resize((8, 8), Image.Resampling.BOX)) / 255


def place(glyph: NDArray[np.float64], rng: np.random.Generator) -> Image.Image:
    """Place a digit or letter at a random position, size and angle in an empty image.

    Args:
        glyph: 8 x 8 brightnesses from 0 to 1.
        rng: source of randomness; 14 to 21 pixels and angles up to 15 degrees are equally likely.

    Returns:
        A grey image of `IMAGE_SIZE` x `IMAGE_SIZE` pixels.
    """
    from PIL import Image

    side = int(rng.integers(14, 22))
    bilinear = Image.Resampling.BILINEAR
    patch = Image.fromarray((glyph * 255).astype("uint8")).resize((side, side), bilinear)
    image = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    left, top = rng.integers(0, IMAGE_SIZE - side, size=2, endpoint=True).tolist()
    image.paste(patch.rotate(rng.uniform(-15, 15), bilinear), (left, top))
    return image


def pretrained_weights(folder: Path, backbone: str, image_size: int) -> Path:
    """Pretrain a backbone on the letters, unless its weights exist.

    Args:
        folder: folder for the weights and the pretraining images.
        backbone: name of a timm network.
        image_size: side of the images in pixels.

    Returns:
        The path of a safetensors file.

    Raises:
        ValueError: timm has no such network, or the network does not accept this image size.
    """
    file = folder / f"{backbone.replace('/', '-')}-letters-{image_size}px.safetensors"
    if file.exists():
        return file
    from xfer.models import backbones

    backbones.check_name(backbone)
    print(f"pretraining {backbone} on printed letters (only once)", flush=True)
    pretrain(backbone, image_size, write_letters(folder / "letters"), PRETRAINING_EPOCHS, file)
    return file


def pretrain(backbone: str, image_size: int, images: Path, epochs: int, file: Path) -> None:
    """Train a backbone from random weights, on the CPU.

    Args:
        backbone: name of a timm network.
        image_size: side of the images in pixels.
        images: folder with one folder per class.
        epochs: number of epochs.
        file: where the weights are written, as safetensors.
    """
    import safetensors.torch
    import torch

    from xfer.data.image_folder import folder as source
    from xfer.data.pack import build_pack
    from xfer.recipe import recipe_from_dict
    from xfer.run import Run
    from xfer.storage.atomic import atomic_write

    pack = build_pack(source(images), image_size, file.parent / "packs")
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
            "epochs": epochs,
        }
    )
    torch.set_num_threads(1)  # more threads slow down such a small network
    run = Run(recipe, pack, device=torch.device("cpu"))
    for _ in run:
        pass
    state = {name: tensor.contiguous() for name, tensor in run.model.state_dict().items()}
    atomic_write(file, lambda temporary: safetensors.torch.save_file(state, temporary))


def _part(index: int) -> str:
    """Return the part of a digit's scan, by its position after shuffling; "" if it is left out."""
    if index < TRAINING_IMAGES:
        return "train"
    if index < TRAINING_IMAGES + VALIDATION_IMAGES:
        return "val"
    return "test" if index >= TRAINING_IMAGES + VALIDATION_IMAGES + LEFT_OUT else ""


def _done_file(folder: Path) -> Path:
    """Return the file that marks a folder as complete, next to it: inside, it would be reported as no image."""
    return folder.with_name(f".{folder.name}-done")


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
