"""Download a copy of Stanford Cars from the Hugging Face hub and write it in the original layout."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xfer.data.image_formats import IMAGE_FORMATS
from xfer.data.stanford_cars import STANFORD_CARS_LAYOUT
from xfer.storage.atomic import atomic_folder

DEFAULT_REPO = "tanganke/stanford_cars"
"""Default repository: the official parts with all 196 class names, and noisy versions that are not downloaded."""
PINNED_REVISIONS = {DEFAULT_REPO: "9abf6cf7d6dfa7b95152a0d6e791ea9435b47a40"}
"""Commit by repository, so that every download has the same photos. Of other repositories the latest is used."""
PHOTO_FOLDERS = {"train": "cars_train", "test": "cars_test"}
ANNOTATION_FILES = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
ANNOTATION_FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
"""Fields of an annotation, in the published order."""
SUFFIX_BY_FORMAT = {"PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "GIF": ".gif", "TIFF": ".tif", "PPM": ".ppm"}
"""Suffix by format, for photos that are not JPEG."""
MANUAL_DOWNLOAD_HINT = f" Or put the original archive in place.\n{STANFORD_CARS_LAYOUT}"
"""Hint for errors of the hub."""


@dataclass(frozen=True)
class HubCopy:
    """A downloaded copy of Stanford Cars."""

    name: str
    """Repository and commit."""
    classes: tuple[str, ...]
    parts: Mapping[str, Iterable[dict[str, Any]]]
    """Photos of each part: `image` as the bytes of a file, `label` from 0."""
    expected_counts: Mapping[str, int]
    """Number of photos of each part, if the copy states it."""


def download_stanford_cars(root: Path, repo: str = DEFAULT_REPO, say: Callable[[str], None] = lambda _: None) -> None:
    """Download Stanford Cars (Krause et al. 2013) from the hub and write it to `root` in its original layout.

    The download of 2 GB goes to the cache of the `datasets` library, where a second attempt finds the files of the
    first; another 2 GB are written. `root` appears at the end, complete or not at all. The photos keep their bytes and
    are numbered in the order of the copy. Copies have no bounding boxes, so each box is the whole photo.

    Args:
        root: the folder to create; it must not exist or be empty.
        repo: owner/name of a copy in parquet files with parts `train` and `test` and columns `image` and `label`.
        say: called with a line of text at each step.

    Raises:
        ValueError: the library is missing, the hub or the copy cannot be reached, or the copy is not as described.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"{root} exists already. Move it away, or download to another folder")
    copy = _download(repo, say)
    with _complete_folder(root) as folder:
        (folder / "devkit").mkdir()
        for part, photos in copy.parts.items():
            say(f"writing the {part} photos")
            (folder / PHOTO_FOLDERS[part]).mkdir()
            rows = [
                _write_photo(folder / PHOTO_FOLDERS[part], number, row, copy)
                for number, row in enumerate(photos, start=1)
            ]
            expected = copy.expected_counts.get(part, len(rows))
            if len(rows) != expected or not rows:
                raise ValueError(f"{copy.name} has {len(rows):,} {part} photos, but should have {expected:,}")
            annotations = np.empty((1, len(rows)), dtype=[(field, object) for field in ANNOTATION_FIELDS])
            annotations[0] = rows
            _save_mat(folder / ANNOTATION_FILES[part], annotations=annotations)
        _save_mat(folder / "devkit" / "cars_meta.mat", class_names=np.array([copy.classes], dtype=object))
        (folder / "README.txt").write_text(
            f"Stanford Cars from the hub's copy {copy.name}; each box is the whole photo\n", encoding="utf-8"
        )
    say(f"Stanford Cars is in {root}")


def import_datasets(purpose: str) -> Any:
    """Import the `datasets` library, which is an optional dependency.

    Args:
        purpose: beginning of the error message, up to "the datasets library".

    Raises:
        ValueError: it is not installed.
    """
    try:
        import datasets  # only data from the hub need it
    except ImportError as error:
        raise ValueError(f"{purpose} the datasets library: pip install 'xfer[hub]'") from error
    return datasets


