"""Copies are found however a picture was changed, and different pictures are not taken for copies."""

from __future__ import annotations

import io
import json
import random

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from xfer.data.copies import Copies, find_copies, fingerprint, join_groups, read_copies, report_copies, write_copies
from xfer.data.image_folder import folder
from xfer.data.images import ImageFile
from xfer.data.inspection import inspect_source
from xfer.data.pack import build_pack
from xfer.data.quickdraw import BitmapDrawing
from xfer.data.split import split_pack


def picture(seed, width=120, height=90):
    """A random picture with details of all sizes, as photos have."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    frequency[0, 0] = 1
    channels = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) / frequency**1.2).real for _ in range(2)]
    mixed = np.stack([channels[0], channels[0] + channels[1] / 3, channels[0] - channels[1] / 3], axis=2)
    return Image.fromarray(np.clip(128 + 45 * (mixed - mixed.mean()) / mixed.std(), 0, 255).astype(np.uint8))


def compressed(image, quality=90, **options):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, **options)
    return stream.getvalue()


def resized(image, factor):
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def cropped(image, left, top, right, bottom):
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


def noisy(image, spread):
    noise = np.random.default_rng(1).normal(0, spread, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def marked(image):
    marked = image.copy()
    ImageDraw.Draw(marked).text((8, image.height // 2), "SAMPLE", fill="white", font_size=14)
    return marked


def turned_by_exif(image):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    return compressed(image.transpose(Image.Transpose.ROTATE_90), exif=exif.tobytes())


CHANGES = {
    **{
        f"JPEG quality {quality}": lambda image, quality=quality: compressed(image, quality) for quality in (30, 60, 95)
    },
    "half the size": lambda image: compressed(resized(image, 0.5)),
    "double the size": lambda image: compressed(resized(image, 2)),
    "squashed": lambda image: compressed(image.resize((64, 64))),
    "5% cut off": lambda image: compressed(cropped(image, 0.05, 0.02, 0.03, 0.05)),
    "10% cut off two sides": lambda image: compressed(cropped(image, 0.1, 0.1, 0, 0)),
    "5% cut off all sides": lambda image: compressed(cropped(image, 0.05, 0.05, 0.05, 0.05)),
    "mirrored": lambda image: compressed(ImageOps.mirror(image)),
    "mirrored and cropped": lambda image: compressed(cropped(ImageOps.mirror(image), 0.06, 0.02, 0, 0.05)),
    "upside down": lambda image: compressed(ImageOps.flip(image)),
    "turned by 90 degrees": lambda image: compressed(image.transpose(Image.Transpose.ROTATE_90)),
    "turned by EXIF": turned_by_exif,
    "turned by 3 degrees": lambda image: compressed(image.rotate(3, Image.Resampling.BICUBIC)),
    "brighter": lambda image: compressed(ImageEnhance.Brightness(image).enhance(1.3)),
    "darker": lambda image: compressed(ImageEnhance.Brightness(image).enhance(0.6)),
    "less contrast": lambda image: compressed(ImageEnhance.Contrast(image).enhance(0.5)),
    "other colours": lambda image: compressed(ImageEnhance.Color(image).enhance(2)),
    "grey": lambda image: compressed(image.convert("L")),
    "noise": lambda image: compressed(noisy(image, 15)),
    "a border": lambda image: compressed(ImageOps.expand(image, 5, "white")),
    "a mark": lambda image: compressed(marked(image)),
}


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.save(path)
    return path


def copies_of(paths):
    images = [ImageFile(path) for path in paths]
    return find_copies(images, [fingerprint(image) for image in images])


# What is a copy


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_picture_is_a_near_copy(tmp_path, change):
    originals = [write(tmp_path, f"{seed}.png", picture(seed)) for seed in range(6)]
    changed = [write(tmp_path, f"changed{seed}", CHANGES[change](picture(seed))) for seed in range(6)]
    found = copies_of([*originals, *changed])
    assert found.exact == ()
    assert found.alike == tuple((seed, seed + 6) for seed in range(6))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
def test_the_same_pixels_in_another_format_are_an_exact_copy(tmp_path, suffix):
    first = write(tmp_path, "1.jpg", compressed(picture(1)))
    with Image.open(first) as image:
        image.save(tmp_path / f"2.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    found = copies_of([first, tmp_path / f"2.{suffix}", write(tmp_path, "3.jpg", compressed(picture(2)))])
    assert found.exact == found.alike == ((0, 1),)


def test_different_pictures_are_no_copies(tmp_path):
    found = copies_of([write(tmp_path, f"{seed}.jpg", compressed(picture(seed))) for seed in range(80)])
    assert (found.exact, found.alike) == ((), ())


def shape(rng):
    image = Image.new("RGB", (64, 64), tuple(rng.integers(0, 256, 3).tolist()))
    radius = rng.uniform(8, 22)
    x, y = rng.uniform(radius, 64 - radius, 2)
    draw = (ImageDraw.Draw(image).ellipse, ImageDraw.Draw(image).rectangle)[rng.integers(2)]
    draw((x - radius, y - radius, x + radius, y + radius), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def test_shapes_of_equal_outline_in_other_places_and_colours_are_no_copies(tmp_path):
    rng = np.random.default_rng(0)
    found = copies_of([write(tmp_path, f"{number}.png", shape(rng)) for number in range(60)])
    assert found.alike == ()


def test_one_shape_in_two_colours_is_no_copy(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for number in range(12):
        image = Image.fromarray(rng.normal(128, 25, (64, 64, 3)).clip(0, 255).astype(np.uint8))
        ImageDraw.Draw(image).ellipse((20, 20, 44, 44), fill=("red", "blue")[number % 2])
        paths.append(write(tmp_path, f"{number}.png", image))
    assert copies_of(paths).alike == ()


def test_small_images_and_drawings_are_copies_only_if_their_pixels_are_equal(tmp_path):
    small = [write(tmp_path, f"{number}.png", picture(number % 2).resize((28, 28))) for number in range(4)]
    nearly = write(tmp_path, "4.jpg", compressed(picture(0).resize((28, 28))))
    assert copies_of([*small, nearly]).alike == ((0, 2), (1, 3))
    rows = np.random.default_rng(0).integers(0, 256, (3, 784), dtype=np.uint8)
    rows[2] = rows[0]
    drawings = [BitmapDrawing(rows, index, "cat.npy") for index in range(3)]
    assert find_copies(drawings, [fingerprint(drawing) for drawing in drawings]).exact == ((0, 2),)


def test_the_order_of_the_images_does_not_matter(tmp_path):
    paths = [write(tmp_path, f"{seed}.png", picture(seed)) for seed in range(12)]
    paths += [write(tmp_path, f"{seed}.jpg", compressed(cropped(picture(seed), 0.05, 0, 0, 0.04))) for seed in range(5)]
    shuffled = random.Random(0).sample(range(len(paths)), len(paths))
    found = copies_of([paths[index] for index in shuffled]).alike
    assert {frozenset(shuffled[index] for index in group) for group in found} == {
        frozenset(group) for group in copies_of(paths).alike
    }


def test_frames_of_a_video_are_one_group(tmp_path):
    wide = picture(3, 300, 90)
    frames = [wide.crop((start, 0, start + 120, 90)) for start in range(0, 60, 4)]
    paths = [write(tmp_path, f"{number:02d}.jpg", compressed(frame)) for number, frame in enumerate(frames)]
    others = [write(tmp_path, f"other{seed}.jpg", compressed(picture(seed))) for seed in range(10, 20)]
    assert copies_of([*paths, *others]).alike == (tuple(range(15)),)


def test_groups_are_connected():
    assert join_groups(7, [(5, 4), (0, 2), (4, 0), (1,)]) == ((0, 2, 4, 5),)
    assert join_groups(3, []) == ()


# In packs, splits and reports


@pytest.fixture
def augmented(tmp_path):
    """20 pictures of 2 classes, each with three changed copies."""
    changes = [*CHANGES.values()]
    for seed in range(20):
        name = f"photos/{'ab'[seed % 2]}"
        write(tmp_path, f"{name}/{seed:02d}.png", picture(seed))
        for number in range(3):
            write(tmp_path, f"{name}/{seed:02d}_{number}.jpg", changes[(3 * seed + number) % 15](picture(seed)))
    return tmp_path / "photos"


def test_a_pack_keeps_its_copies_and_every_split_keeps_them_together(augmented, tmp_path):
    pack = build_pack(folder(augmented), 16, tmp_path / "packs")
    assert [len(group) for group in pack.copies.alike] == [4] * 20
    for group in pack.copies.alike:
        assert len({pack.copies.names[index].split("/")[1][:2] for index in group}) == 1
    for seed in range(3):
        split = split_pack(pack, seed, draw=seed)
        for part in ("train", "val", "test"):
            assert len(split.of(part)) == 4 * len(set(pack.copy_groups[split.of(part)]))


def test_inspection_and_pack_agree(augmented, tmp_path):
    pack = build_pack(folder(augmented), 16, tmp_path / "packs")
    report = report_copies(pack.copies, pack.labels.tolist(), pack.parts, pack.classes)
    inspection = inspect_source(folder(augmented))
    assert (report.exact_copies, report.near_copies) == (inspection.exact_copies, inspection.near_copies) == (0, 60)
    assert {frozenset(group) for group in report.near_groups} == {frozenset(group) for group in inspection.near_groups}
    (note,) = inspection.warnings
    assert note.startswith("80 images are exact or near copies of others, in 20 groups of up to 4: each group stays")


def test_copies_are_looked_for_once_and_named_as_the_files_are_now(augmented, tmp_path, monkeypatch):
    first = build_pack(folder(augmented), 16, tmp_path / "packs")
    (augmented / "a" / "00.png").rename(augmented / "a" / "renamed.png")
    monkeypatch.setattr("xfer.data.pack.find_copies", None)
    second = build_pack(folder(augmented), 16, tmp_path / "packs")
    assert (second.hash, second.copies.alike) == (first.hash, first.copies.alike)
    assert "a/renamed.png" in second.copies.names.values()
    assert "a/00.png" not in second.copies.names.values()


def test_a_pack_of_an_earlier_version_gets_its_copies(augmented, tmp_path):
    first = build_pack(folder(augmented), 16, tmp_path / "packs")
    stored = (first.folder / "copies.json").read_bytes()
    (first.folder / "copies.json").unlink()
    second = build_pack(folder(augmented), 16, tmp_path / "packs")
    assert (second.hash, second.copies) == (first.hash, first.copies)
    assert (first.folder / "copies.json").read_bytes() == stored


def test_stored_copies_are_checked(tmp_path):
    copies = Copies(((0, 1),), ((0, 1, 4),), {0: "a", 1: "b", 4: "c"}, "a remark")
    write_copies(tmp_path / "copies.json", copies, "hash")
    assert read_copies(tmp_path / "copies.json", "hash") == copies
    assert read_copies(tmp_path / "none.json", "hash") == Copies()
    with pytest.raises(ValueError, match="remove it, and copies are looked for again"):
        read_copies(tmp_path / "copies.json", "another hash")
    content = json.loads((tmp_path / "copies.json").read_bytes())
    (tmp_path / "copies.json").write_text(json.dumps({**content, "exact": []}), encoding="utf-8")
    with pytest.raises(ValueError, match="is damaged"):
        read_copies(tmp_path / "copies.json", "hash")


# Real data


@pytest.mark.parametrize(("name", "expected"), [("hymenoptera", 0), ("dogs_vs_cats", 0)])
def test_different_photos_are_no_copies(shared_data, name, expected):
    paths = sorted((shared_data / name / "train").rglob("*.jpg"))[::2]
    assert len(copies_of(paths).alike) == expected


def test_changed_photos_are_near_copies(shared_data, tmp_path):
    photos = sorted((shared_data / "hymenoptera" / "train" / "ants").iterdir())[:30]
    changes, paths = [*CHANGES.values()], [*photos]
    for number, photo in enumerate(photos):
        with Image.open(photo) as image:
            paths.append(write(tmp_path, str(number), changes[number % len(changes)](image.convert("RGB"))))
    found = set(copies_of(paths).alike)
    assert found <= {(number, number + 30) for number in range(30)}
    assert len(found) >= 28  # those whose details are on plain ground are not found if much is cut off
