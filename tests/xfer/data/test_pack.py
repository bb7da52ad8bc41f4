"""Decoded once, named by content, whole or not there, the same for everybody who reads it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from xfer import hashing
from xfer.data import images
from xfer.data import pack as packs
from xfer.data.images import ImageFile, read_image
from xfer.data.layouts import Example, Source, folder
from xfer.data.pack import build_pack, load_pack


@pytest.fixture
def few(tmp_path):
    """Two classes of three pictures each, no two alike."""
    root = tmp_path / "few"
    for number, name in enumerate(["x/0.png", "x/1.png", "x/2.jpg", "y/0.png", "y/1.png", "y/2.jpg"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (number * 40, 99, 200 - number * 30)).save(root / name)
    return root


def broken(path, content=b"no picture"):
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


def test_a_pack_loads_as_it_was_built_memory_mapped_and_read_only(pack):
    again = load_pack(pack.folder, verify=True)
    for field in dataclasses.fields(pack):
        assert np.array_equal(getattr(again, field.name), getattr(pack, field.name)), field.name
    assert isinstance(again.images, np.memmap)
    assert not again.images.flags.writeable


def test_the_parts_that_a_source_gives_are_kept(few, tmp_path):
    for part in ("train", "test"):
        for path in few.glob("?/*"):
            target = tmp_path / "parts" / part / path.relative_to(few)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    pack = build_pack(folder(tmp_path / "parts"), 8, tmp_path / "packs")
    assert sorted(pack.parts) == ["test"] * 6 + ["train"] * 6


# The hash


def test_the_second_call_decodes_nothing_and_finds_the_same(few, tmp_path, monkeypatch):
    first = build_pack(folder(few), 8, tmp_path / "packs")

    def decode(*arguments):
        raise AssertionError("decoded again")

    monkeypatch.setattr(images, "read_image", decode)
    second = build_pack(folder(few), 8, tmp_path / "packs")
    assert (second.hash, second.folder) == (first.hash, first.folder)
    assert len(list((tmp_path / "packs").iterdir())) == 1


CHANGES = {
    "size": lambda root: None,
    "pixel": lambda root: Image.new("RGB", (20, 16), (1, 2, 3)).save(root / "x" / "0.png"),
    "image more": lambda root: Image.new("RGB", (9, 9), (5, 5, 5)).save(root / "x" / "9.png"),
    "image less": lambda root: (root / "x" / "0.png").unlink(),
    "label": lambda root: (root / "x" / "0.png").rename(root / "y" / "9.png"),
    "class": lambda root: (root / "x").rename(root / "w"),
    "copy": lambda root: (root / "x" / "9.png").write_bytes((root / "x" / "0.png").read_bytes()),
    "unreadable image": lambda root: broken(root / "x" / "9.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_content_gives_another_pack(few, tmp_path, change):
    before = build_pack(folder(few), 8, tmp_path / "packs")
    CHANGES[change](few)
    after = build_pack(folder(few), 9 if change == "size" else 8, tmp_path / "packs")
    assert before.hash != after.hash
    assert before.folder != after.folder
    assert len(list((tmp_path / "packs").iterdir())) == 2


def test_a_label_counts_even_where_the_order_of_images_stays(few, tmp_path):
    paths = sorted(few.glob("?/*"), key=hashing.sha256_file)
    classes = ("x", "y")

    def labelled(*labels):
        examples = [Example(ImageFile(path), label) for path, label in zip(paths, labels, strict=True)]
        return build_pack(Source("few", classes, tuple(examples)), 8, tmp_path / "packs")

    before, after = labelled(0, 0, 0, 1, 1, 1), labelled(0, 0, 1, 1, 1, 1)
    assert before.digests == after.digests
    assert before.hash != after.hash


def test_a_change_of_names_times_and_folders_gives_the_same_pack(few, tmp_path):
    before = build_pack(folder(few), 8, tmp_path / "packs")
    (few / "x" / "0.png").rename(few / "x" / "renamed.png")
    (few / "y" / "0.png").rename(few / "y" / "zzz.jpeg")
    os.utime(few / "x" / "1.png", (0, 0))
    moved = few.rename(tmp_path / "moved")
    after = build_pack(folder(moved), 8, tmp_path / "others")
    assert after.hash == before.hash
    assert np.array_equal(after.images, before.images)
    assert after.digests == before.digests


def test_a_folder_of_photos_keeps_the_hash_it_had_in_earlier_reports(tmp_path):
    for part in ("train", "test"):
        for number, name in enumerate(["ant/1.ppm", "ant/2.ppm", "bee/1.ppm"]):
            content = b"P6\n2 2\n255\n" + bytes(range(number * 12, number * 12 + 12))
            broken(tmp_path / "pinned" / part / name, content)
    broken(tmp_path / "pinned" / "train" / "bee" / "broken.jpg")
    found = [
        build_pack(folder(root), 8, tmp_path / "packs") for root in (tmp_path / "pinned", tmp_path / "pinned/train")
    ]
    assert [pack.hash for pack in found] == [
        "dd3456e079fd66dd54da2eea3d3c368deaeecabbd94015797054d0f4fd188028",
        "639ba2484f3188fdf26f83d1fc27c7d6d9acfea20daa86cae500211838f00503",
    ]


@pytest.mark.slow
def test_the_photos_of_the_committed_report_give_the_pack_that_it_names(shared_data, tmp_path):
    pack = build_pack(folder(shared_data / "hymenoptera"), 128, tmp_path)
    assert pack.hash == "4aeb05f201503291f0291b2de137fe43f768df5503f8b2bd8aa6b33f46c78160"


@pytest.mark.parametrize("block", [1, 4, 6, 7])
def test_how_many_images_are_on_their_way_at_a_time_does_not_matter(few, tmp_path, monkeypatch, block):
    broken(few / "x" / "9.jpg")
    before = build_pack(folder(few), 8, tmp_path / "packs")
    monkeypatch.setattr(packs, "DECODE_CHUNK", block)
    after = build_pack(folder(few), 8, tmp_path / "others")
    assert (after.folder / "pack.json").read_bytes() == (before.folder / "pack.json").read_bytes()
    assert (after.folder / "images.npy").read_bytes() == (before.folder / "images.npy").read_bytes()


# Unreadable images


def test_unreadable_images_are_skipped_and_listed_with_the_reason(few, tmp_path):
    whole = build_pack(folder(few), 8, tmp_path / "packs")
    broken(few / "x" / "text.jpg")
    broken(few / "y" / "empty.png", b"")
    broken(few / "y" / "half.jpg", (few / "y" / "2.jpg").read_bytes()[:300])
    pack = build_pack(folder(few), 8, tmp_path / "packs")
    assert len(pack.skipped) == 3
    for name in ("x/text.jpg: ", "y/empty.png: ", "y/half.jpg: "):
        assert any(each.startswith(name) and len(each) > len(name) + 5 for each in pack.skipped)
    assert pack.images.shape == whole.images.shape
    assert np.array_equal(pack.images, whole.images)
    assert np.array_equal(pack.labels, whole.labels)
    assert pack.digests == whole.digests
    assert load_pack(pack.folder, verify=True).skipped == pack.skipped


def test_where_no_image_can_be_read_the_first_reason_is_given(tmp_path):
    for name in ("x/1.jpg", "y/1.jpg"):
        broken(tmp_path / "bad" / name, name.encode())
    with pytest.raises(ValueError, match=r"none of the 2 images of bad can be read; the first: [xy]/1\.jpg: Unident"):
        build_pack(folder(tmp_path / "bad"), 8, tmp_path / "packs")
    assert list((tmp_path / "packs").iterdir()) == []


def test_a_class_of_which_nothing_can_be_read_is_named(few, tmp_path):
    broken(few / "z" / "1.jpg")
    with pytest.raises(ValueError, match=r"no training image of class 'z' can be read; .* z/1\.jpg"):
        build_pack(folder(few), 8, tmp_path / "packs")
    assert list((tmp_path / "packs").iterdir()) == []


def test_names_that_are_no_text_or_very_long_are_packed(few, tmp_path):
    content = (few / "x" / "0.png").read_bytes()
    (few / "x" / ("n" * 251 + ".png")).write_bytes(content)
    (few / "x" / "日本 \u202e\n.png").write_bytes(content)
    with open(os.fsencode(few / "x") + b"/\xff.png", "wb") as file:  # noqa: PTH123
        file.write(content)
    assert len(build_pack(folder(few), 8, tmp_path / "packs").labels) == 9


# Damage


def test_a_flipped_byte_of_the_pixels_is_found_when_asked_for(few, tmp_path):
    pack = build_pack(folder(few), 8, tmp_path / "packs")
    path = pack.folder / "images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged: remove that folder, and it is built again"):
        load_pack(pack.folder, verify=True)


def test_cut_off_pixels_are_never_read_silently(few, tmp_path):
    pack = build_pack(folder(few), 8, tmp_path / "packs")
    path = pack.folder / "images.npy"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="mmap length"):
        load_pack(pack.folder)


def test_a_changed_label_is_found_when_asked_for(few, tmp_path):
    pack = build_pack(folder(few), 8, tmp_path / "packs")
    meta = json.loads((pack.folder / "pack.json").read_bytes())
    meta["labels"][0] = 1 - meta["labels"][0]
    (pack.folder / "pack.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="damaged"):
        load_pack(pack.folder, verify=True)


def test_pixels_that_are_a_pickle_are_not_loaded(few, tmp_path):
    pack = build_pack(folder(few), 8, tmp_path / "packs")
    np.save(pack.folder / "images.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"memory-mapped|allow_pickle"):
        load_pack(pack.folder)


# Two at once, and kills


def test_two_threads_that_build_at_once_get_the_same_pack(few, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: build_pack(folder(few), 8, tmp_path / "packs"), range(2)))
    assert found[0].hash == found[1].hash
    assert [path.name for path in (tmp_path / "packs").iterdir()] == [found[0].hash[:16]]
    load_pack(found[0].folder, verify=True)


def test_whoever_comes_second_uses_the_pack_of_the_first(few, tmp_path):
    """Another process finishes the same pack between our look for it and our rename."""
    ahead = []

    def overtake(done, total):
        if done == total and not ahead:
            ahead.append(None)
            ahead[0] = build_pack(folder(few), 8, tmp_path / "packs")

    pack = build_pack(folder(few), 8, tmp_path / "packs", overtake)
    assert pack.hash == ahead[0].hash
    assert [path.name for path in (tmp_path / "packs").iterdir()] == [pack.hash[:16]]
    load_pack(pack.folder, verify=True)


BUILD = """
import sys, time
from pathlib import Path
from xfer.data.pack import build_pack
from xfer.data.layouts import folder
def progress(done, total):
    print(done, flush=True)
    if sys.argv[3] == "hang": time.sleep(60)
