"""Export: a trained network as a folder with model.safetensors and model.json, without pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from xfer.data.images import CENTER_CROP_FRACTION
from xfer.data.value_ranges import NO_RANGES, ValueRanges, ranges_from_json
from xfer.models import backbones
from xfer.recipe import Recipe, recipe_from_dict
from xfer.storage.atomic import atomic_write
from xfer.training import networks


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
    atomic_write(folder / "model.safetensors", lambda temporary: safetensors.torch.save_file(tensors, temporary))
    atomic_write(folder / "model.json", json.dumps(card, indent=1, ensure_ascii=False).encode())


def load_classifier(folder: Path) -> Classifier:
    """Load a network that `save_classifier` wrote."""
    card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    recipe = recipe_from_dict(card["recipe"])
    with torch.random.fork_rng(devices=[]):  # its random initial weights are replaced below
        model = networks.build_network(recipe, None)
    model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    ranges = ranges_from_json(card.get("value_ranges", {}))
    return Classifier(model.eval(), tuple(card["classes"]), recipe, ranges)
