"""Results: benchmarks/RESULTS.md, a section for each comparison, and the machine that a section was measured on."""

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
"""In this order; a search of one of its data sets has a section of its own."""
HEADER = """# Results: this project against the script that one would write instead

benchmarks/plain.py is that script, benchmarks/run.py runs both sides in turn on one machine, each as a whole command
in a process of its own. A ratio says how many times as fast ours was; behind each stand the smallest and the largest of
its repeats. Where a bar was not met, the section says what bounds it.
"""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A table in Markdown.

    >>> markdown_table(("a", "b"), [(1, 2)])
    ['| a | b |', '| --- | --- |', '| 1 | 2 |']
    """
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def describe_machine() -> str:
    """Processor, cores, memory and versions, in one line, with the date and the commit."""
    found = provenance()
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(
        f"{name} {found['versions'][name]}" for name in ("python", "torch", "torchvision", "timm", "ray", "optuna")
    )
    return (
        f"{found['created'][:10]}, commit {found['commit']}; {model[1] if model else 'unknown CPU'}, "
        f"{os.cpu_count()} cores, {memory:.0f} GiB; {versions}."
    )


def section(row: str, title: str, lines: Sequence[str]) -> str:
    """A section of the page, prose wrapped."""
    wrapped = (textwrap.fill(line, WIDTH) if line[:1].isalnum() else line for line in lines)
    return "\n".join([f"## {row}: {title}", "", *wrapped]).strip() + "\n"


def replace_section(page: str, row: str, text: str) -> str:
    """The page with this section in the place of the one it had for that row, in the order of `SECTION_ORDER`.

    What stands before the first of them stays there.

    Args:
        page: the whole page; empty for a new one.
        row: a name in `SECTION_ORDER`.
        text: the new section, from its heading on.
    """
    header, *rest = re.split(rf"^(?=## (?:{'|'.join(SECTION_ORDER)}|Row \d): )", page or HEADER, flags=re.MULTILINE)
    sections = {each[3:].partition(":")[0].strip(): each for each in rest} | {row: text}
    ordered = [sections.pop(name) for name in SECTION_ORDER if name in sections]
    return "\n\n".join(each.strip() for each in (header, *ordered, *sections.values())) + "\n"
