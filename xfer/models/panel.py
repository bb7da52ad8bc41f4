"""Panel: the networks that `--backbone auto` compares, in one table, by the size of machine they suit.

No network is best on all data, and in a study of 10,469 experiments the choice of network explained 94% of the variance
(arXiv 2603.15916). So a few networks of different families and kinds of pretraining compete. The table is a selection
from published comparisons; this project has not measured it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

PanelSize = Literal["small", "medium", "large"]
"""Panels, by machine: `machine_description` says which machines each is for."""

AUTO = "auto"
"""Name that stands for the panel among backbones."""

PANEL_IMAGE_SIZE = 224
"""Side of the images in pixels if none is requested: the size of most pretraining, and at most that of the others."""

MEDIUM_GPU_BYTES, LARGE_GPU_BYTES = 7 * 2**30, 36 * 2**30
"""Smallest memory of a GPU for the medium and the large panel, a little below 8 and 40 GB as they are sold. A rule of
thumb: 16 bytes per parameter for weights, gradients and AdamW's moments, and activations of 32 images; not measured."""

TIMM_RESULTS = "timm results/results-imagenet.csv at 0173a139"
"""Source of the accuracies on ImageNet: github.com/huggingface/pytorch-image-models, at this commit."""
BATTLE_OF_THE_BACKBONES = "Goldblum et al. 2023 (arXiv 2310.19909)"
DINOV3, SIGLIP2 = "Siméoni et al. 2025 (arXiv 2508.10104)", "Tschannen et al. 2025 (arXiv 2502.14786)"


@dataclass(frozen=True)
class PanelNetwork:
    """A network of the panel, and why it is there."""

    size: PanelSize
    family: str
    parameters: float
    """Number of parameters without a head, in millions."""
    gflops: float
    """Billions of floating-point operations of a forward pass of one image at 224 px, a multiply-add counted as two."""
    top1: float | None
    """Accuracy on the validation set of ImageNet-1k in [0, 1], as published by timm; None for a network that was never
    trained to classify ImageNet."""
    top1_size: int | None
    """Image size of that accuracy in pixels."""
    reason: str
    source: str
    license: str = ""
    """License of the weights if it restricts their use; empty for Apache 2.0 and MIT."""


PANEL: dict[str, PanelNetwork] = {
    "convnext_nano.in12k_ft_in1k": PanelNetwork(
        *("small", "convnext", 14.95, 4.89, 0.82862, 288),
        reason="best on ImageNet in this panel; small version of the first in Battle of the Backbones",
        source=f"{TIMM_RESULTS}; {BATTLE_OF_THE_BACKBONES}",
    ),
    "tf_efficientnetv2_b3.in21k_ft_in1k": PanelNetwork(
        *("small", "batch_norm", 12.82, 3.22, 0.82670, 300),
        reason="batch-norm network pretrained on ImageNet-21k",
        source=TIMM_RESULTS,
    ),
    "mobilenetv3_large_100.miil_in21k_ft_in1k": PanelNetwork(
        *("small", "batch_norm", 4.20, 0.43, 0.77918, 224),
        reason="fewest operations; pretrained on ImageNet-21k",
        source=TIMM_RESULTS,
    ),
    "efficientnet_b0.ra_in1k": PanelNetwork(
        *("small", "batch_norm", 4.01, 0.77, 0.77694, 224),
        reason="the network of most examples, so results can be compared",
        source=TIMM_RESULTS,
    ),
    "mobilenetv2_100.ra_in1k": PanelNetwork(
        *("small", "batch_norm", 2.22, 0.60, 0.72976, 224),
        reason="fewest parameters, for small devices",
        source=TIMM_RESULTS,
    ),
    "vit_small_patch16_dinov3.lvd1689m": PanelNetwork(
        *("small", "vit", 21.59, 9.40, None, None),
        reason="self-supervised on 1.7 billion images; made for heads on frozen features",
        source=DINOV3,
        license="DINOv3 license",
    ),
    "convnext_base.fb_in22k_ft_in1k": PanelNetwork(
        *("medium", "convnext", 87.57, 30.71, 0.86274, 288),
        reason="first in Battle of the Backbones over all tasks",
        source=f"{BATTLE_OF_THE_BACKBONES}; {TIMM_RESULTS}",
    ),
    "swinv2_base_window12to16_192to256.ms_in22k_ft_in1k": PanelNetwork(
        *("medium", "vit", 86.89, 34.09, 0.86268, 256),
        reason="second in Battle of the Backbones over all tasks",
        source=f"{BATTLE_OF_THE_BACKBONES}; {TIMM_RESULTS}",
    ),
    "convnext_tiny.in12k_ft_in1k": PanelNetwork(
        *("medium", "convnext", 27.82, 8.91, 0.84450, 288),
        reason="the best family at a third of the parameters, for few images",
        source=f"{BATTLE_OF_THE_BACKBONES}; {TIMM_RESULTS}",
    ),
    "tf_efficientnetv2_s.in21k_ft_in1k": PanelNetwork(
        *("medium", "batch_norm", 20.18, 5.70, 0.84288, 384),
        reason="batch-norm network pretrained on ImageNet-21k",
        source=TIMM_RESULTS,
    ),
    "vit_base_patch16_dinov3.lvd1689m": PanelNetwork(
        *("medium", "vit", 85.64, 35.86, None, None),
        reason="self-supervised on 1.7 billion images; made for heads on frozen features",
        source=DINOV3,
        license="DINOv3 license",
    ),
    "vit_base_patch16_siglip_224.v2_webli": PanelNetwork(
        *("medium", "vit", 92.88, 35.42, None, None),
        reason="pretrained on images with text; strong frozen features of everyday things",
        source=SIGLIP2,
    ),
    "beitv2_large_patch16_224.in1k_ft_in22k_in1k": PanelNetwork(
        *("large", "vit", 303.41, 123.11, 0.88394, 224),
        reason="best on ImageNet at 224 px below a billion parameters",
        source=TIMM_RESULTS,
    ),
    "convnext_large.fb_in22k_ft_in1k": PanelNetwork(
        *("large", "convnext", 196.23, 68.72, 0.87026, 288),
        reason="larger version of the first in Battle of the Backbones",
        source=f"{BATTLE_OF_THE_BACKBONES}; {TIMM_RESULTS}",
    ),
    "swinv2_large_window12to16_192to256.ms_in22k_ft_in1k": PanelNetwork(
        *("large", "vit", 195.20, 74.15, 0.86952, 256),
        reason="larger version of the second in Battle of the Backbones",
        source=f"{BATTLE_OF_THE_BACKBONES}; {TIMM_RESULTS}",
    ),
    "tf_efficientnetv2_l.in21k_ft_in1k": PanelNetwork(
        *("large", "batch_norm", 117.23, 24.46, 0.86802, 480),
        reason="batch-norm network pretrained on ImageNet-21k",
        source=TIMM_RESULTS,
    ),
    "vit_large_patch16_dinov3.lvd1689m": PanelNetwork(
        *("large", "vit", 303.08, 125.68, None, None),
        reason="self-supervised on 1.7 billion images; made for heads on frozen features",
        source=DINOV3,
        license="DINOv3 license",
    ),
    "vit_large_patch16_siglip_256.v2_webli": PanelNetwork(
        *("large", "vit", 315.89, 123.31, None, None),
        reason="pretrained on images with text; strong frozen features of everyday things",
        source=SIGLIP2,
    ),
}
"""The networks by timm's name with tag; within a size, the best on ImageNet first."""

