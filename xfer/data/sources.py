"""Sources: where images come from, as a list of (file, label, part). One function per layout."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xfer.data.images import SUFFIXES
from xfer.records import Part

PARTS: dict[str, Part] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Folder names that mark a part of the data."""


@dataclass(frozen=True)
class Example:
    """One labelled image before it is read."""

    path: Path
    label: int
    """Index into the source's class names."""
    part: Part | None = None
    """The part it was given for; None where the source leaves that to us."""


@dataclass(frozen=True)
class Source:
    """A data set before it is read: where its images are, and what they show."""

    name: str
    classes: tuple[str, ...]
    examples: tuple[Example, ...]
    notes: tuple[str, ...] = field(default=())
    """What a reader of the report should know about where the data came from."""


def folder(root: Path) -> Source:
    """Images in a folder per class: DIR/<class>/*.jpg, or DIR/train/<class>, DIR/val/<class>, DIR/test/<class>.

    A train folder alone is divided like a single folder. Classes are in alphabetical order. Hidden files, files that
    are no images by name and symbolic links that lead out of `root` are passed over; folders inside a class folder are
    searched too.

    Raises:
        ValueError: no such folder, no images, a single class, or a class without images in the part trained on.
    """
    root = _existing(root)
    given = {part: root / name for name, part in PARTS.items() if (root / name).is_dir()}
    if given and "train" not in given:
        raise ValueError(
            f"{root} has {_list(path.name for path in given.values())} but no train folder. Expected "
            f"{root}/train/<class>/*.jpg, and val and test beside it if you have them"
        )
    alone = root / "train" if given else root
    tops: dict[Part | None, Path] = dict(given.items()) if len(given) > 1 else {None: alone}
    classes = tuple(sorted({each.name for top in tops.values() for each in _subfolders(top)}))
    examples = [
        Example(path, label, part)
        for part, top in tops.items()
        for label, name in enumerate(classes)
        for path in _images(top / name, root)
    ]
    _check(root, classes, examples)
    return Source(root.name, classes, tuple(examples))


def stanford_cars(root: Path) -> Source:
    """Stanford Cars (Krause et al. 2013) as it was published: cars_train/, cars_test/ and devkit/*.mat.

    The class names come from devkit/cars_meta.mat, the training labels from devkit/cars_train_annos.mat and the test
    labels from cars_test_annos_withlabels.mat, beside the devkit or in it, which is where torchvision has it. Where
    those test labels or the photos they belong to are absent, a part of the training photos is held out instead. A
    folder named `stanford_cars` inside `root` is entered, as torchvision does. The boxes are not used.

    Raises:
        ValueError: a file is missing, or says something else than expected.
    """
    root = _existing(root)
    root = root / "stanford_cars" if (root / "stanford_cars" / "devkit").is_dir() else root
    missing = [
        name
        for name in ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_train")
        if not (root / name).exists()
    ]
    if missing:
        raise ValueError(f"{root} lacks {_list(missing)}.\n{STANFORD_CARS_LAYOUT}")
    classes = tuple(str(name) for name in _mat(root / "devkit" / "cars_meta.mat", "class_names"))
    test: list[Example] = []
    notes: tuple[str, ...] = ()
    examples = _cars(root / "devkit" / "cars_train_annos.mat", root / "cars_train", classes, "train")
    name = "cars_test_annos_withlabels.mat"
    labels = next((path for path in (root / name, root / "devkit" / name) if path.exists()), None)
    if labels and (root / "cars_test").is_dir():
        test = _cars(labels, root / "cars_test", classes, "test")
    else:
        examples = [Example(example.path, example.label) for example in examples]
        notes = (
            f"The official test labels ({name}) or photos (cars_test/) are absent: a stratified part of the official "
            f"training photos is held out as test part, so figures are not comparable with published ones.",
        )
    # A subset of the photos keeps the 196 class names of the devkit; classes that never occur are left out.
    used = sorted({example.label for example in (*examples, *test)})
    place = {label: index for index, label in enumerate(used)}
    kept = [Example(each.path, place[each.label], each.part) for each in (*examples, *test)]
    names = tuple(classes[label] for label in used)
    _check(root, names, kept)
    return Source(root.name, names, tuple(kept), notes)


STANFORD_CARS_LAYOUT = """Stanford Cars is expected in its original layout:
    DIR/cars_train/00001.jpg ...                the 8,144 training photos
    DIR/devkit/cars_meta.mat                    the 196 class names
    DIR/devkit/cars_train_annos.mat             the training labels
    DIR/cars_test/00001.jpg ...                 the 8,041 test photos, and
    DIR/cars_test_annos_withlabels.mat          their labels; without these a part of the training photos is held out"""


SOURCES: dict[str, Callable[[Path], Source]] = {f.__name__: f for f in (folder, stanford_cars)}


def _cars(annotations: Path, photos: Path, classes: tuple[str, ...], part: Part) -> list[Example]:
    rows = _mat(annotations, "annotations")
    try:
        labelled = [(photos / Path(str(row["fname"])).name, int(row["class"]) - 1) for row in rows]
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise ValueError(f"{annotations} holds no fields `fname` and `class` as Stanford Cars has them") from error
    beyond = [label + 1 for _, label in labelled if not 0 <= label < len(classes)]
    if beyond:
        raise ValueError(f"{annotations} names class {beyond[0]}, but cars_meta.mat has {len(classes)} classes")
    return [Example(path, label, part) for path, label in labelled if path.exists()]


def _mat(path: Path, key: str) -> list[Any]:
    from scipy.io import loadmat  # only this source needs it

    try:
        return list(loadmat(path, squeeze_me=True)[key].reshape(-1))
    except Exception as error:  # scipy raises anything from TypeError to zlib.error on a damaged file
        raise ValueError(f"{path} is no MATLAB file with `{key}` as Stanford Cars has it: {error}") from error


def _existing(root: Path) -> Path:
    if not root.exists():
        raise ValueError(f"there is no folder {root}")
    if not root.is_dir():
        raise ValueError(f"{root} is a file; the folder that holds the images is wanted")
    return root.resolve()


def _subfolders(top: Path) -> list[Path]:
    return sorted(each for each in top.iterdir() if each.is_dir() and not each.name.startswith("."))


def _images(top: Path, root: Path) -> list[Path]:
    files = (path for path in sorted(top.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file())
    return [path for path in files if not path.name.startswith(".") and path.resolve().is_relative_to(root)]


def _check(root: Path, classes: tuple[str, ...], examples: list[Example]) -> None:
    if not examples:
        raise ValueError(
            f"{root} holds no images in class folders. Expected {root}/<class>/*.jpg, or {root}/train/<class>/*.jpg "
            f"and val, test beside it. Read are: {' '.join(sorted(SUFFIXES))}"
        )
    if len(classes) < 2:
        raise ValueError(f"{root} holds one class only ({classes[0]}): there is nothing to tell apart")
    trained = {example.label for example in examples if example.part in (None, "train")}
    empty = [name for label, name in enumerate(classes) if label not in trained]
    if empty:
        raise ValueError(f"{root}: no training images for {_list(empty)}. Add some, or remove the empty folder")


def _list(names: Iterable[object]) -> str:
    words = [str(name) for name in names]
    shown = ", ".join(words[:5])
    return shown if len(words) <= 5 else f"{shown} and {len(words) - 5} more"
