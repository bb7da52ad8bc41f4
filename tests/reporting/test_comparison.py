"""Differences between recipes: compared with references, by simulation, and in borderline cases."""

from __future__ import annotations

from functools import cache
from time import perf_counter

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, stats

from sweeps.reporting.statistics import compare_with_best, difference, outlook

Array = NDArray[np.float64]


def answers(*recipes: float, seeds: int = 3, images: int = 200, shift: int = 37) -> Array:
    """Recipes whose wrong answers are next to each other, at indices that differ by recipe and, a little, by seed."""
    correct = np.ones((len(recipes), seeds, images))
    for recipe, accuracy in enumerate(recipes):
        for seed in range(seeds):
            wrong = (np.arange(round((1 - accuracy) * images)) + shift * recipe + seed) % images
            correct[recipe, seed, wrong] = 0
    return correct


def simulate(
    rng: np.random.Generator,
    accuracies: tuple[float, ...],
    images: int,
    seed_spread: float,
    *,
    seeds: int = 3,
    shared: bool = False,
) -> Array:
    """Draw answers, shape [recipes, seeds, images], with random effects on the logit scale.

    Images are easy or hard for all recipes and, less so, for a single one. Seeds are good or bad for each recipe by
    itself or, if `shared`, for all recipes.
    """
    image_spread, own_image_spread = 1.5, 0.5
    spread = float(np.sqrt(image_spread**2 + own_image_spread**2 + seed_spread**2))
    levels = np.array([level(accuracy, spread) for accuracy in accuracies])[:, None, None]
    logits = (
        levels
        + image_spread * rng.standard_normal((1, 1, images))
        + own_image_spread * rng.standard_normal((len(accuracies), 1, images))
        + seed_spread * rng.standard_normal((1 if shared else len(accuracies), seeds, 1))
    )
    return (rng.random((len(accuracies), seeds, images)) < 1 / (1 + np.exp(-logits))).astype(float)


