"""Advice before any training: which strategies to try first on the given images, and why.

The sources of this project sort target data by two questions, small or large and similar to the source data or not, and
recommend a strategy for each of the four cases, not always the same one. Here both answers are measured
(`xfer.advice.dataset_profile`), and every recommendation names its source. It is a starting point for a sweep, not its
result.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xfer.advice.dataset_profile import (
    MIN_ERROR_REDUCTION,
    MIN_GAIN_OVER_CHANCE,
    MIN_STANDARD_ERRORS,
    SMALL_IMAGES,
    SMALL_PER_CLASS,
    DatasetProfile,
    Size,
    SourceSimilarity,
    percent,
    profile_dataset,
)
from xfer.choices import Choice, Value
from xfer.data.class_balance import Imbalance, find_imbalance
from xfer.data.pack import Pack, Progress
from xfer.data.split import split_pack
from xfer.devices.device import default_device
from xfer.feature_extraction.frozen_features import FrozenFeatures
from xfer.methods.descriptions import strategy_descriptions

LINE_WIDTH = 100
SOURCES = {
    "000": "a comparison of five approaches on QuickDraw",
    "002": "a study of fine-tuning and freezing on four data sets",
    "003": "an overview whose steps contradict its own prose",
    "004": "an introduction to transfer learning and its four cases",
}

_SIMILARITY_WORDS: dict[SourceSimilarity, str] = {"similar": "similar to", "different": "different from"}


@dataclass(frozen=True)
class Recommendation:
    """One strategy to try."""

    strategy: Choice
    """Name in xfer.methods.strategies.STRATEGIES, and the parameters that differ from their defaults."""
    reason: str
    source: str
    """Who recommends it in this case."""


@dataclass(frozen=True)
class Advice:
    """Strategies to try on the data, in order, with reasons."""

    measured: DatasetProfile
    recommended: tuple[Recommendation, ...]
    notes: tuple[str, ...]
    """Caveats for the reader."""
    seconds: float
    """Duration of the measurement, in seconds."""
    imbalance: Imbalance | None = None
    """Classes of very different sizes; None if there are none."""

    @property
    def case(self) -> tuple[Size, SourceSimilarity]:
        """Which of the sources' four cases applies."""
        return self.measured.size, self.measured.similarity

    def lines(self) -> tuple[str, ...]:
        """Returns the advice as text, line by line, none wider than LINE_WIDTH."""
        profile = self.measured
        size, similarity = self.case
        smallest, median, largest = profile.images_per_class
        per_class = f"{smallest}" if smallest == largest else f"{smallest} to {largest}, median {median}"
        caveat = "" if profile.is_significant else " (a close call)"
        sources = (
            source for source in SOURCES if any(source in recommendation.source for recommendation in self.recommended)
        )
        return (
            f"{profile.images:,} training images of {profile.classes} classes ({per_class} per class)",
            "",
            *_wrap(
                f"Frozen features of {profile.backbone} at {profile.image_size} px, {profile.measured_images:,} images "
                f"(at most {profile.cap:,}), {self.seconds:.1f} s; cross-validated linear probe, ± 1 standard error:"
            ),
            *(f"  {layer}" for layer in (*profile.early, profile.late)),
            f"  chance                    {percent(profile.chance)}",
            "",
            *_wrap(f"The data set is {size}: {_size_reason(profile)}."),
            *_wrap(
                f"It is {_SIMILARITY_WORDS[similarity]} what the network was pretrained on{caveat}: "
                f"{_similarity_reason(profile)}."
            ),
            "",
            "Try in this order:",
            *(
                line
                for rank, recommendation in enumerate(self.recommended, start=1)
                for line in (
                    f"  {rank}. {recommendation.strategy}   [{recommendation.source}]",
                    *_wrap(f"     {strategy_descriptions()[recommendation.strategy.name]}", 5),
                    *_wrap(f"     why: {recommendation.reason}", 5),
                )
            ),
            "",
            *(line for note in self.notes for line in _wrap(f"Note: {note}", 6)),
            *(f"Source {source}: {SOURCES[source]}" for source in sources),
        )

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON: all measurements, the conclusions and the advice."""
        size, similarity = self.case
        return {
            "measured": asdict(self.measured),
            "size": size,
            "likeness": similarity,
            "clear": self.measured.is_significant,
            "recommended": [
                {
                    "strategy": recommendation.strategy.as_dict(),
                    "reason": recommendation.reason,
                    "whose": recommendation.source,
                }
                for recommendation in self.recommended
            ],
            "notes": list(self.notes),
            **({"imbalance": asdict(self.imbalance)} if self.imbalance else {}),
            "seconds": self.seconds,
        }


def advise(
    pack: Pack,
    backbone: str,
    weights: Path,
    backbone_args: Mapping[str, Value] | None = None,
    split_seed: int = 0,
    device: torch.device | None = None,
    cap: int | None = None,
    progress: Progress = lambda done, total: None,
    images_per_class: int | None = None,
    features: FrozenFeatures | None = None,
) -> Advice:
    """Recommends strategies for this data and this pretrained network.

    Uses the training part only. The same arguments give the same advice.

    Args:
        pack: the data.
        backbone: timm's name of the network.
        weights: file with its pretrained weights.
        backbone_args: additional arguments for the network.
        split_seed: as in the recipe, so that the recipe's test part is not used here.
        device: where features are computed; default: the best available device.
        cap: maximum number of images to measure, at least 2; a stratified sample. Default:
            `dataset_profile.max_images`.
        progress: called with (done, total) images.
        images_per_class: as in the recipe, if it trains on only part of the training images.
        features: cached features below the network's classifier; a small data set is measured and cached in one pass.

    Raises:
        ValueError: If the weights do not fit, the network's stages are unknown, or there are too few images.
    """
    start = time.perf_counter()
    device = device or default_device()
    profile = profile_dataset(
        pack, backbone, weights, backbone_args or {}, split_seed, device, cap, progress, images_per_class, features
    )
    train = split_pack(pack, split_seed, images_per_class=images_per_class).train
    counts = np.bincount(pack.labels[train], minlength=len(pack.classes)).tolist()
    return recommend(profile, time.perf_counter() - start, find_imbalance(counts, pack.classes))


def recommend(profile: DatasetProfile, seconds: float = 0.0, imbalance: Imbalance | None = None) -> Advice:
    """Returns the advice that follows from measurements.

    Args:
        profile: measurements of the data.
        seconds: duration of the measurement.
        imbalance: classes of very different sizes, if there are any.
    """
    return Advice(
        measured=profile,
        recommended=CASES[profile.size, profile.similarity](profile),
        notes=(*_imbalance_notes(imbalance), *_notes(profile)),
        seconds=seconds,
        imbalance=imbalance,
    )


def _small_and_similar(profile: DatasetProfile) -> tuple[Recommendation, ...]:
    return (
        Recommendation(
            Choice("linear_probe"),
            f"late features work as they are ({percent(profile.late.accuracy)} with a linear probe), and a frozen "
            f"network cannot overfit",
            "sources 002, 003 and 004",
        ),
        Recommendation(
            Choice("lp_ft", (("penalty", 1.0),)),
            "starts from that classifier and then trains everything, so no random head distorts the features",
            "Kumar et al. 2022",
        ),
        _clip("bounds the first gradients, so no layer needs to be frozen"),
        _train_last(profile, "a compromise: only the most specialised layers adapt", "sources 003 and 004"),
    )


def _large_and_similar(profile: DatasetProfile) -> tuple[Recommendation, ...]:
    return (
        _clip("adapts everything, starting from the pretrained weights and with bounded first gradients"),
        _naive("adapts everything, and this much data does not overfit", "sources 002, 003 and 004"),
        _layer_decay(),
        _baseline(profile),
    )


def _small_and_different(profile: DatasetProfile) -> tuple[Recommendation, ...]:
    early, late = profile.best_early_stage, profile.late
    probed = f"{percent(early.accuracy)} with a linear probe, late ones {percent(late.accuracy)}"
    worse = profile.gain >= MIN_STANDARD_ERRORS * profile.gain_error
    cut = Recommendation(
        Choice("early_cut", (("stage", early.stage),)),
        f"early features are more general, but worse here: {probed}"
        if worse
        else f"late features are too specialised; early ones are as good, and cost less: {probed}",
        "sources 003 (its prose) and 004",
    )
    last = _train_last(
        profile, "adapts the upper layers, which are too specialised; keeps the general ones", "source 002"
    )
    clip = _clip("close to the best at 100 images per class in that source's comparison")
    order = (last, clip, cut) if worse else (cut, last, clip)
    return (*order, _baseline(profile), *_literal_steps(profile))


def _large_and_different(profile: DatasetProfile) -> tuple[Recommendation, ...]:
    return (
        _clip("adapts everything, with bounded first gradients"),
        _naive("adapts everything, and pretrained weights are still the better start", _ALL_EXCEPT_STEPS),
        _layer_decay(),
        Recommendation(Choice("scratch"), "this much data allows it, and it shows what pretraining gains", _AFFORDABLE),
        *_literal_steps(profile),
    )


CASES: dict[tuple[Size, SourceSimilarity], Callable[[DatasetProfile], tuple[Recommendation, ...]]] = {
    ("small", "similar"): _small_and_similar,
    ("large", "similar"): _large_and_similar,
    ("small", "different"): _small_and_different,
    ("large", "different"): _large_and_different,
}

_ALL_EXCEPT_STEPS = "sources 002, 003 (its prose) and 004"
_AFFORDABLE = "sources 003 (its prose) and 004, if affordable"


def _clip(reason: str) -> Recommendation:
    return Recommendation(Choice("clip"), reason, "source 000, as the first thing to try on any data")


def _naive(reason: str, source: str) -> Recommendation:
    return Recommendation(Choice("naive"), reason, source)


def _layer_decay() -> Recommendation:
    return Recommendation(
        Choice("layer_decay"), "adapts everything, the lower and more general layers more slowly", "Bao et al. 2021"
    )


def _train_last(profile: DatasetProfile, reason: str, source: str) -> Recommendation:
    # The sources say only "some of the last layers"; this takes a quarter of them.
    return Recommendation(Choice("train_last", (("blocks", max(1, profile.blocks // 4)),)), reason, source)


def _baseline(profile: DatasetProfile) -> Recommendation:
    return Recommendation(
        Choice("linear_probe"),
        f"the baseline: training has to beat about {percent(profile.late.accuracy)}, which costs almost nothing",
        "source 002" if profile.similarity == "different" and profile.size == "small" else "no source for this case",
    )


def _literal_steps(profile: DatasetProfile) -> tuple[Recommendation, ...]:
    reason = "early layers removed, late ones frozen: contradicts its own prose, so expect little"
    literal = Recommendation(Choice("drop_early"), reason, "source 003 (its literal steps)")
    return (literal,) if profile.drops_early else ()


def _size_reason(profile: DatasetProfile) -> str:
    median = profile.images_per_class[1]
    if profile.images < SMALL_IMAGES:
        return f"fewer than {SMALL_IMAGES:,} training images"
    if median < SMALL_PER_CLASS:
        return f"{median} images in the median class, fewer than {SMALL_PER_CLASS}"
    return f"at least {SMALL_IMAGES:,} training images, and {SMALL_PER_CLASS} in the median class"


def _similarity_reason(profile: DatasetProfile) -> str:
    direction = "fewer" if profile.error_reduction >= 0 else "more"
    criterion = f"similar data means at least {100 * MIN_ERROR_REDUCTION:.0f}% fewer errors"
    if profile.gain_over_chance < MIN_GAIN_OVER_CHANCE:
        criterion += f" and {100 * MIN_GAIN_OVER_CHANCE:.0f}% of the way from chance to no error"
    return (
        f"late features make {100 * abs(profile.error_reduction):.0f}% {direction} errors than the best earlier stage, "
        f"{profile.best_early_stage.stage} ({100 * profile.gain:+.1f} ± {100 * profile.gain_error:.1f} points), and "
        f"get {100 * profile.gain_over_chance:.0f}% of the way from chance to no error; {criterion}"
    )


def _imbalance_notes(imbalance: Imbalance | None) -> Iterable[str]:
    if imbalance is not None:
        yield (
            f"classes are imbalanced: {imbalance.line}. Compare --balance logit_adjustment, class_weights and "
            f"balanced_sampler by balanced accuracy: a sweep tries all of them, and ranks by it with --objective "
            f"balanced_accuracy"
        )


def _notes(profile: DatasetProfile) -> Iterable[str]:
    if profile.measured_images < profile.images:
        yield f"measured on a stratified sample: {profile.measured_images:,} of {profile.images:,} training images"
    if not profile.is_significant:
        other: SourceSimilarity = "different" if profile.similarity == "similar" else "similar"
        first = CASES[profile.size, other](profile)[0]
        yield f"a close call: if the data were {other}, {first.strategy} would come first ({first.source})"
    if max(layer.logme for layer in profile.early) > profile.late.logme:
        yield "LogME disagrees with the probe: it prefers an earlier stage"
    if profile.similarity == "different" and not profile.drops_early:
        yield "the literal steps of source 003 (drop_early) cannot be built with this network"
    yield "these are rules of thumb, not results: a sweep over these strategies shows which one wins"


def _wrap(text: str, indent: int = 0) -> list[str]:
    return textwrap.wrap(text, LINE_WIDTH, subsequent_indent=" " * indent)
