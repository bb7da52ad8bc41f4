"""Networks: builds a recipe's network from the backbone and the choices that change its architecture."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from xfer.choices import Choice, Value
from xfer.methods import activations
from xfer.methods.activations import ACTIVATIONS
from xfer.methods.embedding_losses import EMBEDDING_LOSSES, EmbeddingLoss
from xfer.methods.heads import HEADS
from xfer.methods.input_channels import INPUT_CHANNELS, InputChannels
from xfer.methods.strategies import STRATEGIES, ModelTransform, Strategy, keep_model
from xfer.models import backbones
from xfer.models.params import named_params
from xfer.recipe import Recipe


def build_network(recipe: Recipe, weights: Path | None) -> Any:
    """Build the network that a recipe trains, as it is before the first step.

    Random weights are drawn from torch's global generator.

    Args:
        recipe: what is trained.
        weights: file with pretrained weights; None for random weights, if only shapes matter or a state is loaded next.

    Returns:
        A network with timm's interface.

    Raises:
        ValueError: the weights do not fit, or the network does not support the recipe.
    """
    strategy: Strategy = recipe.strategy.build(STRATEGIES)
    model = _build(_architecture(recipe), weights if strategy.pretrained else None, strategy.transform_model)
    strategy.pace.check(next(iter(named_params(model).values())).blocks)
    return model


class _Architecture(NamedTuple):
    """Fields of a recipe that determine its network, apart from what the strategy changes in it."""

    backbone: str
    backbone_args: tuple[tuple[str, Value], ...]
    classes: int
    image_size: int
    colour: Choice
    activation: Choice
    head: Choice
    drop_path: float


def _architecture(recipe: Recipe) -> _Architecture:
    return _Architecture(*(getattr(recipe, name) for name in _Architecture._fields))


def _build(architecture: _Architecture, weights: Path | None, transform: ModelTransform) -> Any:
    backbone, backbone_args, classes, image_size, colour, activation, head, drop_path = architecture
    channels: InputChannels = colour.build(INPUT_CHANNELS)
    if drop_path and not backbones.has_drop_path(backbone, image_size):
        raise ValueError(f"drop_path is {drop_path:g}, but {backbone} has no stochastic depth: leave drop_path at 0")
    args = {**dict(backbone_args), **({"drop_path_rate": drop_path} if drop_path else {})}
    model: Any = backbones.build(backbone, classes, image_size, weights, args, channels.channels)
    _check_interface(model, backbone)
    activations.replace_activations(model, activation.build(ACTIVATIONS))
    model = transform(model, image_size)
    if head.name != "linear":
        _replace_head(model, architecture)
    return model


def build_preprocessor(recipe: Recipe, model: nn.Module, device: torch.device) -> backbones.Preprocessor:
    """Return the transform from a pack's pixels to the inputs of a recipe's network."""
    colour: InputChannels = recipe.colour.build(INPUT_CHANNELS)
    return backbones.Preprocessor(backbones.input_statistics(model), device, colour.channels, colour.convert)


def check_network(recipe: Recipe) -> None:
    """Check in a fraction of a second, without weights, that a recipe's network can be built and takes its images.

    Raises:
        ValueError: it cannot; the message says why.
    """
    # Fields that do not affect the architecture get a fixed value, so that a sweep checks each architecture once.
    check_architecture(
        dataclasses.replace(recipe, data="", learning_rate=1.0, weight_decay=0.0, seed=0, draw=0, split_seed=0)
    )


@lru_cache(maxsize=4096)
def check_architecture(recipe: Recipe) -> None:
    """Check a recipe for `check_network`; cached."""
    strategy: Strategy = recipe.strategy.build(STRATEGIES)
    architecture = _architecture(recipe)
    if strategy.transform_model is keep_model:
        model = _unchanged_network(architecture)
    else:
        model = _network_without_values(architecture, strategy.transform_model)
    strategy.pace.check(next(iter(named_params(model).values())).blocks)
    if recipe.eval_size is not None:
        _check_size(
            model,
            architecture,
            recipe.eval_size,
            f", which is built for {recipe.image_size} px,",
            ". Leave out the evaluation size, or use a network that takes any size; many transformers do with the "
            "backbone argument dynamic_img_size=True",
        )
    _check_embeddings(model, recipe)


@lru_cache(maxsize=32)  # every backbone in every image size of a sweep
def _unchanged_network(architecture: _Architecture) -> Any:
    """The network that all strategies share that do not change it: building and running it takes most of a check."""
    return _network_without_values(architecture, keep_model)


def _network_without_values(architecture: _Architecture, transform: ModelTransform) -> Any:
    """Return a network of shapes only, after a check that it takes its images."""
    with torch.device("meta"):  # no memory, no arithmetic, no random numbers
        model = _build(architecture, None, transform).eval()
    _check_size(model, architecture, architecture.image_size)
    return model


def _check_size(model: Any, architecture: _Architecture, size: int, condition: str = "", advice: str = "") -> None:
    """Raise a ValueError if a network without values cannot take images of this size in pixels."""
    with torch.device("meta"), torch.no_grad():
        try:
            model(_images(architecture, size))
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"{architecture.backbone}{condition} cannot take images of {size} px: {error}{advice}"
            ) from error


def _images(architecture: _Architecture, size: int) -> Tensor:
    """Return two images of this size in pixels, without values."""
    channels: InputChannels = architecture.colour.build(INPUT_CHANNELS)
    return torch.zeros(2, channels.channels, size, size, device="meta")


def _check_interface(model: Any, name: str) -> None:
    # Some of timm's families have two heads, for distillation, or do not name their blocks.
    if not isinstance(model.get_classifier(), nn.Module) or not hasattr(model, "group_matcher"):
        raise ValueError(
            f"{name} cannot be trained here, because timm does not say which layer is its head, or which parameters "
            f"form a block: use another backbone"
        )


def _check_embeddings(model: Any, recipe: Recipe) -> None:
    # Choices that use the head separately from the body need embeddings of two dimensions.
    strategy: Strategy = recipe.strategy.build(STRATEGIES)
    term: EmbeddingLoss | None = recipe.embedding_loss.build(EMBEDDING_LOSSES)
    choices = [f"strategy {recipe.strategy}"] if strategy.fit else []
    choices += [f"embedding_loss {recipe.embedding_loss}"] if term else []
    if not choices:
        return
    if term:
        term.build(1, recipe.classes)  # raises if the library it needs is not installed
    head = model.get_classifier()
    if strategy.fit and strategy.fit.how == "ridge" and type(head) is not nn.Linear:
        raise ValueError(
            f"strategy {recipe.strategy} replaces a linear layer, but {recipe.backbone} ends in {type(head).__name__}: "
            f"use logistic_probe, or another backbone"
        )
    try:
        with torch.no_grad():
            features = model.forward_features(_images(_architecture(recipe), recipe.image_size))
            fits = head(model.forward_head(features, pre_logits=True)).ndim == 2
    except (RuntimeError, IndexError):
        fits = False
    if not fits:
        raise ValueError(
            f"{' and '.join(choices)} needs a head that takes embeddings [N, D], but {recipe.backbone} ends in "
            f"{type(head).__name__}, which does not: use another backbone"
        )


def _replace_head(model: Any, architecture: _Architecture) -> None:
    old = model.get_classifier()
    if not isinstance(old, nn.Linear):
        raise ValueError(
            f"head {architecture.head} replaces a linear layer, but {architecture.backbone} ends in "
            f"{type(old).__name__}: use head linear"
        )
    name = next(name for name, module in model.named_modules() if module is old)
    model.set_submodule(name, architecture.head.build(HEADS)(old.in_features, architecture.classes))
