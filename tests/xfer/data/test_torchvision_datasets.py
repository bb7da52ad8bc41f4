"""What torchvision can read from disk, in files that are written here as their publishers lay them out."""

from __future__ import annotations

import hashlib
import pickle
import struct

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from xfer import hashing
from xfer.data.images import ImageFile, read_image, to_square
from xfer.data.layouts import read_source
from xfer.data.pack import build_pack
from xfer.data.split import split_pack


def idx(path, values):
    """The format of MNIST: a magic number, the shape, the bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


def mnist(raw, parts=(("train", 12), ("t10k", 5)), prefix="", offset=0):
    pixels = {}
    for part, number in parts:
        pixels[part] = np.random.default_rng(number).integers(0, 256, (number, 28, 28), dtype=np.uint8)
        idx(raw / f"{prefix}{part}-images-idx3-ubyte", pixels[part])
        idx(raw / f"{prefix}{part}-labels-idx1-ubyte", np.arange(number) % 4 + offset)
    return pixels


def photo(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12), (number % 256, 99, 9)).save(path)


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_grey_digits_and_clothes_keep_their_official_parts_and_names(tmp_path, name):
    pixels = mnist(tmp_path / name / "raw")
    source = read_source(f"torchvision://{name}?root={tmp_path}")
    assert source.name == name
    assert source.classes == tuple(getattr(datasets, name).classes[:4])  # the other six never occur
    assert [each.part for each in source.examples] == ["train"] * 12 + ["test"] * 5
    assert [each.label for each in source.examples] == [n % 4 for n in (*range(12), *range(5))]
    assert np.array_equal(source.examples[14].image.read(32), to_square(Image.fromarray(pixels["t10k"][2]), 32))


def test_digests_go_by_the_pixels(tmp_path):
    mnist(tmp_path / "MNIST" / "raw")
    mnist(tmp_path / "FashionMNIST" / "raw", parts=(("train", 8), ("t10k", 12)))
    first, second = (read_source(f"torchvision://{n}?root={tmp_path}").examples for n in ("MNIST", "FashionMNIST"))
    assert len({each.image.digest() for each in first}) == 17
    assert [each.image.digest() for each in first[:12]] == [each.image.digest() for each in second[8:]]


def test_they_become_a_pack_with_the_official_test_part(tmp_path):
    mnist(tmp_path / "MNIST" / "raw", parts=(("train", 40), ("t10k", 8)))
    pack = build_pack(read_source(f"torchvision://MNIST?root={tmp_path}"), 16, tmp_path / "packs")
    assert (len(pack.labels), pack.skipped) == (48, ())
    split = split_pack(pack)
    assert len(split.test) == 8
    assert "the given test part" in split.description


def test_an_argument_of_its_own_is_said_in_the_address(tmp_path):
    for prefix in ("emnist-letters-", "emnist-digits-"):
        mnist(tmp_path / "EMNIST" / "raw", parts=(("train", 8), ("test", 4)), prefix=prefix, offset=1)
    source = read_source(f"torchvision://EMNIST?root={tmp_path}&split=letters")
    assert source.classes == ("a", "b", "c", "d")
    assert {each.part for each in source.examples} == {"train", "test"}
    with pytest.raises(ValueError, match="missing 1 required positional argument: 'split'"):
        read_source(f"torchvision://EMNIST?root={tmp_path}")


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Three pictures for training and two for testing, with checksums that fit."""
    base = tmp_path / datasets.CIFAR10.base_folder
    base.mkdir()

    def write(name, content):
        data = pickle.dumps(content)
        (base / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def batch(name, labels):
        rows = np.random.default_rng(len(labels)).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        return [[name, write(name, {"data": rows, "labels": labels})]]

    monkeypatch.setattr(datasets.CIFAR10, "train_list", batch("data_batch_1", [1, 0, 2]))
    monkeypatch.setattr(datasets.CIFAR10, "test_list", batch("test_batch", [2, 1]))
    names = {"filename": "batches.meta", "key": "label_names"}
    md5 = write("batches.meta", {"label_names": ["airplane", "automobile", "bird", "cat"]})
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**names, "md5": md5})
    return tmp_path


