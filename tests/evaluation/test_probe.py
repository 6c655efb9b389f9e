"""Probes of frozen embeddings, on scikit-learn's digits."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from edgemae.evaluation.probe import knn_logits, knn_top1, linear_probe
from edgemae.spec.errors import DataError

DIGITS = load_digits()
X, Y = DIGITS.data.astype(np.float32), DIGITS.target
TRAIN, TEST = slice(0, 900), slice(900, 1797)


def test_one_neighbour_equals_scikit_learn() -> None:
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    reference = KNeighborsClassifier(1).fit(unit[TRAIN], Y[TRAIN]).score(unit[TEST], Y[TEST])
    assert knn_top1(X[TRAIN], Y[TRAIN], X[TEST], Y[TEST], k=1) == pytest.approx(reference, abs=0.003)


def test_votes_are_weighted_by_similarity() -> None:
    # Two distant neighbours of class 1 against one close neighbour of class 0.
    train = np.array([[1.0, 0.02], [0.4, 1.0], [0.4, 1.0]])
    votes = knn_logits(train, np.array([0, 1, 1]), np.array([[1.0, 0.0]]), k=3)
    assert votes.argmax() == 0
    close, far = 1 / np.hypot(1, 0.02), 0.4 / np.hypot(1, 0.4)
    share = np.exp(close / 0.07) / (np.exp(close / 0.07) + 2 * np.exp(far / 0.07))
    assert np.exp(votes[0, 0]) == pytest.approx(share, rel=1e-4)


def test_k_larger_than_the_training_set_and_scale_do_not_matter() -> None:
    small = slice(0, 15)
    wanted = knn_logits(X[small], Y[small], X[TEST], k=15)
    np.testing.assert_allclose(knn_logits(X[small] * 7, Y[small], X[TEST], k=99), wanted, atol=1e-3)


def test_linear_probe_finds_digits_and_ignores_dead_and_scaled_features() -> None:
    plain = linear_probe(X[TRAIN], Y[TRAIN], X[TEST], Y[TEST])
    reference = make_pipeline(StandardScaler(), RidgeClassifier()).fit(X[TRAIN], Y[TRAIN]).score(X[TEST], Y[TEST])
    assert plain > reference - 0.01
    odd = np.hstack([X * np.logspace(-3, 3, X.shape[1]), np.ones((len(X), 1))])
    assert linear_probe(odd[TRAIN], Y[TRAIN], odd[TEST], Y[TEST]) == pytest.approx(plain, abs=0.002)


def test_linear_probe_does_not_fit_noise() -> None:
    # As many features as images: without a chosen ridge this fits the training set and guesses the rest.
    rng = np.random.default_rng(0)
    noisy = np.hstack([X[:400], 4 * rng.normal(size=(400, 400))])
    assert linear_probe(noisy[:200], Y[:200], noisy[200:], Y[200:400]) > 0.65
    labels = rng.integers(0, 10, 400)
    assert linear_probe(noisy[:200], labels[:200], noisy[200:], labels[200:]) < 0.25


@pytest.mark.parametrize("labels", [np.zeros(900, int), Y[:800]])
def test_one_class_or_missing_labels_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(DataError):
        knn_top1(X[TRAIN], labels, X[TEST], Y[TEST])
    with pytest.raises(DataError):
        linear_probe(X[TRAIN], labels, X[TEST], Y[TEST])
