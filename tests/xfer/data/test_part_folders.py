"""Image folders: names of parts, extra levels, and folders that can be understood in several ways."""

from __future__ import annotations

from collections import Counter

import pytest
from PIL import Image

from xfer.data.image_folder import folder
from xfer.data.pack import build_pack
from xfer.data.part_names import named_parts, parse_parts, part_named
from xfer.records import Part

NAMES: dict[Part, str] = {
    "train": "train Train TRAIN training Training training_set Training-Set trainset TrainSet train_data seg_train "
    "train2017 train_images images_train Train.Images 01_train _train_ (train) train(1) trainval train_val Train+Val "
    "train-and-val",
    "val": "val VAL valid Valid validation Validation_set val2017 dev Dev devset eval evaluation seg_val valset",
    "test": "test Test TEST testing Testing test_set TestSet seg_test test2017 test-images",
}
"""Folder names of each part, separated by spaces."""


def write(root, *names, start=0):
    """Write a different tiny image for every name."""
    for number, name in enumerate(names, start):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number % 256, number // 256, 0)).save(path, "PNG")
    return root


def counts(source):
    return Counter((example.part, source.classes[example.label]) for example in source.examples)


def balanced(source, root):
    """Whether every file below the root is an example or skipped."""
    files = [path for path in root.rglob("*") if path.is_symlink() or not path.is_dir()]
    return len(files) == len(source.examples) + sum(skip.count for skip in source.skipped)


# Names


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, names in NAMES.items() for name in names.split()])
def test_usual_names_of_a_part_are_known(part, name):
    assert part_named(name) == part


@pytest.mark.parametrize(
    "name",
    ["trainer", "trains", "bullet_train", "train_station", "testament", "latest", "value", "device", "devil", "set"],
)
def test_other_words_do_not_name_a_part(name):
    assert part_named(name) is None


def test_a_common_prefix_or_suffix_does_not_hide_the_part():
    assert named_parts(["xray_train", "xray_val", "xray_test"]) == {
        "xray_train": "train",
        "xray_val": "val",
        "xray_test": "test",
    }
    assert named_parts(["train-small", "test-small"]) == {"train-small": "train", "test-small": "test"}
    assert named_parts(["trainA", "testA"]) == {"trainA": "train", "testA": "test"}
    assert named_parts(["birdTrain", "birdTest"]) == {"birdTrain": "train", "birdTest": "test"}
    assert named_parts(["fast_train", "crash_test"]) == {}


@pytest.mark.parametrize(
    ("train", "other", "part"),
    [
        ("Training", "Testing", "test"),
        ("Train", "Test", "test"),
        ("TRAIN", "VAL", "val"),
        ("training_set", "test_set", "test"),
        ("seg_train", "seg_test", "test"),
        ("train", "dev", "val"),
        ("train", "eval", "val"),
        ("train", "Test", "test"),
        ("chairs_train", "chairs_valid", "val"),
        ("Train Set", "TEST SET", "test"),
        ("training data", "validation data", "val"),
        ("01. Train", "02. Test", "test"),
        ("train_split", "val_split", "val"),
        ("trainval", "test", "test"),
        ("trainA", "testA", "test"),
        ("train-jpg", "test-jpg", "test"),
    ],
)
def test_part_folders_are_recognized_and_named(tmp_path, train, other, part):
    write(tmp_path, *(f"{name}/{label}/1.png" for name in (train, other) for label in ("cat", "dog")))
    source = folder(tmp_path)
    assert source.classes == ("cat", "dog")
    assert counts(source) == {(name, label): 1 for name in ("train", part) for label in ("cat", "dog")}
    assert source.notes == (f"Parts: train is {train}/, {part} is {other}/.",)


def test_a_train_folder_of_another_spelling_alone_is_like_a_single_folder(tmp_path):
    source = folder(write(tmp_path, "Training/cat/1.png", "Training/dog/1.png"))
    assert counts(source) == {(None, "cat"): 1, (None, "dog"): 1}


# Ambiguous folders


def refused(root, *expected):
    with pytest.raises(ValueError) as caught:
        folder(root)
    for text in expected:
        assert text in str(caught.value)


def test_two_folders_for_one_part_are_refused_with_the_listing_and_the_flag(tmp_path):
    write(tmp_path, *(f"{part}/{label}/1.png" for part in ("train", "val", "validation") for label in "ab"))
    refused(
        tmp_path,
        "has val, validation, which could each be the val part",
        "val/  2 images, in the folders a, b",
        "--parts train=train,val=val",
    )
    source = folder(tmp_path, {"train": "train", "val": "validation"})
    assert counts(source) == {("train", "a"): 1, ("train", "b"): 1, ("val", "a"): 1, ("val", "b"): 1}
    assert [(skip.reason, skip.count) for skip in source.skipped] == [("outside the folders of --parts", 2)]
    assert balanced(source, tmp_path)


