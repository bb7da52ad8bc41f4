"""Groups: images of one patient, video, ... are never in two drawn parts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tests.xfer.data.tables.table_files import write
from xfer.data.groups import missing_after_drawing, report_groups
from xfer.data.inspection import inspect_source
from xfer.data.layouts import read_source
from xfer.data.pack import build_pack, load_pack
from xfer.data.split import split_pack

PARTS = ("train", "val", "test")
PATIENTS = [f"p{number:02d}" for number in range(20)]


def write_photos(root, rows, column="patient", name="labels.csv", parts=()):
    """Write a photo of noise for each (label, group) and a table of them; the same seed gives the same photos."""
    lines = [f"path,label,{column}" + (",part" if parts else "")]
    for number, (label, group) in enumerate(rows):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number:03d}.png")
        lines.append(f"{number:03d}.png,{label},{group}" + (f",{parts[number]}" if parts else ""))
    return write(root, *lines, name=name)


def rows_of(patients=PATIENTS, sick=2, healthy=3):
    """Every patient has images of both classes."""
    return [(label, patient) for patient in patients for label in ["sick"] * sick + ["healthy"] * healthy]


def parts_by_group(pack, split):
    found = {}
    for part in PARTS:
        for index in split.of(part).tolist():
            found.setdefault(pack.groups[index], set()).add(part)
    return found


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    """A pack of 100 images of 20 patients, each with images of both classes."""
    root = tmp_path_factory.mktemp("grouped")
    return build_pack(read_source(write_photos(root, rows_of())), 8, root / "packs")


@pytest.mark.parametrize("seed", range(10))
def test_no_group_spans_two_parts_in_any_draw(grouped, seed):
    splits = [split_pack(grouped, seed, draw) for draw in range(3)]
    for split in splits:
        assert all(len(parts) == 1 for parts in parts_by_group(grouped, split).values())
        assert sorted(np.concatenate([split.of(part) for part in PARTS])) == list(range(100))
        assert [len(split.of(part)) for part in PARTS] == [70, 15, 15]
        assert all(Counter(grouped.labels[split.of(part)].tolist()).keys() == {0, 1} for part in PARTS)
        assert split.description == "70 / 15 / 15, stratified by class; each of 20 groups (patient) is in one part"
    assert all(np.array_equal(split.test, splits[0].test) for split in splits)
    assert not np.array_equal(splits[0].val, splits[1].val)


@pytest.mark.parametrize(
    "seed",
    [0, 1, *(pytest.param(seed, marks=[pytest.mark.slow, pytest.mark.nightly]) for seed in range(2, 10))],
)
def test_a_rare_class_is_in_every_part_although_its_patients_have_mostly_other_images(tmp_path, seed):
    rows = rows_of(sick=0, healthy=9) + [("sick", patient) for patient in PATIENTS[:4]]
    rows += [("other", "big")] * 30 + [("healthy", "big")] * 60 + [("sick", "big")]
    pack = build_pack(read_source(write_photos(tmp_path, rows), group="patient"), 8, tmp_path / "packs")
    split = split_pack(pack, seed)
    sick = pack.classes.index("sick")
    assert [int((pack.labels[split.of(part)] == sick).sum()) for part in PARTS] == [3, 1, 1]
    assert all(len(parts) == 1 for parts in parts_by_group(pack, split).values())
    assert parts_by_group(pack, split)["big"] == {"train"}
    assert all(30 <= len(split.of(part)) <= 60 for part in ("val", "test"))


def test_copies_and_groups_join_transitively(tmp_path):
    source = write_photos(tmp_path, rows_of())
    for number in range(19):  # the first photo of each patient is the last one of the next
        (tmp_path / f"{5 * number + 9:03d}.png").write_bytes((tmp_path / f"{5 * number:03d}.png").read_bytes())
    chained = build_pack(read_source(source), 8, tmp_path / "packs")
    assert len(set(chained.split_groups.tolist())) == 1
    with pytest.raises(ValueError, match=r"val part would be empty.*20 groups \(patient\).*--group none ignores"):
        split_pack(chained)


def test_validation_is_drawn_by_groups_from_a_given_training_part(tmp_path):
    parts = ["test" if patient >= "p15" else "train" for _, patient in rows_of()]
    pack = build_pack(read_source(write_photos(tmp_path, rows_of(), parts=parts)), 8, tmp_path / "packs")
    for seed in range(10):
        split = split_pack(pack, seed)
        assert all(len(found) == 1 for found in parts_by_group(pack, split).values())
        assert {pack.groups[index] for index in split.test} == set(PATIENTS[15:])


def test_a_table_without_groups_and_one_whose_groups_are_ignored_have_the_same_pack(tmp_path):
    table = write_photos(tmp_path, rows_of())
    plain = write_photos(tmp_path, rows_of(), column="note", name="plain.csv")
    packs = [
        build_pack(read_source(path, group=group), 8, tmp_path / "packs")
        for path, group in ((table, ""), (table, "none"), (plain, ""))
    ]
    assert packs[1].hash == packs[2].hash != packs[0].hash
    assert (packs[1].groups, packs[1].group_column) == ((), "")
    assert np.array_equal(packs[1].split_groups, packs[1].copy_groups)


def test_a_loaded_pack_has_its_groups_and_other_groups_make_another_pack(grouped, tmp_path):
    loaded = load_pack(grouped.folder, verify=True)
    assert (loaded.groups, loaded.group_column) == (grouped.groups, "patient")
    assert Counter(loaded.groups) == dict.fromkeys(PATIENTS, 5)
    other = [(label, patient.replace("p01", "p00")) for label, patient in rows_of()]
    assert build_pack(read_source(write_photos(tmp_path, other)), 8, tmp_path / "packs").hash != grouped.hash


# Columns


@pytest.mark.parametrize("column", ["patient", "Patient_ID", "patient-id", "subject_id", "group", "video", "CAMERA"])
def test_a_column_with_a_usual_name_gives_the_groups_and_a_note_says_how_to_ignore_it(tmp_path, column):
    source = read_source(write_photos(tmp_path, rows_of(), column))
    assert {example.group for example in source.examples} == set(PATIENTS)
    (note,) = source.notes
    assert "is read as groups" in note
    assert "--group none ignores it" in note


@pytest.mark.parametrize("column", ["photographer", "subject", "site", "id", "patients", "camera_model"])
def test_other_columns_give_groups_only_if_they_are_named(tmp_path, column):
    table = write_photos(tmp_path, rows_of(), column)
    assert {example.group for example in read_source(table).examples} == {None}
    named = read_source(table, group=f" {column.upper()} ")
    assert {example.group for example in named.examples} == set(PATIENTS)
    assert (named.notes, named.group_column) == ((), column)


def test_a_usual_name_is_not_read_as_groups_where_some_class_would_be_in_one_group(tmp_path):
    rows = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "x")] * 3
    source = read_source(write_photos(tmp_path, rows, "group"))
    assert {example.group for example in source.examples} == {None}
    assert "all images of b would be in one group; --group group reads it" in source.notes[0]
    assert {example.group for example in read_source(tmp_path / "labels.csv", group="group").examples} == {"x", "y"}


def test_the_first_of_several_usual_names_is_read_and_the_others_are_named(tmp_path):
    write_photos(tmp_path, rows_of())
    lines = (tmp_path / "labels.csv").read_text(encoding="utf-8").splitlines()
    table = write(tmp_path, f"{lines[0]},camera", *(f"{line},c{index % 3}" for index, line in enumerate(lines[1:])))
    source = read_source(table)
    assert source.group_column == "patient"
    assert "'camera' not" in source.notes[0]


def test_images_without_a_group_are_groups_of_their_own(tmp_path):
    rows = [*rows_of(), *[("sick", ""), ("healthy", "NA")] * 5]
    source = read_source(write_photos(tmp_path, rows))
    assert Counter(example.group for example in source.examples)[None] == 10
    pack = build_pack(source, 8, tmp_path / "packs")
    assert len(set(pack.split_groups.tolist())) == 30


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("doctor", "no column 'doctor', which --group names. Its other columns: patient"),
        ("label", "--group label: .* reads this column as path, label or part"),
    ],
)
def test_a_column_that_cannot_give_groups_is_refused(tmp_path, group, message):
    with pytest.raises(ValueError, match=message):
        read_source(write_photos(tmp_path, rows_of()), group=group)


def test_an_image_with_two_groups_is_refused(tmp_path):
    table = write_photos(tmp_path, rows_of())
    lines = table.read_text(encoding="utf-8").splitlines()
    with pytest.raises(ValueError, match=r"in group p00 in line 2 and in group p07 in line 102.*--group none"):
        read_source(write(tmp_path, *lines, "000.png,sick,p07"))


def test_a_folder_has_no_group_column(image_folder):
    with pytest.raises(ValueError, match=r"--group patient names a column of a table, but .* has the layout folder"):
        read_source(image_folder, group="patient")
    assert read_source(image_folder, group="none").group_column == ""


# Reports


def test_groups_across_given_parts_are_counted_and_named(tmp_path):
    parts = [PARTS[number % 3] if number < 10 else "train" for number in range(100)]
    parts[-1], parts[-2] = "val", "test"
    inspection = inspect_source(read_source(write_photos(tmp_path, rows_of(), parts=parts)))
    assert inspection.groups == {
        "column": "patient",
        "count": 20,
        "largest": "p00",
        "largest_images": 5,
        "ungrouped": 0,
        "across_parts": {
            "train-val": {"groups": 3, "images": 4},
            "train-test": {"groups": 3, "images": 4},
            "val-test": {"groups": 3, "images": 4},
        },
    }
    (warning,) = (warning for warning in inspection.warnings if "in train and test" in warning)
    assert warning == (
        "WARNING: 3 of 20 groups (patient) are in train and test, with 4 of 4 test images: p00, p01, p19. Accuracy on "
        "them says little about new groups: move each group into one part."
    )


def test_a_class_that_one_group_dominates_is_named_with_numbers():
    groups = ["p0"] * 9 + ["p1"] * 3 + ["p2"] * 4
    labels = [0] * 9 + [0] * 1 + [1] * 2 + [1] * 4
    report = report_groups(groups, labels, [None] * 16, ("sick", "healthy"), "patient")
    assert report is not None
    assert report.line == "groups (patient): 3, the largest p0 with 9 images"
    assert report.warnings == (
        "WARNING: group p0 (patient) holds 9 of 10 images of class sick, so 9 of them are in one part, and the other "
        "parts are left with the rest. Add images of other groups.",
        "WARNING: group p2 (patient) holds 4 of 6 images of class healthy, so 4 of them are in one part, and the other "
        "parts are left with the rest. Add images of other groups.",
    )


def test_a_class_in_a_single_group_is_in_the_training_part_and_the_others_are_named_as_without_it(tmp_path):
    rows = [("rare", "p00")] * 4 + rows_of()
    pack = build_pack(read_source(write_photos(tmp_path, rows), group="patient"), 8, tmp_path / "packs")
    split = split_pack(pack)
    report = report_groups(pack.groups, pack.labels.tolist(), pack.parts, pack.classes, pack.group_column)
    assert report is not None
    assert report.warnings == (
        "WARNING: group p00 (patient) holds 4 of 4 images of class rare, so the class is in the training part only. "
        "Add images of other groups.",
    )
    assert [warning.split(",")[0] for warning in missing_after_drawing(pack, split)] == [
        "WARNING: the validation part has no images of rare",
        "WARNING: the test part has no images of rare",
    ]


def test_without_groups_there_is_no_report(pack):
    assert report_groups(pack.groups, pack.labels.tolist(), pack.parts, pack.classes, "") is None
    assert missing_after_drawing(pack, split_pack(pack)) == []
