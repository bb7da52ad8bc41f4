"""Halves: a network in two, the frozen part below and the part above that is trained on what it makes of images.

While the lower half is frozen, what it makes of an image does not change: computed once, it serves every epoch, and
every recipe that freezes as much.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

EMBEDDINGS = "embeddings"
"""The place right below the classifier."""

TOLERANCE = 1e-5
"""How far the two halves, one after the other, may be from the network as a whole, relative to its largest logit: the
same operations in the same order, but a kernel may be chosen anew."""

ADD_OPS = (operator.add, operator.iadd, torch.add)
"""Where a shortcut comes back."""


@dataclass(frozen=True, eq=False)
class SplitModel:
    """A network in two."""

    place: str
    """Where it is cut: together with the lower half's weights it says what `lower` computes."""
    lower: nn.Module
    """Prepared images [B, C, H, W] to features [B, ...]: frozen, and without chance."""
    upper: nn.Module
    """Features [B, ...] to logits [B, classes]. Its modules are the network's own."""
    frozen: tuple[Tensor, ...]
    """Every tensor that `lower` computes with."""


def split_at_frozen(model: Any, image_size: int, channels: int = 3) -> SplitModel | None:
    """A network cut as high as it is frozen now; None where nothing is, or where it cannot be cut.

    A cut is believed only where both halves together give what the whole network gives. Networks that cannot be traced
    are cut below the classifier or not at all; those that drop activations at random without a module of their own are
    not cut, for what is dropped could not be told from what is frozen.

    Args:
        model: a timm network, its parameters and modules in the modes in which it is trained now.
        image_size: side of its images in pixels.
        channels: of its images.
    """
    images = torch.rand(2, channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
    images = images.to(next(model.parameters()).device).contiguous(memory_format=torch.channels_last)
    if _only_head_moves(model):
        # Some families drop embeddings by a function, not by a module.
        cut = None if getattr(model, "drop_rate", 0.0) else split_at_classifier(model)
    else:
        cut = _as_high_as_frozen(model)
    return cut if cut is not None and _agree(model, cut, images) else None


def split_at_classifier(model: Any) -> SplitModel:
    """A network cut right below its classifier, whatever moves there."""
    head = {id(tensor) for tensor in model.get_classifier().parameters()}
    below = tuple(tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in head)
    return SplitModel(EMBEDDINGS, Embedder(model), model.get_classifier(), below)


class Embedder(nn.Module):
    """Everything below the classifier: images [B, C, H, W] to embeddings [B, D]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """What the classifier is asked with."""
        embeddings: Tensor = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        return embeddings


def _only_head_moves(model: Any) -> bool:
    head = {id(module) for module in model.get_classifier().modules()}
    return not any(_moves(module) for module in model.modules() if id(module) not in head)


def _moves(module: nn.Module) -> bool:
    """Does a module, without its children, give other results from one step to the next?"""
    if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
        return True
    chance = float(getattr(module, "p", 0.0)) if isinstance(module, _DropoutNd) else getattr(module, "drop_prob", 0.0)
    return module.training and (isinstance(module, _BatchNorm) or bool(chance))


class _Tracer(fx.Tracer):
    """Follows a network's forward pass down to torch's own layers, and to those of timm's that branch on values."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self._whole = tuple(get_notrace_modules())

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, self._whole) or super().is_leaf_module(module, name)


class _Plain(nn.Module):
    """A network that takes images and nothing else, whatever options its own forward pass has."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits


def _as_high_as_frozen(network: Any) -> SplitModel | None:
    model = _Plain(network)
    try:
        graph = _Tracer().trace(model)
    except Exception:  # whatever a network's code makes of values that are not there yet
        return None
    nodes = list(graph.nodes)
    if any(node.target is functional.dropout for node in nodes):
        return None
    first = next((place for place, node in enumerate(nodes) if _changes(model, node)), 0)
    place = _highest_cut(nodes, first)
    if place is None:
        return None
    lower, crossing, upper = _divided(graph, nodes, place)
    below = fx.GraphModule(model, lower)
    frozen = (*below.parameters(), *below.buffers())
    return SplitModel(f"{crossing}: {below.code}", below, fx.GraphModule(model, upper), frozen) if frozen else None


def _changes(model: nn.Module, node: fx.Node) -> bool:
    """Does a step of the forward pass give other results from one training step to the next?"""
    if node.op == "call_module":
        return any(_moves(module) for module in model.get_submodule(str(node.target)).modules())
    if node.op == "get_attr":
        return bool(getattr(operator.attrgetter(str(node.target))(model), "requires_grad", False))
    return False


def _highest_cut(nodes: list[fx.Node], first: int) -> int | None:
    """The last place before `first` at which a single value passes from below to above; None for none."""
    places = {node: place for place, node in enumerate(nodes)}
    until = [max((places[user] for user in node.users), default=place) for place, node in enumerate(nodes)]
    for place in range(first, 1, -1):
        crossing = [node for node, last in zip(nodes[:place], until, strict=False) if last >= place]
        # A module's output is a tensor, and so is where a shortcut comes back; sizes and the like are left alone.
        if len(crossing) == 1 and (crossing[0].op == "call_module" or crossing[0].target in ADD_OPS):
            return place
    return None


def _divided(graph: fx.Graph, nodes: list[fx.Node], place: int) -> tuple[fx.Graph, str, fx.Graph]:
    """The graph up to a place, the name of the one value that passes it, and the rest."""
    known: dict[fx.Node, fx.Node] = {}
    lower = fx.Graph()
    for node in nodes[:place]:
        known[node] = lower.node_copy(node, known.__getitem__)
    below = set(nodes[:place])
    crossing = next(node for node in nodes[:place] if any(user not in below for user in node.users))
    lower.output(known[crossing])
    upper = fx.Graph()
    known = {crossing: upper.placeholder("features")}
    for node in nodes[place:]:
        known[node] = upper.node_copy(node, known.__getitem__)
    return lower, crossing.name, upper


def _agree(model: nn.Module, cut: SplitModel, images: Tensor) -> bool:
    """Do both halves together give what the network gives? In evaluation mode, so that nothing is changed by asking."""
    modes = [(module, module.training) for module in {*model.modules(), *cut.upper.modules()}]
    try:
        with torch.no_grad():
            model.eval(), cut.upper.eval()
            whole, both = model(images), cut.upper(cut.lower(images))
    except (RuntimeError, TypeError, IndexError):
        return False
    finally:
        for module, training in modes:
            module.training = training
    return whole.shape == both.shape and float((whole - both).abs().max()) <= TOLERANCE * float(
        whole.abs().max().clamp_min(1)
    )
