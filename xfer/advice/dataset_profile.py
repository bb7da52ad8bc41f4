"""Dataset profile: what can be measured about the user's images before any training.

The number of images, and their similarity to the source data: whether the late features of a frozen pretrained network
classify them much better than its earlier ones. Both are measured on the training part only.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from xfer.choices import Value
from xfer.data.pack import Pack, Progress
from xfer.data.split import Indices, split_pack, stratified_sample
from xfer.feature_extraction.extract import Features, Stage, earlier_stages, extract_features
from xfer.feature_extraction.frozen_features import FrozenFeatures
from xfer.feature_extraction.stage_features import can_share, shared_stage_features
from xfer.measure.accuracy import Preprocess
from xfer.measure.feature_spread import FeatureSpread, feature_spread
from xfer.measure.transferability import LinearProbe, logme, paired_difference, probe_accuracy
from xfer.methods.truncation import drop_stages
from xfer.models import backbones
from xfer.models.params import named_params
from xfer.seeding import derive_seed

SMALL_IMAGES = 1_000
"""Data sets with fewer training images are small: the size of the VTAB benchmark's low-data setting (Zhai et al.
2019, arXiv:1910.04867). A convention; the sources give no number."""
SMALL_PER_CLASS = 16
"""Data sets with fewer images in the median class are small, too: the largest number in most few-shot comparisons
(Radford et al. 2021, arXiv:2103.00020). Also a convention."""
MIN_ERROR_REDUCTION = 1 / 3
"""Similar data: late features make at least this fraction fewer errors than the best earlier stage. Late features
are better on almost all images, and far better on images like the source's. A rule of thumb, set after looking at
MobileNetV2 at 128 px (2026-11-20, means over divisions into folds): the fraction was .7 on Dogs vs Cats and on ten
classes of Caltech-101, .4 on Hymenoptera, .2 on Hymenoptera in grey, .2 on Simpsons, .1 on QuickDraw and on Stanford
Cars."""
MIN_GAIN_OVER_CHANCE = 1 / 2
"""Similar data also requires late features to be at least halfway from chance to no error. Below that they may be
better than early ones, but are not good enough."""
MIN_STANDARD_ERRORS = 2.0
"""A result closer to its threshold than this many standard errors is a close call."""
FEWEST_IMAGES, MOST_IMAGES, IMAGES_PER_CLASS = 500, 2_000, 10
"""Number of images to measure at most: ten per class, but at least 500 and at most 2,000. 500 images give the accuracy
within 2.2 points (one standard error). With MobileNetV2 at 224 px, 195 images took 9 s on a core that was shared with
other work (2026-11-30); nearly all of that is the forward pass."""

Size = Literal["small", "large"]
SourceSimilarity = Literal["similar", "different"]


@dataclass(frozen=True)
class StageScore:
    """How well the features of one stage of the frozen network separate the classes."""

    stage: Stage
    features: int
    """Number of features."""
    accuracy: float
    """Cross-validated accuracy of a linear classifier, in [0, 1]."""
    standard_error: float
    logme: float
    """Log evidence per image; higher is better."""

    def __str__(self) -> str:
        name = self.stage if self.stage == "late" else f"stage {self.stage}"
        return (
            f"{name:<9}{self.features:5} features   probe {percent(self.accuracy)} ± {percent(self.standard_error)}"
            f"   LogME {self.logme:+.3f}"
        )


@dataclass(frozen=True)
class DatasetProfile:
    """Measurements of the data, and the two conclusions: size and similarity."""

    backbone: str
    image_size: int
    """Side of the images, in pixels."""
    classes: int
    images: int
    """Number of training images, counting exact and near copies once."""
    images_per_class: tuple[int, int, int]
    """Number of images in the smallest, the median and the largest class."""
    measured_images: int
    """Number of images whose features were computed."""
    cap: int
    """Upper limit for `measured_images`."""
    chance: float
    """Accuracy of always predicting the largest class."""
    early: tuple[StageScore, ...]
    """Scores of the earlier stages, lowest first."""
    late: StageScore
    gain: float
    """Late accuracy minus the best earlier one, on the same images."""
    gain_error: float
    """Standard error of `gain`."""
    margin: float
    """`gain` minus MIN_ERROR_REDUCTION times the best earlier stage's error rate."""
    margin_error: float
    """Standard error of `margin`."""
    blocks: int
    """Number of blocks below the network's head."""
    drops_early: bool
    """Whether the network still works without its first stage."""
    spread: FeatureSpread | None = None
    """Spread of the late features; None in a profile of an earlier version."""

    @property
    def best_early_stage(self) -> StageScore:
        """Earlier stage with the highest accuracy."""
        return max(self.early, key=lambda score: score.accuracy)

    @property
    def size(self) -> Size:
        """Small by total number of images or by the median class, see SMALL_IMAGES and SMALL_PER_CLASS."""
        few = self.images < SMALL_IMAGES or self.images_per_class[1] < SMALL_PER_CLASS
        return "small" if few else "large"

    @property
    def similarity(self) -> SourceSimilarity:
        """Similar to the source where late features are good and much better than early ones."""
        return "similar" if self.margin >= 0 and self.gain_over_chance >= MIN_GAIN_OVER_CHANCE else "different"

    @property
    def gain_over_chance(self) -> float:
        """Fraction of the way from chance to no error that late features achieve; negative if worse than chance."""
        return (self.late.accuracy - self.chance) / (1 - self.chance)

    @property
    def error_reduction(self) -> float:
        """Fraction of the best earlier stage's errors that late features avoid; negative if they make more."""
        errors = 1 - self.best_early_stage.accuracy
        return self.gain / errors if errors > 0 else 0.0

    @property
    def is_significant(self) -> bool:
        """Whether another sample of images would most likely lead to the same similarity."""
        missing_accuracy = (MIN_GAIN_OVER_CHANCE - self.gain_over_chance) * (1 - self.chance)
        shortfalls = (missing_accuracy / self.late.standard_error, -self.margin / max(self.margin_error, 1e-9))
        return (
            max(shortfalls) <= -MIN_STANDARD_ERRORS
            if self.similarity == "similar"
            else max(shortfalls) >= MIN_STANDARD_ERRORS
        )


