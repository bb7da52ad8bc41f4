"""Layout with one folder per class, optionally inside a folder per part."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from xfer.data import file_tree, folder_notes
from xfer.data.file_tree import FileTree, Prefix, TreeFile
from xfer.data.folder_notes import UsedFile
from xfer.data.image_formats import IMAGE_SUFFIXES
from xfer.data.images import ImageFile
from xfer.data.part_folders import (
    PartFolders,
    find_part_folders,
    label_prefixes,
    list_folders,
    tables_at_root,
)
from xfer.data.part_names import NO_PARTS, part_named
from xfer.data.source import (
    MAX_NAMED,
    Example,
    SkippedFiles,
    Source,
    describe_skipped,
    missing_class_notes,
    preview,
    validate_source,
)
from xfer.data.uris import DataUri, resolve_folder
from xfer.records import Part

OUTSIDE_CLASSES = "image outside the class folders"
OUTSIDE_PARTS = "outside the folders of --parts"

UNREACHED = (file_tree.LINK_OUT, file_tree.INNER_LINK, file_tree.UNREADABLE_FOLDER, file_tree.NO_ACCESS)
"""Reasons why the images of a folder may be missing without any sign in the folder itself."""
HARMLESS = (file_tree.NOT_AN_IMAGE, file_tree.HIDDEN_FILE, file_tree.NOT_REGULAR)
"""Reasons of files that were not meant to be images."""


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
        ValueError: no such folder, no images, a single class, a class without training images, a class or part that is
            missing because of a link that is not followed, or folders that can be understood in several ways. The
            message then lists the folders and names the flag that settles it.
    """
    root = resolve_folder(uri)
    tree = file_tree.scan(root, follow_links)
    tops = find_part_folders(tree, parts or {})
    given = bool(parts) and parts != NO_PARTS
    classes = tuple(sorted({name for top in tops.values() for name in tree.subfolders(top)}))
    used, skipped = _divide(tree, tops, OUTSIDE_PARTS if given else OUTSIDE_CLASSES)
    labels = {name: label for label, name in enumerate(classes)}
    examples = tuple(
        Example(ImageFile(root.joinpath(*file.names)), labels[file.class_name], file.part) for file in used
    )
    source = Source(root.name, classes, examples, (), tuple(_summarize(skipped)))
    _check_reached(tree, tops, used, skipped, follow_links)
    _check_parts(tree, tops, source, skipped, given)
    expected = (
        f"in class folders. Expected {root}/<class>/*.jpg, or {root}/train/<class>/*.jpg with val and test next to it. "
        f"Known suffixes: {' '.join(sorted(IMAGE_SUFFIXES))}"
    )
    try:
        validate_source(source, root, expected)
    except ValueError as error:
        raise ValueError("\n".join([str(error), *_hints(tree, tops, source), list_folders(tree)])) from None
    notes = (
        *folder_notes.part_notes(tree, tops),
        *folder_notes.structure_notes(tree, tops),
        *folder_notes.class_notes(classes, used),
        *folder_notes.content_notes(used),
        *_empty_part_notes(tops, source),
        *missing_class_notes(source),
        *folder_notes.skip_notes(root, source.skipped, OUTSIDE_CLASSES),
    )
    return replace(source, notes=notes)


