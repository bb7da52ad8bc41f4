"""Advice before anything is trained: how much data there is, how like the source it is, and what to try first.

The sources of this project sort target data by two questions, small or large and similar to the source data or not, and
advise a strategy for each of the four cases, not always the same. Here both answers are measured on the training part,
and whoever gave an advice is named. It is a start for a sweep, not its result.
"""

from __future__ import annotations

import copy
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from xfer import backbones
from xfer.choices import Choice, Value
from xfer.data.pack import Pack, Progress
from xfer.data.split import Indices, split_pack
from xfer.features import Features, Stage, earlier_stages, features
from xfer.measure.transferability import Probe, difference, logme, probe_accuracy
from xfer.methods.cuts import drop_stages
from xfer.params import params_of
from xfer.randomness import seed_for
from xfer.run import default_device

SMALL_IMAGES = 1_000
"""Fewer training images than this are few: what the VTAB benchmark gives for its low-data setting (Zhai et al. 2019).
A convention; the sources name no number."""
SMALL_PER_CLASS = 16
"""So are fewer a class: where few-shot comparisons usually end (Radford et al. 2021). A convention too."""
REMOVED_ERRORS = 1 / 3
"""Similar data: late features leave at least this share fewer errors than the best earlier stage. On almost all images
late features are the better ones, on images like the source's by far. A rule of thumb, set after looking at MobileNetV2
at 128 px (2026-11-20, means over divisions into folds): the share was .7 on Dogs vs Cats and on ten classes of
Caltech-101, .4 on Hymenoptera, .2 on Hymenoptera in grey, .2 on Simpsons, .1 on QuickDraw and on Stanford Cars."""
ABOVE_CHANCE = 1 / 2
"""Similar data too: late features are at least half the way from chance to no error. Below that they may well be better
than early ones, but do not serve."""
CLEAR = 2.0
"""A verdict closer to its border than this many standard errors is called a close call."""
WIDTH = 100
CAP = 2_000
"""Images measured at most: enough for an accuracy within 1.1 points (one standard error). With MobileNetV2 at 128 px
that is under a minute on one slow core."""

SOURCES = {
    "000": "a comparison of five approaches on QuickDraw",
    "002": "a study of fine-tuning and freezing on four data sets",
    "003": "an overview whose steps contradict its own prose",
    "004": "an introduction to transfer learning and its four cases",
}

Size = Literal["small", "large"]
Likeness = Literal["similar", "different"]
_IN_WORDS: dict[Likeness, str] = {"similar": "similar to", "different": "different from"}


@dataclass(frozen=True)
class Layer:
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
            f"{name:<9}{self.features:5} features   probe {_percent(self.accuracy)} ± {_percent(self.standard_error)}"
            f"   LogME {self.logme:+.3f}"
        )


@dataclass(frozen=True)
class Measurement:
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
    early: tuple[Layer, ...]
    """Earlier stages, lowest first."""
    late: Layer
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

    @property
    def best_early(self) -> Layer:
        """The earlier stage that serves best."""
        return max(self.early, key=lambda layer: layer.accuracy)

    @property
    def size(self) -> Size:
        """Small by images in all or in the median class, see SMALL_IMAGES and SMALL_PER_CLASS."""
        few = self.images < SMALL_IMAGES or self.images_per_class[1] < SMALL_PER_CLASS
        return "small" if few else "large"

    @property
    def likeness(self) -> Likeness:
        """Similar to the source where late features serve, and much better than early ones do."""
        return "similar" if self.margin >= 0 and self.above_chance >= ABOVE_CHANCE else "different"

    @property
    def above_chance(self) -> float:
        """How much of the way from chance to no error the late features come; below 0 for worse than chance."""
        return (self.late.accuracy - self.chance) / (1 - self.chance)

    @property
    def removed(self) -> float:
        """How many of the best earlier stage's errors late features do not make; negative where they make more."""
        errors = 1 - self.best_early.accuracy
        return self.gain / errors if errors > 0 else 0.0

    @property
    def clear(self) -> bool:
        """Whether the likeness would most likely come out the same on other images from where these came from."""
        way = (ABOVE_CHANCE - self.above_chance) * (1 - self.chance)
        lacks = (way / self.late.standard_error, -self.margin / max(self.margin_error, 1e-9))
        return max(lacks) <= -CLEAR if self.likeness == "similar" else max(lacks) >= CLEAR


@dataclass(frozen=True)
class Advised:
    """One strategy to try."""

    strategy: Choice
    """Its name in xfer.methods.strategies.STRATEGIES, and the parameters that are not left at their defaults."""
    reason: str
    whose: str
    """Who advises it in this case."""


