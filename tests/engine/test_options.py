"""The command line: what is said becomes a plan, and slips are refused before anything starts."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeps.engine import cli, options
from sweeps.engine.options import Options, backbone_args, build_plan, edits, parse_duration, parse_weights
from sweeps.engine.plan import LIMITS, Plan

PAGE = Plan(experiment="folder", question="Which?")

# --- single flags ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
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
def test_a_time_is_read_as_written(text: str, expected: float | None) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize(
    "text", ["0", "0s", "0h0m", "fast", "-5m", "1.5h", "30 m", "m", "h30m", "30m1h", "1d", "nan", " "]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--time-budget"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "backbones", "expected"),
    [
        ("a.safetensors", ("r",), {"r": "a.safetensors"}),
        ("r=a.pt", ("r",), {"r": "a.pt"}),
        ("r=a.pt, s=b.pt", ("r", "s"), {"r": "a.pt", "s": "b.pt"}),
        ("s=b.pt", ("r", "s"), {"s": "b.pt"}),
    ],
)
def test_weights_are_found_by_backbone(text: str, backbones: tuple[str, ...], expected: dict[str, str]) -> None:
    assert parse_weights(text, backbones) == expected


@pytest.mark.parametrize(
    ("text", "backbones", "message"),
    [
        ("a.pt", ("r", "s"), r"--weights a.pt: with several backbones say whose: NAME=FILE"),
        ("a.pt,b.pt", ("r", "s"), r"'a.pt' is none"),
        ("r=", ("r",), r"--weights r=: NAME=VALUE.* is wanted, 'r=' is none"),
        ("=a.pt", ("r",), r"'=a.pt' is none"),
        (",", ("r",), r"--weights"),
        ("r=a.pt,r=b.pt", ("r",), r"--weights"),
    ],
)
def test_weights_that_cannot_be_told_apart_are_refused(text: str, backbones: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_weights(text, backbones)


@pytest.mark.parametrize(
    ("text", "expected"),
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
def test_arguments_of_the_backbone_are_values_and_never_run(text: str, expected: dict[str, Any]) -> None:
    assert backbone_args(text) == expected


@pytest.mark.parametrize("text", ["pad_type", "pad_type=", "=same", "a=1,b", "a=1,a=2"])
def test_arguments_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--backbone-args"):
        backbone_args(text)


@pytest.mark.parametrize("value", ["{[]:1}", "{1}", "1j", "b'x'", "(1)" * 500, "(" * 5000])
def test_arguments_are_plain_values_or_else_text(value: str) -> None:
    (read,) = backbone_args(f"x={value}").values()
    assert read is None or isinstance(read, str | int | float | bool)


def test_vary_and_fix_make_edits() -> None:
    found = edits(("learning_rate=1e-4..1e-2", "clip_norm=none, 0.5"), ("optimizer = sgd",))
    assert found == {"learning_rate": "1e-4..1e-2", "clip_norm": "none, 0.5", "optimizer": "sgd"}


@pytest.mark.parametrize(
    ("vary", "fix", "message"),
    [
        (("optimizer",), (), r"--vary optimizer: AXIS=VALUES is wanted"),
        (("=sgd",), (), r"--vary =sgd: AXIS=VALUES is wanted"),
        (("optimizer=",), (), r"--vary optimizer=: AXIS=VALUES is wanted"),
        ((), ("optimizer",), r"--fix optimizer: AXIS=VALUES is wanted, as in --fix optimizer=sgd"),
        (
            ("optimizer=sgd", "optimizer=adam"),
            (),
            r"--vary optimizer=adam: optimizer was given before, as optimizer=sgd",
        ),
        (("optimizer=sgd,adam",), ("optimizer=adam",), r"--fix optimizer=adam: optimizer was given before"),
        ((), ("optimizer=sgd,adam",), r"--fix optimizer=sgd,adam: one value fixes an axis; --vary"),
        ((), ("learning_rate=1e-4..1e-2",), r"--fix learning_rate=1e-4..1e-2: one value fixes an axis"),
    ],
)
def test_edits_that_cannot_be_meant_are_refused(vary: tuple[str, ...], fix: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        edits(vary, fix)


# --- flags to a plan -------------------------------------------------------------------------------------------------


def asked(**flags: Any) -> Options:
    return Options(**{**options.default_flags(PAGE), **flags})


def test_without_flags_the_plan_is_the_pages() -> None:
    page = Plan(
        *("cars", "Which?", "stanford_cars", "here", ("red", "blue"), ("a", "b")),
        trials=9,
        epochs=5,
        seeds=2,
        strategies=("clip",),
    )
    assert build_plan(page, Options(**options.default_flags(page))) == page


def test_every_shared_field_of_a_page_is_a_default_of_its_flags() -> None:
    shared = {field.name for field in dataclasses.fields(Options)} & {field.name for field in dataclasses.fields(Plan)}
    written_otherwise = {"weights", "backbone_args"}
    assert shared - written_otherwise <= set(options.default_flags(PAGE))


def test_flags_change_the_plan() -> None:
    plan = build_plan(
        PAGE,
        asked(
            data="d",
            classes="red, blue",
            backbone="a, b",
            weights="a=x",
            backbone_args="pad_type=same",
            image_size=96,
            trials=3,
            epochs=4,
            strategies="naive, clip",
            vary=("optimizer=sgd,adam",),
            fix=("batch_size=16",),
            warm_start=True,
            objective="balanced_accuracy, seconds",
            sampler="random",
            scheduler="none",
            finalists=1,
            seeds=2,
            seed=7,
        ),
    )
    assert plan == Plan(
        "folder",
        "Which?",
        data="d",
        classes=("red", "blue"),
        backbones=("a", "b"),
        weights={"a": "x"},
        backbone_args={"pad_type": "same"},
        image_size=96,
        trials=3,
        epochs=4,
        strategies=("naive", "clip"),
        edits={"optimizer": "sgd,adam", "batch_size": "16"},
        warm_start=True,
        objective=("balanced_accuracy", "seconds"),
        sampler="random",
        scheduler="none",
        finalists=1,
        seeds=2,
        seed=7,
    )


def test_edits_of_the_command_line_come_over_the_pages() -> None:
    page = dataclasses.replace(PAGE, edits={"augmentation": "none", "optimizer": "adam"})
    plan = build_plan(page, asked(fix=("optimizer=sgd",)))
    assert plan.edits == {"augmentation": "none", "optimizer": "sgd"}


def test_strategies_given_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="--strategies naive and strategy=clip say the same thing twice"):
        build_plan(PAGE, asked(strategies="naive", fix=("strategy=clip",)))


def test_how_many_images_and_which_colours_may_be_said_shortly() -> None:
    page = dataclasses.replace(PAGE, edits={"colour": "rgb,grey", "optimizer": "adam"})
    plan = build_plan(page, asked(images_per_class=20, grey=True))
    assert plan.edits == {"colour": "grey", "optimizer": "adam", "images_per_class": "20"}
    assert build_plan(page, asked()).edits == page.edits


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"images_per_class": 20, "vary": ("images_per_class=5,10",)},
            "--images-per-class 20 and images_per_class=5,10 say two things of one axis",
        ),
        (
            {"images_per_class": 20, "fix": ("images_per_class=20",)},
            "--images-per-class 20 and images_per_class=20 say",
        ),
        ({"grey": True, "vary": ("colour=rgb,grey",)}, "--grey and colour=rgb,grey say two things of one axis"),
        ({"grey": True, "fix": ("colour=grey",)}, "--grey and colour=grey say two things of one axis"),
    ],
    ids=str,
)
def test_what_is_said_of_one_axis_twice_is_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_plan(PAGE, asked(**flags))


@pytest.mark.parametrize("number", [0, -1])
def test_no_images_at_all_are_refused(number: int) -> None:
    from sweeps.engine.search_space.overrides import space_for

    plan = build_plan(PAGE, asked(images_per_class=number))
    with pytest.raises(ValueError, match=f"images_per_class={number}: it must lie between 1 and"):
        space_for(["a"], 8, edits=plan.edits)


@pytest.mark.parametrize(("size", "expected"), [(None, 64), (128, 64), (32, 32)])
def test_smoke_is_the_same_path_in_small(size: int | None, expected: int) -> None:
    page = dataclasses.replace(PAGE, arms=({"strategy": "naive"},) * 3)
    plan = build_plan(page, asked(smoke=True, image_size=size, trials=90, epochs=50, finalists=9, seeds=9))
    assert (plan.trials, plan.epochs, plan.image_size, plan.finalists, plan.seeds) == (2, 2, expected, 1, 1)
    assert len(plan.arms) == 2
    assert (plan.sampler, plan.scheduler, plan.backbones) == (PAGE.sampler, PAGE.scheduler, PAGE.backbones)


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(pair for name, (low, high) in LIMITS.items() for pair in ((name, low - 1), (name, high + 1))),
        ("trials", 10**9),
        ("image_size", 10**6),
        ("epochs", -3),
        ("seeds", 0),
        ("seed", -1),
    ],
)
def test_values_beyond_reason_are_refused(flag: str, value: int, smoke: bool) -> None:
    with pytest.raises(ValueError, match=rf"{flag} is {value}; it must lie between \d+ and \d+"):
        build_plan(PAGE, asked(**{flag: value}, smoke=smoke))


@pytest.mark.parametrize(("name", "ends"), LIMITS.items())
def test_the_ends_of_what_is_within_reason_are_taken(name: str, ends: tuple[int, int]) -> None:
    for value in ends:
        assert getattr(build_plan(PAGE, asked(**{name: value})), name) == value


@pytest.mark.parametrize("flags", [{"backbone": ""}, {"backbone": " , "}, {"backbone": "", "weights": "a.pt"}], ids=str)
def test_a_plan_without_a_backbone_is_refused(flags: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"backbone|--weights"):
        build_plan(PAGE, asked(**flags))


def test_weights_for_a_backbone_that_does_not_compete_are_refused() -> None:
    with pytest.raises(ValueError, match="weights are given for resnet18, which is not among the backbones"):
        build_plan(PAGE, asked(backbone="resnet50", weights="resnet18=a.pt"))


# --- the whole way down to an exit status ----------------------------------------------------------------------------


def run_page(monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    monkeypatch.setattr(sys, "argv", ["folder", *flags])
    with pytest.raises(SystemExit) as ended:
        cli.main(PAGE, "About.")
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "which images? python -m sweeps.folder --data DIR, with DIR/<class>/*.jpg in it"),
        (("--data", "d", "--trials", "1000000000"), "trials is 1000000000; it must lie between"),
        (("--data", "d", "--image-size", "1000000"), "image_size is 1000000; it must lie between"),
        (("--data", "d", "--epochs", "-1"), "epochs is -1; it must lie between"),
        (("--data", "d", "--time-budget", "soon"), "--time-budget soon: write it as"),
        (("--data", "d", "--fix", "optimizer=sgd,adam"), "one value fixes an axis"),
        (("--data", "d", "--vary", "optimizer=sgd", "--vary", "optimizer=adam"), "optimizer was given before"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_input_ends_with_one_message_and_status_2_before_any_folder_is_made(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    flags: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_page(monkeypatch, *flags) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [("--trials", "many"), ("--no-such-flag",), ("--epochs",), ("--gpus-per-trial", "x")])
def test_flags_that_cannot_be_read_have_status_2_too(
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
    ("flags", "message"),
    [
        ({"cpus_per_trial": 0}, "--cpus-per-trial 0: it must lie between 1 and"),
        ({"concurrent": 0}, "--concurrent 0: it must lie between 1 and"),
        ({"concurrent": 10**9}, "--concurrent 1000000000"),
        ({"gpus_per_trial": -1.0}, "--gpus-per-trial -1.0"),
        ({"gpus_per_trial": float("nan")}, "--gpus-per-trial nan"),
        ({"gpus_per_trial": 1.5}, "--gpus-per-trial 1.5: a trial gets a share of one GPU, as in 0.5, or whole ones"),
        ({"gpus_per_trial": 2.0}, "--gpus-per-trial 2, but torch sees no GPU on this machine"),
        ({"gpus_per_trial": 1.0}, "--gpus-per-trial 1, but torch sees no GPU on this machine"),
    ],
    ids=str,
)
def test_resources_that_are_not_there_are_refused(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], message: str
) -> None:
    import torch

    import xfer.devices.device

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(xfer.devices.device, "default_device", lambda: torch.device("cpu"))
    with pytest.raises(ValueError, match=message):
        cli._share(asked(**flags))


def test_a_name_stays_within_the_storage() -> None:
    prepared: Any = None
    for name in ("../up", "a/b", "/abs", ".", "..", ".hidden", "line\nbreak", "\x1b[31mred", "x" * 101):
        with pytest.raises(ValueError, match="a plain name is wanted"):
            cli._name(asked(name=name), prepared)


def test_a_fresh_start_stands_beside_the_old_ones(tmp_path: Path) -> None:
    prepared: Any = None
    named: Callable[[bool], str] = lambda fresh: cli._name(asked(name="x", fresh=fresh, storage=tmp_path), prepared)  # noqa: E731
    assert named(True) == "x"
    (tmp_path / "x").mkdir()
    assert named(True) == "x-2"
    (tmp_path / "x-2").mkdir()
    assert named(True) == "x-3"
    assert named(False) == "x"
