"""The images of a compile: what trains, what calibrates, what judges; and proof that these do not overlap."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

from edgemae.data.image_set import ImageSet, sample, sift, split
from edgemae.data.shards import images_at
from edgemae.data.validation import require_class_sizes, require_disjoint, require_labels, require_size, same_classes
from edgemae.model.vit import ViTShape
from edgemae.spec.errors import DataError
from edgemae.spec.plan_schema import Plan

HELD_OUT_FROM_MOST = 1_000_000
log = logging.getLogger("edgemae")


@dataclass(frozen=True)
class Inputs:
    """Hold image sets. `labelled` is None when the training folder is flat; `evaluation` always exists."""

    unlabelled: ImageSet  # everything that may be trained on, labels dropped
    labelled: ImageSet | None
    evaluation: ImageSet
    calibration: ImageSet

    @property
    def classes(self) -> tuple[str, ...]:
        return self.labelled.classes if self.labelled else ()

    def summary(self) -> dict[str, Any]:
        """Return counts, fingerprints and skipped files for the report."""
        sets = {
            "training": self.labelled or self.unlabelled,
            "without labels": self.unlabelled,
            "calibration": self.calibration,
            "evaluation": self.evaluation,
        }
        skipped = {path: why for images in sets.values() for path, why in images.skipped}
        summary: dict[str, Any] = {
            name: {"images": len(images), "fingerprint": images.fingerprint} for name, images in sets.items()
        }
        summary["classes"] = list(self.classes)
        if self.evaluation.labels:
            counts = Counter(self.evaluation.labels)
            summary["evaluation"]["images of each class"] = {c: counts[i] for i, c in enumerate(self.classes)}
            if self.labelled is not None and (missing := unjudged(self.labelled, self.evaluation)):
                summary["evaluation"]["classes without images"] = missing
        summary["skipped"] = {
            "count": len(skipped),
            "files": [f"{path}: {why}" for path, why in sorted(skipped.items())][:50],
        }
        return summary


def gather(plan: Plan, *, labels: bool = True, reads: ViTShape | None = None) -> Inputs:
    """Scan the plan's folders, split where none is given, and refuse overlap between evaluation and everything else.

    Without `labels` class folders are images like any others. `reads` is the shape of the model that is trained on
    them, by default the plan's student.
    """
    if not plan.data.train:
        raise DataError("no images were given", expected="--data DIR", fix="pass a folder of images")
    train = images_at(plan.data.train) if labels else images_at(plan.data.train).unlabelled()
    if train.labels is not None:
        require_labels(train, "training a classifier")
    read = reads or plan.student
    require_class_sizes(train, read.image_px, read.patch_px)
    if plan.data.eval:
        evaluation = images_at(plan.data.eval, checked=True)
        evaluation = same_classes(train, evaluation) if train.labels is not None else evaluation.unlabelled()
        if train.labels is not None and evaluation.labels is None:
            raise DataError(
                f"--eval-data '{plan.data.eval}' has no class folders, and '{plan.data.train}' has",
                expected="the same class folders in both",
                fix="sort the evaluation images into class folders",
            )
    else:
        _refuse_many(train)
        train, evaluation = split(train, plan.data.eval_fraction, plan.seed)
        if train.labels is not None:
            require_labels(train, "training a classifier", held_out=True)
        evaluation = evaluation if train.checked else sift(evaluation)
        if not len(train) or not len(evaluation):
            raise DataError(
                f"'{plan.data.train}' has too few different images to hold some out for evaluation",
                expected="at least two different images",
                fix="add images, or pass others with --eval-data",
            )
    unlabelled = train.unlabelled()
    if plan.data.unlabelled:
        unlabelled = unlabelled.joined(images_at(plan.data.unlabelled).unlabelled())
    for images in (unlabelled, evaluation):
        require_size(images, read.image_px, plan.seed, read.patch_px)
    require_disjoint(unlabelled, evaluation)
    if missing := unjudged(train, evaluation):
        log.warning("the evaluation set has no image of %d of %d classes, which nothing judges: %s", len(missing),
                    len(train.classes), ", ".join(missing[:10]))  # fmt: skip
    return Inputs(
        unlabelled=unlabelled,
        labelled=train if train.labels is not None else None,
        evaluation=evaluation,
        calibration=calibration_of(plan, train, evaluation),
    )


def unjudged(train: ImageSet, evaluation: ImageSet) -> list[str]:
    """Return the classes of the training set of which the evaluation set has no image."""
    if train.labels is None or evaluation.labels is None:
        return []
    judged = {evaluation.classes[label] for label in set(evaluation.labels)}
    return [name for name in train.classes if name not in judged]


def calibration_of(plan: Plan, train: ImageSet, evaluation: ImageSet | None) -> ImageSet:
    """Return calibration images: a folder of their own, or a sample of the training images; never evaluation ones."""
    own = images_at(plan.data.calib) if plan.data.calib else train
    if evaluation is not None:
        require_disjoint(own, evaluation)
    chosen = sample(own, plan.quantize.calibration_images, plan.seed)
    return chosen if chosen.checked else sift(chosen)


def _refuse_many(train: ImageSet) -> None:
    """Refuse to hold a fifth of millions of images out, which would all have to be decoded first."""
    if train.checked or len(train) <= HELD_OUT_FROM_MOST:
        return
    raise DataError(
        f"'{train.folder}' holds {len(train)} images in shards, too many to hold a part of them out",
        expected=f"evaluation images of their own beside more than {HELD_OUT_FROM_MOST} images",
        fix="pass them with --eval-data: a folder, or shards",
    )
