"""Where every file of an image folder goes: content instead of suffixes, junk, links, and files that are not images."""

from __future__ import annotations

import os
import socket

import pytest
from PIL import Image, features

from xfer.data.file_tree import image_problem
from xfer.data.image_folder import folder
from xfer.data.pack import build_pack


@pytest.fixture
def root(tmp_path):
    """Two classes of one image each."""
    for name in "ab":
        save(tmp_path / "data" / name / "1.jpg")
    return tmp_path / "data"


def save(path, kind="JPEG", colour=(9, 99, 200)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12), colour).save(path, kind)
    return path


def skipped(source):
    return {skip.reason: skip.count for skip in source.skipped}


def used(source, root):
    return sorted(str(example.image.path.relative_to(root)) for example in source.examples)


# Content decides

CONTENTS = {
    "photo.jfif": "JPEG",
    "photo.jpe": "JPEG",
    "photo": "JPEG",
    "photo.JPG_large": "JPEG",
    "photo.jpg~orig": "JPEG",
    "photo.txt": "PNG",
    "photo.apng": "PNG",
    "photo.pnm": "PPM",
    "photo.dat": "WEBP",
    "photo.bin": "BMP",
    "photo.jp2": "JPEG2000",
    "photo.avif": "AVIF",
}


@pytest.mark.parametrize("name", CONTENTS)
def test_an_image_is_used_whatever_its_suffix(root, name, tmp_path):
    if CONTENTS[name] == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow was built without AVIF")
    save(root / "a" / name, CONTENTS[name])
    source = folder(root)
    assert used(source, root) == ["a/1.jpg", f"a/{name}", "b/1.jpg"]
    assert source.skipped == ()
    assert build_pack(source, 8, tmp_path / "packs").skipped == ()


HEADS = {
    "photo.heic": (b"\0\0\0\x18ftypheic" + bytes(40), "image format that cannot be decoded here: HEIC"),
    "renamed.bin": (b"\0\0\0\x18ftypmif1" + bytes(40), "image format that cannot be decoded here: HEIC"),
    "broken.avif": (b"\0\0\0\x18ftypavif" + bytes(40), "image format that cannot be decoded here: AVIF"),
    "broken.jp2": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), "image format that cannot be decoded here: JPEG 2000"),
    "photo.psd": (b"8BPS" + bytes(60), "image format that cannot be decoded here: PSD"),
    "photo.nef": (b"II*\0" + bytes(60), "image format that cannot be decoded here: camera raw"),
    "empty": (b"", "empty file"),
    "notes.txt": (b"P.S. nothing", "not an image"),
    "Thumbs.db": (b"\xd0\xcf\x11\xe0" + bytes(60), "not an image"),
    "paper.pdf": (b"%PDF-1.7", "image format that cannot be decoded here: PDF"),
    "icon.svg": (b"<svg xmlns='x'/>", "image format that cannot be decoded here: SVG"),
    "scan.dcm": (bytes(128) + b"DICM" + bytes(9), "image format that cannot be decoded here: DICOM"),
    "scan": (bytes(128) + b"DICM" + bytes(9), "image format that cannot be decoded here: DICOM"),
    "photo.jxl": (b"\xff\x0a" + bytes(9), "image format that cannot be decoded here: JPEG XL"),
    "light.exr": (b"v/1\1" + bytes(9), "image format that cannot be decoded here: OpenEXR"),
    "film.mp4": (b"\0\0\0\x18ftypisom" + bytes(40), "not an image"),
    ".hidden.jpg": (b"\xff\xd8\xff", "hidden file"),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_file_that_is_not_used_is_counted_with_the_reason(root, name):
    content, reason = HEADS[name]
    (root / "a" / name).write_bytes(content)
    source = folder(root)
    assert [(skip.reason, skip.count, skip.first) for skip in source.skipped] == [(reason, 1, (f"a/{name}",))]
    assert any(f"1 files are skipped, {reason}" in note for note in source.notes) == ("cannot be decoded" in reason)


def test_a_damaged_file_with_the_suffix_of_an_image_is_left_to_the_decoder(tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"no image")
    assert image_problem(tmp_path / "1.jpg") == ""


