"""Inspect: show what a data set holds and where every file went, before anything is trained."""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from xfer.commands import shared
from xfer.data.image_formats import UnreadableImageError
from xfer.data.images import LazyImage
from xfer.data.inspection import Inspection, inspect_source
from xfer.data.source import Source, preview
from xfer.storage.atomic import atomic_write

SHEET_IMAGES = 24
"""Maximum number of thumbnails per class in the contact sheet."""

SHEET_SIDE = 96
"""Side of a thumbnail in pixels."""

MAX_ROWS = 10
"""Maximum number of rows of each table of sizes, modes and conflicts."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
th, td {{ padding: .15rem 1rem .15rem 0; text-align: left; vertical-align: top; }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
.sheet {{ display: flex; flex-wrap: wrap; gap: 4px; }}
.sheet img {{ width: {side}px; height: {side}px; }}
.warning {{ border-left: 4px solid #c60; padding-left: .7rem; margin: .3rem 0; }}
</style></head><body>
{body}
</body></html>
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    shared.add_data_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with a contact sheet per class")


def run(args: argparse.Namespace) -> None:
    """Inspects the images and prints the result."""
    source = shared.read_images(args)
    inspection = inspect_source(source, shared.progress_printer("reading images"))
    if args.html:
        atomic_write(args.html, render_page(source, inspection).encode())
    print(json.dumps(_encodable(inspection.as_dict()), indent=1) if args.json else describe(inspection))


def describe(inspection: Inspection) -> str:
    """Return the inspection as text for a terminal."""
    parts = inspection.parts
    lines = [f"{inspection.name}: {len(inspection.classes)} classes, {inspection.used:,} images", inspection.summary]
    for reason, names in inspection.skipped_first.items():
        more = ", ..." if inspection.skipped[reason] > len(names) else ""
        if names:
            lines.append(f"  {inspection.skipped[reason]:,} {reason}: {', '.join(names)}{more}")
    width = max(len(_printable(name)) for name in inspection.classes)
    lines += ["", "class".ljust(width) + "".join(part.rjust(9) for part in parts)]
    for name in inspection.classes:
        lines.append(_printable(name).ljust(width) + "".join(f"{counts[name]:9,}" for counts in parts.values()))
    lines.append("")
    if inspection.sizes:
        lines += [f"sizes: {_top(inspection.sizes)}", f"modes: {_top(inspection.modes)}"]
    lines.append(f"copies: {inspection.exact_copies:,} exact, {inspection.near_copies:,} near")
    for pair, counts in inspection.copies_across_parts.items():
        lines.append(f"copies in {pair.replace('-', ' and ')}: {counts['exact']:,} exact, {counts['near']:,} near")
    if inspection.groups:
        lines.append(inspection.group_line)
    for pair, counts in inspection.groups.get("across_parts", {}).items():
        lines.append(f"groups in {pair.replace('-', ' and ')}: {counts['groups']:,}, with {counts['images']:,} images")
    for conflict in inspection.conflicts[:MAX_ROWS]:
        kind = {"exact": "same picture", "near": "near copies"}[conflict["kind"]]
        lines.append(f"{kind} in {' and '.join(conflict['classes'])}: {preview(conflict['images'])}")
    lines += [*inspection.warnings]
    return "\n".join(_printable(line) for line in lines)


def render_page(source: Source, inspection: Inspection) -> str:
    """Return an HTML page without scripts or links: tables, warnings and a contact sheet per class."""
    blocks = [f"<h1>{_escape(inspection.name)}</h1>", f"<p>{_escape(inspection.summary)}</p>"]
    blocks += [f"<p>{_escape(inspection.group_line)}</p>"] if inspection.groups else []
    blocks += [f'<p class="warning">{_escape(warning)}</p>' for warning in inspection.warnings]
    rows = [[name, *(f"{counts[name]:,}" for counts in inspection.parts.values())] for name in inspection.classes]
    blocks.append(_table(["class", *inspection.parts], rows))
    skipped = [
        [reason, f"{n:,}", ", ".join(inspection.skipped_first[reason])] for reason, n in inspection.skipped.items()
    ]
    if skipped:
        blocks += ["<h2>Skipped files</h2>", _table(["reason", "files", "the first"], skipped)]
    for title, counts in (("Sizes", inspection.sizes), ("Modes", inspection.modes)):
        table = _table([title.lower(), "images"], [[name, f"{n:,}"] for name, n in [*counts.items()][:MAX_ROWS]])
        blocks += [f"<h2>{title}</h2>", table] if counts else []
    if inspection.conflicts:
        rows = [
            [conflict["kind"], ", ".join(conflict["classes"]), ", ".join(conflict["images"])]
            for conflict in inspection.conflicts[: 10 * MAX_ROWS]
        ]
        blocks += ["<h2>Pictures filed under several classes</h2>", _table(["copies", "classes", "images"], rows)]
    groups = [
        *((group, "exact") for group in inspection.copies),
        *((group, "near") for group in inspection.near_groups),
    ]
    if groups:
        rows = [[kind, f"{len(group):,}", preview(group)] for group, kind in groups[: 10 * MAX_ROWS]]
        blocks += ["<h2>Copies</h2>", _table(["copies", "images", "the first"], rows)]
    blocks += _contact_sheets(source)
    return PAGE.format(title=_escape(f"{inspection.name}: images"), side=SHEET_SIDE, body="\n".join(blocks))


def _contact_sheets(source: Source) -> list[str]:
    """Return a heading and the first thumbnails of each class."""
    images: dict[int, list[LazyImage]] = defaultdict(list)
    for example in source.examples:
        if len(images[example.label]) < SHEET_IMAGES:
            images[example.label].append(example.image)
    blocks = []
    for label, name in enumerate(source.classes):
        thumbnails = []
        for image in images[label]:
            try:
                pixels = image.read(SHEET_SIDE)
            except UnreadableImageError:
                continue
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=75)
            data = base64.b64encode(buffer.getvalue()).decode()
            text = _escape(image.name)
            thumbnails.append(f'<img src="data:image/jpeg;base64,{data}" alt="{text}" title="{text}">')
        blocks.append(f'<h2>{_escape(name)}</h2>\n<div class="sheet">{"".join(thumbnails)}</div>')
    return blocks


def _table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{_escape(cell)}</th>" for cell in header)
    body = "\n".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>\n{body}</table>"


def _cell(text: str) -> str:
    number = text.replace(",", "").isdecimal()
    return f'<td class="number">{text}</td>' if number else f"<td>{_escape(text)}</td>"


def _top(counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{name} ({number:,})" for name, number in [*counts.items()][:MAX_ROWS])
    return f"{shown} and {len(counts) - MAX_ROWS} more" if len(counts) > MAX_ROWS else shown


def _escape(text: str) -> str:
    return html.escape(_printable(text))


def _printable(text: str) -> str:
    """Replace control characters, and the bytes of names that are not UTF-8, by escape sequences."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _encodable(value: Any) -> Any:
    """Replace the bytes of names that are not UTF-8, everywhere in plain data, by escape sequences."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return value
