"""Evaluation of a network, image by image, on images that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from xfer.devices.microbatching import MicroBatcher
from xfer.records import Evaluation, Part

Preprocess = Callable[[Tensor], Tensor]
"""Maps uint8 images [B, 3, H, W] to the network's input, on its device."""

CALIBRATION_BINS = 15  # as in Guo et al. 2017
TOP_K = 5


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    prepare: Preprocess,
    part: Part,
    images: Iterable[int],
    flips: bool = False,
    on_logits: Callable[[Tensor], object] = lambda logits: None,
) -> Evaluation:
    """Evaluates a network in one pass and leaves it in evaluation mode.

    Does not fill `Evaluation.noisy`. On out-of-memory the batch size is halved for the rest of the pass; results are
    unaffected.

    Args:
        model: maps preprocessed images to logits [B, C].
        batches: uint8 images [B, 3, H, W] and labels [B].
        prepare: preprocesses the images.
        part: the part of the data that the images belong to.
        images: the images' indices in the pack, in the order of the batches.
        flips: whether to evaluate mirror images too, for `Evaluation.flip_correct`, which takes twice as long.
        on_logits: called with the logits [B, C] of each batch, on the network's device.
    """
    model.eval()
    predictions = []
    flip_hits = []
    batcher = MicroBatcher()
    with torch.inference_mode():
        for pixels, labels in batches:
            logits = batcher.run_split(len(pixels), partial(_logits, model, prepare, pixels))
            on_logits(logits)
            predictions.append(Predictions.from_logits(logits, labels))
            if flips:
                mirrored = batcher.run_split(len(pixels), partial(_logits, model, prepare, pixels.flip(-1)))
                flip_hits.append(correct_with_flips(logits, mirrored, labels))
    evaluation = Predictions.concatenate(predictions).to_evaluation(part, images)
    return replace(evaluation, flip_correct=tuple(torch.cat(flip_hits).tolist())) if flips else evaluation


def correct_with_flips(logits: Tensor, mirrored: Tensor, labels: Tensor) -> Tensor:
    """Returns whether the class with the highest mean probability is the correct one, bool [B].

    Test-time augmentation by horizontal flips; Krizhevsky et al. 2012 average over crops and their reflections alike.

    >>> correct_with_flips(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]]), torch.tensor([1]))
    tensor([True])

    Args:
        logits: logits [B, C] of the images.
        mirrored: logits [B, C] of their mirror images.
        labels: the correct classes [B].
    """
    probabilities = (logits.softmax(dim=1) + mirrored.softmax(dim=1)) / 2
    return target_ranks(probabilities, labels.to(logits.device)) == 0


