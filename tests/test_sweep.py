"""One tiny sweep from the command line to its report, and the same command repeated."""

from __future__ import annotations

import csv
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.sweep_commands import (
    CompletedCommand,
    SweepFolder,
    build_once,
    nonempty_lines,
    only_sweep,
    run,
    without_timings,
)

if TYPE_CHECKING:
    from xfer.data.pack import Pack

pytestmark = pytest.mark.slow

TRIALS, EPOCHS, FINALISTS, SEEDS = 7, 3, 2, 2
COLUMNS = [
    *("rank", "trial", "strategy", "freeze_epochs", "clip_norm", "backbone", "optimizer", "schedule", "augmentation"),
    *("mixing", "loss", "learning_rate", "weight_decay", "batch_size", "epochs", "status", "val_accuracy"),
    *("test_accuracy", "test_ci_low", "test_ci_high", "seeds", "seconds"),
]
"""The first columns of ranking.csv; more may follow."""


@dataclass(frozen=True)
class Sweep:
    """A completed sweep, and its command."""

    storage: Path
    reports: Path
    ended: CompletedCommand
    flags: tuple[str, ...]

    @property
    def files(self) -> SweepFolder:
        """The folder of the sweep."""
        return only_sweep(self.storage)

    @property
    def report(self) -> Path:
        """The folder of its report."""
        return self.reports / self.files.folder.name


@pytest.fixture(scope="session")
def flags(image_folder: Path, weights: Path) -> tuple[str, ...]:
    """The flags of the command, without the output folders."""
    return (
        *("--data", str(image_folder), "--backbone", "test_efficientnet", "--weights", str(weights)),
        *("--image-size", "32", "--trials", str(TRIALS), "--epochs", str(EPOCHS), "--vary", "batch_size=2,4"),
        *("--finalists", str(FINALISTS), "--seeds", str(SEEDS), "--no-advise"),
        # Without heads in closed form, which take one epoch, and without a screening before the search.
        *("--strategies", "clip,freeze_then_unfreeze,naive,linear_probe,scratch"),
    )


