"""Networks: builds a recipe's network from the backbone and the choices that change its architecture."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xfer.methods import activations
from xfer.methods.activations import ACTIVATIONS
from xfer.methods.embedding_losses import EMBEDDING_LOSSES, EmbeddingLoss
from xfer.methods.heads import HEADS
from xfer.methods.input_channels import INPUT_CHANNELS, InputChannels
from xfer.methods.strategies import STRATEGIES, Strategy
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
    colour: InputChannels = recipe.colour.build(INPUT_CHANNELS)
    model: Any = backbones.build(
        recipe.backbone,
        recipe.classes,
        recipe.image_size,
        weights if strategy.pretrained else None,
        dict(recipe.backbone_args),
        colour.channels,
    )
    _check_interface(model, recipe.backbone)
    activations.replace_activations(model, recipe.activation.build(ACTIVATIONS))
    model = strategy.transform_model(model, recipe.image_size)
    if recipe.head.name != "linear":
        _replace_head(model, recipe)
    strategy.pace.check(next(iter(named_params(model).values())).blocks)
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
    colour: InputChannels = recipe.colour.build(INPUT_CHANNELS)
    with torch.device("meta"), torch.no_grad():  # shapes only: no memory, no arithmetic, no random numbers
        model = build_network(recipe, None).eval()
        images = torch.zeros(2, colour.channels, recipe.image_size, recipe.image_size)
        try:
            model(images)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"{recipe.backbone} cannot take images of {recipe.image_size} px: {error}") from error
        _check_embeddings(model, images, recipe)


def _check_interface(model: Any, name: str) -> None:
    # Some of timm's families have two heads, for distillation, or do not name their blocks.
    if not isinstance(model.get_classifier(), nn.Module) or not hasattr(model, "group_matcher"):
        raise ValueError(
            f"{name} cannot be trained here, because timm does not say which layer is its head, or which parameters "
            f"form a block: use another backbone"
        )


def _check_embeddings(model: Any, images: Tensor, recipe: Recipe) -> None:
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
        fits = head(model.forward_head(model.forward_features(images), pre_logits=True)).ndim == 2
    except (RuntimeError, IndexError):
        fits = False
    if not fits:
        raise ValueError(
            f"{' and '.join(choices)} needs a head that takes embeddings [N, D], but {recipe.backbone} ends in "
            f"{type(head).__name__}, which does not: use another backbone"
        )


def _replace_head(model: Any, recipe: Recipe) -> None:
    old = model.get_classifier()
    if not isinstance(old, nn.Linear):
        raise ValueError(
            f"head {recipe.head} replaces a linear layer, but {recipe.backbone} ends in {type(old).__name__}: use head "
            f"linear"
        )
    name = next(name for name, module in model.named_modules() if module is old)
    model.set_submodule(name, recipe.head.build(HEADS)(old.in_features, recipe.classes))
