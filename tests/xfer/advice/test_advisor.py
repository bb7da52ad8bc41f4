"""The advisor: sizes counted, likeness measured on the training part alone, and everybody's advice by name."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from xfer.advice.advisor import CASES, LINE_WIDTH, advise, recommend
from xfer.advice.dataset_profile import SMALL_IMAGES, DatasetProfile, StageScore
from xfer.choices import choose
from xfer.data.image_folder import folder
from xfer.data.pack import build_pack
from xfer.data.split import split_pack
from xfer.methods.strategies import STRATEGIES

CPU = torch.device("cpu")


def layer(stage, accuracy, logme=0.0):
    return StageScore(stage, 32, accuracy, 0.02, logme)


def measurement(**changes):
    """Small and similar, clearly, unless changed."""
    plain = {
        "backbone": "resnet18",
        "image_size": 128,
        "classes": 4,
        "images": 400,
        "images_per_class": (90, 100, 110),
        "measured_images": 400,
        "cap": 2000,
        "chance": 0.275,
        "early": (layer(1, 0.5), layer(2, 0.7), layer(3, 0.6)),
        "late": layer("late", 0.95, 0.5),
        "gain": 0.25,
        "gain_error": 0.03,
        "margin": 0.15,
        "margin_error": 0.03,
        "blocks": 10,
        "drops_early": True,
    }
    return DatasetProfile(**{**plain, **changes})


DIFFERENT = {"late": layer("late", 0.72), "gain": 0.02, "margin": -0.08}
LARGE = {"images": 40_000, "images_per_class": (9_000, 10_000, 11_000)}
EXAMPLES = {
    ("small", "similar"): {},
    ("large", "similar"): LARGE,
    ("small", "different"): DIFFERENT,
    ("large", "different"): LARGE | DIFFERENT,
}


def names(advice):
    return [each.strategy.name for each in advice.recommended]


def whose(advice):
    return {each.strategy.name: each.whose for each in advice.recommended}


# From what was measured to the case


@pytest.mark.parametrize(
    ("images", "median", "expected"),
    [(999, 500, "small"), (1000, 16, "large"), (5000, 15, "small"), (300, 2, "small"), (60_000, 600, "large")],
)
def test_data_is_small_by_images_in_all_or_in_the_median_class(images, median, expected):
    assert measurement(images=images, images_per_class=(1, median, images)).size == expected


def test_data_is_similar_where_late_features_serve_and_leave_a_third_fewer_errors():
    assert measurement().similarity == "similar"
    assert measurement(margin=0.0).similarity == "similar"
    assert measurement(margin=-0.001).similarity == "different"
    # Half the way from a chance of 0.275 to 1 is 0.6375.
    assert measurement(late=layer("late", 0.64)).similarity == "similar"
    assert measurement(late=layer("late", 0.63)).similarity == "different"
    assert measurement().error_reduction == pytest.approx(0.25 / 0.3)
    assert measurement(early=(layer(1, 1.0),), gain=0.0).error_reduction == 0


def test_a_verdict_near_its_border_is_a_close_call_and_the_other_advice_is_named():
    assert measurement().is_significant
    assert not measurement(margin=0.05).is_significant
    assert not measurement(late=layer("late", 0.66)).is_significant  # the other condition is nearly missed
    assert not measurement(margin=-0.05).is_significant
    assert measurement(margin=-0.07).is_significant
    assert measurement(late=layer("late", 0.55)).is_significant
    assert not any("close call" in note for note in recommend(measurement()).notes)
    (note,) = (note for note in recommend(measurement(margin=0.05)).notes if "close call" in note)
    assert note == ("a close call: were the data different, train_last(blocks=2) would come first (source 002)")


@pytest.mark.parametrize("case", CASES)
def test_every_case_has_its_example_here(case):
    assert recommend(measurement(**EXAMPLES[case])).case == case


# From the case to the advice


def test_each_case_starts_with_what_the_sources_advise():
    first = {case: recommend(measurement(**changes)).recommended[0] for case, changes in EXAMPLES.items()}
    found = {case: (str(each.strategy), each.whose) for case, each in first.items()}
    any_data = "source 000, as the first thing to try on any data"
    assert found == {
        ("small", "similar"): ("linear_probe", "sources 002, 003 and 004"),
        ("large", "similar"): ("clip", any_data),
        ("small", "different"): ("early_cut(stage=2)", "sources 003 (its prose) and 004"),
        ("large", "different"): ("clip", any_data),
    }


@pytest.mark.parametrize("case", CASES)
def test_advice_names_strategies_that_there_are_with_parameters_that_they_take(case):
    for gain in (0.02, 0.2):
        advice = recommend(measurement(**{**EXAMPLES[case], "gain": gain}))
        assert len(set(names(advice))) == len(advice.recommended) >= 3
        for each in advice.recommended:
            choose("strategy", STRATEGIES, each.strategy.name, **dict(each.strategy.values)).build(STRATEGIES)
            assert each.reason
            assert each.whose


@pytest.mark.parametrize("case", CASES)
def test_source_000_is_heard_in_every_case(case):
    assert whose(recommend(measurement(**EXAMPLES[case])))["clip"].startswith("source 000")


@pytest.mark.parametrize("case", [("large", "similar"), ("large", "different")])
def test_on_much_data_everything_is_trained(case):
    found = whose(recommend(measurement(**EXAMPLES[case])))
    assert list(found)[:2] == ["clip", "naive"]
    assert all(source in found["naive"] for source in ("002", "003", "004"))


def test_on_little_different_data_the_sources_disagree_and_measured_features_decide_the_order():
    as_good = recommend(measurement(**DIFFERENT))
    assert names(as_good)[:3] == ["early_cut", "train_last", "clip"]
    worse = recommend(measurement(**DIFFERENT | {"gain": 0.07}))
    assert names(worse)[:3] == ["train_last", "clip", "early_cut"]
    assert "serve worse: 70.0% as probed, late ones 72.0%" in worse.recommended[2].reason
    assert whose(worse)["train_last"] == "source 002"


@pytest.mark.parametrize("size", ["small", "large"])
def test_source_003_to_the_letter_is_an_arm_of_its_own_and_the_last_where_the_network_can_do_it(size):
    changes = EXAMPLES[size, "different"]
    able = recommend(measurement(**changes))
    assert able.recommended[-1].strategy.name == "drop_early"
    assert able.recommended[-1].whose == "source 003 (its steps, to the letter)"
    unable = recommend(measurement(**changes, drops_early=False))
    assert "drop_early" not in names(unable)
    assert any("(drop_early) cannot be built" in note for note in unable.notes)
    assert not any("drop_early" in note for note in able.notes)


def test_what_was_left_out_and_who_disagrees_is_noted():
    notes = recommend(measurement(images=5000, early=(layer(1, 0.7, logme=0.6),))).notes
    assert "measured on a stratified sample of 400 of the 5,000 training images" in notes
    assert "LogME disagrees with the probe: it prefers an earlier stage" in notes
    assert len(notes) == 3
    assert len(recommend(measurement()).notes) == 1


@pytest.mark.parametrize("case", CASES)
def test_the_answer_can_be_read_in_a_terminal_and_as_json(case):
    advice = recommend(measurement(**EXAMPLES[case]), seconds=2.5)
    assert max(len(line) for line in advice.lines()) <= LINE_WIDTH
    text = " ".join(str(advice).split())
    assert f"The data set is {case[0]}: " in text
    assert f"It is {case[1]} " in text
    assert "2.5 s" in text
    for each in advice.recommended:
        assert f"{each.strategy} [{each.whose}] {each.reason}" in text
    plain = json.loads(json.dumps(advice.as_dict()))
    assert (plain["size"], plain["likeness"], plain["clear"], plain["seconds"]) == (*case, True, 2.5)
    assert [each["strategy"]["name"] for each in plain["recommended"]] == names(advice)
    assert plain["measured"]["late"]["accuracy"] == advice.measured.late.accuracy


# Measured


@pytest.fixture(scope="module")
def advice(pack, weights):
    return advise(pack, "test_efficientnet", weights, device=CPU)


def test_what_is_measured_is_said(advice, pack):
    found = advice.measured
    assert (found.images, found.measured_images, found.classes, found.images_per_class) == (24, 24, 3, (8, 8, 8))
    assert found.chance == pytest.approx(1 / 3)
    assert [each.stage for each in (*found.early, found.late)] == [1, 2, 3, 4, "late"]
    assert [each.features for each in (*found.early, found.late)] == [16, 24, 32, 48, 256]
    assert found.best_early_stage.accuracy > 0.9  # colours are all there is, and every stage sees them
    assert found.gain == pytest.approx(found.late.accuracy - found.best_early_stage.accuracy)
    assert (found.backbone, found.image_size, found.cap) == ("test_efficientnet", pack.image_size, 2000)
    assert advice.seconds > 0


def test_only_the_training_part_is_looked_at_and_the_same_again_gives_the_same(advice, pack, weights):
    images = np.zeros_like(pack.images)
    train = split_pack(pack).train
    images[train] = pack.images[train]
    chance = torch.get_rng_state()
    again = advise(replace(pack, images=images), "test_efficientnet", weights, device=CPU)
    assert again.measured == advice.measured
    assert torch.equal(torch.get_rng_state(), chance)


def test_another_split_seed_looks_at_that_splits_training_part(pack, weights):
    images = np.zeros_like(pack.images)
    train = split_pack(pack, seed=3).train
    images[train] = pack.images[train]
    found = [
        advise(each, "test_efficientnet", weights, split_seed=3, device=CPU).measured
        for each in (pack, replace(pack, images=images))
    ]
    assert found[0] == found[1]


def test_a_cap_takes_a_stratified_sample_and_progress_is_told(pack, weights):
    told = []
    found = advise(
        pack, "test_efficientnet", weights, device=CPU, cap=12, progress=lambda *done: told.append(done)
    ).measured
    assert (found.images, found.measured_images, found.cap) == (24, 12, 12)
    assert found.chance == pytest.approx(1 / 3)  # four of each class
    assert told == [(12, 12)]
    with pytest.raises(ValueError, match="cap is 1; "):
        advise(pack, "test_efficientnet", weights, device=CPU, cap=1)


def test_copies_of_an_image_are_one_image(pack, weights):
    # Of every class the first four images are said to be copies of one.
    digests = [pack.digests[place - place % 12] if place % 12 < 4 else pack.digests[place] for place in range(36)]
    copied = replace(pack, digests=tuple(digests))
    train = split_pack(copied).train
    different = len({digests[place] for place in train})
    assert different < len(train)
    assert advise(copied, "test_efficientnet", weights, device=CPU).measured.images == different


def test_whether_early_layers_can_be_left_out_is_tried(pack, weights_of, advice):
    assert not advice.measured.drops_early
    found = advise(pack, "test_vit", weights_of("test_vit"), device=CPU).measured
    assert found.drops_early
    assert found.blocks > 2
    assert [each.stage for each in found.early] == [2, 3, 4]


def test_weights_of_another_network_are_refused(pack, weights_of):
    with pytest.raises(ValueError, match="does not fit test_efficientnet"):
        advise(pack, "test_efficientnet", weights_of("test_resnet"), device=CPU)


def test_hymenoptera_is_few_images_like_those_of_imagenet(shared_data, tmp_path):
    data = build_pack(folder(shared_data / "hymenoptera"), 128, tmp_path)
    weights = shared_data / "weights" / "mobilenetv2_100.safetensors"
    found = advise(data, "mobilenetv2_100", weights, device=CPU)
    assert found.case == ("small", "similar")
    assert names(found)[0] == "linear_probe"
    assert found.measured.images < SMALL_IMAGES
    assert found.measured.late.accuracy > 0.85
    assert found.measured.gain > 2 * found.measured.gain_error
    assert found.measured.late.logme == max(each.logme for each in (*found.measured.early, found.measured.late))


def test_where_few_images_will_be_trained_on_few_are_measured(pack, weights):
    found = advise(pack, "test_efficientnet", weights, device=CPU, images_per_class=5).measured
    assert (found.images, found.images_per_class) == (15, (5, 5, 5))
