"""Compare recipes that were evaluated on the same images and seeds by their differences.

Finalists see the same images and the same random draws, so an image or a seed that is hard for one is hard for the
others. The difference of two recipes is much more certain than their separate intervals suggest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_DRAWS = 20_000  # bootstrap draws: the critical value then varies by less than 1% from one random state to another
_MIN_DISCORDANT = 2  # images that disagree, one each way, in the smallest variance of a difference
_FLOOR = 0.8  # smallest variance, relative to that of the images alone: less is an accident of few seeds
_MAX_FACTOR = 100  # more images or seeds than this are out of reach
_NORMAL = 1e7  # degrees of freedom at which Student's t distribution is the normal one
_EXPECTED = 0.2  # part of the variance by chance that does not count as due to seeds in the degrees of freedom


@dataclass(frozen=True)
class Difference:
    """Accuracy of one recipe minus that of another, in [-1, 1], with its interval."""

    mean: float
    low: float
    high: float
    probability: float
    """Confidence that the first recipe is better: 1 minus the one-sided p-value, 0.5 for equal means."""
    standard_error: float
    degrees_of_freedom: float
    """Of Student's t distribution behind the interval."""
    images: int
    """Number of distinct images that both recipes saw."""
    seeds: int
    """Number of seeds with images that both recipes saw."""


@dataclass(frozen=True)
class Outlook:
    """What a comparison like this one can show, and what would settle it."""

    detectable: float
    """Smallest true difference that is found, at 95% confidence, in 80% of such comparisons."""
    images: int | None
    """Number of images at which an interval around the same difference would exclude 0; None if no more than a hundred
    times as many would do."""
    seeds: int | None
    """Number of seeds, at most a hundred, at which it would; None also if one seed cannot tell how much they vary."""


@dataclass(frozen=True)
class BestComparison:
    """Accuracy of one recipe minus that of the best of the others, with its simultaneous interval."""

    mean: float
    low: float
    high: float
    tied: bool
    """Whether the recipe may be the best. Several tied recipes share rank 1; if there is only one, it is better than
    all others, and its interval does not go below 0."""
    within_margin: bool
    """Whether the recipe is shown to be worse than the best by at most the margin."""
    probability: float
    """Share of the bootstrap draws in which the recipe is the best."""


def difference(correct_a: ArrayLike, correct_b: ArrayLike, confidence: float = 0.95) -> Difference:
    """Compare two recipes on the images and seeds that both saw.

    The interval aims to cover the difference that the two recipes would have with other seeds on other images from the
    same source. Its variance has a component of the images, clustered by image, and one of the seeds. Satterthwaite
    (1946) gives the degrees of freedom, as very few seeds are behind the second. With one seed, the result is that of
    the paired t-test over the images and covers only the sampling of images.

    The variance is at least that of two images that disagree, one each way. Recipes with the same answers on all images
    therefore differ by at most about 3 images.

    >>> result = difference([[1, 1, 1, 0, 1, 1, 1, 1]], [[1, 0, 1, 0, 0, 1, 0, 1]])
    >>> [round(value, 3) for value in (result.mean, result.low, result.high, result.probability)]
    [0.375, -0.058, 0.808, 0.96]

    Args:
        correct_a: shape [seeds, images], 1 for a correct prediction, 0 for a wrong one, and NaN for an image that the
            seed did not see.
        correct_b: the same for the other recipe.
        confidence: coverage of the interval, in (0, 1).

    Raises:
        ValueError: the shapes differ, a value is not 0, 1 or NaN, or no image was seen by both recipes with one seed.
    """
    first, second = np.asarray(correct_a, dtype=float), np.asarray(correct_b, dtype=float)
    if first.shape != second.shape:
        raise ValueError(f"both recipes need the same shape [seeds, images], got {first.shape} and {second.shape}")
    correct = _checked(np.stack([first, second]), confidence)
    pair = _pair(correct[0] - correct[1], "the two recipes")
    error, freedom = pair.standard_error(pair.between_seeds, pair.seeds - 1)
    half_width = float(_t_quantile((1 + confidence) / 2, freedom)) * error
    return Difference(
        mean=pair.mean,
        low=max(-1.0, pair.mean - half_width),
        high=min(1.0, pair.mean + half_width),
        probability=_t_probability(pair.mean / error, freedom),
        standard_error=error,
        degrees_of_freedom=freedom,
        images=pair.images,
        seeds=pair.seeds,
    )


