"""Layout of QuickDraw as Google published it: bitmaps in .npy files or strokes in .ndjson files."""

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
from xfer.data.image_formats import UnreadableImageError
from xfer.data.images import LazyImage, to_square
from xfer.data.source import Example, Source, preview, validate_source
from xfer.data.uris import DataUri, resolve_folder
from xfer.data.value_ranges import NO_RANGES, ValueRanges

BITMAP_SIZE = 28
"""Side of a published bitmap in pixels."""
MAX_COORDINATE = 255
"""The largest coordinate of a simplified drawing; the smallest is 0."""
LINE_WIDTH, MARGIN = 16, 16
"""Width of a line, and of the margin around a drawing, in units of its coordinates. Strokes then look like the
published bitmaps: at 28 px, the first and last pixel of the longer side are 25 apart, and lines are 1.5 px wide."""
CANVAS_SIZE = MAX_COORDINATE + 1 + LINE_WIDTH + 2 * MARGIN
SUPERSAMPLING = 4
"""Factor by which a drawing is rendered larger, up to 2,048 px, and then reduced, since Pillow does not antialias."""
MAX_LINE_BYTES = 2**20
"""Maximum bytes of a drawing in an .ndjson file: hundreds of times the largest published one."""
FILE_PREFIXES = ("full_numpy_bitmap_", "full_simplified_", "full%2Fnumpy_bitmap%2F", "full%2Fsimplified%2F")
"""Prefixes of the names of files that were downloaded from the published bucket by hand."""

QUICKDRAW_LAYOUT = """QuickDraw is expected as it was published, a file for each class:
    DIR/cat.npy, DIR/dog.npy ...                bitmaps, uint8 [drawings, 784], or
    DIR/cat.ndjson, DIR/dog.ndjson ...          simplified drawings, {"word": "cat", "drawing": [[xs, ys], ...]} a line
If the folder holds photos in class folders, give --source folder"""


@dataclass(frozen=True, slots=True, eq=False)
class BitmapDrawing:
    """A drawing that is a row of an array, white on black."""

    rows: NDArray[np.uint8]
    """uint8 [drawings, 784], memory-mapped and shared by all drawings of the file."""
    index: int
    file: str

    @property
    def name(self) -> str:
        """The file's name and the row."""
        return f"{self.file} row {self.index}"

    def digest(self) -> str:
        """Return the hash of the row."""
        return hashlib.sha256(self.rows[self.index].tobytes()).hexdigest()

    def encoded(self) -> None:
        """Return None: a drawing has 8 bits and no transparency."""

    def read(self, size: int, ranges: ValueRanges = NO_RANGES) -> NDArray[np.uint8]:
        """Return the resized drawing; a blank one is unreadable."""
        pixels = np.asarray(self.rows[self.index]).reshape(BITMAP_SIZE, BITMAP_SIZE)
        if not pixels.any():
            raise UnreadableImageError("there is no stroke in it")
        return to_square(Image.fromarray(pixels), size)


