"""Data sets of labelled images on the Hugging Face hub, read through the `datasets` library."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xfer import hashing
from xfer.data.image_formats import UnreadableImageError
from xfer.data.images import read_image
from xfer.data.label_names import find_lookalikes, is_missing
from xfer.data.part_names import part_named
from xfer.data.source import PART_ALIASES, Example, SkippedFiles, Source, filter_labels, preview, validate_source
from xfer.data.stanford_cars_download import import_datasets, translate_hub_errors
from xfer.data.uris import DataUri, parse_uri, reject_unknown_keys
from xfer.data.value_ranges import NO_RANGES, ValueRanges
from xfer.records import Part

URI_PARAMETERS = ("config", "revision", "image", "label")
"""Parameters of a URI: configuration and commit of the data set, and the columns with images and labels."""
LABEL_COLUMNS = ("label", "labels", "class", "target")
"""Accepted names of the label column, if no column has the type ClassLabel."""


@dataclass(frozen=True, slots=True, eq=False)
class HubImage:
    """An image in a table of the `datasets` library, which keeps its tables on disk."""

    table: Any
    column: str
    index: int
    name: str
    caches: tuple[Path, ...]
    """Folders in which the library keeps downloaded files."""

    def digest(self) -> str:
        """Return the hash of the image file's bytes, the same as for a file in a folder."""
        file = self._file()
        return hashing.sha256_file(file) if isinstance(file, Path) else hashlib.sha256(file).hexdigest()

    def encoded(self) -> Path | bytes:
        """Return the image file, or its content."""
        return self._file()

    def read(self, size: int, ranges: ValueRanges = NO_RANGES) -> NDArray[np.uint8]:
        """Return the pixels; see `read_image`."""
        file = self._file()
        if not file:
            raise UnreadableImageError("there is no image in this row")
        return read_image(file, size, ranges)

    def _file(self) -> Path | bytes:
        cell = self.table[self.index][self.column] or {}
        if cell.get("bytes") or not cell.get("path"):
            return bytes(cell.get("bytes") or b"")
        path = Path(cell["path"]).resolve()
        # A downloaded table must not read other files of this machine.
        return path if path.is_file() and any(path.is_relative_to(cache) for cache in self.caches) else b""


def hub(uri: DataUri) -> Source:
    """Read a data set of the Hugging Face hub through the `datasets` library: hf://owner/name.

    Splits named train, validation and test, or in another usual way such as dev, are used as parts. Other splits are
    left out. A data set with a single split has no parts. Images are the column of type Image. Labels are the column of
    type ClassLabel, or a column of strings or integers named label. If there are several candidates, name the columns,
    as in hf://owner/name?image=photo&label=species. Use config=NAME to choose a configuration and revision=COMMIT to
    choose a commit. The data are downloaded once, into the library's cache. Rows without label are left out and counted
    as skipped, and classes without images are left out.

    Raises:
        ValueError: the library is missing, the hub cannot be reached, there is no such data set of labelled images, or
            labels look like spellings of one class.
    """
    repo, parameters = parse_uri(uri, "hf")
    repo = repo.removeprefix("datasets/")
    reject_unknown_keys(parameters, URI_PARAMETERS, f"hf://{repo}")
    if repo.count("/") != 1:
        raise ValueError(f"{uri} does not name a data set of the hub. Give hf://owner/name")
    datasets = import_datasets("data from the hub need")
    with translate_hub_errors(repo):
        builder = datasets.load_dataset_builder(repo, parameters.get("config"), revision=parameters.get("revision"))
        builder.download_and_prepare()
        tables = dict(builder.as_dataset())
    parts = _select_splits(repo, list(tables))
    features = tables[next(iter(parts))].features
    image_columns = [name for name in features if isinstance(features[name], datasets.Image)]
    image_column = _choose_column(repo, features, "image", parameters, image_columns)
    label_column = _choose_column(repo, features, "label", parameters, _label_columns(features, datasets.ClassLabel))
    values = {split: [*tables[split][label_column]] for split in parts}
    label_of = _number_classes(repo, features[label_column], values)
    caches = tuple(Path(folder).resolve() for folder in _cache_folders(datasets))
    examples: list[Example] = []
    skipped: list[SkippedFiles] = []
    notes = [f"From the hub: {repo} at {builder.hash}."]
    if left_out := [split for split in tables if split not in parts]:
        notes.append(f"Splits of {repo} that are left out: {preview(left_out)}.")
        skipped.append(SkippedFiles("split left out", sum(len(tables[split]) for split in left_out), tuple(left_out)))
    for split, part in parts.items():
        table = tables[split].cast_column(image_column, datasets.Image(decode=False)).select_columns([image_column])
        labels = [label_of.get(str(value), -1) for value in values[split]]
        images = [HubImage(table, image_column, index, f"{split} {index}", caches) for index in range(len(labels))]
        examples += [Example(row, label, part) for row, label in zip(images, labels, strict=True) if label >= 0]
        if missing := sum(label < 0 for label in labels):
            notes.append(f"{missing} of {len(labels)} rows of the {split} split have no label and are left out.")
            skipped.append(SkippedFiles(f"{split} row without a label", missing))
    classes = tuple(getattr(features[label_column], "names", None) or label_of)
    source = Source(repo, classes, tuple(examples), tuple(notes), tuple(skipped), unit="rows")
    source = filter_labels(source, {example.label for example in examples})
    return validate_source(source, repo, f"with a label in {label_column}")


