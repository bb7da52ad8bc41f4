"""Data sets of the Hugging Face hub: parquet files and folders of photos, splits, columns, and errors."""

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
from xfer.data.image_folder import folder
from xfer.data.pack import build_pack

datasets = pytest.importorskip("datasets")

pytestmark = pytest.mark.slow

NAMES = ["ant", "bee", "crab"]
READ = """
import json, sys
from pathlib import Path
from xfer.data.inspection import summary_line
from xfer.data.layouts import read_source
from xfer.data.pack import build_pack
results = {}
for uri in sys.argv[2:]:
    try:
        source = read_source(uri)
        pack = build_pack(source, 8, Path(sys.argv[1]))
        results[uri] = {
            "name": source.name,
            "classes": source.classes,
            "examples": [[one.image.name, one.label, one.part] for one in source.examples],
            "notes": source.notes,
            "hash": pack.hash,
            "summary": summary_line(source),
            "skipped": pack.skipped,
        }
    except ValueError as error:
        results[uri] = str(error)
print(json.dumps(results))
"""


def photo(number: int, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20 + number, 10), (number, 0, 0)).save(stream, form)
    return stream.getvalue()


def publish(root: Path, parts: dict[str, dict[str, list[Any]]], **labels: Any) -> None:
    """Write the parquet files of a data set; columns whose type is not in `labels` hold photos by number."""
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
    """Write a data set with one split and these image cells."""
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
    """A photo on this machine that does not belong to the data set."""
    path = tmp_path_factory.mktemp("private") / "secret.png"
    path.write_bytes(photo(99))
    return path


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, secret: Path) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    classes = datasets.ClassLabel(names=NAMES)
    parts = {"train": [0, 1, 0, 1], "validation": [1, 0], "test": [0, 1], "noisy": [0, 1]}
    numbers = iter(range(100))
    numbered = {part: {"image": [next(numbers) for _ in values], "label": values} for part, values in parts.items()}
    publish(root / "some/parts", numbered, label=classes)
    publish(root / "some/whole", {"train": {"image": [1, 2, 3, 4], "label": [0, 2, 0, -1]}}, label=classes)
    words = {"class": ["b", "a", None, "b"], "photo": [1, 2, 3, 4]}
    publish(root / "some/words", {"train": words}, **{"class": datasets.Value("string")})
    alike = {"class": ["Ant", "bee", "ant", "nan"], "photo": [1, 2, 3, 4]}
    publish(root / "some/alike", {"train": alike}, **{"class": datasets.Value("string")})
    usual = {"training": numbered["train"], "dev": numbered["validation"], "test1": numbered["test"]}
    publish(root / "some/usual", {**usual, "test2": numbered["noisy"]}, label=classes)
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
    broken += [{"bytes": b"not an image", "path": None}, {"bytes": None, "path": str(secret)}, None]
    publish_cells(root / "some/broken", broken)
    with serve(root) as running:
        yield running


def read(hub: Hub, home: Path, *uris: str) -> dict[str, Any]:
    # In a separate process, because `datasets` reads the URL of the hub when it is imported.
    command = [sys.executable, "-c", READ, str(home / "packs"), *uris]
    result = subprocess.run(command, env=hub.environment(home), capture_output=True, text=True, timeout=300, check=True)
    return json.loads(result.stdout)  # type: ignore[no-any-return]