def test_only_regular_files_are_opened(root, monkeypatch):
    os.mkfifo(root / "a" / "pipe.jpg")
    os.mkfifo(root / "a" / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(root)  # the path of a socket must be short
        server.bind("a/socket.jpg")
        assert skipped(folder(root)) == {"not a regular file": 3}


# Junk


@pytest.mark.parametrize(
    "name",
    [".ipynb_checkpoints", "@eaDir", ".thumbnails", "__MACOSX", ".AppleDouble", "#recycle", "@Recycle", ".Trash-1"],
)
@pytest.mark.parametrize("parent", [".", "a", "a/deep"])
def test_junk_folders_are_counted_and_not_read(root, name, parent):
    save(root / parent / name / "copy.jpg")
    save(root / parent / name / "deeper" / "copy.png", "PNG")
    source = folder(root)
    assert used(source, root) == ["a/1.jpg", "b/1.jpg"]
    assert skipped(source) == {f"in the junk folder {name}": 2}


def test_images_outside_the_class_folders_are_counted_and_noted(root):
    save(root / "cover.png", "PNG")
    source = folder(root)
    assert skipped(source) == {"image outside the class folders": 1}
    assert source.notes == ("WARNING: 1 files are skipped, image outside the class folders: cover.png.",)


# Links


@pytest.fixture
def outside(tmp_path):
    """Three images outside of the data."""
    for name in ("1.jpg", "2.jpg", "sub/3.jpg"):
        save(tmp_path / "outside" / name)
    return tmp_path / "outside"


def test_links_that_leave_the_folder_are_counted_and_named(root, outside):
    (root / "a" / "link.jpg").symlink_to(outside / "1.jpg")
    (root / "a" / "more").symlink_to(outside)
    source = folder(root)
    assert used(source, root) == ["a/1.jpg", "b/1.jpg"]
    assert skipped(source) == {"link out of the folder": 2}
    (note,) = source.notes
    assert note == (
        "WARNING: 2 links lead out of data and are not followed: a/link.jpg, a/more. --follow-links reads them."
    )


def test_links_that_leave_the_folder_are_followed_on_demand(root, outside):
    (root / "a" / "link.jpg").symlink_to(outside / "1.jpg")
    (root / "a" / "more").symlink_to(outside)
    (root / "c").symlink_to(outside)
    source = folder(root, follow_links=True)
    assert used(source, root) == [
        *("a/1.jpg", "a/link.jpg", "a/more/1.jpg", "a/more/2.jpg", "a/more/sub/3.jpg"),
        *("b/1.jpg", "c/1.jpg", "c/2.jpg", "c/sub/3.jpg"),
    ]
    assert (source.skipped, source.notes) == ((), ())


def test_a_part_that_links_outside_is_followed_on_demand(tmp_path):
    for part in ("train", "other/test"):
        for name in "ab":
            save(tmp_path / part / name / "1.jpg")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(tmp_path / "train")
    (tmp_path / "data" / "test").symlink_to(tmp_path / "other" / "test")
    with pytest.raises(ValueError, match=r"test \(link out of the folder\), train \(.* with --follow-links"):
        folder(tmp_path / "data")
    source = folder(tmp_path / "data", follow_links=True)
    assert sorted({str(example.part) for example in source.examples}) == ["test", "train"]


LOST = {  # link in the data: its target outside, and the folder that the message names
    "c": ("sub", "c (link out of the folder)"),
    "Testing": (".", "Testing (link out of the folder)"),
    "val/a": ("sub", "val/a (link out of the folder)"),
    "val/a/1.jpg": ("1.jpg", "val/a (link out of the folder)"),
    "d": ("nowhere", "d (broken link)"),
    "dev": ("nowhere", "dev (broken link)"),
    "val/b/1.jpg": ("nowhere", "val/b (broken link)"),
}


@pytest.mark.parametrize("name", LOST)
def test_a_part_or_a_class_that_is_empty_because_of_a_link_is_refused(root, outside, name):
    target, named = LOST[name]
    if "val" in name or name in ("Testing", "dev"):
        for label in "ab":
            save(root / "train" / label / "1.jpg")
            (root / label / "1.jpg").unlink()
            (root / label).rmdir()
    if "val" in name:
        other = "b" if "a" in name.removeprefix("val") else "a"
        save(root / "val" / other / "1.jpg")
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).symlink_to(outside / target)
    with pytest.raises(ValueError) as caught:
        folder(root)
    assert f"were probably meant to have some: {named}. " in str(caught.value)
    assert ("--follow-links" in str(caught.value)) == (target != "nowhere")


