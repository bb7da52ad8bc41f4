"""Drawings: QuickDraw as Google published it, bitmaps in .npy files or strokes in .ndjson files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from xfer import hashing
from xfer.data.images import LazyImage, UnreadableImageError, to_square
from xfer.data.source import Example, Source, preview, validate_source
from xfer.data.uris import DataUri, resolve_folder

BITMAP_SIZE = 28
"""Of a published bitmap, in pixels."""
MAX_COORDINATE = 255
"""The largest coordinate of a simplified drawing; the smallest is 0."""
LINE_WIDTH, MARGIN = 16, 16
"""Width of a line and margin around the drawing in units of its coordinates. With them strokes come out as the
published bitmaps have them: at 28 px the first and the last pixel of the longer side are 25 apart, and lines are 1.5 px
wide."""
CANVAS_SIZE = MAX_COORDINATE + 1 + LINE_WIDTH + 2 * MARGIN
SUPERSAMPLING = 4
"""Pillow draws without smoothing; so it draws this much larger, up to 2,048 px, and the drawing is reduced."""
MAX_LINE_BYTES = 2**20
"""Bytes of one drawing in an .ndjson file: hundreds of times what any published drawing needs."""
FILE_PREFIXES = ("full_numpy_bitmap_", "full_simplified_", "full%2Fnumpy_bitmap%2F", "full%2Fsimplified%2F")
"""What a file is called where it was fetched from the published bucket by hand."""

QUICKDRAW_LAYOUT = """QuickDraw is expected as it was published, a file for each class:
    DIR/cat.npy, DIR/dog.npy ...                bitmaps, uint8 [drawings, 784], or
    DIR/cat.ndjson, DIR/dog.ndjson ...          simplified drawings, {"word": "cat", "drawing": [[xs, ys], ...]} a line
Where the folder holds photos in class folders instead, say that the source is folder"""


@dataclass(frozen=True, slots=True, eq=False)
class BitmapDrawing:
    """A drawing as a row of an array, white on black."""

    rows: NDArray[np.uint8]
    """[drawings, 784], memory-mapped and shared by all drawings of the file."""
    index: int
    file: str

    @property
    def name(self) -> str:
        """The file's name, and which row."""
        return f"{self.file} row {self.index}"

    def digest(self) -> str:
        """The hash of the row."""
        return hashlib.sha256(self.rows[self.index].tobytes()).hexdigest()

    def read(self, size: int) -> NDArray[np.uint8]:
        """The drawing enlarged; one without a stroke is unreadable."""
        pixels = np.asarray(self.rows[self.index]).reshape(BITMAP_SIZE, BITMAP_SIZE)
        if not pixels.any():
            raise UnreadableImageError("there is no stroke in it")
        return to_square(Image.fromarray(pixels), size)


