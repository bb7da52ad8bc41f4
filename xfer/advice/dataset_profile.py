"""Target: what can be found out about somebody's images before anything is trained on them.

How many there are, and how like the source data they are: whether the late features of a pretrained network, frozen,
serve much better than its earlier ones. Both are read off the training part alone.
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
from xfer.data.split import Indices, split_pack
from xfer.features.extract import Features, Stage, earlier_stages, extract_features
from xfer.measure.feature_spread import FeatureSpread, feature_spread
from xfer.measure.transferability import LinearProbe, logme, paired_difference, probe_accuracy
from xfer.methods.truncation import drop_stages
from xfer.models import backbones
from xfer.models.params import named_params
from xfer.seeding import derive_seed

SMALL_IMAGES = 1_000
"""Fewer training images than this are few: what the VTAB benchmark gives for its low-data setting (Zhai et al. 2019).
A convention; the sources name no number."""
SMALL_PER_CLASS = 16
"""So are fewer a class: where few-shot comparisons usually end (Radford et al. 2021). A convention too."""
MIN_ERROR_REDUCTION = 1 / 3
"""Similar data: late features leave at least this share fewer errors than the best earlier stage. On almost all images
late features are the better ones, on images like the source's by far. A rule of thumb, set after looking at MobileNetV2
at 128 px (2026-11-20, means over divisions into folds): the share was .7 on Dogs vs Cats and on ten classes of
Caltech-101, .4 on Hymenoptera, .2 on Hymenoptera in grey, .2 on Simpsons, .1 on QuickDraw and on Stanford Cars."""
MIN_GAIN_OVER_CHANCE = 1 / 2
"""Similar data too: late features are at least half the way from chance to no error. Below that they may well be better
than early ones, but do not serve."""
MIN_STANDARD_ERRORS = 2.0
"""A verdict closer to its border than this many standard errors is called a close call."""
MAX_IMAGES = 2_000
"""Images measured at most: enough for an accuracy within 1.1 points (one standard error). With MobileNetV2 at 128 px
that is under a minute on one slow core."""

Size = Literal["small", "large"]
SourceSimilarity = Literal["similar", "different"]


@dataclass(frozen=True)
class StageScore:
    """How well the features at one place of the frozen network tell the classes apart."""

    stage: Stage
    features: int
    """How many there are."""
    accuracy: float
    """Of a linear classifier, cross-validated, in [0, 1]."""
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
    """What was found out about the data, and the two answers that follow from it."""

    backbone: str
    image_size: int
    """In pixels."""
    classes: int
    images: int
    """In the training part, copies counted once."""
    images_per_class: tuple[int, int, int]
    """Of the smallest, the median and the largest class."""
    measured_images: int
    """How many of them the features were computed of."""
    cap: int
    """How many these could have been at most."""
    chance: float
    """The accuracy of always naming the largest class."""
    early: tuple[StageScore, ...]
    """Earlier stages, lowest first."""
    late: StageScore
    gain: float
    """Late accuracy minus the best earlier one, on the same images."""
    gain_error: float
    """The standard error of that."""
    margin: float
    """`gain` minus the share REMOVED_ERRORS of the best earlier stage's errors."""
    margin_error: float
    blocks: int
    """How many blocks the network has below its head."""
    drops_early: bool
    """Whether its late stages can be had without its first one."""
    spread: FeatureSpread | None = None
    """How the late features lie; None in a measurement of an earlier version."""

    @property
    def best_early_stage(self) -> StageScore:
        """The earlier stage that serves best."""
        return max(self.early, key=lambda layer: layer.accuracy)

    @property
    def size(self) -> Size:
        """Small by images in all or in the median class, see SMALL_IMAGES and SMALL_PER_CLASS."""
        few = self.images < SMALL_IMAGES or self.images_per_class[1] < SMALL_PER_CLASS
        return "small" if few else "large"

    @property
    def similarity(self) -> SourceSimilarity:
        """Similar to the source where late features serve, and much better than early ones do."""
        return "similar" if self.margin >= 0 and self.gain_over_chance >= MIN_GAIN_OVER_CHANCE else "different"

    @property
    def gain_over_chance(self) -> float:
        """How much of the way from chance to no error the late features come; below 0 for worse than chance."""
        return (self.late.accuracy - self.chance) / (1 - self.chance)

    @property
    def error_reduction(self) -> float:
        """How many of the best earlier stage's errors late features do not make; negative where they make more."""
        errors = 1 - self.best_early_stage.accuracy
        return self.gain / errors if errors > 0 else 0.0

    @property
    def is_significant(self) -> bool:
        """Whether the likeness would most likely come out the same on other images from where these came from."""
        way = (MIN_GAIN_OVER_CHANCE - self.gain_over_chance) * (1 - self.chance)
        lacks = (way / self.late.standard_error, -self.margin / max(self.margin_error, 1e-9))
        return max(lacks) <= -MIN_STANDARD_ERRORS if self.similarity == "similar" else max(lacks) >= MIN_STANDARD_ERRORS


