"""Families of networks: what experts tune each with, and how the family of a network is recognized.

A network is recognized by its layers, not by its name: it is built once without memory, which takes a fraction of a
second, so repositories of the hub and networks of new versions of timm need no entry. Importing this module imports
neither torch nor timm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from xfer.hyperparameters import Distribution, Range

FamilyName = Literal["batch_norm", "vit", "convnext"]

DEEP_BLOCKS = 10
"""Smallest number of blocks with which learning rates that fall with depth belong to the default search: Clark et al.
2020 and Bao et al. 2021 use them in networks of 12 blocks and more. With a few blocks the decay hardly matters."""

DECOUPLED_DECAY = frozenset({"adamw", "lamb", "lion"})
"""Optimizers whose weight decay is not part of the gradient, so that it can be, and usually is, much larger."""

ATTENTION_NAMES = ("Attention", "Attn", "XCA", "GPSA")
"""Parts of the class names of timm's attention layers."""

UNKNOWN_BLOCKS = 1_000
"""Number of blocks that is assumed of a network that timm does not know."""


@dataclass(frozen=True)
class Family:
    """What a sweep tries by default on the networks of one family.

    Where a family has no range of its own, that of `xfer.hyperparameters` holds.
    """

    layers: str
    """The layers by which it is recognized."""
    optimizers: tuple[str, ...]
    """Optimizers, the first one to begin with."""
    learning_rates: Mapping[str, Range] = field(default_factory=dict)
    """Peak learning rates of fine-tuning pretrained weights, by optimizer."""
    weight_decay: Range | None = None
    """Weight decay of fine-tuning with an optimizer in `DECOUPLED_DECAY`."""
    parameters: Mapping[str, Distribution] = field(default_factory=dict)
    """Ranges of parameters of table entries, such as the layer decay."""
    drop_path: tuple[float, ...] = (0.0,)
    """Rates of stochastic depth, the first one to begin with; only 0 for a network that has none."""
    reason: str = ""
    source: str = ""


_ADAM_RATES = Range(1e-5, 5e-4, log=True)
_TRANSFORMER_RATES = {
    **dict.fromkeys(("adam", "adamw", "radam"), _ADAM_RATES),
    "lion": Range(1e-6, 1e-4, log=True),  # 3 to 10 times lower than AdamW's (Chen et al. 2023)
}

FAMILIES: dict[FamilyName, Family] = {
    "batch_norm": Family(
        layers="at least as many batch norms as layer norms: ResNet, EfficientNet, MobileNet",
        optimizers=("sgd", "adam", "adamw", "radam", "ranger"),
        reason="tuned with any of the usual optimizers, at higher rates than the other families",
        source="benchmarks/RECIPES.md",
    ),
    "vit": Family(
        layers="layer norm and attention: ViT, DeiT, Swin, BEiT, DINO, SigLIP",
        optimizers=("adamw", "sgd"),
        learning_rates=_TRANSFORMER_RATES,
        weight_decay=Range(0.01, 0.1, log=True),
        parameters={"decay": Range(0.65, 0.9), "warmup": Range(0.05, 0.2)},
        drop_path=(0.0, 0.1),
        reason="fine-tuned with AdamW at 1e-5 to 1e-4, a weight decay of 0.05, a layer decay of 0.65 to 0.9 and a "
        "warm-up of 5 to 20%",
        source="deit#120, dino#171 and dinov2#252 on GitHub; BEiT (arXiv 2106.08254); MAE (arXiv 2111.06377)",
    ),
    "convnext": Family(
        layers="layer norm without attention: ConvNeXt, MLP-Mixer, PoolFormer",
        optimizers=("adamw", "sgd"),
        learning_rates=_TRANSFORMER_RATES,
        weight_decay=Range(0.01, 0.1, log=True),
        parameters={"decay": Range(0.7, 0.9), "warmup": Range(0.05, 0.2)},
        drop_path=(0.0, 0.1, 0.2),
        reason="trained and fine-tuned like vision transformers, with more stochastic depth",
        source="ConvNeXt (arXiv 2201.03545); Quick-Tune (arXiv 2306.03828)",
    ),
}
"""The families, with reason and source. The rates of networks without pretrained weights are those of all networks."""


@dataclass(frozen=True)
class NetworkTraits:
    """What the default search depends on in a network."""

    family: FamilyName = "batch_norm"
    blocks: int = UNKNOWN_BLOCKS
    """Number of blocks below the head."""
    has_batch_norm: bool = True
    has_drop_path: bool = False
    """Whether the network has stochastic depth, which timm's `drop_path_rate` sets."""

    @property
    def is_deep(self) -> bool:
        """Whether the network has at least `DEEP_BLOCKS` blocks."""
        return self.blocks >= DEEP_BLOCKS


@lru_cache(maxsize=256)
def network_traits(name: str) -> NetworkTraits:
    """Return the family and further traits of a network.

    Args:
        name: as `xfer.models.backbones.build` takes it.

    Returns:
        The defaults of `NetworkTraits` for a network that timm does not know or cannot build.

    >>> network_traits("test_vit").family, network_traits("test_resnet").family, network_traits("test_convnext").family
    ('vit', 'batch_norm', 'convnext')
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    from xfer.models import backbones
    from xfer.models.params import named_params

    try:
        size = backbones.default_image_size(name)
        with torch.device("meta"):  # no memory, no random numbers
            model = backbones.build(name, 2, size)
            blocks = next(iter(named_params(model).values())).blocks
    except Exception:  # any error in a network's code; the check of the sweep's networks explains it
        return NetworkTraits()
    kinds = [type(module) for module in model.modules()]
    batch_norms = sum(issubclass(kind, _BatchNorm) for kind in kinds)
    layer_norms = sum(
        any(word in base.__name__ for base in kind.__mro__ for word in ("LayerNorm", "RmsNorm", "GroupNorm1"))
        for kind in kinds
    )
    attends = any(word in kind.__name__ for kind in kinds for word in ATTENTION_NAMES)
    family: FamilyName = "batch_norm" if batch_norms >= layer_norms else "vit" if attends else "convnext"
    return NetworkTraits(family, blocks, batch_norms > 0, backbones.has_drop_path(name, size))
