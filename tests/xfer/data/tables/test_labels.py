"""Tables: missing and look-alike labels."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.xfer.data.tables.table_files import PLAIN, write
from xfer.data.tables.csv_table import table


@pytest.mark.parametrize("label", ["", " ", "nan", "NaN", "None", "NA", "N/A", "null", "<NA>"])
def test_missing_labels_are_refused_with_their_lines(root, label):
    with pytest.raises(ValueError, match=r"2 of 5 rows have no label .*: line 5, 6\. Remove these rows or give them"):
        table(write(root, *PLAIN, f"3.png,{label}", f"gone.png,{label}"))


def test_all_problems_of_labels_are_named_at_once(root):
    with pytest.raises(
        ValueError, match=r"(?s)1 of 4 rows have no label .*: line 5\. .*'Ant' \(1 rows.* and 'ant' \(1"
    ):
        table(write(root, "path,label", "1.png,ant", "2.png,Ant", "3.png,bee", "more/4.png,nan"))


ALIKE = {
    "case": ("Ant", "ant"),
    "number formats": ("1", "1.0"),
    "leading zeros": ("007", "7"),
    "exponents": ("1e3", "1000"),
    "separators": ("red ant", "red_ant"),
    "hyphens": ("red-ant", "red ant"),
    "double spaces": ("red  ant", "red ant"),
    "full width": ("\uff41nt", "ant"),
    "zero width": ("ant", "ant\u200b"),
    "quotation marks": ("'ant'", "ant"),
    "sharp s": ("Straße", "strasse"),
}


@pytest.mark.parametrize("kind", ALIKE)
def test_labels_that_look_alike_are_refused_and_listed(root, kind):
    one, other = ALIKE[kind]
    with pytest.raises(ValueError, match="look like spellings of one class") as caught:
        table(write(root, "path,label", f"1.png,{one}", f"2.png,{other}", "3.png,crow", f"more/4.png,{other}"))
    for count, line, name in ((1, 2, one), (2, 3, other)):
        assert f"{name!r} ({count} rows, first in line {line})" in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [("1", "-1"), ("1", "10"), ("1.5", "15"), ("12345678901234567", "12345678901234568"), ("a", "b"), ("c", "c++")],
)
def test_different_labels_are_different_classes(root, one, other):
    assert table(write(root, "path,label", f"1.png,{one}", f"2.png,{other}")).classes == tuple(sorted((one, other)))


def test_labels_that_differ_in_invisible_ways_are_merged_with_a_note(root):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    rows = (f"1.png,{composed}", f"2.png,{decomposed}", "3.png,ant ", "more/4.png,ant")
    source = table(write(root, "path,label", *rows))
    assert source.classes == ("ant", composed)
    assert source.notes == (
        "labels.csv: labels that differ only in surrounding white space or Unicode normal form were merged: "
        f"ant, {composed}.",
    )


@pytest.mark.parametrize(("classes", "warned"), [(2, False), (10, False), (11, True), (20, True)])
def test_almost_as_many_classes_as_images_are_a_warning(root, classes, warned):
    for number in range(20):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(root / f"n{number}.png")
    rows = [f"n{number}.png,{number % classes / 100:.2f}" for number in range(20)]
    notes = table(write(root, "path,target", *rows)).notes
    assert [note.startswith(f"WARNING: labels.csv: {classes} classes for 20 images.") for note in notes] == [
        True
    ] * warned