def test_a_broken_link_next_to_other_images_is_a_warning(root):
    (root / "a" / "2.jpg").symlink_to("nowhere")
    assert folder(root).notes == ("WARNING: 1 files are skipped, broken link: a/2.jpg.",)


def test_a_file_without_permission_is_counted(root, monkeypatch):
    save(root / "a" / "secret.jpg")
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "secret.jpg")
    assert skipped(folder(root)) == {"no permission to read it": 1}


@pytest.mark.parametrize("follow", [False, True])
def test_loops_of_links_end(root, follow):
    (root / "a" / "self").symlink_to(root)
    (root / "a" / "loop.jpg").symlink_to("loop.jpg")
    (root / "b" / "gone.jpg").symlink_to("nowhere.jpg")
    source = folder(root, follow_links=follow)
    assert used(source, root) == ["a/1.jpg", "b/1.jpg"]
    assert skipped(source) == {"broken link": 2, "link to another folder of the data": 1}


def test_a_class_folder_may_link_to_another_folder_of_the_data(root):
    save(root / ".store" / "c" / "1.jpg")
    (root / "c").symlink_to(root / ".store" / "c")
    assert folder(root).classes == ("a", "b", "c")


# Masks, copies and look-alike names


@pytest.mark.parametrize(
    ("pictures", "annotations"),
    [
        ("Images", "masks"),
        ("JPEGImages", "SegmentationClass"),
        ("images", "ground_truth"),
        ("img", "gt"),
        ("photos", "Annotations_png"),
        ("imagesTr", "labelsTr"),
    ],
)
def test_pictures_next_to_their_annotations_are_a_warning(tmp_path, pictures, annotations):
    for name in (pictures, annotations):
        save(tmp_path / name / "1.jpg")
    (note,) = folder(tmp_path).notes
    assert note.startswith("WARNING: the classes are ")
    assert "which look like pictures and their annotations" in note


def test_a_folder_whose_files_are_named_like_those_of_another_is_taken_for_its_annotations(tmp_path):
    for number in range(3):
        save(tmp_path / "tiles" / f"t{number}.jpg")
        save(tmp_path / "tile_masks" / f"t{number}_mask.png")
    assert "pictures and their annotations" in folder(tmp_path).notes[0]


@pytest.mark.parametrize("names", [("with_mask", "without_mask"), ("label_torn", "label_whole"), ("raw", "cooked")])
def test_classes_of_masks_or_labels_are_no_warning(tmp_path, names):
    for name in names:
        save(tmp_path / name / "1.jpg")
    assert folder(tmp_path).notes == ()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(
            (f"a/{name}/1.jpg", "in folders that look like annotations")
            for name in ("masks", "Annotations", "ground_truth", "seg")
        ),
        *((f"a/{name}/1.jpg", "copies of other images") for name in ("thumbs", "preview", "_cache", "resized")),
        ("a/1_mask.png", "named like masks, annotations or copies of other images"),
        ("a/1-seg.png", "named like masks, annotations or copies of other images"),
    ],
)
def test_masks_and_copies_inside_a_class_are_a_warning(root, name, kind):
    save(root / name)
    (note,) = folder(root).notes
    assert note.startswith("WARNING: 1 images are ")
    assert kind in note


@pytest.mark.parametrize("names", [("Cat", "cat"), ("1", "1.0"), ("7", "07"), ("red ant", "red_ant"), ("ant", "ant ")])
def test_class_names_that_look_alike_are_a_warning(root, names):
    for name in names:
        save(root / name / "1.jpg")
    one, other = sorted(names)
    assert folder(root).notes == (
        f"WARNING: {one!r} and {other!r} are different classes, though their names look alike.",
    )
