"""The report files are complete at every stage of a sweep, self-contained, and safe against hostile names."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from sweeps.reporting.first_screen import first_screen
from sweeps.reporting.render import render
from sweeps.reporting.results import Results
from tests.reporting.conftest import a_plan, a_record, results_of, some_finals
from xfer.records import Record

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
EVIL = "<script>alert(1)</script>|`*[x](y)\n# no\x1b[31m\u202e\"'>{{ 7 * 7 }}"


class Tags(HTMLParser):
    """The tags of a page, and the resources that it would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.fetched: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "xlink:href", "srcset", "data")]


def pages(results: Results, folder: Path) -> tuple[str, str]:
    """Contents of report.md and report.html."""
    html = render(results, folder)
    return (folder / "report.md").read_text(encoding="utf-8"), html.read_text(encoding="utf-8")


def test_a_report_consists_of_exactly_these_files(opened: Results, tmp_path: Path) -> None:
    assert render(opened, tmp_path / "new" / "report") == tmp_path / "new" / "report" / "report.html"
    assert sorted(str(path.relative_to(tmp_path / "new/report")) for path in tmp_path.rglob("*.*")) == [
        "figures/best_so_far.svg",
        "figures/cost.svg",
        "figures/finalists.svg",
        "figures/learning_curves.svg",
        "figures/strategies.svg",
        "figures/trial_map.svg",
        "ranking.csv",
        "report.html",
        "report.md",
        "trials.parquet",
    ]


def test_rendering_again_gives_the_same_bytes(opened: Results, tmp_path: Path) -> None:
    first = pages(opened, tmp_path)
    assert pages(opened, tmp_path) == first


@pytest.mark.parametrize(
    "records",
    [
        [],
        [a_record("0000", (), "failed", error="out of memory"), a_record("0001", (), "failed")],
        [a_record("0000", (0.5,), "pruned")],
        [a_record("0000")],
        [a_record("0000"), a_record("0001"), *some_finals("0000", 0.9)],
    ],
    ids=["nothing yet", "all failed", "all pruned", "a single trial", "finals before the opening"],
)
def test_a_report_can_be_rendered_at_any_time(records: list[Record], tmp_path: Path) -> None:
    for page in pages(results_of(records), tmp_path):
        for word in ("nan%", ">nan<", "None", "undefined"):
            assert word not in page


def test_both_pages_contain_results_and_provenance(opened: Results, tmp_path: Path) -> None:
    provenance = opened.plan["provenance"]
    for page in pages(opened, tmp_path):
        for text in (
            "Tied for first place is freeze_then_unfreeze(freeze_epochs=2)",
            "90.0% (95% interval 82.6 to 94.5; 100 images, 3 seeds)",
            "80.0%",
            "Run once per recipe and not ranked",
            "loss is NaN at step 12",
            "0123456789abcdef" * 4,
            "train/bees/broken.jpg",
            "sgd, adam, radam, ranger",
            provenance["command"],
            provenance["commit"],
            "torch 2.15.0",
            "1 min 50 s in total over 11 runs",
            "stopped early at epoch 2",
            "full fine-tuning",
        ):
            assert text in page


def test_the_word_for_the_test_set_is_the_same_everywhere(opened: Results, tmp_path: Path) -> None:
    data = a_plan()["data"] | {
        "split": "the given val part is the test part, and a stratified fifth of the training part is drawn",
        "notes": ["3 images of the test part are also in the training or validation part, byte for byte."],
    }
    for page in pages(Results({**opened.plan, "data": data}, opened.records, opened.openings), tmp_path):
        assert "the given val part is the test set, and a stratified fifth of the training set is drawn" in page
        assert "3 images of the test set are also in the training or validation set" in page
        assert not re.search("(training|validation|test) part", page)


def test_a_second_use_of_the_test_set_is_reported(tmp_path: Path) -> None:
    records = [a_record("0000"), *some_finals("0000", 0.9, 0.9)]
    for page in pages(results_of(records, ["0000"], ["0000"]), tmp_path):
        assert "no longer untouched" in page


def test_the_page_has_no_scripts_and_fetches_nothing(opened: Results, tmp_path: Path) -> None:
    _, html = pages(opened, tmp_path)
    tags = Tags(html)
    assert f'content="{POLICY}"' in html
    assert tags.names.count("svg") == 6 + len(first_screen(opened).bars)
    assert not {"script", "link", "iframe", "object", "img"} & set(tags.names)
    assert all(target.startswith(("#", "data:image/")) for target in tags.fetched)


def test_untrusted_names_are_plain_text_on_every_page(tmp_path: Path) -> None:
    plan = a_plan(name=EVIL, question=EVIL, space={EVIL: EVIL})
    plan["data"] |= {"folder": EVIL, "classes": [EVIL, "bees"], "notes": [EVIL], "split": EVIL}
    plan["provenance"] |= {"command": EVIL}
    records = [
        a_record("0000", strategy=EVIL, optimizer={"name": EVIL, EVIL: EVIL}, backbone=EVIL),
        a_record("0001", (), "failed", error=EVIL),
        *some_finals("0000", 0.9, 0.9, strategy=EVIL),
    ]
    markdown, html = pages(results_of(records, ["0000"], **plan), tmp_path)
    harmless_markdown, harmless_html = pages(
        results_of([a_record("0000"), *records[2:]], ["0000"]), tmp_path / "harmless"
    )

    assert set(Tags(html).names) == set(Tags(harmless_html).names)
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    inline = {child.type for token in tokens for child in token.children or []}
    assert "html_block" not in {token.type for token in tokens}
    assert not {"html_inline", "code_inline"} & inline
    assert (
        sum(token.type == "heading_open" for token in tokens) == harmless_markdown.count("\n#") + 2
    )  # + title, failed runs
    table_rows = sum(token.type == "tr_open" for token in tokens)
    ranking, search, combinations, strategies, failures = 1 + 1, 1 + 2, 1 + 2, 1 + 2, 1 + 1
    screen = 1 + 1
    assert table_rows == screen + ranking + search + combinations + strategies + failures
    for page in (markdown, html, *(path.read_text() for path in tmp_path.rglob("*.svg"))):
        assert not any(character in page for character in "\x1b\u202e")


def test_a_crash_while_writing_keeps_the_older_report(
    opened: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pages(opened, tmp_path)

    def no_space(*_: object, **__: object) -> int:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(OSError, match="no space"):
        render(opened, tmp_path)
    monkeypatch.undo()
    assert ((tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()) == before
