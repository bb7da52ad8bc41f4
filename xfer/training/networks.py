"""Networks: what a recipe trains, put together from the backbone's weights and the choices that change its shape."""

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
    """The network that a recipe trains, as it stands before the first step, in timm's language.

    Random weights come from torch's global generator. Without a file all of them are random: for shapes, or to be
    filled from elsewhere.

    Raises:
        ValueError: the weights do not fit, or the network cannot do what the recipe asks of it.
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
    _check_parts(model, recipe.backbone)
    activations.replace_activations(model, recipe.activation.build(ACTIVATIONS))
    model = strategy.transform_model(model, recipe.image_size)
    if recipe.head.name != "linear":
        _give_head(model, recipe)
    strategy.pace.check(next(iter(named_params(model).values())).blocks)
    return model


def build_preprocessor(recipe: Recipe, model: nn.Module, device: torch.device) -> backbones.Preprocessor:
    """What stands between a pack's pixels and the network of a recipe."""
    colour: InputChannels = recipe.colour.build(INPUT_CHANNELS)
    return backbones.Preprocessor(backbones.input_statistics(model), device, colour.channels, colour.convert)


def check_network(recipe: Recipe) -> None:
    """See that the network of a recipe can be built and takes its images: in a fraction of a second, without weights.

    Raises:
        ValueError: it cannot; the message says why.
    """
    # What has no say in the network's shape is set to one value, so that a sweep checks each shape once.
    _check_shape(
        dataclasses.replace(recipe, data="", learning_rate=1.0, weight_decay=0.0, seed=0, draw=0, split_seed=0)
    )


@lru_cache(maxsize=4096)
def _check_shape(recipe: Recipe) -> None:
    colour: InputChannels = recipe.colour.build(INPUT_CHANNELS)
    with torch.device("meta"), torch.no_grad():  # shapes alone: no memory, no arithmetic, no random numbers
        model = build_network(recipe, None).eval()
        images = torch.zeros(2, colour.channels, recipe.image_size, recipe.image_size)
        try:
            model(images)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"{recipe.backbone} cannot take images of {recipe.image_size} px: {error}") from error
        _check_embeddings(model, images, recipe)


def _check_parts(model: Any, name: str) -> None:
    # A few of timm's families have two heads side by side, for distillation, or say nothing of their blocks.
    if not isinstance(model.get_classifier(), nn.Module) or not hasattr(model, "group_matcher"):
        raise ValueError(
            f"{name} cannot be trained here, because timm does not say which one layer is its head, or which "
            f"parameters make a block: take another backbone"
        )


def _check_embeddings(model: Any, images: Tensor, recipe: Recipe) -> None:
    # Where a choice asks the head apart from the body, the two must fit.
    strategy: Strategy = recipe.strategy.build(STRATEGIES)
    term: EmbeddingLoss | None = recipe.embedding_loss.build(EMBEDDING_LOSSES)
    asking = [f"strategy {recipe.strategy}"] if strategy.fit else []
    asking += [f"embedding_loss {recipe.embedding_loss}"] if term else []
    if not asking:
        return
    if term:
        term.build(1, recipe.classes)  # the library it needs may not be there
    head = model.get_classifier()
    if strategy.fit and strategy.fit.how == "ridge" and type(head) is not nn.Linear:
        raise ValueError(
            f"strategy {recipe.strategy} takes the place of one linear layer, and {recipe.backbone} ends in "
            f"{type(head).__name__}: take logistic_probe, or another backbone"
        )
    try:
        fits = head(model.forward_head(model.forward_features(images), pre_logits=True)).ndim == 2
    except (RuntimeError, IndexError):
        fits = False
    if not fits:
        raise ValueError(
            f"{' and '.join(asking)} asks the head about embeddings [N, D], but {recipe.backbone} ends in "
            f"{type(head).__name__}, which takes none: take another backbone"
        )


def _give_head(model: Any, recipe: Recipe) -> None:
    old = model.get_classifier()
    if not isinstance(old, nn.Linear):
        raise ValueError(
            f"head {recipe.head} takes the place of one linear layer, and {recipe.backbone} ends in "
            f"{type(old).__name__}: leave head at linear"
        )
    place = next(name for name, module in model.named_modules() if module is old)
    model.set_submodule(place, recipe.head.build(HEADS)(old.in_features, recipe.classes))