MACHINES: dict[PanelSize, str] = {
    "small": "a CPU, or a GPU with less than 8 GB",
    "medium": "a GPU with at least 8 GB, or a cluster with GPUs",
    "large": "a GPU with at least 40 GB",
}
"""Machines that each panel is for."""


def panel_size(gpu_bytes: int | None, is_cluster: bool = False) -> PanelSize:
    """Return the size of panel for a machine.

    Args:
        gpu_bytes: memory of its GPU; None without one. Ignored for a cluster, whose GPUs may differ and are mostly not
            those of the machine that asks.
        is_cluster: whether the trials run on a cluster with GPUs.

    >>> panel_size(None), panel_size(24 * 2**30), panel_size(80 * 2**30), panel_size(80 * 2**30, is_cluster=True)
    ('small', 'medium', 'large', 'medium')
    """
    if is_cluster:
        return "medium"
    if gpu_bytes is None or gpu_bytes < MEDIUM_GPU_BYTES:
        return "small"
    return "large" if gpu_bytes >= LARGE_GPU_BYTES else "medium"


def panel_names(size: PanelSize) -> tuple[str, ...]:
    """Return the names of the networks of one size, the best on ImageNet first."""
    return tuple(name for name, network in PANEL.items() if network.size == size)


def best_on_imagenet(names: Iterable[str]) -> str | None:
    """Return the network with the highest published accuracy on ImageNet.

    Returns:
        A name of the panel; None if no accuracy is published for any of the names.
    """
    rated = {name: PANEL[name].top1 or 0.0 for name in names if name in PANEL and PANEL[name].top1}
    return max(rated, key=lambda name: rated[name], default=None)


def markdown_table() -> str:
    """Return the panel as a table in Markdown, for docs/backbones.md."""
    header = ("panel", "network", "family", "parameters", "GFLOPs", "ImageNet top-1", "reason", "source", "license")
    rows = [
        (
            *(network.size, f"`{name}`", network.family, f"{network.parameters:.1f} M", f"{network.gflops:.2f}"),
            f"{100 * network.top1:.1f} ({network.top1_size} px)" if network.top1 else "not trained on it",
            *(network.reason, network.source, network.license or "Apache 2.0 or MIT"),
        )
        for name, network in PANEL.items()
    ]
    lines = (header, ("---",) * len(header), *rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
