"""Export: a trained network as a folder with model.safetensors and model.json, without pickle.

model.json is written last and holds the checksum of both files, so damaged or mixed files are recognized when they are
loaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from xfer import hashing
from xfer.data.images import CENTER_CROP_FRACTION
from xfer.data.value_ranges import NO_RANGES, ValueRanges, ranges_from_json
from xfer.models import backbones
from xfer.recipe import Recipe, recipe_from_dict
from xfer.storage import checked_json
from xfer.storage.atomic import atomic_write
from xfer.training import networks

WEIGHTS_FILE, CARD_FILE = "model.safetensors", "model.json"

WEIGHTS_CHECKSUM_KEY = "weights_sha256"
"""Key of the checksum of `WEIGHTS_FILE` in the model card."""

EXPORT_AGAIN = "run the same command again, which writes it again"


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained network with everything that inference needs: class names, image size, input statistics."""

    model: nn.Module
    classes: tuple[str, ...]
    recipe: Recipe
    """Recipe of its training, which determines its architecture and input channels."""
    value_ranges: ValueRanges = field(default_factory=dict)
    """Value ranges of its training data; `xfer.data.images.read_image` needs them for more than 8 bits per channel."""

    @property
    def image_size(self) -> int:
        """Side in pixels; `xfer.data.images.read_image` resizes photos as for evaluation in training."""
        return self.recipe.evaluation_size

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return class probabilities of images.

        Args:
            images: uint8 [N, image_size, image_size, 3].

        Returns:
            float32 [N, C]; each row sums to 1.

        Raises:
            ValueError: the images have another shape or type.
        """
        expected = (self.image_size, self.image_size, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(
                f"images must be uint8 [N, {', '.join(map(str, expected))}], not {images.dtype} {images.shape}"
            )
        prepare = networks.build_preprocessor(self.recipe, self.model, torch.device("cpu"))
        with torch.inference_mode():
            logits = self.model(prepare(torch.from_numpy(images.copy()).permute(0, 3, 1, 2)))
            result: NDArray[np.float32] = logits.float().softmax(dim=1).numpy()
        return result


def save_classifier(
    folder: Path, model: nn.Module, recipe: Recipe, classes: tuple[str, ...], value_ranges: ValueRanges = NO_RANGES
) -> None:
    """Write a network to a folder, with a model card in JSON that says how it was trained and how to use it.

    timm can load `model.safetensors` if backbone, head and activation are timm's own.

    Args:
        folder: created if necessary.
        model: the trained network.
        recipe: of its training.
        classes: class names, in the order of the network's outputs.
        value_ranges: of the training data (`Pack.value_ranges`).
    """
    statistics = backbones.input_statistics(model)
    card = {
        "backbone": recipe.backbone,
        "backbone_args": dict(recipe.backbone_args),
        "classes": list(classes),
        "image_size": recipe.evaluation_size,
        "resize": f"squash to a square, then the middle {CENTER_CROP_FRACTION:.1%} of each side",
        "value_ranges": {kind: list(value_range) for kind, value_range in value_ranges.items()},
        "mean": list(statistics.mean),
        "std": list(statistics.std),
        "recipe": recipe.as_dict(),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    atomic_write(folder / WEIGHTS_FILE, lambda temporary: safetensors.torch.save_file(tensors, temporary))
    card[WEIGHTS_CHECKSUM_KEY] = hashing.sha256_file(folder / WEIGHTS_FILE)
    atomic_write(folder / CARD_FILE, checked_json.encode(card, indent=1))


def read_card(folder: Path) -> dict[str, Any]:
    """Return the model card of an exported network, after checking card and weights against their checksums.

    Exports of earlier versions have no checksums and are not checked.

    Raises:
        ValueError: card or weights are not what was written; the message says what to do.
        OSError: one of the files cannot be read.
    """
    content = (folder / CARD_FILE).read_bytes()
    try:
        card = checked_json.decode(content)
    except checked_json.CorruptObjectError as error:
        if (older := _card_without_checksums(content)) is None:
            raise ValueError(f"{CARD_FILE} is not what was written ({error}): {EXPORT_AGAIN}") from error
        return older
    if hashing.sha256_file(folder / WEIGHTS_FILE) != card[WEIGHTS_CHECKSUM_KEY]:
        raise ValueError(f"{WEIGHTS_FILE} is not what was written (its checksum differs): {EXPORT_AGAIN}")
    return card


def _card_without_checksums(content: bytes) -> dict[str, Any] | None:
    """Return a model card as earlier versions wrote it; None if it is not one."""
    try:
        card = json.loads(content)
    except (ValueError, RecursionError):
        return None
    checksums = {checked_json.CHECKSUM_KEY, WEIGHTS_CHECKSUM_KEY}
    return card if isinstance(card, dict) and not card.keys() & checksums else None


def is_intact(folder: Path) -> bool:
    """Return whether a folder holds an exported network whose files are what was written."""
    try:
        read_card(folder)
    except (OSError, ValueError, KeyError):
        return False
    return True


def load_classifier(folder: Path) -> Classifier:
    """Load a network that `save_classifier` wrote.

    Raises:
        ValueError: its files are not what was written, or are of another version.
    """
    card = read_card(folder)
    recipe = recipe_from_dict(card["recipe"])
    with torch.random.fork_rng(devices=[]):  # its random initial weights are replaced below
        model = networks.build_network(recipe, None)
    model.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS_FILE))
    ranges = ranges_from_json(card.get("value_ranges", {}))
    return Classifier(model.eval(), tuple(card["classes"]), recipe, ranges)
