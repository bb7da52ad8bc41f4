"""Zero-effort rows: measured once on frozen features, before the search; on the test part only after its opening."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweeps.engine.plan import Plan
from sweeps.engine.planning.prepare import prepare
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.planning.screening import initial_head_recipe
from sweeps.engine.presearch import zero_effort
from sweeps.engine.presearch.advice import recommend_strategies
from sweeps.engine.presearch.frozen_body import feature_cache
from sweeps.engine.presearch.zero_effort import measure_before_training, measure_data_curve, measure_on_test
from sweeps.engine.storage.store import Store, Trial
from xfer.data.split import Indices
from xfer.feature_extraction.extract import extract_features
from xfer.feature_extraction.feature_cache import FeatureCache, Rows
from xfer.feature_extraction.frozen_features import FrozenFeatures
from xfer.measure.nearest_neighbours import nearest_neighbour_classes
from xfer.run import Run

NETWORKS = ("test_efficientnet", "test_vit")

Preparing = Callable[..., Prepared]


@pytest.fixture(scope="module")
def preparing(
    one_thread: None, make_plan: Callable[..., Plan], weights_of: Callable[[str], Path], storage: Path
) -> Preparing:
    def prepare_plan(*backbones: str, **changes: Any) -> Prepared:
        weights = {name: str(weights_of(name)) for name in backbones}
        return prepare(make_plan(backbones=backbones, weights=weights, **changes), storage)

    return prepare_plan


@pytest.fixture(scope="module")
def prepared(preparing: Preparing) -> Prepared:
    return preparing(*NETWORKS)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs" / "sweep")


def test_every_backbone_is_measured_on_the_validation_part_and_printed(prepared: Prepared, store: Store) -> None:
    lines: list[str] = []
    measure_before_training(prepared, store, lines.append)
    [decision] = store.decisions("zero_effort")
    assert (decision["part"], decision["why_none"]) == ("val", {})
    assert [(row["backbone"], row["method"], row.get("k")) for row in decision["rows"]] == [
        (name, method, k) for name in NETWORKS for method, k in (("knn", 5), ("knn", 20), ("logistic_probe", None))
    ]
    parts = (len(prepared.split.val), len(prepared.split.train))
    assert {(row["images"], row["train_images"]) for row in decision["rows"]} == {parts}
    assert [line.split(":")[0] for line in lines] == [f"before any training, {name}" for name in NETWORKS]


def test_the_accuracy_is_that_of_features_extracted_directly(prepared: Prepared, store: Store) -> None:
    measure_before_training(prepared, store, lambda line: None)
    rows = store.decisions("zero_effort")[0]["rows"]
    for name in NETWORKS:
        run = Run(initial_head_recipe(prepared, name), prepared.pack, prepared.backbone(name).file)
        train, val = (
            extract_features(run.model, run.pack, run.split.of(part), run.inputs.transform.prepare)["late"]
            for part in ("train", "val")
        )
        labels = run.pack.labels.astype(np.int64)
        predicted = nearest_neighbour_classes(train, labels[run.split.train], val, 5)
        expected = int((predicted == labels[run.split.val]).sum())
        [row] = [row for row in rows if row["backbone"] == name and row.get("k") == 5]
        assert row["correct"] == expected


def test_the_features_are_those_that_the_heads_of_the_search_read(prepared: Prepared, store: Store) -> None:
    measure_before_training(prepared, store, lambda line: None)
    cache = FeatureCache(store.folder.parent / "features")
    files = sorted((store.folder.parent / "features").glob("*/features.npy"))
    assert len(files) == len(NETWORKS)
    run = Run(
        initial_head_recipe(prepared, NETWORKS[0]), prepared.pack, prepared.backbone(NETWORKS[0]).file, features=cache
    )
    for _ in run:
        pass
    assert sorted((store.folder.parent / "features").glob("*/features.npy")) == files


def test_the_advice_caches_the_features_in_the_pass_that_it_needs_itself(
    preparing: Preparing, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = preparing(NETWORKS[0])
    advice = recommend_strategies(prepared)
    computed: list[int] = []
    compute = FrozenFeatures.compute

    def count(self: FrozenFeatures, indices: Indices, view: int | None) -> Iterator[Rows]:
        computed.append(len(indices))
        return compute(self, indices, view)

    monkeypatch.setattr(FrozenFeatures, "compute", count)
    shared = recommend_strategies(prepared, cache=feature_cache(store))
    measure_before_training(prepared, store, lambda line: None)
    assert computed == [len(prepared.split.train_and_val)]
    assert shared["order"] == advice["order"]
    assert shared["measured"]["late"]["accuracy"] == advice["measured"]["late"]["accuracy"]


def test_a_resumed_sweep_does_not_measure_again(prepared: Prepared, store: Store) -> None:
    stored = {"at": "", "part": "val", "rows": [], "why_none": {}}
    store.decide("zero_effort", stored)
    lines: list[str] = []
    measure_before_training(prepared, store, lines.append)
    assert store.decisions("zero_effort") == [stored]
    assert lines == []


def test_the_test_part_is_used_once_for_the_finalists_backbones_and_only_after_its_opening(
    prepared: Prepared, store: Store
) -> None:
    measure_before_training(prepared, store, lambda line: None)
    recipe = initial_head_recipe(prepared, NETWORKS[1]).as_dict()
    store.add_trial(Trial("0003", "search", {}, recipe))
    measure_on_test(prepared, store)
    assert len(store.decisions("zero_effort")) == 1
    store.decide("openings", {"at": "", "finalists": ["0003"]})
    for _ in range(2):
        measure_on_test(prepared, store)
    val, test = store.decisions("zero_effort")
    assert (val["part"], test["part"]) == ("val", "test")
    assert {row["backbone"] for row in test["rows"]} == {NETWORKS[1]}
    assert {row["images"] for row in test["rows"]} == {len(prepared.split.test)}


def test_a_sweep_whose_test_part_was_opened_without_rows_gets_none(prepared: Prepared, store: Store) -> None:
    store.decide("openings", {"at": "", "finalists": ["0003"]})
    measure_before_training(prepared, store, lambda line: None)
    measure_on_test(prepared, store)
    assert store.decisions("zero_effort") == []


def test_a_network_that_cannot_be_measured_is_named_with_the_reason_and_does_not_stop_the_others(
    prepared: Prepared, store: Store
) -> None:
    good, bad = prepared.backbones
    lines: list[str] = []
    measure_before_training(replace(prepared, backbones=(good, replace(bad, file=good.file))), store, lines.append)
    decision = store.decisions("zero_effort")[0]
    assert {row["backbone"] for row in decision["rows"]} == {good.name}
    assert decision["why_none"].keys() == {bad.name}
    assert lines[0].startswith(f"before any training, {good.name}: kNN (k=5) ")
    assert lines[1].startswith(f"before any training, {bad.name}: not measured (the recipe was made for weights ")


@pytest.mark.parametrize(
    "edits",
    [
        {"head": "mlp"},
        {"batch_norm": "frozen"},
        {"colour": "grey"},
        {"augmentation": "randaugment"},
        {"mixing": "cutmix"},
        {"loss": "focal"},
        {"views": "none"},
        {"images_per_class": "4"},
        {"images_per_class": "2,4"},
        {"clip_norm": "1.0"},
        {"penalty": "0.5"},
        {"activation": "mish"},
    ],
)
def test_a_search_over_other_settings_is_measured_too(
    preparing: Preparing, store: Store, edits: dict[str, str]
) -> None:
    lines: list[str] = []
    strategies = ("lp_ft",) if "penalty" in edits else ("naive", "clip")
    measure_before_training(preparing(NETWORKS[0], edits=edits, strategies=strategies), store, lines.append)
    assert [line.split("%")[0].rstrip("0123456789.") for line in lines] == ["before any training: kNN (k=5) "]


def test_without_pretrained_weights_nothing_is_measured(preparing: Preparing, store: Store) -> None:
    lines: list[str] = []
    measure_before_training(preparing(NETWORKS[0], strategies=("scratch",)), store, lines.append)
    assert store.decisions("zero_effort") == []
    assert lines == []


def test_zero_shot_rows_follow_the_others_and_are_measured_on_the_test_part_after_its_opening(
    preparing: Preparing, store: Store, image_text_network: Path
) -> None:
    prepared = preparing(NETWORKS[0], zero_shot=f"local-dir:{image_text_network}")
    lines: list[str] = []
    for _ in range(2):
        measure_before_training(prepared, store, lines.append)
    frozen, zero_shot = store.decisions("zero_effort")
    assert (frozen["part"], zero_shot["part"], zero_shot["zero_shot"]) == ("val", "val", "tiny_clip")
    assert [(row["backbone"], row["method"], row["prompts"]) for row in zero_shot["rows"]] == [
        ("tiny_clip", "zero_shot", 1),
        ("tiny_clip", "zero_shot", 7),
    ]
    assert len(lines) == 2
    assert lines[1].startswith("before any training, tiny_clip: zero-shot (1 prompt) ")
    store.add_trial(Trial("0003", "search", {}, initial_head_recipe(prepared, NETWORKS[0]).as_dict()))
    store.decide("openings", {"at": "", "finalists": ["0003"]})
    for _ in range(2):
        measure_on_test(prepared, store)
        measure_before_training(prepared, store, lines.append)
    parts = [(decision["part"], "zero_shot" in decision) for decision in store.decisions("zero_effort")]
    assert parts == [("val", False), ("val", True), ("test", False), ("test", True)]
    assert len(lines) == 2


def test_class_names_that_are_no_words_are_the_reason_for_no_zero_shot_row(
    prepared: Prepared, store: Store, image_text_network: Path
) -> None:
    store.decide("zero_effort", {"at": "", "part": "val", "rows": [], "why_none": {}})
    plan = replace(prepared.plan, zero_shot=f"local-dir:{image_text_network}")
    codes = replace(prepared.pack, classes=tuple(f"n{number:08d}" for number in range(len(prepared.pack.classes))))
    lines: list[str] = []
    measure_before_training(replace(prepared, plan=plan, pack=codes), store, lines.append)
    [line] = lines
    assert line.startswith("before any training, tiny_clip: not measured (zero-shot needs class names that are words, ")


def test_an_image_text_network_that_does_not_exist_is_refused_before_the_data_are_read(preparing: Preparing) -> None:
    with pytest.raises(ValueError, match="nowhere has no open_clip_config.json"):
        preparing(NETWORKS[0], zero_shot="local-dir:nowhere", data="no such folder")


def test_the_data_curve_is_measured_once_on_the_first_backbone(prepared: Prepared, store: Store) -> None:
    measure_data_curve(prepared, store)
    assert store.decisions("data_curve") == [], "without rows on frozen features there is no network to measure"
    measure_before_training(prepared, store, lambda line: None)
    measure_data_curve(prepared, store)
    measure_data_curve(prepared, store)
    (stored,) = store.decisions("data_curve")
    assert stored["backbone"] == NETWORKS[0]
    (row,) = (
        row
        for row in store.decisions("zero_effort")[0]["rows"]
        if row["backbone"] == NETWORKS[0] and row["method"] == "logistic_probe"
    )
    last = stored["points"][-1]
    assert (last["train_images"], last["images"], last["correct"]) == (
        row["train_images"],
        row["images"],
        [row["correct"]],
    )


def test_a_network_that_cannot_be_measured_leaves_the_report_without_a_data_curve(
    prepared: Prepared, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_before_training(prepared, store, lambda line: None)

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(zero_effort, "frozen_body", fail)
    measure_data_curve(prepared, store)
    assert store.decisions("data_curve") == []
