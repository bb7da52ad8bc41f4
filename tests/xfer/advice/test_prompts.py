"""Class names become words, and numbers or codes are refused with the reason."""

from __future__ import annotations

import pytest

from xfer.advice.prompts import PROMPTS, class_words


def test_every_prompt_has_one_place_for_the_class_and_sets_differ_in_size():
    assert [len(prompts) for prompts in PROMPTS] == [1, 7]
    assert {prompt.count("{}") for prompts in PROMPTS for prompt in prompts} == {1}
    assert {prompt.format("dog").count("dog") for prompts in PROMPTS for prompt in prompts} == {1}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ants", "ants"),
        ("polar_bear", "polar bear"),
        ("001.Black-footed_Albatross", "Black footed Albatross"),
        ("Audi S4 Sedan 2012", "Audi S4 Sedan 2012"),
        ("2_wheeler", "wheeler"),
        ("a/b testing", "a b testing"),
        ("sky", "sky"),
        ("lady's slipper", "lady's slipper"),
        ("蚂蚁", "蚂蚁"),
        ("Käfer", "Käfer"),
    ],
)
def test_separators_become_blanks_and_leading_numbers_go(name, words):
    assert class_words([name, "bees"]) == [words, "bees"]


@pytest.mark.parametrize("code", ["0", "42", "n02123045", "nv", "A", "-", "bcc", "x1"])
def test_numbers_and_codes_are_named(code):
    with pytest.raises(ValueError, match=rf"class names that are words, got '{code}': rename"):
        class_words(["ants", code])


def test_numbered_classes_of_one_word_are_codes():
    with pytest.raises(ValueError, match="got 'class_1', 'class_2', 'class_3', 'class_4', 'class_5', ...: rename"):
        class_words([f"class_{number}" for number in range(1, 9)])
    cars = ["Audi S4 Sedan 2007", "Audi S4 Sedan 2012", "Acura TL Sedan 2012"]
    assert class_words(cars) == cars


def test_classes_of_equal_words_are_refused():
    with pytest.raises(ValueError, match="two classes read 'Polar bear'"):
        class_words(["polar_bear", "wolf", "Polar-bear"])
