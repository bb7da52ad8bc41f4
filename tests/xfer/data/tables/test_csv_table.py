"""CSV files that list images and their labels."""

from __future__ import annotations

import pytest
from PIL import Image

from xfer.data.layouts import read_source
from xfer.data.pack import build_pack
from xfer.data.tables.csv_table import table

NAMES = ("1.png", "2.png", "3.png", "more/4.png")


@pytest.fixture
def root(tmp_path):
    """A folder with four photos, for a table next to them."""
    for number, name in enumerate(NAMES):
        path = tmp_path / "birds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number * 50, 0, 0)).save(path)
    return tmp_path / "birds"


def write(root, *rows, name="labels.csv", encoding="utf-8"):
    (root / name).write_bytes("\n".join(rows).encode(encoding))
    return root / name


def listing(source, root):
    return [
        (str(example.image.path.relative_to(root)), source.classes[example.label], example.part)
        for example in source.examples
    ]


PLAIN = ("path,label", "1.png,robin", "2.png,crow", "more/4.png,robin")


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


def test_rows_without_an_image_are_skipped_and_counted(root):
    rows = (
        "gone.png,crow",
        ",crow",
        "more,crow",
        "a\0b.png,crow",
        "x" * 9999 + ",crow",
        "C:\\img\\1.png,crow",
        ",",
        "",
    )
    source = table(write(root, *PLAIN, *rows))
    assert len(source.examples) == 3
    assert source.notes[0].startswith(
        f"labels.csv: 6 of 9 rows were skipped: line 5: there is no {root / 'gone.png'}, line 6 has no path, "
    )
    assert source.notes[0].endswith("and 1 more.")


def test_a_damaged_image_is_skipped_by_the_pack(root, tmp_path):
    (root / "3.png").write_bytes(b"not an image")
    pack = build_pack(table(write(root, *PLAIN, "3.png,crow")), 8, tmp_path / "packs")
    assert [problem.split(":")[0] for problem in pack.skipped] == ["crow/3.png"]


def test_an_absolute_path_into_the_tables_folder_is_accepted(root):
    assert len(table(write(root, *PLAIN, f"{root / '3.png'},crow")).examples) == 4


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "link.png", "more/../../secret.png"])
def test_a_path_that_leads_out_of_the_tables_folder_is_refused(root, path):
    Image.new("RGB", (9, 9)).save(root.parent / "secret.png")
    (root / "link.png").symlink_to(root.parent / "secret.png")
    with pytest.raises(ValueError, match=rf"labels\.csv line 5: {path} leads out of {root}"):
        table(write(root, *PLAIN, f"{path},crow"))