def outlook(correct_a: ArrayLike, correct_b: ArrayLike, confidence: float = 0.95, power: float = 0.8) -> Outlook:
    """Estimate the smallest detectable difference, and the images or seeds that would settle a difference.

    Args:
        correct_a: as in `difference`.
        correct_b: as in `difference`.
        confidence: coverage of the interval, in (0, 1).
        power: share of comparisons that find the smallest detectable difference, in (0, 1).

    Raises:
        ValueError: as in `difference`.
    """
    first, second = np.asarray(correct_a, dtype=float), np.asarray(correct_b, dtype=float)
    correct = _checked(np.stack([first, second]), confidence)
    pair = _pair(correct[0] - correct[1], "the two recipes")
    error, freedom = pair.standard_error(pair.between_seeds, pair.seeds - 1)
    level = (1 + confidence) / 2
    detectable = float(_t_quantile(level, freedom) + _t_quantile(power, freedom)) * error

    def settles(larger: _Pair) -> bool:
        error, freedom = larger.standard_error(larger.between_seeds, larger.seeds - 1)
        return abs(pair.mean) > float(_t_quantile(level, freedom)) * error

    factors = np.geomspace(1, _MAX_FACTOR, 200)
    images = next((round(pair.images * factor) for factor in factors if settles(pair.with_images(factor))), None)
    counts = range(pair.seeds, _MAX_FACTOR + 1) if pair.seeds > 1 else ()
    seeds = next((count for count in counts if settles(pair.with_seeds(count))), None)
    return Outlook(min(detectable, 1.0), images, seeds)


def compare_with_best(
    correct: ArrayLike, names: Sequence[str], confidence: float = 0.95, margin: float = 0.01
) -> dict[str, BestComparison]:
    """Compare each recipe with the best of the others (Hsu, 1984; Edwards and Hsu, 1983).

    The intervals aim to hold all at once with the given confidence. Their critical value comes from a max-T bootstrap
    of the errors due to images and seeds, with Gaussian multipliers (Chernozhukov, Chetverikov and Kato, 2013). Each
    pair has the variance of `difference`, except that its seed component is the mean over all pairs: alone, it rests on
    very few seeds. Only a pair that varies clearly more with the seed has its own. With two recipes, the intervals are
    those of `difference`.

    A recipe that is not the best is called the single best in at most about 1 - confidence of all sweeps.

    Args:
        correct: shape [recipes, seeds, images], 1 for a correct prediction, 0 for a wrong one, and NaN for an image
            that the seed did not see.
        names: distinct names of the recipes.
        confidence: of all intervals together, in (0, 1).
        margin: difference in accuracy that does not matter in practice, at least 0.

    Returns:
        The comparisons by name, in the order of `names`. The difference of a single recipe is NaN.

    Raises:
        ValueError: the names do not match the array, a value is not 0, 1 or NaN, or two recipes share no image.
    """
    correct = _checked(np.asarray(correct, dtype=float), confidence)
    recipes = len(correct)
    if len(names) != recipes or len(set(names)) != recipes:
        raise ValueError(f"names must be {recipes} distinct names, one per recipe, got {list(names)}")
    if not margin >= 0:
        raise ValueError(f"margin must be at least 0, got {margin}")
    if recipes == 1:
        return {names[0]: BestComparison(np.nan, np.nan, np.nan, tied=True, within_margin=True, probability=1.0)}

    indices = list(combinations(range(recipes), 2))
    pairs = [_pair(correct[i] - correct[j], f"{names[i]} and {names[j]}") for i, j in indices]
    pooled = sum(pair.between_seeds for pair in pairs) / len(pairs)
    seeds = min(pair.seeds for pair in pairs)
    seed_freedom = (recipes - 1) * (seeds - 1)
    means, errors = np.zeros((recipes, recipes)), np.zeros((recipes, recipes))
    freedoms = np.full((recipes, recipes), np.inf)
    for (i, j), pair in zip(indices, pairs, strict=True):
        error, freedom = pair.standard_error(max(pooled, pair.lower_bound_between_seeds()), seed_freedom)
        means[i, j], means[j, i] = pair.mean, -pair.mean
        errors[i, j] = errors[j, i] = error
        freedoms[i, j] = freedoms[j, i] = freedom

    freedom = float(freedoms.min())
    chance = sum(pair.chance for pair in pairs) / len(pairs)
    covariance = _covariance(correct, max(pooled - chance, 0.0) / 2 * pairs[0].concentration)
    draws = _t_draws(covariance, freedom)
    level = 1 - confidence if recipes == 2 else _level_per_pair(draws, covariance, freedom, confidence)
    single, joint = (_t_quantile(1 - alpha / 2, freedoms) * errors for alpha in (1 - confidence, level))
    low, high, tied = _intervals(means, single, joint)
    mean = np.min(means, axis=1, where=~np.eye(recipes, dtype=bool), initial=1.0)
    # Levels from paired differences: means over each recipe's own seeds would compare different seeds and images.
    winners = np.argmax(means.mean(axis=1) + draws, axis=1)
    probability = np.bincount(winners, minlength=recipes) / len(draws)
    return {
        name: BestComparison(
            float(mean[i]), float(low[i]), float(high[i]), bool(tied[i]), bool(low[i] >= -margin), float(probability[i])
        )
        for i, name in enumerate(names)
    }


