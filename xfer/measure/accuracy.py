"""How a network does on images it was not trained on, image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from xfer.micro_batches import Fit
from xfer.records import Evaluation, Part

Prepare = Callable[[Tensor], Tensor]
"""uint8 [B, 3, H, W] to what the network takes, on its device."""

BINS = 15  # of the most likely class's probability, as in Guo et al. 2017
TOP = 5


def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], prepare: Prepare, part: Part, images: Iterable[int]
) -> Evaluation:
    """Judge a network, which is left in evaluation mode, in one pass; `Evaluation.noisy` is not its business.

    A batch for which the memory does not suffice is halved, and so are those after it: an answer does not depend on who
    else was asked.

    Args:
        model: logits [B, C] from prepared images.
        batches: uint8 images [B, 3, H, W] and labels [B].
        prepare: what stands between the two.
        part: which part of the data this is.
        images: the images' places in the pack, in the order of the batches.
    """
    model.eval()
    found = []
    fit = Fit()
    with torch.inference_mode():
        for pixels, labels in batches:
            logits = fit.fitting(len(pixels), partial(_answers, model, prepare, pixels))
            labels = labels.to(logits.device)
            losses = functional.cross_entropy(logits, labels, reduction="none")
            probability = logits.softmax(dim=1).amax(dim=1)
            found.append((losses, labels, logits.argmax(dim=1), probability, ranks_of(logits, labels)))
    # Only now are the numbers fetched: until here nothing made a GPU wait.
    losses, labels, predicted, probability, ranks = (torch.cat(each).cpu() for each in zip(*found, strict=True))
    hits = predicted == labels
    return Evaluation(
        part,
        float(losses.mean()),
        tuple(int(place) for place in images),
        tuple(hits.tolist()),
        top5_accuracy=float((ranks < TOP).double().mean()) if logits.shape[1] > TOP else None,
        balanced_accuracy=_balanced_accuracy(labels, hits),
        calibration_error=calibration_error(probability, hits),
        confusion=_confusion(labels, predicted),
    )


def _answers(model: nn.Module, prepare: Prepare, images: Tensor, parts: list[slice]) -> Tensor:
    """Logits [B, C], asked for in parts."""
    return torch.cat([model(prepare(images[part])).float() for part in parts])


def ranks_of(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the right one, int64 [B] from logits [B, C] and labels [B].

    Of equal logits the one of the lower class comes first, so that a network that says nothing is not taken to be
    right; what is not a number comes before everything.

    >>> ranks_of(torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.5, 0.5]]), torch.tensor([0, 1]))
    tensor([2, 1])
    """
    own = logits.gather(1, labels[:, None])
    tied = (logits == own) & (torch.arange(logits.shape[1], device=logits.device) < labels[:, None])
    return (~(logits <= own) | tied).sum(dim=1)


def calibration_error(probability: Tensor, hits: Tensor) -> float:
    """Expected calibration error in [0, 1] over 15 bins of equal width, each with its upper end (Guo et al. 2017).

    Args:
        probability: of the most likely class, [N] in [0, 1].
        hits: whether that was the right one, bool [N].

    >>> calibration_error(torch.tensor([0.75, 0.75, 0.75, 0.75]), torch.tensor([True, True, False, False]))
    0.25
    """
    ends = torch.arange(1, BINS, dtype=torch.float64) / BINS
    bins = torch.bucketize(probability.double(), ends)
    # In each bin: (its images / all images) x |mean probability - mean hit| = |sum of the differences| / all images.
    difference = torch.bincount(bins, weights=probability.double() - hits.double(), minlength=BINS)
    return float(difference.abs().sum() / len(hits))


def _balanced_accuracy(labels: Tensor, hits: Tensor) -> float:
    images = torch.bincount(labels)
    right = torch.bincount(labels, weights=hits.double())
    return float((right / images)[images > 0].mean())


def _confusion(labels: Tensor, predicted: Tensor) -> tuple[tuple[int, int, int], ...]:
    pairs, images = torch.unique(torch.stack((labels, predicted), dim=1), dim=0, return_counts=True)  # comes sorted
    return tuple((true, said, count) for (true, said), count in zip(pairs.tolist(), images.tolist(), strict=True))
