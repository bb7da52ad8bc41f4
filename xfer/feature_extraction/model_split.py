"""Model split: a network in two halves, a frozen one below and a trained one above.

While the lower half is frozen, its features of an image do not change. Computed once, they serve every epoch, and every
recipe that freezes the same part.
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
"""Cut point right below the classifier."""

TOLERANCE = 1e-5
"""Maximum difference between the logits of both halves in sequence and of the network, relative to its largest logit.
The operations are the same, but other kernels may be chosen."""

ADD_OPS = (operator.add, operator.iadd, torch.add)
"""Operations that end a residual connection."""


@dataclass(frozen=True, eq=False)
class SplitModel:
    """A network in two halves."""

    cut_point: str
    """Where the network is cut. With the weights of the lower half it identifies what `lower` computes."""
    lower: nn.Module
    """Frozen and deterministic half: prepared images [B, C, H, W] to features [B, ...]."""
    upper: nn.Module
    """Upper half: features [B, ...] to logits [B, classes]. Its modules are the network's own."""
    frozen: tuple[Tensor, ...]
    """All parameters and buffers of `lower`."""


def split_at_frozen(model: Any, image_size: int, channels: int = 3) -> SplitModel | None:
    """Split a network as high as it is frozen now.

    A split is only used if both halves in sequence give the network's output. A network that cannot be traced is split
    below the classifier or not at all. A network that drops activations by a function instead of a module is not split,
    because dropped parts cannot be told from frozen ones.

    Args:
        model: a timm network, its parameters and modules in the modes in which it is trained now.
        image_size: side of its images in pixels.
        channels: number of its input channels.

    Returns:
        None if nothing is frozen, or the network cannot be split.
    """
    images = torch.rand(2, channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
    images = images.to(next(model.parameters()).device).contiguous(memory_format=torch.channels_last)
    if _only_head_moves(model):
        # Some families drop embeddings by a function, not by a module.
        split = None if getattr(model, "drop_rate", 0.0) else split_at_classifier(model)
    else:
        split = _split_by_tracing(model)
    return split if split is not None and _same_output(model, split, images) else None


def split_at_classifier(model: Any) -> SplitModel:
    """Split a network right below its classifier, frozen or not."""
    head = {id(tensor) for tensor in model.get_classifier().parameters()}
    below = tuple(tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in head)
    return SplitModel(EMBEDDINGS, Embedder(model), model.get_classifier(), below)


class Embedder(nn.Module):
    """Everything below the classifier: images [B, C, H, W] to embeddings [B, D]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the classifier's inputs."""
        embeddings: Tensor = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        return embeddings


def _only_head_moves(model: Any) -> bool:
    head = {id(module) for module in model.get_classifier().modules()}
    return not any(_module_varies(module) for module in model.modules() if id(module) not in head)


def _module_varies(module: nn.Module) -> bool:
    """Whether a module, without its children, can give other results from one step to the next."""
    if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
        return True
    drop_rate = getattr(module, "p", 0.0) if isinstance(module, _DropoutNd) else getattr(module, "drop_prob", 0.0)
    return module.training and (isinstance(module, _BatchNorm) or bool(drop_rate))


class _Tracer(fx.Tracer):
    """Traces a forward pass down to torch's layers and those of timm that branch on values."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self._leaf_classes = tuple(get_notrace_modules())

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, self._leaf_classes) or super().is_leaf_module(module, name)


class _ImagesOnly(nn.Module):
    """A network whose forward pass takes images and no options."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits


def _split_by_tracing(network: Any) -> SplitModel | None:
    model = _ImagesOnly(network)
    try:
        graph = _Tracer().trace(model)
    except Exception:  # a network's code may do anything with the values that stand for tensors
        return None
    nodes = list(graph.nodes)
    if any(node.target is functional.dropout for node in nodes):
        return None
    first_varying = next((index for index, node in enumerate(nodes) if _node_varies(model, node)), 0)
    cut = _highest_cut(nodes, first_varying)
    if cut is None:
        return None
    lower, crossing, upper = _split_graph(graph, nodes, cut)
    below = fx.GraphModule(model, lower)
    frozen = (*below.parameters(), *below.buffers())
    return SplitModel(f"{crossing}: {below.code}", below, fx.GraphModule(model, upper), frozen) if frozen else None


def _node_varies(model: nn.Module, node: fx.Node) -> bool:
    """Whether an operation of the forward pass can give other results from one training step to the next."""
    if node.op == "call_module":
        return any(_module_varies(module) for module in model.get_submodule(str(node.target)).modules())
    if node.op == "get_attr":
        return bool(getattr(operator.attrgetter(str(node.target))(model), "requires_grad", False))
    return False


def _highest_cut(nodes: list[fx.Node], limit: int) -> int | None:
    """The largest index, at most `limit`, before which the graph can be cut through a single tensor."""
    index_of = {node: index for index, node in enumerate(nodes)}
    last_uses = [max((index_of[user] for user in node.users), default=index) for index, node in enumerate(nodes)]
    for cut in range(limit, 1, -1):
        crossing = [node for node, last_use in zip(nodes[:cut], last_uses, strict=False) if last_use >= cut]
        # Outputs of modules and of residual additions are tensors; other values may be sizes and the like.
        if len(crossing) == 1 and (crossing[0].op == "call_module" or crossing[0].target in ADD_OPS):
            return cut
    return None


def _split_graph(graph: fx.Graph, nodes: list[fx.Node], cut: int) -> tuple[fx.Graph, str, fx.Graph]:
    """The graph below a cut, the name of the one value that crosses it, and the graph above."""
    copies: dict[fx.Node, fx.Node] = {}
    lower = fx.Graph()
    for node in nodes[:cut]:
        copies[node] = lower.node_copy(node, copies.__getitem__)
    below = set(nodes[:cut])
    crossing = next(node for node in nodes[:cut] if any(user not in below for user in node.users))
    lower.output(copies[crossing])
    upper = fx.Graph()
    copies = {crossing: upper.placeholder("features")}
    for node in nodes[cut:]:
        copies[node] = upper.node_copy(node, copies.__getitem__)
    return lower, crossing.name, upper


def _same_output(model: nn.Module, split: SplitModel, images: Tensor) -> bool:
    """Whether both halves in sequence give the network's output, in evaluation mode, which changes no state."""
    modes = [(module, module.training) for module in {*model.modules(), *split.upper.modules()}]
    try:
        with torch.no_grad():
            model.eval(), split.upper.eval()
            expected, actual = model(images), split.upper(split.lower(images))
    except (RuntimeError, TypeError, IndexError):
        return False
    finally:
        for module, training in modes:
            module.training = training
    if expected.shape != actual.shape:
        return False
    return float((expected - actual).abs().max()) <= TOLERANCE * float(expected.abs().max().clamp_min(1))
