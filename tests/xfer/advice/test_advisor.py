"""Advice: size and similarity are measured on the training part only, and every recommendation has a source."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from xfer.advice.advisor import CASES, LINE_WIDTH, advise, recommend
from xfer.advice.dataset_profile import SMALL_IMAGES, DatasetProfile, StageScore
from xfer.choices import choose
from xfer.data.class_balance import find_imbalance
from xfer.data.image_folder import folder
from xfer.data.pack import build_pack
from xfer.data.split import split_pack
from xfer.methods.descriptions import strategy_descriptions
from xfer.methods.strategies import STRATEGIES

CPU = torch.device("cpu")


def stage_score(stage, accuracy, logme=0.0):
    return StageScore(stage, 32, accuracy, 0.02, logme)


def profile(**changes):
    """A profile of clearly small and similar data, with changes."""
    plain = {
        "backbone": "resnet18",
        "image_size": 128,
        "classes": 4,
        "images": 400,
        "images_per_class": (90, 100, 110),
        "measured_images": 400,
        "cap": 2000,
        "chance": 0.275,
        "early": (stage_score(1, 0.5), stage_score(2, 0.7), stage_score(3, 0.6)),
        "late": stage_score("late", 0.95, 0.5),
        "gain": 0.25,
        "gain_error": 0.03,
        "margin": 0.15,
        "margin_error": 0.03,
        "blocks": 10,
        "drops_early": True,
    }
    return DatasetProfile(**{**plain, **changes})


DIFFERENT = {"late": stage_score("late", 0.72), "gain": 0.02, "margin": -0.08}
LARGE = {"images": 40_000, "images_per_class": (9_000, 10_000, 11_000)}
CASE_CHANGES = {
    ("small", "similar"): {},
    ("large", "similar"): LARGE,
    ("small", "different"): DIFFERENT,
    ("large", "different"): LARGE | DIFFERENT,
}


def names(advice):
    return [recommendation.strategy.name for recommendation in advice.recommended]


def sources(advice):
    return {recommendation.strategy.name: recommendation.source for recommendation in advice.recommended}


# From what was measured to the case


@pytest.mark.parametrize(
    ("images", "median", "expected"),
    [(999, 500, "small"), (1000, 16, "large"), (5000, 15, "small"), (300, 2, "small"), (60_000, 600, "large")],
)
def test_data_is_small_by_total_images_or_by_the_median_class(images, median, expected):
    assert profile(images=images, images_per_class=(1, median, images)).size == expected


def test_data_is_similar_where_late_features_are_good_and_make_a_third_fewer_errors():
    assert profile().similarity == "similar"
    assert profile(margin=0.0).similarity == "similar"
    assert profile(margin=-0.001).similarity == "different"
    # Half the way from a chance of 0.275 to 1 is 0.6375.
    assert profile(late=stage_score("late", 0.64)).similarity == "similar"
    assert profile(late=stage_score("late", 0.63)).similarity == "different"
    assert profile().error_reduction == pytest.approx(0.25 / 0.3)
    assert profile(early=(stage_score(1, 1.0),), gain=0.0).error_reduction == 0


def test_a_result_near_its_threshold_is_a_close_call_and_the_alternative_is_noted():
    assert profile().is_significant
    assert not profile(margin=0.05).is_significant
    assert not profile(late=stage_score("late", 0.66)).is_significant  # close to the other threshold
    assert not profile(margin=-0.05).is_significant
    assert profile(margin=-0.07).is_significant
    assert profile(late=stage_score("late", 0.55)).is_significant
    assert not any("close call" in note for note in recommend(profile()).notes)
    (note,) = (note for note in recommend(profile(margin=0.05)).notes if "close call" in note)
    assert note == ("a close call: if the data were different, train_last(blocks=2) would come first (source 002)")


@pytest.mark.parametrize("case", CASES)
def test_every_case_has_an_example_here(case):
    assert recommend(profile(**CASE_CHANGES[case])).case == case


# From the case to the advice


def test_each_case_starts_with_what_the_sources_advise():
    first = {case: recommend(profile(**changes)).recommended[0] for case, changes in CASE_CHANGES.items()}
    first_advice = {
        case: (str(recommendation.strategy), recommendation.source) for case, recommendation in first.items()
    }
    any_data = "source 000, as the first thing to try on any data"
    assert first_advice == {
        ("small", "similar"): ("linear_probe", "sources 002, 003 and 004"),
        ("large", "similar"): ("clip", any_data),
        ("small", "different"): ("early_cut(stage=2)", "sources 003 (its prose) and 004"),
        ("large", "different"): ("clip", any_data),
    }


@pytest.mark.parametrize("case", CASES)
def test_recommended_strategies_and_their_parameters_exist(case):
    for gain in (0.02, 0.2):
        advice = recommend(profile(**{**CASE_CHANGES[case], "gain": gain}))
        assert len(set(names(advice))) == len(advice.recommended) >= 3
        for recommendation in advice.recommended:
            choose("strategy", STRATEGIES, recommendation.strategy.name, **dict(recommendation.strategy.values)).build(
                STRATEGIES
            )
            assert recommendation.reason
            assert recommendation.source


@pytest.mark.parametrize("case", CASES)
def test_every_case_includes_the_advice_of_source_000(case):
    assert sources(recommend(profile(**CASE_CHANGES[case])))["clip"].startswith("source 000")


@pytest.mark.parametrize("case", [("large", "similar"), ("large", "different")])
def test_with_many_images_everything_is_trained(case):
    source_of = sources(recommend(profile(**CASE_CHANGES[case])))
    assert list(source_of)[:2] == ["clip", "naive"]
    assert all(source in source_of["naive"] for source in ("002", "003", "004"))


def test_for_small_different_data_the_measured_features_decide_between_the_sources():
    as_good = recommend(profile(**DIFFERENT))
    assert names(as_good)[:3] == ["early_cut", "train_last", "clip"]
    worse = recommend(profile(**DIFFERENT | {"gain": 0.07}))
    assert names(worse)[:3] == ["train_last", "clip", "early_cut"]
    assert "worse here: 70.0% with a linear probe, late ones 72.0%" in worse.recommended[2].reason
    assert sources(worse)["train_last"] == "source 002"


@pytest.mark.parametrize("size", ["small", "large"])
def test_the_literal_steps_of_source_003_come_last_if_the_network_supports_them(size):
    changes = CASE_CHANGES[size, "different"]
    able = recommend(profile(**changes))
    assert able.recommended[-1].strategy.name == "drop_early"
    assert able.recommended[-1].source == "source 003 (its literal steps)"
    unable = recommend(profile(**changes, drops_early=False))
    assert "drop_early" not in names(unable)
    assert any("(drop_early) cannot be built" in note for note in unable.notes)
    assert not any("drop_early" in note for note in able.notes)


def test_sampling_and_disagreement_are_noted():
    notes = recommend(profile(images=5000, early=(stage_score(1, 0.7, logme=0.6),))).notes
    assert "measured on a stratified sample: 400 of 5,000 training images" in notes
    assert "LogME disagrees with the probe: it prefers an earlier stage" in notes
    assert len(notes) == 3
    assert len(recommend(profile()).notes) == 1


@pytest.mark.parametrize("case", CASES)
def test_the_advice_is_available_as_text_and_as_json(case):
    advice = recommend(profile(**CASE_CHANGES[case]), seconds=2.5)
    assert max(len(line) for line in advice.lines()) <= LINE_WIDTH
    text = " ".join(str(advice).split())
    assert f"The data set is {case[0]}: " in text
    assert f"It is {case[1]} " in text
    assert "2.5 s" in text
    for recommendation in advice.recommended:
        description = strategy_descriptions()[recommendation.strategy.name]
        shown = f"{recommendation.strategy} [{recommendation.source}] {description} why: {recommendation.reason}"
        assert shown in text
    plain = json.loads(json.dumps(advice.as_dict()))
    assert (plain["size"], plain["likeness"], plain["clear"], plain["seconds"]) == (*case, True, 2.5)
    assert [recommendation["strategy"]["name"] for recommendation in plain["recommended"]] == names(advice)
    assert plain["measured"]["late"]["accuracy"] == advice.measured.late.accuracy


# Measured


@pytest.fixture(scope="module")
def advice(pack, weights):
    return advise(pack, "test_efficientnet", weights, device=CPU)


def test_the_advice_contains_the_measurements(advice, pack):
    measured = advice.measured
    assert (measured.images, measured.measured_images, measured.classes, measured.images_per_class) == (
        24,
        24,
        3,
        (8, 8, 8),
    )
    assert measured.chance == pytest.approx(1 / 3)
    assert [score.stage for score in (*measured.early, measured.late)] == [1, 2, 3, 4, "late"]
    assert [score.features for score in (*measured.early, measured.late)] == [16, 24, 32, 48, 256]
    assert measured.best_early_stage.accuracy > 0.9  # the classes are colours, which every stage detects
    assert measured.gain == pytest.approx(measured.late.accuracy - measured.best_early_stage.accuracy)
    assert (measured.backbone, measured.image_size, measured.cap) == ("test_efficientnet", pack.image_size, 500)
    assert advice.seconds > 0


def test_advice_uses_only_the_training_part_and_is_reproducible(advice, pack, weights):
    images = np.zeros_like(pack.images)
    train = split_pack(pack).train
    images[train] = pack.images[train]
    random_state = torch.get_rng_state()
    again = advise(replace(pack, images=images), "test_efficientnet", weights, device=CPU)
    assert again.measured == advice.measured
    assert torch.equal(torch.get_rng_state(), random_state)


def test_another_split_seed_uses_that_splits_training_part(pack, weights):
    images = np.zeros_like(pack.images)
    train = split_pack(pack, seed=3).train
    images[train] = pack.images[train]
    profiles = [
        advise(some_pack, "test_efficientnet", weights, split_seed=3, device=CPU).measured
        for some_pack in (pack, replace(pack, images=images))
    ]
    assert profiles[0] == profiles[1]


def test_a_cap_takes_a_stratified_sample_and_progress_is_reported(pack, weights):
    reported = []
    measured = advise(
        pack, "test_efficientnet", weights, device=CPU, cap=12, progress=lambda *done: reported.append(done)
    ).measured
    assert (measured.images, measured.measured_images, measured.cap) == (24, 12, 12)
    assert measured.chance == pytest.approx(1 / 3)  # four of each class
    assert reported == [(12, 12)]
    with pytest.raises(ValueError, match="cap must be at least 2, got 1"):
        advise(pack, "test_efficientnet", weights, device=CPU, cap=1)


def test_duplicates_are_counted_once(pack, weights):
    # The first four images of every class get the same digest.
    digests = [pack.digests[index - index % 12] if index % 12 < 4 else pack.digests[index] for index in range(36)]
    copied = replace(pack, digests=tuple(digests))
    train = split_pack(copied).train
    different = len({digests[index] for index in train})
    assert different < len(train)
    assert advise(copied, "test_efficientnet", weights, device=CPU).measured.images == different


def test_the_profile_says_whether_early_stages_can_be_removed(pack, weights_of, advice):
    assert not advice.measured.drops_early
    measured = advise(pack, "test_vit", weights_of("test_vit"), device=CPU).measured
    assert measured.drops_early
    assert measured.blocks > 2
    assert [score.stage for score in measured.early] == [2, 3, 4]


def test_weights_of_another_network_are_refused(pack, weights_of):
    with pytest.raises(ValueError, match="does not fit test_efficientnet"):
        advise(pack, "test_efficientnet", weights_of("test_resnet"), device=CPU)


@pytest.mark.slow
def test_hymenoptera_is_small_and_similar_to_imagenet(shared_data, tmp_path):
    data = build_pack(folder(shared_data / "hymenoptera"), 128, tmp_path)
    weights = shared_data / "weights" / "mobilenetv2_100.safetensors"
    advice = advise(data, "mobilenetv2_100", weights, device=CPU)
    assert advice.case == ("small", "similar")
    assert names(advice)[0] == "linear_probe"
    assert advice.measured.images < SMALL_IMAGES
    assert advice.measured.late.accuracy > 0.85
    assert advice.measured.gain > 2 * advice.measured.gain_error
    assert advice.measured.late.logme == max(score.logme for score in (*advice.measured.early, advice.measured.late))


def test_images_per_class_limits_the_measured_images(pack, weights):
    measured = advise(pack, "test_efficientnet", weights, device=CPU, images_per_class=5).measured
    assert (measured.images, measured.images_per_class) == (15, (5, 5, 5))


def test_imbalanced_classes_are_said_with_numbers_and_what_to_compare():
    imbalance = find_imbalance([40, 5], ["ant", "bee"])
    advice = recommend(profile(), imbalance=imbalance)
    assert advice.as_dict()["imbalance"] == {
        "rarest": ("bee",),
        "fewest": 5,
        "most_frequent": "ant",
        "most": 40,
    }
    text = " ".join(str(advice).split())
    assert "classes are imbalanced: the most frequent class, ant, has 40 training images, and bee has 5." in text
    assert "--balance logit_adjustment" in text
    assert "--objective balanced_accuracy" in text
    assert "imbalance" not in recommend(profile()).as_dict()