@dataclass(frozen=True)
class _Skipped:
    """Files that are not used."""

    files: dict[str, list[Prefix]] = field(default_factory=lambda: defaultdict(list))
    """Paths of the files by reason; the first few only, except for `UNREACHED` and broken links."""
    count: Counter[str] = field(default_factory=Counter)
    by_part: dict[Part | None, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Number of files below the folder of each part, by reason."""

    def add(self, names: Prefix, reason: str, tops: PartFolders) -> None:
        """Count a file."""
        self.count[reason] += 1
        if self.count[reason] <= MAX_NAMED or reason in (*UNREACHED, file_tree.BROKEN_LINK):
            self.files[reason].append(names)
        for part, top in tops.items():
            if names[: len(top)] == top:
                self.by_part[part][reason] += 1


def _divide(tree: FileTree, tops: PartFolders, outside: str) -> tuple[list[UsedFile], _Skipped]:
    """Return the images that are used, by part, class and path, and all other files.

    Args:
        tree: the files.
        tops: the folder of each part.
        outside: the reason for images outside of all `tops`.
    """
    order = {part: index for index, part in enumerate(tops)}
    used: list[UsedFile] = []
    skipped = _Skipped()
    for file in tree.files:
        found = _place(file, tops, outside)
        if isinstance(found, str):
            skipped.add(file.names, found, tops)
        else:
            used.append(found)
    used.sort(key=lambda file: (order[file.part], file.class_name, file.names))
    return used, skipped


def _place(file: TreeFile, tops: PartFolders, outside: str) -> UsedFile | str:
    """Return the class and part of a file, or the reason why it is not used."""
    if file.reason:
        return file.reason
    for part, top in tops.items():
        if file.names[: len(top)] == top:
            if len(file.names) < len(top) + 2:
                return OUTSIDE_CLASSES
            if file.link_depth > len(top) + 1:
                return file_tree.INNER_LINK
            return UsedFile(file.names, len(top), part)
    return outside


def _summarize(skipped: _Skipped) -> list[SkippedFiles]:
    return [
        SkippedFiles(reason, count, tuple("/".join(names) for names in skipped.files[reason][:MAX_NAMED]))
        for reason, count in skipped.count.most_common()
    ]


def _check_reached(
    tree: FileTree, tops: PartFolders, used: Sequence[UsedFile], skipped: _Skipped, follow_links: bool
) -> None:
    """Check that no part and no class of a part is empty because its images are behind a link or cannot be read.

    Raises:
        ValueError: there is such a folder.
    """
    present = {file.names[: file.depth + 1] for file in used} | {file.names[: file.depth] for file in used}
    lost: dict[str, str] = {}
    for reason in (*UNREACHED, file_tree.BROKEN_LINK):
        for names in filter(None, skipped.files[reason]):
            for top in tops.values():
                inside = names[: len(top)] == top
                # A broken link leads to a file or to a folder: its name has to decide.
                is_folder = len(names) > len(top) + 1 or not Path(names[-1]).suffix or reason != file_tree.BROKEN_LINK
                if inside and is_folder and names[: len(top) + 1] not in present and len(names) > len(top):
                    lost["/".join(names[: len(top) + 1])] = reason
                above = names == top[: len(names)] and top not in present
                part_like = names[:-1] == top[: len(names) - 1] and part_named(names[-1]) and not tree.images[names]
                if above or (part_like and reason == file_tree.BROKEN_LINK):
                    lost["/".join(names)] = reason
    if not lost:
        return
    reasons = set(lost.values())
    links = reasons & {file_tree.LINK_OUT, file_tree.INNER_LINK} and not follow_links
    raise ValueError(
        f"{tree.root} has folders without usable images, though they were probably meant to have some: "
        f"{preview(f'{name} ({reason})' for name, reason in lost.items())}. "
        + ("Read what the links lead to with --follow-links" if links else "Make them readable")
        + f", or remove them.\n{list_folders(tree)}"
    )


def _check_parts(tree: FileTree, tops: PartFolders, source: Source, skipped: _Skipped, given: bool) -> None:
    """Check that each part with files has images.

    Raises:
        ValueError: none of a part's files can be used, or a part of `--parts` is empty.
    """
    present = {example.part for example in source.examples}
    for part, top in tops.items():
        if part in ("val", "test") and part not in present and present:
            meant = {reason: n for reason, n in skipped.by_part[part].items() if _was_meant(reason)}
            if meant or given:
                others = ",".join(f"{name}={'/'.join(path)}" for name, path in tops.items() if name in present)
                reasons = "; ".join(f"{n} {reason}" for reason, n in meant.items()) or "no images there"
                raise ValueError(
                    f"{tree.root}: no image of the {part} set ({'/'.join(top)}/) can be used: {reasons}. Correct "
                    f"these files, or leave the part out: --parts {others}\n{list_folders(tree)}"
                )


def _was_meant(reason: str) -> bool:
    return reason not in HARMLESS and not reason.startswith(file_tree.JUNK)


def _empty_part_notes(tops: PartFolders, source: Source) -> list[str]:
    present = {example.part for example in source.examples}
    return [
        f"WARNING: {'/'.join(top)}/ holds no images, so there is no {part} set."
        for part, top in tops.items()
        if part is not None and part not in present
    ]


def _hints(tree: FileTree, tops: PartFolders, source: Source) -> list[str]:
    """Return what may help with a folder that is refused."""
    hints = []
    if source.skipped:
        hints.append(f"Files that are not used: {'; '.join(map(describe_skipped, source.skipped))}")
    if tables := tables_at_root(tree):
        hints.append(f"If {preview(tables)} has the labels, give it as --data")
    if words := label_prefixes(tree, ()):
        hints.append(
            f"The names of the images begin with {preview(words)}: if these are the labels, sort the images into "
            f"folders of these names, or write a table"
        )
    if len(tops) > 1:
        hints.append("--parts train=NAME leaves out other parts, for example one without labels")
    return hints
