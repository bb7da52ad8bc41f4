"""Tables: encodings, quotes and numbers of fields."""

from __future__ import annotations

import pytest

from tests.xfer.data.tables.table_files import PLAIN, write
from xfer.data.tables.csv_table import table


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


def test_a_table_larger_than_the_limit_is_refused_unread(root):
    path = write(root, *PLAIN)
    with path.open("r+b") as file:
        file.truncate(256 * 2**20 + 1)  # a sparse file
    with pytest.raises(ValueError, match="larger than 256 MiB"):
        table(path)


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