def test_colour_pictures_with_names_from_the_files(cifar):
    source = read_source(f"torchvision://cifar10?root={cifar}")  # in small letters it is found too
    assert source.name == "CIFAR10"
    assert source.classes == ("airplane", "automobile", "bird")
    assert [(each.label, each.part) for each in source.examples] == [
        (1, "train"),
        (0, "train"),
        (2, "train"),
        (2, "test"),
        (1, "test"),
    ]
    expected = datasets.CIFAR10(cifar, train=False)[0][0]
    assert np.array_equal(source.examples[3].image.read(20), to_square(expected, 20))


def test_a_file_that_was_tampered_with_is_not_unpickled(cifar):
    (cifar / datasets.CIFAR10.base_folder / "data_batch_1").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match=r"torchvision cannot read CIFAR10 in .*corrupted"):
        read_source(f"torchvision://CIFAR10?root={cifar}")


def test_where_every_image_is_a_file_torchvision_decodes_none(tmp_path, monkeypatch):
    for number in range(6):
        photo(tmp_path / "eurosat" / "2750" / ("Forest", "River")[number % 2] / f"{number}.jpg", number)

    def decode(*arguments, **named):
        raise AssertionError("decoded")

    monkeypatch.setattr(Image, "open", decode)
    source = read_source(f"torchvision://EuroSAT?root={tmp_path}")
    assert source.classes == ("Forest", "River")
    assert {each.part for each in source.examples} == {None}
    assert all(isinstance(each.image, ImageFile) for each in source.examples)
    assert source.examples[0].image.digest() == hashing.sha256_file(tmp_path / "eurosat" / "2750" / "Forest" / "0.jpg")


def test_images_that_torchvision_opens_without_decoding_are_files_too(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.Caltech101, "_check_integrity", lambda self: True)
    top = tmp_path / "caltech101" / "101_ObjectCategories"
    for name in ("ant", "BACKGROUND_Google", "crab"):
        for number in (1, 2):
            photo(top / name / f"image_{number:04d}.jpg", number)
    (top / "crab" / "image_0002.jpg").write_bytes((top / "ant" / "image_0001.jpg").read_bytes())
    source = read_source(f"torchvision://Caltech101?root={tmp_path}")
    assert source.classes == ("ant", "crab")
    assert [each.image.name for each in source.examples] == ["image_0001.jpg", "image_0002.jpg"] * 2
    assert source.examples[0].image.digest() == source.examples[3].image.digest()


def test_images_that_torchvision_decodes_are_taken_as_it_hands_them_out(tmp_path):
    base = tmp_path / "gtsrb"
    for number in range(4):
        photo(base / "GTSRB" / "Training" / f"0000{number % 2}" / f"{number}.ppm", number)
    photo(base / "GTSRB" / "Final_Test" / "Images" / "0.ppm", 200)
    (base / "GT-final_test.csv").write_text("Filename;ClassId\n0.ppm;1\n")
    source = read_source(f"torchvision://GTSRB?root={tmp_path}")
    assert source.classes == ("0", "1")
    assert [each.part for each in source.examples] == ["train"] * 4 + ["test"]
    path = base / "GTSRB" / "Training" / "00001" / "1.ppm"
    assert np.array_equal(source.examples[2].image.read(8), read_image(path, 8))
    before = source.examples[2].image.digest()
    path.write_bytes(b"no picture")
    pack = build_pack(source, 8, tmp_path / "packs")
    assert pack.skipped[0].startswith("1/GTSRB 2: UnidentifiedImageError")
    assert before not in pack.digests


def imagenette(root, *splits):
    for split in splits:
        for wnid in ("n01440764", "n03888257"):
            photo(root / "imagenette2-160" / split / wnid / "1.JPEG", len(split))


