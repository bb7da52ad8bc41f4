"""The command line: flags become a plan, and invalid input is refused before anything starts."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from sweeps.engine import cli
from sweeps.engine.flag_types import parse_key_values
from sweeps.engine.options import CliOptions, apply_options, parse_args, parse_duration, parse_edits
from sweeps.engine.plan import LIMITS, Plan

PAGE = Plan(experiment="folder", question="Which?")


def plan_of(*flags: object, page: Plan = PAGE) -> Plan:
    """The plan of a command line."""
    return apply_options(*parse_args(page, list(map(str, flags))))


# --- single flags


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1h1m1s", 3661),
        ("45", 45),
        (" 2m ", 120),
        ("", None),
    ],
)
def test_a_duration_is_parsed_as_written(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["0", "0s", "0h0m", "fast", "-5m", "1.5h", "30 m", "m", "h30m", "30m1h", "1d", "nan", " "]
)
def test_an_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--time-budget"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "backbones", "weights"),
    [
        ("a.safetensors", "r", {"r": "a.safetensors"}),
        ("r=a.pt", "r", {"r": "a.pt"}),
        ("r=a.pt, s=b.pt", "r,s", {"r": "a.pt", "s": "b.pt"}),
        ("s=b.pt", "r,s", {"s": "b.pt"}),
        ("weights", "auto", {"auto": "weights"}),
        ("weights", "Auto,r", {"auto": "weights"}),
        ("s=b.pt", "auto", {"s": "b.pt"}),
    ],
)
def test_weights_are_assigned_to_backbones(text: str, backbones: str, weights: dict[str, str]) -> None:
    assert plan_of("--weights", text, "--backbone", backbones).weights == weights


def test_one_weights_file_for_several_backbones_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--weights a.pt: with several backbones name each: NAME=FILE"):
        plan_of("--weights", "a.pt", "--backbone", "r,s")


def test_a_folder_of_weights_is_for_every_backbone(tmp_path: Path) -> None:
    plan = plan_of("--weights", tmp_path, "--backbone", "r,s")
    assert plan.weights == {"r": str(tmp_path), "s": str(tmp_path)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.pt,b.pt", "'a.pt' is not NAME=VALUE"),
        ("r=", "--weights r=: must be NAME=VALUE"),
        ("=a.pt", "'=a.pt' is not NAME=VALUE"),
        (",", "--weights"),
        ("r=a.pt,r=b.pt", "r is given twice"),
    ],
)
def test_malformed_weights_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of("--weights", text, "--backbone", "r")


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("pad_type=same", {"pad_type": "same"}),
        (
            "drop_rate=0.1,scriptable=False,depth=3,x=None",
            {"drop_rate": 0.1, "scriptable": False, "depth": 3, "x": None},
        ),
        ("x='1'", {"x": "1"}),
        ("x=__import__('os').getcwd()", {"x": "__import__('os').getcwd()"}),
    ],
)
def test_arguments_of_the_backbone_are_literals_and_never_executed(text: str, arguments: dict[str, Any]) -> None:
    assert plan_of("--backbone-args", text).backbone_args == arguments


@pytest.mark.parametrize("text", ["pad_type", "pad_type=", "=same", "a=1,b", "a=1,a=2"])
def test_malformed_arguments_of_the_backbone_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--backbone-args"):
        plan_of("--backbone-args", text)


@pytest.mark.parametrize("value", ["{[]:1}", "{1}", "1j", "b'x'", "(1)" * 500, "(" * 5000])
def test_arguments_that_are_not_simple_literals_stay_text(value: str) -> None:
    (parsed,) = parse_key_values(f"x={value}").values()
    assert parsed is None or isinstance(parsed, str | int | float | bool)


def test_vary_and_fix_become_edits() -> None:
    assert parse_edits(("learning_rate=1e-4..1e-2", "clip_norm=none, 0.5"), ("optimizer = sgd",)) == {
        "learning_rate": "1e-4..1e-2",
        "clip_norm": "none, 0.5",
        "optimizer": "sgd",
    }


@pytest.mark.parametrize(
    ("vary", "fix", "message"),
    [
        (("optimizer",), (), r"--vary optimizer: must be AXIS=VALUES"),
        (("=sgd",), (), r"--vary =sgd: must be AXIS=VALUES"),
        (("optimizer=",), (), r"--vary optimizer=: must be AXIS=VALUES"),
        ((), ("optimizer",), r"--fix optimizer: must be AXIS=VALUES, as in --fix optimizer=sgd"),
        (
            ("optimizer=sgd", "optimizer=adam"),
            (),
            r"--vary optimizer=adam: optimizer is already set, to optimizer=sgd",
        ),
        (("optimizer=sgd,adam",), ("optimizer=adam",), r"--fix optimizer=adam: optimizer is already set"),
        ((), ("optimizer=sgd,adam",), r"--fix optimizer=sgd,adam: must be a single value; --vary"),
        ((), ("learning_rate=1e-4..1e-2",), r"--fix learning_rate=1e-4..1e-2: must be a single value"),
    ],
)
def test_malformed_edits_are_refused(vary: tuple[str, ...], fix: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_edits(vary, fix)


# --- from flags to a plan


def test_without_flags_the_plan_is_the_pages() -> None:
    page = Plan(
        *("cars", "Which?", "stanford_cars", "here", ("red", "blue"), ("a", "b")),
        weights={"a": "a.pt"},
        backbone_args={"pad_type": "same"},
        trials=9,
        epochs=5,
        seeds=2,
        strategies=("clip",),
        edits={"optimizer": "sgd"},
    )
    assert plan_of(page=page) == page


def test_flags_change_the_plan() -> None:
    plan = plan_of(
        *("--data", "d", "--classes", "red, blue", "--backbone", "a, b", "--weights", "a=x"),
        *("--backbone-args", "pad_type=same", "--image-size", 96, "--trials", 3, "--epochs", 4),
        *("--strategies", "naive, clip", "--vary", "optimizer=sgd,adam", "--fix", "batch_size=16", "--warm-start"),
        *("--objective", "balanced_accuracy, seconds", "--sampler", "random", "--scheduler", "none"),
        *("--finalists", 1, "--seeds", 2, "--seed", 7, "--keep-backbones", 2, "--no-advise"),
    )
    assert plan == Plan(
        "folder",
        "Which?",
        data="d",
        classes=("red", "blue"),
        backbones=("a", "b"),
        keep_backbones=2,
        weights={"a": "x"},
        backbone_args={"pad_type": "same"},
        image_size=96,
        trials=3,
        epochs=4,
        strategies=("naive", "clip"),
        edits={"optimizer": "sgd,adam", "batch_size": "16"},
        advise=False,
        warm_start=True,
        objective=("balanced_accuracy", "seconds"),
        sampler="random",
        scheduler="none",
        finalists=1,
        seeds=2,
        seed=7,
    )


def test_edits_of_the_command_line_override_the_pages() -> None:
    page = dataclasses.replace(PAGE, edits={"augmentation": "none", "optimizer": "adam"})
    assert plan_of("--fix", "optimizer=sgd", page=page).edits == {"augmentation": "none", "optimizer": "sgd"}


def test_strategies_set_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="--strategies naive and strategy=clip both set the strategies"):
        plan_of("--strategies", "naive", "--fix", "strategy=clip")


def test_images_per_class_and_grey_are_short_for_edits() -> None:
    page = dataclasses.replace(PAGE, edits={"colour": "rgb,grey", "optimizer": "adam"})
    plan = plan_of("--images-per-class", 20, "--grey", page=page)
    assert plan.edits == {"colour": "grey", "optimizer": "adam", "images_per_class": "20"}
    assert plan_of(page=page).edits == page.edits


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--images-per-class", "20", "--vary", "images_per_class=5,10"),
            "--images-per-class 20 and images_per_class=5,10 both set images_per_class",
        ),
        (
            ("--images-per-class", "20", "--fix", "images_per_class=20"),
            "--images-per-class 20 and images_per_class=20 both",
        ),
        (("--grey", "--vary", "colour=rgb,grey"), "--grey and colour=rgb,grey both set colour"),
        (("--grey", "--fix", "colour=grey"), "--grey and colour=grey both set colour"),
    ],
    ids=" ".join,
)
def test_an_axis_set_by_two_flags_is_refused(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(*flags)


@pytest.mark.parametrize("number", [0, -1])
def test_fewer_than_one_image_per_class_is_refused(number: int) -> None:
    from sweeps.engine.search_space.overrides import space_for

    plan = apply_options(PAGE, CliOptions(images_per_class=number))
    with pytest.raises(ValueError, match=f"images_per_class={number}: must be between 1 and"):
        space_for(["a"], 8, edits=plan.edits)


@pytest.mark.parametrize(("size", "expected"), [(None, 64), (128, 64), (32, 32)])
def test_smoke_runs_the_same_code_on_a_small_scale(size: int | None, expected: int) -> None:
    page = dataclasses.replace(
        PAGE, arms=({"strategy": "naive"},) * 3, image_size=size, trials=90, epochs=50, finalists=9, seeds=9
    )
    plan = apply_options(page, CliOptions(smoke=True))
    assert (plan.trials, plan.epochs, plan.image_size, plan.finalists, plan.seeds) == (2, 2, expected, 1, 1)
    assert len(plan.arms) == 2
    assert (plan.sampler, plan.scheduler, plan.backbones) == (PAGE.sampler, PAGE.scheduler, PAGE.backbones)


@pytest.mark.parametrize("smoke", [(), ("--smoke",)], ids=["", "smoke"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(pair for name, (low, high) in LIMITS.items() for pair in ((name, low - 1), (name, high + 1))),
        ("trials", 10**9),
        ("image_size", 10**6),
        ("epochs", -3),
        ("seeds", 0),
        ("seed", -1),
    ],
)
def test_values_outside_the_limits_are_refused(name: str, value: int, smoke: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=rf"{name} is {value}; must be between \d+ and \d+"):
        plan_of(f"--{name.replace('_', '-')}", value, *smoke)


@pytest.mark.parametrize(("name", "limits"), LIMITS.items())
def test_the_limits_themselves_are_accepted(name: str, limits: tuple[int, int]) -> None:
    for value in limits:
        assert getattr(plan_of(f"--{name.replace('_', '-')}", value), name) == value


@pytest.mark.parametrize("flags", [("",), (" , ",), ("", "--weights", "a.pt")], ids=str)
def test_a_plan_without_a_backbone_is_refused(flags: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="at least one backbone is needed"):
        plan_of("--backbone", *flags)


def test_weights_for_a_backbone_that_does_not_compete_are_refused() -> None:
    with pytest.raises(ValueError, match="weights are given for resnet18, which is not among the backbones"):
        plan_of("--backbone", "resnet50", "--weights", "resnet18=a.pt")


# --- exit statuses


def run_page(monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    monkeypatch.setattr(sys, "argv", ["folder", *flags])
    with pytest.raises(SystemExit) as exit_info:
        cli.main(PAGE, "About.")
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "which images? python -m sweeps.folder --data DIR, with DIR/<class>/*.jpg in it"),
        (("--data", "d", "--trials", "1000000000"), "trials is 1000000000; must be between"),
        (("--data", "d", "--image-size", "1000000"), "image_size is 1000000; must be between"),
        (("--data", "d", "--epochs", "-1"), "epochs is -1; must be between"),
        (("--data", "d", "--time-budget", "soon"), "--time-budget soon: write it as"),
        (("--data", "d", "--fix", "optimizer=sgd,adam"), "must be a single value"),
        (("--data", "d", "--vary", "optimizer=sgd", "--vary", "optimizer=adam"), "optimizer is already set"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_invalid_input_exits_with_one_message_and_status_2_before_any_folder_is_made(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    flags: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_page(monkeypatch, *flags) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ")
    assert message in output.err
    assert "Traceback" not in output.err
    assert output.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [("--trials", "many"), ("--no-such-flag",), ("--epochs",), ("--gpus-per-trial", "x")])
def test_flags_that_cannot_be_parsed_have_status_2_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    assert run_page(monkeypatch, *flags) == 2
    assert flags[0] in capsys.readouterr().err


def test_a_storage_that_is_a_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "runs").write_text("")
    assert run_page(monkeypatch, "--data", "d", "--storage", str(tmp_path / "runs")) == 2
    assert str(tmp_path / "runs") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (CliOptions(cpus_per_trial=0), "--cpus-per-trial 0: must be between 1 and"),
        (CliOptions(concurrent=0), "--concurrent 0: must be between 1 and"),
        (CliOptions(concurrent=10**9), "--concurrent 1000000000"),
        (CliOptions(gpus_per_trial=-1.0), "--gpus-per-trial -1.0"),
        (CliOptions(gpus_per_trial=float("nan")), "--gpus-per-trial nan"),
        (CliOptions(gpus_per_trial=1.5), "--gpus-per-trial 1.5: must be a fraction of one GPU, as in 0.5, or an int"),
        (CliOptions(gpus_per_trial=2.0), "--gpus-per-trial 2, but torch sees no GPU on this machine"),
        (CliOptions(gpus_per_trial=1.0), "--gpus-per-trial 1, but torch sees no GPU on this machine"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_resources_that_the_machine_lacks_are_refused(
    monkeypatch: pytest.MonkeyPatch, options: CliOptions, message: str
) -> None:
    import torch

    import xfer.devices.device

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(xfer.devices.device, "default_device", lambda: torch.device("cpu"))
    with pytest.raises(ValueError, match=message):
        cli.resources_per_trial(options)


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "/abs", ".", "..", ".hidden", "line\nbreak", "\x1b[31mred", "x" * 101]
)
def test_a_name_that_is_not_a_plain_file_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must be a plain name"):
        cli.check_name(name)


def test_a_fresh_sweep_gets_the_next_unused_name(tmp_path: Path) -> None:
    assert cli.unused_name(tmp_path, "x") == "x"
    (tmp_path / "x" / "trials").mkdir(parents=True)
    assert cli.unused_name(tmp_path, "x") == "x-2"
    (tmp_path / "x-2").mkdir()
    (tmp_path / "x-2" / ".lease.lock").touch()  # left by an interrupted first start
    assert cli.unused_name(tmp_path, "x") == "x-2"
    (tmp_path / "x-2" / "plan.json").touch()
    assert cli.unused_name(tmp_path, "x") == "x-3"
