"""Accuracy of one model and of one model against another, image by image. numpy only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemae.device.outputs import softmax
from edgemae.evaluation.intervals import paired_interval, wilson
from edgemae.spec.errors import DataError, EngineRuntimeError, InternalError
from edgemae.spec.report import StageScore

__all__ = [
    "Predictions",
    "agreement",
    "calibration_bins",
    "cosine",
    "ece",
    "paired_drop",
    "per_class",
    "predict",
    "score",
    "top1",
    "wilson",
]

Array = NDArray[Any]
Run = Callable[[Array], Mapping[str, Array]]


@dataclass(frozen=True)
class Predictions:
    """Hold the outputs of one model for N images.

    `logits` (N, K) float32, or None for a model without a head; `embedding` (N, D) float32; `labels` (N,) int64, or
    None for unlabelled images. Raises EngineRuntimeError for NaN or infinity, InternalError for shapes that disagree.
    """

    logits: Array | None
    embedding: Array
    labels: Array | None

    def __post_init__(self) -> None:
        n = len(self.embedding)
        for name, value, axes in (
            ("logits", self.logits, 2),
            ("embedding", self.embedding, 2),
            ("labels", self.labels, 1),
        ):
            if value is None:
                continue
            if value.ndim != axes or len(value) != n:
                raise InternalError(
                    f"{name} has shape {value.shape} beside {n} embeddings",
                    expected=f"{axes} axes and {n} rows",
                    fix="report this as a bug",
                )
            if not np.isfinite(value).all():
                row = int(np.flatnonzero(~np.isfinite(value).reshape(n, -1).all(axis=1))[0])
                raise EngineRuntimeError(
                    f"the model's {name} of image {row} hold NaN or infinity",
                    expected="finite numbers",
                    fix="try --precision fp32; when that fails too, the checkpoint or its training is damaged",
                )

    @property
    def n(self) -> int:
        """Return the number of images."""
        return len(self.embedding)

    @property
    def chosen(self) -> Array:
        """Return the label with the largest logit for each image, (N,). Raises InternalError without logits."""
        return _needed(self.logits, "logits").argmax(axis=1)

    @property
    def right(self) -> Array:
        """Return for each image whether the chosen label is the true one, (N,) bool."""
        hits: Array = self.chosen == _needed(self.labels, "labels")
        return hits


def _needed(value: Array | None, name: str) -> Array:
    if value is None:
        raise InternalError(f"there are no {name}", expected=f"predictions with {name}", fix="report this as a bug")
    return value


def predict(run: Run, images: Iterable[tuple[Array, Array | None]]) -> Predictions:
    """Run a model over batches of ((B, C, H, W), labels (B,) or None) and gather its outputs.

    `run` returns `embedding` (B, D) and, with a head, `logits` (B, K). Raises DataError when there are no images.
    """
    logits: list[Array] = []
    embeddings: list[Array] = []
    labels: list[Array] = []
    for pixels, truth in images:
        outputs = run(pixels)
        embeddings.append(np.array(outputs["embedding"], np.float32))
        if "logits" in outputs:
            logits.append(np.array(outputs["logits"], np.float32))
        if truth is not None:
            labels.append(np.asarray(truth, np.int64))
    if not embeddings:
        raise DataError("there are no images to evaluate", expected="at least one image", fix="check --eval-data")
    for name, parts in (("labels", labels), ("logits", logits)):
        if parts and len(parts) != len(embeddings):
            raise InternalError(
                f"{len(parts)} of {len(embeddings)} batches have {name}",
                expected="all or none",
                fix="report this as a bug",
            )
    return Predictions(
        np.concatenate(logits) if logits else None,
        np.concatenate(embeddings),
        np.concatenate(labels) if labels else None,
    )


def top1(predictions: Predictions) -> float | None:
    """Return the share of images whose largest logit is the true label, 0..1; None without labels or a head."""
    if predictions.labels is None or predictions.logits is None:
        return None
    return float(predictions.right.mean())


def paired_drop(a_correct: Array, b_correct: Array, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return (drop, low, high) in points of going from model a to model b on the same images; positive is worse.

    Interval: Tango (1998), see `intervals.paired_interval`.
    """
    a, b = np.asarray(a_correct, bool), np.asarray(b_correct, bool)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise InternalError(f"{a.shape} against {b.shape}", expected="the same images", fix="report this as a bug")
    lost, gained = int((a & ~b).sum()), int((b & ~a).sum())
    low, high = paired_interval(lost, gained, len(a), confidence)
    return 100 * (lost - gained) / len(a), 100 * low, 100 * high


