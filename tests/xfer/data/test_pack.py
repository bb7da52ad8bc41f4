"""Packs are decoded once, named by content, complete or absent, and the same for every process."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from xfer import hashing
from xfer.data import images
from xfer.data import pack as packs
from xfer.data.image_folder import folder
from xfer.data.images import ImageFile, read_image
from xfer.data.pack import build_pack, load_pack
from xfer.data.source import Example, Source


@pytest.fixture
def few(tmp_path):
    """Two classes of three different images each."""
    root = tmp_path / "few"
    for number, name in enumerate(["x/0.png", "x/1.png", "x/2.jpg", "y/0.png", "y/1.png", "y/2.jpg"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (number * 40, 99, 200 - number * 30)).save(root / name)
    return root


def write_broken(path, content=b"not an image"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_a_pack_holds_every_image_under_its_label(image_folder, pack):
    source = folder(image_folder)
    assert pack.images.shape == (36, 32, 32, 3)
    assert pack.images.dtype == np.uint8
    assert pack.labels.dtype == np.int64
    assert pack.classes == source.classes == ("blue", "green", "red")
    assert (pack.image_size, pack.skipped, set(pack.parts)) == (32, (), {None})
    by_content = {hashing.sha256_file(each.image.path): each for each in source.examples}
    for image, label, content in zip(pack.images, pack.labels, pack.digests, strict=True):
        assert label == by_content[content].label
        assert np.array_equal(image, read_image(by_content[content].image.path, 32))


def test_a_loaded_pack_equals_the_built_one_and_is_memory_mapped_read_only(pack):
    again = load_pack(pack.folder, verify=True)
    for field in dataclasses.fields(pack):
        assert np.array_equal(getattr(again, field.name), getattr(pack, field.name)), field.name
    assert isinstance(again.images, np.memmap)
    assert not again.images.flags.writeable


def test_the_parts_of_a_source_are_kept(few, tmp_path):
    for part in ("train", "test"):
        for path in few.glob("?/*"):
            target = tmp_path / "parts" / part / path.relative_to(few)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    pack = build_pack(folder(tmp_path / "parts"), 8, tmp_path / "packs")
    assert sorted(pack.parts) == ["test"] * 6 + ["train"] * 6


# The hash


def test_a_second_call_returns_the_same_pack_without_decoding(few, tmp_path, monkeypatch):
    first = build_pack(folder(few), 8, tmp_path / "packs")

    def decode(*args):
        raise AssertionError("decoded again")

    monkeypatch.setattr(images, "read_image", decode)
    second = build_pack(folder(few), 8, tmp_path / "packs")
    assert (second.hash, second.folder) == (first.hash, first.folder)
    assert len(list((tmp_path / "packs").iterdir())) == 1


CHANGES = {
    "size": lambda root: None,
    "pixel": lambda root: Image.new("RGB", (20, 16), (1, 2, 3)).save(root / "x" / "0.png"),
    "added image": lambda root: Image.new("RGB", (9, 9), (5, 5, 5)).save(root / "x" / "9.png"),
    "removed image": lambda root: (root / "x" / "0.png").unlink(),
    "label": lambda root: (root / "x" / "0.png").rename(root / "y" / "9.png"),
    "class": lambda root: (root / "x").rename(root / "w"),
    "copy": lambda root: (root / "x" / "9.png").write_bytes((root / "x" / "0.png").read_bytes()),
    "unreadable image": lambda root: write_broken(root / "x" / "9.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_content_gives_another_pack(few, tmp_path, change):
    before = build_pack(folder(few), 8, tmp_path / "packs")
    CHANGES[change](few)
    after = build_pack(folder(few), 9 if change == "size" else 8, tmp_path / "packs")
    assert before.hash != after.hash
    assert before.folder != after.folder
    assert len(list((tmp_path / "packs").iterdir())) == 2


def test_another_label_changes_the_hash_even_if_the_order_of_images_stays(few, tmp_path):
    paths = sorted(few.glob("?/*"), key=hashing.sha256_file)
    classes = ("x", "y")

    def labelled(*labels):
        examples = [Example(ImageFile(path), label) for path, label in zip(paths, labels, strict=True)]
        return build_pack(Source("few", classes, tuple(examples)), 8, tmp_path / "packs")

    before, after = labelled(0, 0, 0, 1, 1, 1), labelled(0, 0, 1, 1, 1, 1)
    assert before.digests == after.digests
    assert before.hash != after.hash


def test_other_names_times_and_folders_give_the_same_pack(few, tmp_path):
    before = build_pack(folder(few), 8, tmp_path / "packs")
    (few / "x" / "0.png").rename(few / "x" / "renamed.png")
    (few / "y" / "0.png").rename(few / "y" / "zzz.jpeg")
    os.utime(few / "x" / "1.png", (0, 0))
    moved = few.rename(tmp_path / "moved")
    after = build_pack(folder(moved), 8, tmp_path / "other")
    assert after.hash == before.hash
    assert np.array_equal(after.images, before.images)
    assert after.digests == before.digests


def test_the_hash_of_a_folder_does_not_change_between_versions(tmp_path):
    for part in ("train", "test"):
        for number, name in enumerate(["ant/1.ppm", "ant/2.ppm", "bee/1.ppm"]):
            content = b"P6\n2 2\n255\n" + bytes(range(number * 12, number * 12 + 12))
            write_broken(tmp_path / "pinned" / part / name, content)
    write_broken(tmp_path / "pinned" / "train" / "bee" / "broken.jpg", b"no picture")
    packs_of = [
        build_pack(folder(root), 8, tmp_path / "packs") for root in (tmp_path / "pinned", tmp_path / "pinned/train")
    ]
    assert [pack.hash for pack in packs_of] == [
        "dd3456e079fd66dd54da2eea3d3c368deaeecabbd94015797054d0f4fd188028",
        "639ba2484f3188fdf26f83d1fc27c7d6d9acfea20daa86cae500211838f00503",
    ]


@pytest.mark.slow
def test_the_photos_of_the_committed_report_give_the_hash_in_it(shared_data, tmp_path):
    pack = build_pack(folder(shared_data / "hymenoptera"), 128, tmp_path)
    assert pack.hash == "4aeb05f201503291f0291b2de137fe43f768df5503f8b2bd8aa6b33f46c78160"


@pytest.mark.parametrize("chunk", [1, 4, 6, 7])
def test_the_chunk_size_does_not_change_the_pack(few, tmp_path, monkeypatch, chunk):
    write_broken(few / "x" / "9.jpg")
    before = build_pack(folder(few), 8, tmp_path / "packs")
    monkeypatch.setattr(packs, "DECODE_CHUNK", chunk)
    after = build_pack(folder(few), 8, tmp_path / "other")
    assert (after.folder / "pack.json").read_bytes() == (before.folder / "pack.json").read_bytes()
    assert (after.folder / "images.npy").read_bytes() == (before.folder / "images.npy").read_bytes()


# Unreadable images


def test_unreadable_images_are_skipped_and_listed_with_the_reason(few, tmp_path):
    complete = build_pack(folder(few), 8, tmp_path / "packs")
    write_broken(few / "x" / "text.jpg")
    write_broken(few / "y" / "empty.png", b"")
    write_broken(few / "y" / "half.jpg", (few / "y" / "2.jpg").read_bytes()[:300])
    pack = build_pack(folder(few), 8, tmp_path / "packs")
    assert len(pack.skipped) == 3
    for name in ("x/text.jpg: ", "y/empty.png: ", "y/half.jpg: "):
        assert any(problem.startswith(name) and len(problem) > len(name) + 5 for problem in pack.skipped)
    assert pack.images.shape == complete.images.shape
    assert np.array_equal(pack.images, complete.images)
    assert np.array_equal(pack.labels, complete.labels)
    assert pack.digests == complete.digests
    assert load_pack(pack.folder, verify=True).skipped == pack.skipped


def test_if_no_image_can_be_read_the_first_reason_is_given(tmp_path):
    for name in ("x/1.jpg", "y/1.jpg"):
        write_broken(tmp_path / "bad" / name, name.encode())
    with pytest.raises(ValueError, match=r"none of the 2 images of bad can be read; the first: [xy]/1\.jpg: Unident"):
        build_pack(folder(tmp_path / "bad"), 8, tmp_path / "packs")
    assert list((tmp_path / "packs").iterdir()) == []


def test_a_class_without_readable_images_is_named(few, tmp_path):
    write_broken(few / "z" / "1.jpg")
    with pytest.raises(ValueError, match=r"no training image of class 'z' can be read; .* z/1\.jpg"):
        build_pack(folder(few), 8, tmp_path / "packs")
    assert list((tmp_path / "packs").iterdir()) == []


def test_files_with_very_long_and_non_utf8_names_are_packed(few, tmp_path):
    content = (few / "x" / "0.png").read_bytes()
    (few / "x" / ("n" * 251 + ".png")).write_bytes(content)
    (few / "x" / "日本 \u202e\n.png").write_bytes(content)
    with open(os.fsencode(few / "x") + b"/\xff.png", "wb") as file:  # noqa: PTH123
        file.write(content)
    assert len(build_pack(folder(few), 8, tmp_path / "packs").labels) == 9


# Damage


def test_verification_detects_a_flipped_bit_in_the_pixels(few, tmp_path):
    pack = build_pack(folder(few), 8, tmp_path / "packs")
    path = pack.folder / "images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged .*: remove that folder, and it is built again"):
        load_pack(pack.folder, verify=True)


def test_truncated_pixels_are_refused(few, tmp_path):
    pack = build_pack(folder(few), 8, tmp_path / "packs")
    path = pack.folder / "images.npy"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="mmap length"):
        load_pack(pack.folder)


def test_verification_detects_a_changed_label(few, tmp_path):
    pack = build_pack(folder(few), 8, tmp_path / "packs")
    meta = json.loads((pack.folder / "pack.json").read_bytes())
    meta["labels"][0] = 1 - meta["labels"][0]
    (pack.folder / "pack.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="damaged"):
        load_pack(pack.folder, verify=True)


def test_pickled_pixels_are_not_loaded(few, tmp_path):
    pack = build_pack(folder(few), 8, tmp_path / "packs")
    np.save(pack.folder / "images.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"memory-mapped|allow_pickle"):
        load_pack(pack.folder)


# Concurrent builds and killed processes


def test_two_threads_that_build_concurrently_get_the_same_pack(few, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        built = list(pool.map(lambda _: build_pack(folder(few), 8, tmp_path / "packs"), range(2)))
    assert built[0].hash == built[1].hash
    assert [path.name for path in (tmp_path / "packs").iterdir()] == [built[0].hash[:16]]
    load_pack(built[0].folder, verify=True)


def test_the_slower_of_two_builds_uses_the_pack_of_the_faster(few, tmp_path):
    """Another process finishes the same pack between our check and our rename."""
    faster = []

    def overtake(done, total):
        if done == total and not faster:
            faster.append(None)
            faster[0] = build_pack(folder(few), 8, tmp_path / "packs")

    pack = build_pack(folder(few), 8, tmp_path / "packs", overtake)
    assert pack.hash == faster[0].hash
    assert [path.name for path in (tmp_path / "packs").iterdir()] == [pack.hash[:16]]
    load_pack(pack.folder, verify=True)


BUILD = """
import sys, time
from pathlib import Path
from xfer.data.image_folder import folder
from xfer.data.pack import build_pack
def progress(done, total):
    print(done, flush=True)
    if sys.argv[3] == "hang": time.sleep(60)
