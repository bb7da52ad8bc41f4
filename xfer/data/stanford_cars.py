"""Cars: Stanford Cars in its original layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xfer.data.images import ImageFile
from xfer.data.source import Example, Source, filter_labels, preview, validate_source
from xfer.data.uris import DataUri, resolve_folder
from xfer.records import Part

STANFORD_CARS_LAYOUT = """Stanford Cars is expected in its original layout:
    DIR/cars_train/00001.jpg ...                the 8,144 training photos
    DIR/devkit/cars_meta.mat                    the 196 class names
    DIR/devkit/cars_train_annos.mat             the training labels
    DIR/cars_test/00001.jpg ...                 the 8,041 test photos, and
    DIR/cars_test_annos_withlabels.mat          their labels; without these a part of the training photos is held out"""


def stanford_cars(address: DataUri) -> Source:
    """Stanford Cars (Krause et al. 2013) as it was published: cars_train/, cars_test/ and devkit/*.mat.

    The class names come from devkit/cars_meta.mat, the training labels from devkit/cars_train_annos.mat and the test
    labels from cars_test_annos_withlabels.mat, beside the devkit or in it, which is where torchvision has it. Where
    those test labels or the photos they belong to are absent, a part of the training photos is held out instead. A
    folder named `stanford_cars` inside DIR is entered, as torchvision does. The boxes are not used.

    Raises:
        ValueError: a file is missing, or says something else than expected.
    """
    root = resolve_folder(address)
    root = root / "stanford_cars" if (root / "stanford_cars" / "devkit").is_dir() else root
    missing = [
        name
        for name in ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_train")
        if not (root / name).exists()
    ]
    if missing:
        raise ValueError(f"{root} lacks {preview(missing)}.\n{STANFORD_CARS_LAYOUT}")
    classes = tuple(str(name) for name in _mat(root / "devkit" / "cars_meta.mat", "class_names"))
    test: list[Example] = []
    notes: tuple[str, ...] = ()
    examples = _cars(root / "devkit" / "cars_train_annos.mat", root / "cars_train", classes, "train")
    name = "cars_test_annos_withlabels.mat"
    labels = next((path for path in (root / name, root / "devkit" / name) if path.exists()), None)
    if labels and (root / "cars_test").is_dir():
        test = _cars(labels, root / "cars_test", classes, "test")
    else:
        examples = [Example(example.image, example.label) for example in examples]
        notes = (
            f"The official test labels ({name}) or photos (cars_test/) are absent: a stratified part of the official "
            f"training photos is held out as test part, so figures are not comparable with published ones.",
        )
    source = Source(root.name, classes, (*examples, *test), notes)
    # A subset of the photos keeps the 196 class names of the devkit; classes that never occur are left out.
    source = filter_labels(source, {example.label for example in source.examples})
    return validate_source(source, root, f"that the devkit names.\n{STANFORD_CARS_LAYOUT}")


def _cars(annotations: Path, photos: Path, classes: tuple[str, ...], part: Part) -> list[Example]:
    rows = _mat(annotations, "annotations")
    try:
        labelled = [(photos / Path(str(row["fname"])).name, int(row["class"]) - 1) for row in rows]
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise ValueError(f"{annotations} holds no fields `fname` and `class` as Stanford Cars has them") from error
    beyond = [label + 1 for _, label in labelled if not 0 <= label < len(classes)]
    if beyond:
        raise ValueError(f"{annotations} names class {beyond[0]}, but cars_meta.mat has {len(classes)} classes")
    return [Example(ImageFile(path), label, part) for path, label in labelled if path.exists()]


def _mat(path: Path, key: str) -> list[Any]:
    from scipy.io import loadmat  # only this source needs it

    try:
        return list(loadmat(path, squeeze_me=True)[key].reshape(-1))
    except Exception as error:  # scipy raises anything from TypeError to zlib.error on a damaged file
        raise ValueError(f"{path} is no MATLAB file with `{key}` as Stanford Cars has it: {error}") from error