@pytest.fixture(scope="session")
def sweep(flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """The sweep that most tests here read; none may change it."""

    def make(folder: Path) -> None:
        ended = run("folder", [*flags, "--storage", folder / "runs", "--reports", folder / "reports"], folder)
        (folder / "status").write_text(str(ended.status))
        (folder / "out").write_text(ended.out)
        (folder / "err").write_text(ended.err)

    folder = build_once(tmp_path_factory, "sweep", make)
    out, err = (folder / "out").read_text(), (folder / "err").read_text()
    ended = CompletedCommand(int((folder / "status").read_text()), out, err, 0.0)
    return Sweep(folder / "runs", folder / "reports", ended, flags)


@pytest.fixture(scope="session")
def pixels(sweep: Sweep) -> Pack:
    """The images of the sweep."""
    from xfer.data.pack import load_pack

    (folder,) = (sweep.storage / "packs").iterdir()
    return load_pack(folder, verify=True)


@pytest.fixture
def storage(sweep: Sweep, tmp_path: Path) -> Path:
    """A copy of the storage, for a test that writes to it."""
    return Path(shutil.copytree(sweep.storage, tmp_path / "runs", copy_function=shutil.copy2))


@pytest.fixture
def again(
    sweep: Sweep, storage: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., CompletedCommand]:
    """Repeats the command on the copy, with further flags, in this process, where Ray must not start."""
    import ray

    from sweeps import folder as page
    from sweeps.engine.cli import main

    def no_ray(*_: Any, **__: Any) -> None:
        pytest.fail("Ray was started")

    def give(*more: object, reports: Path | None = None) -> CompletedCommand:
        places = ("--storage", storage, "--reports", reports or storage.parent / "reports")
        monkeypatch.setattr(sys, "argv", list(map(str, ("folder", *sweep.flags, *places, *more))))
        monkeypatch.setattr(ray, "init", no_ray)
        with pytest.raises(SystemExit) as exit_:
            main(page.plan, page.__doc__)
        return CompletedCommand(int(str(exit_.value.code)), *capfd.readouterr(), seconds=0.0)

    return give


# --- the storage ------------------------------------------------------------------------------------------------------


def test_the_sweep_exits_with_status_0(sweep: Sweep) -> None:
    assert sweep.ended.status == 0, sweep.ended.out + sweep.ended.err


def test_the_sweep_is_named_after_experiment_data_and_plan(sweep: Sweep) -> None:
    assert re.fullmatch(r"folder-colours-[0-9a-f]{6}", sweep.files.folder.name)
    assert sweep.files.plan["name"] == sweep.files.folder.name


def test_every_trial_has_one_config_its_epochs_and_one_record(sweep: Sweep) -> None:
    files = sweep.files
    search, finals = files.trials("search"), files.trials("final")
    assert search == [f"{number:04d}" for number in range(TRIALS)]
    assert len(finals) == len(files.read("finals", "0001.json")["finalists"]) * SEEDS
    for name in (*search, *finals):
        record = files.read("trials", name, "record.json")
        assert record["trial"] == name
        assert record["epochs"] == files.epochs(name)
        assert [epoch["epoch"] for epoch in record["epochs"]] == list(range(1, len(record["epochs"]) + 1))
        assert record["recipe"] == files.read("trials", name, "config.json")["recipe"]
        assert record["resumed_at"] == []
        assert record["status"] in ("finished", "pruned")
        assert (record["status"] == "finished") == (len(record["epochs"]) == EPOCHS)


def test_the_known_good_recipes_come_first_and_the_first_clips_at_1(sweep: Sweep) -> None:
    recipes = [sweep.files.records()[f"{number:04d}"]["recipe"] for number in range(6)]
    assert [recipe["strategy"]["name"] for recipe in recipes] == [
        *("clip", "freeze_then_unfreeze", "linear_probe", "naive", "scratch", "clip")
    ]
    assert recipes[0]["clip_norm"] == 1.0


def test_only_scratch_starts_from_random_weights(sweep: Sweep) -> None:
    weights = sweep.files.plan["backbones"][0]["weights"]
    for record in sweep.files.records().values():
        scratch = record["recipe"]["strategy"]["name"] == "scratch"
        assert record["recipe"]["weights"] == ("" if scratch else weights)


def test_no_temporary_file_or_lease_remains(sweep: Sweep) -> None:
    names = [path.name for path in sweep.storage.rglob("*")]
    assert not [name for name in names if name.endswith((".tmp", ".damaged", ".old", ".new"))]
    assert "lease.json" not in names


def test_finalists_are_the_best_finished_trials_of_the_search_the_control_and_the_best_frozen_head(
    sweep: Sweep,
) -> None:
    finished = [record for record in sweep.files.records("search").values() if record["status"] == "finished"]
    best = sorted(finished, key=lambda record: (-record["epochs"][-1]["val_accuracy"], record["trial"]))
    expected = [record["trial"] for record in best[:FINALISTS]]
    head = next(record["trial"] for record in best if record["recipe"]["strategy"]["name"] == "linear_probe")
    control = next(record["trial"] for record in best if record["key"] == sweep.files.plan["control"]["key"])
    expected = list(dict.fromkeys([*expected, control, head]))
    assert sweep.files.read("finals", "0001.json")["finalists"] == expected


def test_each_finalist_runs_again_on_each_new_seed(sweep: Sweep) -> None:
    finalists = sweep.files.read("finals", "0001.json")["finalists"]
    wanted = {f"{name}-s{seed}" for name in finalists for seed in range(1, SEEDS + 1)}
    assert set(sweep.files.trials("final")) == wanted
    searched, finals = sweep.files.records("search"), sweep.files.records("final")
    for name, record in finals.items():
        trial, seed = name.split("-s")
        assert record["key"] == searched[trial]["key"]
        assert record["id"] != searched[trial]["id"]
        assert record["recipe"] == {**searched[trial]["recipe"], "seed": int(seed), "draw": int(seed)}


def test_finalists_are_fixed_before_their_runs_and_their_order_before_the_test_part_is_used(sweep: Sweep) -> None:
    folder = sweep.files.folder
    assert [path.name for path in (folder / "finals").iterdir()] == ["0001.json"]
    assert [path.name for path in (folder / "openings").iterdir()] == ["0001.json"]
    chosen = (folder / "finals" / "0001.json").stat().st_mtime_ns
    opened = (folder / "openings" / "0001.json").stat().st_mtime_ns
    for name in sweep.files.trials("search"):
        assert (folder / "trials" / name / "record.json").stat().st_mtime_ns <= chosen
    for name in sweep.files.trials("final"):
        times = [(folder / "trials" / name / file).stat().st_mtime_ns for file in ("config.json", "record.json")]
        assert chosen <= times[0] <= times[1] <= opened <= (folder / "trials" / name / "test.json").stat().st_mtime_ns


def test_only_finalists_are_evaluated_on_the_test_part(sweep: Sweep) -> None:
    opened = sorted(path.parent.name for path in sweep.files.folder.glob("trials/*/test.json"))
    assert opened == sweep.files.trials("final")
    assert all(record["test"] is None for record in sweep.files.records().values())  # records were written before


def test_finalists_are_ordered_by_mean_validation_accuracy(sweep: Sweep) -> None:
    finals = sweep.files.records("final")
    finalists = sweep.files.read("finals", "0001.json")["finalists"]
    means = {
        trial: fmean(finals[f"{trial}-s{seed}"]["epochs"][-1]["val_accuracy"] for seed in range(1, SEEDS + 1))
        for trial in finalists
    }
    order = sorted(finalists, key=lambda trial: (-means[trial], trial))
    assert sweep.files.read("openings", "0001.json")["finalists"] == order
    assert [row["trial"] for row in _ranking(sweep)][: len(order)] == order


def test_validation_parts_differ_between_seeds_but_not_between_finalists(sweep: Sweep) -> None:
    images = {name: record["val"]["images"] for name, record in sweep.files.records("final").items()}
    by_seed = [{tuple(parts) for name, parts in images.items() if name.endswith(f"-s{seed}")} for seed in (1, 2)]
    assert [len(each) for each in by_seed] == [1, 1]
    assert by_seed[0] != by_seed[1]


def test_the_test_part_is_the_same_for_all_and_disjoint_from_training_and_validation(
    sweep: Sweep, pixels: Pack
) -> None:
    from xfer.data.split import split_pack

    tested = {tuple(sweep.files.read("trials", name, "test.json")["images"]) for name in sweep.files.trials("final")}
    assert len(tested) == 1
    (images,) = map(set, tested)
    for record in sweep.files.records().values():
        split = split_pack(pixels, record["recipe"]["split_seed"], record["recipe"]["draw"])
        if record["val"] is not None:
            assert record["val"]["images"] == split.val.tolist()
        assert not images & {*split.train.tolist(), *split.val.tolist()}
        assert images | {*split.train.tolist(), *split.val.tolist()} == set(range(len(pixels.labels)))


def test_only_the_best_trials_keep_their_checkpoints(sweep: Sweep) -> None:
    order = sweep.files.read("openings", "0001.json")["finalists"]
    kept = {path.parent.name for path in sweep.files.folder.glob("trials/*/checkpoints")}
    assert kept == {*order, *(f"{order[0]}-s{seed}" for seed in range(1, SEEDS + 1))}
    assert all(1 <= len(sweep.files.checkpoints(name)) <= 2 for name in kept)


def test_the_exported_model_predicts_as_the_winner_did_on_the_test_part(sweep: Sweep, pixels: Pack) -> None:
    from xfer.training.export import load_classifier

    winner = (sweep.files.folder / "model" / "trial.txt").read_text()
    assert winner.partition("-")[0] == sweep.files.read("openings", "0001.json")["finalists"][0]
    classifier = load_classifier(sweep.files.folder / "model")
    assert classifier.classes == ("blue", "green", "red")
    test = sweep.files.read("trials", winner, "test.json")
    probabilities = classifier.probabilities(np.asarray(pixels.images[test["images"]]))
    assert probabilities.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    hits = probabilities.argmax(axis=1) == pixels.labels[test["images"]]
    assert "".join("01"[int(hit)] for hit in hits) == test["correct"]


@pytest.mark.parametrize("trial", ["0000", "0001", "final"])
def test_the_record_of_a_trial_equals_that_of_a_plain_run_of_its_recipe(
    sweep: Sweep, pixels: Pack, weights: Path, one_thread: None, trial: str
) -> None:
    import torch

    from xfer.recipe import recipe_from_dict
    from xfer.records import as_dict
    from xfer.run import Run

    records = sweep.files.records("final" if trial == "final" else "search")
    stored = next(iter(records.values())) if trial == "final" else records[trial]
    run = Run(recipe_from_dict(stored["recipe"]), pixels, weights, torch.device("cpu"))
    for _ in zip(stored["epochs"], run, strict=False):  # a pruned trial stops early
        pass
    assert without_timings(as_dict(run.record(stored["trial"], stored["phase"]))) == _as_json(without_timings(stored))


# --- output and report ------------------------------------------------------------------------------------------------


def test_without_a_terminal_only_a_few_plain_lines_are_printed(sweep: Sweep) -> None:
    out = sweep.ended.out
    assert sweep.ended.err == ""
    assert "\x1b" not in out
    assert "\r" not in out
    assert len(out.splitlines()) <= 32
    text = "".join(out.lower().splitlines()[:-3])  # the last lines are paths, which may contain anything
    assert not [word for word in ("ray", "warning", "optuna", "mlflow", "tune") if word in text]


def test_the_first_lines_describe_the_data_and_the_number_of_runs(sweep: Sweep) -> None:
    first, note, *rest = nonempty_lines(sweep.ended.out)
    explained = [line for line in rest if line.startswith("default search: ")]
    assert explained[0].startswith("default search: test_efficientnet has at least as many batch norms as layer norms")
    assert rest[: len(explained)] == explained
    del rest[: len(explained)]
    assert first == (f"{sweep.files.folder.name}: 3 classes, 24 training, 6 validation and 6 test images of 32 px")
    assert note == "note: files: 36 seen = 36 used + 0 skipped"
    search = rest.index(f"search: {TRIALS} runs")
    measured = " ".join(rest[:search])  # longer than a line
    assert measured.startswith("before any training: kNN (k=5) ")
    assert measured.endswith(" of 6 validation images")
    assert rest[search + 1] == f"finals: {len(sweep.files.trials('final'))} runs"


def test_accuracies_without_training_are_printed_before_the_search_and_used_on_the_test_part_after_its_opening(
    sweep: Sweep,
) -> None:
    val, test = (sweep.files.read("zero_effort", f"000{number}.json") for number in (1, 2))
    assert [(row["method"], row.get("k"), row["images"], row["train_images"]) for row in val["rows"]] == [
        ("knn", 5, 6, 24),
        ("knn", 20, 6, 24),
        ("logistic_probe", None, 6, 24),
    ]
    assert (val["part"], test["part"], val["why_none"], test["why_none"]) == ("val", "test", {}, {})
    assert [{**row, "correct": 0} for row in test["rows"]] == [{**row, "correct": 0} for row in val["rows"]]
    assert val["at"] <= sweep.files.read("openings", "0001.json")["at"] <= test["at"]
    lines = list(nonempty_lines(sweep.ended.out))
    (measured,) = [number for number, line in enumerate(lines) if line.startswith("before any training: kNN (k=5) ")]
    assert measured < lines.index(f"search: {TRIALS} runs")
    for name in ("report.md", "report.html"):
        text = (sweep.report / name).read_text(encoding="utf-8")
        assert text.count("Without any training, ") == 1
        # on the first screen and in the table
        assert text.count("logistic probe |" if name == "report.md" else ">logistic probe<") == 2


def test_the_ranking_and_the_report_come_before_the_evaluation_under_noise(sweep: Sweep) -> None:
    lines = list(nonempty_lines(sweep.ended.out))
    (noise,) = [number for number, line in enumerate(lines) if line.startswith("noise: ")]
    finals = len(sweep.files.trials("final"))
    assert lines[noise].startswith(f"noise: {finals} runs under 7 kinds of noise on 6 of 6 test images")
    (ranking,) = [number for number, line in enumerate(lines) if line.startswith("rank ")]
    reports = [number for number, line in enumerate(lines) if line.startswith("report ")]
    assert ranking < reports[0] < noise < reports[1]


def test_accuracies_under_noise_are_stored_after_the_clean_ones_and_are_in_the_report(sweep: Sweep) -> None:
    names, trials = sweep.files.trials("final"), sweep.files.folder / "trials"
    last = max((trials / name / "test.json").stat().st_mtime_ns for name in names)
    for name in names:
        assert "noisy" not in sweep.files.read("trials", name, "test.json")
        assert last <= (trials / name / "noise.json").stat().st_mtime_ns
        scores = sweep.files.read("trials", name, "noise.json")["noisy"]
        assert len({score["kind"] for score in scores}) == 7
        assert sum(score["images"] for score in scores) == 7 * 6
    finalists = len(sweep.files.read("openings", "0001.json")["finalists"])
    assert [row["test_noisy_images"] for row in _ranking(sweep)[:finalists]] == ["6"] * finalists
    assert "it rests on 6 of 6 test images" in (sweep.report / "report.md").read_text()


def test_the_last_lines_name_report_browser_and_next_step(sweep: Sweep) -> None:
    assert sweep.ended.out.splitlines()[-3:] == [
        f"report   {sweep.report}/report.html",
        f"browse   python -m sweeps ui --storage {sweep.storage}",
        f"next     the same command with --trials {2 * TRIALS} continues the search",
    ]


def test_the_answer_explains_every_strategy_that_it_names(sweep: Sweep) -> None:
    from xfer.methods.descriptions import strategy_descriptions

    answer = " ".join(sweep.ended.out.split())
    for name in ("clip", "freeze_then_unfreeze", "linear_probe", "naive", "scratch"):
        assert strategy_descriptions()[name] in answer


def test_the_output_of_ray_is_in_a_log_file(sweep: Sweep) -> None:
    warning = "Failed to fetch metrics"  # of Ray Tune, which looks for files that our trials do not write
    assert warning in (sweep.files.folder / "logs" / "driver.log").read_text()
    assert warning not in sweep.ended.out + sweep.ended.err


def test_the_report_is_complete_and_self_contained(sweep: Sweep) -> None:
    page = (sweep.report / "report.html").read_text()
    assert {path.name for path in sweep.report.iterdir()} == {
        "report.md",
        "report.html",
        "ranking.csv",
        "trials.parquet",
        "figures",
        "photos",
    }
    assert not re.findall(r"""<link|src\s*=\s*(?!["']?data:)|https?://(?!www\.w3\.org|creativecommons|purl)""", page)
    assert page.count("<svg") >= 3
    text = (sweep.report / "report.md").read_text()
    for word in (sweep.files.plan["provenance"]["command"], sweep.files.plan["data"]["pack"][:12], "torch"):
        assert word in text
        assert word in page


def test_the_ranking_has_the_documented_columns_and_a_row_for_each_trial(sweep: Sweep) -> None:
    rows = _ranking(sweep)
    assert list(rows[0])[: len(COLUMNS)] == COLUMNS
    tied = [row["tied_with_best"] == "yes" for row in rows]
    assert [row["rank"] for row in rows] == ["1" if tied[0] and tied[i] else str(i + 1) for i in range(TRIALS)]
    assert sorted(row["trial"] for row in rows) == sweep.files.trials("search")


def test_the_ranking_has_means_over_seeds_for_finalists_and_no_test_accuracy_for_others(sweep: Sweep) -> None:
    finals = sweep.files.records("final")
    for row in _ranking(sweep):
        runs = [name for name in finals if name.startswith(f"{row['trial']}-")]
        if runs:
            tests = [sweep.files.read("trials", name, "test.json")["correct"] for name in runs]
            assert row["seeds"] == str(SEEDS)
            assert float(row["val_accuracy"]) == pytest.approx(
                fmean(finals[name]["epochs"][-1]["val_accuracy"] for name in runs)
            )
            assert float(row["test_accuracy"]) == pytest.approx(
                fmean(correct.count("1") / len(correct) for correct in tests)
            )
            assert float(row["test_ci_low"]) <= float(row["test_accuracy"]) <= float(row["test_ci_high"])
        else:
            assert row["seeds"] == "1"
            assert row["test_accuracy"] == row["test_ci_low"] == row["test_ci_high"] == ""


def test_balanced_accuracy_and_the_worst_class_are_in_the_console_the_pages_the_table_and_mlflow(
    sweep: Sweep, storage: Path
) -> None:
    first = _ranking(sweep)[0]
    worst, accuracy = first["test_worst_class"], float(first["test_worst_class_accuracy"])
    assert worst in sweep.files.plan["data"]["classes"]
    assert float(first["test_worst_class_ci_low"]) <= accuracy <= float(first["test_worst_class_ci_high"])
    sentence = (
        f"its worst class, {worst}, has {100 * accuracy:.1f}% of {first['test_worst_class_images']} images correct"
    )
    pages = [(sweep.report / name).read_text(encoding="utf-8") for name in ("report.md", "report.html")]
    for text in (sweep.ended.out, *pages):
        assert sentence in " ".join(text.split())
        assert f"Its balanced accuracy on the test set is {100 * float(first['test_balanced_accuracy']):.1f}%" in text
    finals = [run for run in _mlflow(storage)[1] if run.data.tags.get("xfer.trial") in sweep.files.trials("final")]
    assert len(finals) == len(sweep.files.trials("final"))
    assert all({"test_worst_class_accuracy", "val_worst_class_accuracy"} <= run.data.metrics.keys() for run in finals)
    assert all(run.data.tags["xfer.test_worst_class"] in sweep.files.plan["data"]["classes"] for run in finals)


# --- other tools ------------------------------------------------------------------------------------------------------


def test_mlflow_has_one_parent_and_a_child_with_the_status_of_each_run(sweep: Sweep, storage: Path) -> None:
    client, runs = _mlflow(storage)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert [run.info.status for run in parents] == ["FINISHED"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    records = sweep.files.records()
    assert sorted(child.data.tags["xfer.trial"] for child in children) == sorted(records)
    for child in children:
        record = records[child.data.tags["xfer.trial"]]
        assert child.info.status == "FINISHED"
        assert child.data.tags["xfer.status"] == {"finished": "finished", "pruned": "stopped early"}[record["status"]]
        history = client.get_metric_history(child.info.run_id, "val_accuracy")
        assert sorted((metric.step, metric.value) for metric in history) == [
            (epoch["epoch"], epoch["val_accuracy"]) for epoch in record["epochs"]
        ]
        assert child.data.params["strategy"] == record["recipe"]["strategy"]["name"]


def test_mlflow_has_the_winners_model_and_the_test_accuracy_of_finalists(sweep: Sweep, storage: Path) -> None:
    _, runs = _mlflow(storage)
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert parent.data.tags["xfer.winner"] == (sweep.files.folder / "model" / "trial.txt").read_text()
    tested = {run.data.tags["xfer.trial"] for run in runs if run is not parent and "test_accuracy" in run.data.metrics}
    assert tested == set(sweep.files.trials("final"))


def test_the_copy_of_the_study_has_every_trial_of_the_search_with_its_status(sweep: Sweep, storage: Path) -> None:
    import optuna

    name = sweep.files.folder.name
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{storage / name / 'study.sqlite3'}")
    records = sweep.files.records("search")
    assert study.direction.name == "MAXIMIZE"

    def told(state: str, values: list[float]) -> tuple[str, float | None, tuple[float, ...]]:
        return state, values[-1] if state == "COMPLETE" else None, tuple(values)

    states = {"finished": "COMPLETE", "pruned": "PRUNED"}
    wanted = [
        told(states[record["status"]], [epoch["val_accuracy"] for epoch in record["epochs"]])
        for record in records.values()
    ]
    # A pruned trial's value is its last intermediate one, which Optuna sets by itself.
    seen = [told(trial.state.name, list(trial.intermediate_values.values())) for trial in study.trials]
    assert sorted(seen, key=str) == sorted(wanted, key=str)
    complete = [trial.value for trial in study.trials if trial.state.name == "COMPLETE"]
    assert sorted(complete) == sorted(value for state, value, _ in wanted if state == "COMPLETE")
    configs = [sweep.files.read("trials", trial, "config.json")["params"] for trial in records]
    assert sorted(str(sorted(trial.params.items())) for trial in study.trials) == sorted(
        str(sorted(params.items())) for params in configs
    )


# --- the command repeated ---------------------------------------------------------------------------------------------


def test_the_best_recipe_is_reproduced_bit_for_bit(sweep: Sweep, tmp_path: Path) -> None:
    ended = run("", ["reproduce", "--storage", sweep.storage], tmp_path)
    assert ended.status == 0, ended.out + ended.err
    assert ended.out.splitlines()[-1].startswith("equal bit for bit: ")


def test_repeating_the_command_trains_nothing_and_starts_no_ray(
    sweep: Sweep, storage: Path, again: Callable[..., CompletedCommand]
) -> None:
    before, model = only_sweep(storage).times(), (storage / sweep.files.folder.name / "model" / "model.safetensors")
    exported = model.stat().st_mtime_ns
    ended = again()
    assert ended.status == 0, ended.err
    assert only_sweep(storage).times() == before
    assert model.stat().st_mtime_ns == exported
    assert not any(line.startswith("search:") for line in ended.out.splitlines())
    assert ended.out.splitlines()[-1] == sweep.ended.out.splitlines()[-1]
    answer = [line for line in sweep.ended.out.splitlines() if line.startswith(("Best is ", "Tied for first place "))]
    assert answer
    assert [line for line in ended.out.splitlines() if line in answer] == answer


def test_repeating_the_command_adds_no_run_to_mlflow(storage: Path, again: Callable[..., CompletedCommand]) -> None:
    before = {run.info.run_id: run.data.metrics for run in _mlflow(storage)[1]}
    again()
    assert {run.info.run_id: run.data.metrics for run in _mlflow(storage)[1]} == before


def test_long_paths_in_the_last_lines_are_not_wrapped(tmp_path: Path, again: Callable[..., CompletedCommand]) -> None:
    reports = tmp_path / "-".join(["a", "folder", "with", "a", "very", "long", "name"] * 5)
    ended = again(reports=reports)
    (page,) = reports.glob("*/report.html")
    assert f"report   {page}" in ended.out.splitlines()


def test_a_different_number_of_epochs_under_the_same_name_is_refused_with_a_diff(
    sweep: Sweep, storage: Path, again: Callable[..., CompletedCommand]
) -> None:
    before = only_sweep(storage).times()
    ended = again("--epochs", EPOCHS + 1, "--name", sweep.files.folder.name)
    assert ended.status == 2
    assert ended.out == ""
    assert ended.err.startswith(f"error: {sweep.files.folder.name} was started with another plan")
    assert f"  epochs: {EPOCHS} -> {EPOCHS + 1}\n" in ended.err
    assert "--fresh" in ended.err
    assert only_sweep(storage).times() == before
    assert only_sweep(storage).plan == sweep.files.plan


def test_fewer_trials_are_refused(storage: Path, again: Callable[..., CompletedCommand]) -> None:
    ended = again("--trials", TRIALS - 1)
    assert ended.status == 2
    assert f"trials: {TRIALS} -> {TRIALS - 1} (more may be added, none taken away)" in ended.err
    assert only_sweep(storage).plan["trials"] == TRIALS


def test_fresh_starts_a_second_sweep_and_leaves_the_first_alone(
    sweep: Sweep, storage: Path, again: Callable[..., CompletedCommand], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeps.engine import launch

    monkeypatch.setattr(launch, "run_sweep", lambda *_: True)  # tested elsewhere; only the folder matters here
    name = sweep.files.folder.name
    old = SweepFolder(storage / name)
    before = (old.plan, old.times())
    ended = again("--fresh")
    assert ended.status == 1  # because nothing ran
    assert SweepFolder(storage / f"{name}-2").plan["name"] == f"{name}-2"
    assert (old.plan, old.times()) == before


def test_one_more_photo_starts_a_sweep_that_names_the_first_and_says_what_is_different(
    sweep: Sweep,
    image_folder: Path,
    tmp_path: Path,
    again: Callable[..., CompletedCommand],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sweeps.engine import launch

    monkeypatch.setattr(launch, "run_sweep", lambda *_: True)  # tested elsewhere; only the first lines matter here
    photos = Path(shutil.copytree(image_folder, tmp_path / "more" / image_folder.name))
    shutil.copy(photos / "blue" / "00.jpg", photos / "red" / "another.jpg")
    old = sweep.files.folder.name
    text = " ".join(again("--data", photos).out.split())
    assert f"It resembles {old}, started 20" in text
    assert f"UTC with {TRIALS} trials so far. Different: 13 images of red instead of 12." in text
    assert f"note: To continue that one instead, restore its data and give --name {old} " in text


def test_a_renamed_folder_starts_a_sweep_that_says_how_to_continue_the_first(
    sweep: Sweep,
    storage: Path,
    image_folder: Path,
    tmp_path: Path,
    again: Callable[..., CompletedCommand],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sweeps.engine import launch

    renamed, old = Path(shutil.copytree(image_folder, tmp_path / "renamed")), sweep.files.folder.name
    assert again("--data", renamed, "--name", old).status == 0  # it continues the first
    assert only_sweep(storage).folder.name == old
    monkeypatch.setattr(launch, "run_sweep", lambda *_: True)
    text = " ".join(again("--data", renamed).out.split())
    assert f"is a new sweep with the plan of {old}, started 20" in text
    assert f"only the names differ. note: To continue that one instead, add --name {old} " in text


def test_a_tracking_server_that_does_not_answer_is_noted_and_the_sweep_runs(
    again: Callable[..., CompletedCommand],
) -> None:
    ended = again("--tracking-uri", "http://127.0.0.1:9")
    assert ended.status == 0
    text = " ".join(ended.out.split())
    assert "note: MLflow at http://127.0.0.1:9 does not answer. The sweep runs without it" in text
    assert "MLflow has not received everything yet" in text


@pytest.mark.nightly
def test_more_trials_add_the_difference_and_leave_finished_trials_alone(
    sweep: Sweep, storage: Path, tmp_path: Path
) -> None:
    before = only_sweep(storage).times()
    flags = [*sweep.flags, "--trials", TRIALS + 2, "--storage", storage, "--reports", tmp_path / "reports"]
    ended = run("folder", flags, tmp_path)
    assert ended.status == 0, ended.out + ended.err
    files = only_sweep(storage)
    assert files.plan["trials"] == TRIALS + 2
    assert files.trials("search") == [f"{number:04d}" for number in range(TRIALS + 2)]
    assert f"search: {TRIALS + 2} runs, {TRIALS} already done" in ended.out.splitlines()
    after = files.times()
    objects = [path for path in before if path.endswith(".json")]
    assert {path: after[path] for path in objects} == {path: before[path] for path in objects}
    new = {path.split("/")[1].partition("-")[0] for path in after.keys() - before.keys()}
    assert {f"{TRIALS:04d}", f"{TRIALS + 1:04d}"} <= new
    assert sorted(row["trial"] for row in _rows(tmp_path / "reports" / files.folder.name)) == files.trials("search")


@pytest.mark.nightly
def test_a_second_sweep_with_warm_start_begins_with_the_best_recipe_of_the_first(
    sweep: Sweep, storage: Path, tmp_path: Path, again: Callable[..., CompletedCommand]
) -> None:
    from sweeps.engine.selection import select_best
    from sweeps.engine.storage.store import Store

    first = Store(storage / sweep.files.folder.name)
    flags = ["--name", "second", "--warm-start", "--trials", 2, "--finalists", 0]
    folders = ["--storage", storage, "--reports", tmp_path / "reports"]
    completed = run("folder", [*sweep.flags, *flags, *folders], tmp_path)
    assert completed.status == 0, completed.err
    assert f"warm start: starts with recipes from similar data: 1 of {first.name} (distance 0.00; trial" in " ".join(
        completed.out.split()
    )
    second = Store(storage / "second")
    (best,) = select_best(first.records(), 1)
    recipes = [{trial.name: trial.recipe for trial in store.trials()} for store in (first, second)]
    assert recipes[1]["0000"] == recipes[0][best]
    report = (tmp_path / "reports" / "second" / "report.md").read_text()
    assert f"The search started with 1 recipe from earlier sweeps on similar data: {first.name}" in report
    plan = second.plan()
    assert again(*flags).status == 0
    assert second.plan() == plan


# --- helpers ----------------------------------------------------------------------------------------------------------


def _ranking(sweep: Sweep) -> list[dict[str, str]]:
    return _rows(sweep.report)


def _rows(report: Path) -> list[dict[str, str]]:
    with (report / "ranking.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _mlflow(storage: Path) -> tuple[Any, list[Any]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    (experiment,) = (each for each in client.search_experiments() if each.name != "Default")
    assert experiment.name == "folder"
    return client, list(client.search_runs([experiment.experiment_id]))


def _as_json(plain: Any) -> Any:
    """A stored record with tuples where `as_dict` has them."""
    evaluation = plain["val"] and {**plain["val"], "images": tuple(plain["val"]["images"])}
    return {**plain, "val": evaluation}
