"""Advice before anything is trained: what to try first on some images, and why.

The sources of this project sort target data by two questions, small or large and similar to the source data or not, and
advise a strategy for each of the four cases, not always the same. Here both answers are measured
(`xfer.advice.dataset_profile`), and whoever gave an advice is named. It is a start for a sweep, not its result.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from xfer.advice.dataset_profile import (
    MAX_IMAGES,
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
from xfer.data.pack import Pack, Progress
from xfer.devices.device import default_device

LINE_WIDTH = 100
SOURCES = {
    "000": "a comparison of five approaches on QuickDraw",
    "002": "a study of fine-tuning and freezing on four data sets",
    "003": "an overview whose steps contradict its own prose",
    "004": "an introduction to transfer learning and its four cases",
}

_IN_WORDS: dict[SourceSimilarity, str] = {"similar": "similar to", "different": "different from"}


@dataclass(frozen=True)
class Recommendation:
    """One strategy to try."""

    strategy: Choice
    """Its name in xfer.methods.strategies.STRATEGIES, and the parameters that are not left at their defaults."""
    reason: str
    whose: str
    """Who advises it in this case."""


@dataclass(frozen=True)
class Advice:
    """What to try on this data, in order, and why."""

    measured: DatasetProfile
    recommended: tuple[Recommendation, ...]
    notes: tuple[str, ...]
    """What a reader should know before believing it."""
    seconds: float
    """What the measurement took."""

    @property
    def case(self) -> tuple[Size, SourceSimilarity]:
        """Which of the sources' four cases this is."""
        return self.measured.size, self.measured.similarity

    def lines(self) -> tuple[str, ...]:
        """The answer for a person, line by line, none wider than WIDTH."""
        found = self.measured
        size, likeness = self.case
        least, median, most = found.images_per_class
        per_class = f"{least}" if least == most else f"{least} to {most}, median {median}"
        close = "" if found.is_significant else " (a close call)"
        sources = (source for source in SOURCES if any(source in each.whose for each in self.recommended))
        return (
            f"{found.images:,} training images of {found.classes} classes ({per_class} a class)",
            "",
            *_wrapped(
                f"Frozen features of {found.backbone} at {found.image_size} px, {found.measured_images:,} images (at "
                f"most {found.cap:,}), {self.seconds:.1f} s; a linear probe, cross-validated, ± 1 standard error:"
            ),
            *(f"  {layer}" for layer in (*found.early, found.late)),
            f"  chance                    {percent(found.chance)}",
            "",
            *_wrapped(f"The data set is {size}: {_why_size(found)}."),
            *_wrapped(f"It is {_IN_WORDS[likeness]} what the network has learned{close}: {_why_likeness(found)}."),
            "",
            "Try in this order:",
            *(
                line
                for place, each in enumerate(self.recommended, start=1)
                for line in (f"  {place}. {each.strategy}   [{each.whose}]", *_wrapped(f"     {each.reason}", 5))
            ),
            "",
            *(line for note in self.notes for line in _wrapped(f"Note: {note}", 6)),
            *(f"Source {source}: {SOURCES[source]}" for source in sources),
        )

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: all that was measured, what follows from it, and the advice."""
        size, likeness = self.case
        return {
            "measured": asdict(self.measured),
            "size": size,
            "likeness": likeness,
            "clear": self.measured.is_significant,
            "recommended": [
                {"strategy": each.strategy.as_dict(), "reason": each.reason, "whose": each.whose}
                for each in self.recommended
            ],
            "notes": list(self.notes),
            "seconds": self.seconds,
        }


def advise(
    pack: Pack,
    backbone: str,
    weights: Path,
    backbone_args: Mapping[str, Value] | None = None,
    split_seed: int = 0,
    device: torch.device | None = None,
    cap: int = MAX_IMAGES,
    progress: Progress = lambda done, total: None,
    images_per_class: int | None = None,
) -> Advice:
    """Which strategies to try on this data with this pretrained network, and why.

    Looks at the training part alone. The same arguments give the same advice.

    Args:
        pack: the data.
        backbone: timm's name of the network.
        weights: its pretrained weights.
        backbone_args: further arguments of the network.
        split_seed: as in the recipe, so that what is test part there is not seen here.
        device: where features are computed; the best there is unless given.
        cap: how many images are measured at most, a stratified sample.
        progress: told how many images are done.
        images_per_class: as in the recipe, where not all of the training part will be trained on.

    Raises:
        ValueError: the weights do not fit, the network's stages are unknown, or there are too few images to measure.
    """
    start = time.perf_counter()
    device = device or default_device()
    found = profile_dataset(
        pack, backbone, weights, backbone_args or {}, split_seed, device, cap, progress, images_per_class
    )
    return recommend(found, time.perf_counter() - start)


def recommend(found: DatasetProfile, seconds: float = 0.0) -> Advice:
    """The advice that follows from a measurement."""
    return Advice(
        measured=found,
        recommended=CASES[found.size, found.similarity](found),
        notes=tuple(_notes(found)),
        seconds=seconds,
    )


def _small_and_similar(found: DatasetProfile) -> tuple[Recommendation, ...]:
    return (
        Recommendation(
            Choice("linear_probe"),
            f"late features serve as they are ({percent(found.late.accuracy)} as probed), and a frozen network cannot "
            f"overfit",
            "sources 002, 003 and 004",
        ),
        Recommendation(
            Choice("lp_ft", (("penalty", 1.0),)),
            "starts from that classifier and then trains everything, so that no random head distorts the features",
            "Kumar et al. 2022",
        ),
        _clip("no layer need be frozen where the first gradients are bounded"),
        _train_last(found, "the middle way: the most particular layers adapt", "sources 003 and 004"),
    )


def _large_and_similar(found: DatasetProfile) -> tuple[Recommendation, ...]:
    return (
        _clip("everything adapts, from the pretrained weights and with its first gradients bounded"),
        _naive("everything adapts, and so much data does not overfit", "sources 002, 003 and 004"),
        _layer_decay(),
        _yardstick(found),
    )


def _small_and_different(found: DatasetProfile) -> tuple[Recommendation, ...]:
    early, late = found.best_early_stage, found.late
    probed = f"{percent(early.accuracy)} as probed, late ones {percent(late.accuracy)}"
    worse = found.gain >= MIN_STANDARD_ERRORS * found.gain_error
    cut = Recommendation(
        Choice("early_cut", (("stage", early.stage),)),
        f"early features are the more general ones, but here they serve worse: {probed}"
        if worse
        else f"late features are too particular; early ones serve as well, and cost less: {probed}",
        "sources 003 (its prose) and 004",
    )
    last = _train_last(found, "the upper layers, too particular as they are, adapt; general ones stay", "source 002")
    clip = _clip("close to the best at 100 images a class, in its own comparison")
    order = (last, clip, cut) if worse else (cut, last, clip)
    return (*order, _yardstick(found), *_literal(found))


def _large_and_different(found: DatasetProfile) -> tuple[Recommendation, ...]:
    return (
        _clip("everything must adapt; its first gradients are bounded"),
        _naive("everything must adapt, and pretrained weights remain the better start", _ALL_BUT_STEPS),
        _layer_decay(),
        Recommendation(Choice("scratch"), "so much data affords it, and it shows what pretraining brings", _AFFORDABLE),
        *_literal(found),
    )


CASES: dict[tuple[Size, SourceSimilarity], Callable[[DatasetProfile], tuple[Recommendation, ...]]] = {
    ("small", "similar"): _small_and_similar,
    ("large", "similar"): _large_and_similar,
    ("small", "different"): _small_and_different,
    ("large", "different"): _large_and_different,
}

_ALL_BUT_STEPS = "sources 002, 003 (its prose) and 004"
_AFFORDABLE = "sources 003 (its prose) and 004, as affordable"


def _clip(reason: str) -> Recommendation:
    return Recommendation(Choice("clip"), reason, "source 000, as the first thing to try on any data")


def _naive(reason: str, whose: str) -> Recommendation:
    return Recommendation(Choice("naive"), reason, whose)


def _layer_decay() -> Recommendation:
    return Recommendation(
        Choice("layer_decay"), "everything adapts, lower and so more general layers more slowly", "Bao et al. 2021"
    )


def _train_last(found: DatasetProfile, reason: str, whose: str) -> Recommendation:
    # "Some of the last layers" is all that is said: a quarter of them.
    return Recommendation(Choice("train_last", (("blocks", max(1, found.blocks // 4)),)), reason, whose)


def _yardstick(found: DatasetProfile) -> Recommendation:
    return Recommendation(
        Choice("linear_probe"),
        f"the yardstick: about {percent(found.late.accuracy)}, at next to no cost, is what training has to beat",
        "source 002" if found.similarity == "different" and found.size == "small" else "nobody for this case",
    )


def _literal(found: DatasetProfile) -> tuple[Recommendation, ...]:
    reason = "early layers removed, late ones frozen: against its own prose, so little is to be expected"
    literal = Recommendation(Choice("drop_early"), reason, "source 003 (its steps, to the letter)")
    return (literal,) if found.drops_early else ()


def _why_size(found: DatasetProfile) -> str:
    median = found.images_per_class[1]
    if found.images < SMALL_IMAGES:
        return f"fewer than {SMALL_IMAGES:,} training images"
    if median < SMALL_PER_CLASS:
        return f"{median} images in the median class, fewer than {SMALL_PER_CLASS}"
    return f"at least {SMALL_IMAGES:,} training images, and {SMALL_PER_CLASS} in the median class"


def _why_likeness(found: DatasetProfile) -> str:
    wanted = f"similar data leaves them at least {100 * MIN_ERROR_REDUCTION:.0f}% fewer"
    if found.gain_over_chance < MIN_GAIN_OVER_CHANCE:
        wanted += f", and brings them {100 * MIN_GAIN_OVER_CHANCE:.0f}% of the way from chance to no error"
    return (
        f"late features leave {100 * abs(found.error_reduction):.0f}% {'fewer' if found.error_reduction >= 0 else 'more'} errors than "
        f"the best earlier stage, {found.best_early_stage.stage} ({100 * found.gain:+.1f} ± {100 * found.gain_error:.1f} "
        f"points), and come {100 * found.gain_over_chance:.0f}% of the way from chance to no error; {wanted}"
    )


def _notes(found: DatasetProfile) -> Iterable[str]:
    if found.measured_images < found.images:
        yield f"measured on a stratified sample of {found.measured_images:,} of the {found.images:,} training images"
    if not found.is_significant:
        other: SourceSimilarity = "different" if found.similarity == "similar" else "similar"
        first = CASES[found.size, other](found)[0]
        yield f"a close call: were the data {other}, {first.strategy} would come first ({first.whose})"
    if max(layer.logme for layer in found.early) > found.late.logme:
        yield "LogME disagrees with the probe: it prefers an earlier stage"
    if found.similarity == "different" and not found.drops_early:
        yield "the steps of source 003 to the letter (drop_early) cannot be built with this network"
    yield "rules of thumb, not results: a sweep over these strategies tells which one wins"


def _wrapped(text: str, indent: int = 0) -> list[str]:
    return textwrap.wrap(text, LINE_WIDTH, subsequent_indent=" " * indent)
