"""What the command line refuses, and the effect of flags that change the course of a sweep."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest
from PIL import Image

from sweeps import folder as folder_page
from sweeps import stanford_cars as cars_page
from sweeps.engine.cli import main
from tests.sweep_commands import nonempty_lines, run

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Run a command in this process and return its error; it must be refused before anything starts."""
    import ray

    def no_ray(*_: Any, **__: Any) -> None:
        pytest.fail("Ray was started")

    def run_refused(*flags: object, page: ModuleType = folder_page, **more: Any) -> str:
        storage = tmp_path / "runs"
        args = ["page", "--storage", storage, "--reports", tmp_path / "reports", *flags]  # the last of a flag wins
        monkeypatch.setattr(sys, "argv", list(map(str, args)))
        monkeypatch.setattr(ray, "init", no_ray)
        with pytest.raises(SystemExit) as exit_info:
            main(page.plan, page.__doc__, **more)
        out, err = capfd.readouterr()
        assert exit_info.value.code == 2
        assert out == ""
        assert err.startswith("error: ")
        assert "Traceback" not in err
        assert not list(storage.glob("*/plan.json")) if storage.is_dir() else True
        assert not (tmp_path / "reports").exists() or not list((tmp_path / "reports").iterdir())
        return err

    return run_refused


@pytest.fixture
def fitting(image_folder: Path, weights: Path) -> list[object]:
    """Flags of a tiny sweep that would start."""
    return ["--data", image_folder, "--backbone", "test_efficientnet", "--weights", weights, "--image-size", 32]


def _image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (ord(path.stem[0]), 0, 0)).save(path)


# --- the data


def test_without_data_the_error_says_how_to_name_a_folder(refused: Refused) -> None:
    message = refused()
    assert message.startswith("error: which images? python -m sweeps.folder --data DIR, with DIR/<class>/*.jpg in it.")
    assert all(form in message for form in ("FILE.csv", "hf://owner/name", "torchvision://NAME"))


def test_a_missing_folder_is_refused(refused: Refused, tmp_path: Path) -> None:
    assert refused("--data", tmp_path / "nowhere") == f"error: there is no folder {tmp_path / 'nowhere'}\n"


def test_a_file_in_the_place_of_a_folder_is_refused(refused: Refused, weights: Path) -> None:
    assert f"{weights} is a file; give the folder that holds the images" in refused("--data", weights)


