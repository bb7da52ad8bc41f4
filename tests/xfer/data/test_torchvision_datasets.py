"""Data sets of torchvision, with files written here in their published formats."""

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
    """Write the format of MNIST: a magic number, the shape, the bytes."""
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
def test_mnist_and_its_variants_keep_their_official_parts_and_class_names(tmp_path, name):
    pixels = mnist(tmp_path / name / "raw")
    source = read_source(f"torchvision://{name}?root={tmp_path}")
    assert source.name == name
    assert source.classes == tuple(getattr(datasets, name).classes[:4])  # the other six never occur
    assert [example.part for example in source.examples] == ["train"] * 12 + ["test"] * 5
    assert [example.label for example in source.examples] == [n % 4 for n in (*range(12), *range(5))]
    assert np.array_equal(source.examples[14].image.read(32), to_square(Image.fromarray(pixels["t10k"][2]), 32))


def test_digests_depend_on_the_pixels(tmp_path):
    mnist(tmp_path / "MNIST" / "raw")
    mnist(tmp_path / "FashionMNIST" / "raw", parts=(("train", 8), ("t10k", 12)))
    first, second = (read_source(f"torchvision://{n}?root={tmp_path}").examples for n in ("MNIST", "FashionMNIST"))
    assert len({example.image.digest() for example in first}) == 17
    assert [example.image.digest() for example in first[:12]] == [example.image.digest() for example in second[8:]]


def test_the_pack_has_the_official_test_part(tmp_path):
    mnist(tmp_path / "MNIST" / "raw", parts=(("train", 40), ("t10k", 8)))
    pack = build_pack(read_source(f"torchvision://MNIST?root={tmp_path}"), 16, tmp_path / "packs")
    assert (len(pack.labels), pack.skipped) == (48, ())
    split = split_pack(pack)
    assert len(split.test) == 8
    assert "the given test part" in split.description


