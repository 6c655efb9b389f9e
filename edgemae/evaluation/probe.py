"""Probes: how much a frozen embedding knows about classes, for models without a head. numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemae.spec.errors import DataError

Array = NDArray[Any]

_BLOCK = 1024  # test rows at a time: 1024 x 50,000 cosines in float32 are 200 MB
_RIDGES = 10.0 ** np.arange(-4, 5)  # times the mean eigenvalue of the features


def knn_top1(
    train_embedding: Array,
    train_labels: Array,
    test_embedding: Array,
    test_labels: Array,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Return the top-1 of a weighted k-nearest-neighbour vote, 0..1 (protocol of DINO, Caron et al. 2021)."""
    votes = knn_logits(train_embedding, train_labels, test_embedding, k, temperature)
    return float((votes.argmax(axis=1) == np.asarray(test_labels)).mean())


def knn_logits(
    train_embedding: Array, train_labels: Array, test_embedding: Array, k: int = 20, temperature: float = 0.07
) -> Array:
    """Return the log of each class's share of the vote, (N, K) float32, ready for `Predictions`.

    The k most similar training rows vote with exp(cosine / temperature); k is cut to the number of training rows.
    """
    labels = _checked(train_embedding, train_labels)
    train, test = _unit(train_embedding), _unit(test_embedding)
    classes, k = int(labels.max()) + 1, min(k, len(train))
    one_hot = np.eye(classes, dtype=np.float64)[labels]
    parts = []
    for start in range(0, len(test), _BLOCK):
        similar = test[start : start + _BLOCK] @ train.T
        near = np.argpartition(-similar, k - 1, axis=1)[:, :k]
        # Relative to the nearest one: only ratios count, and exp(1 / 0.07) is 1.6e6.
        close = np.take_along_axis(similar, near, axis=1)
        weight = np.exp((close - close.max(axis=1, keepdims=True)) / temperature)
        votes = np.einsum("nk,nkc->nc", weight, one_hot[near])
        parts.append(np.log(votes / votes.sum(axis=1, keepdims=True) + 1e-12))
    logits: Array = np.concatenate(parts).astype(np.float32)
    return logits


def linear_probe(train_embedding: Array, train_labels: Array, test_embedding: Array, test_labels: Array) -> float:
    """Return the top-1 of a linear classifier on frozen embeddings, 0..1.

    Ridge regression onto one-hot labels, in closed form, on standardised features. Its strength is the one with the
    smallest leave-one-out error on the training rows (Allen's PRESS, from the same decomposition), so nothing is tuned
    by hand and test rows choose nothing.
    """
    labels = _checked(train_embedding, train_labels)
    train, test = np.asarray(train_embedding, np.float64), np.asarray(test_embedding, np.float64)
    mean, spread = train.mean(axis=0), train.std(axis=0)
    spread[spread < 1e-12] = 1.0  # a constant feature carries nothing and must not divide by zero
    target = np.eye(int(labels.max()) + 1)[labels]
    bias = target.mean(axis=0)
    u, s, vt = np.linalg.svd((train - mean) / spread, full_matrices=False)
    projected, scale = u.T @ (target - bias), (s**2).mean()
    best, weights = np.inf, np.zeros((train.shape[1], target.shape[1]))
    for ridge in _RIDGES * scale:
        shrink = s**2 / (s**2 + ridge)
        leverage = (u**2 * shrink).sum(axis=1, keepdims=True) + 1 / len(train)  # 1/n: the mean is fitted too
        residual = (target - bias - u @ (shrink[:, None] * projected)) / np.maximum(1 - leverage, 1e-9)
        error = float((residual**2).mean())
        if error < best:
            best, weights = error, vt.T @ ((s / (s**2 + ridge))[:, None] * projected)
    guess = (((test - mean) / spread) @ weights + bias).argmax(axis=1)
    return float((guess == np.asarray(test_labels)).mean())


def _checked(embedding: Array, labels: Array) -> Array:
    """Return labels as integers. Raises DataError when there is nothing to learn from."""
    labels = np.asarray(labels, np.int64)
    if len(embedding) != len(labels) or len(np.unique(labels)) < 2:
        raise DataError(
            f"{len(embedding)} embeddings with {len(np.unique(labels))} different labels",
            expected="one label for each image, and at least two classes",
            fix="give a training folder with class sub-folders",
        )
    return labels


def _unit(rows: Array) -> Array:
    """Return rows scaled to length one, in float32; rows of zeros stay."""
    rows = np.asarray(rows, np.float32)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Array = rows / np.where(norm > 0, norm, 1.0)
    return unit
