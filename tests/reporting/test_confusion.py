"""The confusion matrix of the best recipe counts every prediction once and fits the page, whatever the classes are."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from sweeps.reporting.confusion import MAX_DRAWN_CLASSES, confused_pairs, confusion_sections
from sweeps.reporting.formatting import MISSING
from sweeps.reporting.results import Results
from tests.reporting.conftest import a_plan, a_record, results_of, some_finals
from xfer.records import Record

Confusion = tuple[tuple[int, int, int], ...]
STRANGE = "<script>alert(1)</script>"


def a_tested_sweep(confusion: Confusion, classes: list[str], **data: object) -> Results:
    """A sweep whose finalist 0000 has this confusion matrix on each of two seeds, and 0001 another one."""
    plan = a_plan()
    plan["data"] |= {"classes": classes, **data}
    return results_of(
        [
            a_record("0000"),
            a_record("0001"),
            *(with_confusion(record, confusion) for record in some_finals("0000", 0.9, 0.9, seeds=2)),
            *(with_confusion(record, ((0, 0, 1),)) for record in some_finals("0001", 0.8, 0.8, seeds=2)),
        ],
        ["0000", "0001"],
        **plan,
    )


def with_confusion(record: Record, confusion: Confusion) -> Record:
    assert record.test is not None
    return replace(record, test=replace(record.test, confusion=confusion))


def texts(svg: str) -> list[str]:
    return [
        "".join(element.itertext()) for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")
    ]


def test_a_cell_is_the_part_of_its_row_that_was_predicted_so() -> None:
    matrix, _ = confusion_sections(a_tested_sweep(((0, 0, 6), (0, 1, 2), (1, 1, 300), (1, 0, 1)), ["ants", "bees"]))
    assert matrix.figure is not None
    shown = texts(matrix.figure.svg)
    assert {"75", "25", "100", "<1"} <= set(shown)
    assert {"ants (n = 8)", "bees (n = 301)"} <= set(shown)
    assert matrix.title == "Confusion matrix of trial 0000"


def test_the_accuracy_of_a_class_comes_with_n_interval_and_its_most_frequent_confusion() -> None:
    confusion = ((0, 0, 8), (0, 1, 2), (1, 1, 6), (1, 0, 1), (1, 2, 3), (2, 2, 10))
    results = a_tested_sweep(confusion, ["ants", "bees", "wasps"], images=[30, 40, 50])
    _, classes = confusion_sections(results)
    assert classes.table.header == ("class", "accuracy", "n", "all images", "most often taken for")
    assert classes.table.rows == (
        ("bees", "60.0% (31.3 to 83.2)", "10", "40", "wasps (6)"),
        ("ants", "80.0% (49.0 to 94.3)", "10", "30", "bees (4)"),
        ("wasps", "100.0% (72.2 to 100.0)", "10", "50", MISSING),
    )


def test_of_many_classes_the_most_frequent_confusions_are_listed_instead() -> None:
    count = MAX_DRAWN_CLASSES + 1
    confusion = (*((label, label, 5) for label in range(count)), (3, 30, 4), (7, 8, 1))
    matrix, _ = confusion_sections(
        a_tested_sweep(tuple(sorted(confusion)), [f"class {label:02d}" for label in range(count)])
    )
    assert matrix.figure is None
    assert matrix.table.rows == (("class 03", "class 30", "8", "44.4%"), ("class 07", "class 08", "2", "16.7%"))


def test_there_are_no_pairs_without_an_error() -> None:
    assert confused_pairs({(0, 0): 5, (1, 1): 5}, ["ants", "bees"]).rows == ()


def test_a_class_named_like_a_tag_stays_text_in_the_figure() -> None:
    matrix, _ = confusion_sections(a_tested_sweep(((0, 0, 6), (1, 0, 2)), [STRANGE, "bees\x1b"]))
    assert matrix.figure is not None
    root = ElementTree.fromstring(matrix.figure.svg)
    assert not any(element.tag.endswith("script") for element in root.iter())
    assert any(text.startswith("<script>alert(1)") for text in texts(matrix.figure.svg))


@pytest.mark.parametrize("count", [2, MAX_DRAWN_CLASSES])
def test_the_matrix_lies_within_the_page(count: int) -> None:
    confusion = tuple((label, label, 5) for label in range(count))
    matrix, _ = confusion_sections(a_tested_sweep(confusion, ["a class with a very long name"] * count))
    assert matrix.figure is not None
    width = float(ElementTree.fromstring(matrix.figure.svg).get("width", "").removesuffix("pt"))
    assert width == pytest.approx(7.2 * 72, abs=1)


def test_without_a_test_set_or_a_stored_matrix_there_is_none(opened: Results) -> None:
    assert confusion_sections(results_of([a_record("0000"), *some_finals("0000", 0.9)])) == []
    (missing,) = confusion_sections(opened)
    assert missing.figure is None
    assert "did not store confusion matrices" in missing.sentences[0]