def test_parts_called_split_are_found_and_names_may_be_several_words(tmp_path):
    imagenette(tmp_path, "train", "val")
    source = read_source(f"torchvision://Imagenette?root={tmp_path}&size=160px")
    assert source.classes == ("tench, Tinca tinca", "parachute, chute")
    assert [each.part for each in source.examples] == ["train", "train", "val", "val"]


def test_a_split_that_is_said_is_all_there_is(tmp_path):
    imagenette(tmp_path, "train", "val")
    source = read_source(f"torchvision://Imagenette?root={tmp_path}&size=160px&split=val")
    assert [each.part for each in source.examples] == [None, None]


def test_a_part_that_is_missing_is_said_with_the_way_out(tmp_path):
    imagenette(tmp_path, "train")
    with pytest.raises(ValueError, match=r"torchvision cannot read Imagenette in .*FileNotFoundError.*&split=train"):
        read_source(f"torchvision://Imagenette?root={tmp_path}&size=160px")
    source = read_source(f"torchvision://Imagenette?root={tmp_path}&size=160px&split=train")
    assert [each.part for each in source.examples] == [None, None]


def test_a_set_without_files_needs_no_root():
    source = read_source("torchvision://FakeData?size=20&num_classes=3")
    assert source.classes == ("0", "1", "2")
    assert len(source.examples) == 20
    assert source.examples[0].image.read(16).shape == (16, 16, 3)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    mnist(tmp_path / "my data" / "MNIST" / "raw")
    assert len(read_source("torchvision://MNIST?root=~/my data").examples) == 17
    assert len(read_source("torchvision://MNIST?root=~/my%20data").examples) == 17


# What is refused


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("CIFAR11?root=.", r"unknown data set of torchvision 'CIFAR11': did you mean CIFAR10"),
        ("transforms?root=.", "unknown data set of torchvision 'transforms'"),
        ("MNIST", r"where are the files of MNIST\? torchvision://MNIST\?root=DIR"),
        ("MNIST?root=.&trian=yes", r"unknown setting of MNIST 'trian'.*Known: root, download"),
        ("MNIST?root=.&transform=x", "unknown setting of MNIST 'transform'"),
        ("MNIST?root=.&download=perhaps", "download is 'perhaps'; say yes or no"),
        ("FakeData?size=many", "size is 'many'; a whole number is wanted"),
        ("Imagenette?root=.&size=1px", "ValueError: Unknown value '1px' for argument size"),
        ("Places365?root=.", "Places365 has no part called train. Say which is meant: &split=NAME"),
    ],
)
def test_an_address_that_will_not_do_says_why(tmp_path, monkeypatch, address, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_source(f"torchvision://{address}")


def test_nothing_is_fetched_unless_it_is_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "torchvision.datasets.mnist.download_and_extract_archive", lambda *_, **named: asked.append(named)
    )
    message = r"torchvision cannot read MNIST in .*Dataset not found(?s:.*)torchvision://MNIST\?root=DIR&download=yes"
    with pytest.raises(ValueError, match=message):
        read_source(f"torchvision://MNIST?root={tmp_path}")
    assert asked == []
    with pytest.raises(ValueError, match="cannot read MNIST"):
        read_source(f"torchvision://MNIST?root={tmp_path}&download=yes")
    assert asked


def test_a_set_whose_images_have_more_than_one_label_is_refused(monkeypatch):
    monkeypatch.setattr(datasets.FakeData, "__getitem__", lambda self, index: (Image.new("RGB", (4, 4)), {"boxes": []}))
    with pytest.raises(ValueError, match="FakeData is no data set of images with one label each"):
        read_source("torchvision://FakeData?size=3")


def test_a_set_of_something_else_is_refused(monkeypatch):
    monkeypatch.setattr(datasets.FakeData, "__getitem__", lambda self, index: (np.zeros(3), 1))
    with pytest.raises(ValueError, match="FakeData is no data set of images: it hands out ndarray"):
        read_source("torchvision://FakeData?size=3")
