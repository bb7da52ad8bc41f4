"""Packs are decoded once, named by content, complete or absent, and the same for every process."""

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
    with pytest.raises(ValueError, match=r"is damaged: remove that folder, and it is built again"):
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