def _checked(correct: Array, confidence: float) -> Array:
    """Return the array after checking its shape and values."""
    if correct.ndim != 3 or 0 in correct.shape:
        raise ValueError(f"correct must have the shape [recipes, seeds, images], none of them 0, got {correct.shape}")
    if not (np.isnan(correct) | (correct == 0) | (correct == 1)).all():
        raise ValueError("correct must hold 1 for a correct prediction, 0 for a wrong one and NaN for none")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    return correct


@dataclass(frozen=True)
class _Pair:
    """Mean difference of two recipes, and the components of its variance."""

    mean: float
    images: int
    seeds: int
    image_variance: float
    """Variance of the mean due to the sampling of images and to chance in single predictions."""
    between_seeds: float
    """Variance between the means of single seeds; 0 with one seed."""
    chance: float
    """Part of `between_seeds` that is expected if the seeds do not matter."""
    concentration: float
    """Sum of the squared weights of the seeds in the mean: 1 / seeds if all saw the same number of images."""

    def with_images(self, factor: float) -> _Pair:
        """Return what is expected with this many times as many images."""
        chance = self.chance / factor
        return replace(
            self,
            images=round(self.images * factor),
            image_variance=self.image_variance / factor,
            between_seeds=max(self.between_seeds - self.chance, 0.0) + chance,
            chance=chance,
        )

    def with_seeds(self, seeds: int) -> _Pair:
        """Return what is expected with this many seeds, on the same images."""
        concentration = self.concentration * self.seeds / seeds
        of_images = max(self.image_variance - self.chance * self.concentration, 0.0)
        return replace(
            self,
            seeds=seeds,
            concentration=concentration,
            image_variance=of_images + self.chance * concentration,
        )

    def lower_bound_between_seeds(self) -> float:
        """Lower bound of the true variance behind `between_seeds`, at a confidence of 75%."""
        freedom = self.seeds - 1
        if freedom == 0:
            return 0.0
        from scipy import special

        return float(self.between_seeds * freedom / special.chdtri(freedom, 0.25))

    def standard_error(self, between_seeds: float, seed_freedom: int) -> tuple[float, float]:
        """Return the standard error of the mean and its degrees of freedom.

        Satterthwaite's degrees of freedom square the share of the variance that is due to the seeds. Estimated from a
        few seeds, that share is too often too small by chance, so the exponent is lower for few degrees of freedom. It,
        `_FLOOR` and `_EXPECTED` were fixed by simulation: 95% intervals cover the truth in about 93 to 97% of sweeps
        with three seeds, whether the seeds matter or not.

        Args:
            between_seeds: variance between the means of single seeds.
            seed_freedom: degrees of freedom of `between_seeds`; 0 with one seed.
        """
        chance, from_seeds = self.chance * self.concentration, between_seeds * self.concentration
        floor = max(_FLOOR * self.image_variance, _MIN_DISCORDANT / self.images**2)
        variance = max(self.image_variance + from_seeds - chance, floor)  # chance is part of both components
        uncertainty = (self.image_variance / variance) ** 2 / max(self.images - 1, 1)
        if seed_freedom > 0:
            share = min(max(from_seeds - _EXPECTED * chance, 0.0) / variance, 1.0)
            uncertainty += share ** max(2 - 2 / seed_freedom, 1.0) / seed_freedom
        return float(np.sqrt(variance)), 1 / uncertainty if uncertainty > 0 else np.inf


def _t_quantile(level: float, freedom: ArrayLike) -> Array:
    """Quantile of Student's t distribution."""
    from scipy import special  # takes a fifth of a second: only where recipes are compared

    return np.asarray(special.stdtrit(np.minimum(freedom, _NORMAL), level))


def _t_probability(value: float, freedom: float) -> float:
    """Probability that Student's t distribution gives at most `value`."""
    from scipy import special

    return float(special.stdtr(min(freedom, _NORMAL), value))


