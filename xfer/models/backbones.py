"""Build timm networks by name, with local or hub weights and a new head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.data import resolve_model_data_config
from timm.layers import DropPath
from torch import Tensor, nn

from xfer.choices import closest_names_message, unknown_name_message
from xfer.models.basic_cnn import BasicCNN
from xfer.models.hub_weights import hub_location
from xfer.models.timm_names import Architecture, architecture, is_hub_repository, resolve_name
from xfer.models.weights_file import check_values, read_weights, strip_prefix

CUSTOM_BACKBONES = {"basic_cnn": BasicCNN}
"""Networks of this project, by name. None is pretrained."""


@dataclass(frozen=True)
class InputStatistics:
    """Normalization of a backbone's input, (pixel / 255 - mean) / std, for red, green and blue."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def check_name(name: str) -> None:
    """Check that there is a network of this name.

    Args:
        name: a name of timm, current or deprecated, with or without a tag and the prefix `timm/` or `hf-hub:`; a hub
            repository `hf-hub:owner/name`, whose configuration is read; or a network of this project.

    Raises:
        ValueError: there is none; the message lists the closest known names.
    """
    if name in CUSTOM_BACKBONES:
        return
    name = resolve_name(name)
    if is_hub_repository(name):
        architecture(name)
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
    return int(architecture(name).config.input_size[-1])


def fetch_weights(name: str) -> Path:
    """Return the file with the weights of a network of timm or the hub, downloaded once into the hub's cache.

    Raises:
        ValueError: timm knows no weights for the network, or the download fails.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if name in CUSTOM_BACKBONES:
        raise ValueError(f"{name} is not a pretrained network: use strategy scratch, or another backbone")
    repository, revision, file_names = hub_location(name)
    try:
        try:
            return Path(hf_hub_download(repository, file_names[0], revision=revision))
        except RemoteEntryNotFoundError:
            return Path(hf_hub_download(repository, file_names[1], revision=revision))
    except Exception as error:  # the hub's client raises many types of errors
        raise ValueError(
            f"the weights of {name} could not be downloaded from the hub ({repository}): {type(error).__name__}. "
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
        name: a name that `check_name` accepts.
        num_classes: number of classes, the width of the new head.
        image_size: side of the square images in pixels; networks with a fixed input size are built for it.
        weights: a safetensors file, or a state dict or checkpoint saved by torch (loaded with `weights_only`, so it
            cannot run code). Every tensor below the head must be present and fit. With None, weights are random.
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
    network = architecture(name)
    extra = {**network.args, **extra}
    if network.config.fixed_input_size:
        extra.setdefault("img_size", image_size)
    if weights is None:
        random: nn.Module = _create(name, num_classes=num_classes, **extra)
        return random
    tensors = _read_tensors(weights, name, network, extra)
    source_classes = _head_width(network, tensors)
    # The file was unwrapped and checked, so it is passed as tensors: timm reads fewer formats.
    overlay = {"state_dict": tensors, "source": "", "custom_load": False, "num_classes": source_classes}
    try:
        # With a head as wide as the file's, timm loads strictly: a missing or additional tensor is an error.
        model = _create(name, pretrained=True, num_classes=source_classes, pretrained_cfg_overlay=overlay, **extra)
    except (RuntimeError, KeyError, SafetensorError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(
            f"{weights.name} does not fit {name}: {' '.join(lines[1:3] or lines)[:300]}. Does it belong to another "
            f"network, or does it need --backbone-args?"
        ) from error
    model.pretrained_cfg.pop("state_dict", None)  # a second copy of the weights
    model.reset_classifier(num_classes)
    pretrained: nn.Module = model
    return pretrained


@lru_cache(maxsize=256)
def has_drop_path(name: str, image_size: int) -> bool:
    """Return whether a network has stochastic depth (Huang et al. 2016, arXiv:1603.09382), set by `drop_path_rate`."""
    try:
        with torch.device("meta"):
            model = build(name, 2, image_size, args={"drop_path_rate": 0.1})
    except ValueError:
        return False
    return any(isinstance(module, DropPath) and module.drop_prob > 0 for module in model.modules())


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
        if name in CUSTOM_BACKBONES:
            return CUSTOM_BACKBONES[name](**args)
        network = architecture(name)
        if is_hub_repository(resolve_name(name)):
            args["pretrained_cfg"] = network.config.to_dict()
        return timm.create_model(network.name, **args)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"{name} cannot be built with these arguments: {error}") from error


def _read_tensors(file: Path, name: str, network: Architecture, args: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a weights file under the names that the network gives them.

    Raises:
        ValueError: the file cannot be read, or holds no trained weights in floating point.
    """
    tensors = read_weights(file)
    first = network.config.first_conv
    if f"{first}.weight" not in tensors:  # perhaps the network is a part of a larger module
        with torch.device("meta"):
            names = _create(name, num_classes=0, **args).state_dict().keys()
        tensors = strip_prefix(tensors, names)
    for layer in _head_layers(network):
        if f"{layer}.weight" not in tensors:  # a head of another form, which is replaced anyway
            tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{layer}.")}
    if not tensors:
        raise ValueError(f"{file.name} does not fit {name}: it holds no tensors. Does it belong to another network?")
    check_values(file, tensors)
    return tensors


def _head_layers(network: Architecture) -> tuple[str, ...]:
    head = network.config.classifier
    return (head,) if isinstance(head, str) else tuple(head or ())


def _head_width(network: Architecture, tensors: Mapping[str, Tensor]) -> int:
    """Return the width of the head among tensors, 0 if there is none."""
    widths = [len(tensors[f"{layer}.weight"]) for layer in _head_layers(network) if f"{layer}.weight" in tensors]
    return widths[0] if widths else 0
