"""The benchmarks: both sides run the same task, and the arithmetic of the comparison is correct."""

from __future__ import annotations

import json
import shlex

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from benchmarks import comparisons, contestants, plain, results_page, run, split_folders
from benchmarks.contestants import BenchmarkTask, ScriptSetting
from benchmarks.run_outcomes import (
    Point,
    RunOutcome,
    extrapolate_seconds,
    images_per_second,
    outcome_from_dict,
    ratios,
    seconds_to_accuracy,
    speedup,
)
from sweeps.engine.plan import Plan
from sweeps.engine.search_space.defaults import LEARNING_RATE_RANGES, PARAMETER_RANGES
from sweeps.engine.search_space.distributions import domain_values
from sweeps.engine.search_space.overrides import space_for
from xfer.choices import default_parameters
from xfer.hyperparameters import Categorical, Distribution
from xfer.recipe import CHOICE_TABLES

COMPARED = space_for(["mobilenetv2_100"], 8, comparisons.STRATEGIES.split(","), contestants.COMPARED_SPACE)
SEARCHED_AXES = {axis: domain for axis, domain in COMPARED.axes.items() if len(domain_values(domain)) > 1}
ENTRY_PARAMETERS = {
    name: PARAMETER_RANGES.get(f"{entry}.{name}") or PARAMETER_RANGES[name]
    for kind in CHOICE_TABLES
    for entry in map(str, domain_values(COMPARED.axes[kind]))
    for name in default_parameters(CHOICE_TABLES[kind][entry])
}
"""The parameters of the entries that are compared."""