def evaluate_logits(logits: Tensor, labels: Tensor, part: Part, images: Iterable[int]) -> Evaluation:
    """Returns what `evaluate` would for a network with these logits [N, C] on images with these labels [N]."""
    return Predictions.concatenate([Predictions.from_logits(logits.float(), labels)]).to_evaluation(part, images)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for N images and how they compare with the labels: tensors [N]."""

    losses: Tensor
    """Cross-entropy of each image, in nats."""
    labels: Tensor
    predicted: Tensor
    probability: Tensor
    """Probability of the predicted class, in [0, 1]."""
    ranks: Tensor
    """Number of classes ranked above the correct one."""
    classes: int

    @classmethod
    def from_logits(cls, logits: Tensor, labels: Tensor) -> Predictions:
        """Computes predictions from logits [N, C] and labels [N] on the logits' device, without synchronisation."""
        labels = labels.to(logits.device)
        losses = functional.cross_entropy(logits, labels, reduction="none")
        probability = logits.softmax(dim=1).amax(dim=1)
        return cls(losses, labels, logits.argmax(dim=1), probability, target_ranks(logits, labels), logits.shape[1])

    @classmethod
    def concatenate(cls, batches: Sequence[Predictions]) -> Predictions:
        """Concatenates batches on the CPU. This is the first point that waits for a GPU."""
        rows = [torch.cat(tensors).cpu() for tensors in zip(*(batch.rows() for batch in batches), strict=True)]
        losses, labels, predicted, probability, ranks = rows
        return cls(losses, labels, predicted, probability, ranks, batches[0].classes)

    def split(self, count: int) -> list[Predictions]:
        """Separates the interleaved predictions of `count` networks: [N / count] for each network."""
        losses, labels, predicted, probability, ranks = (rows.view(-1, count).T.contiguous() for rows in self.rows())
        return [
            Predictions(
                losses[network], labels[network], predicted[network], probability[network], ranks[network], self.classes
            )
            for network in range(count)
        ]

    def rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Returns the tensors in the order of the fields."""
        return self.losses, self.labels, self.predicted, self.probability, self.ranks

    def to_evaluation(self, part: Part, images: Iterable[int]) -> Evaluation:
        """Computes every field of an evaluation except noise.

        Args:
            part: the part of the data that the images belong to.
            images: the images' indices in the pack, in the order of the predictions.
        """
        hits = self.predicted == self.labels
        return Evaluation(
            part,
            float(self.losses.mean()),
            tuple(int(index) for index in images),
            tuple(hits.tolist()),
            top5_accuracy=float((self.ranks < TOP_K).double().mean()) if self.classes > TOP_K else None,
            balanced_accuracy=_balanced_accuracy(self.labels, hits),
            calibration_error=calibration_error(self.probability, hits),
            confusion=_confusion(self.labels, self.predicted, self.classes),
        )


def _logits(model: nn.Module, prepare: Preprocess, images: Tensor, parts: list[slice]) -> Tensor:
    """Returns logits [B, C], computed in slices."""
    return torch.cat([model(prepare(images[part])).float() for part in parts])


def target_ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """Number of classes ranked above the correct one, int64 [B], from logits [B, C] and labels [B].

    Ties are broken by class index, so that a network with constant logits is not counted as correct; NaN ranks above
    everything.

    >>> target_ranks(torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.5, 0.5]]), torch.tensor([0, 1]))
    tensor([2, 1])
    """
    own = logits.gather(1, labels[:, None])
    tied = (logits == own) & (torch.arange(logits.shape[1], device=logits.device) < labels[:, None])
    return (~(logits <= own) | tied).sum(dim=1)


def calibration_error(probability: Tensor, hits: Tensor) -> float:
    """Expected calibration error in [0, 1] over 15 bins of equal width, each including its upper edge.

    Guo et al. 2017, arXiv:1706.04599.

    >>> calibration_error(torch.tensor([0.75, 0.75, 0.75, 0.75]), torch.tensor([True, True, False, False]))
    0.25

    Args:
        probability: probability of the predicted class, [N] in [0, 1].
        hits: whether the prediction is correct, bool [N].
    """
    ends = torch.arange(1, CALIBRATION_BINS, dtype=torch.float64) / CALIBRATION_BINS
    bins = torch.bucketize(probability.double(), ends)
    # Each bin contributes (its images / N) x |mean probability - mean hit| = |sum of the differences| / N.
    difference = torch.bincount(bins, weights=probability.double() - hits.double(), minlength=CALIBRATION_BINS)
    return float(difference.abs().sum() / len(hits))


def _balanced_accuracy(labels: Tensor, hits: Tensor) -> float:
    class_sizes = torch.bincount(labels)
    class_hits = torch.bincount(labels, weights=hits.double())
    return float((class_hits / class_sizes)[class_sizes > 0].mean())


def _confusion(labels: Tensor, predicted: Tensor, classes: int) -> tuple[tuple[int, int, int], ...]:
    pairs, counts = torch.unique(labels * classes + predicted, return_counts=True)  # sorted
    return tuple((*divmod(pair, classes), count) for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True))
