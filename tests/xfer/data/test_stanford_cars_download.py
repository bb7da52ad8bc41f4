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
from xfer.data.layouts import stanford_cars
from xfer.data.stanford_cars_download import ANNOTATION_FIELDS, DEFAULT_REPO, PINNED_REVISIONS, download_stanford_cars

datasets = pytest.importorskip("datasets")
yaml = pytest.importorskip("yaml")  # which datasets reads its cards with

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
    written = io.BytesIO()
    Image.new("RGB", (20 + number, 10), (number, 0, 0)).save(written, form)
    return written.getvalue()


def publish(folder: Path, promised: int = 6, **columns: list[int]) -> None:
    """Write a copy as the real one is: parquet parts with the photos inside, a noisy part, a card that describes it."""
    labels = dict.fromkeys(columns, datasets.ClassLabel(names=CLASSES))
    features = datasets.Features({"image": datasets.Image(), **labels})
    (folder / "data").mkdir(parents=True)
    for part, first in {"train": 1, "test": 101, "contrast": 201}.items():
        photos = [*map(photo, range(first, first + 5)), photo(first + 5, "PNG")]
        rows = {"image": [{"bytes": each, "path": None} for each in photos], **columns}
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(folder / "data" / f"{part}-00000-of-00001.parquet")
    described: list[dict[str, object]] = [{"name": "image", "dtype": "image"}]
    described += [{"name": name, "dtype": {"class_label": {"names": dict(enumerate(CLASSES))}}} for name in columns]
    splits = [{"name": part, "num_bytes": 1, "num_examples": promised} for part in ("train", "test", "contrast")]
    card = {"dataset_info": {"features": described, "splits": splits, "download_size": 1, "dataset_size": 1}}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    publish(folder / DEFAULT_REPO, label=[0, 1, 2, 0, 1, 2])
    publish(folder / "someone" / "unlabelled")
    publish(folder / "someone" / "half", label=[0, 1, 2, 0, 1, -1])
    publish(folder / "someone" / "short", promised=8144, label=[0, 1, 2, 0, 1, 2])
    with serve(folder) as running:
        yield running


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return hub.environment(tmp_path / "home")


def download(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    # In a process of its own, because datasets reads where the hub is when it is imported.
    command = [sys.executable, "-c", DOWNLOAD, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def downloaded(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "new" / "stanford_cars"
    done = download(hub.environment(tmp_path_factory.mktemp("home")), root)
    assert done.returncode == 0, done.stderr
    return root


def test_a_downloaded_copy_reads_like_the_original_archive(downloaded: Path) -> None:
    cars = stanford_cars(downloaded)
    assert cars.classes == tuple(CLASSES)
    assert not cars.notes
    found = [(each.part, each.label, each.image.path.read_bytes()) for each in cars.examples]
    assert found == [
        (part, label, photo(first + number, form))
        for part, first in (("train", 1), ("test", 101))
        for number, (label, form) in enumerate(zip([0, 1, 2, 0, 1, 2], ["JPEG"] * 5 + ["PNG"], strict=True))
    ]
    assert (downloaded / "cars_train" / "00006.png").exists()
    assert [path.name for path in downloaded.parent.iterdir()] == ["stanford_cars"]


def test_the_annotations_have_the_published_fields(downloaded: Path) -> None:
    rows = loadmat(downloaded / "cars_test_annos_withlabels.mat", squeeze_me=True)["annotations"]
    assert rows.dtype.names == ANNOTATION_FIELDS
    assert [int(rows[0][field]) for field in ANNOTATION_FIELDS[:-1]] == [1, 1, 20 + 101, 10, 1]
    assert str(rows[0]["fname"]) == "00001.jpg"


def test_the_usual_copy_is_taken_at_a_fixed_commit_and_without_its_noisy_parts(hub: Hub, downloaded: Path) -> None:
    assert PINNED_REVISIONS[DEFAULT_REPO] in (downloaded / "README.txt").read_text()
    assert not any("/resolve/main/" in request for request in hub.asked)
    assert not any("contrast" in request for request in hub.asked)


def test_a_broken_attempt_leaves_nothing_and_the_next_one_goes_on(
    hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    hub.refused.add("test-00000-of-00001.parquet")
    broken = download(environment, tmp_path / "data" / "cars")
    assert broken.returncode == 1
    assert f"ValueError: {DEFAULT_REPO} cannot be fetched" in broken.stderr
    assert not (tmp_path / "data").exists()

    hub.refused.clear()
    hub.asked.clear()
    assert download(environment, tmp_path / "data" / "cars").returncode == 0
    assert not any("GET" in request and "train-0" in request for request in hub.asked)


@pytest.mark.parametrize(
    ("repo", "message"),
    [
        ("someone/unlabelled", "should have the columns image: Image and label: ClassLabel; it has image: Image"),
        ("someone/half", "photo 6 for cars_train has no label"),
        ("someone/short", "has 6 train photos where 8,144 are promised"),
        ("someone/nothing", "someone/nothing cannot be fetched from the hub: DatasetNotFoundError"),
    ],
)
def test_a_copy_that_will_not_do_says_why(environment: dict[str, str], tmp_path: Path, repo: str, message: str) -> None:
    done = download(environment, tmp_path / "data" / "cars", repo)
    assert done.returncode == 1
    assert "ValueError: " in done.stderr
    assert message in done.stderr
    assert not list(tmp_path.glob("data/*"))


def test_without_a_network_it_ends_at_once_and_says_where_files_belong(
    environment: dict[str, str], tmp_path: Path
) -> None:
    began = time.monotonic()
    done = download({**environment, "HF_HUB_OFFLINE": "1"}, tmp_path / "cars")
    assert time.monotonic() - began < 20
    assert "Check the network" in done.stderr
    assert "DIR/cars_train/00001.jpg" in done.stderr


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match="is there already"):
        download_stanford_cars(tmp_path)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'xfer\[hub\]'"):
        download_stanford_cars(tmp_path / "cars")