def profile_dataset(
    pack: Pack,
    backbone: str,
    weights: Path,
    backbone_args: Mapping[str, Value],
    split_seed: int,
    device: torch.device,
    cap: int,
    progress: Progress,
    images_per_class: int | None = None,
) -> DatasetProfile:
    """Find out about the training part of a pack; arguments and errors are those of `xfer.advice.advisor.advise`."""
    if cap < 2:
        raise ValueError(f"cap is {cap}; a probe needs images to learn from and to be asked about: give at least 2")
    split = split_pack(pack, split_seed, images_per_class=images_per_class)
    places = _once_each(pack, split.train)
    counts = np.bincount(pack.labels[places], minlength=len(pack.classes))
    chosen = _sample(pack.labels, places, cap, derive_seed(split_seed, "advice"))
    labels = pack.labels[chosen]
    with torch.random.fork_rng(devices=[]):  # the head, of which nothing is asked, is drawn from the global state
        model = backbones.build(backbone, len(pack.classes), pack.image_size, weights, backbone_args)
    model = model.to(device).to(memory_format=torch.channels_last)
    prepare = backbones.Preprocessor(backbones.input_statistics(model), device)
    earlier = earlier_stages(model)
    rows = extract_features(model, pack, chosen, prepare, (*earlier, "late"), progress=progress)
    probes = {stage: probe_accuracy(rows[stage], labels, seed=split_seed) for stage in rows}
    layers = {stage: _layer(stage, probes[stage], rows[stage], labels) for stage in rows}
    early = tuple(layers[stage] for stage in earlier)
    best = max(early, key=lambda layer: layer.accuracy).stage
    gain, gain_error = paired_difference(probes["late"], probes[best])
    margin, margin_error = paired_difference(probes["late"], probes[best], MIN_ERROR_REDUCTION)
    return DatasetProfile(
        backbone=backbone,
        image_size=pack.image_size,
        classes=len(pack.classes),
        images=len(places),
        images_per_class=(int(counts.min()), int(np.median(counts)), int(counts.max())),
        measured_images=len(chosen),
        cap=cap,
        chance=float(np.bincount(labels).max() / len(labels)),
        early=early,
        late=layers["late"],
        gain=gain,
        gain_error=gain_error,
        margin=margin,
        margin_error=margin_error,
        blocks=max(param.depth for param in named_params(model).values()),
        drops_early=_drops_early(model, pack.image_size),
        spread=feature_spread(rows["late"]),
    )


def profile_from_dict(plain: Mapping[str, Any]) -> DatasetProfile:
    """A Measurement from what `dataclasses.asdict` made of it, by this version or an earlier one.

    Raises:
        KeyError, TypeError: it is none.
    """
    return DatasetProfile(
        **{
            **plain,
            "images_per_class": tuple(plain["images_per_class"]),
            "early": tuple(StageScore(**layer) for layer in plain["early"]),
            "late": StageScore(**plain["late"]),
            "spread": FeatureSpread(**plain["spread"]) if plain.get("spread") else None,
        }
    )


def percent(share: float) -> str:
    """A share as people read it."""
    return f"{100 * share:.1f}%"


def _once_each(pack: Pack, places: Indices) -> Indices:
    """One place of each image: a copy among the held-out images would flatter every probe."""
    digests = np.array(pack.digests)[places]
    return np.sort(places[np.unique(digests, return_index=True)[1]])


def _sample(labels: Indices, places: Indices, cap: int, seed: int) -> Indices:
    """At most `cap` places, sorted, of every class the same share: each keeps its first image before one its second."""
    order = np.random.default_rng(seed).permutation(places)
    rank = np.empty(len(order))
    for label in np.unique(labels[order]):
        of_class = labels[order] == label
        rank[of_class] = np.arange(of_class.sum()) / of_class.sum()
    return np.sort(order[np.argsort(rank, kind="stable")[:cap]])


def _layer(stage: Stage, probe: LinearProbe, rows: Features, labels: Indices) -> StageScore:
    return StageScore(stage, rows.shape[1], probe.accuracy, probe.standard_error, logme(rows, labels))


def _drops_early(model: Any, image_size: int) -> bool:
    try:
        drop_stages(copy.deepcopy(model), 1, image_size)
    except ValueError:
        return False
    return True
