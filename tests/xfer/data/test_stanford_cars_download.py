"""Downloading Stanford Cars: complete or not at all, in the original layout, with clear errors."""

import io
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from scipy.io import loadmat

from tests.fake_hub import Hub, serve
from xfer.data.stanford_cars import stanford_cars
from xfer.data.stanford_cars_download import ANNOTATION_FIELDS, DEFAULT_REPO, PINNED_REVISIONS, download_stanford_cars

datasets = pytest.importorskip("datasets")
yaml = pytest.importorskip("yaml")  # used by `datasets` to read dataset cards

pytestmark = pytest.mark.slow  # every download starts a process that imports `datasets`

CLASSES = ["AM General Hummer SUV 2000", "Audi V8 Sedan 1994", "Ram C/V Cargo Van Minivan 2012"]
DOWNLOAD = """
import sys
from pathlib import Path
from xfer.data.stanford_cars_download import download_stanford_cars
try:
    download_stanford_cars(Path(sys.argv[1]), *sys.argv[2:], say=print)
except ValueError as error:
    sys.exit(f"ValueError: {error}")
"""


def photo(number: int, form: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20 + number, 10), (number, 0, 0)).save(stream, form)
    return stream.getvalue()


def publish(folder: Path, expected: int = 6, **columns: list[int]) -> None:
    """Write a copy like the real one: parquet files with photos, one noisy split, and a dataset card."""
    labels = dict.fromkeys(columns, datasets.ClassLabel(names=CLASSES))
    features = datasets.Features({"image": datasets.Image(), **labels})
    (folder / "data").mkdir(parents=True)
    for part, first in {"train": 1, "test": 101, "contrast": 201}.items():
        photos = [*map(photo, range(first, first + 5)), photo(first + 5, "PNG")]
        rows = {"image": [{"bytes": content, "path": None} for content in photos], **columns}
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(folder / "data" / f"{part}-00000-of-00001.parquet")
    columns_in_card: list[dict[str, object]] = [{"name": "image", "dtype": "image"}]
    columns_in_card += [
        {"name": name, "dtype": {"class_label": {"names": dict(enumerate(CLASSES))}}} for name in columns
    ]
    splits = [{"name": part, "num_bytes": 1, "num_examples": expected} for part in ("train", "test", "contrast")]
    card = {"dataset_info": {"features": columns_in_card, "splits": splits, "download_size": 1, "dataset_size": 1}}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    publish(folder / DEFAULT_REPO, label=[0, 1, 2, 0, 1, 2])
    publish(folder / "owner" / "unlabelled")
    publish(folder / "owner" / "half", label=[0, 1, 2, 0, 1, -1])
    publish(folder / "owner" / "short", expected=8144, label=[0, 1, 2, 0, 1, 2])
    with serve(folder) as running:
        yield running


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return hub.environment(tmp_path / "home")


def download(environment: dict[str, str], *args: object) -> subprocess.CompletedProcess[str]:
    # In a separate process, because `datasets` reads the URL of the hub when it is imported.
    command = [sys.executable, "-c", DOWNLOAD, *map(str, args)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def downloaded(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "new" / "stanford_cars"
    result = download(hub.environment(tmp_path_factory.mktemp("home")), root)
    assert result.returncode == 0, result.stderr
    return root


def test_a_downloaded_copy_is_read_like_the_original_archive(downloaded: Path) -> None:
    cars = stanford_cars(downloaded)
    assert cars.classes == tuple(CLASSES)
    assert not cars.notes
    examples = [(example.part, example.label, example.image.path.read_bytes()) for example in cars.examples]
    assert examples == [
        (part, label, photo(first + number, form))
        for part, first in (("train", 1), ("test", 101))
        for number, (label, form) in enumerate(zip([0, 1, 2, 0, 1, 2], ["JPEG"] * 5 + ["PNG"], strict=True))
    ]
    assert (downloaded / "cars_train" / "00006.png").exists()
    assert [path.name for path in downloaded.parent.iterdir()] == ["stanford_cars"]


def test_annotations_have_the_published_fields(downloaded: Path) -> None:
    rows = loadmat(downloaded / "cars_test_annos_withlabels.mat", squeeze_me=True)["annotations"]
    assert rows.dtype.names == ANNOTATION_FIELDS
    assert [int(rows[0][field]) for field in ANNOTATION_FIELDS[:-1]] == [1, 1, 20 + 101, 10, 1]
    assert str(rows[0]["fname"]) == "00001.jpg"


def test_the_default_copy_is_pinned_to_a_commit_and_noisy_splits_are_not_downloaded(hub: Hub, downloaded: Path) -> None:
    assert PINNED_REVISIONS[DEFAULT_REPO] in (downloaded / "README.txt").read_text()
    assert not any("/resolve/main/" in request for request in hub.requests)
    assert not any("contrast" in request for request in hub.requests)


def test_a_failed_download_leaves_nothing_and_the_next_one_continues(
    hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    hub.unavailable.add("test-00000-of-00001.parquet")
    failed = download(environment, tmp_path / "data" / "cars")
    assert failed.returncode == 1
    assert f"ValueError: {DEFAULT_REPO} cannot be downloaded" in failed.stderr
    assert not (tmp_path / "data").exists()

    hub.unavailable.clear()
    hub.requests.clear()
    assert download(environment, tmp_path / "data" / "cars").returncode == 0
    assert not any("GET" in request and "train-0" in request for request in hub.requests)


@pytest.mark.parametrize(
    ("repo", "message"),
    [
        ("owner/unlabelled", "should have the columns image: Image and label: ClassLabel; it has image: Image"),
        ("owner/half", "photo 6 for cars_train has no label"),
        ("owner/short", "has 6 train photos, but should have 8,144"),
        ("owner/nothing", "owner/nothing cannot be downloaded from the hub: DatasetNotFoundError"),
    ],
)
def test_an_unusable_copy_is_refused_with_the_reason(
    environment: dict[str, str], tmp_path: Path, repo: str, message: str
) -> None:
    result = download(environment, tmp_path / "data" / "cars", repo)
    assert result.returncode == 1
    assert "ValueError: " in result.stderr
    assert message in result.stderr
    assert not list(tmp_path.glob("data/*"))


def test_without_network_the_download_fails_at_once_and_explains_the_manual_layout(
    environment: dict[str, str], tmp_path: Path
) -> None:
    start = time.monotonic()
    result = download({**environment, "HF_HUB_OFFLINE": "1"}, tmp_path / "cars")
    assert time.monotonic() - start < 20
    assert "Check the network" in result.stderr
    assert "DIR/cars_train/00001.jpg" in result.stderr


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match="exists already"):
        download_stanford_cars(tmp_path)


def test_a_missing_library_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'xfer\[hub\]'"):
        download_stanford_cars(tmp_path / "cars")
