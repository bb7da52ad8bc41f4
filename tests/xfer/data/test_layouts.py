"""Choosing data: URIs, detection of the layout, and selection of classes."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xfer.data.image_folder import folder
from xfer.data.images import ImageFile
from xfer.data.layouts import SOURCES, detect_layout, read_source
from xfer.data.pack import build_pack
from xfer.data.source import Example, Source, select_classes
from xfer.data.uris import parse_uri


def photos(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name, "PNG")
    return root


# Layouts


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_has_the_name_of_its_function_and_documents_errors(name):
    source = SOURCES[name]
    assert source.__name__ == name
    uri, *options = inspect.signature(source).parameters.values()
    assert uri.name == "uri"
    assert all(option.default is not option.empty for option in options)
    assert "Raises:" in source.__doc__


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("kind", [str, Path])
def test_every_source_refuses_missing_data_with_a_clear_error(name, kind, tmp_path):
    with pytest.raises(ValueError, match=r"there is no (folder|file)|should begin with"):
        SOURCES[name](kind(tmp_path / "nowhere"))


LAYOUTS = {
    "folder": ["a/1.jpg", "b/1.jpg"],
    "stanford_cars": ["devkit/cars_meta.mat", "cars_train/1.jpg"],
    "quickdraw": ["cat.npy", "dog.npy"],
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("kind", [str, Path])
def test_the_layout_of_a_folder_is_detected_from_its_files(tmp_path, name, kind):
    assert detect_layout(kind(photos(tmp_path, *LAYOUTS[name]))) == name


@pytest.mark.parametrize(
    ("name", "layout"), [("cat.ndjson", "quickdraw"), ("stanford_cars/devkit/cars_meta.mat", "stanford_cars")]
)
def test_one_characteristic_file_is_enough_to_detect_a_layout(tmp_path, name, layout):
    assert detect_layout(photos(tmp_path, name)) == layout


@pytest.mark.parametrize(
    ("uri", "layout"),
    [
        ("hf://owner/name", "hub"),
        ("torchvision://MNIST?root=data", "torchvision"),
        ("labels.CSV", "table"),
        ("labels.tsv", "table"),
        ("nowhere", "folder"),
        ("photos.zip", "folder"),
    ],
)
def test_the_layout_of_a_uri_is_detected_from_its_form(uri, layout):
    assert detect_layout(uri) == layout


def test_a_folder_named_like_a_table_is_a_folder(tmp_path):
    assert detect_layout(photos(tmp_path / "birds.csv", "a/1.jpg")) == "folder"


def test_an_unknown_scheme_is_refused_with_the_known_formats():
    with pytest.raises(ValueError, match=r"unknown kind of address 'torchvison': did you mean torchvision\?") as caught:
        read_source("torchvison://MNIST")
    for form in ("DIR", "FILE.csv", "hf://owner/name", "torchvision://NAME?root=DIR"):
        assert form in str(caught.value)


def test_an_archive_is_refused_with_the_known_formats(tmp_path):
    (tmp_path / "photos.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"photos\.zip is a file; (?s:.*)FILE\.csv"):
        read_source(tmp_path / "photos.zip")


def test_a_given_layout_overrides_detection(tmp_path):
    photos(tmp_path, "a/1.jpg", "b/1.jpg", "features.npy")
    with pytest.raises(ValueError, match=r"features\.npy is not a complete \.npy file(?s:.*)give --source folder"):
        read_source(tmp_path)
    assert read_source(str(tmp_path), "folder") == folder(tmp_path)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("--parts applies to folders of images and tables only", {"parts": {"train": "a"}}),
        ("--follow-links applies to folders of images only", {"follow_links": True}),
    ],
)
def test_flags_of_image_folders_are_refused_for_other_layouts(tmp_path, message, arguments):
    with pytest.raises(ValueError, match=f"{message}.* layout quickdraw"):
        read_source(photos(tmp_path, "cat.npy"), **arguments)


def test_an_unknown_layout_is_refused_with_the_known_layouts(tmp_path):
    with pytest.raises(ValueError, match=r"unknown source 'foldr': did you mean folder\? Known: folder, stanford_cars"):
        read_source(tmp_path, "foldr")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(photos(tmp_path, "data/a/1.jpg", "data/b/1.jpg")))
    assert read_source("~/data").name == "data"


# URIs


@pytest.mark.parametrize(
    "uri", ["hf://owner/name?label=a%26b&config=x y", Path("hf://owner/name?label=a%26b&config=x y")]
)
def test_a_uri_has_a_name_and_parameters(uri):
    assert parse_uri(uri, "hf") == ("owner/name", {"label": "a&b", "config": "x y"})


def test_a_duplicate_parameter_is_refused():
    with pytest.raises(ValueError, match="gives a parameter twice"):
        parse_uri("hf://owner/name?label=a&label=b", "hf")


# Classes


@pytest.fixture
def zoo(tmp_path):
    return folder(photos(tmp_path / "zoo", *(f"{name}/{n}.png" for name in ("cat", "dog", "Elk", "ant") for n in "12")))


def listing(source):
    return sorted((example.image.path.parent.name, source.classes[example.label]) for example in source.examples)


def test_all_classes_are_kept_by_default(zoo):
    assert select_classes(zoo, ()) is zoo


def test_selected_classes_keep_their_images_and_the_order_of_the_source(zoo):
    selected = select_classes(zoo, ("dog", "Elk"))
    assert selected.classes == ("Elk", "dog")
    assert listing(selected) == [("Elk", "Elk")] * 2 + [("dog", "dog")] * 2
    assert selected.name == zoo.name
    assert selected.notes == ("2 of 4 classes were selected; images of other classes are left out.",)


def test_a_number_selects_the_first_classes_in_alphabetical_order():
    source = Source("x", ("c", "a", "b"), tuple(Example(ImageFile(Path(f"{n}")), n % 3, "train") for n in range(6)))
    selected = select_classes(source, ("2",))
    assert selected.classes == ("a", "b")
    assert [(str(example.image.path), example.label, example.part) for example in selected.examples] == [
        ("1", 0, "train"),
        ("2", 1, "train"),
        ("4", 0, "train"),
        ("5", 1, "train"),
    ]


def test_selecting_all_classes_adds_no_note(zoo):
    assert select_classes(zoo, ("4",)) == zoo


def test_another_selection_of_classes_is_another_pack(zoo, tmp_path):
    hashes = {
        build_pack(select_classes(zoo, classes), 8, tmp_path / "packs").hash for classes in ((), ("2",), ("cat", "dog"))
    }
    assert len(hashes) == 3


def test_class_names_that_are_digits_can_be_selected_by_giving_several():
    source = Source("digits", tuple("0123"), tuple(Example(ImageFile(Path("x")), n) for n in range(4)))
    assert select_classes(source, ("1", "3")).classes == ("1", "3")
    assert select_classes(source, ("3",)).classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("cat", "dg"), r"unknown class of zoo 'dg': did you mean dog\? Known: Elk, ant, cat, dog"),
        (("cat",), "select at least two different classes of zoo, not cat"),
        (("cat", "cat"), "select at least two different classes of zoo, not cat, cat"),
        (("cat", "dog", "dog"), "at least two different classes"),
        (("1",), "zoo has 4 classes: cannot select 1. Give a number from 2 to 4"),
        (("0",), "cannot select 0"),
        (("-2",), "cannot select -2"),
        (("5",), "zoo has 4 classes: cannot select 5"),
        (("2.5",), "unknown class of zoo '2.5'"),
        (("",), "unknown class of zoo ''"),
    ],
)
def test_an_impossible_selection_is_refused_with_the_reason(zoo, classes, message):
    with pytest.raises(ValueError, match=message):
        select_classes(zoo, classes)


def test_with_many_classes_only_the_closest_names_are_listed():
    names = tuple(f"class {number}" for number in range(300))
    source = Source("many", names, tuple(Example(ImageFile(Path("x")), n) for n in range(300)))
    with pytest.raises(ValueError, match="did you mean") as caught:
        select_classes(source, ("class 12x", "class 1"))
    assert len(str(caught.value)) < 150


def test_the_first_three_classes_of_real_drawings(shared_data):
    selected = select_classes(read_source(shared_data / "quickdraw"), ("3",))
    assert selected.classes == ("airplane", "banana", "bird")
    assert np.bincount([example.label for example in selected.examples]).tolist() == [4000] * 3