def max_images(classes: int) -> int:
    """Return the maximum number of images to measure.

    >>> max_images(2), max_images(100), max_images(1_000)
    (500, 1000, 2000)
    """
    return min(MOST_IMAGES, max(FEWEST_IMAGES, IMAGES_PER_CLASS * classes))


def profile_dataset(
    pack: Pack,
    backbone: str,
    weights: Path,
    backbone_args: Mapping[str, Value],
    split_seed: int,
    device: torch.device,
    cap: int | None,
    progress: Progress,
    images_per_class: int | None = None,
    features: FrozenFeatures | None = None,
) -> DatasetProfile:
    """Measures the training part of a pack.

    Args:
        pack: the data.
        backbone: timm's name of the network.
        weights: file with its pretrained weights.
        backbone_args: additional arguments for the network.
        split_seed: as in the recipe.
        device: where features are computed.
        cap: maximum number of images to measure, at least 2; a stratified sample. Default: `max_images`.
        progress: called with (done, total) images.
        images_per_class: as in the recipe; None for all training images.
        features: cached features below the classifier of the network to measure, which replaces the one that is built
            otherwise. Both share one pass if the images that are cached together are at most `cap`.

    Raises:
        ValueError: If the weights do not fit, the network's stages are unknown, or there are too few images.
    """
    cap = max_images(len(pack.classes)) if cap is None else cap
    if cap < 2:
        raise ValueError(f"cap must be at least 2, got {cap}: a probe needs images to fit and to evaluate")
    split = split_pack(pack, split_seed, images_per_class=images_per_class)
    indices = _distinct_images(pack, split.train)
    counts = np.bincount(pack.labels[indices], minlength=len(pack.classes))
    sample = stratified_sample(pack.labels, indices, cap, derive_seed(split_seed, "advice"))
    labels = pack.labels[sample]
    if features is None:
        with torch.random.fork_rng(devices=[]):  # the unused head is drawn from the global state
            model: Any = backbones.build(backbone, len(pack.classes), pack.image_size, weights, backbone_args)
        model = model.to(device).to(memory_format=torch.channels_last)
        prepare: Preprocess = backbones.Preprocessor(backbones.input_statistics(model), device)
    else:
        model, prepare = features.network, features.prepare
    earlier = earlier_stages(model)
    if features is not None and can_share(features, sample, cap):
        rows = shared_stage_features(features, sample, earlier, progress)
    else:
        rows = extract_features(model, pack, sample, prepare, (*earlier, "late"), progress=progress)
    probes = {stage: probe_accuracy(rows[stage], labels, seed=split_seed) for stage in rows}
    scores = {stage: _score_stage(stage, probes[stage], rows[stage], labels) for stage in rows}
    early = tuple(scores[stage] for stage in earlier)
    best = max(early, key=lambda score: score.accuracy).stage
    gain, gain_error = paired_difference(probes["late"], probes[best])
    margin, margin_error = paired_difference(probes["late"], probes[best], MIN_ERROR_REDUCTION)
    return DatasetProfile(
        backbone=backbone,
        image_size=pack.image_size,
        classes=len(pack.classes),
        images=len(indices),
        images_per_class=(int(counts.min()), int(np.median(counts)), int(counts.max())),
        measured_images=len(sample),
        cap=cap,
        chance=float(np.bincount(labels).max() / len(labels)),
        early=early,
        late=scores["late"],
        gain=gain,
        gain_error=gain_error,
        margin=margin,
        margin_error=margin_error,
        blocks=max(param.depth for param in named_params(model).values()),
        drops_early=_works_without_first_stage(model, pack.image_size),
        spread=feature_spread(rows["late"]),
    )


def profile_from_dict(plain: Mapping[str, Any]) -> DatasetProfile:
    """Restores a profile from its `dataclasses.asdict`, written by this version or an earlier one.

    Raises:
        KeyError, TypeError: If fields are missing or unknown.
    """
    return DatasetProfile(
        **{
            **plain,
            "images_per_class": tuple(plain["images_per_class"]),
            "early": tuple(StageScore(**score) for score in plain["early"]),
            "late": StageScore(**plain["late"]),
            "spread": FeatureSpread(**plain["spread"]) if plain.get("spread") else None,
        }
    )


def percent(fraction: float) -> str:
    """Formats a fraction as a percentage with one decimal."""
    return f"{100 * fraction:.1f}%"


def _distinct_images(pack: Pack, indices: Indices) -> Indices:
    """Returns one index per distinct image: copies in held-out folds would inflate every probe's accuracy."""
    return np.sort(indices[np.unique(pack.copy_groups[indices], return_index=True)[1]])


def _score_stage(stage: Stage, probe: LinearProbe, features: Features, labels: Indices) -> StageScore:
    return StageScore(stage, features.shape[1], probe.accuracy, probe.standard_error, logme(features, labels))


def _works_without_first_stage(model: Any, image_size: int) -> bool:
    try:
        drop_stages(copy.deepcopy(model), 1, image_size)
    except ValueError:
        return False
    return True
