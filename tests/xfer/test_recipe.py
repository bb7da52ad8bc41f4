"""Recipes: what their hashes cover, conversion to and from JSON, and invalid values."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from xfer import hashing
from xfer.choices import choose, default_parameters
from xfer.data.image_folder import folder
from xfer.data.pack import build_pack
from xfer.recipe import (
    CHOICE_TABLES,
    CLOSED_FORM_VALUES,
    DEFAULT_CHOICES,
    INTEGER_FIELDS,
    LIMITS,
    OPTIONAL_FIELDS,
    Recipe,
    recipe_from_dict,
)

ENTRIES = [(kind, name) for kind, table in CHOICE_TABLES.items() for name in table]
CHANGES = {
    "data": "f" * 64,
    "classes": 4,
    "image_size": 64,
    "backbone": "test_resnet",
    "weights": "e" * 64,
    "strategy": "linear_probe",
    "optimizer": "adam",
    "schedule": "onecycle",
    "augmentation": "flip",
    "mixing": "cutmix",
    "loss": "label_smoothing",
    "learning_rate": 0.5,
    "weight_decay": 0.5,
    "batch_size": 9,
    "epochs": 3,
    "balance": "class_weights",
    "embedding_loss": "triplet",
    "head": "mlp",
    "activation": "mish",
    "batch_norm": "always",
    "colour": "grey",
    "body_rate": 0.1,
    "drop_path": 0.2,
    "clip_norm": 2.0,
    "clip_value": 0.5,
    "images_per_class": 5,
    "views": 3,
    "eval_size": 48,
    "backbone_args": {"pad_type": "same"},
    "split_seed": 1,
    "seed": 1,
    "draw": 1,
}


# Key and id


def test_every_field_has_a_change_above():
    assert CHANGES.keys() == {field.name for field in dataclasses.fields(Recipe)}


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_is_part_of_the_id_and_all_but_the_seeds_of_the_key(make_recipe, field):
    before, after = make_recipe(), make_recipe(**{field: CHANGES[field]})
    assert before.id != after.id
    assert (before.key == after.key) is (field in ("seed", "draw"))


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_the_parameters_of_a_choice_are_part_of_the_key(make_recipe, kind, name):
    clip = {"clip_norm": 1.0}
    for parameter, default in default_parameters(CHOICE_TABLES[kind][name]).items():
        plain = {"epochs": 9, **clip, kind: {"name": name}}
        before = make_recipe(**plain)
        assert before.key == make_recipe(**{**plain, kind: {"name": name, parameter: default}}).key
        other = default * 2 if isinstance(default, int) else default / 2
        assert before.key != make_recipe(**{**plain, kind: {"name": name, parameter: other}}).key


def test_repetitions_share_the_key_but_not_the_id(make_recipe):
    recipe = make_recipe()
    repetitions = [recipe.with_seeds(seed, draw) for seed in (0, 1) for draw in (0, 1)]
    assert {repetition.key for repetition in repetitions} == {recipe.key}
    assert len({repetition.id for repetition in repetitions}) == 4
    assert repetitions[0] == recipe
    assert (repetitions[-1].seed, repetitions[-1].draw, repetitions[-1].split_seed) == (1, 1, 0)


def test_evaluation_in_the_size_of_training_is_the_default(make_recipe):
    recipe = make_recipe(eval_size=32)
    assert (recipe, recipe.id) == (make_recipe(), make_recipe().id)
    assert (recipe.evaluation_size, make_recipe(eval_size=48).evaluation_size) == (32, 48)


def test_hashes_are_64_hexadecimal_digits_and_the_same_in_every_process(make_recipe):
    plain = {**make_recipe().as_dict(), "data": "d" * 64, "weights": "e" * 64}
    assert recipe_from_dict(plain).id == hashing.sha256_json(plain) != recipe_from_dict(plain).key
    assert re.fullmatch("[0-9a-f]{64}", recipe_from_dict(plain).id)


@pytest.mark.parametrize(("field", "value"), [("clip_norm", 1), ("weight_decay", 0), ("learning_rate", 1)])
def test_equal_recipes_have_equal_hashes(make_recipe, field, value):
    integer, real = make_recipe(**{field: value}), make_recipe(**{field: float(value)})
    assert integer == real
    assert integer.id == real.id


# Data and weights are identified by their content


def test_weights_are_identified_by_content_and_not_by_name(weights, tmp_path):
    renamed = tmp_path / "other name.bin"
    renamed.write_bytes(weights.read_bytes())
    assert hashing.sha256_file(renamed) == hashing.sha256_file(weights)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    renamed.write_bytes(content)
    assert hashing.sha256_file(renamed) != hashing.sha256_file(weights)


def test_images_are_identified_by_pixels_and_not_by_name(image_folder, pack, tmp_path):
    root = tmp_path / "elsewhere"
    for number, path in enumerate(sorted(image_folder.rglob("*.*"), reverse=True)):
        target = root / path.parent.name / f"{number:03d}-{path.stem} é{path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    renamed = build_pack(folder(root), 32, tmp_path / "packs")
    assert renamed.hash == pack.hash
    assert (renamed.images == pack.images).all()
    one = next(root.glob("red/*.png"))
    with Image.open(one) as image:
        image.putpixel((0, 0), (1, 2, 3))
        image.save(one)
    assert build_pack(folder(root), 32, tmp_path / "packs").hash != pack.hash


# Plain data


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_a_recipe_survives_json(make_recipe, kind, name):
    recipe = make_recipe(**{"clip_norm": 1.0, "epochs": 5, kind: name, "backbone_args": {"pad_type": "same", "b": 2}})
    plain = json.loads(json.dumps(recipe.as_dict()))
    assert plain == recipe.as_dict()
    assert recipe_from_dict(plain) == recipe
    assert recipe_from_dict(plain).id == recipe.id


def values_in_limits(name):
    low, high = LIMITS[name]
    return st.integers(int(low), int(high)) if name in INTEGER_FIELDS else st.floats(low, high)


# clip_norm and clip_value cannot be combined, so at most one of them is drawn.
numbers = st.fixed_dictionaries(
    {name: values_in_limits(name) for name in LIMITS.keys() - OPTIONAL_FIELDS}
    | {"images_per_class": st.none() | values_in_limits("images_per_class")}
    | {name: st.integers(0, 2**62) for name in ("seed", "draw", "split_seed")}
    | {"backbone_args": st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text(), max_size=3)}
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    values=numbers,
    clipping=st.dictionaries(st.sampled_from(["clip_norm", "clip_value"]), values_in_limits("clip_norm"), max_size=1),
)
def test_any_valid_recipe_survives_json(make_recipe, values, clipping):
    recipe = make_recipe(**values, **clipping)
    loaded = recipe_from_dict(json.loads(json.dumps(recipe.as_dict())))
    assert (loaded, loaded.id, loaded.key) == (recipe, recipe.id, recipe.key)


def test_defaults_are_written_out_so_that_they_cannot_change_with_the_code(make_recipe):
    plain = make_recipe(strategy="freeze_then_unfreeze", epochs=3, loss="label_smoothing").as_dict()
    assert plain["strategy"] == {"name": "freeze_then_unfreeze", "freeze_epochs": 2}
    assert plain["loss"] == {"name": "label_smoothing", "smoothing": 0.1}


def test_fields_with_a_default_may_be_omitted(make_recipe):
    recipe = make_recipe()
    plain = recipe.as_dict()
    optional = [field.name for field in dataclasses.fields(Recipe) if field.default is not dataclasses.MISSING]
    assert {"clip_norm", "clip_value", "body_rate", "images_per_class", "backbone_args", "seed"} <= {*optional}
    assert "eval_size" not in plain  # absent by default, so that recipes from before it have the same hash
    for name in {*optional, *DEFAULT_CHOICES} - {"eval_size"}:
        del plain[name]
    assert recipe_from_dict(plain) == recipe
    assert recipe_from_dict(plain).key == recipe.key


@pytest.mark.parametrize("kind", DEFAULT_CHOICES)
def test_an_omitted_default_choice_equals_an_explicit_one(make_recipe, kind):
    explicit = make_recipe(**{kind: DEFAULT_CHOICES[kind]})
    plain = explicit.as_dict()
    assert plain.pop(kind) == {
        "name": DEFAULT_CHOICES[kind],
        **default_parameters(CHOICE_TABLES[kind][DEFAULT_CHOICES[kind]]),
    }
    assert recipe_from_dict(plain) == explicit
    assert recipe_from_dict(plain).key == explicit.key


def test_choices_without_a_default_may_not_be_omitted(make_recipe):
    for kind in CHOICE_TABLES.keys() - DEFAULT_CHOICES.keys():
        plain = make_recipe().as_dict()
        del plain[kind]
        with pytest.raises(KeyError, match=kind):
            recipe_from_dict(plain)


@pytest.mark.parametrize("kind", DEFAULT_CHOICES)
def test_json_contains_choices_that_differ_from_the_defaults(make_recipe, kind):
    for name in CHOICE_TABLES[kind]:
        plain = json.loads(json.dumps(make_recipe(**{kind: name}).as_dict()))
        assert plain[kind] == {"name": name, **default_parameters(CHOICE_TABLES[kind][name])}
        assert getattr(recipe_from_dict(plain), kind).name == name


# Refusals


@pytest.mark.parametrize("name", LIMITS)
def test_the_limits_themselves_are_accepted(make_recipe, name):
    for value in LIMITS[name]:
        kind = int if name in INTEGER_FIELDS else float
        assert getattr(make_recipe(**{name: kind(value)}), name) == value


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", ["below", "above", math.nan, math.inf, -math.inf])
def test_a_value_outside_its_limits_is_refused_with_the_limits(make_recipe, name, value):
    low, high = LIMITS[name]
    value = {"below": low - 1, "above": high * 2}.get(value, value)
    message = f"{name} must be between {low:g} and {high:g}, got {value}"
    with pytest.raises(ValueError, match=re.escape(message)):
        make_recipe(**{name: value})


@pytest.mark.parametrize("name", INTEGER_FIELDS)
def test_a_fractional_count_is_refused(make_recipe, name):
    with pytest.raises(ValueError, match=f"{name} must be an integer, got 10.5"):
        make_recipe(**{name: 10.5})


def test_a_preset_that_clips_requires_a_clip_norm(make_recipe):
    with pytest.raises(ValueError, match="strategy clip clips the gradient norm, so clip_norm must not be none"):
        make_recipe(strategy="clip", clip_norm=None)
    assert make_recipe(strategy="clip", clip_norm=0.5).clip_norm == 0.5


def test_clip_norm_and_clip_value_cannot_be_combined(make_recipe):
    with pytest.raises(ValueError, match=r"clip_norm and clip_value cannot be combined, got 2 and 0\.5"):
        make_recipe(clip_norm=2.0, clip_value=0.5)
    with pytest.raises(ValueError, match=r"cannot be combined, got 1 and 0\.5"):
        make_recipe(strategy="clip", clip_value=0.5)
    assert make_recipe(clip_value=0.5).clip_norm is None


@pytest.mark.parametrize("mixing", [name for name in CHOICE_TABLES["mixing"] if name != "none"])
@pytest.mark.parametrize("term", [name for name in CHOICE_TABLES["embedding_loss"] if name != "none"])
def test_mixing_and_embedding_losses_cannot_be_combined(make_recipe, mixing, term):
    message = f"embedding_loss {term} needs one class per image, but mixing {mixing} gives it two: use mixing none or"
    with pytest.raises(ValueError, match=message):
        make_recipe(mixing=mixing, embedding_loss=term)
    assert make_recipe(mixing=mixing).embedding_loss == make_recipe(embedding_loss="none").embedding_loss
    assert make_recipe(embedding_loss=term).mixing.name == "none"


@pytest.mark.parametrize("rate", [0.0, -0.5, 1.0001, math.nan])
def test_the_body_rate_is_above_0_and_at_most_1(make_recipe, rate):
    with pytest.raises(ValueError, match=f"body_rate must be between 1e-06 and 1, got {rate}"):
        make_recipe(body_rate=rate)
    assert [make_recipe(body_rate=rate).body_rate for rate in (1, 0.1)] == [1.0, 0.1]


@pytest.mark.parametrize("name", LIMITS)
def test_only_optional_fields_may_be_none(make_recipe, name):
    if name in OPTIONAL_FIELDS:
        assert getattr(make_recipe(**{name: None}), name) is None
    else:
        with pytest.raises(ValueError, match=f"{name} must be .* got None"):
            make_recipe(**{name: None})


def test_a_strategy_that_prescribes_its_network_accepts_no_other(make_recipe):
    plain = make_recipe(strategy="small_cnn").as_dict()
    assert plain["backbone"] == "basic_cnn"
    with pytest.raises(ValueError, match="strategy small_cnn needs backbone basic_cnn, got test_resnet"):
        recipe_from_dict({**plain, "backbone": "test_resnet"})


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_freezing_to_the_end_is_refused_with_an_alternative(make_recipe, epochs):
    strategy = {"name": "freeze_then_unfreeze", "freeze_epochs": 3}
    message = rf"freeze_then_unfreeze\(freeze_epochs=3\) would never unfreeze in {epochs} epochs.* at least 4.*linear_"
    with pytest.raises(ValueError, match=message):
        make_recipe(strategy=strategy, epochs=epochs)
    assert make_recipe(strategy=strategy, epochs=4).epochs == 4


@pytest.mark.parametrize("strategy", ["freeze_until_converged", "gradual_unfreeze"])
def test_everything_must_move_in_at_least_one_epoch(make_recipe, strategy):
    with pytest.raises(ValueError, match=f"strategy {strategy}.* would never unfreeze in 1 epochs: .* at least 2"):
        make_recipe(strategy=strategy, epochs=1)
    assert make_recipe(strategy=strategy, epochs=2).last_unfreeze_epoch == 1


@pytest.mark.parametrize("freeze_epochs", [0, -1])
def test_freezing_for_less_than_one_epoch_is_refused_with_an_alternative(make_recipe, freeze_epochs):
    with pytest.raises(ValueError, match=f"freeze_epochs must be at least 1, got {freeze_epochs}; .*naive"):
        make_recipe(strategy={"name": "freeze_then_unfreeze", "freeze_epochs": freeze_epochs}, weights="")


def test_weights_and_strategy_must_agree(make_recipe, weights):
    with pytest.raises(ValueError, match="naive needs pretrained weights, but the recipe names none"):
        make_recipe(weights="")
    with pytest.raises(ValueError, match="scratch starts from random weights, but the recipe names pretrained"):
        make_recipe(strategy="scratch", weights=hashing.sha256_file(weights))


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_an_unknown_name_is_refused_with_the_nearest_and_all_known_names(make_recipe, kind, name):
    misspelled = name[:-1] + "q"
    message = rf"unknown {kind} '{misspelled}'.*{name}.*Known: {', '.join(CHOICE_TABLES[kind])}"
    with pytest.raises(ValueError, match=message):
        make_recipe(**{kind: misspelled})


def test_an_unknown_parameter_is_refused_with_the_nearest_name(make_recipe):
    message = "unknown parameter of strategy freeze_then_unfreeze 'freeze_epoch': did you mean freeze_epochs"
    with pytest.raises(ValueError, match=message):
        make_recipe(weights="", strategy={"name": "freeze_then_unfreeze", "freeze_epoch": 1})


def test_a_name_unlike_any_other_gets_no_suggestion():
    with pytest.raises(ValueError, match=r"^unknown loss 'qqqq'\. Known: cross_entropy, label_smoothing, focal$"):
        choose("loss", CHOICE_TABLES["loss"], "qqqq")


def test_a_recipe_is_a_value(make_recipe):
    assert make_recipe() == make_recipe()
    assert hash(make_recipe()) == hash(make_recipe())
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_recipe().seed = 3


@pytest.mark.parametrize("strategy", ["linear_probe", "early_cut"])
def test_a_body_rate_is_refused_where_the_body_is_frozen(make_recipe, strategy):
    with pytest.raises(ValueError, match=r"body_rate is 0.1, but strategy .* trains nothing below the head"):
        make_recipe(strategy=strategy, body_rate=0.1)


@pytest.mark.parametrize("strategy", ["linear_probe", "early_cut"])
def test_stochastic_depth_is_refused_where_the_body_is_frozen(make_recipe, strategy):
    with pytest.raises(ValueError, match=r"drop_path is 0.1, but strategy .* trains nothing below the head"):
        make_recipe(strategy=strategy, drop_path=0.1)


def test_stochastic_depth_is_set_by_the_recipe_or_the_arguments_of_the_network_but_not_both(make_recipe):
    assert make_recipe(backbone_args={"drop_path_rate": 0.1}).drop_path == 0.0
    with pytest.raises(ValueError, match=r"drop_path is 0.2, but the arguments of the network set drop_path_rate too"):
        make_recipe(drop_path=0.2, backbone_args={"drop_path_rate": 0.1})


@pytest.mark.parametrize("field", sorted(set(CLOSED_FORM_VALUES) - {"body_rate", "drop_path"}))
def test_closed_form_strategies_refuse_values_without_effect(make_recipe, field):
    recipe = make_recipe(strategy="ridge_probe")
    other = {**recipe.as_dict(), "clip_norm": None, field: CHANGES[field]}
    if field in CHOICE_TABLES:
        other[field] = {"name": CHANGES[field]}
    with pytest.raises(ValueError, match=rf"strategy ridge_probe\(penalty=100.0\) fits .* leave {field} at"):
        recipe_from_dict(other)