@dataclass(frozen=True, slots=True)
class StrokeDrawing:
    """A drawing that is a line of an .ndjson file: lists of points, rendered white on black."""

    path: Path
    number: int
    """Number of the line, from 1."""
    offset: int
    """Offset of the line in the file, in bytes."""

    @property
    def name(self) -> str:
        """The file's name and the line."""
        return f"{self.path.name} line {self.number}"

    def digest(self) -> str:
        """Return the hash of the strokes, without metadata such as time and country."""
        line = self._line()
        try:
            return hashing.sha256_json(json.loads(line)["drawing"])
        except (ValueError, KeyError, TypeError, RecursionError):  # unreadable drawings need distinct digests too
            return hashlib.sha256(line).hexdigest()

    def encoded(self) -> None:
        """Return None: a drawing has 8 bits and no transparency."""

    def read(self, size: int, ranges: ValueRanges = NO_RANGES) -> NDArray[np.uint8]:
        """Return the rendered strokes; a drawing without strokes, or with points outside 0..255, is unreadable."""
        try:
            strokes = _parse_strokes(json.loads(self._line())["drawing"])
        except UnreadableImageError:
            raise
        except Exception as error:
            raise UnreadableImageError(f"{type(error).__name__}: {error}"[:200]) from error
        return to_square(render_strokes(strokes, SUPERSAMPLING * min(size, 512)), size)

    def _line(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.readline(MAX_LINE_BYTES)


def is_quickdraw(path: Path) -> bool:
    """Return whether a path is a folder with files of drawings."""
    return path.is_dir() and any(file.suffix.lower() in READERS and file.is_file() for file in path.iterdir())


def quickdraw(uri: DataUri) -> Source:
    """Read QuickDraw (Ha and Eck 2017): DIR/<class>.npy with bitmaps, DIR/<class>.ndjson with strokes.

    The data set has 50 million drawings in 345 classes; any of its files can be read. The class of a bitmap is its
    file's name. The class of a line of strokes is its `word`, or its file's name if it has none. Drawings that the game
    did not recognize are included. The published raw strokes, with a third list for the time, are not supported.

    Lines that are not drawings are skipped and counted in the notes. The data set has no parts.

    Raises:
        ValueError: no such folder or files, a file with other content, or a class as bitmaps and as strokes.
    """
    root = resolve_folder(uri)
    files = [path for path in sorted(root.iterdir()) if path.suffix.lower() in READERS and _is_visible_in(path, root)]
    drawings: dict[str, list[LazyImage]] = {}
    suffixes_of: dict[str, set[str]] = {}
    notes: list[str] = []
    for path in files:
        for name, drawing in READERS[path.suffix.lower()](path, notes):
            drawings.setdefault(name, []).append(drawing)
            suffixes_of.setdefault(name, set()).add(path.suffix.lower())
    both = [name for name, suffixes in suffixes_of.items() if len(suffixes) > 1]
    if both:
        raise ValueError(
            f"{root} has {preview(both)} as .npy and as .ndjson: these are the same drawings, so copies would be in "
            f"the training set and in the test set. Move the files of one format away"
        )
    if len(set().union(*suffixes_of.values())) > 1:
        notes.append("Some classes are bitmaps and others strokes: part of the difference is how they were drawn.")
    classes = tuple(sorted(drawings))
    examples = tuple(Example(drawing, label) for label, name in enumerate(classes) for drawing in drawings[name])
    source = Source(root.name, classes, examples, tuple(notes), unit="images")
    return validate_source(source, root, f"as .npy or .ndjson files.\n{QUICKDRAW_LAYOUT}")


def render_strokes(strokes: list[NDArray[np.float64]], side: int) -> Image.Image:
    """Render strokes as centered white lines with round ends on black.

    Args:
        strokes: coordinates of the points of each stroke, [2, points] in 0..255.
        side: side of the image in pixels.

    Returns:
        An image of mode L.
    """
    image = Image.new("L", (side, side))
    pen = ImageDraw.Draw(image)
    unit = side / CANVAS_SIZE
    points = np.concatenate(strokes, axis=1)
    center = (points.min(axis=1) + points.max(axis=1)) / 2
    radius = LINE_WIDTH / 2 * unit
    for stroke in strokes:
        line = [(float(x), float(y)) for x, y in (stroke.T - center) * unit + side / 2]
        pen.line(line, fill=255, width=max(1, round(2 * radius)), joint="curve")
        for x, y in (line[0], line[-1]):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return image


def _read_bitmaps(path: Path, notes: list[str]) -> Iterator[tuple[str, LazyImage]]:
    try:
        # np.load would also open archives and, if allowed, pickles.
        rows = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy evaluates the header, so a damaged one raises many types of errors
        raise ValueError(f"{path} is not a complete .npy file of numbers: {error}.\n{QUICKDRAW_LAYOUT}") from error
    if rows.dtype != np.uint8 or rows.shape[1:] not in ((BITMAP_SIZE * BITMAP_SIZE,), (BITMAP_SIZE, BITMAP_SIZE)):
        raise ValueError(
            f"{path} holds {rows.dtype} {list(rows.shape)}; "
            f"bitmaps are uint8 [drawings, {BITMAP_SIZE * BITMAP_SIZE}].\n{QUICKDRAW_LAYOUT}"
        )
    if not len(rows):
        raise ValueError(f"{path} holds no drawings. Download it again, or remove it")
    return ((_class_name(path), BitmapDrawing(rows, index, path.name)) for index in range(len(rows)))


def _read_strokes(path: Path, notes: list[str]) -> Iterator[tuple[str, LazyImage]]:
    number = offset = drawings = 0
    problems: list[str] = []
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"{path} line {number} is longer than {MAX_LINE_BYTES:,} bytes.\n{QUICKDRAW_LAYOUT}")
            try:
                if line.strip():
                    name = str(json.loads(line).get("word") or _class_name(path))
                    drawings += 1
                    yield name, StrokeDrawing(path, number, offset)
            except (ValueError, AttributeError, RecursionError) as error:
                problems.append(f"line {number} ({str(error)[:100]})")
            offset += len(line)
    if not drawings:
        raise ValueError(f"{path} holds no drawings: {preview(problems) or 'it is empty'}.\n{QUICKDRAW_LAYOUT}")
    if problems:
        notes.append(
            f"{path.name}: {len(problems)} of {number} lines are not drawings and were skipped: {preview(problems)}."
        )


READERS: dict[str, Callable[[Path, list[str]], Iterator[tuple[str, LazyImage]]]] = {
    ".npy": _read_bitmaps,
    ".ndjson": _read_strokes,
}
"""Readers by suffix of the file. They yield each drawing with its class name, and may add to the notes."""


def _parse_strokes(drawing: Any) -> list[NDArray[np.float64]]:
    if not isinstance(drawing, list) or not drawing:
        raise UnreadableImageError("there is no stroke in it")
    if any(len(stroke) != 2 for stroke in drawing):
        raise UnreadableImageError("a stroke is not [xs, ys]: only simplified drawings are supported, not raw ones")
    strokes = [np.array(stroke, dtype=np.float64) for stroke in drawing]
    if any(stroke.ndim != 2 or not stroke.shape[1] for stroke in strokes):
        raise UnreadableImageError("a stroke is not [xs, ys] with at least one point")
    if not all(((stroke >= 0) & (stroke <= MAX_COORDINATE)).all() for stroke in strokes):
        raise UnreadableImageError(
            f"a point is outside 0..{MAX_COORDINATE}: only simplified drawings are supported, not raw ones"
        )
    return strokes


def _class_name(path: Path) -> str:
    for prefix in FILE_PREFIXES:
        if path.stem.startswith(prefix) and path.stem != prefix:
            return path.stem.removeprefix(prefix)
    return path.stem


def _is_visible_in(path: Path, root: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.resolve().is_relative_to(root)