@dataclass(frozen=True, slots=True)
class StrokeDrawing:
    """A drawing as a line of an .ndjson file: lists of points, white on black once they are drawn."""

    path: Path
    number: int
    """Which line, counted from 1."""
    offset: int
    """Where the line begins in the file, in bytes."""

    @property
    def name(self) -> str:
        """The file's name, and which line."""
        return f"{self.path.name} line {self.number}"

    def digest(self) -> str:
        """The hash of the strokes, without who drew them when."""
        line = self._line()
        try:
            return hashing.sha256_json(json.loads(line)["drawing"])
        except (ValueError, KeyError, TypeError, RecursionError):  # unreadable, but as itself and no other
            return hashlib.sha256(line).hexdigest()

    def read(self, size: int) -> NDArray[np.uint8]:
        """The strokes drawn; a drawing without any, or with points beyond 0..255, is unreadable."""
        try:
            strokes = _strokes(json.loads(self._line())["drawing"])
        except UnreadableImageError:
            raise
        except Exception as error:
            raise UnreadableImageError(f"{type(error).__name__}: {error}"[:200]) from error
        return to_square(render_strokes(strokes, SUPERSAMPLING * min(size, 512)), size)

    def _line(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.readline(MAX_LINE_BYTES)


def quickdraw(address: DataUri) -> Source:
    """QuickDraw (Ha and Eck 2017) as it was published: DIR/<class>.npy with bitmaps, DIR/<class>.ndjson with strokes.

    50 million drawings in 345 classes, of which a few files will do. A bitmap's class is its file's name; a line of
    strokes says its own (`word`), and is of the file's name where it does not. Drawings that the game did not
    recognise are among them. The published raw strokes, with a third list for the time, are not read.

    Lines that are no drawings are skipped and counted in the notes. There are no parts: a test part is drawn.

    Raises:
        ValueError: no such folder or files, a file that holds something else, a class in both forms.
    """
    root = resolve_folder(address)
    files = [path for path in sorted(root.iterdir()) if path.suffix.lower() in READERS and _is_ours(path, root)]
    found: dict[str, list[LazyImage]] = {}
    forms: dict[str, set[str]] = {}
    notes: list[str] = []
    for path in files:
        for word, picture in READERS[path.suffix.lower()](path, notes):
            found.setdefault(word, []).append(picture)
            forms.setdefault(word, set()).add(path.suffix.lower())
    both = [word for word, suffixes in forms.items() if len(suffixes) > 1]
    if both:
        raise ValueError(
            f"{root} has {preview(both)} as .npy and as .ndjson: these are the same drawings, and one would stand in "
            f"the training part and in the test part. Move the files of one form away"
        )
    if len({suffix for suffixes in forms.values() for suffix in suffixes}) > 1:
        notes.append("Some classes are bitmaps and others strokes: part of the difference is how they were drawn.")
    classes = tuple(sorted(found))
    examples = tuple(Example(picture, label) for label, word in enumerate(classes) for picture in found[word])
    return validate_source(
        Source(root.name, classes, examples, tuple(notes)), root, f"as .npy or .ndjson files.\n{QUICKDRAW_LAYOUT}"
    )


def render_strokes(strokes: list[NDArray[np.float64]], side: int) -> Image.Image:
    """Strokes, each [2, points] in 0..255, as white lines with round ends on black, centred, `side` px in grey."""
    image = Image.new("L", (side, side))
    pen = ImageDraw.Draw(image)
    unit = side / CANVAS_SIZE
    points = np.concatenate(strokes, axis=1)
    middle = (points.min(axis=1) + points.max(axis=1)) / 2
    radius = LINE_WIDTH / 2 * unit
    for stroke in strokes:
        path = [(float(x), float(y)) for x, y in (stroke.T - middle) * unit + side / 2]
        pen.line(path, fill=255, width=max(1, round(2 * radius)), joint="curve")
        for x, y in (path[0], path[-1]):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return image


def _bitmaps(path: Path, notes: list[str]) -> Iterator[tuple[str, LazyImage]]:
    try:
        # Not np.load, which opens archives and, where that is not forbidden, pickles.
        rows = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is no whole .npy file of numbers: {error}.\n{QUICKDRAW_LAYOUT}") from error
    if rows.dtype != np.uint8 or rows.shape[1:] not in ((BITMAP_SIZE * BITMAP_SIZE,), (BITMAP_SIZE, BITMAP_SIZE)):
        raise ValueError(
            f"{path} holds {rows.dtype} {list(rows.shape)}; bitmaps are uint8 [drawings, {BITMAP_SIZE * BITMAP_SIZE}].\n"
            f"{QUICKDRAW_LAYOUT}"
        )
    if not len(rows):
        raise ValueError(f"{path} holds no drawings. Fetch it again, or remove it")
    return ((_word(path), BitmapDrawing(rows, index, path.name)) for index in range(len(rows)))


def _drawings(path: Path, notes: list[str]) -> Iterator[tuple[str, LazyImage]]:
    number = offset = kept = 0
    wrong: list[str] = []
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"{path} line {number} is longer than {MAX_LINE_BYTES:,} bytes.\n{QUICKDRAW_LAYOUT}")
            try:
                if line.strip():
                    word = str(json.loads(line).get("word") or _word(path))
                    kept += 1
                    yield word, StrokeDrawing(path, number, offset)
            except (ValueError, AttributeError, RecursionError) as error:
                wrong.append(f"line {number} ({str(error)[:100]})")
            offset += len(line)
    if not kept:
        raise ValueError(f"{path} holds no drawings: {preview(wrong) or 'it is empty'}.\n{QUICKDRAW_LAYOUT}")
    if wrong:
        notes.append(f"{path.name}: skipped as no drawings were {len(wrong)} of {number} lines: {preview(wrong)}.")


READERS: dict[str, Callable[[Path, list[str]], Iterator[tuple[str, LazyImage]]]] = {
    ".npy": _bitmaps,
    ".ndjson": _drawings,
}
"""By a file's suffix: every drawing in it with its class; what a reader should know is added to the notes."""


def _strokes(drawing: Any) -> list[NDArray[np.float64]]:
    if not isinstance(drawing, list) or not drawing:
        raise UnreadableImageError("there is no stroke in it")
    if any(len(stroke) != 2 for stroke in drawing):
        raise UnreadableImageError("a stroke is not [xs, ys]: simplified drawings are read, raw ones are not")
    strokes = [np.array(stroke, dtype=np.float64) for stroke in drawing]
    if any(stroke.ndim != 2 or not stroke.shape[1] for stroke in strokes):
        raise UnreadableImageError("a stroke is not [xs, ys] with a point at least")
    if not all(((stroke >= 0) & (stroke <= MAX_COORDINATE)).all() for stroke in strokes):
        raise UnreadableImageError(
            f"a point lies beyond 0..{MAX_COORDINATE}: simplified drawings are read, raw ones are not"
        )
    return strokes


def _word(path: Path) -> str:
    for prefix in FILE_PREFIXES:
        if path.stem.startswith(prefix) and path.stem != prefix:
            return path.stem.removeprefix(prefix)
    return path.stem


def _is_ours(path: Path, root: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.resolve().is_relative_to(root)
