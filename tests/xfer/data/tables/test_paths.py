"""Tables: paths, and rows that are not used."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from tests.xfer.data.tables.table_files import PLAIN, listing, skipped, write
from xfer.data.inspection import inspect_source, summary_line
from xfer.data.tables.csv_table import table

UNUSED = {  # what a row names: the reason why it is not used
    "gone.png": "file not found",
    "": "no path",
    "more": "not a file",
    "pipe.png": "not a file",
    "dangling.png": "file not found",
    "loop.png": "impossible path",
    "a\0b.png": "impossible path",
    "x" * 9999: "impossible path",
    "C:\\img\\1.png": "absolute path of Windows",
    "D:/img/1.png": "absolute path of Windows",
    "\\\\server\\img\\1.png": "absolute path of Windows",
    "https://example.org/1.png": "web address instead of a file",
    "s3://bucket/1.png": "web address instead of a file",
    "1.png": "repeated row",
    "./1.png": "repeated row",
    r"more\..\1.png": "repeated row",
}


@pytest.fixture
def odd_files(root):
    """Next to the photos, files that are not photos."""
    os.mkfifo(root / "pipe.png")
    (root / "dangling.png").symlink_to("nowhere.png")
    (root / "loop.png").symlink_to("loop.png")
    return root


@pytest.mark.parametrize("path", UNUSED, ids=lambda path: path[:20].replace("\0", "null"))
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_every_row_that_is_not_used_is_counted_with_the_reason_and_named(odd_files, path, encoding):
    source = table(write(odd_files, *PLAIN, f"{path},robin", "", ",", encoding=encoding))
    assert [(skip.reason, skip.count) for skip in source.skipped] == [(UNUSED[path], 1)]
    assert source.skipped[0].first == (f"line 5: {path[:200]}" if path else "line 5",)
    assert summary_line(source) == f"rows: 4 seen = 3 used + 1 skipped (1 {UNUSED[path]})"


def test_rows_are_balanced_and_the_reasons_are_a_warning(root):
    rows = ("gone.png,crow", ",crow", "gone/too.png,robin", "1.png,robin", ",", "")
    source = table(write(root, *PLAIN, *rows, name="labels.tsv"))
    assert skipped(source) == {"file not found": 2, "no path": 1, "repeated row": 1}
    assert summary_line(source).startswith("rows: 7 seen = 3 used + 4 skipped (")
    assert source.notes == (
        "WARNING: labels.tsv: 3 of 7 rows are skipped: 2 file not found (line 5: gone.png, line 7: gone/too.png); "
        "1 no path (line 6).",
        "labels.tsv: 1 rows repeat another one and are merged: line 8: 1.png.",
    )


def test_damaged_images_of_a_table_are_counted_too(root):
    (root / "3.png").write_bytes(b"<html>404</html>")
    result = inspect_source(table(write(root, *PLAIN, "3.png,robin", "gone.png,crow")))
    assert (result.seen, result.used) == (5, 3)
    assert result.skipped == {"file not found": 1, "unreadable": 1}


def test_a_file_without_permission_is_counted(root, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "2.png")
    source = table(write(root, *PLAIN, "3.png,crow"))
    assert source.skipped[0].first == ("line 3: 2.png",)
    assert skipped(source) == {"no permission to read it": 1}


def test_a_class_whose_files_are_all_missing_is_refused(root):
    with pytest.raises(ValueError, match=r"no training images for emu.* 2 file not found \(line 5: x\.png, line 6: y"):
        table(write(root, *PLAIN, "x.png,emu", "y.png,emu"))


def test_a_part_whose_files_are_all_missing_is_refused(root):
    rows = ("path,label,split", "1.png,a,train", "2.png,b,train", "x.png,a,test", "y.png,b,test")
    with pytest.raises(ValueError, match=r"no row of the test set can be used.* 2 file not found \(line 4: x\.png"):
        table(write(root, *rows))


@pytest.mark.parametrize(("path", "similar"), [("3.PNG", "3.png"), ("3", "3.png"), ("4.png", "more/4.png")])
def test_a_file_with_a_similar_name_is_suggested(root, path, similar):
    source = table(write(root, *PLAIN[:3], f"{path},robin"))
    assert source.skipped[0].first == (f"line 4: {path} (there is {similar})",)


def test_an_absolute_path_into_the_tables_folder_is_accepted(root):
    assert len(table(write(root, *PLAIN, f"{root / '3.png'},crow")).examples) == 4


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "link.png", "more/../../secret.png"])
def test_a_path_that_leads_out_of_the_tables_folder_is_refused(root, path):
    Image.new("RGB", (9, 9)).save(root.parent / "secret.png")
    (root / "link.png").symlink_to(root.parent / "secret.png")
    with pytest.raises(ValueError, match=rf"labels\.csv line 5: {path} leads out of {root}\.\n"):
        table(write(root, *PLAIN, f"{path},crow"))


def test_a_leading_slash_is_named(root):
    with pytest.raises(
        ValueError, match=r"/more/4\.png leads out of .* Without the leading slash it is a file of this"
    ):
        table(write(root, *PLAIN[:3], "/more/4.png,robin"))


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
    assert skipped(source) == {"repeated row": 3}
    assert source.notes[-1] == (
        "labels.csv: 3 rows repeat another one and are merged: line 5: 1.png, line 6: more\\4.png, line 7: ./1.png."
    )


def test_an_image_in_two_parts_is_refused(root):
    with pytest.raises(ValueError, match=r"1\.png is in part train in line 2 and in part test in line 4"):
        table(write(root, "path,label,part", "1.png,a,train", "2.png,b,train", "1.png,a,test"))
