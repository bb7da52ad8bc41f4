"""How a network does on images it was not trained on, image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from xfer.devices.microbatching import MicroBatcher
from xfer.records import Evaluation, Part

Preprocess = Callable[[Tensor], Tensor]
"""uint8 [B, 3, H, W] to what the network takes, on its device."""

CALIBRATION_BINS = 15  # of the most likely class's probability, as in Guo et al. 2017
TOP_K = 5


def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], prepare: Preprocess, part: Part, images: Iterable[int]
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
    fit = MicroBatcher()
    with torch.inference_mode():
        for pixels, labels in batches:
            logits = fit.run_split(len(pixels), partial(_answers, model, prepare, pixels))
            found.append(Predictions.to(logits, labels))
    return Predictions.concatenate(found).to_evaluation(part, images)


def evaluate_logits(logits: Tensor, labels: Tensor, part: Part, images: Iterable[int]) -> Evaluation:
    """What `evaluate` says of a network that gave these logits [N, C] to images of these labels [N]."""
    return Predictions.concatenate([Predictions.to(logits.float(), labels)]).to_evaluation(part, images)


@dataclass(frozen=True, eq=False)
class Predictions:
    """What was said to each of N images, and how it stands to the right answer: tensors [N], row by row."""

    losses: Tensor
    """Cross-entropy."""
    labels: Tensor
    predicted: Tensor
    probability: Tensor
    """Of the most likely class, in [0, 1]."""
    ranks: Tensor
    """How many classes come before the right one."""
    classes: int

    @classmethod
    def to(cls, logits: Tensor, labels: Tensor) -> Predictions:
        """From logits [N, C] and labels [N]; on the logits' device, and nothing waits for it."""
        labels = labels.to(logits.device)
        losses = functional.cross_entropy(logits, labels, reduction="none")
        probability = logits.softmax(dim=1).amax(dim=1)
        return cls(losses, labels, logits.argmax(dim=1), probability, target_ranks(logits, labels), logits.shape[1])

    @classmethod
    def concatenate(cls, found: Sequence[Predictions]) -> Predictions:
        """One after the other, on the CPU: only now are the numbers fetched, until here nothing made a GPU wait."""
        rows = [torch.cat(each).cpu() for each in zip(*(answers.rows() for answers in found), strict=True)]
        losses, labels, predicted, probability, ranks = rows
        return cls(losses, labels, predicted, probability, ranks, found[0].classes)

    def split(self, count: int) -> list[Predictions]:
        """Apart again, where `count` networks answered image by image in turn: [N / count] for each of them."""
        losses, labels, predicted, probability, ranks = (rows.view(-1, count).T.contiguous() for rows in self.rows())
        return [
            Predictions(losses[one], labels[one], predicted[one], probability[one], ranks[one], self.classes)
            for one in range(count)
        ]

    def rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The tensors, in the order of the fields."""
        return self.losses, self.labels, self.predicted, self.probability, self.ranks

    def to_evaluation(self, part: Part, images: Iterable[int]) -> Evaluation:
        """Everything that an evaluation says but noise.

        Args:
            part: which part of the data this is.
            images: the images' places in the pack, in the order of the answers.
        """
        hits = self.predicted == self.labels
        return Evaluation(
            part,
            float(self.losses.mean()),
            tuple(int(place) for place in images),
            tuple(hits.tolist()),
            top5_accuracy=float((self.ranks < TOP_K).double().mean()) if self.classes > TOP_K else None,
            balanced_accuracy=_balanced_accuracy(self.labels, hits),
            calibration_error=calibration_error(self.probability, hits),
            confusion=_confusion(self.labels, self.predicted, self.classes),
        )


def _answers(model: nn.Module, prepare: Preprocess, images: Tensor, parts: list[slice]) -> Tensor:
    """Logits [B, C], asked for in parts."""
    return torch.cat([model(prepare(images[part])).float() for part in parts])


def target_ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the right one, int64 [B] from logits [B, C] and labels [B].

    Of equal logits the one of the lower class comes first, so that a network that says nothing is not taken to be
    right; what is not a number comes before everything.

    >>> target_ranks(torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.5, 0.5]]), torch.tensor([0, 1]))
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
    ends = torch.arange(1, CALIBRATION_BINS, dtype=torch.float64) / CALIBRATION_BINS
    bins = torch.bucketize(probability.double(), ends)
    # In each bin: (its images / all images) x |mean probability - mean hit| = |sum of the differences| / all images.
    difference = torch.bincount(bins, weights=probability.double() - hits.double(), minlength=CALIBRATION_BINS)
    return float(difference.abs().sum() / len(hits))


def _balanced_accuracy(labels: Tensor, hits: Tensor) -> float:
    images = torch.bincount(labels)
    right = torch.bincount(labels, weights=hits.double())
    return float((right / images)[images > 0].mean())


def _confusion(labels: Tensor, predicted: Tensor, classes: int) -> tuple[tuple[int, int, int], ...]:
    pairs, images = torch.unique(labels * classes + predicted, return_counts=True)  # comes sorted
    return tuple((*divmod(pair, classes), count) for pair, count in zip(pairs.tolist(), images.tolist(), strict=True))
