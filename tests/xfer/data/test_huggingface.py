"""Data sets of the hub: parquet files and folders of photos, parts, columns, and what is not there."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.fake_hub import COMMIT, Hub, serve
from xfer.data.huggingface import hub as hub_source
from xfer.data.layouts import folder
from xfer.data.pack import build_pack

datasets = pytest.importorskip("datasets")

NAMES = ["ant", "bee", "crab"]
READ = """
import json, sys
from pathlib import Path
from xfer.data.layouts import read_source
from xfer.data.pack import build_pack
found = {}
for address in sys.argv[2:]:
    try:
        source = read_source(address)
        pack = build_pack(source, 8, Path(sys.argv[1]))
        found[address] = {
            "name": source.name,
            "classes": source.classes,
            "examples": [[each.image.name, each.label, each.part] for each in source.examples],
            "notes": source.notes,
            "hash": pack.hash,
            "skipped": pack.skipped,
        }
    except ValueError as error:
        found[address] = str(error)
print(json.dumps(found))
"""


def photo(number: int, form: str = "PNG") -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (20 + number, 10), (number, 0, 0)).save(written, form)
    return written.getvalue()


def publish(root: Path, parts: dict[str, dict[str, list[Any]]], **labels: Any) -> None:
    """Write parquet files as a data set is kept on the hub; columns whose type is not given hold photos by number."""
    (root / "data").mkdir(parents=True)
    for part, columns in parts.items():
        features = datasets.Features({name: labels.get(name, datasets.Image()) for name in columns})
        rows = {
            name: values if name in labels else [{"bytes": photo(number), "path": None} for number in values]
            for name, values in columns.items()
        }
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(root / "data" / f"{part}-00000-of-00001.parquet")


def publish_cells(root: Path, cells: list[dict[str, Any] | None]) -> None:
    """A data set of one part whose image cells are as given, whatever they say."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    rows = {"image": pa.array(cells, kind), "label": pa.array([n % 2 for n in range(len(cells))], pa.int64())}
    (root / "data").mkdir(parents=True)
    schema = datasets.Dataset.from_dict({"image": [], "label": []}, features=features).data.schema
    pq.write_table(
        pa.table(rows).replace_schema_metadata(schema.metadata), root / "data" / "train-00000-of-00001.parquet"
    )


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo of this machine that is nobody's business."""
    path = tmp_path_factory.mktemp("private") / "secret.png"
    path.write_bytes(photo(99))
    return path


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, secret: Path) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    classes = datasets.ClassLabel(names=NAMES)
    parts = {"train": [0, 1, 0, 1], "validation": [1, 0], "test": [0, 1], "noisy": [0, 1]}
    first = iter(range(100))
    numbered = {part: {"image": [next(first) for _ in values], "label": values} for part, values in parts.items()}
    publish(root / "some/parts", numbered, label=classes)
    publish(root / "some/whole", {"train": {"image": [1, 2, 3, 4], "label": [0, 2, 0, -1]}}, label=classes)
    words = {"class": ["b", "a", None, "b"], "photo": [1, 2, 3, 4]}
    publish(root / "some/words", {"train": words}, **{"class": datasets.Value("string")})
    publish(root / "some/numbers", {"train": {"image": [1, 2, 3], "label": [7, 30, 7]}}, label=datasets.Value("int32"))
    two = {"image": [1, 2], "photo": [3, 4], "fine": [0, 1], "coarse": [1, 2]}
    publish(root / "some/two", {"train": two}, fine=classes, coarse=classes)
    publish(root / "some/none", {"train": {"image": [1, 2], "score": [0.5, 1.5]}}, score=datasets.Value("float32"))
    publish(root / "some/strange", dict.fromkeys(("easy", "hard"), numbered["train"]), label=classes)
    for name, number in (("ant/1.png", 1), ("ant/2.png", 2), ("bee/3.png", 3)):
        path = root / "some/folder/train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(number))
    broken = [{"bytes": photo(1), "path": None}, {"bytes": photo(2), "path": None}]
    broken += [{"bytes": b"no picture", "path": None}, {"bytes": None, "path": str(secret)}, None]
    publish_cells(root / "some/broken", broken)
    with serve(root) as running:
        yield running


