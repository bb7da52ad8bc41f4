"""Look at your data: the worst mistakes, likely label errors, copies across sets, the rarest and the worst class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np

from sweeps.reporting.class_accuracy import trial_classes
from sweeps.reporting.formatting import (
    class_name,
    escape_control_characters,
    format_interval,
    format_percent,
    join_words,
    pluralize,
    truncate,
)
from sweeps.reporting.label_errors import LabelError, find_label_errors, mean_predictions
from sweeps.reporting.photos import Photo, PhotoRow, photo_of
from sweeps.reporting.ranking import ranked_finalists
from sweeps.reporting.results import RankedTrial, Results
from sweeps.reporting.sections import Section
from xfer.data.copies import COPIES_FILE, PART_ORDER, report_copies
from xfer.data.pack import Pack
from xfer.measure.held_out import HeldOutRun

MAX_PHOTOS = 6
"""Maximum number of photos of one kind."""
MAX_COPY_PAIRS = 3
"""Maximum number of pairs of copies that are shown."""
CAPTION_LENGTH = 40
"""Maximum number of characters of a name in a caption."""

PART_NAMES = {"train": "training", "val": "validation", "test": "test"}

PHOTOS_CAPTION = (
    "Probabilities are means over the seeds that were not trained on the image. Label errors are found by confident "
    "learning (Northcutt et al. 2021) on the validation and test images of all seeds; they are suggestions, and a "
    "network that is often wrong suggests many. The digits below a photo are the start of the SHA-256 of its file."
)


def look_at_data(results: Results) -> list[Section]:
    """Show what the predictions of the first finalist say about the data.

    Returns:
        No section before the test set is used. What is missing is replaced by a sentence with the reason.
    """
    best = next((trial for trial in ranked_finalists(results) if trial.test), None)
    if best is None:
        return []
    sentences = [*_class_sentences(results, best)]
    rows: list[PhotoRow] = []
    runs, pack = [*results.held_out.values()], results.pack
    if pack is None:
        sentences.append(f"No photos are shown: {results.why_no_pack}.")
    if runs:
        found, sentence = _mistakes_and_label_errors(results, runs, pack)
        sentences.append(sentence)
        rows += found
    else:
        sentences.append(
            f"Mistakes and label errors are not shown: no predictions of trial {escape_control_characters(best.name)} "
            f"are stored, as in sweeps of earlier versions."
        )
    if pack is not None:
        sentences.append(_copies_sentence(pack))
        rows += _copy_pairs(pack)
    return [Section("Look at your data", tuple(sentences), photos=tuple(rows), caption=PHOTOS_CAPTION if rows else "")]


def _class_sentences(results: Results, best: RankedTrial) -> list[str]:
    """Name the rarest class of the data, and the worst one of the best trial."""
    names, images = results.plan["data"]["classes"], results.plan["data"].get("images")
    sentences = []
    if images:
        rarest, largest = min(range(len(images)), key=images.__getitem__), max(images)
        sentences.append(
            f"The rarest class is {class_name(names, rarest)} with {pluralize(images[rarest], 'image')}; the largest "
            f"has {largest:,}."
            if images[rarest] < largest
            else f"All classes have {largest:,} images."
        )
    if (worst := trial_classes(results, best)) is not None:
        interval = format_interval(worst.low, worst.high)
        sentences.append(
            f"The worst class on the {worst.set_name} set is {escape_control_characters(worst.worst)}: "
            f"{format_percent(worst.accuracy)} of {pluralize(worst.images, 'image')} are correct (95% interval "
            f"{interval})."
        )
    return [" ".join(sentences)] if sentences else []


def _mistakes_and_label_errors(
    results: Results, runs: Sequence[HeldOutRun], pack: Pack | None
) -> tuple[list[PhotoRow], str]:
    """Show the most confident mistakes on the test set, then the label errors that are not among them."""
    names = results.plan["data"]["classes"]
    test = mean_predictions([run.test for run in runs], results.classes)
    everything = mean_predictions([part for run in runs for part in (run.val, run.test)], results.classes)
    errors = {error.image: error for error in find_label_errors(everything)}
    predicted = test.predicted
    confidence = test.probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != test.labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:MAX_PHOTOS].tolist()
    shown = {int(test.images[row]) for row in worst}
    marked = len(shown & errors.keys())
    sentence = (
        f"The mean prediction of {pluralize(len(runs), 'seed')} is wrong for {len(wrong):,} of "
        f"{pluralize(len(test.images), 'test image')}. Of "
        f"{pluralize(len(everything.images), 'validation and test image')}, {len(errors):,} "
        f"{'is' if len(errors) == 1 else 'are'} likely to have a wrong label"
        + (f", {marked:,} of the mistakes below among them." if marked else ".")
    )
    if pack is None:
        return [], sentence
    mistakes = PhotoRow(
        "Most confident mistakes on the test set",
        tuple(
            photo_of(
                pack,
                int(test.images[row]),
                f"mistake-{number}",
                f"labelled {_short(names, test.labels[row])}",
                f"predicted {_short(names, predicted[row])}, {format_percent(float(confidence[row]))}",
                f"{_wrong_runs(runs, int(test.images[row]))} of {pluralize(len(runs), 'seed')} wrong"
                + ("; likely label error" if int(test.images[row]) in errors else ""),
            )
            for number, row in enumerate(worst, start=1)
        ),
    )
    others = islice((error for image, error in errors.items() if image not in shown), MAX_PHOTOS)
    labels = PhotoRow(
        "Other likely label errors" if marked else "Likely label errors",
        tuple(
            photo_of(pack, error.image, f"label-{number}", *_label_lines(names, error))
            for number, error in enumerate(others, start=1)
        ),
    )
    return [row for row in (mistakes, labels) if row.photos], sentence


def _label_lines(names: Sequence[str], error: LabelError) -> tuple[str, str]:
    return (
        f"labelled {_short(names, error.label)}, {format_percent(error.label_probability)}",
        f"perhaps {_short(names, error.suggested)}, {format_percent(error.suggested_probability)}",
    )


def _wrong_runs(runs: Sequence[HeldOutRun], image: int) -> int:
    return sum(bool((~run.test.correct[run.test.images == image]).any()) for run in runs)


def _copies_sentence(pack: Pack) -> str:
    """State how many images of a given part are copies of images of another one."""
    if not (pack.folder / COPIES_FILE).exists():
        return "Copies were not looked for, because an earlier version prepared the data."
    report = report_copies(pack.copies, pack.labels.tolist(), pack.parts, pack.classes)
    remark = f" {pack.copies.remark}" if pack.copies.remark else ""
    across = [_across(pair, counts) for pair, counts in report.across_parts.items()]
    if across:
        return f"Copies across sets make accuracy look better than it is: {join_words(across)}.{remark}"
    if any(pack.parts):
        return f"No image of the given sets is a copy of an image in another one.{remark}"
    kept = "; a group of copies is in one set as a whole" if report.exact_copies or report.near_copies else ""
    return f"Copies in the data: {report.exact_copies:,} exact, {report.near_copies:,} near{kept}.{remark}"


def _across(pair: str, counts: Mapping[str, int]) -> str:
    earlier, later = (PART_NAMES[part] for part in pair.split("-"))
    found = join_words([f"{count:,} {kind}" for kind, count in counts.items() if count])
    return f"{found} {'copy' if sum(counts.values()) == 1 else 'copies'} of {earlier} images in the {later} set"


def _copy_pairs(pack: Pack) -> list[PhotoRow]:
    """Show images of one given part next to their copies in another."""
    photos: list[Photo] = []
    for group in pack.copies.alike:
        by_part = {part: index for index in reversed(group) if (part := pack.parts[index]) is not None}
        pair = [(part, by_part[part]) for part in PART_ORDER if part in by_part][:2]
        if len(pair) == 2:
            for part, index in pair:
                line = f"{PART_NAMES[part]}: {_short(pack.classes, pack.labels[index])}"
                photos.append(photo_of(pack, index, f"copy-{len(photos) + 1}", line))
        if len(photos) == 2 * MAX_COPY_PAIRS:
            break
    return [PhotoRow("Copies across sets, in pairs", tuple(photos))] if photos else []


def _short(names: Sequence[str], index: int) -> str:
    return truncate(class_name(names, int(index)), CAPTION_LENGTH)
