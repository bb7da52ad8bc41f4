"""How a network does on images it was not trained on, image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from xfer.records import Evaluation, Part

Prepare = Callable[[Tensor], Tensor]
"""uint8 [B, 3, H, W] to what the network takes, on its device."""


def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], prepare: Prepare, part: Part, images: Iterable[int]
) -> Evaluation:
    """Judge a network, which is left in evaluation mode.

    Args:
        model: logits [B, C] from prepared images.
        batches: uint8 images [B, 3, H, W] and labels [B].
        prepare: what stands between the two.
        part: which part of the data this is.
        images: the images' places in the pack, in the order of the batches.
    """
    model.eval()
    losses, correct = [], []
    with torch.inference_mode():
        for pixels, labels in batches:
            logits = model(prepare(pixels)).float()
            labels = labels.to(logits.device)
            losses.append(functional.cross_entropy(logits, labels, reduction="none"))
            correct.append(logits.argmax(dim=1) == labels)
    hits = torch.cat(correct).tolist()
    return Evaluation(part, float(torch.cat(losses).mean()), tuple(int(place) for place in images), tuple(hits))
