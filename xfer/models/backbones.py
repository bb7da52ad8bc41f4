"""timm networks: found by name, filled with local or hub weights, and given a new head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.data import resolve_model_data_config
from timm.models import load_state_dict
from torch import Tensor, nn

from xfer.choices import closest_names_message, unknown_name_message
from xfer.models.basic_cnn import BasicCNN

CUSTOM_BACKBONES = {"basic_cnn": BasicCNN}
"""Networks of ours beside timm's. None is pretrained."""


@dataclass(frozen=True)
class InputStatistics:
    """How a backbone wants its pixels: (pixel / 255 - mean) / std, for red, green and blue."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def check_name(name: str) -> None:
    """Raise a ValueError with the nearest known names unless there is a network of this name."""
    if name in CUSTOM_BACKBONES:
        return
    if not timm.is_model(name.partition(".")[0]):
        known = [*CUSTOM_BACKBONES, *timm.list_models()]
        raise ValueError(
            f"{closest_names_message('backbone', name, known)} timm knows {len(known) - len(CUSTOM_BACKBONES)} networks: "
            f"python -c 'import timm; print(timm.list_models())' lists them"
        )
    tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
    if "." in name and name not in tags:
        raise ValueError(unknown_name_message("backbone", name, tags))


def default_image_size(name: str) -> int:
    """The side in pixels at which the backbone was pretrained, or is meant to be trained."""
    if name in CUSTOM_BACKBONES:
        return int(CUSTOM_BACKBONES[name].pretrained_cfg["input_size"][-1])
    return int(timm.get_pretrained_cfg(name).input_size[-1])


def fetch_weights(name: str) -> Path:
    """The file with the hub's weights for a timm network, downloaded once into the hub's own cache.

    Raises:
        ValueError: timm knows no weights for it, or they cannot be fetched.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if name in CUSTOM_BACKBONES:
        raise ValueError(f"{name} is not a pretrained network: take strategy scratch, or another backbone")
    known = timm.get_pretrained_cfg(name)
    if known is None or not known.has_weights:
        raise ValueError(f"timm knows no pretrained weights for {name}: give a file with --weights FILE")
    if not known.hf_hub_id:
        raise ValueError(
            f"the weights of {name} are not on the hub, but at {known.url}: fetch them, then --weights FILE"
        )
    try:
        try:
            return Path(hf_hub_download(known.hf_hub_id, "model.safetensors"))
        except RemoteEntryNotFoundError:
            return Path(hf_hub_download(known.hf_hub_id, known.hf_hub_filename or "pytorch_model.bin"))
    except Exception as error:  # the hub's client raises anything from OSError to its own families
        raise ValueError(
            f"the weights of {name} could not be fetched from the hub ({known.hf_hub_id}): {type(error).__name__}. "
            f"Without a network, give a local file with --weights FILE"
        ) from error


def build(
    name: str,
    num_classes: int,
    image_size: int,
    weights: Path | None = None,
    args: Mapping[str, Any] | None = None,
    channels: int = 3,
) -> nn.Module:
    """A timm network with a new, random head for `num_classes` classes.

    Args:
        name: timm's name, with or without a weights tag.
        num_classes: width of the new head.
        image_size: side of the square images in pixels; networks of a fixed input size are built for it.
        weights: a safetensors file, or a state dict saved by torch (read with `weights_only`, so no code in it runs);
            every tensor below the head must be there and fit. None: random weights.
        args: further arguments of the network, such as `pad_type="same"`.
        channels: of the images; for another number than three the first layer's weights are summed or repeated.

    Raises:
        ValueError: the network does not take these arguments or this size, or the weights do not fit.
    """
    extra = {**(args or {}), **({} if channels == 3 else {"in_chans": channels})}
    if name in CUSTOM_BACKBONES:
        if weights is not None:
            raise ValueError(f"{name} is not a pretrained network: it takes no weights")
        own: nn.Module = _create(name, num_classes=num_classes, **extra)
        return own
    if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
        extra.setdefault("img_size", image_size)
    if weights is None:
        random: nn.Module = _create(name, num_classes=num_classes, **extra)
        return random
    source_classes = _classes_in(weights, name)
    overlay = {"file": str(weights), "num_classes": source_classes}
    try:
        # With the head as wide as the file's, timm loads strictly: a tensor too many or too few is an error.
        model = _create(name, pretrained=True, num_classes=source_classes, pretrained_cfg_overlay=overlay, **extra)
    except (RuntimeError, KeyError, SafetensorError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(
            f"{weights.name} does not fit {name}: {' '.join(lines[1:3] or lines)[:300]}. Is it another network's, or "
            f"does it need --backbone-args?"
        ) from error
    model.reset_classifier(num_classes)
    pretrained: nn.Module = model
    return pretrained


def input_statistics(model: nn.Module) -> InputStatistics:
    """What the network's pixels were scaled by when it was pretrained."""
    config = resolve_model_data_config(model)
    return InputStatistics(mean=tuple(config["mean"]), std=tuple(config["std"]))


class Preprocessor:
    """From a pack's pixels to what a network takes: uint8 [B, 3, H, W] to scaled floats on its device.

    Args:
        statistics: what the network's pixels were scaled by; for one channel their mean over the three.
        device: where the network is.
        channels: how many the network takes.
        convert: uint8 [B, 3, H, W] to uint8 [B, channels, H, W].
    """

    def __init__(
        self,
        statistics: InputStatistics,
        device: torch.device,
        channels: int = 3,
        convert: Callable[[Tensor], Tensor] = lambda images: images,
    ) -> None:
        self._device = device
        self._channels = channels
        self._convert = convert
        self._mean = 255 * self._for_channels(statistics.mean)
        self._std = 255 * self._for_channels(statistics.std)

    def _for_channels(self, values: Sequence[float]) -> Tensor:
        each = torch.tensor(values, device=self._device)
        return (each if len(each) == self._channels else each.mean(dim=0, keepdim=True))[:, None, None]

    def __call__(self, images: Tensor) -> Tensor:
        """Scaled by the statistics that the network was pretrained with, in channels_last order."""
        pixels = self._convert(images).to(self._device, non_blocking=True).float().sub_(self._mean).div_(self._std)
        return pixels.contiguous(memory_format=torch.channels_last)


def _create(name: str, **arguments: Any) -> Any:
    try:
        model = (
            CUSTOM_BACKBONES[name](**arguments) if name in CUSTOM_BACKBONES else timm.create_model(name, **arguments)
        )
    except (TypeError, AssertionError) as error:
        raise ValueError(f"{name} cannot be built as asked: {error}") from error
    return model


def _classes_in(weights: Path, name: str) -> int:
    """The width of the head in a weights file, 0 where it holds none."""
    try:
        tensors: Mapping[str, Tensor] = load_state_dict(str(weights), weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"there are no weights at {weights}") from error
    except Exception as error:  # unpickling fails in as many ways as there are broken files
        raise ValueError(
            f"{weights.name} is neither a safetensors file nor a plain state dict that can be loaded without running "
            f"code from it ({type(error).__name__})"
        ) from error
    head = timm.get_pretrained_cfg(name).classifier
    names = (head,) if isinstance(head, str) else tuple(head or ())
    widths = [len(tensors[f"{each}.weight"]) for each in names if f"{each}.weight" in tensors]
    return widths[0] if widths else 0
