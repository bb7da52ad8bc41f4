"""Hub: fetches a copy of Stanford Cars and lays it out as it was published, so that one function reads both."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xfer.data.images import IMAGE_FORMATS
from xfer.data.stanford_cars import STANFORD_CARS_LAYOUT

DEFAULT_REPO = "tanganke/stanford_cars"
"""A complete copy in parquet files: the official parts with all 196 names, and noisy versions that are not fetched."""
PINNED_REVISIONS = {DEFAULT_REPO: "9abf6cf7d6dfa7b95152a0d6e791ea9435b47a40"}
"""Which commit of a copy is meant, so that everybody's photos are the same. Of any other copy the newest is taken."""
PHOTO_FOLDERS = {"train": "cars_train", "test": "cars_test"}
ANNOTATION_FILES = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
ANNOTATION_FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
"""What an annotation says, in the published order."""
SUFFIX_BY_FORMAT = {"PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "GIF": ".gif", "TIFF": ".tif", "PPM": ".ppm"}
"""What a file is called that is no JPEG."""
MANUAL_DOWNLOAD_HINT = f" Or put the original archive in place.\n{STANFORD_CARS_LAYOUT}"
"""What to do where the hub cannot help."""


@dataclass(frozen=True)
class HubCopy:
    """What a hub has of Stanford Cars, once it has been fetched."""

    name: str
    """Repository and commit."""
    classes: tuple[str, ...]
    parts: Mapping[str, Iterable[dict[str, Any]]]
    """For each part its photos: `image` as the bytes of a file, `label` counted from 0."""
    expected_counts: Mapping[str, int]
    """How many photos a part should have, where the copy says so."""


def download_stanford_cars(root: Path, repo: str = DEFAULT_REPO, say: Callable[[str], None] = lambda _: None) -> None:
    """Fetch Stanford Cars (Krause et al. 2013) from a hub and write it to `root` in its original layout.

    2 GB are fetched into the cache of the `datasets` library, where a second attempt finds the files that the first one
    got, and another 2 GB are written. `root` appears at the end and complete, or not at all. The photos keep the bytes
    they have in the copy and are numbered in its order. Copies hold no boxes, so each box is the whole photo.

    Args:
        root: the folder to make; it must not exist yet, or be empty.
        repo: owner/name of a copy in parquet files with parts `train` and `test` and columns `image` and `label`.
        say: told in a line each what is being done.

    Raises:
        ValueError: the library is missing, the hub or the copy cannot be reached, or the copy is not as described.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"{root} is there already. Move it away, or download to another folder")
    copy = _fetched(repo, say)
    with _made_at_once(root) as folder:
        (folder / "devkit").mkdir()
        for part, photos in copy.parts.items():
            say(f"writing the {part} photos")
            (folder / PHOTO_FOLDERS[part]).mkdir()
            rows = [
                _write(folder / PHOTO_FOLDERS[part], number, row, copy) for number, row in enumerate(photos, start=1)
            ]
            promised = copy.expected_counts.get(part, len(rows))
            if len(rows) != promised or not rows:
                raise ValueError(f"{copy.name} has {len(rows):,} {part} photos where {promised:,} are promised")
            annotations = np.empty((1, len(rows)), dtype=[(field, object) for field in ANNOTATION_FIELDS])
            annotations[0] = rows
            _save(folder / ANNOTATION_FILES[part], annotations=annotations)
        _save(folder / "devkit" / "cars_meta.mat", class_names=np.array([copy.classes], dtype=object))
        (folder / "README.txt").write_text(
            f"Stanford Cars from the hub's copy {copy.name}; each box is the whole photo\n"
        )
    say(f"Stanford Cars is in {root}")


def import_datasets(purpose: str) -> Any:
    """The `datasets` library, which a plain installation is without.

    Raises:
        ValueError: it is missing; `purpose` says in the message what needs it.
    """
    try:
        import datasets  # only the hub needs it
    except ImportError as error:
        raise ValueError(f"{purpose} the datasets library: pip install 'xfer[hub]'") from error
    return datasets


@contextmanager
def translate_hub_errors(repo: str, otherwise: str = "") -> Iterator[None]:
    """Whatever goes wrong with the hub becomes a ValueError that says what to do, `otherwise` at its end."""
    try:
        yield
    except Exception as error:  # the hub's client lets errors of every library below it through
        raise ValueError(
            f"{repo} cannot be fetched from the hub: {type(error).__name__}: {error}\n"
            f"Check the network, the name, and whether HF_HUB_OFFLINE is set; then give the same command again: files "
            f"that were fetched are not fetched again.{otherwise}"
        ) from error


def _fetched(repo: str, say: Callable[[str], None]) -> HubCopy:
    datasets = import_datasets("downloading needs")
    with translate_hub_errors(repo, MANUAL_DOWNLOAD_HINT):
        say(f"asking the hub for {repo}")
        builder = datasets.load_dataset_builder(repo, revision=PINNED_REVISIONS.get(repo))
    given = {part: list(files) for part, files in (builder.config.data_files or {}).items()}
    lacking = [part for part in PHOTO_FOLDERS if not given.get(part)]
    if lacking or not all(file.endswith(".parquet") for part in PHOTO_FOLDERS for file in given[part]):
        raise ValueError(
            f"{repo} should have parquet files for train and test; its parts are {', '.join(given) or '-'}"
        )
    with translate_hub_errors(repo, MANUAL_DOWNLOAD_HINT):
        say(f"fetching {sum(len(given[part]) for part in PHOTO_FOLDERS)} files, once")
        files = datasets.DownloadManager(dataset_name=repo).download({part: given[part] for part in PHOTO_FOLDERS})
        # Streamed from those files: otherwise all photos would be written to a second cache first.
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
        part: _rows(repo, table[part].cast_column("image", datasets.Image(decode=False))) for part in PHOTO_FOLDERS
    }
    promised = {part: split.num_examples for part, split in (builder.info.splits or {}).items()}
    return HubCopy(f"{repo} at {builder.hash}", tuple(classes["train"]), parts, promised)


def _rows(repo: str, photos: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    with translate_hub_errors(repo, MANUAL_DOWNLOAD_HINT):
        yield from photos


def _write(folder: Path, number: int, row: dict[str, Any], copy: HubCopy) -> tuple[object, ...]:
    """Write one photo, and say what its annotation is."""
    content, label = (row["image"] or {}).get("bytes"), row["label"]
    if not content or label is None or not 0 <= label < len(copy.classes):
        lacking = "label" if content else "content"
        raise ValueError(f"{copy.name}: photo {number} for {folder.name} has no {lacking}. Take another copy")
    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            width, height, suffix = image.width, image.height, SUFFIX_BY_FORMAT.get(image.format or "", ".jpg")
    except OSError:
        width, height, suffix = 1, 1, ".jpg"  # kept, so that whoever reads the folder skips, counts and names it
    name = f"{number:05d}{suffix}"
    (folder / name).write_bytes(content)
    return 1, 1, width, height, label + 1, name


def _save(path: Path, **arrays: np.ndarray[Any, Any]) -> None:
    from scipy.io import savemat  # only Stanford Cars needs it

    savemat(path, arrays)


@contextmanager
def _made_at_once(root: Path) -> Iterator[Path]:
    """A folder beside `root` that takes its place at the end, or goes if there is an error."""
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as beside:
            folder = Path(beside) / "made"
            folder.mkdir()
            yield folder
            folder.replace(root)
    except OSError as error:
        raise ValueError(f"{root} cannot be written: {error}. It needs 2 GB on a disk you may write to") from error