def calibration_bins(logits: Array, labels: Array, bins: int = 15) -> tuple[Array, Array, Array]:
    """Return (images, mean confidence, accuracy) of `bins` equally wide bins (lo, hi] of the largest class share."""
    shares = softmax(logits)
    confidence, hit = shares.max(axis=1), shares.argmax(axis=1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    divisor = np.maximum(count, 1)
    return (
        count,
        np.bincount(bin_of, weights=confidence, minlength=bins) / divisor,
        np.bincount(bin_of, weights=hit, minlength=bins) / divisor,
    )


def ece(logits: Array, labels: Array, bins: int = 15) -> float:
    """Return the expected calibration error, 0..1 (Guo et al. 2017, section 2, equation 3)."""
    count, confidence, accuracy = calibration_bins(logits, labels, bins)
    return float((count * np.abs(accuracy - confidence)).sum() / count.sum())


def agreement(a: Predictions, b: Predictions) -> float:
    """Return the share of images to which both models give the same label, 0..1."""
    return float((a.chosen == b.chosen).mean())


def per_class(predictions: Predictions, names: Sequence[str]) -> dict[str, float]:
    """Return for each class the share of its images that got its label, 0..1; classes without images are left out."""
    labels, right = _needed(predictions.labels, "labels"), predictions.right
    if len(labels) and int(labels.max()) >= len(names):
        raise InternalError(
            f"label {int(labels.max())} among {len(names)} class names",
            expected="a name each",
            fix="report this as a bug",
        )
    return {name: float(right[labels == i].mean()) for i, name in enumerate(names) if (labels == i).any()}


def cosine(a: Array, b: Array) -> Array:
    """Return the cosine of each row of a (N, D) with the same row of b, (N,); two zero rows count as equal."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    rows: Array = np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.where(scale > 0, scale, 1.0))
    return np.clip(rows, -1.0, 1.0)


def score(
    stage: str,
    predictions: Predictions,
    reference: Predictions | None,
    *,
    params: int,
    macs: int,
    size_bytes: int,
    label_names: Sequence[str],
    confidence: float = 0.95,
) -> StageScore:
    """Return one line of the way from teacher to int8; `reference` is the float student on the same images.

    Without labels `top1`, `ece`, `drop_pts` and `per_class` stay empty; agreement and cosine do not need labels.
    """
    fields: dict[str, Any] = {}
    share = top1(predictions)
    if share is not None:
        logits, labels = _needed(predictions.logits, "logits"), _needed(predictions.labels, "labels")
        low, high = wilson(int(predictions.right.sum()), predictions.n, confidence)
        names = label_names or [str(i) for i in range(logits.shape[1])]
        fields |= {"top1_low": low, "top1_high": high, "ece": ece(logits, labels)}
        fields["per_class"] = per_class(predictions, names)
    if reference is not None:
        fields |= _against(predictions, reference, confidence)
    return StageScore(
        stage=stage,
        top1=share,
        n=predictions.n,
        params=params,
        macs=macs,
        size_bytes=size_bytes,
        confidence=confidence,
        **fields,
    )


def _against(predictions: Predictions, reference: Predictions, confidence: float) -> dict[str, Any]:
    """Return the fields of a StageScore that compare two models image by image."""
    same = predictions.n == reference.n
    if same and predictions.labels is not None and reference.labels is not None:
        same = bool((predictions.labels == reference.labels).all())
    if not same:
        raise InternalError(
            f"{predictions.n} images against {reference.n}, or in another order",
            expected="the same images in the same order",
            fix="report this as a bug",
        )
    fields: dict[str, Any] = {}
    if predictions.embedding.shape == reference.embedding.shape:
        fields["cosine"] = float(cosine(predictions.embedding, reference.embedding).mean())
    if predictions.logits is None or reference.logits is None:
        return fields
    fields["agreement"] = agreement(predictions, reference)
    if predictions.labels is not None and reference.labels is not None:
        drop, low, high = paired_drop(reference.right, predictions.right, confidence)
        fields |= {"drop_pts": drop, "drop_low_pts": low, "drop_high_pts": high}
        fields["lost"] = int((reference.right & ~predictions.right).sum())
        fields["gained"] = int((predictions.right & ~reference.right).sum())
    return fields
