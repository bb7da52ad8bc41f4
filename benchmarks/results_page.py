"""The page benchmarks/RESULTS.md: one section per comparison, each with the machine it was measured on."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from sweeps.engine.console.provenance import provenance

RESULTS_FILE = Path(__file__).with_name("RESULTS.md")
WIDTH = 120
SECTION_ORDER = ("probes", "finetune", "search", "search quickdraw", "search cars")
"""Order of the sections; a search on a single data set has its own section."""
HEADER = """# Results: this project against the script that one would write instead

That script is benchmarks/plain.py. benchmarks/run.py runs both sides in alternation on one machine, each as a whole
command in its own process. A ratio says how many times as fast ours was, followed by the smallest and the largest value
of its repeats. If a target was not met, the section names the bottleneck.
"""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Format a table as Markdown.

    >>> markdown_table(("a", "b"), [(1, 2)])
    ['| a | b |', '| --- | --- |', '| 1 | 2 |']
    """
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def describe_machine() -> str:
    """One line with the date, the commit, the processor, cores, memory and versions."""
    info = provenance()
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(
        f"{name} {info['versions'][name]}" for name in ("python", "torch", "torchvision", "timm", "ray", "optuna")
    )
    return (
        f"{info['created'][:10]}, commit {info['commit']}; {model[1] if model else 'unknown CPU'}, "
        f"{os.cpu_count()} cores, {memory:.0f} GiB; {versions}."
    )


def section(row: str, title: str, lines: Sequence[str]) -> str:
    """Format a section of the page and wrap its prose."""
    wrapped = (textwrap.fill(line, WIDTH) if line[:1].isalnum() else line for line in lines)
    return "\n".join([f"## {row}: {title}", "", *wrapped]).strip() + "\n"


def replace_section(page: str, row: str, text: str) -> str:
    """Insert a section into the page, or replace the previous one of the same row.

    Args:
        page: the whole page; empty for a new one.
        row: a name in `SECTION_ORDER`, which also determines the order.
        text: the new section, including its heading.

    Returns:
        The new page. Text before the first section stays at the top.
    """
    header, *rest = re.split(rf"^(?=## (?:{'|'.join(SECTION_ORDER)}|Row \d): )", page or HEADER, flags=re.MULTILINE)
    sections = {part[3:].partition(":")[0].strip(): part for part in rest} | {row: text}
    ordered = [sections.pop(name) for name in SECTION_ORDER if name in sections]
    return "\n\n".join(part.strip() for part in (header, *ordered, *sections.values())) + "\n"