def _pair(delta: Array, recipes: str) -> _Pair:
    """Summarize the differences of two recipes, shape [seeds, images]."""
    seen = ~np.isnan(delta)
    if not seen.any():
        raise ValueError(f"{recipes} have no image that both saw with the same seed, so they cannot be compared")
    delta, seen = delta[seen.any(axis=1)], seen[seen.any(axis=1)]
    delta, seen = delta[:, seen.any(axis=0)], seen[:, seen.any(axis=0)]
    seeds, images = delta.shape
    mean = float(delta[seen].mean())
    by_image = np.where(seen, delta - mean, 0).sum(axis=0) / seen.sum()
    image_variance = float(np.sum(by_image**2)) * images / max(images - 1, 1)
    counts = seen.sum(axis=1)
    concentration = float(np.sum(counts**2)) / float(counts.sum()) ** 2
    if seeds == 1:
        return _Pair(mean, images, seeds, image_variance, 0.0, 0.0, concentration)
    means = np.nansum(delta, axis=1) / counts
    errors = np.where(seen, delta - means[:, None], 0) / counts[:, None]
    products = errors @ errors.T  # covariances of the means: images that two seeds share do not set them apart
    own = float(np.trace(products))
    chance = own / seeds - (float(products.sum()) - own) / (seeds * (seeds - 1))
    return _Pair(mean, images, seeds, image_variance, float(means.var(ddof=1)), max(chance, 0.0), concentration)


def _covariance(correct: Array, seed_variance: float) -> Array:
    """Covariance of the errors of the mean accuracies, shape [recipes, recipes].

    Args:
        correct: shape [recipes, seeds, images].
        seed_variance: variance of each mean due to its seeds.
    """
    recipes, _, images = correct.shape
    seen = ~np.isnan(correct)
    centred = np.where(seen, correct - np.nanmean(correct, axis=(1, 2), keepdims=True), 0)
    by_image = centred.sum(axis=1) / seen.sum(axis=(1, 2))[:, None]
    # The smallest variance of a difference, as in `_Pair.standard_error`, keeps identical recipes from a spread of 0.
    covariance: Array = by_image @ by_image.T + (seed_variance + _MIN_DISCORDANT / 2 / images**2) * np.eye(recipes)
    return covariance


def _t_draws(covariance: Array, freedom: float) -> Array:
    """Draw errors of the means from a multivariate t distribution, shape [draws, recipes]."""
    rng = np.random.default_rng(0)
    values, vectors = np.linalg.eigh(covariance)
    normal: Array = rng.standard_normal((_DRAWS, len(covariance))) @ (vectors * np.sqrt(np.maximum(values, 0))).T
    return normal if np.isinf(freedom) else normal / np.sqrt(rng.chisquare(freedom, (_DRAWS, 1)) / freedom)


def _level_per_pair(draws: Array, covariance: Array, freedom: float, confidence: float) -> float:
    """Return the error rate per pair at which all comparisons with the best hold at once.

    Whichever recipe is the best, its differences to all others have to be covered (Dunnett, 1955), with one error rate
    for all of them.
    """
    variances = np.diag(covariance)
    errors = np.sqrt(variances[:, None] + variances - 2 * covariance)
    quantiles = []
    for best in range(len(covariance)):
        others = np.arange(len(covariance)) != best
        scores = np.abs(draws[:, others] - draws[:, [best]]) / errors[best, others]
        quantiles.append(float(np.quantile(scores.max(axis=1), confidence)))
    return 2 * _t_probability(-max(quantiles), freedom)


def _intervals(means: Array, single: Array, joint: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Return the ends of the simultaneous intervals, and which recipes may be the best.

    Suppose that the differences of the best recipe to the others lie in their intervals. Then the best is among those
    that no other one is shown to beat, and the difference of a recipe to the best lies between the lowest and the
    highest end over all that may be the best.

    Args:
        means: shape [recipes, recipes], differences of each recipe to each other one.
        single: the same shape, half the width of the interval of one difference.
        joint: the same shape, half the widths if all differences of a recipe have to be covered.
    """
    itself = np.eye(len(means), dtype=bool)
    # To be better than the best of the others is to be better than each of them. Every comparison may then have the
    # full error rate (intersection-union test; Berger, 1982).
    ahead = np.where(itself, np.inf, means - single).min(axis=1)
    if (ahead > 0).any():
        best = int(np.argmax(ahead))
        low, high = means[:, best] - joint[:, best], np.minimum(means[:, best] + joint[:, best], 0.0)
        low[best], high[best] = ahead[best], np.where(itself, np.inf, means + joint)[best].min()
        return np.maximum(low, -1.0), np.minimum(high, 1.0), itself[best]
    lows, highs = np.where(itself, np.inf, means - joint), np.where(itself, np.inf, means + joint)
    tied = np.asarray((highs >= 0).all(axis=1))
    if not tied.any():  # the differences form a circle, which is possible only if pairs share different images
        tied[:] = True
    low, high = np.empty(len(means)), np.empty(len(means))
    for i in range(len(means)):
        rivals = tied & ~itself[i]
        low[i] = min(lows[i].min() if tied[i] else np.inf, lows[i, rivals].min(initial=np.inf))
        high[i] = max(highs[i].min() if tied[i] else -1.0, highs[i, rivals].max(initial=-1.0))
    high[~tied] = np.minimum(high[~tied], 0.0)
    return np.maximum(low, -1.0), np.minimum(high, 1.0), tied
