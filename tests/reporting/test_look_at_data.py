"""The report shows the images that the best recipe gets wrong, and says so where it cannot."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sweeps.reporting.look_at_data import MAX_PHOTOS, look_at_data
from sweeps.reporting.photos import PHOTO_SIDE, encode_jpeg
from sweeps.reporting.render import render
from sweeps.reporting.results import Results
from sweeps.reporting.sections import Section
from tests.reporting.conftest import a_plan, a_record, results_of, some_finals
from xfer.data.copies import Copies, write_copies
from xfer.data.pack import Pack
from xfer.measure.held_out import HeldOut, HeldOutRun, predict_held_out

TEST, VAL = np.arange(0, 36, 3), np.arange(1, 36, 3)  # of every class
STRANGE = "<script>alert(1)</script>"


def a_part(pack: Pack, images: np.ndarray, predicted: Mapping[int, tuple[int, float]]) -> HeldOut:
    """Predictions with probability 0.9 for the own class, except where another class is given with its own."""
    labels, classes = pack.labels[images], len(pack.classes)
    chosen = [predicted.get(image, (label, 0.9)) for image, label in zip(images.tolist(), labels.tolist(), strict=True)]
    probabilities = np.array([np.full(classes, (1 - probability) / (classes - 1)) for _, probability in chosen])
    probabilities[np.arange(len(images)), [label for label, _ in chosen]] = [probability for _, probability in chosen]
    return predict_held_out(np.log(probabilities), labels, images, None)


def a_sweep(pack: Pack, *runs: HeldOutRun) -> Results:
    """A sweep on `pack` whose finalist has these runs."""
    plan = a_plan()
    plan["data"] |= {"classes": list(pack.classes), "images": np.bincount(pack.labels).tolist()}
    results = results_of([a_record("0000"), *some_finals("0000", 0.9, 0.9, seeds=2)], ["0000"], **plan)
    held_out = {f"0000-s{seed}": run for seed, run in enumerate(runs, start=1)}
    return replace(results, held_out=held_out, pack=pack)


def other(pack: Pack, image: int) -> int:
    return int(pack.labels[image] + 1) % len(pack.classes)


@pytest.fixture
def wrong(pack: Pack) -> Results:
    """Image 30 is certainly another class, 27 only in the second run, and so is image 13 of the validation part."""
    sure, unsure = {30: (other(pack, 30), 0.99)}, {27: (other(pack, 27), 0.97)}
    val = {13: (other(pack, 13), 0.98)}
    return a_sweep(
        pack,
        HeldOutRun(None, a_part(pack, VAL, val), a_part(pack, TEST, sure)),
        HeldOutRun(None, a_part(pack, VAL, {}), a_part(pack, TEST, sure | unsure)),
    )


def section_of(results: Results) -> Section:
    (section,) = look_at_data(results)
    return section


def test_the_most_confident_mistake_comes_first_with_what_was_predicted(wrong: Results, pack: Pack) -> None:
    mistakes = section_of(wrong).photos[0].photos
    label, predicted = pack.classes[pack.labels[30]], pack.classes[other(pack, 30)]
    assert mistakes[0].lines == (
        f"labelled {label}",
        f"predicted {predicted}, 99.0%",
        "2 of 2 seeds wrong; likely label error",
        pack.digests[30][:12],
    )
    assert [photo.lines[-1] for photo in mistakes] == [pack.digests[30][:12], pack.digests[27][:12]]
    assert "1 of 2 seeds wrong" in mistakes[1].lines[2]
    assert "wrong for 2 of 12 test images" in section_of(wrong).sentences[1]


def test_label_errors_among_the_mistakes_are_marked_and_not_shown_twice(wrong: Results, pack: Pack) -> None:
    val = {image: (other(pack, image), 0.98) for image in (13, 16)}
    runs = [replace(run, val=a_part(pack, VAL, val)) for run in wrong.held_out.values()]
    section = section_of(a_sweep(pack, *runs))
    assert [row.title for row in section.photos] == [
        "Most confident mistakes on the test set",
        "Other likely label errors",
    ]
    labels = section.photos[1].photos
    assert {photo.lines[-1] for photo in labels} == {pack.digests[13][:12], pack.digests[16][:12]}
    assert labels[0].lines[1] == f"perhaps {pack.classes[other(pack, 13)]}, 98.0%"
    assert (
        "Of 24 validation and test images, 3 are likely to have a wrong label, 1 of the mistakes below among them."
        in section.sentences[1]
    )


def test_at_most_six_photos_of_a_kind_are_shown(pack: Pack) -> None:
    mistakes = {int(image): (other(pack, image), 0.9) for image in TEST[:10]}
    run = HeldOutRun(None, a_part(pack, VAL, {}), a_part(pack, TEST, mistakes))
    assert len(section_of(a_sweep(pack, run)).photos[0].photos) == MAX_PHOTOS


def test_without_mistakes_there_are_no_photos(pack: Pack) -> None:
    section = section_of(a_sweep(pack, HeldOutRun(None, a_part(pack, VAL, {}), a_part(pack, TEST, {}))))
    assert section.photos == ()
    assert "is wrong for 0 of 12 test images" in section.sentences[1]


@pytest.mark.parametrize("missing", ["predictions", "data"])
def test_what_is_missing_is_replaced_by_one_sentence(wrong: Results, missing: str) -> None:
    changes = {"held_out": {}} if missing == "predictions" else {"pack": None, "why_no_pack": "it was removed"}
    section = section_of(replace(wrong, **changes))
    assert section.photos == ()
    reasons = {"predictions": "as in sweeps of earlier versions", "data": "No photos are shown: it was removed."}
    assert sum(reasons[missing] in sentence for sentence in section.sentences) == 1


def test_there_is_no_section_before_the_test_set_is_used(pack: Pack) -> None:
    assert look_at_data(results_of([a_record("0000"), *some_finals("0000", 0.9)])) == []


def test_copies_across_given_sets_are_counted_and_shown_in_pairs(wrong: Results, pack: Pack, tmp_path: Path) -> None:
    groups = ((3, 30), (5, 26), (6, 7))
    copies = Copies(groups[:1], groups, names={index: f"{index}.png" for group in groups for index in group})
    write_copies(tmp_path / "copies.json", copies, pack.hash)
    given = replace(pack, folder=tmp_path, copies=copies, parts=(*["train"] * 24, *["test"] * 12))
    section = section_of(replace(wrong, pack=given))
    assert section.sentences[-1] == (
        "Copies across sets make accuracy look better than it is: 1 exact and 1 near copies of training images in the "
        "test set."
    )
    pairs = section.photos[-1]
    assert pairs.title == "Copies across sets, in pairs"
    assert [photo.lines[-1] for photo in pairs.photos] == [pack.digests[index][:12] for index in (3, 30, 5, 26)]
    assert pairs.photos[0].lines[0] == f"training: {pack.classes[pack.labels[3]]}"


def test_the_rarest_class_is_named_with_its_number_of_images(wrong: Results) -> None:
    plan = {**wrong.plan, "data": {**wrong.plan["data"], "images": [20, 3, 13]}}
    rarest = wrong.plan["data"]["classes"][1]
    assert (
        section_of(replace(wrong, plan=plan))
        .sentences[0]
        .startswith(f"The rarest class is {rarest} with 3 images; the largest has 20.")
    )


@pytest.mark.parametrize("side", [8, 60, 160, 400])
def test_a_photo_is_a_small_jpeg(side: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    jpeg = encode_jpeg(pixels)
    with Image.open(io.BytesIO(jpeg)) as image:
        assert image.format == "JPEG"
        assert PHOTO_SIDE / 2 < image.width <= PHOTO_SIDE
    assert len(jpeg) < 40_000  # of noise; photos are smaller


def test_photos_are_inside_the_page_and_next_to_the_markdown(wrong: Results, tmp_path: Path) -> None:
    html = render(wrong, tmp_path).read_text(encoding="utf-8")
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert sorted(path.name for path in (tmp_path / "photos").iterdir()) == ["mistake-1.jpg", "mistake-2.jpg"]
    assert html.count('<img src="data:image/jpeg;base64,') == 2
    assert "](photos/mistake-1.jpg)" in markdown


def test_a_class_named_like_a_tag_stays_text_next_to_a_photo(wrong: Results, tmp_path: Path) -> None:
    plan = {**wrong.plan, "data": {**wrong.plan["data"], "classes": [STRANGE, STRANGE + "\x1b", STRANGE]}}
    html = render(replace(wrong, plan=plan), tmp_path).read_text(encoding="utf-8")
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "<script" not in markdown
    assert "labelled &lt;script&gt;alert(1)" in html
