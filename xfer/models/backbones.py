"""Build timm networks by name, with local or hub weights and a new head."""

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
"""Networks of this project, by name. None is pretrained."""


@dataclass(frozen=True)
class InputStatistics:
    """Normalization of a backbone's input, (pixel / 255 - mean) / std, for red, green and blue."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def check_name(name: str) -> None:
    """Check that there is a network of this name.

    Raises:
        ValueError: there is none; the message lists the closest known names.
    """
    if name in CUSTOM_BACKBONES:
        return
    if not timm.is_model(name.partition(".")[0]):
        known = [*CUSTOM_BACKBONES, *timm.list_models()]
        raise ValueError(
            f"{closest_names_message('backbone', name, known)} timm knows {len(known) - len(CUSTOM_BACKBONES)} "
            f"networks: python -c 'import timm; print(timm.list_models())' lists them"
        )
    tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
    if "." in name and name not in tags:
        raise ValueError(unknown_name_message("backbone", name, tags))


def default_image_size(name: str) -> int:
    """Return the image size, in pixels per side, at which the backbone was pretrained or is usually trained."""
    if name in CUSTOM_BACKBONES:
        return int(CUSTOM_BACKBONES[name].pretrained_cfg["input_size"][-1])
    return int(timm.get_pretrained_cfg(name).input_size[-1])


def fetch_weights(name: str) -> Path:
    """Return the file with the weights of a timm network, downloaded once from the hub into its cache.

    Raises:
        ValueError: timm knows no weights for the network, or the download fails.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if name in CUSTOM_BACKBONES:
        raise ValueError(f"{name} is not a pretrained network: use strategy scratch, or another backbone")
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise ValueError(f"timm knows no pretrained weights for {name}: give a file with --weights FILE")
    if not config.hf_hub_id:
        raise ValueError(
            f"the weights of {name} are not on the hub, but at {config.url}: download them, then give --weights FILE"
        )
    try:
        try:
            return Path(hf_hub_download(config.hf_hub_id, "model.safetensors"))
        except RemoteEntryNotFoundError:
            return Path(hf_hub_download(config.hf_hub_id, config.hf_hub_filename or "pytorch_model.bin"))
    except Exception as error:  # the hub's client raises many types of errors
        raise ValueError(
            f"the weights of {name} could not be downloaded from the hub ({config.hf_hub_id}): {type(error).__name__}. "
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
    """Build a timm network with a new, random head for `num_classes` classes.

    Args:
        name: timm's name, with or without a weights tag.
        num_classes: number of classes, the width of the new head.
        image_size: side of the square images in pixels; networks with a fixed input size are built for it.
        weights: a safetensors file, or a state dict saved by torch (loaded with `weights_only`, so it cannot run code).
            Every tensor below the head must be present and fit. With None, weights are random.
        args: further arguments of the network, such as `pad_type="same"`.
        channels: number of input channels; if it is not three, the weights of the first layer are summed or repeated.

    Raises:
        ValueError: the network does not accept these arguments or this size, or the weights do not fit.
    """
    extra = {**(args or {}), **({} if channels == 3 else {"in_chans": channels})}
    if name in CUSTOM_BACKBONES:
        if weights is not None:
            raise ValueError(f"{name} is not a pretrained network: it takes no weights")
        custom: nn.Module = _create(name, num_classes=num_classes, **extra)
        return custom
    if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
        extra.setdefault("img_size", image_size)
    if weights is None:
        random: nn.Module = _create(name, num_classes=num_classes, **extra)
        return random
    source_classes = _head_width(weights, name)
    overlay = {"file": str(weights), "num_classes": source_classes}
    try:
        # With a head as wide as the file's, timm loads strictly: a missing or additional tensor is an error.
        model = _create(name, pretrained=True, num_classes=source_classes, pretrained_cfg_overlay=overlay, **extra)
    except (RuntimeError, KeyError, SafetensorError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(
            f"{weights.name} does not fit {name}: {' '.join(lines[1:3] or lines)[:300]}. Does it belong to another "
            f"network, or does it need --backbone-args?"
        ) from error
    model.reset_classifier(num_classes)
    pretrained: nn.Module = model
    return pretrained


def input_statistics(model: nn.Module) -> InputStatistics:
    """Return the normalization with which a network was pretrained."""
    config = resolve_model_data_config(model)
    return InputStatistics(mean=tuple(config["mean"]), std=tuple(config["std"]))


class Preprocessor:
    """Turn pixels of a pack into a network's input: uint8 [B, 3, H, W] to normalized floats on its device.

    Args:
        statistics: normalization of the network; if `channels` is not three, its mean over the colors is used.
        device: device of the network.
        channels: number of input channels of the network.
        convert: converts uint8 [B, 3, H, W] to uint8 [B, channels, H, W].
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
        tensor = torch.tensor(values, device=self._device)
        return (tensor if len(tensor) == self._channels else tensor.mean(dim=0, keepdim=True))[:, None, None]

    def __call__(self, images: Tensor) -> Tensor:
        """Return normalized floats [B, channels, H, W] in channels_last order."""
        pixels = self._convert(images).to(self._device, non_blocking=True).float().sub_(self._mean).div_(self._std)
        return pixels.contiguous(memory_format=torch.channels_last)


def _create(name: str, **args: Any) -> Any:
    try:
        model = CUSTOM_BACKBONES[name](**args) if name in CUSTOM_BACKBONES else timm.create_model(name, **args)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"{name} cannot be built with these arguments: {error}") from error
    return model


def _head_width(weights: Path, name: str) -> int:
    """Return the width of the head in a weights file, 0 if it has no head."""
    try:
        tensors: Mapping[str, Tensor] = load_state_dict(str(weights), weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"there are no weights at {weights}") from error
    except Exception as error:  # unpickling a broken file raises many types of errors
        raise ValueError(
            f"{weights.name} is neither a safetensors file nor a plain state dict that can be loaded without running "
            f"code from it ({type(error).__name__})"
        ) from error
    head = timm.get_pretrained_cfg(name).classifier
    names = (head,) if isinstance(head, str) else tuple(head or ())
    widths = [len(tensors[f"{layer}.weight"]) for layer in names if f"{layer}.weight" in tensors]
    return widths[0] if widths else 0
