"""CSV files that list images and their labels."""

from __future__ import annotations

import pytest

from tests.xfer.data.tables.table_files import PLAIN, listing, write
from xfer.data.layouts import read_source
from xfer.data.pack import build_pack
from xfer.data.tables.csv_table import table


def test_each_row_is_an_image_with_its_label(root):
    source = table(write(root, *PLAIN))
    assert (source.name, source.classes, source.notes) == ("labels", ("crow", "robin"), ())
    assert listing(source, root) == [("1.png", "robin", None), ("2.png", "crow", None), ("more/4.png", "robin", None)]


def test_a_table_gives_the_same_pack_as_a_folder_of_the_same_photos(root, tmp_path):
    for name, label in (("1.png", "robin"), ("2.png", "crow"), ("more/4.png", "robin")):
        target = tmp_path / "folder" / label / name.replace("/", "_")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((root / name).read_bytes())
    packs = [build_pack(read_source(path), 8, tmp_path / "p") for path in (write(root, *PLAIN), tmp_path / "folder")]
    assert packs[0].hash == packs[1].hash


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", [("path", "label"), ("Image", "CLASS"), ("file", "target"), ("filename", "label ")])
def test_delimiter_and_columns_are_detected(root, delimiter, header):
    rows = [("id", *header), ("7", "1.png", "a,b" if delimiter != "," else '"a,b"'), ("8", "2.png", "c")]
    source = table(write(root, *(delimiter.join(row) for row in rows)))
    assert listing(source, root) == [("1.png", "a,b", None), ("2.png", "c", None)]


def test_a_table_exported_from_a_spreadsheet_is_read(root):
    rows = ("\ufeffpath;label\r", '"1.png";"Ästling; jung"\r', "2.png; crow \r", "\r")
    assert table(write(root, *rows)).classes == ("crow", "Ästling; jung")


def test_given_parts_are_kept(root):
    rows = ("path,label,split", "1.png,a,train", "2.png,b,Train", "3.png,a,validation", "more/4.png,b,test")
    assert [part for _, _, part in listing(table(write(root, *rows)), root)] == ["train", "train", "val", "test"]


def test_a_table_with_only_train_has_no_parts(root):
    source = table(write(root, "path,label,part", "1.png,a,train", "2.png,b,train"))
    assert {example.part for example in source.examples} == {None}


def test_a_damaged_image_is_skipped_by_the_pack(root, tmp_path):
    (root / "3.png").write_bytes(b"not an image")
    pack = build_pack(table(write(root, *PLAIN, "3.png,crow")), 8, tmp_path / "packs")
    assert [problem.split(":")[0] for problem in pack.skipped] == ["crow/3.png"]


WRONG = {
    "nothing": ([], r"begins with '', not with path/image/file/filename or label/class/target"),
    "no label": (["path,species", "1.png,a"], r"begins with 'path,species', not with"),
    "no header": (["1.png,a", "2.png,b"], r"begins with '1\.png,a'"),
    "two labels": (
        ["path,label,class", "1.png,a,b"],
        "has 2 columns for the label. Rename all but one of 'label', 'class'",
    ),
    "header only": (["path,label"], "lists no image that exists: it has no rows"),
    "no photos": (
        ["path,label", "x.jpg,a", "y.jpg,b"],
        r"no image that exists\. Rows .* 2 file not found \(line 2: x\.jpg",
    ),
    "one class": (["path,label", "1.png,a", "2.png,a"], r"one class only \(a\)"),
    "one-hot columns": (
        ["image,crow,robin", "1.png,1.0,0.0", "2.png,0.0,1.0"],
        "no column with labels, but columns of 0 and 1: crow, robin",
    ),
    "a spreadsheet": (["PK\x03\x04" + "\x00" * 200_000], "begins with 'PK"),
    "unknown part": (
        ["path,label,part", "1.png,a,trian"],
        r"line 2: unknown part 'trian'. Known: train, val.* as in --parts train=trian; .* rename it",
    ),
    "some parts": (["path,label,part", "1.png,a,train", "2.png,b,"], "line 3 has no part, but other rows have one"),
    "no train": (["path,label,part", "1.png,a,test", "2.png,b,test"], "no training images for a, b"),
    "contradiction": ([*PLAIN, "./1.png,crow"], r"1\.png is robin in line 2 and crow in line 5"),
    "a long field": ([*PLAIN, "x" * 200_000 + ",a"], r"labels\.csv line 5 cannot be read: field larger than"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_unusable_table_is_refused(root, kind):
    rows, message = WRONG[kind]
    with pytest.raises(ValueError, match=message):
        table(write(root, *rows))


def test_a_missing_table_and_a_folder_are_refused(root):
    with pytest.raises(ValueError, match=r"there is no file .*nowhere\.csv"):
        table(root / "nowhere.csv")
    with pytest.raises(ValueError, match=r"birds is a folder"):
        table(root)