print(build_pack(folder(Path(sys.argv[1])), 8, Path(sys.argv[2]), progress).hash)
"""


def start(few, root, mode):
    command = [sys.executable, "-c", BUILD, str(few), str(root), mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_that_build_concurrently_get_the_same_pack(few, tmp_path):
    processes = [start(few, tmp_path / "packs", "on") for _ in range(2)]
    hashes = {process.communicate(timeout=120)[0].split()[-1] for process in processes}
    assert all(process.returncode == 0 for process in processes)
    assert len(hashes) == 1
    assert [path.name for path in (tmp_path / "packs").iterdir()] == [hashes.pop()[:16]]


def test_a_process_killed_while_building_leaves_no_incomplete_pack(few, tmp_path):
    process = start(few, tmp_path / "packs", "hang")
    assert process.stdout.readline().strip() == "1"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert all(path.name.startswith(".") for path in (tmp_path / "packs").iterdir())
    pack = build_pack(folder(few), 8, tmp_path / "packs")
    assert len(load_pack(pack.folder, verify=True).labels) == 6


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("No space left on device")])
def test_an_interrupted_build_leaves_no_files(few, tmp_path, error):
    def interrupt(done, total):
        raise error

    with pytest.raises((KeyboardInterrupt, OSError)):
        build_pack(folder(few), 8, tmp_path / "packs", interrupt)
    assert list((tmp_path / "packs").iterdir()) == []


def test_a_disk_that_is_too_small_is_refused_before_the_first_image(few, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=6 * 512 * 512 * 3 - 1))
    with pytest.raises(ValueError, match=r"6 images of 512 px take 4\.5 MB in .*packs, and its disk has 4\.5 MB left"):
        build_pack(folder(few), 512, tmp_path / "packs")
    assert list((tmp_path / "packs").iterdir()) == []


def test_progress_is_reported_once_per_image(few, tmp_path):
    reported = []
    build_pack(folder(few), 8, tmp_path / "packs", lambda done, total: reported.append((done, total)))
    assert reported == [(done, 6) for done in range(1, 7)]


def test_a_file_removed_while_building_is_an_error_and_leaves_no_files(few, tmp_path):
    source = folder(few)
    (few / "x" / "0.png").unlink()
    with pytest.raises(FileNotFoundError):
        build_pack(source, 8, tmp_path / "packs")
    assert not list((tmp_path / "packs").glob("*"))


def test_the_order_of_images_does_not_depend_on_the_order_of_the_source(few, tmp_path):
    source = folder(few)
    reverse = Source(source.name, source.classes, source.examples[::-1])
    first, second = (build_pack(one, 8, tmp_path / str(index)) for index, one in enumerate((source, reverse)))
    assert first.hash == second.hash
    assert np.array_equal(first.images, second.images)
    assert np.array_equal(first.labels, second.labels)


# One range of values per data set


def write_grey(root, arrays, suffix):
    """Write grey images by class: {class: [array, ...]}."""
    for name, values in arrays.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number, array in enumerate(values):
            Image.fromarray(array).save(root / name / f"{number:02d}.{suffix}")
    return root


def noise(mean, spread=0.05, side=32, count=6, seed=0):
    """Draw images in [0, 1]."""
    rng = np.random.default_rng([seed, round(mean * 100)])
    return [np.clip(mean + spread * rng.standard_normal((side, side)), 0, 1) for _ in range(count)]


def brightness(pack, name):
    return pack.images[pack.labels == pack.classes.index(name)].mean(axis=(1, 2, 3))


BRIGHTNESS = {  # kind: suffix of the files, and the conversion of values in [0, 1]
    "8 bits": ("png", lambda values: np.rint(values * 255).astype(np.uint8)),
    "16 bits": ("png", lambda values: np.rint(values * 65_535).astype(np.uint16)),
    "16 bits, TIFF": ("tif", lambda values: np.rint(values * 65_535).astype(np.uint16)),
    "16 bits, big-endian": ("tif", lambda values: np.rint(values * 65_535).astype(">u2")),
    "12 bits": ("png", lambda values: np.rint(values * 4_095).astype(np.uint16)),
    "10 bits": ("png", lambda values: np.rint(values * 1_023).astype(np.uint16)),
    "int32": ("tif", lambda values: np.rint(values * 65_535).astype(np.int32)),
    "float, 0 to 1": ("tif", lambda values: values.astype(np.float32)),
    "float, 0 to 255": ("tif", lambda values: (values * 255).astype(np.float32)),
}


@pytest.mark.parametrize("kind", BRIGHTNESS)
def test_classes_that_differ_in_brightness_stay_as_far_apart_as_in_8_bits(tmp_path, kind):
    suffix, convert = BRIGHTNESS[kind]
    arrays = {name: [convert(values) for values in noise(mean)] for name, mean in (("dark", 0.2), ("bright", 0.8))}
    pack = build_pack(folder(write_grey(tmp_path / "images", arrays, suffix)), 16, tmp_path / "packs")
    assert np.abs(brightness(pack, "dark") - 0.2 * 255).max() < 2
    assert np.abs(brightness(pack, "bright") - 0.8 * 255).max() < 2
    assert bool(pack.value_ranges) == (kind != "8 bits")
    assert load_pack(pack.folder, verify=True).value_ranges == pack.value_ranges


def test_values_in_another_unit_are_scaled_by_the_percentiles_of_the_whole_set(tmp_path):
    arrays = {
        name: [(values * 400 - 100).astype(np.float32) for values in noise(mean)]
        for name, mean in (("cold", 0.2), ("warm", 0.8))
    }
    pack = build_pack(folder(write_grey(tmp_path / "images", arrays, "tif")), 16, tmp_path / "packs")
    low, high = pack.value_ranges["float"]
    assert -100 <= low < -60
    assert 260 < high <= 300
    assert brightness(pack, "cold").max() + 100 < brightness(pack, "warm").min()


def test_hot_and_dead_pixels_in_every_image_do_not_change_the_range(tmp_path):
    packs_of = []
    for name, value in (("clean", None), ("hot", 65_535), ("dead", 0)):
        arrays = {
            label: [np.uint16(1_000 + 2_000 * values) for values in noise(mean)]
            for label, mean in (("dark", 0.2), ("bright", 0.8))
        }
        for image in arrays["dark"] + arrays["bright"]:
            image[0, 0] = image[0, 0] if value is None else value  # outside the center crop
        packs_of.append(build_pack(folder(write_grey(tmp_path / name, arrays, "png")), 8, tmp_path / "packs"))
    for pack in packs_of:
        assert pack.value_ranges == {"integer": (0.0, 4_095.0)}
        means = [np.sort(brightness(one, "dark")) for one in (packs_of[0], pack)]
        assert np.abs(means[1] - means[0]).max() < 2


def test_images_with_missing_values_are_skipped_by_name_and_do_not_change_the_others(tmp_path):
    clean = {name: [np.float32(values) for values in noise(mean)] for name, mean in (("low", 0.2), ("high", 0.8))}
    expected = build_pack(folder(write_grey(tmp_path / "clean", clean, "tif")), 8, tmp_path / "packs")
    for number, value in enumerate((np.nan, -np.inf, -3.4e38, -9_999)):
        torn = np.float32(noise(0.2, seed=number + 1)[0])
        torn[5, 5] = value
        clean["low"].append(torn)
    pack = build_pack(folder(write_grey(tmp_path / "torn", clean, "tif")), 8, tmp_path / "packs")
    assert sorted(problem[:26] for problem in pack.skipped) == [
        f"low/{number:02d}.tif: missing values" for number in range(6, 10)
    ]
    assert pack.value_ranges == expected.value_ranges
    assert np.array_equal(pack.images, expected.images)


def test_each_kind_of_values_has_its_own_range_and_8_bits_have_none(tmp_path):
    root = write_grey(tmp_path / "mixed", {"a": [np.full((20, 20), 3_000, np.uint16)] * 2}, "png")
    write_grey(root, {"b": [np.full((20, 20), 0.5, np.float32)] * 2}, "tif")
    write_grey(root, {"c": [np.full((20, 20), 100, np.uint8)] * 2}, "png")
    pack = build_pack(folder(root), 8, tmp_path / "packs")
    assert pack.value_ranges == {"integer": (0.0, 4_095.0), "float": (0.0, 1.0)}
    assert [brightness(pack, name).tolist() for name in "abc"] == [[187.0] * 2, [128.0] * 2, [100.0] * 2]


def test_the_same_file_alone_gets_the_pixels_it_has_in_the_pack(tmp_path):
    arrays = {"dark": [np.uint16(values * 900) for values in noise(0.2)], "bright": [np.uint16([[60_000] * 20] * 20)]}
    source = folder(write_grey(tmp_path / "images", arrays, "png"))
    pack = build_pack(source, 8, tmp_path / "packs")
    for example in source.examples:
        index = pack.digests.index(example.image.digest())
        assert np.array_equal(read_image(example.image.path, 8, pack.value_ranges), pack.images[index])


def test_only_packs_with_deep_or_transparent_images_get_another_hash(few, tmp_path, monkeypatch):
    def hashes(version):
        monkeypatch.setattr(packs, "PIXEL_RULES_VERSION", version)
        return [build_pack(folder(root), 8, tmp_path / f"{version}").hash for root in (few, deep, transparent)]

    arrays = {name: [np.full((9, 9), level, np.uint16)] for name, level in (("a", 99), ("b", 9_999))}
    deep, transparent = write_grey(tmp_path / "deep", arrays, "png"), tmp_path / "transparent"
    for name in ("a", "b"):
        (transparent / name).mkdir(parents=True)
        Image.new("RGBA", (9, 9), (255, 255, 255, 9)).save(transparent / name / "0.png")
    before, after = hashes(1), hashes(2)
    assert [first == second for first, second in zip(before, after, strict=True)] == [True, False, False]
    assert "value_ranges" not in json.loads((tmp_path / "1" / before[0][:16] / "pack.json").read_bytes())


def test_without_deep_images_there_are_no_ranges(few):
    assert packs.estimate_ranges([example.image for example in folder(few).examples]) == {}
    assert packs.estimate_ranges([]) == {}


def test_a_large_data_set_is_sampled_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(packs, "MAX_SAMPLED_IMAGES", 4)
    arrays = {name: [np.uint16(values * level) for values in noise(0.5)] for name, level in (("a", 500), ("b", 60_000))}
    pack = build_pack(folder(write_grey(tmp_path / "images", arrays, "png")), 8, tmp_path / "packs")
    assert pack.value_ranges == {"integer": (0.0, 65_535.0)}