WRONG = {
    "nothing": ([], r"begins with '', not with path/image/file/filename or label/class/target"),
    "no label": (["path,species", "1.png,a"], r"begins with 'path,species', not with"),
    "no header": (["1.png,a", "2.png,b"], r"begins with '1\.png,a'"),
    "two labels": (["path,label,class", "1.png,a,b"], "has 2 columns for the label. Rename"),
    "header only": (["path,label"], "lists no image that exists: it has no rows"),
    "no photos": (["path,label", "x.jpg,a", "y.jpg,b"], r"no image that exists: line 2: there is no .*x\.jpg"),
    "one class": (["path,label", "1.png,a", "2.png,a"], r"one class only \(a\)"),
    "unknown part": (
        ["path,label,part", "1.png,a,trian"],
        r"line 2: unknown part 'trian'. Known: train, val.* rename it",
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


def test_a_table_in_another_encoding_is_refused_with_its_line(root):
    with pytest.raises(ValueError, match=r"line 3 is not UTF-8: b'2\.png,\\xc4'. Save the table again as UTF-8"):
        table(write(root, "path,label", "1.png,crow", "2.png,Ästling", encoding="latin-1"))
    with pytest.raises(ValueError, match=r"line 1 holds null bytes, as UTF-16 without a byte order mark"):
        table(write(root, *PLAIN, encoding="utf-16-le"))
    path = write(root, *PLAIN, encoding="utf-16")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=r"line 4 is not UTF-16, which the file's first bytes announce: truncated data"
    ):
        table(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_unicode_table_is_read_with_a_byte_order_mark_and_any_line_end(root, encoding, end):
    (root / "labels.csv").write_bytes(end.join(("path,label", "1.png,Ästling", "2.png,烏", "")).encode(encoding))
    assert table(root / "labels.csv").classes == ("Ästling", "烏")


def test_a_missing_table_and_a_folder_are_refused(root):
    with pytest.raises(ValueError, match=r"there is no file .*nowhere\.csv"):
        table(root / "nowhere.csv")
    with pytest.raises(ValueError, match=r"birds is a folder"):
        table(root)


def test_a_table_larger_than_the_limit_is_refused_unread(root):
    path = write(root, *PLAIN)
    with path.open("r+b") as file:
        file.truncate(256 * 2**20 + 1)  # a sparse file
    with pytest.raises(ValueError, match="larger than 256 MiB"):
        table(path)


# Quotes and fields


STRAY_QUOTES = {
    "before a label": ['1.png,"robin', "2.png,crow", "3.png,crow", "more/4.png,robin"],
    "before a label, and a quoted label later": ['1.png,"robin', "2.png,crow", '3.png,"crow"', "more/4.png,robin"],
    "before a label, and after another one": ['1.png,"robin', "2.png,crow", '3.png,crow"', "more/4.png,robin"],
    "before a path": ['"1.png,robin', "2.png,crow", "3.png,crow"],
    "at the end": ['1.png,"robin'],
    "within a long table": ['1.png,"robin', *("2.png,crow" for _ in range(20_000))],
}


@pytest.mark.parametrize("kind", STRAY_QUOTES)
def test_a_stray_quote_is_refused_with_its_line(root, kind):
    with pytest.raises(ValueError, match=r"labels\.csv line 3: a double quote is opened and not closed in this line"):
        table(write(root, "path,label", "more/4.png,robin", *STRAY_QUOTES[kind]))


@pytest.mark.parametrize("label", ['robin"', 'ro"bin', 'ro"b"in', "'\"robin"])
def test_a_quote_inside_a_value_is_refused_with_its_line(root, label):
    with pytest.raises(ValueError, match=r"labels\.csv line 3 has a double quote inside a value"):
        table(write(root, "path,label", "2.png,crow", f"1.png,{label}"))


def test_a_stray_quote_in_an_unused_column_is_refused_if_it_swallows_rows(root):
    rows = ("path,label,caption", '1.png,robin,"on a', "2.png,crow,b", '3.png,crow,twig"', "more/4.png,robin,d")
    with pytest.raises(ValueError, match="line 2: a double quote is opened and not closed in this line .*up to line 4"):
        table(write(root, *rows))


def test_properly_quoted_values_are_read(root):
    rows = ("path,label,caption", '1.png,"the ""big"" robin, old","two', 'lines, one row"', '"2.png", "crow" ,', "")
    with pytest.raises(ValueError, match="line 4 cannot be read: ',' expected after"):
        table(write(root, *rows))
    source = table(write(root, *rows[:3], '"2.png", "crow",', ""))
    assert source.classes == ("crow", 'the "big" robin, old')
    assert source.notes == ()


@pytest.mark.parametrize(("row", "count"), [("3.png", 1), ("3.png,robin,old,", 4), ("3.png,a, b", 3)])
def test_a_row_with_another_number_of_fields_than_the_header_is_refused_with_its_line(root, row, count):
    message = rf"line 5 has another number of fields \({count}\) than the header \(2\): '3\.png.*in double quotes"
    with pytest.raises(ValueError, match=message):
        table(write(root, *PLAIN, row))


def test_empty_rows_and_empty_additional_fields_are_accepted(root):
    rows = ("sep=;", "", "path;label;;", "1.png;robin;", " ; ", "2.png;crow;;", ";;;")
    source = table(write(root, *rows))
    assert (source.classes, source.notes, len(source.examples)) == (("crow", "robin"), (), 2)


# Parts


@pytest.mark.parametrize("column", ["part", "Split", "subset", "SET", "data set", "Usage"])
def test_the_part_is_read_from_any_usual_column_and_in_any_spelling(root, column):
    rows = (f"path,label,{column}", "1.png,a,TRAIN", "2.png,b,Training set", "3.png,a,dev", "more/4.png,b,Testing ")
    source = table(write(root, *rows))
    assert [part for _, _, part in listing(source, root)] == ["train", "train", "val", "test"]
    usual = column.lower() in ("part", "split", "subset", "set")
    named = f"labels.csv: the part of each image is read from the column {column.lower().replace(' ', '_')!r}."
    assert source.notes == (() if usual else (named,))


@pytest.mark.parametrize(
    ("header", "values", "parts"),
    [
        ("is_valid", ["False", "false", "True", "TRUE"], ["train", "train", "val", "val"]),
        ("is_test", ["0", "no", "1", "1.0"], ["train", "train", "test", "test"]),
        ("Is Train", ["1", "t", "0", "f"], ["train", "train", "test", "test"]),
        ("is_valid,is_test", ["0,0", "0,0", "1,0", "0,1"], ["train", "train", "val", "test"]),
        ("train,val,test", ["1,0,0", "1,0,0", "0,1,0", "0,0,1"], ["train", "train", "val", "test"]),
        ("is_valid", ["0", "0", "0", "0"], [None, None, None, None]),
        ("test", ["blood", "urine", "", "blood"], [None, None, None, None]),
    ],
)
def test_columns_of_booleans_give_the_part(root, header, values, parts):
    rows = [f"{name},{label},{value}" for name, label, value in zip(NAMES, "abab", values, strict=True)]
    assert [part for _, _, part in listing(table(write(root, f"path,label,{header}", *rows)), root)] == parts


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("is_valid", "maybe", "line 3: is_valid must be true or false, not 'maybe'"),
        ("is_valid", "", "line 3: is_valid must be true or false, not ''"),
        ("is_valid,is_test", "1,1", "line 3 is in several parts: test, val"),
        ("is_train,is_test", "0,0", "line 3 is in no part: 'is_train', 'is_test' are all false"),
        ("split,is_valid", "train,1", "gives the part in more than one way: 'split', 'is_valid'"),
        ("split,subset", "train,1", "has 2 columns for the part. Rename all but one"),
        ("fold", "3", "has a column 'fold', but folds are not used.* Add a column 'part'"),
        ("set", "B", "line 2: unknown part 'A'.* If the column 'set' does not give the part, rename it"),
    ],
)
def test_parts_that_are_unclear_are_refused(root, header, row, message):
    first = {"is_valid": "0", "is_valid,is_test": "0,0", "is_train,is_test": "1,0", "set": "A", "fold": "1"}
    with pytest.raises(ValueError, match=message):
        table(write(root, f"path,label,{header}", f"1.png,a,{first.get(header, row)}", f"2.png,b,{row}"))