@dataclass(frozen=True)
class Advice:
    """What to try on this data, in order, and why."""

    measured: Measurement
    recommended: tuple[Advised, ...]
    notes: tuple[str, ...]
    """What a reader should know before believing it."""
    seconds: float
    """What the measurement took."""

    @property
    def case(self) -> tuple[Size, Likeness]:
        """Which of the sources' four cases this is."""
        return self.measured.size, self.measured.likeness

    def lines(self) -> tuple[str, ...]:
        """The answer for a person, line by line, none wider than WIDTH."""
        found = self.measured
        size, likeness = self.case
        least, median, most = found.images_per_class
        per_class = f"{least}" if least == most else f"{least} to {most}, median {median}"
        close = "" if found.clear else " (a close call)"
        sources = (source for source in SOURCES if any(source in each.whose for each in self.recommended))
        return (
            f"{found.images:,} training images of {found.classes} classes ({per_class} a class)",
            "",
            *_wrapped(
                f"Frozen features of {found.backbone} at {found.image_size} px, {found.measured_images:,} images (at "
                f"most {found.cap:,}), {self.seconds:.1f} s; a linear probe, cross-validated, ± 1 standard error:"
            ),
            *(f"  {layer}" for layer in (*found.early, found.late)),
            f"  chance                    {_percent(found.chance)}",
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
            "clear": self.measured.clear,
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
    cap: int = CAP,
    progress: Progress = lambda done, total: None,
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

    Raises:
        ValueError: the weights do not fit, the network's stages are unknown, or there are too few images to measure.
    """
    start = time.perf_counter()
    found = measure(pack, backbone, weights, backbone_args or {}, split_seed, device or default_device(), cap, progress)
    return advice_for(found, time.perf_counter() - start)


def measure(
    pack: Pack,
    backbone: str,
    weights: Path,
    backbone_args: Mapping[str, Value],
    split_seed: int,
    device: torch.device,
    cap: int,
    progress: Progress,
) -> Measurement:
    """What `advise` goes by; arguments and errors are the same."""
    if cap < 2:
        raise ValueError(f"cap is {cap}; a probe needs images to learn from and to be asked about: give at least 2")
    places = _once_each(pack, split_pack(pack, split_seed).train)
    counts = np.bincount(pack.labels[places], minlength=len(pack.classes))
    chosen = _sample(pack.labels, places, cap, seed_for(split_seed, "advice"))
    labels = pack.labels[chosen]
    with torch.random.fork_rng(devices=[]):  # the head, of which nothing is asked, is drawn from the global state
        model = backbones.build(backbone, len(pack.classes), pack.image_size, weights, backbone_args)
    model = model.to(device).to(memory_format=torch.channels_last)
    prepare = backbones.Preparation(backbones.input_statistics(model), device)
    earlier = earlier_stages(model)
    rows = features(model, pack, chosen, prepare, (*earlier, "late"), progress=progress)
    probes = {stage: probe_accuracy(rows[stage], labels, seed=split_seed) for stage in rows}
    layers = {stage: _layer(stage, probes[stage], rows[stage], labels) for stage in rows}
    early = tuple(layers[stage] for stage in earlier)
    best = max(early, key=lambda layer: layer.accuracy).stage
    gain, gain_error = difference(probes["late"], probes[best])
    margin, margin_error = difference(probes["late"], probes[best], REMOVED_ERRORS)
    return Measurement(
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
        blocks=max(param.depth for param in params_of(model).values()),
        drops_early=_drops_early(model, pack.image_size),
    )


def advice_for(found: Measurement, seconds: float = 0.0) -> Advice:
    """The advice that follows from a measurement."""
    return Advice(
        measured=found,
        recommended=CASES[found.size, found.likeness](found),
        notes=tuple(_notes(found)),
        seconds=seconds,
    )


def _small_and_similar(found: Measurement) -> tuple[Advised, ...]:
    return (
        Advised(
            Choice("linear_probe"),
            f"late features serve as they are ({_percent(found.late.accuracy)} as probed), and a frozen network cannot "
            f"overfit",
            "sources 002, 003 and 004",
        ),
        Advised(
            Choice("lp_ft"),
            "starts from that classifier and then trains everything, so that no random head distorts the features",
            "Kumar et al. 2022",
        ),
        _clip("no layer need be frozen where the first gradients are bounded"),
        _train_last(found, "the middle way: the most particular layers adapt", "sources 003 and 004"),
    )


def _large_and_similar(found: Measurement) -> tuple[Advised, ...]:
    return (
        _clip("everything adapts, from the pretrained weights and with its first gradients bounded"),
        _naive("everything adapts, and so much data does not overfit", "sources 002, 003 and 004"),
        _layer_decay(),
        _yardstick(found),
    )


def _small_and_different(found: Measurement) -> tuple[Advised, ...]:
    early, late = found.best_early, found.late
    probed = f"{_percent(early.accuracy)} as probed, late ones {_percent(late.accuracy)}"
    worse = found.gain >= CLEAR * found.gain_error
    cut = Advised(
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


def _large_and_different(found: Measurement) -> tuple[Advised, ...]:
    return (
        _clip("everything must adapt; its first gradients are bounded"),
        _naive("everything must adapt, and pretrained weights remain the better start", _ALL_BUT_STEPS),
        _layer_decay(),
        Advised(Choice("scratch"), "so much data affords it, and it shows what pretraining brings", _AFFORDABLE),
        *_literal(found),
    )


CASES: dict[tuple[Size, Likeness], Callable[[Measurement], tuple[Advised, ...]]] = {
    ("small", "similar"): _small_and_similar,
    ("large", "similar"): _large_and_similar,
    ("small", "different"): _small_and_different,
    ("large", "different"): _large_and_different,
}

_ALL_BUT_STEPS = "sources 002, 003 (its prose) and 004"
_AFFORDABLE = "sources 003 (its prose) and 004, as affordable"


def _clip(reason: str) -> Advised:
    return Advised(Choice("clip"), reason, "source 000, as the first thing to try on any data")


def _naive(reason: str, whose: str) -> Advised:
    return Advised(Choice("naive"), reason, whose)


def _layer_decay() -> Advised:
    return Advised(
        Choice("layer_decay"), "everything adapts, lower and so more general layers more slowly", "Bao et al. 2021"
    )


def _train_last(found: Measurement, reason: str, whose: str) -> Advised:
    # "Some of the last layers" is all that is said: a quarter of them.
    return Advised(Choice("train_last", (("blocks", max(1, found.blocks // 4)),)), reason, whose)


def _yardstick(found: Measurement) -> Advised:
    return Advised(
        Choice("linear_probe"),
        f"the yardstick: about {_percent(found.late.accuracy)}, at next to no cost, is what training has to beat",
        "source 002" if found.likeness == "different" and found.size == "small" else "nobody for this case",
    )


def _literal(found: Measurement) -> tuple[Advised, ...]:
    reason = "early layers removed, late ones frozen: against its own prose, so little is to be expected"
    literal = Advised(Choice("drop_early"), reason, "source 003 (its steps, to the letter)")
    return (literal,) if found.drops_early else ()


def _why_size(found: Measurement) -> str:
    median = found.images_per_class[1]
    if found.images < SMALL_IMAGES:
        return f"fewer than {SMALL_IMAGES:,} training images"
    if median < SMALL_PER_CLASS:
        return f"{median} images in the median class, fewer than {SMALL_PER_CLASS}"
    return f"at least {SMALL_IMAGES:,} training images, and {SMALL_PER_CLASS} in the median class"


def _why_likeness(found: Measurement) -> str:
    wanted = f"similar data leaves them at least {100 * REMOVED_ERRORS:.0f}% fewer"
    if found.above_chance < ABOVE_CHANCE:
        wanted += f", and brings them {100 * ABOVE_CHANCE:.0f}% of the way from chance to no error"
    return (
        f"late features leave {100 * abs(found.removed):.0f}% {'fewer' if found.removed >= 0 else 'more'} errors than "
        f"the best earlier stage, {found.best_early.stage} ({100 * found.gain:+.1f} ± {100 * found.gain_error:.1f} "
        f"points), and come {100 * found.above_chance:.0f}% of the way from chance to no error; {wanted}"
    )


def _notes(found: Measurement) -> Iterable[str]:
    if found.measured_images < found.images:
        yield f"measured on a stratified sample of {found.measured_images:,} of the {found.images:,} training images"
    if not found.clear:
        other: Likeness = "different" if found.likeness == "similar" else "similar"
        first = CASES[found.size, other](found)[0]
        yield f"a close call: were the data {other}, {first.strategy} would come first ({first.whose})"
    if max(layer.logme for layer in found.early) > found.late.logme:
        yield "LogME disagrees with the probe: it prefers an earlier stage"
    if found.likeness == "different" and not found.drops_early:
        yield "the steps of source 003 to the letter (drop_early) cannot be built with this network"
    yield "rules of thumb, not results: a sweep over these strategies tells which one wins"


def _wrapped(text: str, indent: int = 0) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=" " * indent)


def _percent(share: float) -> str:
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


def _layer(stage: Stage, probe: Probe, rows: Features, labels: Indices) -> Layer:
    return Layer(stage, rows.shape[1], probe.accuracy, probe.standard_error, logme(rows, labels))


def _drops_early(model: Any, image_size: int) -> bool:
    try:
        drop_stages(copy.deepcopy(model), 1, image_size)
    except ValueError:
        return False
    return True
