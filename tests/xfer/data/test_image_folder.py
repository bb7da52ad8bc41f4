"""How a person says where images are: by an address, whose layout is seen, and by the classes that are meant."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xfer.data.images import ImageFile
from xfer.data.layouts import SOURCES, Example, Source, detect_layout, folder, read_source, select_classes
from xfer.data.pack import build_pack
from xfer.data.uris import parse_uri


def photos(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name, "PNG")
    return root


# Which layout


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_goes_by_its_name_and_says_what_it_reads(name):
    source = SOURCES[name]
    assert source.__name__ == name
    assert list(inspect.signature(source).parameters) == ["address"]
    assert "Raises:" in source.__doc__


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("kind", [str, Path])
def test_every_source_refuses_what_is_not_there_in_words(name, kind, tmp_path):
    with pytest.raises(ValueError, match=r"there is no (folder|file)|should begin with"):
        SOURCES[name](kind(tmp_path / "nowhere"))


LAYOUTS = {
    "folder": ["a/1.jpg", "b/1.jpg"],
    "stanford_cars": ["devkit/cars_meta.mat", "cars_train/1.jpg"],
    "quickdraw": ["cat.npy", "dog.npy"],
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_is_known_by_what_lies_in_it(tmp_path, name, kind):
    assert detect_layout(kind(photos(tmp_path, *LAYOUTS[name]))) == name


@pytest.mark.parametrize(
    ("name", "layout"), [("cat.ndjson", "quickdraw"), ("stanford_cars/devkit/cars_meta.mat", "stanford_cars")]
)
def test_a_folder_is_known_by_a_single_sign_too(tmp_path, name, layout):
    assert detect_layout(photos(tmp_path, name)) == layout


@pytest.mark.parametrize(
    ("address", "layout"),
    [
        ("hf://owner/name", "hub"),
        ("torchvision://MNIST?root=data", "torchvision"),
        ("labels.CSV", "table"),
        ("labels.tsv", "table"),
        ("nowhere", "folder"),
        ("photos.zip", "folder"),
    ],
)
def test_an_address_is_known_by_its_form(address, layout):
    assert detect_layout(address) == layout


def test_a_folder_whose_name_ends_like_a_table_is_a_folder(tmp_path):
    assert detect_layout(photos(tmp_path / "birds.csv", "a/1.jpg")) == "folder"


def test_an_address_of_another_kind_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"unknown kind of address 'torchvison': did you mean torchvision\?") as caught:
        read_source("torchvison://MNIST")
    for form in ("DIR", "FILE.csv", "hf://owner/name", "torchvision://NAME?root=DIR"):
        assert form in str(caught.value)


def test_an_archive_is_refused_with_what_can_be_given(tmp_path):
    (tmp_path / "photos.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"photos\.zip is a file; (?s:.*)FILE\.csv"):
        read_source(tmp_path / "photos.zip")


def test_a_layout_that_is_said_overrides_what_is_seen(tmp_path):
    photos(tmp_path, "a/1.jpg", "b/1.jpg", "features.npy")
    with pytest.raises(ValueError, match=r"features\.npy is no whole \.npy file(?s:.*)say that the source is folder"):
        read_source(tmp_path)
    assert read_source(str(tmp_path), "folder") == folder(tmp_path)


def test_an_unknown_layout_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"unknown source 'foldr': did you mean folder\? Known: folder, stanford_cars"):
        read_source(tmp_path, "foldr")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(photos(tmp_path, "data/a/1.jpg", "data/b/1.jpg")))
    assert read_source("~/data").name == "data"


# Addresses


@pytest.mark.parametrize(
    "address", ["hf://owner/name?label=a%26b&config=x y", Path("hf://owner/name?label=a%26b&config=x y")]
)
def test_an_address_says_a_name_and_settings(address):
    assert parse_uri(address, "hf") == ("owner/name", {"label": "a&b", "config": "x y"})


def test_one_thing_said_twice_is_refused():
    with pytest.raises(ValueError, match="says one thing twice"):
        parse_uri("hf://owner/name?label=a&label=b", "hf")


# Which classes


@pytest.fixture
def zoo(tmp_path):
    return folder(photos(tmp_path / "zoo", *(f"{name}/{n}.png" for name in ("cat", "dog", "Elk", "ant") for n in "12")))


def shown(source):
    return sorted((each.image.path.parent.name, source.classes[each.label]) for each in source.examples)


def test_without_a_choice_all_classes_stay(zoo):
    assert select_classes(zoo, ()) is zoo


def test_named_classes_stay_with_their_images_in_the_sources_order(zoo):
    kept = select_classes(zoo, ("dog", "Elk"))
    assert kept.classes == ("Elk", "dog")
    assert shown(kept) == [("Elk", "Elk")] * 2 + [("dog", "dog")] * 2
    assert kept.name == zoo.name
    assert kept.notes == ("2 of 4 classes were chosen; the images of the others are left out.",)


def test_a_number_means_the_first_in_alphabetical_order():
    source = Source("x", ("c", "a", "b"), tuple(Example(ImageFile(Path(f"{n}")), n % 3, "train") for n in range(6)))
    kept = select_classes(source, ("2",))
    assert kept.classes == ("a", "b")
    assert [(str(each.image.path), each.label, each.part) for each in kept.examples] == [
        ("1", 0, "train"),
        ("2", 1, "train"),
        ("4", 0, "train"),
        ("5", 1, "train"),
    ]


def test_all_of_them_is_no_choice_worth_a_note(zoo):
    assert select_classes(zoo, ("4",)) == zoo


def test_the_choice_of_classes_is_another_pack(zoo, tmp_path):
    hashes = {
        build_pack(select_classes(zoo, classes), 8, tmp_path / "packs").hash for classes in ((), ("2",), ("cat", "dog"))
    }
    assert len(hashes) == 3


def test_digits_that_are_class_names_are_chosen_by_naming_several():
    source = Source("digits", tuple("0123"), tuple(Example(ImageFile(Path("x")), n) for n in range(4)))
    assert select_classes(source, ("1", "3")).classes == ("1", "3")
    assert select_classes(source, ("3",)).classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("cat", "dg"), r"unknown class of zoo 'dg': did you mean dog\? Known: Elk, ant, cat, dog"),
        (("cat",), "at least two different classes are wanted: cat"),
        (("cat", "cat"), "at least two different classes are wanted: cat, cat"),
        (("cat", "dog", "dog"), "at least two different classes"),
        (("1",), "zoo has 4 classes: 1 of them cannot be told apart"),
        (("0",), "0 of them"),
        (("-2",), "-2 of them"),
        (("5",), "zoo has 4 classes: 5 of them"),
        (("2.5",), "unknown class of zoo '2.5'"),
        (("",), "unknown class of zoo ''"),
    ],
)
def test_a_choice_that_cannot_be_made_says_why(zoo, classes, message):
    with pytest.raises(ValueError, match=message):
        select_classes(zoo, classes)


def test_of_very_many_classes_only_the_nearest_are_named():
    names = tuple(f"class {number}" for number in range(300))
    source = Source("many", names, tuple(Example(ImageFile(Path("x")), n) for n in range(300)))
    with pytest.raises(ValueError, match="did you mean") as caught:
        select_classes(source, ("class 12x", "class 1"))
    assert len(str(caught.value)) < 150


def test_real_drawings_of_the_first_three_classes(shared_data):
    kept = select_classes(read_source(shared_data / "quickdraw"), ("3",))
    assert kept.classes == ("airplane", "banana", "bird")
    assert np.bincount([each.label for each in kept.examples]).tolist() == [4000] * 3
