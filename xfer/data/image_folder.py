"""Layout with one folder per class, optionally inside a folder per part."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from xfer.data import file_tree
from xfer.data.file_tree import FileTree, Prefix, TreeFile
from xfer.data.image_formats import IMAGE_SUFFIXES
from xfer.data.images import ImageFile
from xfer.data.part_names import NO_PARTS, named_parts, part_named
from xfer.data.source import PART_ALIASES, Example, SkippedFiles, Source, preview, validate_source
from xfer.data.uris import DataUri, resolve_folder
from xfer.records import Part

OUTSIDE_CLASSES = "image outside the class folders"
OUTSIDE_PARTS = "outside the folders of --parts"

MAX_LEVELS = 4
"""Maximum number of folders above the class folders that are followed if each holds a single folder with images."""

MAX_LISTED = 20
"""Maximum number of folders that an error lists."""

PICTURE_NAMES = frozenset(("images", "image", "imgs", "img", "photos", "pictures", "jpegimages", "rgb", "inputs"))
ANNOTATION_NAMES = frozenset(
    (
        *("masks", "mask", "labels", "label", "annotations", "annotation", "annots", "segmentation", "segmentations"),
        *("ground_truth", "groundtruth", "gt", "trimaps", "segmentationclass", "segmentationobject", "targets"),
    )
)
"""Folders of other tasks, in lower case: with PICTURE_NAMES as the only other classes, they are rarely meant."""

TABLES = (".csv", ".tsv")
"""Suffixes of tables, which may hold the labels."""

PartFolders = dict[Part | None, Prefix]
"""The folder that holds the class folders of each part; under None if the data set has no parts."""


def folder(uri: DataUri, parts: Mapping[str, str] | None = None, follow_links: bool = False) -> Source:
    """Read DIR/<class>/*.jpg, or DIR/train/<class>, DIR/val/<class>, DIR/test/<class>.

    The usual names of parts are known in any case, as in Training, dev or seg_test. A train folder without val and test
    is treated like a single folder without parts. A folder that holds nothing but another folder of classes is
    followed, as DIR/data/<class>. Classes are sorted by name. Subfolders of a class folder are searched too.

    Content decides what is an image. Other files, hidden files, folders that programs create, and links that lead out
    of DIR are listed in `Source.skipped`.

    Args:
        uri: the folder.
        parts: the folder of each part, as `part_names.parse_parts` returns them. Detected from the names by default.
        follow_links: read what links lead to, also outside DIR.

    Raises:
        ValueError: no such folder, no images, a single class, a class without training images, or folders that can be
            understood in several ways. The message then lists the folders and names the flag that settles it.
    """
    root = resolve_folder(uri)
    tree = file_tree.scan(root, follow_links)
    locator = _PartLocator(tree)
    tops = locator.given(parts) if parts and parts != NO_PARTS else locator.detected(all_classes=bool(parts))
    classes = tuple(sorted({name for top in tops.values() for name in tree.subfolders(top)}))
    examples, skipped = _assign(tree, tops, classes, outside=OUTSIDE_PARTS if parts and parts != NO_PARTS else "")
    notes = (
        *_part_notes(tree, tops),
        *_unknown_part_notes(tree, tops),
        *_class_notes(tops, classes, examples),
        *_skip_notes(root, skipped),
    )
    source = Source(root.name, classes, examples, notes, skipped)
    expected = (
        f"in class folders. Expected {root}/<class>/*.jpg, or {root}/train/<class>/*.jpg with val and test next to it. "
        f"Known suffixes: {' '.join(sorted(IMAGE_SUFFIXES))}"
    )
    try:
        return validate_source(source, root, expected)
    except ValueError as error:
        reasons = "; ".join(f"{skip.count} {skip.reason}" for skip in skipped)
        lines = [str(error), f"Files that are not used: {reasons}" if reasons else "", locator.listing(())]
        raise ValueError("\n".join(filter(None, lines))) from None


@dataclass(frozen=True)
class _PartLocator:
    """Finds the folders of the parts in a tree."""

    tree: FileTree

    def given(self, parts: Mapping[str, str]) -> PartFolders:
        """Return the folders that `--parts` names."""
        tops: PartFolders = {}
        for name, text in parts.items():
            top = tuple(piece for piece in Path(text).parts if piece != ".")
            if top not in self.tree.folders:
                raise self._refusal((), f"has no folder {text}, which --parts names for {name}")
            tops[name] = top  # type: ignore[index]
        for part, top in tops.items():
            for other, below in tops.items():
                if part != other and below[: len(top)] == top:
                    raise ValueError(
                        f"--parts: {part}={parts[str(part)]} contains {other}={parts[str(other)]}; parts must be "
                        f"separate folders"
                    )
        tops = self._without_extra_levels(tops)
        return tops if len(tops) > 1 else {None: tops["train"]}

    def detected(self, all_classes: bool) -> PartFolders:
        """Return the folders of the parts, detected from their names.

        Args:
            all_classes: treat every folder as a class, whatever its name.
        """
        prefix: Prefix = ()
        for _ in range(MAX_LEVELS):
            named = {} if all_classes else named_parts(self.tree.subfolders(prefix))
            if named:
                return self._named(prefix, named)
            holders = self.tree.image_folders(prefix)
            inner = (*prefix, *holders[:1])
            if len(holders) != 1 or self.tree.direct_images[inner]:
                break
            prefix = inner
        if len(self.tree.image_folders(prefix)) < 2:
            prefix = ()
        if not all_classes:
            self._refuse_parts_in_classes(prefix)
        return {None: prefix}

    def listing(self, prefix: Prefix) -> str:
        """Return a table of the folders directly below a folder, with the number of their images."""
        names = self.tree.subfolders(prefix)
        lines = []
        for name in names[:MAX_LISTED]:
            inner = (*prefix, name)
            below = self.tree.subfolders(inner)
            content = f", in the folders {preview(below)}" if below else ""
            lines.append(f"    {name}/  {self.tree.images[inner]} images{content}")
        if len(names) > MAX_LISTED:
            lines.append(f"    and {len(names) - MAX_LISTED} more folders")
        if direct := self.tree.direct_images[prefix]:
            lines.append(f"    {direct} images outside these folders")
        return "\n".join([f"{Path(self.tree.root, *prefix)} holds", *lines])

    def _named(self, prefix: Prefix, named: Mapping[str, Part]) -> PartFolders:
        """Return the folders of the parts among the folders below `prefix`, some of which are named like parts."""
        by_part: dict[Part, list[str]] = defaultdict(list)
        for name, part in named.items():
            by_part[part].append(name)
        for part, names in by_part.items():
            filled = [name for name in names if self.tree.images[(*prefix, name)]]
            if len(names) > 1 and len(filled) > 1:
                raise self._refusal(prefix, f"has {preview(filled)}, which could each be the {part} part", by_part)
            by_part[part] = (filled or names)[:1]
        others = [name for name in self.tree.image_folders(prefix) if name not in named]
        if "train" not in by_part:
            root = Path(self.tree.root, *prefix)
            names = [by_part[part][0] for part in ("val", "test") if part in by_part]
            message = (
                f"has {preview(names)} but no train folder. Expected {root}/train/<class>/*.jpg, and val and test next "
                f"to it if you have them"
            )
            raise self._refusal(prefix, message, by_part)
        if others:
            names = [by_part[part][0] for part in ("train", "val", "test") if part in by_part]
            raise self._refusal(prefix, f"has {preview(others)} next to {preview(names)}: part or class?", by_part)
        tops: PartFolders = {part: (*prefix, by_part[part][0]) for part in ("train", "val", "test") if part in by_part}
        for top_part, top in tops.items():
            inner = named_parts(self.tree.image_folders(top))
            if len(set(inner.values())) > 1 and len(inner) == len(self.tree.image_folders(top)):
                message = f"is a part and holds parts of its own: {preview(inner)}"
                raise self._refusal(top, message, {"train": [name for name, p in inner.items() if p == "train"][:1]})
            if self.tree.direct_images[top] and not self.tree.image_folders(top):
                message = f"has {'/'.join(top)}, named like the {top_part} part, with images but no class folders"
                raise self._refusal(prefix, message, {key: [n] for key, (n, *_) in by_part.items() if key != top_part})
        tops = self._without_extra_levels(tops)
        return tops if len(tops) > 1 else {None: tops["train"]}

    def _without_extra_levels(self, tops: PartFolders) -> PartFolders:
        """Replace the folder of a part by its only folder with images if the class folders are in there."""
        result: PartFolders = {}
        for part, top in tops.items():
            classes = [self.tree.image_folders(other) for other in tops.values() if other != top]
            elsewhere = {name for names in classes if len(names) > 1 for name in names}
            inner = top
            for _ in range(MAX_LEVELS):
                holders = self.tree.image_folders(inner)
                if len(holders) != 1 or self.tree.direct_images[inner] or self.tree.direct_images[(*inner, *holders)]:
                    break
                is_part = part_named(holders[0]) == (part or "train")
                if not is_part and (holders[0] in elsewhere or len(self.tree.image_folders((*inner, *holders))) < 2):
                    break
                inner = (*inner, *holders)
            result[part] = inner
        return result

    def _refuse_parts_in_classes(self, prefix: Prefix) -> None:
        """Refuse DIR/<class>/train/*.jpg, whose parts would be mixed."""
        inside = [named_parts(self.tree.image_folders((*prefix, name))) for name in self.tree.image_folders(prefix)]
        if inside and all("train" in parts.values() and len(set(parts.values())) > 1 for parts in inside):
            raise ValueError(
                f"{self.listing(prefix)}\nEvery class has parts of its own ({preview(inside[0])}). Arrange the images "
                f"as DIR/train/<class> and DIR/test/<class>; --parts none mixes the parts and draws new ones"
            )

    def _refusal(self, prefix: Prefix, problem: str, by_part: Mapping[Part, list[str]] | None = None) -> ValueError:
        """Return an error that shows the folders and the flags that settle it."""
        known = {str(part): names for part, names in (by_part or {}).items() if names}
        chosen = {"train": ["NAME"], **known} if known else {"train": ["NAME"], "test": ["NAME"]}
        flag = ",".join(f"{part}={'/'.join((*prefix, names[0]))}" for part, names in chosen.items())
        return ValueError(
            f"{Path(self.tree.root, *prefix)} {problem}\n{self.listing(prefix)}\nSay which folders are the parts, as "
            f"in --parts {flag}; other folders are then left out. If every folder is a class: --parts none"
        )


def _assign(
    tree: FileTree, tops: PartFolders, classes: tuple[str, ...], outside: str
) -> tuple[tuple[Example, ...], tuple[SkippedFiles, ...]]:
    """Return the examples of a tree, and all other files by the reason why they are not used.

    Args:
        tree: the files.
        tops: the folder of each part.
        classes: the names of all classes.
        outside: the reason for images outside of all `tops`; by default that of images outside the class folders.
    """
    labels = {name: label for label, name in enumerate(classes)}
    order = {part: index for index, part in enumerate(tops)}
    examples: list[tuple[int, int, Prefix, Example]] = []
    counts: Counter[str] = Counter()
    first: dict[str, list[str]] = defaultdict(list)

    def problem(file: TreeFile) -> str:
        if file.reason:
            return file.reason
        for part, top in tops.items():
            if file.names[: len(top)] == top:
                if len(file.names) < len(top) + 2:
                    return OUTSIDE_CLASSES
                if file.link_depth > len(top) + 1:
                    return file_tree.INNER_LINK
                label = labels[file.names[len(top)]]
                examples.append((order[part], label, file.names, Example(ImageFile(file.path), label, part)))
                return ""
        return outside or OUTSIDE_CLASSES

    for file in tree.files:
        if reason := problem(file):
            counts[reason] += 1
            if len(first[reason]) < 5:
                first[reason].append("/".join(file.names))
    examples.sort(key=lambda item: item[:3])
    skipped = (SkippedFiles(reason, count, tuple(first[reason])) for reason, count in counts.most_common())
    return tuple(example for *_, example in examples), tuple(skipped)


def _part_notes(tree: FileTree, tops: PartFolders) -> Iterable[str]:
    """Say which folders are the parts, where their names are not exactly the standard ones."""
    unusual = {part: top for part, top in tops.items() if len(top) > 1 or (top and top[0] not in PART_ALIASES)}
    if None in unusual:
        yield f"Classes are the folders in {'/'.join(unusual[None])}/."
        tables = [file.names[0] for file in tree.files if len(file.names) == 1 and file.path.suffix.lower() in TABLES]
        if tables:
            yield f"WARNING: {preview(tables)} in {tree.root.name} is not read. To use its labels, give it as --data."
    elif unusual:
        folders = ", ".join(f"{part} is {'/'.join(top)}/" for part, top in tops.items())
        yield f"Parts: {folders}."


def _unknown_part_notes(tree: FileTree, tops: PartFolders) -> Iterable[str]:
    """Warn if all class folders hold the same subfolders: they may be parts under names that are not known."""
    for part, top in tops.items():
        names = tree.image_folders(top)
        inner = {tree.image_folders((*top, name)) for name in names}
        direct = any(tree.direct_images[(*top, name)] for name in names)
        if part is None and len(names) > 1 and len(inner) == 1 and len(same := inner.pop()) > 1 and not direct:
            yield (
                f"WARNING: the classes are {preview(names)}, and each holds the folders {preview(same)}. If those are "
                f"the classes, say which folders are the parts, as in --parts train={names[0]},test={names[1]}."
            )


def _class_notes(tops: PartFolders, classes: tuple[str, ...], examples: Iterable[Example]) -> Iterable[str]:
    names = {name.casefold() for name in classes}
    if len(names) == 2 and names & PICTURE_NAMES and names & ANNOTATION_NAMES:
        yield (
            f"WARNING: the classes are {' and '.join(classes)}, which look like pictures and their annotations, not "
            f"like two classes. A classifier needs one folder per class."
        )
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        alike[unicodedata.normalize("NFKC", name).casefold().strip()].append(name)
    for group in alike.values():
        if len(group) > 1:
            yield f"WARNING: {' and '.join(map(repr, group))} are different classes, though their names look alike."
    present: dict[Part | None, set[int]] = {part: set() for part in tops}
    for example in examples:
        present[example.part].add(example.label)
    for part in ("val", "test"):
        if part in present and (missing := [n for label, n in enumerate(classes) if label not in present[part]]):
            yield f"WARNING: the {part} part has no images of {preview(missing)}."


def _skip_notes(root: Path, skipped: Iterable[SkippedFiles]) -> Iterable[str]:
    """Warn about skipped files that were probably meant to be used."""
    for skip in skipped:
        names = preview([*skip.first, *[""] * (skip.count - len(skip.first))])
        if skip.reason == file_tree.LINK_OUT:
            yield (
                f"WARNING: {skip.count} links lead out of {root.name} and are not followed: {names}. --follow-links "
                f"reads them."
            )
        elif skip.reason in (OUTSIDE_CLASSES, file_tree.BROKEN_LINK) or skip.reason.startswith(file_tree.UNSUPPORTED):
            yield f"WARNING: {skip.count} files are skipped, {skip.reason}: {names}."