URIS = [
    *("hf://some/parts", "hf://datasets/some/parts?revision=" + "ab" * 20, "hf://some/whole", "hf://some/words"),
    *(
        "hf://some/numbers",
        "hf://some/two",
        "hf://some/two?image=photo&label=coarse",
        "hf://some/two?image=photo&label=gone",
    ),
    *("hf://some/alike", "hf://some/usual"),
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
def results(hub: Hub, home: Path) -> dict[str, Any]:
    return read(hub, home, *URIS)


def test_splits_with_known_names_are_parts_and_others_are_left_out(results: dict[str, Any]) -> None:
    source = results["hf://some/parts"]
    assert (source["name"], source["classes"]) == ("some/parts", NAMES[:2])
    expected = {"train": [0, 1, 0, 1], "validation": [1, 0], "test": [0, 1]}
    assert sorted(source["examples"]) == sorted(
        [f"{split} {index}", label, split.removesuffix("idation")]
        for split, labels in expected.items()
        for index, label in enumerate(labels)
    )
    assert source["notes"] == [
        f"From the hub: some/parts at {COMMIT}.",
        "Splits of some/parts that are left out: noisy.",
    ]
    assert source["summary"] == "rows: 10 seen = 8 used + 2 skipped (2 split left out)"


def test_splits_with_other_usual_names_are_parts_unless_two_stand_for_one(results: dict[str, Any]) -> None:
    source = results["hf://some/usual"]
    assert {part for _, _, part in source["examples"]} == {"train", "val"}
    assert "Splits of some/usual that are left out: test1, test2." in source["notes"]


def test_strings_that_look_like_spellings_of_one_class_are_refused(results: dict[str, Any]) -> None:
    assert results["hf://some/alike"].startswith(
        "some/alike: labels look like spellings of one class: 'Ant' and 'ant'. Download the data"
    )


def test_a_commit_can_be_chosen(results: dict[str, Any]) -> None:
    source = results["hf://datasets/some/parts?revision=" + "ab" * 20]
    assert source["notes"][0] == f"From the hub: some/parts at {'ab' * 20}."
    assert source["hash"] == results["hf://some/parts"]["hash"]


def test_a_single_split_has_no_parts_and_rows_without_label_are_counted(results: dict[str, Any]) -> None:
    source = results["hf://some/whole"]
    assert source["classes"] == ["ant", "crab"]  # bee never occurs
    assert source["examples"] == [["train 0", 0, None], ["train 1", 1, None], ["train 2", 0, None]]
    assert "1 of 4 rows of the train split have no label and are left out." in source["notes"]
    assert source["summary"] == "rows: 4 seen = 3 used + 1 skipped (1 train row without a label)"


def test_strings_and_integers_in_a_column_named_label_are_classes(results: dict[str, Any]) -> None:
    assert results["hf://some/words"]["classes"] == ["a", "b"]
    assert [label for _, label, _ in results["hf://some/words"]["examples"]] == [1, 0, 1]
    assert results["hf://some/numbers"]["classes"] == ["30", "7"]
    assert [label for _, label, _ in results["hf://some/numbers"]["examples"]] == [1, 0, 1]


def test_the_uri_chooses_among_several_possible_columns(results: dict[str, Any]) -> None:
    columns = "It has image: Image, photo: Image, fine: ClassLabel, coarse: ClassLabel"
    hint = "Name one: hf://some/two?image=COLUMN"
    assert results["hf://some/two"] == f"some/two has 2 possible image columns. {hint}. {columns}"
    chosen = results["hf://some/two?image=photo&label=coarse"]
    assert chosen["classes"] == ["bee", "crab"]
    assert chosen["hash"] != results["hf://some/two?image=image&label=coarse"]["hash"]
    gone = "some/two has no column gone; it has image: Image, photo: Image, fine: ClassLabel, coarse: ClassLabel"
    assert results["hf://some/two?image=photo&label=gone"] == gone


def test_a_pack_from_the_hub_equals_that_of_the_same_files_in_a_folder(results: dict[str, Any], tmp_path: Path) -> None:
    for name, number in (("ant/1.png", 1), ("ant/2.png", 2), ("bee/3.png", 3)):
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(photo(number))
    assert results["hf://some/folder"]["hash"] == build_pack(folder(tmp_path / "folder"), 8, tmp_path / "packs").hash


def test_damaged_and_missing_images_are_skipped_and_a_table_cannot_read_other_local_files(
    results: dict[str, Any],
) -> None:
    source = results["hf://some/broken"]
    assert len(source["examples"]) == 5
    assert sorted(source["skipped"]) == [
        "ant/train 2: UnidentifiedImageError: cannot identify image file among these bytes",
        "ant/train 4: there is no image in this row",
        "bee/train 3: there is no image in this row",
    ]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "hf://some/none",
            "some/none has no column of a type for the label. Name one: hf://some/none?",
        ),
        ("hf://some/strange", "some/strange has the splits easy, hard, and none of them is called train"),
        ("hf://some/nothing", "some/nothing cannot be downloaded from the hub: DatasetNotFoundError"),
        ("hf://some/parts?lable=x", "unknown setting of hf://some/parts 'lable': did you mean label?"),
        ("hf://alone", "hf://alone does not name a data set of the hub. Give hf://owner/name"),
        (
            "hf://some/parts?config=other",
            "some/parts cannot be downloaded from the hub: ValueError: BuilderConfig 'other'",
        ),
    ],
)
def test_an_unusable_data_set_is_refused_with_the_reason(results: dict[str, Any], uri: str, message: str) -> None:
    assert message in results[uri]
    assert "Stanford" not in results[uri]


def test_a_second_read_downloads_nothing(hub: Hub, home: Path, results: dict[str, Any]) -> None:
    assert any("GET" in request and ".parquet" in request for request in hub.requests)
    hub.requests.clear()
    again = read(hub, home, "hf://some/whole")
    assert again["hf://some/whole"] == results["hf://some/whole"]
    assert not any("GET" in request and ".parquet" in request for request in hub.requests)


def test_a_missing_library_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"data from the hub need the datasets library: pip install 'xfer\[hub\]'"):
        hub_source("hf://some/parts")
