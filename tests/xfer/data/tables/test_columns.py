"""Tables: which columns hold path, label and part."""

from __future__ import annotations

import pytest

from tests.xfer.data.tables.table_files import NAMES, listing, skipped, write
from xfer.data.part_names import parse_parts
from xfer.data.tables.csv_table import table


@pytest.mark.parametrize("column", ["part", "Split", "subset", "SET", "data set", "Usage"])
def test_the_part_is_read_from_any_usual_column_and_in_any_spelling(root, column):
    rows = (f"path,label,{column}", "1.png,a,TRAIN", "2.png,b,Training set", "3.png,a,dev", "more/4.png,b,Testing ")
    source = table(write(root, *rows))
    assert [part for _, _, part in listing(source, root)] == ["train", "train", "val", "test"]
    usual = column.lower() in ("part", "split", "subset", "set")
    named = f"labels.csv: the part of each image is read from the column {column.lower().replace(' ', '_')!r}."
    missing = ("WARNING: the val set has no images of b.", "WARNING: the test set has no images of a.")
    assert source.notes == (*(() if usual else (named,)), *missing)


@pytest.mark.parametrize(
    ("header", "values", "parts"),
    [
        ("is_valid", ["False", "false", "True", "TRUE"], ["train", "train", "val", "val"]),
        ("is_test", ["0", "no", "1", "1.0"], ["train", "train", "test", "test"]),
        ("Is Train", ["1", "t", "0", "f"], ["train", "train", "test", "test"]),
        ("is_valid,is_test", ["0,0", "0,0", "1,0", "0,1"], ["train", "train", "val", "test"]),
        ("testing", ["0", "0", "1", "1"], ["train", "train", "test", "test"]),
        ("split", ["trainval", "train+val", "Test set", "TEST"], ["train", "train", "test", "test"]),
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
        ("set", "B", "line 2: unknown part 'A'.* values of the column 'set' .* --parts train=A; .* rename it"),
        ("valid", "1", "has a column 'valid' with true and false.* rename it to 'is_valid'; --parts none"),
    ],
)
def test_parts_that_are_unclear_are_refused(root, header, row, message):
    first = {
        "is_valid": "0",
        "is_valid,is_test": "0,0",
        "is_train,is_test": "1,0",
        "set": "A",
        "fold": "1",
        "valid": "0",
    }
    with pytest.raises(ValueError, match=message):
        table(write(root, f"path,label,{header}", f"1.png,a,{first.get(header, row)}", f"2.png,b,{row}"))


def test_folds_are_ignored_with_a_note_if_another_column_gives_the_part(root):
    rows = ("path,label,split,fold", "1.png,a,train,1", "2.png,b,train,2", "3.png,a,test,3", "more/4.png,b,test,1")
    source = table(write(root, *rows))
    assert [part for _, _, part in listing(source, root)] == ["train", "train", "test", "test"]
    assert source.notes == ("labels.csv: the column 'fold' is ignored, because another column gives the part.",)


@pytest.mark.parametrize("column", ["file_name", "File Path", "image_path", "Image Name", "img"])
def test_rarer_names_of_the_path_are_known(root, column):
    assert table(write(root, f"{column},label", "1.png,a", "2.png,b")).classes == ("a", "b")


@pytest.mark.parametrize("column", ["labels", "class_name", "Category", "label name"])
def test_rarer_names_of_the_label_are_known(root, column):
    assert table(write(root, f"path,{column}", "1.png,a", "2.png,b")).classes == ("a", "b")


def test_a_usual_name_takes_precedence_over_a_rarer_one(root):
    assert table(write(root, "path,category,label", "1.png,bird,a", "2.png,bird,b")).classes == ("a", "b")


# The flag

GIVEN = {  # header: values of four rows, flag, parts
    "phase": (["A", "A", "B", "C"], "train=A,test=B", ["train", "train", "test"]),
    "fold": (["0", "0", "1", "2"], "train=0,val=1,test=2", ["train", "train", "val", "test"]),
    "split": (["train", "train", "test", "extra"], "train=train,val=test", ["train", "train", "val"]),
    "holdout": (["False", "False", "True", "True"], "train=False,test=True", ["train", "train", "test", "test"]),
    "p,q": (["A,A", "A,A", "B,A", "B,B"], "train=p=A,test=p=B", ["train", "train", "test", "test"]),
    "Part Name,split": (["1,x", "1,x", "2,x", "3,x"], "train=part name=1,test=part name=2", ["train", "train", "test"]),
    "set": (["A", "A", "B", "B"], "train=A", [None, None]),
    "subset": (["A", "B", "C", "D"], "none", [None] * 4),
}


@pytest.mark.parametrize("header", GIVEN)
def test_the_flag_says_which_values_are_the_parts(root, header):
    values, flag, parts = GIVEN[header]
    rows = [f"{name},{label},{value}" for name, label, value in zip(NAMES, "abab", values, strict=True)]
    source = table(write(root, f"path,label,{header}", *rows), parse_parts(flag))
    assert [part for _, _, part in listing(source, root)] == parts
    left_out = {"outside the values of --parts": 4 - len(parts)} if len(parts) < 4 else {}
    assert skipped(source) == left_out


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "train=learn",
            "no column holds the values learn that --parts names. .* values: p: A, B; q: A, C",
        ),
        ("train=A", "2 columns hold the values A that --parts names.* --parts train=COLUMN=VALUE names the column"),
        ("train=p=A,test=q=C", "names several columns: p, q. Give one"),
        ("train=r=A", "no column holds the values A .*: none besides path and label"),
        ("train=B,test=B", "every part needs a value of its own, got B, B"),
    ],
)
def test_a_flag_that_does_not_fit_the_table_is_refused_with_the_columns(root, flag, message):
    with pytest.raises(ValueError, match=message):
        table(write(root, "path,label,p,q", "1.png,a,A,A", "2.png,b,B,C"), parse_parts(flag))


def test_rows_without_labels_can_be_left_out_by_their_part(root):
    path = write(root, "path,label,split", "1.png,a,train", "2.png,b,train", "3.png,,test", "more/4.png,,test")
    with pytest.raises(ValueError, match=r"2 of 4 rows have no label .* --parts .* leaves out the test set"):
        table(path)
    assert len(table(path, {"train": "train"}).examples) == 2


def test_a_class_that_a_part_lacks_is_a_warning(root):
    source = table(write(root, "path,label,split", "1.png,a,train", "2.png,b,train", "3.png,a,test"))
    assert source.notes == ("WARNING: the test set has no images of b.",)
