"""Inspection: the balance of files, copies within and across parts, and label conflicts."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from xfer.data.image_folder import folder
from xfer.data.inspection import inspect_source, summary_line
from xfer.data.pack import build_pack
from xfer.data.source import select_classes


def picture(seed, side=80):
    """A smooth random picture."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


@pytest.fixture
def parted(tmp_path):
    """Three different pictures in each class of train and test."""
    for number in range(12):
        part, name = ("train", "test")[number // 6], "ab"[number % 2]
        save(tmp_path / part / name / f"{number}.jpg", picture(number))
    return tmp_path


def test_different_pictures_are_counted_by_part_and_class(parted):
    result = inspect_source(folder(parted))
    assert result.classes == ["a", "b"]
    assert result.parts == {"train": {"a": 3, "b": 3}, "test": {"a": 3, "b": 3}}
    assert (result.seen, result.used, result.skipped) == (12, 12, {})
    assert (result.sizes, result.modes) == ({"80 x 80": 12}, {"RGB": 12})
    assert (result.exact_copies, result.near_copies, result.conflicts, result.warnings) == (0, 0, [], [])


def test_every_file_is_used_or_skipped(parted):
    (parted / "README").write_text("x")
    (parted / "train" / "a" / "torn.jpg").write_bytes(b"no image")
    save(parted / "train" / "a" / ".cache" / "1.jpg", picture(0))
    result = inspect_source(folder(parted))
    assert result.skipped == {"not an image": 1, "in the junk folder .cache": 1, "unreadable": 1}
    assert result.seen == 15 == result.used + sum(result.skipped.values())
    assert result.skipped_first["unreadable"][0].startswith("train/a/torn.jpg: UnidentifiedImageError")
    assert result.summary == (
        "files: 15 seen = 12 used + 3 skipped (1 not an image, 1 in the junk folder .cache, 1 unreadable)"
    )


def test_images_with_missing_values_are_a_reason_of_their_own(tmp_path):
    for number in range(8):
        values = np.random.default_rng(number).random((20, 20), np.float32)
        values[0, 0] = np.nan if number < 2 else 0
        save(tmp_path / "ab"[number % 2] / f"{number}.tif", Image.fromarray(values))
    result = inspect_source(folder(tmp_path))
    assert (result.used, result.skipped) == (6, {"missing values": 2})
    assert result.skipped_first["missing values"][0].startswith("a/0.tif: missing values: 1 of 400 values are NaN")


def test_images_of_other_classes_are_skipped(parted):
    save(parted / "train" / "c" / "1.jpg", picture(50))
    source = select_classes(folder(parted), ("a", "b"))
    assert summary_line(source) == "files: 13 seen = 12 used + 1 skipped (1 class not selected)"


def test_pictures_saved_again_in_another_format_are_exact_copies(parted):
    for number in (0, 1):
        with Image.open(parted / "train" / "ab"[number] / f"{number}.jpg") as image:
            save(parted / "test" / "ab"[number] / f"again{number}.png", image)
    result = inspect_source(folder(parted))
    assert (result.exact_copies, result.near_copies) == (2, 0)
    assert result.copies == [["train/a/0.jpg", "test/a/again0.png"], ["train/b/1.jpg", "test/b/again1.png"]]
    assert result.copies_across_parts == {"train-test": {"exact": 2, "near": 0}}
    assert result.warnings == [
        "WARNING: 2 of 8 test images are copies of train images, with identical pixels: test/a/again0.png = "
        "train/a/0.jpg, test/b/again1.png = train/b/1.jpg. Accuracy on them says little about new images: remove them "
        "from one of the parts."
    ]


def test_copies_within_a_part_are_not_leaks(parted):
    save(parted / "train" / "a" / "copy.png", Image.open(parted / "train" / "a" / "0.jpg"))
    assert inspect_source(folder(parted)).exact_copies == 0


def test_resized_compressed_and_cropped_pictures_are_near_copies(parted):
    save(parted / "test" / "a" / "small.jpg", picture(0).resize((60, 60)), quality=70)
    save(parted / "test" / "b" / "cropped.jpg", picture(1).crop((2, 1, 79, 80)))
    result = inspect_source(folder(parted))
    assert (result.exact_copies, result.near_copies) == (0, 2)
    assert result.copies_across_parts == {"train-test": {"exact": 0, "near": 2}}
    assert result.near_groups == [["train/a/0.jpg", "test/a/small.jpg"], ["train/b/1.jpg", "test/b/cropped.jpg"]]
    assert [warning[:50] for warning in result.warnings] == ["WARNING: 2 of 8 test images are copies of train im"]


def test_copies_are_counted_without_parts(tmp_path):
    for number in range(6):
        save(tmp_path / "ab"[number % 2] / f"{number}.png", picture(number))
        save(tmp_path / "ab"[number % 2] / f"{number}-again.png", picture(number))
    result = inspect_source(folder(tmp_path))
    assert result.parts == {"all": {"a": 6, "b": 6}}
    assert (result.exact_copies, result.near_copies) == (6, 0)


def test_a_picture_in_two_classes_is_a_conflict(parted):
    save(parted / "test" / "b" / "conflict.png", Image.open(parted / "train" / "a" / "0.jpg"))
    result = inspect_source(folder(parted))
    assert result.conflicts == [
        {"images": ["train/a/0.jpg", "test/b/conflict.png"], "classes": ["a", "b"], "kind": "exact"}
    ]
    assert result.warnings[-1] == (
        "WARNING: 1 picture is filed under several classes: train/a/0.jpg = test/b/conflict.png. Keep each in its "
        "right class, or leave it out."
    )


def test_plain_pictures_are_copies_only_if_their_pixels_are_equal(tmp_path):
    for number, brightness in enumerate((10, 20, 30, 10)):
        save(tmp_path / "ab"[number % 2] / f"{number}.png", Image.new("L", (20, 20), brightness))
    result = inspect_source(folder(tmp_path))
    assert (result.exact_copies, result.near_copies, len(result.conflicts)) == (1, 0, 1)


def test_a_class_without_readable_images_is_refused(parted):
    for file in (parted / "train" / "a").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(ValueError, match="no training images for a"):
        inspect_source(folder(parted))


READERS = {
    "inspection": lambda source, root: inspect_source(source),
    "pack": lambda source, root: build_pack(source, 8, root),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_part_without_readable_images_is_refused(parted, tmp_path_factory, reader):
    source, root = folder(parted), tmp_path_factory.mktemp("packs")
    for file in (parted / "test").rglob("*.jpg"):
        file.write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match=r"no image of the test set of .* can be read; the first .*UnidentifiedImage"):
        READERS[reader](source, root)


def test_a_class_without_readable_images_in_a_part_is_a_warning(parted):
    for file in (parted / "test" / "a").iterdir():
        file.write_bytes(b"")
    assert inspect_source(folder(parted)).warnings == ["WARNING: the test set has no images of a."]


def test_a_changed_picture_in_two_classes_is_a_conflict_of_near_copies(parted):
    save(parted / "train" / "b" / "conflict.jpg", picture(0).resize((70, 70)), quality=80)
    result = inspect_source(folder(parted))
    assert result.conflicts == [
        {"images": ["train/a/0.jpg", "train/b/conflict.jpg"], "classes": ["a", "b"], "kind": "near"}
    ]
    assert (result.exact_copies, result.near_copies) == (0, 0)  # none of them is in two parts


def test_copies_are_counted_for_each_pair_of_parts(parted):
    save(parted / "val" / "a" / "0.png", Image.open(parted / "train" / "a" / "0.jpg"))
    save(parted / "val" / "a" / "6.png", Image.open(parted / "test" / "a" / "6.jpg"))
    save(parted / "val" / "b" / "1.jpg", picture(1).resize((50, 50)))
    save(parted / "val" / "b" / "99.jpg", picture(99))
    result = inspect_source(folder(parted))
    assert result.copies_across_parts == {
        "train-val": {"exact": 1, "near": 1},
        "val-test": {"exact": 1, "near": 0},
    }
    assert (result.exact_copies, result.near_copies) == (2, 1)
    assert len(result.warnings) == 3


def test_a_class_of_copies_of_one_picture_is_named(tmp_path):
    for number in range(6):
        save(tmp_path / "a" / f"{number}.jpg", picture(number))
        save(tmp_path / "b" / f"{number}.jpg", picture(9), quality=70 + number)
    result = inspect_source(folder(tmp_path))
    assert result.near_copies == 5
    assert result.warnings[-1] == (
        "WARNING: all 6 images of class b are copies of one picture, so the class is in the training part only. Add "
        "other images of it."
    )


def test_hundreds_of_real_photos_have_no_copies_across_parts(shared_data):
    result = inspect_source(folder(shared_data / "hymenoptera"))
    assert (result.seen, result.used, result.exact_copies, result.near_copies) == (397, 397, 0, 0)
