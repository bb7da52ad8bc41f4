"""Original layout of Stanford Cars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xfer.data.file_gate import check_file, check_mat_size, usable_files
from xfer.data.images import ImageFile
from xfer.data.mat_file import read_mats
from xfer.data.source import Example, Source, filter_labels, preview, validate_source
from xfer.data.uris import DataUri, resolve_folder
from xfer.records import Part

MAX_MAT_BYTES = 64 * 2**20
"""Maximum size of a file of labels, compressed or not; the published ones have less than 1 MiB."""

STANFORD_CARS_LAYOUT = """Stanford Cars is expected in its original layout:
    DIR/cars_train/00001.jpg ...                the 8,144 training photos
    DIR/devkit/cars_meta.mat                    the 196 class names
    DIR/devkit/cars_train_annos.mat             the training labels
    DIR/cars_test/00001.jpg ...                 the 8,041 test photos, and
    DIR/cars_test_annos_withlabels.mat          their labels; without them a part of the training photos is held out"""


def is_stanford_cars(path: Path) -> bool:
    """Return whether a path is a folder with the devkit of Stanford Cars."""
    return any((path / subfolder / "devkit" / "cars_meta.mat").is_file() for subfolder in ("", "stanford_cars"))


def stanford_cars(uri: DataUri) -> Source:
    """Read Stanford Cars (Krause et al. 2013): cars_train/, cars_test/ and devkit/*.mat.

    The class names are in devkit/cars_meta.mat, the training labels in devkit/cars_train_annos.mat, and the test labels
    in cars_test_annos_withlabels.mat, next to the devkit or in it (as torchvision has it). If the test labels or photos
    are missing, part of the training photos is held out instead. A folder `stanford_cars` inside DIR is entered, as by
    torchvision. The bounding boxes are not used.

    Raises:
        ValueError: a file is missing or has unexpected content.
    """
    root = resolve_folder(uri)
    root = root / "stanford_cars" if (root / "stanford_cars" / "devkit").is_dir() else root
    missing = [
        name
        for name in ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_train")
        if not (root / name).exists()
    ]
    if missing:
        raise ValueError(f"{root} lacks {preview(missing)}.\n{STANFORD_CARS_LAYOUT}")
    meta, train = root / "devkit" / "cars_meta.mat", root / "devkit" / "cars_train_annos.mat"
    name = "cars_test_annos_withlabels.mat"
    labels = next((path for path in (root / name, root / "devkit" / name) if path.exists()), None)
    labels = labels if (root / "cars_test").is_dir() else None
    variables = {meta: "class_names", train: "annotations"} | ({labels: "annotations"} if labels else {})
    for file in variables:
        check_file(file, root, MAX_MAT_BYTES)
        check_mat_size(file, MAX_MAT_BYTES)
    contents = read_mats(variables)
    classes = tuple(str(name) for name in contents[meta])
    test: list[Example] = []
    notes: tuple[str, ...] = ()
    examples = _examples(train, contents[train], root / "cars_train", classes, "train")
    if labels:
        test = _examples(labels, contents[labels], root / "cars_test", classes, "test")
    else:
        examples = [Example(example.image, example.label) for example in examples]
        notes = (
            f"The official test labels ({name}) or photos (cars_test/) are missing: a stratified part of the official "
            f"training photos is held out as test part, so results are not comparable with published ones.",
        )
    source = usable_files(Source(root.name, classes, (*examples, *test), notes, unit="rows"), root)
    # The devkit always names 196 classes. A subset of the photos may have fewer.
    source = filter_labels(source, {example.label for example in source.examples})
    return validate_source(source, root, f"that the devkit names.\n{STANFORD_CARS_LAYOUT}")


def _examples(annotations: Path, rows: list[Any], photos: Path, classes: tuple[str, ...], part: Part) -> list[Example]:
    try:
        labelled = [(photos / Path(str(row["fname"])).name, int(row["class"]) - 1) for row in rows]
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise ValueError(f"{annotations} lacks the fields `fname` and `class` of Stanford Cars") from error
    unknown = [label + 1 for _, label in labelled if not 0 <= label < len(classes)]
    if unknown:
        raise ValueError(f"{annotations} names class {unknown[0]}, but cars_meta.mat has {len(classes)} classes")
    return [Example(ImageFile(path), label, part) for path, label in labelled]