def test_an_argument_of_a_data_set_is_a_parameter_of_the_uri(tmp_path):
    for prefix in ("emnist-letters-", "emnist-digits-"):
        mnist(tmp_path / "EMNIST" / "raw", parts=(("train", 8), ("test", 4)), prefix=prefix, offset=1)
    source = read_source(f"torchvision://EMNIST?root={tmp_path}&split=letters")
    assert source.classes == ("a", "b", "c", "d")
    assert {example.part for example in source.examples} == {"train", "test"}
    with pytest.raises(ValueError, match="missing 1 required positional argument: 'split'"):
        read_source(f"torchvision://EMNIST?root={tmp_path}")


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Three training and two test images, with matching checksums."""
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


def test_cifar_has_class_names_from_its_files(cifar):
    source = read_source(f"torchvision://cifar10?root={cifar}")  # the name is case-insensitive
    assert source.name == "CIFAR10"
    assert source.classes == ("airplane", "automobile", "bird")
    assert [(example.label, example.part) for example in source.examples] == [
        (1, "train"),
        (0, "train"),
        (2, "train"),
        (2, "test"),
        (1, "test"),
    ]
    expected = datasets.CIFAR10(cifar, train=False)[0][0]
    assert np.array_equal(source.examples[3].image.read(20), to_square(expected, 20))


def test_a_modified_file_is_not_unpickled(cifar):
    (cifar / datasets.CIFAR10.base_folder / "data_batch_1").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match=r"torchvision cannot read CIFAR10 in .*corrupted"):
        read_source(f"torchvision://CIFAR10?root={cifar}")


def test_if_every_image_is_a_file_torchvision_decodes_none(tmp_path, monkeypatch):
    for number in range(6):
        photo(tmp_path / "eurosat" / "2750" / ("Forest", "River")[number % 2] / f"{number}.jpg", number)

    def decode(*args, **options):
        raise AssertionError("decoded")

    monkeypatch.setattr(Image, "open", decode)
    source = read_source(f"torchvision://EuroSAT?root={tmp_path}")
    assert source.classes == ("Forest", "River")
    assert {example.part for example in source.examples} == {None}
    assert all(isinstance(example.image, ImageFile) for example in source.examples)
    assert source.examples[0].image.digest() == hashing.sha256_file(tmp_path / "eurosat" / "2750" / "Forest" / "0.jpg")


def test_images_that_torchvision_opens_without_decoding_are_read_as_files(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.Caltech101, "_check_integrity", lambda self: True)
    top = tmp_path / "caltech101" / "101_ObjectCategories"
    for name in ("ant", "BACKGROUND_Google", "crab"):
        for number in (1, 2):
            photo(top / name / f"image_{number:04d}.jpg", number)
    (top / "crab" / "image_0002.jpg").write_bytes((top / "ant" / "image_0001.jpg").read_bytes())
    source = read_source(f"torchvision://Caltech101?root={tmp_path}")
    assert source.classes == ("ant", "crab")
    assert [example.image.name for example in source.examples] == ["image_0001.jpg", "image_0002.jpg"] * 2
    assert source.examples[0].image.digest() == source.examples[3].image.digest()


def test_images_that_torchvision_decodes_are_used_as_returned(tmp_path):
    base = tmp_path / "gtsrb"
    for number in range(4):
        photo(base / "GTSRB" / "Training" / f"0000{number % 2}" / f"{number}.ppm", number)
    photo(base / "GTSRB" / "Final_Test" / "Images" / "0.ppm", 200)
    (base / "GT-final_test.csv").write_text("Filename;ClassId\n0.ppm;1\n")
    source = read_source(f"torchvision://GTSRB?root={tmp_path}")
    assert source.classes == ("0", "1")
    assert [example.part for example in source.examples] == ["train"] * 4 + ["test"]
    path = base / "GTSRB" / "Training" / "00001" / "1.ppm"
    assert np.array_equal(source.examples[2].image.read(8), read_image(path, 8))
    before = source.examples[2].image.digest()
    path.write_bytes(b"not an image")
    pack = build_pack(source, 8, tmp_path / "packs")
    assert pack.skipped[0].startswith("1/GTSRB 2: UnidentifiedImageError")
    assert before not in pack.digests


def imagenette(root, *splits):
    for split in splits:
        for wnid in ("n01440764", "n03888257"):
            photo(root / "imagenette2-160" / split / wnid / "1.JPEG", len(split))


def test_splits_are_parts_and_class_names_may_have_several_words(tmp_path):
    imagenette(tmp_path, "train", "val")
    source = read_source(f"torchvision://Imagenette?root={tmp_path}&size=160px")
    assert source.classes == ("tench, Tinca tinca", "parachute, chute")
    assert [example.part for example in source.examples] == ["train", "train", "val", "val"]


def test_a_chosen_split_has_no_parts(tmp_path):
    imagenette(tmp_path, "train", "val")
    source = read_source(f"torchvision://Imagenette?root={tmp_path}&size=160px&split=val")
    assert [example.part for example in source.examples] == [None, None]


def test_a_missing_part_is_refused_with_a_hint(tmp_path):
    imagenette(tmp_path, "train")
    with pytest.raises(ValueError, match=r"torchvision cannot read Imagenette in .*FileNotFoundError.*&split=train"):
        read_source(f"torchvision://Imagenette?root={tmp_path}&size=160px")
    source = read_source(f"torchvision://Imagenette?root={tmp_path}&size=160px&split=train")
    assert [example.part for example in source.examples] == [None, None]


def test_a_data_set_without_files_needs_no_root():
    source = read_source("torchvision://FakeData?size=20&num_classes=3")
    assert source.classes == ("0", "1", "2")
    assert len(source.examples) == 20
    assert source.examples[0].image.read(16).shape == (16, 16, 3)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    mnist(tmp_path / "my data" / "MNIST" / "raw")
    assert len(read_source("torchvision://MNIST?root=~/my data").examples) == 17
    assert len(read_source("torchvision://MNIST?root=~/my%20data").examples) == 17


# Errors


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("CIFAR11?root=.", r"unknown data set of torchvision 'CIFAR11': did you mean CIFAR10"),
        ("transforms?root=.", "unknown data set of torchvision 'transforms'"),
        ("MNIST", r"where are the files of MNIST\? Give torchvision://MNIST\?root=DIR"),
        ("MNIST?root=.&trian=yes", r"unknown setting of MNIST 'trian'.*Known: root, download"),
        ("MNIST?root=.&transform=x", "unknown setting of MNIST 'transform'"),
        ("MNIST?root=.&download=perhaps", "download must be yes or no, not 'perhaps'"),
        ("FakeData?size=many", "size must be an integer, not 'many'"),
        ("Imagenette?root=.&size=1px", "ValueError: Unknown value '1px' for argument size"),
        ("Places365?root=.", "Places365 has no split called train. Name one: &split=NAME"),
    ],
)
def test_an_unusable_uri_is_refused_with_the_reason(tmp_path, monkeypatch, uri, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_source(f"torchvision://{uri}")


def test_nothing_is_downloaded_without_the_parameter(tmp_path, monkeypatch):
    downloads = []
    monkeypatch.setattr(
        "torchvision.datasets.mnist.download_and_extract_archive", lambda *_, **options: downloads.append(options)
    )
    message = r"torchvision cannot read MNIST in .*Dataset not found(?s:.*)torchvision://MNIST\?root=DIR&download=yes"
    with pytest.raises(ValueError, match=message):
        read_source(f"torchvision://MNIST?root={tmp_path}")
    assert downloads == []
    with pytest.raises(ValueError, match="cannot read MNIST"):
        read_source(f"torchvision://MNIST?root={tmp_path}&download=yes")
    assert downloads


def test_a_data_set_with_several_labels_per_image_is_refused(monkeypatch):
    monkeypatch.setattr(datasets.FakeData, "__getitem__", lambda self, index: (Image.new("RGB", (4, 4)), {"boxes": []}))
    with pytest.raises(ValueError, match="FakeData is not a data set of images with one label each"):
        read_source("torchvision://FakeData?size=3")


def test_a_data_set_of_something_other_than_images_is_refused(monkeypatch):
    monkeypatch.setattr(datasets.FakeData, "__getitem__", lambda self, index: (np.zeros(3), 1))
    with pytest.raises(ValueError, match="FakeData is not a data set of images: it returns ndarray"):
        read_source("torchvision://FakeData?size=3")
