"""The test part: what the tasks store, that nothing is computed twice, and how runs are divided between tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.trials.evaluation import divide_runs, evaluate_on_test, evaluate_under_noise
from sweeps.engine.trials.trainable import TrialContext, open_finished_run, open_run, trial_config
from tests.conftest import BACKBONE, SIZE
from tests.engine.conftest import a_recipe, a_record
from xfer.data.image_folder import folder
from xfer.data.pack import Pack, build_pack
from xfer.feature_extraction.frozen_features import FrozenFeatures
from xfer.measure import robustness
from xfer.recipe import Recipe
from xfer.records import NOISE_KINDS
from xfer.run import Run

RUNS = {
    "0000-s1": {"strategy": "naive", "seed": 1},
    "0001-s1": {"strategy": "logistic_probe", "seed": 1},
    "0001-s2": {"strategy": "logistic_probe", "seed": 2},
}


@pytest.fixture(scope="module")
def configs(
    one_thread: None,
    pack: Pack,
    weights_of: Callable[[str], Path],
    make_recipe: Callable[..., Recipe],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[dict[str, Any]]:
    """Three finished runs, one of a whole network and two of a head, as tasks receive them; none may change them."""
    storage = tmp_path_factory.mktemp("runs")
    store = Store(storage / "colours")
    (storage / "colours").mkdir()
    context = TrialContext(
        sweep=str(store.folder),
        pack=str(pack.folder),
        weights=str(weights_of(BACKBONE)),
        threads=1,
        gpus=0.0,
        features=str(storage / "features"),
    )
    tasks = []
    for name, settings in RUNS.items():
        trial = Trial(name, "final", {}, make_recipe(epochs=1, **settings).as_dict())
        store.add_trial(trial)
        config = trial_config(trial, context)
        for _ in (run := open_run(config)):
            pass
        store.add_record(run.record(name, "final"))
        tasks.append(config)
    return tasks


@pytest.fixture
def store(configs: list[dict[str, Any]]) -> Store:
    return Store(Path(configs[0]["site"]["sweep"]))


@pytest.fixture(scope="module")
def evaluated(configs: list[dict[str, Any]]) -> None:
    """All runs evaluated, first clean, then under noise."""
    for config in configs:
        evaluate_on_test(config)
    evaluate_under_noise(configs)


def test_every_run_is_evaluated_as_a_single_run_would_be(
    configs: list[dict[str, Any]], store: Store, evaluated: None
) -> None:
    for config in configs:
        run = open_run(config)
        stored, alone = store.test(config["trial"]), run.evaluate("test", noisy=True)
        assert stored is not None
        assert replace(stored, loss=0.0, flip_correct=()) == replace(alone, loss=0.0)
        assert stored.loss == pytest.approx(alone.loss)
        assert stored.noisy_images == len(run.split.test) == len(stored.images)


def test_the_accuracy_with_flips_averages_the_probabilities_for_an_image_and_its_mirror_image(
    configs: list[dict[str, Any]], store: Store, evaluated: None
) -> None:
    for config in configs:  # a fine-tuned network, and heads on cached features
        run, stored = open_run(config), store.test(config["trial"])
        assert stored is not None
        prepare, model = run.inputs.transform.prepare, run.model.eval()
        expected: list[bool] = []
        with torch.no_grad():
            for images, labels in run.inputs.evaluation_batches(run.split.test):
                both = model(prepare(images)).softmax(1) + model(prepare(images.flip(-1))).softmax(1)
                expected += (both.argmax(1) == labels).tolist()
        assert stored.flip_correct == tuple(expected)


def test_the_predictions_of_a_run_are_stored_with_its_temperature(
    configs: list[dict[str, Any]], store: Store, evaluated: None
) -> None:
    for config in configs:  # a fine-tuned network, and heads on cached features
        run, held_out, test = open_run(config), store.held_out(config["trial"]), store.test(config["trial"])
        assert held_out is not None
        assert test is not None
        for part, indices in ((held_out.val, run.split.val), (held_out.test, run.split.test)):
            assert part.images.tolist() == list(indices)
            assert part.labels.tolist() == run.pack.labels[indices].tolist()
        assert tuple(held_out.test.correct.tolist()) == test.correct
        temperature = held_out.temperature or 1.0
        with torch.no_grad():
            (images, _), *_ = run.inputs.evaluation_batches(run.split.test)
            logits = run.model.eval()(run.inputs.transform.prepare(images))
        expected = (logits / temperature).softmax(dim=1).amax(dim=1).tolist()
        assert held_out.test.scaled_probability[: len(images)].tolist() == pytest.approx(expected, abs=1e-4)


def test_the_scores_of_every_kind_are_stored_one_by_one(
    configs: list[dict[str, Any]], store: Store, evaluated: None
) -> None:
    for config in configs:
        assert store.noise_kinds(config["trial"]) == sorted(NOISE_KINDS)


def test_what_is_stored_is_not_evaluated_again(
    configs: list[dict[str, Any]], evaluated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "__init__", lambda *_, **__: pytest.fail("a run was opened"))
    evaluate_under_noise(configs)


def test_an_interruption_costs_one_kind_at_most(
    configs: list[dict[str, Any]], store: Store, evaluated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [store.test(config["trial"]) for config in configs]
    for config in configs:
        folder = store.trial_folder(config["trial"])
        (folder / "noise.json").unlink()
        for kind in ("blur", "jpeg"):
            (folder / "noise" / f"{kind}.json").unlink()
    made: list[str] = []
    for kind, noise in robustness.NOISES.items():
        monkeypatch.setitem(robustness.NOISES, kind, _counted(noise, kind, made))
    evaluate_under_noise(configs)
    assert [store.test(config["trial"]) for config in configs] == expected
    images = len(open_run(configs[0]).split.test)
    assert made == ["blur"] * images + ["jpeg"] * images  # once for all runs


def _counted(noise: robustness.Noise, kind: str, made: list[str]) -> robustness.Noise:
    return lambda images, severity, generator: made.append(kind) or noise(images, severity, generator)


def test_heads_share_the_features_of_the_test_part_and_of_its_noisy_copies(
    configs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = [open_run(config) for config in configs[1:]]
    assert open_run(configs[0]).frozen_body is None
    bodies = [run.frozen_body for run in heads]
    assert all(body is not None for body in bodies)
    assert len({str(body.identity) for body in bodies if body is not None}) == 1
    monkeypatch.setattr(FrozenFeatures, "compute", lambda *_: pytest.fail("computed again"))
    for run in heads:  # an earlier evaluation has cached them
        run.evaluate("test")


def test_cached_features_give_the_evaluation_of_the_whole_network(configs: list[dict[str, Any]]) -> None:
    from xfer.measure.accuracy import evaluate

    run = open_run(configs[1])
    indices = run.split.test
    whole = evaluate(run.model, run.inputs.evaluation_batches(indices), run.inputs.transform.prepare, "test", indices)
    cached = run.evaluate("test")
    assert cached.correct == whole.correct
    assert cached.loss == pytest.approx(whole.loss, rel=1e-5)


def test_runs_in_different_image_sizes_are_evaluated_on_their_own_images(
    configs: list[dict[str, Any]], make_recipe: Callable[..., Recipe], image_folder: Path, tmp_path: Path
) -> None:
    store, larger = Store(tmp_path / "sizes"), build_pack(folder(image_folder), 48, tmp_path / "packs")
    store.folder.mkdir()
    tasks = []
    for name, strategy, size in (("0-s1", "naive", 48), ("1-s1", "ridge_probe", 48), ("2-s1", "ridge_probe", SIZE)):
        about = {"data": larger.hash, "image_size": 48} if size == 48 else {}
        trial = Trial(name, "final", {}, make_recipe(strategy=strategy, epochs=1, **about).as_dict())
        store.add_trial(trial)
        context = TrialContext(**{**configs[0]["site"], "sweep": str(store.folder)})
        context = replace(context, pack=str(larger.folder)) if size == 48 else context
        tasks.append(trial_config(trial, context))
    for config in tasks:
        evaluate_on_test(config)
    evaluate_under_noise(tasks)
    for config in tasks:
        stored, alone = store.test(config["trial"]), open_finished_run(config).evaluate("test", noisy=True)
        assert stored is not None
        assert (stored.correct, stored.noisy) == (alone.correct, alone.noisy)


# --- how runs are divided --------------------------------------------------------------------------------------------


def a_final(name: str, strategy: str, parameters: int = 1_000) -> Any:
    return replace(a_record(name, recipe=a_recipe(strategy)), parameters=parameters)


def divided(*arguments: Any) -> list[list[str]]:
    return [[record.trial for record in records] for records in divide_runs(*arguments)]


def test_heads_stay_together_and_count_as_one_run() -> None:
    runs = [
        a_final(f"{trial}-s{seed}", kind)
        for seed in (1, 2)
        for trial, kind in (("0000", "clip"), ("0001", "linear_probe"), ("0002", "naive"))
    ]
    assert divided(runs, 2) == [
        ["0000-s1", "0002-s1", "0002-s2"],
        ["0001-s1", "0001-s2", "0000-s2"],
    ]


def test_there_are_no_empty_tasks() -> None:
    assert divided([a_final("0000-s1", "clip")], 16) == [["0000-s1"]]
    assert divided([], 4) == []


def test_the_networks_of_a_task_fit_the_limit() -> None:
    runs = [a_final(f"0000-s{seed}", "clip", parameters=100) for seed in range(1, 6)]
    assert divided(runs, 1, 1_000) == [["0000-s1", "0000-s2"], ["0000-s3", "0000-s4"], ["0000-s5"]]
    assert divided(runs, 1, 10) == [[f"0000-s{seed}"] for seed in range(1, 6)]
