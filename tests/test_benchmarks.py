"""The benchmarks: what is compared is the same on both sides, and the arithmetic of comparing is right."""

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
from sweeps.engine.search_space.defaults import AXES, LEARNING_RATE_RANGES, PARAMETER_RANGES
from sweeps.engine.search_space.distributions import domain_values
from sweeps.engine.search_space.overrides import space_for
from sweeps.engine.search_space.space import Space
from xfer.choices import default_parameters
from xfer.hyperparameters import Categorical, Distribution
from xfer.recipe import CHOICE_TABLES

FREE = {axis: domain for axis, domain in AXES.items() if len(domain_values(domain)) > 1}
OWN = {
    own: PARAMETER_RANGES.get(f"{entry}.{own}") or PARAMETER_RANGES[own]
    for kind in CHOICE_TABLES
    for entry in map(str, domain_values(AXES[kind]))
    for own in default_parameters(CHOICE_TABLES[kind][entry])
}
"""The parameters of the entries that every search tries."""


def bounds(distribution: object) -> set[object]:
    if isinstance(distribution, CategoricalDistribution):
        return set(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return {distribution.low, distribution.high}


def everything_asked(suggest: object, epochs: int = 8) -> dict[str, set[object]]:
    """Every parameter that a space ever asks for, with its choices or ends."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found: dict[str, set[object]] = {}
    for _ in range(200):
        trial = study.ask()
        suggest(trial)  # type: ignore[operator]
        for name, distribution in trial.distributions.items():
            found.setdefault(name, set()).update(bounds(distribution))
        study.tell(trial, 0.0)
    return found


def asked_by_plain() -> dict[str, set[object]]:
    return everything_asked(lambda trial: plain.suggest(trial, plain.STRATEGIES, 8, {}))


def ours() -> Space:
    return space_for(["mobilenetv2_100"], epochs=8)


def test_the_plain_script_searches_the_axes_of_ours_and_the_same_values() -> None:
    theirs = asked_by_plain()
    for name, domain in FREE.items():
        assert theirs.pop(name) == set(domain_values(domain)), name
    for name, domain in OWN.items():
        if len(domain_values(domain)) > 1:
            assert theirs.pop(name) == set(domain_values(domain)), name
    for name in map(str, domain_values(AXES["optimizer"])):
        assert theirs.pop(f"{name}_learning_rate") == set(domain_values(LEARNING_RATE_RANGES[name])), name
    assert theirs == {}


def test_both_sides_ask_for_the_same_number_of_free_choices() -> None:
    assert len(asked_by_plain()) == len(everything_asked(ours().suggest))


def test_what_ours_holds_fixed_the_plain_script_does_not_know() -> None:
    def single(domain: Distribution) -> bool:
        return isinstance(domain, Categorical) and len(domain.values) == 1

    fixed = {axis: domain_values(domain)[0] for axis, domain in AXES.items() if single(domain)}
    assert fixed == {
        "clip_value": None,
        "embedding_loss": "none",
        "head": "linear",
        "activation": "keep",
        "batch_norm": "with_weights",
        "colour": "rgb",
        "body_rate": 1.0,
        "images_per_class": None,
        "views": 4,  # what makes features worth keeping; the plain script draws anew in every epoch
    }
    own = {name: domain_values(domain)[0] for name, domain in OWN.items() if single(domain)}
    assert own == {"num_ops": 2, "magnitude": 9, "alpha": 1.0, "smoothing": 0.1}


@pytest.mark.parametrize(("strategy", "has"), [("clip", False), ("naive", True)])
def test_only_clip_brings_its_own_clip_norm(strategy: str, has: bool) -> None:
    trial = optuna.create_study().ask()
    config = plain.suggest(trial, (strategy,), 8, {})
    assert ("clip_norm" in trial.params) == has
    assert has or config["clip_norm"] == 1.0


def test_the_plain_script_holds_fixed_what_it_is_told_to() -> None:
    trial = optuna.create_study().ask()
    config = {**trial.params, **plain.suggest(trial, plain.STRATEGIES, 8, {"optimizer": "sgd", "learning_rate": 0.5})}
    assert (config["optimizer"], config["learning_rate"]) == ("sgd", 0.5)


@pytest.mark.parametrize("size", [32, 64])
def test_photos_reach_both_networks_as_the_same_pixels(image_folder, size) -> None:
    import torch
    from PIL import Image

    from xfer.data.images import read_image

    path = next(iter(sorted(image_folder.rglob("*.png"))))
    with Image.open(path) as image:
        theirs = plain.transforms(size, "none", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(image.convert("RGB"))
    assert torch.equal((theirs * 255).round().byte().permute(1, 2, 0), torch.from_numpy(read_image(path, size).copy()))


@pytest.mark.parametrize("name", ["sgd", "adam", "radam", "ranger"])
def test_optimizers_move_weights_as_ours_do(name, one_thread) -> None:
    import timm
    import torch

    from xfer.methods.optimizers import OPTIMIZERS, build_param_groups
    from xfer.models.params import named_params

    moved = []
    for build in (
        lambda model: plain.make_optimizer(model, {"optimizer": name, "learning_rate": 0.01, "weight_decay": 0.1}),
        lambda model: OPTIMIZERS[name](build_param_groups(model, named_params(model), 0.1), 0.01),
    ):
        torch.manual_seed(0)
        model = timm.create_model("test_efficientnet", num_classes=3)
        optimizer = build(model)
        for step in range(5):  # Lookahead differs from the sixth on: see `ranger` in CHANGELOG.md
            torch.manual_seed(step)
            optimizer.zero_grad()
            model(torch.randn(4, 3, 32, 32)).square().mean().backward()
            optimizer.step()
        moved.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.allclose(*moved, atol=1e-7)


def curve(trial: str, *points: tuple[float, float], speed: float = 10.0) -> list[Point]:
    return [Point(trial, epoch, at, accuracy, speed) for epoch, (at, accuracy) in enumerate(points, start=1)]


def outcome(*points: Point, seconds: float = 100.0, ready: float = 0.0) -> RunOutcome:
    return RunOutcome("command", seconds, ready, points, "2026-01-01")


SLOW = outcome(*curve("0", (20, 0.5), (40, 0.7)), *curve("1", (60, 0.8), (80, 0.9)))
FAST = outcome(*curve("0", (4, 0.6), (6, 0.895)), *curve("1", (5, 0.2), (7, 0.1)), seconds=10.0)


def test_a_target_is_reached_when_the_first_trial_is_there_after_any_epoch() -> None:
    assert SLOW.best == 0.9
    assert seconds_to_accuracy(SLOW, 0.89) == 80
    assert seconds_to_accuracy(FAST, 0.89) == 6
    assert seconds_to_accuracy(SLOW, 0.5) == 20
    assert seconds_to_accuracy(FAST, 0.9) is None


def test_a_side_that_went_on_is_judged_by_as_many_trials_as_the_other() -> None:
    assert [SLOW.best_of_first(first) for first in (1, 2, 9)] == [0.7, 0.9, 0.9]
    assert [FAST.best_of_first(first) for first in (1, 2)] == [0.895, 0.895]


def test_an_accuracy_a_point_below_the_best_is_within_a_point() -> None:
    assert all(comparisons._target([0.2, count / 400]) <= (count - 4) / 400 for count in range(100, 401))
    assert comparisons._target([0.5]) > 0.4899


def test_the_plain_script_goes_on_until_enough_have_begun_and_one_is_there() -> None:
    reached = plain.GoalStopper(0.8, enough=3)
    seen = []
    for trial, accuracy in (("a", 0.9), ("a", 0.2), ("b", 0.1), ("c", 0.1)):
        assert not reached(trial, {"val_accuracy": accuracy})
        seen.append(reached.stop_all())
    assert seen == [False, False, False, True]


def test_the_plain_script_goes_on_no_longer_than_its_patience() -> None:
    late, early = plain.GoalStopper(0.8, enough=1, until=0.0), plain.GoalStopper(0.8, enough=1)
    assert not late.stop_all()  # nothing has begun
    for reached in (late, early):
        reached("a", {"val_accuracy": 0.5})
    assert (late.stop_all(), early.stop_all()) == (True, False)


def test_a_speedup_is_how_many_times_sooner_ours_was_there() -> None:
    assert speedup(SLOW, FAST, 0.89) == pytest.approx(80 / 6)


def test_a_side_that_never_got_there_counts_for_its_whole_time_and_ours_for_nothing() -> None:
    assert speedup(SLOW, outcome(*curve("0", (8, 0.95))), 0.94) == pytest.approx(100 / 8)
    assert speedup(SLOW, FAST, 0.9) == 0.0


def test_ratios_are_taken_repeat_by_repeat_and_shown_with_their_spread() -> None:
    assert ratios([30.0, 80.0, 50.0], [1.0, 2.0, 5.0]).values == (30.0, 40.0, 10.0)
    assert str(ratios([30.0, 80.0, 50.0], [1.0, 2.0, 5.0])) == "30 (10 to 40, n=3)"
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], [1.0, 2.0])


def test_fewer_trials_are_scaled_up_but_for_the_start() -> None:
    assert extrapolate_seconds(outcome(*SLOW.points, seconds=90, ready=10), trials=64) == 10 + 80 * 32


def test_the_mean_is_over_the_last_epochs_of_all_trials() -> None:
    assert FAST.mean == pytest.approx((0.895 + 0.1) / 2)


def test_images_a_second_are_summed_over_what_ran_side_by_side() -> None:
    first = [Point("0", epoch, at, 0.0, speed) for epoch, at, speed in [(1, 5, 1), (2, 9, 30), (3, 13, 50), (4, 17, 9)]]
    later = [
        Point("1", epoch, at, 0.0, speed) for epoch, at, speed in [(1, 8, 1), (2, 12, 20), (3, 16, 22), (4, 20, 90)]
    ]
    assert images_per_second(outcome(*first)) == 30  # the median of 30, 50 and 9
    assert images_per_second(outcome(*first, *later)) == 30 + 21  # alone after 17: the 90 does not count
    with pytest.raises(ValueError, match="take more --epochs"):
        images_per_second(outcome(*first, *curve("1", (30, 0.0), (40, 0.0))))


def test_an_outcome_survives_json() -> None:
    assert outcome_from_dict(json.loads(json.dumps(SLOW.as_dict()))) == SLOW


def test_a_section_takes_the_place_of_the_one_for_its_row_and_leaves_the_others() -> None:
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
def started(monkeypatch):
    """The commands that would have been started."""
    commands: list[list[str]] = []

    def timed(command, log, limit=None):
        commands.append(list(command))
        raise InterruptedError

    monkeypatch.setattr(contestants, "_timed", timed)
    return commands


def test_both_commands_say_what_the_task_says(started, tmp_path) -> None:
    from sweeps import folder
    from sweeps.engine import options

    task = TASK.__class__(**{**vars(TASK), "sampler": "random", "scheduler": "none", "fixed": {"clip_norm": None}})
    for run_side in (
        lambda: contestants.run_ours(task, tmp_path / "new", tmp_path / "log"),
        lambda: contestants.run_plain(task, ScriptSetting(2, 1, 2, channels_last=True), tmp_path),
    ):
        with pytest.raises(InterruptedError):
            run_side()
    our_words, plain_words = started
    plan, asked = options.parse_args(folder.plan, our_words[2:])
    plan = options.apply_options(plan, asked)
    assert isinstance(plan, Plan)
    assert (plan.trials, plan.epochs, plan.sampler, plan.scheduler, plan.finalists) == (3, 2, "random", "none", 0)
    assert plan.edits == {"clip_norm": "none"}
    assert not asked.fresh
    said = shlex.join(plain_words)
    for flags in (
        "--trials 3 --epochs 2",
        "--search random --scheduler none",
        "--workers 2 --threads 1 --concurrent 2",
    ):
        assert flags in said
    assert "--channels-last" in plain_words
    assert json.loads(plain_words[plain_words.index("--fix") + 1]) == {"clip_norm": None}


def test_a_second_sweep_in_a_storage_starts_anew_on_what_is_cached_there(started, tmp_path) -> None:
    with pytest.raises(InterruptedError):
        contestants.run_ours(TASK, tmp_path, tmp_path / "log")
    assert "--fresh" in started[0]


def test_a_finished_plain_run_is_taken_from_the_scratch_folder(started, tmp_path, monkeypatch) -> None:
    def finished(command, log, limit=None):
        told = command[command.index("--json") + 1]
        epoch = {"epoch": 1, "val_accuracy": 0.5, "finished_at": 1010.0, "images": 20, "seconds": 4.0}
        trial = {"config": {}, "epochs": [epoch], "error": None}
        contestants.Path(told).write_text(json.dumps({"ready": 1003.0, "trials": [trial]}))
        return 1000.0, 12.0

    monkeypatch.setattr(contestants, "_timed", finished)
    first = contestants.run_plain(TASK, ScriptSetting(0, 1, 1), tmp_path)
    assert first.points == (Point("0", 1, 10.0, 0.5, 5.0),)
    assert (first.seconds, first.ready) == (12.0, 3.0)
    monkeypatch.setattr(contestants, "_timed", lambda *arguments: pytest.fail("it ran again"))
    assert contestants.run_plain(TASK, ScriptSetting(0, 1, 1), tmp_path) == first


def test_a_trial_that_failed_is_no_result(tmp_path, monkeypatch) -> None:
    def failed(command, log, limit=None):
        told = command[command.index("--json") + 1]
        contestants.Path(told).write_text(json.dumps({"ready": 3.0, "trials": [{"epochs": [], "error": "no memory"}]}))
        return 1000.0, 12.0

    monkeypatch.setattr(contestants, "_timed", failed)
    with pytest.raises(RuntimeError, match="no memory"):
        contestants.run_plain(TASK, ScriptSetting(0, 1, 1), tmp_path)


def test_a_command_that_fails_says_what_it_said_last(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(contestants, "PAUSE_SECONDS", 0.0)
    with pytest.raises(RuntimeError, match=r"status 3:\nit is over"):
        contestants._timed(["-c", "print('it is over'); raise SystemExit(3)"], tmp_path / "log")


def test_the_epochs_of_a_sweep_are_dated_by_their_objects(record, tmp_path) -> None:
    import os

    from sweeps.engine.storage.store import Store, Trial

    store = Store(tmp_path / "sweep")
    store.add_trial(Trial("0000", "search", {}, record.recipe))
    store.add_epoch("0000", record.epochs[0])
    store.add_record(record)
    os.utime(store.trial_folder("0000") / "epochs" / "0001.json", (1005, 1005))
    os.utime(store.trial_folder("0000") / "record.json", (1009, 1009))
    points = contestants._points(store, began=1000)
    assert [(point.epoch, point.at) for point in points] == [(1, 5.0), (2, 9.0)]  # the second has no object of its own
    assert [point.accuracy for point in points] == [epoch.val_accuracy for epoch in record.epochs]


def test_both_sides_see_the_split_of_xfer(image_folder, pack, tmp_path) -> None:
    from xfer import hashing
    from xfer.data.split import split_pack

    made = split_folders.write_split(image_folder, tmp_path)
    split = split_pack(pack)
    for part in ("train", "val", "test"):
        files = sorted(hashing.sha256_file(path) for path in (made / part).rglob("*.*"))
        assert files == sorted(pack.digests[place] for place in split.of(part))


def test_every_image_stands_in_the_val_part_of_one_fold(image_folder, tmp_path) -> None:
    parts = {}
    for fold in range(3):
        made = split_folders.write_fold(image_folder, tmp_path, classes=2, fold=fold, tested=2)
        assert {path.name for path in (made / "train").iterdir()} == {"blue", "green"}
        assert [split_folders.count_images(made, part) for part in ("test", "train")] == [
            4,
            20 - split_folders.count_images(made, "val"),
        ]
        parts[fold] = {path.read_bytes() for path in (made / "val").rglob("*.*")}
    assert len(set.union(*parts.values())) == sum(map(len, parts.values())) == 2 * (12 - 2)


def test_drawings_are_drawn_anew_for_each_seed(tmp_path) -> None:
    import numpy as np

    source = tmp_path / "source"
    source.mkdir()
    for name in ("cat", "dog"):
        pixels = np.random.default_rng(0).integers(1, 255, size=(20, 784), dtype=np.uint8)
        np.save(source / f"{name}.npy", pixels)
    made = [split_folders.write_drawings(source, tmp_path, seed, train=4, val=3, test=2) for seed in (0, 1)]
    assert [split_folders.count_images(made[0], part) for part in ("train", "val", "test")] == [8, 6, 4]
    first, second = ({path.read_bytes() for path in (each / "val").rglob("*.png")} for each in made)
    assert first != second


def test_the_rows_are_those_of_the_page_and_every_flag_has_a_place() -> None:
    assert {name.partition(" ")[0] for name in results_page.SECTION_ORDER} == set(comparisons.COMPARISONS)
    asked = run.build_parser().parse_args(["probes", "--smoke", "--setting", "2,1,2"])
    assert asked.setting == ScriptSetting(2, 1, 2)
    task = comparisons._task(asked, split_folders.Path("DIR"), image_size=128, strategies="naive", trials=64, epochs=10)
    assert (task.image_size, task.trials, task.epochs) == (32, 2, 2)
