"""LogME and a linear probe, each compared with a slow computation of the same quantity."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from xfer.measure.transferability import (
    RIDGE_PENALTIES,
    LinearProbe,
    logme,
    paired_difference,
    probe_accuracy,
    stratified_folds,
)


def clouds(n=60, d=8, classes=3, apart=2.0, seed=0):
    """Features [n, d] around one centre per class, and labels [n]."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return generator.normal(size=(classes, d))[labels] * apart + generator.normal(size=(n, d)) + 0.5, labels


def shuffled(labels, seed=1):
    return np.random.default_rng(seed).permutation(labels)


# LogME


def slow_logme(features, labels):
    """The evidence by definition, y ~ N(0, I / beta + F F' / alpha), maximised by a general optimiser."""
    n = len(features)
    gram = features @ features.T

    def loss(logs, y):
        covariance = np.eye(n) * np.exp(-logs[1]) + gram * np.exp(-logs[0])
        return 0.5 * (n * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + y @ np.linalg.solve(covariance, y)) / n

    best = []
    for label in np.unique(labels):
        y = (labels == label).astype(float)
        results = [
            minimize(loss, start, args=(y,), method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-9})
            for start in ((0, 0), (4, 2))
        ]
        best.append(-min(result.fun for result in results))
    return np.mean(best)


@pytest.mark.parametrize(("n", "d"), [(40, 5), (30, 30), (24, 60)], ids=["more images", "as many", "more features"])
@pytest.mark.parametrize("apart", [0.3, 1.0])
def test_logme_is_the_maximum_evidence(n, d, apart):
    features, labels = clouds(n, d, apart=apart)
    assert logme(features, labels) == pytest.approx(slow_logme(features, labels), abs=1e-4)


def test_logme_of_linearly_dependent_features_is_the_maximum_evidence():
    features, labels = clouds(40, 4)
    features = np.hstack([features, features @ np.ones((4, 3)), np.zeros((40, 1))])
    assert logme(features, labels) == pytest.approx(slow_logme(features, labels), abs=1e-4)


@pytest.mark.parametrize("d", [6, 90])
def test_logme_is_invariant_to_image_order_class_names_and_basis(d):
    features, labels = clouds(d=d)
    expected = logme(features, labels)
    order = np.random.default_rng(2).permutation(len(labels))
    basis = np.linalg.qr(np.random.default_rng(3).normal(size=(d, d)))[0]
    assert logme(features[order], labels[order]) == pytest.approx(expected, abs=1e-6)
    assert logme(features, 7 - 2 * labels) == pytest.approx(expected, abs=1e-6)
    assert logme(1000 * features @ basis, labels) == pytest.approx(expected, abs=1e-6)
    assert logme(features.astype(np.float32), labels) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("d", [6, 90])
def test_logme_prefers_features_that_separate_the_classes(d):
    labels = clouds(d=d)[1]
    scores = [logme(clouds(d=d, apart=apart)[0], labels) for apart in (0.2, 1.0, 5.0)]
    assert scores == sorted(scores)
    features = clouds(d=d)[0]
    assert logme(features, labels) > logme(features, shuffled(labels)) + 0.1


def test_logme_is_finite_for_perfect_and_for_uninformative_features():
    labels = np.arange(20) % 2
    assert np.isfinite(logme(np.eye(2)[labels], labels))
    assert np.isfinite(logme(np.eye(20), labels))
    assert logme(np.eye(2)[labels], labels) > 5
    assert logme(np.arange(20.0)[:, None] % 3, labels) < 0


# The probe


def slow_probe(features, labels, folds, seed):
    """The same, with each fold's classifier and intercept fitted to the other folds."""
    x = (features - features.mean(axis=0)) / features.std(axis=0)
    n, d = x.shape
    fold_of = stratified_folds(labels, folds, seed)
    hits, errors = np.zeros((len(RIDGE_PENALTIES), n), bool), np.zeros((len(RIDGE_PENALTIES), n))
    one_hot = np.eye(labels.max() + 1)[labels]
    design = np.hstack([np.ones((n, 1)), x])
    for row, penalty in enumerate(RIDGE_PENALTIES):
        ridge = penalty * n * np.diag([0.0, *np.ones(d)])
        for fold in range(folds):
            held = fold_of == fold
            design_kept = design[~held]
            weights = np.linalg.solve(design_kept.T @ design_kept + ridge, design_kept.T @ one_hot[~held])
            scores = design[held] @ weights
            hits[row, held] = scores.argmax(axis=1) == labels[held]
            errors[row, held] = np.square(scores - one_hot[held]).sum(axis=1)
    best = [errors[:, fold_of != fold].sum(axis=1).argmin() for fold in range(folds)]
    return hits[np.array(best)[fold_of], np.arange(n)]