def _select_splits(repo: str, splits: list[str]) -> dict[str, Part | None]:
    """Return the splits to read, each with its part."""
    parts = {split: PART_ALIASES[split.lower()] for split in splits if split.lower() in PART_ALIASES}
    other_names = {split: part for split in splits if (part := part_named(split)) and part not in parts.values()}
    parts |= {split: part for split, part in other_names.items() if [*other_names.values()].count(part) == 1}
    if "train" in parts.values() and len(set(parts.values())) > 1:
        return dict(parts)
    only = [split for split, part in parts.items() if part == "train"] or splits
    if len(only) != 1 and "train" not in parts.values():
        raise ValueError(f"{repo} has the splits {preview(splits)}, and none of them is called train")
    return dict.fromkeys(only)


def _label_columns(features: Mapping[str, Any], class_label: type) -> list[str]:
    """Return the columns that may hold labels."""
    typed = [name for name, feature in features.items() if isinstance(feature, class_label)]
    plain = ("string", "large_string", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    return typed or [name for name in LABEL_COLUMNS if getattr(features.get(name), "dtype", None) in plain]


def _choose_column(
    repo: str, features: Mapping[str, Any], kind: str, parameters: Mapping[str, str], candidates: list[str]
) -> str:
    columns = ", ".join(f"{name}: {type(feature).__name__}" for name, feature in features.items())
    if kind in parameters:
        if parameters[kind] not in features:
            raise ValueError(f"{repo} has no column {parameters[kind]}; it has {columns}")
        return parameters[kind]
    if len(candidates) != 1:
        problem = f"{len(candidates)} possible {kind} columns" if candidates else f"no column of a type for the {kind}"
        raise ValueError(f"{repo} has {problem}. Name one: hf://{repo}?{kind}=COLUMN. It has {columns}")
    return candidates[0]


def _number_classes(repo: str, feature: Any, values: Mapping[str, list[Any]]) -> dict[str, int]:
    """Return the label of each value of the label column, by the value as text."""
    if hasattr(feature, "names"):
        return {str(label): label for label in range(len(feature.names))}
    words = {str(value) for column in values.values() for value in column if not is_missing(str(value))}
    if groups := find_lookalikes(words):
        raise ValueError(
            f"{repo}: labels look like spellings of one class: {preview(' and '.join(map(repr, g)) for g in groups)}. "
            f"Download the data and write each class in one way"
        )
    return {word: label for label, word in enumerate(sorted(words))}


def _cache_folders(datasets: Any) -> Iterator[str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    yield HF_HUB_CACHE
    yield datasets.config.HF_DATASETS_CACHE
    yield datasets.config.DOWNLOADED_DATASETS_PATH