@contextmanager
def translate_hub_errors(repo: str, hint: str = "") -> Iterator[None]:
    """Turn any error of the hub's client into a ValueError that says what to do and ends with `hint`."""
    try:
        yield
    except Exception as error:  # the hub's client passes on errors of many libraries
        raise ValueError(
            f"{repo} cannot be downloaded from the hub: {type(error).__name__}: {error}\n"
            f"Check the network, the name, and whether HF_HUB_OFFLINE is set, then run the command again: files that "
            f"have been downloaded are not downloaded again.{hint}"
        ) from error


def _download(repo: str, say: Callable[[str], None]) -> HubCopy:
    datasets = import_datasets("downloading needs")
    with translate_hub_errors(repo, MANUAL_DOWNLOAD_HINT):
        say(f"looking up {repo} on the hub")
        builder = datasets.load_dataset_builder(repo, revision=PINNED_REVISIONS.get(repo))
    urls = {part: list(files) for part, files in (builder.config.data_files or {}).items()}
    missing = [part for part in PHOTO_FOLDERS if not urls.get(part)]
    if missing or not all(file.endswith(".parquet") for part in PHOTO_FOLDERS for file in urls[part]):
        raise ValueError(f"{repo} should have parquet files for train and test; its parts are {', '.join(urls) or '-'}")
    with translate_hub_errors(repo, MANUAL_DOWNLOAD_HINT):
        say(f"downloading {sum(len(urls[part]) for part in PHOTO_FOLDERS)} files, once")
        files = datasets.DownloadManager(dataset_name=repo).download({part: urls[part] for part in PHOTO_FOLDERS})
        # Without streaming, all photos would be written to a second cache first.
        table = datasets.load_dataset("parquet", data_files=files, features=builder.info.features, streaming=True)
        features = {part: table[part].features or {} for part in PHOTO_FOLDERS}
    classes = {part: getattr(features[part].get("label"), "names", None) for part in PHOTO_FOLDERS}
    if (
        not classes["train"]
        or classes["train"] != classes["test"]
        or any("image" not in features[p] for p in PHOTO_FOLDERS)
    ):
        columns = ", ".join(f"{name}: {type(kind).__name__}" for name, kind in features["train"].items())
        raise ValueError(f"{repo} should have the columns image: Image and label: ClassLabel; it has {columns}")
    parts = {
        part: _iter_rows(repo, table[part].cast_column("image", datasets.Image(decode=False))) for part in PHOTO_FOLDERS
    }
    expected_counts = {part: split.num_examples for part, split in (builder.info.splits or {}).items()}
    return HubCopy(f"{repo} at {builder.hash}", tuple(classes["train"]), parts, expected_counts)


def _iter_rows(repo: str, photos: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    with translate_hub_errors(repo, MANUAL_DOWNLOAD_HINT):
        yield from photos


def _write_photo(folder: Path, number: int, row: dict[str, Any], copy: HubCopy) -> tuple[object, ...]:
    """Write one photo and return its annotation."""
    content, label = (row["image"] or {}).get("bytes"), row["label"]
    if not content or label is None or not 0 <= label < len(copy.classes):
        missing = "label" if content else "content"
        raise ValueError(f"{copy.name}: photo {number} for {folder.name} has no {missing}. Choose another copy")
    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            width, height, suffix = image.width, image.height, SUFFIX_BY_FORMAT.get(image.format or "", ".jpg")
    except OSError:
        width, height, suffix = 1, 1, ".jpg"  # written anyway: readers of the folder skip and report it
    name = f"{number:05d}{suffix}"
    (folder / name).write_bytes(content)
    return 1, 1, width, height, label + 1, name


def _save_mat(path: Path, **arrays: np.ndarray[Any, Any]) -> None:
    from scipy.io import savemat  # only Stanford Cars needs it

    savemat(path, arrays)


@contextmanager
def _complete_folder(root: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `root` at the end, or is removed after an error."""
    try:
        with atomic_folder(root) as folder:
            yield folder
    except OSError as error:
        raise ValueError(f"{root} cannot be written: {error}. It needs 2 GB on a disk you may write to") from error
