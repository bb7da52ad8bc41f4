"""Remarks on a folder of images: what was understood, what was skipped, and what was probably not meant."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from xfer.data import file_tree
from xfer.data.file_tree import FileTree, Prefix
from xfer.data.label_names import find_lookalikes
from xfer.data.part_folders import PartFolders, tables_at_root
from xfer.data.part_names import split_words
from xfer.data.source import PART_ALIASES, SkippedFiles, preview
from xfer.records import Part

PICTURE_WORDS = frozenset(
    (
        *("images", "image", "imgs", "img", "photos", "photo", "pictures", "picture", "jpegimages", "jpeg", "rgb"),
        *("inputs", "input", "raw", "frames"),
    )
)
ANNOTATION_WORDS = frozenset(
    (
        *("mask", "masks", "label", "labels", "annotation", "annotations", "annot", "annots", "segmentation"),
        *(
            "segmentations",
            "seg",
            "segs",
            "gt",
            "gts",
            "groundtruth",
            "truth",
            "trimap",
            "trimaps",
            "target",
            "targets",
        ),
        *("labelled", "labeled", "annotated", "overlay", "overlays", "heatmap", "heatmaps", "depth", "contours"),
    )
)
"""Words, in lower case, in the names of folders and files of other tasks: they are rarely photos of a class."""
COPY_WORDS = frozenset(("thumb", "thumbs", "thumbnail", "preview", "previews", "cache", "cached", "resized", "backup"))
"""Words in the names of folders that hold smaller or older copies of images."""
CONTAINER_WORDS = frozenset(("data", "dataset", "datasets", "images", "imgs", "photos", "pictures", "classes", "all"))
"""Words in the names of folders that hold class folders."""
MIN_SHARED_STEMS = 0.9
"""Fraction of the files of two folders that must be named alike for one to look like the annotations of the other."""

_MARK = re.compile(rf"(?<![^\W\d_])(?:{'|'.join(sorted(ANNOTATION_WORDS | COPY_WORDS))})$")
"""A word such as mask at the end of a file's stem."""


@dataclass(frozen=True, slots=True)
class UsedFile:
    """An image that is used."""

    names: Prefix
    """The path relative to the root."""
    depth: int
    """Number of components above the class folder."""
    part: Part | None

    @property
    def class_name(self) -> str:
        """Name of the class folder."""
        return self.names[self.depth]

    @property
    def inner_folders(self) -> Prefix:
        """Folders between the class folder and the file."""
        return self.names[self.depth + 1 : -1]

    @property
    def stem(self) -> str:
        """File name without suffix, in lower case."""
        name = self.names[-1].casefold()
        return name.rpartition(".")[0] or name


def part_notes(tree: FileTree, tops: PartFolders) -> Iterable[str]:
    """Say which folders are the parts, where their names are not exactly the standard ones."""
    unusual = {part: top for part, top in tops.items() if len(top) > 1 or (top and top[0] not in PART_ALIASES)}
    if None in unusual:
        yield f"Classes are the folders in {'/'.join(unusual[None])}/."
        if tables := tables_at_root(tree):
            yield f"WARNING: {preview(tables)} in {tree.root.name} is not read. To use its labels, give it as --data."
    elif unusual:
        folders = ", ".join(f"{part} is {'/'.join(top)}/" for part, top in tops.items())
        yield f"Parts: {folders}."


def structure_notes(tree: FileTree, tops: PartFolders) -> Iterable[str]:
    """Warn about class folders that may hold classes or parts of their own."""
    for part, top in tops.items():
        names = tree.image_folders(top)
        inner = {name: tree.image_folders((*top, name)) for name in names}
        direct = [name for name in names if tree.direct_images[(*top, name)]]
        same = inner[names[0]] if len(set(inner.values())) == 1 and not direct else ()
        if part is None and len(names) > 1 and len(same) > 1 and not any(map(_is_annotation, same)):
            yield (
                f"WARNING: the classes are {preview(names)}, and each holds the folders {preview(same)}. If those are "
                f"the classes, say which folders are the parts, as in --parts train={names[0]},test={names[1]}."
            )
            continue
        for name in names:
            nested = len(inner[name]) > 1 and name not in direct
            if nested and (direct or CONTAINER_WORDS & set(split_words(name))):
                path = "/".join((*top, name))
                yield (
                    f"WARNING: the folder {path} is one class, though its images are in the folders "
                    f"{preview(inner[name])}. If those are the classes, give {path} as --data, or move the other "
                    f"folders away."
                )