@cache
def level(accuracy: float, spread: float) -> float:
    """The mean logit at which the mean accuracy over normal effects of this spread is `accuracy`."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)

    def error(mean: float) -> float:
        return float(weights @ (1 / (1 + np.exp(-mean - spread * nodes))) / weights.sum()) - accuracy

    return float(optimize.brentq(error, -10, 20))


@pytest.mark.parametrize("images", [12, 153])
def test_one_seed_gives_exactly_the_paired_t_test(images: int) -> None:
    first, second = np.random.default_rng(0).random((2, 1, images)) < 0.7
    result = difference(first, second)
    reference = stats.ttest_rel(first[0].astype(float), second[0].astype(float))
    interval = reference.confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert result.mean == pytest.approx(first.mean() - second.mean())
    assert result.degrees_of_freedom == pytest.approx(images - 1)
    one_sided = stats.ttest_rel(first[0].astype(float), second[0].astype(float), alternative="greater")
    assert result.probability == pytest.approx(1 - one_sided.pvalue)
    assert (result.images, result.seeds) == (images, 1)


def test_the_variance_of_one_seed_is_that_of_the_discordant_images() -> None:
    """Of 100 images, 8 are right only with the first recipe and 3 only with the second (McNemar's table)."""
    first, second = np.ones((1, 100)), np.ones((1, 100))
    first[0, :3] = 0
    second[0, 3:11] = 0
    result = difference(first, second)
    assert result.mean == pytest.approx(0.05)
    assert result.standard_error**2 * 99 == pytest.approx((8 + 3) / 100 - 0.05**2)


def test_seeds_that_decide_everything_give_the_paired_t_test_over_seeds() -> None:
    """Within a seed all images agree, so a seed is worth one observation, however many images there are."""
    first, second = np.zeros((5, 4000)), np.zeros((5, 4000))
    for seed, count in enumerate((2000, 2400, 1600, 2800, 2200)):
        first[seed, :count] = 1
    result = difference(first, second)
    seed_means = first.mean(axis=1)
    assert result.mean == pytest.approx(0.55)
    assert result.standard_error**2 >= stats.sem(seed_means) ** 2
    reference = stats.t.interval(0.95, 4, loc=seed_means.mean(), scale=stats.sem(seed_means))
    assert (result.low, result.high) == pytest.approx(reference, abs=0.01)


def test_seeds_with_the_same_answers_count_as_one() -> None:
    one = difference(*answers(0.9, 0.8, seeds=1))
    three = difference(*np.repeat(answers(0.9, 0.8, seeds=1), 3, axis=1))
    assert (three.low, three.high) == pytest.approx((one.low, one.high))
    assert three.seeds == 3


def test_other_images_for_each_seed_count_as_more_images() -> None:
    """Folds: every image is seen by one seed only, and the seeds do not differ."""
    correct = np.random.default_rng(1).random((2, 300)) < np.array([[0.9], [0.8]])
    folds = np.full((2, 3, 300), np.nan)
    for seed in range(3):
        folds[:, seed, seed::3] = correct[:, seed::3]
    result, pooled = difference(*folds), difference(*correct[:, None])
    assert result.mean == pytest.approx(pooled.mean)
    assert result.images == 300
    assert result.standard_error == pytest.approx(pooled.standard_error, rel=0.3)
    assert result.standard_error < difference(*correct[:, None, :100]).standard_error


def test_only_images_that_both_recipes_saw_count() -> None:
    first, second = answers(0.9, 0.8, images=50)
    padded = np.full((2, 4, 60), np.nan)
    padded[0, :3, :50], padded[1, :3, :50] = first, second
    padded[0, :, 50:55], padded[1, :3, 55:] = 1, 0
    assert difference(*padded) == difference(first, second)


@pytest.mark.parametrize(("seeds", "images"), [(1, 1), (1, 40), (3, 40)])
def test_recipes_with_the_same_answers_differ_by_at_most_about_three_images(seeds: int, images: int) -> None:
    result = difference(np.ones((seeds, images)), np.ones((seeds, images)))
    assert (result.mean, result.probability) == (0, 0.5)
    assert result.high == -result.low == pytest.approx(min(stats.norm.ppf(0.975) * np.sqrt(2) / images, 1))


def test_swapped_recipes_have_the_opposite_difference() -> None:
    one, other = answers(0.9, 0.84)
    forward, backward = difference(one, other), difference(other, one)
    assert (forward.mean, forward.low, forward.high) == pytest.approx((-backward.mean, -backward.high, -backward.low))
    assert forward.probability == pytest.approx(1 - backward.probability)


def test_the_interval_widens_with_the_confidence() -> None:
    first, second = answers(0.9, 0.84)
    narrow, wide = (difference(first, second, confidence) for confidence in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_two_recipes_are_compared_as_by_their_difference() -> None:
    correct = answers(0.9, 0.86)
    first, second = compare_with_best(correct, ["a", "b"]).values()
    expected = difference(*correct)
    assert (first.mean, first.low, first.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert (second.mean, second.low, second.high) == pytest.approx((-expected.mean, -expected.high, -expected.low))


def test_a_clearly_better_recipe_is_alone_at_rank_1() -> None:
    result = compare_with_best(answers(0.7, 0.95, 0.72), ["a", "b", "c"])
    assert [name for name in result if result[name].tied] == ["b"]
    assert result["b"].mean == pytest.approx(0.23)
    assert 0 < result["b"].low < 0.23 < result["b"].high
    assert max(result["a"].high, result["c"].high) <= 0
    assert result["b"].probability > 0.999


def test_recipes_that_may_be_the_best_are_tied() -> None:
    result = compare_with_best(answers(0.9, 0.895, 0.6), ["a", "b", "c"])
    assert {name: comparison.tied for name, comparison in result.items()} == {"a": True, "b": True, "c": False}
    assert result["a"].low < 0 < result["a"].high
    assert result["b"].low < 0 < result["b"].high
    assert result["c"].high < 0
    assert sum(comparison.probability for comparison in result.values()) == pytest.approx(1)


def test_identical_recipes_are_tied_with_equal_chances() -> None:
    result = compare_with_best(np.ones((4, 3, 50)), ["a", "b", "c", "d"])
    assert all(comparison.tied and comparison.mean == 0 for comparison in result.values())
    assert [comparison.probability for comparison in result.values()] == pytest.approx([0.25] * 4, abs=0.02)


def test_a_recipe_is_within_the_margin_if_its_interval_ends_above_it() -> None:
    correct = answers(0.9, 0.9, images=5000, shift=0)
    correct[1, :, :5] = 1
    assert compare_with_best(correct, ["a", "b"], margin=0.01)["a"].within_margin
    assert not compare_with_best(correct, ["a", "b"], margin=0.0001)["a"].within_margin


def test_more_rivals_widen_the_intervals() -> None:
    correct = answers(0.9, 0.9, 0.9, 0.9, 0.9)
    few, many = (compare_with_best(correct[:count], list("abcde")[:count])["a"] for count in (2, 5))
    assert many.low < few.low


def test_a_single_recipe_has_nothing_to_be_compared_with() -> None:
    result = compare_with_best(answers(0.9), ["a"])["a"]
    assert (result.tied, result.probability) == (True, 1)
    assert np.isnan([result.mean, result.low, result.high]).all()


def test_the_same_answers_give_the_same_comparison() -> None:
    correct = answers(0.9, 0.88, 0.87)
    assert compare_with_best(correct, ["a", "b", "c"]) == compare_with_best(correct, ["a", "b", "c"])


def test_eight_recipes_on_ten_thousand_images_take_less_than_two_seconds() -> None:
    correct = simulate(np.random.default_rng(0), (0.9,) * 8, 10_000, 0.1, seeds=5)
    start = perf_counter()
    compare_with_best(correct, list("abcdefgh"))
    assert perf_counter() - start < 2


def test_unusable_answers_are_refused_with_the_reason() -> None:
    one = np.ones((3, 10))
    apart = np.full((2, 2, 10), np.nan)
    apart[0, 0], apart[1, 1] = 1, 1
    with pytest.raises(ValueError, match=r"same shape .* got \(3, 10\) and \(2, 10\)"):
        difference(one, one[:2])
    with pytest.raises(ValueError, match="the two recipes have no image that both saw"):
        difference(*apart)
    with pytest.raises(ValueError, match="a and b have no image that both saw"):
        compare_with_best(apart, ["a", "b"])
    with pytest.raises(ValueError, match=r"shape \[recipes, seeds, images\].* got \(3, 10\)"):
        compare_with_best(one, ["a"])
    with pytest.raises(ValueError, match="must hold 1 for a correct prediction"):
        difference(one, one / 2)
    with pytest.raises(ValueError, match="2 distinct names"):
        compare_with_best(answers(0.9, 0.8), ["a", "a"])
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1, got 95"):
        difference(one, one, confidence=95)
    with pytest.raises(ValueError, match="margin must be at least 0, got -1"):
        compare_with_best(answers(0.9, 0.8), ["a", "b"], margin=-1)


@pytest.mark.slow
def test_of_200_sweeps_with_equally_good_finalists_at_most_10_announce_a_single_winner() -> None:
    rng = np.random.default_rng(0)
    announced = 0
    for sweep in range(200):
        recipes = 3 + sweep % 6
        images, spread = (153, 746, 2000)[sweep % 3], (0.0, 0.1, 0.2, 0.3)[sweep % 4]
        correct = simulate(rng, (0.9,) * recipes, images, spread, shared=sweep % 2 == 1)
        comparisons = compare_with_best(correct, [str(i) for i in range(recipes)]).values()
        announced += sum(comparison.tied for comparison in comparisons) == 1
    assert announced <= 10


@pytest.mark.slow
@pytest.mark.parametrize("seed_spread", [0.1, 0.3])
def test_two_equally_good_recipes_ahead_of_others_are_rarely_called_a_single_winner(seed_spread: float) -> None:
    """The least favourable case: with more equally good recipes, a lead over all of them is rarer."""
    rng = np.random.default_rng(0)
    announced = 0
    for _ in range(200):
        result = compare_with_best(simulate(rng, (0.9, 0.9, 0.8), 746, seed_spread), ["a", "b", "c"])
        announced += sum(comparison.tied for comparison in result.values()) == 1
    assert announced <= 16  # 5% of 200, and two standard errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed_spread", "shared", "sweeps_alone"), [(0.1, True, 90), (0.3, True, 70), (0.1, False, 50)]
)
def test_a_recipe_that_is_3_points_better_is_alone_at_rank_1(
    seed_spread: float, shared: bool, sweeps_alone: int
) -> None:
    """If seeds are good or bad for each recipe by itself, three of them say less."""
    rng = np.random.default_rng(0)
    alone = 0
    for _ in range(100):
        correct = simulate(rng, (0.9, 0.87, 0.87), 2000, seed_spread, shared=shared)
        result = compare_with_best(correct, ["a", "b", "c"])
        alone += [name for name in result if result[name].tied] == ["a"]
    assert alone >= sweeps_alone


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_of_differences_cover_93_to_97_percent(seeds: int) -> None:
    """On average; for a single size of the seed effects, it is 92 to 98%."""
    rng = np.random.default_rng(0)
    conditions = [(0.0, False), (0.1, False), (0.3, False), (0.3, True)]
    covered = np.zeros(len(conditions))
    for sweep in range(2000):
        seed_spread, shared = conditions[sweep % 4]
        result = difference(*simulate(rng, (0.9, 0.87), 1000, seed_spread, seeds=seeds, shared=shared))
        covered[sweep % 4] += result.low <= 0.03 <= result.high
    assert 0.93 <= covered.sum() / 2000 <= 0.97
    assert (covered / 500 >= 0.91).all()  # 92 and 98%, and one standard error
    assert (covered / 500 <= 0.99).all()


@pytest.mark.slow
def test_all_comparisons_with_the_best_hold_at_once() -> None:
    rng = np.random.default_rng(0)
    names, accuracies = ["a", "b", "c", "d"], (0.9, 0.89, 0.87, 0.85)
    truth = {name: accuracy - (0.89 if name == "a" else 0.9) for name, accuracy in zip(names, accuracies, strict=True)}
    held = 0
    for sweep in range(300):
        result = compare_with_best(simulate(rng, accuracies, 1000, (0.1, 0.3)[sweep % 2]), names)
        held += all(result[name].low <= truth[name] <= result[name].high for name in names)
    assert held >= 279  # 93%


def test_the_detectable_difference_of_one_seed_is_that_of_a_t_test() -> None:
    first, second = answers(0.9, 0.84, seeds=1)
    result = difference(first, second)
    expected = (stats.t.ppf(0.975, 199) + stats.t.ppf(0.8, 199)) * result.standard_error
    assert outlook(first, second).detectable == pytest.approx(expected)
    assert outlook(first, second).seeds is None


def test_as_many_images_as_the_outlook_asks_for_settle_the_difference() -> None:
    first, second = answers(0.9, 0.88, seeds=1)
    images = outlook(first, second).images
    assert images is not None
    assert images > 200
    times = images / 200
    assert difference(np.tile(first, int(times) + 1), np.tile(second, int(times) + 1)).low > 0
    assert difference(np.tile(first, int(times) // 2), np.tile(second, int(times) // 2)).low < 0


def test_a_settled_difference_needs_nothing_more_and_equal_recipes_nothing_within_reach() -> None:
    settled, equal = outlook(*answers(0.95, 0.6)), outlook(*answers(0.9, 0.9, shift=0))
    assert (settled.images, settled.seeds) == (200, 3)
    assert (equal.images, equal.seeds) == (None, None)


def test_more_images_do_not_settle_what_depends_on_the_seed() -> None:
    first, second = np.zeros((3, 4000)), np.zeros((3, 4000))
    for seed, count in enumerate((1600, 2400, 200)):
        first[seed, :count] = 1
    result = outlook(first, second)
    assert result.images is None
    assert result.seeds is not None
    assert 3 < result.seeds < 20


def test_finalists_with_different_numbers_of_seeds_are_judged_by_the_seeds_that_they_share() -> None:
    chance = np.random.default_rng(0)
    images, seeds = 1000, 6
    levels = np.array([0.9, 0.88, 0.88])[:, None, None] - np.array([0, 0, 0, 0.06, 0.06, 0.06])[None, :, None]
    correct = (chance.random((1, 1, images)) < levels).astype(float)  # the last three seeds are harder
    assert correct.shape == (3, seeds, images)
    correct[1:, 3:] = np.nan  # and only the first recipe ran on them
    compared = compare_with_best(correct, ["a", "b", "c"])
    assert compared["a"].low > 0
    assert compared["a"].probability > 0.9
    assert compared["b"].probability < 0.1
