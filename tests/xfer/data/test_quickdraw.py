"""QuickDraw as it was published: bitmaps and strokes, one file per class."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from xfer.data.image_formats import UnreadableImageError
from xfer.data.images import to_square
from xfer.data.pack import build_pack, load_pack
from xfer.data.quickdraw import BITMAP_SIZE, MAX_LINE_BYTES, quickdraw, render_strokes
from xfer.data.split import split_pack

BOX = [[[0, 255, 255, 0, 0], [0, 0, 100, 100, 0]]]
CROSS = [[[0, 255], [0, 255]], [[255, 0], [0, 255]]]
DOT = [[[7], [9]]]


def bitmaps(path, number, seed=0):
    rng = np.random.default_rng([seed, *path.stem.encode()])
    rows = rng.integers(0, 256, (number, BITMAP_SIZE * BITMAP_SIZE), dtype=np.uint8)
    np.save(path, rows)
    return rows


def line(drawing, **more):
    metadata = {"countrycode": "DE", "timestamp": "2017-03-29 15:32:49 UTC", "recognized": True, "key_id": "1"}
    return json.dumps({**metadata, **more, "drawing": drawing}) + "\n"


def lines(path, *texts):
    path.write_text("".join(texts))


# Bitmaps


def test_every_row_of_a_bitmap_file_is_an_image_of_the_files_class(tmp_path):
    rows = {name: bitmaps(tmp_path / f"{name}.npy", number) for name, number in (("dog", 3), ("hot air balloon", 2))}
    source = quickdraw(tmp_path)
    assert source.classes == ("dog", "hot air balloon")
    assert [(example.image.name, example.label, example.part) for example in source.examples] == [
        ("dog.npy row 0", 0, None),
        ("dog.npy row 1", 0, None),
        ("dog.npy row 2", 0, None),
        ("hot air balloon.npy row 0", 1, None),
        ("hot air balloon.npy row 1", 1, None),
    ]
    expected = to_square(Image.fromarray(rows["dog"][1].reshape(BITMAP_SIZE, BITMAP_SIZE)), 64)
    assert np.array_equal(source.examples[1].image.read(64), expected)


def test_a_bitmap_stays_white_on_black_and_upright(tmp_path):
    rows = np.zeros((1, BITMAP_SIZE, BITMAP_SIZE), dtype=np.uint8)
    rows[0, 4:8, 4:24] = 255  # a bar near the top
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", rows)
    pixels = quickdraw(tmp_path).examples[0].image.read(56)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (56, 56, 3)
    assert pixels[8, 28].tolist() == [255] * 3
    assert pixels[40, 28].tolist() == [0] * 3


def test_equal_bitmaps_have_equal_digests_in_any_file_and_row(tmp_path):
    rows = bitmaps(tmp_path / "a.npy", 3)
    np.save(tmp_path / "b.npy", rows[[2, 0]])
    digests = [example.image.digest() for example in quickdraw(tmp_path).examples]
    assert digests[:1] == digests[4:]
    assert digests[2] == digests[3]
    assert len(set(digests)) == 3


@pytest.mark.parametrize("prefix", ["full_numpy_bitmap_", "full%2Fnumpy_bitmap%2F"])
def test_the_prefix_of_the_published_bucket_is_not_part_of_the_class(tmp_path, prefix):
    for name in ("cat", "dog"):
        bitmaps(tmp_path / f"{prefix}{name}.npy", 2)
    assert quickdraw(tmp_path).classes == ("cat", "dog")


def test_the_memory_order_of_an_array_does_not_matter(tmp_path):
    rows = bitmaps(tmp_path / "a.npy", 5)
    np.save(tmp_path / "b.npy", np.asfortranarray(rows))
    source = quickdraw(tmp_path)
    assert [example.image.digest() for example in source.examples[:5]] == [
        example.image.digest() for example in source.examples[5:]
    ]


WRONG = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no array"),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:1000]),
    "a pickle": lambda path: np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True),
    "an archive": lambda path: path.write_bytes(b"PK\x03\x04" + b"\0" * 100),
    "a header of its own": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00__import__('os')"),
    "floats": lambda path: np.save(path, np.zeros((3, BITMAP_SIZE * BITMAP_SIZE))),
    "another size": lambda path: np.save(path, np.zeros((3, 1024), dtype=np.uint8)),
    "one row": lambda path: np.save(path, np.zeros(BITMAP_SIZE * BITMAP_SIZE, dtype=np.uint8)),
    "no rows": lambda path: np.save(path, np.zeros((0, BITMAP_SIZE * BITMAP_SIZE), dtype=np.uint8)),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_without_bitmaps_is_refused_and_named(tmp_path, kind):
    bitmaps(tmp_path / "a.npy", 3)
    bitmaps(tmp_path / "b.npy", 3)
    WRONG[kind](tmp_path / "b.npy")
    with pytest.raises(ValueError, match=r"b\.npy (is not a complete \.npy file|holds)") as caught:
        quickdraw(tmp_path)
    assert kind == "no rows" or "uint8 [drawings, 784]" in str(caught.value)


def test_a_blank_bitmap_is_skipped_and_counted(tmp_path):
    rows = bitmaps(tmp_path / "a.npy", 4)
    bitmaps(tmp_path / "b.npy", 4)
    rows[2] = 0
    np.save(tmp_path / "a.npy", rows)
    pack = build_pack(quickdraw(tmp_path), 16, tmp_path / "packs")
    assert pack.skipped == ("a/a.npy row 2: there is no stroke in it",)
    assert len(pack.labels) == 7


def test_the_pack_does_not_depend_on_the_order_of_drawings(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    for name in ("cat", "dog"):
        rows = bitmaps(tmp_path / "one" / f"{name}.npy", 20)
        np.save(tmp_path / "two" / f"{name}.npy", rows[::-1])
    packs = [build_pack(quickdraw(tmp_path / name), 16, tmp_path / name / "packs") for name in ("one", "two")]
    assert packs[0].hash == packs[1].hash
    assert np.array_equal(packs[0].images, packs[1].images)
    load_pack(packs[0].folder, verify=True)
    split = split_pack(packs[0])
    assert len(split.train) + len(split.val) + len(split.test) == 40


# Strokes


def ink(pixels):
    rows, columns = np.nonzero(pixels[..., 0] > 40)
    return rows.min(), rows.max(), columns.min(), columns.max()


def test_the_class_of_a_line_is_its_word_or_the_file_name(tmp_path):
    lines(tmp_path / "some.ndjson", line(BOX, word="box"), "\n", line(CROSS, word="cross", recognized=False), line(DOT))
    source = quickdraw(tmp_path)
    assert source.classes == ("box", "cross", "some")  # the last line has no word
    assert [example.image.name for example in source.examples] == [f"some.ndjson line {number}" for number in (1, 3, 4)]
    assert source.notes == ()


def test_strokes_are_rendered_white_on_black_centered_and_as_large_as_the_bitmaps(tmp_path):
    pixels = np.asarray(
        render_strokes([np.array(BOX[0], dtype=float)], 8 * BITMAP_SIZE).resize(
            (BITMAP_SIZE, BITMAP_SIZE), Image.Resampling.BOX
        )
    )
    top, bottom, left, right = ink(pixels[..., None])
    assert (left + right, top + bottom) == (BITMAP_SIZE - 1, BITMAP_SIZE - 1)
    assert right - left == 25  # as the median of the published bitmaps
    assert pixels[BITMAP_SIZE // 2, BITMAP_SIZE // 2] == 0
    assert pixels.max() == 255


@pytest.mark.parametrize("size", [8, 28, 64, 224])
def test_strokes_are_antialiased_at_every_size(tmp_path, size):
    lines(tmp_path / "x.ndjson", line(CROSS, word="cross"), line(BOX, word="box"))
    pixels = quickdraw(tmp_path).examples[1].image.read(size)
    assert pixels.shape == (size, size, 3)
    assert (pixels[..., 0] == pixels[..., 2]).all()
    assert len(np.unique(pixels)) > 2
    upright, flipped = pixels[..., 0].astype(int), pixels[::-1, :, 0].astype(int)
    assert np.abs(upright - flipped).mean() < 12  # a cross looks the same upside down


def test_a_single_point_is_a_centered_dot(tmp_path):
    lines(tmp_path / "x.ndjson", line(DOT, word="dot"), line(BOX, word="box"))
    pixels = quickdraw(tmp_path).examples[1].image.read(32)
    top, bottom, left, right = ink(pixels)
    assert abs(top + bottom - 31) <= 1
    assert abs(left + right - 31) <= 1
    assert 1 <= bottom - top <= 3


def test_copies_of_a_drawing_with_other_metadata_have_equal_digests(tmp_path):
    lines(tmp_path / "a.ndjson", line(BOX, word="a", key_id="1"), line(BOX, word="a", key_id="2"), line(DOT, word="a"))
    lines(tmp_path / "b.ndjson", line(BOX, word="b", countrycode="FR", recognized=False))
    first, second, third, fourth = (example.image.digest() for example in quickdraw(tmp_path).examples)
    assert first == second == fourth != third


UNREADABLE = {
    "no strokes": [],
    "no points": [[[], []]],
    "raw, with times": [[[0, 9], [0, 9], [0, 20]]],
    "beyond": [[[0, 256], [0, 9]]],
    "below": [[[0, -1], [0, 9]]],
    "not a number": [[[0, float("nan")], [0, 9]]],
    "huge": [[[0, 10**400], [0, 9]]],
    "ragged": [[[0, 1, 2], [0, 1]]],
    "words": [[["a"], ["b"]]],
    "numbers": [1, 2],
    "deeper": [[[[0]], [[0]]]],
    "text": "box",
    "nothing": None,
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_drawing_that_cannot_be_rendered_is_skipped_and_counted(tmp_path, kind):
    lines(tmp_path / "a.ndjson", line(BOX, word="a"), line(UNREADABLE[kind], word="a"), line(CROSS, word="a"))
    lines(tmp_path / "b.ndjson", line(DOT, word="b"))
    source = quickdraw(tmp_path)
    with pytest.raises(UnreadableImageError) as caught:
        source.examples[1].image.read(16)
    assert len(str(caught.value)) > 10
    pack = build_pack(source, 16, tmp_path / "packs")
    assert [example.startswith("a/a.ndjson line 2: ") for example in pack.skipped] == [True]
    assert len(pack.labels) == 3


def test_a_line_without_a_drawing_is_skipped_and_counted(tmp_path):
    lines(tmp_path / "a.ndjson", line(BOX, word="a"), '{"word": "a"}\n')
    lines(tmp_path / "b.ndjson", line(DOT, word="b"))
    assert build_pack(quickdraw(tmp_path), 16, tmp_path / "packs").skipped == (
        "a/a.ndjson line 2: KeyError: 'drawing'",
    )


def test_lines_that_are_no_json_are_skipped_and_counted_in_the_notes(tmp_path):
    cut = line(CROSS, word="a")[:50]
    lines(tmp_path / "a.ndjson", line(BOX, word="a"), "[1, 2]\n", "[" * 100_000 + "\n", line(DOT, word="a"), cut)
    lines(tmp_path / "b.ndjson", line(DOT, word="b"))
    source = quickdraw(tmp_path)
    assert [example.image.name for example in source.examples] == [f"a.ndjson line {n}" for n in (1, 4)] + [
        "b.ndjson line 1"
    ]
    assert len(source.notes) == 1
    assert source.notes[0].startswith("a.ndjson: 3 of 5 lines are not drawings and were skipped: line 2 (")
    assert source.examples[1].image.read(16).shape == (16, 16, 3)


@pytest.mark.parametrize("content", ["", "\n\n", "no json\n", "x" * (MAX_LINE_BYTES + 1)])
def test_a_file_without_drawings_is_refused_and_named(tmp_path, content):
    lines(tmp_path / "a.ndjson", content)
    with pytest.raises(ValueError, match=r"a\.ndjson (holds no drawings|line 1 is longer than)"):
        quickdraw(tmp_path)


# The folder


def test_a_class_as_bitmaps_and_strokes_is_refused(tmp_path):
    bitmaps(tmp_path / "cat.npy", 2)
    bitmaps(tmp_path / "dog.npy", 2)
    lines(tmp_path / "cat.ndjson", line(BOX, word="cat"))
    with pytest.raises(ValueError, match=r"has cat as \.npy and as \.ndjson: these are the same drawings"):
        quickdraw(tmp_path)


def test_a_mix_of_bitmaps_and_strokes_is_noted(tmp_path):
    bitmaps(tmp_path / "cat.npy", 2)
    lines(tmp_path / "dog.ndjson", line(BOX, word="dog"))
    source = quickdraw(tmp_path)
    assert source.classes == ("cat", "dog")
    assert "Some classes are bitmaps and others strokes" in source.notes[0]


def test_other_files_hidden_files_and_links_that_lead_out_are_ignored(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    for name in ("cat.npy", "dog.npy", "._cat.npy"):
        bitmaps(root / name, 2)
    bitmaps(tmp_path / "secret.npy", 2)
    (root / "secret.npy").symlink_to(tmp_path / "secret.npy")
    (root / "folder.npy").mkdir()
    (root / "README.md").write_text("x")
    assert quickdraw(root).classes == ("cat", "dog")


def test_a_folder_without_drawings_is_refused_with_the_expected_layout(tmp_path):
    with pytest.raises(ValueError, match=r"holds no images as \.npy or \.ndjson files(?s:.*)DIR/cat\.npy"):
        quickdraw(tmp_path)


def test_a_single_class_is_refused(tmp_path):
    bitmaps(tmp_path / "cat.npy", 2)
    with pytest.raises(ValueError, match=r"one class only \(cat\)"):
        quickdraw(tmp_path)


def test_real_drawings_are_read(shared_data):
    source = quickdraw(shared_data / "quickdraw")
    assert len(source.classes) == 10
    assert len(source.examples) == 40_000
    pixels = source.examples[12_345].image.read(64)
    assert 0.02 < (pixels > 127).mean() < 0.5