def class_notes(classes: Sequence[str], files: Sequence[UsedFile]) -> Iterable[str]:
    """Warn about classes that look like annotations of others, and about names that look alike."""
    annotations = [name for name in classes if _is_annotation(name)]
    pictures = [name for name in classes if name not in annotations]
    if annotations and pictures:
        stems: dict[str, set[str]] = defaultdict(set)
        for file in files:
            stems[file.class_name].add(file.stem)
        named = [name for name in pictures if PICTURE_WORDS & set(split_words(name))]
        shared = any(_are_shared(stems[name], stems[other]) for name in annotations for other in pictures)
        if named or shared:
            yield (
                f"WARNING: the classes are {' and '.join(classes) if len(classes) == 2 else preview(classes)}, which "
                f"look like pictures and their annotations, not like classes. A classifier needs one folder per class."
            )
    for group in find_lookalikes(classes):
        yield f"WARNING: {' and '.join(map(repr, group))} are different classes, though their names look alike."


def content_notes(files: Sequence[UsedFile]) -> Iterable[str]:
    """Warn about images inside class folders that are probably masks, annotations or copies of other images."""
    for words, kind in ((ANNOTATION_WORDS, "annotations"), (COPY_WORDS, "copies of other images")):
        count: Counter[str] = Counter()
        for file in files:
            inner = [index for index, name in enumerate(file.inner_folders) if words & set(split_words(name))]
            if inner:
                count["/".join(file.names[: file.depth + 2 + inner[0]])] += 1
        if count and sum(count.values()) < len(files):
            yield (
                f"WARNING: {sum(count.values())} images are in folders that look like {kind}, and are used as photos: "
                f"{preview(count)}. Move them out of the class folders if they are not photos."
            )
    stems = [file.stem for file in files]
    known = {(*file.names[:-1], stem) for file, stem in zip(files, stems, strict=True)}
    marked = [
        file
        for file, stem in zip(files, stems, strict=True)
        if _MARK.search(stem) and (*file.names[:-1], _without_mark(stem)) in known
    ]
    if marked:
        yield (
            f"WARNING: {len(marked)} images are named like masks, annotations or copies of other images, and are used "
            f"as photos: {preview('/'.join(file.names) for file in marked)}. Move them out of the class folders if "
            f"they are not photos."
        )


def skip_notes(root: Path, skipped: Iterable[SkippedFiles], outside_classes: str) -> Iterable[str]:
    """Warn about skipped files that were probably meant to be used.

    Args:
        root: the folder.
        skipped: all files that are not used.
        outside_classes: the reason for images outside of the class folders.
    """
    for skip in skipped:
        if skip.reason == file_tree.LINK_OUT:
            yield (
                f"WARNING: {skip.count} links lead out of {root.name} and are not followed: {skip.names}. "
                f"--follow-links reads them."
            )
        elif (
            skip.reason in (outside_classes, file_tree.BROKEN_LINK, file_tree.UNREADABLE_FOLDER, file_tree.NO_ACCESS)
            or skip.reason == file_tree.INNER_LINK
            or skip.reason.startswith(file_tree.UNSUPPORTED)
        ):
            yield f"WARNING: {skip.count} files are skipped, {skip.reason}: {skip.names}."


def _is_annotation(name: str) -> bool:
    return bool(ANNOTATION_WORDS & set(split_words(name)))


def _are_shared(stems: set[str], others: set[str]) -> bool:
    """Return whether the files of two folders are named alike, up to a word such as _mask."""
    plain = {_without_mark(stem) or stem for stem in stems}
    return len(plain & others) >= MIN_SHARED_STEMS * max(len(plain), len(others))


def _without_mark(stem: str) -> str:
    """Return a file's stem without a word such as _mask at its end."""
    return _MARK.sub("", stem).rstrip(" _-.")