print(build_pack(folder(Path(sys.argv[1])), 8, Path(sys.argv[2]), progress).hash)
"""


def start(few, root, mode):
    command = [sys.executable, "-c", BUILD, str(few), str(root), mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_that_build_at_once_get_the_same_pack(few, tmp_path):
    processes = [start(few, tmp_path / "packs", "on") for _ in range(2)]
    hashes = {process.communicate(timeout=120)[0].split()[-1] for process in processes}
    assert all(process.returncode == 0 for process in processes)
    assert len(hashes) == 1
    assert [path.name for path in (tmp_path / "packs").iterdir()] == [hashes.pop()[:16]]


def test_a_process_killed_while_building_leaves_nothing_that_could_be_taken_for_a_pack(few, tmp_path):
    process = start(few, tmp_path / "packs", "hang")
    assert process.stdout.readline().strip() == "1"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert all(path.name.startswith(".") for path in (tmp_path / "packs").iterdir())
    pack = build_pack(folder(few), 8, tmp_path / "packs")
    assert len(load_pack(pack.folder, verify=True).labels) == 6


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("No space left on device")])
def test_an_interruption_leaves_nothing_behind(few, tmp_path, error):
    def interrupt(done, total):
        raise error

    with pytest.raises((KeyboardInterrupt, OSError)):
        build_pack(folder(few), 8, tmp_path / "packs", interrupt)
    assert list((tmp_path / "packs").iterdir()) == []


def test_progress_is_told_once_per_image(few, tmp_path):
    told = []
    build_pack(folder(few), 8, tmp_path / "packs", lambda done, total: told.append((done, total)))
    assert told == [(done, 6) for done in range(1, 7)]


def test_a_file_that_vanishes_while_building_is_an_error_and_leaves_nothing(few, tmp_path):
    source = folder(few)
    (few / "x" / "0.png").unlink()
    with pytest.raises(FileNotFoundError):
        build_pack(source, 8, tmp_path / "packs")
    assert not list((tmp_path / "packs").glob("*"))


def test_images_stand_in_the_same_order_whatever_the_order_of_the_source(few, tmp_path):
    source = folder(few)
    backwards = Source(source.name, source.classes, source.examples[::-1])
    found = [build_pack(each, 8, tmp_path / str(number)) for number, each in enumerate((source, backwards))]
    assert found[0].hash == found[1].hash
    assert np.array_equal(found[0].images, found[1].images)
    assert np.array_equal(found[0].labels, found[1].labels)