@pytest.mark.parametrize(
    ("folders", "messages"),
    [
        ("train-jpg test-jpg-v2", ["parts or classes?", "--parts train=train-jpg,test=test-jpg-v2"]),
        (
            "trainA trainB testA testB",
            ["has testA, testB, which could each be the test part", "--parts train=trainA,test=testA"],
        ),
        ("train train2 test", ["has train, train2, which could each be the train part"]),
        ("train holdout", ["holdout next to train: part or class?", "--parts train=train;"]),
        ("split1/train split1/test split2/train split2/test", ["--parts train=split1/train,test=split1/test"]),
        ("raw/train raw/val clean/train clean/val", ["has clean, raw, which hold parts of their own: train, val"]),
    ],
)
def test_folders_that_may_be_parts_are_refused_with_the_flag(tmp_path, folders, messages):
    write(tmp_path, *(f"{name}/{label}/1.png" for name in folders.split() for label in ("cat", "dog")))
    refused(tmp_path, *messages, "--parts none", "images, in the folders")


def test_an_empty_folder_does_not_make_a_part_ambiguous(tmp_path):
    write(tmp_path, "train/a/1.png", "train/b/1.png", "validation/a/1.png", "validation/b/1.png")
    (tmp_path / "val").mkdir()
    assert counts(folder(tmp_path))[("val", "a")] == 1


def test_class_folders_next_to_a_train_folder_are_refused(tmp_path):
    write(tmp_path, "train/cat/1.png", "train/dog/1.png", "cat/1.png", "dog/1.png")
    refused(tmp_path, "cat, dog next to train: part or class?", "--parts train=train;", "--parts none")


def test_a_class_that_is_called_train_is_refused_and_settled_by_the_flag(tmp_path):
    write(tmp_path, *(f"{label}/{number}.png" for label in ("bus", "car", "train") for number in "12"))
    refused(tmp_path, "bus, car next to train", "train/  2 images", "If every folder is a class: --parts none")
    assert counts(folder(tmp_path, parse_parts("none"))) == {(None, label): 2 for label in ("bus", "car", "train")}


def test_a_class_inside_the_parts_may_be_called_train(tmp_path):
    write(tmp_path, *(f"{part}/{label}/1.png" for part in ("train", "test") for label in ("bus", "train")))
    assert folder(tmp_path).classes == ("bus", "train")


def test_a_class_that_is_called_test_is_refused_without_a_train_folder(tmp_path):
    write(tmp_path, "cat/1.png", "dog/1.png", "test/1.png")
    refused(tmp_path, "test but no train folder", "If every folder is a class: --parts none")