def bounds(distribution: object) -> set[object]:
    if isinstance(distribution, CategoricalDistribution):
        return set(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return {distribution.low, distribution.high}


def suggested_parameters(suggest: object) -> dict[str, set[object]]:
    """Every parameter that a space suggests in 200 trials, with its choices or bounds."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    parameters: dict[str, set[object]] = {}
    for _ in range(200):
        trial = study.ask()
        suggest(trial)  # type: ignore[operator]
        for name, distribution in trial.distributions.items():
            parameters.setdefault(name, set()).update(bounds(distribution))
        study.tell(trial, 0.0)
    return parameters


def plain_parameters() -> dict[str, set[object]]:
    return suggested_parameters(lambda trial: plain.suggest(trial, plain.STRATEGIES, 8, {}))


def test_the_plain_script_searches_the_same_axes_and_values() -> None:
    plain_values = plain_parameters()
    for name, domain in SEARCHED_AXES.items():
        assert plain_values.pop(name) == set(domain_values(domain)), name
    for name, domain in ENTRY_PARAMETERS.items():
        if len(domain_values(domain)) > 1:
            assert plain_values.pop(name) == set(domain_values(domain)), name
    for name in map(str, domain_values(COMPARED.axes["optimizer"])):
        for prefix in ("", "head"):
            rates = LEARNING_RATE_RANGES[f"{prefix}.{name}".removeprefix(".")]
            plain_rates = plain_values.pop(f"{prefix}_{name}_learning_rate".removeprefix("_"))
            assert sorted(plain_rates) == pytest.approx(domain_values(rates)), name
    assert plain_values == {}


def test_both_sides_search_the_same_number_of_parameters() -> None:
    assert len(plain_parameters()) == len(suggested_parameters(COMPARED.suggest))


def test_parameters_unknown_to_the_plain_script_are_fixed_on_our_side() -> None:
    def is_fixed(domain: Distribution) -> bool:
        return isinstance(domain, Categorical) and len(domain.values) == 1

    fixed = {axis: domain_values(domain)[0] for axis, domain in COMPARED.axes.items() if is_fixed(domain)}
    assert fixed == {
        "backbone": "mobilenetv2_100",
        "drop_path": 0.0,
        "clip_value": None,
        "balance": "none",
        "embedding_loss": "none",
        "head": "linear",
        "activation": "keep",
        "batch_norm": "with_weights",
        "colour": "rgb",
        "body_rate": 1.0,
        "images_per_class": None,
        "views": 4,  # makes features cacheable; the plain script augments independently in every epoch
    }
    fixed_parameters = {name: domain_values(domain)[0] for name, domain in ENTRY_PARAMETERS.items() if is_fixed(domain)}
    assert fixed_parameters == {"num_ops": 2, "magnitude": 9, "alpha": 1.0, "smoothing": 0.1}


@pytest.mark.parametrize(("strategy", "suggested"), [("clip", False), ("naive", True)])
def test_only_clip_fixes_the_clip_norm(strategy: str, suggested: bool) -> None:
    trial = optuna.create_study().ask()
    config = plain.suggest(trial, (strategy,), 8, {})
    assert ("clip_norm" in trial.params) == suggested
    assert suggested or config["clip_norm"] == 1.0


def test_the_plain_script_keeps_fixed_parameters() -> None:
    trial = optuna.create_study().ask()
    config = {**trial.params, **plain.suggest(trial, plain.STRATEGIES, 8, {"optimizer": "sgd", "learning_rate": 0.5})}
    assert (config["optimizer"], config["learning_rate"]) == ("sgd", 0.5)


@pytest.mark.parametrize("size", [32, 64])
def test_both_sides_preprocess_photos_to_the_same_pixels(image_folder, size) -> None:
    import torch
    from PIL import Image

    from xfer.data.images import read_image

    path = next(iter(sorted(image_folder.rglob("*.png"))))
    with Image.open(path) as image:
        transform = plain.transforms(size, "none", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        pixels = transform(image.convert("RGB"))
    assert torch.equal((pixels * 255).round().byte().permute(1, 2, 0), torch.from_numpy(read_image(path, size).copy()))


@pytest.mark.parametrize("name", ["sgd", "adam", "radam", "ranger"])
def test_the_optimizers_of_both_sides_update_weights_equally(name, one_thread) -> None:
    import timm
    import torch

    from xfer.methods.optimizers import OPTIMIZERS, build_param_groups
    from xfer.models.params import named_params

    updated = []
    for build in (
        lambda model: plain.make_optimizer(model, {"optimizer": name, "learning_rate": 0.01, "weight_decay": 0.1}),
        lambda model: OPTIMIZERS[name](build_param_groups(model, named_params(model), 0.1), 0.01),
    ):
        torch.manual_seed(0)
        model = timm.create_model("test_efficientnet", num_classes=3)
        optimizer = build(model)
        for step in range(5):  # Lookahead differs from the sixth step on, see `ranger` in CHANGELOG.md
            torch.manual_seed(step)
            optimizer.zero_grad()
            model(torch.randn(4, 3, 32, 32)).square().mean().backward()
            optimizer.step()
        updated.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.allclose(*updated, atol=1e-7)


def curve(trial: str, *points: tuple[float, float], speed: float = 10.0) -> list[Point]:
    return [Point(trial, epoch, at, accuracy, speed) for epoch, (at, accuracy) in enumerate(points, start=1)]


def outcome(*points: Point, seconds: float = 100.0, ready: float = 0.0) -> RunOutcome:
    return RunOutcome("command", seconds, ready, points, "2026-01-01")


SLOW = outcome(*curve("0", (20, 0.5), (40, 0.7)), *curve("1", (60, 0.8), (80, 0.9)))
FAST = outcome(*curve("0", (4, 0.6), (6, 0.895)), *curve("1", (5, 0.2), (7, 0.1)), seconds=10.0)


def test_a_target_is_reached_by_the_first_trial_to_reach_it_after_any_epoch() -> None:
    assert SLOW.best == 0.9
    assert seconds_to_accuracy(SLOW, 0.89) == 80
    assert seconds_to_accuracy(FAST, 0.89) == 6
    assert seconds_to_accuracy(SLOW, 0.5) == 20
    assert seconds_to_accuracy(FAST, 0.9) is None


def test_a_side_with_additional_trials_is_compared_on_the_same_number_of_trials() -> None:
    assert [SLOW.best_of_first(trials) for trials in (1, 2, 9)] == [0.7, 0.9, 0.9]
    assert [FAST.best_of_first(trials) for trials in (1, 2)] == [0.895, 0.895]


def test_an_accuracy_a_point_below_the_best_is_within_a_point() -> None:
    assert all(comparisons.target_accuracy([0.2, count / 400]) <= (count - 4) / 400 for count in range(100, 401))
    assert comparisons.target_accuracy([0.5]) > 0.4899


def test_the_plain_script_continues_until_enough_trials_have_started_and_one_reaches_the_goal() -> None:
    stopper = plain.GoalStopper(0.8, min_trials=3)
    stopped = []
    for trial, accuracy in (("a", 0.9), ("a", 0.2), ("b", 0.1), ("c", 0.1)):
        assert not stopper(trial, {"val_accuracy": accuracy})
        stopped.append(stopper.stop_all())
    assert stopped == [False, False, False, True]


def test_the_plain_script_stops_at_its_deadline() -> None:
    expired, unlimited = plain.GoalStopper(0.8, min_trials=1, deadline=0.0), plain.GoalStopper(0.8, min_trials=1)
    assert not expired.stop_all()  # no trial has started
    for stopper in (expired, unlimited):
        stopper("a", {"val_accuracy": 0.5})
    assert (expired.stop_all(), unlimited.stop_all()) == (True, False)


def test_a_speedup_is_how_many_times_sooner_ours_reached_the_target() -> None:
    assert speedup(SLOW, FAST, 0.89) == pytest.approx(80 / 6)


def test_a_missed_target_counts_the_total_time_of_their_side_and_zero_for_ours() -> None:
    assert speedup(SLOW, outcome(*curve("0", (8, 0.95))), 0.94) == pytest.approx(100 / 8)
    assert speedup(SLOW, FAST, 0.9) == 0.0


def test_ratios_are_computed_per_repeat_and_shown_with_their_range() -> None:
    assert ratios([30.0, 80.0, 50.0], [1.0, 2.0, 5.0]).values == (30.0, 40.0, 10.0)
    assert str(ratios([30.0, 80.0, 50.0], [1.0, 2.0, 5.0])) == "30 (10 to 40, n=3)"
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], [1.0, 2.0])


def test_extrapolation_counts_the_start_up_once() -> None:
    assert extrapolate_seconds(outcome(*SLOW.points, seconds=90, ready=10), trials=64) == 10 + 80 * 32


def test_the_mean_accuracy_is_over_the_last_epochs_of_all_trials() -> None:
    assert FAST.mean == pytest.approx((0.895 + 0.1) / 2)


def test_images_per_second_are_summed_over_concurrent_trials() -> None:
    first = [Point("0", epoch, at, 0.0, speed) for epoch, at, speed in [(1, 5, 1), (2, 9, 30), (3, 13, 50), (4, 17, 9)]]
    later = [
        Point("1", epoch, at, 0.0, speed) for epoch, at, speed in [(1, 8, 1), (2, 12, 20), (3, 16, 22), (4, 20, 90)]
    ]
    assert images_per_second(outcome(*first)) == 30  # the median of 30, 50 and 9
    assert (
        images_per_second(outcome(*first, *later)) == 30 + 21
    )  # the first trial ended at 17, so the 90 does not count
    with pytest.raises(ValueError, match="use more --epochs"):
        images_per_second(outcome(*first, *curve("1", (30, 0.0), (40, 0.0))))


def test_an_outcome_round_trips_through_json() -> None:
    assert outcome_from_dict(json.loads(json.dumps(SLOW.as_dict()))) == SLOW


def test_a_section_replaces_the_one_of_its_row_and_leaves_the_others() -> None:
    page = ""
    for row, text in (("search", "old"), ("probes", "first"), ("search", "new"), ("finetune", "third")):
        page = results_page.replace_section(
            page, row, results_page.section(row, "title", [text, "", "### part", "more"])
        )
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert headings == ["## probes: title", "## finetune: title", "## search: title"]
    assert "old" not in page
    assert page.startswith("# Results")
    assert page.count("### part") == 3
    assert (
        results_page.replace_section(
            page, "search", results_page.section("search", "title", ["new", "", "### part", "more"])
        )
        == page
    )


TASK = BenchmarkTask(
    data=split_folders.Path("DIR"),
    backbone="net",
    weights=split_folders.Path("W"),
    image_size=32,
    strategies="naive",
    trials=3,
    epochs=2,
)


@pytest.fixture
def started_commands(monkeypatch):
    """Record commands instead of running them."""
    commands: list[list[str]] = []

    def record_command(command, log, limit=None):
        commands.append(list(command))
        raise InterruptedError

    monkeypatch.setattr(contestants, "run_command", record_command)
    return commands


def test_both_commands_contain_the_task(started_commands, tmp_path) -> None:
    from sweeps import folder
    from sweeps.engine import options

    task = TASK.__class__(**{**vars(TASK), "sampler": "random", "scheduler": "none", "fixed": {"clip_norm": None}})
    for run_side in (
        lambda: contestants.run_ours(task, tmp_path / "new", tmp_path / "log"),
        lambda: contestants.run_plain(task, ScriptSetting(2, 1, 2, channels_last=True), tmp_path),
    ):
        with pytest.raises(InterruptedError):
            run_side()
    our_words, plain_words = started_commands
    plan, cli_options = options.parse_args(folder.plan, our_words[2:])
    plan = options.apply_options(plan, cli_options)
    assert isinstance(plan, Plan)
    assert (plan.trials, plan.epochs, plan.sampler, plan.scheduler, plan.finalists) == (3, 2, "random", "none", 0)
    assert plan.edits == {**contestants.COMPARED_SPACE, "clip_norm": "none"}
    assert not cli_options.fresh
    plain_command = shlex.join(plain_words)
    for flags in (
        "--trials 3 --epochs 2",
        "--search random --scheduler none",
        "--workers 2 --threads 1 --concurrent 2",
    ):
        assert flags in plain_command
    assert "--channels-last" in plain_words
    assert json.loads(plain_words[plain_words.index("--fix") + 1]) == {"clip_norm": None}


def test_a_second_sweep_in_a_storage_is_a_fresh_sweep(started_commands, tmp_path) -> None:
    with pytest.raises(InterruptedError):
        contestants.run_ours(TASK, tmp_path, tmp_path / "log")
    assert "--fresh" in started_commands[0]


def test_a_finished_plain_run_is_loaded_from_the_scratch_folder(tmp_path, monkeypatch) -> None:
    def succeed(command, log, limit=None):
        json_file = command[command.index("--json") + 1]
        epoch = {"epoch": 1, "val_accuracy": 0.5, "finished_at": 1010.0, "images": 20, "seconds": 4.0}
        trial = {"config": {}, "epochs": [epoch], "error": None}
        contestants.Path(json_file).write_text(json.dumps({"ready": 1003.0, "trials": [trial]}))
        return 1000.0, 12.0

    monkeypatch.setattr(contestants, "run_command", succeed)
    first = contestants.run_plain(TASK, ScriptSetting(0, 1, 1), tmp_path)
    assert first.points == (Point("0", 1, 10.0, 0.5, 5.0),)
    assert (first.seconds, first.ready) == (12.0, 3.0)
    monkeypatch.setattr(contestants, "run_command", lambda *arguments: pytest.fail("it ran again"))
    assert contestants.run_plain(TASK, ScriptSetting(0, 1, 1), tmp_path) == first


def test_a_plain_run_with_a_failed_trial_raises(tmp_path, monkeypatch) -> None:
    def fail(command, log, limit=None):
        json_file = command[command.index("--json") + 1]
        contestants.Path(json_file).write_text(
            json.dumps({"ready": 3.0, "trials": [{"epochs": [], "error": "no memory"}]})
        )
        return 1000.0, 12.0

    monkeypatch.setattr(contestants, "run_command", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        contestants.run_plain(TASK, ScriptSetting(0, 1, 1), tmp_path)


def test_the_error_of_a_failed_command_ends_with_its_last_output(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(contestants, "PAUSE_SECONDS", 0.0)
    with pytest.raises(RuntimeError, match=r"status 3:\nit is over"):
        contestants.run_command(["-c", "print('it is over'); raise SystemExit(3)"], tmp_path / "log")


def test_epochs_are_dated_by_the_modification_time_of_their_objects(record, tmp_path) -> None:
    import os

    from sweeps.engine.storage.store import Store, Trial

    store = Store(tmp_path / "sweep")
    store.add_trial(Trial("0000", "search", {}, record.recipe))
    store.add_epoch("0000", record.epochs[0])
    store.add_record(record)
    os.utime(store.trial_folder("0000") / "epochs" / "0001.json", (1005, 1005))
    os.utime(store.trial_folder("0000") / "record.json", (1009, 1009))
    points = contestants.sweep_points(store, started_at=1000)
    assert [(point.epoch, point.at) for point in points] == [(1, 5.0), (2, 9.0)]  # the second is only in the record
    assert [point.accuracy for point in points] == [epoch.val_accuracy for epoch in record.epochs]


def test_both_sides_use_the_split_of_xfer(image_folder, pack, tmp_path) -> None:
    from xfer import hashing
    from xfer.data.split import split_pack

    folder = split_folders.write_split(image_folder, tmp_path)
    split = split_pack(pack)
    for part in ("train", "val", "test"):
        files = sorted(hashing.sha256_file(path) for path in (folder / part).rglob("*.*"))
        assert files == sorted(pack.digests[index] for index in split.of(part))


def test_every_image_is_in_the_val_part_of_exactly_one_fold(image_folder, tmp_path) -> None:
    parts = {}
    for fold in range(3):
        folder = split_folders.write_fold(image_folder, tmp_path, classes=2, fold=fold, tested=2)
        assert {path.name for path in (folder / "train").iterdir()} == {"blue", "green"}
        assert [split_folders.count_images(folder, part) for part in ("test", "train")] == [
            4,
            20 - split_folders.count_images(folder, "val"),
        ]
        parts[fold] = {path.read_bytes() for path in (folder / "val").rglob("*.*")}
    assert len(set.union(*parts.values())) == sum(map(len, parts.values())) == 2 * (12 - 2)


def test_each_seed_samples_other_drawings(tmp_path) -> None:
    import numpy as np

    source = tmp_path / "source"
    source.mkdir()
    for name in ("cat", "dog"):
        pixels = np.random.default_rng(0).integers(1, 255, size=(20, 784), dtype=np.uint8)
        np.save(source / f"{name}.npy", pixels)
    folders = [split_folders.write_drawings(source, tmp_path, seed, train=4, val=3, test=2) for seed in (0, 1)]
    assert [split_folders.count_images(folders[0], part) for part in ("train", "val", "test")] == [8, 6, 4]
    first, second = ({path.read_bytes() for path in (folder / "val").rglob("*.png")} for folder in folders)
    assert first != second


def test_every_comparison_has_a_section_and_flags_determine_its_task() -> None:
    assert {name.partition(" ")[0] for name in results_page.SECTION_ORDER} == set(comparisons.COMPARISONS)
    args = run.build_parser().parse_args(["probes", "--smoke", "--setting", "2,1,2"])
    assert args.setting == ScriptSetting(2, 1, 2)
    task = comparisons.build_task(
        args, split_folders.Path("DIR"), image_size=128, strategies="naive", trials=64, epochs=10
    )
    assert (task.image_size, task.trials, task.epochs) == (32, 2, 2)
