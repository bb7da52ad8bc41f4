"""Hub sets: labelled images of the Hugging Face hub, read where the `datasets` library keeps them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfer import hashing
from xfer.data.images import UnreadableImageError, read_image
from xfer.data.source import PART_ALIASES, Example, Source, filter_labels, preview, validate_source
from xfer.data.stanford_cars_download import import_datasets, translate_hub_errors
from xfer.data.uris import DataUri, parse_uri, reject_unknown_keys
from xfer.records import Part

URI_PARAMETERS = ("config", "revision", "image", "label")
"""What an address may say of a data set: which version of it, which commit, and which columns are meant."""
LABEL_COLUMNS = ("label", "labels", "class", "target")
"""What the column with the labels is called where its type does not say that it holds classes."""


@dataclass(frozen=True, slots=True, eq=False)
class HubImage:
    """An image in a table of the `datasets` library, which keeps tables on disk."""

    table: Any
    column: str
    index: int
    name: str
    caches: tuple[Path, ...]
    """Where the library keeps what it fetched."""

    def digest(self) -> str:
        """The hash of the image file's bytes, the same as if it lay in a folder."""
        file = self._file()
        return hashing.sha256_file(file) if isinstance(file, Path) else hashlib.sha256(file).hexdigest()

    def read(self, size: int) -> NDArray[np.uint8]:
        """See `read_image`."""
        file = self._file()
        if not file:
            raise UnreadableImageError("there is no image in this row")
        return read_image(file, size)

    def _file(self) -> Path | bytes:
        cell = self.table[self.index][self.column] or {}
        if cell.get("bytes") or not cell.get("path"):
            return bytes(cell.get("bytes") or b"")
        path = Path(cell["path"]).resolve()
        # A table from elsewhere cannot name a file that is none of its business.
        return path if path.is_file() and any(path.is_relative_to(cache) for cache in self.caches) else b""


def hub(address: DataUri) -> Source:
    """A data set of the Hugging Face hub, by the `datasets` library: hf://owner/name.

    Its parts train, validation and test are taken as such, and others are left out; where it has one part only, that is
    divided. Images are the column that holds images, labels the column that holds classes, or text or whole numbers
    under the name label. Where there are several, the address says which are meant, as in
    hf://owner/name?image=photo&label=species; likewise config=NAME for one of several versions of the data and
    revision=COMMIT for one state of them. Everything is fetched into the library's cache, once. Rows without label are
    left out and counted in the notes, and so are classes that never occur.

    Raises:
        ValueError: the library is missing, the hub cannot be reached, no such data set, or none of labelled images.
    """
    repo, said = parse_uri(address, "hf")
    repo = repo.removeprefix("datasets/")
    reject_unknown_keys(said, URI_PARAMETERS, f"hf://{repo}")
    if repo.count("/") != 1:
        raise ValueError(f"{address} names no data set of the hub: hf://owner/name is wanted")
    datasets = import_datasets("data from the hub need")
    with translate_hub_errors(repo):
        builder = datasets.load_dataset_builder(repo, said.get("config"), revision=said.get("revision"))
        builder.download_and_prepare()
        tables = dict(builder.as_dataset())
    parts = _parts(repo, list(tables))
    first = tables[next(iter(parts))].features
    image = _column(repo, first, "image", said, [name for name in first if isinstance(first[name], datasets.Image)])
    label = _column(repo, first, "label", said, _labels(first, datasets.ClassLabel))
    values = {split: [*tables[split][label]] for split in parts}
    classes = _classes(first[label], values)
    caches = tuple(Path(each).resolve() for each in _caches(datasets))
    examples: list[Example] = []
    notes = [f"From the hub: {repo} at {builder.hash}."]
    if left_out := [split for split in tables if split not in parts]:
        notes.append(f"Of {repo} these parts are left out: {preview(left_out)}.")
    for split, part in parts.items():
        table = tables[split].cast_column(image, datasets.Image(decode=False)).select_columns([image])
        labels = [classes.get(str(value), -1) for value in values[split]]
        rows = [HubImage(table, image, index, f"{split} {index}", caches) for index in range(len(labels))]
        examples += [Example(row, label, part) for row, label in zip(rows, labels, strict=True) if label >= 0]
        if lacking := sum(label < 0 for label in labels):
            notes.append(f"{lacking} of {len(labels)} rows of the {split} part have no label and are left out.")
    source = Source(repo, _names(first[label], classes), tuple(examples), tuple(notes))
    return validate_source(filter_labels(source, {each.label for each in examples}), repo, f"with a label in {label}")


def _parts(repo: str, splits: list[str]) -> dict[str, Part | None]:
    """Which splits are taken, and as what."""
    named = {split: PART_ALIASES[split.lower()] for split in splits if split.lower() in PART_ALIASES}
    if "train" in named.values() and len(set(named.values())) > 1:
        return dict(named)
    whole = [split for split, part in named.items() if part == "train"] or splits
    if len(whole) != 1 and "train" not in named.values():
        raise ValueError(f"{repo} has the parts {preview(splits)}, and none of them is called train")
    return dict.fromkeys(whole)


def _labels(features: Mapping[str, Any], kind: type) -> list[str]:
    """The columns that may hold labels."""
    typed = [name for name, feature in features.items() if isinstance(feature, kind)]
    plain = ("string", "large_string", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    return typed or [name for name in LABEL_COLUMNS if getattr(features.get(name), "dtype", None) in plain]


def _column(repo: str, features: Mapping[str, Any], kind: str, said: Mapping[str, str], fitting: list[str]) -> str:
    columns = ", ".join(f"{name}: {type(feature).__name__}" for name, feature in features.items())
    if kind in said and said[kind] not in features:
        raise ValueError(f"{repo} has no column {said[kind]}; it has {columns}")
    found = [said[kind]] if kind in said else fitting
    if len(found) != 1:
        many = f"{len(found)} columns that may be the {kind}" if found else f"no column that is the {kind} by its type"
        raise ValueError(f"{repo} has {many}. Say which is meant: hf://{repo}?{kind}=COLUMN. It has {columns}")
    return found[0]


def _classes(feature: Any, values: Mapping[str, list[Any]]) -> dict[str, int]:
    """By what stands in the column, as text, the place among the classes."""
    if hasattr(feature, "names"):
        return {str(place): place for place in range(len(feature.names))}
    words = {str(value) for each in values.values() for value in each if value is not None and value != ""}
    return {word: place for place, word in enumerate(sorted(words))}


def _names(feature: Any, classes: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(getattr(feature, "names", None) or classes)


def _caches(datasets: Any) -> Iterator[str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    yield HF_HUB_CACHE
    yield datasets.config.HF_DATASETS_CACHE
    yield datasets.config.DOWNLOADED_DATASETS_PATH