@pytest.mark.parametrize(("n", "d", "apart"), [(60, 7, 0.6), (50, 80, 0.15)])
@pytest.mark.parametrize("folds", [2, 5])
def test_the_probe_predicts_like_classifiers_fitted_without_the_fold(n, d, apart, folds):
    features, labels = clouds(n, d, apart=apart)
    probe = probe_accuracy(features, labels, folds, seed=4)
    expected = slow_probe(features, labels, folds, seed=4)
    assert 0.4 < expected.mean() < 0.95
    assert probe.correct.tolist() == expected.tolist()
    assert probe.folds == folds


@pytest.mark.parametrize("d", [8, 200])
def test_the_probe_is_perfect_on_separated_classes_and_at_chance_on_shuffled_labels(d):
    features, labels = clouds(150, d, apart=6)
    assert probe_accuracy(features, labels).accuracy == 1
    accuracies = [probe_accuracy(features, shuffled(labels, seed)).accuracy for seed in range(5)]
    assert np.mean(accuracies) == pytest.approx(1 / 3, abs=0.08)


def test_the_probe_is_invariant_to_feature_scales_and_constant_features():
    features, labels = clouds(apart=0.7)
    changed = np.hstack([features * 10.0 ** np.arange(-3, 5), np.full((len(features), 1), 7.0)])
    assert probe_accuracy(changed, labels).correct.tolist() == probe_accuracy(features, labels).correct.tolist()


def test_folds_depend_on_the_seed_and_are_stratified():
    labels = np.repeat([0, 1, 2], [50, 20, 7])
    fold_of = stratified_folds(labels, 5, seed=0)
    assert (
        fold_of.tolist() == stratified_folds(labels, 5, seed=0).tolist() != stratified_folds(labels, 5, seed=1).tolist()
    )
    for label, count in enumerate([50, 20, 7]):
        sizes = np.bincount(fold_of[labels == label], minlength=5)
        assert sizes.sum() == count
        assert sizes.max() - sizes.min() <= 1
    assert np.ptp(np.bincount(fold_of)) <= 1


def test_small_classes_reduce_the_number_of_folds():
    features, labels = clouds(9, classes=3)
    assert probe_accuracy(features, labels).folds == 3


def test_the_standard_error_is_that_of_a_proportion_and_never_0():
    many = LinearProbe(np.arange(1000) % 4 > 0, 5)
    assert many.accuracy == 0.75
    assert many.standard_error == pytest.approx(np.sqrt(0.75 * 0.25 / 1000), rel=0.01)
    assert 0.05 < LinearProbe(np.ones(10, bool), 5).standard_error < 0.1


def test_probes_are_compared_image_by_image():
    one, other = np.ones(100, bool), np.ones(100, bool)
    one[:2], other[:12] = False, False
    gain, error = paired_difference(LinearProbe(one, 5), LinearProbe(other, 5))
    assert gain == pytest.approx(0.1)
    # They differ on ten images, all in one direction: the standard deviation is about sqrt(10) images.
    assert error == pytest.approx(np.sqrt(10 * 0.9) / 100, rel=0.15)
    assert paired_difference(LinearProbe(one, 5), LinearProbe(one, 5))[0] == 0
    assert paired_difference(LinearProbe(one, 5), LinearProbe(one, 5))[1] > 0
    # Ten of twelve errors are avoided: more than two thirds of them, less than nine tenths.
    assert paired_difference(LinearProbe(one, 5), LinearProbe(other, 5), share=2 / 3)[0] == pytest.approx(0.1 - 0.08)
    assert paired_difference(LinearProbe(one, 5), LinearProbe(other, 5), share=0.9)[0] < 0
    with pytest.raises(ValueError, match="got 100 and 3 images"):
        paired_difference(LinearProbe(one, 5), LinearProbe(one[:3], 5))


@pytest.mark.parametrize("score", [logme, probe_accuracy])
def test_features_that_cannot_be_scored_are_refused(score):
    features, labels = clouds()
    with pytest.raises(ValueError, match=r"\(60, 8\) and \(59,\)"):
        score(features, labels[:-1])
    with pytest.raises(ValueError, match="must be finite, .* weights fit"):
        score(np.where(features > 3, np.nan, features), labels)
    with pytest.raises(ValueError, match="at least 2 classes"):
        score(features, np.zeros_like(labels))
    with pytest.raises(ValueError, match="must differ between images, but all are the same"):
        score(np.ones_like(features), labels)


def test_a_probe_needs_two_folds_and_two_images_of_a_class():
    features, labels = clouds()
    with pytest.raises(ValueError, match="folds must be at least 2, got 1"):
        probe_accuracy(features, labels, folds=1)
    with pytest.raises(ValueError, match="needs a class with at least 2 images"):
        probe_accuracy(features, np.arange(len(labels)))
