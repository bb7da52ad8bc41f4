"""The command that inspects a data set: text, JSON, a page, and refused data."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from tests.xfer.cli_runner import make_command_runner


@pytest.fixture
def xfer(capsys):
    """A function that runs a command line."""
    return make_command_runner(capsys)


@pytest.fixture
def photos(tmp_path):
    """Training and test images of two classes, one of which has a name with markup."""
    for number in range(8):
        path = (
            tmp_path / "photos" / ("Training", "Testing")[number // 4] / ("cat", "<b>dog")[number % 2] / f"{number}.png"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return tmp_path / "photos"


def test_the_text_has_counts_sizes_and_the_balance_of_files(xfer, photos):
    (photos / "notes.txt").write_text("x")
    result = xfer("inspect", "--data", photos)
    assert (result.status, result.err) == (0, "")
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    for line in (
        *("photos: 2 classes, 8 images", "files: 9 seen = 8 used + 1 skipped (1 not an image)"),
        *("1 not an image: notes.txt", "class train test", "cat 2 2", "<b>dog 2 2", "sizes: 40 x 30 (8)"),
        *("modes: RGB (8)", "copies: 0 exact, 0 near", "Parts: train is Training/, test is Testing/."),
    ):
        assert line in lines


def test_the_json_has_every_number(xfer, photos):
    result = json.loads(xfer("inspect", "--data", photos, "--json").out)
    assert result["classes"] == ["<b>dog", "cat"]
    assert result["parts"] == {"train": {"<b>dog": 2, "cat": 2}, "test": {"<b>dog": 2, "cat": 2}}
    assert (result["seen"], result["used"], result["skipped"]) == (8, 8, {})
    assert (result["exact_copies"], result["near_copies"], result["conflicts"]) == (0, 0, [])
    assert result["warnings"] == ["Parts: train is Training/, test is Testing/."]


def test_the_page_has_a_contact_sheet_per_class_and_nothing_active(xfer, photos, tmp_path):
    assert xfer("inspect", "--data", photos, "--html", tmp_path / "page.html").status == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 8
    assert "default-src 'none'" in page
    assert "<h2>&lt;b&gt;dog</h2>" in page
    for active in ("<b>", "<script", "http://", "https://", "onclick"):
        assert active not in page


def test_names_that_are_not_utf8_are_escaped(xfer, photos, tmp_path):
    with open(os.fsencode(photos / "Training" / "cat") + b"/\xff.png", "wb") as file:  # noqa: PTH123
        file.write((photos / "Training" / "cat" / "0.png").read_bytes())
    result = xfer("inspect", "--data", photos, "--json", "--html", tmp_path / "page.html")
    assert result.status == 0
    assert "\\udcff.png" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert json.loads(result.out)["copies"] == [["train/cat/0.png", "train/cat/\\udcff.png"]]


def test_refused_data_end_with_status_2_and_the_flag_that_settles_it(xfer, photos):
    (photos / "Training").rename(photos / "cats")
    result = xfer("inspect", "--data", photos, "--json")
    assert (result.status, result.out) == (2, "")
    assert "has Testing but no train folder" in result.err
    assert "--parts train=NAME,test=Testing" in result.err
    assert xfer("inspect", "--data", photos, "--parts", "train=cats,test=Testing").status == 0
    assert xfer("inspect", "--data", photos, "--parts", "test=cats").status == 2


def test_links_are_followed_on_demand(xfer, photos, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "1.png")
    (photos / "Training" / "cat" / "link.png").symlink_to(tmp_path / "1.png")
    assert json.loads(xfer("inspect", "--data", photos, "--json").out)["skipped"] == {"link out of the folder": 1}
    assert json.loads(xfer("inspect", "--data", photos, "--json", "--follow-links").out)["used"] == 9


def test_imbalanced_classes_of_the_training_part_are_a_warning(xfer, photos):
    for number in range(9):
        noise = np.random.default_rng(100 + number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(photos / "Training" / "cat" / f"more-{number}.png")
    out = xfer("inspect", "--data", photos).out
    said = "WARNING: classes are imbalanced: the most frequent class, cat, has 11 training images, and <b>dog has 2."
    assert said in out
    assert "--objective balanced_accuracy" in out


def test_groups_of_a_table_are_counted_and_the_largest_is_named(xfer, photos):
    files = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    rows = [f"{file},{file.split('/')[1]},{number % 3}" for number, file in enumerate(files)]
    (photos / "t.csv").write_text("\n".join(["path,label,site", *rows]), encoding="utf-8")
    result = xfer("inspect", "--data", photos / "t.csv", "--group", "site")
    assert "groups (site): 3, the largest 0 with 3 images" in result.out.splitlines()
    assert "groups" not in xfer("inspect", "--data", photos / "t.csv").out