def read(hub: Hub, home: Path, *addresses: str) -> dict[str, Any]:
    # In a process of its own, because datasets reads where the hub is when it is imported.
    command = [sys.executable, "-c", READ, str(home / "packs"), *addresses]
    done = subprocess.run(command, env=hub.environment(home), capture_output=True, text=True, timeout=300, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


ADDRESSES = [
    *("hf://some/parts", "hf://datasets/some/parts?revision=" + "ab" * 20, "hf://some/whole", "hf://some/words"),
    *(
        "hf://some/numbers",
        "hf://some/two",
        "hf://some/two?image=photo&label=coarse",
        "hf://some/two?image=photo&label=gone",
    ),
    *("hf://some/none", "hf://some/strange", "hf://some/folder", "hf://some/broken", "hf://some/nothing"),
    *(
        "hf://some/two?image=image&label=coarse",
        "hf://some/parts?lable=x",
        "hf://alone",
        "hf://some/parts?config=other",
    ),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def found(hub: Hub, home: Path) -> dict[str, Any]:
    return read(hub, home, *ADDRESSES)


def test_the_parts_that_are_known_by_name_are_taken_and_others_left_out(found: dict[str, Any]) -> None:
    source = found["hf://some/parts"]
    assert (source["name"], source["classes"]) == ("some/parts", NAMES[:2])
    expected = {"train": [0, 1, 0, 1], "validation": [1, 0], "test": [0, 1]}
    assert sorted(source["examples"]) == sorted(
        [f"{split} {index}", label, split.removesuffix("idation")]
        for split, labels in expected.items()
        for index, label in enumerate(labels)
    )
    assert source["notes"] == [
        f"From the hub: some/parts at {COMMIT}.",
        "Of some/parts these parts are left out: noisy.",
    ]


def test_a_commit_may_be_named(found: dict[str, Any]) -> None:
    source = found["hf://datasets/some/parts?revision=" + "ab" * 20]
    assert source["notes"][0] == f"From the hub: some/parts at {'ab' * 20}."
    assert source["hash"] == found["hf://some/parts"]["hash"]


def test_one_part_is_divided_by_us_and_rows_without_a_label_are_counted(found: dict[str, Any]) -> None:
    source = found["hf://some/whole"]
    assert source["classes"] == ["ant", "crab"]  # bee never occurs
    assert source["examples"] == [["train 0", 0, None], ["train 1", 1, None], ["train 2", 0, None]]
    assert "1 of 4 rows of the train part have no label and are left out." in source["notes"]


def test_words_and_numbers_under_the_name_label_are_classes_too(found: dict[str, Any]) -> None:
    assert found["hf://some/words"]["classes"] == ["a", "b"]
    assert [label for _, label, _ in found["hf://some/words"]["examples"]] == [1, 0, 1]
    assert found["hf://some/numbers"]["classes"] == ["30", "7"]
    assert [label for _, label, _ in found["hf://some/numbers"]["examples"]] == [1, 0, 1]


def test_where_several_columns_fit_the_address_says_which_is_meant(found: dict[str, Any]) -> None:
    columns = "It has image: Image, photo: Image, fine: ClassLabel, coarse: ClassLabel"
    say = "Say which is meant: hf://some/two?image=COLUMN"
    assert found["hf://some/two"] == f"some/two has 2 columns that may be the image. {say}. {columns}"
    chosen = found["hf://some/two?image=photo&label=coarse"]
    assert chosen["classes"] == ["bee", "crab"]
    assert chosen["hash"] != found["hf://some/two?image=image&label=coarse"]["hash"]
    gone = "some/two has no column gone; it has image: Image, photo: Image, fine: ClassLabel, coarse: ClassLabel"
    assert found["hf://some/two?image=photo&label=gone"] == gone


def test_a_pack_from_the_hub_is_that_of_the_same_files_in_a_folder(found: dict[str, Any], tmp_path: Path) -> None:
    for name, number in (("ant/1.png", 1), ("ant/2.png", 2), ("bee/3.png", 3)):
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).write_bytes(photo(number))
    assert found["hf://some/folder"]["hash"] == build_pack(folder(tmp_path / "here"), 8, tmp_path / "packs").hash


def test_damaged_and_absent_images_are_skipped_and_a_table_cannot_name_a_file_of_this_machine(
    found: dict[str, Any],
) -> None:
    source = found["hf://some/broken"]
    assert len(source["examples"]) == 5
    assert sorted(source["skipped"]) == [
        "ant/train 2: UnidentifiedImageError: cannot identify image file among these bytes",
        "ant/train 4: there is no image in this row",
        "bee/train 3: there is no image in this row",
    ]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "hf://some/none",
            "some/none has no column that is the label by its type. Say which is meant: hf://some/none?",
        ),
        ("hf://some/strange", "some/strange has the parts easy, hard, and none of them is called train"),
        ("hf://some/nothing", "some/nothing cannot be fetched from the hub: DatasetNotFoundError"),
        ("hf://some/parts?lable=x", "unknown setting of hf://some/parts 'lable': did you mean label?"),
        ("hf://alone", "hf://alone names no data set of the hub: hf://owner/name is wanted"),
        (
            "hf://some/parts?config=other",
            "some/parts cannot be fetched from the hub: ValueError: BuilderConfig 'other'",
        ),
    ],
)
def test_what_will_not_do_says_why(found: dict[str, Any], address: str, message: str) -> None:
    assert message in found[address]
    assert "Stanford" not in found[address]


def test_a_second_reading_fetches_nothing(hub: Hub, home: Path, found: dict[str, Any]) -> None:
    assert any("GET" in request and ".parquet" in request for request in hub.asked)
    hub.asked.clear()
    again = read(hub, home, "hf://some/whole")
    assert again["hf://some/whole"] == found["hf://some/whole"]
    assert not any("GET" in request and ".parquet" in request for request in hub.asked)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"data from the hub need the datasets library: pip install 'xfer\[hub\]'"):
        hub_source("hf://some/parts")