def test_a_part_without_class_folders_is_refused(tmp_path):
    write(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/1.png", "test/2.png")
    refused(tmp_path, "test, named like the test part, with images but no class folders", "--parts train=train;")
    source = folder(tmp_path, {"train": "train"})
    assert counts(source) == {(None, "cat"): 1, (None, "dog"): 1}
    assert balanced(source, tmp_path)


FLAT = {  # images: parts of the message
    "train/cat.0.jpg train/cat.1.jpg train/dog.0.jpg train/dog.1.jpg test/1.jpg": [
        "train, test, named like the train, test part, with images but no class folders",
        "The names of the images begin with cat, dog, which may be the labels. Sort them into train/<class>/",
    ],
    "cat.0.jpg cat.1.jpg dog.0.jpg dog.1.jpg": ["begin with cat, dog: if these are the labels, sort the images"],
    "train/1.jpg val/1.jpg": ["Images for training need labels. Sort", "If every folder is a class: --parts none"],
    "x/train/cat/1.jpg x/train/dog/1.jpg x/val/1.jpg x/test/1.jpg": ["x/val, x/test, named", "--parts train=x/train;"],
    "train/cat/1.jpg train/dog/1.jpg test/unknown/1.jpg": [
        "no training images for unknown",
        "--parts train=NAME leaves out other parts",
    ],
    "images/train/1.jpg images/val/1.jpg": ["images/train, images/val, named like"],
}


@pytest.mark.parametrize("names", FLAT)
def test_images_without_labels_are_refused_with_what_to_do(tmp_path, names):
    refused(write(tmp_path, *names.split()), *FLAT[names])


def test_a_table_next_to_images_without_labels_is_named(tmp_path):
    write(tmp_path, "1.png", "2.png")
    (tmp_path / "labels.csv").write_text("path,label\n", encoding="utf-8")
    refused(tmp_path, "If labels.csv has the labels, give it as --data")
    write(tmp_path, "train/1.png", "test/2.png")
    refused(tmp_path, "or give a table (labels.csv) with the columns path and label as --data")


# Parts without images


@pytest.fixture
def parted(tmp_path):
    """Two classes of one image in each of train and val."""
    return write(tmp_path, *(f"{part}/{label}/1.png" for part in ("train", "val") for label in ("cat", "dog")))


@pytest.mark.parametrize("content", ["nothing", "a hidden file", "empty classes"])
def test_a_part_folder_without_files_is_a_warning(parted, content):
    (parted / "Testing").mkdir()
    if content == "a hidden file":
        (parted / "Testing" / ".gitkeep").touch()
    if content == "empty classes":
        (parted / "Testing" / "cat").mkdir()
        (parted / "Testing" / "dog").mkdir()
    source = folder(parted)
    assert source.notes[1:] == ("WARNING: Testing/ holds no images, so there is no test set.",)
    assert {part for part, _ in counts(source)} == {"train", "val"}


def test_a_part_whose_files_cannot_be_used_is_refused(parted):
    (parted / "test" / "cat").mkdir(parents=True)
    (parted / "test" / "cat" / "1.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    refused(parted, "no image of the test set (test/) can be used: 1 image format that", "--parts train=train,val=val")
    assert len(folder(parted, {"train": "train", "val": "val"}).examples) == 4


def test_an_empty_part_that_the_flag_names_is_refused(parted):
    (parted / "test").mkdir()
    with pytest.raises(ValueError, match="no image of the test set .* can be used: no images there"):
        folder(parted, {"train": "train", "test": "test"})


def test_an_unknown_folder_with_images_next_to_the_parts_is_refused(tmp_path):
    write(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png", "unlabelled/1.png")
    refused(tmp_path, "unlabelled next to train, test: part or class?", "--parts train=train,test=test;")


def test_a_folder_without_images_next_to_the_parts_is_counted(tmp_path):
    write(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "1.txt").write_text("0 0.5 0.5 1 1")
    source = folder(tmp_path)
    assert [(skip.reason, skip.first) for skip in source.skipped] == [("not an image", ("labels/1.txt",))]


def test_classes_of_the_test_part_that_training_lacks_are_refused_with_the_listing(tmp_path):
    write(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/Cat/1.png", "test/dog/1.png")
    refused(tmp_path, "no training images for Cat", "test/  2 images, in the folders Cat, dog")


def test_a_class_that_the_test_part_lacks_is_noted(tmp_path):
    write(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/dog/1.png")
    assert folder(tmp_path).notes == ("WARNING: the test set has no images of cat.",)


def test_parts_inside_every_class_are_refused(tmp_path):
    write(tmp_path, *(f"{label}/{part}/1.png" for part in ("train", "test") for label in ("cat", "dog")))
    refused(tmp_path, "Every class has parts of its own (test, train)", "--parts none mixes")
    assert len(folder(tmp_path, parse_parts("none")).examples) == 4


def test_parts_inside_one_class_are_refused(tmp_path):
    write(tmp_path, "cat/train/1.png", "cat/test/1.png", "dog/1.png")
    refused(tmp_path, "The classes cat have parts of its own (test, train)")


def test_a_train_folder_that_holds_parts_is_refused_naming_the_paths(tmp_path):
    names = [f"{part}/{label}/1.png" for part in ("train/train", "train/val", "test") for label in ("cat", "dog")]
    refused(
        write(tmp_path, *names), "train is a part and holds parts of its own: train, val", "--parts train=train/train"
    )
    source = folder(tmp_path, {"train": "train/train", "val": "train/val", "test": "test"})
    assert {part for part, _ in counts(source)} == {"train", "val", "test"}


def test_class_folders_with_the_same_subfolders_are_a_warning(tmp_path):
    write(tmp_path, *(f"{part}/{label}/1.png" for part in ("learn", "check") for label in ("cat", "dog")))
    (note,) = folder(tmp_path).notes
    assert note.startswith("WARNING: the classes are check, learn, and each holds the folders cat, dog.")
    assert folder(tmp_path, {"train": "learn", "test": "check"}).classes == ("cat", "dog")


def test_subfolders_with_different_names_are_no_warning(tmp_path):
    assert folder(write(tmp_path, "cat/x/1.png", "cat/y/1.png", "dog/x/1.png", "dog/z/1.png")).notes == ()


@pytest.mark.parametrize(
    ("names", "warning"),
    [
        (
            ["data/cat/1.png", "data/dog/1.png", "docs/1.png"],
            "WARNING: the folder data is one class, though its images",
        ),
        (["photos/cat/1.png", "photos/dog/1.png", "more/x/1.png"], "WARNING: the folder photos is one class"),
        (["animals/cat/1.png", "animals/dog/1.png", "plants/fir/1.png", "plants/oak/1.png"], ""),
    ],
)
def test_a_folder_that_may_hold_the_classes_is_a_warning(tmp_path, names, warning):
    notes = folder(write(tmp_path, *names)).notes
    assert [note[: len(warning)] for note in notes] == ([warning] if warning else [])


# Extra levels


@pytest.mark.parametrize("above", ["data", "dataset/images", "a/b/c/d"])
def test_a_folder_around_the_classes_is_followed_and_noted(tmp_path, above):
    source = folder(write(tmp_path, f"{above}/cat/1.png", f"{above}/dog/1.png"))
    assert source.classes == ("cat", "dog")
    assert source.name == tmp_path.name
    assert source.notes == (f"Classes are the folders in {above}/.",)


@pytest.mark.parametrize("above", ["data", "ILSVRC/Data/CLS-LOC", "imagenet/ILSVRC/Data/CLS-LOC", "split1", "images"])
def test_a_folder_around_the_parts_is_followed(tmp_path, above):
    write(tmp_path, *(f"{above}/{part}/{label}/1.png" for part in ("train", "test") for label in ("cat", "dog")))
    assert {part for part, _ in counts(folder(tmp_path))} == {"train", "test"}


@pytest.mark.parametrize("inner", [("seg_train", "seg_test"), ("train", "test"), ("images", "images")])
def test_a_folder_in_each_part_is_followed(tmp_path, inner):
    for part, name in zip(("seg_train", "seg_test"), inner, strict=True):
        write(tmp_path, f"{part}/{name}/cat/1.png", f"{part}/{name}/dog/1.png")
    source = folder(tmp_path)
    assert source.classes == ("cat", "dog")
    assert source.notes == (f"Parts: train is seg_train/{inner[0]}/, test is seg_test/{inner[1]}/.",)


def test_subfolders_of_the_only_class_of_a_part_are_not_classes(tmp_path):
    write(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/x/1.png", "test/a/y/1.png")
    assert counts(folder(tmp_path)) == {("train", "a"): 1, ("train", "b"): 1, ("test", "a"): 2}


def test_a_table_next_to_a_followed_folder_is_named(tmp_path):
    write(tmp_path, "img/cat/1.png", "img/dog/1.png")
    (tmp_path / "labels.csv").write_text("path,label\n")
    assert "labels.csv in " in folder(tmp_path).notes[1]


# The flag


def test_the_flag_is_parsed_with_any_usual_name_of_a_part():
    assert parse_parts("Train = a , valid=b/c") == {"train": "a", "val": "b/c"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train", "must be train=NAME"),
        ("train=", "must be train=NAME"),
        ("holdout=x", "must be train=NAME"),
        ("train=a,training=b", "train is given twice"),
        ("test=a", "the training part is missing"),
    ],
)
def test_a_malformed_flag_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_parts(text)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": "nowhere"}, r"has no folder nowhere, which --parts names for train\n.* holds\n    a/  2 images"),
        ({"train": "../x"}, r"has no folder \.\./x"),
        ({"train": "a", "test": "a"}, "train=a contains test=a; parts must be separate"),
        ({"train": "a", "test": "a/c"}, "train=a contains test=a/c"),
    ],
)
def test_impossible_folders_for_the_parts_are_refused(tmp_path, parts, message):
    write(tmp_path, "a/c/1.png", "a/d/1.png", "b/c/1.png")
    with pytest.raises(ValueError, match=message):
        folder(tmp_path, parts)


# Hashes


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a/1.png", "a/deep/er/2.png", "b/3.jpg"], "single"),
        (["train/a/1.png", "train/b/2.png", "val/a/3.png", "test/b/4.png"], "parts"),
        (["train/a/1.png", "train/b/2.png"], "only train"),
    ],
)
def test_the_pack_hashes_of_earlier_versions_are_unchanged(tmp_path, names, expected):
    hashes = {
        "single": "4db4c72503173116",
        "parts": "2cccbaf07c0e6eed",
        "only train": "27fda639527d3b16",
    }
    root = write(tmp_path / "data", *names)
    (root / "a.txt").write_text("x")
    (root / names[0]).with_suffix(".txt").write_text("x")
    damaged = (root / names[0]).with_name("damaged.jpg")
    damaged.write_bytes(b"not an image")
    assert build_pack(folder(root), 8, tmp_path / "packs").hash[:16] == hashes[expected]
