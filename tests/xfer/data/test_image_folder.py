"""Image folders: parts, classes, ignored files, unusual names, and errors."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from xfer.data.image_folder import folder
from xfer.data.image_formats import IMAGE_SUFFIXES
from xfer.data.source import PART_ALIASES


def images(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, "PNG")


def listing(source, root):
    return {
        (str(example.image.path.relative_to(root)), source.classes[example.label], example.part)
        for example in source.examples
    }


def test_a_single_folder_has_no_parts(tmp_path):
    images(tmp_path / "b" / "2.jpg", tmp_path / "a" / "1.png", tmp_path / "a" / "sub" / "folder" / "3.JPEG")
    source = folder(tmp_path)
    assert source.name == tmp_path.name
    assert source.classes == ("a", "b")
    assert listing(source, tmp_path) == {
        ("a/1.png", "a", None),
        ("a/sub/folder/3.JPEG", "a", None),
        ("b/2.jpg", "b", None),
    }


@pytest.mark.parametrize(
    "given",
    [("train", "val"), ("train", "test"), ("train", "val", "test"), ("train", "valid"), ("train", "validation")],
)
def test_part_folders_give_the_parts(tmp_path, given):
    for name in given:
        images(tmp_path / name / "a" / "1.jpg", tmp_path / name / "b" / "1.jpg")
    source = folder(tmp_path)
    assert source.classes == ("a", "b")
    assert listing(source, tmp_path) == {(f"{name}/{c}/1.jpg", c, PART_ALIASES[name]) for name in given for c in "ab"}


def test_only_a_train_folder_is_like_a_single_folder(tmp_path):
    images(tmp_path / "train" / "a" / "1.jpg", tmp_path / "train" / "b" / "1.jpg")
    assert listing(folder(tmp_path), tmp_path) == {("train/a/1.jpg", "a", None), ("train/b/1.jpg", "b", None)}


def test_a_class_may_be_missing_in_the_test_part(tmp_path):
    images(*(tmp_path / "train" / c / "1.jpg" for c in "abc"), tmp_path / "test" / "b" / "1.jpg")
    source = folder(tmp_path)
    assert source.classes == ("a", "b", "c")
    assert ("test/b/1.jpg", "b", "test") in listing(source, tmp_path)


def test_a_link_and_a_relative_path_are_resolved(tmp_path, monkeypatch):
    images(tmp_path / "data" / "a" / "1.jpg", tmp_path / "data" / "b" / "1.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    monkeypatch.chdir(tmp_path / "data")
    for root in (tmp_path / "link", tmp_path / "data" / ".." / "data", type(tmp_path)(".")):
        assert [example.image.path for example in folder(root).examples] == [
            tmp_path / "data" / "a" / "1.jpg",
            tmp_path / "data" / "b" / "1.jpg",
        ]


# Ignored files


def test_hidden_files_and_files_without_an_image_suffix_are_ignored(tmp_path):
    images(*(tmp_path / name / "1.jpg" for name in ("a", "b", ".git", ".ipynb_checkpoints")))
    images(tmp_path / "a" / ".hidden.jpg", tmp_path / "a" / "._1.jpg")
    for name in ("notes.txt", "Thumbs.db", "1.npy", "jpg", "picture.eps", "archive.jpg.zip"):
        (tmp_path / "a" / name).write_bytes(b"x")
    (tmp_path / "README.jpg").write_bytes(b"x")
    (tmp_path / "a" / "folder.jpg").mkdir()
    assert listing(folder(tmp_path), tmp_path) == {("a/1.jpg", "a", None), ("b/1.jpg", "b", None)}


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_suffix_is_recognized_in_lower_and_upper_case(tmp_path, suffix):
    images(tmp_path / "a" / f"1{suffix}", tmp_path / "a" / f"2{suffix.upper()}", tmp_path / "b" / f"1{suffix}")
    assert len(folder(tmp_path).examples) == 3


def test_links_are_followed_inside_the_folder_only(tmp_path):
    root, outside = tmp_path / "data", tmp_path / "outside"
    images(root / "a" / "1.jpg", root / "b" / "1.jpg", outside / "secret.jpg", outside / "c" / "2.jpg")
    (root / "a" / "out.jpg").symlink_to(outside / "secret.jpg")
    (root / "a" / "relative.jpg").symlink_to("../../outside/secret.jpg")
    (root / "a" / "folder").symlink_to(outside / "c")
    (root / "a" / "broken.jpg").symlink_to(tmp_path / "nowhere")
    (root / "a" / "loop.jpg").symlink_to("loop.jpg")
    (root / "a" / "self").symlink_to(root)
    (root / "a" / "in.jpg").symlink_to("../b/1.jpg")
    assert listing(folder(root), root) == {
        ("a/1.jpg", "a", None),
        ("a/in.jpg", "a", None),
        ("b/1.jpg", "b", None),
    }


def test_a_class_folder_that_links_outside_has_no_images(tmp_path):
    root = tmp_path / "data"
    images(root / "a" / "1.jpg", root / "b" / "1.jpg", tmp_path / "outside" / "1.jpg")
    (root / "c").symlink_to(tmp_path / "outside")
    with pytest.raises(
        ValueError, match=r"c \(link out of the folder\)\. Read what the links lead to with --follow-links"
    ):
        folder(root)


# Names

STRANGE = [
    "Ä ö 日本",
    "🐈",
    "a b",
    'quote\'s "and" more',
    "<b onclick=x>",
    "=1+1",
    "new\nline",
    "\x1b[31mred",
    "\u202egpj",
    "..a",
    "%s{}",
    "n" * 255,
]


@pytest.mark.parametrize("name", STRANGE)
def test_a_class_may_have_any_name_that_a_file_system_allows(tmp_path, name):
    if name.startswith("."):
        name = "x" + name
    images(tmp_path / name / "1.jpg", tmp_path / "zzz" / "1.jpg")
    assert name in folder(tmp_path).classes


def test_a_file_may_have_any_name_that_a_file_system_allows(tmp_path):
    names = [f"{name[:100]}.jpg" for name in STRANGE if not name.startswith(".")] + ["n" * 251 + ".png"]
    images(*(tmp_path / "a" / name for name in names), tmp_path / "b" / "1.jpg")
    assert {example.image.path.name for example in folder(tmp_path).examples} == {*names, "1.jpg"}


def test_a_file_name_that_is_not_utf8_is_read(tmp_path):
    images(tmp_path / "a" / "1.jpg", tmp_path / "b" / "1.jpg")
    odd = os.fsencode(tmp_path / "a") + b"/\xff\xfe.png"
    with open(odd, "wb") as file:  # noqa: PTH123
        file.write((tmp_path / "a" / "1.jpg").read_bytes())
    assert len(folder(tmp_path).examples) == 3


# Errors


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"there is no folder {tmp_path / 'nowhere'}"):
        folder(tmp_path / "nowhere")


def test_a_file_instead_of_a_folder_is_named(tmp_path):
    images(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg is a file; give the folder"):
        folder(tmp_path / "a.jpg")


@pytest.mark.parametrize("content", ["nothing", "files", "empty classes", "hidden"])
def test_a_folder_without_images_is_refused_with_the_expected_layout(tmp_path, content):
    if content == "files":
        images(tmp_path / "1.jpg", tmp_path / "2.jpg")
    if content == "empty classes":
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
    if content == "hidden":
        images(tmp_path / ".a" / "1.jpg", tmp_path / ".b" / "1.jpg")
    with pytest.raises(ValueError, match=r"holds no images in class folders\. Expected .*<class>/\*\.jpg.* \.png"):
        folder(tmp_path)


def test_a_single_class_is_refused(tmp_path):
    images(tmp_path / "cats" / "1.jpg", tmp_path / "cats" / "2.jpg")
    with pytest.raises(ValueError, match=r"one class only \(cats\): there is nothing to tell apart"):
        folder(tmp_path)


def test_a_class_without_images_is_named(tmp_path):
    images(tmp_path / "a" / "1.jpg", tmp_path / "b" / "1.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no training images for empty"):
        folder(tmp_path)


def test_a_class_that_occurs_only_in_the_test_part_is_named(tmp_path):
    images(*(tmp_path / "train" / c / "1.jpg" for c in "ab"), tmp_path / "test" / "zebra" / "1.jpg")
    with pytest.raises(ValueError, match="no training images for zebra"):
        folder(tmp_path)


def test_five_classes_without_images_are_named_and_the_rest_counted(tmp_path):
    images(tmp_path / "a" / "1.jpg", tmp_path / "b" / "1.jpg")
    for number in range(8):
        (tmp_path / f"empty{number}").mkdir()
    with pytest.raises(ValueError, match="empty0, empty1, empty2, empty3, empty4 and 3 more"):
        folder(tmp_path)


@pytest.mark.parametrize("given", [("val",), ("test",), ("val", "test")])
def test_parts_without_a_train_folder_are_refused(tmp_path, given):
    for name in given:
        images(tmp_path / name / "a" / "1.jpg", tmp_path / name / "b" / "1.jpg")
    with pytest.raises(ValueError, match=rf"{', '.join(given)} but no train folder\. Expected .*/train/<class>"):
        folder(tmp_path)


def test_real_photos_have_their_given_parts(shared_data):
    source = folder(shared_data / "hymenoptera")
    assert source.classes == ("ants", "bees")
    counts = [sum(example.part == part for example in source.examples) for part in ("train", "val")]
    assert counts == [244, 153]