def test_an_empty_folder_is_refused_with_the_expected_layout(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = refused("--data", tmp_path / "empty")
    assert "holds no images in class folders. Expected" in message
    assert "<class>/*.jpg" in message


def test_a_single_class_is_refused(refused: Refused, tmp_path: Path) -> None:
    _image(tmp_path / "data" / "cats" / "1.png")
    assert "holds one class only (cats)" in refused("--data", tmp_path / "data")


def test_a_class_without_images_is_refused_by_name(refused: Refused, tmp_path: Path) -> None:
    _image(tmp_path / "data" / "cats" / "1.png")
    _image(tmp_path / "data" / "dogs" / "1.png")
    (tmp_path / "data" / "newts").mkdir()
    assert "no training images for newts. Add some, or leave the class out" in refused("--data", tmp_path / "data")


def test_data_without_a_readable_image_are_refused(refused: Refused, fitting: list[object], tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "1.jpg").write_text("no picture at all")
    message = refused(*fitting, "--data", tmp_path / "data")
    assert "none of the 2 images of data can be read; the first: cats/1.jpg: " in message


def test_a_class_without_a_readable_image_is_refused(refused: Refused, fitting: list[object], tmp_path: Path) -> None:
    _image(tmp_path / "data" / "cats" / "1.png")
    (tmp_path / "data" / "dogs").mkdir()
    (tmp_path / "data" / "dogs" / "1.jpg").touch()
    assert "no training image of class 'dogs' can be read" in refused(*fitting, "--data", tmp_path / "data")


def test_too_few_images_for_a_split_are_refused(refused: Refused, fitting: list[object], tmp_path: Path) -> None:
    _image(tmp_path / "data" / "cats" / "1.png")
    _image(tmp_path / "data" / "dogs" / "2.png")
    assert "part would be empty: 2 images are too few" in refused(*fitting, "--data", tmp_path / "data")


# --- names and values

INVALID_FLAGS = {
    "strategies=naiv": "unknown strategy 'naiv': did you mean naive?",
    "vary=optimizer=adan": "unknown optimizer 'adan': did you mean",
    "fix=loss=cross_entropie": "unknown loss 'cross_entropie': did you mean cross_entropy?",
    "fix=schedule=linear": "unknown schedule 'linear'. Known: ",
    "vary=learning_rat=1e-3": "unknown axis 'learning_rat': did you mean learning_rate?",
    "vary=backbone=resnet18": "unknown axis 'backbone'",
    "backbone=test_eficientnet": "unknown backbone 'test_eficientnet': did you mean test_efficientnet",
    "backbone=": "at least one backbone is needed",
    "sampler=tpee": "unknown sampler 'tpee': did you mean tpe? Known: tpe, random",
    "scheduler=ashaa": "unknown scheduler 'ashaa': did you mean asha? Known: asha, median, none",
    "trials=0": "trials is 0; must be between 1 and 100000",
    "trials=1000000000": "trials is 1000000000; must be between",
    "epochs=0": "epochs is 0; must be between",
    "image-size=1000000": "image_size is 1000000; must be between 8 and 2048",
    "image-size=7": "image_size is 7; must be between",
    "finalists=-1": "finalists is -1; must be between",
    "seeds=0": "seeds is 0; must be between",
    "seed=-1": "seed is -1; must be between",
    "concurrent=0": "--concurrent 0: must be between",
    "cpus-per-trial=0": "--cpus-per-trial 0: must be between",
    "gpus-per-trial=-1": "--gpus-per-trial -1.0: must be between",
    "gpus-per-trial=1.5": "--gpus-per-trial 1.5: must be a fraction of one GPU, as in 0.5, or an integer, as in 2",
    "gpus-per-trial=nan": "--gpus-per-trial nan: must be between",
    "fix=batch_size=1000000000": "batch_size=1000000000: must be between 2 and 65536",
    "fix=batch_size=16.5": "batch_size=16.5: must be an integer",
    "fix=learning_rate=nan": "learning_rate=nan: must be between",
    "fix=learning_rate=1e9": "must be between 1e-09 and 100",
    "fix=learning_rate=fast": "learning_rate=fast: must be a number",
    "vary=learning_rate=1e-2..1e-4": "is not a range: give two numbers, the lower first",
    "vary=weight_decay=nan..1": "is not a range: give two numbers",
    "fix=optimizer": "--fix optimizer: must be AXIS=VALUES",
    "fix=optimizer=sgd,adam": "must be a single value; --vary optimizer=sgd,adam searches several",
    "fix=smoothing=2": "smoothing",
    "fix=alpha=0": "alpha",
    "fix=num_ops=0": "num_ops",
    "fix=num_ops=1.5": "num_ops",
    "fix=magnitude=31": "magnitude",
    "fix=freeze_epochs=0": "freeze_epochs must be at least 1, got 0",
    "fix=freeze_epochs=8": "freeze_epochs can be at most 7",
    "weights=nowhere.safetensors": "there is no weights file nowhere.safetensors",
    "backbone-args=pad_type": "--backbone-args pad_type: must be NAME=VALUE[,NAME=VALUE]",
    "backbone-args=no_such_argument=1": "test_efficientnet cannot be built with these arguments",
    "time-budget=soon": "--time-budget soon: write it as 90s, 30m, 2h or 1h30m",
    "time-budget=0s": "--time-budget 0s: must be longer than zero",
    "cost-budget=20": "--cost-budget 20: the price of this machine is unknown, so the cost cannot be computed",
    "cost-budget=0": "--cost-budget 0: must be a positive amount in US dollars, as in --cost-budget 20",
    "cost-budget=nan": "--cost-budget nan: must be a positive amount in US dollars",
    "prices=cheap": "--prices cheap: 'cheap' is not a price in US dollars an hour, as in --prices l4=0.35",
    "prices=-1": "--prices -1: '-1' is not a price in US dollars an hour",
    "prices=l4=0.35": "--prices names l4, node types of a cluster, but RAY_ADDRESS is not set: write --prices 0.40",
    "prices=l4=0.35,0.4": "--prices l4=0.35,0.4: write NODE_TYPE=PRICE[,NODE_TYPE=PRICE], or one PRICE for all",
    "prices=l4=1,l4=2": "--prices l4=1,l4=2: l4 has two prices",
    "tracking-uri=localhost:5000": "--tracking-uri 'localhost:5000' lacks its scheme: write http://localhost:5000",
    "tracking-uri=mlruns": "--tracking-uri 'mlruns' is not an address of MLflow",
    "reports=s3://bucket/reports": "--reports s3://...: must be a folder on this machine",
    "name=a/b": "--name 'a/b': must be a plain name without slashes",
    "name=../a": "must be a plain name",
    "name=.hidden": "must be a plain name",
    "name=" + 101 * "a": "of at most 100 characters",
    "name=a\x1b[31mb": "must be a plain name",
}


@pytest.mark.parametrize("flag", INVALID_FLAGS, ids=lambda flag: str(flag)[:40].encode("unicode_escape").decode())
def test_an_invalid_value_is_refused_with_one_line(refused: Refused, fitting: list[object], flag: str) -> None:
    name, _, value = flag.partition("=")
    message = refused(*fitting, f"--{name}={value}")
    assert INVALID_FLAGS[flag] in message
    assert len(list(nonempty_lines(message))) == 1
    assert "\x1b" not in message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--vary", "optimizer=sgd,adam", "--fix", "optimizer=sgd"), "optimizer is already set, to"),
        (("--strategies", "naive", "--fix", "strategy=clip"), "both set the strategies"),
        (("--strategies", "naive", "--fix", "freeze_epochs=1"), "belongs to freeze_then_unfreeze, which this sweep"),
        (("--strategies", "clip", "--fix", "clip_norm=none"), "clip_norm=none contradicts strategy clip"),
        (("--strategies", "freeze_then_unfreeze", "--epochs", "1"), "needs an epoch after it unfreezes"),
        (("--backbone", "test_efficientnet,test_resnet"), "with several backbones name each: NAME=FILE"),
        (("--weights", "test_resnet=a.safetensors"), "which is not among the backbones"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(
    refused: Refused, fitting: list[object], flags: tuple[str, ...], message: str
) -> None:
    assert message in refused(*fitting, *flags)


def test_weights_of_another_network_are_refused(
    refused: Refused, fitting: list[object], weights_of: Callable[[str], Path]
) -> None:
    message = refused(*fitting, "--weights", weights_of("test_resnet"))
    assert "test_resnet.safetensors does not fit test_efficientnet" in message


def test_a_file_without_weights_is_refused(refused: Refused, fitting: list[object], tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_text("os.system('rm')")
    message = refused(*fitting, "--weights", tmp_path / "weights.pth")
    assert "weights.pth is neither a safetensors file nor a plain state dict" in message


def test_a_missing_gpu_is_refused(refused: Refused, fitting: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--gpus-per-trial 1, but torch sees no GPU on this machine" in refused(*fitting, "--gpus-per-trial", 1)


def test_a_storage_that_is_a_file_is_refused(refused: Refused, fitting: list[object], weights: Path) -> None:
    assert str(weights) in refused(*fitting, "--storage", weights)


def test_a_storage_below_a_file_is_refused(refused: Refused, fitting: list[object], weights: Path) -> None:
    assert str(weights) in refused(*fitting, "--storage", weights / "runs")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_storage_that_cannot_be_written_to_is_refused(
    refused: Refused, fitting: list[object], tmp_path: Path
) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "locked cannot be used: permission denied" in refused(*fitting, "--storage", tmp_path / "locked")


def test_reports_that_are_a_file_are_refused(refused: Refused, fitting: list[object], weights: Path) -> None:
    assert f"--reports {weights} cannot be used: there is a file" in refused(*fitting, "--reports", weights)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("RAY_ADDRESS", "ray://10.0.0.1:10001", "RAY_ADDRESS=ray://10.0.0.1:10001 is for Ray Client"),
        ("RAY_ADDRESS", "no cluster", "RAY_ADDRESS=no cluster is not HOST:PORT"),
        ("RAY_ADDRESS", "127.0.0.1:1", "RAY_ADDRESS=127.0.0.1:1 leads nowhere: nothing listens on that port"),
        ("MLFLOW_TRACKING_URI", "file:mlruns", "Correct or unset MLFLOW_TRACKING_URI"),
    ],
)
def test_a_stale_environment_variable_is_refused_with_one_line(
    refused: Refused,
    fitting: list[object],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    message: str,
) -> None:
    monkeypatch.setenv(variable, value)
    error = refused(*fitting)
    assert message in error
    assert len(list(nonempty_lines(error))) == 1


def test_a_damaged_plan_is_not_resumed(
    fitting: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "runs" / "mine" / "plan.json"
    plan.parent.mkdir(parents=True)
    plan.write_text('{"trials": 3')
    places = ["--storage", tmp_path / "runs", "--reports", tmp_path / "reports", "--name", "mine"]
    monkeypatch.setattr(sys, "argv", list(map(str, ["page", *fitting, *places])))
    with pytest.raises(SystemExit) as exit_info:
        main(folder_page.plan, folder_page.__doc__)
    assert exit_info.value.code == 2
    message = capfd.readouterr().err
    assert message.startswith(f"error: {plan} cannot be read")
    assert "--fresh" in message
    assert plan.read_text() == '{"trials": 3'


# --- Stanford Cars


def test_a_folder_without_the_cars_is_refused_with_their_layout(refused: Refused, tmp_path: Path) -> None:
    message = refused("--data", tmp_path, page=cars_page, flags=cars_page.CarsOptions, find=cars_page.find_data)
    assert f"{tmp_path} lacks devkit/cars_meta.mat, devkit/cars_train_annos.mat, cars_train" in message
    assert "DIR/cars_train/00001.jpg" in message


# --- in separate processes


def test_a_missing_folder_is_refused_within_seconds(tmp_path: Path) -> None:
    ended = run("folder", ["--data", "nowhere", "--storage", "runs", "--reports", "reports"], tmp_path, cwd=tmp_path)
    assert (ended.status, ended.out, ended.err) == (2, "", "error: there is no folder nowhere\n")
    assert ended.seconds < 60


def test_an_unknown_flag_is_refused_with_the_closest_known_one(tmp_path: Path) -> None:
    ended = run("folder", ["--epoch", 3], tmp_path, cwd=tmp_path)
    assert ended.status == 2
    assert ended.out == ""
    assert "--epochs" in ended.err
    assert "Traceback" not in ended.err


def test_missing_cars_are_refused_with_their_layout(tmp_path: Path) -> None:
    ended = run("stanford_cars", [], tmp_path / "logs", cwd=tmp_path)
    assert ended.status == 2
    assert ended.out == ""
    assert ended.err.startswith("error: there is no data/stanford_cars. Say where the photos are with --data DIR")
    for text in ("--download", "cars_train/00001.jpg", "devkit/cars_meta.mat", "cars_test_annos_withlabels.mat"):
        assert text in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_the_quickstart_refuses_an_unknown_backbone_before_it_pretrains_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sweeps import quickstart
    from sweeps.engine.cli import main

    places = ["--storage", str(tmp_path / "runs"), "--reports", str(tmp_path / "reports")]
    monkeypatch.setattr("sys.argv", ["quickstart", "--backbone", "test_resnet1x", *places])
    with pytest.raises(SystemExit) as ended:
        main(quickstart.plan, None, find=quickstart.find_data)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: unknown backbone 'test_resnet1x': did you mean test_resnet")


def test_the_quickstart_pretrains_every_backbone_that_competes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps import quickstart
    from sweeps.engine.options import parse_args

    monkeypatch.setattr(quickstart, "pretrained_weights", lambda folder, name, size: folder / f"{name}-{size}")
    flags = ["--storage", str(tmp_path), "--backbone", "test_resnet,test_vit", "--image-size", "48"]
    plan = quickstart.find_data(*parse_args(quickstart.plan, flags))
    assert {name: Path(file).name for name, file in plan.weights.items()} == {
        "test_resnet": "test_resnet-48",
        "test_vit": "test_vit-48",
    }


def test_ctrl_c_before_the_first_trial_ends_with_status_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sweeps import folder
    from sweeps.engine.cli import main

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["folder"])
    with pytest.raises(SystemExit) as ended:
        main(folder.plan, None, find=interrupt)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted: the same command resumes from here\n"
