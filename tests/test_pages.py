"""The experiment pages: each is a plan and a docstring, and shows its help."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import sweeps
from sweeps.engine.options import CliOptions, apply_options, parse_args
from sweeps.engine.plan import Plan
from tests.sweep_commands import ROOT

NAMES = [
    name
    for _, name, package in pkgutil.iter_modules(sweeps.__path__)
    if not package and name != "__main__" and hasattr(importlib.import_module(f"sweeps.{name}"), "plan")
]


@pytest.fixture(params=NAMES)
def page(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(f"sweeps.{request.param}")


def test_there_are_pages() -> None:
    assert {"folder", "quickstart", "stanford_cars"} <= set(NAMES)


def test_importing_all_pages_prints_and_writes_nothing_and_imports_neither_torch_nor_ray(tmp_path: Path) -> None:
    imports = "; ".join(f"import sweeps.{name}" for name in NAMES)
    heavy = "sorted({'torch', 'ray', 'optuna', 'mlflow', 'pandas', 'sklearn', 'timm'} & sys.modules.keys())"
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); {imports}; assert not {heavy}, {heavy}",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_a_plan_has_its_pages_name_and_asks_a_question(page: ModuleType) -> None:
    assert isinstance(page.plan, Plan)
    assert f"sweeps.{page.plan.experiment}" == page.__name__
    assert page.plan.question.endswith("?")


def test_a_command_line_without_flags_leaves_the_plan_unchanged(page: ModuleType) -> None:
    assert apply_options(*parse_args(page.plan, [])) == page.plan


def test_a_plans_names_are_known_and_its_space_can_be_searched(page: ModuleType) -> None:
    from sweeps.engine.samplers.ask_tell import SAMPLERS
    from sweeps.engine.schedulers import SCHEDULERS
    from sweeps.engine.search_space.overrides import space_for
    from xfer.data.layouts import SOURCES
    from xfer.lengths import RunLength
    from xfer.models.backbones import check_name

    plan = page.plan
    assert plan.source in ("", *SOURCES)
    assert plan.sampler in SAMPLERS
    assert plan.scheduler in SCHEDULERS
    for name in plan.backbones:
        check_name(name)
    space = space_for(plan.backbones, RunLength(plan.epochs, plan.steps), plan.strategies, plan.edits)
    first = space.configured(space.known_good(plan.arms)[0])
    assert plan.arms or (first["strategy"], first["clip_norm"]) == ("clip", 1.0)


def test_a_docstring_states_question_command_and_cost(page: ModuleType) -> None:
    text = page.__doc__ or ""
    assert text.splitlines()[0].endswith("?")
    assert f"python -m {page.__name__}" in text
    assert re.search(r"^Cost: ", text, flags=re.MULTILINE)


def test_help_shows_the_docstring_and_every_shared_flag(
    page: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "argv", ["page", "--help"])
    monkeypatch.delitem(sys.modules, page.__name__)  # or runpy warns that it runs it a second time
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_module(page.__name__, run_name="__main__")
    out, err = capsys.readouterr()
    assert (exit_info.value.code, err) == (0, "")
    fields = {field.name for field in dataclasses.fields(CliOptions)} | {"data", "backbone", "strategies", "warm_start"}
    assert set(re.findall(r"--[a-z-]+", out)) >= {f"--{name.replace('_', '-')}" for name in fields}
    assert f"python -m {page.__name__}" in out
    assert (page.__doc__ or "").splitlines()[0] in " ".join(re.sub(r"[│╭╮╰╯─]", " ", out).split())
    assert list(tmp_path.iterdir()) == []


# --- on real photos


def _plan(page: ModuleType, shared_data: Path, data: str) -> Plan:
    weights = shared_data / "weights" / "mobilenetv2_100.safetensors"
    flags = ["--data", shared_data / data, "--backbone", "mobilenetv2_100", "--weights", weights, "--image-size", 64]
    return apply_options(*parse_args(page.plan, list(map(str, flags))))


@pytest.mark.slow
def test_eight_classes_of_cars_are_read_from_the_original_layout(shared_data: Path, tmp_path: Path) -> None:
    from sweeps import stanford_cars
    from sweeps.engine.planning.prepare import prepare

    prepared = prepare(_plan(stanford_cars, shared_data, "stanford_cars_mini"), tmp_path)
    assert len(prepared.pack.classes) == 8
    assert len(prepared.split.train) + len(prepared.split.val) == 254
    assert len(prepared.split.test) == 81
    assert prepared.notes[:2] == ("rows: 335 seen = 335 used + 0 skipped", "copies: 0 exact, 1 near")
    assert "01129.jpg = train/BMW 6 Series Convertible 2007/03178.jpg" in prepared.notes[2]  # one press photo
    assert prepared.redraws


def test_the_notes_say_that_the_official_test_labels_of_the_cars_are_missing(shared_data: Path) -> None:
    from sweeps import stanford_cars
    from xfer.data.layouts import SOURCES

    plan = _plan(stanford_cars, shared_data, "stanford_cars")
    source = SOURCES[plan.source](Path(plan.data))
    assert len(source.classes) == 196
    assert len(source.examples) == 8144
    assert "official test labels (cars_test_annos_withlabels.mat)" in source.notes[0]
    assert "are missing" in source.notes[0]


@pytest.mark.slow
@pytest.mark.nightly
def test_all_cars_are_read_and_some_of_them_are_held_out(shared_data: Path, tmp_path: Path) -> None:
    from sweeps import stanford_cars
    from sweeps.engine.planning.plan_file import describe_plan
    from sweeps.engine.planning.prepare import prepare

    prepared = prepare(_plan(stanford_cars, shared_data, "stanford_cars"), tmp_path)
    parts = [len(part) for part in (prepared.split.train, prepared.split.val, prepared.split.test)]
    assert sum(parts) == len(prepared.pack.labels) == 8144
    assert parts[1] == pytest.approx(0.15 * 8144, rel=0.05)
    assert parts[2] == pytest.approx(0.15 * 8144, rel=0.05)
    assert "are missing" in " ".join(prepared.notes)
    assert "are missing" in " ".join(describe_plan(prepared)["data"]["notes"])


@pytest.mark.slow
def test_the_val_folder_of_ants_and_bees_becomes_the_test_part(shared_data: Path, tmp_path: Path) -> None:
    from sweeps import folder
    from sweeps.engine.planning.prepare import prepare

    prepared = prepare(_plan(folder, shared_data, "hymenoptera"), tmp_path)
    assert prepared.pack.classes == ("ants", "bees")
    assert [len(part) for part in (prepared.split.train, prepared.split.val, prepared.split.test)] == [195, 49, 153]
    assert prepared.redraws