def test_folds_are_ignored_with_a_note_if_another_column_gives_the_part(root):
    rows = ("path,label,split,fold", "1.png,a,train,1", "2.png,b,train,2", "3.png,a,test,3", "more/4.png,b,test,1")
    source = table(write(root, *rows))
    assert [part for _, _, part in listing(source, root)] == ["train", "train", "test", "test"]
    assert source.notes == ("labels.csv: the column 'fold' is ignored, because another column gives the part.",)


# Labels


@pytest.mark.parametrize("label", ["", " ", "nan", "NaN", "None", "NA", "N/A", "null", "<NA>"])
def test_missing_labels_are_refused_with_their_lines(root, label):
    with pytest.raises(ValueError, match=r"2 of 5 rows have no label .*: line 5, 6\. Remove these rows or give them"):
        table(write(root, *PLAIN, f"3.png,{label}", f"gone.png,{label}"))


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


# Paths and rows


def test_windows_paths_are_accepted(root):
    source = table(write(root, *PLAIN[:3], r"more\4.png,crow", r".\3.png,robin"))
    assert [name for name, _, _ in listing(source, root)] == ["1.png", "2.png", "more/4.png", "3.png"]
    Image.new("RGB", (9, 9)).save(root.parent / "secret.png")
    with pytest.raises(ValueError, match="leads out of"):
        table(write(root, *PLAIN, r"..\secret.png,crow"))


def test_a_path_in_another_unicode_normal_form_than_the_files_name_is_found(root):
    (root / "3.png").rename(root / "cafe\u0301.png")
    assert len(table(write(root, *PLAIN, "caf\u00e9.png,crow")).examples) == 4


def test_rows_that_say_the_same_are_merged_with_a_note(root):
    source = table(write(root, *PLAIN, "1.png,robin", r"more\4.png,robin ", "./1.png,robin"))
    assert len(source.examples) == 3
    assert source.notes[-1] == "labels.csv: 3 rows repeat another one and were merged: line 5, 6, 7."


def test_an_image_in_two_parts_is_refused(root):
    with pytest.raises(ValueError, match=r"1\.png is in part train in line 2 and in part test in line 4"):
        table(write(root, "path,label,part", "1.png,a,train", "2.png,b,train", "1.png,a,test"))
