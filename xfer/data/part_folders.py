"""Find the folders of the training, validation and test part, or refuse what can be understood in several ways."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xfer.data.file_tree import FileTree, Prefix
from xfer.data.part_names import NO_PARTS, named_parts, part_named, possible_parts
from xfer.data.source import preview
from xfer.records import Part

MAX_LEVELS = 6
"""Maximum number of folders above the class folders that are followed if each holds a single folder with images."""

MAX_LISTED = 20
"""Maximum number of folders that an error lists."""

TABLES = (".csv", ".tsv")
"""Suffixes of tables, which may hold the labels."""

PartFolders = dict[Part | None, Prefix]
"""The folder that holds the class folders of each part; under None if the data set has no parts."""


def find_part_folders(tree: FileTree, parts: Mapping[str, str]) -> PartFolders:
    """Return the folder of each part.

    Args:
        tree: the files of the data set.
        parts: the folder of each part, as `part_names.parse_parts` returns them; detected from the names if empty.

    Raises:
        ValueError: there is no such folder, or the folders can be understood in several ways. The message lists them
            and names the flag that settles it.
    """
    locator = _PartLocator(tree)
    return locator.given(parts) if parts and parts != NO_PARTS else locator.detected(all_classes=bool(parts))


def list_folders(tree: FileTree, prefix: Prefix = ()) -> str:
    """Return a table of the folders directly below a folder, with the number of their images."""
    names = tree.subfolders(prefix)
    lines = []
    for name in names[:MAX_LISTED]:
        inner = (*prefix, name)
        below = tree.subfolders(inner)
        content = f", in the folders {preview(below)}" if below else ""
        lines.append(f"    {name}/  {tree.images[inner]} images{content}")
    if len(names) > MAX_LISTED:
        lines.append(f"    and {len(names) - MAX_LISTED} more folders")
    if direct := tree.direct_images[prefix]:
        lines.append(f"    {direct} images outside these folders")
    return "\n".join([f"{Path(tree.root, *prefix)} holds", *lines])


def label_prefixes(tree: FileTree, prefix: Prefix) -> list[str]:
    """Return the words with which the names of images directly in a folder begin, if they look like labels.

    At least two words that are followed by a number, each at least twice: cat.0.jpg, cat.1.jpg, dog.0.jpg, ...
    """
    names = [file.names[-1] for file in tree.files if file.names[:-1] == prefix and not file.reason]
    words = Counter(match[1] for name in names if (match := re.match(r"([^\W\d]+)[\W_]*\d+\D*$", Path(name).stem)))
    common = [word for word, count in words.most_common() if count > 1]
    return common if len(common) > 1 and sum(words.values()) == len(names) else []


def tables_at_root(tree: FileTree) -> list[str]:
    """Return the names of the tables directly in the root."""
    return [file.names[0] for file in tree.files if len(file.names) == 1 and file.path.suffix.lower() in TABLES]


@dataclass(frozen=True)
class _PartLocator:
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
            holders = self.tree.image_folders(prefix)
            if not all_classes:
                if named := named_parts(self.tree.subfolders(prefix)):
                    return self._named(prefix, named)
                if possible := possible_parts(holders):
                    raise self._refusal(prefix, f"has {preview(possible)}: parts or classes?", _by_part(possible))
            inner = (*prefix, *holders[:1])
            if len(holders) != 1 or self.tree.direct_images[inner]:
                break
            prefix = inner
        if len(self.tree.image_folders(prefix)) < 2:
            prefix = ()
        if not all_classes:
            self._refuse_parts_in_classes(prefix)
        return {None: prefix}

    def _named(self, prefix: Prefix, named: Mapping[str, Part]) -> PartFolders:
        """Return the folders of the parts among the folders below `prefix`, some of which are named like parts."""
        by_part = _by_part(named)
        for part, names in by_part.items():
            filled = [name for name in names if self.tree.images[(*prefix, name)]]
            if len(filled) > 1:
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
        for top in tops.values():
            inner = named_parts(self.tree.image_folders(top))
            if len(set(inner.values())) > 1 and len(inner) == len(self.tree.image_folders(top)):
                message = f"is a part and holds parts of its own: {preview(inner)}"
                raise self._refusal(top, message, {"train": [name for name, p in inner.items() if p == "train"][:1]})
        self._refuse_flat_parts(prefix, tops)
        tops = self._without_extra_levels(tops)
        return tops if len(tops) > 1 else {None: tops["train"]}

    def _refuse_flat_parts(self, prefix: Prefix, tops: PartFolders) -> None:
        """Refuse parts whose images are not in class folders."""
        flat = {
            part: top for part, top in tops.items() if self.tree.direct_images[top] and not self.tree.image_folders(top)
        }
        if not flat:
            return
        folders = preview("/".join(top) for top in flat.values())
        message = f"has {folders}, named like the {preview(map(str, flat))} part, with images but no class folders"
        if "train" in flat:
            words = label_prefixes(self.tree, flat["train"])
            hint = f" The names of the images begin with {preview(words)}, which may be the labels." if words else ""
            table = preview(tables_at_root(self.tree)) or "FILE.csv"
            raise ValueError(
                f"{Path(self.tree.root, *prefix)} {message}\n{list_folders(self.tree, prefix)}\nImages for training "
                f"need labels.{hint} Sort them into {'/'.join(flat['train'])}/<class>/, or give a table "
                f"({table}) with the columns path and label as --data. If every folder is a class: --parts none"
            )
        raise self._refusal(prefix, message, {str(part): [top[-1]] for part, top in tops.items() if part not in flat})

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
        """Refuse DIR/<class>/train/*.jpg, whose parts would be mixed, and DIR/<split>/train/<class>."""
        names = self.tree.image_folders(prefix)
        inside = {name: named_parts(self.tree.image_folders((*prefix, name))) for name in names}
        inside = {
            name: parts for name, parts in inside.items() if "train" in parts.values() and len(set(parts.values())) > 1
        }
        if not inside:
            return
        first, parts = next(iter(inside.items()))
        if all(len(self.tree.image_folders((*prefix, first, part))) > 1 for part in parts):
            by_part = {part: [f"{first}/{names[0]}"] for part, names in _by_part(parts).items()}
            raise self._refusal(
                prefix, f"has {preview(inside)}, which hold parts of their own: {preview(parts)}", by_part
            )
        which = "Every class has" if len(inside) == len(names) else f"The classes {preview(inside)} have"
        raise ValueError(
            f"{list_folders(self.tree, prefix)}\n{which} parts of its own ({preview(parts)}). Arrange the images "
            f"as DIR/train/<class> and DIR/test/<class>; --parts none mixes the parts and draws new ones"
        )

    def _refusal(self, prefix: Prefix, problem: str, by_part: Mapping[str, list[str]] | None = None) -> ValueError:
        """Return an error that shows the folders and the flags that settle it."""
        known = {part: names for part, names in (by_part or {}).items() if names}
        head = f"{Path(self.tree.root, *prefix)} {problem}\n{list_folders(self.tree, prefix)}\n"
        if known and not any(self.tree.folders.get((*prefix, *names[0].split("/"))) for names in known.values()):
            return ValueError(
                f"{head}If every folder is a class: --parts none. If not, put the images of each part in class folders"
            )
        chosen = {"train": ["NAME"], **known} if known else {"train": ["NAME"], "test": ["NAME"]}
        flag = ",".join(f"{part}={'/'.join((*prefix, names[0]))}" for part, names in chosen.items())
        return ValueError(
            f"{head}Say which folders are the parts, as in --parts {flag}; other folders are then left out. If every "
            f"folder is a class: --parts none"
        )


def _by_part(named: Mapping[str, Part]) -> dict[str, list[str]]:
    """Return the names of each part."""
    by_part: dict[str, list[str]] = defaultdict(list)
    for name, part in named.items():
        by_part[part].append(name)
    return dict(by_part)
